/* Norm weights multiplied into the linears that read them; afterwards every norm is weightless.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "model/internal.h"

/* columns of w times the weight of a norm */
static dq_status scale_by_norm(dq_model *m, int64_t layer, dq_role norm, dq_tensor *w, double *bound)
{
    dq_tensor weight = {0};
    double largest;
    dq_status status;
    const dq_model *root = dq_model_root(m);
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, 1, m->arch.hidden, &weight));
    DQ_GO(dq_root_read(root, norm, false, dq_root_weight(root, layer, norm), 0, &weight, &largest));
    *bound *= largest;
    status = dq_op_scale_cols(w, &weight, w);
done:
    dq_tensor_free(&weight);
    return status;
}

dq_status dq_fuse_linear(dq_model *m, int64_t layer, dq_role role, dq_tensor *w, double *bound)
{
    if (m->base->fused) return DQ_OK;
    if (role == DQ_O_PROJ || role == DQ_DOWN_PROJ) return DQ_OK;
    return scale_by_norm(m, layer, role <= DQ_V_PROJ ? DQ_ATTN_NORM : DQ_MLP_NORM, w, bound);
}

/* w -= mean of each row: w - (w 1/n) 1^T */
static dq_status center_rows(dq_model *m, dq_tensor *w)
{
    dq_tensor mean = {0}, ones = {0};
    dq_status status;
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, w->view.rows, 1, &mean));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, 1, w->view.cols, &ones));
    DQ_GO(dq_op_fill(1.0, &ones));
    DQ_GO(dq_op_gemm(false, true, 1.0 / (double)w->view.cols, w, &ones, 0.0, &mean, DQ_MATH_F32));
    status = dq_op_gemm(false, false, -1.0, &mean, &ones, 1.0, w, DQ_MATH_F32);
done:
    dq_tensor_free(&mean);
    dq_tensor_free(&ones);
    return status;
}

dq_status dq_fuse_rows(dq_model *m, dq_role role, dq_tensor *rows, double *bound)
{
    if (role != DQ_EMBED) return m->base->fused ? DQ_OK : scale_by_norm(m, 0, DQ_FINAL_NORM, rows, bound);
    if (!m->centered || m->base->centered) return DQ_OK;
    *bound *= 2;
    return center_rows(m, rows);
}

dq_status dq_model_derive_fused(dq_model *base, bool center_embedding, dq_model **out)
{
    if (base->scaled) return dq_fail(DQ_E_STATE, "norms cannot be fused after channels were scaled");
    bool center = center_embedding && !base->centered;
    if (base->fused && !center) {
        *out = dq_model_retain(base);
        return DQ_OK;
    }
    if (base->rotations || base->scheme)
        return dq_fail(DQ_E_STATE, "norms must be fused before the model is rotated or quantized");
    dq_model *m;
    DQ_TRY(dq_model_derive(base, DQ_MODEL_FUSED, &m));
    m->fused = true;
    m->centered = base->centered || center;
    m->arch.tied = false; /* the head gets the final norm, the embedding does not */
    *out = m;
    return DQ_OK;
}
