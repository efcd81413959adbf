/* quant: RTN and GPTQ of one linear against independent implementations. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "fixture.h"
#include "io/formats.h"
#include "ok.h"
#include "quant/parts.h"

static int64_t find(const dq_source *s, const char *stem, const char *suffix)
{
    char name[192];
    snprintf(name, sizeof name, "%s%s", stem, suffix);
    return dq_source_find(s, name);
}

static void *raw(dq_source *s, int64_t tensor)
{
    assert_true(tensor >= 0);
    void *data = malloc(s->tensors[tensor].bytes);
    OK(dq_source_read_raw(s, tensor, 0, s->tensors[tensor].bytes, data));
    return data;
}

/* Case `stem` of a golden file against codes; scales within `band` relative. */
static void compare(dq_source *s, const char *stem, const dq_codes *codes, double band)
{
    uint8_t *expected = raw(s, find(s, stem, ".codes")), *got = host_copy(&codes->codes);
    int64_t wrong = 0;
    for (int64_t i = 0; i < codes->out * codes->in; i++) wrong += expected[i] != got[i];
    if (wrong) fail_msg("%s: %lld of %lld codes differ", stem, (long long)wrong, (long long)(codes->out * codes->in));
    float *scale = raw(s, find(s, stem, ".scale")), *zero = raw(s, find(s, stem, ".zero"));
    float *got_scale = host_copy(&codes->scale), *got_zero = host_copy(&codes->zero);
    for (int64_t i = 0; i < codes->out * codes->groups; i++) {
        if (!(fabs((double)got_scale[i] - scale[i]) <= band * fabs((double)scale[i])))
            fail_msg("%s: scale %lld is %.9g, not %.9g", stem, (long long)i, (double)got_scale[i], (double)scale[i]);
        if (got_zero[i] != zero[i])
            fail_msg("%s: zero %lld is %g, not %g", stem, (long long)i, (double)got_zero[i], (double)zero[i]);
    }
    free(expected), free(got), free(scale), free(zero), free(got_scale), free(got_zero);
}

/* Calls fn for every case; the name is its stem. */
static int for_each_case(fixture *f, const char *path, void (*fn)(fixture *f, dq_source *s, const char *stem))
{
    dq_source *s;
    int count = 0;
    OK(dq_source_open(&f->env, path, &s));
    for (int64_t i = 0; i < s->count; i++) {
        const char *name = s->tensors[i].name;
        size_t length = strlen(name);
        if (length < 6 || strcmp(name + length - 6, ".codes") != 0) continue;
        char stem[128];
        snprintf(stem, sizeof stem, "%.*s", (int)(length - 6), name);
        fn(f, s, stem);
        count++;
    }
    dq_source_free(s);
    return count;
}

static dq_tensor upload_named(fixture *f, dq_source *s, const char *name)
{
    dq_tensor t;
    int64_t i = dq_source_find(s, name);
    float *data = raw(s, i);
    OK(dq_tensor_from_host(f->dev, DQ_F32, s->tensors[i].shape[0], s->tensors[i].shape[1], data, &t));
    free(data);
    return t;
}

static void rtn_case(fixture *f, dq_source *s, const char *stem)
{
    int bits, symmetric, group, clip;
    assert_int_equal(sscanf(stem, "b%d.s%d.g%d.c%d", &bits, &symmetric, &group, &clip), 4);
    dq_weight_spec spec = {.bits = bits, .symmetric = symmetric, .group = group, .clip_search = clip};
    dq_tensor w = upload_named(f, s, "w");
    dq_codes codes;
    double error, damping;
    OK(dq_quantize_linear(&spec, &w, NULL, &codes, &error, &damping));
    compare(s, stem, &codes, 0);
    assert_true(error > 0 && error < 1.0);
    assert_true(damping == 0);
    dq_codes_free(&codes);
    dq_tensor_free(&w);
}

static dq_tensor golden_hessian(fixture *f, dq_source *s)
{
    int64_t i = dq_source_find(s, "x"), tokens = s->tensors[i].shape[0], n = s->tensors[i].shape[1];
    int8_t *x = raw(s, i);
    float *values = malloc((size_t)(tokens * n) * 4);
    for (int64_t k = 0; k < tokens * n; k++) values[k] = x[k];
    dq_tensor xt, h;
    OK(dq_tensor_from_host(f->dev, DQ_F32, tokens, n, values, &xt));
    OK(dq_tensor_alloc(f->dev, DQ_F32, n, n, &h));
    OK(dq_op_fill(0, &h));
    OK(dq_op_syrk(0.5, &xt, 1.0, &h));
    dq_tensor_free(&xt);
    free(values), free(x);
    return h;
}

static void gptq_case(fixture *f, dq_source *s, const char *stem)
{
    int bits, symmetric, group, clip, act_order, fixed;
    double percdamp;
    assert_int_equal(
        sscanf(stem, "b%d.s%d.g%d.c%d.a%d.t%d.d%lf", &bits, &symmetric, &group, &clip, &act_order, &fixed, &percdamp),
        7);
    dq_weight_spec spec = {.bits = bits,
                           .method = DQ_WEIGHT_GPTQ,
                           .symmetric = symmetric,
                           .group = group,
                           .clip_search = clip,
                           .act_order = act_order,
                           .static_groups = fixed,
                           .percdamp = percdamp};
    dq_tensor w = upload_named(f, s, "w"), h = golden_hessian(f, s);
    dq_codes codes;
    double error, damping;
    OK(dq_quantize_linear(&spec, &w, &h, &codes, &error, &damping));
    compare(s, stem, &codes, 3e-5);
    assert_true(damping == percdamp);
    float *expected = raw(s, find(s, stem, ".error"));
    if (!(fabs(error - expected[0]) <= 1e-3 * expected[0]))
        fail_msg("%s: error %.9g, not %.9g", stem, error, (double)expected[0]);
    free(expected);
    int64_t index = find(s, stem, ".index");
    assert_int_equal(index >= 0, !dq_tensor_is_empty(&codes.group_index));
    if (index >= 0) {
        int32_t *want = raw(s, index), *got = host_copy(&codes.group_index);
        assert_memory_equal(want, got, (size_t)codes.in * 4);
        free(want), free(got);
    }
    dq_codes_free(&codes);
    dq_tensor_free(&w);
    dq_tensor_free(&h);
}

static const struct {
    const char *name;
    int threads;
} DEVICES[] = {{"ref", 1},           {"cpu:simd=plain", 1}, {"cpu:simd=avx2", 2},
               {"cpu:simd=auto", 1}, {"cpu:simd=auto", 3},  {"fake", 1}};
enum { DEVICE_COUNT = sizeof DEVICES / sizeof *DEVICES };

static void rtn_codes_equal_numpy(void **state)
{
    (void)state;
    for (int i = 0; i < DEVICE_COUNT; i++) {
        fixture f;
        fixture_open(&f, DEVICES[i].name, DEVICES[i].threads);
        assert_int_equal(for_each_case(&f, "tests/data/quant/rtn.safetensors", rtn_case), 32);
        fixture_close(&f);
    }
}

static void gptq_codes_equal_pytorch(void **state)
{
    (void)state;
    for (int i = 0; i < DEVICE_COUNT; i++) {
        fixture f;
        fixture_open(&f, DEVICES[i].name, DEVICES[i].threads);
        assert_int_equal(for_each_case(&f, "tests/data/quant/gptq.safetensors", gptq_case), 43);
        fixture_close(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rtn_codes_equal_numpy),
        cmocka_unit_test(gptq_codes_equal_pytorch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
