/* Streaming log-sum-exp over tiles of the vocabulary. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/ref/ops.h"

/* state = {max, sum of exp(logit - max), target logit} */
static void add_logit(double *state, double logit)
{
    if (logit <= state[0]) {
        if (logit != -INFINITY) state[1] += exp(logit - state[0]);
        return;
    }
    /* A NaN logit lands here and makes the state NaN: it must not vanish. */
    state[1] = (state[0] == -INFINITY ? 0.0 : state[1] * exp(state[0] - logit)) + 1.0;
    state[0] = logit;
}

dq_status dq_ref_head_nll(void *dev, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                          const dq_view *state, int32_t math)
{
    double *line = dq_ref_scratch(dev, x->cols, sizeof(double));
    if (!line) return DQ_E_NOMEM;
    const int32_t *target = dq_view_i32(targets, 0);
    for (int64_t r = 0; r < x->rows; r++) {
        double *s = dq_view_f64(state, r);
        for (int64_t c = 0; c < x->cols; c++) line[c] = dq_ref_operand(x, r, c, math);
        for (int64_t j = 0; j < w->rows; j++) {
            double logit = 0;
            for (int64_t c = 0; c < x->cols; c++) logit += line[c] * dq_ref_operand(w, j, c, math);
            add_logit(s, logit);
            if (target[r] == first + j) s[2] = logit;
        }
    }
    dq_ref_release(dev, line);
    return DQ_OK;
}

/* The same for the reference's logit a with b beside it: state[2] is the sum of exp(a - max) (a - b). */
static void add_pair(double *state, double a, double b)
{
    if (a > state[0] || isnan(a)) {
        double shrink = state[0] == -INFINITY ? 0.0 : exp(state[0] - a);
        state[1] *= shrink;
        state[2] *= shrink;
        state[0] = a;
    }
    double e = exp(a - state[0]);
    state[1] += e;
    state[2] += e * (a - b);
}

dq_status dq_ref_compare_logits(void *dev, const dq_view *a, const dq_view *b, int64_t first, const dq_view *state)
{
    (void)dev;
    for (int64_t r = 0; r < a->rows; r++) {
        const float *x = dq_view_f32(a, r), *y = dq_view_f32(b, r);
        double *s = dq_view_f64(state, r);
        for (int64_t c = 0; c < a->cols; c++) {
            double model[3] = {s[3], s[4], 0};
            if ((double)x[c] > s[0]) s[5] = (double)(first + c);
            if ((double)y[c] > s[3]) s[6] = (double)(first + c);
            add_pair(s, (double)x[c], (double)y[c]);
            add_logit(model, (double)y[c]);
            s[3] = model[0];
            s[4] = model[1];
        }
    }
    return DQ_OK;
}
