/* Folding rotations into weights, in double precision. With y = x W^T and W [out, in] (SpinQuant, arXiv 2405.16406;
 * DartQuant, arXiv 2511.04063):
 *   embedding, head, q, k, v, gate, up: W <- W R1
 *   o, down:                            W <- R1^T W, b <- b R1
 *   v, rows of KV head g:               W_g <- R2_g^T W_g, b_g <- b_g R2_g
 *   o, columns of query head h:         W_h <- W_h R2_g, g = h / (heads / kv_heads)
 *   online R2: v rows of each head by Hadamard(head_dim), o columns by Hadamard(heads) (x) Hadamard(head_dim)
 *   down, columns:                      w <- w H^T with the Hadamard of order `intermediate` that runs online (R4)
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "model/internal.h"

enum { BLOCK = 512 }; /* rows or columns that are multiplied at a time, to bound scratch memory */

/* w <- w r */
static dq_status mul_right(const dq_tensor *r, dq_tensor *w)
{
    int64_t rows = w->view.rows < BLOCK ? w->view.rows : BLOCK;
    dq_tensor scratch = {0};
    dq_status status;
    DQ_GO(dq_tensor_alloc(w->dev, DQ_F64, rows, w->view.cols, &scratch));
    for (int64_t i = 0; i < w->view.rows; i += rows) {
        int64_t n = w->view.rows - i < rows ? w->view.rows - i : rows;
        dq_tensor part = dq_tensor_rows(w, i, n), product = dq_tensor_rows(&scratch, 0, n);
        DQ_GO(dq_op_gemm(false, false, 1.0, &part, r, 0.0, &product, DQ_MATH_F32));
        DQ_GO(dq_op_convert(&product, &part));
    }
done:
    dq_tensor_free(&scratch);
    return status;
}

/* w <- r^T w */
static dq_status mul_left_transposed(const dq_tensor *r, dq_tensor *w)
{
    int64_t cols = w->view.cols < BLOCK ? w->view.cols : BLOCK;
    dq_tensor scratch = {0};
    dq_status status;
    DQ_GO(dq_tensor_alloc(w->dev, DQ_F64, w->view.rows, cols, &scratch));
    for (int64_t i = 0; i < w->view.cols; i += cols) {
        int64_t n = w->view.cols - i < cols ? w->view.cols - i : cols;
        dq_tensor part = dq_tensor_slice(w, 0, w->view.rows, i, n);
        dq_tensor product = dq_tensor_slice(&scratch, 0, w->view.rows, 0, n);
        DQ_GO(dq_op_gemm(true, false, 1.0, r, &part, 0.0, &product, DQ_MATH_F32));
        DQ_GO(dq_op_convert(&product, &part));
    }
done:
    dq_tensor_free(&scratch);
    return status;
}

/* R2 of all KV heads of a layer: F64 [kv_heads * head_dim, head_dim]. */
static dq_status upload_r2(const dq_model *m, int64_t layer, dq_tensor *out)
{
    const dq_rotation_set *s = m->own_rotations;
    int64_t d = s->head_dim;
    return dq_tensor_from_host(m->dev, DQ_F64, s->kv_heads * d, d, s->r2 + layer * s->kv_heads * d * d, out);
}

static dq_status rotate_heads(dq_model *m, int64_t layer, dq_role role, dq_tensor *w)
{
    int64_t d = m->arch.head_dim, heads = role == DQ_V_PROJ ? m->arch.kv_heads : m->arch.heads;
    int64_t share = heads / m->arch.kv_heads;
    dq_tensor r2 = {0};
    dq_status status;
    DQ_GO(upload_r2(m, layer, &r2));
    for (int64_t h = 0; h < heads; h++) {
        dq_tensor r = dq_tensor_rows(&r2, h / share * d, d);
        if (role == DQ_V_PROJ) {
            dq_tensor part = dq_tensor_rows(w, h * d, d);
            DQ_GO(mul_left_transposed(&r, &part));
        } else {
            dq_tensor part = dq_tensor_slice(w, 0, w->view.rows, h * d, d);
            DQ_GO(mul_right(&r, &part));
        }
    }
done:
    dq_tensor_free(&r2);
    return status;
}

/* The rows of each head as one long row, so that a Hadamard with stride runs down its columns. */
static dq_tensor heads_as_rows(const dq_tensor *w, int64_t head_dim)
{
    dq_tensor t = dq_tensor_rows(w, 0, w->view.rows);
    t.view.rows = w->view.rows / head_dim;
    t.view.cols = t.view.stride = w->view.cols * head_dim;
    return t;
}

static dq_status rotate_v(dq_model *m, int64_t layer, dq_tensor *w)
{
    const dq_rotation_set *s = m->own_rotations;
    if (s->r2_mode == DQ_R2_OFFLINE) return rotate_heads(m, layer, DQ_V_PROJ, w);
    if (s->r2_mode != DQ_R2_ONLINE) return DQ_OK;
    dq_tensor t = heads_as_rows(w, s->head_dim);
    return dq_hadamard_apply(&s->r2_head_dim, w->view.cols, &t);
}

static dq_status rotate_o(dq_model *m, int64_t layer, dq_tensor *w)
{
    const dq_rotation_set *s = m->own_rotations;
    if (s->r2_mode == DQ_R2_OFFLINE) return rotate_heads(m, layer, DQ_O_PROJ, w);
    if (s->r2_mode != DQ_R2_ONLINE) return DQ_OK;
    DQ_TRY(dq_hadamard_apply(&s->r2_head_dim, 1, w));
    return dq_hadamard_apply(&s->r2_heads, s->head_dim, w);
}

dq_status dq_rotate_linear(dq_model *m, int64_t layer, dq_role role, dq_tensor *w, double *bound)
{
    bool r1 = !dq_tensor_is_empty(&m->r1);
    *bound *= m->growth;
    if (role == DQ_O_PROJ || role == DQ_DOWN_PROJ) {
        if (r1) DQ_TRY(mul_left_transposed(&m->r1, w));
        if (role == DQ_O_PROJ) return rotate_o(m, layer, w);
        return m->own_rotations->r4.n ? dq_hadamard_apply(&m->own_rotations->r4, 1, w) : DQ_OK;
    }
    if (r1) DQ_TRY(mul_right(&m->r1, w));
    return role == DQ_V_PROJ ? rotate_v(m, layer, w) : DQ_OK;
}

dq_status dq_rotate_bias(dq_model *m, int64_t layer, dq_role role, dq_tensor *bias, double *bound)
{
    *bound *= m->growth;
    if (role == DQ_O_PROJ || role == DQ_DOWN_PROJ) return dq_tensor_is_empty(&m->r1) ? DQ_OK : mul_right(&m->r1, bias);
    if (role != DQ_V_PROJ) return DQ_OK;
    /* as a column vector the bias turns like one more column of the weight */
    dq_tensor column = dq_tensor_rows(bias, 0, 1);
    column.view.rows = bias->view.cols;
    column.view.cols = column.view.stride = 1;
    return rotate_v(m, layer, &column);
}

dq_status dq_rotate_rows(dq_model *m, dq_role role, dq_tensor *rows, double *bound)
{
    (void)role;
    *bound *= m->r1_growth;
    return dq_tensor_is_empty(&m->r1) ? DQ_OK : mul_right(&m->r1, rows);
}

/* NaN stays: it bounds nothing. */
static void raise_to(double *most, double x)
{
    if (!isnan(*most) && !(x <= *most)) *most = x;
}

/* The largest sum of magnitudes in a column, at least 1: no element of w r or r^T w exceeds the largest of w by more. */
static double growth_of(const double *r, int64_t n)
{
    enum { COLUMNS = 64 };
    double most = 1, sum[COLUMNS];
    for (int64_t first = 0; first < n; first += COLUMNS) {
        int64_t count = n - first < COLUMNS ? n - first : COLUMNS;
        for (int64_t c = 0; c < count; c++) sum[c] = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < count; c++) sum[c] += fabs(r[i * n + first + c]);
        for (int64_t c = 0; c < count; c++) raise_to(&most, sum[c]);
    }
    return most;
}

static void find_growth(dq_model *m, const dq_rotation_set *s)
{
    int64_t d = s->head_dim;
    double r2 = 1;
    if (s->r2_mode == DQ_R2_OFFLINE)
        for (int64_t g = 0; g < s->layers * s->kv_heads; g++) raise_to(&r2, growth_of(s->r2 + g * d * d, d));
    if (s->r2_mode == DQ_R2_ONLINE) r2 = sqrt((double)s->r2_head_dim.n) * sqrt((double)s->r2_heads.n);
    m->r1_growth = s->r1 ? growth_of(s->r1, s->hidden) : 1;
    m->growth = m->r1_growth * r2 * (s->r4.n ? sqrt((double)s->r4.n) : 1);
}

static dq_status check_hadamard(const char *name, const dq_hadamard *h, int64_t length)
{
    if (h->n == 0 || h->n * h->blocks == length) return DQ_OK;
    return dq_fail(DQ_E_MISMATCH, "%s turns %lld elements, the model has %lld", name, (long long)(h->n * h->blocks),
                   (long long)length);
}

static dq_status check_set(const dq_arch *a, const dq_rotation_set *s)
{
    if (s->hidden != a->hidden || s->layers != a->layers || s->heads != a->heads || s->kv_heads != a->kv_heads ||
        s->head_dim != a->head_dim || s->intermediate != a->intermediate)
        return dq_fail(DQ_E_MISMATCH,
                       "rotations are for hidden %lld, %lld layers, heads %lld/%lld x %lld, intermediate %lld; the "
                       "model has hidden %lld, %lld layers, heads %lld/%lld x %lld, intermediate %lld",
                       (long long)s->hidden, (long long)s->layers, (long long)s->heads, (long long)s->kv_heads,
                       (long long)s->head_dim, (long long)s->intermediate, (long long)a->hidden, (long long)a->layers,
                       (long long)a->heads, (long long)a->kv_heads, (long long)a->head_dim, (long long)a->intermediate);
    if (s->r2_mode == DQ_R2_OFFLINE && !s->r2) return dq_fail(DQ_E_INVALID, "offline R2 without matrices");
    if (s->r2_mode == DQ_R2_ONLINE) {
        if (s->r2_heads.n == 0 || s->r2_head_dim.n == 0)
            return dq_fail(DQ_E_INVALID, "online R2 without its Hadamard transforms");
        DQ_TRY(check_hadamard("R2 across heads", &s->r2_heads, a->heads));
        DQ_TRY(check_hadamard("R2 inside heads", &s->r2_head_dim, a->head_dim));
    }
    DQ_TRY(check_hadamard("R3", &s->r3, a->head_dim));
    return check_hadamard("R4", &s->r4, a->intermediate);
}

dq_status dq_model_derive_rotated(dq_model *base, const dq_rotation_set *set, dq_model **out)
{
    if (base->scheme) return dq_fail(DQ_E_STATE, "a quantized model cannot be rotated");
    if (base->scaled) return dq_fail(DQ_E_STATE, "a model whose channels were scaled cannot be rotated");
    if (base->rotations) return dq_fail(DQ_E_STATE, "the model is rotated already");
    if (!base->fused) return dq_fail(DQ_E_STATE, "norms must be fused before the model is rotated");
    DQ_TRY(check_set(&base->arch, set));
    dq_model *m;
    dq_status status;
    DQ_TRY(dq_model_derive(base, DQ_MODEL_ROTATED, &m));
    DQ_GO(dq_rotation_set_copy(set, &m->own_rotations));
    m->rotations = m->own_rotations;
    m->has_r1 = set->r1 != NULL;
    find_growth(m, set);
    if (set->r1) DQ_GO(dq_tensor_from_host(m->dev, DQ_F64, set->hidden, set->hidden, set->r1, &m->r1));
    *out = m;
    return DQ_OK;
done:
    dq_model_release(m);
    return status;
}
