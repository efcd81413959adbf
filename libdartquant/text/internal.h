/* What a tokenizer is made of. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_INTERNAL_H
#define DQ_TEXT_INTERNAL_H

#include <stdatomic.h>

#include "text/added.h"
#include "text/bpe.h"
#include "text/parts.h"
#include "text/named.h"
#include "text/tokenizer.h"

struct dq_tokenizer {
    dq_env *env;
    const char *kind;
    dq_vocab vocab;
    dq_added added;
    dq_chain normalizers, pretokenizers, decoders;
    dq_bpe bpe;
    dq_post post;
    int32_t bos, eos;
    dq_named templates, specials; /* chat templates by name, texts of special tokens by key */
    atomic_int shared;            /* holders beyond the first */
};

/* An empty tokenizer; its maker fills the parts. */
dq_status dq_tokenizer_new(dq_env *env, dq_tokenizer **out);
/* Checks and closes the parts: search sets, cuts, ids in front and behind. Call last. */
dq_status dq_tokenizer_finish(dq_tokenizer *t);

/* merges.txt */
dq_status dq_merges_read_text(dq_env *env, const dq_vocab *vocab, const char *path, dq_merges *out);
/* {"token": id, ...} with room for `more` bytes and ids up to `max_id` of added tokens. */
dq_status dq_vocab_read_json(const dq_json_at *at, const json_t *json, int64_t max_id, size_t more, dq_vocab *out);

/* tokenizer_config.json, special_tokens_map.json and config.json beside a vocabulary. Absent files are no error. */
typedef struct dq_tokenizer_config {
    char *bos, *eos;        /* token texts or NULL */
    int64_t bos_id, eos_id; /* from config.json, -1 = unknown */
    int add_bos, add_eos;   /* -1 = not said */
    bool opt;               /* config.json: model_type "opt" */
    dq_named templates, specials;
} dq_tokenizer_config;
dq_status dq_tokenizer_config_read(dq_env *env, const char *dir, dq_tokenizer_config *out);
void dq_tokenizer_config_clear(dq_tokenizer_config *config);
/* Its templates and texts go over to the tokenizer. */
void dq_tokenizer_take_chat(dq_tokenizer *t, dq_tokenizer_config *config);
/* Sets bos, eos and, where the flags are given, the ids around a text. */
dq_status dq_tokenizer_apply_config(dq_tokenizer *t, const dq_tokenizer_config *config, const char *file);

#endif
