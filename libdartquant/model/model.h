/* Immutable models. A model reads weights from a source; a derived model reads them through its base and transforms
 * what it gets, one weight at a time, in double precision. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_MODEL_H
#define DQ_MODEL_MODEL_H

#include "base/clips.h"
#include "base/progress.h"
#include "base/scales.h"
#include "formats/host_codes.h"
#include "graph/block.h"
#include "model/arch.h"

/* Opens a HF folder, a GGUF file, or a model saved by this library (recognised by its manifest). Shapes of all tensors are checked. */
dq_status dq_model_open_path(dq_device *dev, const char *path, dq_model **out);
/* Takes over `source`. */
dq_status dq_model_from_source(dq_device *dev, const dq_arch *arch, dq_source *source, bool gguf_names, dq_model **out);
/* From the text of a Hugging Face config.json or of a saved model's manifest, told apart by content. Takes over `source`,
 * also on failure. */
dq_status dq_model_from_text(dq_device *dev, const char *config, dq_source *source, dq_model **out);
dq_model *dq_model_retain(dq_model *model);
void dq_model_release(dq_model *model); /* NULL is accepted */

/* Norm weights (and biases) multiplied into the linears that read them (q,k,v / gate,up / head); norms become weightless RMS
 * norms; a tied head becomes its own tensor. Fusing twice returns the same function. center_embedding subtracts each embedding
 * row's mean (upstream's habit; changes an RMSNorm model, and is always done where norms are layer norms). */
dq_status dq_model_derive_fused(dq_model *base, bool center_embedding, dq_model **out);
/* Folds R1, R2, R4 and remembers what runs online. The base must be fused and not yet rotated. Takes a reference to
 * nothing: the set is copied. */
dq_status dq_model_derive_rotated(dq_model *base, const dq_rotation_set *set, dq_model **out);
/* Channels of the linears' inputs multiplied by `scales` (copied), what comes before them divided: derive_scale.c. The base
 * may be fused and rotated or not; the result can be neither any more, only quantized. */
dq_status dq_model_derive_scaled(dq_model *base, const dq_scales *scales, dq_model **out);
void dq_scales_widths(const dq_arch *arch, int64_t width[DQ_SCALE_SITES]);
/* Whether a site's channels can be scaled: not where a rotation runs online between it and what comes before, nor behind an
 * activation that is not homogeneous. */
bool dq_scales_possible(const dq_arch *arch, const dq_rotation_set *rotations, int site);
/* The site whose scales multiply a linear's columns; the one whose scales divide its rows, -1 = none. */
int dq_scale_input_site(dq_role role);
int dq_scale_output_site(dq_role role);
/* Linears replaced by integer codes from `store` (names of docs/formats.md; taken over), activations and K/V as in
 * scheme. store may be NULL: only the activation part changes. */
dq_status dq_model_derive_quantized(dq_model *base, dq_source *store, const dq_scheme *scheme, dq_model **out);

const dq_arch *dq_model_arch(const dq_model *model);
dq_device *dq_model_device(const dq_model *model);
bool dq_model_is_fused(const dq_model *model);
const dq_rotation_set *dq_model_rotations(const dq_model *model); /* NULL = none */
const dq_scheme *dq_model_scheme(const dq_model *model);          /* NULL = not quantized */
dq_source *dq_model_root_source(const dq_model *model);
/* Hash of the architecture and of the weights' names, types, sizes and sampled content: "xxxxxxxxxxxxxxxx". */
dq_status dq_model_fingerprint(dq_model *model, const char **out);
/* The same for codes that were derived and stand in no file of the model; "none" where there are none. */
dq_status dq_model_codes_digest(const dq_model *model, char out[17]);

/* One weight, all transforms applied, as F32 [rows, cols] on the device (norms [1, cols]). For a linear whose bias exists,
 * the bias too. Non-finite values are an error naming the tensor. */
dq_status dq_model_read_linear(dq_model *model, int64_t layer, dq_role role, dq_linear *out);
/* The same for products under `math` alone: as dq_weight_narrow leaves it. */
dq_status dq_model_read_factor(dq_model *model, int64_t layer, dq_role role, int math, dq_linear *out);
/* F32 [1, out]; empty where the linear has none. */
dq_status dq_model_read_bias(dq_model *model, int64_t layer, dq_role role, dq_tensor *out);
/* Empty when weightless or not there. */
dq_status dq_model_read_norm(dq_model *model, int64_t layer, dq_role role, dq_tensor *out);
dq_status dq_model_read_norm_bias(dq_model *model, int64_t layer, dq_role role, dq_tensor *out); /* empty = none */
/* Rows of the embedding, the head or the learned positions. */
dq_status dq_model_read_rows(dq_model *model, dq_role role, int64_t first, int64_t count, dq_tensor *out);
dq_status dq_model_read_head(dq_model *model, int64_t first, int64_t count, int math, dq_tensor *out); /* likewise */
/* hidden[i] = embedding of ids[i], which stands at position i % seqlen; F32 [count, hidden], hidden already allocated. Ids are
 * checked against vocab. */
dq_status dq_model_embed(dq_model *model, const int32_t *ids, int64_t count, int64_t seqlen, dq_tensor *hidden);
/* Without what learned positions add. */
dq_status dq_model_embed_tokens(dq_model *model, const int32_t *ids, int64_t count, dq_tensor *hidden);
dq_status dq_model_load_block(dq_model *model, int64_t layer, dq_block *out);
/* For dq_block_forward with that spec alone: int8 weights where it may have them, dq_weight_narrow for the others. */
dq_status dq_model_load_forward(dq_model *model, int64_t layer, const dq_block_spec *spec, dq_block *out);
/* How many linears have int8 weights then. */
dq_status dq_model_count_integers(dq_model *model, const dq_block_spec *spec, int64_t *out);
/* Everything of a block but its linears. */
dq_status dq_model_load_frame(dq_model *model, int64_t layer, dq_block *out);
/* Whether embedding or head need more than reading: then a row costs what a block of rows costs. */
bool dq_model_transforms_rows(const dq_model *model);

/* What dq_block_* need for this model: sizes, online transforms, quantization, RoPE tables for seqlen. DQ_MATH_CODES becomes
 * out->codes where scheme and device allow. */
dq_status dq_model_block_spec(dq_model *model, int64_t seqlen, int math, dq_block_spec *out);
void dq_block_spec_clear(dq_block_spec *spec);
/* hidden = the final norm of hidden. */
dq_status dq_model_final_norm(dq_model *model, const dq_block_spec *spec, dq_tensor *hidden);

/* Codes of one linear of a quantized model; refused for others. */
typedef struct dq_codes {
    int bits;
    int64_t out, in, groups, group; /* group = columns per group (in when one) */
    bool symmetric;
    dq_tensor codes;       /* U8 [out, in] */
    dq_tensor scale, zero; /* F32 [out, groups] */
    dq_tensor group_index; /* I32 [1, in] or empty: column / group */
} dq_codes;
void dq_codes_free(dq_codes *codes);
/* `name`: dq_arch_module_name of the linear (a trailing ".weight" is dropped). Rows are packed densely: docs/formats.md. */
dq_status dq_codes_write(dq_sink *sink, const char *name, const dq_codes *codes);
dq_status dq_codes_read(dq_device *dev, dq_source *store, const char *name, dq_codes *out);
dq_status dq_codes_read_host(dq_env *env, dq_source *store, const char *name, dq_host_codes *out);
dq_status dq_codes_count_groups(dq_env *env, dq_source *store, const char *name, int64_t *groups);
/* Sizes only; the tensors of *out stay empty. */
dq_status dq_codes_read_layout(dq_env *env, dq_source *store, const char *name, dq_codes *out);
bool dq_codes_exist(const dq_source *store, const char *name);
/* Bytes of everything that `name` has in the store. */
uint64_t dq_codes_bytes(const dq_source *store, const char *name);
/* Between the device and the form that file layouts are packed from. */
dq_status dq_codes_to_host(dq_env *env, const dq_codes *codes, dq_host_codes *out);
dq_status dq_codes_from_host(dq_device *dev, const dq_host_codes *codes, dq_codes *out);
bool dq_model_has_codes(const dq_model *model, int64_t layer, dq_role role);
/* The codes of a model's linear; DQ_E_STATE when it has none. */
dq_status dq_model_read_codes(dq_model *model, int64_t layer, dq_role role, dq_codes *out);
/* Whether its codes can be int8 weights: one group a row, not too many columns. Then the weights, less 2^(bits - 1). */
dq_status dq_model_has_integers(dq_model *model, int64_t layer, dq_role role, bool *has);
dq_status dq_model_read_integers(dq_model *model, int64_t layer, dq_role role, dq_int8_weight *out);
/* Their sizes, without reading them. */
dq_status dq_model_codes_layout(dq_model *model, int64_t layer, dq_role role, dq_codes *out);

/* Rows [first, first + count) of a linear, the embedding or the head that the file keeps in blocks of codes (GGUF) and nothing
 * transforms: W = scale * (code - 2^(bits-1)), or scale * code + minimum (fresh memory [count, groups], else NULL), the very
 * numbers that reading it as floats gives. *found = false, and nothing made, where it is no such weight. */
dq_status dq_model_read_blocks(dq_model *model, int64_t layer, dq_role role, int64_t first, int64_t count,
                               dq_host_codes *out, float **minimum, bool *found);

/* |W - R| / |R| (Frobenius) of a linear's weight W and that of `reference`, which may hold codes too. Norms that are not alike in
 * both are multiplied into the columns of both. Factors of the channels between v and o, up and down (AWQ) are undone where
 * they explain the error: *rescaled. DQ_E_STATE where only one is rotated, DQ_E_MISMATCH for other sizes. */
dq_status dq_model_compare_linear(dq_model *model, dq_model *reference, int64_t layer, dq_role role, double *error,
                                  bool *rescaled);

/* JSON text (fresh memory): architecture, sizes, dtype, quantization, rotations. */
dq_status dq_model_describe_json(dq_model *model, char **out);
/* Bits per weight over the quantizable linears, scales, zeros and indices included. */
double dq_model_bits_per_weight(dq_model *model);
uint64_t dq_model_bytes(dq_model *model);

/* Saves a model (quantized or only transformed) so that opening it gives the same numbers: docs/formats.md. */
dq_status dq_model_save_dir(dq_model *model, const char *dir, uint64_t part_size, dq_progress *progress);

/* The same as a stream, so that the codes of a large model never stand in memory together:
 *   dq_saver_open, a quantizer job that puts codes in dq_saver_sink (whose finish does nothing), dq_saver_finish.
 * `scheme`: what the codes were made for, NULL = the model's own (its codes are then copied). `provenance`: JSON object
 * text kept in the manifest (seed, calibration, command line), may be NULL. Nothing that opens as a model is there
 * before finish returned DQ_OK; free without finish removes the unfinished shards. */
typedef struct dq_saver dq_saver;
/* Refuses the folder that the model is read from: its files would be replaced. */
dq_status dq_saver_check_dir(const dq_model *model, const char *dir);
dq_status dq_saver_open(dq_env *env, const char *dir, uint64_t part_size, dq_saver **out);
/* To a sink that takes pieces instead of a folder (taken over, also on failure): config.json and the manifest become
 * metadata, the tokenizer's files are left out. */
dq_status dq_saver_open_sink(dq_env *env, dq_sink *target, dq_saver **out);
dq_sink *dq_saver_sink(dq_saver *saver);
dq_status dq_saver_finish(dq_saver *saver, dq_model *model, const dq_scheme *scheme, const char *provenance,
                          dq_progress *progress);
void dq_saver_free(dq_saver *saver);

/* Full-sequence logits, F32 [count, vocab] to host memory. */
dq_status dq_model_forward_logits(dq_model *model, const int32_t *ids, int64_t count, int math, float *out);

#endif
