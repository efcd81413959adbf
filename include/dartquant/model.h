/* libdartquant: models. A model never changes; fusing norms, rotating and quantizing each derive a new model that
 * shares storage with its base and transforms weights only when a layer is read. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_MODEL_H
#define DARTQUANT_MODEL_H

#include "dartquant/progress.h"
#include "dartquant/tensors.h"
#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A handle may be freed in any order: a derived model keeps what it needs of its base, and the context stays alive
 * inside the library until its last object is gone. Calls on objects of one context must not overlap in time. */

/* Opens a Hugging Face folder (config.json + safetensors), a GGUF file, or a model saved by dq_model_save (recognised by
 * its manifest). Weights are mapped and read layer by layer later. Every tensor's shape is checked now.
 * Errors: DQ_E_INVALID, DQ_E_IO, DQ_E_FORMAT, DQ_E_TRUNCATED, DQ_E_MISMATCH (missing tensor, wrong shape, foreign or
 * missing shard), DQ_E_UNSUPPORTED (family, block type), DQ_E_NOMEM. */
DQ_API dq_status dq_model_open(dq_context *ctx, const char *path, dq_model **out);
/* NULL is accepted. */
DQ_API void dq_model_free(dq_model *model);

/* JSON text about the model: architecture, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
 * num_key_value_heads, head_dim, vocab_size, tie_word_embeddings, dtype, parameters, bytes, `linears` (of a layer: name,
 * rows, cols, and the file's tensor with %d for the layer), and where it applies `quantization` and `rotations`. *out is
 * owned by the model and valid until it is freed.
 * Errors: DQ_E_INVALID, DQ_E_NOMEM, those of reading a file. */
DQ_API dq_status dq_model_describe(dq_model *model, const char **out);
/* One number of that JSON text by key, e.g. "hidden_size", "vocab_size", "parameters"; booleans count as 0 / 1.
 * Errors: DQ_E_NOTFOUND, DQ_E_INVALID (not a number, not integral). */
DQ_API dq_status dq_model_get_int(dq_model *model, const char *key, int64_t *out);
DQ_API dq_status dq_model_get_float(dq_model *model, const char *key, double *out);
/* Entries of the vocabulary = columns of the logits; 0 for NULL. */
DQ_API int64_t dq_model_vocab_size(const dq_model *model);

/* Tensors of the files the model was opened from (a derived model shows its root's). See dq_tensor_desc.
 * _count: 0 for NULL. Errors: DQ_E_INVALID. */
DQ_API int64_t dq_model_tensor_count(const dq_model *model);
DQ_API dq_status dq_model_tensor_info(const dq_model *model, int64_t index, dq_tensor_desc *out);

/* Derives a model whose norm weights are multiplied into the linears that read them; a tied head becomes a tensor of its
 * own. The function stays the same. Fusing a fused model is allowed. `config` (NULL = defaults): center_embedding.
 * QuaRot, arXiv 2404.00456, section 3. Errors: DQ_E_INVALID, DQ_E_STATE (already rotated), DQ_E_NOMEM. */
DQ_API dq_status dq_model_fuse_norms(dq_model *model, const dq_config *config, dq_model **out);
/* Derives a model with the rotation folded into its weights (in double precision) and its online parts switched on.
 * The rotation is copied. Errors: DQ_E_INVALID (another context), DQ_E_STATE (norms not fused, or rotated already),
 * DQ_E_MISMATCH (made for other sizes), DQ_E_NOMEM. */
DQ_API dq_status dq_model_rotate(dq_model *model, const dq_rotation *rotation, dq_model **out);

/* Integer codes of one linear of a quantized model, as dq_quantize_weight gives them. `linear`: "q_proj", "k_proj", "v_proj",
 * "o_proj", "gate_proj", "up_proj" or "down_proj" (of an OPT "out_proj", "fc1", "fc2") of decoder layer 0 .. num_hidden_layers - 1.
 * _codes_shape: *rows = output features, *cols = input features, *groups = groups in a row, *bits; each may be NULL.
 * _copy_codes: the weight, as fused and rotated, is scale * (code - zero): codes u8 [rows, cols], one code per byte; scale,
 * zero fp32 [rows, groups] (zeros are integral); g_idx int32 [cols] = group of each column. The arrays are the caller's and
 * untouched on failure. Errors: DQ_E_NOTFOUND (no such linear), DQ_E_STATE (not quantized; the message names the tensor), those of reading the
 * codes, DQ_E_NOMEM. */
DQ_API dq_status dq_model_codes_shape(dq_model *model, int64_t layer, const char *linear, int64_t *rows, int64_t *cols,
                                      int64_t *groups, int32_t *bits);
DQ_API dq_status dq_model_copy_codes(dq_model *model, int64_t layer, const char *linear, uint8_t *codes, float *scale,
                                     float *zero, int32_t *g_idx);

/* How far one linear's weight W is from the weight R of another model, e.g. the one it was quantized from: *error =
 * |W - R| / |R| (Frobenius norms). `reference`: of the same context and sizes; it may be quantized too. Where the norms before
 * q, k, v or gate, up differ they are multiplied into the columns of both, so fused norms do not count. AWQ's factors between v
 * and o, up and down stand in no file: where the best factor per channel leaves less than 3/4 of the error, *error is what is
 * left and *rescaled = 1. Errors: DQ_E_STATE (only one of the two is rotated: other bases), DQ_E_MISMATCH (other sizes),
 * DQ_E_NOTFOUND (no such linear), DQ_E_INVALID (another context), those of reading the weights, DQ_E_NOMEM. */
DQ_API dq_status dq_model_weight_error(dq_model *model, dq_model *reference, int64_t layer, const char *linear,
                                       double *error, int32_t *rescaled);

/* Writes the model to folder `dir` (created if absent) so that dq_model_open gives the same numbers to the last bit.
 * Files appear under their final names only when complete; the manifest comes last. Tokenizer files beside the source are
 * copied. `config` (NULL = defaults): part_size. `cancel`, `progress` may be NULL.
 * Errors: DQ_E_INVALID (also `dir` is the folder the model is read from), DQ_E_IO, DQ_E_CANCELLED, DQ_E_NONFINITE, DQ_E_NOMEM. */
DQ_API dq_status dq_model_save(dq_model *model, const char *dir, const dq_config *config, const dq_cancel *cancel,
                               dq_progress_fn progress, void *user);

/* Writes the model for other programs into folder `dir`, which must not exist or be empty; it appears when everything has
 * been written, opened again and compared. `format`: "gptq" (symmetric codes), "gptq_v2", "awq", "compressed-tensors"
 * (pack-quantized, R4 as transform_config), "compressed-tensors:int-quantized", "gguf:T" with T one of f32, f16, bf16,
 * q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q6_k (`dir` may be a file name that ends in .gguf), "hf" (as stored), "hf:f32",
 * "hf:f16", "hf:bf16", "diffulex-gptq", "diffulex-awq". Code formats keep the model's integer codes; scales are rounded
 * to what the file holds. The tokenizer's files come along. `config` (NULL = defaults): part_size.
 * Errors: DQ_E_UNSUPPORTED (what the format cannot hold, found before anything is written, with alternatives), DQ_E_STATE
 * (a code format of a model without codes), DQ_E_INVALID (unknown format), DQ_E_IO, DQ_E_CANCELLED, DQ_E_NONFINITE,
 * DQ_E_NOMEM. */
DQ_API dq_status dq_model_export(dq_model *model, const char *format, const char *dir, const dq_config *config,
                                 const dq_cancel *cancel, dq_progress_fn progress, void *user);

/* Logits of one causal sequence without KV cache: out fp32 [count, vocab_size] row-major in host memory with room for
 * `capacity` floats; a failure half way through the vocabulary leaves some of them there. `config` (NULL = defaults):
 * math. Errors: DQ_E_INVALID (capacity too small), DQ_E_MISMATCH (an id outside the vocabulary), DQ_E_NONFINITE, those of
 * reading the weights, DQ_E_BACKEND, DQ_E_NOMEM. */
DQ_API dq_status dq_model_logits(dq_model *model, const int32_t *ids, int64_t count, const dq_config *config,
                                 float *out, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
