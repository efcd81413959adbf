/* Sequences and steps of generation. SPDX-License-Identifier: Apache-2.0 */
#include "generate/job.h"

#include <string.h>

#include "base/status.h"

static dq_status check_spec(const dq_generate_spec *spec)
{
    if (spec->max_tokens < 1)
        return dq_fail(DQ_E_INVALID, "max_tokens %lld, 1 or more is possible", (long long)spec->max_tokens);
    if (spec->prefill < 1) return dq_fail(DQ_E_INVALID, "prefill %lld", (long long)spec->prefill);
    return dq_sampling_check(&spec->sampling);
}

/* Keys and values that KVQuant quantized are kept as it leaves them; another grid on top would be neither's numbers. */
static dq_status check_cache(const dq_model *model, const dq_generate_spec *spec)
{
    static const char *const names[] = {"f32", "f16", "bf16", "int8", "int4", "fp8"};
    const dq_scheme *s = dq_model_scheme(model);
    if (!s || !dq_scheme_has_levels(s) || spec->kv < DQ_KV_INT8) return DQ_OK;
    return dq_fail(
        DQ_E_UNSUPPORTED,
        "kv = %s: the model's keys and values have levels already (KVQuant), which the cache keeps as floats: "
        "f32, f16 or bf16",
        names[spec->kv]);
}

dq_status dq_generate_job_new(dq_model *model, const dq_tokenizer *tokenizer, const dq_generate_spec *spec,
                              dq_generate_job **out)
{
    dq_env *env = dq_device_env(dq_model_device(model));
    DQ_TRY(check_spec(spec));
    DQ_TRY(check_cache(model, spec));
    dq_generate_job *j = dq_calloc(env, 1, sizeof *j);
    if (!j) return DQ_E_NOMEM;
    j->env = env;
    j->model = dq_model_retain(model);
    j->tokenizer = tokenizer ? dq_tokenizer_retain(tokenizer) : NULL;
    j->spec = *spec;
    dq_status status = dq_resident_new(model, spec->head_bits, &j->resident);
    int32_t eos = dq_model_arch(model)->eos_id, word_eos = tokenizer ? dq_tokenizer_eos_id(tokenizer) : -1;
    if (status == DQ_OK && eos >= 0) status = dq_generate_add_stop_id(j, eos);
    if (status == DQ_OK && word_eos >= 0 && word_eos != eos) status = dq_generate_add_stop_id(j, word_eos);
    if (status == DQ_OK)
        *out = j;
    else
        dq_generate_job_free(j);
    return status;
}

void dq_generate_reset(dq_generate_job *j)
{
    for (int64_t i = 0; i < j->count; i++) {
        dq_text_stream_free(&j->sequences[i].stream);
        dq_free(j->sequences[i].ids);
    }
    dq_free(j->sequences);
    j->sequences = NULL;
    j->count = 0;
    dq_kv_caches_free(j->caches, dq_model_arch(j->model)->layers);
    j->caches = NULL;
    dq_block_spec_clear(&j->block);
    double load = j->stats.load_seconds;
    j->stats = (dq_generate_stats){.load_seconds = load};
}

void dq_generate_job_free(dq_generate_job *j)
{
    if (!j) return;
    dq_generate_reset(j);
    dq_workspace_free(&j->ws);
    dq_resident_free(j->resident);
    for (int64_t i = 0; i < j->stops.count; i++) dq_free(j->stops.text[i]);
    dq_free(j->stops.text);
    dq_free(j->stop_ids);
    dq_tokenizer_destroy(j->tokenizer);
    dq_model_release(j->model);
    dq_free(j);
}

/* ---- before the first step ---- */

static dq_status not_begun(const dq_generate_job *j)
{
    return j->caches ? dq_fail(DQ_E_STATE, "generation has begun: reset the generator first") : DQ_OK;
}

dq_status dq_generate_configure(dq_generate_job *j, const dq_generate_spec *spec)
{
    DQ_TRY(not_begun(j));
    if (j->count > 0) return dq_fail(DQ_E_STATE, "sequences were added: reset the generator first");
    DQ_TRY(check_spec(spec));
    j->spec.max_tokens = spec->max_tokens;
    j->spec.sampling = spec->sampling;
    j->spec.ignore_eos = spec->ignore_eos;
    return DQ_OK;
}

static dq_status check_prompt(const dq_generate_job *j, const int32_t *ids, int64_t count)
{
    const dq_arch *a = dq_model_arch(j->model);
    if (count < 1) return dq_fail(DQ_E_INVALID, "a prompt of no tokens");
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= a->vocab)
            return dq_fail(DQ_E_MISMATCH, "token %d at %lld of the prompt is outside the model's vocabulary of %lld",
                           ids[i], (long long)i, (long long)a->vocab);
    if (a->max_positions > 0 && j->spec.max_tokens > a->max_positions - count)
        return dq_fail(DQ_E_INVALID, "%lld prompt tokens and %lld new ones, the model has %lld positions",
                       (long long)count, (long long)j->spec.max_tokens, (long long)a->max_positions);
    return DQ_OK;
}

dq_status dq_generate_add(dq_generate_job *j, const int32_t *ids, int64_t count, int64_t *sequence)
{
    int64_t room;
    DQ_TRY(not_begun(j));
    DQ_TRY(check_prompt(j, ids, count));
    if (__builtin_add_overflow(count, j->spec.max_tokens, &room) || room > INT32_MAX)
        return dq_fail(DQ_E_NOMEM, "a sequence of %lld prompt tokens and %lld new ones", (long long)count,
                       (long long)j->spec.max_tokens);
    dq_sequence *more = dq_realloc(j->env, j->sequences, (size_t)(j->count + 1) * sizeof *more);
    if (!more) return DQ_E_NOMEM;
    j->sequences = more;
    dq_sequence s = {.prompt = count, .count = count};
    s.ids = dq_alloc(j->env, (size_t)room * sizeof *s.ids);
    if (!s.ids) return DQ_E_NOMEM;
    memcpy(s.ids, ids, (size_t)count * sizeof *ids);
    dq_text_stream_start(&s.stream, (size_t)count);
    if (sequence) *sequence = j->count;
    j->sequences[j->count++] = s;
    return DQ_OK;
}

dq_status dq_generate_add_stop(dq_generate_job *j, const char *text)
{
    if (!j->tokenizer) return dq_fail(DQ_E_STATE, "stop texts need a tokenizer");
    if (!text[0]) return dq_fail(DQ_E_INVALID, "the stop text is empty");
    char **more = dq_realloc(j->env, j->stops.text, (size_t)(j->stops.count + 1) * sizeof *more);
    if (!more) return DQ_E_NOMEM;
    j->stops.text = more;
    more[j->stops.count] = dq_strdup(j->env, text);
    if (!more[j->stops.count]) return DQ_E_NOMEM;
    j->stops.count++;
    return DQ_OK;
}

dq_status dq_generate_add_stop_id(dq_generate_job *j, int32_t id)
{
    if (id < 0) return dq_fail(DQ_E_INVALID, "stop id %d", id);
    int32_t *more = dq_realloc(j->env, j->stop_ids, (size_t)(j->stop_id_count + 1) * sizeof *more);
    if (!more) return DQ_E_NOMEM;
    j->stop_ids = more;
    j->stop_ids[j->stop_id_count++] = id;
    return DQ_OK;
}

/* An option that would change nothing is refused; one that reaches some linears only is worth a word. */
static dq_status check_int8(const dq_generate_job *j)
{
    if (!(j->spec.math & DQ_MATH_INT8)) return DQ_OK;
    dq_int8_linears n = dq_resident_int8(j->resident);
    long long all = (long long)(n.possible + n.uneven + n.plain);
    if (n.possible == 0 && !n.head)
        return dq_fail(
            DQ_E_UNSUPPORTED,
            "int8_products: none of the model's %lld linears can have them: %lld hold no integer codes, %lld "
            "have groups that are no multiple of 32 columns",
            all, (long long)n.plain, (long long)n.uneven);
    if (n.plain + n.uneven > 0)
        dq_log(j->env, DQ_LOG_WARNING,
               "int8_products: %lld of %lld linears are multiplied in floats (%lld hold no integer codes, %lld have "
               "groups that are no multiple of 32 columns)",
               (long long)(n.plain + n.uneven), all, (long long)n.plain, (long long)n.uneven);
    return DQ_OK;
}

static dq_status begin(dq_generate_job *j)
{
    int64_t capacity = 0, slots;
    DQ_TRY(check_int8(j));
    for (int64_t i = 0; i < j->count; i++)
        if (j->sequences[i].prompt + j->spec.max_tokens > capacity)
            capacity = j->sequences[i].prompt + j->spec.max_tokens;
    if (__builtin_mul_overflow(capacity, j->count, &slots) || slots > INT32_MAX)
        return dq_fail(DQ_E_NOMEM, "caches of %lld sequences of %lld tokens", (long long)j->count, (long long)capacity);
    dq_block_spec block;
    DQ_TRY(dq_model_block_spec(j->model, capacity, j->spec.math, &block));
    dq_status status = dq_kv_caches_new(dq_model_device(j->model), j->spec.kv, dq_model_arch(j->model), slots,
                                        &j->caches, &j->stats.cache_bytes);
    if (status != DQ_OK) {
        dq_block_spec_clear(&block);
        return status;
    }
    j->block = block;
    j->capacity = capacity;
    return DQ_OK;
}

/* ---- steps ---- */

/* The next tokens to go through the model: of prompts, as many as fit; else the last one of each living sequence. */
static int64_t choose_rows(const dq_generate_job *j, dq_pass_row *rows, int64_t room, bool *prompt)
{
    int64_t n = 0;
    *prompt = false;
    for (int64_t i = 0; i < j->count; i++) {
        const dq_sequence *s = &j->sequences[i];
        for (int64_t at = s->cached; at < s->prompt && n < room; at++)
            rows[n++] = (dq_pass_row){i, at, s->ids[at], at == s->prompt - 1};
    }
    *prompt = n > 0;
    for (int64_t i = 0; !*prompt && i < j->count; i++) {
        const dq_sequence *s = &j->sequences[i];
        if (!s->finish) rows[n++] = (dq_pass_row){i, s->cached, s->ids[s->cached], true};
    }
    return n;
}

static int finish_of(const dq_generate_job *j, const dq_sequence *s, int32_t id)
{
    for (int64_t i = 0; i < j->stop_id_count && !j->spec.ignore_eos; i++)
        if (j->stop_ids[i] == id) return DQ_FINISH_EOS;
    return s->count - s->prompt == j->spec.max_tokens ? DQ_FINISH_LENGTH : DQ_FINISH_NONE;
}

/* A new token joins its sequence and is told to the host. */
static dq_status take_token(dq_generate_job *j, int64_t at, int32_t id, dq_token_fn token, void *user)
{
    dq_sequence *s = &j->sequences[at];
    size_t end = 0;
    bool stopped = false;
    s->ids[s->count++] = id;
    s->finish = finish_of(j, s, id);
    j->stats.tokens++;
    if (j->tokenizer)
        DQ_TRY(dq_text_stream_take(j->env, &s->stream, j->tokenizer, &j->stops, s->ids, (size_t)s->count,
                                   s->finish != 0, &stopped, &end));
    if (stopped) s->finish = DQ_FINISH_STOP;
    char *piece = dq_strndup(j->env, s->stream.text ? s->stream.text + s->stream.shown : "", end - s->stream.shown);
    if (!piece) return DQ_E_NOMEM;
    dq_token_event event = {.struct_size = sizeof event,
                            .finish = s->finish,
                            .sequence = at,
                            .index = s->count - s->prompt - 1,
                            .text = piece,
                            .bytes = end - s->stream.shown,
                            .id = id};
    s->stream.shown = end;
    int32_t no = token ? token(user, &event) : 0;
    dq_free(piece);
    return no ? dq_fail(DQ_E_CANCELLED, "the host stopped the generation (%d)", no) : DQ_OK;
}

/* All tokens are chosen before the first is told: a host that cancels finds every sequence in step. */
static dq_status sample_rows(dq_generate_job *j, const dq_pass_row *rows, int64_t count, const float *logits,
                             int32_t *chosen)
{
    int64_t vocab = dq_model_arch(j->model)->vocab, n = 0;
    for (int64_t r = 0; r < count; r++) {
        if (!rows[r].last) continue;
        int64_t at = rows[r].sequence;
        dq_status status = dq_sample(j->env, &j->spec.sampling, logits + n * vocab, vocab, at,
                                     rows[r].position + 1 - j->sequences[at].prompt, &chosen[n]);
        if (status != DQ_OK) return status;
        n++;
    }
    return DQ_OK;
}

static dq_status advance(dq_generate_job *j, const dq_pass_row *rows, int64_t count, const int32_t *chosen,
                         dq_token_fn token, void *user)
{
    dq_status status = DQ_OK;
    for (int64_t r = 0; r < count; r++) j->sequences[rows[r].sequence].cached = rows[r].position + 1;
    for (int64_t r = 0, n = 0; r < count; r++) {
        if (!rows[r].last) continue;
        dq_status one = take_token(j, rows[r].sequence, chosen[n++], status == DQ_OK ? token : NULL, user);
        if (status == DQ_OK) status = one;
    }
    return status;
}

static dq_status pass_step(dq_generate_job *j, dq_progress *progress, dq_token_fn token, void *user)
{
    int64_t room = j->spec.prefill > j->count ? j->spec.prefill : j->count;
    double start = dq_now();
    bool prompt;
    float *logits = NULL;
    dq_status status;
    dq_pass_row *rows = dq_alloc(j->env, (size_t)room * sizeof *rows);
    int32_t *chosen = dq_alloc(j->env, (size_t)room * sizeof *chosen);
    status = DQ_E_NOMEM;
    if (!rows || !chosen) goto done;
    int64_t n = choose_rows(j, rows, room, &prompt);
    DQ_GO(dq_generate_pass(j, rows, n, progress, &logits));
    if (logits) DQ_GO(sample_rows(j, rows, n, logits, chosen));
    double seconds = dq_now() - start;
    if (prompt) {
        j->stats.prompt_seconds += seconds;
        j->stats.prompt_tokens += n;
    } else {
        j->stats.decode_seconds += seconds;
        j->stats.decode_tokens += n;
    }
    status = advance(j, rows, n, chosen, token, user);
done:
    dq_free(logits);
    dq_free(rows);
    dq_free(chosen);
    return status;
}

static bool all_finished(const dq_generate_job *j)
{
    for (int64_t i = 0; i < j->count; i++)
        if (!j->sequences[i].finish) return false;
    return true;
}

dq_status dq_generate_step(dq_generate_job *j, dq_progress *progress, dq_token_fn token, void *user, bool *done)
{
    bool loaded = false;
    if (j->count == 0) return dq_fail(DQ_E_STATE, "nothing to generate from: add a prompt first");
    DQ_TRY(dq_progress_check(progress));
    *done = false;
    if (!j->resident->ready) {
        double start = dq_now();
        DQ_TRY(dq_resident_load(j->resident, &loaded));
        j->stats.load_seconds += dq_now() - start;
        return DQ_OK;
    }
    if (!j->caches) DQ_TRY(begin(j));
    if (!all_finished(j)) DQ_TRY(pass_step(j, progress, token, user));
    *done = all_finished(j);
    return DQ_OK;
}
