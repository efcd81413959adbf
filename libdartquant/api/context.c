/* dartquant/context.h, and the life of what handles share. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "io/json.h"

dq_context *dq_context_retain(dq_context *ctx)
{
    atomic_fetch_add(&ctx->references, 1);
    return ctx;
}

void dq_context_release(dq_context *ctx)
{
    if (!ctx || atomic_fetch_sub(&ctx->references, 1) != 1) return;
    dq_free(ctx->device_name);
    dq_free(ctx->device_json);
    dq_free(ctx->benchmark_json);
    dq_device_close(ctx->dev);
    dq_env_clear(&ctx->env);
    free(ctx);
}

/* A backend that the host brings; table == NULL: the config names one. */
typedef struct given_backend {
    const dq_backend *table;
    const char *options;
} given_backend;

/* "backend" is NAME or NAME:OPTIONS; "simd" is an option of the library's own backends, "device_memory" of all others. */
static dq_status open_named(dq_context *ctx, const dq_config *config, dq_policy policy)
{
    dq_status status;
    const char *spec = dq_config_text(config, "backend"), *simd = dq_config_text(config, "simd");
    size_t length = strcspn(spec, ":");
    const char *given = spec[length] ? spec + length + 1 : "";
    int64_t memory = dq_config_int(config, "device_memory");
    char added[48] = "", *options = NULL, *name = dq_strndup(&ctx->env, spec, length);
    if (!name) return DQ_E_NOMEM;
    bool builtin = dq_builtin_backend(name) != NULL;
    if (builtin && memory)
        DQ_GO(dq_fail(DQ_E_INVALID, "device_memory: %s works in the memory of the host, which memory_budget is for",
                      name));
    if (builtin && strcmp(simd, "auto") != 0)
        snprintf(added, sizeof added, "simd=%s", simd);
    else if (memory)
        snprintf(added, sizeof added, "memory=%lld", (long long)memory);
    options = dq_asprintf(&ctx->env, "%s%s%s", given, given[0] && added[0] ? "," : "", added);
    status = options ? dq_device_open(&ctx->env, name, options, policy, &ctx->dev) : DQ_E_NOMEM;
done:
    dq_free(options);
    dq_free(name);
    return status;
}

static dq_status open_device(dq_context *ctx, const dq_config *config, const given_backend *given)
{
    dq_policy policy = (dq_policy)dq_config_int(config, "policy");
    if (!given->table) return open_named(ctx, config, policy);
    return dq_device_open_table(&ctx->env, given->table, given->options, policy, &ctx->dev);
}

static dq_status describe_device(dq_context *ctx)
{
    dq_device_info info = {.struct_size = sizeof info};
    DQ_TRY(dq_device_get_info(ctx->dev, &info));
    ctx->device_name = dq_strdup(&ctx->env, info.name);
    if (!ctx->device_name) return DQ_E_NOMEM;
    json_t *missing = json_array();
    const char *op;
    for (int i = 0; (op = dq_device_missing_op(ctx->dev, i)); i++) json_array_append_new(missing, json_string(op));
    json_t *facts =
        json_pack("{s:s, s:s, s:s, s:i, s:I, s:I, s:o}", "device", info.name, "description", info.description,
                  "backend", dq_device_backend(ctx->dev), "threads", dq_threads(&ctx->env), "memory_total",
                  (json_int_t)info.memory_total, "memory_free", (json_int_t)info.memory_free, "missing_ops", missing);
    dq_status status = dq_json_dump(&ctx->env, facts, false, &ctx->device_json);
    json_decref(facts);
    return status;
}

static dq_status open_context(const dq_config *config, const dq_services *services, const given_backend *backend,
                              dq_context **out)
{
    dq_status status;
    dq_context *ctx = calloc(1, sizeof *ctx); /* the allocator to use lives inside */
    if (!ctx) return dq_fail(DQ_E_NOMEM, "out of memory: context");
    atomic_init(&ctx->references, 1);
    DQ_GO(dq_env_init(&ctx->env, services, (int)dq_config_int(config, "threads")));
    ctx->env.memory_budget = (uint64_t)dq_config_int(config, "memory_budget");
    DQ_GO(open_device(ctx, config, backend));
    DQ_GO(describe_device(ctx));
    *out = ctx;
    return DQ_OK;
done:
    dq_context_release(ctx);
    return status;
}

static dq_status new_context(const dq_config *config, const dq_services *services, const given_backend *backend,
                             dq_context **out)
{
    dq_config *own;
    DQ_TRY(dq_config_or_defaults(&config, &own));
    dq_status status = open_context(config, services, backend, out);
    dq_config_free(own);
    return status;
}

dq_status dq_context_new(const dq_config *config, const dq_services *services, dq_context **out)
{
    DQ_ENTER(out);
    given_backend none = {NULL, NULL};
    return new_context(config, services, &none, out);
}

dq_status dq_context_new_with_backend(const dq_config *config, const dq_services *services,
                                      const struct dq_backend *backend, const char *options, dq_context **out)
{
    DQ_ENTER(backend && out);
    given_backend given = {backend, options};
    return new_context(config, services, &given, out);
}

dq_status dq_backend_builtin(const char *name, const struct dq_backend **out)
{
    DQ_ENTER(name && out);
    const dq_backend *table = dq_builtin_backend(name);
    if (!table) return dq_fail(DQ_E_NOTFOUND, "no backend of the library is called '%s'; there are cpu and ref", name);
    *out = table;
    return DQ_OK;
}

void dq_context_free(dq_context *ctx) { dq_context_release(ctx); }

const char *dq_context_device_name(const dq_context *ctx) { return ctx ? ctx->device_name : ""; }
const char *dq_context_device_json(const dq_context *ctx) { return ctx ? ctx->device_json : ""; }
uint64_t dq_context_memory_now(const dq_context *ctx) { return ctx ? atomic_load(&ctx->env.memory_now) : 0; }
uint64_t dq_context_memory_peak(const dq_context *ctx) { return ctx ? atomic_load(&ctx->env.memory_peak) : 0; }
uint64_t dq_context_fallback_count(const dq_context *ctx) { return ctx ? dq_device_fallbacks(ctx->dev) : 0; }

dq_status dq_context_counters(const dq_context *ctx, dq_device_counters *out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && out);
    return DQ_FILL_STRUCT(out, dq_device_get_counters(ctx->dev), dq_device_counters, download_bytes);
}

int dq_config_products(const dq_config *config)
{
    bool codes = !config || dq_config_int(config, "integer_products");
    return dq_config_math(config) | (codes ? DQ_MATH_CODES : 0);
}

int dq_config_math(const dq_config *config) { return config ? (int)dq_config_int(config, "math") : DQ_MATH_F32; }

dq_status dq_facts_float(const json_t *facts, const char *key, const char *what, double *out)
{
    const json_t *value = json_object_get(facts, key);
    if (!value) return dq_fail(DQ_E_NOTFOUND, "%s has no \"%s\"", what, key);
    if (json_is_boolean(value))
        *out = json_is_true(value);
    else if (json_is_number(value))
        *out = json_number_value(value);
    else
        return dq_fail(DQ_E_INVALID, "\"%s\" of %s is no number", key, what);
    return DQ_OK;
}

dq_status dq_facts_int(const json_t *facts, const char *key, const char *what, int64_t *out)
{
    double number = 0;
    DQ_TRY(dq_facts_float(facts, key, what, &number));
    const json_t *value = json_object_get(facts, key);
    if (json_is_real(value)) return dq_fail(DQ_E_INVALID, "\"%s\" of %s is no integer", key, what);
    *out = json_is_integer(value) ? (int64_t)json_integer_value(value) : (int64_t)number;
    return DQ_OK;
}
