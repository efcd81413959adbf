/* libdartquant: text from a model, token by token. Since 1.0.
 * The model stays in memory: integer codes packed, GGUF's blocks too, other weights in the narrowest type that holds them
 * exactly. Keys and values of past tokens are kept as the option kv says. What is generated depends on model, prompt and
 * options, not on threads or on the other prompts of a batch except through fp32 rounding.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_GENERATOR_H
#define DARTQUANT_GENERATOR_H

#include "dartquant/progress.h"
#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Why a sequence ended. */
enum {
    DQ_FINISH_NONE = 0,   /* it has not */
    DQ_FINISH_LENGTH = 1, /* max_tokens */
    DQ_FINISH_EOS = 2,    /* an end token, which is the last of its ids */
    DQ_FINISH_STOP = 3    /* a stop text; the text ends before it */
};

/* One token. Pointers are valid during the call. */
typedef struct dq_token_event {
    uint32_t struct_size;
    int32_t finish;   /* DQ_FINISH_*; not NONE: this is the sequence's last event */
    int64_t sequence; /* as dq_generator_add numbered it */
    int64_t index;    /* of the token among the sequence's new ones */
    const char
        *text; /* new text that can no longer change, NUL-terminated UTF-8; "" without tokenizer or while a character
                         or a stop text may be incomplete */
    uint64_t bytes; /* of it */
    int32_t id;
    int32_t reserved;
} dq_token_event;

/* Non-zero ends the call with DQ_E_CANCELLED; the generator may go on with the next step. */
typedef int32_t (*dq_token_fn)(void *user, const dq_token_event *event);

/* Order of calls: new, add (once per prompt), run or step until done, then the results; reset for the next batch, which keeps
 * the weights. */

/* Prepares a generator. `tokenizer` NULL: ids only; the generator keeps it, it may be freed. `config` (NULL = defaults): max_tokens, temperature, top_k, top_p, seed, kv, head, int8_products,
 * ignore_eos, prefill, math. Nothing is loaded yet. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_generator_new(dq_model *model, const dq_tokenizer *tokenizer, const dq_config *config,
                                  dq_generator **out);
/* NULL is accepted. */
DQ_API void dq_generator_free(dq_generator *generator);
/* Takes other sampling options (max_tokens, temperature, top_k, top_p, seed, ignore_eos) for the sequences to come; kv, head, int8_products, math
 * and prefill stay. Errors: DQ_E_STATE (generation has begun: reset first), DQ_E_INVALID. */
DQ_API dq_status dq_generator_configure(dq_generator *generator, const dq_config *config);
/* Adds a prompt of `count` >= 1 ids; *sequence (may be NULL) counts from 0. Errors: DQ_E_STATE (generation has begun),
 * DQ_E_MISMATCH (id outside the vocabulary), DQ_E_INVALID (longer than the model's positions), DQ_E_NOMEM. */
DQ_API dq_status dq_generator_add(dq_generator *generator, const int32_t *ids, size_t count, int64_t *sequence);
/* Sequences end before this text. Stop texts stay through a reset. Errors: DQ_E_STATE (no tokenizer), DQ_E_INVALID (empty), DQ_E_NOMEM. */
DQ_API dq_status dq_generator_add_stop(dq_generator *generator, const char *text);
/* Sequences end with this id, as with the model's and the tokenizer's end token. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_generator_add_stop_id(dq_generator *generator, int32_t id);
/* Does a part of the work: loads one layer or one tile of the vocabulary, or takes in up to `prefill` prompt tokens, or makes
 * one token for each sequence. *done = 1 when all have ended. `token` (may be NULL) is called on this thread for each new
 * token. Errors: DQ_E_STATE (nothing added), DQ_E_CANCELLED, DQ_E_NONFINITE (logits), DQ_E_UNSUPPORTED
 * (int8_products for a model none of whose linears can have them), those of reading the weights, DQ_E_BACKEND, DQ_E_NOMEM.
 * After an error the step may be tried again. */
DQ_API dq_status dq_generator_step(dq_generator *generator, const dq_cancel *cancel, dq_token_fn token, void *user,
                                   int32_t *done);
/* Steps until all sequences have ended. Errors as dq_generator_step. */
DQ_API dq_status dq_generator_run(dq_generator *generator, const dq_cancel *cancel, dq_token_fn token, void *user);
/* Forgets the sequences; weights and stops stay. Errors: DQ_E_INVALID. */
DQ_API dq_status dq_generator_reset(dq_generator *generator);

/* The new ids of a sequence: *needed = their number; written only when all fit. Errors: DQ_E_NOTFOUND (no such sequence), DQ_E_INVALID. */
DQ_API dq_status dq_generator_copy_ids(const dq_generator *generator, int64_t sequence, int32_t *ids, size_t capacity,
                                       size_t *needed);
/* The text of the new ids, "" without tokenizer; valid until the next call with the generator. Errors: DQ_E_NOTFOUND, DQ_E_INVALID. */
DQ_API dq_status dq_generator_text(const dq_generator *generator, int64_t sequence, const char **out);
/* Why a sequence ended: DQ_FINISH_*. Errors: DQ_E_NOTFOUND, DQ_E_INVALID. */
DQ_API dq_status dq_generator_finish_reason(const dq_generator *generator, int64_t sequence, int32_t *out);
/* Figures by key: "weights_bytes" (weights in memory), "cache_bytes", "load_seconds", and since the last reset "prompt_tokens",
 * "prompt_seconds", "prompt_tokens_per_second", "tokens", "decode_seconds", "decode_tokens_per_second" (a sequence's first token comes with
 * its prompt and is not counted in the last). Errors: DQ_E_NOTFOUND, DQ_E_INVALID (not integral). */
DQ_API dq_status dq_generator_get_float(const dq_generator *generator, const char *key, double *out);
DQ_API dq_status dq_generator_get_int(const dq_generator *generator, const char *key, int64_t *out);

#ifdef __cplusplus
}
#endif
#endif
