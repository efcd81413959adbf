/* Runs a case on the reference and on every CPU variant, with 1, 2 and 3 threads, and compares all outputs; on plug-ins
 * once, and every fifth case a second time with more threads.
 * A case is a function that makes its inputs from a seed, calls ops and keeps outputs; it runs the same way everywhere.
 * Tensors can be slices of a larger one: padding is kept too, so writing outside the view is seen.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_PAIR_H
#define DQ_TESTS_PAIR_H

#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "backend/device.h"
#include "bands.h"
#include "base/half.h"
#include "base/status.h"
#include "fake_backend.h"

enum { MAX_TENSORS = 16, MAX_OUTPUTS = 8, MAX_TARGETS = 8, LAYOUTS = 3 };

typedef struct output {
    const char *name;
    dq_dtype dtype;
    int64_t count, cols; /* of the parent */
    unsigned char *bytes;
    double absolute, relative;
} output;

typedef struct outputs {
    output item[MAX_OUTPUTS];
    int count;
} outputs;

typedef struct made {
    dq_tensor parent;
    dq_tensor view;
} made;

typedef struct run_ctx {
    dq_device *dev;
    uint64_t rng;
    int layout;     /* 0 packed, 1 inside a larger tensor with odd offsets, 2 odd stride */
    bool alternate; /* second permitted definition of the result (products of unrounded operands) */
    made tensors[MAX_TENSORS];
    int tensor_count;
    outputs *out;
} run_ctx;

typedef void (*case_fn)(run_ctx *c, const void *params);

/* DQ_TEST_FILTER=NAME runs that test alone. */
__attribute__((constructor)) static void choose_tests(void)
{
    const char *name = getenv("DQ_TEST_FILTER");
    if (name && name[0]) cmocka_set_test_filter(name);
}

/* ---- inputs ---- */

static inline double next_uniform(run_ctx *c) /* [-1, 1), 24 bits so that it is exact in fp32 */
{
    c->rng = c->rng * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)((c->rng >> 40) - (1 << 23)) / (1 << 23);
}

static inline int64_t next_below(run_ctx *c, int64_t n)
{
    c->rng = c->rng * 6364136223846793005u + 1442695040888963407u;
    return (int64_t)((c->rng >> 33) % (uint64_t)n);
}

static inline void put_element(dq_dtype dtype, void *base, int64_t i, double x)
{
    switch (dtype) {
        case DQ_F64: ((double *)base)[i] = x; break;
        case DQ_F32: ((float *)base)[i] = (float)x; break;
        case DQ_F16: ((uint16_t *)base)[i] = dq_f64_to_f16(x); break;
        case DQ_BF16: ((uint16_t *)base)[i] = dq_f64_to_bf16(x); break;
        case DQ_I32: ((int32_t *)base)[i] = (int32_t)x; break;
        case DQ_I8: ((int8_t *)base)[i] = (int8_t)x; break;
        default: ((uint8_t *)base)[i] = (uint8_t)x; break;
    }
}

static inline double get_element(dq_dtype dtype, const void *base, int64_t i)
{
    switch (dtype) {
        case DQ_F64: return ((const double *)base)[i];
        case DQ_F32: return ((const float *)base)[i];
        case DQ_F16: return dq_f16_to_f32(((const uint16_t *)base)[i]);
        case DQ_BF16: return dq_bf16_to_f32(((const uint16_t *)base)[i]);
        case DQ_I32: return ((const int32_t *)base)[i];
        case DQ_I8: return ((const int8_t *)base)[i];
        default: return ((const uint8_t *)base)[i];
    }
}

static inline void must(dq_status status)
{
    if (status == DQ_OK) return;
    print_error("%s: %s\n", dq_status_name(status), dq_error_text());
    assert_int_equal(status, DQ_OK);
}

/* A tensor holding `values` (packed, row-major), laid out as the case says. */
static inline made *make_values(run_ctx *c, dq_dtype dtype, int64_t rows, int64_t cols, const double *values)
{
    static const int64_t pad_rows[LAYOUTS] = {0, 2, 0}, pad_cols[LAYOUTS] = {0, 7, 1};
    static const int64_t row0[LAYOUTS] = {0, 1, 0}, col0[LAYOUTS] = {0, 3, 0};
    int64_t parent_rows = rows + pad_rows[c->layout], parent_cols = cols + pad_cols[c->layout];
    assert_true(c->tensor_count < MAX_TENSORS);
    made *m = &c->tensors[c->tensor_count++];
    unsigned char *host = malloc((size_t)(parent_rows * parent_cols) * 8 + 8);
    for (int64_t i = 0; i < parent_rows * parent_cols; i++) put_element(dtype, host, i, 77);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t k = 0; k < cols; k++)
            put_element(dtype, host, (r + row0[c->layout]) * parent_cols + k + col0[c->layout], values[r * cols + k]);
    must(dq_tensor_from_host(c->dev, dtype, parent_rows, parent_cols, host, &m->parent));
    m->view = dq_tensor_slice(&m->parent, row0[c->layout], rows, col0[c->layout], cols);
    free(host);
    return m;
}

static inline double *random_values(run_ctx *c, int64_t count)
{
    double *values = malloc((size_t)count * sizeof *values + 8);
    for (int64_t i = 0; i < count; i++) values[i] = next_uniform(c);
    return values;
}

static inline made *make_random(run_ctx *c, dq_dtype dtype, int64_t rows, int64_t cols)
{
    double *values = random_values(c, rows * cols);
    made *m = make_values(c, dtype, rows, cols, values);
    free(values);
    return m;
}

/* All elements equal; NaN shows that an op ignores old contents. */
static inline made *make_constant(run_ctx *c, dq_dtype dtype, int64_t rows, int64_t cols, double value)
{
    double *values = malloc((size_t)(rows * cols) * sizeof *values + 8);
    for (int64_t i = 0; i < rows * cols; i++) values[i] = value;
    made *m = make_values(c, dtype, rows, cols, values);
    free(values);
    return m;
}

static inline made *make_index(run_ctx *c, int64_t count, int64_t limit)
{
    double *values = malloc((size_t)count * sizeof *values + 8);
    for (int64_t i = 0; i < count; i++) values[i] = (double)next_below(c, limit);
    made *m = make_values(c, DQ_I32, 1, count, values);
    free(values);
    return m;
}

/* ---- outputs ---- */

static inline void keep_bytes(run_ctx *c, const char *name, dq_dtype dtype, int64_t count, int64_t cols, void *bytes,
                              const band *b, double scale)
{
    assert_true(c->out->count < MAX_OUTPUTS);
    c->out->item[c->out->count++] = (output){name, dtype, count, cols, bytes, b->absolute * scale, b->relative};
}

/* Keeps a whole parent, padding included. */
static inline void keep(run_ctx *c, const char *name, const made *m, const band *b, double scale)
{
    const dq_view *v = &m->parent.view;
    unsigned char *bytes = malloc((size_t)(v->rows * v->cols) * dq_dtype_size(v->dtype) + 8);
    must(dq_tensor_download(&m->parent, bytes));
    keep_bytes(c, name, v->dtype, v->rows * v->cols, v->cols, bytes, b, scale);
}

static inline void keep_number(run_ctx *c, const char *name, double value, const band *b, double scale)
{
    double *bytes = malloc(sizeof *bytes);
    *bytes = value;
    keep_bytes(c, name, DQ_F64, 1, 1, bytes, b, scale);
}

static inline void free_outputs(outputs *out)
{
    for (int i = 0; i < out->count; i++) free(out->item[i].bytes);
    out->count = 0;
}

/* ---- devices ---- */

typedef struct target {
    char label[64];
    dq_device *dev;
    bool exact;  /* must give the reference's bits */
    bool plugin; /* does its work apart from our threads */
} target;

static dq_env reference_env, envs[3];
static dq_device *reference;
static target targets[MAX_TARGETS][3]; /* level, thread count */
static int target_count;
static int cases_run;
static int failures;

/* A file beside this program, as an absolute path. */
static inline const char *beside_me(const char *name, char path[PATH_MAX])
{
    char joined[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", joined, sizeof joined - 1);
    assert_true(n > 0);
    joined[n] = '\0';
    char *slash = strrchr(joined, '/');
    snprintf(slash + 1, sizeof joined - (size_t)(slash + 1 - joined), "%s", name);
    if (!realpath(joined, path)) snprintf(path, PATH_MAX, "%s", joined);
    return path;
}

/* Every instruction set that this machine has. */
static inline void open_cpu_levels(void)
{
    static const char *const levels[] = {"plain", "avx2", "avx512", "amx", "auto"};
    for (size_t i = 0; i < sizeof levels / sizeof levels[0]; i++) {
        char options[32];
        snprintf(options, sizeof options, "simd=%s", levels[i]);
        dq_status status = DQ_OK;
        for (int t = 0; t < 3 && status == DQ_OK; t++) {
            target *entry = &targets[target_count][t];
            snprintf(entry->label, sizeof entry->label, "cpu %s, %d thread%s", options, t + 1, t ? "s" : "");
            status = dq_device_open(&envs[t], "cpu", options, DQ_POLICY_FORBID, &entry->dev);
            if (status == DQ_E_UNSUPPORTED)
                print_message("skipped: %s\n", dq_error_text());
            else
                must(status);
        }
        if (status == DQ_OK) target_count++;
    }
}

/* A device that supports nothing and whose memory is out of reach: everything takes the way over the host. */
static inline void open_without_ops(void)
{
    dq_backend table = fake_backend();
    for (int t = 0; t < 3; t++) {
        target *entry = &targets[target_count][t];
        snprintf(entry->label, sizeof entry->label, "fake without ops");
        must(dq_device_open_table(&envs[t], &table, "", DQ_POLICY_ALLOW, &entry->dev));
        entry->exact = true;
    }
    target_count++;
}

/* A plug-in by NAME or path, with :options. */
static inline void open_plugin(const char *spec)
{
    char name[PATH_MAX];
    const char *options = strchr(spec, ':');
    snprintf(name, sizeof name, "%.*s", (int)strcspn(spec, ":"), spec);
    for (int t = 0; t < 3; t++) {
        target *entry = &targets[target_count][t];
        must(dq_device_open(&envs[t], name, options ? options + 1 : "", DQ_POLICY_WARN, &entry->dev));
        snprintf(entry->label, sizeof entry->label, "%.40s, %d threads", dq_device_backend(entry->dev), t + 1);
        entry->plugin = true;
    }
    target_count++;
}

static void print_log(void *user, int32_t level, const char *text)
{
    (void)user;
    if (level <= DQ_LOG_WARNING) print_message("%s\n", text);
}

/* DQ_TEST_BACKEND tests that backend alone (docs/backends.md). */
static inline int open_all(void **state)
{
    const dq_services talking = {.struct_size = sizeof talking, .abi = 1, .log = print_log};
    const char *chosen = getenv("DQ_TEST_BACKEND");
    char farsim[PATH_MAX], spec[PATH_MAX + 16];
    (void)state;
    must(dq_env_init(&reference_env, NULL, 1));
    must(dq_device_open(&reference_env, "ref", "", DQ_POLICY_FORBID, &reference));
    for (int t = 0; t < 3; t++) must(dq_env_init(&envs[t], chosen && t == 0 ? &talking : NULL, t + 1));
    if (chosen && chosen[0]) {
        open_plugin(chosen);
        return 0;
    }
    open_cpu_levels();
    open_without_ops();
    /* A real plug-in: a far device whose stream runs late (tests/fakes/farsim). */
    snprintf(spec, sizeof spec, "%s:depth=1000", beside_me("../fakes/libdartquant-farsim.so", farsim));
    open_plugin(spec);
    return 0;
}

static inline int close_all(void **state)
{
    (void)state;
    for (int i = 0; i < target_count; i++)
        for (int t = 0; t < 3; t++) dq_device_close(targets[i][t].dev);
    assert_int_equal(fake.blocks, 0);
    assert_int_equal(fake.devices, 0);
    dq_device_close(reference);
    for (int t = 0; t < 3; t++) {
        dq_env_clear(&envs[t]);
        assert_int_equal(atomic_load(&envs[t].memory_now), 0); /* nothing leaked */
    }
    dq_env_clear(&reference_env);
    assert_int_equal(atomic_load(&reference_env.memory_now), 0);
    return 0;
}

/* ---- comparison ---- */

/* An extra way to accept outputs; returns true when it took the decision and filled `ok`. */
typedef bool (*compare_fn)(const outputs *want, const outputs *got, bool *ok);

static inline bool within(const output *o, double w, double g)
{
    if (isnan(w) || isnan(g)) return isnan(w) && isnan(g);
    if (w == g) return true;
    return fabs(g - w) <= o->absolute + o->relative * fabs(w);
}

static inline void report(const char *label, const char *device, const output *got, int64_t i, double w, double g)
{
    if (failures++ < 12)
        print_error("%s on %s: %s[%lld][%lld] = %.9g, reference %.9g, off by %.3g, band %.3g + %.3g |ref|\n", label,
                    device, got->name, (long long)(i / got->cols), (long long)(i % got->cols), g, w, fabs(g - w),
                    got->absolute, got->relative);
}

static inline void compare_outputs(const char *label, const char *device, const outputs *want, const outputs *other,
                                   const outputs *got)
{
    assert_int_equal(want->count, got->count);
    for (int o = 0; o < want->count; o++) {
        const output *w = &want->item[o], *g = &got->item[o];
        assert_int_equal(w->count, g->count);
        for (int64_t i = 0; i < w->count; i++) {
            double a = get_element(w->dtype, w->bytes, i), b = get_element(g->dtype, g->bytes, i);
            if (within(g, a, b)) continue; /* in the band of the device that made it */
            if (other->count && within(g, get_element(w->dtype, other->item[o].bytes, i), b)) continue;
            report(label, device, g, i, a, b);
            break;
        }
    }
}

static inline void compare_bits(const char *label, const char *device, const outputs *one, const outputs *many,
                                const char *than)
{
    for (int o = 0; o < one->count; o++) {
        size_t bytes = (size_t)one->item[o].count * dq_dtype_size(one->item[o].dtype);
        if (memcmp(one->item[o].bytes, many->item[o].bytes, bytes) == 0) continue;
        if (failures++ < 12)
            print_error("%s on %s: %s differs from the result %s\n", label, device, one->item[o].name, than);
    }
}

/* ---- running ---- */

static inline void run_on(dq_device *dev, case_fn fn, const void *params, int layout, bool alternate, outputs *out)
{
    run_ctx c = {.dev = dev, .rng = 20240601, .layout = layout, .alternate = alternate, .out = out};
    out->count = 0;
    fn(&c, params);
    for (int i = 0; i < c.tensor_count; i++) dq_tensor_free(&c.tensors[i].parent);
}

/* The first of the thread counts after one that a case runs with, as an index. A plug-in's results seldom come from our
 * threads; that they repeat is seen on some cases. */
static inline int next_threads(const target *t)
{
    if (t->exact) return 3;
    return !t->plugin ? 1 : cases_run % 5 == 0 ? 2 : 3;
}

static inline void run_case_with(const char *label, case_fn fn, const void *params, int layout, bool two_definitions,
                                 compare_fn compare)
{
    outputs want, other = {.count = 0}, one, many;
    char full[160];
    snprintf(full, sizeof full, "%s, layout %d", label, layout);
    run_on(reference, fn, params, layout, false, &want);
    if (two_definitions) run_on(reference, fn, params, layout, true, &other);
    for (int i = 0; i < target_count; i++) {
        run_on(targets[i][0].dev, fn, params, layout, false, &one);
        bool ok = true;
        if (!compare || !compare(&want, &one, &ok)) compare_outputs(full, targets[i][0].label, &want, &other, &one);
        if (targets[i][0].exact) compare_bits(full, targets[i][0].label, &want, &one, "of the reference");
        if (!ok && failures++ < 12) print_error("%s on %s: too many differences\n", full, targets[i][0].label);
        for (int t = next_threads(&targets[i][0]); t < 3; t++) {
            run_on(targets[i][t].dev, fn, params, layout, false, &many);
            compare_bits(full, targets[i][t].label, &one, &many, "with one thread");
            free_outputs(&many);
        }
        free_outputs(&one);
    }
    free_outputs(&want);
    free_outputs(&other);
    cases_run++;
}

static inline void run_case(const char *label, case_fn fn, const void *params, int layout)
{
    run_case_with(label, fn, params, layout, false, NULL);
}

/* Fails the running test when cases failed since the last call. */
static inline void finish_cases(void)
{
    int count = failures;
    failures = 0;
    if (count > 12) print_error("... and %d more\n", count - 12);
    assert_int_equal(count, 0);
}

#endif
