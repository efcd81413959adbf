/* Exponentials on vec.h, below 2 ulp where the result is a normal number. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CPU_VEC_EXP_H
#define DQ_CPU_VEC_EXP_H

#include "backend/cpu/vec.h"

/* 2^x; zero below -126, held at 2^127 above 127, NaN stays. Coefficients: Cephes exp2f. */
VEC_INLINE vf vf_exp2(vf x)
{
    x = vf_min(vf_set1(127.0f), vf_max(vf_set1(-150.0f), x)); /* the bound comes first, so that a NaN passes */
    vf n = vf_rint(x), f = x - n;
    vf p = vf_madd(vf_set1(1.535336188319500e-4f), f, vf_set1(1.339887440266574e-3f));
    p = vf_madd(p, f, vf_set1(9.618437357674640e-3f));
    p = vf_madd(p, f, vf_set1(5.550332471162809e-2f));
    p = vf_madd(p, f, vf_set1(2.402264791363012e-1f));
    p = vf_madd(p, f, vf_set1(6.931472028550421e-1f));
    return vf_scale2(vf_madd(p, f, vf_set1(1.0f)), n);
}

/* e^x; zero below -88, held at e^88 above 88, NaN stays. Coefficients: Cephes expf. */
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
