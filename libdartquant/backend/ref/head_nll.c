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
