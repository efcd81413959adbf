/* Channel scales of AWQ (Lin et al., arXiv 2306.00978), folded in double precision. With s the scales of a linear's input:
 *   q, k, v:  W <- W diag(s), weight of the norm before them divided by s;   gate, up: the same
 *   o:        W_h <- W_h diag(s_g), rows of v (and its bias) of KV head g divided by s_g, g = h / (heads / kv_heads)
 *   down:     W <- W diag(s), rows of up (and its bias) divided by s, as the activation multiplies them element by element,
 *             or is ReLU of up itself, which positive factors pass
 * The function stays the same. Norms that were fused become weights again, 1 / s; a norm's bias is divided with its weight.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "dartquant/backend.h"
#include "model/internal.h"

void dq_scales_widths(const dq_arch *a, int64_t width[DQ_SCALE_SITES])
{
    width[DQ_SCALE_QKV] = width[DQ_SCALE_GATE_UP] = a->hidden;
    width[DQ_SCALE_O] = a->kv_heads * a->head_dim;
    width[DQ_SCALE_DOWN] = a->intermediate;
}

int dq_scale_input_site(dq_role role)
{
    if (role <= DQ_V_PROJ || role == DQ_ATTN_NORM) return DQ_SCALE_QKV;
    if (role == DQ_O_PROJ) return DQ_SCALE_O;
    return role == DQ_DOWN_PROJ ? DQ_SCALE_DOWN : DQ_SCALE_GATE_UP;
}

int dq_scale_output_site(dq_role role)
{
    if (role == DQ_V_PROJ) return DQ_SCALE_O;
    return role == DQ_UP_PROJ ? DQ_SCALE_DOWN : -1;
}

/* The scales of one site, or what they leave to be divided by, as F64 [1, n] for the columns that meet them. */
static dq_status upload(const dq_model *m, int64_t layer, int site, bool inverse, int64_t n, dq_tensor *out)
{
    const float *s = dq_scales_at(m->own_scales, layer, site);
    int64_t d = m->arch.head_dim, share = site == DQ_SCALE_O ? n / m->own_scales->width[site] : 1;
    double *host = dq_alloc(m->env, (size_t)n * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    for (int64_t i = 0; i < n; i++) {
        double value = s[share > 1 ? i / d / share * d + i % d : i];
        host[i] = inverse ? 1.0 / value : value;
    }
    dq_status status = dq_tensor_from_host(m->dev, DQ_F64, 1, n, host, out);
    dq_free(host);
    return status;
}

/* The largest scale of a site, or 1 / the smallest. */
static double growth_of(const dq_model *m, int64_t layer, int site, bool inverse)
{
    const float *s = dq_scales_at(m->own_scales, layer, site);
    float low = s[0], high = s[0];
    for (int64_t i = 1; i < m->own_scales->width[site]; i++) {
        if (s[i] < low) low = s[i];
        if (s[i] > high) high = s[i];
    }
    return inverse ? 1.0 / (double)low : (double)high;
}

static dq_status scale_cols(const dq_model *m, int64_t layer, int site, bool inverse, dq_tensor *w, double *bound)
{
    dq_tensor v = {0};
    *bound *= growth_of(m, layer, site, inverse);
    DQ_TRY(upload(m, layer, site, inverse, w->view.cols, &v));
    dq_status status = dq_op_scale_cols(w, &v, w);
    dq_tensor_free(&v);
    return status;
}

dq_status dq_scale_linear(dq_model *m, int64_t layer, dq_role role, dq_tensor *w, double *bound)
{
    int site = dq_scale_output_site(role);
    DQ_TRY(scale_cols(m, layer, dq_scale_input_site(role), false, w, bound));
    if (site < 0) return DQ_OK;
    *bound *= growth_of(m, layer, site, true);
    return dq_divide_rows(dq_scales_at(m->own_scales, layer, site), w);
}

dq_status dq_scale_bias(dq_model *m, int64_t layer, dq_role role, dq_tensor *bias, double *bound)
{
    int site = dq_scale_output_site(role);
    return site < 0 ? DQ_OK : scale_cols(m, layer, site, true, bias, bound);
}

dq_status dq_scale_norm(dq_model *m, int64_t layer, dq_role role, dq_tensor *weight, double *bound)
{
    if (role == DQ_FINAL_NORM) return DQ_OK;
    return scale_cols(m, layer, dq_scale_input_site(role), true, weight, bound);
}

static dq_status check_scales(const dq_model *base, const dq_scales *s)
{
    const dq_rotation_set *r = base->rotations;
    int64_t width[DQ_SCALE_SITES];
    dq_scales_widths(&base->arch, width);
    bool fits = s->layers == base->arch.layers;
    for (int site = 0; site < DQ_SCALE_SITES; site++) fits = fits && s->width[site] == width[site];
    if (!fits) return dq_fail(DQ_E_MISMATCH, "channel scales of another model");
    for (int64_t layer = 0; layer < s->layers; layer++)
        for (int site = 0; site < DQ_SCALE_SITES; site++) {
            const float *at = dq_scales_at(s, layer, site);
            bool fixed = !dq_scales_possible(&base->arch, r, site);
            for (int64_t i = 0; i < width[site]; i++) {
                if (!(at[i] > 0.0f && isfinite(at[i])))
                    return dq_fail(DQ_E_INVALID, "channel scale %lld of layer %lld is %g", (long long)i,
                                   (long long)layer, (double)at[i]);
                if (fixed && at[i] != 1.0f)
                    return dq_fail(
                        DQ_E_INVALID,
                        "%s input is rotated at run time, or behind an activation that no factor passes: its channels cannot be scaled",
                        site == DQ_SCALE_O ? "the o_proj" : "the down_proj");
            }
        }
    return DQ_OK;
}

bool dq_scales_possible(const dq_arch *a, const dq_rotation_set *r, int site)
{
    /* act(x / s) = act(x) / s where a gate stands between, or of ReLU */
    if (site == DQ_SCALE_DOWN && !dq_arch_is_gated(a) && a->activation != DQ_ACT_RELU) return false;
    if (site == DQ_SCALE_O) return !r || r->r2_mode != DQ_R2_ONLINE;
    return site != DQ_SCALE_DOWN || !r || r->r4.n == 0;
}

dq_status dq_model_derive_scaled(dq_model *base, const dq_scales *scales, dq_model **out)
{
    if (base->scheme && base->scheme->w.bits < 16)
        return dq_fail(DQ_E_STATE, "the channels of a quantized model cannot be scaled");
    if (base->scaled) return dq_fail(DQ_E_STATE, "the model's channels are scaled already");
    DQ_TRY(check_scales(base, scales));
    dq_model *m;
    DQ_TRY(dq_model_derive(base, DQ_MODEL_SCALED, &m));
    m->scaled = true;
    m->fused = false; /* norms have weights again */
    dq_status status = dq_scales_copy(m->env, scales, &m->own_scales);
    if (status == DQ_OK)
        *out = m;
    else
        dq_model_release(m);
    return status;
}
