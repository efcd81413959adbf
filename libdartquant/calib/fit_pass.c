/* Passes over rows: gradients of a step, evaluation on held-out rows. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "calib/fit_job.h"

/* A stretch of rows and what is wanted of it. */
typedef struct pass {
    const dq_loss *loss;
    dq_row_kind kind;
    dq_row_part part;
    int64_t epoch, first, count;
    double weight, shift;
    int math;
    bool error; /* the relative quantization error at loss->quant, not the loss */
} pass;

/* Only rows of zeros are far from RMS 1 with this under the root; they stay zeros. */
#define TINY 1e-30

/* Rows of the stretch from `at` on as the losses see them; *x is a view. */
static dq_status take_rows(dq_fit *f, const pass *p, int64_t at, int64_t rows, dq_tensor *x)
{
    *x = dq_tensor_rows(&f->buffer, 0, rows);
    DQ_TRY(dq_rows_batch(f->rows, p->kind, p->part, p->epoch, p->first + at, rows, x));
    if (!f->spec.unit_rows) return DQ_OK;
    dq_tensor unit = dq_tensor_rows(&f->unit, 0, rows);
    DQ_TRY(dq_op_convert(x, &unit));
    DQ_TRY(dq_op_rmsnorm(&unit, NULL, TINY, &unit));
    *x = unit;
    return DQ_OK;
}

/* Mean over the rows, tile by tile; grad += weight * gradient (NULL: none). */
static dq_status run_pass(dq_fit *f, const pass *p, const dq_tensor *r, dq_tensor *grad, double *value)
{
    double sum = 0;
    for (int64_t at = 0; at < p->count; at += f->tile) {
        int64_t rows = p->count - at < f->tile ? p->count - at : f->tile;
        double part = 0, share = (double)rows / (double)p->count;
        dq_tensor x;
        DQ_TRY(take_rows(f, p, at, rows, &x));
        if (p->error)
            DQ_TRY(dq_quant_error_of_rotation(&p->loss->quant, &f->spec.orbit, &x, r, p->math, &part));
        else
            DQ_TRY(dq_loss_of_rotation(p->loss, &f->spec.orbit, &x, r, p->weight * share, p->shift, 1, grad, p->math,
                                       &part));
        sum += share * part;
    }
    *value = sum;
    return DQ_OK;
}

/* Rows of `kind` that go with batch number j of the lead: the lead's are cut in batches; of a rarer kind some rows come
 * every time, spread over the epoch. */
static void batch_of_kind(const dq_fit *f, dq_row_kind kind, int64_t j, int64_t *first, int64_t *count)
{
    enum { FEW = 1024 };
    int64_t rows = dq_rows_part(f->rows, kind, DQ_ROWS_TRAIN);
    if (kind == f->lead) {
        *first = j * f->batch;
        *count = rows - *first < f->batch ? rows - *first : f->batch;
        return;
    }
    int64_t part = (rows + f->batches - 1) / f->batches, least = rows < FEW ? rows : FEW;
    *count = part > least ? part : least;
    *first = f->batches > 1 ? j * (rows - *count) / (f->batches - 1) : 0;
}

static dq_loss loss_of_phase(const dq_fit *f, dq_row_kind kind)
{
    return f->finish ? f->spec.finish[kind] : f->spec.loss;
}

dq_status dq_fit_gradient(dq_fit *f, int64_t epoch, int64_t index, double *loss)
{
    int64_t from = f->finish ? index : index * f->spec.accumulation;
    int64_t to = f->finish ? index + 1 : from + f->spec.accumulation;
    if (to > f->batches) to = f->batches;
    double total = 0, width = (double)dq_orbit_width(&f->spec.orbit);
    double boldness = f->finish ? f->spec.finish_boldness : f->spec.mm_boldness;
    DQ_TRY(dq_op_fill(0, &f->grad));
    for (int64_t j = from; j < to; j++)
        for (int k = 0; k < DQ_ROW_KINDS; k++) {
            double value = 0;
            if (f->weight[k] == 0) continue;
            dq_loss of_kind = loss_of_phase(f, (dq_row_kind)k);
            pass p = {.loss = &of_kind,
                      .kind = (dq_row_kind)k,
                      .part = DQ_ROWS_TRAIN,
                      .epoch = epoch,
                      .weight = f->weight[k] / (double)(to - from),
                      .math = f->spec.math};
            batch_of_kind(f, p.kind, j, &p.first, &p.count);
            if (f->optim.method == DQ_FIT_POLAR_MM) p.shift = -boldness * dq_loss_curvature(&of_kind, (int64_t)width);
            DQ_TRY(run_pass(f, &p, &f->optim.r, &f->grad, &value));
            total += p.weight * value;
        }
    *loss = total;
    return DQ_OK;
}

/* ---- evaluation ---- */

/* Training rows that stand for held-out ones where there are none. */
enum { EVALUATION_MOST = 16384 };

static dq_status evaluate_kind(dq_fit *f, dq_row_kind kind, const dq_loss *loss, bool error, const dq_tensor *r,
                               double *value)
{
    bool held_out = dq_rows_part(f->rows, kind, DQ_ROWS_HELD_OUT) > 0;
    pass p = {.loss = loss,
              .kind = kind,
              .part = held_out ? DQ_ROWS_HELD_OUT : DQ_ROWS_TRAIN,
              .weight = 1,
              .error = error,
              .math = f->spec.math};
    p.count = dq_rows_part(f->rows, kind, p.part);
    if (!held_out && p.count > EVALUATION_MOST) p.count = EVALUATION_MOST;
    return run_pass(f, &p, r, NULL, value);
}

dq_status dq_fit_evaluate(dq_fit *f, const dq_tensor *r, double *value)
{
    double sum = 0;
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        double part = 0;
        if (f->weight[k] == 0) continue;
        dq_loss loss = f->finish ? (dq_loss){.kind = DQ_FIT_QUANT, .quant = f->spec.quant[k]} : f->spec.loss;
        DQ_TRY(evaluate_kind(f, (dq_row_kind)k, &loss, f->finish, r, &part));
        sum += f->weight[k] * part;
    }
    *value = sum;
    return DQ_OK;
}

dq_status dq_fit_measure(dq_fit *f, const dq_tensor *r, bool after)
{
    double total = 0;
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        dq_fit_kind_report *report = &f->report.kinds[k];
        dq_loss target = {.kind = DQ_FIT_QUANT, .quant = f->spec.quant[k]};
        double loss = 0, error = 0;
        report->rows_seen = dq_rows_seen(f->rows, (dq_row_kind)k);
        report->rows_train = dq_rows_part(f->rows, (dq_row_kind)k, DQ_ROWS_TRAIN);
        report->rows_held_out = dq_rows_part(f->rows, (dq_row_kind)k, DQ_ROWS_HELD_OUT);
        if (report->rows_train == 0) continue;
        DQ_TRY(evaluate_kind(f, (dq_row_kind)k, &f->spec.loss, false, r, &loss));
        DQ_TRY(evaluate_kind(f, (dq_row_kind)k, &target, true, r, &error));
        *(after ? &report->loss_after : &report->loss_before) = loss;
        *(after ? &report->error_after : &report->error_before) = error;
        total += f->weight[k] * loss;
    }
    *(after ? &f->report.loss_after : &f->report.loss_before) = total;
    return DQ_OK;
}

dq_status dq_fit_check_energy(dq_fit *f)
{
    dq_tensor wide = {0};
    dq_status status = DQ_OK;
    double energy = 0;
    int64_t rows = dq_rows_part(f->rows, f->lead, DQ_ROWS_TRAIN);
    DQ_GO(dq_tensor_alloc(f->dev, DQ_F32, f->tile, dq_orbit_width(&f->spec.orbit), &wide));
    for (int64_t at = 0; at < rows && energy == 0; at += f->tile) {
        int64_t count = rows - at < f->tile ? rows - at : f->tile;
        dq_tensor x = dq_tensor_rows(&f->buffer, 0, count), y = dq_tensor_rows(&wide, 0, count);
        DQ_GO(dq_rows_batch(f->rows, f->lead, DQ_ROWS_TRAIN, 0, at, count, &x));
        DQ_GO(dq_op_convert(&x, &y));
        DQ_GO(dq_op_dot(&y, &y, &energy));
    }
    if (energy == 0)
        status = dq_fail(DQ_E_INVALID, "all %lld %s rows are zero: there is nothing to fit a rotation to",
                         (long long)rows, dq_row_kind_name(f->lead));
done:
    dq_tensor_free(&wide);
    return status;
}
