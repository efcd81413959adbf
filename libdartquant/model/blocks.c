/* Weights that a file keeps as blocks of codes (GGUF), read as codes. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "model/internal.h"

enum { TASK_ELEMENTS = 1 << 15 };

/* The root, when nothing between it and the model changes that weight; else NULL. */
static const dq_model *plain_root(const dq_model *m, dq_role role)
{
    if (role == DQ_EMBED || role == DQ_HEAD) {
        if (dq_model_vocab_dtype(m) != DQ_F32) return NULL; /* they are rounded */
    }
    for (; m->base; m = m->base)
        if (m->kind != DQ_MODEL_QUANTIZED) return NULL;
    return m;
}

typedef struct split_job {
    dq_source *source;
    const dq_block_form *form;
    int64_t tensor, first, head_dim; /* head_dim > 0: rows of q or k in the file's order */
    dq_host_codes *out;
    float *minimum;
    uint8_t *raw; /* [rows][row_bytes] */
    uint64_t row_bytes;
    int64_t rows_per_task;
    atomic_bool odd; /* a scale or minimum is not finite */
} split_job;

static void split_row(split_job *j, int64_t r)
{
    const dq_host_codes *c = j->out;
    int64_t from = j->head_dim > 0 ? dq_root_stored_row(r, j->head_dim) : r;
    const uint8_t *src = j->raw + (uint64_t)from * j->row_bytes;
    float *scale = c->scale + r * c->groups, *minimum = j->minimum ? j->minimum + r * c->groups : NULL;
    int64_t each = j->form->elements / j->form->group;
    for (int64_t b = 0; b < c->in / j->form->elements; b++)
        j->form->split(src + b * j->form->bytes, c->codes + r * c->in + b * j->form->elements, scale + b * each,
                       minimum ? minimum + b * each : NULL);
    for (int64_t g = 0; g < c->groups; g++)
        if (!isfinite(scale[g]) || (minimum && !isfinite(minimum[g]))) atomic_store(&j->odd, true);
}

static void split_task(void *arg, int64_t i, int thread)
{
    split_job *j = arg;
    (void)thread;
    int64_t end = (i + 1) * j->rows_per_task < j->out->out ? (i + 1) * j->rows_per_task : j->out->out;
    for (int64_t r = i * j->rows_per_task; r < end; r++) split_row(j, r);
}

static dq_status split(dq_env *env, split_job *j)
{
    dq_host_codes *c = j->out;
    c->bits = j->form->bits;
    c->group = j->form->group;
    DQ_TRY(dq_host_codes_alloc(env, c));
    c->symmetric = !j->form->minimum;
    if (j->form->minimum && !(j->minimum = dq_alloc(env, (size_t)(c->out * c->groups) * sizeof(float))))
        return DQ_E_NOMEM;
    j->row_bytes = (uint64_t)(c->in / j->form->elements * j->form->bytes);
    j->raw = dq_alloc(env, (size_t)c->out * (size_t)j->row_bytes);
    if (!j->raw) return DQ_E_NOMEM;
    DQ_TRY(dq_source_read_raw(j->source, j->tensor, (uint64_t)j->first * j->row_bytes, (uint64_t)c->out * j->row_bytes,
                              j->raw));
    j->rows_per_task = c->in < TASK_ELEMENTS ? TASK_ELEMENTS / c->in : 1;
    dq_run(env, (c->out + j->rows_per_task - 1) / j->rows_per_task, split_task, j);
    return DQ_OK;
}

dq_status dq_model_read_blocks(dq_model *model, int64_t layer, dq_role role, int64_t first, int64_t count,
                               dq_host_codes *out, float **minimum, bool *found)
{
    const dq_model *root = dq_model_has_codes(model, layer, role) ? NULL : plain_root(model, role);
    dq_host_codes codes = {.out = count};
    int64_t tensor = root ? dq_root_weight(root, layer, role) : -1, rows;
    *found = false;
    if (tensor < 0) return DQ_OK;
    const dq_tensor_info *info = &root->source->tensors[tensor];
    split_job j = {.source = root->source, .tensor = tensor, .first = first, .out = &codes};
    j.form = info->dtype == DQ_BLOCK ? dq_gguf_block_form(info->type_name) : NULL;
    dq_arch_shape(&root->arch, role, &rows, &codes.in);
    if (!j.form || first < 0 || count < 1 || count > rows - first) return DQ_OK;
    if (dq_root_is_permuted(root, role)) j.head_dim = root->arch.head_dim;
    dq_status status = split(model->env, &j);
    dq_source_release(root->source, tensor);
    dq_free(j.raw);
    *found = status == DQ_OK && !atomic_load(&j.odd); /* else reading it as floats names the bad element */
    if (*found) {
        *out = codes;
        *minimum = j.minimum;
        return DQ_OK;
    }
    dq_host_codes_free(&codes);
    dq_free(j.minimum);
    return status;
}
