/* Panels of bf16 terms and their products with AMX, for passes that fit rotations. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/fit.h"

#include <immintrin.h>
#include <string.h>

#include "backend/cpu/amx.h"
#include "backend/cpu/gemm_packed.h"
#include "backend/cpu/transpose_avx512.h"

static uint16_t *tile_at(const dq_fit_panels *p, int term, int64_t panel, int64_t tile)
{
    return p->at + term * p->term + panel * p->panel + tile * DQ_TILE_ELEMENTS;
}

/* ---- packing ---- */

enum { AHEAD = 8 }; /* rows fetched before their turn */

static __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1u); }

/* Up to 16 values from column c on; n > c are in the row. */
static __m512 load_16(const void *row, dq_dtype dtype, int64_t c, int64_t n)
{
    __mmask16 m = first_lanes(n - c);
    if (dtype == DQ_F32) return _mm512_maskz_loadu_ps(m, (const float *)row + c);
    __m256i half = _mm256_maskz_loadu_epi16(m, (const uint16_t *)row + c);
    if (dtype == DQ_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static __m512 bf16_values(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }

/* Rows of a head lie far apart: the processor does not foresee them. */
static void fetch_row(const dq_view *v, int64_t r, int64_t size)
{
    if (r >= v->rows) return;
    const char *row = dq_view_at(v, r, 0, size);
    for (int64_t at = 0; at < v->cols * size; at += 64) _mm_prefetch(row + at, _MM_HINT_T0);
}

/* The terms of one row, from `out` in the first one's panels on. Each is rounded from what the terms before it left. */
static void pack_row(const void *row, dq_dtype dtype, int64_t cols, const dq_fit_panels *to, uint16_t *out)
{
    for (int64_t c = 0; c < cols; c += DQ_TILE_DEPTH, out += DQ_TILE_ELEMENTS) {
        if (dtype == DQ_BF16 && to->terms == 1) {
            __mmask32 m = cols - c >= 32 ? 0xffffffffu : (1u << (cols - c)) - 1u;
            _mm512_storeu_si512(out, _mm512_maskz_loadu_epi16(m, (const uint16_t *)row + c));
            continue;
        }
        __m512 lo = load_16(row, dtype, c, cols), hi = load_16(row, dtype, c + 16, cols);
        for (int t = 0; t < to->terms; t++) {
            __m512i h = (__m512i)_mm512_cvtne2ps_pbh(hi, lo);
            _mm512_storeu_si512(out + t * to->term, h);
            lo = _mm512_sub_ps(lo, bf16_values(_mm512_castsi512_si256(h)));
            hi = _mm512_sub_ps(hi, bf16_values(_mm512_extracti64x4_epi64(h, 1)));
        }
    }
}

static void pack_rows(const dq_view *v, const dq_fit_panels *to)
{
    int64_t size = v->dtype == DQ_F32 ? 4 : 2, rows = dq_ceil_div(v->rows, DQ_PAIR) * DQ_PAIR;
    for (int64_t r = 0; r < rows; r++) {
        uint16_t *out = tile_at(to, 0, r / DQ_PANEL, 0) + r % DQ_PANEL * DQ_TILE_DEPTH;
        fetch_row(v, r + AHEAD, size);
        if (r < v->rows) {
            pack_row(dq_view_at(v, r, 0, size), v->dtype, v->cols, to, out);
            continue;
        }
        for (int t = 0; t < to->terms; t++)
            for (int64_t c = 0; c < v->cols; c += DQ_TILE_DEPTH)
                memset(out + t * to->term + c * DQ_PANEL, 0, 2 * DQ_TILE_DEPTH);
    }
}

static void pack_pair(const float *first, const float *second, int64_t n, int64_t n_padded, int64_t row,
                      const dq_fit_panels *to)
{
    uint16_t order[32];
    for (int i = 0; i < 32; i++) order[i] = (uint16_t)(i / 2 + i % 2 * 16);
    __m512i side_by_side = _mm512_loadu_si512(order), upper = _mm512_set1_epi32((int)0xffff0000u);
    uint16_t *out = tile_at(to, 0, 0, row / DQ_TILE_DEPTH) + row % DQ_TILE_DEPTH / 2 * 32;
    for (int64_t c = 0; c < n_padded; c += DQ_PANEL, out += to->panel) {
        __mmask16 m = first_lanes(n - c);
        __m512 x = first ? _mm512_maskz_loadu_ps(m, first + c) : _mm512_setzero_ps();
        __m512 y = second ? _mm512_maskz_loadu_ps(m, second + c) : _mm512_setzero_ps();
        for (int t = 0; t < to->terms; t++) {
            __m512i h = _mm512_permutexvar_epi16(side_by_side, (__m512i)_mm512_cvtne2ps_pbh(y, x));
            _mm512_storeu_si512(out + t * to->term, h);
            x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(h, 16)));
            y = _mm512_sub_ps(y, _mm512_castsi512_ps(_mm512_and_si512(h, upper)));
        }
    }
}

/* 32 x 32 elements: pairs of rows side by side, then 16 x 16 pairs transposed. */
static void transpose_block(const uint16_t *upper, const uint16_t *lower, uint16_t *left, uint16_t *right)
{
    __m512i even[16], odd[16]; /* columns 0..15 and 16..31; lane: a pair of rows */
    __m512i pick_left = _mm512_setzero_si512(), pick_right;
    uint16_t index[32];
    for (int i = 0; i < 32; i++) index[i] = (uint16_t)(i / 2 + i % 2 * 32);
    memcpy(&pick_left, index, sizeof index);
    pick_right = _mm512_add_epi16(pick_left, _mm512_set1_epi16(16));
    for (int k = 0; k < 16; k++) {
        const uint16_t *rows = (k < 8 ? upper : lower) + k % 8 * 2 * DQ_TILE_DEPTH;
        __m512i a = _mm512_loadu_si512(rows), b = _mm512_loadu_si512(rows + DQ_TILE_DEPTH);
        even[k] = _mm512_permutex2var_epi16(a, pick_left, b);
        odd[k] = _mm512_permutex2var_epi16(a, pick_right, b);
    }
    dq_transpose_16(even);
    dq_transpose_16(odd);
    for (int i = 0; i < 16; i++) {
        _mm512_storeu_si512(left + i * DQ_TILE_DEPTH, even[i]);
        _mm512_storeu_si512(right + i * DQ_TILE_DEPTH, odd[i]);
    }
}

static void transpose(const dq_fit_panels *from, int64_t rows, int64_t cols, int64_t to_depth, const dq_fit_panels *to)
{
    for (int t = 0; t < from->terms; t++)
        for (int64_t c = 0; c < cols / DQ_PAIR; c++)
            for (int64_t r = 0; r < rows / DQ_PAIR; r++) {
                int64_t tile = to_depth / DQ_TILE_DEPTH + r;
                transpose_block(tile_at(from, t, 2 * r, c), tile_at(from, t, 2 * r + 1, c), tile_at(to, t, 2 * c, tile),
                                tile_at(to, t, 2 * c + 1, tile));
            }
}

/* ---- product ---- */

enum { DEPTH_BLOCK = 64 /* tiles, of all terms: 256 rows of A take 1 MiB */ };

/* One 32 x 32 block. Products of terms i and j with i + j beyond the last term would change the last bit at most. */
static void pair_product(const dq_fit_panels *a, const dq_fit_panels *b, int64_t pa, int64_t pb, int64_t first,
                         int64_t tiles, bool add, float *c, int64_t ldc)
{
    size_t bytes = (size_t)ldc * sizeof(float);
    int most = a->terms > b->terms ? a->terms : b->terms;
    if (add) {
        _tile_loadd(0, c, bytes);
        _tile_loadd(1, c + DQ_PANEL, bytes);
        _tile_loadd(2, c + DQ_PANEL * ldc, bytes);
        _tile_loadd(3, c + DQ_PANEL * ldc + DQ_PANEL, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t t = first; t < first + tiles; t++)
        for (int i = 0; i < a->terms; i++) {
            const uint16_t *at = tile_at(a, i, pa, t);
            _tile_loadd(4, at, 64);
            _tile_loadd(5, at + a->panel, 64);
            for (int j = 0; j < b->terms && i + j < most; j++) {
                const uint16_t *bt = tile_at(b, j, pb, t);
                _tile_loadd(6, bt, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(2, 5, 6);
                _tile_loadd(7, bt + b->panel, 64);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + DQ_PANEL, bytes);
    _tile_stored(2, c + DQ_PANEL * ldc, bytes);
    _tile_stored(3, c + DQ_PANEL * ldc + DQ_PANEL, bytes);
}

static void copy_block(const float *from, int64_t ld_from, float *to, int64_t ld_to, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r++) memcpy(to + r * ld_to, from + r * ld_from, (size_t)cols * sizeof *to);
}

static void product(const dq_fit_panels *a, const dq_fit_panels *b, int64_t tiles, int64_t rows, int64_t cols, bool add,
                    float *c, int64_t ldc)
{
    float edge[DQ_PAIR * DQ_PAIR] = {0};
    int64_t block = DEPTH_BLOCK / (a->terms > b->terms ? a->terms : b->terms);
    dq_amx_barrier();
    dq_amx_begin();
    for (int64_t first = 0; first < tiles; first += block)
        for (int64_t j = 0; j < cols; j += DQ_PAIR)
            for (int64_t i = 0; i < rows; i += DQ_PAIR) {
                int64_t m = dq_min64(DQ_PAIR, rows - i), n = dq_min64(DQ_PAIR, cols - j);
                int64_t depth = dq_min64(block, tiles - first);
                bool inside = m == DQ_PAIR && n == DQ_PAIR, more = add || first > 0;
                float *at = c + i * ldc + j, *out = inside ? at : edge;
                if (!inside && more) copy_block(at, ldc, edge, DQ_PAIR, m, n);
                dq_amx_barrier();
                pair_product(a, b, i / DQ_PANEL, j / DQ_PANEL, first, depth, more, out, inside ? ldc : DQ_PAIR);
                dq_amx_barrier();
                if (!inside) copy_block(edge, DQ_PAIR, at, ldc, m, n);
            }
    dq_amx_end();
}

const dq_fit_tiles dq_fit_tiles_amx = {pack_rows, pack_pair, transpose, product};
#endif
