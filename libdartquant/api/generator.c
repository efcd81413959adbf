/* dartquant/generator.h. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant/generator.h"

#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "generate/job.h"

struct dq_generator {
    dq_context *ctx;
    dq_generate_job *job;
};

static dq_generate_spec spec_of(const dq_config *config)
{
    return (dq_generate_spec){
        .max_tokens = dq_config_int(config, "max_tokens"),
        .prefill = dq_config_int(config, "prefill"),
        .sampling = {.temperature = dq_config_float(config, "temperature"),
                     .top_k = dq_config_int(config, "top_k"),
                     .top_p = dq_config_float(config, "top_p"),
                     .seed = (uint64_t)dq_config_int(config, "seed")},
        .kv = (dq_kv_format)dq_config_int(config, "kv"), /* choices in the order of the type */
        .head_bits = dq_config_int(config, "head") == 0 ? 16 : 8,
        .math = dq_config_math(config) | (dq_config_int(config, "int8_products") ? DQ_MATH_INT8 : 0),
        .ignore_eos = dq_config_int(config, "ignore_eos") != 0,
    };
}

/* The options of a host, or the defaults. */
static dq_status read_spec(const dq_config *config, dq_generate_spec *out)
{
    dq_config *own = NULL;
    DQ_TRY(config ? dq_config_copy(config, &own) : dq_config_new(&own));
    *out = spec_of(own);
    dq_config_free(own);
    return DQ_OK;
}

dq_status dq_generator_new(dq_model *model, const dq_tokenizer *tokenizer, const dq_config *config, dq_generator **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    dq_context *ctx = dq_context_of_model(model);
    dq_generate_spec spec;
    if (tokenizer && dq_context_of(dq_env_of(tokenizer)) != ctx)
        return dq_fail(DQ_E_INVALID, "the tokenizer belongs to another context than the model");
    DQ_TRY(read_spec(config, &spec));
    dq_generator *g = dq_calloc(&ctx->env, 1, sizeof *g);
    if (!g) return DQ_E_NOMEM;
    dq_status status = dq_generate_job_new(model, tokenizer, &spec, &g->job);
    if (status != DQ_OK) {
        dq_free(g);
        return status;
    }
    g->ctx = dq_context_retain(ctx);
    *out = g;
    return DQ_OK;
}

static void destroy(void *object)
{
    dq_generator *g = object;
    dq_context *ctx = g->ctx;
    dq_generate_job_free(g->job);
    dq_free(g);
    dq_context_release(ctx);
}

void dq_generator_free(dq_generator *g)
{
    if (g) dq_context_discard(g->ctx, destroy, g);
}

dq_status dq_generator_configure(dq_generator *g, const dq_config *config)
{
    DQ_ENTER_CONTEXT(g->ctx, g && config);
    dq_generate_spec spec;
    DQ_TRY(read_spec(config, &spec));
    return dq_generate_configure(g->job, &spec);
}

dq_status dq_generator_add(dq_generator *g, const int32_t *ids, size_t count, int64_t *sequence)
{
    DQ_ENTER_CONTEXT(g->ctx, g && ids);
    if (count > INT32_MAX) return dq_fail(DQ_E_INVALID, "a prompt of %zu tokens", count);
    return dq_generate_add(g->job, ids, (int64_t)count, sequence);
}

dq_status dq_generator_add_stop(dq_generator *g, const char *text)
{
    DQ_ENTER_CONTEXT(g->ctx, g && text);
    return dq_generate_add_stop(g->job, text);
}

dq_status dq_generator_add_stop_id(dq_generator *g, int32_t id)
{
    DQ_ENTER_CONTEXT(g->ctx, g);
    return dq_generate_add_stop_id(g->job, id);
}

dq_status dq_generator_step(dq_generator *g, const dq_cancel *cancel, dq_token_fn token, void *user, int32_t *done)
{
    DQ_ENTER_CONTEXT(g->ctx, g && done);
    dq_progress progress = dq_progress_make(cancel, NULL, NULL);
    bool finished = false;
    DQ_TRY(dq_generate_step(g->job, &progress, token, user, &finished));
    *done = finished;
    return DQ_OK;
}

dq_status dq_generator_run(dq_generator *g, const dq_cancel *cancel, dq_token_fn token, void *user)
{
    DQ_ENTER_CONTEXT(g->ctx, g);
    dq_progress progress = dq_progress_make(cancel, NULL, NULL);
    for (bool finished = false; !finished;) DQ_TRY(dq_generate_step(g->job, &progress, token, user, &finished));
    return DQ_OK;
}

dq_status dq_generator_reset(dq_generator *g)
{
    DQ_ENTER_CONTEXT(g->ctx, g);
    dq_generate_reset(g->job);
    return DQ_OK;
}

/* ---- results ---- */

static dq_status find(const dq_generator *g, int64_t sequence, const dq_sequence **out)
{
    if (sequence < 0 || sequence >= g->job->count)
        return dq_fail(DQ_E_NOTFOUND, "sequence %lld of %lld", (long long)sequence, (long long)g->job->count);
    *out = &g->job->sequences[sequence];
    return DQ_OK;
}

dq_status dq_generator_copy_ids(const dq_generator *g, int64_t sequence, int32_t *ids, size_t capacity, size_t *needed)
{
    DQ_ENTER_CONTEXT(g->ctx, g && needed && (ids || capacity == 0));
    const dq_sequence *s = NULL;
    DQ_TRY(find(g, sequence, &s));
    size_t n = (size_t)(s->count - s->prompt);
    if (n > 0 && n <= capacity) memcpy(ids, s->ids + s->prompt, n * sizeof *ids);
    *needed = n;
    return DQ_OK;
}

dq_status dq_generator_text(const dq_generator *g, int64_t sequence, const char **out)
{
    DQ_ENTER_CONTEXT(g->ctx, g && out);
    const dq_sequence *s = NULL;
    DQ_TRY(find(g, sequence, &s));
    *out = s->stream.text ? s->stream.text : "";
    return DQ_OK;
}

dq_status dq_generator_finish_reason(const dq_generator *g, int64_t sequence, int32_t *out)
{
    DQ_ENTER_CONTEXT(g->ctx, g && out);
    const dq_sequence *s = NULL;
    DQ_TRY(find(g, sequence, &s));
    *out = s->finish;
    return DQ_OK;
}

static double rate(int64_t tokens, double seconds) { return seconds > 0 ? (double)tokens / seconds : 0; }

static dq_status facts_of(const dq_generator *g, json_t **out)
{
    const dq_generate_stats *s = &g->job->stats;
    *out =
        json_pack("{s:I, s:I, s:f, s:I, s:f, s:f, s:I, s:f, s:f}", "weights_bytes", (json_int_t)g->job->resident->bytes,
                  "cache_bytes", (json_int_t)s->cache_bytes, "load_seconds", s->load_seconds, "prompt_tokens",
                  (json_int_t)s->prompt_tokens, "prompt_seconds", s->prompt_seconds, "prompt_tokens_per_second",
                  rate(s->prompt_tokens, s->prompt_seconds), "tokens", (json_int_t)s->tokens, "decode_seconds",
                  s->decode_seconds, "decode_tokens_per_second", rate(s->decode_tokens, s->decode_seconds));
    return *out ? DQ_OK : dq_fail(DQ_E_NOMEM, "no memory for the figures of the generation");
}

dq_status dq_generator_get_float(const dq_generator *g, const char *key, double *out)
{
    DQ_ENTER_CONTEXT(g->ctx, g && key && out);
    json_t *facts = NULL;
    DQ_TRY(facts_of(g, &facts));
    dq_status status = dq_facts_float(facts, key, "the generation", out);
    json_decref(facts);
    return status;
}

dq_status dq_generator_get_int(const dq_generator *g, const char *key, int64_t *out)
{
    DQ_ENTER_CONTEXT(g->ctx, g && key && out);
    json_t *facts = NULL;
    DQ_TRY(facts_of(g, &facts));
    dq_status status = dq_facts_int(facts, key, "the generation", out);
    json_decref(facts);
    return status;
}
