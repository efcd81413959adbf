/* The ops of the reference table and what their files share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_REF_OPS_H
#define DQ_BACKEND_REF_OPS_H

#include <stdbool.h>

#include "backend/ref/ref.h"
#include "base/dtype.h"
#include "base/half.h"

/* Records a formatted failure through the host. */
dq_status dq_ref_fail(void *dev, dq_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* count * size bytes of host memory, or NULL with the error recorded; give back with dq_ref_release. */
void *dq_ref_scratch(void *dev, int64_t count, size_t size);
void dq_ref_release(void *dev, void *ptr);
/* Every entry of an I32 [1, n] view must lie in [0, limit). */
dq_status dq_ref_check_index(void *dev, const dq_view *index, int64_t limit, const char *op);

/* One element as fp64: exact for every floating type. */
static inline double dq_ref_get(const dq_view *v, int64_t row, int64_t col)
{
    switch (v->dtype) {
        case DQ_F64: return *(const double *)dq_view_at(v, row, col, 8);
        case DQ_F32: return *(const float *)dq_view_at(v, row, col, 4);
        case DQ_BF16: return dq_bf16_to_f32(*(const uint16_t *)dq_view_at(v, row, col, 2));
        default: return dq_f16_to_f32(*(const uint16_t *)dq_view_at(v, row, col, 2));
    }
}

/* Stores with a single rounding, half to even. */
static inline void dq_ref_put(const dq_view *v, int64_t row, int64_t col, double x)
{
    switch (v->dtype) {
        case DQ_F64: *(double *)dq_view_at(v, row, col, 8) = x; break;
        case DQ_F32: *(float *)dq_view_at(v, row, col, 4) = (float)x; break;
        case DQ_BF16: *(uint16_t *)dq_view_at(v, row, col, 2) = dq_f64_to_bf16(x); break;
        default: *(uint16_t *)dq_view_at(v, row, col, 2) = dq_f64_to_f16(x); break;
    }
}

/* An operand of a product: DQ_MATH_BF16 rounds whatever is wider than bf16, except fp64. */
static inline double dq_ref_operand(const dq_view *v, int64_t row, int64_t col, int32_t math)
{
    double x = dq_ref_get(v, row, col);
    if (math != DQ_MATH_BF16 || v->dtype == DQ_F64) return x;
    return dq_bf16_to_f32(dq_f32_to_bf16((float)x));
}

static inline bool dq_ref_is_float(dq_dtype t) { return t == DQ_F64 || t == DQ_F32 || t == DQ_F16 || t == DQ_BF16; }

/* data.c */
dq_status dq_ref_fill(void *dev, double value, const dq_view *y);
dq_status dq_ref_convert(void *dev, const dq_view *x, const dq_view *y);
dq_status dq_ref_axpy(void *dev, double alpha, const dq_view *x, const dq_view *y);
dq_status dq_ref_scale_cols(void *dev, const dq_view *x, const dq_view *v, const dq_view *y);
dq_status dq_ref_gather_rows(void *dev, const dq_view *x, const dq_view *index, const dq_view *y);
dq_status dq_ref_gather_cols(void *dev, const dq_view *x, const dq_view *index, const dq_view *y);
dq_status dq_ref_find_nonfinite(void *dev, const dq_view *x, int64_t *index);
dq_status dq_ref_dot(void *dev, const dq_view *x, const dq_view *y, double *out);
dq_status dq_ref_diag(void *dev, const dq_view *h, const dq_view *v);
/* gemm.c */
dq_status dq_ref_gemm(void *dev, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                      double beta, const dq_view *c, int32_t math);
dq_status dq_ref_syrk(void *dev, double alpha, const dq_view *x, double beta, const dq_view *h);
/* norm_rope.c */
dq_status dq_ref_rmsnorm(void *dev, const dq_view *x, const dq_view *weight, double eps, const dq_view *y);
dq_status dq_ref_layernorm(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                           const dq_view *y);
dq_status dq_ref_rope(void *dev, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x);
dq_status dq_ref_activation(void *dev, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y);
/* attention.c, head_nll.c */
dq_status dq_ref_attention(void *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k, const dq_view *v,
                           const dq_view *o);
dq_status dq_ref_head_nll(void *dev, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                          const dq_view *state, int32_t math);
dq_status dq_ref_compare_logits(void *dev, const dq_view *a, const dq_view *b, int64_t first, const dq_view *state);
/* fake_quant.c, hadamard.c */
/* One group of n columns. */
void dq_ref_quantize_group(const dq_fake_quant_desc *d, const float *x, float *y, int64_t n);
/* Its grid: codes rint(x / scale) + zero in [lo, hi]; scale 0 = empty range. */
typedef struct dq_ref_grid {
    float scale, zero, lo, hi;
} dq_ref_grid;
dq_ref_grid dq_ref_grid_of(const dq_fake_quant_desc *d, const float *x, int64_t n);
static inline float dq_ref_clamp(float x, float lo, float hi) { return x < lo ? lo : x > hi ? hi : x; }
dq_status dq_ref_fake_quant(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y);
dq_status dq_ref_hadamard(void *dev, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y);
/* levels.c */
dq_status dq_ref_levels_quant(void *dev, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                              const dq_view *levels, const dq_view *position, const dq_view *y);
/* factor.c */
dq_status dq_ref_gptq_factor(void *dev, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                             int64_t *info);
dq_status dq_ref_gptq_root(void *dev, const dq_view *h, const dq_view *perm, double damp, int64_t block,
                           const dq_view *root, int64_t *info);
dq_status dq_ref_qr(void *dev, const dq_view *a, const dq_view *q, const dq_view *r);
/* rotation_loss.c, orthogonal.c */
/* Of one rotated row o [width], neither divided nor scaled; slope [width] = dL/do; scratch: 2 width floats. */
double dq_ref_loss_of_row(const dq_rotation_loss_desc *d, int64_t width, double *o, double *slope, float *scratch);
dq_status dq_ref_rotation_loss(void *dev, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                               const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss);
dq_status dq_ref_qr_batch(void *dev, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r);
dq_status dq_ref_qr_grad(void *dev, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                         const dq_view *da);
dq_status dq_ref_polar(void *dev, int64_t groups, int32_t math, const dq_view *a, const dq_view *u, double *error);
/* weight_grid.c, weight_quant.c */
dq_status dq_ref_weight_grid(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                             const dq_view *zero);
dq_status dq_ref_quantize_weight(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                 const dq_view *zero, const dq_view *group_index, const dq_view *codes);
dq_status dq_ref_dequantize_weight(void *dev, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                   const dq_view *zero, const dq_view *group_index, const dq_view *w);
dq_status dq_ref_gptq_block(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *u, const dq_view *scale,
                            const dq_view *zero, const dq_view *group_index, const dq_view *codes, const dq_view *err);

/* optimiser.c */
dq_status dq_ref_adam(void *dev, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                      const dq_view *mean, const dq_view *square);

/* int8.c */
dq_status dq_ref_quantize_rows(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *grid);
dq_status dq_ref_int8_linear(void *dev, double beta, const dq_view *x, const dq_view *x_grid, const dq_view *w,
                             const dq_view *w_grid, const dq_view *y);

/* generate.c */
dq_status dq_ref_packed_linear(void *dev, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y);
dq_status dq_ref_kv_store(void *dev, const dq_kv_desc *d, const dq_view *x, const dq_view *slot, const dq_view *cache,
                          const dq_view *grid);
dq_status dq_ref_kv_attention(void *dev, const dq_kv_attention_desc *d, const dq_view *q, const dq_view *k,
                              const dq_view *k_grid, const dq_view *v, const dq_view *v_grid, const dq_view *span,
                              const dq_view *o);
/* Columns of x that packed weights are stored for, and whether each order is -1 or a column. */
dq_status dq_ref_check_order(void *dev, const dq_view *order, int64_t columns);
/* Every span lies in the cache's rows and is not empty. */
dq_status dq_ref_check_span(void *dev, const dq_view *span, int64_t slots);

#endif
