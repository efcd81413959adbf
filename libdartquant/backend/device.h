/* A device in use, tensors on it, and one checked function per op. Everything above this room talks to devices only
 * through these. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_DEVICE_H
#define DQ_BACKEND_DEVICE_H

#include "base/dtype.h"
#include "base/env.h"
#include "dartquant/backend.h"
#include "dartquant/context.h"

typedef enum dq_policy { DQ_POLICY_FORBID = 0, DQ_POLICY_WARN = 1, DQ_POLICY_ALLOW = 2 } dq_policy;

/* An opened backend plus a `ref` device for ops it lacks. */
typedef struct dq_device dq_device;

/* The table of a backend that is part of the library: "auto" (= cpu), "cpu", "ref"; else NULL, no error recorded. */
const dq_backend *dq_builtin_backend(const char *name);
/* The same, or a plug-in: its absolute path, or the bare name of one in the plug-in folder beside the library. */
dq_status dq_backend_find(const char *name, const dq_backend **out);

/* name as for dq_backend_find, options as in dq_backend.open ("simd=plain|avx2|avx512|amx|auto" for cpu). A host's own
 * table is opened directly. */
dq_status dq_device_open(dq_env *env, const char *name, const char *options, dq_policy policy, dq_device **out);
dq_status dq_device_open_table(dq_env *env, const dq_backend *table, const char *options, dq_policy policy,
                               dq_device **out);
void dq_device_close(dq_device *dev);
dq_env *dq_device_env(const dq_device *dev);
dq_status dq_device_get_info(dq_device *dev, dq_device_info *out);
uint64_t dq_device_fallbacks(const dq_device *dev);
const dq_device_counters *dq_device_get_counters(const dq_device *dev);
const char *dq_device_backend(const dq_device *dev); /* name in its table */
/* Whether its memory is out of the host's reach, whatever it holds. */
bool dq_device_is_far(const dq_device *dev);
/* Whether inputs of products are best rounded by the op that makes them (DQ_FEATURE_BF16). */
bool dq_device_rounds_inputs(const dq_device *dev);
/* The i-th op whose slot is empty, NULL behind the last. */
const char *dq_device_missing_op(const dq_device *dev, int i);

/* Device memory with an owner: ops refuse tensors of another device. A tensor is a view; dq_tensor_alloc makes one
 * that owns its memory, slices borrow it. Plain struct so that slices need no allocation. */
typedef struct dq_tensor {
    dq_device *dev; /* NULL = empty tensor */
    dq_view view;
    bool owns;
    bool on_host; /* view.mem is an address in memory of the host */
} dq_tensor;

/* Contiguous rows x cols; contents undefined. */
dq_status dq_tensor_alloc(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols, dq_tensor *out);
/* The same in memory of the host, for what the device has no room for: knows uploads, downloads and slices, no op takes it. */
dq_status dq_tensor_alloc_host(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols, dq_tensor *out);
/* Address of a row of such a tensor. */
void *dq_tensor_host_row(const dq_tensor *t, int64_t row);
void dq_tensor_free(dq_tensor *t); /* also accepts slices and empty tensors; leaves an empty tensor */
/* rows [r0, r0+rows), cols [c0, c0+cols) of t. */
dq_tensor dq_tensor_slice(const dq_tensor *t, int64_t r0, int64_t rows, int64_t c0, int64_t cols);
static inline dq_tensor dq_tensor_rows(const dq_tensor *t, int64_t r0, int64_t rows)
{
    return dq_tensor_slice(t, r0, rows, 0, t->view.cols);
}
/* The same elements with every row cut in rows of `cols`, which divides them; empty where rows do not touch. */
dq_tensor dq_tensor_split_rows(const dq_tensor *t, int64_t cols);
static inline bool dq_tensor_is_empty(const dq_tensor *t) { return t == NULL || t->dev == NULL; }
/* Whether the host could touch its memory itself. */
bool dq_tensor_in_reach(const dq_tensor *t);
/* Whole tensor from or to packed host memory of the same dtype. */
dq_status dq_tensor_upload(dq_tensor *t, const void *src);
dq_status dq_tensor_download(const dq_tensor *t, void *dst);
/* alloc + upload */
dq_status dq_tensor_from_host(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols, const void *src,
                              dq_tensor *out);

/* The ops of dartquant/backend.h, same semantics; shapes, dtypes and owners are checked here so that backends need
 * not. Tensors documented as optional may be NULL. BF16 where DQ_FEATURE_BF16 names it works on every device. */
dq_status dq_op_fill(double value, dq_tensor *y);
dq_status dq_op_convert(const dq_tensor *x, dq_tensor *y);
dq_status dq_op_axpy(double alpha, const dq_tensor *x, dq_tensor *y);
dq_status dq_op_scale_cols(const dq_tensor *x, const dq_tensor *v, dq_tensor *y);
dq_status dq_op_gather_rows(const dq_tensor *x, const dq_tensor *index, dq_tensor *y);
dq_status dq_op_gather_cols(const dq_tensor *x, const dq_tensor *index, dq_tensor *y);
dq_status dq_op_find_nonfinite(const dq_tensor *x, int64_t *index);
dq_status dq_op_dot(const dq_tensor *x, const dq_tensor *y, double *out);
dq_status dq_op_gemm(bool trans_a, bool trans_b, double alpha, const dq_tensor *a, const dq_tensor *b, double beta,
                     dq_tensor *c, int math);
dq_status dq_op_rmsnorm(const dq_tensor *x, const dq_tensor *weight, double eps, dq_tensor *y);
dq_status dq_op_layernorm(const dq_tensor *x, const dq_tensor *weight, const dq_tensor *bias, double eps, dq_tensor *y);
dq_status dq_op_rope(const dq_tensor *cos, const dq_tensor *sin, int64_t head_dim, dq_tensor *x);
dq_status dq_op_activation(int kind, const dq_tensor *gate, const dq_tensor *up, dq_tensor *y);
dq_status dq_op_attention(const dq_attention_desc *d, const dq_tensor *q, const dq_tensor *k, const dq_tensor *v,
                          dq_tensor *o);
dq_status dq_op_head_nll(const dq_tensor *x, const dq_tensor *w, const dq_tensor *targets, int64_t first,
                         dq_tensor *state, int math);
dq_status dq_op_compare_logits(const dq_tensor *a, const dq_tensor *b, int64_t first, dq_tensor *state);
dq_status dq_op_fake_quant(const dq_fake_quant_desc *d, const dq_tensor *x, dq_tensor *y);
dq_status dq_op_hadamard(const dq_hadamard_desc *d, const dq_tensor *x, dq_tensor *y);
/* y = fake_quant of rmsnorm(x), layernorm(x), hadamard(x): in one pass where the device can, else by the two ops. */
dq_status dq_op_rmsnorm_quant(const dq_tensor *x, const dq_tensor *weight, double eps, const dq_fake_quant_desc *d,
                              dq_tensor *y);
dq_status dq_op_layernorm_quant(const dq_tensor *x, const dq_tensor *weight, const dq_tensor *bias, double eps,
                                const dq_fake_quant_desc *d, dq_tensor *y);
dq_status dq_op_hadamard_quant(const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_tensor *x,
                               dq_tensor *y);
/* range NULL with per_row; position optional. */
dq_status dq_op_levels_quant(const dq_levels_quant_desc *d, const dq_tensor *x, const dq_tensor *range,
                             const dq_tensor *levels, const dq_tensor *position, dq_tensor *y);
dq_status dq_op_syrk(double alpha, const dq_tensor *x, double beta, dq_tensor *h);
dq_status dq_op_diag(const dq_tensor *h, dq_tensor *v);
dq_status dq_op_gptq_factor(const dq_tensor *h, const dq_tensor *perm, double damp, dq_tensor *u, int64_t *info);
/* *served = false where the device has only gptq_factor. */
dq_status dq_op_gptq_root(const dq_tensor *h, const dq_tensor *perm, double damp, int64_t block, dq_tensor *root,
                          int64_t *info, bool *served);
dq_status dq_op_qr(const dq_tensor *a, dq_tensor *q, dq_tensor *r);
dq_status dq_op_weight_grid(const dq_grid_desc *d, const dq_tensor *w, dq_tensor *scale, dq_tensor *zero);
dq_status dq_op_quantize_weight(const dq_grid_desc *d, const dq_tensor *w, const dq_tensor *scale,
                                const dq_tensor *zero, const dq_tensor *group_index, dq_tensor *codes);
dq_status dq_op_dequantize_weight(const dq_grid_desc *d, const dq_tensor *codes, const dq_tensor *scale,
                                  const dq_tensor *zero, const dq_tensor *group_index, dq_tensor *w);
dq_status dq_op_gptq_block(const dq_grid_desc *d, dq_tensor *w, const dq_tensor *u, const dq_tensor *scale,
                           const dq_tensor *zero, const dq_tensor *group_index, dq_tensor *codes, dq_tensor *err);
/* weight, grad and row_loss are optional. */
dq_status dq_op_rotation_loss(const dq_rotation_loss_desc *d, const dq_tensor *x, const dq_tensor *weight,
                              const dq_tensor *r, dq_tensor *grad, dq_tensor *row_loss, double *loss);
/* Products with one matrix for each group of heads, r [groups * n, n]; x, o, slope [rows, heads * n]: o = x r, and
 * grad = beta grad + alpha x^T slope, summed over the heads of a group. */
dq_status dq_rotate_heads(int64_t n, int64_t heads, int64_t groups, const dq_tensor *x, const dq_tensor *r,
                          const dq_tensor *o, int math);
dq_status dq_rotate_heads_back(int64_t n, int64_t heads, int64_t groups, const dq_tensor *x, const dq_tensor *slope,
                               double alpha, double beta, const dq_tensor *grad, int math);
dq_status dq_op_qr_batch(int64_t groups, const dq_tensor *a, dq_tensor *q, dq_tensor *r);
dq_status dq_op_qr_grad(int64_t groups, const dq_tensor *q, const dq_tensor *r, const dq_tensor *dq, dq_tensor *da);
dq_status dq_op_polar(int64_t groups, int math, const dq_tensor *a, dq_tensor *u, double *error);

/* g, mean and square are read and written. */
dq_status dq_op_adam(double beta1, double beta2, double root, double epsilon, dq_tensor *g, dq_tensor *mean,
                     dq_tensor *square);

/* Products of integers, for devices of which dq_device_has_integers says that they have them: elsewhere each would be a
 * fallback. */
enum { DQ_INT8_COLUMNS = 131071 };
dq_status dq_op_quantize_rows(const dq_fake_quant_desc *d, const dq_tensor *x, dq_tensor *codes, dq_tensor *grid);
dq_status dq_op_int8_linear(double beta, const dq_tensor *x, const dq_tensor *x_grid, const dq_tensor *w,
                            const dq_tensor *w_grid, dq_tensor *y);
bool dq_device_has_integers(const dq_device *dev);
/* quantize_rows of rmsnorm(x), layernorm(x), hadamard(x): in one pass where the device can; else `between`, F32 like x, takes
 * what the first of the two ops gives (that of a transform may be x). */
dq_status dq_op_rmsnorm_rows(const dq_tensor *x, const dq_tensor *weight, double eps, const dq_fake_quant_desc *d,
                             dq_tensor *between, dq_tensor *codes, dq_tensor *grid);
dq_status dq_op_layernorm_rows(const dq_tensor *x, const dq_tensor *weight, const dq_tensor *bias, double eps,
                               const dq_fake_quant_desc *d, dq_tensor *between, dq_tensor *codes, dq_tensor *grid);
dq_status dq_op_hadamard_rows(const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_tensor *x,
                              dq_tensor *between, dq_tensor *codes, dq_tensor *grid);

/* Generation. */
dq_status dq_op_packed_linear(const dq_packed_desc *d, const dq_tensor *x, const dq_tensor *codes,
                              const dq_tensor *scale, const dq_tensor *zero, const dq_tensor *order, dq_tensor *y);
dq_status dq_op_kv_store(const dq_kv_desc *d, const dq_tensor *x, const dq_tensor *slot, dq_tensor *cache,
                         dq_tensor *grid);
dq_status dq_op_kv_attention(const dq_kv_attention_desc *d, const dq_tensor *q, const dq_tensor *k,
                             const dq_tensor *k_grid, const dq_tensor *v, const dq_tensor *v_grid,
                             const dq_tensor *span, dq_tensor *o);

#endif
