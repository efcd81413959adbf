/* The CPU backend: OpenBLAS where a library helps, our own kernels elsewhere, picked once per device from what the
 * processor and the operating system allow. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_H
#define DQ_BACKEND_CPU_H

#include <stdbool.h>

#include "backend/ref/ref.h"

typedef enum dq_simd { DQ_SIMD_PLAIN = 0, DQ_SIMD_AVX2 = 1, DQ_SIMD_AVX512 = 2 } dq_simd;

typedef struct dq_cpu_dev {
    dq_ref_dev ref;  /* must be first */
    dq_simd simd;    /* best level allowed by cpuid, OS state and the "simd=" option */
    bool bf16;       /* AVX512_BF16 */
    bool amx;        /* AMX tile + bf16, with the OS's permission */
    int threads;
} dq_cpu_dev;

const dq_backend *dq_cpu_backend(void);
/* Highest level usable here; fills bf16 and amx. */
dq_simd dq_cpu_detect(bool *bf16, bool *amx);

/* Each overwrites the slots it serves (forward.c: products and transformer ops; quantize.c: quantization, Hadamard,
 * factorizations, data movement). */
void dq_cpu_fill_forward(dq_backend *table);
void dq_cpu_fill_quantize(dq_backend *table);

/* OpenBLAS is process-wide: between enter and leave it runs single-threaded (we partition products ourselves), and the
 * host's setting is put back by the last one to leave. */
void dq_blas_enter(void);
void dq_blas_leave(void);

#endif
