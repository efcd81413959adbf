/* What GPTQ (Frantar et al., arXiv 2210.17323) needs from the Hessian: dead columns, column order, dampening, the factor.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "quant/parts.h"

/* Dampening is raised tenfold up to this share of the mean diagonal before the diagonal itself is raised. */
static const double MOST_DAMPING = 10.0;

typedef struct column {
    float diagonal;
    int32_t index;
} column;

static int by_descending_diagonal(const void *a, const void *b)
{
    const column *x = a, *y = b;
    if (x->diagonal != y->diagonal) return x->diagonal < y->diagonal ? 1 : -1;
    return x->index < y->index ? -1 : 1; /* ties: the left column first */
}

static dq_status make_order(dq_device *dev, const float *diagonal, dq_gptq_plan *plan)
{
    dq_status status = DQ_OK;
    size_t n = (size_t)plan->n;
    column *columns = dq_alloc(plan->env, n * sizeof *columns);
    plan->perm = dq_alloc(plan->env, n * sizeof *plan->perm);
    plan->inverse = dq_alloc(plan->env, n * sizeof *plan->inverse);
    if (!columns || !plan->perm || !plan->inverse) DQ_GO(DQ_E_NOMEM);
    for (size_t i = 0; i < n; i++) columns[i] = (column){diagonal[i], (int32_t)i};
    qsort(columns, n, sizeof *columns, by_descending_diagonal);
    for (size_t i = 0; i < n; i++) {
        plan->perm[i] = columns[i].index;
        plan->inverse[columns[i].index] = (int32_t)i;
    }
    DQ_GO(dq_tensor_from_host(dev, DQ_I32, 1, plan->n, plan->perm, &plan->perm_index));
    DQ_GO(dq_tensor_from_host(dev, DQ_I32, 1, plan->n, plan->inverse, &plan->inverse_index));
done:
    dq_free(columns);
    return status;
}

/* diagonal = diag(h) with the zeros of dead columns replaced by 1; plan->alive when there are any. */
static dq_status read_diagonal(const dq_tensor *h, float *diagonal, dq_gptq_plan *plan)
{
    dq_status status;
    dq_tensor d = {0};
    int64_t dead = 0;
    float *alive = dq_alloc(plan->env, (size_t)plan->n * sizeof *alive);
    if (!alive) return DQ_E_NOMEM;
    DQ_GO(dq_tensor_alloc(h->dev, DQ_F32, 1, plan->n, &d));
    DQ_GO(dq_op_diag(h, &d));
    DQ_GO(dq_tensor_download(&d, diagonal));
    for (int64_t i = 0; i < plan->n; i++) {
        if (diagonal[i] < 0)
            DQ_GO(dq_fail(DQ_E_INVALID, "Hessian diagonal entry %lld is negative (%g)", (long long)i,
                          (double)diagonal[i]));
        alive[i] = diagonal[i] == 0 ? 0.0f : 1.0f;
        dead += diagonal[i] == 0;
        if (diagonal[i] == 0) diagonal[i] = 1.0f;
    }
    if (dead > 0) {
        DQ_GO(dq_tensor_from_host(h->dev, DQ_F32, 1, plan->n, alive, &plan->alive));
        dq_log(plan->env, DQ_LOG_DEBUG, "GPTQ: %lld of %lld inputs are always zero", (long long)dead,
               (long long)plan->n);
    }
done:
    dq_tensor_free(&d);
    dq_free(alive);
    return status;
}

/* added[i] for every column; the plan keeps the roots. */
static dq_status keep_added(dq_device *dev, const float *added, dq_gptq_plan *plan)
{
    float *root = dq_alloc(plan->env, (size_t)plan->n * sizeof *root);
    if (!root) return DQ_E_NOMEM;
    for (int64_t i = 0; i < plan->n; i++) root[i] = sqrtf(added[i]);
    dq_status status = dq_tensor_from_host(dev, DQ_F32, 1, plan->n, root, &plan->added_root);
    dq_free(root);
    return status;
}

/* Last remedy: every diagonal entry raised to the sum of the magnitudes beside it (Gershgorin), which makes any symmetric
 * matrix positive semidefinite. added[i] receives what that took. */
static dq_status raise_diagonal(const dq_tensor *h, int64_t n, float *added, dq_tensor *raised)
{
    dq_status status;
    dq_env *env = dq_device_env(h->dev);
    double *beside = dq_calloc(env, (size_t)n, sizeof *beside);
    float *row = dq_alloc(env, (size_t)n * sizeof *row);
    if (!beside || !row) DQ_GO(DQ_E_NOMEM);
    DQ_GO(dq_tensor_alloc(h->dev, DQ_F32, n, n, raised));
    DQ_GO(dq_op_convert(h, raised));
    for (int64_t i = 0; i < n; i++) {
        dq_tensor part = dq_tensor_slice(h, i, 1, 0, i + 1);
        DQ_GO(dq_tensor_download(&part, row));
        for (int64_t j = 0; j < i; j++) {
            beside[i] += fabs((double)row[j]);
            beside[j] += fabs((double)row[j]);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        float entry;
        dq_tensor at = dq_tensor_slice(raised, i, 1, i, 1);
        DQ_GO(dq_tensor_download(&at, &entry));
        added[i] = entry < beside[i] ? (float)beside[i] - entry : 0.0f;
        entry += added[i];
        DQ_GO(dq_tensor_upload(&at, &entry));
    }
done:
    dq_free(beside);
    dq_free(row);
    return status;
}

/* Half of it, where the device has that and the solver can do with it: groups must not reach beyond a block. */
static bool may_be_rooted(const dq_weight_spec *spec, const dq_tensor *h)
{
    int64_t n = h->view.rows, group = dq_weight_group(spec, n);
    return !dq_tensor_in_reach(h) && (spec->static_groups || group >= n || DQ_GPTQ_BLOCK % group == 0);
}

static dq_status factor_once(dq_gptq_plan *plan, const dq_tensor *h, const dq_tensor *perm, double damp, int64_t *info)
{
    if (plan->rooted) DQ_TRY(dq_op_gptq_root(h, perm, damp, DQ_GPTQ_BLOCK, &plan->u, info, &plan->rooted));
    return plan->rooted ? DQ_OK : dq_op_gptq_factor(h, perm, damp, &plan->u, info);
}

static dq_status factor_raised(const dq_tensor *h, double mean, const dq_tensor *perm, float *added, dq_gptq_plan *plan)
{
    dq_status status;
    dq_tensor raised = {0};
    int64_t info = 0;
    double damp = 0.01 * mean, sum = 0;
    DQ_GO(raise_diagonal(h, plan->n, added, &raised));
    DQ_GO(factor_once(plan, &raised, perm, damp, &info));
    if (info != 0)
        DQ_GO(dq_fail(DQ_E_NUMERIC,
                      "the Hessian cannot be factored: pivot %lld is not positive even with %g times the "
                      "mean diagonal added and the diagonal raised to the row sums",
                      (long long)info - 1, MOST_DAMPING));
    for (int64_t i = 0; i < plan->n; i++) {
        added[i] += (float)damp;
        sum += added[i];
    }
    plan->damping = sum / (double)plan->n / mean;
done:
    dq_tensor_free(&raised);
    return status;
}

static dq_status factor(const dq_weight_spec *spec, const dq_tensor *h, const float *diagonal, dq_gptq_plan *plan)
{
    dq_status status = DQ_OK;
    const dq_tensor *perm = plan->perm ? &plan->perm_index : NULL;
    float *added = dq_alloc(plan->env, (size_t)plan->n * sizeof *added);
    if (!added) return DQ_E_NOMEM;
    double mean = 0, share = spec->percdamp;
    for (int64_t i = 0; i < plan->n; i++) mean += diagonal[i];
    mean /= (double)plan->n;
    for (;;) {
        int64_t info = 0;
        DQ_GO(factor_once(plan, h, perm, share * mean, &info));
        if (info == 0) {
            plan->damping = share;
            for (int64_t i = 0; i < plan->n; i++) added[i] = (float)(share * mean);
            break;
        }
        double next = share > 0 ? share * 10 : 1e-4;
        if (next > MOST_DAMPING) {
            DQ_GO(factor_raised(h, mean, perm, added, plan));
            break;
        }
        dq_log(plan->env, DQ_LOG_INFO, "GPTQ: pivot %lld is not positive with damping %g, trying %g",
               (long long)info - 1, share, next);
        share = next;
    }
    DQ_GO(keep_added(h->dev, added, plan));
done:
    dq_free(added);
    return status;
}

dq_status dq_gptq_plan_make(const dq_weight_spec *spec, const dq_tensor *h, dq_gptq_plan *out)
{
    dq_status status;
    int64_t n = h->view.rows, bad = -1;
    if (h->view.dtype != DQ_F32 || h->view.cols != n || n < 1 || n > INT32_MAX)
        return dq_fail(DQ_E_INVALID, "a Hessian is a square F32 matrix");
    DQ_TRY(dq_op_find_nonfinite(h, &bad));
    if (bad >= 0)
        return dq_fail(DQ_E_NONFINITE, "Hessian entry (%lld, %lld) is NaN or Inf", (long long)(bad / n),
                       (long long)(bad % n));
    dq_gptq_plan plan = {.env = dq_device_env(h->dev), .h = h, .n = n, .rooted = may_be_rooted(spec, h)};
    float *diagonal = dq_alloc(plan.env, (size_t)n * sizeof *diagonal);
    if (!diagonal) return DQ_E_NOMEM;
    DQ_GO(read_diagonal(h, diagonal, &plan));
    if (spec->act_order) DQ_GO(make_order(h->dev, diagonal, &plan));
    DQ_GO(dq_tensor_alloc(h->dev, DQ_F32, n, n, &plan.u));
    DQ_GO(factor(spec, h, diagonal, &plan));
    *out = plan;
done:
    dq_free(diagonal);
    if (status != DQ_OK) dq_gptq_plan_free(&plan);
    return status;
}

void dq_gptq_plan_free(dq_gptq_plan *plan)
{
    dq_free(plan->perm);
    dq_free(plan->inverse);
    dq_tensor_free(&plan->perm_index);
    dq_tensor_free(&plan->inverse_index);
    dq_tensor_free(&plan->alive);
    dq_tensor_free(&plan->added_root);
    dq_tensor_free(&plan->u);
    memset(plan, 0, sizeof *plan);
}
