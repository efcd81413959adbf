/* rotation_loss for devices that multiply but know no such loss: products there, the losses of rows on the host's threads, a
 * tile of rows at a time. SPDX-License-Identifier: Apache-2.0 */
#include "backend/device_internal.h"
#include "backend/ref/ops.h"
#include "base/status.h"

enum { TILE_BYTES = 64 << 20 };

typedef struct tile_job {
    const dq_rotation_loss_desc *d;
    int64_t width, first, rows; /* of the tile */
    dq_tensor o;                /* F32 [most rows, width] on the device: rotated, then slopes */
    float *host;                /* the same */
    double *norm, *loss;        /* [most rows]: |x|^2; of each row, without weight and scale */
    float *weight, *row_loss;   /* [all rows] or NULL */
    double *scratch;            /* [threads][3 width] */
    bool slopes;
} tile_job;

static void norm_task(void *arg, int64_t r, int thread)
{
    (void)thread;
    const tile_job *j = arg;
    const float *x = j->host + r * j->width;
    double sum = 0;
    for (int64_t c = 0; c < j->width; c++) sum += (double)x[c] * (double)x[c];
    j->norm[r] = sum;
}

static void loss_task(void *arg, int64_t r, int thread)
{
    const tile_job *j = arg;
    const dq_rotation_loss_desc *d = j->d;
    double *o = j->scratch + thread * 3 * j->width, *slope = o + j->width;
    float *row = j->host + r * j->width;
    for (int64_t c = 0; c < j->width; c++) o[c] = row[c];
    double per = !d->relative ? 1 : j->norm[r] == 0 ? 0 : 1 / j->norm[r];
    double factor = d->scale * per * (j->weight ? j->weight[j->first + r] : 1);
    j->loss[r] = per * dq_ref_loss_of_row(d, j->width, o, slope, (float *)(slope + j->width));
    for (int64_t c = 0; c < j->width && j->slopes; c++) row[c] = (float)(factor * (slope[c] + d->shift * o[c]));
}

static dq_status run_tile(tile_job *j, const dq_tensor *all, const dq_tensor *r, const dq_tensor *grad, double *total)
{
    dq_env *env = all->dev->env;
    const dq_rotation_loss_desc *d = j->d;
    dq_tensor x = dq_tensor_rows(all, j->first, j->rows), o = dq_tensor_rows(&j->o, 0, j->rows);
    if (d->relative) {
        DQ_TRY(dq_op_convert(&x, &o));
        DQ_TRY(dq_tensor_download(&o, j->host));
        dq_run(env, j->rows, norm_task, j);
    }
    DQ_TRY(dq_rotate_heads(d->n, d->heads, d->groups, &x, r, &o, d->math));
    DQ_TRY(dq_tensor_download(&o, j->host));
    dq_run(env, j->rows, loss_task, j);
    for (int64_t i = 0; i < j->rows; i++) {
        *total += (j->weight ? j->weight[j->first + i] : 1) * j->loss[i];
        if (j->row_loss) j->row_loss[j->first + i] = (float)j->loss[i];
    }
    if (!j->slopes) return DQ_OK;
    DQ_TRY(dq_tensor_upload(&o, j->host));
    return dq_rotate_heads_back(d->n, d->heads, d->groups, &x, &o, 1, j->first ? 1 : d->beta, grad, d->math);
}

static dq_status open_tiles(tile_job *j, dq_device *dev, int64_t most, int64_t all, bool weighted, bool row_loss)
{
    size_t threads = (size_t)dq_threads(dev->env), width = (size_t)j->width;
    j->host = dq_alloc(dev->env, (size_t)most * width * sizeof *j->host);
    j->norm = dq_alloc(dev->env, 2 * (size_t)most * sizeof *j->norm);
    j->scratch = dq_alloc(dev->env, threads * 3 * width * sizeof *j->scratch);
    if (weighted) j->weight = dq_alloc(dev->env, (size_t)all * sizeof *j->weight);
    if (row_loss) j->row_loss = dq_alloc(dev->env, (size_t)all * sizeof *j->row_loss);
    if (!j->host || !j->norm || !j->scratch || (weighted && !j->weight) || (row_loss && !j->row_loss))
        return DQ_E_NOMEM;
    j->loss = j->norm + most;
    return dq_tensor_alloc(dev, DQ_F32, most, j->width, &j->o);
}

dq_status dq_compose_rotation_loss(const dq_rotation_loss_desc *d, const dq_tensor *x, const dq_tensor *weight,
                                   const dq_tensor *r, const dq_tensor *grad, const dq_tensor *row_loss, double *loss)
{
    bool weighted = !dq_tensor_is_empty(weight), reported = !dq_tensor_is_empty(row_loss);
    int64_t rows = x->view.rows, most = TILE_BYTES / (x->view.cols * (int64_t)sizeof(float));
    tile_job j = {.d = d, .width = x->view.cols, .slopes = !dq_tensor_is_empty(grad)};
    double total = 0;
    dq_status status;
    most = most < 1 ? 1 : most > rows ? rows : most;
    DQ_GO(open_tiles(&j, x->dev, most, rows, weighted, reported));
    if (weighted) DQ_GO(dq_tensor_download(weight, j.weight));
    for (; j.first < rows; j.first += most) {
        j.rows = rows - j.first < most ? rows - j.first : most;
        DQ_GO(run_tile(&j, x, r, grad, &total));
    }
    if (reported) {
        dq_tensor to = *row_loss;
        DQ_GO(dq_tensor_upload(&to, j.row_loss));
    }
    *loss = d->scale * total;
done:
    dq_tensor_free(&j.o);
    dq_free(j.host);
    dq_free(j.norm);
    dq_free(j.scratch);
    dq_free(j.weight);
    dq_free(j.row_loss);
    return status;
}
