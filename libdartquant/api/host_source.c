/* dartquant/source.h: tensors lent by the host. SPDX-License-Identifier: Apache-2.0 */
#include "api/check.h"
#include "api/handles.h"
#include "api/host_tensors.h"
#include "io/decode.h"

typedef struct host_source {
    dq_source base; /* must be first */
    dq_tensor_source table;
    const uint8_t **mapped; /* [count], NULL = through read */
    bool opened;            /* free is the host's business from then on */
} host_source;

/* What a callback answered, as an error of ours. */
static dq_status answer(dq_status status, const char *callback, const char *name)
{
    if (status == DQ_OK) return DQ_OK;
    dq_status known = status < 0 ? status : DQ_E_IO;
    return dq_error_in_tensor(
        dq_fail(known, "the host's tensor source failed: %s returned %d (%s)", callback, status, dq_status_name(known)),
        name);
}

static dq_status read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out)
{
    host_source *s = (host_source *)source;
    if (bytes == 0) return DQ_OK;
    if (s->mapped[tensor]) {
        memcpy(out, s->mapped[tensor] + offset, (size_t)bytes);
        return DQ_OK;
    }
    return answer(s->table.read(s->table.user, tensor, offset, bytes, out), "read", source->tensors[tensor].name);
}

static dq_status read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out)
{
    host_source *s = (host_source *)source;
    const dq_tensor_info *t = &source->tensors[tensor];
    size_t cols = (size_t)dq_info_cols(t), size = dq_dtype_size(t->dtype), n = (size_t)count * cols;
    if (s->mapped[tensor])
        return dq_decode_float(t->dtype, s->mapped[tensor] + (size_t)row * cols * size, n, out) ? DQ_OK
                                                                                                : dq_refuse_decode(t);
    uint64_t offset = (uint64_t)row * cols * size;
    if (t->dtype == DQ_F32) return read_raw(source, tensor, offset, n * size, out);
    uint8_t *raw = dq_alloc(source->env, n * size);
    if (!raw) return DQ_E_NOMEM;
    dq_status status = read_raw(source, tensor, offset, n * size, raw);
    if (status == DQ_OK && !dq_decode_float(t->dtype, raw, n, out)) status = dq_refuse_decode(t);
    dq_free(raw);
    return status;
}

static void release(dq_source *source, int64_t tensor)
{
    host_source *s = (host_source *)source;
    if (s->table.release) s->table.release(s->table.user, tensor);
}

static void source_free(dq_source *source)
{
    host_source *s = (host_source *)source;
    for (int64_t i = 0; source->tensors && i < source->count; i++) dq_free((void *)(uintptr_t)source->tensors[i].name);
    dq_free(source->tensors);
    dq_free((void *)(uintptr_t)s->mapped);
    dq_name_map_free(source->names);
    if (s->opened && s->table.free) s->table.free(s->table.user);
    dq_free(s);
}

static const dq_source_ops ops = {source_free, read_rows, read_raw, release};

static dq_status check_desc(const dq_tensor_desc *d, int64_t index, dq_tensor_info *info)
{
    size_t bytes = dq_dtype_size(d->dtype);
    if (!d->name || !d->name[0]) return dq_fail(DQ_E_INVALID, "tensor %lld has no name", (long long)index);
    if (bytes == 0)
        return dq_error_in_tensor(dq_fail(DQ_E_UNSUPPORTED, "the host offers type %d, which is not read", d->dtype),
                                  d->name);
    if (d->ndim < 0 || d->ndim > DQ_MAX_DIMS)
        return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "%d dimensions", d->ndim), d->name);
    for (int i = 0; i < d->ndim; i++)
        if (d->shape[i] < 1 || !dq_mul_ok(bytes, (size_t)d->shape[i], &bytes) || bytes > INT64_MAX)
            return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "dimension %d is %lld", i, (long long)d->shape[i]),
                                      d->name);
    if (d->bytes != 0 && d->bytes != bytes)
        return dq_error_in_tensor(
            dq_fail(DQ_E_INVALID, "%llu bytes given, shape and type need %zu", (unsigned long long)d->bytes, bytes),
            d->name);
    info->bytes = bytes;
    return DQ_OK;
}

static dq_status describe(host_source *s, int64_t i)
{
    dq_tensor_desc d = {.struct_size = sizeof d, .dtype = -1};
    dq_tensor_info *info = &s->base.tensors[i];
    const void *mapped = NULL;
    char index[32];
    snprintf(index, sizeof index, "number %lld", (long long)i);
    DQ_TRY(answer(s->table.describe(s->table.user, i, &d), "describe", index));
    DQ_TRY(check_desc(&d, i, info));
    info->dtype = d.dtype;
    info->type_name = dq_dtype_name(d.dtype);
    info->ndim = d.ndim;
    info->file = "";
    memcpy(info->shape, d.shape, sizeof d.shape[0] * (size_t)d.ndim);
    info->name = dq_strdup(s->base.env, d.name);
    if (!info->name) return DQ_E_NOMEM;
    if (s->table.map) DQ_TRY(answer(s->table.map(s->table.user, i, &mapped), "map", info->name));
    if (!mapped && !s->table.read)
        return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "the host maps no memory and has no read"), info->name);
    s->mapped[i] = mapped;
    dq_status status = dq_name_map_add(s->base.names, info->name, strlen(info->name), i);
    if (status == DQ_E_INVALID) dq_error_in_tensor(dq_fail(status, "the name is used twice"), info->name);
    return status;
}

static dq_status take_table(const dq_tensor_source *table, dq_tensor_source *out)
{
    DQ_TRY(DQ_TAKE_STRUCT(out, table, dq_tensor_source, free));
    if (out->abi != DQ_TENSOR_SOURCE_ABI)
        return dq_fail(DQ_E_INVALID, "dq_tensor_source: abi is %u, this library knows %u", out->abi,
                       DQ_TENSOR_SOURCE_ABI);
    if (!out->describe || (!out->read && !out->map))
        return dq_fail(DQ_E_INVALID, "dq_tensor_source: describe, and read or map, must be there");
    if (out->count < 1 || out->count > INT32_MAX)
        return dq_fail(DQ_E_INVALID, "dq_tensor_source: %lld tensors", (long long)out->count);
    return DQ_OK;
}

dq_status dq_host_source_open(dq_env *env, const dq_tensor_source *table, dq_source **out)
{
    dq_status status;
    dq_tensor_source checked;
    DQ_TRY(take_table(table, &checked));
    host_source *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->base = (dq_source){.ops = &ops, .env = env, .one_thread = true, .format = "host", .count = checked.count};
    s->table = checked;
    s->base.tensors = dq_calloc(env, (size_t)checked.count, sizeof *s->base.tensors);
    s->mapped = dq_calloc(env, (size_t)checked.count, sizeof *s->mapped);
    DQ_GO(s->base.tensors && s->mapped ? DQ_OK : DQ_E_NOMEM);
    DQ_GO(dq_name_map_new(env, (size_t)checked.count, &s->base.names));
    bool all_mapped = true;
    for (int64_t i = 0; i < checked.count; i++) {
        DQ_GO(describe(s, i));
        all_mapped = all_mapped && s->mapped[i];
    }
    s->base.one_thread = !all_mapped;
    *out = &s->base;
    return DQ_OK;
done:
    source_free(&s->base);
    return status;
}

dq_status dq_model_open_source(dq_context *ctx, const char *config_json, const dq_tensor_source *table, dq_model **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && config_json && table && out);
    dq_source *source = NULL;
    dq_model *model = NULL;
    DQ_TRY(dq_host_source_open(&ctx->env, table, &source));
    DQ_TRY(dq_model_from_text(ctx->dev, config_json, source, &model));
    DQ_TRY(dq_model_publish(model, NULL, out));
    ((host_source *)source)->opened = true; /* only now the host's free is ours to call */
    return DQ_OK;
}
