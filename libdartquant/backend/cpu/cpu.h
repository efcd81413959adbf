/* The CPU backend: OpenBLAS where a library helps, our own kernels elsewhere, picked once per device from what the
 * processor and the operating system allow. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_H
#define DQ_BACKEND_CPU_H

#include <pthread.h>
#include <stdbool.h>

#include "backend/ref/ref.h"

typedef enum dq_simd { DQ_SIMD_PLAIN = 0, DQ_SIMD_AVX2 = 1, DQ_SIMD_AVX512 = 2 } dq_simd;

/* A buffer kept between ops. */
typedef struct dq_cpu_scratch {
    void *ptr;
    size_t bytes;
    bool busy;
} dq_cpu_scratch;

enum { DQ_CPU_SCRATCH = 4, DQ_CPU_SCRATCH_KEEP = 32 << 20 };

typedef struct dq_cpu_dev {
    dq_ref_dev ref; /* must be first */
    dq_simd simd;   /* best level allowed by cpuid, OS state and the "simd=" option */
    bool vnni;      /* AVX512_VNNI */
    bool bf16;      /* AVX512_BF16 */
    bool amx;       /* AMX tile + bf16, with the OS's permission */
    int threads;
    pthread_mutex_t scratch_lock;
    dq_cpu_scratch scratch[DQ_CPU_SCRATCH];
} dq_cpu_dev;

const dq_backend *dq_cpu_backend(void);
/* Highest level usable here; fills vnni, bf16 and amx. */
dq_simd dq_cpu_detect(bool *vnni, bool *bf16, bool *amx);

/* Working memory for one op, 64-byte aligned, contents undefined; NULL (failure recorded) when out of memory. Any
 * thread may take; every take is given back before the op returns. */
void *dq_cpu_scratch_take(dq_cpu_dev *dev, size_t bytes);
void dq_cpu_scratch_give(dq_cpu_dev *dev, void *ptr);

/* Each overwrites the slots it serves (forward.c: products and transformer ops; quantize.c: quantization, Hadamard,
 * factorizations, data movement; fit.c: what fits rotations). */
void dq_cpu_fill_forward(dq_backend *table);
void dq_cpu_fill_quantize(dq_backend *table);
void dq_cpu_fill_fit(dq_backend *table);

/* OpenBLAS is process-wide: between enter and leave it runs single-threaded (we partition products ourselves), and the
 * host's setting is put back by the last one to leave. */
void dq_blas_enter(void);
void dq_blas_leave(void);

#endif
