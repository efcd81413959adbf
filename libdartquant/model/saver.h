/* Inside of the saver: the stream of tensors (save.c) and the files beside the shards (save_files.c).
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_SAVER_H
#define DQ_MODEL_SAVER_H

#include "model/manifest.h"

/* The sink that quantizer jobs see: it notes what has come, and leaves finishing to the saver. */
struct dq_saver {
    dq_sink sink; /* must be first */
    dq_sink *files;
    dq_env *env;
    char *dir;          /* NULL: everything goes to `files`, which digests (dq_digest_sink_new) */
    dq_name_map *names; /* linears whose codes are there */
    char **keys;
    size_t count, capacity;
    const char *beside[16]; /* files written beside the shards where none was before; static names */
    int beside_count;
    bool fresh;          /* the folder held no shards when the saver was opened */
    bool shards_visible; /* ours, under their final names */
};

/* config.json as Hugging Face tools know it. */
dq_status dq_saver_write_config(dq_saver *s, const dq_model *m, const dq_scheme *scheme);
/* Copies of the tokenizer's files, or the vocabulary of a GGUF file. */
dq_status dq_saver_write_tokenizer(dq_saver *s, const dq_model *m);
/* A folder that is being overwritten is no model until the new manifest stands. */
dq_status dq_saver_remove_manifest(dq_saver *s);
/* Reads the shards back and records what they hold. */
dq_status dq_saver_write_manifest(dq_saver *s, dq_model *m, const dq_scheme *scheme, json_t *provenance);
/* A sink that hands everything on to `target` (taken over, also on failure), which must take pieces too, and digests it on
 * the way. */
dq_status dq_digest_sink_new(dq_sink *target, dq_sink **out);
dq_digest dq_digest_sink_result(const dq_sink *sink);
/* Whether the folder holds shards of a saved model; false when it cannot be read. */
bool dq_saver_holds_shards(const char *path);
/* After a failure: removes what already stands under its final name and replaced nothing. */
void dq_saver_take_back(dq_saver *s);

#endif
