/* GPTQ (Frantar et al., arXiv 2210.17323): columns are rounded one after the other, and what rounding costs is made good
 * by the columns still to come. Blocks of 128 columns: inside a block by the backend's column kernel, behind it by one
 * product. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "quant/parts.h"

enum { BLOCK = DQ_GPTQ_BLOCK };

/* One weight on its way. Positions count columns in the order of work. */
typedef struct solve {
    const dq_weight_spec *spec;
    const dq_gptq_plan *plan;
    dq_device *dev;
    int64_t out, in;
    bool upfront; /* group parameters found from the original weights */
    dq_codes codes;
    const dq_tensor *w;
    dq_tensor work;   /* F32 [out, in]: weights in order of work, with all updates so far; errors where they are done */
    dq_tensor placed; /* U8 [out, in]: codes in order of work; empty = codes.codes is in that order */
    dq_tensor group_at;    /* I32 [1, in]: group of each position */
    dq_tensor err;         /* F32 [out, BLOCK] */
    dq_tensor now, change; /* likewise, with a root: the block as it is rounded; what rounding changed */
} solve;

static dq_status upload_index(solve *s, const int32_t *index, dq_tensor *out)
{
    return dq_tensor_from_host(s->dev, DQ_I32, 1, s->in, index, out);
}

/* group_at, and codes.group_index where column / group does not tell. */
static dq_status assign_groups(solve *s)
{
    dq_status status = DQ_OK;
    const dq_gptq_plan *p = s->plan;
    int32_t *index = dq_alloc(p->env, (size_t)s->in * sizeof *index);
    if (!index) return DQ_E_NOMEM;
    for (int64_t i = 0; i < s->in; i++) {
        int64_t c = s->upfront && p->perm ? p->perm[i] : i;
        index[i] = (int32_t)(c / s->codes.group);
    }
    DQ_GO(upload_index(s, index, &s->group_at));
    if (p->perm && !s->upfront) {
        for (int64_t c = 0; c < s->in; c++) index[c] = (int32_t)(p->inverse[c] / s->codes.group);
        DQ_GO(upload_index(s, index, &s->codes.group_index));
    }
done:
    dq_free(index);
    return status;
}

static dq_status begin(solve *s, dq_tensor *w)
{
    const dq_gptq_plan *p = s->plan;
    DQ_TRY(dq_codes_alloc(s->dev, s->spec, s->out, s->in, &s->codes));
    s->upfront = s->spec->static_groups || s->codes.groups == 1;
    if (!dq_tensor_is_empty(&p->alive)) DQ_TRY(dq_op_scale_cols(w, &p->alive, w));
    if (s->upfront) {
        dq_grid_desc d = dq_weight_grid_desc(s->spec, s->codes.group);
        DQ_TRY(dq_op_weight_grid(&d, w, &s->codes.scale, &s->codes.zero));
    }
    DQ_TRY(dq_tensor_alloc(s->dev, DQ_F32, s->out, s->in, &s->work));
    if (!p->rooted) DQ_TRY(p->perm ? dq_op_gather_cols(w, &p->perm_index, &s->work) : dq_op_convert(w, &s->work));
    if (p->perm) DQ_TRY(dq_tensor_alloc(s->dev, DQ_U8, s->out, s->in, &s->placed));
    dq_tensor *const blocks[] = {&s->err, &s->now, &s->change};
    for (int i = 0; i < (p->rooted ? 3 : 1); i++)
        DQ_TRY(dq_tensor_alloc(s->dev, DQ_F32, s->out, s->in < BLOCK ? s->in : BLOCK, blocks[i]));
    return assign_groups(s);
}

/* Parameters of the groups that start in [c0, c1). They see the updates of earlier blocks only, also where a group begins
 * inside this block or reaches beyond it. weights: those from column `base` on. */
static dq_status find_groups(solve *s, const dq_tensor *weights, int64_t base, int64_t c0, int64_t c1)
{
    int64_t group = s->codes.group;
    int64_t first = (c0 + group - 1) / group, last = (c1 + group - 1) / group; /* groups first .. last-1 */
    if (first == last) return DQ_OK;
    int64_t from = first * group, to = last * group < s->in ? last * group : s->in;
    dq_tensor w = dq_tensor_slice(weights, 0, s->out, from - base, to - from);
    dq_tensor scale = dq_tensor_slice(&s->codes.scale, 0, s->out, first, last - first);
    dq_tensor zero = dq_tensor_slice(&s->codes.zero, 0, s->out, first, last - first);
    dq_grid_desc d = dq_weight_grid_desc(s->spec, group);
    return dq_op_weight_grid(&d, &w, &scale, &zero);
}

/* Codes and errors of the columns [c0, c0 + w's) whose weights are in w, in place. */
static dq_status round_block(solve *s, dq_tensor *w, int64_t c0, dq_tensor *err)
{
    int64_t cols = w->view.cols;
    dq_tensor *all = dq_tensor_is_empty(&s->placed) ? &s->codes.codes : &s->placed;
    dq_grid_desc d = dq_weight_grid_desc(s->spec, s->codes.group);
    dq_tensor u = dq_tensor_slice(&s->plan->u, c0, cols, c0, cols);
    dq_tensor group_at = dq_tensor_slice(&s->group_at, 0, 1, c0, cols);
    dq_tensor codes = dq_tensor_slice(all, 0, s->out, c0, cols);
    return dq_op_gptq_block(&d, w, &u, &s->codes.scale, &s->codes.zero, &group_at, &codes, err);
}

static dq_status do_block(solve *s, int64_t c0, int64_t c1)
{
    int64_t cols = c1 - c0, after = s->in - c1;
    dq_tensor w = dq_tensor_slice(&s->work, 0, s->out, c0, cols), err = dq_tensor_slice(&s->err, 0, s->out, 0, cols);
    if (!s->upfront) DQ_TRY(find_groups(s, &s->work, 0, c0, c1));
    DQ_TRY(round_block(s, &w, c0, &err));
    if (after > 0) {
        dq_tensor rest = dq_tensor_slice(&s->work, 0, s->out, c1, after);
        dq_tensor u_rest = dq_tensor_slice(&s->plan->u, c0, cols, c1, after);
        DQ_TRY(dq_op_gemm(false, false, -1.0, &err, &u_rest, 1.0, &rest, DQ_MATH_F32));
    }
    return dq_op_convert(&err, &w); /* nobody reads these columns again: they keep the errors until the end */
}

/* The block's original weights in order of work. */
static dq_status original(const solve *s, int64_t c0, dq_tensor *out)
{
    int64_t cols = out->view.cols;
    if (s->plan->perm) {
        dq_tensor index = dq_tensor_slice(&s->plan->perm_index, 0, 1, c0, cols);
        return dq_op_gather_cols(s->w, &index, out);
    }
    dq_tensor w = dq_tensor_slice(s->w, 0, s->out, c0, cols);
    return dq_op_convert(&w, out);
}

/* The same weights from the root M (inv(A) = U^T U, U = M^-1): what the columns before the block have done to it is
 * (W - Q) M, the sum over them, which `work` holds for the columns to come, times the inverse of the block's own part. So the
 * other parts of M^-1 are not needed. (GPTQ as LDLQ: Chee et al., arXiv 2307.13304.) */
static dq_status do_block_by_root(solve *s, int64_t c0, int64_t c1)
{
    int64_t cols = c1 - c0, after = s->in - c1;
    dq_tensor sum = dq_tensor_slice(&s->work, 0, s->out, c0, cols), err = dq_tensor_slice(&s->err, 0, s->out, 0, cols);
    dq_tensor now = dq_tensor_slice(&s->now, 0, s->out, 0, cols);
    dq_tensor change = dq_tensor_slice(&s->change, 0, s->out, 0, cols);
    dq_tensor own = dq_tensor_slice(&s->plan->u, c0, cols, c0, cols);
    DQ_TRY(original(s, c0, &change));
    DQ_TRY(dq_op_convert(&change, &now));
    if (c0 > 0) DQ_TRY(dq_op_gemm(false, false, 1.0, &sum, &own, 1.0, &now, DQ_MATH_F32));
    if (!s->upfront) DQ_TRY(find_groups(s, &now, c0, c0, c1));
    DQ_TRY(round_block(s, &now, c0, &err));
    if (after > 0) {
        dq_tensor rest = dq_tensor_slice(&s->work, 0, s->out, c1, after);
        dq_tensor m_rest = dq_tensor_slice(&s->plan->u, c0, cols, c1, after);
        DQ_TRY(dq_op_axpy(-1.0, &now, &change));
        DQ_TRY(dq_op_gemm(false, false, 1.0, &change, &m_rest, c0 > 0 ? 1.0 : 0.0, &rest, DQ_MATH_F32));
    }
    return dq_op_convert(&err, &sum); /* as above */
}

/* With E the errors, dW = -E U and inv(H + A) = U^T U, so sum e^2 = tr(dW (H + A) dW^T); A is what was added. The
 * energy of W only scales the report, so its products may be the quick ones. */
static dq_status relative_error(solve *s, const dq_tensor *w, double *out)
{
    double loss, added, energy;
    DQ_TRY(dq_op_dot(&s->work, &s->work, &loss));
    DQ_TRY(dq_codes_dequantize(&s->codes, &s->work));
    DQ_TRY(dq_op_axpy(-1.0, w, &s->work));
    DQ_TRY(dq_op_scale_cols(&s->work, &s->plan->added_root, &s->work));
    DQ_TRY(dq_op_dot(&s->work, &s->work, &added));
    DQ_TRY(dq_hessian_energy(w, s->plan->h, DQ_MATH_BF16, &s->work, &energy));
    *out = energy > 0 && loss > added ? (loss - added) / energy : 0;
    return DQ_OK;
}

dq_status dq_gptq_solve(const dq_weight_spec *spec, const dq_gptq_plan *plan, dq_tensor *w, dq_codes *out,
                        double *error)
{
    dq_status status;
    solve s = {.spec = spec, .plan = plan, .dev = w->dev, .w = w, .out = w->view.rows, .in = w->view.cols};
    if (s.in != plan->n)
        return dq_fail(DQ_E_INVALID, "a weight with %lld inputs and a Hessian of order %lld", (long long)s.in,
                       (long long)plan->n);
    DQ_GO(begin(&s, w));
    for (int64_t c0 = 0; c0 < s.in; c0 += BLOCK) {
        int64_t c1 = c0 + BLOCK < s.in ? c0 + BLOCK : s.in;
        DQ_GO(plan->rooted ? do_block_by_root(&s, c0, c1) : do_block(&s, c0, c1));
    }
    if (plan->perm) DQ_GO(dq_op_gather_cols(&s.placed, &plan->inverse_index, &s.codes.codes));
    DQ_GO(relative_error(&s, w, error));
    *out = s.codes;
    memset(&s.codes, 0, sizeof s.codes);
done:
    dq_codes_free(&s.codes);
    dq_tensor_free(&s.work);
    dq_tensor_free(&s.placed);
    dq_tensor_free(&s.group_at);
    dq_tensor_free(&s.err);
    dq_tensor_free(&s.now);
    dq_tensor_free(&s.change);
    return status;
}
