/* graph: a block against a plain forward pass in double precision that is written here, with every online transform and
 * fake quantizer. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rng.h"
#include "base/rotation_set.h"
#include "base/status.h"
#include "graph/block.h"
#include "models.h"
#include "rotation/rotation.h"

enum { SEQ = 6, ROWS = 12, HIDDEN = 24, HEADS = 6, KV = 2, DIM = 4, INTER = 40, Q = HEADS * DIM, K = KV * DIM };

/* ---- the plain forward pass ---- */

typedef struct plain_block {
    double attn_norm[HIDDEN], mlp_norm[HIDDEN];
    double w[DQ_BLOCK_LINEARS][INTER * HIDDEN], b[DQ_BLOCK_LINEARS][INTER];
} plain_block;

static const int outs[DQ_BLOCK_LINEARS] = {Q, K, K, HIDDEN, INTER, INTER, HIDDEN};
static const int ins[DQ_BLOCK_LINEARS] = {HIDDEN, HIDDEN, HIDDEN, Q, HIDDEN, HIDDEN, INTER};

static void plain_norm(const double *x, const double *weight, double eps, double *y)
{
    double sum = 0;
    for (int i = 0; i < HIDDEN; i++) sum += x[i] * x[i];
    for (int i = 0; i < HIDDEN; i++) y[i] = x[i] / sqrt(sum / HIDDEN + eps) * weight[i];
}

static void plain_linear(const plain_block *b, int l, const double *x, double *y)
{
    for (int o = 0; o < outs[l]; o++) {
        y[o] = b->b[l][o];
        for (int i = 0; i < ins[l]; i++) y[o] += b->w[l][o * ins[l] + i] * x[i];
    }
}

/* The rule of backend.h, in double; the range and scale are rounded to float as the ops keep them. */
static void plain_quant(const dq_act_spec *s, double *x, int n)
{
    if (s->bits == 16) return;
    int group = s->group > 0 ? (int)s->group : n;
    for (int g = 0; g < n; g += group) {
        double low = x[g], high = x[g];
        for (int i = g; i < g + group; i++) low = fmin(low, x[i]), high = fmax(high, x[i]);
        if (s->group < 0) low = fmin(low, 0), high = fmax(high, 0);
        low *= s->clip, high *= s->clip;
        if (s->symmetric) {
            double maxq = (1 << (s->bits - 1)) - 1, scale = fmax(fabs(low), fabs(high)) / maxq;
            if (scale == 0) scale = 1;
            for (int i = g; i < g + group; i++) x[i] = scale * fmin(fmax(rint(x[i] / scale), -maxq - 1), maxq);
        } else {
            double maxq = (1 << s->bits) - 1;
            if (low == 0 && high == 0) low = -1, high = 1;
            double scale = (high - low) / maxq, zero = rint(-low / scale);
            for (int i = g; i < g + group; i++) x[i] = scale * (fmin(fmax(rint(x[i] / scale) + zero, 0), maxq) - zero);
        }
    }
}

/* y = H x / sqrt(n) along `n` elements that lie `inner` apart, by the dense matrix. */
static void plain_hadamard(const dq_hadamard *h, double *x, int length, int inner)
{
    if (!h) return;
    int n = (int)h->n;
    int8_t *dense = malloc((size_t)n * (size_t)n);
    double *y = malloc((size_t)n * sizeof *y);
    dq_hadamard_dense(h, dense);
    for (int outer = 0; outer < length / (n * inner); outer++)
        for (int c = 0; c < inner; c++) {
            double *v = x + outer * n * inner + c;
            for (int a = 0; a < n; a++) {
                y[a] = 0;
                for (int b = 0; b < n; b++) y[a] += dense[a * n + b] * v[b * inner];
            }
            for (int a = 0; a < n; a++) v[a * inner] = y[a] / sqrt((double)n);
        }
    free(y);
    free(dense);
}

static void plain_rope(double *x, int width, int position)
{
    for (int h = 0; h < width; h += DIM)
        for (int i = 0; i < DIM / 2; i++) {
            double angle = position * pow(100.0, -2.0 * i / DIM), a = x[h + i], b = x[h + i + DIM / 2];
            x[h + i] = a * cos(angle) - b * sin(angle);
            x[h + i + DIM / 2] = b * cos(angle) + a * sin(angle);
        }
}

static void plain_attention(const dq_block_spec *s, double (*q)[Q], double (*k)[K], double (*v)[K], double (*a)[Q])
{
    for (int r = 0; r < ROWS; r++) {
        int start = r / SEQ * SEQ;
        if (s->window && r - s->window + 1 > start) start = r - s->window + 1;
        for (int h = 0; h < HEADS; h++) {
            int g = h / (HEADS / KV);
            double p[SEQ], sum = 0;
            for (int t = start; t <= r; t++) {
                double dot = 0;
                for (int i = 0; i < DIM; i++) dot += q[r][h * DIM + i] * k[t][g * DIM + i];
                sum += p[t - start] = exp(dot / sqrt((double)DIM));
            }
            for (int i = 0; i < DIM; i++) {
                a[r][h * DIM + i] = 0;
                for (int t = start; t <= r; t++) a[r][h * DIM + i] += p[t - start] / sum * v[t][g * DIM + i];
            }
        }
    }
}

static void plain_forward(const dq_block_spec *s, const plain_block *b, double (*h)[HIDDEN])
{
    static double q[ROWS][Q], k[ROWS][K], v[ROWS][K], a[ROWS][Q];
    for (int r = 0; r < ROWS; r++) {
        double x[HIDDEN];
        plain_norm(h[r], b->attn_norm, s->norm_eps, x);
        plain_quant(&s->scheme.a, x, HIDDEN);
        plain_linear(b, DQ_BLOCK_Q, x, q[r]);
        plain_linear(b, DQ_BLOCK_K, x, k[r]);
        plain_linear(b, DQ_BLOCK_V, x, v[r]);
        plain_rope(q[r], Q, r % SEQ);
        plain_rope(k[r], K, r % SEQ);
        plain_hadamard(s->r3, q[r], Q, 1);
        plain_hadamard(s->r3, k[r], K, 1);
        plain_quant(&s->scheme.k, k[r], K);
        plain_quant(&s->scheme.v, v[r], K);
    }
    plain_attention(s, q, k, v, a);
    for (int r = 0; r < ROWS; r++) {
        double x[HIDDEN], y[HIDDEN], gate[INTER], up[INTER];
        plain_hadamard(s->r2_heads, a[r], Q, DIM);
        plain_quant(&s->scheme.a, a[r], Q);
        plain_linear(b, DQ_BLOCK_O, a[r], y);
        for (int i = 0; i < HIDDEN; i++) h[r][i] += y[i];
        plain_norm(h[r], b->mlp_norm, s->norm_eps, x);
        plain_quant(&s->scheme.a, x, HIDDEN);
        plain_linear(b, DQ_BLOCK_GATE, x, gate);
        plain_linear(b, DQ_BLOCK_UP, x, up);
        for (int i = 0; i < INTER; i++) gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
        plain_hadamard(s->r4, gate, INTER, 1);
        plain_quant(&s->scheme.a, gate, INTER);
        plain_linear(b, DQ_BLOCK_DOWN, gate, y);
        for (int i = 0; i < HIDDEN; i++) h[r][i] += y[i];
    }
}

/* ---- the same data on a device ---- */

static void random_tensor(dq_device *dev, dq_rng *rng, int rows, int cols, double scale, double offset, double *plain,
                          dq_tensor *out)
{
    float values[INTER * HIDDEN];
    for (int i = 0; i < rows * cols; i++) {
        values[i] = (float)(offset + scale * dq_rng_normal(rng));
        plain[i] = (double)values[i];
    }
    assert_int_equal(dq_tensor_from_host(dev, DQ_F32, rows, cols, values, out), DQ_OK);
}

typedef struct setup {
    plain_block plain;
    dq_block block;
    dq_block_spec spec;
    double h[ROWS][HIDDEN];
    dq_tensor hidden;
    dq_hadamard heads, dim, inter;
} setup;

static void make_setup(fixture *f, setup *s)
{
    dq_rng rng;
    memset(s, 0, sizeof *s);
    dq_rng_seed_torch(&rng, 5);
    random_tensor(f->dev, &rng, 1, HIDDEN, 0.2, 1.0, s->plain.attn_norm, &s->block.attn_norm);
    random_tensor(f->dev, &rng, 1, HIDDEN, 0.2, 1.0, s->plain.mlp_norm, &s->block.mlp_norm);
    for (int l = 0; l < DQ_BLOCK_LINEARS; l++) {
        random_tensor(f->dev, &rng, outs[l], ins[l], 0.3, 0, s->plain.w[l], &s->block.linear[l].weight);
        random_tensor(f->dev, &rng, 1, outs[l], 0.3, 0, s->plain.b[l], &s->block.linear[l].bias);
    }
    random_tensor(f->dev, &rng, ROWS, HIDDEN, 1.0, 0, s->h[0], &s->hidden);
    dq_scheme scheme = plain_scheme();
    s->spec = (dq_block_spec){.hidden = HIDDEN,
                              .intermediate = INTER,
                              .seqlen = SEQ,
                              .heads = HEADS,
                              .kv_heads = KV,
                              .head_dim = DIM,
                              .norm_eps = 1e-5,
                              .activation = DQ_ACT_SILU,
                              .scheme = scheme};
    float c[SEQ * DIM / 2], si[SEQ * DIM / 2];
    for (int t = 0; t < SEQ; t++)
        for (int i = 0; i < DIM / 2; i++) {
            c[t * DIM / 2 + i] = (float)cos(t * pow(100.0, -2.0 * i / DIM));
            si[t * DIM / 2 + i] = (float)sin(t * pow(100.0, -2.0 * i / DIM));
        }
    assert_int_equal(dq_tensor_from_host(f->dev, DQ_F32, SEQ, DIM / 2, c, &s->spec.cos), DQ_OK);
    assert_int_equal(dq_tensor_from_host(f->dev, DQ_F32, SEQ, DIM / 2, si, &s->spec.sin), DQ_OK);
    assert_int_equal(dq_hadamard_make(&f->env, HEADS, true, &s->heads), DQ_OK); /* 6: blocks */
    assert_int_equal(dq_hadamard_make(&f->env, DIM, false, &s->dim), DQ_OK);
    assert_int_equal(dq_hadamard_make(&f->env, INTER, false, &s->inter), DQ_OK); /* 40 = K */
}

static void free_setup(setup *s)
{
    dq_block_free(&s->block);
    dq_tensor_free(&s->hidden);
    dq_tensor_free(&s->spec.cos);
    dq_tensor_free(&s->spec.sin);
    dq_hadamard_clear(&s->heads);
    dq_hadamard_clear(&s->dim);
    dq_hadamard_clear(&s->inter);
}

static double block_difference(fixture *f, setup *s)
{
    static double want[ROWS][HIDDEN];
    float got[ROWS * HIDDEN];
    dq_workspace ws;
    dq_tensor h;
    double worst = 0;
    memcpy(want, s->h, sizeof want);
    plain_forward(&s->spec, &s->plain, want);
    assert_int_equal(dq_tensor_alloc(f->dev, DQ_F32, ROWS, HIDDEN, &h), DQ_OK);
    assert_int_equal(dq_op_convert(&s->hidden, &h), DQ_OK);
    assert_int_equal(dq_workspace_alloc(f->dev, &s->spec, ROWS, &ws), DQ_OK);
    assert_int_equal(dq_block_forward(&s->spec, &s->block, &ws, &h), DQ_OK);
    assert_int_equal(dq_tensor_download(&h, got), DQ_OK);
    dq_workspace_free(&ws);
    dq_tensor_free(&h);
    for (int i = 0; i < ROWS * HIDDEN; i++) worst = fmax(worst, fabs((double)got[i] - want[i / HIDDEN][i % HIDDEN]));
    return worst;
}

static void blocks_agree(void **state)
{
    (void)state;
    static const dq_act_spec off = {16, -1, true, 1.0}, a8 = {8, -1, false, 0.9}, s8 = {8, -1, true, 1.0},
                             g8 = {8, 8, false, 1.0}, per_head = {8, DIM, false, 0.95}, g4 = {4, 4, true, 1.0};
    static const struct {
        dq_act_spec a, k, v;
        bool r3, r4, r2;
        int window;
    } cases[] = {
        {off, off, off, false, false, false, 0},   {off, off, off, false, false, false, 3},
        {off, off, off, true, false, false, 0},    {off, off, off, false, true, false, 0},
        {off, off, off, false, false, true, 0},    {off, off, off, true, true, true, 2},
        {a8, off, off, false, false, false, 0},    {s8, off, off, false, true, false, 0},
        {g8, off, off, false, false, true, 0},     {off, a8, off, true, false, false, 0},
        {off, per_head, off, true, true, true, 0}, {off, off, per_head, false, false, false, 0},
        {off, off, g4, false, false, false, 0},    {a8, per_head, s8, true, true, true, 4},
    };
    static const char *const devices[] = {"ref", "cpu"};
    for (int d = 0; d < 2; d++) {
        fixture f;
        setup *s = malloc(sizeof *s);
        fixture_open(&f, devices[d], 2);
        make_setup(&f, s);
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            s->spec.scheme.a = cases[i].a;
            s->spec.scheme.k = cases[i].k;
            s->spec.scheme.v = cases[i].v;
            s->spec.r3 = cases[i].r3 ? &s->dim : NULL;
            s->spec.r4 = cases[i].r4 ? &s->inter : NULL;
            s->spec.r2_heads = cases[i].r2 ? &s->heads : NULL;
            s->spec.window = cases[i].window;
            double difference = block_difference(&f, s);
            if (!(difference < 2e-5)) print_message("%s, case %zu: %g\n", devices[d], i, difference);
            assert_true(difference < 2e-5);
        }
        free_setup(s);
        free(s);
        fixture_close(&f);
    }
}

/* The stages leave the inputs of the linears where the header says, before quantization. */
static void cuts_hold_unquantized_inputs(void **state)
{
    (void)state;
    fixture f;
    setup *s = malloc(sizeof *s);
    dq_workspace ws;
    float before[ROWS * INTER], after[ROWS * INTER];
    fixture_open(&f, "cpu", 1);
    make_setup(&f, s);
    s->spec.scheme.a = (dq_act_spec){4, -1, false, 0.9};
    assert_int_equal(dq_workspace_alloc(f.dev, &s->spec, ROWS, &ws), DQ_OK);
    const dq_tensor *cuts[] = {&ws.x, &ws.a, &ws.x, &ws.gate};
    for (int i = 0; i < 4; i++) {
        if (i == 0) assert_int_equal(dq_block_attn_in(&s->spec, &s->block, &s->hidden, &ws), DQ_OK);
        if (i == 2) assert_int_equal(dq_block_mlp_in(&s->spec, &s->block, &s->hidden, &ws), DQ_OK);
        assert_int_equal(dq_tensor_download(cuts[i], before), DQ_OK);
        if (i == 0) assert_int_equal(dq_block_attn(&s->spec, &s->block, &ws), DQ_OK);
        if (i == 1) assert_int_equal(dq_block_attn_out(&s->spec, &s->block, &ws.a, &ws, &s->hidden), DQ_OK);
        if (i == 2) assert_int_equal(dq_block_mlp(&s->spec, &s->block, &ws), DQ_OK);
        if (i == 3) assert_int_equal(dq_block_mlp_out(&s->spec, &s->block, &ws, &s->hidden), DQ_OK);
        assert_int_equal(dq_tensor_download(cuts[i], after), DQ_OK);
        assert_memory_equal(before, after, (size_t)(cuts[i]->view.rows * cuts[i]->view.cols) * 4);
    }
    dq_workspace_free(&ws);
    free_setup(s);
    free(s);
    fixture_close(&f);
}

static void groups_must_divide(void **state)
{
    (void)state;
    fixture f;
    setup *s = malloc(sizeof *s);
    dq_workspace ws;
    fixture_open(&f, "ref", 1);
    make_setup(&f, s);
    s->spec.scheme.a = (dq_act_spec){4, 12, false, 1.0}; /* divides 24, not 40 */
    assert_int_equal(dq_block_spec_check(&s->spec), DQ_E_INVALID);
    assert_string_equal(dq_error_text(),
                        "quantization of the down_proj input: group size 12 does not divide its 40 columns");
    dq_error_reset();
    s->spec.scheme.a.bits = 16;
    s->spec.scheme.k = (dq_act_spec){4, 3, false, 1.0};
    assert_int_equal(dq_block_spec_check(&s->spec), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "keys"));
    dq_error_reset();
    s->spec.scheme.k = (dq_act_spec){4, -1, false, 1.5};
    assert_int_equal(dq_block_spec_check(&s->spec), DQ_E_INVALID);
    dq_error_reset();
    assert_int_equal(dq_workspace_alloc(f.dev, &s->spec, SEQ + 1, &ws), DQ_E_INVALID);
    dq_error_reset();
    free_setup(s);
    free(s);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_agree),
        cmocka_unit_test(cuts_hold_unquantized_inputs),
        cmocka_unit_test(groups_must_divide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
