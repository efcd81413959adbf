/* Reading a root's tensors onto the device. F32, F16 and BF16 travel as they are stored and become wider there; the rest is
 * decoded on the host. The host looks through the numbers on their way, in parallel and while they are in cache, so that
 * nobody has to wait for the device to know that they are finite.
 * SPDX-License-Identifier: Apache-2.0 */
#include <limits.h>
#include <stdatomic.h>
#include <string.h>

#include "base/dtype.h"
#include "base/half.h"
#include "base/status.h"
#include "model/internal.h"

enum { STAGING_ELEMENTS = 1 << 20, TASK_ELEMENTS = 1 << 15 };

/* ---- one chunk of rows ---- */

/* Reading rows in parallel: tasks of equal size, so that the cut depends on the shape alone. */
typedef struct read_job {
    dq_source *source;
    int64_t tensor, first, rows, cols, rows_per_task;
    dq_dtype dtype; /* of `out` */
    bool stored;    /* in that type, so that bytes are copied */
    uint8_t *out;
    atomic_bool failed;
    atomic_uint top;  /* bits of the largest magnitude: they are ordered like the numbers, NaN above all */
    atomic_llong bad; /* lowest index of an element that is not finite; LLONG_MAX = none */
} read_job;

static dq_status read_rows(const read_job *job, int64_t r, int64_t n)
{
    uint64_t size = dq_dtype_size(job->dtype) * (uint64_t)job->cols;
    uint8_t *out = job->out + (uint64_t)r * size;
    if (!job->stored) return dq_source_read_rows(job->source, job->tensor, job->first + r, n, (float *)(void *)out);
    return dq_source_read_raw(job->source, job->tensor, (uint64_t)(job->first + r) * size, (uint64_t)n * size, out);
}

static uint32_t bits_at(const uint8_t *at, bool wide, int64_t i)
{
    uint32_t u;
    uint16_t h;
    if (!wide) {
        memcpy(&h, at + 2 * i, sizeof h);
        return h & 0x7fffu;
    }
    memcpy(&u, at + 4 * i, sizeof u);
    return u & 0x7fffffffu;
}

static uint32_t largest(const uint8_t *at, bool wide, int64_t n)
{
    int32_t top = 0; /* two loops and signed numbers: the compiler makes vectors of them */
    if (wide)
        for (int64_t i = 0; i < n; i++) {
            int32_t u = (int32_t)bits_at(at, true, i);
            top = u > top ? u : top;
        }
    else
        for (int64_t i = 0; i < n; i++) {
            int32_t u = (int32_t)bits_at(at, false, i);
            top = u > top ? u : top;
        }
    return (uint32_t)top;
}

static uint32_t infinity_of(dq_dtype dtype)
{
    return dtype == DQ_F16 ? 0x7c00u : dtype == DQ_BF16 ? 0x7f80u : 0x7f800000u;
}

static void look_through(read_job *job, int64_t first, int64_t count)
{
    bool wide = job->dtype == DQ_F32;
    const uint8_t *at = job->out + (uint64_t)first * dq_dtype_size(job->dtype);
    unsigned top = largest(at, wide, count), seen = atomic_load(&job->top);
    while (top > seen && !atomic_compare_exchange_weak(&job->top, &seen, top)) {
    }
    if (top < infinity_of(job->dtype)) return;
    int64_t i = 0;
    while (bits_at(at, wide, i) < infinity_of(job->dtype)) i++;
    long long here = first + i, known = atomic_load(&job->bad);
    while (here < known && !atomic_compare_exchange_weak(&job->bad, &known, here)) {
    }
}

static void read_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    read_job *job = arg;
    int64_t r = i * job->rows_per_task;
    int64_t n = job->rows - r < job->rows_per_task ? job->rows - r : job->rows_per_task;
    if (read_rows(job, r, n) != DQ_OK)
        atomic_store(&job->failed, true);
    else
        look_through(job, r * job->cols, n * job->cols);
}

static dq_status not_finite(const read_job *job, int64_t at)
{
    const dq_tensor_info *info = &job->source->tensors[job->tensor];
    int64_t row = job->first + at / job->cols, col = at % job->cols;
    dq_status status =
        dq_fail(DQ_E_NONFINITE, "the element in row %lld, column %lld is not finite", (long long)row, (long long)col);
    /* of block types, the byte where the row begins */
    uint64_t byte = info->offset + info->bytes / (uint64_t)dq_info_rows(info) * (uint64_t)row +
                    dq_dtype_size(info->dtype) * (uint64_t)col;
    return dq_error_at_byte(dq_error_in_tensor(dq_error_in_file(status, info->file), info->name), byte);
}

static double magnitude(dq_dtype dtype, uint32_t bits)
{
    if (dtype == DQ_F32) return (double)dq_f32_from_bits(bits);
    return (double)(dtype == DQ_F16 ? dq_f16_to_f32((uint16_t)bits) : dq_bf16_to_f32((uint16_t)bits));
}

/* Rows as `dtype` into out; raises *bound to the largest magnitude. */
static dq_status fetch_rows(const dq_model *root, int64_t tensor, int64_t first, int64_t rows, int64_t cols,
                            dq_dtype dtype, void *out, double *bound)
{
    read_job job = {
        .source = root->source, .tensor = tensor, .first = first, .rows = rows, .cols = cols, .bad = LLONG_MAX};
    job.rows_per_task = cols < TASK_ELEMENTS ? TASK_ELEMENTS / cols : 1;
    job.dtype = dtype;
    job.stored = root->source->tensors[tensor].dtype == dtype;
    job.out = out;
    if (root->source->one_thread) {
        DQ_TRY(read_rows(&job, 0, rows));
        look_through(&job, 0, rows * cols);
    } else {
        dq_run(root->env, (rows + job.rows_per_task - 1) / job.rows_per_task, read_task, &job);
    }
    if (atomic_load(&job.failed)) { /* the error record belongs to the thread that failed: read again on this one */
        DQ_TRY(read_rows(&job, 0, rows));
        return dq_fail(DQ_E_INTERNAL, "a row could be read on the second attempt only");
    }
    if (atomic_load(&job.bad) != LLONG_MAX) return not_finite(&job, atomic_load(&job.bad));
    double top = magnitude(dtype, atomic_load(&job.top));
    if (top > *bound) *bound = top;
    return DQ_OK;
}

/* ---- tensors ---- */

/* The type in which a tensor goes to the device. */
static dq_dtype travels_as(const dq_model *root, int64_t tensor)
{
    dq_dtype dtype = root->source->tensors[tensor].dtype;
    return dtype == DQ_F16 || dtype == DQ_BF16 ? dtype : DQ_F32;
}

static void unpermute(const uint8_t *in, int64_t rows, size_t row_bytes, int64_t head_dim, uint8_t *out)
{
    for (int64_t r = 0; r < rows; r++)
        memcpy(out + (size_t)r * row_bytes, in + (size_t)dq_root_stored_row(r, head_dim) * row_bytes, row_bytes);
}

typedef struct staging {
    uint8_t *read, *ordered; /* `ordered` only where rows are permuted */
    dq_tensor device;        /* a chunk that becomes wider on the device */
    dq_dtype dtype;
    int64_t rows;
} staging;

static void free_staging(staging *s)
{
    dq_free(s->read);
    dq_free(s->ordered);
    dq_tensor_free(&s->device);
}

static dq_status alloc_staging(const dq_model *root, int64_t tensor, bool permuted, const dq_tensor *out, staging *s)
{
    int64_t cols = out->view.cols, unit = permuted ? root->arch.head_dim : 1;
    int64_t rows = cols * unit < STAGING_ELEMENTS ? STAGING_ELEMENTS / (cols * unit) * unit : unit;
    if (rows > out->view.rows) rows = out->view.rows;
    s->rows = rows;
    s->dtype = travels_as(root, tensor);
    size_t bytes = (size_t)(rows * cols) * dq_dtype_size(s->dtype);
    s->read = dq_alloc(root->env, bytes);
    if (!s->read) return DQ_E_NOMEM;
    if (permuted && !(s->ordered = dq_alloc(root->env, bytes))) return DQ_E_NOMEM;
    return out->view.dtype == s->dtype ? DQ_OK : dq_tensor_alloc(root->dev, s->dtype, rows, cols, &s->device);
}

static dq_status read_chunk(const dq_model *root, int64_t tensor, int64_t first, staging *s, dq_tensor *out,
                            double *bound)
{
    int64_t rows = out->view.rows, cols = out->view.cols;
    DQ_TRY(fetch_rows(root, tensor, first, rows, cols, s->dtype, s->read, bound));
    if (s->ordered) unpermute(s->read, rows, (size_t)cols * dq_dtype_size(s->dtype), root->arch.head_dim, s->ordered);
    const void *ready = s->ordered ? s->ordered : s->read;
    if (out->view.dtype == s->dtype) return dq_tensor_upload(out, ready);
    dq_tensor chunk = dq_tensor_rows(&s->device, 0, rows);
    DQ_TRY(dq_tensor_upload(&chunk, ready));
    return dq_op_convert(&chunk, out);
}

/* The bias of q or k: one row whose elements are ordered like the rows of the weight. */
static dq_status read_permuted_bias(const dq_model *root, int64_t tensor, dq_tensor *out, double *bound)
{
    dq_dtype dtype = travels_as(root, tensor);
    int64_t n = out->view.cols;
    size_t size = dq_dtype_size(dtype), bytes = (size_t)n * size;
    dq_tensor t = {0};
    dq_status status;
    uint8_t *buffer = dq_alloc(root->env, 2 * bytes);
    if (!buffer) return DQ_E_NOMEM;
    DQ_GO(fetch_rows(root, tensor, 0, 1, n, dtype, buffer, bound));
    unpermute(buffer, n, size, root->arch.head_dim, buffer + bytes);
    DQ_GO(dq_tensor_from_host(root->dev, dtype, 1, n, buffer + bytes, &t));
    status = dq_op_convert(&t, out);
done:
    dq_tensor_free(&t);
    dq_free(buffer);
    return status;
}

dq_status dq_root_read(const dq_model *root, dq_role role, bool bias, int64_t tensor, int64_t first, dq_tensor *out,
                       double *bound)
{
    bool permuted = dq_root_is_permuted(root, role);
    staging s = {0};
    dq_status status;
    *bound = 0;
    if (permuted && bias) return read_permuted_bias(root, tensor, out, bound);
    DQ_GO(alloc_staging(root, tensor, permuted, out, &s));
    for (int64_t r = 0; r < out->view.rows; r += s.rows) {
        int64_t n = out->view.rows - r < s.rows ? out->view.rows - r : s.rows;
        dq_tensor part = dq_tensor_rows(out, r, n);
        DQ_GO(read_chunk(root, tensor, first + r, &s, &part, bound));
    }
done:
    free_staging(&s);
    dq_source_release(root->source, tensor);
    return status;
}
