/* The ratio with the smallest error at one place. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "quant/clip.h"

/* e_g G_g e_g^T summed over rows and groups; p is scratch like e. */
static dq_status weighted_square(const dq_tensor *e, const dq_tensor *gram, int math, dq_tensor *p, double *out)
{
    if (dq_tensor_is_empty(gram)) return dq_op_dot(e, e, out);
    int64_t n = gram->view.cols, rows = e->view.rows;
    for (int64_t g = 0; g < e->view.cols / n; g++) {
        dq_tensor part = dq_tensor_slice(e, 0, rows, g * n, n), to = dq_tensor_slice(p, 0, rows, g * n, n);
        dq_tensor matrix = dq_tensor_rows(gram, g * n, n);
        DQ_TRY(dq_op_gemm(false, false, 1.0, &part, &matrix, 0.0, &to, math));
    }
    return dq_op_dot(e, p, out);
}

dq_status dq_clip_search(const dq_act_spec *spec, const char *what, const dq_tensor *x, const dq_tensor *gram, int math,
                         double errors[DQ_CLIP_CANDIDATES], double *best)
{
    dq_tensor e = {0}, p = {0};
    dq_status status;
    double least = INFINITY;
    DQ_GO(dq_tensor_alloc(x->dev, DQ_F32, x->view.rows, x->view.cols, &e));
    if (!dq_tensor_is_empty(gram)) DQ_GO(dq_tensor_alloc(x->dev, DQ_F32, x->view.rows, x->view.cols, &p));
    for (int i = 0; i < DQ_CLIP_CANDIDATES; i++) {
        dq_act_spec tried = *spec;
        const dq_tensor *ignored;
        double error;
        tried.clip = dq_clip_candidate(i);
        DQ_GO(dq_fake_quant_apply(&tried, what, x, &e, &ignored));
        DQ_GO(dq_op_axpy(-1.0, x, &e));
        DQ_GO(weighted_square(&e, gram, math, &p, &error));
        if (!isfinite(error)) {
            status = dq_fail(DQ_E_NONFINITE, "the error of the quantized %s is not finite", what);
            goto done;
        }
        if (errors) errors[i] = error;
        if (error < least) {
            least = error;
            *best = tried.clip;
        }
    }
done:
    dq_tensor_free(&e);
    dq_tensor_free(&p);
    return status;
}
