/* AWQ of one layer. Attention and MLP are alike: a cut A whose input comes from a norm and a cut B whose input comes from a
 * linear of A (v, up), so scales of both must be known before A's linears are rounded. Rows that are divided by B's scales
 * keep their codes: their grid is divided instead. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "quant/awq.h"
#include "quant/job_parts.h"

/* One cut: what it sees and what was found. */
typedef struct cut {
    dq_walk_cut fn;
    int site, first, last; /* linears */
    int64_t in, share;
    dq_tensor gram;
    float *magnitude; /* [in] */
    float *scale;     /* [in]: at the columns */
    float *found;     /* in job->scales */
} cut;

/* ---- looking ---- */

static dq_status look(dq_quantize_job *job, dq_block *block, cut *c)
{
    dq_device *dev = dq_model_device(job->model);
    dq_tensor mean = {0};
    dq_status status = DQ_OK;
    int64_t rows;
    dq_arch_shape(job->arch, (dq_role)c->first, &rows, &c->in);
    c->share = c->site == DQ_SCALE_O ? job->arch->heads / job->arch->kv_heads : 1;
    c->found = dq_scales_at(job->scales, job->layer, c->site);
    c->magnitude = dq_alloc(job->env, (size_t)c->in * sizeof *c->magnitude);
    c->scale = dq_alloc(job->env, (size_t)c->in * sizeof *c->scale);
    if (!c->magnitude || !c->scale) return DQ_E_NOMEM;
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, c->in, c->in, &c->gram));
    DQ_GO(dq_op_fill(0, &c->gram));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, 1, c->in, &mean));
    DQ_GO(dq_op_fill(0, &mean));
    job->walk->magnitude = &mean;
    status = c->fn(job->walk, block, &c->gram, (dq_walk_tick){dq_job_tick, job});
    job->walk->magnitude = NULL;
    if (status == DQ_OK) status = dq_hessian_mirror(&c->gram);
    if (status == DQ_OK) status = dq_tensor_download(&mean, c->magnitude);
done:
    dq_tensor_free(&mean);
    return status;
}

static dq_status search(dq_quantize_job *job, const dq_block *block, cut *c)
{
    const dq_tensor *linears[DQ_BLOCK_LINEARS];
    dq_awq_input input = {.linears = linears, .h = &c->gram, .x = c->magnitude, .share = c->share};
    input.head_dim = job->arch->head_dim;
    for (int i = c->first; i <= c->last; i++) linears[input.count++] = &block->linear[i].weight;
    double start = dq_now();
    dq_status status = DQ_OK;
    if (dq_scales_possible(job->arch, dq_model_rotations(job->model), c->site))
        status = dq_awq_search(&job->spec, &input, c->found, NULL);
    for (int64_t i = 0; i < c->in; i++) c->scale[i] = c->found[dq_awq_source(i, c->share, input.head_dim)];
    job->report.seconds_solve += dq_now() - start;
    return dq_job_name_error(job, (dq_role)c->first, status);
}

/* ---- scaling ---- */

static dq_status scale_cols(const cut *c, const dq_tensor *from, dq_tensor *to)
{
    dq_tensor v = {0};
    DQ_TRY(dq_tensor_from_host(from->dev, DQ_F32, 1, c->in, c->scale, &v));
    dq_status status = dq_op_scale_cols(from, &v, to);
    dq_tensor_free(&v);
    return status;
}

static dq_status divide_cols(dq_quantize_job *job, const cut *c, dq_tensor *t)
{
    dq_tensor v = {0};
    float *inverse = dq_alloc(job->env, (size_t)c->in * sizeof *inverse);
    if (!inverse) return DQ_E_NOMEM;
    for (int64_t i = 0; i < c->in; i++) inverse[i] = 1.0f / c->scale[i];
    dq_status status = dq_tensor_from_host(t->dev, DQ_F32, 1, c->in, inverse, &v);
    if (status == DQ_OK) status = dq_op_scale_cols(t, &v, t);
    dq_tensor_free(&v);
    dq_free(inverse);
    return status;
}

/* The block's linears and norm become those of the scaled model. */
static dq_status scale_block(dq_quantize_job *job, dq_block *block, const cut *c)
{
    dq_tensor *norm = c->site == DQ_SCALE_QKV       ? &block->attn_norm
                      : c->site == DQ_SCALE_GATE_UP ? &block->mlp_norm
                                                    : NULL;
    for (int i = c->first; i <= c->last; i++) DQ_TRY(scale_cols(c, &block->linear[i].weight, &block->linear[i].weight));
    if (!norm) return DQ_OK;
    if (dq_tensor_is_empty(norm)) {
        DQ_TRY(dq_tensor_alloc(dq_model_device(job->model), DQ_F32, 1, c->in, norm));
        DQ_TRY(dq_op_fill(1.0, norm));
    }
    DQ_TRY(divide_cols(job, c, norm));
    dq_tensor *bias = c->site == DQ_SCALE_QKV ? &block->attn_norm_bias : &block->mlp_norm_bias;
    return dq_tensor_is_empty(bias) ? DQ_OK : divide_cols(job, c, bias);
}

/* The scales that divide a linear's rows. */
static const float *divisors(const dq_quantize_job *job, int role)
{
    int site = dq_scale_output_site((dq_role)role);
    return site < 0 ? NULL : dq_scales_at(job->scales, job->layer, site);
}

/* Biases of the linears whose rows B's scales divide; their codes are divided when they are made. */
static dq_status divide_biases(dq_quantize_job *job, dq_block *block, const cut *a, const cut *b)
{
    for (int i = a->first; i <= a->last; i++) {
        dq_tensor *bias = &block->linear[i].bias, v = {0};
        if (!divisors(job, i) || dq_tensor_is_empty(bias)) continue;
        int64_t n = bias->view.cols;
        float *inverse = dq_alloc(job->env, (size_t)n * sizeof *inverse);
        if (!inverse) return DQ_E_NOMEM;
        for (int64_t k = 0; k < n; k++) inverse[k] = 1.0f / b->found[k];
        dq_status status = dq_tensor_from_host(bias->dev, DQ_F32, 1, n, inverse, &v);
        if (status == DQ_OK) status = dq_op_scale_cols(bias, &v, bias);
        dq_tensor_free(&v);
        dq_free(inverse);
        DQ_TRY(status);
    }
    return DQ_OK;
}

/* ---- rounding ---- */

static dq_status round_linear(dq_quantize_job *job, const cut *c, int role, const dq_linear *linear)
{
    dq_status status;
    dq_weight_spec spec = job->spec;
    dq_tensor w = {0};
    dq_codes codes = {0};
    const float *divide = divisors(job, role);
    double error, start = dq_now();
    /* Errors of queries and keys pass through the softmax: the authors leave their ranges alone. */
    if (role == DQ_BLOCK_Q || role == DQ_BLOCK_K) spec.clip_search = false;
    DQ_GO(dq_tensor_alloc(linear->weight.dev, DQ_F32, linear->weight.view.rows, c->in, &w));
    DQ_GO(scale_cols(c, &linear->weight, &w));
    DQ_GO(dq_awq_round(&spec, &w, &c->gram, c->scale, &codes, &error));
    if (divide) DQ_GO(dq_divide_rows(divide, &codes.scale));
    job->report.seconds_solve += dq_now() - start;
    DQ_GO(dq_job_deliver(job, (dq_role)role, &codes, error, 0));
done:
    dq_codes_free(&codes);
    dq_tensor_free(&w);
    return status;
}

static dq_status round_all(dq_quantize_job *job, const dq_block *block, const cut *c)
{
    for (int i = c->first; i <= c->last; i++)
        DQ_TRY(dq_job_name_error(job, (dq_role)i, round_linear(job, c, i, &block->linear[i])));
    return DQ_OK;
}

/* A's inputs after scaling have diag(1/s) H diag(1/s); B's are gathered anew, from quantized weights. */
static dq_status gptq_both(dq_quantize_job *job, dq_block *block, cut *a, cut *b)
{
    dq_gptq_plan plan = {0};
    dq_status status;
    double start = dq_now();
    dq_tensor_free(&b->gram);
    DQ_GO(scale_block(job, block, a));
    DQ_GO(scale_block(job, block, b));
    DQ_GO(divide_biases(job, block, a, b));
    DQ_GO(divide_cols(job, a, &a->gram));
    DQ_GO(dq_divide_rows(a->scale, &a->gram));
    DQ_GO(dq_job_name_error(job, (dq_role)a->first, dq_gptq_plan_make(&job->spec, &a->gram, &plan)));
    job->report.seconds_solve += dq_now() - start;
    for (int i = a->first; i <= a->last; i++) {
        status = dq_job_gptq_linear(job, &plan, (dq_role)i, &block->linear[i], divisors(job, i));
        DQ_GO(dq_job_name_error(job, (dq_role)i, status));
    }
    dq_gptq_plan_free(&plan);
    dq_tensor_free(&a->gram);
    return dq_job_gptq_stage(job, block, b->fn, b->first, b->last);
done:
    dq_gptq_plan_free(&plan);
    return status;
}

static void clear(cut *c)
{
    dq_tensor_free(&c->gram);
    dq_free(c->magnitude);
    dq_free(c->scale);
}

static dq_status half(dq_quantize_job *job, dq_block *block, cut a, cut b)
{
    dq_status status;
    DQ_GO(look(job, block, &a));
    DQ_GO(look(job, block, &b));
    DQ_GO(search(job, block, &a));
    DQ_GO(search(job, block, &b));
    if (job->spec.method == DQ_WEIGHT_GPTQ) {
        status = gptq_both(job, block, &a, &b);
    } else {
        DQ_GO(round_all(job, block, &a));
        status = round_all(job, block, &b);
    }
done:
    clear(&a);
    clear(&b);
    return status;
}

dq_status dq_job_awq_layer(dq_quantize_job *job, dq_block *block)
{
    cut qkv = {.fn = dq_walk_qkv, .site = DQ_SCALE_QKV, .first = DQ_BLOCK_Q, .last = DQ_BLOCK_V};
    cut o = {.fn = dq_walk_o, .site = DQ_SCALE_O, .first = DQ_BLOCK_O, .last = DQ_BLOCK_O};
    cut gate_up = {
        .fn = dq_walk_gate_up, .site = DQ_SCALE_GATE_UP, .first = dq_job_first_mlp(job), .last = DQ_BLOCK_UP};
    cut down = {.fn = dq_walk_down, .site = DQ_SCALE_DOWN, .first = DQ_BLOCK_DOWN, .last = DQ_BLOCK_DOWN};
    DQ_TRY(half(job, block, qkv, o));
    return half(job, block, gate_up, down);
}
