/* Tensors as bytes. SPDX-License-Identifier: Apache-2.0 */
#include "calib/state.h"

#include "base/status.h"

enum { PIECE = 1 << 22 };

typedef struct pieces {
    int64_t rows; /* at once */
    size_t width; /* bytes of a row */
    void *buffer;
} pieces;

static dq_status open_pieces(dq_env *env, const dq_tensor *t, pieces *p)
{
    p->width = (size_t)t->view.cols * dq_dtype_size(t->view.dtype);
    p->rows = p->width < PIECE ? (int64_t)(PIECE / p->width) : 1;
    if (p->rows > t->view.rows) p->rows = t->view.rows;
    p->buffer = dq_alloc(env, (size_t)p->rows * p->width);
    return p->buffer ? DQ_OK : DQ_E_NOMEM;
}

dq_status dq_put_tensor(dq_env *env, const dq_put *put, const dq_tensor *t)
{
    pieces p = {0};
    dq_status status = DQ_OK;
    if (dq_tensor_is_empty(t)) return DQ_OK;
    DQ_TRY(open_pieces(env, t, &p));
    for (int64_t r = 0; r < t->view.rows && status == DQ_OK; r += p.rows) {
        int64_t n = t->view.rows - r < p.rows ? t->view.rows - r : p.rows;
        dq_tensor part = dq_tensor_rows(t, r, n);
        status = dq_tensor_download(&part, p.buffer);
        if (status == DQ_OK) status = dq_put_bytes(put, p.buffer, (uint64_t)n * p.width);
    }
    dq_free(p.buffer);
    return status;
}

dq_status dq_get_tensor(dq_env *env, const dq_get *get, dq_tensor *t)
{
    pieces p = {0};
    dq_status status = DQ_OK;
    if (dq_tensor_is_empty(t)) return DQ_OK;
    DQ_TRY(open_pieces(env, t, &p));
    for (int64_t r = 0; r < t->view.rows && status == DQ_OK; r += p.rows) {
        int64_t n = t->view.rows - r < p.rows ? t->view.rows - r : p.rows;
        dq_tensor part = dq_tensor_rows(t, r, n);
        status = dq_get_bytes(get, p.buffer, (uint64_t)n * p.width);
        if (status == DQ_OK) status = dq_tensor_upload(&part, p.buffer);
    }
    dq_free(p.buffer);
    return status;
}
