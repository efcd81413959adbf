/* How far a linear's weight is from that of another model, e.g. the one it was quantized from.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "model/internal.h"

/* Numbers of a weight that are on the host at a time. */
enum { PIECE = 1 << 20 };
/* Channel scales count as the cause where undoing them leaves at most this part of the error. */
#define EXPLAINED 0.75

/* w: of the model, r: of the reference. */
typedef struct sums {
    double ww, wr, rr;
} sums;

/* One comparison: both weights, the norms that belong to their columns, sums of rows or columns. */
typedef struct pair {
    dq_model *model[2];
    dq_linear linear[2];
    float *norm[2]; /* NULL = ones */
    float *row[2];  /* pieces of the weights */
    sums *channel;  /* of rows, or of columns */
    int64_t channels;
    bool of_rows;
    double difference; /* sum of (w - r)^2 */
} pair;

static void clear(pair *p)
{
    for (int i = 0; i < 2; i++) {
        dq_tensor_free(&p->linear[i].weight);
        dq_tensor_free(&p->linear[i].bias);
        dq_free(p->norm[i]);
        dq_free(p->row[i]);
    }
    dq_free(p->channel);
}

/* R3 leaves weights alone. */
static bool is_turned(const dq_model *m)
{
    const dq_rotation_set *r = m->rotations;
    return m->has_r1 || (r && (r->r2_mode != DQ_R2_NONE || r->r4.n > 0));
}

static dq_status check_pair(const dq_model *m, const dq_model *ref)
{
    const dq_arch *a = &m->arch, *b = &ref->arch;
    if (m->dev != ref->dev) return dq_fail(DQ_E_INVALID, "the reference belongs to another context");
    if (a->hidden != b->hidden || a->intermediate != b->intermediate || a->layers != b->layers ||
        a->heads != b->heads || a->kv_heads != b->kv_heads || a->head_dim != b->head_dim)
        return dq_fail(
            DQ_E_MISMATCH,
            "the reference is another model: %lld layers, width %lld, %lld in the MLP, %lld and %lld heads of "
            "%lld; this one has %lld, %lld, %lld, %lld and %lld of %lld",
            (long long)b->layers, (long long)b->hidden, (long long)b->intermediate, (long long)b->heads,
            (long long)b->kv_heads, (long long)b->head_dim, (long long)a->layers, (long long)a->hidden,
            (long long)a->intermediate, (long long)a->heads, (long long)a->kv_heads, (long long)a->head_dim);
    if (is_turned(m) == is_turned(ref)) return DQ_OK;
    return dq_fail(DQ_E_STATE,
                   "%s is rotated and %s is not: their weights stand in different bases and cannot be compared; the "
                   "reference must be rotated alike (or compare the outputs)",
                   is_turned(m) ? "the model" : "the reference", is_turned(m) ? "the reference" : "the model");
}

/* The norm before q, k, v or gate, up; none before o and down. */
static dq_status read_norm(dq_model *m, int64_t layer, dq_role role, float **out)
{
    dq_tensor norm = {0};
    if (role == DQ_O_PROJ || role == DQ_DOWN_PROJ) return DQ_OK;
    DQ_TRY(dq_model_read_norm(m, layer, role <= DQ_V_PROJ ? DQ_ATTN_NORM : DQ_MLP_NORM, &norm));
    if (dq_tensor_is_empty(&norm)) return DQ_OK;
    float *host = dq_alloc(m->env, (size_t)m->arch.hidden * sizeof *host);
    dq_status status = host ? dq_tensor_download(&norm, host) : DQ_E_NOMEM;
    dq_tensor_free(&norm);
    if (status == DQ_OK)
        *out = host;
    else
        dq_free(host);
    return status;
}

/* Norms that are alike say nothing about the weights. */
static void drop_equal_norms(pair *p, int64_t n)
{
    if (!p->norm[0] || !p->norm[1] || memcmp(p->norm[0], p->norm[1], (size_t)n * sizeof(float)) != 0) return;
    for (int i = 0; i < 2; i++) {
        dq_free(p->norm[i]);
        p->norm[i] = NULL;
    }
}

static void add_rows(pair *p, int64_t first, int64_t rows, int64_t cols)
{
    for (int64_t n = 0; n < rows; n++)
        for (int64_t k = 0; k < cols; k++) {
            double w = p->row[0][n * cols + k], r = p->row[1][n * cols + k];
            if (p->norm[0]) w *= p->norm[0][k];
            if (p->norm[1]) r *= p->norm[1][k];
            sums *s = &p->channel[p->of_rows ? first + n : k];
            s->ww += w * w;
            s->wr += w * r;
            s->rr += r * r;
            p->difference += (w - r) * (w - r);
        }
}

static dq_status read_pair(pair *p, int64_t layer, dq_role role)
{
    for (int i = 0; i < 2; i++) {
        DQ_TRY(dq_model_read_linear(p->model[i], layer, role, &p->linear[i]));
        DQ_TRY(read_norm(p->model[i], layer, role, &p->norm[i]));
    }
    dq_env *env = p->model[0]->env;
    int64_t rows = p->linear[0].weight.view.rows, cols = p->linear[0].weight.view.cols;
    int64_t step = PIECE / cols > 0 ? PIECE / cols : 1;
    drop_equal_norms(p, cols);
    if (step > rows) step = rows;
    p->of_rows = role != DQ_O_PROJ && role != DQ_DOWN_PROJ;
    p->channels = p->of_rows ? rows : cols;
    p->channel = dq_calloc(env, (size_t)p->channels, sizeof *p->channel);
    for (int i = 0; i < 2; i++) p->row[i] = dq_alloc(env, (size_t)(step * cols) * sizeof(float));
    if (!p->channel || !p->row[0] || !p->row[1]) return DQ_E_NOMEM;
    for (int64_t first = 0; first < rows; first += step) {
        int64_t n = rows - first < step ? rows - first : step;
        for (int i = 0; i < 2; i++) {
            dq_tensor part = dq_tensor_rows(&p->linear[i].weight, first, n);
            DQ_TRY(dq_tensor_download(&part, p->row[i]));
        }
        add_rows(p, first, n, cols);
    }
    return DQ_OK;
}

/* The squared error that is left when each channel of w is divided by the factor c that brings it closest to r. */
static double without_scales(const pair *p)
{
    double left = 0;
    for (int64_t i = 0; i < p->channels; i++) {
        const sums *s = &p->channel[i];
        if (!(s->wr > 0)) {
            left += s->ww - 2 * s->wr + s->rr;
            continue;
        }
        double c = s->wr / s->rr, e = s->ww / (c * c) - s->rr;
        left += e > 0 ? e : 0;
    }
    return left;
}

dq_status dq_model_compare_linear(dq_model *model, dq_model *reference, int64_t layer, dq_role role, double *error,
                                  bool *rescaled)
{
    pair p = {.model = {model, reference}};
    dq_status status;
    DQ_TRY(check_pair(model, reference));
    DQ_GO(read_pair(&p, layer, role));
    double size = 0, left = 0;
    for (int64_t i = 0; i < p.channels; i++) size += p.channel[i].rr;
    /* AWQ scales rows of v and up, and columns of o and down against them */
    bool between = role == DQ_V_PROJ || role == DQ_UP_PROJ || role == DQ_O_PROJ || role == DQ_DOWN_PROJ;
    if (between) left = without_scales(&p);
    *rescaled = between && left < EXPLAINED * EXPLAINED * p.difference;
    double square = *rescaled ? left : p.difference;
    *error = size > 0 ? sqrt(square / size) : square > 0 ? INFINITY : 0;
done:
    clear(&p);
    return status;
}
