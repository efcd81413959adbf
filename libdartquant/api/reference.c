/* dartquant/reference.h: its life and its file. SPDX-License-Identifier: Apache-2.0 */
#include "api/reference.h"

#include <inttypes.h>
#include <stdio.h>

#include "api/check.h"
#include "api/checkpoint.h"
#include "io/formats.h"
#include "io/json.h"

enum { VERSION = 1, PIECE = 4 << 20 };
static const char FORMAT[] = "dartquant reference", TENSOR[] = "hidden";

void dq_reference_release(dq_reference *r)
{
    if (!r || --r->references > 0) return;
    dq_context *ctx = r->ctx;
    dq_hidden_close(&r->states.hidden);
    dq_model_release(r->states.model);
    json_decref(r->identity);
    dq_free(r->report);
    dq_free(r);
    dq_context_release(ctx);
}

static void destroy(void *object) { dq_reference_release(object); }

void dq_reference_free(dq_reference *r)
{
    if (r) dq_context_discard(r->ctx, destroy, r);
}

/* ---- rows by pieces ---- */

typedef dq_status (*piece_fn)(void *arg, dq_tensor *rows, int64_t first, float *buffer);

static dq_status each_piece(const dq_tensor *t, piece_fn fn, void *arg)
{
    int64_t most = PIECE / 4 / t->view.cols;
    if (most < 1) most = 1;
    float *buffer = dq_alloc(dq_device_env(t->dev), (size_t)(most * t->view.cols) * sizeof *buffer);
    dq_status status = buffer ? DQ_OK : DQ_E_NOMEM;
    for (int64_t r = 0; status == DQ_OK && r < t->view.rows; r += most) {
        dq_tensor rows = dq_tensor_rows(t, r, t->view.rows - r < most ? t->view.rows - r : most);
        status = fn(arg, &rows, r, buffer);
    }
    dq_free(buffer);
    return status;
}

static size_t piece_bytes(const dq_tensor *rows) { return (size_t)(rows->view.rows * rows->view.cols) * sizeof(float); }

/* FNV-1a over words of four bytes. */
static void hash_floats(uint64_t *h, const float *x, size_t bytes)
{
    for (size_t i = 0; i < bytes / 4; i++) {
        uint32_t word;
        memcpy(&word, x + i, 4);
        *h = (*h ^ word) * 1099511628211u;
        *h ^= *h >> 32;
    }
}

static dq_status hash_piece(void *arg, dq_tensor *rows, int64_t first, float *buffer)
{
    (void)first;
    DQ_TRY(dq_tensor_download(rows, buffer));
    hash_floats(arg, buffer, piece_bytes(rows));
    return DQ_OK;
}

dq_status dq_reference_new(dq_model *model, dq_hidden *hidden, int64_t windows, int64_t seqlen, json_t *identity,
                           const char *report, dq_reference **out)
{
    dq_context *ctx = dq_context_of_model(model);
    uint64_t hash = 1469598103934665603u;
    dq_reference *r = dq_calloc(&ctx->env, 1, sizeof *r);
    const dq_tensor all = dq_hidden_tensor(hidden);
    dq_status status = r ? each_piece(&all, hash_piece, &hash) : DQ_E_NOMEM;
    if (status == DQ_OK && !(r->report = dq_strdup(&ctx->env, report))) status = DQ_E_NOMEM;
    if (status != DQ_OK) {
        dq_free(r);
        dq_hidden_close(hidden);
        json_decref(identity);
        return status;
    }
    r->references = 1;
    r->ctx = dq_context_retain(ctx);
    r->states = (dq_reference_states){dq_model_retain(model), *hidden, windows, seqlen};
    *hidden = (dq_hidden){0};
    r->identity = identity;
    snprintf(r->hash, sizeof r->hash, "%016" PRIx64, hash);
    *out = r;
    return DQ_OK;
}

dq_status dq_reference_report(const dq_reference *r, const char **out)
{
    DQ_ENTER_CONTEXT(r->ctx, r && out);
    *out = r->report;
    return DQ_OK;
}

/* ---- saving ---- */

static dq_status save_piece(void *arg, dq_tensor *rows, int64_t first, float *buffer)
{
    dq_sink *sink = arg;
    (void)first;
    DQ_TRY(dq_tensor_download(rows, buffer));
    return sink->ops->append(sink, buffer, piece_bytes(rows));
}

static dq_status write_all(const dq_reference *r, dq_sink *sink, const char *facts)
{
    const dq_tensor h = dq_hidden_tensor(&r->states.hidden);
    int64_t shape[2] = {h.view.rows, h.view.cols};
    DQ_TRY(sink->ops->set_metadata(sink, "format", FORMAT));
    DQ_TRY(sink->ops->set_metadata(sink, "reference", facts));
    DQ_TRY(sink->ops->begin(sink, TENSOR, DQ_F32, 2, shape, (uint64_t)piece_bytes(&h)));
    DQ_TRY(each_piece(&h, save_piece, sink));
    return sink->ops->finish(sink);
}

dq_status dq_reference_save(const dq_reference *r, const char *path)
{
    DQ_ENTER_CONTEXT(r->ctx, r && path);
    dq_env *env = &r->ctx->env;
    char *facts = NULL;
    dq_sink *sink = NULL;
    dq_status status;
    json_t *o = json_pack("{s:i, s:O, s:I, s:I, s:s, s:s}", "version", VERSION, "identity", r->identity, "windows",
                          (json_int_t)r->states.windows, "seqlen", (json_int_t)r->states.seqlen, "hash", r->hash,
                          "report", r->report);
    DQ_GO(dq_json_dump(env, o, false, &facts));
    DQ_GO(dq_safetensors_sink_file(env, path, &sink));
    DQ_GO(write_all(r, sink, facts));
done:
    if (sink) sink->ops->free(sink);
    json_decref(o);
    dq_free(facts);
    return dq_error_in_file(status, path);
}

/* ---- opening ---- */

typedef struct saved {
    dq_source *source;
    int64_t tensor;
    json_t *facts, *identity;
    int64_t windows, seqlen;
    const char *hash, *report;
} saved;

static dq_status read_facts(dq_model *model, saved *s, const char *path)
{
    const char *format = dq_safetensors_metadata(s->source, "format");
    const char *text = dq_safetensors_metadata(s->source, "reference");
    int64_t version;
    if (!format || strcmp(format, FORMAT) != 0 || !text) return dq_fail(DQ_E_FORMAT, "this file holds no reference");
    DQ_TRY(dq_json_parse(text, strlen(text), NULL, &s->facts));
    DQ_TRY(dq_json_int(s->facts, "version", 1, INT32_MAX, true, path, &version));
    if (version != VERSION)
        return dq_fail(DQ_E_UNSUPPORTED, "reference version %lld, this library reads version %d", (long long)version,
                       VERSION);
    DQ_TRY(dq_json_int(s->facts, "windows", 1, INT32_MAX, true, path, &s->windows));
    DQ_TRY(dq_json_int(s->facts, "seqlen", 2, INT32_MAX, true, path, &s->seqlen));
    DQ_TRY(dq_json_string(s->facts, "hash", true, path, &s->hash));
    DQ_TRY(dq_json_string(s->facts, "report", true, path, &s->report));
    const json_t *there = json_object_get(s->facts, "identity");
    DQ_TRY(dq_model_identity(model, &s->identity));
    DQ_TRY(dq_fingerprint_compare("the reference is of another model", there, s->identity));
    if (json_object_update_missing(s->identity, (json_t *)(uintptr_t)there) != 0) return DQ_E_NOMEM;
    s->tensor = dq_source_find(s->source, TENSOR);
    if (s->tensor < 0) return dq_error_in_tensor(dq_fail(DQ_E_FORMAT, "the tensor is missing"), TENSOR);
    const dq_tensor_info *info = &s->source->tensors[s->tensor];
    int64_t hidden = dq_model_arch(model)->hidden;
    if (info->dtype != DQ_F32 || info->ndim != 2 || info->shape[0] != s->windows * s->seqlen ||
        info->shape[1] != hidden)
        return dq_error_in_tensor(dq_fail(DQ_E_FORMAT, "F32 of %lld x %lld elements was expected",
                                          (long long)(s->windows * s->seqlen), (long long)hidden),
                                  TENSOR);
    return DQ_OK;
}

static dq_status load_piece(void *arg, dq_tensor *rows, int64_t first, float *buffer)
{
    const saved *s = arg;
    DQ_TRY(dq_source_read_rows(s->source, s->tensor, first, rows->view.rows, buffer));
    return dq_tensor_upload(rows, buffer);
}

dq_status dq_reference_open(dq_model *model, const char *path, dq_reference **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && path && out);
    dq_env *env = dq_device_env(dq_model_device(model));
    saved s = {0};
    dq_hidden hidden = {0};
    dq_reference *r = NULL;
    dq_status status;
    DQ_GO(dq_safetensors_open(env, path, &s.source));
    DQ_GO(read_facts(model, &s, path));
    DQ_GO(dq_perplexity_open_states(model, s.windows * s.seqlen, s.seqlen, &hidden));
    const dq_tensor all = dq_hidden_tensor(&hidden);
    DQ_GO(each_piece(&all, load_piece, &s));
    json_t *identity = s.identity;
    s.identity = NULL;
    DQ_GO(dq_reference_new(model, &hidden, s.windows, s.seqlen, identity, s.report, &r));
    if (strcmp(r->hash, s.hash) != 0) {
        status = dq_fail(DQ_E_FORMAT, "the hidden states have the hash %s, %s was written", r->hash, s.hash);
        goto done;
    }
    *out = r;
    r = NULL;
done:
    dq_reference_release(r);
    dq_hidden_close(&hidden);
    json_decref(s.identity);
    json_decref(s.facts);
    dq_source_free(s.source);
    return dq_error_in_file(status, path);
}
