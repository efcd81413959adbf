/* model: weights on their way to the device. Nobody waits to learn that transformed weights are finite, what is not finite is
 * named all the same, and 16-bit tensors travel as they are stored. SPDX-License-Identifier: Apache-2.0 */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/half.h"
#include "base/status.h"
#include "io/formats.h"
#include "model/internal.h"
#include "models.h"
#include "rotation/rotation.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DQ_OK) fail_msg("%s: %s", #call, dq_error_text());                                               \
    } while (0)

/* ---- a device that counts who waits for the answer ---- */

static int asked;
static dq_status (*find_nonfinite)(void *dev, const dq_view *x, int64_t *index);

static dq_status count_nonfinite(void *dev, const dq_view *x, int64_t *index)
{
    asked++;
    return find_nonfinite(dev, x, index);
}

static void counting_open(fixture *f)
{
    dq_backend table = *dq_builtin_backend("ref");
    find_nonfinite = table.find_nonfinite;
    table.find_nonfinite = count_nonfinite;
    asked = 0;
    OK(dq_env_init(&f->env, NULL, 1));
    OK(dq_device_open_table(&f->env, &table, "", DQ_POLICY_FORBID, &f->dev));
}

static dq_model *rotated(fixture *f, dq_model *base, dq_r2_mode r2, bool spoil)
{
    dq_rotation_options o = {
        .use_r1 = true, .use_r3 = true, .use_r4 = true, .use_r2 = r2, .mode = DQ_ROTATE_RANDOM, .seed = 5};
    dq_rotation_set *set;
    dq_model *plain, *m;
    OK(dq_model_derive_fused(base, true, &plain));
    OK(dq_rotation_set_make(f->dev, dq_model_arch(plain), &o, &set));
    if (spoil) set->r1[7] = NAN;
    OK(dq_model_derive_rotated(plain, set, &m));
    dq_rotation_set_free(set);
    dq_model_release(plain);
    return m;
}

static dq_model *scaled(dq_model *base)
{
    int64_t width[DQ_SCALE_SITES];
    dq_scales *scales;
    dq_model *m;
    dq_scales_widths(dq_model_arch(base), width);
    OK(dq_scales_new(base->env, dq_model_arch(base)->layers, width, &scales));
    for (int64_t i = 0; i < scales->layers * scales->total; i++) scales->values[i] = 0.25f + (float)(i % 9);
    OK(dq_model_derive_scaled(base, scales, &m));
    dq_scales_free(scales);
    return m;
}

static dq_status read_everything(dq_model *m)
{
    dq_tensor rows;
    for (int64_t layer = 0; layer < dq_model_arch(m)->layers; layer++) {
        dq_block block;
        DQ_TRY(dq_model_load_block(m, layer, &block));
        dq_block_free(&block);
    }
    for (int role = DQ_EMBED; role <= DQ_HEAD; role++) {
        if (role == DQ_FINAL_NORM) continue;
        DQ_TRY(dq_model_read_rows(m, (dq_role)role, 3, 40, &rows));
        dq_tensor_free(&rows);
    }
    return DQ_OK;
}

static void nobody_waits(void **state)
{
    (void)state;
    static const char *const names[] = {"mha", "gqa", "bias"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        fixture f;
        counting_open(&f);
        dq_model *base = open_tiny(&f, names[i]), *s = scaled(base);
        dq_model *offline = rotated(&f, base, DQ_R2_OFFLINE, false), *online = rotated(&f, base, DQ_R2_ONLINE, false);
        dq_model *all[] = {base, s, offline, online};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) OK(read_everything(all[k]));
        assert_int_equal(asked, 0);
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) dq_model_release(all[k]);
        fixture_close(&f);
    }
}

/* ---- the bounds are bounds ---- */

static double largest_of(const dq_tensor *t, double *host)
{
    double most = 0;
    OK(dq_tensor_download(t, host));
    for (int64_t i = 0; i < t->view.rows * t->view.cols; i++) most = fmax(most, fabs(host[i]));
    return most;
}

/* A weight of that magnitude everywhere, with the signs of a column of R1 along its inputs and outputs: the worst there is. */
static void check_linear(const dq_model *m, dq_role role, double magnitude)
{
    const double *r1 = m->own_rotations->r1;
    int64_t rows, cols, hidden = m->arch.hidden;
    dq_tensor w;
    double bound = magnitude;
    dq_arch_shape(&m->arch, role, &rows, &cols);
    double *host = malloc((size_t)(rows * cols) * sizeof *host);
    assert_non_null(host);
    for (int64_t i = 0; i < rows * cols; i++) {
        double across = cols == hidden ? r1[i % cols * hidden] : 1, down = rows == hidden ? r1[i / cols * hidden] : 1;
        host[i] = copysign(magnitude, across * down);
    }
    OK(dq_tensor_from_host(m->dev, DQ_F64, rows, cols, host, &w));
    OK(dq_rotate_linear((dq_model *)(uintptr_t)m, 1, role, &w, &bound));
    double found = largest_of(&w, host);
    assert_true(found <= bound * (1 + 1e-12));
    assert_true(found > 2 * magnitude); /* it did grow */
    assert_true(bound < magnitude * (double)hidden * (double)hidden);
    dq_tensor_free(&w);
    free(host);
}

/* Row i has the signs of column i of R1: one of them reaches the bound. */
static void check_rows(const dq_model *m, double magnitude)
{
    const double *r1 = m->own_rotations->r1;
    int64_t n = m->arch.hidden;
    dq_tensor w;
    double bound = magnitude, *host = malloc((size_t)(n * n) * sizeof *host);
    assert_non_null(host);
    for (int64_t i = 0; i < n * n; i++) host[i] = copysign(magnitude, r1[i % n * n + i / n]);
    OK(dq_tensor_from_host(m->dev, DQ_F64, n, n, host, &w));
    OK(dq_rotate_rows((dq_model *)(uintptr_t)m, DQ_EMBED, &w, &bound));
    assert_true(fabs(largest_of(&w, host) - bound) <= 1e-12 * bound);
    dq_tensor_free(&w);
    free(host);
}

static void bounds_hold(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 2);
    dq_model *base = open_tiny(&f, "gqa");
    for (int k = 0; k < 2; k++) {
        dq_model *m = rotated(&f, base, k ? DQ_R2_ONLINE : DQ_R2_OFFLINE, false);
        for (int role = DQ_Q_PROJ; role <= DQ_DOWN_PROJ; role++) check_linear(m, (dq_role)role, 0.5);
        check_rows(m, 0.5);
        assert_true(m->r1_growth > 2 && m->r1_growth <= m->growth);
        dq_model_release(m);
    }
    dq_model_release(base);
    fixture_close(&f);
}

/* ---- what is not finite is named ---- */

static bool enlarge(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    if (strcmp(name, arg) == 0)
        for (int64_t i = 0; i < rows * cols; i++) values[i] = copysignf(3e38f, values[i]);
    return true;
}

static void expect_named(dq_model *m, int64_t layer, dq_role role, const char *name)
{
    dq_linear l;
    asked = 0;
    assert_int_equal(dq_model_read_linear(m, layer, role, &l), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "the transformed weight is not finite in row "));
    assert_string_equal(dq_error_tensor(), name);
    assert_int_equal(asked, 1);
    dq_error_reset();
}

static void overflow_is_found(void **state)
{
    (void)state;
    static char name[] = "model.layers.1.mlp.gate_proj.weight";
    fixture f;
    dq_model *base, *m;
    dq_linear l;
    counting_open(&f);
    OK(changed_model(&f, "mha", enlarge, name, &base));
    m = rotated(&f, base, DQ_R2_OFFLINE, false);
    expect_named(m, 1, DQ_GATE_PROJ, name);
    OK(dq_model_read_linear(m, 1, DQ_UP_PROJ, &l)); /* its neighbour is fine */
    dq_linear_free(&l);
    OK(dq_model_read_linear(base, 1, DQ_GATE_PROJ, &l)); /* large, but finite as it is */
    dq_linear_free(&l);
    dq_model_release(m);
    m = rotated(&f, base, DQ_R2_OFFLINE, true); /* a rotation that is none */
    expect_named(m, 0, DQ_Q_PROJ, "model.layers.0.self_attn.q_proj.weight");
    dq_model_release(m);
    dq_model_release(base);
    fixture_close(&f);
}

/* ---- 16 bits ---- */

static uint16_t narrow(dq_dtype dtype, float x) { return dtype == DQ_F16 ? dq_f32_to_f16(x) : dq_f32_to_bf16(x); }
static float widen(dq_dtype dtype, uint16_t h) { return dtype == DQ_F16 ? dq_f16_to_f32(h) : dq_bf16_to_f32(h); }

/* The model with all tensors in 16 bits; `spoilt` gets an infinity in its row 1, column 2. */
static dq_model *narrow_model(fixture *f, dq_dtype dtype, const char *spoilt)
{
    dq_model *base = open_tiny(f, "gqa"), *m;
    dq_source *from = dq_model_root_source(base), *to;
    dq_sink *sink;
    dq_arch arch = *dq_model_arch(base);
    OK(dq_memory_sink(&f->env, &sink));
    for (int64_t t = 0; t < from->count; t++) {
        const dq_tensor_info *info = &from->tensors[t];
        int64_t n = dq_info_rows(info) * dq_info_cols(info);
        float *values = malloc((size_t)n * sizeof *values);
        uint16_t *halves = malloc((size_t)n * sizeof *halves);
        assert_true(values && halves);
        OK(dq_source_read_rows(from, t, 0, dq_info_rows(info), values));
        for (int64_t i = 0; i < n; i++) halves[i] = narrow(dtype, values[i]);
        if (spoilt && strcmp(info->name, spoilt) == 0) halves[dq_info_cols(info) + 2] = narrow(dtype, -INFINITY);
        OK(sink->ops->add(sink, info->name, dtype, info->ndim, info->shape, halves, (uint64_t)n * 2));
        free(values);
        free(halves);
    }
    OK(sink->ops->finish(sink));
    OK(dq_memory_source(sink, &to));
    sink->ops->free(sink);
    dq_model_release(base);
    OK(dq_model_from_source(f->dev, &arch, to, false, &m));
    return m;
}

static void check_sixteen_bits(const char *device, dq_dtype dtype)
{
    static const char *const spoilt = "model.layers.0.self_attn.k_proj.weight";
    fixture f;
    dq_linear wide, l;
    fixture_open(&f, device, 2);
    dq_model *base = open_tiny(&f, "gqa"), *m = narrow_model(&f, dtype, NULL), *fused;
    for (int role = DQ_Q_PROJ; role <= DQ_DOWN_PROJ; role++) {
        OK(dq_model_read_linear(base, 1, (dq_role)role, &wide));
        OK(dq_model_read_linear(m, 1, (dq_role)role, &l));
        int64_t n = l.weight.view.rows * l.weight.view.cols;
        float *want = malloc((size_t)n * sizeof *want), *got = malloc((size_t)n * sizeof *got);
        assert_true(want && got);
        OK(dq_tensor_download(&wide.weight, want));
        OK(dq_tensor_download(&l.weight, got));
        for (int64_t i = 0; i < n; i++) assert_true(got[i] == widen(dtype, narrow(dtype, want[i])));
        free(want);
        free(got);
        dq_linear_free(&wide);
        dq_linear_free(&l);
    }
    OK(dq_model_derive_fused(m, false, &fused)); /* to double precision at once */
    OK(read_everything(fused));
    dq_model_release(fused);
    dq_model_release(m);
    m = narrow_model(&f, dtype, spoilt);
    assert_int_equal(dq_model_read_linear(m, 0, DQ_K_PROJ, &l), DQ_E_NONFINITE);
    assert_string_equal(dq_error_tensor(), spoilt);
    assert_non_null(strstr(dq_error_text(), "row 1, column 2"));
    assert_int_equal(dq_error_byte(), (dq_model_arch(m)->hidden + 2) * 2);
    dq_error_reset();
    dq_model_release(m);
    dq_model_release(base);
    fixture_close(&f);
}

static void sixteen_bits_travel(void **state)
{
    (void)state;
    check_sixteen_bits("ref", DQ_F16);
    check_sixteen_bits("ref", DQ_BF16);
    check_sixteen_bits("cpu", DQ_F16);
    check_sixteen_bits("cpu", DQ_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nobody_waits), cmocka_unit_test(bounds_hold),
                                       cmocka_unit_test(overflow_is_found), cmocka_unit_test(sixteen_bits_travel)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
