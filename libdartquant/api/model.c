/* dartquant/model.h. SPDX-License-Identifier: Apache-2.0 */
#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "api/tensors.h"
#include "api/weight_ops.h"
#include "dartquant/model.h"
#include "export/export.h"
#include "io/json.h"

/* ---- handles ---- */

dq_context *dq_context_of_model(const dq_model *model) { return dq_context_of(dq_device_env(dq_model_device(model))); }

static dq_model_card **card_slot(const dq_model *model)
{
    dq_model_card **slot = &dq_context_of_model(model)->cards;
    while (*slot && (*slot)->model != model) slot = &(*slot)->next;
    return slot;
}

dq_model_card *dq_model_card_of(const dq_model *model)
{
    dq_model_card *card = *card_slot(model);
    if (!card) dq_fail(DQ_E_INVALID, "this model was not handed out by the library, or it was freed");
    return card;
}

dq_status dq_model_publish(dq_model *model, const char *provenance, dq_model **out)
{
    dq_context *ctx = dq_context_of_model(model);
    dq_model_card **slot = card_slot(model);
    if (!*slot) {
        dq_model_card *card = dq_calloc(&ctx->env, 1, sizeof *card);
        if (card && provenance) card->provenance = dq_strdup(&ctx->env, provenance);
        if (!card || (provenance && !card->provenance)) {
            dq_free(card);
            dq_model_release(model);
            return DQ_E_NOMEM;
        }
        card->model = model;
        *slot = card;
    }
    (*slot)->handles++;
    dq_context_retain(ctx);
    *out = model;
    return DQ_OK;
}

static void destroy(void *object)
{
    dq_model *model = object;
    dq_context *ctx = dq_context_of_model(model);
    dq_model_card **slot = card_slot(model), *card = *slot;
    if (card && --card->handles == 0) {
        *slot = card->next;
        json_decref(card->facts);
        dq_free(card->text);
        dq_free(card->provenance);
        dq_free(card);
    }
    dq_model_release(model);
    dq_context_release(ctx);
}

void dq_model_free(dq_model *model)
{
    if (model) dq_context_discard(dq_context_of_model(model), destroy, model);
}

dq_status dq_model_open(dq_context *ctx, const char *path, dq_model **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && path && out);
    dq_model *model = NULL;
    DQ_TRY(dq_model_open_path(ctx->dev, path, &model));
    return dq_model_publish(model, NULL, out);
}

/* ---- what is known about a model ---- */

static dq_status facts_of(dq_model *model, dq_model_card **out)
{
    dq_model_card *card = dq_model_card_of(model);
    if (!card) return DQ_E_INVALID;
    if (!card->facts) {
        char *text = NULL;
        json_t *facts = NULL;
        DQ_TRY(dq_model_describe_json(model, &text));
        dq_status status = dq_json_parse(text, strlen(text), NULL, &facts);
        if (status != DQ_OK) {
            dq_free(text);
            return status;
        }
        card->text = text;
        card->facts = facts;
    }
    *out = card;
    return DQ_OK;
}

dq_status dq_model_describe(dq_model *model, const char **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    dq_model_card *card;
    DQ_TRY(facts_of(model, &card));
    *out = card->text;
    return DQ_OK;
}

dq_status dq_model_get_int(dq_model *model, const char *key, int64_t *out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && key && out);
    dq_model_card *card;
    DQ_TRY(facts_of(model, &card));
    return dq_facts_int(card->facts, key, "the model", out);
}

dq_status dq_model_get_float(dq_model *model, const char *key, double *out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && key && out);
    dq_model_card *card;
    DQ_TRY(facts_of(model, &card));
    return dq_facts_float(card->facts, key, "the model", out);
}

int64_t dq_model_vocab_size(const dq_model *model) { return model ? dq_model_arch(model)->vocab : 0; }
int64_t dq_model_tensor_count(const dq_model *model) { return model ? dq_model_root_source(model)->count : 0; }

dq_status dq_model_tensor_info(const dq_model *model, int64_t index, dq_tensor_desc *out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    return dq_describe_tensor(dq_model_root_source(model), index, out);
}

/* ---- derived models ---- */

dq_status dq_model_fuse_norms(dq_model *model, const dq_config *config, dq_model **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    dq_model *fused = NULL;
    DQ_TRY(dq_model_derive_fused(model, config && dq_config_int(config, "center_embedding"), &fused));
    return dq_model_publish(fused, NULL, out);
}

dq_status dq_model_rotate(dq_model *model, const dq_rotation *rotation, dq_model **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && rotation && out);
    if (rotation->ctx != dq_context_of_model(model))
        return dq_fail(DQ_E_INVALID, "the rotation belongs to another context than the model");
    dq_model *rotated = NULL;
    DQ_TRY(dq_model_derive_rotated(model, rotation->set, &rotated));
    return dq_model_publish(rotated, NULL, out);
}

/* ---- codes ---- */

static dq_status role_of(const dq_model *model, int64_t layer, const char *linear, dq_role *out)
{
    int64_t layers = dq_model_arch(model)->layers;
    if (layer < 0 || layer >= layers)
        return dq_fail(DQ_E_NOTFOUND, "layer %lld of a model with %lld", (long long)layer, (long long)layers);
    const dq_arch *a = dq_model_arch(model);
    char known[128] = "";
    for (int n = 0; n < dq_arch_linears(a); n++) {
        dq_role role = dq_arch_linear(a, n);
        const char *name = dq_arch_role_name(a, role);
        if (strcmp(name, linear) == 0) {
            *out = role;
            return DQ_OK;
        }
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s",
                 n == 0                       ? ""
                 : n + 1 < dq_arch_linears(a) ? ", "
                                              : " and ",
                 name);
    }
    return dq_fail(DQ_E_NOTFOUND, "no linear is called \"%.64s\": there are %s", linear, known);
}

dq_status dq_model_codes_shape(dq_model *model, int64_t layer, const char *linear, int64_t *rows, int64_t *cols,
                               int64_t *groups, int32_t *bits)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && linear);
    dq_role role = DQ_Q_PROJ;
    dq_codes codes;
    DQ_TRY(role_of(model, layer, linear, &role));
    DQ_TRY(dq_model_codes_layout(model, layer, role, &codes));
    if (rows) *rows = codes.out;
    if (cols) *cols = codes.in;
    if (groups) *groups = codes.groups;
    if (bits) *bits = codes.bits;
    return DQ_OK;
}

dq_status dq_model_copy_codes(dq_model *model, int64_t layer, const char *linear, uint8_t *codes, float *scale,
                              float *zero, int32_t *g_idx)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && linear && codes && scale && zero && g_idx);
    dq_role role = DQ_Q_PROJ;
    dq_codes found;
    DQ_TRY(role_of(model, layer, linear, &role));
    DQ_TRY(dq_model_read_codes(model, layer, role, &found));
    dq_status status = dq_copy_codes(&dq_context_of_model(model)->env, &found, codes, scale, zero, g_idx);
    dq_codes_free(&found);
    return status;
}

dq_status dq_model_weight_error(dq_model *model, dq_model *reference, int64_t layer, const char *linear, double *error,
                                int32_t *rescaled)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && reference && linear && error && rescaled);
    dq_role role = DQ_Q_PROJ;
    bool undone = false;
    double value = 0;
    DQ_TRY(role_of(model, layer, linear, &role));
    DQ_TRY(dq_model_compare_linear(model, reference, layer, role, &value, &undone));
    *error = value;
    *rescaled = undone;
    return DQ_OK;
}

/* ---- output ---- */

static dq_status part_size_of(const dq_config *config, uint64_t *out)
{
    dq_config *own;
    DQ_TRY(dq_config_or_defaults(&config, &own));
    *out = (uint64_t)dq_config_int(config, "part_size");
    dq_config_free(own);
    return DQ_OK;
}

dq_status dq_model_save(dq_model *model, const char *dir, const dq_config *config, const dq_cancel *cancel,
                        dq_progress_fn progress, void *user)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && dir);
    dq_model_card *card = dq_model_card_of(model);
    if (!card) return DQ_E_INVALID;
    uint64_t part_size;
    DQ_TRY(part_size_of(config, &part_size));
    dq_progress p = dq_progress_make(cancel, progress, user);
    dq_saver *saver = NULL;
    DQ_TRY(dq_saver_check_dir(model, dir));
    DQ_TRY(dq_saver_open(&dq_context_of_model(model)->env, dir, part_size, &saver));
    dq_status status = dq_saver_finish(saver, model, NULL, card->provenance, &p);
    dq_saver_free(saver);
    return status;
}

dq_status dq_model_export(dq_model *model, const char *format, const char *dir, const dq_config *config,
                          const dq_cancel *cancel, dq_progress_fn progress, void *user)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && format && dir);
    dq_export_spec spec;
    if (!dq_model_card_of(model)) return DQ_E_INVALID;
    DQ_TRY(dq_export_parse(format, &spec));
    DQ_TRY(part_size_of(config, &spec.part_size));
    dq_progress p = dq_progress_make(cancel, progress, user);
    return dq_export_model(model, &spec, dir, &p);
}

dq_status dq_model_logits(dq_model *model, const int32_t *ids, int64_t count, const dq_config *config, float *out,
                          size_t capacity)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && ids && out);
    size_t needed;
    if (count < 1) return dq_fail(DQ_E_INVALID, "logits of %lld tokens", (long long)count);
    if (!dq_mul_ok((size_t)count, (size_t)dq_model_vocab_size(model), &needed) || needed > capacity)
        return dq_fail(DQ_E_INVALID, "room for %zu floats, %lld x %lld needed", capacity, (long long)count,
                       (long long)dq_model_vocab_size(model));
    return dq_model_forward_logits(model, ids, count, dq_config_products(config), out);
}
