/* Inside of the CPU backend's quantization part: the kernels that each instruction set supplies, and the ops.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_QUANTIZE_H
#define DQ_BACKEND_CPU_QUANTIZE_H

#include "backend/cpu/cpu.h"

/* Grid of one row of weights. */
typedef struct dq_code_row {
    const float *scale, *zero;
    const int32_t *index; /* group of each column, or NULL: column / group */
    int64_t cols, group;
    float top; /* 2^bits - 1 */
} dq_code_row;

/* One shrunk grid of the clip search; bottom and top are codes relative to the zero point. */
typedef struct dq_grid_candidate {
    float scale, bottom, top, norm;
} dq_grid_candidate;

typedef struct dq_gptq_job {
    const dq_view *w, *scale, *zero, *codes, *err;
    const double *u; /* the block's factor, [cols][cols], fp64 */
    const int32_t *index;
    int64_t cols;
    double top;
} dq_gptq_job;

enum { DQ_GPTQ_ROWS_MAX = 16 };
#define DQ_GPTQ_SCRATCH(cols) ((size_t)(cols)*DQ_GPTQ_ROWS_MAX * (2 * sizeof(double) + 1))

/* Levels of levels_quant after Q-Norm, and what lies in the middle between each and the next, filled up to a power of two with
 * infinity. Up to sixteen are found in `steps` bisections of `coarse`; of more it holds the middles between blocks. */
typedef struct dq_level_table {
    float middle[256], value[256], coarse[16];
    int steps, log_block;
} dq_level_table;

typedef struct dq_level_columns {
    const dq_level_table *table;
    const float *lo, *hi;
    bool keep;
} dq_level_columns;

typedef struct dq_level_row {
    const dq_level_table *table;
    float lo, hi, low, high; /* the range; at and beyond low and high are outliers */
    bool keep;
} dq_level_row;

/* Of the numbers of a row at or below the lower threshold, and of those between both. */
typedef struct dq_row_inside {
    int64_t below, count;
    float least, largest;
} dq_row_inside;

/* The numbers at ranks i, i + 1, n - 1 - i and n - 2 - i of a row in order. */
typedef struct dq_row_ends {
    float first, second, last, before_last;
} dq_row_ends;

enum { DQ_ENDS_LANES = 4 };

typedef struct dq_quant_kernels {
    int vector_bytes;
    /* Sylvester transforms of order 1 << log_n, times scale, of `total` contiguous elements (a multiple of the order);
     * strided: of one block whose elements lie `inner` apart. In place allowed. */
    void (*fwht_f32)(const float *x, float *y, int64_t total, int log_n, float scale);
    void (*fwht_f64)(const double *x, double *y, int64_t total, int log_n, double scale);
    void (*fwht_strided_f32)(const float *x, float *y, int64_t inner, int log_n, float scale);
    void (*fwht_strided_f64)(const double *x, double *y, int64_t inner, int log_n, double scale);
    /* Product with a k x k table of +-1; see fwht_kernel.h. scratch: DQ_MIX_SCRATCH(k) bytes, 64-byte aligned. */
    void (*mix_f32)(const float *x, float *y, int64_t width, int64_t k, const uint8_t *pick, float *scratch,
                    float scale);
    void (*mix_f64)(const double *x, double *y, int64_t width, int64_t k, const uint8_t *pick, double *scratch,
                    double scale);
    void (*fake_quant)(const dq_fake_quant_desc *d, int64_t cols, const float *x, float *y);
    void (*levels_columns)(const dq_level_columns *j, const float *x, float *y, int64_t n);
    void (*levels_row)(const dq_level_row *j, const float *x, float *y, int64_t n); /* without NaN */
    bool (*row_range)(const float *x, int64_t n, float *lo, float *hi);             /* false: a NaN is among them */
    /* Those for i = k - 2, k at most DQ_ENDS_LANES vectors of floats and n; false: a NaN is among them. scratch: 2 n floats. */
    bool (*row_ends)(const float *x, int64_t n, int64_t k, float *scratch, dq_row_ends *out);
    void (*row_inside)(const float *x, int64_t n, float low, float high, dq_row_inside *out);
    void (*quantize)(const dq_code_row *row, const float *w, uint8_t *codes);
    void (*dequantize)(const dq_code_row *row, const uint8_t *codes, float *w);
    void (*grid_range)(const float *w, int64_t n, float *lo, float *hi);
    float (*grid_error)(const float *w, int64_t n, const dq_grid_candidate *c, float limit);
    void (*gptq_rows)(const dq_gptq_job *job, int64_t r0, int64_t rows, void *scratch);
} dq_quant_kernels;

#define DQ_MIX_SCRATCH(k) (((size_t)(k) + 3) / 4 * 16 * 64)

extern const dq_quant_kernels dq_quant_kernels_plain;
#if defined(__x86_64__)
extern const dq_quant_kernels dq_quant_kernels_avx2, dq_quant_kernels_avx512;
#endif
const dq_quant_kernels *dq_cpu_quant_kernels(const dq_cpu_dev *dev);

static inline int64_t dq_least(int64_t a, int64_t b) { return a < b ? a : b; }

/* hadamard.c */
dq_status dq_cpu_hadamard(void *device, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y);
/* weight_grid.c */
dq_status dq_cpu_weight_grid(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                             const dq_view *zero);
/* codes.c */
dq_status dq_cpu_quantize_weight(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                 const dq_view *zero, const dq_view *group_index, const dq_view *codes);
dq_status dq_cpu_dequantize_weight(void *device, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                   const dq_view *zero, const dq_view *group_index, const dq_view *w);
dq_status dq_cpu_gptq_block(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *u,
                            const dq_view *scale, const dq_view *zero, const dq_view *group_index, const dq_view *codes,
                            const dq_view *err);
/* levels.c */
/* The numbers of ranks `rank` and rank + 1 (0 = smallest; without a next the same again); `a` is reordered. */
void dq_cpu_two_ranks(float *a, int64_t n, int64_t rank, float *first, float *next);
dq_status dq_cpu_levels_quant(void *device, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                              const dq_view *levels, const dq_view *position, const dq_view *y);
/* syrk.c, factor.c, qr.c */
dq_status dq_cpu_syrk(void *device, double alpha, const dq_view *x, double beta, const dq_view *h);
dq_status dq_cpu_gptq_factor(void *device, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                             int64_t *info);
dq_status dq_cpu_qr(void *device, const dq_view *a, const dq_view *q, const dq_view *r);

#endif
