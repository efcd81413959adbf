/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host_model.h"

/* ---- memory ---- */

long host_live_blocks;

static void *count_alloc(void *user, size_t bytes)
{
    (void)user;
    void *p = malloc(bytes);
    if (p) __atomic_add_fetch(&host_live_blocks, 1, __ATOMIC_SEQ_CST);
    return p;
}

static void count_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    __atomic_sub_fetch(&host_live_blocks, 1, __ATOMIC_SEQ_CST);
    free(ptr);
}

dq_context *host_context(int threads)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {count_alloc, count_free, NULL}};
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    OK(dq_config_new(&config));
    OK(dq_config_set_int(config, "threads", threads));
    OK(dq_context_new(config, &services, &ctx));
    dq_config_free(config);
    return ctx;
}

dq_config *host_config(const char *settings)
{
    char text[512];
    dq_config *config = NULL;
    OK(dq_config_new(&config));
    snprintf(text, sizeof text, "%s", settings);
    char *rest = text;
    for (char *item; (item = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(item, '=');
        if (!value) continue;
        *value = '\0';
        OK(dq_config_set(config, item, value + 1));
    }
    return config;
}

dq_dataset *host_ids(dq_context *ctx, size_t count)
{
    int32_t *ids = malloc(count * sizeof *ids);
    for (size_t i = 0; i < count; i++) ids[i] = (int32_t)((i * i * 7 + i * 13 + 5) % 500);
    dq_dataset *set = NULL;
    OK(dq_dataset_from_ids(ctx, ids, count, "numbers", &set));
    free(ids);
    return set;
}

double host_perplexity(dq_model *model, const dq_config *config, const dq_dataset *set)
{
    dq_evaluator *e = NULL;
    double ppl = 0;
    OK(dq_evaluator_new(model, config, &e));
    OK(dq_evaluator_bind(e, set));
    OK(dq_evaluator_run(e, NULL, NULL, NULL));
    OK(dq_evaluator_get_float(e, "ppl", &ppl));
    dq_evaluator_free(e);
    return ppl;
}

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

host_bench host_bench_open(const char *settings, int threads, bool rotate)
{
    host_bench b = {.ctx = host_context(threads), .config = host_config(settings)};
    dq_model *model = NULL, *fused = NULL;
    dq_rotation *rotation = NULL;
    b.set = host_ids(b.ctx, 400);
    OK(dq_model_open(b.ctx, "tests/data/tiny", &model));
    if (!rotate) {
        b.model = model;
        return b;
    }
    OK(dq_model_fuse_norms(model, b.config, &fused));
    OK(dq_rotation_new(fused, b.config, &rotation));
    OK(dq_model_rotate(fused, rotation, &b.model));
    dq_rotation_free(rotation);
    dq_model_free(fused);
    dq_model_free(model);
    return b;
}

void host_bench_close(host_bench *b)
{
    dq_model_free(b->model);
    dq_dataset_free(b->set);
    dq_config_free(b->config);
    dq_context_free(b->ctx);
}
