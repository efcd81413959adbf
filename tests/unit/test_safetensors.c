/* io: safetensors reading and writing, the memory sink. With an argument the written sets are left in that folder, for
 * tests/golden/make_io.py --check. SPDX-License-Identifier: Apache-2.0 */
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/dtype.h"
#include "io_helpers.h"

static const char *keep_folder; /* NULL: the scratch folder */

static void every_type(void **state)
{
    (void)state;
    dq_source *s = NULL;
    assert_int_equal(dq_source_open(&env, IO_DATA "types.safetensors", &s), DQ_OK);
    static const char *const names[] = {"f32", "f64", "f16", "bf16", "f8_e4m3", "f8_e5m2", "scalar"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char golden[64];
        snprintf(golden, sizeof golden, "types.%s", names[i]);
        check_golden(s, names[i], golden);
        dq_source_release(s, dq_source_find(s, names[i]));
    }
    assert_string_equal(dq_safetensors_metadata(s, "format"), "pt");
    assert_string_equal(dq_safetensors_metadata(s, "note"), "äöü \"quoted\"");
    assert_null(dq_safetensors_metadata(s, "absent"));
    float out[8];
    int64_t t = dq_source_find(s, "i64"), raw[6];
    assert_int_equal(dq_source_read_rows(s, t, 0, 1, out), DQ_E_UNSUPPORTED);
    assert_non_null(strstr(dq_error_text(), "I64"));
    assert_int_equal(dq_source_read_raw(s, t, 0, sizeof raw, raw), DQ_OK);
    for (int i = 0; i < 6; i++) assert_int_equal(raw[i], i);
    t = dq_source_find(s, "empty");
    assert_int_equal(s->tensors[t].bytes, 0);
    assert_int_equal(dq_source_read_rows(s, t, 0, 0, out), DQ_OK);
    assert_int_equal(dq_source_read_rows(s, t, 0, 1, out), DQ_E_INTERNAL);
    dq_source_free(s);

    assert_int_equal(dq_safetensors_open(&env, IO_DATA "codes.safetensors", &s), DQ_OK);
    check_golden(s, "e4m3", "codes.e4m3");
    check_golden(s, "e5m2", "codes.e5m2");
    dq_source_free(s);
}

static void sharded(void **state)
{
    (void)state;
    static const char *const paths[] = {IO_DATA "sharded", IO_DATA "sharded/model.safetensors.index.json"};
    for (size_t i = 0; i < 2; i++) {
        dq_source *s = NULL;
        assert_int_equal(dq_source_open(&env, paths[i], &s), DQ_OK);
        assert_int_equal(s->count, 3);
        check_golden(s, "a", "sharded.a");
        check_golden(s, "b", "sharded.b");
        check_golden(s, "c", "sharded.c");
        assert_non_null(strstr(s->tensors[dq_source_find(s, "b")].file, "00002-of-00002"));
        assert_string_equal(dq_safetensors_metadata(s, "format"), "pt");
        dq_source_free(s);
    }
}

/* ---- writing ---- */

typedef struct plan {
    const char *name;
    dq_dtype dtype;
    int ndim;
    int64_t shape[3];
} plan;

static uint64_t plan_elements(const plan *p)
{
    uint64_t n = 1;
    for (int i = 0; i < p->ndim; i++) n *= (uint64_t)p->shape[i];
    return n;
}

/* Element i of every tensor is i mod 100, which every type can hold. */
static void *plan_data(const plan *p, uint64_t *bytes)
{
    uint64_t n = plan_elements(p);
    *bytes = n * dq_dtype_size(p->dtype);
    uint8_t *data = calloc(n + 1, 8);
    for (uint64_t i = 0; i < n; i++) {
        if (p->dtype == DQ_F32) ((float *)data)[i] = (float)(i % 100);
        if (p->dtype == DQ_F64) ((double *)data)[i] = (double)(i % 100);
        if (p->dtype == DQ_I64) ((int64_t *)data)[i] = (int64_t)(i % 100);
        if (p->dtype == DQ_U8) data[i] = (uint8_t)(i % 100);
        if (p->dtype == DQ_I32) ((int32_t *)data)[i] = (int32_t)(i % 100);
    }
    return data;
}

static const plan plans[] = {
    {"bytes", DQ_U8, 2, {3, 7}}, /* leaves what follows unaligned */
    {"matrix", DQ_F32, 2, {40, 50}},    {"scalar", DQ_F64, 0, {0}}, {"empty", DQ_F32, 2, {0, 4}},
    {"naïve \"name\"", DQ_F64, 1, {9}}, {"index", DQ_I32, 1, {11}}, {"cube", DQ_I64, 3, {2, 3, 4}},
    {"more", DQ_U8, 1, {5000}},
};
enum { PLANS = sizeof plans / sizeof *plans };

static void write_all(const char *dir, const char *stem, uint64_t part_size)
{
    dq_sink *sink = NULL;
    assert_int_equal(dq_safetensors_sink(&env, dir, stem, part_size, &sink), DQ_OK);
    for (size_t i = 0; i < PLANS; i++) {
        uint64_t bytes;
        void *data = plan_data(&plans[i], &bytes);
        if (sink->ops->add(sink, plans[i].name, plans[i].dtype, plans[i].ndim, plans[i].shape, data, bytes) != DQ_OK)
            fail_msg("%s", dq_error_text());
        free(data);
    }
    assert_int_equal(sink->ops->set_metadata(sink, "who", "wörld"), DQ_OK);
    if (sink->ops->finish(sink) != DQ_OK) fail_msg("%s", dq_error_text());
    sink->ops->free(sink);
}

static void check_plans(dq_source *s)
{
    for (size_t i = 0; i < PLANS; i++) {
        int64_t t = dq_source_find(s, plans[i].name);
        assert_true(t >= 0);
        assert_int_equal(s->tensors[t].dtype, plans[i].dtype);
        assert_int_equal(s->tensors[t].ndim, plans[i].ndim);
        for (int d = 0; d < plans[i].ndim; d++) assert_int_equal(s->tensors[t].shape[d], plans[i].shape[d]);
        uint64_t bytes;
        void *want = plan_data(&plans[i], &bytes), *got = calloc(bytes + 1, 1);
        assert_int_equal(s->tensors[t].bytes, bytes);
        if (strcmp(s->format, "safetensors") == 0 && bytes)
            assert_int_equal(s->tensors[t].offset % dq_dtype_size(plans[i].dtype), 0);
        assert_int_equal(dq_source_read_raw(s, t, 0, bytes, got), DQ_OK);
        assert_memory_equal(got, want, bytes);
        free(want);
        free(got);
    }
}

static void check_all(dq_source *s)
{
    assert_int_equal(s->count, PLANS);
    check_plans(s);
}

static void write_one_file(void **state)
{
    (void)state;
    const char *dir = keep_folder ? keep_folder : scratch;
    char path[400];
    snprintf(path, sizeof path, "%s/one.safetensors", dir);
    write_all(dir, "one", UINT64_C(10) << 30);
    dq_source *s = NULL;
    assert_int_equal(dq_safetensors_open(&env, path, &s), DQ_OK);
    check_all(s);
    assert_string_equal(dq_safetensors_metadata(s, "format"), "pt");
    assert_string_equal(dq_safetensors_metadata(s, "who"), "wörld");
    dq_source_free(s);
    char *head = NULL;
    size_t bytes;
    assert_int_equal(dq_file_read(&env, path, 1 << 20, &head, &bytes), DQ_OK);
    assert_int_equal(bytes % 8 == 0 || head[0] % 8 == 0, 1);
    assert_int_equal(*(uint64_t *)(void *)head % 8, 0);
    assert_memory_equal(head + 8, "{\"__metadata__\":", 16);
    dq_free(head);
}

static int count_parts(const char *dir, const char *stem, uint64_t *largest)
{
    DIR *d = opendir(dir);
    int n = 0;
    *largest = 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        struct stat st;
        char path[700];
        if (strncmp(e->d_name, stem, strlen(stem)) != 0) continue;
        assert_null(strstr(e->d_name, ".tmp"));
        if (!dq_path_ends_with(e->d_name, ".safetensors")) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        assert_int_equal(stat(path, &st), 0);
        if ((uint64_t)st.st_size > *largest) *largest = (uint64_t)st.st_size;
        n++;
    }
    closedir(d);
    return n;
}

static void write_shards(void **state)
{
    (void)state;
    const char *dir = keep_folder ? keep_folder : scratch;
    char path[400];
    uint64_t largest;
    write_all(dir, "set", 9000); /* the data is 13.5 KB */
    assert_int_equal(count_parts(dir, "set-", &largest), 2);
    assert_true(largest <= 9000);
    snprintf(path, sizeof path, "%s/set.safetensors.index.json", dir);
    dq_source *s = NULL;
    assert_int_equal(dq_safetensors_open_index(&env, path, &s), DQ_OK);
    check_all(s);
    assert_string_equal(dq_safetensors_metadata(s, "who"), "wörld"); /* set after the first shard was full */
    dq_source_free(s);

    /* A later save in one piece takes the place of the set, and the other way round. */
    write_all(dir, "set", UINT64_C(1) << 30);
    assert_false(dq_path_exists(path));
    write_all(dir, "set", 1); /* one tensor in each part */
    assert_true(dq_path_exists(path));
    char single[400];
    snprintf(single, sizeof single, "%s/set.safetensors", dir);
    assert_false(dq_path_exists(single));
    assert_int_equal(dq_safetensors_open_index(&env, path, &s), DQ_OK);
    check_all(s);
    dq_source_free(s);
}

static long resident_pages(void)
{
    long total = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &total, &resident), 2);
    fclose(f);
    return resident;
}

/* Large enough for the header to be written into the gap, in the order of arrival. */
static void write_large(void **state)
{
    (void)state;
    enum { ROWS = 9000, COLS = 2048 };
    float *data = malloc(sizeof(float) * ROWS * COLS);
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++) data[i] = (float)(i % 100);
    dq_sink *sink = NULL;
    int64_t shape[] = {ROWS, COLS}, one[] = {8};
    assert_int_equal(dq_safetensors_sink(&env, scratch, "large", UINT64_C(10) << 30, &sink), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "u", DQ_U8, 1, one, data, 8), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "w", DQ_F32, 2, shape, data, sizeof(float) * ROWS * COLS), DQ_OK);
    assert_int_equal(sink->ops->finish(sink), DQ_OK);
    sink->ops->free(sink);
    dq_source *s = NULL;
    assert_int_equal(dq_safetensors_open(&env, in_scratch("large.safetensors"), &s), DQ_OK);
    assert_int_equal(s->tensors[0].offset, 1 << 20);
    float row[COLS];
    assert_int_equal(dq_source_read_rows(s, 1, ROWS - 1, 1, row), DQ_OK);
    assert_memory_equal(row, data + (size_t)(ROWS - 1) * COLS, sizeof row);
    for (int64_t r = 0; r < ROWS; r++) assert_int_equal(dq_source_read_rows(s, 1, r, 1, row), DQ_OK);
    long before = resident_pages();
    dq_source_release(s, 1); /* gives the tensor's pages back: 72 MB; half is asked for */
    assert_true(before - resident_pages() > (long)(sizeof(float) * ROWS * COLS / 2) / sysconf(_SC_PAGESIZE));
    dq_source_free(s);
    free(data);
    unlink(in_scratch("large.safetensors"));
}

static void empty_set(void **state)
{
    (void)state;
    dq_sink *sink = NULL;
    dq_source *s = NULL;
    assert_int_equal(dq_safetensors_sink(&env, scratch, "none", 1000, &sink), DQ_OK);
    assert_int_equal(sink->ops->finish(sink), DQ_OK);
    assert_int_equal(sink->ops->finish(sink), DQ_E_STATE);
    sink->ops->free(sink);
    assert_int_equal(dq_safetensors_open(&env, in_scratch("none.safetensors"), &s), DQ_OK);
    assert_int_equal(s->count, 0);
    dq_source_free(s);
}

static void refuses_wrong_tensors(void **state)
{
    (void)state;
    dq_sink *sinks[2];
    float data[4] = {1, 2, 3, 4};
    int64_t shape[] = {2, 2}, negative[] = {-1, 4}, wide[] = {1, 1, 1, 1, 1, 1, 1, 1, 4};
    assert_int_equal(dq_safetensors_sink(&env, scratch, "bad/name", 1000, &sinks[0]), DQ_E_INVALID);
    int before = scratch_entries();
    assert_int_equal(dq_safetensors_sink(&env, scratch, "wrong", 1000, &sinks[0]), DQ_OK);
    assert_int_equal(dq_memory_sink(&env, &sinks[1]), DQ_OK);
    for (int i = 0; i < 2; i++) {
        dq_sink *s = sinks[i];
        assert_int_equal(s->ops->add(s, "a", DQ_F32, 2, shape, data, 16), DQ_OK);
        assert_int_equal(s->ops->add(s, "a", DQ_F32, 2, shape, data, 16), DQ_E_INVALID);
        assert_non_null(strstr(dq_error_text(), "used twice"));
        assert_int_equal(s->ops->add(s, "b", DQ_F32, 2, shape, data, 15), DQ_E_INVALID);
        assert_non_null(strstr(dq_error_text(), "[tensor b]"));
        assert_int_equal(s->ops->add(s, "b", DQ_F32, 2, negative, data, 16), DQ_E_INVALID);
        assert_int_equal(s->ops->add(s, "b", DQ_F32, 9, wide, data, 16), DQ_E_INVALID);
        assert_int_equal(s->ops->add(s, "b", DQ_BLOCK, 2, shape, data, 16), DQ_E_UNSUPPORTED);
        if (i == 0) {
            assert_int_equal(s->ops->add(s, "b\xff", DQ_F32, 2, shape, data, 16), DQ_E_INVALID);
            assert_int_equal(s->ops->add(s, "__metadata__", DQ_F32, 2, shape, data, 16), DQ_E_INVALID);
            assert_int_equal(s->ops->set_metadata(s, "k", "\xff"), DQ_E_INVALID);
        }
        s->ops->free(s); /* without finish: nothing stays */
    }
    assert_int_equal(scratch_entries(), before);
}

/* The target fills up at different points: while data is added, while the file is copied, while the index is written. */
static void full_target(void **state)
{
    (void)state;
    int before = scratch_entries();
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    static float data[1000];
    int64_t shape[] = {1000};
    static const uint64_t limits[] = {0, 100, 3999, 4000, 4050, 7999, 8000, 8100};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        for (int sets = 0; sets < 2; sets++) {
            dq_sink *sink = NULL;
            small = old;
            small.rlim_cur = limits[i];
            assert_int_equal(dq_safetensors_sink(&env, scratch, "full", sets ? 4500 : 100000, &sink), DQ_OK);
            setrlimit(RLIMIT_FSIZE, &small);
            dq_status status = sink->ops->add(sink, "a", DQ_F32, 1, shape, data, sizeof data);
            if (status == DQ_OK) status = sink->ops->add(sink, "b", DQ_F32, 1, shape, data, sizeof data);
            if (status == DQ_OK) status = sink->ops->finish(sink);
            dq_status later = status == DQ_OK ? DQ_E_STATE : sink->ops->finish(sink);
            setrlimit(RLIMIT_FSIZE, &old);
            sink->ops->free(sink);
            if (sets && limits[i] >= 7999) { /* each shard fits */
                assert_int_equal(status, DQ_OK);
                unlink(in_scratch("full-00001-of-00002.safetensors"));
                unlink(in_scratch("full-00002-of-00002.safetensors"));
                unlink(in_scratch("full.safetensors.index.json"));
            } else {
                assert_int_equal(status, DQ_E_IO);
                assert_int_equal(later, DQ_E_STATE);
            }
            assert_int_equal(scratch_entries(), before);
        }
    }
    dq_sink *sink = NULL;
    assert_int_equal(dq_safetensors_sink(&env, in_scratch("no-folder"), "x", 1000, &sink), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "a", DQ_F32, 1, shape, data, sizeof data), DQ_E_IO);
    sink->ops->free(sink);
}

static void memory_sets(void **state)
{
    (void)state;
    dq_sink *sink = NULL;
    dq_source *s = NULL;
    assert_int_equal(dq_memory_sink(&env, &sink), DQ_OK);
    for (size_t i = 0; i < PLANS; i++) {
        uint64_t bytes;
        void *data = plan_data(&plans[i], &bytes);
        assert_int_equal(
            sink->ops->add(sink, plans[i].name, plans[i].dtype, plans[i].ndim, plans[i].shape, data, bytes), DQ_OK);
        free(data);
    }
    for (int i = 0; i < 20; i++) {
        char key[8];
        snprintf(key, sizeof key, "k%d", i % 10);
        assert_int_equal(sink->ops->set_metadata(sink, key, i < 10 ? "old" : "new"), DQ_OK);
    }
    assert_int_equal(dq_memory_source(sink, &s), DQ_E_STATE);
    assert_int_equal(sink->ops->finish(sink), DQ_OK);
    assert_int_equal(dq_memory_source(sink, &s), DQ_OK);
    dq_source *again = NULL;
    assert_int_equal(dq_memory_source(sink, &again), DQ_E_STATE);
    sink->ops->free(sink);
    check_all(s);
    assert_string_equal(dq_memory_metadata(s, "k7"), "new");
    assert_null(dq_memory_metadata(s, "k10"));
    assert_null(dq_safetensors_metadata(s, "k7"));
    float row[50];
    assert_int_equal(dq_source_read_rows(s, dq_source_find(s, "matrix"), 39, 1, row), DQ_OK);
    assert_true(row[49] == 99.0f);
    dq_source_free(s);
}

/* The same tensors in an unnamed file: read back alike, nothing in the folder, next to nothing in memory. */
static void spool_sets(void **state)
{
    (void)state;
    dq_sink *sink = NULL;
    dq_source *s = NULL;
    int before = scratch_entries();
    assert_int_equal(dq_spool_sink(&env, in_scratch("."), 1000, &sink), DQ_OK);
    for (size_t i = 0; i < PLANS; i++) {
        uint64_t bytes;
        void *data = plan_data(&plans[i], &bytes);
        assert_int_equal(
            sink->ops->add(sink, plans[i].name, plans[i].dtype, plans[i].ndim, plans[i].shape, data, bytes), DQ_OK);
        free(data);
    }
    enum { COUNT = 1 << 20 };
    int64_t shape[2] = {COUNT / 1000, 1000};
    float *data = malloc(COUNT * sizeof *data), rows[3000];
    for (int i = 0; i < COUNT; i++) data[i] = (float)i;
    uint64_t now = env.memory_now;
    uint64_t bytes = (uint64_t)shape[0] * 1000 * sizeof *data;
    assert_int_equal(sink->ops->add(sink, "large", DQ_F32, 2, shape, data, bytes), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "large", DQ_F32, 2, shape, data, bytes), DQ_E_INVALID);
    free(data);
    assert_true(env.memory_now - now < 16384);
    assert_int_equal(scratch_entries(), before);
    assert_int_equal(sink->ops->finish(sink), DQ_OK);
    assert_int_equal(dq_memory_source(sink, &s), DQ_OK);
    sink->ops->free(sink);
    assert_int_equal(dq_source_read_rows(s, dq_source_find(s, "large"), 500, 3, rows), DQ_OK);
    for (int i = 0; i < 3000; i++) assert_true(rows[i] == (float)(500000 + i));
    check_plans(s);
    dq_source_free(s);
    assert_int_equal(scratch_entries(), before);
}

/* A full disk and a folder without room: an error that says where, and nothing stays behind. */
static void spool_full(void **state)
{
    (void)state;
    dq_sink *sink = NULL;
    struct rlimit old, small = {.rlim_cur = 10000};
    static char data[8000];
    int64_t shape[1] = {sizeof data};
    int before = scratch_entries();
    assert_int_equal(dq_spool_sink(&env, in_scratch("."), UINT64_MAX / 2, &sink), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "are free"));
    assert_int_equal(dq_spool_sink(&env, in_scratch("no-folder"), 1, &sink), DQ_E_IO);
    assert_int_equal(dq_spool_sink(&env, in_scratch("."), 1, &sink), DQ_OK);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    dq_status first = sink->ops->add(sink, "a", DQ_U8, 1, shape, data, sizeof data);
    dq_status second = sink->ops->add(sink, "b", DQ_U8, 1, shape, data, sizeof data);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(first, DQ_OK);
    assert_int_equal(second, DQ_E_IO);
    assert_string_equal(dq_error_tensor(), "b");
    assert_string_equal(dq_error_file(), in_scratch("."));
    assert_non_null(strstr(dq_error_text(), "8000 bytes"));
    sink->ops->free(sink);
    assert_int_equal(scratch_entries(), before);
}

static void folders(void **state)
{
    (void)state;
    dq_source *s = NULL;
    assert_int_equal(dq_make_dirs(&env, in_scratch("folder")), DQ_OK);
    assert_int_equal(dq_source_open(&env, in_scratch("folder"), &s), DQ_E_NOTFOUND);
    write_all(in_scratch("folder"), "only", UINT64_C(1) << 30);
    assert_int_equal(dq_source_open(&env, in_scratch("folder"), &s), DQ_OK);
    check_all(s);
    dq_source_free(s);
    write_all(in_scratch("folder"), "second", UINT64_C(1) << 30);
    assert_int_equal(dq_source_open(&env, in_scratch("folder"), &s), DQ_E_NOTFOUND);
    assert_non_null(strstr(dq_error_text(), "more than one"));
    write_all(in_scratch("folder"), "model", UINT64_C(1) << 30);
    assert_int_equal(dq_source_open(&env, in_scratch("folder"), &s), DQ_OK);
    assert_non_null(strstr(s->tensors[0].file, "model.safetensors"));
    dq_source_free(s);
    assert_int_equal(dq_source_open(&env, in_scratch("absent"), &s), DQ_E_IO);

    char *bytes = NULL; /* an older folder */
    size_t size = 0;
    assert_int_equal(dq_make_dirs(&env, in_scratch("older")), DQ_OK);
    assert_int_equal(dq_file_read(&env, IO_DATA "state_dict.pt", 1 << 20, &bytes, &size), DQ_OK);
    assert_int_equal(dq_file_write(&env, in_scratch("older/pytorch_model.bin"), bytes, size), DQ_OK);
    dq_free(bytes);
    assert_int_equal(dq_source_open(&env, in_scratch("older"), &s), DQ_OK);
    assert_string_equal(s->format, "pytorch");
    check_golden(s, "weight", "pt.x");
    dq_source_free(s);
}

/* What is found under the target's name at the end decides, not what was there at the start. */
static void target_becomes_a_folder(void **state)
{
    (void)state;
    int64_t shape[] = {1000};
    static float data[1000];
    dq_sink *sink = NULL;
    assert_int_equal(dq_safetensors_sink(&env, scratch, "taken", 4500, &sink), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "a", DQ_F32, 1, shape, data, sizeof data), DQ_OK);
    assert_int_equal(sink->ops->add(sink, "b", DQ_F32, 1, shape, data, sizeof data), DQ_OK);
    assert_int_equal(dq_make_dirs(&env, in_scratch("taken-00002-of-00002.safetensors")), DQ_OK);
    assert_int_equal(sink->ops->finish(sink), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "is a folder"));
    sink->ops->free(sink);
    assert_false(dq_path_exists(in_scratch("taken-00001-of-00002.safetensors")));
    assert_false(dq_path_exists(in_scratch("taken.safetensors.index.json")));
    assert_int_equal(rmdir(in_scratch("taken-00002-of-00002.safetensors")), 0);
}

int main(int argc, char **argv)
{
    keep_folder = argc > 1 ? argv[1] : NULL;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type),
        cmocka_unit_test(sharded),
        cmocka_unit_test(write_one_file),
        cmocka_unit_test(write_shards),
        cmocka_unit_test(write_large),
        cmocka_unit_test(empty_set),
        cmocka_unit_test(refuses_wrong_tensors),
        cmocka_unit_test(full_target),
        cmocka_unit_test(memory_sets),
        cmocka_unit_test(spool_sets),
        cmocka_unit_test(spool_full),
        cmocka_unit_test(folders),
        cmocka_unit_test(target_becomes_a_folder),
    };
    return cmocka_run_group_tests(tests, io_set_up, io_tear_down);
}
