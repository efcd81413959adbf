/* What the kernels of packed products share: scales and zero points. Included by kernels, for one instruction set at a time.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/decode.h"
#include "backend/cpu/vec.h"

enum { AHEAD = 2048 /* bytes: where codes are asked for early, across the rows of a task */ };

/* n <= VF scales from the one at `first` on. */
VEC_INLINE vf scales_at(const void *scale, bool half, int64_t first, int64_t n)
{
    return half ? vf_load_f16_n((const uint16_t *)scale + first, n) : vf_load_n((const float *)scale + first, n);
}

/* What has to be added to the products with codes less the middle: sum over groups of (sum of x) times
 *   scale * (middle - zero), or scale * middle + zero where that is a minimum. */
VEC_INLINE float offset_part(const dq_packed_x *x, int64_t row, const dq_packed_w *w, float middle)
{
    const float *sums = x->sum + row * x->groups;
    vf total = vf_zero();
    for (int64_t g = 0; g < x->groups; g += VF) {
        int64_t n = dq_min64(VF, x->groups - g);
        vf scale = scales_at(w->scale, w->half, g, n), factor;
        if (w->minimum) {
            factor = vf_madd(scale, vf_set1(middle), scales_at(w->zero, w->half, g, n));
        } else {
            uint8_t bytes[DQ_DECODE_LANES] = {0};
            memcpy(bytes, (const uint8_t *)w->zero + g, (size_t)n);
            factor = scale * (vf_set1(middle) - vf_load_u8(bytes));
        }
        total = vf_madd(factor, vf_load_n(sums + g, n), total);
    }
    return vf_sum(total);
}

/* How many rows of weights a tile takes: enough to use what is loaded of x more than once. Results do not depend on it. */
enum { OUTS = V_REGISTERS == 32 ? 4 : 2 };
