/* Quantization to given levels, fp32 with one rounding per operation: the same bits as the reference. Part of
 * quant_kernels.h. SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/levels_vec.h"

/* ---- a number's level ---- */

/* The table as registers hold it: of more than sixteen levels the middles between blocks of them. */
typedef struct level_lookup {
    table16 middle, value;
    const dq_level_table *t;
} level_lookup;

VEC_INLINE level_lookup lookup_of(const dq_level_table *t)
{
    return (level_lookup){table16_load(t->coarse), table16_load(t->value), t};
}

/* Value of the nearest level by bisection: each step asks whether u lies behind the middle that ends the first half of what
 * is left. `steps`: of tables in registers; more follow in memory. A NaN ends at the first. */
VEC_INLINE vf value_of(const level_lookup *l, vf u, int steps)
{
    vi i = vi_set1(0);
    for (int step = 1 << (steps - 1); step > 0; step /= 2)
        i = vi_add_where(vm_less(table16_at(l->middle, vi_add(i, vi_set1(step - 1))), u), i, vi_set1(step));
    if (l->t->log_block == 0) return table16_at(l->value, i);
    i = vi_times_power(i, l->t->log_block);
    for (int step = 1 << l->t->log_block >> 1; step > 0; step /= 2)
        i = vi_add_where(vm_less(vf_at(l->t->middle, vi_add(i, vi_set1(step - 1))), u), i, vi_set1(step));
    return vf_at(l->t->value, i);
}

/* z and r: middle and half width of the range. */
VEC_INLINE vf quantized(const level_lookup *l, vf x, vf z, vf r, int steps)
{
    return value_of(l, (x - z) / r, steps) * r + z; /* r == 0: z, as values are finite */
}

VEC_INLINE void row_of_levels(const dq_level_row *j, const float *x, float *y, int64_t n, int steps)
{
    level_lookup l = lookup_of(j->table);
    vf z = vf_set1((j->hi + j->lo) * 0.5f), r = vf_set1((j->hi - j->lo) * 0.5f);
    vf low = vf_set1(j->low), high = vf_set1(j->high);
    for (int64_t c = 0; c < n; c += VF) {
        int64_t m = n - c;
        vf v = m >= VF ? vf_load(x + c) : vf_load_n(x + c, m);
        vf q = quantized(&l, v, z, r, steps);
        if (j->keep) q = vf_pick(vm_or(vm_not_more(v, low), vm_not_more(high, v)), v, q);
        if (m >= VF)
            vf_store(y + c, q);
        else
            vf_store_n(y + c, q, m);
    }
}

VEC_INLINE void columns_of_levels(const dq_level_columns *j, const float *x, float *y, int64_t n, int steps)
{
    level_lookup l = lookup_of(j->table);
    vf half = vf_set1(0.5f);
    for (int64_t c = 0; c < n; c += VF) {
        int64_t m = n - c < VF ? n - c : VF;
        vf v = m == VF ? vf_load(x + c) : vf_load_n(x + c, m);
        vf lo = m == VF ? vf_load(j->lo + c) : vf_load_n(j->lo + c, m);
        vf hi = m == VF ? vf_load(j->hi + c) : vf_load_n(j->hi + c, m);
        vf q = quantized(&l, v, (hi + lo) * half, (hi - lo) * half, steps);
        vm stays = vm_nan(v);
        if (j->keep) stays = vm_or(stays, vm_or(vm_less(v, lo), vm_less(hi, v)));
        q = vf_pick(stays, v, q);
        if (m == VF)
            vf_store(y + c, q);
        else
            vf_store_n(y + c, q, m);
    }
}

#define BY_STEPS(run, j)                                                                                               \
    switch ((j)->table->steps) {                                                                                       \
        case 1: run(j, x, y, n, 1); break;                                                                             \
        case 2: run(j, x, y, n, 2); break;                                                                             \
        case 3: run(j, x, y, n, 3); break;                                                                             \
        default: run(j, x, y, n, 4); break;                                                                            \
    }

static void levels_row(const dq_level_row *j, const float *x, float *y, int64_t n) { BY_STEPS(row_of_levels, j) }

static void levels_columns(const dq_level_columns *j, const float *x, float *y,
                           int64_t n){BY_STEPS(columns_of_levels, j)}

/* ---- the range of a row ---- */

/* Numbers [c, c + VF) of a row, `rest` behind its end. */
VEC_INLINE vf load_or(const float *x, int64_t c, int64_t n, vf rest)
{
    return n - c >= VF ? vf_load(x + c) : vf_keep_n(vf_load_n(x + c, n - c), rest, n - c);
}

static bool row_range(const float *x, int64_t n, float *lo, float *hi)
{
    vf first = vf_set1(x[0]), low[2] = {first, first}, high[2] = {first, first};
    vm broken = vm_nan(first);
    for (int64_t c = 0; c < n; c += 2 * VF) {
        vf a = load_or(x, c, n, first), b = c + VF < n ? load_or(x, c + VF, n, first) : first;
        broken = vm_or(broken, vm_or(vm_nan(a), vm_nan(b)));
        low[0] = vf_min(a, low[0]), low[1] = vf_min(b, low[1]);
        high[0] = vf_max(a, high[0]), high[1] = vf_max(b, high[1]);
    }
    *lo = vf_hmin(vf_min(low[0], low[1]));
    *hi = vf_hmax(vf_max(high[0], high[1]));
    return vm_bits(broken) == 0;
}

/* Of m numbers those of ranks `rank` and rank + 1 (0 = smallest): the least that have enough others at or below them. */
static void two_ranks(float *v, int64_t m, int64_t rank, float *first, float *next)
{
    vf none = vf_set1(INFINITY), one = vf_set1(1), a = none, b = none;
    if (m > 8 * VF) { /* many equal ones at the end */
        dq_cpu_two_ranks(v, m, rank, first, next);
        return;
    }
    for (int64_t c = 0; c < m; c += VF) {
        vf at = load_or(v, c, m, none), count = vf_zero();
        for (int64_t i = 0; i < m; i++) count = vf_pick(vm_not_more(vf_set1(v[i]), at), count + one, count);
        a = vf_min(vf_pick(vm_not_more(vf_set1((float)(rank + 1)), count), at, none), a);
        b = vf_min(vf_pick(vm_not_more(vf_set1((float)(rank + 2)), count), at, none), b);
    }
    *first = vf_hmin(a);
    *next = vf_hmin(b);
}

/* The least of each of the groups that the lanes are: k of them are no larger than the result, so no number among the k
 * smallest is. */
VEC_INLINE float bound_of(vf least[4], int64_t k)
{
    float lane[4 * VF], first, next;
    int groups = 4;
    while (groups > 1 && groups * VF >= 3 * k) {
        groups /= 2;
        for (int g = 0; g < groups; g++) least[g] = vf_min(least[g], least[g + groups]);
    }
    for (int g = 0; g < groups; g++) vf_store(lane + g * VF, least[g]);
    two_ranks(lane, groups * VF, k - 1, &first, &next);
    return first;
}

/* What may be among the k smallest of x to `under`, what among the k largest with its sign turned to `over`. */
VEC_INLINE void collect_ends(const float *x, int64_t n, float low, float high, float *under, float *over,
                             int64_t counts[2])
{
    vf bottom = vf_set1(low), top = vf_set1(high), none = vf_set1(NAN);
    int64_t a = 0, b = 0;
    for (int64_t c = 0; c < n; c += VF) {
        vf v = load_or(x, c, n, none);
        unsigned m = vm_bits(vm_not_more(v, bottom)), o = vm_bits(vm_not_more(top, v));
        for (; m; m &= m - 1) under[a++] = x[c + __builtin_ctz(m)];
        for (; o; o &= o - 1) over[b++] = -x[c + __builtin_ctz(o)];
    }
    counts[0] = a;
    counts[1] = b;
}

static bool row_ends(const float *x, int64_t n, int64_t k, float *scratch, dq_row_ends *out)
{
    vf none = vf_set1(NAN), up = vf_set1(INFINITY), down = vf_set1(-INFINITY);
    vf least[4] = {up, up, up, up}, largest[4] = {down, down, down, down};
    vm broken = vm_less(up, down);
    int64_t c = 0, counts[2];
    for (; c + 4 * VF <= n; c += 4 * VF)
        for (int g = 0; g < 4; g++) {
            vf v = vf_load(x + c + g * VF);
            broken = vm_or(broken, vm_nan(v));
            least[g] = vf_min(v, least[g]);
            largest[g] = vf_max(v, largest[g]);
        }
    for (int g = 0; c < n; c += VF, g++) {
        vf v = load_or(x, c, n, none);
        broken = vm_or(broken, vm_nan(load_or(x, c, n, up)));
        least[g] = vf_min(v, least[g]); /* of a NaN and a number the second operand */
        largest[g] = vf_max(v, largest[g]);
    }
    if (vm_bits(broken)) return false;
    for (int g = 0; g < 4; g++) largest[g] = vf_zero() - largest[g];
    collect_ends(x, n, bound_of(least, k), -bound_of(largest, k), scratch, scratch + n, counts);
    two_ranks(scratch, counts[0], k - 2, &out->first, &out->second);
    two_ranks(scratch + n, counts[1], k - 2, &out->last, &out->before_last);
    out->last = -out->last;
    out->before_last = -out->before_last;
    return true;
}

static void row_inside(const float *x, int64_t n, float low, float high, dq_row_inside *out)
{
    vf bottom = vf_set1(low), top = vf_set1(high), up = vf_set1(INFINITY), down = vf_set1(-INFINITY);
    vf least = up, largest = down, none = vf_set1(NAN);
    int64_t below = 0, beyond = 0;
    for (int64_t c = 0; c < n; c += VF) {
        vf v = load_or(x, c, n, none);
        vm under = vm_not_more(v, bottom), over = vm_not_more(top, v), outside = vm_or(under, over);
        below += __builtin_popcount(vm_bits(under));
        beyond += __builtin_popcount(vm_bits(outside));
        least = vf_min(vf_pick(outside, up, v), least); /* a NaN in front leaves what is behind */
        largest = vf_max(vf_pick(outside, down, v), largest);
    }
    *out = (dq_row_inside){below, n - beyond, vf_hmin(least), vf_hmax(largest)};
}
