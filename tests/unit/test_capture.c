/* calib: the pass over the layers and the draw of rows. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "calib/gather.h"
#include "memory_stream.h"
#include "models.h"
#include "ok.h"

enum { SAMPLES = 3, SEQLEN = 12, TOKENS = SAMPLES * SEQLEN };

static dq_model *open_fused(fixture *f, const char *name)
{
    dq_model *model = open_tiny(f, name), *fused;
    OK(dq_model_derive_fused(model, false, &fused));
    dq_model_release(model);
    return fused;
}

static const int32_t *windows(const dq_model *model)
{
    static int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * 7 + 3) % dq_model_arch(model)->vocab);
    return ids;
}

/* Everything that was shown, per layer and site. */
typedef struct shown {
    const dq_arch *arch;
    float *x[8][DQ_SITES];
    int64_t begun, ticks;
    int linears; /* bits: shown in this layer */
} shown;

static dq_status see_layer(void *arg, int64_t layer)
{
    shown *s = arg;
    assert_int_equal(layer, s->begun++);
    assert_true(layer == 0 || s->linears == (1 << DQ_BLOCK_LINEARS) - 1);
    s->linears = 0;
    for (int k = 0; k < DQ_SITES; k++)
        s->x[layer][k] = calloc((size_t)(TOKENS * dq_site_width(s->arch, (dq_site)k)), sizeof(float));
    return DQ_OK;
}

/* Each linear once, never those of attention and of the MLP together. */
static dq_status see_weights(void *arg, int64_t layer, const dq_block *block)
{
    shown *s = arg;
    assert_int_equal(layer, s->begun - 1);
    for (int i = 0; i < DQ_BLOCK_LINEARS; i++) {
        if (dq_tensor_is_empty(&block->linear[i].weight)) continue;
        assert_int_equal(s->linears & 1 << i, 0);
        assert_true(dq_tensor_is_empty(&block->linear[i < DQ_BLOCK_GATE ? DQ_BLOCK_GATE : DQ_BLOCK_Q].weight));
        s->linears |= 1 << i;
    }
    return DQ_OK;
}

static dq_status see_inputs(void *arg, const dq_inputs *in)
{
    shown *s = arg;
    assert_int_equal(in->x->view.cols, dq_site_width(s->arch, in->site));
    return dq_tensor_download(in->x, s->x[in->layer][in->site] + in->first * in->x->view.cols);
}

static dq_status see_tick(void *arg, int64_t tokens)
{
    ((shown *)arg)->ticks += tokens > 0;
    return DQ_OK;
}

static void forget(shown *s)
{
    for (int l = 0; l < 8; l++)
        for (int k = 0; k < DQ_SITES; k++) free(s->x[l][k]);
}

static void run(dq_model *model, uint64_t most, const char *folder, shown *s)
{
    dq_capture *c;
    dq_visitor v = {s, see_layer, see_weights, see_inputs, see_tick};
    *s = (shown){.arch = dq_model_arch(model)};
    OK(dq_capture_new(model, windows(model), SAMPLES, SEQLEN, DQ_MATH_F32, most, folder, true, &c));
    assert_int_equal(dq_spool_is_open(&c->hidden.spool), most < (uint64_t)(TOKENS * s->arch->hidden * 4));
    for (int64_t l = 0; l < s->arch->layers; l++) OK(dq_capture_layer(c, &v));
    assert_int_equal(s->begun, s->arch->layers);
    dq_capture_free(c);
}

/* One window alone through plain blocks. */
static void compare_window(fixture *f, dq_model *model, const shown *s, int window)
{
    dq_block_spec spec;
    dq_workspace ws;
    dq_tensor h;
    OK(dq_model_block_spec(model, SEQLEN, DQ_MATH_F32, &spec));
    OK(dq_workspace_alloc(f->dev, &spec, SEQLEN, &ws));
    OK(dq_tensor_alloc(f->dev, DQ_F32, SEQLEN, spec.hidden, &h));
    OK(dq_model_embed(model, windows(model) + window * SEQLEN, SEQLEN, SEQLEN, &h));
    for (int64_t l = 0; l < s->arch->layers; l++) {
        dq_block b;
        float got[SEQLEN * 512];
        memset(&b, 0, sizeof b);
        OK(dq_model_load_block(model, l, &b));
        for (int k = 0; k < DQ_SITES; k++) {
            const dq_tensor *x = k == DQ_SITE_O ? &ws.a : &ws.x;
            if (k == DQ_SITE_ATTN) OK(dq_block_attn_in(&spec, &b, &h, &ws));
            if (k == DQ_SITE_O) OK(dq_block_attn(&spec, &b, &ws));
            if (k == DQ_SITE_MLP) OK(dq_block_attn_out(&spec, &b, &ws.a, &ws, &h));
            if (k == DQ_SITE_MLP) OK(dq_block_mlp_in(&spec, &b, &h, &ws));
            OK(dq_tensor_download(x, got));
            const float *want = s->x[l][k] + window * SEQLEN * x->view.cols;
            for (int64_t i = 0; i < SEQLEN * x->view.cols; i++)
                assert_true(fabsf(got[i] - want[i]) <= 2e-5f * (1 + fabsf(want[i])));
        }
        OK(dq_block_mlp(&spec, &b, &ws));
        OK(dq_block_mlp_out(&spec, &b, &ws, &h));
        dq_block_free(&b);
    }
    dq_tensor_free(&h);
    dq_workspace_free(&ws);
    dq_block_spec_clear(&spec);
}

static void inputs_are_those_of_the_forward_pass(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 2);
    dq_model *model = open_fused(&f, "gqa");
    shown s, t;
    run(model, UINT64_MAX, "", &s);
    for (int w = 0; w < SAMPLES; w++) compare_window(&f, model, &s, w);
    run(model, 100, "/tmp", &t); /* the stream in a file */
    for (int64_t l = 0; l < s.arch->layers; l++)
        for (int k = 0; k < DQ_SITES; k++)
            assert_memory_equal(s.x[l][k], t.x[l][k], (size_t)(TOKENS * dq_site_width(s.arch, (dq_site)k)) * 4);
    forget(&s);
    forget(&t);
    dq_model_release(model);
    fixture_close(&f);
}

static void what_cannot_be_walked_is_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_tiny(&f, "gqa"), *fused = open_fused(&f, "gqa");
    dq_capture *c = NULL;
    int32_t bad[SEQLEN] = {0};
    bad[5] = (int32_t)dq_model_arch(model)->vocab;
    assert_int_equal(dq_capture_new(model, windows(model), 1, SEQLEN, DQ_MATH_F32, 1 << 20, "", false, &c), DQ_E_STATE);
    assert_int_equal(dq_capture_new(fused, bad, 1, SEQLEN, DQ_MATH_F32, 1 << 20, "", false, &c), DQ_E_MISMATCH);
    assert_int_equal(dq_capture_new(fused, bad, 0, SEQLEN, DQ_MATH_F32, 1 << 20, "", false, &c), DQ_E_INVALID);
    assert_int_equal(dq_capture_new(fused, bad, INT64_MAX / 2, SEQLEN, DQ_MATH_F32, 1 << 20, "", false, &c),
                     DQ_E_INVALID);
    assert_int_equal(dq_capture_new(fused, windows(model), SAMPLES, SEQLEN, DQ_MATH_F32, 10, "/nonexistent", false, &c),
                     DQ_E_IO);
    assert_null(c);
    dq_model_release(model);
    dq_model_release(fused);
    fixture_close(&f);
}

/* Finite weights, but the MLP of layer 0 overflows. */
static bool enlarge(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    (void)arg;
    if (strstr(name, "layers.0.mlp"))
        for (int64_t i = 0; i < rows * cols; i++) values[i] *= 1e30f;
    return true;
}

static void overflow_names_layer_and_token(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *model, *fused;
    dq_capture *c;
    dq_visitor v = {0};
    OK(changed_model(&f, "gqa", enlarge, NULL, &model));
    OK(dq_model_derive_fused(model, false, &fused));
    OK(dq_capture_new(fused, windows(model), SAMPLES, SEQLEN, DQ_MATH_F32, 1 << 20, "", false, &c));
    dq_status status = DQ_OK;
    for (int64_t l = 0; l < dq_model_arch(model)->layers && status == DQ_OK; l++) status = dq_capture_layer(c, &v);
    assert_int_equal(status, DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "layer 0: the result of token "));
    dq_capture_free(c);
    dq_model_release(fused);
    dq_model_release(model);
    fixture_close(&f);
}

/* ---- drawing ---- */

static void draws_are_even(void **state)
{
    (void)state;
    dq_env env;
    OK(dq_env_init(&env, NULL, 1));
    for (int64_t total = 1; total < 200; total += 3)
        for (int64_t want = 0; want <= total + 1; want++) {
            int32_t *list;
            int64_t count;
            OK(dq_draw_stratified(&env, 5, 1, total, want, &list, &count));
            assert_int_equal(count, want < total ? want : total);
            for (int64_t i = 0; i < count; i++)
                assert_true(list[i] >= i * total / count && list[i] < (i + 1) * total / count);
            dq_free(list);
        }
    dq_env_clear(&env);
}

typedef struct gathered {
    dq_gather g;
    dq_capture *c;
} gathered;

static dq_status on_begin(void *arg, int64_t layer)
{
    gathered *x = arg;
    return dq_gather_begin(&x->g, layer, x->c->norms);
}

static dq_status on_weights(void *arg, int64_t layer, const dq_block *block)
{
    return dq_gather_weights(&((gathered *)arg)->g, layer, block);
}

static dq_status on_inputs(void *arg, const dq_inputs *in) { return dq_gather_inputs(&((gathered *)arg)->g, in); }

static dq_rows *make_rows(fixture *f, int64_t width, int64_t activations, int64_t sinks, int64_t weights)
{
    dq_rows *rows;
    int64_t all = activations + sinks + weights;
    dq_rows_spec spec = {.width = width, .dtype = DQ_F32, .budget = (uint64_t)(all * width * 4), .seed = 1};
    spec.share[DQ_ROWS_ACTIVATION] = ((double)activations + 0.001) / ((double)all + 0.003);
    spec.share[DQ_ROWS_SINK] = sinks ? (double)sinks / (double)all : 0;
    spec.share[DQ_ROWS_WEIGHT] = weights ? (double)weights / (double)all : 0;
    for (int k = 0; k < DQ_ROW_KINDS; k++) spec.share[k] *= 1 - 1e-12;
    spec.budget += 4;
    OK(dq_rows_new(f->dev, &spec, &rows));
    return rows;
}

static void gather_from(fixture *f, dq_model *model, double ratio, dq_rows *r1, dq_rows *r2)
{
    gathered x = {.g = {.env = &f->env, .dev = f->dev, .arch = dq_model_arch(model), .tokens = TOKENS, .seed = 4}};
    dq_visitor v = {&x, on_begin, on_weights, on_inputs, NULL};
    x.g.r1 = r1;
    x.g.r2 = r2;
    x.g.sink_ratio = ratio;
    OK(dq_capture_new(model, windows(model), SAMPLES, SEQLEN, DQ_MATH_F32, UINT64_MAX, "", true, &x.c));
    for (int64_t l = 0; l < dq_model_arch(model)->layers; l++) {
        if (l == 1) x.g.r2 = NULL;
        OK(dq_capture_layer(x.c, &v));
    }
    dq_gather_clear(&x.g);
    dq_capture_free(x.c);
}

static double rms(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum / (double)n);
}

static float *download(const dq_tensor *t)
{
    float *x = calloc((size_t)(t->view.rows * t->view.cols + 1), sizeof *x);
    if (!dq_tensor_is_empty(t)) OK(dq_tensor_download(t, x));
    return x;
}

/* Every kept row is one that was shown; every layer and site has its share; weights have RMS 1. */
static void rows_come_from_everywhere(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_fused(&f, "gqa");
    const dq_arch *a = dq_model_arch(model);
    int64_t width = a->heads * a->head_dim, want = 2 * a->layers * 5;
    dq_rows *r1 = make_rows(&f, a->hidden, want, 0, 20), *r2 = make_rows(&f, width, 7, 0, 9);
    shown s;
    run(model, UINT64_MAX, "", &s);
    gather_from(&f, model, 0, r1, r2);
    assert_in_range(dq_rows_count(r1, DQ_ROWS_ACTIVATION), want - 1, want + 1);
    dq_tensor view = dq_rows_view(r1, DQ_ROWS_ACTIVATION);
    float *x = download(&view);
    int64_t per_site[8][DQ_SITES] = {{0}};
    for (int64_t r = 0; r < view.view.rows; r++) {
        int found = 0;
        for (int64_t l = 0; l < a->layers && !found; l++)
            for (int k = 0; k < DQ_SITES && !found; k += 2)
                for (int64_t t = 0; t < TOKENS && !found; t++)
                    if (memcmp(x + r * a->hidden, s.x[l][k] + t * a->hidden, (size_t)a->hidden * 4) == 0) {
                        found = 1;
                        per_site[l][k]++;
                    }
        assert_true(found);
    }
    for (int64_t l = 0; l < a->layers; l++) {
        assert_in_range(per_site[l][DQ_SITE_ATTN], 4, 6);
        assert_in_range(per_site[l][DQ_SITE_MLP], 4, 6);
    }
    free(x);
    view = dq_rows_view(r1, DQ_ROWS_WEIGHT);
    x = download(&view);
    assert_in_range(view.view.rows, 19, 20);
    for (int64_t r = 0; r < view.view.rows; r++) assert_true(fabs(rms(x + r * a->hidden, a->hidden) - 1) < 1e-5);
    free(x);
    view = dq_rows_view(r2, DQ_ROWS_WEIGHT);
    x = download(&view);
    for (int64_t i = 0; i < view.view.rows * a->heads; i++)
        assert_true(fabs(rms(x + i * a->head_dim, a->head_dim) - 1) < 1e-5);
    free(x);
    assert_in_range(dq_rows_count(r2, DQ_ROWS_ACTIVATION), 6, 8);
    forget(&s);
    dq_rows_free(r1);
    dq_rows_free(r2);
    dq_model_release(model);
    fixture_close(&f);
}

/* Token 3 of the vocabulary gets an embedding far longer than the others': exactly its places are sinks of layer 0. */
static bool lengthen(const char *name, int64_t rows, int64_t cols, float *values, void *arg)
{
    (void)rows;
    (void)arg;
    if (strstr(name, "embed_tokens"))
        for (int64_t i = 0; i < cols; i++) values[3 * cols + i] *= 500;
    return true;
}

static void sinks_are_told_apart(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *model, *fused;
    OK(changed_model(&f, "gqa", lengthen, NULL, &model));
    OK(dq_model_derive_fused(model, false, &fused));
    const dq_arch *a = dq_model_arch(model);
    int64_t places = 0;
    for (int i = 0; i < TOKENS; i++) places += windows(model)[i] == 3;
    assert_true(places > 0);
    dq_rows *rows = make_rows(&f, a->hidden, 2 * a->layers * TOKENS, 2 * a->layers * TOKENS, 0);
    gather_from(&f, fused, 20, rows, NULL);
    /* The residual stream carries them through all layers; they count where q, k and v read them. */
    assert_int_equal(dq_rows_count(rows, DQ_ROWS_SINK), a->layers * places);
    assert_int_equal(dq_rows_count(rows, DQ_ROWS_ACTIVATION), 2 * a->layers * (TOKENS - places));
    dq_rows_free(rows);
    dq_model_release(fused);
    dq_model_release(model);
    fixture_close(&f);
}

/* ---- state ---- */

/* A set that was saved half-way draws the same rows as one that went on. */
static void saved_rows_go_on(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    memory_stream m = {0};
    float x[40 * 6];
    dq_tensor t;
    uint64_t one, other;
    for (int i = 0; i < 40 * 6; i++) x[i] = (float)i;
    OK(dq_tensor_from_host(f.dev, DQ_F32, 40, 6, x, &t));
    dq_rows *a = make_rows(&f, 6, 16, 0, 4), *b = make_rows(&f, 6, 16, 0, 4);
    OK(dq_rows_add(a, DQ_ROWS_ACTIVATION, &t));
    OK(dq_rows_save(a, &(dq_put){memory_put, &m}));
    OK(dq_rows_load(b, &(dq_get){memory_get, &m}));
    assert_int_equal(m.at, m.size);
    OK(dq_rows_add(a, DQ_ROWS_ACTIVATION, &t));
    OK(dq_rows_add(b, DQ_ROWS_ACTIVATION, &t));
    OK(dq_rows_add(a, DQ_ROWS_WEIGHT, &t));
    OK(dq_rows_add(b, DQ_ROWS_WEIGHT, &t));
    OK(dq_rows_fingerprint(a, &one));
    OK(dq_rows_fingerprint(b, &other));
    assert_true(one == other);
    assert_int_equal(dq_rows_seen(b, DQ_ROWS_ACTIVATION), 80);
    assert_int_equal(dq_rows_load(b, &(dq_get){memory_get, &m}), DQ_E_STATE);
    dq_rows *c = make_rows(&f, 6, 4, 0, 4); /* smaller */
    m.at = 0;
    assert_int_equal(dq_rows_load(c, &(dq_get){memory_get, &m}), DQ_E_FORMAT);
    free(m.data);
    dq_rows_free(a);
    dq_rows_free(b);
    dq_rows_free(c);
    dq_tensor_free(&t);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inputs_are_those_of_the_forward_pass),
        cmocka_unit_test(what_cannot_be_walked_is_refused),
        cmocka_unit_test(overflow_names_layer_and_token),
        cmocka_unit_test(draws_are_even),
        cmocka_unit_test(rows_come_from_everywhere),
        cmocka_unit_test(sinks_are_told_apart),
        cmocka_unit_test(saved_rows_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
