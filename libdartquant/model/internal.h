/* Inside of a model, shared by the files of this room only. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_INTERNAL_H
#define DQ_MODEL_INTERNAL_H

#include <stdatomic.h>

#include "base/clips.h"
#include "base/kv_tables.h"
#include "base/rotation_set.h"
#include "formats/host_codes.h"
#include "model/model.h"

typedef enum dq_model_kind {
    DQ_MODEL_ROOT,
    DQ_MODEL_FUSED,
    DQ_MODEL_ROTATED,
    DQ_MODEL_SCALED,
    DQ_MODEL_QUANTIZED
} dq_model_kind;

enum { DQ_LAYER_ROLES = DQ_K_NORM + 1 };

struct dq_model {
    atomic_int references;
    dq_env *env;
    dq_device *dev;
    dq_model_kind kind;
    dq_arch arch;
    dq_model *base; /* NULL for a root */

    /* roots */
    dq_source *source;
    bool gguf_names;
    bool bare_names;     /* HF names without the "model." in front, as base models are saved */
    int64_t *weights;    /* [layers * DQ_LAYER_ROLES + DQ_ROLES - DQ_EMBED] tensor of each weight, -1 = codes instead */
    int64_t *biases;     /* the same of biases, -1 = none */
    float *rope_divisor; /* [head_dim / 2] for DQ_ROPE_TABLE */
    char *path;          /* what was opened, NULL when made from a source */
    char fingerprint[17];

    /* what holds for this model, inherited or its own */
    bool fused, centered;
    bool layer_norm;                  /* norms subtract a mean: the family's do until they are fused */
    bool scaled;                      /* channel scales were derived; final: no fusing, no rotating */
    bool has_r1;                      /* known even where the matrix is not (saved models) */
    const dq_rotation_set *rotations; /* NULL = none */
    const dq_scheme *scheme;          /* NULL = not quantized */

    /* owned by the model that introduced them */
    dq_rotation_set *own_rotations;
    dq_tensor r1;             /* F64 [hidden, hidden], empty = identity */
    double r1_growth, growth; /* by how much R1, and all own rotations together, can raise the largest magnitude */
    dq_scales *own_scales;
    dq_scheme own_scheme;
    dq_clips *own_clips;      /* of own_scheme */
    dq_kv_tables *own_tables; /* likewise */
    dq_source *store;         /* codes; a loaded model keeps them in `source` */
};

/* A fresh model that inherits everything from `base` and holds a reference to it. */
dq_status dq_model_derive(dq_model *base, dq_model_kind kind, dq_model **out);
/* A copy of `scheme`, clip ratios and tables included, becomes the model's. */
dq_status dq_model_own_scheme(dq_model *model, const dq_scheme *scheme);
const dq_model *dq_model_root(const dq_model *model);
/* Where the codes of the linears are, or NULL. */
dq_source *dq_model_codes_source(const dq_model *model);

/* Index of a root's weight or bias in its source, or -1. */
int64_t dq_root_weight(const dq_model *root, int64_t layer, dq_role role);
int64_t dq_root_bias(const dq_model *root, int64_t layer, dq_role role);
/* Whether the rows of that role stand in the order of GGUF's q and k, and the row of the file that holds row r then. */
bool dq_root_is_permuted(const dq_model *root, dq_role role);
int64_t dq_root_stored_row(int64_t r, int64_t head_dim);
/* Finds all tensors and checks their shapes. */
dq_status dq_root_bind(dq_model *root);
/* Rows [first, first + out.rows) of a root's tensor in the order of the HF layout, as the floating type that `out` has,
 * rounded once where that is narrower; non-finite values are an error. `role` decides about the q/k order of GGUF files; a
 * bias counts as a column. *bound is the largest magnitude. */
dq_status dq_root_read(const dq_model *root, dq_role role, bool bias, int64_t tensor, int64_t first, dq_tensor *out,
                       double *bound);

/* Applies one derivation in place: to a whole linear F64 [out, in], to its bias F64 [1, out], to rows of the embedding
 * or the head F64 [n, hidden]. *bound, which no magnitude of the operand exceeds, becomes such a bound of the result. */
dq_status dq_fuse_linear(dq_model *model, int64_t layer, dq_role role, dq_tensor *w, double *bound);
dq_status dq_fuse_bias(dq_model *model, int64_t layer, dq_role role, dq_tensor *bias, double *bound);
dq_status dq_fuse_rows(dq_model *model, dq_role role, dq_tensor *rows, double *bound);
/* Whether fusing a linear needs the whole matrix. */
bool dq_fuse_mixes_rows(const dq_model *model, dq_role role);
/* The bias that a layer norm has once it is fused. */
dq_status dq_fuse_norm_bias(dq_model *model, dq_role role, dq_tensor *bias, double *bound);
dq_status dq_rotate_linear(dq_model *model, int64_t layer, dq_role role, dq_tensor *w, double *bound);
dq_status dq_rotate_bias(dq_model *model, int64_t layer, dq_role role, dq_tensor *bias, double *bound);
dq_status dq_rotate_rows(dq_model *model, dq_role role, dq_tensor *rows, double *bound);
dq_status dq_scale_linear(dq_model *model, int64_t layer, dq_role role, dq_tensor *w, double *bound);
dq_status dq_scale_bias(dq_model *model, int64_t layer, dq_role role, dq_tensor *bias, double *bound);
dq_status dq_scale_norm(dq_model *model, int64_t layer, dq_role role, dq_tensor *weight, double *bound);

/* What stands below a fused model: rows [first, first + w.rows) of a linear as F64. */
dq_status dq_linear64(dq_model *model, int64_t layer, dq_role role, int64_t first, dq_tensor *w, double *bound);
/* Rows of a linear that are in fp64 at a time, where rows can be transformed alone. */
int64_t dq_rows_at_once(const dq_model *model, int64_t rows, int64_t cols);
/* Rounds rows from `first` on of a role's F64 weight; an overflow is an error. */
dq_status dq_round_weight(const dq_model *m, int64_t layer, dq_role role, int64_t first, const dq_tensor *from,
                          double bound, dq_tensor *to);

/* dq_model_embed_tokens with at most `limit` different rows in memory at a time; ids are in range. */
dq_status dq_embed_limited(dq_model *model, const int32_t *ids, int64_t count, int64_t limit, dq_tensor *hidden);

/* Order-independent hash of names, types, shapes and sampled content, one tensor at a time: the hash of a source is the
 * sum over its tensors. `read` copies bytes of the tensor. */
typedef struct dq_digest {
    uint64_t sum;
    int64_t count;
    uint64_t bytes;
} dq_digest;
typedef dq_status (*dq_digest_read)(void *arg, uint64_t offset, uint64_t bytes, void *out);
dq_status dq_digest_tensor(dq_digest *digest, const char *name, dq_dtype dtype, const char *type_name, int ndim,
                           const int64_t *shape, uint64_t bytes, dq_digest_read read, void *arg);
dq_status dq_digest_source(dq_source *source, dq_digest *out);

/* A root; takes over `source` even when it fails. `scheme`: codes stand in the source, NULL = none. */
dq_status dq_model_new_root(dq_device *dev, const dq_arch *arch, dq_source *source, bool gguf_names,
                            const dq_scheme *scheme, dq_model **out);

/* Saved models: a manifest beside the shards (docs/formats.md). */
#define DQ_MANIFEST "dartquant.json"
#define DQ_TOKENIZER_GGUF "tokenizer.gguf"
dq_status dq_model_load_saved(dq_device *dev, const char *dir, dq_model **out);

/* Element type of the embedding and the head: F32 unless the weights are quantized. */
dq_dtype dq_model_vocab_dtype(const dq_model *model);

#endif
