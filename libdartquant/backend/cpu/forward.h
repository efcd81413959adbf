/* Inside of the CPU backend's forward part: the ops, and the row kernels each SIMD level supplies.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_FORWARD_H
#define DQ_BACKEND_CPU_FORWARD_H

#include "backend/cpu/cpu.h"

static inline int64_t dq_min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t dq_max64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t dq_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Kernels on contiguous elements. Source and destination are the same or do not overlap. */
typedef struct dq_row_kernels {
    void (*bf16_to_f32)(const void *x, void *y, int64_t n);
    void (*f32_to_bf16)(const void *x, void *y, int64_t n);
    void (*round_bf16)(const void *x, void *y, int64_t n); /* f32 to f32; in place allowed */
    void (*f16_to_f32)(const void *x, void *y, int64_t n);
    void (*f32_to_f16)(const void *x, void *y, int64_t n);
    void (*f32_to_f64)(const void *x, void *y, int64_t n);
    void (*f64_to_f32)(const void *x, void *y, int64_t n);
    void (*axpy_f32)(double alpha, const void *x, void *y, int64_t n);
    void (*axpy_f64)(double alpha, const void *x, void *y, int64_t n);
    void (*mul_f32)(const void *x, const void *v, void *y, int64_t n);
    void (*mul_f64)(const void *x, const void *v, void *y, int64_t n);
    double (*dot_f32)(const void *x, const void *y, int64_t n);
    double (*dot_f64)(const void *x, const void *y, int64_t n);
    int (*nonfinite_16)(const void *x, int64_t n, uint16_t exponent); /* whether there is one */
    int (*nonfinite_f32)(const void *x, int64_t n);
    int (*nonfinite_f64)(const void *x, int64_t n);
    void (*rmsnorm)(const float *x, const float *weight, double eps, float *y, int64_t n); /* weight may be NULL */
    void (*layernorm)(const float *x, const float *weight, const float *bias, double eps, float *y,
                      int64_t n);                                                   /* weight and bias may be NULL */
    void (*rope)(float *x, const float *cos, const float *sin, int64_t half);       /* one head */
    void (*activation[4])(const float *gate, const float *up, float *y, int64_t n); /* by DQ_ACT_*; up may be NULL */
    void (*max_sumexp)(const float *x, int64_t n, float *max, double *sum);
    /* sum of e^(a - top) (a - b) */
    double (*expected_gap)(const float *a, const float *b, float top, int64_t n);
} dq_row_kernels;

extern const dq_row_kernels dq_rows_plain, dq_rows_avx2, dq_rows_avx512;

/* The level's table; levels this architecture has no kernels for are never chosen (cpuid.c). */
#if defined(__x86_64__)
#define DQ_CPU_PICK(dev, name)                                                                                         \
    ((dev)->simd == DQ_SIMD_AVX512 ? &name##_avx512 : (dev)->simd == DQ_SIMD_AVX2 ? &name##_avx2 : &name##_plain)
#else
#define DQ_CPU_PICK(dev, name) (&name##_plain)
#endif
static inline const dq_row_kernels *dq_cpu_rows(const dq_cpu_dev *dev) { return DQ_CPU_PICK(dev, dq_rows); }

/* elementwise.c */
dq_status dq_cpu_fill(void *device, double value, const dq_view *y);
dq_status dq_cpu_convert(void *device, const dq_view *x, const dq_view *y);
dq_status dq_cpu_axpy(void *device, double alpha, const dq_view *x, const dq_view *y);
dq_status dq_cpu_scale_cols(void *device, const dq_view *x, const dq_view *v, const dq_view *y);
dq_status dq_cpu_gather_rows(void *device, const dq_view *x, const dq_view *index, const dq_view *y);
dq_status dq_cpu_find_nonfinite(void *device, const dq_view *x, int64_t *index);
dq_status dq_cpu_dot(void *device, const dq_view *x, const dq_view *y, double *out);
/* layer.c */
dq_status dq_cpu_rmsnorm(void *device, const dq_view *x, const dq_view *weight, double eps, const dq_view *y);
dq_status dq_cpu_layernorm(void *device, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                           const dq_view *y);
dq_status dq_cpu_rope(void *device, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x);
dq_status dq_cpu_activation(void *device, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y);
/* attention.c */
dq_status dq_cpu_attention(void *device, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                           const dq_view *v, const dq_view *o);
/* head_nll.c */
dq_status dq_cpu_head_nll(void *device, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                          const dq_view *state, int32_t math);
/* compare.c */
dq_status dq_cpu_compare_logits(void *device, const dq_view *a, const dq_view *b, int64_t first, const dq_view *state);
/* widen.c */
/* Whether a product in fp32 can read the view as it is. */
static inline bool dq_cpu_is_wide(const dq_view *v, int32_t math) { return v->dtype == DQ_F32 && math != DQ_MATH_BF16; }
/* Row r of what is not plain fp32 (F32 only where it is to be rounded) in fp32. */
void dq_cpu_widen_row(const dq_row_kernels *kernels, const dq_view *x, int64_t r, bool round, float *y);
/* The F32, F16 or BF16 view in fp32 at `out`, packed; rounded to bf16 first under DQ_MATH_BF16. */
dq_view dq_cpu_widen(dq_cpu_dev *dev, const dq_view *v, int32_t math, float *out);
static inline dq_view dq_view_slice(const dq_view *v, int64_t r0, int64_t rows, int64_t c0, int64_t cols, int64_t size)
{
    dq_view s = *v;
    s.offset += (uint64_t)((r0 * v->stride + c0) * size);
    s.rows = rows;
    s.cols = cols;
    return s;
}
/* gemm.c */
dq_status dq_cpu_gemm(void *device, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                      double beta, const dq_view *c, int32_t math);

#endif
