/* Generation, step by step. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_JOB_H
#define DQ_GENERATE_JOB_H

#include "dartquant/generator.h"
#include "generate/cache.h"
#include "generate/resident.h"
#include "generate/sampler.h"
#include "generate/stream.h"

typedef struct dq_generate_spec {
    int64_t max_tokens; /* new ones of a sequence */
    int64_t prefill;    /* prompt tokens in a step */
    dq_sampling sampling;
    dq_kv_format kv;
    int head_bits;
    int math; /* DQ_MATH_*, DQ_MATH_INT8 may be added */
    bool ignore_eos;
} dq_generate_spec;

typedef struct dq_sequence {
    int32_t *ids; /* prompt and new ones, room for max_tokens */
    int64_t prompt, count;
    int64_t cached; /* ids whose keys are in the cache */
    int finish;     /* DQ_FINISH_* */
    dq_text_stream stream;
} dq_sequence;

typedef struct dq_generate_stats {
    double load_seconds, prompt_seconds, decode_seconds;
    int64_t prompt_tokens, tokens, decode_tokens;
    uint64_t cache_bytes;
} dq_generate_stats;

typedef struct dq_generate_job {
    dq_env *env;
    dq_model *model;         /* a reference */
    dq_tokenizer *tokenizer; /* a reference, or NULL */
    dq_generate_spec spec;
    dq_resident *resident;
    dq_stops stops;
    int32_t *stop_ids;
    int64_t stop_id_count;
    dq_sequence *sequences;
    int64_t count;
    /* once begun */
    int64_t capacity; /* slots of a sequence */
    dq_kv_cache *caches;
    dq_block_spec block; /* RoPE tables of all positions */
    dq_workspace ws;
    int64_t ws_rows;
    dq_generate_stats stats;
} dq_generate_job;

dq_status dq_generate_job_new(dq_model *model, const dq_tokenizer *tokenizer, const dq_generate_spec *spec,
                              dq_generate_job **out);
void dq_generate_job_free(dq_generate_job *job); /* NULL is accepted */
dq_status dq_generate_configure(dq_generate_job *job, const dq_generate_spec *spec);
dq_status dq_generate_add(dq_generate_job *job, const int32_t *ids, int64_t count, int64_t *sequence);
dq_status dq_generate_add_stop(dq_generate_job *job, const char *text);
dq_status dq_generate_add_stop_id(dq_generate_job *job, int32_t id);
void dq_generate_reset(dq_generate_job *job);
dq_status dq_generate_step(dq_generate_job *job, dq_progress *progress, dq_token_fn token, void *user, bool *done);

/* One pass of some tokens through the model (pass.c). Row r is token ids[r] of a sequence at `position`. */
typedef struct dq_pass_row {
    int64_t sequence, position;
    int32_t id;
    bool last; /* its logits are wanted */
} dq_pass_row;
/* logits: fresh memory [wanted, vocab], NULL when none are wanted. */
dq_status dq_generate_pass(dq_generate_job *job, const dq_pass_row *rows, int64_t count, dq_progress *progress,
                           float **logits);

#endif
