/* libdartquant: named tensors of a file or folder, for listing and reading without a model. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_TENSORS_H
#define DARTQUANT_TENSORS_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Most dimensions a tensor may have. */
#define DQ_TENSOR_MAX_DIMS 8

/* What is known about one stored tensor. Text is owned by the object asked. Set struct_size to sizeof(dq_tensor_desc)
 * before the call; as much as it covers is filled. */
typedef struct dq_tensor_desc {
    uint32_t struct_size;
    dq_dtype dtype;
    const char *name;
    const char *type_name; /* the file format's own name: "F32", "BF16", "Q4_1", ... */
    const char *file;      /* path of the file that holds the data */
    int32_t ndim;          /* 0 = scalar */
    int32_t reserved;
    int64_t shape[DQ_TENSOR_MAX_DIMS]; /* outermost dimension first */
    uint64_t bytes;
    uint64_t offset; /* byte position of the data in `file`; of a PyTorch archive, in the tensor's storage */
} dq_tensor_desc;

/* Opens a .safetensors file, a folder of them, a *.safetensors.index.json, a GGUF file or a PyTorch zip archive by
 * content. Files are mapped, not read. Errors: DQ_E_INVALID, DQ_E_IO, DQ_E_FORMAT, DQ_E_TRUNCATED, DQ_E_MISMATCH,
 * DQ_E_UNSUPPORTED (PyTorch pickles with other than tensor content), DQ_E_NOMEM. */
DQ_API dq_status dq_tensors_open(dq_context *ctx, const char *path, dq_tensors **out);
/* NULL is accepted. */
DQ_API void dq_tensors_free(dq_tensors *tensors);
/* Static text: "safetensors", "gguf", "pytorch"; "" for NULL. */
DQ_API const char *dq_tensors_format(const dq_tensors *tensors);
/* Number of tensors; 0 for NULL. */
DQ_API int64_t dq_tensors_count(const dq_tensors *tensors);
/* Describes tensor `index` of 0 .. count-1. Errors: DQ_E_INVALID. */
DQ_API dq_status dq_tensors_info(const dq_tensors *tensors, int64_t index, dq_tensor_desc *out);
/* *out = index of the tensor called `name`. Errors: DQ_E_NOTFOUND, DQ_E_INVALID. */
DQ_API dq_status dq_tensors_find(const dq_tensors *tensors, const char *name, int64_t *out);
/* Decodes rows [row, row + count) to fp32, out [count, product of shape[1..]] with room for `capacity` floats. A tensor of
 * fewer than two dimensions is one row. Any floating or block-quantized type; integers are DQ_E_UNSUPPORTED.
 * Errors also: DQ_E_INVALID (rows, capacity), DQ_E_FORMAT. */
DQ_API dq_status dq_tensors_read_f32(dq_tensors *tensors, int64_t index, int64_t row, int64_t count, float *out,
                                     size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
