/* Quantization to given levels (KVQuant, arXiv 2401.18079), by blocks of rows. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "backend/cpu/quantize.h"

enum { TASK_ELEMENTS = 16384 };

typedef struct levels_job {
    const dq_quant_kernels *kernels;
    const dq_levels_quant_desc *d;
    const dq_view *x, *y;
    const float *lo, *hi;    /* of columns */
    const int32_t *position; /* NULL: from the row */
    dq_level_table table;
    /* Of rows with outliers: thresholds lie `part` of the way from this number of each end to the next. */
    int64_t index;
    double part;
    float *scratch; /* [threads, 2 cols] */
    int64_t rows_per_task;
} levels_job;

/* Middles behind the last level are infinite: no number is beyond them. */
static void make_table(const dq_levels_quant_desc *d, const dq_view *levels, dq_level_table *t)
{
    const float *level = dq_view_f32(levels, 0);
    int64_t n = levels->cols, log = 1;
    while ((int64_t)1 << log < n) log++;
    t->steps = log < 4 ? (int)log : 4;
    t->log_block = (int)log - t->steps;
    for (int64_t i = 0; i < 256; i++) {
        t->middle[i] = i + 1 < n ? (level[i] + level[i + 1]) * 0.5f : INFINITY;
        t->value[i] = i < n ? level[i] * d->norm_scale + d->norm_offset : 0;
    }
    for (int64_t i = 0; i < 16; i++) t->coarse[i] = t->middle[((i + 1) << t->log_block) - 1];
}

/* ---- the range of a row ---- */

/* The number of that rank; none before it in `a` is larger then, none behind it smaller (Hoare's selection). */
static float select_rank(float *a, int64_t n, int64_t rank)
{
    int64_t first = 0, last = n - 1;
    while (first < last) {
        int64_t middle = first + (last - first) / 2, i = first, j = last;
        float p = a[first], q = a[middle], r = a[last];
        float pivot = p < q ? (q < r ? q : p < r ? r : p) : (p < r ? p : q < r ? r : q);
        while (i <= j) {
            while (a[i] < pivot) i++;
            while (a[j] > pivot) j--;
            if (i > j) break;
            float t = a[i];
            a[i++] = a[j];
            a[j--] = t;
        }
        if (rank <= j)
            last = j;
        else if (rank >= i)
            first = i;
        else
            break;
    }
    return a[rank];
}

void dq_cpu_two_ranks(float *a, int64_t n, int64_t rank, float *first, float *next)
{
    float least = INFINITY;
    *first = select_rank(a, n, rank);
    for (int64_t i = rank + 1; i < n; i++)
        if (a[i] < least) least = a[i];
    *next = rank + 1 < n ? least : *first;
}

static float between(float first, float next, double f)
{
    if (f == 0 || isinf(first) || first == next) return first;
    return (float)(first + f * ((double)next - first));
}

/* False: a NaN is among them. */
static bool find_ends(const levels_job *j, const float *x, float *scratch, dq_row_ends *e)
{
    int64_t n = j->x->cols, k = j->index + 2, lanes = DQ_ENDS_LANES * j->kernels->vector_bytes / (int64_t)sizeof *x;
    if (k <= lanes && 4 * k <= n) return j->kernels->row_ends(x, n, k, scratch, e);
    float lo, hi;
    if (!j->kernels->row_range(x, n, &lo, &hi)) return false;
    memcpy(scratch, x, (size_t)n * sizeof *x);
    for (int64_t c = 0; c < n; c++) scratch[n + c] = -x[c];
    dq_cpu_two_ranks(scratch, n, j->index, &e->first, &e->second);
    dq_cpu_two_ranks(scratch + n, n, j->index, &e->last, &e->before_last);
    e->last = -e->last;
    e->before_last = -e->before_last;
    return true;
}

/* The range of what is left without outliers, and of the median, which is looked for only where it is not inside anyway. */
static void find_inner_range(const levels_job *j, const float *x, const dq_row_ends *e, float *scratch,
                             dq_level_row *row)
{
    int64_t n = j->x->cols, i = j->index, middle = (n - 1) / 2;
    /* The next numbers on either side, where no others equal the thresholds. */
    dq_row_inside in = {i + 1, n - 2 * (i + 1), e->second, e->before_last};
    if (!(e->second > row->low && e->before_last < row->high)) j->kernels->row_inside(x, n, row->low, row->high, &in);
    row->lo = in.least;
    row->hi = in.largest;
    if (in.count > 0 && in.below <= middle && in.below + in.count > middle) return;
    memcpy(scratch, x, (size_t)n * sizeof *x);
    float median = select_rank(scratch, n, middle);
    if (!(row->lo < median)) row->lo = median;
    if (!(row->hi > median)) row->hi = median;
}

/* False: the row holds a NaN. */
static bool find_row(const levels_job *j, const float *x, float *scratch, dq_level_row *row)
{
    dq_row_ends e;
    if (j->d->outliers == 0) return j->kernels->row_range(x, j->x->cols, &row->lo, &row->hi);
    if (!find_ends(j, x, scratch, &e)) return false;
    row->low = between(e.first, e.second, j->part);
    row->high = between(e.last, e.before_last, j->part);
    find_inner_range(j, x, &e, scratch, row);
    return true;
}

static void quantize_row(const levels_job *j, const float *x, float *y, float *scratch)
{
    dq_level_row row = {.table = &j->table, .keep = j->d->outliers > 0 && j->d->keep_outliers};
    if (find_row(j, x, scratch, &row))
        j->kernels->levels_row(&row, x, y, j->x->cols);
    else
        for (int64_t c = 0; c < j->x->cols; c++) y[c] = NAN;
}

/* ---- the op ---- */

static void levels_task(void *arg, int64_t i, int thread)
{
    const levels_job *j = arg;
    int64_t cols = j->x->cols, end = dq_least((i + 1) * j->rows_per_task, j->x->rows);
    const dq_level_columns columns = {&j->table, j->lo, j->hi, j->d->keep_outliers != 0};
    float *scratch = j->scratch ? j->scratch + thread * 2 * cols : NULL;
    for (int64_t r = i * j->rows_per_task; r < end; r++) {
        const float *x = dq_view_f32(j->x, r);
        float *y = dq_view_f32(j->y, r);
        int64_t place = j->position ? j->position[r] : j->d->sink > 0 ? r % j->d->seqlen : 0;
        if (place < j->d->sink) {
            if (x != y) memcpy(y, x, (size_t)cols * sizeof *y);
        } else if (j->d->per_row) {
            quantize_row(j, x, y, scratch);
        } else {
            j->kernels->levels_columns(&columns, x, y, cols);
        }
    }
}

dq_status dq_cpu_levels_quant(void *device, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                              const dq_view *levels, const dq_view *position, const dq_view *y)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    levels_job j = {.kernels = dq_cpu_quant_kernels(dev), .d = d, .x = x, .y = y};
    if (range) j.lo = dq_view_f32(range, 0), j.hi = dq_view_f32(range, 1);
    if (position) j.position = dq_view_i32(position, 0);
    make_table(d, levels, &j.table);
    if (d->per_row && d->outliers > 0) {
        double p = d->outliers * 0.5 * (double)(x->cols - 1);
        j.index = (int64_t)p;
        j.part = p - floor(p);
        j.scratch = dq_cpu_scratch_take(dev, (size_t)dev->threads * 2 * (size_t)x->cols * sizeof *j.scratch);
        if (!j.scratch) return DQ_E_NOMEM;
    }
    j.rows_per_task = x->cols >= TASK_ELEMENTS ? 1 : TASK_ELEMENTS / x->cols;
    host->run(host->self, (x->rows + j.rows_per_task - 1) / j.rows_per_task, levels_task, &j);
    dq_cpu_scratch_give(dev, j.scratch);
    return DQ_OK;
}
