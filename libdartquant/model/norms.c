/* Weights and biases of norms, through the chain of derived models. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "model/internal.h"

/* A norm's weight; ones once it is fused. */
static dq_status norm64(dq_model *m, int64_t layer, dq_role role, dq_tensor *weight, double *bound)
{
    if (m->kind == DQ_MODEL_ROOT && !m->fused)
        return dq_root_read(m, role, false, dq_root_weight(m, layer, role), 0, weight, bound);
    *bound = 1;
    if (m->kind == DQ_MODEL_ROOT || m->kind == DQ_MODEL_FUSED) return dq_op_fill(1.0, weight);
    DQ_TRY(norm64(m->base, layer, role, weight, bound));
    return m->kind == DQ_MODEL_SCALED ? dq_scale_norm(m, layer, role, weight, bound) : DQ_OK;
}

/* Its bias, for families with layer norms: zeros once it is fused, but behind the last norm (derive_fuse.c). */
static dq_status norm_bias64(dq_model *m, int64_t layer, dq_role role, dq_tensor *bias, double *bound)
{
    if (m->kind == DQ_MODEL_ROOT) return dq_root_read(m, role, true, dq_root_bias(m, layer, role), 0, bias, bound);
    if (m->kind == DQ_MODEL_FUSED && !m->base->fused) return dq_fuse_norm_bias(m, role, bias, bound);
    DQ_TRY(norm_bias64(m->base, layer, role, bias, bound));
    if (m->kind == DQ_MODEL_SCALED) return dq_scale_norm(m, layer, role, bias, bound);
    return m->kind == DQ_MODEL_ROTATED && role == DQ_FINAL_NORM ? dq_rotate_rows(m, role, bias, bound) : DQ_OK;
}

static dq_status read_norm64(dq_model *m, int64_t layer, dq_role role, bool bias, dq_tensor *out)
{
    dq_tensor wide = {0}, t = {0};
    dq_status status;
    double bound;
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, 1, m->arch.hidden, &wide));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F32, 1, m->arch.hidden, &t));
    DQ_GO(bias ? norm_bias64(m, layer, role, &wide, &bound) : norm64(m, layer, role, &wide, &bound));
    DQ_GO(dq_round_weight(m, layer, role, 0, &wide, bound, &t));
    *out = t;
    t = (dq_tensor){0};
done:
    dq_tensor_free(&wide);
    dq_tensor_free(&t);
    return status;
}

static dq_status check_norm(const dq_model *m, int64_t layer, dq_role role)
{
    if (!dq_role_is_norm(role) && !dq_role_is_head_norm(role))
        return dq_fail(DQ_E_INVALID, "%s is not a norm", dq_role_name(role));
    if (role == DQ_FINAL_NORM || (layer >= 0 && layer < m->arch.layers)) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "layer %lld of %lld", (long long)layer, (long long)m->arch.layers);
}

dq_status dq_model_read_norm_bias(dq_model *model, int64_t layer, dq_role role, dq_tensor *out)
{
    DQ_TRY(check_norm(model, layer, role));
    bool there = dq_arch_has_bias(&model->arch, role) && (!model->fused || role == DQ_FINAL_NORM);
    if (there) return read_norm64(model, layer, role, true, out);
    *out = (dq_tensor){0};
    return DQ_OK;
}

dq_status dq_model_read_norm(dq_model *model, int64_t layer, dq_role role, dq_tensor *out)
{
    dq_tensor t = {0};
    double bound;
    int64_t rows, cols;
    DQ_TRY(check_norm(model, layer, role));
    bool own = dq_role_is_head_norm(role); /* no transform reaches them */
    if (own ? !dq_arch_has(&model->arch, role) : model->fused) {
        *out = t;
        return DQ_OK;
    }
    if (model->scaled && !own) return read_norm64(model, layer, role, false, out);
    const dq_model *root = dq_model_root(model);
    dq_arch_shape(&model->arch, role, &rows, &cols);
    DQ_TRY(dq_tensor_alloc(model->dev, DQ_F32, rows, cols, &t));
    dq_status status = dq_root_read(root, role, false, dq_root_weight(root, layer, role), 0, &t, &bound);
    if (status == DQ_OK)
        *out = t;
    else
        dq_tensor_free(&t);
    return status;
}

dq_status dq_model_final_norm(dq_model *model, const dq_block_spec *spec, dq_tensor *hidden)
{
    dq_tensor weight = {0}, bias = {0};
    dq_status status;
    DQ_GO(dq_model_read_norm(model, 0, DQ_FINAL_NORM, &weight));
    DQ_GO(dq_model_read_norm_bias(model, 0, DQ_FINAL_NORM, &bias));
    status = dq_final_norm_apply(spec, &weight, &bias, hidden);
done:
    dq_tensor_free(&weight);
    dq_tensor_free(&bias);
    return status;
}
