/* A sink in front of another that digests what passes, so that a manifest can be written without reading back.
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "model/saver.h"

/* A digest looks at a few ranges of a tensor. For one that comes in pieces the ranges are found by a dry run, filled while
 * the pieces pass, and read in the real run. */
enum { MAX_RANGES = 32 };
typedef struct range {
    uint64_t offset, bytes;
    uint8_t *data;
} range;

typedef struct digest_sink {
    dq_sink sink; /* must be first */
    dq_sink *target;
    dq_digest digest;
    /* the tensor in pieces */
    char *name;
    dq_dtype dtype;
    int ndim;
    int64_t shape[DQ_MAX_DIMS];
    uint64_t bytes, position;
    range ranges[MAX_RANGES];
    int count, next;
} digest_sink;

static void forget_pieces(digest_sink *s)
{
    for (int i = 0; i < s->count; i++) dq_free(s->ranges[i].data);
    dq_free(s->name);
    s->name = NULL;
    s->count = s->next = 0;
}

static dq_status read_memory(void *arg, uint64_t offset, uint64_t bytes, void *out)
{
    memcpy(out, (const uint8_t *)arg + offset, (size_t)bytes);
    return DQ_OK;
}

static dq_status note_range(void *arg, uint64_t offset, uint64_t bytes, void *out)
{
    digest_sink *s = arg;
    if (s->count == MAX_RANGES) return dq_fail(DQ_E_INTERNAL, "a digest of more than %d ranges", MAX_RANGES);
    uint8_t *data = dq_calloc(s->sink.env, 1, (size_t)bytes);
    if (!data) return DQ_E_NOMEM;
    s->ranges[s->count++] = (range){offset, bytes, data};
    memset(out, 0, (size_t)bytes);
    return DQ_OK;
}

static dq_status read_range(void *arg, uint64_t offset, uint64_t bytes, void *out)
{
    digest_sink *s = arg;
    const range *r = &s->ranges[s->next++];
    if (r->offset != offset || r->bytes != bytes) return dq_fail(DQ_E_INTERNAL, "the digest's ranges changed");
    memcpy(out, r->data, (size_t)bytes);
    return DQ_OK;
}

static dq_status add(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape, const void *data,
                     uint64_t bytes)
{
    digest_sink *s = (digest_sink *)sink;
    DQ_TRY(dq_digest_tensor(&s->digest, name, dtype, dq_dtype_name(dtype), ndim, shape, bytes, read_memory,
                            (void *)(uintptr_t)data));
    return s->target->ops->add(s->target, name, dtype, ndim, shape, data, bytes);
}

static dq_status begin(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape, uint64_t bytes)
{
    digest_sink *s = (digest_sink *)sink;
    dq_digest dry = {0};
    forget_pieces(s);
    s->name = dq_strdup(sink->env, name);
    if (!s->name) return DQ_E_NOMEM;
    s->dtype = dtype;
    s->ndim = ndim;
    memcpy(s->shape, shape, sizeof *shape * (size_t)ndim);
    s->bytes = bytes;
    s->position = 0;
    DQ_TRY(dq_digest_tensor(&dry, name, dtype, dq_dtype_name(dtype), ndim, shape, bytes, note_range, s));
    return s->target->ops->begin(s->target, name, dtype, ndim, shape, bytes);
}

static void fill(range *r, uint64_t position, const uint8_t *data, uint64_t bytes)
{
    uint64_t from = r->offset > position ? r->offset : position;
    uint64_t end = r->offset + r->bytes < position + bytes ? r->offset + r->bytes : position + bytes;
    if (from < end) memcpy(r->data + (from - r->offset), data + (from - position), (size_t)(end - from));
}

static dq_status append(dq_sink *sink, const void *data, uint64_t bytes)
{
    digest_sink *s = (digest_sink *)sink;
    DQ_TRY(s->target->ops->append(s->target, data, bytes));
    for (int i = 0; i < s->count; i++) fill(&s->ranges[i], s->position, data, bytes);
    s->position += bytes;
    if (s->position < s->bytes) return DQ_OK;
    dq_status status = dq_digest_tensor(&s->digest, s->name, s->dtype, dq_dtype_name(s->dtype), s->ndim, s->shape,
                                        s->bytes, read_range, s);
    forget_pieces(s);
    return status;
}

static dq_status set_metadata(dq_sink *sink, const char *key, const char *value)
{
    dq_sink *target = ((digest_sink *)sink)->target;
    return target->ops->set_metadata(target, key, value);
}

static dq_status finish(dq_sink *sink)
{
    dq_sink *target = ((digest_sink *)sink)->target;
    return target->ops->finish(target);
}

static void sink_free(dq_sink *sink)
{
    digest_sink *s = (digest_sink *)sink;
    s->target->ops->free(s->target);
    forget_pieces(s);
    dq_free(s);
}

static const dq_sink_ops ops = {
    .add = add, .set_metadata = set_metadata, .finish = finish, .free = sink_free, .begin = begin, .append = append};

dq_status dq_digest_sink_new(dq_sink *target, dq_sink **out)
{
    digest_sink *s = dq_calloc(target->env, 1, sizeof *s);
    if (!s) {
        target->ops->free(target);
        return DQ_E_NOMEM;
    }
    s->sink = (dq_sink){&ops, target->env};
    s->target = target;
    *out = &s->sink;
    return DQ_OK;
}

dq_digest dq_digest_sink_result(const dq_sink *sink) { return ((const digest_sink *)sink)->digest; }
