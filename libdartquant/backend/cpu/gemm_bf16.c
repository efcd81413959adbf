/* Packing to bf16 tiles, and their product with AVX512_BF16's dot products. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/gemm_packed.h"

#include <immintrin.h>
#include <string.h>

#include "backend/cpu/transpose_avx512.h"
#include "base/half.h"

/* ---- packing ---- */

static float element(const dq_pack_source *s, int64_t row, int64_t k)
{
    int64_t r = s->depth_first ? k : row, c = s->depth_first ? row : k;
    if (s->v->dtype == DQ_F32) return dq_view_f32(s->v, r)[c];
    uint16_t h = *(const uint16_t *)dq_view_at(s->v, r, c, 2);
    return s->v->dtype == DQ_BF16 ? dq_bf16_to_f32(h) : dq_f16_to_f32(h);
}

/* Up to 32 consecutive elements from p as bf16. */
static __m512i load_32(const void *p, dq_dtype dtype, int64_t n)
{
    __mmask32 all = n >= 32 ? 0xffffffffu : (1u << n) - 1u;
    if (dtype == DQ_BF16) return _mm512_maskz_loadu_epi16(all, p);
    if (dtype == DQ_F16) {
        __m512i h = _mm512_maskz_loadu_epi16(all, p);
        __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(h)),
               high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(h, 1));
        return (__m512i)_mm512_cvtne2ps_pbh(high, low);
    }
    const float *x = p;
    __m512 lo = _mm512_maskz_loadu_ps((__mmask16)all, x), hi = _mm512_maskz_loadu_ps((__mmask16)(all >> 16), x + 16);
    return (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
}

/* Element pairs of 16 rows at two neighbouring depths, one row per 32-bit lane: rows [row, row + n) of a depth-first fp32
 * view, depths k and k + 1. */
static __m512i load_pairs(const dq_pack_source *s, int64_t row, int64_t n, int64_t k)
{
    __mmask16 rows = (__mmask16)((1u << n) - 1u);
    __m512 x = _mm512_maskz_loadu_ps(rows, dq_view_f32(s->v, k) + row), y = _mm512_setzero_ps();
    if (k + 1 < s->depth) y = _mm512_maskz_loadu_ps(rows, dq_view_f32(s->v, k + 1) + row);
    __m512i lo = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    __m512i hi = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(y));
    return _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16));
}

/* The 16 x 32 block of rows from s->row0 + row and depth from k0: row by row, or, when true is returned, as 16 vectors of
 * pairs (which is the layout of B). */
static bool load_block(const dq_pack_source *s, int64_t row, int64_t k0, __m512i block[16])
{
    int64_t rows = dq_max64(0, dq_min64(DQ_PANEL, s->rows - row)), n = dq_min64(DQ_TILE_DEPTH, s->depth - k0);
    int64_t first = s->row0 + row;
    if (!s->depth_first) {
        int64_t size = s->v->dtype == DQ_F32 ? 4 : 2;
        for (int64_t i = 0; i < 16; i++)
            block[i] =
                i < rows ? load_32(dq_view_at(s->v, first + i, k0, size), s->v->dtype, n) : _mm512_setzero_si512();
        return false;
    }
    if (s->depth_first && s->v->dtype == DQ_F32) {
        for (int64_t k = 0; k < 16; k++)
            block[k] = 2 * k < n ? load_pairs(s, first, rows, k0 + 2 * k) : _mm512_setzero_si512();
        return true;
    }
    uint16_t t[16][32];
    memset(t, 0, sizeof t);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < n; k++) t[i][k] = dq_f32_to_bf16(element(s, first + i, k0 + k));
    for (int i = 0; i < 16; i++) block[i] = _mm512_loadu_si512(t[i]);
    return false;
}

void dq_pack_a_bf16(const dq_pack_source *s, int64_t panel, uint16_t *tiles)
{
    __m512i block[16];
    for (int64_t k = 0; k < s->depth; k += DQ_TILE_DEPTH, tiles += DQ_TILE_ELEMENTS) {
        if (load_block(s, panel * DQ_PANEL, k, block)) dq_transpose_16(block);
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(tiles + i * DQ_TILE_DEPTH, block[i]);
    }
}

void dq_pack_b_bf16(const dq_pack_source *s, int64_t panel, uint16_t *tiles)
{
    __m512i block[16];
    for (int64_t k = 0; k < s->depth; k += DQ_TILE_DEPTH, tiles += DQ_TILE_ELEMENTS) {
        if (!load_block(s, panel * DQ_PANEL, k, block))
            dq_transpose_16(block); /* a 32-bit element is a pair of depth */
        for (int i = 0; i < 16; i++) _mm512_storeu_si512(tiles + i * DQ_TILE_DEPTH, block[i]);
    }
}

/* ---- product ---- */

/* 8 rows of an A panel times a pair of B panels: 16 sums in registers. */
static void eight_rows(const uint16_t *a, const uint16_t *b0, const uint16_t *b1, int64_t tiles, float *out)
{
    __m512 lo[8], hi[8];
    for (int r = 0; r < 8; r++) lo[r] = hi[r] = _mm512_setzero_ps();
    for (int64_t t = 0; t < tiles; t++, a += DQ_TILE_ELEMENTS, b0 += DQ_TILE_ELEMENTS, b1 += DQ_TILE_ELEMENTS) {
        for (int k = 0; k < 16; k++) {
            __m512bh x = (__m512bh)_mm512_loadu_si512(b0 + 32 * k), y = (__m512bh)_mm512_loadu_si512(b1 + 32 * k);
            for (int r = 0; r < 8; r++) {
                int32_t pair;
                memcpy(&pair, a + r * DQ_TILE_DEPTH + 2 * k, sizeof pair);
                __m512bh s = (__m512bh)_mm512_set1_epi32(pair);
                lo[r] = _mm512_dpbf16_ps(lo[r], s, x);
                hi[r] = _mm512_dpbf16_ps(hi[r], s, y);
            }
        }
    }
    for (int r = 0; r < 8; r++) {
        _mm512_storeu_ps(out + r * DQ_PAIR, lo[r]);
        _mm512_storeu_ps(out + r * DQ_PAIR + 16, hi[r]);
    }
}

static void block(const uint16_t *a, const uint16_t *b, int64_t tiles, int64_t rows, int64_t cols, float alpha,
                  float beta, float *c, int64_t ldc)
{
    int64_t panel = tiles * DQ_TILE_ELEMENTS;
    float out[8 * DQ_PAIR];
    for (int64_t j = 0; j < cols; j += DQ_PAIR) {
        const uint16_t *b0 = b + j / DQ_PANEL * panel;
        for (int64_t i = 0; i < rows; i += 8) {
            eight_rows(a + i / DQ_PANEL * panel + i % DQ_PANEL * DQ_TILE_DEPTH, b0, b0 + panel, tiles, out);
            for (int64_t r = 0; r < 8 && i + r < rows; r++)
                dq_packed_put(out + r * DQ_PAIR, dq_min64(DQ_PAIR, cols - j), alpha, beta, c + (i + r) * ldc + j);
        }
    }
}

const dq_packed_kernels dq_packed_bf16 = {dq_pack_a_bf16, dq_pack_b_bf16, block};
#endif
