/* The CUDA backend's device, its memory and its errors. Everything of one device runs in order on one stream. Uploads leave
 * through pinned staging, so the caller goes on while the card works, and cross the bus on a second stream, so that they
 * need not wait for that work either. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CUDA_DEVICE_H
#define DQ_CUDA_DEVICE_H

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include "dartquant/backend.h"

enum { DQ_CUDA_STAGES = 512 /* at most */, DQ_CUDA_USUAL_STAGES = 128, DQ_CUDA_FIRST_STAGES = 4 };

/* What a kernel found wrong: the first of a batch, by element. */
typedef struct dq_cuda_fault {
    unsigned long long first; /* (op << 40 | element), ~0 = none */
    int value;                /* unused half keeps the struct at 16 bytes */
    int pad;
} dq_cuda_fault;

/* What a memory handle points to, in host memory. */
typedef struct dq_cuda_block {
    char *address; /* on the card */
    uint64_t bytes;
} dq_cuda_block;

/* Pinned memory on its way to the card, and as much on the card where it lands: memory.cu. */
typedef struct dq_cuda_stage {
    char *memory, *landing; /* landing NULL: not made, or given back */
    uint64_t filled;
    cudaEvent_t landed; /* what was put in it so far has crossed the bus */
    cudaEvent_t moved;  /* and has reached its place */
} dq_cuda_stage;

typedef struct dq_cuda_device {
    const dq_host *host;
    int ordinal;
    cudaStream_t stream; /* of all work */
    cudaStream_t copies; /* from staging to landing; depends on nothing */
    cudaMemPool_t pool;  /* the card's default one, which the process shares */
    cublasHandle_t blas;
    cusolverDnHandle_t solver;
    void *blas_workspace;
    dq_cuda_fault *fault;      /* on the card */
    dq_cuda_fault *fault_host; /* pinned copy */
    void *result;              /* 64 bytes on the card for numbers on their way to the host */
    void *result_host;         /* pinned */
    dq_cuda_stage stage[DQ_CUDA_STAGES];
    int stages, most_stages;                /* made so far; more come while uploads have to wait */
    int this_stage;                         /* in use, -1 = none */
    int overlap;                            /* uploads may land */
    uint64_t landings;                      /* bytes of all */
    int syrk_split, syrk_block, syrk_parts; /* 0: as the shape asks */
    int max_shared;                         /* bytes of shared memory that one block may ask for */
    int tf32;
    int lost;
    /* Accounting and injected failures. */
    uint64_t budget, used, peak, blocks, allocations, fail_at;
} dq_cuda_device;

/* Records `text` with the CUDA, cuBLAS or cuSOLVER code and gives `status`; the message names the device. */
dq_status dq_cuda_fail(dq_cuda_device *dev, dq_status status, int64_t code, const char *format, ...);
/* A runtime call's result: DQ_OK, or the right status (memory, lost device, failure) with the driver's words. */
dq_status dq_cuda_check(dq_cuda_device *dev, cudaError_t error, const char *what);
dq_status dq_cuda_check_blas(dq_cuda_device *dev, cublasStatus_t status, const char *what);
dq_status dq_cuda_check_solver(dq_cuda_device *dev, cusolverStatus_t status, const char *what);
/* After a launch. */
dq_status dq_cuda_launched(dq_cuda_device *dev, const char *op);
/* Before the launch of a kernel that wants `bytes` of dynamic shared memory. */
dq_status dq_cuda_allow_shared(dq_cuda_device *dev, const void *kernel, int64_t bytes);
/* Waits for the stream and turns what kernels found wrong into an error. */
dq_status dq_cuda_wait(dq_cuda_device *dev);
/* Waits, and copies up to 64 bytes from the card: numbers on their way to the host. */
dq_status dq_cuda_fetch(dq_cuda_device *dev, const void *from, void *to, size_t bytes);
/* Makes the device current for the calling thread; the first line of every slot. */
dq_status dq_cuda_enter(dq_cuda_device *dev);

/* Pinned memory of uploads: the first pieces; everything, which nobody may use any more. */
dq_status dq_cuda_make_stages(dq_cuda_device *dev, uint64_t bytes_at_most);
void dq_cuda_free_stages(dq_cuda_device *dev);
/* Gives the landings' memory back, and makes no more; waits. */
dq_status dq_cuda_drop_landings(dq_cuda_device *dev);

/* Scratch in stream order: release it right after queueing its last use; empty ones are accepted. */
dq_status dq_cuda_scratch(dq_cuda_device *dev, uint64_t bytes, const char *what, dq_cuda_block *out);
void dq_cuda_release(dq_cuda_device *dev, dq_cuda_block *block);

#define CU_TRY(call)                                                                                                   \
    do {                                                                                                               \
        dq_status cu_status_ = (call);                                                                                 \
        if (cu_status_ != DQ_OK) return cu_status_;                                                                    \
    } while (0)
#define CU_ENTER(device)                                                                                               \
    dq_cuda_device *dev = (dq_cuda_device *)(device);                                                                  \
    CU_TRY(dq_cuda_enter(dev))

/* ---- the slots, by file ---- */
#define DQ_CUDA_SLOT extern "C" dq_status

/* memory.cu */
DQ_CUDA_SLOT dq_cuda_alloc(void *dev, uint64_t bytes, void **mem);
extern "C" void dq_cuda_free(void *dev, void *mem);
DQ_CUDA_SLOT dq_cuda_sync(void *dev);
/* transfer.cu */
DQ_CUDA_SLOT dq_cuda_upload(void *dev, void *mem, uint64_t offset, const void *src, uint64_t bytes);
DQ_CUDA_SLOT dq_cuda_download(void *dev, void *dst, void *mem, uint64_t offset, uint64_t bytes);
/* data.cu */
DQ_CUDA_SLOT dq_cuda_fill(void *dev, double value, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_convert(void *dev, const dq_view *x, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_axpy(void *dev, double alpha, const dq_view *x, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_scale_cols(void *dev, const dq_view *x, const dq_view *v, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_gather_rows(void *dev, const dq_view *x, const dq_view *index, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_gather_cols(void *dev, const dq_view *x, const dq_view *index, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_find_nonfinite(void *dev, const dq_view *x, int64_t *index);
DQ_CUDA_SLOT dq_cuda_adam(void *dev, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                          const dq_view *mean, const dq_view *square);
DQ_CUDA_SLOT dq_cuda_dot(void *dev, const dq_view *x, const dq_view *y, double *out);
DQ_CUDA_SLOT dq_cuda_diag(void *dev, const dq_view *h, const dq_view *v);
/* gemm.cu */
DQ_CUDA_SLOT dq_cuda_gemm(void *dev, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                          double beta, const dq_view *c, int32_t math);
/* syrk.cu */
DQ_CUDA_SLOT dq_cuda_syrk(void *dev, double alpha, const dq_view *x, double beta, const dq_view *h);
/* forward.cu */
DQ_CUDA_SLOT dq_cuda_rmsnorm(void *dev, const dq_view *x, const dq_view *weight, double eps, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_layernorm(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                               const dq_view *y);
DQ_CUDA_SLOT dq_cuda_rope(void *dev, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x);
DQ_CUDA_SLOT dq_cuda_activation(void *dev, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y);
/* attention.cu, head.cu, fake_quant.cu, hadamard.cu */
DQ_CUDA_SLOT dq_cuda_attention(void *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                               const dq_view *v, const dq_view *o);
DQ_CUDA_SLOT dq_cuda_head_nll(void *dev, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                              const dq_view *state, int32_t math);
DQ_CUDA_SLOT dq_cuda_fake_quant(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_rmsnorm_quant(void *dev, const dq_view *x, const dq_view *weight, double eps,
                                   const dq_fake_quant_desc *d, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_layernorm_quant(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias,
                                     double eps, const dq_fake_quant_desc *d, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_hadamard(void *dev, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_hadamard_quant(void *dev, const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_view *x,
                                    const dq_view *y);
/* factor.cu */
DQ_CUDA_SLOT dq_cuda_gptq_factor(void *dev, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                                 int64_t *info);
DQ_CUDA_SLOT dq_cuda_gptq_root(void *dev, const dq_view *h, const dq_view *perm, double damp, int64_t block,
                               const dq_view *root, int64_t *info);
DQ_CUDA_SLOT dq_cuda_qr(void *dev, const dq_view *a, const dq_view *q, const dq_view *r);
/* rotation_loss.cu, orthogonal.cu, compare.cu */
DQ_CUDA_SLOT dq_cuda_rotation_loss(void *dev, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                                   const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss);
DQ_CUDA_SLOT dq_cuda_qr_batch(void *dev, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r);
DQ_CUDA_SLOT dq_cuda_qr_grad(void *dev, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                             const dq_view *da);
DQ_CUDA_SLOT dq_cuda_polar(void *dev, int64_t groups, int32_t math, const dq_view *a, const dq_view *u, double *error);
DQ_CUDA_SLOT dq_cuda_compare_logits(void *dev, const dq_view *a, const dq_view *b, int64_t first, const dq_view *state);
/* packed.cu, kv_store.cu, kv_attention.cu */
DQ_CUDA_SLOT dq_cuda_packed_linear(void *dev, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                                   const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y);
DQ_CUDA_SLOT dq_cuda_kv_store(void *dev, const dq_kv_desc *d, const dq_view *x, const dq_view *slot,
                              const dq_view *cache, const dq_view *grid);
DQ_CUDA_SLOT dq_cuda_kv_attention(void *dev, const dq_kv_attention_desc *d, const dq_view *q, const dq_view *k,
                                  const dq_view *k_grid, const dq_view *v, const dq_view *v_grid, const dq_view *span,
                                  const dq_view *o);
/* int8.cu */
DQ_CUDA_SLOT dq_cuda_quantize_rows(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *codes,
                                   const dq_view *grid);
DQ_CUDA_SLOT dq_cuda_rmsnorm_rows(void *dev, const dq_view *x, const dq_view *weight, double eps,
                                  const dq_fake_quant_desc *d, const dq_view *codes, const dq_view *grid);
DQ_CUDA_SLOT dq_cuda_layernorm_rows(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                                    const dq_fake_quant_desc *d, const dq_view *codes, const dq_view *grid);
DQ_CUDA_SLOT dq_cuda_hadamard_rows(void *dev, const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_view *x,
                                   const dq_view *codes, const dq_view *grid);
DQ_CUDA_SLOT dq_cuda_int8_linear(void *dev, double beta, const dq_view *x, const dq_view *x_grid, const dq_view *w,
                                 const dq_view *w_grid, const dq_view *y);
/* levels.cu */
DQ_CUDA_SLOT dq_cuda_levels_quant(void *dev, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                                  const dq_view *levels, const dq_view *position, const dq_view *y);
/* weight.cu, gptq.cu */
DQ_CUDA_SLOT dq_cuda_weight_grid(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                 const dq_view *zero);
DQ_CUDA_SLOT dq_cuda_quantize_weight(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                     const dq_view *zero, const dq_view *group_index, const dq_view *codes);
DQ_CUDA_SLOT dq_cuda_dequantize_weight(void *dev, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                       const dq_view *zero, const dq_view *group_index, const dq_view *w);
DQ_CUDA_SLOT dq_cuda_gptq_block(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *u,
                                const dq_view *scale, const dq_view *zero, const dq_view *group_index,
                                const dq_view *codes, const dq_view *err);

#endif
