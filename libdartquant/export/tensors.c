/* The tensors of a Hugging Face folder: codes in the layout of the plan, everything else as floats.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/half.h"
#include "base/status.h"
#include "export/parts.h"

enum { PIECE_ROWS = 4096 };

void dq_narrow(dq_dtype dtype, const float *in, int64_t count, void *out)
{
    if (dtype == DQ_F32) {
        memcpy(out, in, (size_t)count * sizeof *in);
        return;
    }
    uint16_t *half = out;
    for (int64_t i = 0; i < count; i++) half[i] = dtype == DQ_F16 ? dq_f32_to_f16(in[i]) : dq_f32_to_bf16(in[i]);
}

static float widen(dq_dtype dtype, uint16_t half)
{
    return dtype == DQ_F16 ? dq_f16_to_f32(half) : dq_bf16_to_f32(half);
}

/* ---- reading as floats ---- */

static dq_status download(dq_env *env, const dq_tensor *t, float **out)
{
    float *host = dq_alloc(env, (size_t)(t->view.rows * t->view.cols) * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    dq_status status = dq_tensor_download(t, host);
    if (status == DQ_OK)
        *out = host;
    else
        dq_free(host);
    return status;
}

dq_status dq_export_linear_f32(const dq_export_plan *p, int64_t layer, dq_role role, float **weight, float **bias)
{
    dq_linear l = {0};
    dq_status status;
    *weight = NULL;
    *bias = NULL;
    DQ_GO(dq_model_read_linear(p->model, layer, role, &l));
    DQ_GO(download(p->env, &l.weight, weight));
    if (!dq_tensor_is_empty(&l.bias)) status = download(p->env, &l.bias, bias);
done:
    dq_tensor_free(&l.weight);
    dq_tensor_free(&l.bias);
    return status;
}

/* What was read of a norm, in host memory; `missing` everywhere where it was fused away. Frees `t`. */
static dq_status norm_part(const dq_export_plan *p, dq_tensor *t, float missing, float **out)
{
    int64_t hidden = dq_model_arch(p->model)->hidden;
    if (!dq_tensor_is_empty(t)) {
        dq_status status = download(p->env, t, out);
        dq_tensor_free(t);
        return status;
    }
    *out = dq_alloc(p->env, (size_t)hidden * sizeof **out);
    if (!*out) return DQ_E_NOMEM;
    for (int64_t i = 0; i < hidden; i++) (*out)[i] = missing;
    return DQ_OK;
}

dq_status dq_export_norm_f32(const dq_export_plan *p, int64_t layer, dq_role role, float **out)
{
    dq_tensor t = {0};
    DQ_TRY(dq_model_read_norm(p->model, layer, role, &t));
    return norm_part(p, &t, 1.0f, out);
}

dq_status dq_export_norm_bias_f32(const dq_export_plan *p, int64_t layer, dq_role role, float **out)
{
    dq_tensor t = {0};
    *out = NULL;
    if (!dq_arch_has_bias(dq_model_arch(p->model), role)) return DQ_OK;
    DQ_TRY(dq_model_read_norm_bias(p->model, layer, role, &t));
    return norm_part(p, &t, 0.0f, out);
}

dq_status dq_export_rows(const dq_export_plan *p, dq_role role, int64_t first, int64_t count, dq_dtype dtype, void *out)
{
    dq_tensor rows = {0};
    float *host = NULL;
    DQ_TRY(dq_model_read_rows(p->model, role, first, count, &rows));
    dq_status status = download(p->env, &rows, &host);
    if (status == DQ_OK) dq_narrow(dtype, host, count * rows.view.cols, out);
    dq_tensor_free(&rows);
    dq_free(host);
    return status;
}

/* ---- writing ---- */

/* Norms and biases keep fp32 where the file's type would change them. */
static dq_status put_vector(const dq_export_plan *p, dq_sink *sink, const char *name, int64_t count,
                            const float *values)
{
    dq_dtype dtype = p->dtype;
    uint16_t *half = dq_alloc(p->env, (size_t)count * sizeof *half);
    if (!half) return DQ_E_NOMEM;
    if (dtype != DQ_F32) {
        dq_narrow(dtype, values, count, half);
        for (int64_t i = 0; p->spec->kind != DQ_EXPORT_HF && i < count; i++)
            if (widen(p->dtype, half[i]) != values[i]) dtype = DQ_F32;
    }
    dq_status status = dq_sink_put(sink, name, "", dtype, 0, count, dtype == DQ_F32 ? (const void *)values : half);
    dq_free(half);
    return status;
}

static dq_status put_norm(const dq_export_plan *p, dq_sink *sink, int64_t layer, dq_role role)
{
    char module[DQ_TENSOR_NAME], name[DQ_TENSOR_NAME + 8];
    float *values = NULL, *bias = NULL;
    const dq_arch *a = dq_model_arch(p->model);
    int64_t rows, cols;
    dq_status status;
    dq_arch_shape(a, role, &rows, &cols);
    DQ_GO(dq_export_norm_f32(p, layer, role, &values));
    DQ_GO(dq_export_norm_bias_f32(p, layer, role, &bias));
    dq_arch_module_name(a, role, layer, module, sizeof module);
    snprintf(name, sizeof name, "%s.weight", module);
    DQ_GO(put_vector(p, sink, name, cols, values));
    snprintf(name, sizeof name, "%s.bias", module);
    if (bias) status = put_vector(p, sink, name, cols, bias);
done:
    dq_free(values);
    dq_free(bias);
    return status;
}

static dq_status put_rows(const dq_export_plan *p, dq_sink *sink, dq_role role)
{
    const dq_arch *a = dq_model_arch(p->model);
    char name[DQ_TENSOR_NAME];
    size_t size = dq_dtype_size(p->dtype);
    int64_t all, hidden;
    dq_arch_shape(a, role, &all, &hidden);
    int64_t shape[2] = {all, hidden}, piece = all < PIECE_ROWS ? all : PIECE_ROWS;
    dq_arch_tensor_name(a, role, 0, name, sizeof name);
    void *host = dq_alloc(p->env, (size_t)(piece * a->hidden) * size);
    if (!host) return DQ_E_NOMEM;
    dq_status status = sink->ops->begin(sink, name, p->dtype, 2, shape, (uint64_t)(all * hidden) * (uint64_t)size);
    for (int64_t first = 0; status == DQ_OK && first < all; first += piece) {
        int64_t n = all - first < piece ? all - first : piece;
        status = dq_export_rows(p, role, first, n, p->dtype, host);
        if (status == DQ_OK) status = sink->ops->append(sink, host, (uint64_t)(n * a->hidden) * (uint64_t)size);
    }
    dq_free(host);
    return status;
}

static dq_status put_codes(const dq_export_plan *p, dq_sink *sink, int64_t layer, dq_role role, const char *name)
{
    dq_host_codes c;
    DQ_TRY(dq_export_read_codes(p, layer, role, &c));
    dq_layout l = dq_export_layout(p, &c);
    dq_status status = dq_packed_write(sink, name, &l, p->scale_dtype, &c);
    dq_host_codes_free(&c);
    return status;
}

static dq_status put_weight(const dq_export_plan *p, dq_sink *sink, const char *name, int64_t rows, int64_t cols,
                            float *weight)
{
    char full[DQ_TENSOR_NAME + 8];
    snprintf(full, sizeof full, "%s.weight", name);
    dq_narrow(p->dtype, weight, rows * cols, weight); /* in place: narrower elements never run ahead */
    return dq_sink_put(sink, full, "", p->dtype, rows, cols, weight);
}

static dq_status put_linear(const dq_export_plan *p, dq_sink *sink, int64_t layer, dq_role role)
{
    const dq_arch *a = dq_model_arch(p->model);
    char name[DQ_TENSOR_NAME], bias_name[DQ_TENSOR_NAME + 8];
    int64_t rows, cols;
    float *weight = NULL, *bias = NULL;
    dq_status status = DQ_OK;
    dq_arch_shape(a, role, &rows, &cols);
    dq_arch_module_name(a, role, layer, name, sizeof name);
    bool codes = p->spec->kind == DQ_EXPORT_CODES && dq_model_has_codes(p->model, layer, role);
    if (codes) DQ_GO(put_codes(p, sink, layer, role, name));
    if (codes && !dq_arch_has_bias(a, role)) goto done;
    DQ_GO(dq_export_linear_f32(p, layer, role, &weight, &bias));
    if (!codes) DQ_GO(put_weight(p, sink, name, rows, cols, weight));
    snprintf(bias_name, sizeof bias_name, "%s.bias", name);
    if (bias) status = put_vector(p, sink, bias_name, rows, bias);
done:
    dq_free(weight);
    dq_free(bias);
    return status;
}

/* The matrix of an R4 that has no name in compressed-tensors: M = H^T of +1 and -1, once, at the first layer. */
static dq_status put_r4(const dq_export_plan *p, dq_sink *sink)
{
    const dq_rotation_set *r = dq_model_rotations(p->model);
    char name[DQ_TENSOR_NAME];
    if (!r || r->r4.n == 0 || r->r4.k == 1) return DQ_OK;
    int64_t n = r->r4.n, k = r->r4.k, s = n / k;
    uint16_t *m = dq_alloc(p->env, (size_t)(n * n) * sizeof *m);
    if (!m) return DQ_E_NOMEM;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            int odd = __builtin_popcountll((unsigned long long)((i % s) & (j % s))) & 1;
            m[j * n + i] = dq_f32_to_bf16((float)((odd ? -1 : 1) * r->r4.hk[i / s * k + j / s]));
        }
    dq_arch_module_name(dq_model_arch(p->model), DQ_DOWN_PROJ, 0, name, sizeof name);
    dq_status status = dq_sink_put(sink, name, ".R4_input.weight", DQ_BF16, n, n, m);
    dq_free(m);
    return status;
}

dq_status dq_export_tensors(const dq_export_plan *p, dq_sink *sink)
{
    const dq_arch *a = dq_model_arch(p->model);
    uint64_t units = (uint64_t)a->layers + 2;
    DQ_TRY(sink->ops->set_metadata(sink, "format", "pt"));
    DQ_TRY(put_rows(p, sink, DQ_EMBED));
    if (dq_arch_learns_positions(a)) DQ_TRY(put_rows(p, sink, DQ_POSITIONS));
    for (int64_t layer = 0; layer < a->layers; layer++) {
        for (int role = DQ_ATTN_NORM; dq_role_is_in_layer((dq_role)role); role++)
            if (dq_arch_has(a, (dq_role)role)) DQ_TRY(put_norm(p, sink, layer, (dq_role)role));
        for (int n = 0; n < dq_arch_linears(a); n++) DQ_TRY(put_linear(p, sink, layer, dq_arch_linear(a, n)));
        DQ_TRY(dq_progress_report(p->progress, "export", (uint64_t)layer + 1, units, 0.0));
    }
    DQ_TRY(put_norm(p, sink, 0, DQ_FINAL_NORM));
    if (!a->tied) DQ_TRY(put_rows(p, sink, DQ_HEAD));
    return p->spec->kind == DQ_EXPORT_CODES ? put_r4(p, sink) : DQ_OK;
}
