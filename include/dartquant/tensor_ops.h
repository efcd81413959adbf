/* libdartquant: the pieces below the jobs, for hosts with their own weights and their own forward pass. Plain arrays in
 * host memory in, plain arrays out; no model is needed. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_TENSOR_OPS_H
#define DARTQUANT_TENSOR_OPS_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* All arrays are row-major without gaps unless a stride is given. The work runs on the context's device; arrays are
 * copied there and back where it has memory of its own. Like all objects of a context these functions must not overlap
 * in time with others of the same context. Every function also fails with DQ_E_INVALID (NULL, sizes), DQ_E_NOMEM and
 * DQ_E_BACKEND; NaN or Inf in an input is DQ_E_NONFINITE. On failure outputs are untouched. */

/* ---- quantizing a weight (GPTQ, arXiv 2210.17323; RTN) ---- */

/* Sum over all inputs x of a linear layer: H = 2 sum x^T x, fp32 on the device. n = input features. */
DQ_API dq_status dq_hessian_new(dq_context *ctx, int64_t n, dq_hessian **out);
/* NULL is accepted. */
DQ_API void dq_hessian_free(dq_hessian *hessian);
/* Adds `rows` inputs: x [rows, n] of dtype F32, F16 or BF16, row_stride elements from one row to the next (>= n). Feed it
 * batch by batch. After a failure of the device the accumulator is unusable (DQ_E_STATE).
 * Errors: DQ_E_UNSUPPORTED (dtype), DQ_E_NONFINITE (names row and column). */
DQ_API dq_status dq_hessian_add(dq_hessian *hessian, const void *x, int64_t rows, int64_t row_stride, dq_dtype dtype);
/* Number of rows added so far; 0 for NULL. */
DQ_API int64_t dq_hessian_rows(const dq_hessian *hessian);
/* Copies H to out fp32 [n, n] (both triangles), room for `capacity` floats. */
DQ_API dq_status dq_hessian_copy(const dq_hessian *hessian, float *out, size_t capacity);
/* Replaces H by h fp32 [n, n] (only its lower triangle is read) gathered over `rows` inputs: what dq_hessian_copy gave, or
 * the sum of several hosts' copies. */
DQ_API dq_status dq_hessian_set(dq_hessian *hessian, const float *h, int64_t rows);

/* *out = groups in a row of `in` columns under `config`: ceil(in / w_groupsize), 1 for -1. */
DQ_API dq_status dq_quantize_groups(const dq_config *config, int64_t in, int64_t *out);
/* Quantizes w fp32 [out, in] of a linear y = x w^T as `config` says: w_bits (2..8), w_groupsize, w_asym, w_clip, w_rtn,
 * act_order, static_groups, percdamp. hessian: of the layer's inputs; NULL only with w_rtn. The weight is
 * scale * (code - zero): codes u8 [out, in], one code per byte; scale, zero fp32 [out, groups] (zeros are integral);
 * g_idx int32 [in] = group of each column. `error` (may be NULL): tr(dW H dW^T) / tr(W H W^T), for RTN |dW|^2 / |W|^2;
 * `damping` (may be NULL): the share of the mean diagonal of H that was added. The same bits as the quantizer job gives
 * for the same H. Errors: DQ_E_NUMERIC (H cannot be factored), DQ_E_MISMATCH (H of other size). */
DQ_API dq_status dq_quantize_weight(dq_context *ctx, const dq_config *config, const float *w, int64_t out, int64_t in,
                                    const dq_hessian *hessian, uint8_t *codes, float *scale, float *zero,
                                    int32_t *g_idx, double *error, double *damping);
/* w fp32 [out, in] = scale * (code - zero) with groups = ceil(in / group), group = columns per group (-1 = the row);
 * g_idx NULL = column / group. */
DQ_API dq_status dq_dequantize_weight(dq_context *ctx, const uint8_t *codes, const float *scale, const float *zero,
                                      const int32_t *g_idx, int64_t out, int64_t in, int64_t group, float *w);

/* ---- activations, K and V (QuaRot, arXiv 2404.00456) ---- */

/* Replaces x fp32 [rows, cols] by what dynamic quantization to `bits` (2..15) leaves of it. group: columns that share a
 * range, dividing cols; -1 = the row, whose range is then extended to contain 0. symmetric: 0 or 1. clip in (0, 1]
 * multiplies the range. The formulas stand in dartquant/backend.h (dq_fake_quant_desc). */
DQ_API dq_status dq_fake_quantize(dq_context *ctx, float *x, int64_t rows, int64_t cols, int32_t bits, int64_t group,
                                  int32_t symmetric, double clip);
/* Rows of a KV cache to integers: the same grid with 2..8 bits, x = scale * (code - zero). codes u8 [rows, cols], one code
 * per byte (a cache packs them as it likes: all are < 2^bits); scale, zero fp32 [rows, groups], groups = cols / group or
 * 1. Zeros are integral but need not lie in the range of codes. */
DQ_API dq_status dq_kv_quantize_rows(dq_context *ctx, const float *x, int64_t rows, int64_t cols, int32_t bits,
                                     int64_t group, int32_t symmetric, double clip, uint8_t *codes, float *scale,
                                     float *zero);
/* Back: x fp32 [rows, cols]: the same numbers as dq_fake_quantize gives for the same arguments (a zero may differ in
 * sign, and a group whose range is empty becomes its first element). */
DQ_API dq_status dq_kv_dequantize_rows(dq_context *ctx, const uint8_t *codes, const float *scale, const float *zero,
                                       int64_t rows, int64_t cols, int64_t group, float *x);

/* ---- keys and values on levels (KVQuant, arXiv 2401.18079) ---- */

/* Tables of levels on [-1, 1]. */
enum {
    DQ_LEVELS_UNIFORM = 0, /* -1 + 2 i / (n - 1) */
    DQ_LEVELS_NORMAL =
        1 /* NormalFloat: quantiles of the normal distribution (QLoRA, arXiv 2305.14314), one of them 0 */
};
/* levels fp32 [2^bits], ascending, for 2 to 8 bits. */
DQ_API dq_status dq_make_levels(dq_context *ctx, int32_t kind, int32_t bits, float *levels);
/* Range of every column of x fp32 [rows, cols], for keys: range fp32 [2, cols] = its percentiles outliers/2 and
 * 1 - outliers/2 (linear; outliers in [0, 1), 0 = smallest and largest), in which rows at positions below `sink` do not
 * count. The position of row r is r % seqlen; with sink 0 seqlen has no meaning. */
DQ_API dq_status dq_measure_columns(dq_context *ctx, const float *x, int64_t rows, int64_t cols, double outliers,
                                    int32_t sink, int64_t seqlen, float *range);
/* Replaces x fp32 [rows, cols] by the nearest of `count` levels (2 to 256, ascending) in its range. range fp32 [2, cols]
 * gives lo and hi of every column (keys before RoPE; lo <= hi, `outliers` has no meaning); NULL: every row has its own, of
 * what is left without the share `outliers` of it, [0, 1) (values). keep_outliers: 1 leaves numbers outside as they are,
 * 0 puts them on the outermost level. Rows at positions below `sink` stay. norm_scale, norm_offset: Q-Norm, 1 and 0 = off.
 * The formulas stand in dartquant/backend.h (dq_levels_quant_desc). */
DQ_API dq_status dq_fake_quantize_levels(dq_context *ctx, float *x, int64_t rows, int64_t cols, const float *levels,
                                         int32_t count, const float *range, double outliers, int32_t keep_outliers,
                                         int32_t sink, int64_t seqlen, double norm_scale, double norm_offset);

/* ---- rotations ---- */

/* Hadamard transform in place of every run of n neighbours in the rows of x fp32 [rows, cols], n dividing cols:
 * v <- v H^T / sqrt(n), with `transpose` v H / sqrt(n), which undoes it. n: 2^m, or k 2^m for every k that docs/numerics.md
 * lists (the constructions of the rotations R3 and R4). Errors: DQ_E_UNSUPPORTED (no Hadamard matrix of that order). */
DQ_API dq_status dq_apply_hadamard(dq_context *ctx, int64_t n, float *x, int64_t rows, int64_t cols, int32_t transpose);

/* Sides of a weight [out, in] of y = x w^T. */
enum {
    DQ_FOLD_INPUT = 0, /* the layer's input was rotated, x -> x R: w <- w R */
    DQ_FOLD_OUTPUT = 1 /* its output is to be rotated, y -> y R: w <- R^T w */
};
/* Folds R fp64 [n, n] into w fp32 [out, in] in place, in double precision with one rounding at the end. Where the side is
 * a multiple of n long, every block of n features turns by the same R (heads). bias fp32 [out] turns with the output side
 * (b <- b R) and may be NULL. Orthogonality is the caller's. Errors also: DQ_E_MISMATCH (n does not divide the side). */
DQ_API dq_status dq_fold_rotation(dq_context *ctx, float *w, float *bias, int64_t out, int64_t in, const double *r,
                                  int64_t n, int32_t side);

/* ---- scores ---- */

/* Cross-entropy of the host's logits, fp64 inside: nll[r] = log sum_j exp(logits[r][j]) - logits[r][targets[r]] in nats;
 * targets[r] = -1: nothing to predict, nll 0. logits fp32 [rows, vocab] with row_stride elements from row to row. nll fp64
 * [rows]; best int32 [rows] (may be NULL): the first of the largest logits.
 * Errors: DQ_E_MISMATCH (a target outside the vocabulary), DQ_E_NONFINITE (NaN or +Inf in a row, or a target of -Inf). */
DQ_API dq_status dq_score_logits(dq_context *ctx, const float *logits, int64_t rows, int64_t vocab, int64_t row_stride,
                                 const int32_t *targets, double *nll, int32_t *best);

#ifdef __cplusplus
}
#endif
#endif
