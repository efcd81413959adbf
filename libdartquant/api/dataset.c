/* dartquant/dataset.h. SPDX-License-Identifier: Apache-2.0 */
#include "text/dataset.h"

#include "api/check.h"
#include "api/handles.h"
#include "dartquant/dataset.h"

_Static_assert((int)DQ_DATASET_TEST == (int)DQ_SPLIT_TEST && (int)DQ_DATASET_TRAIN == (int)DQ_SPLIT_TRAIN,
               "same values");

/* Takes the stream's content over. */
static dq_status wrap(dq_env *env, dq_status status, dq_token_stream *stream, dq_dataset **out)
{
    DQ_TRY(status);
    dq_dataset *dataset = dq_calloc(env, 1, sizeof *dataset);
    if (!dataset || stream->ids.count == 0) {
        status = dataset ? dq_fail(DQ_E_TEXT, "dataset %s holds no tokens", stream->name) : DQ_E_NOMEM;
        dq_token_stream_clear(stream);
        dq_free(dataset);
        return status;
    }
    dataset->stream = *stream;
    dataset->ctx = dq_context_retain(dq_context_of(env));
    *out = dataset;
    return DQ_OK;
}

dq_status dq_dataset_from_recipe(const dq_tokenizer *tokenizer, const char *name, const char *data_dir, int32_t part,
                                 int64_t seqlen, dq_dataset **out)
{
    DQ_ENTER_CONTEXT(dq_context_of(dq_env_of(tokenizer)), tokenizer && name && data_dir && out);
    if (part != DQ_DATASET_TEST && part != DQ_DATASET_TRAIN)
        return dq_fail(DQ_E_INVALID, "part %d is neither DQ_DATASET_TEST nor DQ_DATASET_TRAIN", (int)part);
    if (seqlen < 2) return dq_fail(DQ_E_INVALID, "seqlen %lld", (long long)seqlen);
    dq_env *env = dq_env_of(tokenizer);
    dq_token_stream stream = {0};
    return wrap(env, dq_stream_from_recipe(env, tokenizer, name, data_dir, (dq_split)part, seqlen, &stream), &stream,
                out);
}

dq_status dq_dataset_from_file(const dq_tokenizer *tokenizer, const char *path, dq_dataset **out)
{
    DQ_ENTER_CONTEXT(dq_context_of(dq_env_of(tokenizer)), tokenizer && path && out);
    dq_env *env = dq_env_of(tokenizer);
    dq_token_stream stream = {0};
    return wrap(env, dq_stream_from_file(env, tokenizer, path, &stream), &stream, out);
}

dq_status dq_dataset_from_text(const dq_tokenizer *tokenizer, const char *text, size_t bytes, const char *name,
                               dq_dataset **out)
{
    DQ_ENTER_CONTEXT(dq_context_of(dq_env_of(tokenizer)), tokenizer && text && name && out);
    dq_env *env = dq_env_of(tokenizer);
    dq_token_stream stream = {0};
    return wrap(env, dq_stream_from_text(env, tokenizer, text, bytes, name, &stream), &stream, out);
}

dq_status dq_dataset_from_ids(dq_context *ctx, const int32_t *ids, size_t count, const char *name, dq_dataset **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && (ids || count == 0) && name && out);
    dq_token_stream stream = {0};
    if (count == 0) return dq_fail(DQ_E_TEXT, "dataset %s holds no tokens", name);
    return wrap(&ctx->env, dq_stream_from_ids(&ctx->env, ids, count, name, &stream), &stream, out);
}

dq_status dq_dataset_from_ids_file(dq_context *ctx, const char *path, dq_dataset **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && path && out);
    dq_token_stream stream = {0};
    return wrap(&ctx->env, dq_stream_from_ids_file(&ctx->env, path, &stream), &stream, out);
}

static void destroy(void *object)
{
    dq_dataset *dataset = object;
    dq_context *ctx = dataset->ctx;
    dq_token_stream_clear(&dataset->stream);
    dq_free(dataset);
    dq_context_release(ctx);
}

void dq_dataset_free(dq_dataset *dataset)
{
    if (dataset) dq_context_discard(dataset->ctx, destroy, dataset);
}

const char *dq_dataset_name(const dq_dataset *dataset) { return dataset ? dataset->stream.name : ""; }
const char *dq_dataset_protocol(const dq_dataset *dataset) { return dataset ? dataset->stream.protocol : ""; }
int64_t dq_dataset_count(const dq_dataset *dataset) { return dataset ? (int64_t)dataset->stream.ids.count : 0; }

dq_status dq_dataset_copy_ids(const dq_dataset *dataset, int64_t first, int64_t count, int32_t *out)
{
    DQ_ENTER_CONTEXT(dataset->ctx, dataset && out);
    int64_t total = dq_dataset_count(dataset);
    if (first < 0 || count < 0 || first > total || count > total - first)
        return dq_fail(DQ_E_INVALID, "ids %lld + %lld of %lld", (long long)first, (long long)count, (long long)total);
    memcpy(out, dataset->stream.ids.data + first, (size_t)count * sizeof *out);
    return DQ_OK;
}

dq_status dq_dataset_sample(const dq_dataset *dataset, uint64_t seed, int64_t nsamples, int64_t seqlen, int32_t *out,
                            size_t capacity)
{
    DQ_ENTER_CONTEXT(dataset->ctx, dataset && out);
    size_t needed;
    if (nsamples < 1 || seqlen < 1 || !dq_mul_ok((size_t)nsamples, (size_t)seqlen, &needed) || needed > capacity)
        return dq_fail(DQ_E_INVALID, "room for %zu ids, %lld x %lld asked for", capacity, (long long)nsamples,
                       (long long)seqlen);
    dq_ids ids = {0};
    DQ_TRY(dq_stream_sample(&dataset->ctx->env, &dataset->stream, seed, nsamples, seqlen, &ids));
    memcpy(out, ids.data, ids.count * sizeof *out);
    dq_free(ids.data);
    return DQ_OK;
}
