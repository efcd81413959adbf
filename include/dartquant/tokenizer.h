/* libdartquant: text to token ids and back. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_TOKENIZER_H
#define DARTQUANT_TOKENIZER_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Switches of dq_tokenizer_encode. */
enum {
    DQ_ENCODE_ADD_SPECIAL = 1,  /* BOS (and EOS where the template says so) around the text */
    DQ_ENCODE_PARSE_SPECIAL = 2 /* special tokens written out in the text become their ids */
};
/* Switches of dq_tokenizer_decode. */
enum { DQ_DECODE_SKIP_SPECIAL = 1 /* leave special tokens out */ };

/* Opens the tokenizer at `path`: a folder with tokenizer.json (or vocab.json and merges.txt), a tokenizer.json, or a
 * GGUF file. Byte-level BPE and SentencePiece-style BPE with byte fallback.
 * Errors: DQ_E_INVALID, DQ_E_IO, DQ_E_FORMAT, DQ_E_UNSUPPORTED (another kind of tokenizer), DQ_E_TEXT, DQ_E_NOMEM. */
DQ_API dq_status dq_tokenizer_open(dq_context *ctx, const char *path, dq_tokenizer **out);
/* NULL is accepted. */
DQ_API void dq_tokenizer_free(dq_tokenizer *tokenizer);

/* Number of ids; 0 for NULL. */
DQ_API int64_t dq_tokenizer_vocab_size(const dq_tokenizer *tokenizer);
/* Beginning- and end-of-sequence ids; -1 = none. */
DQ_API int32_t dq_tokenizer_bos(const dq_tokenizer *tokenizer);
DQ_API int32_t dq_tokenizer_eos(const dq_tokenizer *tokenizer);
/* "byte-level BPE" or "sentencepiece BPE"; static text, "" for NULL. */
DQ_API const char *dq_tokenizer_algorithm(const dq_tokenizer *tokenizer);

/* Encodes `bytes` bytes of UTF-8. `flags`: DQ_ENCODE_*. *needed = number of ids; at most `capacity` ids are written, and
 * only when all fit: call with ids NULL and capacity 0 to learn the size. Too small a buffer is not an error.
 * Errors: DQ_E_INVALID, DQ_E_TEXT, DQ_E_NOMEM. */
DQ_API dq_status dq_tokenizer_encode(const dq_tokenizer *tokenizer, const char *text, size_t bytes, uint32_t flags,
                                     int32_t *ids, size_t capacity, size_t *needed);
/* Decodes ids to UTF-8 text. `flags`: DQ_DECODE_*. *needed = bytes of the text without the closing NUL; the text with its
 * NUL is written only when capacity > *needed. Too small a buffer is not an error.
 * Errors: DQ_E_INVALID (an id outside the vocabulary), DQ_E_NOMEM. */
DQ_API dq_status dq_tokenizer_decode(const dq_tokenizer *tokenizer, const int32_t *ids, size_t count, uint32_t flags,
                                     char *text, size_t capacity, size_t *needed);

/* Switches of dq_tokenizer_render_chat. */
enum { DQ_CHAT_GENERATION_PROMPT = 1 /* the text ends where the model's answer begins */ };

/* The text of the tokenizer's chat template `name`, NULL = "default"; it lives as long as the tokenizer.
 * Errors: DQ_E_NOTFOUND, DQ_E_INVALID. */
DQ_API dq_status dq_tokenizer_get_chat_template(const dq_tokenizer *tokenizer, const char *name, const char **out);
/* A conversation as the text that the model was trained on. `messages`: a JSON array of objects with "role" and "content".
 * `chat_template`: NULL = the tokenizer's own ("tool_use" when there are tools and it has one, else "default"), one of its
 * templates by name, or the text of another: a subset of Jinja (docs/formats.md). `variables` (may be NULL): a JSON object
 * with more names for the template, such as "tools" or "date_string". `flags`: DQ_CHAT_*. *needed = bytes of the text
 * without the closing NUL; it is written when capacity > *needed, as by dq_tokenizer_decode. Encode it with
 * DQ_ENCODE_PARSE_SPECIAL alone: the template has written BOS itself.
 * Errors: DQ_E_NOTFOUND (no template), DQ_E_INVALID (not such messages; the template refuses them, or takes too much time or
 * memory), DQ_E_FORMAT (the template is not Jinja), DQ_E_UNSUPPORTED (beyond the subset), each with the line; DQ_E_NOMEM. */
DQ_API dq_status dq_tokenizer_render_chat(const dq_tokenizer *tokenizer, const char *chat_template,
                                          const char *messages, const char *variables, uint32_t flags, char *text,
                                          size_t capacity, size_t *needed);

#ifdef __cplusplus
}
#endif
#endif
