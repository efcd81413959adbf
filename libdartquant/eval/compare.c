/* The comparison with a reference model: its logits are made again from its last hidden states, tile by tile, beside the
 * model's own, so that no more than a tile of either is ever in memory. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "eval/job.h"

enum { PIECE = DQ_PERPLEXITY_PIECE };

dq_status dq_perplexity_start_pairs(dq_perplexity_job *r)
{
    static const double start[7] = {-INFINITY, 0, 0, -INFINITY, 0, -1, -1};
    int64_t n = r->windows * r->seqlen;
    DQ_TRY(dq_tensor_alloc(dq_model_device(r->model), DQ_F64, n, 7, &r->pairs));
    for (int c = 0; c < 7; c++) {
        dq_tensor column = dq_tensor_slice(&r->pairs, 0, n, c, 1);
        DQ_TRY(dq_op_fill(start[c], &column));
    }
    return DQ_OK;
}

static dq_status compare_piece(dq_perplexity_job *r, int64_t token, int64_t first, const dq_tensor *w,
                               const dq_tensor *rw, dq_tensor *a, dq_tensor *b)
{
    int64_t rows = a->view.rows;
    dq_tensor h, rh, pairs = dq_tensor_rows(&r->pairs, token, rows);
    DQ_TRY(dq_hidden_take(&r->reference->hidden, token, rows, true, &rh));
    DQ_TRY(dq_perplexity_head_input(r, token, rows, &h));
    DQ_TRY(dq_op_gemm(false, true, 1.0, &rh, rw, 0.0, a, r->spec.math));
    DQ_TRY(dq_op_gemm(false, true, 1.0, &h, w, 0.0, b, r->spec.math));
    DQ_TRY(dq_op_compare_logits(a, b, first, &pairs));
    return dq_progress_check(r->progress);
}

dq_status dq_perplexity_compare_tile(dq_perplexity_job *r, int64_t first, const dq_tensor *w)
{
    dq_device *dev = dq_model_device(r->model);
    dq_tensor rw = {0}, a = {0}, b = {0};
    int64_t n = r->windows * r->seqlen, most = n < PIECE ? n : PIECE;
    dq_status status;
    DQ_GO(dq_model_read_head(r->reference->model, first, w->view.rows, r->spec.math, &rw));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, most, w->view.rows, &a));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, most, w->view.rows, &b));
    for (int64_t token = 0; token < n; token += PIECE) {
        int64_t rows = n - token < PIECE ? n - token : PIECE;
        dq_tensor x = dq_tensor_rows(&a, 0, rows), y = dq_tensor_rows(&b, 0, rows);
        DQ_GO(compare_piece(r, token, first, w, &rw, &x, &y));
    }
done:
    dq_tensor_free(&rw);
    dq_tensor_free(&a);
    dq_tensor_free(&b);
    return status;
}
