/* dartquant/tensors.h. SPDX-License-Identifier: Apache-2.0 */
#include "api/tensors.h"

#include "api/check.h"
#include "api/handles.h"
#include "io/formats.h"

_Static_assert(DQ_TENSOR_MAX_DIMS == DQ_MAX_DIMS, "the border shows every dimension the formats can have");

struct dq_tensors {
    dq_context *ctx;
    dq_source *source;
};

dq_status dq_describe_tensor(const dq_source *source, int64_t index, dq_tensor_desc *out)
{
    if (index < 0 || index >= source->count)
        return dq_fail(DQ_E_INVALID, "tensor %lld of %lld", (long long)index, (long long)source->count);
    const dq_tensor_info *t = &source->tensors[index];
    dq_tensor_desc full = {
        .dtype = t->dtype,
        .name = t->name,
        .type_name = t->type_name ? t->type_name : dq_dtype_name(t->dtype),
        .file = t->file ? t->file : "",
        .ndim = t->ndim,
        .bytes = t->bytes,
        .offset = t->offset,
    };
    memcpy(full.shape, t->shape, sizeof t->shape[0] * (size_t)t->ndim);
    return DQ_FILL_STRUCT(out, &full, dq_tensor_desc, offset);
}

dq_status dq_tensors_open(dq_context *ctx, const char *path, dq_tensors **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && path && out);
    dq_tensors *tensors = dq_calloc(&ctx->env, 1, sizeof *tensors);
    if (!tensors) return DQ_E_NOMEM;
    dq_status status = dq_source_open(&ctx->env, path, &tensors->source);
    if (status != DQ_OK) {
        dq_free(tensors);
        return dq_error_in_file(status, path);
    }
    tensors->ctx = dq_context_retain(ctx);
    *out = tensors;
    return DQ_OK;
}

static void destroy(void *object)
{
    dq_tensors *tensors = object;
    dq_context *ctx = tensors->ctx;
    dq_source_free(tensors->source);
    dq_free(tensors);
    dq_context_release(ctx);
}

void dq_tensors_free(dq_tensors *tensors)
{
    if (tensors) dq_context_discard(tensors->ctx, destroy, tensors);
}

const char *dq_tensors_format(const dq_tensors *tensors) { return tensors ? tensors->source->format : ""; }
int64_t dq_tensors_count(const dq_tensors *tensors) { return tensors ? tensors->source->count : 0; }

dq_status dq_tensors_info(const dq_tensors *tensors, int64_t index, dq_tensor_desc *out)
{
    DQ_ENTER_CONTEXT(tensors->ctx, tensors && out);
    return dq_describe_tensor(tensors->source, index, out);
}

dq_status dq_tensors_find(const dq_tensors *tensors, const char *name, int64_t *out)
{
    DQ_ENTER_CONTEXT(tensors->ctx, tensors && name && out);
    int64_t index = dq_source_find(tensors->source, name);
    if (index < 0) return dq_fail(DQ_E_NOTFOUND, "no tensor \"%s\"", name);
    *out = index;
    return DQ_OK;
}

dq_status dq_tensors_read_f32(dq_tensors *tensors, int64_t index, int64_t row, int64_t count, float *out,
                              size_t capacity)
{
    DQ_ENTER_CONTEXT(tensors->ctx, tensors && out);
    const dq_source *source = tensors->source;
    if (index < 0 || index >= source->count)
        return dq_fail(DQ_E_INVALID, "tensor %lld of %lld", (long long)index, (long long)source->count);
    const dq_tensor_info *t = &source->tensors[index];
    int64_t rows = dq_info_rows(t);
    size_t needed;
    if (row < 0 || count < 0 || row > rows || count > rows - row)
        return dq_error_in_tensor(
            dq_fail(DQ_E_INVALID, "rows %lld + %lld of %lld", (long long)row, (long long)count, (long long)rows),
            t->name);
    if (!dq_mul_ok((size_t)count, (size_t)dq_info_cols(t), &needed) || needed > capacity)
        return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "room for %zu floats, %lld rows of %lld needed", capacity,
                                          (long long)count, (long long)dq_info_cols(t)),
                                  t->name);
    return dq_source_read_rows(tensors->source, index, row, count, out);
}
