/* Layouts of quantized linears in the checkpoints of other tools, one linear at a time: which tensors it consists of,
 * from them to codes, and from codes to them. The layouts stand in docs/formats.md. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_FORMATS_LAYOUT_H
#define DQ_FORMATS_LAYOUT_H

#include "base/source.h"
#include "formats/fields.h"
#include "formats/host_codes.h"

typedef enum dq_layout_kind {
    DQ_LAYOUT_GPTQ, /* zeros stored minus one */
    DQ_LAYOUT_GPTQ_V2,
    DQ_LAYOUT_GPTQ_PLANAR,
    DQ_LAYOUT_AWQ_GEMM,
    DQ_LAYOUT_AWQ_GEMV,
    DQ_LAYOUT_AWQ_GEMV_FAST,
    DQ_LAYOUT_CT_PACKED,
    DQ_LAYOUT_CT_INT,
    DQ_LAYOUT_CT_FLOAT, /* not codes: FP8 values with scales */
    DQ_LAYOUT_DIFFULEX  /* not codes: groups run along the outputs */
} dq_layout_kind;
enum { DQ_LAYOUT_KINDS = DQ_LAYOUT_DIFFULEX + 1 };
const char *dq_layout_name(dq_layout_kind kind);
static inline bool dq_layout_gives_codes(dq_layout_kind kind) { return kind < DQ_LAYOUT_CT_FLOAT; }

/* What the configuration says about a linear. */
typedef struct dq_layout {
    dq_layout_kind kind;
    int bits;
    int64_t group; /* columns per group, -1 = all; block layouts: columns of a block */
    int64_t block_rows;
    bool symmetric;
    bool per_tensor;  /* one scale for all */
    bool strict_zero; /* GPTQ v1: a stored zero of all ones is an error instead of zero 0 */
} dq_layout;

enum { DQ_PART_WEIGHT, DQ_PART_SCALES, DQ_PART_ZEROS, DQ_PART_GROUP_INDEX, DQ_PART_SHAPE, DQ_PARTS };

/* A linear found in a source. */
typedef struct dq_packed {
    dq_layout layout;
    int64_t part[DQ_PARTS]; /* tensors of the source, -1 = absent */
    int64_t out, in, group, groups;
    bool padded; /* compressed-tensors before 0.17 */
    uint64_t bytes;
} dq_packed;

/* Name of the tensor by which a linear of that layout is recognised, as suffix: ".qweight". */
const char *dq_layout_suffix(dq_layout_kind kind);
/* Finds the parts of linear `name` and checks types and shapes against each other. `in`: columns where the model knows
 * them, 0 = not known. */
dq_status dq_packed_bind(const dq_source *source, const char *name, const dq_layout *layout, int64_t in,
                         dq_packed *out);
/* Codes of a bound linear, checked. Errors carry `name`. */
dq_status dq_packed_read(dq_source *source, const char *name, const dq_packed *p, dq_host_codes *out);

/* Writes the tensors of `name`. scale_dtype: F16, BF16 or F32; scales are rounded to it. The limits of the layout are
 * checked by dq_layout_check before. */
dq_status dq_packed_write(dq_sink *sink, const char *name, const dq_layout *layout, dq_dtype scale_dtype,
                          const dq_host_codes *c);
/* What of such a linear the layout cannot hold; DQ_E_UNSUPPORTED with the numbers and what else would do. `c` may come
 * without codes (sizes, symmetric and group_index are looked at). */
dq_status dq_layout_check(const dq_layout *layout, const dq_host_codes *c);
/* Rounds the scales to what a file of that type holds; DQ_E_NONFINITE when one becomes zero or infinite. */
dq_status dq_round_scales(dq_host_codes *c, dq_dtype dtype);

/* ---- inside of the room ---- */

/* A part's tensor, or -1. */
int64_t dq_part_find(const dq_source *source, const char *name, const char *suffix);
dq_status dq_part_need(const dq_source *source, const char *name, const char *suffix, int64_t *out);
/* Type and shape of a part; ndim 1 or 2. The error names file, tensor and both shapes. */
dq_status dq_part_check(const dq_source *source, int64_t tensor, dq_dtype dtype, int64_t rows, int64_t cols);
dq_status dq_part_refuse(const dq_source *source, int64_t tensor, const char *what);
/* A matrix of that type with at least one element: then its sides, and a few times them, fit in 64 bits. */
dq_status dq_part_matrix(const dq_source *source, int64_t tensor, dq_dtype dtype, const char *what);
bool dq_part_is_float(const dq_source *source, int64_t tensor);
dq_status dq_part_read(dq_source *source, int64_t tensor, void **out);
/* [rows, cols] floats as F32. */
dq_status dq_part_read_floats(dq_source *source, int64_t tensor, float **out);
/* out[n * groups + g] = in[g * out + n] */
void dq_transpose_params(const float *in, int64_t groups, int64_t rows, float *out);
dq_status dq_sink_put(dq_sink *sink, const char *name, const char *suffix, dq_dtype dtype, int64_t rows, int64_t cols,
                      const void *data); /* rows 0: a vector */
/* Values packed as `f` says into [rows, cols] words. */
dq_status dq_sink_put_words(dq_sink *sink, const char *name, const char *suffix, const dq_fields *f,
                            const uint8_t *values, int64_t rows, int64_t cols);
/* Scales in the file's type; transposed: [groups, out] from [out, groups]. */
dq_status dq_sink_put_scales(dq_sink *sink, const char *name, const char *suffix, dq_dtype dtype, bool transposed,
                             const dq_host_codes *c);

typedef struct dq_layout_ops {
    dq_status (*bind)(const dq_source *source, const char *name, int64_t in, dq_packed *p);
    dq_status (*read)(dq_source *source, const dq_packed *p, dq_host_codes *out);
    dq_status (*write)(dq_sink *sink, const char *name, const dq_layout *l, dq_dtype scale_dtype,
                       const dq_host_codes *c);
} dq_layout_ops;
extern const dq_layout_ops dq_gptq_ops, dq_awq_gemm_ops, dq_awq_gemv_ops, dq_awq_fast_ops, dq_ct_packed_ops,
    dq_ct_int_ops, dq_ct_float_ops, dq_diffulex_ops;

/* Rows [first, first + count) of a linear that is no codes (CT_FLOAT, DIFFULEX), as F32. Thread-safe. */
dq_status dq_packed_rows(dq_source *source, const dq_packed *p, int64_t first, int64_t count, float *out);
dq_status dq_ct_float_rows(dq_source *source, const dq_packed *p, int64_t first, int64_t count, float *out);
dq_status dq_diffulex_rows(dq_source *source, const dq_packed *p, int64_t first, int64_t count, float *out);

#endif
