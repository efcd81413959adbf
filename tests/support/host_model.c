/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host_model.h"

/* ---- the engine's weights ---- */

static char *read_text(const char *path)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *text = calloc(1, 1 << 20);
    size_t n = fread(text, 1, (1 << 20) - 1, f);
    assert_true(n > 0);
    fclose(f);
    return text;
}

static host_tensor *grow(host_model *m)
{
    m->tensors = realloc(m->tensors, (size_t)(m->count + 1) * sizeof *m->tensors);
    host_tensor *t = &m->tensors[m->count++];
    memset(t, 0, sizeof *t);
    return t;
}

void host_model_load(host_model *m, const char *dir)
{
    char path[512];
    memset(m, 0, sizeof *m);
    snprintf(path, sizeof path, "%s/config.json", dir);
    m->config = read_text(path);
    dq_context *ctx = NULL;
    dq_tensors *file = NULL;
    OK(dq_context_new(NULL, NULL, &ctx));
    OK(dq_tensors_open(ctx, dir, &file));
    for (int64_t i = 0; i < dq_tensors_count(file); i++) {
        dq_tensor_desc d = {.struct_size = sizeof d};
        OK(dq_tensors_info(file, i, &d));
        host_tensor *t = grow(m);
        snprintf(t->name, sizeof t->name, "%s", d.name);
        t->dtype = d.dtype;
        t->ndim = d.ndim;
        memcpy(t->shape, d.shape, sizeof t->shape);
        t->bytes = d.bytes;
        t->data = malloc((size_t)d.bytes);
        FILE *f = fopen(d.file, "rb");
        assert_non_null(f);
        assert_int_equal(fseek(f, (long)d.offset, SEEK_SET), 0);
        assert_int_equal(fread(t->data, 1, (size_t)d.bytes, f), d.bytes);
        fclose(f);
    }
    dq_tensors_free(file);
    dq_context_free(ctx);
}

void host_model_clear(host_model *m)
{
    for (int64_t i = 0; i < m->count; i++) free(m->tensors[i].data);
    free(m->tensors);
    free(m->config);
    free(m->manifest);
    memset(m, 0, sizeof *m);
}

const host_tensor *host_model_find(const host_model *m, const char *name)
{
    for (int64_t i = 0; i < m->count; i++)
        if (strcmp(m->tensors[i].name, name) == 0) return &m->tensors[i];
    return NULL;
}

static dq_status describe(void *user, int64_t index, dq_tensor_desc *out)
{
    const host_tensor *t = &((host_model *)user)->tensors[index];
    out->name = t->name;
    out->dtype = t->dtype;
    out->ndim = t->ndim;
    memcpy(out->shape, t->shape, sizeof t->shape);
    return DQ_OK;
}

static dq_status read_bytes(void *user, int64_t index, uint64_t offset, uint64_t bytes, void *dst)
{
    host_model *m = user;
    const host_tensor *t = &m->tensors[index];
    m->reads++;
    if (m->fail_read && --m->fail_read == 0) return DQ_E_IO;
    if (offset > t->bytes || bytes > t->bytes - offset) return DQ_E_INVALID;
    memcpy(dst, t->data + offset, (size_t)bytes);
    return DQ_OK;
}

static dq_status map(void *user, int64_t index, const void **out)
{
    host_model *m = user;
    *out = m->mapped ? m->tensors[index].data : NULL;
    return DQ_OK;
}

static void count_freed(void *user) { ((host_model *)user)->freed++; }

dq_tensor_source host_model_source(host_model *m)
{
    return (dq_tensor_source){.struct_size = sizeof(dq_tensor_source),
                              .abi = DQ_TENSOR_SOURCE_ABI,
                              .user = m,
                              .count = m->count,
                              .describe = describe,
                              .read = read_bytes,
                              .map = map,
                              .free = count_freed};
}

/* ---- what comes back ---- */

static dq_status begin(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape, uint64_t bytes)
{
    host_model *m = user;
    if (m->fail_add && --m->fail_add == 0) return 77; /* no status of ours */
    if (m->finished || host_model_find(m, name)) return DQ_E_STATE;
    host_tensor *t = grow(m);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->dtype = dtype;
    t->ndim = ndim;
    memcpy(t->shape, shape, sizeof *shape * (size_t)ndim);
    t->data = malloc((size_t)bytes + 1);
    return DQ_OK;
}

static dq_status append(void *user, const void *data, uint64_t bytes)
{
    host_model *m = user;
    host_tensor *t = &m->tensors[m->count - 1];
    memcpy(t->data + t->bytes, data, (size_t)bytes);
    t->bytes += bytes;
    return DQ_OK;
}

static dq_status add(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape, const void *data,
                     uint64_t bytes)
{
    dq_status status = begin(user, name, dtype, ndim, shape, bytes);
    return status == DQ_OK ? append(user, data, bytes) : status;
}

static dq_status set_metadata(void *user, const char *key, const char *value)
{
    host_model *m = user;
    char **slot = strcmp(key, "config.json") == 0      ? &m->config
                  : strcmp(key, "dartquant.json") == 0 ? &m->manifest
                                                       : NULL;
    if (!slot) return DQ_OK;
    free(*slot);
    *slot = strdup(value);
    return DQ_OK;
}

static dq_status finish(void *user)
{
    ((host_model *)user)->finished++;
    return DQ_OK;
}

dq_tensor_sink host_model_sink(host_model *m, int pieces)
{
    return (dq_tensor_sink){.struct_size = sizeof(dq_tensor_sink),
                            .abi = DQ_TENSOR_SINK_ABI,
                            .user = m,
                            .add = add,
                            .set_metadata = set_metadata,
                            .finish = finish,
                            .begin = pieces ? begin : NULL,
                            .append = pieces ? append : NULL};
}

void host_model_assert_same(const host_model *a, const host_model *b)
{
    assert_int_equal(a->count, b->count);
    for (int64_t i = 0; i < a->count; i++) {
        const host_tensor *t = &a->tensors[i], *u = host_model_find(b, t->name);
        if (!u || t->dtype != u->dtype || t->ndim != u->ndim || t->bytes != u->bytes ||
            memcmp(t->shape, u->shape, sizeof t->shape) != 0 || memcmp(t->data, u->data, (size_t)t->bytes) != 0)
            fail_msg("%s differs", t->name);
    }
}
