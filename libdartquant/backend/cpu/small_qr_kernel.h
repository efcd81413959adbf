/* Householder QR of a matrix that fits in cache, one reflector at a time, with the signs of LAPACK's geqrf. Part of
 * fit_kernel.h. Columns start `ld` apart, a multiple of the vector, and are zero from n to ld, so that whole vectors can
 * be taken. SPDX-License-Identifier: Apache-2.0 */

static REAL FN(sum_lanes)(VEC v)
{
    REAL lane[LANES], sum = 0;
    V(store)(lane, v);
    for (int i = 0; i < LANES; i++) sum += lane[i];
    return sum;
}

/* From the vector that holds row j on; both are zero above row j where they have to be. */
static REAL FN(inner)(const REAL *x, const REAL *y, int64_t from, int64_t ld)
{
    VEC a = V(zero)(), b = V(zero)();
    int64_t i = from;
    for (; i + 2 * LANES <= ld; i += 2 * LANES) {
        a = V(madd)(V(load)(x + i), V(load)(y + i), a);
        b = V(madd)(V(load)(x + i + LANES), V(load)(y + i + LANES), b);
    }
    if (i < ld) a = V(madd)(V(load)(x + i), V(load)(y + i), a);
    return FN(sum_lanes)(a + b);
}

static void FN(subtract)(REAL f, const REAL *x, REAL *y, int64_t from, int64_t ld)
{
    VEC minus = V(set1)(-f);
    for (int64_t i = from; i < ld; i += LANES) V(store)(y + i, V(madd)(minus, V(load)(x + i), V(load)(y + i)));
}

/* The reflector I - tau v v^T of column j; v (ld values, zero above row j, 1 at j) goes to `v`. */
static REAL FN(reflector)(REAL *column, REAL *v, int64_t j, int64_t n, int64_t ld)
{
    double norm = 0;
    for (int64_t i = 0; i < ld; i++) v[i] = i > j && i < n ? column[i] : 0;
    for (int64_t i = j + 1; i < n; i++) norm += (double)v[i] * (double)v[i];
    if (norm == 0) {
        v[j] = 1;
        return 0;
    }
    double alpha = column[j], beta = -copysign(sqrt(alpha * alpha + norm), alpha);
    for (int64_t i = j + 1; i < n; i++) {
        v[i] = (REAL)((double)v[i] / (alpha - beta));
        column[i] = 0;
    }
    v[j] = 1;
    column[j] = (REAL)beta;
    return (REAL)((beta - alpha) / beta);
}

/* v: [n][ld], the reflectors; a, q: [n][ld] columns. */
static void FN(small_qr)(REAL *a, REAL *q, REAL *v, REAL *tau, int64_t n, int64_t ld)
{
    for (int64_t j = 0; j < n; j++) {
        REAL *vj = v + j * ld;
        int64_t from = j / LANES * LANES;
        tau[j] = FN(reflector)(a + j * ld, vj, j, n, ld);
        for (int64_t c = j + 1; c < n && tau[j] != 0; c++)
            FN(subtract)(tau[j] * FN(inner)(vj, a + c * ld, from, ld), vj, a + c * ld, from, ld);
    }
    for (int64_t c = 0; c < n; c++)
        for (int64_t i = 0; i < ld; i++) q[c * ld + i] = i == c;
    for (int64_t j = n - 1; j >= 0; j--) {
        REAL *vj = v + j * ld;
        int64_t from = j / LANES * LANES;
        for (int64_t c = j; c < n && tau[j] != 0; c++)
            FN(subtract)(tau[j] * FN(inner)(vj, q + c * ld, from, ld), vj, q + c * ld, from, ld);
    }
}

#undef REAL
#undef VEC
#undef LANES
#undef V
#undef FN
