/* libdartquant: the host's own tensors in and out. A program that already holds weights lends them through a table of
 * callbacks instead of writing files, and takes results the same way. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_SOURCE_H
#define DARTQUANT_SOURCE_H

#include "dartquant/progress.h"
#include "dartquant/tensors.h"
#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Rules for all callbacks below. They come on the thread that called the library, one at a time, and must not call back
 * into it. They return DQ_OK or a negative status of dartquant/types.h (any other number counts as DQ_E_IO); the library
 * then fails with that status and names callback and tensor. */

/* Numbers for the meaning of the two tables (their member `abi`). */
#define DQ_TENSOR_SOURCE_ABI 1u
#define DQ_TENSOR_SINK_ABI 1u

/* Tensors of the host. The table is copied; what `user` points to, and mapped memory, must stay as they are until `free`
 * is called (or, where free is NULL, until the last model that reads them and the context are freed). Numbers are
 * little-endian and rows lie one after the other without gaps. */
typedef struct dq_tensor_source {
    uint32_t struct_size; /* sizeof(dq_tensor_source) */
    uint32_t abi;         /* DQ_TENSOR_SOURCE_ABI */
    void *user;
    int64_t count; /* tensors 0 .. count-1 */
    /* Fills name, dtype, ndim and shape of *out; the text must stay valid until the call returns. Other members may be
     * left alone. Called once for each tensor while the source is opened. */
    dq_status (*describe)(void *user, int64_t index, dq_tensor_desc *out);
    /* Copies `bytes` bytes from byte `offset` of the tensor to dst; never beyond its end. Whole rows at a time, a few
     * megabytes at most unless a single row is longer. May be NULL when map serves every tensor. */
    dq_status (*read)(void *user, int64_t index, uint64_t offset, uint64_t bytes, void *dst);
    /* *out = address of the tensor's first byte, or NULL when it cannot be mapped (then read is used). Called once for
     * each tensor while the source is opened; the memory is then read without asking, also from worker threads. NULL =
     * nothing is mapped. */
    dq_status (*map)(void *user, int64_t index, const void **out);
    /* A hint: the tensor will not be read soon. May be NULL. */
    void (*release)(void *user, int64_t index);
    /* The source is not used any more. May be NULL. Called exactly once when opening succeeded, never when it failed. */
    void (*free)(void *user);
} dq_tensor_source;

/* Where tensors go. Order of calls: add (or begin, append, ..., append) for each tensor and set_metadata in any order,
 * then finish once. When the job fails or is cancelled finish never comes. The library does not keep the table beyond the
 * job it was given to. */
typedef struct dq_tensor_sink {
    uint32_t struct_size; /* sizeof(dq_tensor_sink) */
    uint32_t abi;         /* DQ_TENSOR_SINK_ABI */
    void *user;
    /* One whole tensor, row-major; shape outermost dimension first. Everything must be copied before return. */
    dq_status (*add)(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape, const void *data,
                     uint64_t bytes);
    /* Text beside the tensors. May be NULL. Saved models bring "config.json" (as Hugging Face tools know it) and
     * "dartquant.json" (the manifest: give it to dq_model_open_source to open the tensors again). */
    dq_status (*set_metadata)(void *user, const char *key, const char *value);
    /* All came. May be NULL. */
    dq_status (*finish)(void *user);
    /* A large tensor in pieces that sum up to `bytes`, with no other call between. Either both or neither; without them
     * the library gathers such a tensor in memory and uses add. */
    dq_status (*begin)(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape,
                       uint64_t bytes);
    dq_status (*append)(void *user, const void *data, uint64_t bytes);
} dq_tensor_sink;

/* Opens a model whose tensors the host lends. `config_json`: the text of a Hugging Face config.json, tensors then have
 * Hugging Face names; or of the "dartquant.json" of a model saved to a sink or a folder. Nothing is copied but names and
 * shapes: rows are read when a layer is needed. dtype: F32, F16, BF16, F64, F8; integer codes only for saved models.
 * Every tensor's shape is checked now; tensors the model does not need are ignored.
 * Errors: DQ_E_INVALID (struct_size, abi, a callback that must not be NULL, bad description), DQ_E_FORMAT (config_json),
 * DQ_E_NOTFOUND, DQ_E_MISMATCH (missing tensor, wrong shape, other content than the manifest's), DQ_E_UNSUPPORTED
 * (family, dtype), those of the callbacks, DQ_E_NOMEM. */
DQ_API dq_status dq_model_open_source(dq_context *ctx, const char *config_json, const dq_tensor_source *source,
                                      dq_model **out);

/* dq_model_save to the host: the same tensors and names (docs/formats.md, "Saved models"), the manifest and config.json
 * as metadata; tokenizer files are not handed over. `cancel`, `progress` may be NULL.
 * Errors: DQ_E_INVALID, DQ_E_CANCELLED, DQ_E_NONFINITE, those of the callbacks and of reading the weights, DQ_E_NOMEM. */
DQ_API dq_status dq_model_save_to(dq_model *model, const dq_tensor_sink *sink, const dq_cancel *cancel,
                                  dq_progress_fn progress, void *user);

/* Sends a quantizer's result to the host instead of a folder or memory: codes of each layer as they are made, then the
 * other tensors and the manifest as in dq_model_save_to. The table is copied and used until the job is done or freed.
 * dq_quantizer_take_model is then DQ_E_STATE: open the tensors again with dq_model_open_source.
 * Errors: DQ_E_INVALID, DQ_E_STATE (already started, or save_qmodel_path is set). */
DQ_API dq_status dq_quantizer_set_sink(dq_quantizer *quantizer, const dq_tensor_sink *sink);

#ifdef __cplusplus
}
#endif
#endif
