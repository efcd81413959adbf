/* Scale and zero point of weight groups with the clip search of GPTQ (arXiv 2210.17323) and QuaRot. A fast fp32 error,
 * abandoned as soon as it exceeds the best, discards candidates; those within its rounding of the best are decided in the
 * reference's arithmetic, so the choice is the reference's. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cpu/quantize.h"

enum { TASK_WEIGHTS = 16384, COARSE = 8 };

static const float smallest_range = 1e-5f;

typedef struct weight_range {
    float lo, hi; /* lo <= 0 <= hi */
    float absmax; /* at least smallest_range */
} weight_range;

typedef struct grid_job {
    const dq_quant_kernels *kernels;
    const dq_grid_desc *d;
    const dq_view *w, *scale, *zero;
    int64_t rows_per_task;
    const double *shrink; /* [steps] share of the range, to the power of the norm */
    double *errors;       /* [threads][steps] */
    double noise;         /* rounding of one difference, in steps */
} grid_job;

static float share(const dq_grid_desc *d, int32_t i) { return (float)(1.0 - (double)i / d->search_grid); }

/* Parameters of the range shrunk by p. */
static void grid_of(const dq_grid_desc *d, const weight_range *range, float p, float *scale, float *zero)
{
    if (d->symmetric) {
        *scale = p * range->absmax / (float)((1 << (d->bits - 1)) - 1);
        *zero = (float)(1 << (d->bits - 1));
        return;
    }
    float lo = p * range->lo, hi = p * range->hi;
    *scale = fmaxf(hi - lo, smallest_range) / (float)((1 << d->bits) - 1);
    *zero = rintf(-lo / *scale) + 0.0f; /* never -0 */
}

/* sum |q(w) - w|^norm as the reference defines it. */
static double exact_error(const dq_grid_desc *d, const float *w, int64_t n, float scale, float zero)
{
    float top = (float)((1 << d->bits) - 1);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
        float code = fminf(fmaxf(rintf(w[i] / scale) + zero, 0), top);
        float difference = scale * (code - zero) - w[i];
        sum += pow(fabsf(difference), d->search_norm);
    }
    return sum;
}

typedef struct search_state {
    const grid_job *job;
    const weight_range *range;
    const float *w;
    int64_t n;
    float full_scale; /* of the unshrunk range; errors are in its units */
    double best, limit;
    double *errors;
} search_state;

/* Errors up to which a candidate may still be the exact winner. The fast and the exact differences are at most `noise`
 * steps apart, so by Minkowski's inequality the norms of the two difference vectors are within noise * n^(1/norm); the
 * power itself is good to a few 1e-6. */
static double close_to(const search_state *s, double best)
{
    double norm = s->job->d->search_norm, noise = 2 * s->job->noise;
    if (norm < 1) return best * (1 + 4e-6) + (double)s->n * pow(noise, norm);
    return pow(pow(best, 1 / norm) * (1 + 4e-6) + noise * pow((double)s->n, 1 / norm), norm);
}

static void try_candidate(search_state *s, int32_t i)
{
    const dq_grid_desc *d = s->job->d;
    float p = share(d, i), scale, zero;
    grid_of(d, s->range, p, &scale, &zero);
    double unit = s->job->shrink[i];
    if (fabsf(scale - p * s->full_scale) > 1e-6f * scale) unit = pow(scale / s->full_scale, d->search_norm);
    dq_grid_candidate c = {scale, -zero, (float)((1 << d->bits) - 1) - zero, d->search_norm};
    double limit = s->limit / unit;
    float error = s->job->kernels->grid_error(s->w, s->n, &c, limit < 1e38 ? (float)limit : INFINITY);
    s->errors[i] = error <= limit ? error * unit : INFINITY; /* a NaN becomes infinite too */
    if (!(s->errors[i] < s->best)) return;
    s->best = s->errors[i];
    s->limit = close_to(s, s->best);
}

/* Every eighth candidate first, then outwards from the best of them: a good bound early lets the others stop early. */
static void try_all(search_state *s)
{
    int32_t steps = s->job->d->search_steps, centre = 0;
    for (int32_t i = 0; i < steps; i += COARSE) {
        try_candidate(s, i);
        if (s->errors[i] < s->errors[centre]) centre = i;
    }
    for (int32_t distance = 1; distance < steps; distance++) {
        int32_t below = centre - distance, above = centre + distance;
        if (below >= 0 && below % COARSE != 0) try_candidate(s, below);
        if (above < steps && above % COARSE != 0) try_candidate(s, above);
    }
}

static void search(const grid_job *job, const float *w, int64_t n, double *errors, float *scale, float *zero)
{
    const dq_grid_desc *d = job->d;
    weight_range range;
    job->kernels->grid_range(w, n, &range.lo, &range.hi);
    range.absmax = fmaxf(fmaxf(-range.lo, range.hi), smallest_range);
    grid_of(d, &range, 1.0f, scale, zero);
    if (d->search_steps <= 0 || (range.lo == 0 && range.hi == 0)) return;
    search_state s = {job, &range, w, n, *scale, INFINITY, INFINITY, errors};
    try_all(&s);
    if (!(s.best < INFINITY)) return;
    int32_t close = 0, chosen = 0;
    for (int32_t i = 0; i < d->search_steps; i++)
        if (errors[i] <= s.limit && close++ == 0) chosen = i;
    double best = INFINITY;
    for (int32_t i = chosen; close > 1 && i < d->search_steps; i++) {
        if (!(errors[i] <= s.limit)) continue;
        float candidate_scale, candidate_zero;
        grid_of(d, &range, share(d, i), &candidate_scale, &candidate_zero);
        double error = exact_error(d, w, n, candidate_scale, candidate_zero);
        if (error < best) {
            best = error;
            chosen = i;
        }
    }
    grid_of(d, &range, share(d, chosen), scale, zero);
}

static void grid_task(void *arg, int64_t i, int thread)
{
    const grid_job *job = arg;
    const dq_grid_desc *d = job->d;
    double *errors = job->errors + (int64_t)thread * d->search_steps;
    int64_t end = dq_least((i + 1) * job->rows_per_task, job->w->rows), cols = job->w->cols;
    for (int64_t r = i * job->rows_per_task; r < end; r++)
        for (int64_t first = 0, g = 0; first < cols; first += d->group, g++)
            search(job, dq_view_f32(job->w, r) + first, dq_least(d->group, cols - first), errors,
                   dq_view_f32(job->scale, r) + g, dq_view_f32(job->zero, r) + g);
}

dq_status dq_cpu_weight_grid(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                             const dq_view *zero)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    if (w->rows == 0 || w->cols == 0) return DQ_OK;
    size_t steps = d->search_steps > 0 ? (size_t)d->search_steps : 0;
    double *tables = dq_cpu_scratch_take(dev, (steps * (1 + (size_t)dev->threads) + 1) * sizeof *tables);
    if (!tables) return DQ_E_NOMEM;
    for (size_t i = 0; i < steps; i++) tables[i] = pow(share(d, (int32_t)i), d->search_norm);
    grid_job job = {.kernels = dq_cpu_quant_kernels(dev), .d = d, .w = w, .scale = scale, .zero = zero};
    job.rows_per_task = w->cols >= TASK_WEIGHTS ? 1 : TASK_WEIGHTS / w->cols;
    job.shrink = tables;
    job.errors = tables + steps;
    job.noise = (double)(1 << d->bits) * 0x1p-22; /* a few fp32 roundings of a value of up to 2^bits steps */
    host->run(host->self, (w->rows + job.rows_per_task - 1) / job.rows_per_task, grid_task, &job);
    dq_cpu_scratch_give(dev, tables);
    return DQ_OK;
}
