/* Fast Walsh-Hadamard transform and the product with a small +-1 table, for one element type. Included by quant_kernels.h
 * with REAL, VEC, LANES, LOG_LANES, V(op) and FN(name) defined. The stages run in the order h = 1, 2, 4 ... whatever the
 * vector length, and the order of the additions in mix is fixed, so all levels give the same bits.
 * SPDX-License-Identifier: Apache-2.0 */

VEC_INLINE void FN(cross)(VEC *a, VEC *b)
{
    VEC t = *a;
    *a = t + *b;
    *b = t - *b;
}

VEC_INLINE void FN(radix4)(VEC *v)
{
    FN(cross)(v, v + 1), FN(cross)(v + 2, v + 3);
    FN(cross)(v, v + 2), FN(cross)(v + 1, v + 3);
}

VEC_INLINE void FN(radix8)(VEC *v)
{
    FN(radix4)(v), FN(radix4)(v + 4);
    FN(cross)(v, v + 4), FN(cross)(v + 1, v + 5), FN(cross)(v + 2, v + 6), FN(cross)(v + 3, v + 7);
}

VEC_INLINE void FN(radix16)(VEC *v)
{
    FN(radix8)(v), FN(radix8)(v + 8);
    FN(cross)(v, v + 8), FN(cross)(v + 1, v + 9), FN(cross)(v + 2, v + 10), FN(cross)(v + 3, v + 11);
    FN(cross)(v + 4, v + 12), FN(cross)(v + 5, v + 13), FN(cross)(v + 6, v + 14), FN(cross)(v + 7, v + 15);
}

/* log_radix stages across registers. */
VEC_INLINE void FN(network)(VEC *v, int log_radix)
{
    if (log_radix == 1) FN(cross)(v, v + 1);
    if (log_radix == 2) FN(radix4)(v);
    if (log_radix == 3) FN(radix8)(v);
    if (log_radix == 4) FN(radix16)(v);
}

/* The first `stages` stages, inside one register: the lower lane of a pair becomes low + high, the upper low - high. The
 * product with +-1 is exact, so fusing it changes nothing. */
VEC_INLINE VEC FN(lanes)(VEC v, int stages, const VEC *sign)
{
    if (stages >= 1) v = V(madd)(v, sign[0], V(swap1)(v));
#if LANES >= 4
    if (stages >= 2) v = V(madd)(v, sign[1], V(swap2)(v));
#endif
#if LANES >= 8
    if (stages >= 3) v = V(madd)(v, sign[2], V(swap4)(v));
#endif
#if LANES >= 16
    if (stages >= 4) v = V(madd)(v, sign[3], V(swap8)(v));
#endif
    return v;
}

/* One pass over `total` elements, a multiple of h << log_radix: log_radix stages beginning at stride h; with h == LANES
 * and in_lanes also the LOG_LANES stages before them. */
VEC_INLINE void FN(pass)(const REAL *x, REAL *y, int64_t total, int64_t h, int log_radix, bool in_lanes, bool last,
                         REAL scale)
{
    const int radix = 1 << log_radix;
    VEC sign[LOG_LANES], v[16], s = V(set1)(scale);
    for (int i = 0; i < LOG_LANES; i++) sign[i] = V(signs)(1 << i);
    for (int64_t base = 0; base < total; base += h * radix) {
        for (int64_t j = 0; j < h; j += LANES) {
            const REAL *from = x + base + j;
            REAL *to = y + base + j;
            if (h - j >= LANES) {
                _Pragma("GCC unroll 16") for (int i = 0; i < radix; i++) v[i] = V(load)(from + i * h);
                if (in_lanes) {
                    _Pragma("GCC unroll 16") for (int i = 0; i < radix; i++) v[i] = FN(lanes)(v[i], LOG_LANES, sign);
                }
                FN(network)(v, log_radix);
                _Pragma("GCC unroll 16") for (int i = 0; i < radix; i++)
                {
                    if (last) v[i] = v[i] * s;
                    V(store)(to + i * h, v[i]);
                }
            } else {
                int64_t n = h - j;
                _Pragma("GCC unroll 16") for (int i = 0; i < radix; i++) v[i] = V(load_n)(from + i * h, n);
                FN(network)(v, log_radix);
                _Pragma("GCC unroll 16") for (int i = 0; i < radix; i++)
                {
                    if (last) v[i] = v[i] * s;
                    V(store_n)(to + i * h, v[i], n);
                }
            }
        }
    }
}

#define PASS_CASES(in_lanes, last)                                                                                     \
    switch (log_radix) {                                                                                               \
        case 0: FN(pass)(x, y, total, h, 0, in_lanes, last, scale); break;                                             \
        case 1: FN(pass)(x, y, total, h, 1, in_lanes, last, scale); break;                                             \
        case 2: FN(pass)(x, y, total, h, 2, in_lanes, last, scale); break;                                             \
        case 3: FN(pass)(x, y, total, h, 3, in_lanes, last, scale); break;                                             \
        default: FN(pass)(x, y, total, h, 4, in_lanes, last, scale); break;                                            \
    }

static void FN(first_pass)(const REAL *x, REAL *y, int64_t total, int log_radix, bool last, REAL scale)
{
    const int64_t h = LANES;
    if (last) {
        PASS_CASES(true, true)
    } else {
        PASS_CASES(true, false)
    }
}

static void FN(next_pass)(const REAL *x, REAL *y, int64_t total, int64_t h, int log_radix, bool last, REAL scale)
{
    if (last) {
        PASS_CASES(false, true)
    } else {
        PASS_CASES(false, false)
    }
}
#undef PASS_CASES

/* Transforms shorter than a register: several lie in one. */
static void FN(short_blocks)(const REAL *x, REAL *y, int64_t total, int stages, REAL scale)
{
    VEC sign[LOG_LANES], s = V(set1)(scale);
    for (int i = 0; i < LOG_LANES; i++) sign[i] = V(signs)(1 << i);
    for (int64_t i = 0; i < total; i += LANES) {
        int64_t n = total - i < LANES ? total - i : LANES;
        VEC v = FN(lanes)(V(load_n)(x + i, n), stages, sign);
        V(store_n)(y + i, v * s, n);
    }
}

/* `stages` stages from stride h on, in as few passes as the registers allow, over one block of the transform. */
static void FN(remaining)(const REAL *x, REAL *y, int64_t total, int64_t h, int stages, bool last, REAL scale)
{
    const int most = V_REGISTERS >= 32 ? 4 : 3;
    while (stages > 0) {
        int passes = (stages + most - 1) / most, now = (stages + passes - 1) / passes;
        stages -= now;
        FN(next_pass)(x, y, total, h, now, last && stages == 0, scale);
        x = y;
        h <<= now;
    }
}

/* Sylvester transforms of order 1 << log_p of contiguous vectors, times scale. `total` is a multiple of the order. A block
 * that exceeds the L1 cache is first transformed in halves. */
static void FN(fwht)(const REAL *x, REAL *y, int64_t total, int log_p, REAL scale)
{
    enum { MOST = V_REGISTERS >= 32 ? 4 : 3, L1_LOG = sizeof(REAL) == 4 ? 13 : 12 };
    if (log_p < LOG_LANES) {
        FN(short_blocks)(x, y, total, log_p, scale);
        return;
    }
    int rest = log_p - LOG_LANES, passes = (rest + MOST - 1) / MOST, first = passes ? (rest + passes - 1) / passes : 0;
    if (passes <= 1) {
        FN(first_pass)(x, y, total, rest, true, scale);
        return;
    }
    int64_t p = (int64_t)1 << log_p, piece = log_p > L1_LOG ? (int64_t)1 << (L1_LOG - 1) : p;
    for (int64_t b = 0; b < total; b += p) {
        if (piece < p) {
            FN(fwht)(x + b, y + b, p, L1_LOG - 1, 1);
            FN(remaining)(y + b, y + b, p, piece, log_p - (L1_LOG - 1), true, scale);
        } else {
            FN(first_pass)(x + b, y + b, p, first, false, scale);
            FN(remaining)(y + b, y + b, p, (int64_t)LANES << first, rest - first, true, scale);
        }
    }
}

/* The same along an axis whose elements lie `inner` apart: stage h works at stride h * inner. One block. */
static void FN(fwht_strided)(const REAL *x, REAL *y, int64_t inner, int log_p, REAL scale)
{
    FN(remaining)(x, y, inner << log_p, inner, log_p, true, scale);
}

/* All sixteen +-a +-b +-c +-d; bit i of the index set means that input i is subtracted. */
VEC_INLINE void FN(combine)(const VEC *in, VEC *table)
{
    VEC ab[4] = {in[0] + in[1], in[1] - in[0], in[0] - in[1], V(zero)() - (in[0] + in[1])};
    VEC cd[4] = {in[2] + in[3], in[3] - in[2], in[2] - in[3], V(zero)() - (in[2] + in[3])};
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) table[i] = ab[i & 3] + cd[i >> 2];
}

/* `rows` (a constant after inlining) output rows: each the sum over groups of the entry it picks. pick holds rows x groups
 * choices, the rows of a group side by side, in units of eight bytes, which x86 addresses for free. */
VEC_INLINE void FN(sum_picks)(const VEC *table, int64_t groups, const uint8_t *pick, const int rows, VEC *sum)
{
    const double *t = (const double *)(const void *)table;
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++) sum[i] = V(zero)();
    for (int64_t g = 0; g < groups; g++, pick += rows, t += 16 * sizeof(VEC) / sizeof *t) {
        uint64_t all = 0;
        memcpy(&all, pick, (size_t)rows);
        _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)
        {
            VEC entry = *(const VEC *)(const void *)(t + (all >> 8 * i & 0xff));
            sum[i] = sum[i] + entry;
        }
    }
}

VEC_INLINE void FN(store_rows)(REAL *y, int64_t width, int64_t n, const int rows, int64_t limit, VEC s, const VEC *sum)
{
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; i++)
    {
        if (i >= limit) break;
        if (n == LANES)
            V(store)(y + i * width, sum[i] * s);
        else
            V(store_n)(y + i * width, sum[i] * s, n);
    }
}

/* y_a = scale * sum_b H[a][b] x_b for k vectors of `width` elements, in place allowed. Inputs are taken four at a time:
 * of the sixteen signed sums of a group each row of H picks one, so a row costs k/4 additions ("four Russians"). Rows come
 * in eights, at the end four; groups and rows are padded. scratch: 16 vectors for each group. */
static void FN(mix)(const REAL *x, REAL *y, int64_t width, int64_t k, const uint8_t *pick, REAL *scratch, REAL scale)
{
    int64_t groups = (k + 3) / 4;
    VEC *table = (VEC *)(void *)scratch, s = V(set1)(scale), sum[8];
    for (int64_t c = 0; c < width; c += LANES) {
        int64_t n = width - c < LANES ? width - c : LANES;
        for (int64_t g = 0; g < groups; g++) {
            VEC in[4];
            for (int64_t i = 0; i < 4; i++) {
                const REAL *from = x + (4 * g + i) * width + c;
                in[i] = 4 * g + i >= k ? V(zero)() : n == LANES ? V(load)(from) : V(load_n)(from, n);
            }
            FN(combine)(in, table + 16 * g);
        }
        int64_t a = 0;
        for (; a + 4 < k; a += 8) {
            FN(sum_picks)(table, groups, pick + a * groups, 8, sum);
            FN(store_rows)(y + a * width + c, width, n, 8, k - a, s, sum);
        }
        if (a < k) {
            FN(sum_picks)(table, groups, pick + a * groups, 4, sum);
            FN(store_rows)(y + a * width + c, width, n, 4, k - a, s, sum);
        }
    }
}

#undef REAL
#undef VEC
#undef LANES
#undef LOG_LANES
#undef V
#undef FN
