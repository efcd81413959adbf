/* Token streams by recipe (docs/numerics.md states each): which text, how joined, how tokenized.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_DATASET_H
#define DQ_TEXT_DATASET_H

#include "text/tokenizer.h"

typedef enum dq_split { DQ_SPLIT_TEST = 0, DQ_SPLIT_TRAIN = 1 } dq_split;

typedef struct dq_token_stream {
    char *name;     /* "wikitext2", "c4", "ptb", or the file's base name */
    char *protocol; /* join and BOS rule in words */
    dq_ids ids;     /* one stream */
    /* Recipes that sample inside documents (c4 train): document d is ids documents[d]..documents[d+1]. Documents of
     * fewer than document_min tokens are counted but kept empty: no window of that length fits in them. */
    int64_t *documents; /* [document_count + 1] or NULL */
    int64_t document_count, document_min;
} dq_token_stream;

void dq_token_stream_clear(dq_token_stream *stream);

/* name: wikitext2, ptb, c4. Looks in data_dir, and data_dir/<name>*, for the names the data is distributed under
 * (recipes.c: wiki.test.raw, ptb.test.txt, c4-validation*.json.gz, ...); the error lists what was looked for. Another
 * split or version never stands in for a missing one. seqlen: c4 test is cut to 256 windows, a test split shorter than
 * one window is an error, c4 train documents shorter than one window are not kept. */
dq_status dq_stream_from_recipe(dq_env *env, const dq_tokenizer *tokenizer, const char *name, const char *data_dir,
                                dq_split split, int64_t seqlen, dq_token_stream *out);
/* Any text file (.txt, .raw, .tokens, ...): whole file tokenized once. .jsonl / .json.gz: field "text" of each line,
 * joined by blank lines. */
dq_status dq_stream_from_file(dq_env *env, const dq_tokenizer *tokenizer, const char *path, dq_token_stream *out);
dq_status dq_stream_from_text(dq_env *env, const dq_tokenizer *tokenizer, const char *text, size_t bytes,
                              const char *name, dq_token_stream *out);
/* Copies ids. A JSON file holds [1,2,...] or {"ids":[...]}. */
dq_status dq_stream_from_ids(dq_env *env, const int32_t *ids, size_t count, const char *name, dq_token_stream *out);
dq_status dq_stream_from_ids_file(dq_env *env, const char *path, dq_token_stream *out);

/* Calibration windows of the upstream loader: random.seed(seed); nsamples draws of start = randint(0, L-seqlen-1).
 * Fails with a clear text when the stream is shorter than seqlen + 1. out: nsamples * seqlen ids. */
dq_status dq_stream_sample(dq_env *env, const dq_token_stream *stream, uint64_t seed, int64_t nsamples, int64_t seqlen,
                           dq_ids *out);

#endif
