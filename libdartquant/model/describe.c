/* What a model is, in JSON and in numbers. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "model/manifest.h"

static int64_t parameters(const dq_arch *a)
{
    int64_t rows, cols, total = 0;
    for (int role = 0; role < DQ_ROLES; role++) {
        if ((role == DQ_HEAD && a->tied) || !dq_arch_has(a, (dq_role)role)) continue;
        dq_arch_shape(a, (dq_role)role, &rows, &cols);
        int64_t n = rows * cols + (dq_arch_has_bias(a, (dq_role)role) ? dq_arch_bias_size(a, (dq_role)role) : 0);
        total += dq_role_is_in_layer((dq_role)role) ? n * a->layers : n;
    }
    return total;
}

/* The type most of the bytes have; for saved quantized models the codes are "U8". */
static const char *main_type(const dq_source *s)
{
    const char *best = "";
    uint64_t most = 0;
    for (int64_t i = 0; i < s->count; i++) {
        uint64_t bytes = 0;
        for (int64_t k = 0; k < s->count && strcmp(best, s->tensors[i].type_name) != 0; k++)
            if (strcmp(s->tensors[k].type_name, s->tensors[i].type_name) == 0) bytes += s->tensors[k].bytes;
        if (bytes > most) {
            most = bytes;
            best = s->tensors[i].type_name;
        }
    }
    return best;
}

static uint64_t stored_bytes(const dq_model *root, int64_t layer, dq_role role)
{
    int64_t t = dq_root_weight(root, layer, role);
    return t < 0 ? 0 : root->source->tensors[t].bytes;
}

static uint64_t linear_bytes(const dq_model *m, int64_t layer, dq_role role)
{
    char name[DQ_TENSOR_NAME];
    dq_arch_module_name(&m->arch, role, layer, name, sizeof name);
    const dq_source *store = dq_model_codes_source(m);
    uint64_t bytes = store ? dq_codes_bytes(store, name) : 0;
    return bytes ? bytes : stored_bytes(dq_model_root(m), layer, role);
}

double dq_model_bits_per_weight(dq_model *model)
{
    const dq_arch *a = &model->arch;
    double bits = 0.0, weights = 0.0;
    for (int64_t layer = 0; layer < a->layers; layer++) {
        for (int role = 0; role < DQ_LINEARS; role++) {
            int64_t rows, cols;
            if (!dq_arch_has(a, (dq_role)role)) continue;
            dq_arch_shape(a, (dq_role)role, &rows, &cols);
            bits += 8.0 * (double)linear_bytes(model, layer, (dq_role)role);
            weights += (double)rows * (double)cols;
        }
    }
    return bits / weights;
}

uint64_t dq_model_bytes(dq_model *model)
{
    const dq_model *root = dq_model_root(model);
    uint64_t bytes = 0;
    for (int64_t i = 0; i < root->source->count; i++) bytes += root->source->tensors[i].bytes;
    if (root == model) return bytes;
    for (int64_t layer = 0; layer < model->arch.layers; layer++)
        for (int role = 0; role < DQ_LINEARS; role++)
            if (dq_arch_has(&model->arch, (dq_role)role))
                bytes += linear_bytes(model, layer, (dq_role)role) - linear_bytes(root, layer, (dq_role)role);
    /* An untied head is one more tensor, counted like the embedding it came from. */
    uint64_t table = stored_bytes(root, 0, DQ_EMBED), tables = model->arch.tied ? 1 : 2;
    if (root->arch.tied && !model->arch.tied) bytes += table;
    dq_dtype dtype = dq_model_vocab_dtype(model);
    if (dtype == DQ_F32) return bytes;
    if (!root->arch.tied) table += stored_bytes(root, 0, DQ_HEAD);
    bytes -= root->arch.tied ? tables * table : table;
    return bytes + tables * (uint64_t)(model->arch.vocab * model->arch.hidden) * dq_dtype_size(dtype);
}

/* The linears of a block: {"name", "rows", "cols", "tensor"}, the last as the file calls it, with %d for the layer. */
static json_t *linears_json(const dq_model *model)
{
    const dq_arch *a = &model->arch;
    const dq_model *root = dq_model_root(model);
    json_t *list = json_array();
    for (int n = 0; list && n < dq_arch_linears(a); n++) {
        int64_t rows, cols;
        dq_role role = dq_arch_linear(a, n);
        dq_arch_shape(a, role, &rows, &cols);
        const char *pattern = root->gguf_names ? a->family->gguf_names[role] : a->family->hf_names[role];
        json_t *one = json_pack("{s:s, s:I, s:I, s:s+}", "name", dq_arch_role_name(a, role), "rows", (json_int_t)rows,
                                "cols", (json_int_t)cols, "tensor", pattern + (root->bare_names ? 6 : 0), ".weight");
        if (json_array_append_new(list, one) == 0) continue;
        json_decref(list);
        return NULL;
    }
    return list;
}

dq_status dq_model_describe_json(dq_model *model, char **out)
{
    const char *fingerprint;
    DQ_TRY(dq_model_fingerprint(model, &fingerprint));
    json_t *o = dq_arch_to_json(&model->arch);
    json_t *quantization = model->scheme ? dq_scheme_to_json(model->scheme) : json_null();
    json_t *rotations = model->rotations ? dq_rotations_to_json(model->rotations, model->has_r1) : json_null();
    const char *format = dq_model_root(model)->source->format;
    dq_status status;
    int bad = !o || json_object_set_new(o, "dtype", json_string(main_type(dq_model_root(model)->source)));
    bad |= !o || json_object_set_new(o, "parameters", json_integer(parameters(&model->arch)));
    bad |= !o || json_object_set_new(o, "bytes", json_integer((json_int_t)dq_model_bytes(model)));
    bad |= !o || json_object_set_new(o, "bits_per_weight", json_real(dq_model_bits_per_weight(model)));
    bad |= !o || json_object_set_new(o, "format", json_string(format ? format : ""));
    bad |= !o || json_object_set_new(o, "linears", linears_json(model));
    bad |= !o || json_object_set_new(o, "fused", json_boolean(model->fused));
    bad |= !o || json_object_set_new(o, "fingerprint", json_string(fingerprint));
    bad |= !o || json_object_set(o, "quantization", quantization);
    bad |= !o || json_object_set(o, "rotations", rotations);
    status =
        bad ? dq_fail(DQ_E_NOMEM, "out of memory while describing the model") : dq_json_dump(model->env, o, true, out);
    json_decref(quantization);
    json_decref(rotations);
    json_decref(o);
    return status;
}
