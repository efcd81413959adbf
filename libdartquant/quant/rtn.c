/* Round to nearest: every weight to the closest point of its group's grid. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "quant/parts.h"

/* |q(W) - W|^2 / |W|^2, some rows at a time to keep the scratch small. */
static dq_status relative_error(const dq_tensor *w, const dq_codes *codes, double *out)
{
    enum { ROWS = 512 };
    dq_status status;
    dq_tensor scratch = {0};
    double difference = 0, energy = 0;
    int64_t most = codes->out < ROWS ? codes->out : ROWS;
    DQ_GO(dq_tensor_alloc(w->dev, DQ_F32, most, codes->in, &scratch));
    for (int64_t r0 = 0; r0 < codes->out; r0 += most) {
        int64_t rows = codes->out - r0 < most ? codes->out - r0 : most;
        dq_codes part = *codes; /* borrowed slices */
        part.codes = dq_tensor_rows(&codes->codes, r0, rows);
        part.scale = dq_tensor_rows(&codes->scale, r0, rows);
        part.zero = dq_tensor_rows(&codes->zero, r0, rows);
        dq_tensor d = dq_tensor_rows(&scratch, 0, rows), x = dq_tensor_rows(w, r0, rows);
        double a, b;
        DQ_GO(dq_codes_dequantize(&part, &d));
        DQ_GO(dq_op_axpy(-1.0, &x, &d));
        DQ_GO(dq_op_dot(&d, &d, &a));
        DQ_GO(dq_op_dot(&x, &x, &b));
        difference += a;
        energy += b;
    }
    *out = energy > 0 ? difference / energy : 0;
done:
    dq_tensor_free(&scratch);
    return status;
}

dq_status dq_rtn_solve(const dq_weight_spec *spec, const dq_tensor *w, dq_codes *out, double *error)
{
    dq_status status;
    dq_codes codes = {0};
    DQ_GO(dq_codes_alloc(w->dev, spec, w->view.rows, w->view.cols, &codes));
    dq_grid_desc d = dq_weight_grid_desc(spec, codes.group);
    DQ_GO(dq_op_weight_grid(&d, w, &codes.scale, &codes.zero));
    DQ_GO(dq_op_quantize_weight(&d, w, &codes.scale, &codes.zero, NULL, &codes.codes));
    DQ_GO(relative_error(w, &codes, error));
    *out = codes;
    return DQ_OK;
done:
    dq_codes_free(&codes);
    return status;
}
