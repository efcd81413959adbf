/* The fit of one rotation: schedule, steps, what counts as the result. SPDX-License-Identifier: Apache-2.0 */
#include "calib/fit.h"

#include <math.h>
#include <string.h>

#include "base/progress.h"
#include "base/rng.h"
#include "base/status.h"
#include "calib/fit_job.h"
#include "rotation/parts.h"

#define PI 3.14159265358979323846
/* A loss this many times that of the start is divergence; so is one above the second number at the end of two epochs: even
 * a random rotation is hardly worse than the start, so nothing is being learnt. */
#define DIVERGED 1.25
#define DIVERGED_TWICE 1.02
/* Nor was anything learnt where the last epoch ends above the start on the same rows. */
#define ENDED_ABOVE 1.002
/* Rows are gathered in tiles of at most this many bytes, within the bounds. */
enum { TILE_BYTES = 64 << 20, TILE_LEAST = 256, TILE_MOST = 16384, BATCHES = 8, BATCH_ROWS_PER_N = 16 };

/* ---- plan ---- */

static dq_status check_spec(const dq_fit_spec *s, dq_rows *rows)
{
    const dq_orbit *o = &s->orbit;
    if (o->n < 2 || o->heads < 1 || o->groups < 1 || o->heads % o->groups != 0)
        return dq_fail(DQ_E_INVALID, "a rotation of %lld numbers for %d heads in %d groups", (long long)o->n, o->heads,
                       o->groups);
    if (dq_orbit_width(o) != dq_rows_get_spec(rows)->width)
        return dq_fail(DQ_E_INVALID, "%d heads of %lld numbers do not make rows of %lld", o->heads, (long long)o->n,
                       (long long)dq_rows_get_spec(rows)->width);
    if (!dq_rows_sealed(rows)) return dq_fail(DQ_E_STATE, "the row set is not sealed yet");
    if (!(s->lr > 0) && s->method != DQ_FIT_POLAR_MM)
        return dq_fail(DQ_E_INVALID, "a learning rate of %g, must be above 0", s->lr);
    if (!(s->momentum >= 0 && s->momentum < 1) || !(s->mm_memory >= 0 && s->mm_memory < 1))
        return dq_fail(DQ_E_INVALID, "momentum %g and memory %g must be in [0, 1)", s->momentum, s->mm_memory);
    if (s->epochs < 0 || s->batch < 0 || s->accumulation < 1 || s->quant_steps < 0)
        return dq_fail(DQ_E_INVALID, "%lld epochs of batches of %lld, accumulated %lld times, then %lld steps",
                       (long long)s->epochs, (long long)s->batch, (long long)s->accumulation,
                       (long long)s->quant_steps);
    for (int k = 0; k < DQ_ROW_KINDS && s->quant_steps > 0; k++)
        if (dq_loss_takes_batch(s->finish[k].kind) || !(dq_loss_curvature(&s->finish[k], dq_orbit_width(o)) > 0))
            return dq_fail(DQ_E_INVALID, "the finish cannot work with the loss \"%s\"",
                           dq_loss_name(s->finish[k].kind));
    if (s->method == DQ_FIT_POLAR_MM && !(dq_loss_curvature(&s->loss, dq_orbit_width(o)) > 0))
        return dq_fail(DQ_E_INVALID, "polar-mm needs a loss of known curvature, that of \"%s\" is not: use method qr",
                       dq_loss_name(s->loss.kind));
    return DQ_OK;
}

/* Weights of the kinds that have rows. */
static dq_status share_weights(dq_fit *f)
{
    double sum = 0;
    int64_t most = -1;
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        int64_t rows = dq_rows_part(f->rows, (dq_row_kind)k, DQ_ROWS_TRAIN);
        if (!(f->spec.weight[k] >= 0))
            return dq_fail(DQ_E_INVALID, "the weight %g of %s rows is negative", f->spec.weight[k],
                           dq_row_kind_name((dq_row_kind)k));
        f->weight[k] = rows > 0 ? f->spec.weight[k] : 0;
        sum += f->weight[k];
        if (f->weight[k] > 0 && (most < 0 || rows > most) && (f->weight[DQ_ROWS_ACTIVATION] == 0 || k == 0)) {
            most = rows;
            f->lead = (dq_row_kind)k;
        }
    }
    if (most < 0) return dq_fail(DQ_E_INVALID, "no rows of a kind whose weight is above 0");
    for (int k = 0; k < DQ_ROW_KINDS; k++) f->weight[k] /= sum;
    return DQ_OK;
}

static void plan_steps(dq_fit *f)
{
    const dq_fit_spec *s = &f->spec;
    int64_t rows = dq_rows_part(f->rows, f->lead, DQ_ROWS_TRAIN);
    f->batch = s->batch;
    if (f->batch == 0) {
        f->batch = (rows + BATCHES - 1) / BATCHES;
        if (f->batch < BATCH_ROWS_PER_N * s->orbit.n) f->batch = BATCH_ROWS_PER_N * s->orbit.n;
    }
    if (f->batch > rows) f->batch = rows;
    int64_t even = s->batches > 0 ? (rows + s->batches - 1) / s->batches : f->batch;
    if (f->batch > even) f->batch = even;
    f->batches = (rows + f->batch - 1) / f->batch;
    if (s->batches > 0 && f->batches > s->batches) f->batches = s->batches; /* other rows in every epoch */
    /* Upstream steps only on full accumulations: with fewer batches than that it takes no step at all. */
    f->epoch_steps = (f->batches + (s->compat ? 0 : s->accumulation - 1)) / s->accumulation;
    f->total = s->epochs * f->epoch_steps + s->quant_steps;
    int64_t row_bytes = dq_orbit_width(&s->orbit) * 4, tile = TILE_BYTES / row_bytes;
    f->tile = tile < TILE_LEAST ? TILE_LEAST : tile > TILE_MOST ? TILE_MOST : tile;
    int64_t most = 0;
    for (int k = 0; k < DQ_ROW_KINDS; k++)
        if (dq_rows_count(f->rows, (dq_row_kind)k) > most) most = dq_rows_count(f->rows, (dq_row_kind)k);
    if (f->tile > most) f->tile = most;
}

dq_status dq_fit_check_rotation(dq_device *dev, const dq_orbit *orbit, int32_t g, const double *r)
{
    double error = 0;
    DQ_TRY(dq_rotation_matrix_error(dev, r + g * orbit->n * orbit->n, orbit->n, &error));
    if (error <= DQ_ROTATION_TOLERANCE) return DQ_OK;
    return dq_fail(DQ_E_NUMERIC, "initial matrix %d is not orthogonal: max |R^T R - I| = %g", g, error);
}

/* F32 [groups * n, n] from the caller's matrices or the seed. */
static dq_status first_rotation(dq_fit *f, const double *initial, float *out)
{
    int64_t n = f->spec.orbit.n, square = n * n;
    dq_status status = DQ_OK;
    double *drawn = NULL;
    if (!initial) {
        dq_rng rng;
        dq_rng_seed_torch(&rng, f->spec.seed);
        if (!(drawn = dq_alloc(f->env, (size_t)square * sizeof *drawn))) return DQ_E_NOMEM;
        DQ_GO(dq_rotation_draw(f->dev, DQ_ROTATE_HADAMARD, n, &rng, drawn));
    }
    for (int32_t g = 0; g < f->spec.orbit.groups; g++) {
        const double *from = initial ? initial + g * square : drawn;
        if (initial) DQ_GO(dq_fit_check_rotation(f->dev, &f->spec.orbit, g, initial));
        for (int64_t i = 0; i < square; i++) out[g * square + i] = (float)from[i];
    }
done:
    dq_free(drawn);
    return status;
}

/* ---- life ---- */

static const char *name_of(const dq_fit *f) { return f->spec.name[0] ? f->spec.name : "rotation"; }

/* Fewer rows than these for each dimension of a matrix say little about others (held-out rows tell how little). */
enum { ENOUGH_PER_DIMENSION = 16 };

static void warn_of_few_rows(const dq_fit *f)
{
    const dq_orbit *o = &f->spec.orbit;
    int64_t rows = dq_rows_part(f->rows, f->lead, DQ_ROWS_TRAIN);
    if (f->total == 0 || rows * (o->heads / o->groups) >= ENOUGH_PER_DIMENSION * o->n) return;
    dq_log(f->env, DQ_LOG_WARNING,
           "%s: %lld rows are few for a matrix of %lld x %lld: more windows, or a larger budget", name_of(f),
           (long long)rows, (long long)o->n, (long long)o->n);
}

static dq_status set_up(dq_fit *f, const double *initial)
{
    int64_t rows = f->spec.orbit.n * f->spec.orbit.groups, count = rows * f->spec.orbit.n;
    DQ_TRY(share_weights(f));
    plan_steps(f);
    f->best = dq_alloc(f->env, (size_t)count * sizeof *f->best);
    f->initial = dq_alloc(f->env, (size_t)count * sizeof *f->initial);
    f->history = dq_calloc(f->env, (size_t)(f->total > 0 ? f->total : 1), sizeof *f->history);
    if (!f->best || !f->initial || !f->history) return DQ_E_NOMEM;
    DQ_TRY(dq_tensor_alloc(f->dev, DQ_F32, rows, f->spec.orbit.n, &f->grad));
    DQ_TRY(
        dq_tensor_alloc(f->dev, dq_rows_get_spec(f->rows)->dtype, f->tile, dq_orbit_width(&f->spec.orbit), &f->buffer));
    if (f->spec.unit_rows) DQ_TRY(dq_tensor_alloc(f->dev, DQ_F32, f->tile, dq_orbit_width(&f->spec.orbit), &f->unit));
    DQ_TRY(first_rotation(f, initial, f->best));
    DQ_TRY(dq_fit_check_energy(f));
    f->finish = f->spec.epochs * f->epoch_steps == 0 && f->spec.quant_steps > 0;
    DQ_TRY(dq_optim_init(&f->optim, f->dev, &f->spec, f->finish ? DQ_FIT_POLAR_MM : f->spec.method, f->best));
    if (f->finish) f->optim.mm_memory = f->spec.finish_memory;
    DQ_TRY(dq_fit_measure(f, &f->optim.r, false));
    DQ_TRY(dq_tensor_download(&f->optim.r, f->best)); /* QR-Orth may flip columns */
    memcpy(f->initial, f->best, (size_t)count * sizeof *f->initial);
    f->last_loss = f->start = f->report.loss_before;
    if (f->finish) DQ_TRY(dq_fit_evaluate(f, &f->optim.r, &f->start));
    f->best_loss = f->start;
    f->report.diverged_step = -1;
    f->report.steps_total = f->total;
    f->report.history = f->history;
    f->done = f->total == 0;
    return f->done ? dq_fit_measure(f, &f->optim.r, true) : DQ_OK;
}

dq_status dq_fit_new(dq_device *dev, const dq_fit_spec *spec, dq_rows *rows, const double *initial, dq_fit **out)
{
    DQ_TRY(check_spec(spec, rows));
    dq_fit *f = dq_calloc(dq_device_env(dev), 1, sizeof *f);
    if (!f) return DQ_E_NOMEM;
    f->dev = dev;
    f->env = dq_device_env(dev);
    f->spec = *spec;
    f->rows = rows;
    dq_status status = set_up(f, initial);
    if (status != DQ_OK) {
        dq_fit_free(f);
        return status;
    }
    warn_of_few_rows(f);
    *out = f;
    return DQ_OK;
}

void dq_fit_let_go(dq_fit *f)
{
    dq_optim_clear(&f->optim);
    dq_tensor_free(&f->grad);
    dq_tensor_free(&f->buffer);
    dq_tensor_free(&f->unit);
    dq_free(f->initial);
    f->initial = NULL;
    f->rows = NULL;
}

void dq_fit_free(dq_fit *f)
{
    if (!f) return;
    dq_fit_let_go(f);
    dq_free(f->best);
    dq_free(f->history);
    dq_free(f);
}

/* ---- steps ---- */

static double learning_rate(const dq_fit *f)
{
    const dq_fit_spec *s = &f->spec;
    if (s->method == DQ_FIT_POLAR_MM) return 0;
    if (!s->cosine) return s->lr;
    /* Upstream's scheduler moves once an epoch; here it moves every step. */
    double progress = s->compat ? (double)(f->steps / f->epoch_steps) / (double)s->epochs
                                : (double)f->steps / (double)(s->epochs * f->epoch_steps);
    return s->lr * 0.5 * (1 + cos(PI * progress));
}

static dq_status keep_as_best(dq_fit *f, double loss)
{
    f->best_loss = loss;
    f->report.best_step = f->steps;
    return dq_tensor_download(&f->optim.r, f->best);
}

static void note_divergence(dq_fit *f, double loss)
{
    f->report.diverged_step = f->steps;
    f->report.diverged_loss = loss;
    dq_log(f->env, DQ_LOG_WARNING,
           "%s: the loss diverged at step %lld: %g after %g at the start; the rotation of step %lld is kept",
           name_of(f), (long long)f->steps, loss, f->start, (long long)f->report.best_step);
}

/* After the last step of an epoch: is it better than anything before, worth going on, or lost? */
static dq_status judge(dq_fit *f, dq_fit_point *point, bool *stop)
{
    double loss = NAN;
    DQ_TRY(dq_fit_evaluate(f, &f->optim.r, &loss));
    point->held_out = loss;
    if (loss < f->best_loss) {
        f->stale = f->above = 0;
        return keep_as_best(f, loss);
    }
    f->stale++;
    f->above = loss > DIVERGED_TWICE * f->start ? f->above + 1 : 0;
    bool worse = f->above == 2, patient = f->spec.patience == 0 || f->stale < f->spec.patience;
    if (!(loss <= DIVERGED * f->start) || (worse && !f->finish)) {
        note_divergence(f, loss);
        *stop = true;
    } else if (worse || !patient) { /* the finish has no rate that could be too high: it has nothing more to gain */
        f->report.stopped_early = *stop = true;
    }
    return DQ_OK;
}

/* From the epochs to the finish on the quantization error, which starts at the best rotation so far. */
static dq_status begin_finish(dq_fit *f)
{
    dq_device *dev = f->dev;
    dq_optim_clear(&f->optim);
    f->finish = true;
    f->stale = f->above = 0;
    DQ_TRY(dq_optim_init(&f->optim, dev, &f->spec, DQ_FIT_POLAR_MM, f->best));
    f->optim.mm_memory = f->spec.finish_memory;
    DQ_TRY(dq_fit_evaluate(f, &f->optim.r, &f->start)); /* now the error: another measure of what is best */
    f->best_loss = f->start;
    return DQ_OK;
}

/* Where the step stands in its phase. */
static void place_of_step(const dq_fit *f, int64_t *epoch, int64_t *index, bool *last_of_epoch, bool *last_of_phase)
{
    int64_t before = f->spec.epochs * f->epoch_steps, at = f->steps, per_epoch = f->epoch_steps, phase = before;
    if (f->finish) {
        at -= f->total - f->spec.quant_steps;
        per_epoch = f->batches;
        phase = f->spec.quant_steps;
    }
    *epoch = at / per_epoch + (f->finish ? f->spec.epochs : 0);
    *index = at % per_epoch;
    *last_of_phase = at + 1 == phase;
    *last_of_epoch = *index + 1 == per_epoch || *last_of_phase;
}

/* A lower loss need not be a lower quantization error: a result that is worse than the start is not handed out. */
static dq_status prefer_start(dq_fit *f)
{
    const dq_fit_kind_report *lead = &f->report.kinds[f->lead];
    if (!f->spec.never_worse || !(lead->error_after > lead->error_before)) return DQ_OK;
    dq_log(f->env, DQ_LOG_WARNING,
           "%s: what was learnt has a relative quantization error of %g, the start %g: the start is kept", name_of(f),
           lead->error_after, lead->error_before);
    f->report.kept_start = true;
    f->report.rejected_error = lead->error_after;
    f->report.best_step = 0;
    memcpy(f->best, f->initial, (size_t)f->optim.count * sizeof *f->best);
    DQ_TRY(dq_tensor_upload(&f->grad, f->best));
    return dq_fit_measure(f, &f->grad, true);
}

static dq_status end_fit(dq_fit *f)
{
    DQ_TRY(dq_tensor_upload(&f->grad, f->best)); /* not needed as a gradient any more */
    DQ_TRY(dq_fit_measure(f, &f->grad, true));
    if (f->report.best_step > 0) DQ_TRY(prefer_start(f));
    if (f->report.best_step == 0 && f->report.diverged_step < 0 && !f->report.kept_start)
        dq_log(f->env, DQ_LOG_WARNING, "%s: no epoch lowered the loss of %g: the rotation stays as it was", name_of(f),
               f->report.loss_before);
    f->done = true;
    return DQ_OK;
}

/* A rate that is too high may just as well lead to chance, hardly above a start that is chance, too. */
static void look_at_the_end(dq_fit *f)
{
    const dq_fit_point *last = &f->history[f->steps - 1];
    bool judged = !isnan(last->held_out);
    double loss = judged ? last->held_out : last->loss, most = (judged ? ENDED_ABOVE : DIVERGED_TWICE) * f->start;
    if (!f->finish && f->spec.method != DQ_FIT_POLAR_MM && f->report.diverged_step < 0 && loss > most)
        note_divergence(f, loss);
}

/* The steps that are left over when a phase ends before its time do not count. */
static dq_status end_phase(dq_fit *f)
{
    bool finish_follows = !f->finish && f->spec.quant_steps > 0;
    look_at_the_end(f);
    if (!finish_follows) return end_fit(f);
    f->total = f->steps + f->spec.quant_steps;
    return begin_finish(f);
}

static dq_status one_step(dq_fit *f)
{
    int64_t epoch, index;
    bool last_of_epoch, last_of_phase, stop = false;
    double loss = NAN;
    place_of_step(f, &epoch, &index, &last_of_epoch, &last_of_phase);
    dq_fit_point *point = &f->history[f->steps];
    DQ_TRY(dq_fit_gradient(f, epoch, index, &loss));
    *point = (dq_fit_point){.loss = loss, .held_out = NAN, .lr = f->finish ? 0 : learning_rate(f), .finish = f->finish};
    f->last_loss = loss;
    /* Upstream compares nothing and hands out the rotation of the last forward pass, before the last step. */
    if (f->spec.compat && !f->finish && last_of_phase) DQ_TRY(keep_as_best(f, loss));
    bool lost = !f->finish && !(loss <= DIVERGED * f->report.loss_before);
    if (!lost) {
        dq_status status = dq_optim_step(&f->optim, &f->grad, point->lr);
        if (status != DQ_OK && status != DQ_E_NUMERIC) return status;
        lost = status == DQ_E_NUMERIC;
        if (lost) dq_error_reset();
    }
    f->steps++;
    if (lost) {
        note_divergence(f, loss);
        return end_phase(f);
    }
    if (last_of_epoch && (!f->spec.compat || f->finish)) DQ_TRY(judge(f, point, &stop));
    return stop || last_of_phase ? end_phase(f) : DQ_OK;
}

dq_status dq_fit_step(dq_fit *f, bool *done)
{
    double start = dq_now();
    if (!f->done) DQ_TRY(one_step(f));
    f->report.seconds += dq_now() - start;
    *done = f->done;
    return DQ_OK;
}

bool dq_fit_done(const dq_fit *f) { return f->done; }
double dq_fit_last_loss(const dq_fit *f) { return f->last_loss; }
int64_t dq_fit_steps_done(const dq_fit *f) { return f->steps; }
int64_t dq_fit_steps_total(const dq_fit *f) { return f->total; }
