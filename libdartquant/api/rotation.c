/* dartquant/rotation.h. SPDX-License-Identifier: Apache-2.0 */
#include "rotation/rotation.h"

#include <string.h>

#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "api/rotation.h"
#include "dartquant/rotation.h"
#include "io/json.h"

static json_t *describe_hadamard(const dq_hadamard *h)
{
    if (h->n == 0) return json_null();
    return json_pack("{s:I, s:I, s:I}", "order", (json_int_t)h->n, "blocks", (json_int_t)h->blocks, "table",
                     (json_int_t)h->k);
}

static json_t *describe_sizes(const dq_rotation_set *set)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "hidden", (json_int_t)set->hidden, "layers", (json_int_t)set->layers,
                     "kv_heads", (json_int_t)set->kv_heads, "head_dim", (json_int_t)set->head_dim);
}

dq_status dq_rotation_refresh(dq_rotation *rotation)
{
    static const char *const modes[] = {"none", "offline", "online"};
    const dq_rotation_set *set = rotation->set;
    json_t *facts =
        json_pack("{s:s, s:o, s:s, s:o, s:o, s:o, s:b, s:o}", "origin", set->origin ? set->origin : "", "r1",
                  set->r1 ? json_integer((json_int_t)set->hidden) : json_null(), "r2", modes[set->r2_mode], "r2_heads",
                  describe_hadamard(&set->r2_heads), "r3", describe_hadamard(&set->r3), "r4",
                  describe_hadamard(&set->r4), "learnt", set->manifest != NULL, "sizes", describe_sizes(set));
    char *text = NULL;
    dq_status status = dq_json_dump(set->env, facts, false, &text);
    json_decref(facts);
    DQ_TRY(status);
    dq_free(rotation->text);
    rotation->text = text;
    return DQ_OK;
}

static void destroy(void *object)
{
    dq_rotation *rotation = object;
    dq_context *ctx = rotation->ctx;
    dq_rotation_set_free(rotation->set);
    dq_free(rotation->text);
    dq_free(rotation);
    dq_context_release(ctx);
}

dq_status dq_rotation_make(dq_model *model, const dq_config *config, dq_rotation **out)
{
    dq_context *ctx = dq_context_of_model(model);
    const char *r1_path = dq_config_text(config, "r1_path"), *r2_path = dq_config_text(config, "r2_path");
    dq_rotation_options o = {
        .use_r1 = dq_config_int(config, "use_r1"),
        .use_r3 = dq_config_int(config, "use_r3"),
        .use_r4 = dq_config_int(config, "use_r4"),
        .use_r2 = (dq_r2_mode)dq_config_int(config, "use_r2"),
        .mode = (dq_rotate_mode)dq_config_int(config, "rotate_mode"),
        .seed = (uint64_t)dq_config_int(config, "seed"),
        .r1_path = r1_path[0] ? r1_path : NULL,
        .r2_path = r2_path[0] ? r2_path : NULL,
    };
    dq_status status;
    dq_rotation *rotation = dq_calloc(&ctx->env, 1, sizeof *rotation);
    if (!rotation) return DQ_E_NOMEM;
    DQ_GO(dq_rotation_set_make(ctx->dev, dq_model_arch(model), &o, &rotation->set));
    DQ_GO(dq_rotation_refresh(rotation));
    rotation->ctx = dq_context_retain(ctx);
    *out = rotation;
    return DQ_OK;
done:
    destroy(rotation);
    return status;
}

dq_status dq_rotation_new(dq_model *model, const dq_config *config, dq_rotation **out)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && out);
    dq_config *own;
    DQ_TRY(dq_config_or_defaults(&config, &own));
    dq_status status = dq_rotation_make(model, config, out);
    dq_config_free(own);
    return status;
}

void dq_rotation_free(dq_rotation *rotation)
{
    if (rotation) dq_context_discard(rotation->ctx, destroy, rotation);
}

dq_status dq_rotation_save(const dq_rotation *rotation, const char *path)
{
    DQ_ENTER_CONTEXT(rotation->ctx, rotation && path);
    return dq_rotation_set_save(rotation->set, path);
}

dq_status dq_rotation_describe(const dq_rotation *rotation, const char **out)
{
    DQ_ENTER_CONTEXT(rotation->ctx, rotation && out);
    *out = rotation->text;
    return DQ_OK;
}

dq_status dq_rotation_copy(const dq_rotation *rotation, int64_t layer, double *out, size_t capacity)
{
    DQ_ENTER_CONTEXT(rotation->ctx, rotation && out);
    const dq_rotation_set *set = rotation->set;
    int64_t count = set->hidden * set->hidden;
    if (layer < -1 || layer >= set->layers)
        return dq_fail(DQ_E_INVALID, "there is no layer %lld, the model has %lld", (long long)layer,
                       (long long)set->layers);
    const double *from = set->r1;
    if (layer >= 0) {
        count = set->kv_heads * set->head_dim * set->head_dim;
        from = set->r2 ? set->r2 + layer * count : NULL;
    }
    if (!from) return dq_fail(DQ_E_NOTFOUND, "the set has no %s", layer < 0 ? "R1" : "R2 that is folded in");
    if (capacity < (size_t)count)
        return dq_fail(DQ_E_INVALID, "room for %zu numbers, %lld needed", capacity, (long long)count);
    memcpy(out, from, (size_t)count * sizeof *out);
    return DQ_OK;
}

dq_status dq_rotation_error(const dq_rotation *rotation, double *out)
{
    DQ_ENTER_CONTEXT(rotation->ctx, rotation && out);
    return dq_rotation_set_error(rotation->ctx->dev, rotation->set, out);
}
