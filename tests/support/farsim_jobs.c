/* SPDX-License-Identifier: Apache-2.0 */
#include <dlfcn.h>
#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "farsim_jobs.h"

struct farsim_log farsim_log;

static void take_log(void *user, int32_t level, const char *text)
{
    (void)user;
    assert_int_not_equal(level, DQ_LOG_ERROR);
    if (level != DQ_LOG_WARNING) return;
    farsim_log.warnings++;
    snprintf(farsim_log.last, sizeof farsim_log.last, "%s", text);
}

const dq_services farsim_services = {
    .struct_size = sizeof farsim_services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}, .log = take_log};

int farsim_no_leaks(void **state)
{
    farsim_log.warnings = 0;
    return host_no_leaks(state);
}

static char plugin[PATH_MAX];

int farsim_setup(void **state)
{
    (void)state;
    ssize_t n = readlink("/proc/self/exe", plugin, sizeof plugin - 64);
    if (n <= 0) return -1;
    plugin[n] = '\0';
    strcpy(strrchr(plugin, '/') + 1, "libdartquant-farsim.so");
    return 0;
}

dq_config *config_of(const char *backend, const char *policy)
{
    dq_config *config = NULL;
    char text[PATH_MAX + 128];
    bool far = strncmp(backend, "farsim", 6) == 0;
    snprintf(text, sizeof text, "%s%s", far ? plugin : "", far ? backend + 6 : backend);
    OK(dq_config_new(&config));
    OK(dq_config_set(config, "threads", "1"));
    OK(dq_config_set(config, "backend", text));
    OK(dq_config_set(config, "policy", policy));
    return config;
}

dq_context *context_on(const char *backend, const char *policy)
{
    dq_context *ctx = NULL;
    dq_config *config = config_of(backend, policy);
    OK(dq_context_new(config, &farsim_services, &ctx));
    dq_config_free(config);
    return ctx;
}

dq_context *context_with(const dq_backend *table, const char *options, const char *policy)
{
    dq_context *ctx = NULL;
    dq_config *config = config_of("ref", policy);
    OK(dq_context_new_with_backend(config, &farsim_services, table, options, &ctx));
    dq_config_free(config);
    return ctx;
}

const dq_backend *farsim_table(void)
{
    void *file = dlopen(plugin, RTLD_NOW | RTLD_LOCAL);
    assert_non_null(file);
    dq_backend_entry_fn entry;
    void *symbol = dlsym(file, DQ_BACKEND_ENTRY);
    assert_non_null(symbol);
    memcpy(&entry, &symbol, sizeof entry);
    assert_null(entry(DQ_BACKEND_ABI + 1));
    assert_non_null(entry(DQ_BACKEND_ABI));
    return entry(DQ_BACKEND_ABI);
}

dq_device_counters counters_of(const dq_context *ctx)
{
    dq_device_counters c = {.struct_size = sizeof c};
    OK(dq_context_counters(ctx, &c));
    assert_int_equal(c.fallbacks, dq_context_fallback_count(ctx));
    return c;
}

/* ---- jobs ---- */

static dq_config *job_config(const char *settings)
{
    dq_config *config = host_config(settings);
    OK(dq_config_set_int(config, "seqlen", SEQLEN));
    return config;
}

dq_status measure(dq_context *ctx, dq_model *model, double *ppl)
{
    dq_evaluator *e = NULL;
    dq_dataset *set = host_ids(ctx, IDS);
    dq_config *config = job_config("");
    dq_status status = dq_evaluator_new(model, config, &e);
    if (status == DQ_OK) status = dq_evaluator_bind(e, set);
    if (status == DQ_OK) status = dq_evaluator_run(e, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_evaluator_get_float(e, "ppl", ppl);
    dq_evaluator_free(e);
    dq_config_free(config);
    dq_dataset_free(set);
    return status;
}

dq_status run_ppl(dq_context *ctx, double *ppl)
{
    dq_model *model = NULL;
    dq_status status = dq_model_open(ctx, HOST_TINY, &model);
    if (status == DQ_OK) status = measure(ctx, model, ppl);
    dq_model_free(model);
    return status;
}

static dq_status quantize(dq_context *ctx, dq_model *model, const dq_config *config, results *out)
{
    dq_quantizer *q = NULL;
    dq_model *done = NULL;
    dq_dataset *set = host_ids(ctx, IDS);
    dq_status status = dq_quantizer_new(model, config, &q);
    if (status == DQ_OK) status = dq_quantizer_bind(q, set);
    if (status == DQ_OK) status = dq_quantizer_run(q, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_quantizer_take_model(q, &done);
    if (status == DQ_OK) status = dq_quantizer_get_float(q, "bits_per_weight", &out->bits);
    if (status == DQ_OK) status = measure(ctx, done, &out->quantized);
    dq_model_free(done);
    dq_quantizer_free(q);
    dq_dataset_free(set);
    return status;
}

dq_status run_pipeline(dq_context *ctx, const char *extra, results *out)
{
    dq_model *model = NULL, *fused = NULL, *rotated = NULL;
    dq_rotation *rotation = NULL;
    char options[300];
    snprintf(options, sizeof options, "w_bits=4 w_groupsize=32 a_bits=4 k_bits=4 v_bits=4 nsamples=2 seed=3 %s", extra);
    dq_config *config = job_config(options);
    dq_status status = dq_model_open(ctx, HOST_TINY, &model);
    if (status == DQ_OK) status = dq_model_fuse_norms(model, config, &fused);
    if (status == DQ_OK) status = dq_rotation_new(fused, config, &rotation);
    if (status == DQ_OK) status = dq_model_rotate(fused, rotation, &rotated);
    if (status == DQ_OK) status = measure(ctx, rotated, &out->rotated);
    if (status == DQ_OK) status = quantize(ctx, rotated, config, out);
    dq_model_free(rotated);
    dq_rotation_free(rotation);
    dq_model_free(fused);
    dq_model_free(model);
    dq_config_free(config);
    return status;
}

/* ---- checks ---- */

void assert_near(double got, double want, double relative)
{
    if (!(fabs(got - want) <= relative * fabs(want)))
        fail_msg("%.12g instead of %.12g: off by %.3g, allowed %.3g", got, want, fabs(got / want - 1), relative);
}

void assert_error(dq_status got, dq_status status, int64_t code, const char *backend, const char *word)
{
    if (got != status || dq_error_last() != status || dq_error_vendor_code() != code ||
        strcmp(dq_error_backend(), backend) != 0 || !strstr(dq_error_text(), word))
        fail_msg("got %s, code %lld, backend '%s': %s; expected %s, code %lld, backend '%s', '%s'", dq_status_name(got),
                 (long long)dq_error_vendor_code(), dq_error_backend(), dq_error_text(), dq_status_name(status),
                 (long long)code, backend, word);
}
