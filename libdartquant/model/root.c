/* Weights of a root model: finding them in the source and reading them onto the device.
 * SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "formats/packed_source.h"
#include "model/internal.h"

enum { STAGING_ELEMENTS = 1 << 20, TASK_ELEMENTS = 1 << 15 };

static int64_t slot(const dq_model *root, int64_t layer, dq_role role)
{
    if (role <= DQ_MLP_NORM) return layer * DQ_LAYER_ROLES + role;
    return root->arch.layers * DQ_LAYER_ROLES + (role - DQ_EMBED);
}

int64_t dq_root_weight(const dq_model *root, int64_t layer, dq_role role)
{
    if (role == DQ_HEAD && root->arch.tied) role = DQ_EMBED;
    return root->weights[slot(root, layer, role)];
}

int64_t dq_root_bias(const dq_model *root, int64_t layer, dq_role role)
{
    return root->biases[layer * DQ_LINEARS + role];
}

static void stored_name(const dq_model *root, dq_role role, int64_t layer, const char *suffix, char *buf, size_t size)
{
    const char *pattern = root->gguf_names ? root->arch.family->gguf_names[role] : root->arch.family->hf_names[role];
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
    if (!dq_arch_has_bias(&root->arch, role)) return DQ_OK;
    stored_name(root, role, layer, ".bias", name, sizeof name);
    return bind_tensor(root, name, 1, rows, &root->biases[layer * DQ_LINEARS + role]);
}

dq_status dq_root_bind(dq_model *root)
{
    size_t layers = (size_t)root->arch.layers;
    root->weights = dq_calloc(root->env, layers * DQ_LAYER_ROLES + 3, sizeof *root->weights);
    root->biases = dq_calloc(root->env, layers * DQ_LINEARS, sizeof *root->biases);
    if (!root->weights || !root->biases) return DQ_E_NOMEM;
    for (size_t i = 0; i < layers * DQ_LINEARS; i++) root->biases[i] = -1;
    DQ_TRY(bind_role(root, 0, DQ_EMBED));
    DQ_TRY(bind_role(root, 0, DQ_FINAL_NORM));
    if (!root->arch.tied) DQ_TRY(bind_role(root, 0, DQ_HEAD));
    for (int64_t layer = 0; layer < root->arch.layers; layer++)
        for (int role = 0; role < DQ_LAYER_ROLES; role++) DQ_TRY(bind_role(root, layer, (dq_role)role));
    return DQ_OK;
}

/* Decoding rows in parallel: tasks of equal size, so that the cut depends on the shape alone. */
typedef struct decode_job {
    dq_source *source;
    int64_t tensor, first, rows, cols, rows_per_task;
    float *out;
    atomic_bool failed;
    atomic_llong bad; /* lowest index of an element that is not finite; LLONG_MAX = none */
} decode_job;

/* Looked for here, on the host and while the rows are in cache, so that a device with memory of its own need not wait for
 * every upload. */
static void note_nonfinite(decode_job *job, int64_t first, int64_t count)
{
    for (int64_t i = first; i < first + count; i++) {
        if (isfinite(job->out[i])) continue;
        long long known = atomic_load(&job->bad);
        while (i < known && !atomic_compare_exchange_weak(&job->bad, &known, i)) {
        }
        return;
    }
}

static void decode_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    decode_job *job = arg;
    int64_t r = i * job->rows_per_task;
    int64_t n = job->rows - r < job->rows_per_task ? job->rows - r : job->rows_per_task;
    if (dq_source_read_rows(job->source, job->tensor, job->first + r, n, job->out + r * job->cols) != DQ_OK)
        atomic_store(&job->failed, true);
    else
        note_nonfinite(job, r * job->cols, n * job->cols);
}

/* *bad = index of the first element that is not finite, or -1. */
static dq_status decode_rows(const dq_model *root, int64_t tensor, int64_t first, int64_t rows, int64_t cols,
                             float *out, int64_t *bad)
{
    int64_t per_task = cols < TASK_ELEMENTS ? TASK_ELEMENTS / cols : 1;
    decode_job job = {root->source, tensor, first, rows, cols, per_task, out, false, LLONG_MAX};
    if (root->source->one_thread) {
        DQ_TRY(dq_source_read_rows(root->source, tensor, first, rows, out));
        note_nonfinite(&job, 0, rows * cols);
    } else {
        dq_run(root->env, (rows + per_task - 1) / per_task, decode_task, &job);
    }
    *bad = atomic_load(&job.bad) == LLONG_MAX ? -1 : atomic_load(&job.bad);
    if (!atomic_load(&job.failed)) return DQ_OK;
    /* The error record belongs to the thread that failed: read again on this one. */
    dq_status status = dq_source_read_rows(root->source, tensor, first, rows, out);
    return status != DQ_OK ? status : dq_fail(DQ_E_INTERNAL, "a row could be decoded on the second attempt only");
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

static void unpermute(const float *in, int64_t rows, int64_t cols, int64_t head_dim, float *out)
{
    for (int64_t r = 0; r < rows; r++)
        memcpy(out + r * cols, in + dq_root_stored_row(r, head_dim) * cols, (size_t)cols * sizeof *out);
}

/* `at`: element of rows [first, ...) as they are stored; -1 = all are finite. */
static dq_status check_finite(const dq_model *root, int64_t tensor, int64_t first, int64_t cols, int64_t at)
{
    if (at < 0) return DQ_OK;
    const dq_tensor_info *info = &root->source->tensors[tensor];
    int64_t row = first + at / cols, col = at % cols;
    dq_status status =
        dq_fail(DQ_E_NONFINITE, "the element in row %lld, column %lld is not finite", (long long)row, (long long)col);
    /* of block types, the byte where the row begins */
    uint64_t byte = info->offset + info->bytes / (uint64_t)dq_info_rows(info) * (uint64_t)row +
                    dq_dtype_size(info->dtype) * (uint64_t)col;
    return dq_error_at_byte(dq_error_in_tensor(dq_error_in_file(status, info->file), info->name), byte);
}

typedef struct staging {
    float *decoded, *ordered; /* `ordered` only where rows are permuted */
    dq_tensor device;         /* F32 chunk on its way to F64 */
    int64_t rows;
} staging;

static void free_staging(staging *s)
{
    dq_free(s->decoded);
    dq_free(s->ordered);
    dq_tensor_free(&s->device);
}

static dq_status alloc_staging(const dq_model *root, bool permuted, const dq_tensor *out, staging *s)
{
    int64_t cols = out->view.cols, unit = permuted ? root->arch.head_dim : 1;
    int64_t rows = cols * unit < STAGING_ELEMENTS ? STAGING_ELEMENTS / (cols * unit) * unit : unit;
    if (rows > out->view.rows) rows = out->view.rows;
    s->rows = rows;
    s->decoded = dq_alloc(root->env, (size_t)(rows * cols) * sizeof(float));
    if (!s->decoded) return DQ_E_NOMEM;
    if (permuted && !(s->ordered = dq_alloc(root->env, (size_t)(rows * cols) * sizeof(float)))) return DQ_E_NOMEM;
    return out->view.dtype == DQ_F32 ? DQ_OK : dq_tensor_alloc(root->dev, DQ_F32, rows, cols, &s->device);
}

static dq_status read_chunk(const dq_model *root, int64_t tensor, int64_t first, staging *s, dq_tensor *out)
{
    int64_t rows = out->view.rows, cols = out->view.cols;
    int64_t bad;
    DQ_TRY(decode_rows(root, tensor, first, rows, cols, s->decoded, &bad));
    DQ_TRY(check_finite(root, tensor, first, cols, bad));
    if (s->ordered) unpermute(s->decoded, rows, cols, root->arch.head_dim, s->ordered);
    dq_tensor chunk = out->view.dtype == DQ_F32 ? *out : dq_tensor_rows(&s->device, 0, rows);
    DQ_TRY(dq_tensor_upload(&chunk, s->ordered ? s->ordered : s->decoded));
    return out->view.dtype == DQ_F32 ? DQ_OK : dq_op_convert(&chunk, out);
}

/* The bias of q or k: one row whose elements are ordered like the rows of the weight. */
static dq_status read_permuted_bias(const dq_model *root, int64_t tensor, dq_tensor *out)
{
    int64_t n = out->view.cols;
    dq_tensor t = {0};
    dq_status status;
    float *buffer = dq_alloc(root->env, (size_t)n * 2 * sizeof *buffer);
    if (!buffer) return DQ_E_NOMEM;
    int64_t bad;
    DQ_GO(decode_rows(root, tensor, 0, 1, n, buffer, &bad));
    DQ_GO(check_finite(root, tensor, 0, n, bad));
    unpermute(buffer, n, 1, root->arch.head_dim, buffer + n);
    DQ_GO(dq_tensor_from_host(root->dev, DQ_F32, 1, n, buffer + n, &t));
    status = dq_op_convert(&t, out);
done:
    dq_tensor_free(&t);
    dq_free(buffer);
    return status;
}

dq_status dq_root_read(const dq_model *root, dq_role role, bool bias, int64_t tensor, int64_t first, dq_tensor *out)
{
    bool permuted = dq_root_is_permuted(root, role);
    staging s = {0};
    dq_status status;
    if (permuted && bias) return read_permuted_bias(root, tensor, out);
    DQ_GO(alloc_staging(root, permuted, out, &s));
    for (int64_t r = 0; r < out->view.rows; r += s.rows) {
        int64_t n = out->view.rows - r < s.rows ? out->view.rows - r : s.rows;
        dq_tensor part = dq_tensor_rows(out, r, n);
        DQ_GO(read_chunk(root, tensor, first + r, &s, &part));
    }
done:
    free_staging(&s);
    dq_source_release(root->source, tensor);
    return status;
}
