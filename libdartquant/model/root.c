/* Weights of a root model: finding them in the source.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "formats/packed_source.h"
#include "model/internal.h"

static int64_t slot(const dq_model *root, int64_t layer, dq_role role)
{
    if (dq_role_is_in_layer(role)) return layer * DQ_LAYER_ROLES + role;
    return root->arch.layers * DQ_LAYER_ROLES + (role - DQ_EMBED);
}

int64_t dq_root_weight(const dq_model *root, int64_t layer, dq_role role)
{
    if (role == DQ_HEAD && root->arch.tied) role = DQ_EMBED;
    return root->weights[slot(root, layer, role)];
}

int64_t dq_root_bias(const dq_model *root, int64_t layer, dq_role role)
{
    return root->biases[slot(root, layer, role)];
}

static const char HF_PREFIX[] = "model.";
enum { HF_PREFIX_SIZE = sizeof HF_PREFIX - 1 };

static void stored_name(const dq_model *root, dq_role role, int64_t layer, const char *suffix, char *buf, size_t size)
{
    const char *pattern = root->gguf_names ? root->arch.family->gguf_names[role] : root->arch.family->hf_names[role];
    if (root->bare_names && strncmp(pattern, HF_PREFIX, HF_PREFIX_SIZE) == 0) pattern += HF_PREFIX_SIZE;
    const char *mark = strstr(pattern, "%d");
    if (mark)
        snprintf(buf, size, "%.*s%lld%s%s", (int)(mark - pattern), pattern, (long long)layer, mark + 2, suffix);
    else
        snprintf(buf, size, "%s%s", pattern, suffix);
}

static dq_status bind_tensor(const dq_model *root, const char *name, int64_t rows, int64_t cols, int64_t *out)
{
    int64_t t;
    DQ_TRY(dq_source_need(root->source, name, &t));
    const dq_tensor_info *info = &root->source->tensors[t];
    if (dq_info_rows(info) != rows || dq_info_cols(info) != cols) {
        dq_status status =
            dq_fail(DQ_E_MISMATCH, "the file has %lld x %lld elements, the model needs %lld x %lld",
                    (long long)dq_info_rows(info), (long long)dq_info_cols(info), (long long)rows, (long long)cols);
        return dq_error_in_tensor(dq_error_in_file(status, info->file), name);
    }
    *out = t;
    return DQ_OK;
}

/* Codes of another tool's checkpoint: their sizes are known without reading them. */
static dq_status check_codes(const dq_model *root, const char *name, int64_t rows, int64_t cols)
{
    const dq_packed *p = dq_packed_source_find(root->source, name);
    if (!p || (p->out == rows && p->in == cols)) return DQ_OK;
    return dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "codes of %lld x %lld, the model needs %lld x %lld",
                                      (long long)p->out, (long long)p->in, (long long)rows, (long long)cols),
                              name);
}

/* A bias of zeros is what old programs write for any linear; another one would be lost without a word. */
static dq_status check_no_bias(const dq_model *root, const char *name, int64_t rows)
{
    int64_t t = dq_source_find(root->source, name);
    if (t < 0) return DQ_OK;
    const dq_tensor_info *info = &root->source->tensors[t];
    if (dq_info_rows(info) != 1 || dq_info_cols(info) != rows) return DQ_OK;
    float *values = dq_alloc(root->env, (size_t)rows * sizeof *values);
    if (!values) return DQ_E_NOMEM;
    dq_status status = dq_source_read_rows(root->source, t, 0, 1, values);
    for (int64_t i = 0; status == DQ_OK && i < rows; i++)
        if (values[i] != 0.0f)
            status = dq_fail(DQ_E_MISMATCH, "a bias that is not zero, of a linear that has none by the configuration");
    dq_free(values);
    return dq_error_in_tensor(dq_error_in_file(status, info->file), name);
}

static dq_status bind_role(dq_model *root, int64_t layer, dq_role role)
{
    char name[DQ_TENSOR_NAME];
    int64_t rows, cols;
    dq_arch_shape(&root->arch, role, &rows, &cols);
    if (role <= DQ_DOWN_PROJ && dq_model_has_codes(root, layer, role)) {
        dq_arch_module_name(&root->arch, role, layer, name, sizeof name);
        DQ_TRY(check_codes(root, name, rows, cols));
        root->weights[slot(root, layer, role)] = -1;
    } else {
        stored_name(root, role, layer, ".weight", name, sizeof name);
        DQ_TRY(bind_tensor(root, name, rows, cols, &root->weights[slot(root, layer, role)]));
    }
    if (role > DQ_DOWN_PROJ && !dq_arch_has_bias(&root->arch, role)) return DQ_OK;
    stored_name(root, role, layer, ".bias", name, sizeof name);
    if (!dq_arch_has_bias(&root->arch, role)) return check_no_bias(root, name, rows);
    return bind_tensor(root, name, 1, dq_arch_bias_size(&root->arch, role), &root->biases[slot(root, layer, role)]);
}

/* Some checkpoints hold the base model alone: "decoder.layers.0..." (OPT). */
static void find_prefix(dq_model *root)
{
    char name[DQ_TENSOR_NAME];
    if (root->gguf_names) return;
    stored_name(root, DQ_EMBED, 0, ".weight", name, sizeof name);
    root->bare_names = strncmp(name, HF_PREFIX, HF_PREFIX_SIZE) == 0 && dq_source_find(root->source, name) < 0 &&
                       dq_source_find(root->source, name + HF_PREFIX_SIZE) >= 0;
}

dq_status dq_root_bind(dq_model *root)
{
    size_t slots = (size_t)root->arch.layers * DQ_LAYER_ROLES + DQ_ROLES - DQ_EMBED;
    root->weights = dq_calloc(root->env, slots, sizeof *root->weights);
    root->biases = dq_calloc(root->env, slots, sizeof *root->biases);
    if (!root->weights || !root->biases) return DQ_E_NOMEM;
    for (size_t i = 0; i < slots; i++) root->biases[i] = -1;
    find_prefix(root);
    DQ_TRY(bind_role(root, 0, DQ_EMBED));
    if (dq_arch_learns_positions(&root->arch)) DQ_TRY(bind_role(root, 0, DQ_POSITIONS));
    DQ_TRY(bind_role(root, 0, DQ_FINAL_NORM));
    if (!root->arch.tied) DQ_TRY(bind_role(root, 0, DQ_HEAD));
    for (int64_t layer = 0; layer < root->arch.layers; layer++)
        for (int role = 0; role < DQ_LAYER_ROLES; role++)
            if (dq_arch_has(&root->arch, (dq_role)role)) DQ_TRY(bind_role(root, layer, (dq_role)role));
    return DQ_OK;
}

/* GGUF keeps the rows of a q or k head interleaved (i and i + d/2 next to each other), the HF layout has halves. */
int64_t dq_root_stored_row(int64_t r, int64_t head_dim)
{
    int64_t half = head_dim / 2, i = r % head_dim;
    return r - i + (i < half ? 2 * i : 2 * (i - half) + 1);
}

bool dq_root_is_permuted(const dq_model *root, dq_role role)
{
    return root->gguf_names && root->arch.family->gguf_permuted_qk && (role == DQ_Q_PROJ || role == DQ_K_PROJ);
}
