/* Tokenizers of the two kinds the models use: byte-level BPE and SentencePiece-style BPE with byte fallback.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_TOKENIZER_H
#define DQ_TEXT_TOKENIZER_H

#include "base/env.h"
#include "base/source.h"

typedef struct dq_ids {
    int32_t *data; /* dq_free */
    size_t count;
} dq_ids;

/* tokenizer.json (Hugging Face tokenizers); special tokens for BOS/EOS from tokenizer_config.json beside it. */
dq_status dq_tokenizer_from_json(dq_env *env, const char *path, dq_tokenizer **out);
/* vocab.json + merges.txt of a GPT-2 style folder. `bos` = -1 for none. */
dq_status dq_tokenizer_from_gpt2(dq_env *env, const char *vocab_path, const char *merges_path, int32_t bos,
                                 dq_tokenizer **out);
/* Vocabulary inside a GGUF file (tokenizer.ggml.*), models "gpt2" and "llama". */
dq_status dq_tokenizer_from_gguf(const dq_source *gguf, dq_tokenizer **out);
/* By path: a folder (tokenizer.json, else vocab.json + merges.txt, else tokenizer.model is named as unsupported), a
 * tokenizer.json, or a GGUF file. */
dq_status dq_tokenizer_open_path(dq_env *env, const char *path, dq_tokenizer **out);
/* One more dq_tokenizer_destroy is needed. */
dq_tokenizer *dq_tokenizer_retain(const dq_tokenizer *tokenizer);
void dq_tokenizer_destroy(dq_tokenizer *tokenizer); /* NULL is accepted */

int64_t dq_tokenizer_size(const dq_tokenizer *tokenizer);
int32_t dq_tokenizer_bos_id(const dq_tokenizer *tokenizer); /* -1 = none */
int32_t dq_tokenizer_eos_id(const dq_tokenizer *tokenizer);
/* Short text for protocols: "byte-level BPE" or "sentencepiece BPE". */
const char *dq_tokenizer_kind(const dq_tokenizer *tokenizer);

/* Chat templates that came with the vocabulary: "default", perhaps "tool_use" and others. NULL = none of that name. */
const char *dq_tokenizer_chat_template(const dq_tokenizer *tokenizer, const char *name);
/* Texts of special tokens as its configuration names them, for chat templates: "bos_token" and the like, in *key; NULL =
 * fewer than that. */
const char *dq_tokenizer_special_text(const dq_tokenizer *tokenizer, size_t index, const char **key);

/* Encodes UTF-8 text (invalid bytes are treated as the reference tokenizers do after replacement). add_special puts BOS
 * (and EOS where the template says so) around; parse_special recognises special tokens inside the text. */
dq_status dq_tokenizer_encode_text(const dq_tokenizer *tokenizer, const char *text, size_t bytes, bool add_special,
                                   bool parse_special, dq_ids *out);
/* Fresh NUL-terminated text. skip_special leaves special tokens out. */
dq_status dq_tokenizer_decode_ids(const dq_tokenizer *tokenizer, const int32_t *ids, size_t count, bool skip_special,
                                  char **out, size_t *bytes);

#endif
