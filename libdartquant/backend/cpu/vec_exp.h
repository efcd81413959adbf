/* Exponentials on vec.h, within about 2 ulp where the result is a normal number. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CPU_VEC_EXP_H
#define DQ_CPU_VEC_EXP_H

#include "backend/cpu/vec.h"

/* 2^x for finite x <= 127; zero below -150 (-126 without AVX-512), NaN stays, infinities give NaN. Coefficients: minimax
 * in relative error on [-1/2, 1/2] with the constant 1, 9.2e-8 and, for results that are rounded to bf16, 2.9e-6. */
VEC_INLINE vf vf_exp2(vf x)
{
    vf n = vf_rint(x), f = x - n;
    vf p = vf_madd(vf_set1(1.3264727e-3f), f, vf_set1(9.6715130e-3f));
    p = vf_madd(p, f, vf_set1(5.5507336e-2f));
    p = vf_madd(p, f, vf_set1(2.4022242e-1f));
    p = vf_madd(p, f, vf_set1(6.9314700e-1f));
    return vf_scale2(vf_madd(p, f, vf_set1(1.0f)), n);
}
VEC_INLINE vf vf_exp2_coarse(vf x)
{
    vf n = vf_rint(x), f = x - n;
    vf p = vf_madd(vf_set1(9.5828529e-3f), f, vf_set1(5.5906426e-2f));
    p = vf_madd(p, f, vf_set1(2.4024099e-1f));
    p = vf_madd(p, f, vf_set1(6.9312418e-1f));
    return vf_scale2(vf_madd(p, f, vf_set1(1.0f)), n);
}

/* e^x, about 2 ulp; zero below -88, held at e^88 above 88, NaN stays. Coefficients: Cephes expf. */
VEC_INLINE vf vf_exp(vf x)
{
    x = vf_min(vf_set1(88.0f), vf_max(vf_set1(-104.0f), x));
    vf n = vf_rint(x * vf_set1(1.44269504088896341f));
    vf r = vf_nmadd(n, vf_set1(0.693359375f), x); /* ln 2 in two parts, the first exact */
    r = vf_madd(n, vf_set1(2.12194440e-4f), r);
    vf p = vf_madd(vf_set1(1.9875691500e-4f), r, vf_set1(1.3981999507e-3f));
    p = vf_madd(p, r, vf_set1(8.3334519073e-3f));
    p = vf_madd(p, r, vf_set1(4.1665795894e-2f));
    p = vf_madd(p, r, vf_set1(1.6666665459e-1f));
    p = vf_madd(p, r, vf_set1(5.0000001201e-1f));
    return vf_scale2(vf_madd(r * r, p, r + vf_set1(1.0f)), n);
}

#endif
