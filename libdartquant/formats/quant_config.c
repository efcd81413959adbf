/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/quant_config.h"

#include <string.h>
#include <strings.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/status.h"

enum { MATCH_LIMIT = 100000 };

const char *dq_quant_method_name(dq_quant_method method)
{
    static const char *const names[] = {"gptq", "awq", "compressed-tensors", "diffulex"};
    return names[method];
}

/* ---- names ---- */

dq_status dq_pattern_matches(dq_env *env, const char *pattern, const char *text, bool *out)
{
    int error;
    PCRE2_SIZE at;
    (void)env;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_ANCHORED | PCRE2_UTF, &error, &at, NULL);
    if (!code) return dq_fail(DQ_E_FORMAT, "\"%.100s\" is no regular expression (position %zu)", pattern, (size_t)at);
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    int found = PCRE2_ERROR_NOMEMORY;
    if (data && context) {
        pcre2_set_match_limit(context, MATCH_LIMIT);
        found = pcre2_match(code, (PCRE2_SPTR)text, strlen(text), 0, 0, data, context);
    }
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_code_free(code);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH)
        return dq_fail(found == PCRE2_ERROR_NOMEMORY ? DQ_E_NOMEM : DQ_E_FORMAT, "\"%.100s\" cannot be matched",
                       pattern);
    *out = found >= 0;
    return DQ_OK;
}

/* How closely a list of targets names a module: by its class, by a pattern, by name; the closest group of several counts. */
enum { NO_MATCH, BY_CLASS, BY_PATTERN, BY_NAME };

static dq_status match_targets(dq_env *env, const json_t *targets, const char *module, int *out)
{
    size_t i;
    json_t *target;
    *out = NO_MATCH;
    json_array_foreach(targets, i, target)
    {
        const char *text = json_string_value(target);
        if (!text) return dq_fail(DQ_E_FORMAT, "a target that is no string");
        int match = strcmp(text, module) == 0 ? BY_NAME : strcmp(text, "Linear") == 0 ? BY_CLASS : NO_MATCH;
        bool matches = false;
        if (strncmp(text, "re:", 3) == 0) DQ_TRY(dq_pattern_matches(env, text + 3, module, &matches));
        if (matches) match = BY_PATTERN;
        if (match > *out) *out = match;
    }
    return DQ_OK;
}

dq_status dq_targets_match(dq_env *env, const json_t *targets, const char *module, bool *out)
{
    int match = NO_MATCH;
    dq_status status = match_targets(env, targets, module, &match);
    *out = match != NO_MATCH;
    return status;
}

/* ---- GPTQ and AWQ ---- */

/* An integer under one of two names. */
static dq_status read_synonym(const json_t *o, const char *key, const char *old, int64_t min, int64_t max, bool need,
                              const char *path, int64_t *out)
{
    bool has = json_object_get(o, key) && !json_is_null(json_object_get(o, key));
    return dq_json_int(o, has ? key : old, min, max, need, path, out);
}

/* The overrides of a `dynamic` rule, or those of the whole file. */
static dq_status read_numbers(const json_t *o, bool need, const char *path, dq_layout *l)
{
    int64_t bits = l->bits, group = l->group;
    DQ_TRY(read_synonym(o, "bits", "w_bit", 1, 32, need, path, &bits));
    DQ_TRY(read_synonym(o, "group_size", "q_group_size", -1, INT32_MAX, false, path, &group));
    if (group == 0) return dq_fail(DQ_E_FORMAT, "group_size is 0");
    l->bits = (int)bits;
    l->group = group;
    return dq_json_bool(o, "sym", false, path, &l->symmetric);
}

static dq_status set_gptq_format(const char *format, dq_layout *l)
{
    static const struct {
        const char *name;
        dq_layout_kind kind;
    } known[] = {{"gptq", DQ_LAYOUT_GPTQ}, {"gptq_v2", DQ_LAYOUT_GPTQ_V2}, {"gptq_p", DQ_LAYOUT_GPTQ_PLANAR}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcasecmp(format, known[i].name) != 0) continue;
        l->kind = known[i].kind;
        return DQ_OK;
    }
    return dq_fail(DQ_E_UNSUPPORTED, "checkpoint_format \"%s\" is not supported (known: gptq, gptq_v2, gptq_p)",
                   format);
}

static dq_status read_pack_dtype(const json_t *o, const char *path)
{
    const char *type = "int32";
    DQ_TRY(dq_json_string(o, "pack_dtype", false, path, &type));
    if (strcmp(type, "int32") == 0) return DQ_OK;
    return dq_fail(DQ_E_UNSUPPORTED, "pack_dtype \"%s\" is not supported (known: int32)", type);
}

static dq_status read_gptq(dq_quant_config *c)
{
    const char *format = "gptq";
    DQ_TRY(dq_json_string(c->json, "format", false, c->path, &format));
    DQ_TRY(dq_json_string(c->json, "checkpoint_format", false, c->path, &format));
    c->layout = (dq_layout){.group = 128, .symmetric = true};
    DQ_TRY(set_gptq_format(format, &c->layout));
    DQ_TRY(read_pack_dtype(c->json, c->path));
    DQ_TRY(dq_json_bool(c->json, "desc_act", false, c->path, &c->act_order));
    DQ_TRY(read_numbers(c->json, true, c->path, &c->layout));
    if (c->layout.bits < 2 || c->layout.bits > 8 ||
        (c->layout.kind != DQ_LAYOUT_GPTQ_PLANAR && c->layout.bits > 4 && c->layout.bits != 8))
        return dq_fail(DQ_E_UNSUPPORTED, "%s with %d bits is not known", dq_layout_name(c->layout.kind),
                       c->layout.bits);
    return DQ_OK;
}

static dq_status read_awq(dq_quant_config *c)
{
    static const struct {
        const char *name;
        dq_layout_kind kind;
    } known[] = {{"gemm", DQ_LAYOUT_AWQ_GEMM},
                 {"gemv", DQ_LAYOUT_AWQ_GEMV},
                 {"gemv_fast", DQ_LAYOUT_AWQ_GEMV_FAST},
                 {"llm-awq", DQ_LAYOUT_AWQ_GEMV_FAST}};
    const char *version = "gemm", *backend = "autoawq";
    bool zero_point = true;
    DQ_TRY(dq_json_string(c->json, "checkpoint_format", false, c->path, &version));
    DQ_TRY(dq_json_string(c->json, "version", false, c->path, &version));
    DQ_TRY(dq_json_string(c->json, "backend", false, c->path, &backend));
    DQ_TRY(dq_json_bool(c->json, "zero_point", false, c->path, &zero_point));
    if (strcasecmp(backend, "llm-awq") == 0) version = "llm-awq";
    bool found = false;
    c->layout = (dq_layout){.group = 128, .symmetric = !zero_point};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcasecmp(version, known[i].name) != 0) continue;
        c->layout.kind = known[i].kind;
        found = true;
    }
    if (!found)
        return dq_fail(DQ_E_UNSUPPORTED, "AWQ version \"%s\" is not supported (known: gemm, gemv, gemv_fast)", version);
    DQ_TRY(read_numbers(c->json, true, c->path, &c->layout));
    if (c->layout.bits != 4) return dq_fail(DQ_E_UNSUPPORTED, "awq with %d bits; 4 are known", c->layout.bits);
    return DQ_OK;
}

/* ---- compressed-tensors ---- */

static dq_status set_ct_format(const char *format, const char *type, dq_layout *l)
{
    bool floats = strcmp(type, "float") == 0;
    if (strcmp(format, "pack-quantized") == 0)
        l->kind = DQ_LAYOUT_CT_PACKED;
    else if (strcmp(format, "int-quantized") == 0 || (strcmp(format, "naive-quantized") == 0 && !floats))
        l->kind = DQ_LAYOUT_CT_INT;
    else if (strcmp(format, "float-quantized") == 0 || strcmp(format, "naive-quantized") == 0)
        l->kind = DQ_LAYOUT_CT_FLOAT;
    else
        return dq_fail(DQ_E_UNSUPPORTED,
                       "format \"%s\" is not supported (known: pack-quantized, int-quantized, naive-quantized, "
                       "float-quantized)",
                       format);
    if (floats == (l->kind == DQ_LAYOUT_CT_FLOAT)) return DQ_OK;
    return dq_fail(DQ_E_FORMAT, "format \"%s\" with weights of type \"%s\"", format, type);
}

static dq_status read_strategy(const json_t *w, const char *path, dq_layout *l)
{
    const char *strategy = "tensor";
    DQ_TRY(dq_json_string(w, "strategy", false, path, &strategy));
    l->group = -1;
    if (strcmp(strategy, "channel") == 0) return DQ_OK;
    if (strcmp(strategy, "group") == 0) return dq_json_int(w, "group_size", 1, INT32_MAX, true, path, &l->group);
    if (strcmp(strategy, "tensor") == 0) {
        l->per_tensor = true;
        return DQ_OK;
    }
    const json_t *block = json_object_get(w, "block_structure");
    if (strcmp(strategy, "block") != 0 || l->kind != DQ_LAYOUT_CT_FLOAT || json_array_size(block) != 2)
        return dq_fail(DQ_E_UNSUPPORTED, "weights quantized per \"%s\" are not supported", strategy);
    l->block_rows = json_integer_value(json_array_get(block, 0));
    l->group = json_integer_value(json_array_get(block, 1));
    if (l->block_rows > 0 && l->group > 0) return DQ_OK;
    return dq_fail(DQ_E_FORMAT, "block_structure is not two positive numbers");
}

static dq_status read_ct_group(const dq_quant_config *c, const json_t *group, dq_layout *l)
{
    const json_t *w = json_object_get(group, "weights");
    const char *format = NULL, *type = "int";
    int64_t bits = 8;
    if (!json_is_object(w)) return dq_fail(DQ_E_FORMAT, "a group of config_groups without weights");
    DQ_TRY(dq_json_string(c->json, "format", false, c->path, &format));
    DQ_TRY(dq_json_string(group, "format", false, c->path, &format));
    DQ_TRY(dq_json_string(w, "type", false, c->path, &type));
    DQ_TRY(dq_json_int(w, "num_bits", 1, 32, true, c->path, &bits));
    *l = (dq_layout){.bits = (int)bits, .symmetric = true, .group = -1};
    if (!format) return dq_fail(DQ_E_FORMAT, "compressed-tensors without \"format\"");
    DQ_TRY(set_ct_format(format, type, l));
    DQ_TRY(dq_json_bool(w, "symmetric", false, c->path, &l->symmetric));
    DQ_TRY(read_strategy(w, c->path, l));
    if (l->kind == DQ_LAYOUT_CT_FLOAT && (bits != 8 || !l->symmetric))
        return dq_fail(DQ_E_UNSUPPORTED, "floating weights of %lld bits, symmetric %d; FP8 symmetric is known",
                       (long long)bits, l->symmetric);
    if (bits < 2 || bits > 8) return dq_fail(DQ_E_UNSUPPORTED, "%lld bits; 2 to 8 are known", (long long)bits);
    return DQ_OK;
}

/* What is done to the inputs of linears: dynamic integers per token run here; anything else is said and left out. */
static dq_status read_ct_input(dq_quant_config *c, const json_t *group)
{
    const json_t *a = json_object_get(group, "input_activations");
    const char *type = "int", *strategy = "tensor";
    bool dynamic = false, symmetric = true;
    int64_t bits = 8;
    if (!a || json_is_null(a)) return DQ_OK;
    DQ_TRY(dq_json_string(a, "type", false, c->path, &type));
    DQ_TRY(dq_json_string(a, "strategy", false, c->path, &strategy));
    DQ_TRY(dq_json_bool(a, "symmetric", false, c->path, &symmetric));
    DQ_TRY(dq_json_int(a, "num_bits", 1, 32, true, c->path, &bits));
    if (json_is_boolean(json_object_get(a, "dynamic"))) dynamic = json_is_true(json_object_get(a, "dynamic"));
    if (strcmp(type, "int") != 0 || !dynamic || strcmp(strategy, "token") != 0 || bits < 2 || bits > 8) {
        dq_log(c->env, DQ_LOG_WARNING,
               "%s: inputs of linears are %s %s numbers of %lld bits per %s; they stay in fp32 here",
               c->path ? c->path : "configuration", dynamic ? "dynamic" : "static", type, (long long)bits, strategy);
        return DQ_OK;
    }
    if (c->input.bits != 16 && (c->input.bits != bits || c->input.symmetric != symmetric))
        return dq_fail(DQ_E_UNSUPPORTED, "groups with different input_activations are not supported");
    c->input = (dq_act_spec){.bits = (int)bits, .group = -1, .symmetric = symmetric, .clip = 1.0};
    return DQ_OK;
}

static dq_status read_ct(dq_quant_config *c)
{
    const json_t *groups = json_object_get(c->json, "config_groups"), *kv = json_object_get(c->json, "kv_cache_scheme");
    const json_t *sparse = json_object_get(json_object_get(c->json, "sparsity_config"), "format");
    const char *status = "compressed", *name;
    json_t *group;
    DQ_TRY(dq_json_string(c->json, "quantization_status", false, c->path, &status));
    if (strcmp(status, "compressed") != 0)
        return dq_fail(DQ_E_UNSUPPORTED, "quantization_status \"%s\"; only compressed checkpoints are read", status);
    if (kv && !json_is_null(kv)) return dq_fail(DQ_E_UNSUPPORTED, "kv_cache_scheme is not supported");
    if (sparse && json_is_string(sparse) && strcmp(json_string_value(sparse), "dense") != 0)
        return dq_fail(DQ_E_UNSUPPORTED, "sparsity \"%s\" is not supported", json_string_value(sparse));
    if (!json_is_object(groups) || json_object_size(groups) == 0)
        return dq_fail(DQ_E_FORMAT, "compressed-tensors without config_groups");
    json_object_foreach((json_t *)(uintptr_t)groups, name, group)
    {
        dq_layout l;
        DQ_TRY(read_ct_group(c, group, &l));
        DQ_TRY(read_ct_input(c, group));
    }
    return DQ_OK;
}

/* ---- the whole ---- */

/* Files of their own say less than config.json: AWQ's names itself by its keys. */
static dq_status find_method(dq_quant_config *c)
{
    const char *method = json_object_get(c->json, "zero_point") || json_object_get(c->json, "version") ? "awq" : "gptq";
    DQ_TRY(dq_json_string(c->json, "method", false, c->path, &method));
    DQ_TRY(dq_json_string(c->json, "quant_method", false, c->path, &method));
    for (int i = 0; i < 3; i++) {
        if (strcasecmp(method, dq_quant_method_name((dq_quant_method)i)) != 0) continue;
        c->method = (dq_quant_method)i;
        return DQ_OK;
    }
    return dq_fail(DQ_E_UNSUPPORTED, "quant_method \"%s\" is not supported (known: gptq, awq, compressed-tensors)",
                   method);
}

static dq_status read_diffulex(dq_quant_config *c)
{
    c->method = DQ_METHOD_DIFFULEX;
    c->layout = (dq_layout){.kind = DQ_LAYOUT_DIFFULEX, .bits = 4, .group = 128};
    DQ_TRY(read_numbers(c->json, false, c->path, &c->layout));
    if (c->layout.bits > 4 || c->layout.bits < 2)
        return dq_fail(DQ_E_UNSUPPORTED, "Diffulex int8-packed with %d bits; up to 4 are known", c->layout.bits);
    return DQ_OK;
}

dq_status dq_quant_config_new(dq_env *env, json_t *json, const char *path, dq_quant_config **out)
{
    dq_status status;
    dq_quant_config *c = dq_calloc(env, 1, sizeof *c);
    if (!c) return DQ_E_NOMEM;
    c->env = env;
    c->json = json_incref(json);
    c->input.bits = 16;
    c->path = path ? dq_strdup(env, path) : NULL;
    status = path && !c->path ? DQ_E_NOMEM : DQ_OK;
    if (status == DQ_OK && !json_is_object(json))
        status = dq_fail(DQ_E_FORMAT, "the quantization configuration is no object");
    if (status == DQ_OK && json_object_get(json, "quantized_modules")) {
        status = read_diffulex(c);
    } else {
        if (status == DQ_OK) status = find_method(c);
        if (status == DQ_OK && c->method == DQ_METHOD_GPTQ) status = read_gptq(c);
        if (status == DQ_OK && c->method == DQ_METHOD_AWQ) status = read_awq(c);
        if (status == DQ_OK && c->method == DQ_METHOD_CT) status = read_ct(c);
    }
    if (status != DQ_OK) {
        dq_error_in_file(status, path);
        dq_quant_config_free(c);
        return status;
    }
    *out = c;
    return DQ_OK;
}

void dq_quant_config_free(dq_quant_config *c)
{
    if (!c) return;
    json_decref(c->json);
    dq_free(c->path);
    dq_free(c);
}

/* GPTQModel's `dynamic`: the first rule that matches decides; "-:" leaves the module alone. */
static dq_status apply_dynamic(const dq_quant_config *c, const char *module, bool *quantized, dq_layout *l)
{
    const json_t *rules = json_object_get(c->json, "dynamic");
    bool none = !rules || json_is_null(rules) || json_is_false(rules);
    if (!none && !json_is_object(rules)) return dq_fail(DQ_E_FORMAT, "'dynamic' is no object of rules");
    const char *pattern;
    json_t *rule;
    json_object_foreach((json_t *)(uintptr_t)rules, pattern, rule)
    {
        bool matches, sign = strncmp(pattern, "-:", 2) == 0 || strncmp(pattern, "+:", 2) == 0;
        DQ_TRY(dq_pattern_matches(c->env, sign ? pattern + 2 : pattern, module, &matches));
        if (!matches) continue;
        *quantized = pattern[0] != '-' || !sign;
        if (!json_is_object(rule) && !json_is_null(rule))
            return dq_fail(DQ_E_FORMAT, "the rule \"%.100s\" in 'dynamic' is no object", pattern);
        return *quantized && json_is_object(rule) ? read_numbers(rule, false, c->path, l) : DQ_OK;
    }
    return DQ_OK;
}

static dq_status is_left_out(const dq_quant_config *c, const char *module, bool *out)
{
    const json_t *list = json_object_get(c->json, "modules_to_not_convert");
    size_t i;
    json_t *part;
    *out = false;
    if (list && !json_is_null(list) && !json_is_array(list))
        return dq_fail(DQ_E_FORMAT, "'modules_to_not_convert' is no list");
    json_array_foreach(list, i, part)
    {
        if (!json_is_string(part)) return dq_fail(DQ_E_FORMAT, "entry %zu of 'modules_to_not_convert' is no name", i);
        if (strstr(module, json_string_value(part))) *out = true;
    }
    return DQ_OK;
}

static dq_status ct_layout(const dq_quant_config *c, const char *module, bool *quantized, dq_layout *out)
{
    const char *name;
    json_t *group;
    const json_t *best = NULL;
    int match, most = 0;
    *quantized = false;
    DQ_TRY(match_targets(c->env, json_object_get(c->json, "ignore"), module, &match));
    if (match) return DQ_OK;
    json_object_foreach(json_object_get(c->json, "config_groups"), name, group)
    {
        DQ_TRY(match_targets(c->env, json_object_get(group, "targets"), module, &match));
        if (match <= most) continue;
        most = match;
        best = group;
    }
    *quantized = best != NULL;
    return best ? read_ct_group(c, best, out) : DQ_OK;
}

/* quantized_modules: [{name, out_features, in_features, group_size, bits}] */
static dq_status diffulex_layout(const dq_quant_config *c, const char *module, bool *quantized, dq_layout *out)
{
    size_t i;
    json_t *entry;
    *quantized = false;
    *out = c->layout;
    json_array_foreach(json_object_get(c->json, "quantized_modules"), i, entry)
    {
        const char *name = NULL;
        DQ_TRY(dq_json_string(entry, "name", true, c->path, &name));
        if (strcmp(name, module) != 0) continue;
        *quantized = true;
        return read_numbers(entry, false, c->path, out);
    }
    return DQ_OK;
}

dq_status dq_quant_config_layout(const dq_quant_config *c, const char *module, bool *quantized, dq_layout *out)
{
    dq_status status = DQ_OK;
    *quantized = true;
    if (c->method == DQ_METHOD_CT) {
        status = ct_layout(c, module, quantized, out);
    } else if (c->method == DQ_METHOD_DIFFULEX) {
        status = diffulex_layout(c, module, quantized, out);
    } else {
        *out = c->layout;
        bool out_of_it = false;
        status = is_left_out(c, module, &out_of_it);
        *quantized = !out_of_it;
        if (status == DQ_OK && c->method == DQ_METHOD_GPTQ) status = apply_dynamic(c, module, quantized, out);
    }
    return dq_error_in_file(dq_error_in_tensor(status, module), c->path);
}
