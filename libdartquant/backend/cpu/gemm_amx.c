/* Product of packed bf16 panels with AMX: 2 x 2 tiles of C stay in the tile registers over the whole depth, so that four
 * tile loads feed four tile products. SPDX-License-Identifier: Apache-2.0 */
#if defined(__x86_64__)
#include "backend/cpu/gemm_packed.h"

#include <immintrin.h>

#include "backend/cpu/amx.h"

/* c[32][32] = the product of two pairs of panels, rows ldc floats apart. */
static void pair_product(const uint16_t *a, const uint16_t *b, int64_t panel, int64_t tiles, float *c, int64_t ldc)
{
    const uint16_t *a1 = a + panel, *b1 = b + panel;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t t = 0; t < tiles; t++) {
        int64_t at = t * DQ_TILE_ELEMENTS;
        _tile_loadd(4, a + at, 64);
        _tile_loadd(6, b + at, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b1 + at, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a1 + at, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    size_t bytes = (size_t)ldc * sizeof(float);
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + DQ_PANEL, bytes);
    _tile_stored(2, c + DQ_PANEL * ldc, bytes);
    _tile_stored(3, c + DQ_PANEL * ldc + DQ_PANEL, bytes);
}

static void block(const uint16_t *a, const uint16_t *b, int64_t tiles, int64_t rows, int64_t cols, float alpha,
                  float beta, float *c, int64_t ldc)
{
    int64_t panel = tiles * DQ_TILE_ELEMENTS;
    float out[DQ_PAIR * DQ_PAIR];
    dq_amx_begin();
    for (int64_t j = 0; j < cols; j += DQ_PAIR) {
        for (int64_t i = 0; i < rows; i += DQ_PAIR) {
            const uint16_t *pa = a + i / DQ_PANEL * panel, *pb = b + j / DQ_PANEL * panel;
            int64_t m = dq_min64(DQ_PAIR, rows - i), n = dq_min64(DQ_PAIR, cols - j);
            if (m == DQ_PAIR && n == DQ_PAIR && alpha == 1 && beta == 0) {
                pair_product(pa, pb, panel, tiles, c + i * ldc + j, ldc);
                continue;
            }
            pair_product(pa, pb, panel, tiles, out, DQ_PAIR);
            for (int64_t r = 0; r < m; r++) dq_packed_put(out + r * DQ_PAIR, n, alpha, beta, c + (i + r) * ldc + j);
        }
    }
    dq_amx_end();
}

const dq_packed_kernels dq_packed_amx = {dq_pack_a_bf16, dq_pack_b_bf16, block};
#endif
