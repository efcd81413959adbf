/* The stages of a tokenizer, in the order in which a text passes them: normalizers, pre-tokenizers, model (bpe.h,
 * spm.h), post-processor, decoders. Every part is read from the JSON of Hugging Face's `tokenizers` library or put
 * together by hand for the other vocabulary files. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_PARTS_H
#define DQ_TEXT_PARTS_H

#include <jansson.h>

#include "text/bytes.h"
#include "text/pattern.h"
#include "text/vocab.h"

/* ---- reading JSON: `where` is the JSON path of `object`, errors name file, path and key ---- */
enum { DQ_WHERE = 256, DQ_MAX_NESTING = 16 };
typedef struct dq_json_at {
    dq_env *env;
    const char *file;
    char where[DQ_WHERE];
    int depth;
} dq_json_at;

/* at.where + ".key" or + "[i]" */
dq_json_at dq_at_key(const dq_json_at *at, const char *key);
dq_json_at dq_at_index(const dq_json_at *at, size_t i);
dq_status dq_at_fail(const dq_json_at *at, dq_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
dq_status dq_at_string(const dq_json_at *at, const json_t *object, const char *key, bool required, const char **out,
                       size_t *bytes);
dq_status dq_at_bool(const dq_json_at *at, const json_t *object, const char *key, bool fallback, bool *out);
dq_status dq_at_int(const dq_json_at *at, const json_t *object, const char *key, int64_t min, int64_t max,
                    int64_t *out);
dq_status dq_at_array(const dq_json_at *at, const json_t *object, const char *key, const json_t **out);
/* {"String": s} or {"Regex": s} under `key`. */
dq_status dq_at_pattern(const dq_json_at *at, const json_t *object, const char *key, dq_pattern **out);

/* ---- one step of a chain (normalizer, pre-tokenizer or decoder) ---- */
typedef struct dq_step {
    int kind;            /* of the chain's own enum */
    int behavior;        /* splits */
    bool flag, flag2;    /* meaning by kind */
    int64_t start, stop; /* Strip decoder */
    dq_pattern *pattern;
    char *text; /* prefix, replacement, ... */
    size_t bytes;
} dq_step;

typedef struct dq_chain {
    dq_env *env;
    dq_step *steps;
    size_t count;
} dq_chain;

/* Takes over what `step` owns, also when it fails. */
dq_status dq_chain_add(dq_chain *chain, dq_step step);
/* The same for a step whose making gave `status`: it is added when that was DQ_OK, freed otherwise. */
dq_status dq_chain_take(dq_chain *chain, dq_step step, dq_status status);
/* Reads the object `json`, or nothing when it is null or absent: `read` adds what its "type" names; a "Sequence" has a
 * list of such objects under `list_key`. */
typedef dq_status (*dq_step_reader)(const dq_json_at *at, const json_t *json, const char *type, dq_chain *chain);
dq_status dq_chain_read(const dq_json_at *at, const json_t *json, const char *list_key, dq_step_reader read,
                        dq_chain *chain);
void dq_chain_clear(dq_chain *chain);
dq_status dq_step_set_text(dq_env *env, dq_step *step, const char *text, size_t bytes);

/* ---- normalizers ---- */
dq_status dq_normalizers_read(const dq_json_at *at, const json_t *json, dq_chain *chain);
/* Legacy SentencePiece form: `prefix` in front of every piece, then ' ' becomes U+2581. */
dq_status dq_normalizers_metaspace(dq_chain *chain, bool prefix);
/* Replaces the content of *text. */
dq_status dq_normalize(const dq_chain *chain, dq_bytes *text);

/* ---- pre-tokenizers ---- */
dq_status dq_pretokenizers_read(const dq_json_at *at, const json_t *json, dq_chain *chain);
/* A regular expression whose matches and gaps become pieces. */
dq_status dq_pretokenizers_add_split(dq_chain *chain, const char *regex, const char *file, const char *where);
dq_status dq_pretokenizers_add_bytelevel(dq_chain *chain, bool prefix_space, bool use_regex);
dq_status dq_pretokenize(const dq_chain *chain, dq_pieces *pieces);

/* ---- GPT-2's reversible map from bytes to printable characters ---- */
/* UTF-8 of the character for `byte`; 1 or 2 bytes. */
int dq_bytelevel_char(unsigned char byte, char out[4]);
/* The byte a character stands for, or -1. */
int dq_bytelevel_byte(int32_t cp);

/* ---- post-processor: ids in front and behind ---- */
typedef struct dq_post {
    dq_id_list before, after;
} dq_post;
dq_status dq_post_read(const dq_json_at *at, const json_t *json, dq_post *post);
void dq_post_clear(dq_post *post);

/* ---- decoders ---- */
enum {
    DQ_DECODER_NONE = 0,
    DQ_DECODER_BYTELEVEL,
    DQ_DECODER_METASPACE,
    DQ_DECODER_REPLACE,
    DQ_DECODER_BYTE_FALLBACK,
    DQ_DECODER_FUSE,
    DQ_DECODER_STRIP
};
dq_status dq_decoders_read(const dq_json_at *at, const json_t *json, dq_chain *chain);
dq_status dq_decoders_add_bytelevel(dq_chain *chain);
/* U+2581 becomes ' ', byte tokens bytes; one leading space is dropped when `strip`. */
dq_status dq_decoders_add_sentencepiece(dq_chain *chain, bool strip);
/* Runs the chain over token strings (one span each); the result is the concatenation of the spans. */
dq_status dq_decode(const dq_chain *chain, dq_pieces *tokens);

#endif
