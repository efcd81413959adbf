/* Exact products of integers in whole models: where they take the place of products of floats, that they are the same numbers,
 * and what happens when memory runs out. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "io/formats.h"
#include "limited_heap.h"
#include "models.h"
#include "ok.h"

enum { TOKENS = 24, WITH = DQ_MATH_F32 | DQ_MATH_CODES };

typedef struct scheme_case {
    int w_bits;
    bool w_symmetric;
    int64_t w_group;
    bool g_idx;
    int a_bits;
    bool a_symmetric;
    int64_t a_group;
    double clip;
    bool integers;
} scheme_case;

static dq_scheme scheme_of(const scheme_case *p)
{
    dq_scheme s = plain_scheme();
    s.w.bits = p->w_bits;
    s.w.group = p->w_group;
    s.w.symmetric = p->w_symmetric;
    s.w.vocab_dtype = DQ_F32;
    s.a = (dq_act_spec){.bits = p->a_bits, .group = p->a_group, .symmetric = p->a_symmetric, .clip = p->clip};
    return s;
}

static dq_model *quantized(fixture *f, const char *name, const scheme_case *p)
{
    dq_model *base = open_tiny(f, name), *out;
    dq_scheme scheme = scheme_of(p);
    dq_source *store = quantize_to_memory(f, base, p->w_bits, p->w_symmetric, p->w_group, p->g_idx);
    OK(dq_model_derive_quantized(base, store, &scheme, &out));
    dq_model_release(base);
    return out;
}

static void tokens_of(const dq_model *m, int32_t *ids)
{
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * i * 7 + i * 13 + 5) % dq_model_arch(m)->vocab);
}

/* Which linears of layer 0 would be integers. */
static unsigned integers_of(dq_model *m, int math)
{
    dq_block_spec spec;
    dq_block b;
    unsigned mask = 0;
    OK(dq_model_block_spec(m, TOKENS, math, &spec));
    assert_int_equal(spec.math, DQ_MATH_F32);
    OK(dq_model_load_forward(m, 0, &spec, &b));
    for (int i = 0; i < DQ_BLOCK_LINEARS; i++) {
        if (!dq_arch_has(dq_model_arch(m), (dq_role)i)) continue;
        assert_true(dq_linear_is_int8(&b.linear[i]) == dq_tensor_is_empty(&b.linear[i].weight));
        if (dq_linear_is_int8(&b.linear[i])) mask |= 1u << i;
    }
    dq_block_free(&b);
    dq_block_spec_clear(&spec);
    return mask;
}

static const scheme_case cases[] = {
    {4, true, -1, false, 4, true, -1, 1.0, true},    {8, false, -1, false, 8, false, -1, 0.9, true},
    {3, true, -1, true, 8, false, -1, 1.0, true},    {4, true, -1, false, 16, true, -1, 1.0, false},
    {4, true, 16, false, 4, true, -1, 1.0, false},   {4, true, -1, false, 4, true, 16, 1.0, false},
    {4, false, -1, false, 9, false, -1, 1.0, false},
};

static void take_their_place(void **state)
{
    (void)state;
    static const char *const devices[] = {"ref", "cpu", "fake"};
    for (size_t d = 0; d < sizeof devices / sizeof *devices; d++) {
        fixture f;
        fixture_open(&f, devices[d], 2);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            dq_model *m = quantized(&f, "gqa", &cases[i]);
            bool wanted = cases[i].integers && dq_device_has_integers(f.dev);
            assert_int_equal(integers_of(m, WITH), wanted ? (1u << DQ_BLOCK_LINEARS) - 1 : 0);
            assert_int_equal(integers_of(m, DQ_MATH_F32), 0);
            dq_model_release(m);
        }
        fixture_close(&f);
    }
}

/* ---- the same numbers ---- */

static double worst(const dq_tensor *a, const dq_tensor *b)
{
    float *x = host_copy(a), *y = host_copy(b);
    double most = 0, size = 0;
    for (int64_t i = 0; i < a->view.rows * a->view.cols; i++) {
        most = fmax(most, fabs((double)x[i] - (double)y[i]));
        size = fmax(size, fabs((double)x[i]));
    }
    free(x);
    free(y);
    assert_true(size > 0);
    return most / size;
}

/* Each stage from the same input, so that no rounding to codes can fall to another side. */
static void compare_stages(dq_model *m)
{
    dq_block_spec spec[2];
    dq_block b[2];
    dq_workspace ws[2];
    dq_tensor h[2];
    int32_t ids[TOKENS];
    bool gated = dq_arch_is_gated(dq_model_arch(m));
    tokens_of(m, ids);
    for (int i = 0; i < 2; i++) {
        OK(dq_model_block_spec(m, TOKENS, i ? WITH : DQ_MATH_F32, &spec[i]));
        OK(dq_model_load_forward(m, 1, &spec[i], &b[i]));
        OK(dq_workspace_alloc(dq_model_device(m), &spec[i], TOKENS, &ws[i]));
        OK(dq_tensor_alloc(dq_model_device(m), DQ_F32, TOKENS, spec[i].hidden, &h[i]));
        OK(dq_model_embed(m, ids, TOKENS, TOKENS, &h[i]));
        OK(dq_block_attn_in(&spec[i], &b[i], &h[i], &ws[i]));
        OK(dq_block_attn(&spec[i], &b[i], &ws[i]));
    }
    assert_true(dq_linear_is_int8(&b[1].linear[DQ_BLOCK_Q]) && !dq_linear_is_int8(&b[0].linear[DQ_BLOCK_Q]));
    assert_true(worst(&ws[0].q, &ws[1].q) < 1e-6 && worst(&ws[0].k, &ws[1].k) < 1e-6);
    assert_true(worst(&ws[0].v, &ws[1].v) < 1e-6 && worst(&ws[0].a, &ws[1].a) < 2e-6);
    for (int i = 0; i < 2; i++) OK(dq_block_attn_out(&spec[i], &b[i], &ws[0].a, &ws[i], &h[i]));
    assert_true(worst(&h[0], &h[1]) < 1e-6);
    for (int i = 0; i < 2; i++) {
        OK(dq_block_mlp_in(&spec[i], &b[i], &h[0], &ws[i]));
        OK(dq_block_mlp(&spec[i], &b[i], &ws[i]));
    }
    assert_true(worst(&ws[0].gate, &ws[1].gate) < 2e-6);
    if (gated) assert_true(worst(&ws[0].up, &ws[1].up) < 1e-6);
    OK(dq_op_convert(&ws[0].gate, &ws[1].gate));
    OK(dq_op_convert(&h[0], &h[1]));
    for (int i = 0; i < 2; i++) OK(dq_block_mlp_out(&spec[i], &b[i], &ws[i], &h[i]));
    assert_true(worst(&h[0], &h[1]) < 1e-6);
    for (int i = 0; i < 2; i++) {
        dq_tensor_free(&h[i]);
        dq_workspace_free(&ws[i]);
        dq_block_free(&b[i]);
        dq_block_spec_clear(&spec[i]);
    }
}

static void same_numbers_stage_by_stage(void **state)
{
    (void)state;
    static const char *const names[] = {"gqa", "bias", "opt", "qwen3"}; /* biases, layer norms, no gate, head norms */
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        fixture f;
        fixture_open(&f, "ref", 1);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            if (!cases[i].integers) continue;
            dq_model *m = quantized(&f, names[n], &cases[i]);
            compare_stages(m);
            dq_model_release(m);
        }
        fixture_close(&f);
    }
}

/* dq_block_forward is its stages; of two passes as a whole all but a few codes are the same. */
static void whole_passes_agree(void **state)
{
    (void)state;
    static const char *const names[] = {"gqa", "opt", "window"};
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        fixture f;
        int32_t ids[TOKENS];
        fixture_open(&f, "ref", 1);
        dq_model *m = quantized(&f, names[n], &cases[1]);
        size_t count = (size_t)(TOKENS * dq_model_arch(m)->vocab);
        float *floats = malloc(count * sizeof *floats), *integers = malloc(count * sizeof *integers);
        double difference = 0, size = 0;
        tokens_of(m, ids);
        OK(dq_model_forward_logits(m, ids, TOKENS, DQ_MATH_F32, floats));
        OK(dq_model_forward_logits(m, ids, TOKENS, WITH, integers));
        for (size_t i = 0; i < count; i++) {
            difference += pow((double)integers[i] - (double)floats[i], 2);
            size += pow((double)floats[i], 2);
        }
        print_message("%s: relative difference of the logits %.2g\n", names[n], sqrt(difference / size));
        assert_true(difference > 0 && sqrt(difference / size) < 5e-3);
        free(floats);
        free(integers);
        dq_model_release(m);
        fixture_close(&f);
    }
}

/* ---- models that are partly so ---- */

/* The tensors of `from` whose names contain `part`, or do not. */
static void copy_some(dq_sink *sink, dq_source *from, const char *part, bool contain)
{
    for (int64_t t = 0; t < from->count; t++) {
        const dq_tensor_info *info = &from->tensors[t];
        if ((strstr(info->name, part) != NULL) != contain) continue;
        void *data = malloc((size_t)info->bytes);
        OK(dq_source_read_raw(from, t, 0, info->bytes, data));
        OK(sink->ops->add(sink, info->name, info->dtype, info->ndim, info->shape, data, info->bytes));
        free(data);
    }
}

/* Groups in one of q, k and v: all three are floats, the rest is not. */
static void one_input_one_kind(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "ref", 1);
    dq_model *base = open_tiny(&f, "gqa"), *m;
    dq_source *whole = quantize_to_memory(&f, base, 4, true, -1, false), *grouped, *mixed;
    grouped = quantize_to_memory(&f, base, 4, true, 16, false);
    dq_sink *sink;
    OK(dq_memory_sink(&f.env, &sink));
    copy_some(sink, whole, "k_proj", false);
    copy_some(sink, grouped, "k_proj", true);
    OK(sink->ops->finish(sink));
    OK(dq_memory_source(sink, &mixed));
    sink->ops->free(sink);
    dq_source_free(whole);
    dq_source_free(grouped);
    dq_scheme scheme = scheme_of(&cases[0]);
    OK(dq_model_derive_quantized(base, mixed, &scheme, &m));
    dq_model_release(base);
    unsigned attention = 1u << DQ_BLOCK_Q | 1u << DQ_BLOCK_K | 1u << DQ_BLOCK_V;
    assert_int_equal(integers_of(m, WITH), ((1u << DQ_BLOCK_LINEARS) - 1) & ~attention);
    int32_t ids[TOKENS];
    float *logits = malloc((size_t)(TOKENS * dq_model_arch(m)->vocab) * sizeof *logits);
    tokens_of(m, ids);
    OK(dq_model_forward_logits(m, ids, TOKENS, WITH, logits));
    free(logits);
    dq_model_release(m);
    fixture_close(&f);
}

/* ---- no memory ---- */

static void every_allocation_may_fail(void **state)
{
    (void)state;
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {limited_alloc, limited_free, NULL}};
    fixture f;
    int32_t ids[TOKENS];
    fixture_open_with(&f, &services, "ref", 1);
    dq_model *m = quantized(&f, "bias", &cases[1]);
    float *logits = malloc((size_t)(TOKENS * dq_model_arch(m)->vocab) * sizeof *logits);
    tokens_of(m, ids);
    OK(dq_model_forward_logits(m, ids, TOKENS, WITH, logits)); /* anything that stays is there now */
    uint64_t before = atomic_load(&f.env.memory_now);
    int64_t n = 0;
    for (bool worked = false; !worked; n++) {
        allowed = n;
        dq_status status = dq_model_forward_logits(m, ids, TOKENS, WITH, logits);
        allowed = INT64_MAX;
        worked = status == DQ_OK;
        if (!worked && status != DQ_E_NOMEM) fail_msg("%lld: %s", (long long)n, dq_error_text());
        assert_int_equal(atomic_load(&f.env.memory_now), before);
    }
    assert_true(n > 100);
    free(logits);
    dq_model_release(m);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(take_their_place),          cmocka_unit_test(same_numbers_stage_by_stage),
        cmocka_unit_test(whole_passes_agree),        cmocka_unit_test(one_input_one_kind),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
