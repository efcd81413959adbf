/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host.h"

dq_context *host_context(int threads)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    OK(dq_config_new(&config));
    OK(dq_config_set_int(config, "threads", threads));
    OK(dq_context_new(config, &services, &ctx));
    dq_config_free(config);
    return ctx;
}

int host_no_leaks(void **state)
{
    (void)state;
    if (heap.live == 0) return 0;
    print_error("%ld blocks were not given back\n", heap.live);
    heap.live = 0;
    return -1;
}

dq_config *host_config(const char *settings)
{
    char text[512];
    dq_config *config = NULL;
    OK(dq_config_new(&config));
    assert_true(snprintf(text, sizeof text, "%s", settings) < (int)sizeof text);
    char *rest = text;
    for (char *item; (item = strsep(&rest, " ")) != NULL;) {
        if (!*item) continue;
        char *value = strchr(item, '=');
        assert_non_null(value);
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

dq_model *host_open_tiny(dq_context *ctx)
{
    dq_model *model = NULL;
    OK(dq_model_open(ctx, HOST_TINY, &model));
    return model;
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

dq_quantizer *host_quantizer(const host_bench *b)
{
    dq_quantizer *q = NULL;
    OK(dq_quantizer_new(b->model, b->config, &q));
    OK(dq_quantizer_bind(q, b->set));
    return q;
}

dq_quantizer *host_calibrated_quantizer(const host_bench *b)
{
    dq_quantizer *q = NULL;
    int32_t needs = 0;
    OK(dq_quantizer_new(b->model, b->config, &q));
    OK(dq_quantizer_needs_data(q, &needs));
    assert_int_equal(needs, 1);
    OK(dq_quantizer_bind(q, b->set));
    return q;
}

dq_evaluator *host_evaluator(const host_bench *b, dq_model *model)
{
    dq_evaluator *e = NULL;
    OK(dq_evaluator_new(model, b->config, &e));
    OK(dq_evaluator_bind(e, b->set));
    return e;
}

void host_checkpoint_steps(dq_quantizer *q, int steps, const char *dir)
{
    int32_t done = 0;
    OK(dq_quantizer_checkpoint(q, dir));
    for (int i = 0; i < steps; i++) {
        OK(dq_quantizer_step(q, NULL, NULL, NULL, &done));
        assert_int_equal(done, 0);
        OK(dq_quantizer_checkpoint(q, dir));
    }
}

host_bench host_bench_on(dq_context *ctx, const char *settings, size_t ids, bool rotate)
{
    host_bench b = {.ctx = ctx, .config = host_config(settings), .set = host_ids(ctx, ids)};
    dq_model *model = host_open_tiny(ctx), *fused = NULL;
    dq_rotation *rotation = NULL;
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

host_bench host_bench_open(const char *settings, int threads, bool rotate)
{
    return host_bench_on(host_context(threads), settings, 400, rotate);
}

void host_bench_close(host_bench *b)
{
    dq_model_free(b->model);
    dq_dataset_free(b->set);
    dq_config_free(b->config);
    dq_context_free(b->ctx);
}
