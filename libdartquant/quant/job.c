/* The weight quantization job: one step is one layer. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "quant/job_parts.h"

enum { NAME_SIZE = 256 };

_Static_assert((int)DQ_BLOCK_DOWN == (int)DQ_DOWN_PROJ && (int)DQ_BLOCK_LINEARS == (int)DQ_LINEARS,
               "a block's linears are the quantizable roles in the same order");

/* ---- one linear ---- */

dq_status dq_job_tick(void *arg)
{
    dq_quantize_job *job = arg;
    const char *stage = job->spec.awq ? "awq" : job->walk ? "gptq" : "rtn";
    return dq_progress_report(job->progress, stage, (uint64_t)job->report.count,
                              (uint64_t)(job->arch->layers * dq_arch_linears(job->arch)), job->metric);
}

dq_status dq_job_deliver(dq_quantize_job *job, dq_role role, const dq_codes *codes, double error, double damping)
{
    char name[NAME_SIZE];
    double start = dq_now();
    dq_arch_tensor_name(job->arch, role, job->layer, name, sizeof name);
    DQ_TRY(dq_codes_write(job->sink, name, codes));
    job->report.seconds_write += dq_now() - start;
    job->report.linears[job->report.count++] = (dq_linear_report){
        .layer = job->layer, .role = role, .bits = job->spec.bits, .error = error, .damping = damping};
    job->metric = error;
    if (damping > job->spec.percdamp)
        dq_log(job->env, DQ_LOG_WARNING, "%s: the Hessian needed damping %g instead of %g", name, damping,
               job->spec.percdamp);
    return dq_job_tick(job);
}

dq_status dq_job_name_error(const dq_quantize_job *job, dq_role role, dq_status status)
{
    char name[NAME_SIZE];
    if (status == DQ_OK || status == DQ_E_CANCELLED) return status;
    dq_arch_tensor_name(job->arch, role, job->layer, name, sizeof name);
    return dq_error_in_tensor(status, name);
}

/* ---- RTN ---- */

static dq_status rtn_linear(dq_quantize_job *job, dq_role role)
{
    dq_status status;
    dq_linear linear = {0};
    dq_codes codes = {0};
    double error = 0, damping = 0, start = dq_now();
    DQ_GO(dq_model_read_linear(job->model, job->layer, role, &linear));
    job->report.seconds_load += dq_now() - start;
    start = dq_now();
    DQ_GO(dq_quantize_linear(&job->spec, &linear.weight, NULL, &codes, &error, &damping));
    job->report.seconds_solve += dq_now() - start;
    DQ_GO(dq_job_deliver(job, role, &codes, error, damping));
done:
    dq_codes_free(&codes);
    dq_tensor_free(&linear.weight);
    dq_tensor_free(&linear.bias);
    return status;
}

static dq_status rtn_layer(dq_quantize_job *job)
{
    for (int n = 0; n < dq_arch_linears(job->arch); n++) {
        dq_role role = dq_arch_linear(job->arch, n);
        DQ_TRY(dq_job_name_error(job, role, rtn_linear(job, role)));
    }
    return DQ_OK;
}

/* ---- GPTQ ---- */

dq_status dq_job_gptq_linear(dq_quantize_job *job, const dq_gptq_plan *plan, dq_role role, dq_linear *linear,
                             const float *divide)
{
    dq_status status;
    dq_codes codes = {0};
    double error = 0, start = dq_now();
    DQ_GO(dq_gptq_solve(&job->spec, plan, &linear->weight, &codes, &error));
    if (divide) DQ_GO(dq_divide_rows(divide, &codes.scale));
    DQ_GO(dq_codes_dequantize(&codes, &linear->weight));
    job->report.seconds_solve += dq_now() - start;
    DQ_GO(dq_job_deliver(job, role, &codes, error, plan->damping));
done:
    dq_codes_free(&codes);
    return status;
}

dq_status dq_job_gptq_stage(dq_quantize_job *job, dq_block *block, dq_walk_cut cut, int first, int last)
{
    dq_status status;
    dq_tensor h = {0};
    dq_gptq_plan plan = {0};
    int64_t rows, in;
    dq_arch_shape(job->arch, (dq_role)first, &rows, &in);
    DQ_GO(dq_tensor_alloc(dq_model_device(job->model), DQ_F32, in, in, &h));
    DQ_GO(dq_op_fill(0, &h));
    DQ_GO(cut(job->walk, block, &h, (dq_walk_tick){dq_job_tick, job}));
    double start = dq_now();
    status = dq_job_name_error(job, (dq_role)first, dq_gptq_plan_make(&job->spec, &h, &plan));
    job->report.seconds_solve += dq_now() - start;
    for (int i = first; i <= last && status == DQ_OK; i++) {
        status =
            dq_job_name_error(job, (dq_role)i, dq_job_gptq_linear(job, &plan, (dq_role)i, &block->linear[i], NULL));
        /* from here on it is a factor of products only */
        if (status == DQ_OK) status = dq_weight_narrow(&block->linear[i].weight, job->walk->spec.math);
    }
done:
    dq_gptq_plan_free(&plan);
    dq_tensor_free(&h);
    return status;
}

int dq_job_first_mlp(const dq_quantize_job *job) { return dq_arch_is_gated(job->arch) ? DQ_BLOCK_GATE : DQ_BLOCK_UP; }

static dq_status gptq_block(dq_quantize_job *job, dq_block *block)
{
    DQ_TRY(dq_job_gptq_stage(job, block, dq_walk_qkv, DQ_BLOCK_Q, DQ_BLOCK_V));
    DQ_TRY(dq_job_gptq_stage(job, block, dq_walk_o, DQ_BLOCK_O, DQ_BLOCK_O));
    DQ_TRY(dq_job_gptq_stage(job, block, dq_walk_gate_up, dq_job_first_mlp(job), DQ_BLOCK_UP));
    return dq_job_gptq_stage(job, block, dq_walk_down, DQ_BLOCK_DOWN, DQ_BLOCK_DOWN);
}

/* GPTQ or AWQ. */
static dq_status walked_layer(dq_quantize_job *job)
{
    dq_status status;
    dq_block block;
    memset(&block, 0, sizeof block);
    double start = dq_now();
    DQ_GO(dq_model_load_block(job->model, job->layer, &block));
    job->report.seconds_load += dq_now() - start;
    DQ_GO(job->scales ? dq_job_awq_layer(job, &block) : gptq_block(job, &block));
    if (job->layer + 1 < job->arch->layers) DQ_GO(dq_walk_finish(job->walk, &block, (dq_walk_tick){dq_job_tick, job}));
    job->report.seconds_forward = job->walk->seconds_forward;
    job->report.seconds_hessian = job->walk->seconds_hessian;
done:
    dq_block_free(&block);
    return status;
}

/* ---- the job ---- */

/* Sizes for the memory rule of quantize.h, in bytes. */
typedef struct room {
    double layer, hessians, workspace, solver; /* of the larger pass; of the largest linear */
} room;

static room room_of(const dq_arch *a, int64_t chunk)
{
    double heads = (double)a->heads * (double)a->head_dim, kv = (double)a->kv_heads * (double)a->head_dim;
    double hidden = (double)a->hidden, inter = (double)a->intermediate;
    double widest = inter > heads ? inter : heads, largest = widest * hidden;
    room r;
    r.layer = 4 * (2 * hidden * heads + 2 * hidden * kv + 3 * hidden * inter);
    r.hessians = 4 * (2 * hidden * hidden + heads * heads + inter * inter);
    double attention = 2 * heads + 2 * kv, mlp = 2 * inter; /* columns of scratch in a pass */
    r.workspace = 4 * (double)chunk * (hidden + (attention > mlp ? attention : mlp));
    double factor = 8 * widest * widest, weight = 6 * largest; /* fp64; copy of a weight and two sets of codes */
    r.solver = 4 * widest * widest + (factor > weight ? factor : weight);
    return r;
}

static uint64_t automatic_budget(dq_model *model, const room *r, int64_t tokens)
{
    double stream = 4 * (double)tokens * (double)dq_model_arch(model)->hidden;
    double sum = (double)dq_model_bytes(model) + stream + r->layer + r->hessians;
    double budget = 0.25 * sum - (r->workspace > r->solver ? r->workspace : r->solver);
    return budget > 0 ? (uint64_t)budget : 0;
}

static dq_status check_windows(const dq_arch *arch, const int32_t *windows, int64_t nsamples, int64_t seqlen)
{
    size_t bytes;
    if (!windows || nsamples < 1 || seqlen < 1)
        return dq_fail(DQ_E_INVALID, "GPTQ and AWQ need calibration windows: %lld of %lld tokens given",
                       (long long)nsamples, (long long)seqlen);
    int64_t widest = arch->intermediate > arch->hidden ? arch->intermediate : arch->hidden;
    if (arch->heads * arch->head_dim > widest) widest = arch->heads * arch->head_dim;
    if (!dq_mul_ok((size_t)nsamples, (size_t)seqlen, &bytes) || !dq_mul_ok(bytes, (size_t)widest * 4, &bytes) ||
        bytes > INT64_MAX)
        return dq_fail(DQ_E_NOMEM, "%lld calibration windows of %lld tokens are too many", (long long)nsamples,
                       (long long)seqlen);
    return DQ_OK;
}

static dq_status make_scales(dq_quantize_job *job)
{
    static const char *const why[DQ_SCALE_SITES] = {
        [DQ_SCALE_O] = "the o_proj input: R2 turns it at run time (use_r2 offline allows them)",
        [DQ_SCALE_DOWN] =
            "the down_proj input: R4 turns it at run time (use_r4 false allows them), or no factor passes the "
            "activation before it"};
    int64_t width[DQ_SCALE_SITES];
    for (int site = 0; site < DQ_SCALE_SITES; site++)
        if (!dq_scales_possible(job->arch, dq_model_rotations(job->model), site))
            dq_log(job->env, DQ_LOG_WARNING, "AWQ: no channel scales for %s", why[site]);
    const dq_rotation_set *rotations = dq_model_rotations(job->model);
    if (rotations && rotations->r1)
        dq_log(job->env, DQ_LOG_WARNING,
               "AWQ: R1 mixes the channels of the residual stream, which leaves little for channel scales: AWQ without "
               "rotations, or GPTQ with them, measured better (docs/benchmarks.md)");
    dq_scales_widths(job->arch, width);
    return dq_scales_new(job->env, job->arch->layers, width, &job->scales);
}

dq_status dq_quantize_job_new(dq_model *model, const dq_scheme *scheme, const int32_t *windows, int64_t nsamples,
                              int64_t seqlen, int math, dq_sink *sink, dq_quantize_job **out)
{
    const dq_arch *arch = dq_model_arch(model);
    dq_env *env = dq_device_env(dq_model_device(model));
    dq_status status = DQ_OK;
    DQ_TRY(dq_weight_spec_check(&scheme->w));
    if (dq_model_scheme(model) && dq_model_scheme(model)->w.bits < 16)
        return dq_fail(DQ_E_STATE, "the model's weights are already quantized");
    bool walks = scheme->w.method == DQ_WEIGHT_GPTQ || scheme->w.awq;
    if (walks) DQ_TRY(check_windows(arch, windows, nsamples, seqlen));
    dq_quantize_job *job = dq_calloc(env, 1, sizeof *job);
    if (!job) return DQ_E_NOMEM;
    job->env = env;
    job->model = dq_model_retain(model);
    job->arch = arch;
    job->spec = scheme->w;
    job->sink = sink;
    job->metric = NAN;
    job->report.linears = dq_calloc(env, (size_t)(arch->layers * dq_arch_linears(arch)), sizeof *job->report.linears);
    if (!job->report.linears) DQ_GO(DQ_E_NOMEM);
    if (scheme->w.awq) DQ_GO(make_scales(job));
    if (walks) {
        int64_t chunk = seqlen > 2048 ? seqlen : 2048;
        const room r = room_of(arch, chunk);
        uint64_t budget = env->memory_budget ? env->memory_budget : automatic_budget(model, &r, nsamples * seqlen);
        double most = r.layer + r.hessians + r.workspace + r.solver;
        uint64_t spare = (uint64_t)(1.25 * most); /* a device takes some for itself */
        DQ_GO(dq_walk_new(model, windows, nsamples, seqlen, math, budget, spare, &job->walk));
    }
    *out = job;
    return DQ_OK;
done:
    dq_quantize_job_free(job);
    return status;
}

dq_status dq_quantize_job_step(dq_quantize_job *job, dq_progress *progress, bool *finished)
{
    if (job->failed) return dq_fail(DQ_E_STATE, "the quantization job failed before and cannot go on");
    if (job->layer >= job->arch->layers) return dq_fail(DQ_E_STATE, "the quantization job is already finished");
    job->progress = progress;
    dq_status status = dq_job_tick(job);
    if (status == DQ_OK) status = job->walk ? walked_layer(job) : rtn_layer(job);
    job->progress = NULL;
    job->failed = status != DQ_OK;
    if (status != DQ_OK) return status;
    *finished = ++job->layer == job->arch->layers;
    if (!*finished) return DQ_OK;
    dq_walk_free(job->walk); /* the report is what is left */
    job->walk = NULL;
    return DQ_OK;
}

dq_tensor dq_quantize_job_stream(const dq_quantize_job *job)
{
    if (!job->walk) return (dq_tensor){0};
    return dq_hidden_tensor(&job->walk->hidden);
}

dq_status dq_quantize_job_resume(dq_quantize_job *job, int64_t layer, const dq_quantize_report *done)
{
    if (job->layer != 0 || layer < 0 || layer >= job->arch->layers || done->count != layer * dq_arch_linears(job->arch))
        return dq_fail(DQ_E_INVALID, "a job of %lld layers cannot go on at layer %lld with %lld linears done",
                       (long long)job->arch->layers, (long long)layer, (long long)done->count);
    dq_linear_report *linears = job->report.linears;
    memcpy(linears, done->linears, (size_t)done->count * sizeof *linears);
    job->report = *done;
    job->report.linears = linears;
    job->layer = layer;
    if (job->walk) {
        job->walk->seconds_forward = done->seconds_forward;
        job->walk->seconds_hessian = done->seconds_hessian;
    }
    return DQ_OK;
}

dq_scales *dq_quantize_job_scales(dq_quantize_job *job) { return job->scales; }

const dq_quantize_report *dq_quantize_job_report(const dq_quantize_job *job) { return &job->report; }

void dq_quantize_job_free(dq_quantize_job *job)
{
    if (!job) return;
    dq_walk_free(job->walk);
    dq_scales_free(job->scales);
    dq_free(job->report.linears);
    dq_model_release(job->model);
    dq_free(job);
}
