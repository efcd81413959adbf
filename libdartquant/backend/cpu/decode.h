/* Inside of the CPU backend's generation part: products of few rows, packed weights, cached keys and values.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_DECODE_H
#define DQ_BACKEND_CPU_DECODE_H

#include "backend/cpu/forward.h"

enum {
    DQ_DECODE_ROWS = 8,  /* rows of x that the kernels take at a time */
    DQ_DECODE_LANES = 16 /* the widest vector */
};

/* x of a packed linear, laid out as the kernels read it. A vector of words holds `per` codes in each lane: code i of lane l of
 * block b is column (b * lanes + l) * per + i, and stands in x at (b * per + i) * lanes + l. */
typedef struct dq_packed_x {
    const float *x;          /* [rows][stride]; NULL where x is rounded: */
    const int8_t *codes;     /* [rows][stride], of 4-bit weights the even columns of a block before the odd ones */
    const float *lane_scale; /* [rows][blocks * lanes]: of the codes */
    const int32_t
        *lane_start;  /* [rows][blocks * lanes]: what is added to a lane's products; 0, or -middle * sum of x's codes */
    const float *sum; /* [rows][groups]: sums of x over a group's columns */
    int64_t stride, rows, groups;
    int64_t blocks;
    int64_t row_bytes;          /* of codes */
    const int32_t *lane_group;  /* [blocks][lanes]: group of a lane less that of the block's first */
    const int32_t *block_group; /* [blocks]: group of the first lane */
} dq_packed_x;

/* Rows of packed weights; strides in bytes from one to the next. */
typedef struct dq_packed_w {
    const uint8_t *codes;
    const char *scale; /* F32, or F16 where `half` */
    const char *zero;  /* NULL: the middle code; bytes; where `minimum`, of the scale's type and added */
    int64_t code_stride, scale_stride, zero_stride;
    bool half, minimum;
} dq_packed_w;

/* y[r][o] = beta y[r][o] + alpha sum_j x[r][j] w[o][j], n a multiple of the kernels' lanes; beta 0 ignores the old y. */
typedef struct dq_dots {
    const float *w, *x;
    float *y;
    int64_t w_stride, x_stride, y_stride;
    int64_t rows, outs, n;
    float alpha, beta;
} dq_dots;

/* One head of cached tokens as floats. */
typedef struct dq_keys {
    const float *at;
    int64_t stride, count, dim;
} dq_keys;

/* out[o][r] = sum_j x[r][j] w[o][j] for `rows` rows of packed weights */
typedef void (*dq_packed_fn)(const dq_packed_x *x, const dq_packed_w *w, int64_t rows, float (*out)[DQ_DECODE_ROWS]);

enum { DQ_INT8_RUN = 32 /* columns of x that share a scale */ };

/* Products of rounded x. */
typedef struct dq_int8_kernels {
    int lanes;
    bool signed8; /* packed8 takes the middle off itself: nothing is to be added */
    dq_packed_fn packed4, packed8;
    /* codes[DQ_INT8_RUN] of x as backend.h rounds them; returns their scale, NaN where x is not finite. */
    float (*round)(const float *x, int8_t *codes);
} dq_int8_kernels;

typedef struct dq_decode_kernels {
    int lanes;
    dq_packed_fn packed4, packed8;
    /* The first row of w: n codes of `group` columns a scale as weights, the reference's bits. */
    void (*dequantize)(const dq_packed_w *w, int bits, int64_t n, int64_t group, float *out);
    /* The same in the order of x, blocks [first, end) of a row. */
    void (*spread)(const dq_packed_x *x, int64_t first, int64_t end, const dq_packed_w *w, int bits, float *out);
    void (*dots)(const dq_dots *d);
    /* The same for n plain weights, rows of x `stride` apart; dtype F32, F16 or BF16, `round` to bf16. */
    void (*dense)(const float *x, int64_t stride, int64_t rows, const void *w, dq_dtype dtype, bool round, int64_t n,
                  float *out);
    /* p[j] = scale q.k_j */
    void (*scores)(const float *q, const dq_keys *k, float scale, float *p);
    /* p = e^(p - max p) over their sum */
    void (*softmax)(float *p, int64_t n);
    /* o += sum_j p[j] v_j, in the order of j */
    void (*weigh)(const float *p, const dq_keys *v, float *o);
} dq_decode_kernels;

extern const dq_decode_kernels dq_decode_plain, dq_decode_avx2, dq_decode_avx512;
extern const dq_int8_kernels dq_int8_plain, dq_int8_avx2, dq_int8_vnni;
static inline const dq_int8_kernels *dq_cpu_int8(const dq_cpu_dev *dev)
{
#if defined(__x86_64__)
    if (dev->vnni) return &dq_int8_vnni;
    if (dev->simd >= DQ_SIMD_AVX2) return &dq_int8_avx2;
#endif
    (void)dev;
    return &dq_int8_plain;
}
static inline const dq_decode_kernels *dq_cpu_decode(const dq_cpu_dev *dev) { return DQ_CPU_PICK(dev, dq_decode); }

/* gemm_few.c */
/* c = alpha a b^T + beta c for at most DQ_DECODE_ROWS rows of a; a, c F32, b F32, F16 or BF16; DQ_MATH_BF16 rounds both. */
dq_status dq_cpu_gemm_few(dq_cpu_dev *dev, double alpha, const dq_view *a, const dq_view *b, double beta,
                          const dq_view *c, int32_t math);
/* gemm_some.c */
enum {
    DQ_SOME_ROWS = 200 /* rows of x up to which products beat those of BLAS, which packs the weights at each call */
};
/* The same in fp32 for up to DQ_SOME_ROWS rows of a, and at least one column; b F16 or BF16. */
dq_status dq_cpu_gemm_some(dq_cpu_dev *dev, double alpha, const dq_view *a, const dq_view *b, double beta,
                           const dq_view *c);
/* packed_linear.c */
dq_status dq_cpu_packed_linear(void *device, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y);
/* kv_attention.c */
dq_status dq_cpu_kv_attention(void *device, const dq_kv_attention_desc *d, const dq_view *q, const dq_view *k,
                              const dq_view *k_grid, const dq_view *v, const dq_view *v_grid, const dq_view *span,
                              const dq_view *o);

#endif
