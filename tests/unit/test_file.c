/* io: files, atomic writer, paths, JSON. SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/status.h"
#include "io/file.h"
#include "io/json.h"

static dq_env env;
static char folder[64];

static const char *in_folder(const char *name)
{
    static char path[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

static int count_entries(void)
{
    DIR *dir = opendir(folder);
    int n = 0;
    for (struct dirent *e; (e = readdir(dir));) n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/dq_test_file.XXXXXX");
    return dq_env_init(&env, NULL, 1) != DQ_OK || !mkdtemp(folder);
}

static int tear_down(void **state)
{
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    assert_int_equal(atomic_load(&env.memory_now) > 1000, 0); /* only the pool is left */
    dq_env_clear(&env);
    return system(command) != 0;
}

static void fifo_is_refused_at_once(void **state)
{
    (void)state;
    const char *path = in_folder("fifo");
    assert_int_equal(mkfifo(path, 0600), 0);
    dq_map map;
    assert_int_equal(dq_map_open(&env, path, &map), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "is not a regular file"));
    char *text;
    size_t bytes;
    assert_int_equal(dq_file_read(&env, path, 1 << 20, &text, &bytes), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "is not a regular file"));
    unlink(path);
}

static void write_appears_whole(void **state)
{
    (void)state;
    const char *path = in_folder("a.bin");
    dq_writer *w;
    assert_int_equal(dq_writer_open(&env, path, &w), DQ_OK);
    assert_int_equal(dq_writer_write(w, "hello world", 11), DQ_OK);
    assert_int_equal(dq_writer_patch(w, 6, "there", 5), DQ_OK);
    assert_int_equal(dq_writer_position(w), 11);
    assert_false(dq_path_exists(path));
    assert_int_equal(dq_writer_patch(w, 7, "there", 5), DQ_E_INTERNAL);
    assert_int_equal(dq_writer_commit(w), DQ_OK);
    dq_writer_free(w);
    assert_int_equal(count_entries(), 1);

    char *text;
    size_t bytes;
    assert_int_equal(dq_file_read(&env, path, 11, &text, &bytes), DQ_OK);
    assert_int_equal(bytes, 11);
    assert_string_equal(text, "hello there");
    dq_free(text);
    assert_int_equal(dq_file_read(&env, path, 10, &text, &bytes), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "a.bin"));
}

static void abandoned_write_leaves_nothing(void **state)
{
    (void)state;
    assert_int_equal(dq_file_write(&env, in_folder("a.bin"), "old", 3), DQ_OK);
    int before = count_entries();
    dq_writer *w, *second;
    assert_int_equal(dq_writer_open(&env, in_folder("a.bin"), &w), DQ_OK);
    assert_int_equal(dq_writer_open(&env, in_folder("a.bin"), &second), DQ_OK); /* the same name twice at once */
    assert_int_equal(dq_writer_write(w, "new", 3), DQ_OK);
    dq_writer_free(second);
    dq_writer_free(w);
    assert_int_equal(count_entries(), before);
    char *text;
    size_t bytes;
    assert_int_equal(dq_file_read(&env, in_folder("a.bin"), 100, &text, &bytes), DQ_OK);
    assert_string_equal(text, "old");
    dq_free(text);
}

/* A file size limit gives short writes and then EFBIG: the same path as a full device. */
static void full_target_leaves_nothing(void **state)
{
    (void)state;
    int before = count_entries();
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = old;
    small.rlim_cur = 10000;
    static char block[4096];
    dq_writer *w;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    dq_status opened = dq_writer_open(&env, in_folder("full.bin"), &w);
    dq_status status = DQ_OK;
    int blocks = 0;
    while (opened == DQ_OK && status == DQ_OK && blocks < 10)
        status = dq_writer_write(w, block, sizeof block), blocks++;
    int64_t code = dq_error_vendor_code(), byte = dq_error_byte();
    dq_status again = opened == DQ_OK ? dq_writer_commit(w) : DQ_OK;
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(opened, DQ_OK);
    assert_int_equal(status, DQ_E_IO);
    assert_int_equal(code, EFBIG);
    assert_int_equal(byte, 10000); /* the short write was taken up to the limit */
    assert_int_equal(blocks, 3);
    assert_int_equal(again, DQ_E_STATE);
    dq_writer_free(w);
    assert_int_equal(count_entries(), before);
}

static void bad_targets(void **state)
{
    (void)state;
    dq_writer *w = (dq_writer *)&env;
    assert_int_equal(dq_writer_open(&env, in_folder("no/such/folder"), &w), DQ_E_IO);
    assert_int_equal(dq_error_vendor_code(), ENOENT);
    assert_int_equal(dq_writer_open(&env, "/dev/full", &w), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "not a regular file"));
    assert_int_equal(dq_writer_open(&env, folder, &w), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "folder"));
    assert_ptr_equal(w, &env); /* outputs untouched */
}

static void copies_and_retargets(void **state)
{
    (void)state;
    dq_writer *a, *b;
    assert_int_equal(dq_writer_open(&env, in_folder("x"), &a), DQ_OK);
    assert_int_equal(dq_writer_skip(a, 5), DQ_OK);
    assert_int_equal(dq_writer_write(a, "0123456789", 10), DQ_OK);
    assert_int_equal(dq_writer_pause(a), DQ_OK);
    assert_int_equal(dq_writer_resume(a), DQ_OK);
    assert_int_equal(dq_writer_open(&env, in_folder("y"), &b), DQ_OK);
    assert_int_equal(dq_writer_write(b, "ab", 2), DQ_OK);
    assert_int_equal(dq_writer_copy(b, a, 7, 4), DQ_OK);
    assert_int_equal(dq_writer_copy(b, a, 14, 2), DQ_E_INTERNAL);
    assert_int_equal(dq_writer_position(b), 6);
    assert_int_equal(dq_writer_seal(b), DQ_OK);
    assert_int_equal(dq_writer_retarget(b, in_folder("z")), DQ_OK);
    assert_int_equal(dq_writer_commit(b), DQ_OK);
    dq_writer_free(a);
    dq_writer_free(b);
    assert_false(dq_path_exists(in_folder("y")));
    char *text;
    size_t bytes;
    assert_int_equal(dq_file_read(&env, in_folder("z"), 100, &text, &bytes), DQ_OK);
    assert_string_equal(text, "ab2345");
    dq_free(text);
}

static void maps(void **state)
{
    (void)state;
    dq_map map = {.size = 7};
    assert_int_equal(dq_map_open(&env, in_folder("absent"), &map), DQ_E_IO);
    assert_int_equal(dq_map_open(&env, folder, &map), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "is a folder"));
    assert_int_equal(dq_map_open(&env, "/dev/null", &map), DQ_E_IO);
    assert_int_equal(map.size, 7);
    assert_int_equal(dq_file_write(&env, in_folder("empty"), "", 0), DQ_OK);
    assert_int_equal(dq_map_open(&env, in_folder("empty"), &map), DQ_OK);
    assert_int_equal(map.size, 0);
    assert_null(map.data);
    dq_map_drop(&map, 0, 10);
    dq_map_close(&map);

    static char pages[5 * 4096 + 10];
    memset(pages, 'p', sizeof pages);
    assert_int_equal(dq_file_write(&env, in_folder("pages"), pages, sizeof pages), DQ_OK);
    assert_int_equal(dq_map_open(&env, in_folder("pages"), &map), DQ_OK);
    dq_map_drop(&map, 100, UINT64_MAX - 200);
    assert_memory_equal(map.data, pages, sizeof pages);
    dq_map_close(&map);
}

static void paths(void **state)
{
    (void)state;
    char *p = dq_path_join(&env, "a/", "b");
    assert_string_equal(p, "a/b");
    dq_free(p);
    p = dq_path_join(&env, "a", "b");
    assert_string_equal(p, "a/b");
    dq_free(p);
    assert_true(dq_path_ends_with("x.gguf", ".gguf"));
    assert_false(dq_path_ends_with("f", ".gguf"));
    assert_int_equal(dq_make_dirs(&env, in_folder("d/e//f/")), DQ_OK);
    assert_true(dq_path_is_dir(in_folder("d/e/f")));
    assert_int_equal(dq_make_dirs(&env, in_folder("d/e/f")), DQ_OK);
    assert_int_equal(dq_file_write(&env, in_folder("plain"), "x", 1), DQ_OK);
    assert_int_equal(dq_make_dirs(&env, in_folder("plain/g")), DQ_E_IO);
    assert_int_equal(dq_make_dirs(&env, in_folder("plain")), DQ_E_IO);
}

static void reads_what_is_no_regular_file(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    assert_int_equal(dq_file_read(&env, "/proc/self/status", 1 << 20, &text, &bytes), DQ_OK);
    assert_true(bytes > 100 && strlen(text) == bytes);
    dq_free(text);
    assert_int_equal(dq_file_read(&env, "/dev/zero", 100000, &text, &bytes), DQ_E_IO);
    assert_int_equal(dq_stream_read(&env, "/dev/zero", 100000, &text, &bytes), DQ_E_FORMAT);
}

static void json_members(void **state)
{
    (void)state;
    static const char text[] = "{\"i\": 42, \"d\": 0.5, \"b\": true, \"s\": \"x\", \"n\": null}";
    json_t *root;
    assert_int_equal(dq_json_parse(text, sizeof text - 1, "c.json", &root), DQ_OK);
    int64_t i = 7;
    double d = 7;
    bool b = false;
    const char *s = "old";
    assert_int_equal(dq_json_int(root, "i", 0, 100, true, "c.json", &i), DQ_OK);
    assert_int_equal(i, 42);
    assert_int_equal(dq_json_double(root, "d", true, "c.json", &d), DQ_OK);
    assert_true(d == 0.5);
    assert_int_equal(dq_json_double(root, "i", true, "c.json", &d), DQ_OK);
    assert_true(d == 42);
    assert_int_equal(dq_json_bool(root, "b", true, "c.json", &b), DQ_OK);
    assert_true(b);
    assert_int_equal(dq_json_string(root, "s", true, "c.json", &s), DQ_OK);
    assert_string_equal(s, "x");
    assert_int_equal(dq_json_string(root, "n", false, "c.json", &s), DQ_OK);
    assert_string_equal(s, "x");
    assert_int_equal(dq_json_int(root, "n", 0, 1, true, "c.json", &i), DQ_E_FORMAT);
    assert_string_equal(dq_error_text(), "c.json: JSON: the key 'n' is missing");
    assert_int_equal(dq_json_int(root, "i", 0, 41, true, "c.json", &i), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "'i' is 42"));
    assert_int_equal(dq_json_int(root, "d", 0, 41, true, "c.json", &i), DQ_E_FORMAT);
    assert_int_equal(dq_json_bool(root, "i", true, "c.json", &b), DQ_E_FORMAT);
    assert_int_equal(dq_json_string(root, "i", true, "c.json", &s), DQ_E_FORMAT);
    assert_int_equal(dq_json_double(root, "s", true, "c.json", &d), DQ_E_FORMAT);
    assert_int_equal(i, 42);

    char *dumped;
    assert_int_equal(dq_json_dump(&env, root, false, &dumped), DQ_OK);
    assert_string_equal(dumped, "{\"i\":42,\"d\":0.5,\"b\":true,\"s\":\"x\",\"n\":null}");
    dq_free(dumped);
    json_decref(root);
}

/* transformers writes model_max_length as 10^30 + 19884624838656. */
static void json_wide_integers(void **state)
{
    (void)state;
    static const char text[] =
        "{\"model_max_length\": 1000000000000000019884624838656, \"in \\\" 99999999999999999999\": "
        "[-99999999999999999999,5,9223372036854775807,0.12345678901234567890123]}";
    json_t *root;
    assert_int_equal(dq_json_parse(text, sizeof text - 1, NULL, &root), DQ_OK);
    assert_true(json_number_value(json_object_get(root, "model_max_length")) == 1e30);
    json_t *list = json_object_get(root, "in \" 99999999999999999999");
    assert_int_equal(json_array_size(list), 4);
    assert_true(json_number_value(json_array_get(list, 0)) == -1e20);
    assert_int_equal(json_integer_value(json_array_get(list, 1)), 5);
    assert_int_equal(json_integer_value(json_array_get(list, 2)), INT64_MAX);
    assert_true(json_number_value(json_array_get(list, 3)) == 0.12345678901234567890123);
    json_decref(root);
    assert_int_equal(dq_json_parse("[1e999]", 7, NULL, &root), DQ_E_FORMAT);
}

static void json_refusals(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *message;
    } cases[] = {
        {"{\"a\":1,\"a\":2}", "duplicate"},
        {"{\"a\":1} x", "end of file"},
        {"", "JSON"},
        {"{\"a\":", "JSON"},
        {"[\"\xff\"]", "unable to decode"},
        {"[1,]", "JSON"},
        {"[NaN]", "JSON"},
        {"[\"\\u0000\"]", "\\u0000"},
    };
    json_t *root = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(dq_json_parse(cases[i].text, strlen(cases[i].text), "f.json", &root), DQ_E_FORMAT);
        if (!strstr(dq_error_text(), cases[i].message)) fail_msg("case %zu: %s", i, dq_error_text());
        assert_string_equal(dq_error_file(), "f.json");
        assert_true(dq_error_byte() >= 0);
    }
    assert_int_equal(dq_json_parse("[1\0]", 4, "f.json", &root), DQ_E_FORMAT);
    assert_non_null(strstr(dq_error_text(), "NUL byte"));
    assert_int_equal(dq_error_byte(), 2);
    char deep[10001];
    memset(deep, '[', 10000);
    deep[10000] = 0;
    assert_int_equal(dq_json_parse(deep, 10000, NULL, &root), DQ_E_FORMAT);
    assert_null(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fifo_is_refused_at_once),
        cmocka_unit_test(write_appears_whole),
        cmocka_unit_test(abandoned_write_leaves_nothing),
        cmocka_unit_test(full_target_leaves_nothing),
        cmocka_unit_test(bad_targets),
        cmocka_unit_test(copies_and_retargets),
        cmocka_unit_test(maps),
        cmocka_unit_test(paths),
        cmocka_unit_test(reads_what_is_no_regular_file),
        cmocka_unit_test(json_members),
        cmocka_unit_test(json_wide_integers),
        cmocka_unit_test(json_refusals),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
