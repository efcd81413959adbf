/* The LAPACK routines that OpenBLAS carries and we call; LAPACKE may be absent. Fortran takes every argument by address
 * and, at the end, the lengths of its character arguments. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CPU_LAPACK_H
#define DQ_CPU_LAPACK_H

#include <stddef.h>

#define DQ_LAPACK(P, REAL)                                                                                             \
    void P##potrf_(const char *uplo, const int *n, REAL *a, const int *lda, int *info, size_t);                        \
    void P##geqrf_(const int *m, const int *n, REAL *a, const int *lda, REAL *tau, REAL *work, const int *lwork,       \
                   int *info);                                                                                         \
    void P##larft_(const char *direct, const char *storev, const int *n, const int *k, const REAL *v, const int *ldv,  \
                   const REAL *tau, REAL *t, const int *ldt, size_t, size_t);                                          \
    void P##larfb_(const char *side, const char *trans, const char *direct, const char *storev, const int *m,          \
                   const int *n, const int *k, const REAL *v, const int *ldv, const REAL *t, const int *ldt, REAL *c,  \
                   const int *ldc, REAL *work, const int *ldwork, size_t, size_t, size_t, size_t);

DQ_LAPACK(s, float)
DQ_LAPACK(d, double)
#undef DQ_LAPACK

#endif
