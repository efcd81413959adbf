/* Quantized checkpoints that lie, one change at a time to sound ones, each with its verdict.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/dtype.h"
#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "io/json.h"
#include "models.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s (%s)\n", dq_error_text(), dq_error_tensor());
    assert_int_equal(status, DQ_OK);
}

/* What is done to the copy of a checkpoint. Q: in the quantization object; C: in config.json. */
enum {
    KEEP,
    SET_Q,     /* member `name` = JSON `value` */
    DROP_Q,    /* the whole quantization_config */
    SET_GROUP, /* config_groups.group_0.weights.`name` = value */
    SET_C,     /* a member of config.json */
    DROP,      /* tensor `name` is missing */
    COPY,      /* a second tensor with the same content, named `value` */
    CUT,       /* the last row is missing */
    RETYPE,    /* I32 becomes U32, F16 becomes I16 */
    FILL,      /* 16-bit words, or 32-bit ones, all become `number` */
    POKE,      /* the first element becomes `number` */
    FILL_INTS, /* I32 tensor filled with `number` */
    EMPTY,     /* shape [0] */
    VAST_ROWS, /* shape [2^61, 0]: no bytes, but sides that overflow when multiplied */
    VAST_COLS, /* shape [0, 2^61] */
    MATRIX     /* transform_config = value, and a stored matrix of NaN */
};

typedef struct lie {
    const char *what, *model;
    int change;
    const char *name, *value;
    int64_t number;
    dq_status verdict;
    const char *says; /* in the message or the tensor's name */
} lie;

#define Q0 "model.layers.0.self_attn.q_proj"
#define D0 "model.layers.0.mlp.down_proj"

static const lie lies[] = {
    /* the configuration */
    {"unknown method", "gptq_w4", SET_Q, "quant_method", "\"bitsandbytes\"", 0, DQ_E_UNSUPPORTED, "bitsandbytes"},
    {"method is a number", "gptq_w4", SET_Q, "quant_method", "3", 0, DQ_E_FORMAT, "quant_method"},
    {"unknown width", "gptq_w4", SET_Q, "bits", "5", 0, DQ_E_UNSUPPORTED, "5 bits"},
    {"width 0", "gptq_w4", SET_Q, "bits", "0", 0, DQ_E_FORMAT, "bits"},
    {"width beyond 32 bits", "gptq_w4", SET_Q, "bits", "4294967300", 0, DQ_E_FORMAT, "bits"},
    {"width is text", "gptq_w4", SET_Q, "bits", "\"4\"", 0, DQ_E_FORMAT, "bits"},
    {"no width", "gptq_w4", SET_Q, "bits", "null", 0, DQ_E_FORMAT, "bit"},
    {"another width than the tensors", "gptq_w4", SET_Q, "bits", "8", 0, DQ_E_MISMATCH, "scales"},
    {"group of 0", "gptq_w4", SET_Q, "group_size", "0", 0, DQ_E_FORMAT, "group_size"},
    {"group of -2", "gptq_w4", SET_Q, "group_size", "-2", 0, DQ_E_FORMAT, "group_size"},
    {"another group than the tensors", "gptq_w4", SET_Q, "group_size", "16", 0, DQ_E_MISMATCH, "scales"},
    {"group beyond 32 bits", "gptq_w4", SET_Q, "group_size", "4294967328", 0, DQ_E_FORMAT, "group_size"},
    {"repacked for one kernel", "gptq_w4", SET_Q, "checkpoint_format", "\"marlin\"", 0, DQ_E_UNSUPPORTED, "marlin"},
    {"packed in 16 bits", "gptq_w4", SET_Q, "pack_dtype", "\"int16\"", 0, DQ_E_UNSUPPORTED, "int16"},
    {"symmetric, but it is not", "gptq_w8_row", SET_Q, "sym", "true", 0, DQ_E_MISMATCH, "symmetric"},
    {"symmetric is text", "gptq_w4", SET_Q, "sym", "\"yes\"", 0, DQ_E_FORMAT, "sym"},
    {"a rule that is no pattern", "gptq_w4", SET_Q, "dynamic", "{\"+:(\": {\"bits\": 8}}", 0, DQ_E_FORMAT, "regular"},
    {"a rule that leaves a linear out", "gptq_w4", SET_Q, "dynamic", "{\"-:.*q_proj\": {}}", 0, DQ_E_MISMATCH,
     "unquantized"},
    {"a rule of another width", "gptq_w4", SET_Q, "dynamic", "{\".*\": {\"bits\": 8}}", 0, DQ_E_MISMATCH, "scales"},
    {"no configuration at all", "gptq_w4", DROP_Q, NULL, NULL, 0, DQ_E_MISMATCH, "quantization_config"},
    {"configuration is a list", "gptq_w4", SET_C, "quantization_config", "[1]", 0, DQ_E_FORMAT, "no object"},
    {"says awq", "gptq_w4", SET_Q, "quant_method", "\"awq\"", 0, DQ_E_UNSUPPORTED, "AWQ version"},
    {"says compressed-tensors", "gptq_w4", SET_C, "quantization_config",
     "{\"quant_method\":\"compressed-tensors\",\"format\":\"pack-quantized\",\"config_groups\":{\"g\":{\"targets\":[\"Linear\"],"
     "\"weights\":{\"num_bits\":4}}}}",
     0, DQ_E_MISMATCH, "another method"},
    {"another model's sizes", "gptq_w4", SET_C, "intermediate_size", "128", 0, DQ_E_MISMATCH, "mlp"},
    {"one layer more", "gptq_w4", SET_C, "num_hidden_layers", "2", 0, DQ_E_MISMATCH, "layers.1"},
    /* the tensors of GPTQ */
    {"no qweight", "gptq_w4", DROP, Q0 ".qweight", NULL, 0, DQ_E_MISMATCH, "q_proj"},
    {"no qzeros", "gptq_w4", DROP, Q0 ".qzeros", NULL, 0, DQ_E_NOTFOUND, "qzeros"},
    {"no scales", "gptq_w4", DROP, Q0 ".scales", NULL, 0, DQ_E_NOTFOUND, "scales"},
    {"qweight cut", "gptq_w4", CUT, D0 ".qweight", NULL, 0, DQ_E_MISMATCH, "down_proj"},
    {"scales cut", "gptq_w4", CUT, Q0 ".scales", NULL, 0, DQ_E_MISMATCH, "scales"},
    {"qzeros cut", "gptq_w4", CUT, Q0 ".qzeros", NULL, 0, DQ_E_MISMATCH, "qzeros"},
    {"g_idx cut", "gptq_w4", CUT, Q0 ".g_idx", NULL, 0, DQ_E_MISMATCH, "g_idx"},
    {"qweight of another type", "gptq_w4", RETYPE, Q0 ".qweight", NULL, 0, DQ_E_MISMATCH, "qweight"},
    {"scales are integers", "gptq_w4", RETYPE, Q0 ".scales", NULL, 0, DQ_E_MISMATCH, "scales"},
    {"g_idx out of range", "gptq_w4", POKE, Q0 ".g_idx", NULL, 2, DQ_E_FORMAT, "g_idx"},
    {"g_idx negative", "gptq_w4", POKE, Q0 ".g_idx", NULL, -1, DQ_E_FORMAT, "g_idx"},
    {"g_idx covers one group only", "gptq_w4", FILL_INTS, Q0 ".g_idx", NULL, 0, DQ_E_FORMAT, "no column"},
    {"g_idx empty", "gptq_w4", EMPTY, Q0 ".g_idx", NULL, 0, DQ_OK, NULL},
    {"g_idx missing", "gptq_w4", DROP, Q0 ".g_idx", NULL, 0, DQ_OK, NULL},
    {"scale NaN", "gptq_w4", POKE, Q0 ".scales", NULL, 0x7e00, DQ_E_NONFINITE, "not finite"},
    {"scale infinite", "gptq_w4", POKE, Q0 ".scales", NULL, 0x7c00, DQ_E_NONFINITE, "not finite"},
    {"scales zero over codes", "gptq_w4", FILL, Q0 ".scales", NULL, 0, DQ_E_FORMAT, "is zero"},
    {"zero points mixed", "gptq_w4", POKE, Q0 ".qzeros", NULL, 0x12345678, DQ_E_MISMATCH, "symmetric"},
    {"a plain weight beside the codes", "gptq_w4", COPY, Q0 ".qzeros", Q0 ".weight", 0, DQ_E_MISMATCH, "plain weight"},
    {"a part of another method", "gptq_w4", COPY, Q0 ".scales", Q0 ".weight_scale", 0, DQ_E_MISMATCH, "another method"},
    {"a quantized embedding", "gptq_w4", COPY, Q0 ".qweight", "model.embed_tokens.qweight", 0, DQ_E_UNSUPPORTED,
     "embedding"},
    {"a head of codes alone", "gptq_head", DROP, "lm_head.scales", NULL, 0, DQ_E_NOTFOUND, "lm_head.scales"},
    {"a head twice", "gptq_head", COPY, "model.embed_tokens.weight", "lm_head.weight", 0, DQ_E_MISMATCH,
     "plain weight"},
    {"another vocabulary", "gptq_w4", SET_C, "vocab_size", "64", 0, DQ_E_MISMATCH, "embed_tokens"},
    {"heads that do not divide", "gptq_w4", SET_C, "num_attention_heads", "3", 0, DQ_E_FORMAT, "head"},
    {"a width of 2^31 heads", "gptq_w4", SET_C, "num_attention_heads", "2147483648", 0, DQ_E_FORMAT, "head"},
    {"layers beyond 32 bits", "gptq_w4", SET_C, "num_hidden_layers", "4294967297", 0, DQ_E_FORMAT, "num_hidden_layers"},
    {"empty qweight", "gptq_w4", EMPTY, Q0 ".qweight", NULL, 0, DQ_E_MISMATCH, "qweight"},
    {"no embedding", "gptq_w4", DROP, "model.embed_tokens.weight", NULL, 0, DQ_E_MISMATCH, "embed_tokens"},
    /* AWQ */
    {"AWQ of 8 bits", "awq_gemm", SET_Q, "bits", "8", 0, DQ_E_UNSUPPORTED, "8 bits"},
    {"AWQ of no known version", "awq_gemm", SET_Q, "version", "\"gemx\"", 0, DQ_E_UNSUPPORTED, "gemx"},
    {"GEMM said to be GEMV", "awq_gemm", SET_Q, "version", "\"gemv\"", 0, DQ_E_MISMATCH, "qzeros"},
    {"AWQ leaves a linear out", "awq_gemm", SET_Q, "modules_to_not_convert", "[\"q_proj\"]", 0, DQ_E_MISMATCH,
     "unquantized"},
    {"AWQ scales cut", "awq_gemm", CUT, D0 ".scales", NULL, 0, DQ_E_MISMATCH, "scales"},
    {"AWQ scale NaN", "awq_gemm", POKE, Q0 ".scales", NULL, 0x7e00, DQ_E_NONFINITE, "not finite"},
    {"AWQ scales zero", "awq_gemm", FILL, Q0 ".scales", NULL, 0, DQ_E_FORMAT, "is zero"},
    {"AWQ without qzeros", "awq_gemm", DROP, Q0 ".qzeros", NULL, 0, DQ_E_NOTFOUND, "qzeros"},
    {"AWQ zero point beyond the range", "awq_gemv_fast", FILL, Q0 ".qzeros", NULL, 0x4000, DQ_E_FORMAT, "zero point"},
    /* compressed-tensors */
    {"unknown format", "ct_int8", SET_Q, "format", "\"nvfp4-pack-quantized\"", 0, DQ_E_UNSUPPORTED, "nvfp4"},
    {"no groups", "ct_int8", SET_Q, "config_groups", "{}", 0, DQ_E_FORMAT, "config_groups"},
    {"not compressed", "ct_int8", SET_Q, "quantization_status", "\"frozen\"", 0, DQ_E_UNSUPPORTED, "frozen"},
    {"quantized cache", "ct_int8", SET_Q, "kv_cache_scheme", "{\"num_bits\":8}", 0, DQ_E_UNSUPPORTED, "kv_cache"},
    {"sparse", "ct_int8", SET_Q, "sparsity_config", "{\"format\":\"sparse-24-bitmask\"}", 0, DQ_E_UNSUPPORTED,
     "sparse"},
    {"12 bits", "ct_int8", SET_GROUP, "num_bits", "12", 0, DQ_E_UNSUPPORTED, "12 bits"},
    {"per expert", "ct_int8", SET_GROUP, "strategy", "\"expert\"", 0, DQ_E_UNSUPPORTED, "expert"},
    {"integers said to be floats", "ct_int8", SET_GROUP, "type", "\"float\"", 0, DQ_E_FORMAT, "float"},
    {"asymmetric without zero points", "ct_int8", SET_GROUP, "symmetric", "false", 0, DQ_E_NOTFOUND, "zero_point"},
    {"no weight_scale", "ct_w5_old", DROP, Q0 ".weight_scale", NULL, 0, DQ_E_NOTFOUND, "weight_scale"},
    {"packed scale NaN", "ct_w5_old", POKE, Q0 ".weight_scale", NULL, 0x7fc0, DQ_E_NONFINITE, "not finite"},
    {"packed words of another type", "ct_w5_old", RETYPE, Q0 ".weight_packed", NULL, 0, DQ_E_MISMATCH, "weight_packed"},
    {"7 bits that need 8", "ct_int8", SET_GROUP, "num_bits", "7", 0, DQ_E_FORMAT, "7 bits"},
    {"grouped, but it is not", "ct_int8", SET_GROUP, "strategy", "\"group\"", 0, DQ_E_FORMAT, "group_size"},
    {"no shape", "ct_w5_old", DROP, Q0 ".weight_shape", NULL, 0, DQ_E_NOTFOUND, "weight_shape"},
    {"another shape", "ct_w5_old", POKE, Q0 ".weight_shape", NULL, 4096, DQ_E_MISMATCH, "weight_packed"},
    {"shape of 2^40 rows", "ct_w5_old", POKE, Q0 ".weight_shape", NULL, INT64_C(1) << 40, DQ_E_FORMAT, "weight_shape"},
    {"negative shape", "ct_w5_old", POKE, Q0 ".weight_shape", NULL, -64, DQ_E_FORMAT, "weight_shape"},
    {"g_idx beyond", "ct_w3_act_order", POKE, Q0 ".weight_g_idx", NULL, 1 << 30, DQ_E_FORMAT, "g_idx"},
    {"ignored but stored", "ct_w5_old", SET_Q, "ignore", "[\"re:.*q_proj\"]", 0, DQ_E_MISMATCH, "unquantized"},
    {"FP8 scale NaN", "ct_fp8", POKE, Q0 ".weight_scale", NULL, 0x7fc0, DQ_E_NONFINITE, "not finite"},
    {"FP8 scales cut", "ct_fp8", CUT, Q0 ".weight_scale", NULL, 0, DQ_E_MISMATCH, "weight_scale"},
    {"an online transform of the values", "ct_w4_r4", SET_Q, "transform_config",
     "{\"config_groups\":{\"R\":{\"type\":\"hadamard\",\"head_dim\":32,\"apply\":[{\"targets\":[\"re:.*o_proj$\"],\"location\":"
     "\"input\"}]}}}",
     0, DQ_E_UNSUPPORTED, "down_proj"},
    {"a transform of no known type", "ct_w4_r4", SET_Q, "transform_config",
     "{\"config_groups\":{\"R\":{\"type\":\"dct\",\"apply\":[]}}}", 0, DQ_E_UNSUPPORTED, "dct"},
    {"blocks that do not divide", "ct_w4_r4", SET_Q, "transform_config",
     "{\"config_groups\":{\"R\":{\"type\":\"hadamard\",\"head_dim\":64,\"apply\":[{\"targets\":[\"re:.*down_proj$\"],\"location\":"
     "\"input\"}]}}}",
     0, DQ_E_FORMAT, "divide"},
    {"GPTQ of vast rows", "gptq_w4", VAST_ROWS, Q0 ".qweight", NULL, 0, DQ_E_MISMATCH, "matrix of I32"},
    {"AWQ of vast columns", "awq_gemm", VAST_COLS, Q0 ".qweight", NULL, 0, DQ_E_MISMATCH, "matrix of I32"},
    {"GEMV of vast columns", "awq_gemv", VAST_COLS, Q0 ".qweight", NULL, 0, DQ_E_MISMATCH, "matrix of I32"},
    {"GEMV-fast of vast rows", "awq_gemv_fast", VAST_ROWS, Q0 ".qweight", NULL, 0, DQ_E_MISMATCH, "I16 [out / 4"},
    {"scales of vast rows", "ct_w5_old", VAST_ROWS, Q0 ".weight_scale", NULL, 0, DQ_E_MISMATCH, "weight_scale"},
    {"dynamic is a list", "gptq_w4", SET_Q, "dynamic", "[1]", 0, DQ_E_FORMAT, "'dynamic' is no object"},
    {"a rule that is a list", "gptq_w4", SET_Q, "dynamic", "{\".*\": [8]}", 0, DQ_E_FORMAT, "is no object"},
    {"dynamic is false", "gptq_w4", SET_Q, "dynamic", "false", 0, DQ_OK, NULL},
    {"modules are a number", "awq_gemm", SET_Q, "modules_to_not_convert", "3", 0, DQ_E_FORMAT, "no list"},
    {"a module is a number", "awq_gemm", SET_Q, "modules_to_not_convert", "[3]", 0, DQ_E_FORMAT, "no name"},
    {"a bias that nothing reads", "gptq_w4", COPY, "model.norm.weight", Q0 ".bias", 0, DQ_E_MISMATCH, "bias"},
    {"a zero point beside symmetric weights", "ct_int8", COPY, Q0 ".weight", Q0 ".weight_zero_point", 0, DQ_E_MISMATCH,
     "symmetric"},
    {"the closest group counts", "ct_int8", SET_Q, "config_groups",
     "{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":2,\"strategy\":\"group\",\"group_size\":32}},"
     "\"group_1\":{\"targets\":[\"re:.*proj\"],\"weights\":{\"num_bits\":8,\"strategy\":\"channel\"}}}",
     0, DQ_OK, NULL},
    {"a stored matrix of NaN", "ct_w4_r4", MATRIX, NULL,
     "{\"config_groups\":{\"R\":{\"type\":\"random-matrix\",\"head_dim\":32,\"apply\":[{\"targets\":[\"re:.*down_proj$\"],"
     "\"location\":\"input\"}]}}}",
     0, DQ_E_UNSUPPORTED, "nan"},
    {"a matrix that is not stored", "ct_w4_r4", SET_Q, "transform_config",
     "{\"config_groups\":{\"R\":{\"type\":\"random-matrix\",\"head_dim\":32,\"apply\":[{\"targets\":[\"re:.*down_proj$\"],"
     "\"location\":\"input\"}]}}}",
     0, DQ_E_NOTFOUND, "R_input"},
};

/* ---- a changed copy ---- */

static dq_status put(dq_sink *sink, const dq_tensor_info *t, const char *name, dq_dtype dtype, const int64_t *shape,
                     const void *data)
{
    uint64_t elements = 1;
    for (int i = 0; i < t->ndim; i++) elements *= (uint64_t)shape[i];
    return sink->ops->add(sink, name, dtype, t->ndim, shape, data, elements * dq_dtype_size(dtype));
}

static void overwrite(const lie *l, const dq_tensor_info *t, uint8_t *data)
{
    size_t size = dq_dtype_size(t->dtype);
    uint64_t count = l->change == POKE ? 1 : t->bytes / size;
    for (uint64_t i = 0; i < count; i++) memcpy(data + i * size, &l->number, size);
}

static void copy_tensor(const lie *l, dq_source *from, int64_t i, dq_sink *to)
{
    const dq_tensor_info *t = &from->tensors[i];
    int64_t shape[DQ_MAX_DIMS];
    uint8_t *data = malloc(t->bytes + 1);
    const char *name = t->name;
    dq_dtype dtype = t->dtype;
    ok(dq_source_read_raw(from, i, 0, t->bytes, data));
    memcpy(shape, t->shape, sizeof shape);
    bool hit = l->name && strcmp(l->name, t->name) == 0;
    if (hit && (l->change == POKE || l->change == FILL || l->change == FILL_INTS)) overwrite(l, t, data);
    if (hit && l->change == CUT) shape[0]--;
    if (hit && l->change == EMPTY) shape[0] = 0;
    if (hit && (l->change == VAST_ROWS || l->change == VAST_COLS)) {
        shape[l->change == VAST_COLS] = INT64_C(1) << 61;
        shape[l->change == VAST_ROWS] = 0;
    }
    if (hit && l->change == RETYPE) dtype = dtype == DQ_I32 ? DQ_U32 : DQ_I16;
    if (!hit || l->change != DROP) ok(put(to, t, name, dtype, shape, data));
    if (hit && l->change == COPY) ok(put(to, t, l->value, dtype, shape, data));
    free(data);
}

static bool hits_a_tensor(int change) { return change >= DROP && change != MATRIX; }

static void add_matrix(dq_sink *to)
{
    static const int64_t shape[2] = {32, 32};
    float nan[32 * 32];
    for (int i = 0; i < 32 * 32; i++) nan[i] = NAN;
    ok(to->ops->add(to, D0 ".R_input.weight", DQ_F32, 2, shape, nan, sizeof nan));
}

static void copy_tensors(dq_env *env, const lie *l, const char *from_dir, const char *to_dir)
{
    dq_source *from;
    dq_sink *to;
    ok(dq_safetensors_open_dir(env, from_dir, &from));
    if (hits_a_tensor(l->change)) assert_true(dq_source_find(from, l->name) >= 0);
    ok(dq_safetensors_sink(env, to_dir, "model", UINT64_MAX, &to));
    for (int64_t i = 0; i < from->count; i++) copy_tensor(l, from, i, to);
    if (l->change == MATRIX) add_matrix(to);
    ok(to->ops->finish(to));
    to->ops->free(to);
    dq_source_free(from);
}

static void copy_config(dq_env *env, const lie *l, const char *from_dir, const char *to_dir)
{
    char path[400], *text;
    json_t *config, *value = NULL;
    snprintf(path, sizeof path, "%s/config.json", from_dir);
    ok(dq_json_load(env, path, 1 << 20, &config));
    json_t *q = json_object_get(config, "quantization_config");
    if (l->value && l->change != COPY) assert_non_null(value = json_loads(l->value, JSON_DECODE_ANY, NULL));
    if (l->change == SET_Q) assert_int_equal(json_object_set(q, l->name, value), 0);
    if (l->change == SET_C) assert_int_equal(json_object_set(config, l->name, value), 0);
    if (l->change == MATRIX) assert_int_equal(json_object_set(q, "transform_config", value), 0);
    if (l->change == DROP_Q) json_object_del(config, "quantization_config");
    if (l->change == SET_GROUP) {
        json_t *group = json_object_get(json_object_get(q, "config_groups"), "group_0");
        assert_int_equal(json_object_set(json_object_get(group, "weights"), l->name, value), 0);
    }
    json_decref(value);
    ok(dq_json_dump(env, config, true, &text));
    snprintf(path, sizeof path, "%s/config.json", to_dir);
    ok(dq_file_write(env, path, text, strlen(text)));
    dq_free(text);
    json_decref(config);
}

/* Some lies are in the content and show when a weight is read. */
static dq_status open_and_read(fixture *f, const char *dir)
{
    dq_model *m;
    dq_status status = dq_model_open_path(f->dev, dir, &m);
    if (status != DQ_OK) return status;
    for (int role = 0; status == DQ_OK && role < DQ_LINEARS; role++) {
        dq_linear l = {0};
        status = dq_model_read_linear(m, 0, (dq_role)role, &l);
        dq_tensor_free(&l.weight);
        dq_tensor_free(&l.bias);
    }
    dq_model_release(m);
    return status;
}

static void verdicts(void **state)
{
    (void)state;
    int wrong = 0;
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        const lie *l = &lies[i];
        fixture f;
        char dir[256], from[128];
        fixture_open(&f, "ref", 1);
        make_folder(dir, sizeof dir);
        snprintf(from, sizeof from, "tests/data/formats/%s", l->model);
        copy_tensors(&f.env, l, from, dir);
        copy_config(&f.env, l, from, dir);
        dq_status status = open_and_read(&f, dir);
        const char *text = dq_error_text(), *tensor = dq_error_tensor();
        bool said = !l->says || strstr(text, l->says) || (tensor && strstr(tensor, l->says));
        if (status != l->verdict || !said) {
            print_message("%s: %d \"%s\" (%s), expected %d \"%s\"\n", l->what, status, text, tensor ? tensor : "",
                          l->verdict, l->says ? l->says : "");
            wrong++;
        }
        remove_folder(dir);
        fixture_close(&f);
    }
    print_message("%zu checkpoints, %d wrong verdicts\n", sizeof lies / sizeof *lies, wrong);
    assert_int_equal(wrong, 0);
}

/* Two methods' files in one folder, and metadata that lists what is not there. */
static void diffulex(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
        dq_status verdict;
    } cases[] = {
        {"{\"quantized_modules\":[{\"name\":\"model.layers.9.mlp.up_proj\"}]}", "lists no quantized module",
         DQ_E_MISMATCH},
        {"{\"bits\":8,\"quantized_modules\":[]}", "8 bits", DQ_E_UNSUPPORTED},
        {"{\"quantized_modules\":[{}]}", "name", DQ_E_FORMAT},
        {"{\"quantized_modules\"", "", DQ_E_FORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        static const char *const files[] = {"config.json", "model.safetensors", "model_quantized_gptq.safetensors"};
        fixture f;
        char dir[256], from[400], to[400];
        fixture_open(&f, "ref", 1);
        make_folder(dir, sizeof dir);
        for (int k = 0; k < 3; k++) {
            dq_map map;
            snprintf(from, sizeof from, "tests/data/formats/diffulex/%s", files[k]);
            snprintf(to, sizeof to, "%s/%s", dir, files[k]);
            ok(dq_map_open(&f.env, from, &map));
            ok(dq_file_write(&f.env, to, map.data, map.size));
            dq_map_close(&map);
        }
        snprintf(to, sizeof to, "%s/quantization_metadata_gptq.json", dir);
        ok(dq_file_write(&f.env, to, cases[i].text, strlen(cases[i].text)));
        dq_status status = open_and_read(&f, dir);
        if (status != cases[i].verdict || !strstr(dq_error_text(), cases[i].says))
            fail_msg("%s: %d %s", cases[i].text, status, dq_error_text());
        remove_folder(dir);
        fixture_close(&f);
    }
}

/* The original's scales are fp32; halves would be read as half as many. */
static void diffulex_half_scales(void **state)
{
    (void)state;
    static const char *const files[] = {"config.json", "model.safetensors", "quantization_metadata_gptq.json"};
    fixture f;
    dq_source *from;
    dq_sink *to;
    char dir[256], a[400], b[400];
    fixture_open(&f, "ref", 1);
    make_folder(dir, sizeof dir);
    for (int k = 0; k < 3; k++) {
        dq_map map;
        snprintf(a, sizeof a, "tests/data/formats/diffulex/%s", files[k]);
        snprintf(b, sizeof b, "%s/%s", dir, files[k]);
        ok(dq_map_open(&f.env, a, &map));
        ok(dq_file_write(&f.env, b, map.data, map.size));
        dq_map_close(&map);
    }
    ok(dq_safetensors_open(&f.env, "tests/data/formats/diffulex/model_quantized_gptq.safetensors", &from));
    ok(dq_safetensors_sink(&f.env, dir, "model_quantized_gptq", UINT64_MAX, &to));
    for (int64_t i = 0; i < from->count; i++) {
        const dq_tensor_info *t = &from->tensors[i];
        uint8_t *data = calloc(1, t->bytes + 1);
        bool scales = strstr(t->name, ".scales") != NULL;
        if (!scales) ok(dq_source_read_raw(from, i, 0, t->bytes, data));
        ok(put(to, t, t->name, scales ? DQ_F16 : t->dtype, t->shape, data));
        free(data);
    }
    ok(to->ops->finish(to));
    to->ops->free(to);
    dq_source_free(from);
    assert_int_equal(open_and_read(&f, dir), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "where F32"));
    remove_folder(dir);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(verdicts), cmocka_unit_test(diffulex),
                                       cmocka_unit_test(diffulex_half_scales)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
