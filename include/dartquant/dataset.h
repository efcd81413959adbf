/* libdartquant: token streams for calibration and evaluation, with the protocol that made them. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_DATASET_H
#define DARTQUANT_DATASET_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which part of a recipe's text. */
enum { DQ_DATASET_TEST = 0, DQ_DATASET_TRAIN = 1 };

/* A dataset is read-only once made; it does not need its tokenizer any longer. */

/* One of the datasets of the literature from local files: "wikitext2", "ptb" or "c4", looked for in `data_dir` and
 * data_dir/<name>* under the names they are distributed with. The recipe (which text, how joined, where BOS) is that of
 * GPTQ, arXiv 2210.17323, and stands in dq_dataset_protocol. seqlen: window length in tokens; c4's test part is cut to 256
 * windows. Errors: DQ_E_INVALID, DQ_E_NOTFOUND (unknown name), DQ_E_IO (file not found: the message lists the names looked
 * for), DQ_E_FORMAT, DQ_E_TEXT (empty), DQ_E_NOMEM. */
DQ_API dq_status dq_dataset_from_recipe(const dq_tokenizer *tokenizer, const char *name, const char *data_dir,
                                        int32_t part, int64_t seqlen, dq_dataset **out);
/* Any text file, tokenized once as a whole; of .jsonl and .json.gz the field "text" of each line, joined by blank lines.
 * Errors: DQ_E_INVALID, DQ_E_IO, DQ_E_FORMAT, DQ_E_TEXT (empty), DQ_E_NOMEM. */
DQ_API dq_status dq_dataset_from_file(const dq_tokenizer *tokenizer, const char *path, dq_dataset **out);
/* `bytes` bytes of UTF-8 text; `name` appears in reports. Errors: DQ_E_INVALID, DQ_E_TEXT (empty), DQ_E_NOMEM. */
DQ_API dq_status dq_dataset_from_text(const dq_tokenizer *tokenizer, const char *text, size_t bytes, const char *name,
                                      dq_dataset **out);
/* Copies `count` ids the host made itself. Errors: DQ_E_INVALID, DQ_E_TEXT (none), DQ_E_NOMEM. */
DQ_API dq_status dq_dataset_from_ids(dq_context *ctx, const int32_t *ids, size_t count, const char *name,
                                     dq_dataset **out);
/* A JSON file with [1,2,...] or {"ids":[...]}. Errors: DQ_E_INVALID, DQ_E_IO, DQ_E_FORMAT, DQ_E_TEXT, DQ_E_NOMEM. */
DQ_API dq_status dq_dataset_from_ids_file(dq_context *ctx, const char *path, dq_dataset **out);
/* NULL is accepted. */
DQ_API void dq_dataset_free(dq_dataset *dataset);

/* Name and protocol (join and BOS rule in words); owned by the dataset, "" for NULL. */
DQ_API const char *dq_dataset_name(const dq_dataset *dataset);
DQ_API const char *dq_dataset_protocol(const dq_dataset *dataset);
/* Number of ids; 0 for NULL. */
DQ_API int64_t dq_dataset_count(const dq_dataset *dataset);
/* Copies ids [first, first + count) to out. Errors: DQ_E_INVALID (range, NULL). */
DQ_API dq_status dq_dataset_copy_ids(const dq_dataset *dataset, int64_t first, int64_t count, int32_t *out);
/* Draws `nsamples` calibration windows of `seqlen` ids with Python's random.seed(seed) as the original loader does;
 * out int32 [nsamples, seqlen] with room for `capacity` ids.
 * Errors: DQ_E_INVALID, DQ_E_TEXT (text shorter than seqlen + 1 tokens), DQ_E_NOMEM. */
DQ_API dq_status dq_dataset_sample(const dq_dataset *dataset, uint64_t seed, int64_t nsamples, int64_t seqlen,
                                   int32_t *out, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
