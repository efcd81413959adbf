/* Every allocation of every opener, reader and writer is made to fail once: DQ_E_NOMEM each time, nothing leaks, nothing
 * is left on disk, and outputs stay as they were. SPDX-License-Identifier: Apache-2.0 */
#include "io/json.h"
#include "io_helpers.h"

typedef dq_status (*job)(dq_env *e, const char *arg);

static dq_status open_read_free(dq_env *e, const char *path)
{
    dq_source *s = NULL;
    dq_status status = dq_source_open(e, path, &s);
    if (status != DQ_OK) {
        assert_null(s);
        return status;
    }
    for (int64_t t = 0; t < s->count && status == DQ_OK; t++) {
        float out[1600];
        dq_dtype dtype = s->tensors[t].dtype;
        bool floating =
            dtype <= DQ_BF16 || dtype == DQ_F8_E4M3 || (dtype == DQ_BLOCK && s->tensors[t].type_name[1] != '2');
        status = floating ? dq_source_read_rows(s, t, 0, dq_info_rows(&s->tensors[t]), out)
                          : dq_source_read_raw(s, t, 0, s->tensors[t].bytes, out);
        dq_source_release(s, t);
    }
    dq_source_free(s);
    return status;
}

static dq_status fill_sink(dq_sink *sink)
{
    float data[200] = {0};
    int64_t shape[] = {10, 20}, one[] = {3};
    dq_status status = sink->ops->set_metadata(sink, "key", "value");
    for (int i = 0; i < 20 && status == DQ_OK; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        status = sink->ops->add(sink, name, DQ_F32, 2, shape, data, sizeof data);
    }
    if (status == DQ_OK) status = sink->ops->add(sink, "bytes", DQ_U8, 1, one, data, 3);
    if (status == DQ_OK) status = sink->ops->add(sink, "unaligned", DQ_F32, 2, shape, data, sizeof data);
    if (status == DQ_OK) status = sink->ops->finish(sink);
    return status;
}

/* arg: the part size */
static dq_status write_files(dq_env *e, const char *arg)
{
    dq_sink *sink = NULL;
    dq_status status = dq_safetensors_sink(e, scratch, "oom", (uint64_t)atoll(arg), &sink);
    if (status != DQ_OK) return status;
    status = fill_sink(sink);
    sink->ops->free(sink);
    return status;
}

static dq_status write_pickled(dq_env *e, const char *arg)
{
    dq_sink *sink = NULL;
    char path[400];
    snprintf(path, sizeof path, "%s/%s", scratch, arg);
    dq_status status = dq_pt_sink(e, path, false, &sink);
    if (status != DQ_OK) return status;
    status = fill_sink(sink);
    sink->ops->free(sink);
    return status;
}

static dq_status write_memory(dq_env *e, const char *arg)
{
    (void)arg;
    dq_sink *sink = NULL;
    dq_source *s = NULL;
    dq_status status = dq_memory_sink(e, &sink);
    if (status != DQ_OK) return status;
    status = fill_sink(sink);
    if (status == DQ_OK) status = dq_memory_source(sink, &s);
    dq_source_free(s);
    sink->ops->free(sink);
    return status;
}

static dq_status write_and_read_file(dq_env *e, const char *arg)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", scratch, arg);
    dq_status status = dq_file_write(e, path, "{\"a\": [1, 2]}", 13);
    json_t *root = NULL;
    char *text = NULL;
    if (status == DQ_OK) status = dq_json_load(e, path, 100, &root);
    if (status == DQ_OK) status = dq_json_dump(e, root, true, &text);
    dq_free(text);
    json_decref(root);
    unlink(path);
    return status;
}

static void remove_sets(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -f '%s'/oom*", scratch);
    assert_int_equal(system(command), 0);
}

/* Fails the n-th allocation for n = 1, 2, ... until the job gets through. */
static void every_allocation(job run, const char *arg, int forever)
{
    long n = 1;
    for (;; n++) {
        counting_allocator a = {0};
        dq_services services = {
            .struct_size = sizeof services, .abi = 1, .allocator = {counting_alloc, counting_free, &a}};
        dq_env e;
        assert_int_equal(dq_env_init(&e, &services, 1), DQ_OK);
        long base = a.live;
        a.calls = 0;
        a.fail_at = n;
        a.forever = forever;
        int files = scratch_entries();
        dq_error_reset();
        dq_status status = run(&e, arg);
        if (a.live != base) fail_msg("%s: %ld blocks leaked when allocation %ld fails", arg, a.live - base, n);
        bool reached = a.calls >= n;
        dq_env_clear(&e);
        if (!reached) {
            if (status != DQ_OK) fail_msg("%s: %s", arg, dq_error_text());
            break;
        }
        if (status != DQ_E_NOMEM || dq_error_last() != DQ_E_NOMEM)
            fail_msg("%s: allocation %ld of %ld fails: %s: %s", arg, n, a.calls, dq_status_name(status),
                     dq_error_text());
        if (scratch_entries() != files) fail_msg("%s: allocation %ld fails: files left", arg, n);
        if (n > 5000) fail_msg("%s: no end", arg);
    }
    if (n < 5) fail_msg("%s: only %ld allocations were tried", arg, n);
    remove_sets();
}

static void openers(void **state)
{
    (void)state;
    static const char *const files[] = {
        IO_DATA "types.safetensors", IO_DATA "sharded",     IO_DATA "types.gguf", IO_DATA "nested.pt",
        IO_DATA "views.pt",          IO_DATA "deflated.pt", IO_DATA "cuda.pt",
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        every_allocation(open_read_free, files[i], 0);
        every_allocation(open_read_free, files[i], 1);
    }
}

static void writers(void **state)
{
    (void)state;
    for (int forever = 0; forever < 2; forever++) {
        every_allocation(write_files, "1000000000", forever);
        every_allocation(write_files, "3000", forever);
        every_allocation(write_memory, "memory", forever);
        every_allocation(write_pickled, "oom.pt", forever);
        every_allocation(write_and_read_file, "oom.json", forever);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(openers),
        cmocka_unit_test(writers),
    };
    return cmocka_run_group_tests(tests, io_set_up, io_tear_down);
}
