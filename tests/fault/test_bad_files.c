/* Truncated, lying and hostile files: every case must be refused with the expected status and words that say what is
 * wrong, name the file, leave the output alone and leak nothing. With an argument the files are left in that folder.
 * SPDX-License-Identifier: Apache-2.0 */
#include <zip.h>

#include "io/json.h"
#include "io_helpers.h"
#include "recipe.h"

static const char *keep_folder;

/* Opens by content and checks the verdict; status DQ_OK means that the file must be accepted. */
static void check_verdict(const char *label, const char *path, dq_status status, const char *words)
{
    uint64_t before = atomic_load(&env.memory_now);
    dq_source *s = NULL;
    dq_error_reset();
    dq_status got = dq_source_open(&env, path, &s);
    if (got == DQ_OK && status != DQ_OK) fail_msg("%s: accepted", label);
    if (got != status)
        fail_msg("%s: %s instead of %s: %s", label, dq_status_name(got), dq_status_name(status), dq_error_text());
    if (status == DQ_OK) {
        dq_source_free(s);
    } else {
        if (!strstr(dq_error_text(), words)) fail_msg("%s: '%s' does not say '%s'", label, dq_error_text(), words);
        if (!dq_error_file()[0]) fail_msg("%s: the error names no file", label);
        assert_null(s);
    }
    assert_int_equal(atomic_load(&env.memory_now), before);
}

static const char *put(const char *name, const void *data, size_t bytes)
{
    static char path[400];
    snprintf(path, sizeof path, "%s/%s", keep_folder ? keep_folder : scratch, name);
    if (dq_file_write(&env, path, data, bytes) != DQ_OK) fail_msg("%s", dq_error_text());
    return path;
}

/* ---- safetensors ---- */

#define F32_4 "\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\""

static const struct {
    const char *label, *header;
    int64_t length; /* stored header length; -1 = the true one */
    size_t data;
    dq_status status;
    const char *words;
} safetensors_cases[] = {
    {"good", "{\"a\":{" F32_4 ":[0,16]}}", -1, 16, DQ_OK, ""},
    {"no tensors", "{}", -1, 0, DQ_OK, ""},
    {"leading space", " {\"a\":{" F32_4 ":[0,16]}}", -1, 16, DQ_OK, ""},
    {"newline padding", "{\"a\":{" F32_4 ":[0,16]}}\n\n", -1, 16, DQ_OK, ""},
    {"scalar", "{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", -1, 4, DQ_OK, ""},
    {"offsets in another order", "{\"b\":{" F32_4 ":[16,32]},\"a\":{" F32_4 ":[0,16]}}", -1, 32, DQ_OK, ""},
    {"empty tensor", "{\"a\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[0,0]}}", -1, 0, DQ_OK, ""},
    {"metadata null", "{\"__metadata__\":null}", -1, 0, DQ_OK, ""},
    {"unknown field", "{\"a\":{\"x\":[1.5,{}]," F32_4 ":[0,16]}}", -1, 16, DQ_OK, ""},
    {"sub-byte type on a byte", "{\"a\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[0,2]}}", -1, 2, DQ_OK, ""},
    {"header length above the limit", "{}", 100000001, 0, DQ_E_FORMAT, "above the limit"},
    {"header length above the file", "{}", 3, 0, DQ_E_TRUNCATED, "the header needs 3 bytes, 2 follow"},
    {"header length negative", "{}", -2, 0, DQ_E_FORMAT, "above the limit"},
    {"header length zero", "", 0, 8, DQ_E_FORMAT, "JSON"},
    {"header cut", "{\"a\":{" F32_4 ":[0,16]}}", 20, 16, DQ_E_FORMAT, "JSON"},
    {"header is an array", "[]", -1, 0, DQ_E_FORMAT, "no JSON object"},
    {"NUL padding", "{\"a\":{" F32_4 ":[0,16]}}", 60, 20, DQ_E_FORMAT, "JSON"},
    {"minus zero", "{\"a\":{\"dtype\":\"F32\",\"shape\":[-0],\"data_offsets\":[0,0]}}", -1, 0, DQ_E_FORMAT, "minus"},
    {"text after the header", "{} x", -1, 0, DQ_E_FORMAT, "end of file expected"},
    {"data missing", "{\"a\":{" F32_4 ":[0,16]}}", -1, 0, DQ_E_TRUNCATED, "[tensor a]"},
    {"data one byte short", "{\"a\":{" F32_4 ":[0,16]}}", -1, 15, DQ_E_TRUNCATED, "16 of 15"},
    {"data one byte long", "{\"a\":{" F32_4 ":[0,16]}}", -1, 17, DQ_E_FORMAT, "1 bytes follow the last"},
    {"trailing bytes without tensors", "{}", -1, 8, DQ_E_FORMAT, "8 bytes follow the last"},
    {"hole", "{\"a\":{" F32_4 ":[0,16]},\"b\":{" F32_4 ":[20,36]}}", -1, 36, DQ_E_FORMAT, "after a hole"},
    {"hole at the start", "{\"a\":{" F32_4 ":[4,20]}}", -1, 20, DQ_E_FORMAT, "after a hole"},
    {"overlap", "{\"a\":{" F32_4 ":[0,16]},\"b\":{" F32_4 ":[8,24]}}", -1, 24, DQ_E_FORMAT, "inside another"},
    {"two names on one range", "{\"a\":{" F32_4 ":[0,16]},\"b\":{" F32_4 ":[0,16]}}", -1, 16, DQ_E_FORMAT,
     "inside another"},
    {"size and shape differ", "{\"a\":{" F32_4 ":[0,12]}}", -1, 12, DQ_E_FORMAT,
     "hold 12 bytes, shape and dtype need 16"},
    {"offsets reversed", "{\"a\":{" F32_4 ":[16,0]}}", -1, 16, DQ_E_FORMAT, "no range"},
    {"offset negative", "{\"a\":{" F32_4 ":[-16,0]}}", -1, 16, DQ_E_FORMAT, "no range"},
    {"offset beyond 64 bits", "{\"a\":{" F32_4 ":[0,18446744073709551632]}}", -1, 16, DQ_E_FORMAT, "not two integers"},
    {"offset real", "{\"a\":{" F32_4 ":[0,16.0]}}", -1, 16, DQ_E_FORMAT, "not two integers"},
    {"one offset", "{\"a\":{" F32_4 ":[16]}}", -1, 16, DQ_E_FORMAT, "not two integers"},
    {"three offsets", "{\"a\":{" F32_4 ":[0,16,16]}}", -1, 16, DQ_E_FORMAT, "not two integers"},
    {"offsets missing", "{\"a\":{\"dtype\":\"F32\",\"shape\":[0]}}", -1, 0, DQ_E_FORMAT, "'data_offsets' is missing"},
    {"offsets an object", "{\"a\":{" F32_4 ":{\"0\":0}}}", -1, 16, DQ_E_FORMAT, "not two integers"},
    {"shape real", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4.0],\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT,
     "not an integer"},
    {"shape exponent", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4e0],\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT,
     "not an integer"},
    {"shape negative", "{\"a\":{\"dtype\":\"F32\",\"shape\":[-4],\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT,
     "negative (-4)"},
    {"shape text", "{\"a\":{\"dtype\":\"F32\",\"shape\":\"4\",\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT,
     "'shape' is missing or no array"},
    {"shape missing", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT, "'shape' is missing"},
    {"shape overflows", "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,8],\"data_offsets\":[0,0]}}", -1, 0,
     DQ_E_FORMAT, "overflows"},
    {"bits overflow", "{\"a\":{\"dtype\":\"F64\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", -1, 0,
     DQ_E_FORMAT, "overflows"},
    {"nine dimensions", "{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,16]}}", -1, 16,
     DQ_E_UNSUPPORTED, "9 dimensions"},
    {"dtype unknown", "{\"a\":{\"dtype\":\"F33\",\"shape\":[4],\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT,
     "unknown dtype 'F33'"},
    {"dtype a number", "{\"a\":{\"dtype\":4,\"shape\":[4],\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT, "'dtype'"},
    {"dtype missing", "{\"a\":{\"shape\":[4],\"data_offsets\":[0,16]}}", -1, 16, DQ_E_FORMAT, "'dtype' is missing"},
    {"sub-byte type inside a byte", "{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", -1, 2,
     DQ_E_FORMAT, "do not end on a byte"},
    {"entry is no object", "{\"a\":[1]}", -1, 0, DQ_E_FORMAT, "no object"},
    {"duplicate tensor", "{\"a\":{" F32_4 ":[0,16]},\"a\":{" F32_4 ":[0,16]}}", -1, 16, DQ_E_FORMAT, "duplicate"},
    {"duplicate field", "{\"a\":{\"dtype\":\"F32\"," F32_4 ":[0,16]}}", -1, 16, DQ_E_FORMAT, "duplicate"},
    {"duplicate metadata", "{\"__metadata__\":{},\"__metadata__\":{}}", -1, 0, DQ_E_FORMAT, "duplicate"},
    {"metadata not text", "{\"__metadata__\":{\"k\":1}}", -1, 0, DQ_E_FORMAT, "key 'k' is no string"},
    {"metadata an array", "{\"__metadata__\":[]}", -1, 0, DQ_E_FORMAT, "'__metadata__' is no object"},
    {"name not UTF-8", "{\"\xff\":{" F32_4 ":[0,16]}}", -1, 16, DQ_E_FORMAT, "JSON"},
    {"name with NUL", "{\"a\\u0000\":{" F32_4 ":[0,16]}}", -1, 16, DQ_E_FORMAT, "JSON"},
    {"lone surrogate", "{\"\\ud800\":{" F32_4 ":[0,16]}}", -1, 16, DQ_E_FORMAT, "JSON"},
};

static void safetensors_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof safetensors_cases / sizeof *safetensors_cases; i++) {
        recipe_bytes b = {.size = 0};
        size_t n = strlen(safetensors_cases[i].header);
        recipe_number(&b, safetensors_cases[i].length == -1 ? n : (uint64_t)safetensors_cases[i].length, 8);
        recipe_add(&b, safetensors_cases[i].header, n);
        recipe_zeros(&b, safetensors_cases[i].data);
        char name[64];
        snprintf(name, sizeof name, "%s%02zu.safetensors", safetensors_cases[i].status == DQ_OK ? "good" : "bad", i);
        check_verdict(safetensors_cases[i].label, put(name, b.data, b.size), safetensors_cases[i].status,
                      safetensors_cases[i].words);
    }
    check_verdict("empty file", put("empty.safetensors", "", 0), DQ_E_TRUNCATED, "0 bytes cannot hold");
    check_verdict("seven bytes", put("seven.safetensors", "\1\0\0\0\0\0\0", 7), DQ_E_TRUNCATED, "7 bytes cannot hold");
    check_verdict("something else", put("other.dat", "hello, world", 12), DQ_E_FORMAT, "neither safetensors nor GGUF");
}

/* Every file that is cut somewhere must be refused, and no changed byte of a header may crash the reader. */
static void cut_and_changed(void **state)
{
    (void)state;
    static const char *const files[] = {IO_DATA "types.safetensors", IO_DATA "types.gguf", IO_DATA "bare.pt"};
    for (size_t f = 0; f < sizeof files / sizeof *files; f++) {
        char *bytes = NULL;
        size_t size = 0;
        assert_int_equal(dq_file_read(&env, files[f], 1 << 20, &bytes, &size), DQ_OK);
        size_t step = size / 100 + 1;
        for (size_t n = 0; n < size; n += step) {
            dq_source *s = NULL;
            if (dq_source_open(&env, put("cut.safetensors", bytes, n), &s) == DQ_OK)
                fail_msg("%s cut to %zu", files[f], n);
            assert_non_null(strstr(dq_error_text(), "cut.safetensors"));
        }
        for (size_t n = 0; n < 600 && n < size; n += 3) {
            dq_source *s = NULL;
            char old = bytes[n];
            bytes[n] ^= (char)(1 << n % 8);
            if (dq_source_open(&env, put("changed.safetensors", bytes, size), &s) == DQ_OK) dq_source_free(s);
            bytes[n] = old;
        }
        dq_free(bytes);
    }
    unlink(in_scratch("cut.safetensors"));
    unlink(in_scratch("changed.safetensors"));
}

/* ---- GGUF ---- */

#define GGUF(tensors, kvs) "t:GGUF 4:3 8:" #tensors " 8:" #kvs " "
#define F32_INFO(name, offset) "s:" name " 4:1 8:4 4:0 8:" #offset " "

static const struct {
    const char *label, *recipe;
    dq_status status;
    const char *words;
} gguf_cases[] = {
    {"good", GGUF(1, 0) F32_INFO("a", 0) "p:32 z:16", DQ_OK, ""},
    {"version 2", "t:GGUF 4:2 8:0 8:0", DQ_OK, ""},
    {"alignment 8", GGUF(1, 1) "s:general.alignment 4:4 4:8 " F32_INFO("a", 0) "p:8 z:16", DQ_OK, ""},
    {"only the magic", "t:GGUF", DQ_E_TRUNCATED, "the version needs 4 bytes, 0 follow"},
    {"version 1", "t:GGUF 4:1 8:0 8:0", DQ_E_UNSUPPORTED, "GGUF version 1"},
    {"version 4", "t:GGUF 4:4 8:0 8:0", DQ_E_UNSUPPORTED, "GGUF version 4"},
    {"big-endian", "t:GGUF 4:0x03000000 8:0 8:0", DQ_E_UNSUPPORTED, "big-endian"},
    {"counts cut", "t:GGUF 4:3 8:0 4:0", DQ_E_TRUNCATED, "the key count"},
    {"2^60 tensors", GGUF(0x1000000000000000, 0) "z:64", DQ_E_TRUNCATED, "tensors cannot lie"},
    {"2^60 keys", GGUF(0, 0x1000000000000000) "z:64", DQ_E_TRUNCATED, "keys cannot lie"},
    {"-1 tensors", GGUF(0xffffffffffffffff, 0) "z:64", DQ_E_TRUNCATED, "tensors cannot lie"},
    {"key length lies", GGUF(0, 1) "8:0xffffffffffffffff z:32", DQ_E_TRUNCATED, "a key needs"},
    {"empty key", GGUF(0, 1) "8:0 4:4 4:1 z:32", DQ_E_FORMAT, "key 0 is 0 bytes long"},
    {"duplicate key", GGUF(0, 2) "s:k 4:4 4:1 s:k 4:4 4:2", DQ_E_FORMAT, "'k' is used twice"},
    {"unknown value type", GGUF(0, 1) "s:k 4:13 8:0", DQ_E_FORMAT, "unknown value type 13"},
    {"value cut", GGUF(0, 1) "s:kkkk 4:12 4:0", DQ_E_TRUNCATED, "a value needs 8 bytes, 4 follow"},
    {"string lies", GGUF(0, 1) "s:k 4:8 8:1000 z:16", DQ_E_TRUNCATED, "a string needs 1000 bytes"},
    {"array of arrays", GGUF(0, 1) "s:k 4:9 4:9 8:1 z:32", DQ_E_UNSUPPORTED, "array of arrays"},
    {"array length lies", GGUF(0, 1) "s:k 4:9 4:4 8:1000 z:16", DQ_E_TRUNCATED, "an array needs 4000 bytes"},
    {"array length overflows", GGUF(0, 1) "s:k 4:9 4:10 8:0x4000000000000000 z:16", DQ_E_TRUNCATED, "an array needs"},
    {"array element type unknown", GGUF(0, 1) "s:k 4:9 4:99 8:1 z:16", DQ_E_FORMAT, "unknown value type 99"},
    {"string array count lies", GGUF(0, 1) "s:k 4:9 4:8 8:0x1000000000000000 z:16", DQ_E_TRUNCATED,
     "strings cannot lie"},
    {"string in array lies", GGUF(0, 1) "s:k 4:9 4:8 8:2 s:x 8:99", DQ_E_TRUNCATED, "a string of an array needs 99"},
    {"alignment 0", GGUF(0, 1) "s:general.alignment 4:4 4:0", DQ_E_FORMAT, "general.alignment is 0"},
    {"alignment 24", GGUF(0, 1) "s:general.alignment 4:4 4:24", DQ_E_FORMAT, "general.alignment is 24"},
    {"alignment 2^31", GGUF(0, 1) "s:general.alignment 4:4 4:0x80000000", DQ_E_FORMAT, "power of two up to"},
    {"alignment of another type", GGUF(0, 1) "s:general.alignment 4:10 8:32", DQ_E_FORMAT,
     "general.alignment is no u32"},
    {"tensor name empty", GGUF(1, 0) F32_INFO("", 0) "p:32 z:16", DQ_E_FORMAT, "tensor name 0 is 0 bytes long"},
    {"tensor name of 64 bytes",
     GGUF(1, 0) F32_INFO("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 0) "p:32 z:16",
     DQ_E_FORMAT, "64 bytes long"},
    {"tensor name with NUL", GGUF(1, 0) "8:2 1:97 1:0 4:1 8:4 4:0 8:0 p:32 z:16", DQ_E_FORMAT, "holds a NUL"},
    {"duplicate tensor", GGUF(2, 0) F32_INFO("a", 0) F32_INFO("a", 32) "p:32 z:64", DQ_E_FORMAT, "used twice"},
    {"five dimensions", GGUF(1, 0) "s:a 4:5 8:1 8:1 8:1 8:1 8:4 4:0 8:0 p:32 z:16", DQ_E_FORMAT, "5 dimensions"},
    {"dimension 0", GGUF(1, 0) "s:a 4:1 8:0 4:0 8:0 p:32 z:16", DQ_E_FORMAT, "dimension 0 is 0"},
    {"dimension -1", GGUF(1, 0) "s:a 4:1 8:0xffffffffffffffff 4:0 8:0 p:32 z:16", DQ_E_FORMAT,
     "dimension 0 is 18446744073709551615"},
    {"dimensions overflow", GGUF(1, 0) "s:a 4:2 8:0x100000000 8:0x100000000 4:0 8:0 p:32 z:16", DQ_E_FORMAT,
     "dimension 1"},
    {"bytes overflow", GGUF(1, 0) "s:a 4:1 8:0x7fffffffffffffff 4:0 8:0 p:32 z:16", DQ_E_FORMAT, "size overflows"},
    {"type removed", GGUF(1, 0) "s:a 4:1 8:32 4:4 8:0 p:32 z:64", DQ_E_UNSUPPORTED, "unknown tensor type 4"},
    {"type unknown", GGUF(1, 0) "s:a 4:1 8:32 4:1000 8:0 p:32 z:64", DQ_E_UNSUPPORTED, "unknown tensor type 1000"},
    {"row inside a block", GGUF(1, 0) "s:a 4:2 8:33 8:2 4:2 8:0 p:32 z:64", DQ_E_FORMAT,
     "no multiple of the Q4_0 block of 32"},
    {"first offset", GGUF(1, 0) F32_INFO("a", 32) "p:32 z:64", DQ_E_FORMAT, "offset 32, 0 is expected"},
    {"offsets overlap", GGUF(2, 0) F32_INFO("a", 0) F32_INFO("b", 0) "p:32 z:64", DQ_E_FORMAT,
     "offset 0, 32 is expected"},
    {"offset unaligned", GGUF(2, 0) F32_INFO("a", 0) F32_INFO("b", 16) "p:32 z:64", DQ_E_FORMAT,
     "offset 16, 32 is expected"},
    {"offsets leave a hole", GGUF(2, 0) F32_INFO("a", 0) F32_INFO("b", 64) "p:32 z:128", DQ_E_FORMAT,
     "offset 64, 32 is expected"},
    {"data one byte short", GGUF(1, 0) F32_INFO("a", 0) "p:32 z:15", DQ_E_TRUNCATED, "the tensor needs 16 bytes"},
    {"second tensor missing", GGUF(2, 0) F32_INFO("a", 0) F32_INFO("b", 32) "p:32 z:32", DQ_E_TRUNCATED, "[tensor b]"},
    {"info cut", GGUF(1, 0) "s:a 4:1 8:4 4:0 4:0", DQ_E_TRUNCATED, "the tensor offset"},
};

static void gguf_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof gguf_cases / sizeof *gguf_cases; i++) {
        recipe_bytes b;
        recipe_cook(&b, gguf_cases[i].recipe);
        char label[100];
        snprintf(label, sizeof label, "gguf: %s", gguf_cases[i].label);
        check_verdict(label, put("case.gguf", b.data, b.size), gguf_cases[i].status, gguf_cases[i].words);
        if (gguf_cases[i].status != DQ_OK && dq_error_byte() < 0) fail_msg("%s: no byte", label);
    }
}

/* ---- PyTorch ---- */

#define STORAGE(class, numel) "t:( u:storage c:torch," class " u:0 u:cpu t:K 1:" #numel " t:t t:Q "
#define CALL(storage, offset, sizes, strides)                                                                          \
    "c:torch._utils,_rebuild_tensor_v2 t:( " storage "t:K 1:" #offset " " sizes " " strides                            \
    " 1:0x89 c:collections,OrderedDict t:)R t:t t:R "
#define ONE(n) "t:K 1:" #n " 1:0x85 "
#define TWO(n, m) "t:K 1:" #n " t:K 1:" #m " 1:0x86 "
#define F32_16 STORAGE("FloatStorage", 16)
#define PROTO "1:0x80 1:2 "

enum { PLAIN, NO_STORAGE, NO_PICKLE, NO_FOLDER, BZIP2, FOREIGN_ORDER, WRONG_CRC, ENCRYPTED };

static const struct {
    const char *label, *pickle;
    int kind;
    dq_status status;
    const char *words;
} pt_cases[] = {
    {"good", PROTO CALL(F32_16, 0, TWO(4, 4), TWO(4, 1)) "t:.", PLAIN, DQ_OK, ""},
    {"no tensors", PROTO "t:}.", PLAIN, DQ_OK, ""},
    {"empty view beyond the end", PROTO CALL(F32_16, 99, ONE(0), ONE(1)) "t:.", PLAIN, DQ_OK, ""},
    {"no data.pkl", PROTO "t:}.", NO_PICKLE, DQ_E_FORMAT, "no NAME/data.pkl"},
    {"data.pkl without folder", PROTO "t:}.", NO_FOLDER, DQ_E_FORMAT, "no NAME/data.pkl"},
    {"storage missing", PROTO CALL(F32_16, 0, ONE(4), ONE(1)) "t:.", NO_STORAGE, DQ_E_FORMAT, "no storage '0'"},
    {"bzip2", PROTO CALL(F32_16, 0, ONE(4), ONE(1)) "t:.", BZIP2, DQ_E_UNSUPPORTED, "compression method 12"},
    {"encrypted", PROTO CALL(F32_16, 0, ONE(4), ONE(1)) "t:.", ENCRYPTED, DQ_E_UNSUPPORTED, "encrypted"},
    {"big-endian", PROTO "t:}.", FOREIGN_ORDER, DQ_E_UNSUPPORTED, "byte order 'big'"},
    {"checksum", PROTO "t:}.", WRONG_CRC, DQ_E_FORMAT, "CRC"},
    {"empty pickle", "", PLAIN, DQ_E_TRUNCATED, "pickle"},
    {"no stop", PROTO "t:}", PLAIN, DQ_E_TRUNCATED, "pickle"},
    {"stop on nothing", PROTO "t:.", PLAIN, DQ_E_FORMAT, "the stack is empty"},
    {"stop on a mark", PROTO "t:(.", PLAIN, DQ_E_FORMAT, "the stack is empty"},
    {"protocol 1", "1:0x80 1:1 t:}.", PLAIN, DQ_E_UNSUPPORTED, "protocol 1"},
    {"protocol 9", "1:0x80 1:9 t:}.", PLAIN, DQ_E_UNSUPPORTED, "protocol 9"},
    {"os.system", PROTO "c:os,system u:true 1:0x85 t:R.", PLAIN, DQ_E_UNSUPPORTED, "'os.system' is refused"},
    {"builtins.eval by stack", PROTO "1:0x8c 1:8 t:builtins 1:0x8c 1:4 t:eval 1:0x93 t:.", PLAIN, DQ_E_UNSUPPORTED,
     "'builtins.eval' is refused"},
    {"allowed name of another module", PROTO "c:evil,OrderedDict t:)R.", PLAIN, DQ_E_UNSUPPORTED, "'evil.OrderedDict'"},
    {"dotted name", PROTO "c:torch,_utils._rebuild_tensor_v2 t:.", PLAIN, DQ_E_UNSUPPORTED, "is refused"},
    {"opcode INST", PROTO "t:(i", PLAIN, DQ_E_UNSUPPORTED, "opcode 0x69"},
    {"opcode NEWOBJ", PROTO "c:collections,OrderedDict t:) 1:0x81 t:.", PLAIN, DQ_E_UNSUPPORTED, "opcode 0x81"},
    {"opcode EXT1", PROTO "1:0x82 1:1 t:.", PLAIN, DQ_E_UNSUPPORTED, "opcode 0x82"},
    {"global without end", PROTO "t:ctorch", PLAIN, DQ_E_TRUNCATED, "a name has no end"},
    {"text length lies", PROTO "t:X 4:0xffffffff t:abc", PLAIN, DQ_E_TRUNCATED, "operand needs 4294967295 bytes"},
    {"memo empty", PROTO "t:h 1:7 t:.", PLAIN, DQ_E_FORMAT, "memo 7 is empty"},
    {"memo index 2^32-1", PROTO "t:}r 4:0xffffffff t:.", PLAIN, DQ_E_FORMAT, "memo index 4294967295"},
    {"memo of nothing", PROTO "t:q 1:0 t:.", PLAIN, DQ_E_FORMAT, "nothing to memorise"},
    {"items without mark", PROTO "t:}u.", PLAIN, DQ_E_FORMAT, "no mark"},
    {"items for a list", PROTO "t:](u.", PLAIN, DQ_E_FORMAT, "no dict"},
    {"key without value", PROTO "t:}( u:k t:u.", PLAIN, DQ_E_FORMAT, "key without value"},
    {"call of text", PROTO "u:f t:)R.", PLAIN, DQ_E_FORMAT, "no known function"},
    {"call of a storage class", PROTO "c:torch,FloatStorage t:)R.", PLAIN, DQ_E_FORMAT,
     "FloatStorage with 0 arguments"},
    {"OrderedDict with items", PROTO "c:collections,OrderedDict t:] 1:0x85 t:R.", PLAIN, DQ_E_FORMAT,
     "OrderedDict with 1"},
    {"persistent id is text", PROTO "u:x t:Q.", PLAIN, DQ_E_FORMAT, "persistent id"},
    {"persistent id of no storage", PROTO "t:( u:module c:torch,FloatStorage u:0 u:cpu t:K 1:1 t:tQ.", PLAIN,
     DQ_E_FORMAT, "persistent id"},
    {"numel negative", PROTO "t:( u:storage c:torch,FloatStorage u:0 u:cpu t:J 4:0xffffffff t:tQ.", PLAIN, DQ_E_FORMAT,
     "persistent id"},
    {"numel above the entry", PROTO CALL(STORAGE("FloatStorage", 17), 0, ONE(4), ONE(1)) "t:.", PLAIN, DQ_E_TRUNCATED,
     "has 64 bytes, 17 elements"},
    {"wider class than the entry", PROTO CALL(STORAGE("DoubleStorage", 16), 0, ONE(4), ONE(1)) "t:.", PLAIN,
     DQ_E_TRUNCATED, "16 elements of F64"},
    {"numel overflows",
     PROTO
     "c:torch._utils,_rebuild_tensor_v2 t:( t:( u:storage c:torch,FloatStorage u:0 u:cpu 1:0x8a 1:8 8:0x7fffffffffffffff t:tQ t:K 1:0 " ONE(
         4) ONE(1) "1:0x89 t:} t:tR.",
     PLAIN, DQ_E_TRUNCATED, "elements of F32"},
    {"size beyond the storage", PROTO CALL(F32_16, 0, ONE(17), ONE(1)) "t:.", PLAIN, DQ_E_FORMAT,
     "reaches element 16 of storage '0', which has 16"},
    {"offset beyond the storage", PROTO CALL(F32_16, 13, ONE(4), ONE(1)) "t:.", PLAIN, DQ_E_FORMAT,
     "reaches element 16"},
    {"stride beyond the storage", PROTO CALL(F32_16, 0, TWO(2, 2), TWO(16, 1)) "t:.", PLAIN, DQ_E_FORMAT,
     "reaches element 17"},
    {"stride negative", PROTO CALL(F32_16, 4, ONE(4), "t:J 4:0xffffffff 1:0x85") "t:.", PLAIN, DQ_E_FORMAT,
     "stride is no integer from 0 on"},
    {"size overflows",
     PROTO CALL(F32_16, 0, "1:0x8a 1:8 8:0x4000000000000000 1:0x8a 1:8 8:0x4000000000000000 1:0x86", TWO(0, 0)) "t:.",
     PLAIN, DQ_E_FORMAT, "overflow"},
    {"strides missing", PROTO CALL(F32_16, 0, TWO(2, 2), ONE(1)) "t:.", PLAIN, DQ_E_FORMAT, "2 sizes and 1 strides"},
    {"size is a list", PROTO CALL(F32_16, 0, "t:]", ONE(1)) "t:.", PLAIN, DQ_E_FORMAT, "size is no tuple"},
    {"nine dimensions", PROTO CALL(F32_16, 0, "t:(NNNNNNNNNt", "t:)") "t:.", PLAIN, DQ_E_UNSUPPORTED, "9 dimensions"},
    {"tensor of no storage", PROTO CALL("u:x ", 0, ONE(4), ONE(1)) "t:.", PLAIN, DQ_E_FORMAT,
     "wrong arguments of _rebuild_tensor_v2"},
    {"parameter of no tensor", PROTO "c:torch._utils,_rebuild_parameter t:(NNNtR.", PLAIN, DQ_E_FORMAT,
     "wrong arguments of _rebuild_parameter"},
    {"attributes for a list", PROTO "t:]}b.", PLAIN, DQ_E_UNSUPPORTED, "attributes for what is no dict"},
    {"integer of 9 bytes", PROTO "1:0x8a 1:9 z:9 t:.", PLAIN, DQ_E_UNSUPPORTED, "integer of 9 bytes"},
    {"list in itself", PROTO "t:]q 1:0 t:h 1:0 t:a.", PLAIN, DQ_E_UNSUPPORTED, "nested deeper than 64"},
    {"key that is a tuple", PROTO "t:} t:) " CALL(F32_16, 0, ONE(4), ONE(1)) "t:s.", PLAIN, DQ_E_UNSUPPORTED,
     "dict key"},
    {"two tensors of one name",
     PROTO "t:}( u:1 " CALL(F32_16, 0, ONE(4), ONE(1)) "t:K 1:1 " CALL(F32_16, 0, ONE(4), ONE(1)) "t:u.", PLAIN,
     DQ_E_FORMAT, "used twice"},
};

static void add_entry(zip_t *z, const char *name, const void *data, size_t bytes, int kind)
{
    zip_source_t *source = zip_source_buffer(z, data, bytes, 0);
    zip_int64_t i = zip_file_add(z, name, source, 0);
    assert_true(i >= 0);
    bool storage = strstr(name, "data/") != NULL;
    zip_int32_t method = storage && kind == BZIP2 ? ZIP_CM_BZIP2 : ZIP_CM_STORE;
    assert_int_equal(zip_set_file_compression(z, (zip_uint64_t)i, method, 0), 0);
    if (storage && kind == ENCRYPTED)
        assert_int_equal(zip_file_set_encryption(z, (zip_uint64_t)i, ZIP_EM_TRAD_PKWARE, "secret"), 0);
}

static void make_archive(const char *path, const recipe_bytes *pickle, int kind)
{
    static const uint8_t zeros[64];
    unlink(path);
    zip_t *z = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, NULL);
    assert_non_null(z);
    if (kind == NO_FOLDER)
        add_entry(z, "data.pkl", pickle->data, pickle->size, kind);
    else if (kind != NO_PICKLE)
        add_entry(z, "R/data.pkl", pickle->data, pickle->size, kind);
    add_entry(z, "R/version", "3\n", 2, kind);
    if (kind != NO_STORAGE) add_entry(z, "R/data/0", zeros, sizeof zeros, kind);
    if (kind == FOREIGN_ORDER) add_entry(z, "R/byteorder", "big", 3, kind);
    if (zip_close(z) != 0) fail_msg("%s", zip_strerror(z));
    if (kind != WRONG_CRC) return;
    char *bytes = NULL; /* the pickle's first byte is 0x80, right behind its name */
    size_t size = 0;
    assert_int_equal(dq_file_read(&env, path, 1 << 20, &bytes, &size), DQ_OK);
    char *at = memmem(bytes, size, "R/data.pkl\x80", 11);
    assert_non_null(at);
    at[11] = 3; /* protocol 3, as good as 2 */
    assert_int_equal(dq_file_write(&env, path, bytes, size), DQ_OK);
    dq_free(bytes);
}

static void pt_files(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof pt_cases / sizeof *pt_cases; i++) {
        recipe_bytes b;
        recipe_cook(&b, pt_cases[i].pickle);
        char label[100];
        snprintf(label, sizeof label, "pt: %s", pt_cases[i].label);
        make_archive(in_scratch("case.pt"), &b, pt_cases[i].kind);
        check_verdict(label, in_scratch("case.pt"), pt_cases[i].status, pt_cases[i].words);
    }
    check_verdict("bare pickle", put("bare.pkl", "\x80\x02}.", 4), DQ_E_UNSUPPORTED, "a bare pickle");
    dq_source *s = NULL;
    assert_int_equal(dq_pt_open(&env, put("plain.pt", "hello", 5), &s), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "no zip archive"));
    check_verdict("zip without directory", put("cut.pt", "PK\3\4 and no more", 16), DQ_E_FORMAT, "zip");
}

/* Containers that contain each other many times must neither take forever nor fill the memory. */
static void pickle_bombs(void **state)
{
    (void)state;
    recipe_bytes b;
    recipe_cook(&b, PROTO CALL(F32_16, 0, ONE(4), ONE(1)) "t:q 1:0");
    for (int level = 0; level < 60; level++) { /* each level holds the one before twice */
        uint8_t twice[] = {'h', (uint8_t)level, 'h', (uint8_t)level, 0x86, 'q', (uint8_t)(level + 1)};
        recipe_add(&b, twice, sizeof twice);
    }
    recipe_add(&b, ".", 1);
    make_archive(in_scratch("bomb.pt"), &b, PLAIN);
    check_verdict("2^60 tensors", in_scratch("bomb.pt"), DQ_E_UNSUPPORTED, "pickle: more than");
}

/* ---- index and JSON ---- */

static const struct {
    const char *label, *text;
    dq_status status;
    const char *words;
} index_cases[] = {
    {"good", "{\"weight_map\":{\"a\":\"one.safetensors\"}}", DQ_OK, ""},
    {"no such shard", "{\"weight_map\":{\"a\":\"two.safetensors\"}}", DQ_E_IO, "two.safetensors"},
    {"tensor not in its shard", "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"one.safetensors\"}}", DQ_E_MISMATCH,
     "[tensor b]"},
    {"path upwards", "{\"weight_map\":{\"a\":\"../one.safetensors\"}}", DQ_E_FORMAT, "no plain file name"},
    {"absolute path", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", DQ_E_FORMAT, "no plain file name"},
    {"backslash", "{\"weight_map\":{\"a\":\"..\\\\one.safetensors\"}}", DQ_E_FORMAT, "no plain file name"},
    {"the folder itself", "{\"weight_map\":{\"a\":\"..\"}}", DQ_E_FORMAT, "no plain file name"},
    {"empty name", "{\"weight_map\":{\"a\":\"\"}}", DQ_E_FORMAT, "no plain file name"},
    {"name is a number", "{\"weight_map\":{\"a\":1}}", DQ_E_FORMAT, "no string"},
    {"no weight_map", "{\"metadata\":{}}", DQ_E_FORMAT, "'weight_map' is missing"},
    {"empty weight_map", "{\"weight_map\":{}}", DQ_E_FORMAT, "names no tensors"},
    {"weight_map is an array", "{\"weight_map\":[]}", DQ_E_FORMAT, "'weight_map' is missing or no object"},
    {"duplicate tensor", "{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"one.safetensors\"}}", DQ_E_FORMAT,
     "duplicate"},
    {"shard is no safetensors", "{\"weight_map\":{\"a\":\"bad.safetensors\"}}", DQ_E_TRUNCATED, "bad.safetensors"},
    {"array", "[]", DQ_E_FORMAT, "weight_map"},
    {"cut", "{\"weight_map\":{\"a\":", DQ_E_FORMAT, "JSON"},
    {"empty", "", DQ_E_FORMAT, "JSON"},
    {"not UTF-8", "{\"weight_map\":{\"\xff\":\"one.safetensors\"}}", DQ_E_FORMAT, "JSON"},
};

static void index_files(void **state)
{
    (void)state;
    static const char header[] = "{\"a\":{" F32_4 ":[0,16]},\"c\":{" F32_4 ":[16,32]}}";
    recipe_bytes b = {.size = 0};
    recipe_number(&b, strlen(header), 8);
    recipe_add(&b, header, strlen(header));
    recipe_zeros(&b, 32);
    put("one.safetensors", b.data, b.size);
    put("bad.safetensors", b.data, 20);
    for (size_t i = 0; i < sizeof index_cases / sizeof *index_cases; i++) {
        char label[100];
        snprintf(label, sizeof label, "index: %s", index_cases[i].label);
        check_verdict(label, put("model.safetensors.index.json", index_cases[i].text, strlen(index_cases[i].text)),
                      index_cases[i].status, index_cases[i].words);
    }
}

int main(int argc, char **argv)
{
    keep_folder = argc > 1 ? argv[1] : NULL;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(safetensors_files), cmocka_unit_test(cut_and_changed), cmocka_unit_test(gguf_files),
        cmocka_unit_test(pt_files),          cmocka_unit_test(pickle_bombs),    cmocka_unit_test(index_files),
    };
    return cmocka_run_group_tests(tests, io_set_up, io_tear_down);
}
