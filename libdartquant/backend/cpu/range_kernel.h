/* The range of a row, for one instruction set; part of quant_kernels.h and fit_kernel.h.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/vec.h"

/* Smallest and largest of n >= 1 values. */
static void find_range(const float *x, int64_t n, float *lo, float *hi)
{
    vf first = vf_set1(x[0]), low[2] = {first, first}, high[2] = {first, first};
    int64_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        vf a = vf_load(x + i), b = vf_load(x + i + VF);
        low[0] = vf_min(a, low[0]), low[1] = vf_min(b, low[1]);
        high[0] = vf_max(a, high[0]), high[1] = vf_max(b, high[1]);
    }
    for (; i < n; i += VF) {
        vf a = n - i >= VF ? vf_load(x + i) : vf_keep_n(vf_load_n(x + i, n - i), first, n - i);
        low[0] = vf_min(a, low[0]);
        high[0] = vf_max(a, high[0]);
    }
    *lo = vf_hmin(vf_min(low[0], low[1]));
    *hi = vf_hmax(vf_max(high[0], high[1]));
}
