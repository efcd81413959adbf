/* Flash-style attention with AMX: the transposed form of attention_kernel.h on tiles. Scores S^T = K Q^T and output
 * O^T += V^T P^T are products of packed bf16 panels (gemm_packed.h): K and V^T are A, packed once per key/value head; Q^T
 * and P^T are B, and the softmax writes P^T in B's layout directly. Softmax and sums are fp32.
 * SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/attention.h"

#include "backend/cpu/amx.h"
#include "backend/cpu/attention_mask.h"
#include "backend/cpu/gemm_packed.h"
#include "backend/cpu/transpose_avx512.h"
#include "backend/cpu/vec_exp.h"

enum { STRIP = DQ_ATTENTION_AMX_STRIP, NV = STRIP / VF, KEYS = DQ_ATTENTION_AMX_KEYS };

typedef struct strip {
    uint16_t *q; /* [STRIP / 16] B panels of depth dim */
    uint16_t *p; /* [STRIP / 16] B panels of depth KEYS */
    float *o;    /* [dim, padded][STRIP] */
    float *s;    /* [KEYS][STRIP] */
    float *max, *sum, *factor;
} strip;

/* out[32][32] (+)= A B for pairs of panels `a_panel` and `b_panel` elements apart; out has STRIP columns. */
static inline void pair_product(const uint16_t *a, int64_t a_panel, const uint16_t *b, int64_t b_panel, int64_t tiles,
                                bool add, float *out)
{
    enum { ROW = STRIP * sizeof(float) };
    float *low = out + DQ_PANEL * STRIP;
    if (add) {
        _tile_loadd(0, out, ROW);
        _tile_loadd(1, out + DQ_PANEL, ROW);
        _tile_loadd(2, low, ROW);
        _tile_loadd(3, low + DQ_PANEL, ROW);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t t = 0; t < tiles; t++, a += DQ_TILE_ELEMENTS, b += DQ_TILE_ELEMENTS) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + b_panel, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + a_panel, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, ROW);
    _tile_stored(1, out + DQ_PANEL, ROW);
    _tile_stored(2, low, ROW);
    _tile_stored(3, low + DQ_PANEL, ROW);
}

/* Rows of A (a multiple of 32) times the strip's B panels. */
static void product(const uint16_t *a, int64_t a_panel, int64_t rows, const uint16_t *b, int64_t b_panel, int64_t tiles,
                    bool add, float *out)
{
    dq_amx_barrier();
    for (int64_t r = 0; r < rows; r += DQ_PAIR)
        for (int64_t c = 0; c < STRIP; c += DQ_PAIR)
            pair_product(a + r / DQ_PANEL * a_panel, a_panel, b + c / DQ_PANEL * b_panel, b_panel, tiles, add,
                         out + r * STRIP + c);
}

/* Scores of `keys` keys (a multiple of 32) to probabilities under the running maximum; says whether it rose. */
static bool softmax(float scale, int64_t keys, strip *w)
{
    /* Of two vectors of 16 bf16, side by side, to pairs. */
    static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i interleave = _mm512_loadu_si512(order);
    vf factor_of = vf_set1(scale);
    bool moved = false;
    for (int v = 0; v < NV; v++) {
        const float *s = w->s + v * VF;
        uint16_t *p = w->p + v * (KEYS / DQ_TILE_DEPTH) * DQ_TILE_ELEMENTS;
        vf before = vf_load(w->max + v * VF), t0 = before, t1 = before;
        for (int64_t j = 0; j < keys; j += 2) {
            t0 = vf_max(vf_load(s + j * STRIP), t0);
            t1 = vf_max(vf_load(s + (j + 1) * STRIP), t1);
        }
        vf top = vf_max(t0, t1), shift = vf_zero() - top * factor_of,
           factor = vf_exp2_coarse((before - top) * factor_of);
        vf sum0 = vf_load(w->sum + v * VF) * factor, sum1 = vf_zero();
        vf_store(w->max + v * VF, top);
        vf_store(w->factor + v * VF, factor);
        moved = moved || !(vf_hmin(factor) >= 1.0f);
        for (int64_t j = 0; j < keys; j += 2) {
            vf p0 = vf_exp2_coarse(vf_madd(vf_load(s + j * STRIP), factor_of, shift));
            vf p1 = vf_exp2_coarse(vf_madd(vf_load(s + (j + 1) * STRIP), factor_of, shift));
            sum0 += p0;
            sum1 += p1;
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(p1, p0);
            _mm512_storeu_si512(p + j * DQ_PANEL, _mm512_permutexvar_epi16(interleave, both));
        }
        vf_store(w->sum + v * VF, sum0 + sum1);
    }
    return moved;
}

static void shrink(int64_t rows, strip *w)
{
    for (int v = 0; v < NV; v++) {
        vf factor = vf_load(w->factor + v * VF);
        for (int64_t c = 0; c < rows; c++) {
            float *o = w->o + c * STRIP + v * VF;
            vf_store(o, vf_load(o) * factor);
        }
    }
}

static void start(const dq_attention_block *b, int64_t q0, int64_t n, strip *w)
{
    dq_view rows = {.mem = (void *)(uintptr_t)(b->q + (q0 - b->first) * b->q_stride), .rows = n, .cols = b->dim};
    rows.stride = b->q_stride;
    dq_pack_source s = {&rows, false, 0, n, b->dim};
    for (int64_t p = 0; p < STRIP / DQ_PANEL; p++) dq_pack_b_bf16(&s, p, dq_packed_at(w->q, p * DQ_PANEL, b->dim));
    memset(w->o, 0, sizeof(float) * (size_t)(dq_attention_amx_dim(b->dim) * STRIP));
    for (int64_t i = 0; i < STRIP; i += VF) {
        vf_store(w->max + i, vf_set1(DQ_ATTENTION_NONE));
        vf_store(w->sum + i, vf_zero());
    }
}

/* Queries [i, i + 16) of the strip, columns [c, c + 16) of the head: a tile of O, divided by the sums and transposed. */
static void finish_tile(const dq_attention_block *b, float *row, int64_t i, int64_t c, int64_t n, const strip *w)
{
    vf r = vf_set1(1.0f) / vf_load(w->sum + i);
    __m512i t[16];
    for (int k = 0; k < 16; k++) t[k] = _mm512_castps_si512(vf_load(w->o + (c + k) * STRIP + i) * r);
    dq_transpose_16(t);
    for (int64_t k = 0; k < dq_min64(16, n - i); k++, row += b->o_stride)
        vf_store_n(row + c, _mm512_castsi512_ps(t[k]), dq_min64(16, b->dim - c));
}

static void finish(const dq_attention_block *b, int64_t q0, int64_t n, strip *w)
{
    for (int64_t i = 0; i < n; i += 16)
        for (int64_t c = 0; c < b->dim; c += 16) finish_tile(b, b->o + (q0 - b->first + i) * b->o_stride, i, c, n, w);
}

static void attend_strip(const dq_attention_block *b, int64_t q0, int64_t n, strip *w)
{
    const uint16_t *k = b->k, *v = b->v;
    int64_t end = q0 + n, begin = 0, dim_tiles = dq_packed_tiles(b->dim), key_tiles = dq_packed_tiles(b->seqlen);
    int64_t k_panel = dim_tiles * DQ_TILE_ELEMENTS, v_panel = key_tiles * DQ_TILE_ELEMENTS;
    int64_t p_panel = KEYS / DQ_TILE_DEPTH * DQ_TILE_ELEMENTS, dim = dq_attention_amx_dim(b->dim);
    if (b->window && q0 - b->window + 1 > 0) begin = (q0 - b->window + 1) / DQ_PAIR * DQ_PAIR;
    start(b, q0, n, w);
    for (int64_t k0 = begin; k0 < end; k0 += KEYS) {
        int64_t keys = dq_min64(KEYS, dq_ceil_div(end - k0, DQ_PAIR) * DQ_PAIR);
        product(k + k0 / DQ_PANEL * k_panel, k_panel, keys, w->q, k_panel, dim_tiles, false, w->s);
        if (k0 + keys - 1 > q0 || (b->window && k0 <= q0 + STRIP - 1 - b->window))
            attention_mask(b, q0, k0, keys, NV, w->s);
        if (softmax(b->scale, keys, w)) shrink(b->dim, w);
        product(v + k0 / DQ_TILE_DEPTH * DQ_TILE_ELEMENTS, v_panel, dim, w->p, p_panel, keys / DQ_TILE_DEPTH, true,
                w->o);
    }
    finish(b, q0, n, w);
}

void dq_attend_amx(const dq_attention_block *b)
{
    int64_t dim = dq_attention_amx_dim(b->dim);
    float *p = b->scratch;
    strip w = {.o = p, .s = p + dim * STRIP};
    w.max = w.s + KEYS * STRIP;
    w.sum = w.max + STRIP;
    w.factor = w.sum + STRIP;
    w.q = (uint16_t *)(void *)(w.factor + STRIP);
    w.p = w.q + dim * STRIP;
    dq_amx_begin();
    for (int64_t i = 0; i < b->count; i += STRIP) attend_strip(b, b->first + i, dq_min64(STRIP, b->count - i), &w);
    dq_amx_end();
}

void dq_attend_amx_pack(const dq_view *k, const dq_view *v, uint16_t *k_panels, uint16_t *v_panels)
{
    dq_pack_source ks = {k, false, 0, k->rows, k->cols}, vs = {v, true, 0, v->cols, v->rows};
    for (int64_t r = 0; k_panels && r < k->rows; r += DQ_PAIR) {
        dq_pack_a_bf16(&ks, r / DQ_PANEL, dq_packed_at(k_panels, r, k->cols));
        dq_pack_a_bf16(&ks, r / DQ_PANEL + 1, dq_packed_at(k_panels, r + DQ_PANEL, k->cols));
    }
    for (int64_t c = 0; v_panels && c < v->cols; c += DQ_PAIR) {
        dq_pack_a_bf16(&vs, c / DQ_PANEL, dq_packed_at(v_panels, c, v->rows));
        dq_pack_a_bf16(&vs, c / DQ_PANEL + 1, dq_packed_at(v_panels, c + DQ_PANEL, v->rows));
    }
}
#endif
