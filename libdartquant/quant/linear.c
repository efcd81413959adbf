/* Quantizing one linear. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "quant/parts.h"

dq_status dq_quantize_linear(const dq_weight_spec *spec, dq_tensor *w, const dq_tensor *h, dq_codes *out, double *error,
                             double *damping)
{
    DQ_TRY(dq_weight_spec_check(spec));
    if (spec->awq)
        return dq_fail(DQ_E_UNSUPPORTED,
                       "AWQ scales the channels between linears: it needs a whole model, not one weight");
    if (dq_tensor_is_empty(w) || w->view.dtype != DQ_F32 || w->view.rows < 1 || w->view.cols < 1)
        return dq_fail(DQ_E_INVALID, "a weight to quantize is an F32 matrix");
    int64_t bad = -1;
    DQ_TRY(dq_op_find_nonfinite(w, &bad));
    if (bad >= 0)
        return dq_fail(DQ_E_NONFINITE, "weight entry (%lld, %lld) is NaN or Inf", (long long)(bad / w->view.cols),
                       (long long)(bad % w->view.cols));
    if (spec->method == DQ_WEIGHT_RTN) {
        DQ_TRY(dq_rtn_solve(spec, w, out, error));
        *damping = 0;
        return DQ_OK;
    }
    if (dq_tensor_is_empty(h)) return dq_fail(DQ_E_INVALID, "GPTQ needs a Hessian");
    dq_gptq_plan plan = {0};
    DQ_TRY(dq_gptq_plan_make(spec, h, &plan));
    dq_status status = dq_gptq_solve(spec, &plan, w, out, error);
    if (status == DQ_OK) *damping = plan.damping;
    dq_gptq_plan_free(&plan);
    return status;
}
