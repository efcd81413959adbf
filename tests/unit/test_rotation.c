/* rotation: making, loading and saving rotation sets. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/status.h"
#include "io/formats.h"
#include "rotation/parts.h"
#include "ok.h"

static dq_env env;
static dq_device *dev;
static atomic_int alive; /* blocks */
static char folder[] = "/tmp/dq-rotation-XXXXXX";

static void *counted_alloc(void *user, size_t bytes)
{
    (void)user;
    void *p = malloc(bytes);
    if (p) atomic_fetch_add(&alive, 1);
    return p;
}

static void counted_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    atomic_fetch_sub(&alive, 1);
    free(ptr);
}

static int setup(void **state)
{
    (void)state;
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {counted_alloc, counted_free, NULL}};
    if (!mkdtemp(folder) || dq_env_init(&env, &services, 2) != DQ_OK) return 1;
    return dq_device_open(&env, "cpu", "", DQ_POLICY_ALLOW, &dev) != DQ_OK;
}

static int teardown(void **state)
{
    (void)state;
    dq_device_close(dev);
    dq_env_clear(&env);
    bool removed = rmdir(folder) == 0;
    return atomic_load(&alive) != 0 || !removed;
}

static dq_arch arch_of(int64_t hidden, int64_t layers, int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t inter)
{
    return (dq_arch){.hidden = hidden,
                     .layers = layers,
                     .heads = heads,
                     .kv_heads = kv_heads,
                     .head_dim = head_dim,
                     .intermediate = inter};
}

static dq_rotation_set *make(const dq_arch *arch, const dq_rotation_options *o)
{
    dq_rotation_set *set;
    OK(dq_rotation_set_make(dev, arch, o, &set));
    return set;
}

static double error_of(const dq_rotation_set *set)
{
    double e;
    OK(dq_rotation_set_error(dev, set, &e));
    return e;
}

/* R[i][j] = s_i H[j][i] / sqrt(n) with the signs of torch.manual_seed(0); randint(0, 2). */
static void signs_and_draw_order(void **state)
{
    (void)state;
    dq_arch arch = arch_of(12, 3, 4, 2, 4, 24);
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE};
    dq_rotation_set *set = make(&arch, &o);
    /* the first 12 + 3 * 4 draws of seed 0; the first 16 are in test_base.c */
    static const char signs[] = "-++-+++++++--+--";
    dq_hadamard h;
    int8_t dense[144];
    OK(dq_hadamard_make(&env, 12, false, &h));
    dq_hadamard_dense(&h, dense);
    for (int i = 0; i < 12; i++)
        for (int j = 0; j < 12; j++) {
            double expected = (signs[i] == '+' ? 1 : -1) * dense[j * 12 + i] / sqrt(12.0);
            assert_true(set->r1[i * 12 + j] == expected);
        }
    for (int i = 0; i < 4; i++) /* layer 0: draws 12 .. 15; row i has the sign of draw i (H4's first column is +) */
        assert_true(set->r2[i * 4] == (signs[12 + i] == '+' ? 0.5 : -0.5));
    assert_memory_equal(set->r2, set->r2 + 16, 16 * sizeof(double));     /* both KV heads alike */
    assert_memory_not_equal(set->r2, set->r2 + 64, 16 * sizeof(double)); /* layers differ */
    assert_true(error_of(set) < 1e-15);
    o.use_r1 = false; /* R2 does not depend on R1 being there */
    dq_rotation_set *alone = make(&arch, &o);
    assert_null(alone->r1);
    assert_memory_equal(alone->r2, set->r2, 96 * sizeof(double));
    o.seed = 1;
    dq_rotation_set *other = make(&arch, &o);
    assert_memory_not_equal(alone->r2, other->r2, 96 * sizeof(double));
    dq_hadamard_clear(&h);
    dq_rotation_set_free(set);
    dq_rotation_set_free(alone);
    dq_rotation_set_free(other);
}

static void random_orthogonal(void **state)
{
    (void)state;
    dq_arch arch = arch_of(37, 2, 2, 1, 6, 8);
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE, .mode = DQ_ROTATE_RANDOM, .seed = 3};
    dq_rotation_set *a = make(&arch, &o), *b = make(&arch, &o);
    assert_true(error_of(a) < 1e-13);
    assert_memory_equal(a->r1, b->r1, 37 * 37 * sizeof(double));
    /* A = Q R with positive diag R: the diagonal of Q^T A is positive */
    dq_rng rng;
    double gaussian[37 * 37];
    dq_rng_seed_torch(&rng, 3);
    for (int i = 0; i < 37 * 37; i++) gaussian[i] = dq_rng_normal(&rng);
    for (int j = 0; j < 37; j++) {
        double r = 0, below = 0;
        for (int i = 0; i < 37; i++) r += a->r1[i * 37 + j] * gaussian[i * 37 + j];
        for (int i = 0; i < 37 && j > 0; i++) below += a->r1[i * 37 + j] * gaussian[i * 37 + j - 1];
        assert_true(r > 0);
        assert_true(fabs(below) < 1e-12); /* R is upper triangular */
    }
    o.use_r1 = false;
    dq_rotation_set *alone = make(&arch, &o);
    assert_memory_equal(alone->r2, a->r2, 72 * sizeof(double));
    dq_rotation_set_free(a);
    dq_rotation_set_free(b);
    dq_rotation_set_free(alone);
}

/* 37 and 6 have no Hadamard matrix: the offline rotations become random orthogonal, the online ones block-diagonal. */
static void sizes_without_hadamard(void **state)
{
    (void)state;
    dq_arch arch = arch_of(37, 2, 6, 3, 6, 24);
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE, .use_r3 = true};
    dq_rotation_set *set = make(&arch, &o);
    assert_true(error_of(set) < 1e-13);
    assert_int_equal(set->r3.n, 2);
    assert_int_equal(set->r3.blocks, 3);
    assert_int_equal(set->r4.n, 0);
    dq_rotation_set_free(set);
    o.use_r2 = DQ_R2_ONLINE;
    set = make(&arch, &o);
    assert_null(set->r2);
    assert_int_equal(set->r2_heads.n * set->r2_heads.blocks, 6);
    assert_int_equal(set->r2_head_dim.n * set->r2_head_dim.blocks, 6);
    dq_rotation_set_free(set);
    arch.intermediate = 333;
    o.use_r4 = true;
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &set), DQ_E_UNSUPPORTED);
    arch.intermediate = 11008;
    arch.heads = 24;
    arch.head_dim = 80;
    set = make(&arch, &o);
    assert_int_equal(set->r4.k, 172);
    assert_int_equal(set->r2_heads.k, 12);
    assert_int_equal(set->r3.k, 40);
    dq_rotation_set_free(set);
}

/* The op that runs online is the dense matrix. */
static void online_transform_equals_the_matrix(void **state)
{
    (void)state;
    static const int64_t orders[] = {2, 12, 24, 40, 44, 52, 56, 64};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        int64_t n = orders[i];
        dq_hadamard h;
        OK(dq_hadamard_make(&env, n, false, &h));
        int8_t *dense = malloc((size_t)(n * n));
        double *unit = calloc((size_t)(n * n), sizeof *unit);
        dq_hadamard_dense(&h, dense);
        for (int64_t k = 0; k < n; k++) unit[k * n + k] = 1;
        dq_tensor t;
        OK(dq_tensor_from_host(dev, DQ_F64, n, n, unit, &t));
        dq_hadamard_desc d = {.n = h.n, .k = h.k, .hk = h.hk, .inner = 1, .scale = 1.0};
        OK(dq_op_hadamard(&d, &t, &t));
        OK(dq_tensor_download(&t, unit));
        for (int64_t b = 0; b < n; b++)
            for (int64_t a = 0; a < n; a++) assert_true(unit[b * n + a] == dense[a * n + b]);
        dq_tensor_free(&t);
        dq_hadamard_clear(&h);
        free(dense), free(unit);
    }
}

static void copies_are_deep(void **state)
{
    (void)state;
    dq_arch arch = arch_of(12, 2, 4, 2, 12, 28);
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_ONLINE, .use_r3 = true, .use_r4 = true};
    dq_rotation_set *set = make(&arch, &o), *copy;
    OK(dq_rotation_set_copy(set, &copy));
    assert_memory_equal(copy->r1, set->r1, 144 * sizeof(double));
    assert_ptr_not_equal(copy->r1, set->r1);
    assert_ptr_not_equal(copy->r4.hk, set->r4.hk);
    assert_memory_equal(copy->r4.hk, set->r4.hk, 28 * 28);
    assert_string_equal(copy->origin, "hadamard, seed 0");
    dq_rotation_set_free(set);
    assert_true(error_of(copy) < 1e-15);
    dq_rotation_set_free(copy);
}

static char *in_folder(const char *name)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void saved_sets_come_back_exactly(void **state)
{
    (void)state;
    dq_arch arch = arch_of(12, 3, 4, 2, 6, 24);
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE, .mode = DQ_ROTATE_RANDOM, .seed = 9};
    dq_rotation_set *set = make(&arch, &o);
    char *path = in_folder("set.safetensors");
    OK(dq_rotation_set_save(set, path));
    o.r1_path = o.r2_path = path;
    o.seed = 10;
    dq_rotation_set *back = make(&arch, &o);
    assert_memory_equal(back->r1, set->r1, 144 * sizeof(double));
    assert_memory_equal(back->r2, set->r2, 3 * 2 * 36 * sizeof(double));
    assert_non_null(strstr(back->origin, "set.safetensors"));
    dq_rotation_set_free(back);
    arch.layers = 2; /* a file of a deeper model is foreign */
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &back), DQ_E_MISMATCH);
    arch.layers = 4;
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &back), DQ_E_MISMATCH);
    assert_non_null(strstr(dq_error_text(), "model.layers.3.self_attn.R2"));
    unlink(path);
    assert_int_equal(dq_rotation_set_save(set, in_folder("set.npz")), DQ_E_INVALID);
    dq_rotation_set_free(set);
}

/* DartQuant's dictionaries and SpinQuant's R.bin hold what floats hold. */
static void pickled_sets_come_back(void **state)
{
    (void)state;
    dq_arch arch = arch_of(12, 3, 4, 2, 6, 10);
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE, .mode = DQ_ROTATE_RANDOM, .seed = 3};
    dq_rotation_set *set = make(&arch, &o), *back;
    static const char *const names[] = {"set.pt", "R.bin"};
    for (int i = 0; i < 2; i++) {
        const char *path = in_folder(names[i]);
        OK(dq_rotation_set_save(set, path));
        o.r1_path = o.r2_path = path;
        back = make(&arch, &o);
        for (int k = 0; k < 144; k++) assert_true(back->r1[k] == (double)(float)set->r1[k]);
        for (int k = 0; k < 3 * 2 * 36; k++) assert_true(back->r2[k] == (double)(float)set->r2[k]);
        dq_rotation_set_free(back);
        unlink(path);
    }
    set->r2[36 + 36 * 2] += 1e-9; /* layer 1 has now two matrices */
    assert_int_equal(dq_rotation_set_save(set, in_folder("R.bin")), DQ_E_UNSUPPORTED);
    assert_non_null(strstr(dq_error_text(), "layer 1"));
    assert_int_not_equal(access(in_folder("R.bin"), F_OK), 0);
    OK(dq_rotation_set_save(set, in_folder("set.pt")));
    unlink(in_folder("set.pt"));
    dq_rotation_set_free(set);
}

static const char DATA[] = "tests/data/rotation/";

static float *golden(const char *name)
{
    dq_source *s;
    OK(dq_source_open(&env, "tests/data/rotation/expected.safetensors", &s));
    int64_t i = dq_source_find(s, name);
    assert_true(i >= 0);
    float *v = malloc(s->tensors[i].bytes);
    OK(dq_source_read_raw(s, i, 0, s->tensors[i].bytes, v));
    dq_source_free(s);
    return v;
}

static void files_of_other_programs(void **state)
{
    (void)state;
    dq_arch arch = arch_of(16, 2, 4, 2, 4, 24);
    for (int spin = 0; spin < 2; spin++) {
        char r1[64], r2[64];
        snprintf(r1, sizeof r1, "%s%s", DATA, spin ? "R.bin" : "r1.pt");
        snprintf(r2, sizeof r2, "%s%s", DATA, spin ? "R.bin" : "r2.pt");
        dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE, .r1_path = r1, .r2_path = r2};
        dq_rotation_set *set = make(&arch, &o);
        float *e = golden("R1");
        for (int i = 0; i < 256; i++) assert_true(set->r1[i] == e[i]);
        free(e);
        for (int l = 0; l < 2; l++) {
            char name[64];
            snprintf(name, sizeof name, "%s.model.layers.%d.self_attn.R2", spin ? "shared" : "heads", l);
            e = golden(name);
            for (int i = 0; i < 32; i++) assert_true(set->r2[l * 32 + i] == e[spin ? i % 16 : i]);
            free(e);
        }
        assert_true(error_of(set) < 1e-6);
        dq_rotation_set_free(set);
    }
}

/* Writes one F32 tensor "R1" [rows, cols]. */
static char *write_r1(const char *tensor, int64_t rows, int64_t cols, const float *values)
{
    dq_sink *sink;
    OK(dq_safetensors_sink(&env, folder, "bad", UINT64_MAX, &sink));
    OK(sink->ops->add(sink, tensor, DQ_F32, 2, (int64_t[]){rows, cols}, values, (uint64_t)(rows * cols) * 4));
    OK(sink->ops->add(sink, "other", DQ_F32, 2, (int64_t[]){1, 1}, values, 4));
    OK(sink->ops->finish(sink));
    sink->ops->free(sink);
    return in_folder("bad.safetensors");
}

static void expect_r1(const char *tensor, int64_t rows, int64_t cols, const float *values, dq_status status,
                      const char *text)
{
    dq_arch arch = arch_of(4, 1, 2, 1, 2, 8);
    dq_rotation_options o = {.use_r1 = true, .r1_path = write_r1(tensor, rows, cols, values)};
    dq_rotation_set *set = NULL;
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &set), status);
    assert_null(set);
    if (!strstr(dq_error_text(), text)) fail_msg("\"%s\" not in \"%s\"", text, dq_error_text());
    assert_string_equal(dq_error_file(), o.r1_path);
    unlink(o.r1_path);
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    float unit[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, skew[16], bad[16];
    memcpy(skew, unit, sizeof skew);
    memcpy(bad, unit, sizeof bad);
    skew[1] = 0.02f;
    bad[5] = NAN;
    expect_r1("R1", 2, 8, unit, DQ_E_MISMATCH, "[2, 8]");
    expect_r1("R2", 4, 4, unit, DQ_E_MISMATCH, "R1");
    expect_r1("R1", 4, 4, skew, DQ_E_NUMERIC, "0.02");
    dq_arch arch = arch_of(4, 1, 2, 1, 2, 8);
    dq_rotation_options o = {.use_r1 = true, .r1_path = write_r1("R1", 4, 4, bad)};
    dq_rotation_set *set = NULL;
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &set), DQ_E_NONFINITE);
    unlink(o.r1_path);
    o.r1_path = "no such file.safetensors";
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &set), DQ_E_IO);
    o.use_r1 = false;
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &set), DQ_E_INVALID);
    o = (dq_rotation_options){.use_r2 = DQ_R2_NONE, .r2_path = "x.pt"};
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &set), DQ_E_INVALID);
    o = (dq_rotation_options){.use_r1 = true, .mode = (dq_rotate_mode)7};
    assert_int_equal(dq_rotation_set_make(dev, &arch, &o, &set), DQ_E_INVALID);
    assert_null(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signs_and_draw_order),   cmocka_unit_test(random_orthogonal),
        cmocka_unit_test(sizes_without_hadamard), cmocka_unit_test(online_transform_equals_the_matrix),
        cmocka_unit_test(copies_are_deep),        cmocka_unit_test(saved_sets_come_back_exactly),
        cmocka_unit_test(pickled_sets_come_back), cmocka_unit_test(files_of_other_programs),
        cmocka_unit_test(bad_files_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
