/* Norm weights multiplied into the linears that read them; afterwards every norm is a weightless RMS norm.
 *
 * A layer norm (OPT) is an RMS norm of what is left of a vector without its mean. So the mean is taken from everything that is
 * added to the residual stream (rows of the embedding and of the positions, columns and bias of out_proj and fc2; QuaRot, arXiv
 * 2404.00456), and a norm's bias beta joins the biases of what reads it: b + W beta. The head has no bias to take W beta. But
 * the stream is now orthogonal to u = (1, ..., 1) / sqrt(n): the head becomes W diag(gamma) (I - u u^T) + (W beta) u^T, and u is
 * added behind the final norm, whose bias it is from here on (graph/block.h: dq_final_norm_apply). SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "model/internal.h"

static bool writes_stream(dq_role role) { return role == DQ_O_PROJ || role == DQ_DOWN_PROJ; }
static dq_role norm_before(dq_role role) { return role <= DQ_V_PROJ ? DQ_ATTN_NORM : DQ_MLP_NORM; }

/* The weight or the bias of a norm as F64 [1, hidden]. */
static dq_status read_norm(dq_model *m, int64_t layer, dq_role norm, bool bias, dq_tensor *out, double *largest)
{
    const dq_model *root = dq_model_root(m);
    int64_t tensor = bias ? dq_root_bias(root, layer, norm) : dq_root_weight(root, layer, norm);
    DQ_TRY(dq_tensor_alloc(m->dev, DQ_F64, 1, m->arch.hidden, out));
    dq_status status = dq_root_read(root, norm, bias, tensor, 0, out, largest);
    if (status != DQ_OK) dq_tensor_free(out);
    return status;
}

/* columns of w times the weight of a norm */
static dq_status scale_by_norm(dq_model *m, int64_t layer, dq_role norm, dq_tensor *w, double *bound)
{
    dq_tensor weight = {0};
    double largest;
    DQ_TRY(read_norm(m, layer, norm, false, &weight, &largest));
    *bound *= largest;
    dq_status status = dq_op_scale_cols(w, &weight, w);
    dq_tensor_free(&weight);
    return status;
}

/* w -= mean of its rows: what it adds to the residual stream has no mean then */
static dq_status center_cols(dq_model *m, dq_tensor *w, double *bound)
{
    dq_tensor mean = {0}, ones = {0};
    dq_status status;
    *bound *= 2;
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, 1, w->view.cols, &mean));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, 1, w->view.rows, &ones));
    DQ_GO(dq_op_fill(1.0, &ones));
    DQ_GO(dq_op_gemm(false, false, 1.0 / (double)w->view.rows, &ones, w, 0.0, &mean, DQ_MATH_F32));
    status = dq_op_axpy(-1.0, &mean, w);
done:
    dq_tensor_free(&mean);
    dq_tensor_free(&ones);
    return status;
}

/* w -= mean of each row: w - (w 1/n) 1^T. `along` [rows, 1], or NULL: what each row gets in the direction of u instead. */
static dq_status center_rows(dq_model *m, const dq_tensor *along, dq_tensor *w, double *bound)
{
    dq_tensor mean = {0}, ones = {0};
    dq_status status;
    double n = (double)w->view.cols;
    *bound *= 2;
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, w->view.rows, 1, &mean));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, 1, w->view.cols, &ones));
    DQ_GO(dq_op_fill(1.0, &ones));
    DQ_GO(dq_op_gemm(false, true, 1.0 / n, w, &ones, 0.0, &mean, DQ_MATH_F32));
    if (along) DQ_GO(dq_op_axpy(-1.0 / sqrt(n), along, &mean));
    status = dq_op_gemm(false, false, -1.0, &mean, &ones, 1.0, w, DQ_MATH_F32);
done:
    dq_tensor_free(&mean);
    dq_tensor_free(&ones);
    return status;
}

/* ---- linears ---- */

bool dq_fuse_mixes_rows(const dq_model *m, dq_role role) { return m->base->layer_norm && writes_stream(role); }

dq_status dq_fuse_linear(dq_model *m, int64_t layer, dq_role role, dq_tensor *w, double *bound)
{
    if (m->base->fused) return DQ_OK;
    if (writes_stream(role)) return m->base->layer_norm ? center_cols(m, w, bound) : DQ_OK;
    return scale_by_norm(m, layer, norm_before(role), w, bound);
}

/* bias += W beta, with W before the norm's weight went into it */
static dq_status add_norm_bias(dq_model *m, int64_t layer, dq_role role, dq_tensor *bias, double *bound)
{
    int64_t rows, cols;
    double largest, most = 0, here;
    dq_tensor beta = {0}, wide = {0};
    dq_status status;
    dq_arch_shape(&m->arch, role, &rows, &cols);
    int64_t step = dq_rows_at_once(m, rows, cols);
    DQ_GO(read_norm(m, layer, norm_before(role), true, &beta, &largest));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, step, cols, &wide));
    for (int64_t first = 0; first < rows; first += step) {
        int64_t n = rows - first < step ? rows - first : step;
        dq_tensor block = dq_tensor_rows(&wide, 0, n), part = dq_tensor_slice(bias, 0, 1, first, n);
        DQ_GO(dq_linear64(m->base, layer, role, first, &block, &here));
        DQ_GO(dq_op_gemm(false, true, 1.0, &beta, &block, 1.0, &part, DQ_MATH_F32));
        if (!(here <= most)) most = here;
    }
    *bound += largest * most * (double)cols;
done:
    dq_tensor_free(&beta);
    dq_tensor_free(&wide);
    return status;
}

dq_status dq_fuse_bias(dq_model *m, int64_t layer, dq_role role, dq_tensor *bias, double *bound)
{
    if (!m->base->layer_norm) return DQ_OK;
    return writes_stream(role) ? center_rows(m, NULL, bias, bound) : add_norm_bias(m, layer, role, bias, bound);
}

/* ---- the two ends ---- */

/* W diag(gamma) (I - u u^T) + (W beta) u^T */
static dq_status fuse_head(dq_model *m, dq_tensor *rows, double *bound)
{
    dq_tensor beta = {0}, along = {0};
    double largest, before = *bound;
    dq_status status;
    DQ_GO(read_norm(m, 0, DQ_FINAL_NORM, true, &beta, &largest));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, rows->view.rows, 1, &along));
    DQ_GO(dq_op_gemm(false, true, 1.0, rows, &beta, 0.0, &along, DQ_MATH_F32));
    DQ_GO(scale_by_norm(m, 0, DQ_FINAL_NORM, rows, bound));
    DQ_GO(center_rows(m, &along, rows, bound));
    *bound += before * largest * sqrt((double)rows->view.cols);
done:
    dq_tensor_free(&beta);
    dq_tensor_free(&along);
    return status;
}

dq_status dq_fuse_rows(dq_model *m, dq_role role, dq_tensor *rows, double *bound)
{
    if (role != DQ_HEAD) return m->centered && !m->base->centered ? center_rows(m, NULL, rows, bound) : DQ_OK;
    if (m->base->fused) return DQ_OK;
    return m->base->layer_norm ? fuse_head(m, rows, bound) : scale_by_norm(m, 0, DQ_FINAL_NORM, rows, bound);
}

dq_status dq_fuse_norm_bias(dq_model *m, dq_role role, dq_tensor *bias, double *bound)
{
    *bound = 1;
    return dq_op_fill(role == DQ_FINAL_NORM ? 1.0 / sqrt((double)m->arch.hidden) : 0.0, bias);
}

dq_status dq_model_derive_fused(dq_model *base, bool center_embedding, dq_model **out)
{
    if (base->scaled) return dq_fail(DQ_E_STATE, "norms cannot be fused after channels were scaled");
    bool center = (center_embedding || base->layer_norm) && !base->centered;
    if (base->fused && !center) {
        *out = dq_model_retain(base);
        return DQ_OK;
    }
    if (base->rotations || base->scheme)
        return dq_fail(DQ_E_STATE, "norms must be fused before the model is rotated or quantized");
    dq_model *m;
    DQ_TRY(dq_model_derive(base, DQ_MODEL_FUSED, &m));
    m->fused = true;
    m->layer_norm = false;
    m->centered = base->centered || center;
    m->arch.tied = false; /* the head gets the final norm, the embedding does not */
    *out = m;
    return DQ_OK;
}
