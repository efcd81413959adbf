/* Losses through a rotation: on the device where a row decides alone, else product, loss on the host, product.
 * SPDX-License-Identifier: Apache-2.0 */
#include "calib/loss.h"

#include <math.h>

#include "base/status.h"

typedef struct loss_info {
    const char *name;
    int device; /* kind of the device's rotation_loss, -1 = takes a batch */
} loss_info;

static const loss_info infos[DQ_FIT_LOSSES] = {
    [DQ_FIT_WHIP] = {"whip", DQ_LOSS_WHIP},
    [DQ_FIT_KURTOSIS] = {"kurtosis", DQ_LOSS_KURTOSIS},
    [DQ_FIT_VARIANCE] = {"variance", DQ_LOSS_VARIANCE},
    [DQ_FIT_QUANT] = {"quant-mse", DQ_LOSS_QUANT},
    [DQ_FIT_RANGE] = {"range", DQ_LOSS_RANGE},
    [DQ_FIT_SNAP] = {"snap", DQ_LOSS_SNAP},
    [DQ_FIT_SWD] = {"swd", -1},
    [DQ_FIT_SWD_CHANNEL] = {"swd-channel", -1},
    [DQ_FIT_SWD_GAUSS] = {"swd-gauss", -1},
    [DQ_FIT_HOST] = {"host", -1},
};

const char *dq_loss_name(dq_fit_loss kind) { return kind < DQ_FIT_LOSSES ? infos[kind].name : "?"; }
bool dq_loss_takes_batch(dq_fit_loss kind) { return infos[kind].device < 0; }

/* Its gradient falls with the square of the steps in the range, of which 4 bits have 15. */
static double unit_of_range(const dq_quant_target *q)
{
    double steps = q->symmetric ? 2.0 * ((1 << (q->bits - 1)) - 1) : (1 << q->bits) - 1;
    return 225 / (steps * steps);
}

double dq_loss_curvature(const dq_loss *loss, int64_t width)
{
    switch (loss->kind) {
        case DQ_FIT_RANGE: return unit_of_range(&loss->quant);
        case DQ_FIT_SNAP: return 1;
        case DQ_FIT_WHIP: return 1; /* exp(-|o|) <= 1 away from the kink at 0, which is concave */
        case DQ_FIT_QUANT: return 2;
        case DQ_FIT_VARIANCE:
        case DQ_FIT_SWD:
        case DQ_FIT_SWD_CHANNEL:
        case DQ_FIT_SWD_GAUSS: return 2.0 / (double)width; /* quadratic once targets are fixed */
        case DQ_FIT_HOST: return loss->curvature;
        default: return 0;
    }
}

/* ---- decided by each row ---- */

static dq_status on_device(const dq_loss *loss, const dq_orbit *orbit, const dq_tensor *x, const dq_tensor *r,
                           double weight, double shift, double beta, dq_tensor *grad, int math, double *value)
{
    const dq_quant_target *q = &loss->quant;
    double sum = 0, rows = (double)x->view.rows;
    dq_rotation_loss_desc d = {.kind = infos[loss->kind].device,
                               .math = math,
                               .n = orbit->n,
                               .heads = orbit->heads,
                               .groups = orbit->groups,
                               .group = dq_orbit_width(orbit),
                               .bits = 4,
                               .clip = 1,
                               .relative = loss->relative,
                               .scale = weight / rows,
                               .beta = beta,
                               .shift = shift};
    if (loss->kind >= DQ_FIT_QUANT) {
        if (q->group > 0) d.group = q->group;
        d.bits = q->bits;
        d.symmetric = q->symmetric;
        d.clip = (float)q->clip;
    }
    if (weight == 0) d.scale = 1 / rows; /* the value is wanted all the same */
    DQ_TRY(dq_op_rotation_loss(&d, x, NULL, r, grad, NULL, &sum));
    *value = weight == 0 ? sum : sum / weight;
    return DQ_OK;
}

/* ---- decided by a batch ---- */

static dq_status on_host(const dq_loss *loss, const dq_orbit *orbit, const dq_tensor *x, const dq_tensor *r,
                         double weight, double shift, double beta, dq_tensor *grad, int math, double *value)
{
    dq_env *env = dq_device_env(x->dev);
    int64_t rows = x->view.rows, width = dq_orbit_width(orbit);
    size_t count = (size_t)(rows * width);
    dq_status status = DQ_E_NOMEM;
    dq_tensor o = {0};
    float *numbers = dq_alloc(env, count * sizeof *numbers), *slope = NULL;
    if (!numbers || (grad && !(slope = dq_alloc(env, count * sizeof *slope)))) goto done;
    DQ_GO(dq_tensor_alloc(x->dev, DQ_F32, rows, width, &o));
    DQ_GO(dq_rotate_heads(orbit->n, orbit->heads, orbit->groups, x, r, &o, math));
    DQ_GO(dq_tensor_download(&o, numbers));
    DQ_GO(dq_loss_of_batch(env, loss, numbers, rows, width, slope, value));
    if (grad) {
        float of_each = (float)(shift / (double)rows);
        if (shift != 0)
            for (size_t i = 0; i < count; i++) slope[i] += of_each * numbers[i];
        DQ_GO(dq_tensor_upload(&o, slope));
        DQ_GO(dq_rotate_heads_back(orbit->n, orbit->heads, orbit->groups, x, &o, weight, beta, grad, math));
    }
done:
    dq_tensor_free(&o);
    dq_free(numbers);
    dq_free(slope);
    return status;
}

dq_status dq_loss_of_rotation(const dq_loss *loss, const dq_orbit *orbit, const dq_tensor *x, const dq_tensor *r,
                              double weight, double shift, double beta, dq_tensor *grad, int math, double *value)
{
    return (dq_loss_takes_batch(loss->kind) ? on_host : on_device)(loss, orbit, x, r, weight, shift, beta, grad, math,
                                                                   value);
}

dq_status dq_quant_error_of_rotation(const dq_quant_target *quant, const dq_orbit *orbit, const dq_tensor *x,
                                     const dq_tensor *r, int math, double *value)
{
    dq_loss loss = {.kind = DQ_FIT_QUANT, .quant = *quant, .relative = true};
    return on_device(&loss, orbit, x, r, 1, 0, 0, NULL, math, value);
}
