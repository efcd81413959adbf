/* Packed linears and cached attention: every CPU level and every fake against the reference.
 * SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

#include "base/fp8.h"

/* ---- packed linear ---- */

typedef struct packed_case {
    int64_t rows, in, out, group;
    int bits;
    enum { MIDDLE, BYTES, MINIMUM } zeros;
    bool order;
    double beta;
    int math;
    bool half; /* F16 scales */
} packed_case;

/* Every column once in a mixed order; from `in` on, and here and there, nothing. */
static made *make_order(run_ctx *c, int64_t in, int64_t n)
{
    double *values = malloc((size_t)n * sizeof *values);
    for (int64_t j = 0; j < n; j++) values[j] = j < in ? (double)((j * 7 + 3) % in) : -1;
    for (int64_t j = in - 1; j > 0 && n > in; j -= 11) {
        values[n - 1 - j / 11 % (n - in)] = values[j];
        values[j] = -1;
    }
    made *m = make_values(c, DQ_I32, 1, n, values);
    free(values);
    return m;
}

static made *make_bytes(run_ctx *c, int64_t rows, int64_t cols, int64_t limit)
{
    double *values = malloc((size_t)(rows * cols) * sizeof *values + 8);
    for (int64_t i = 0; i < rows * cols; i++) values[i] = (double)next_below(c, limit);
    made *m = make_values(c, DQ_U8, rows, cols, values);
    free(values);
    return m;
}

static void packed_run(run_ctx *c, const void *params)
{
    const packed_case *p = params;
    int64_t n = p->order ? p->in + 5 : p->in, groups = (n + p->group - 1) / p->group, top = (1 << p->bits) - 1;
    made *x = make_random(c, DQ_F32, p->rows, p->in);
    made *codes = make_bytes(c, p->out, p->bits == 8 ? n : (n + 1) / 2, 256);
    double *s = random_values(c, p->out * groups);
    for (int64_t i = 0; i < p->out * groups; i++) s[i] /= (double)top;
    dq_dtype type = p->half ? DQ_F16 : DQ_F32;
    made *scale = make_values(c, type, p->out, groups, s);
    free(s);
    made *zero = NULL;
    if (p->zeros == BYTES) zero = make_bytes(c, p->out, groups, top + 1);
    if (p->zeros == MINIMUM) zero = make_random(c, type, p->out, groups);
    made *order = p->order ? make_order(c, p->in, n) : NULL;
    made *y = p->beta != 0 ? make_random(c, DQ_F32, p->rows, p->out) : make_constant(c, DQ_F32, p->rows, p->out, NAN);
    int math =
        p->math; /* rounded to bf16 or not; to 8 bits or not: of few rows nobody rounds to bf16 in place of 8 bits */
    if (c->alternate) math = p->math & DQ_MATH_INT8 && p->rows > 8 ? p->math & ~DQ_MATH_INT8 : DQ_MATH_F32;
    dq_packed_desc d = {p->bits, math, p->group, p->beta};
    must(dq_op_packed_linear(&d, &x->view, &codes->view, &scale->view, zero ? &zero->view : NULL,
                             order ? &order->view : NULL, &y->view));
    keep(c, "y", y, band_of("packed_linear", p->math & DQ_MATH_BF16 ? "bf16 math" : "f32"),
         sqrt((double)p->in) + fabs(p->beta));
}

static void packed_linear(void **state)
{
    (void)state;
    static const packed_case packed_cases[] = {
        {1, 8, 1, 8, 4, MIDDLE, false, 0, 0, false},
        {1, 128, 5, 128, 4, MIDDLE, false, 0, 0, false},
        {3, 576, 33, 64, 4, BYTES, false, 0, 0, false},
        {2, 131, 9, 32, 4, BYTES, false, 1, 0, false},
        {4, 200, 17, 8, 4, BYTES, false, -0.5, 0, false},
        {7, 300, 12, 64, 8, BYTES, false, 1, 0, false},
        {1, 77, 6, 24, 8, MIDDLE, false, 0, 0, false},
        {5, 96, 11, 16, 4, BYTES, true, 1, 0, false},
        {9, 260, 70, 264, 8, BYTES, true, 0, 0, false},
        {23, 64, 40, 64, 4, BYTES, false, 0, 0, false},
        {24, 130, 70, 40, 4, BYTES, false, 1, 0, false},
        {65, 576, 300, 64, 4, BYTES, true, 0, 0, false},
        {40, 99, 20, 104, 8, MIDDLE, false, 0, 0, false},
        {1, 576, 90, 64, 4, BYTES, false, 0, DQ_MATH_BF16, false},
        {50, 192, 90, 64, 4, BYTES, false, 1, DQ_MATH_BF16, false},
        /* rows of weights in parts, rows of x in blocks, many rows */
        {6, 1536, 37, 64, 4, BYTES, false, 0, 0, false},
        {12, 1000, 21, 40, 8, MINIMUM, true, 1, 0, true},
        {13, 771, 18, 16, 4, MIDDLE, false, -0.5, DQ_MATH_BF16, false},
        {210, 200, 70, 40, 4, BYTES, true, 1, 0, false},
        {201, 301, 19, 304, 8, MIDDLE, false, 0, 0, true},
        {201, 601, 9, 608, 4, BYTES, false, 0, 0, false},
        {300, 100, 75, 32, 4, BYTES, true, 1, DQ_MATH_BF16, false},
        /* as GGUF's blocks */
        {1, 576, 33, 32, 4, MIDDLE, false, 0, 0, true},
        {2, 576, 33, 32, 4, MINIMUM, false, 1, 0, true},
        {3, 1536, 21, 32, 4, MINIMUM, false, 0, 0, false},
        {8, 288, 37, 32, 8, MIDDLE, false, 0, 0, true},
        {5, 256, 19, 16, 8, MIDDLE, false, 0, 0, false},
        {6, 224, 19, 32, 8, MINIMUM, false, 0, 0, true},
        {30, 160, 50, 32, 4, MINIMUM, false, 0, 0, true},
        {25, 131, 50, 16, 8, MINIMUM, true, 1, 0, false},
        {1, 131, 50, 24, 8, BYTES, true, 1, 0, true},
        {40, 320, 90, 32, 4, MINIMUM, false, 1, DQ_MATH_BF16, true},
        /* x rounded to 8 bits */
        {1, 576, 37, 64, 4, MIDDLE, false, 0, DQ_MATH_INT8, false},
        {1, 32, 1, 32, 4, MIDDLE, false, 0, DQ_MATH_INT8, false},
        {2, 1536, 18, 32, 4, MINIMUM, false, 1, DQ_MATH_INT8, true},
        {3, 131, 9, 136, 4, BYTES, false, 0, DQ_MATH_INT8, false},
        {5, 260, 21, 64, 8, BYTES, false, -0.5, DQ_MATH_INT8, true},
        {8, 99, 20, 104, 8, MIDDLE, false, 0, DQ_MATH_INT8, false},
        {9, 224, 33, 32, 8, MINIMUM, false, 1, DQ_MATH_INT8, false},
        {23, 300, 19, 96, 4, BYTES, true, 0, DQ_MATH_INT8, false},
        {2, 200, 17, 40, 4, BYTES, false, 0, DQ_MATH_INT8, false}, /* groups across runs: not rounded */
        {30, 160, 50, 32, 4, MIDDLE, false, 0, DQ_MATH_INT8, true},
        {4, 160, 50, 32, 4, MIDDLE, false, 0, DQ_MATH_INT8 | DQ_MATH_BF16, true},
        {30, 160, 50, 32, 4, MIDDLE, false, 0, DQ_MATH_INT8 | DQ_MATH_BF16, true},
    };
    for (size_t i = 0; i < sizeof packed_cases / sizeof packed_cases[0]; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            const packed_case *p = &packed_cases[i];
            char label[120];
            snprintf(label, sizeof label, "packed_linear %d bits, %d x %d x %d by %d%s%s", p->bits, (int)p->rows,
                     (int)p->out, (int)p->in, (int)p->group,
                     p->zeros == MINIMUM ? ", minima"
                     : p->zeros          ? ", zeros"
                                         : "",
                     p->order ? ", order" : "");
            run_case_with(label, packed_run, p, layout, p->math != DQ_MATH_F32, NULL);
        }
    finish_cases();
}

/* The weights that the codes stand for, and nothing else, are multiplied: unit vectors give them back. */
static void packed_is_dequantized(void **state)
{
    (void)state;
    enum { IN = 48, OUT = 3, GROUP = 16, GROUPS = 3 };
    uint8_t codes[OUT * IN], packed[OUT * IN / 2] = {0};
    float scale[OUT * GROUPS], zero[OUT * GROUPS], x[IN * IN] = {0}, want[OUT * IN], got[IN * OUT];
    uint8_t zeros[OUT * GROUPS];
    for (int i = 0; i < OUT * IN; i++) {
        codes[i] = (uint8_t)(i * 11 % 16);
        packed[i / 2] |= (uint8_t)(codes[i] << (i & 1 ? 4 : 0));
    }
    for (int i = 0; i < OUT * GROUPS; i++) {
        scale[i] = 0.25f + (float)i;
        zero[i] = zeros[i] = (uint8_t)(i + 2);
    }
    for (int i = 0; i < IN; i++) x[i * IN + i] = 1;
    dq_tensor tx, tc, tp, ts, tz, tb, ty, tw;
    must(dq_tensor_from_host(reference, DQ_F32, IN, IN, x, &tx));
    must(dq_tensor_from_host(reference, DQ_U8, OUT, IN, codes, &tc));
    must(dq_tensor_from_host(reference, DQ_U8, OUT, IN / 2, packed, &tp));
    must(dq_tensor_from_host(reference, DQ_F32, OUT, GROUPS, scale, &ts));
    must(dq_tensor_from_host(reference, DQ_F32, OUT, GROUPS, zero, &tz));
    must(dq_tensor_from_host(reference, DQ_U8, OUT, GROUPS, zeros, &tb));
    must(dq_tensor_alloc(reference, DQ_F32, IN, OUT, &ty));
    must(dq_tensor_alloc(reference, DQ_F32, OUT, IN, &tw));
    dq_packed_desc d = {.bits = 4, .group = GROUP};
    dq_grid_desc grid = {.bits = 4, .group = GROUP};
    must(dq_op_packed_linear(&d, &tx, &tp, &ts, &tb, NULL, &ty));
    must(dq_op_dequantize_weight(&grid, &tc, &ts, &tz, NULL, &tw));
    must(dq_tensor_download(&ty, got));
    must(dq_tensor_download(&tw, want));
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++) assert_true(got[i * OUT + o] == want[o * IN + i]);
    dq_tensor *all[] = {&tx, &tc, &tp, &ts, &tz, &tb, &ty, &tw};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dq_tensor_free(all[i]);
}

/* ---- keys and values ---- */

typedef struct kv_case {
    int kind, bits;
    dq_dtype dtype;
    int heads, kv_heads, dim;
    int64_t slots;
    int rows;
    const int (*span)[2];
} kv_case;

static const int decode_spans[][2] = {{0, 1}, {3, 40}, {100, 77}, {0, 200}};
static const int prompt_spans[][2] = {{10, 1},  {10, 2}, {10, 3}, {10, 4}, {10, 5}, {60, 66}, {61, 66}, {62, 66},
                                      {63, 66}, {5, 3},  {4, 9},  {0, 70}, {0, 71}, {0, 72},  {0, 73},  {0, 74},
                                      {0, 75},  {0, 76}, {0, 77}, {0, 78}, {0, 79}, {0, 80},  {0, 81},  {0, 82}};

static void kv_run_case(run_ctx *c, const void *params)
{
    const kv_case *p = params;
    dq_kv_attention_desc d = {{p->kind, p->bits, p->kv_heads, p->dim}, p->heads, 0.6f};
    int64_t width = (int64_t)p->kv_heads * p->dim, stored = p->bits == 4 ? width / 2 : width;
    made *cache[2], *grid[2] = {NULL, NULL};
    double *slots = malloc((size_t)p->slots * sizeof *slots);
    for (int64_t i = 0; i < p->slots; i++) slots[i] = (double)((i * 3 + 1) % p->slots);
    made *slot = make_values(c, DQ_I32, 1, p->slots, slots);
    free(slots);
    for (int i = 0; i < 2; i++) {
        made *x = make_random(c, DQ_F32, p->slots, width);
        cache[i] = make_constant(c, p->dtype, p->slots, stored, 5);
        if (p->kind == DQ_KV_INT) grid[i] = make_constant(c, DQ_F32, p->slots, 2 * p->kv_heads, 3);
        must(dq_op_kv_store(&d.kv, &x->view, &slot->view, &cache[i]->view, grid[i] ? &grid[i]->view : NULL));
        keep(c, i ? "values" : "keys", cache[i], band_of("kv_store", "any"), 1);
        if (grid[i]) keep(c, "grid", grid[i], band_of("kv_store", "any"), 1);
    }
    double spans[2 * 32];
    for (int r = 0; r < p->rows; r++) {
        spans[r] = p->span[r][0];
        spans[p->rows + r] = p->span[r][1];
    }
    made *span = make_values(c, DQ_I32, 2, p->rows, spans);
    made *q = make_random(c, DQ_F32, p->rows, (int64_t)p->heads * p->dim);
    made *o = make_constant(c, DQ_F32, p->rows, (int64_t)p->heads * p->dim, NAN);
    must(dq_op_kv_attention(&d, &q->view, &cache[0]->view, grid[0] ? &grid[0]->view : NULL, &cache[1]->view,
                            grid[1] ? &grid[1]->view : NULL, &span->view, &o->view));
    keep(c, "o", o, band_of("kv_attention", "f32"), 1);
}

static void kv_attention(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int kind, bits;
        dq_dtype dtype;
    } formats[] = {{"f32", DQ_KV_FLOAT, 0, DQ_F32}, {"f16", DQ_KV_FLOAT, 0, DQ_F16}, {"bf16", DQ_KV_FLOAT, 0, DQ_BF16},
                   {"int8", DQ_KV_INT, 8, DQ_U8},   {"int4", DQ_KV_INT, 4, DQ_U8},   {"fp8", DQ_KV_FP8, 0, DQ_U8}};
    static const int shapes[][3] = {{1, 1, 2},   {9, 3, 64},  {4, 4, 20}, {8, 2, 34},
                                    {4, 2, 128}, {2, 1, 256}, {2, 2, 96}};
    for (size_t f = 0; f < sizeof formats / sizeof formats[0]; f++)
        for (size_t s = 0; s < sizeof shapes / sizeof shapes[0]; s++)
            for (int layout = 0; layout < LAYOUTS; layout++)
                for (int prompt = 0; prompt < 2; prompt++) {
                    kv_case p = {formats[f].kind,
                                 formats[f].bits,
                                 formats[f].dtype,
                                 shapes[s][0],
                                 shapes[s][1],
                                 shapes[s][2],
                                 200,
                                 prompt ? 24 : 4,
                                 prompt ? prompt_spans : decode_spans};
                    char label[100];
                    snprintf(label, sizeof label, "kv %s, %d heads of %d over %d, %s", formats[f].name, p.heads, p.dim,
                             p.kv_heads, prompt ? "prompt" : "decode");
                    run_case(label, kv_run_case, &p, layout);
                }
    finish_cases();
}

/* ---- refusals ---- */

static void refusals(void **state)
{
    (void)state;
    dq_tensor x, cache, grid, slot, span, o, order, codes, scale;
    const int32_t outside[] = {9, 0, 1, 1};
    must(dq_tensor_alloc(reference, DQ_F32, 2, 8, &x));
    must(dq_tensor_alloc(reference, DQ_F32, 2, 8, &o));
    must(dq_op_fill(1, &x));
    must(dq_tensor_alloc(reference, DQ_U8, 4, 4, &cache));
    must(dq_tensor_alloc(reference, DQ_F32, 4, 4, &grid));
    must(dq_tensor_from_host(reference, DQ_I32, 1, 2, outside, &slot));
    must(dq_tensor_from_host(reference, DQ_I32, 2, 2, outside, &span));
    dq_kv_attention_desc d = {{DQ_KV_INT, 4, 2, 4}, 2, 1};
    assert_int_equal(dq_op_kv_store(&d.kv, &x, &slot, &cache, &grid), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "9"));
    assert_int_equal(dq_op_kv_attention(&d, &x, &cache, &grid, &cache, &grid, &span, &o), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "9..10 of 4"));
    assert_int_equal(dq_op_kv_store(&d.kv, &x, &slot, &cache, NULL), DQ_E_INVALID); /* codes without a grid */
    d.kv.bits = 5;
    assert_int_equal(dq_op_kv_store(&d.kv, &x, &slot, &cache, &grid), DQ_E_INVALID);
    must(dq_tensor_from_host(reference, DQ_I32, 1, 4, outside, &order));
    must(dq_tensor_alloc(reference, DQ_U8, 8, 2, &codes));
    must(dq_tensor_alloc(reference, DQ_F32, 8, 1, &scale));
    dq_packed_desc p = {.bits = 4, .group = 8};
    assert_int_equal(dq_op_packed_linear(&p, &x, &codes, &scale, NULL, &order, &o), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "order[0] is 9"));
    p.group = 12;
    assert_int_equal(dq_op_packed_linear(&p, &x, &codes, &scale, NULL, &order, &o), DQ_E_INVALID);
    dq_tensor *all[] = {&x, &o, &cache, &grid, &slot, &span, &order, &codes, &scale};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) dq_tensor_free(all[i]);
}

/* Storage of 8-bit floats: every code comes back, values between go to the nearest. */
static void fp8(void **state)
{
    (void)state;
    for (int code = 0; code < 256; code++) {
        float x = dq_e4m3_to_f32((uint8_t)code);
        if ((code & 0x7f) == 0x7f)
            assert_true(isnan(x));
        else
            assert_int_equal(dq_f32_to_e4m3(x), code);
    }
    assert_true(dq_e4m3_to_f32(0x7e) == 448 && dq_e4m3_to_f32(1) == 0x1p-9f && dq_e4m3_to_f32(0x38) == 1);
    assert_int_equal(dq_f32_to_e4m3(1e9f), 0x7e);
    assert_int_equal(dq_f32_to_e4m3(-INFINITY), 0xfe);
    assert_int_equal(dq_f32_to_e4m3(NAN) & 0x7f, 0x7f);
    for (int code = 0; code < 0x7e; code++) { /* halfway: to even */
        float mid = (dq_e4m3_to_f32((uint8_t)code) + dq_e4m3_to_f32((uint8_t)(code + 1))) / 2;
        assert_int_equal(dq_f32_to_e4m3(mid), code & 1 ? code + 1 : code);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_linear), cmocka_unit_test(packed_is_dequantized),
        cmocka_unit_test(kv_attention),  cmocka_unit_test(refusals),
        cmocka_unit_test(fp8),
    };
    return cmocka_run_group_tests_name("conformance: generation", tests, open_all, close_all);
}
