/* Conformance of ops that round their result to bf16 because products read it (DQ_FEATURE_BF16): the bits of the F32 result
 * rounded afterwards, on whatever device, and no fallback. A block, and whole models, give to the bit what they give when
 * every product rounds its own input. SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

#include "eval/perplexity.h"
#include "graph/block.h"
#include "models.h"
#include "rotation/rotation.h"

static void same_bits(const run_ctx *c, const char *what, const made *y, const made *z)
{
    const dq_view *v = &y->parent.view;
    size_t bytes = (size_t)(v->rows * v->cols) * dq_dtype_size(v->dtype);
    unsigned char *a = host_copy(&y->parent), *b = host_copy(&z->parent);
    for (size_t i = 0; i < bytes; i++)
        if (a[i] != b[i]) {
            if (failures++ < 12)
                print_error("%s on %s: byte %zu of %zu differs\n", what, dq_device_backend(c->dev), i, bytes);
            break;
        }
    free(a);
    free(b);
}

/* ---- one op ---- */

enum { RMSNORM, LAYERNORM, ACTIVATION, GATED, FAKE_QUANT, RMSNORM_QUANT, LAYERNORM_QUANT, HADAMARD_QUANT };
static const char *const op_names[] = {"rmsnorm",    "layernorm",     "activation",      "gated activation",
                                       "fake_quant", "rmsnorm_quant", "layernorm_quant", "hadamard_quant"};

typedef struct row_case {
    int op;
    int64_t rows, cols, group; /* group: of quantizers; of hadamard_quant the order, too */
} row_case;

typedef struct inputs {
    made *x, *second, *weight, *bias;
} inputs;

static void call(const row_case *p, const inputs *in, dq_tensor *y)
{
    dq_fake_quant_desc d = {4, (int)(p->rows % 2), p->group, 0.9f, p->group == p->cols};
    dq_hadamard_desc h = {.n = p->group, .k = 1, .inner = 1, .scale = 1 / sqrt((double)p->group)};
    switch (p->op) {
        case RMSNORM: must(dq_op_rmsnorm(&in->x->view, &in->weight->view, 1e-5, y)); break;
        case LAYERNORM: must(dq_op_layernorm(&in->x->view, &in->weight->view, &in->bias->view, 1e-5, y)); break;
        case ACTIVATION: must(dq_op_activation(DQ_ACT_GELU_TANH, &in->x->view, NULL, y)); break;
        case GATED: must(dq_op_activation(DQ_ACT_SILU, &in->x->view, &in->second->view, y)); break;
        case FAKE_QUANT: must(dq_op_fake_quant(&d, &in->x->view, y)); break;
        case RMSNORM_QUANT: must(dq_op_rmsnorm_quant(&in->x->view, &in->weight->view, 1e-5, &d, y)); break;
        case LAYERNORM_QUANT:
            must(dq_op_layernorm_quant(&in->x->view, &in->weight->view, &in->bias->view, 1e-5, &d, y));
            break;
        default: must(dq_op_hadamard_quant(&h, &d, &in->x->view, y)); break;
    }
}

/* What has the feature rounds in the same op; its host sees nothing of it either way. */
static void check_counts(const run_ctx *c, const dq_device_counters *before, uint64_t most)
{
    const dq_device_counters *now = dq_device_get_counters(c->dev);
    bool own = strcmp(dq_device_backend(c->dev), "cuda") == 0;
    if (own) assert_int_equal(now->ops - before->ops, 1);
    assert_true(now->ops - before->ops <= most);
    if (dq_device_rounds_inputs(c->dev)) assert_int_equal(now->fallbacks, before->fallbacks);
}

static void row_run(run_ctx *c, const void *params)
{
    const row_case *p = params;
    inputs in = {make_random(c, DQ_F32, p->rows, p->cols), make_random(c, DQ_F32, p->rows, p->cols),
                 make_random(c, DQ_F32, 1, p->cols), make_random(c, DQ_F32, 1, p->cols)};
    made *wide = make_constant(c, DQ_F32, p->rows, p->cols, NAN);
    made *y = make_constant(c, DQ_BF16, p->rows, p->cols, NAN), *z = make_constant(c, DQ_BF16, p->rows, p->cols, NAN);
    call(p, &in, &wide->view);
    must(dq_op_convert(&wide->view, &z->view));
    dq_device_counters before = *dq_device_get_counters(c->dev);
    call(p, &in, &y->view);
    if (p->rows > 0) check_counts(c, &before, 4);
    same_bits(c, op_names[p->op], y, z);
}

static void results_of_rows(void **state)
{
    (void)state;
    static const int64_t shapes[][3] = {{3, 64, 64}, {5, 96, 32}, {1, 4096, 4096}, {0, 64, 32}, {33, 448, 64}};
    static const int64_t odd[][3] = {{1, 1, 1}, {7, 577, 577}, {2, 30, 10}};
    for (int op = 0; op <= HADAMARD_QUANT; op++)
        for (int i = 0; i < 8; i++) {
            const int64_t *s = i < 5 ? shapes[i] : odd[i - 5];
            row_case p = {op, s[0], s[1], s[2]};
            char label[80];
            if (op == HADAMARD_QUANT && i >= 5) continue;
            snprintf(label, sizeof label, "bf16 from %s [%d, %d] group %d", op_names[op], (int)p.rows, (int)p.cols,
                     (int)p.group);
            for (int layout = 0; layout < LAYOUTS; layout++) run_case(label, row_run, &p, layout);
        }
    finish_cases();
}

static void attention_run(run_ctx *c, const void *params)
{
    const dq_attention_desc *d = params;
    int64_t rows = d->seqlen * 2, q_cols = (int64_t)d->heads * d->head_dim,
            kv_cols = (int64_t)d->kv_heads * d->head_dim;
    made *q = make_random(c, DQ_F32, rows, q_cols), *k = make_random(c, DQ_F32, rows, kv_cols);
    made *v = make_random(c, DQ_F32, rows, kv_cols), *wide = make_constant(c, DQ_F32, rows, q_cols, NAN);
    made *o = make_constant(c, DQ_BF16, rows, q_cols, NAN), *z = make_constant(c, DQ_BF16, rows, q_cols, NAN);
    must(dq_op_attention(d, &q->view, &k->view, &v->view, &wide->view));
    must(dq_op_convert(&wide->view, &z->view));
    dq_device_counters before = *dq_device_get_counters(c->dev);
    must(dq_op_attention(d, &q->view, &k->view, &v->view, &o->view));
    check_counts(c, &before, 2);
    same_bits(c, "attention", o, z);
}

static void results_of_attention(void **state)
{
    (void)state;
    static const dq_attention_desc cases[] = {
        {65, 3, 3, 64, 0, 0.125f, 0}, {33, 4, 2, 20, 7, 0.25f, 0}, {20, 2, 1, 200, 0, 0.1f, 1},
        {65, 3, 3, 64, 0, 0.125f, 1}, {33, 4, 2, 21, 7, 0.25f, 1}, {20, 2, 1, 128, 0, 0.1f, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int layout = 0; layout < LAYOUTS; layout++) {
            char label[80];
            snprintf(label, sizeof label, "bf16 from attention head_dim %d%s", cases[i].head_dim,
                     cases[i].math ? " bf16 math" : "");
            run_case(label, attention_run, &cases[i], layout);
        }
    finish_cases();
}

static made *fresh_state(run_ctx *c, int64_t rows)
{
    double *values = malloc((size_t)rows * 3 * sizeof *values);
    for (int64_t i = 0; i < rows * 3; i++) values[i] = i % 3 == 1 ? 0 : -INFINITY;
    made *s = make_values(c, DQ_F64, rows, 3, values);
    free(values);
    return s;
}

static void head_run(run_ctx *c, const void *params)
{
    enum { ROWS = 21, DEPTH = 40, VOCAB = 70, TILE = 33 };
    dq_dtype dtype = *(const dq_dtype *)params;
    made *x = make_random(c, DQ_BF16, ROWS, DEPTH), *wide = make_constant(c, DQ_F32, ROWS, DEPTH, NAN);
    made *w = make_random(c, dtype, VOCAB, DEPTH), *targets_of = make_index(c, ROWS, VOCAB);
    made *s = fresh_state(c, ROWS), *z = fresh_state(c, ROWS);
    must(dq_op_convert(&x->view, &wide->view));
    for (int64_t first = 0; first < VOCAB; first += TILE) {
        int64_t count = VOCAB - first < TILE ? VOCAB - first : TILE;
        dq_tensor part = dq_tensor_rows(&w->view, first, count);
        must(dq_op_head_nll(&wide->view, &part, &targets_of->view, first, &z->view, DQ_MATH_BF16));
        dq_device_counters before = *dq_device_get_counters(c->dev);
        must(dq_op_head_nll(&x->view, &part, &targets_of->view, first, &s->view, DQ_MATH_BF16));
        check_counts(c, &before, 2);
    }
    same_bits(c, "head_nll", s, z);
}

static void inputs_of_the_head(void **state)
{
    (void)state;
    static const dq_dtype types[] = {DQ_F32, DQ_BF16, DQ_F16};
    for (int i = 0; i < 3; i++) run_case("head_nll of bf16", head_run, &types[i], i);
    finish_cases();
}

/* A place cannot hold both types, and only where products round may the head's input be rounded. */
static void what_is_refused(void **state)
{
    (void)state;
    dq_tensor x, narrow, w, targets_of, s;
    must(dq_tensor_alloc(reference, DQ_F32, 4, 8, &x));
    must(dq_tensor_alloc(reference, DQ_BF16, 4, 8, &narrow));
    must(dq_tensor_alloc(reference, DQ_F32, 5, 8, &w));
    must(dq_tensor_alloc(reference, DQ_I32, 1, 4, &targets_of));
    must(dq_tensor_alloc(reference, DQ_F64, 4, 3, &s));
    dq_tensor alias = x;
    alias.owns = false;
    alias.view.dtype = DQ_BF16;
    assert_int_equal(dq_op_rmsnorm(&x, NULL, 1e-5, &alias), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "overlap"));
    assert_int_equal(dq_op_activation(DQ_ACT_SILU, &x, &x, &alias), DQ_E_INVALID);
    assert_int_equal(dq_op_head_nll(&narrow, &w, &targets_of, 0, &s, DQ_MATH_F32), DQ_E_INVALID);
    assert_int_equal(dq_op_rope(&x, &x, 8, &narrow), DQ_E_INVALID);
    dq_error_reset();
    dq_tensor *all[] = {&x, &narrow, &w, &targets_of, &s};
    for (int i = 0; i < 5; i++) dq_tensor_free(all[i]);
}

/* ---- a block ---- */

enum { SEQ = 6, ROWS = 12, HIDDEN = 64, HEADS = 4, KV = 2, DIM = 16, INTER = 96 };

typedef struct block_case {
    dq_act_spec a;
    bool r4, r2, layer_norm, no_gate;
    dq_dtype weights;
} block_case;

static void random_tensor(run_ctx *c, dq_dtype dtype, int64_t rows, int64_t cols, dq_tensor *out)
{
    made *m = make_random(c, dtype, rows, cols);
    *out = m->parent;
    c->tensor_count--; /* it is the block's */
}

static void make_block(run_ctx *c, const block_case *p, dq_block *b)
{
    static const int outs[DQ_BLOCK_LINEARS] = {HEADS * DIM, KV * DIM, KV * DIM, HIDDEN, INTER, INTER, HIDDEN};
    static const int ins[DQ_BLOCK_LINEARS] = {HIDDEN, HIDDEN, HIDDEN, HEADS * DIM, HIDDEN, HIDDEN, INTER};
    memset(b, 0, sizeof *b);
    random_tensor(c, DQ_F32, 1, HIDDEN, &b->attn_norm);
    random_tensor(c, DQ_F32, 1, HIDDEN, &b->mlp_norm);
    if (p->layer_norm) random_tensor(c, DQ_F32, 1, HIDDEN, &b->attn_norm_bias);
    if (p->layer_norm) random_tensor(c, DQ_F32, 1, HIDDEN, &b->mlp_norm_bias);
    for (int l = 0; l < DQ_BLOCK_LINEARS; l++) {
        random_tensor(c, p->weights, outs[l], ins[l], &b->linear[l].weight);
        if (p->layer_norm) random_tensor(c, DQ_F32, 1, outs[l], &b->linear[l].bias);
    }
}

/* All stages with the inputs of linears laid open, some of them, or none. */
enum { FORWARD, STAGES, HALVES, WAYS };

static void go_through(run_ctx *c, const dq_block_spec *s, const dq_block *b, int workspace_math, int way,
                       const made *from, made *h)
{
    dq_workspace ws;
    dq_block_spec of_workspace = *s;
    of_workspace.math = workspace_math;
    must(dq_op_convert(&from->view, &h->view));
    must(dq_workspace_alloc(c->dev, &of_workspace, ROWS, &ws));
    assert_true(ws.rounds == (workspace_math == DQ_MATH_BF16 && dq_device_rounds_inputs(c->dev)));
    if (way == HALVES) {
        must(dq_block_to_attn(s, b, &h->view, &ws));
        must(dq_block_attn_out(s, b, &ws.a, &ws, &h->view));
        must(dq_block_to_mlp(s, b, &h->view, &ws));
        must(dq_block_mlp_out(s, b, &ws, &h->view));
    } else if (way == STAGES) {
        must(dq_block_attn_in(s, b, &h->view, &ws));
        must(dq_block_attn(s, b, &ws));
        must(dq_block_attn_out(s, b, &ws.a, &ws, &h->view));
        must(dq_block_mlp_in(s, b, &h->view, &ws));
        must(dq_block_mlp(s, b, &ws));
        must(dq_block_mlp_out(s, b, &ws, &h->view));
    } else {
        must(dq_block_forward(s, b, &ws, &h->view));
    }
    dq_workspace_free(&ws);
}

static void block_run(run_ctx *c, const void *params)
{
    const block_case *p = params;
    dq_hadamard heads, inter;
    dq_block b;
    c->layout = 0;
    must(dq_hadamard_make(dq_device_env(c->dev), HEADS, true, &heads));
    must(dq_hadamard_make(dq_device_env(c->dev), INTER, false, &inter));
    dq_block_spec s = {.hidden = HIDDEN,
                       .intermediate = INTER,
                       .seqlen = SEQ,
                       .heads = HEADS,
                       .kv_heads = KV,
                       .head_dim = DIM,
                       .norm_eps = 1e-5,
                       .activation = p->no_gate ? DQ_ACT_RELU : DQ_ACT_SILU,
                       .layer_norm = p->layer_norm,
                       .no_gate = p->no_gate,
                       .r4 = p->r4 ? &inter : NULL,
                       .r2_heads = p->r2 ? &heads : NULL,
                       .math = DQ_MATH_BF16,
                       .scheme = plain_scheme()};
    s.scheme.a = p->a;
    make_block(c, p, &b);
    made *from = make_random(c, DQ_F32, ROWS, HIDDEN), *want = make_constant(c, DQ_F32, ROWS, HIDDEN, NAN);
    go_through(c, &s, &b, DQ_MATH_F32, FORWARD, from, want);
    for (int way = 0; way < WAYS; way++) {
        static const char *const names[] = {"a block", "its stages", "its halves"};
        made *h = make_constant(c, DQ_F32, ROWS, HIDDEN, NAN);
        go_through(c, &s, &b, DQ_MATH_BF16, way, from, h);
        same_bits(c, names[way], h, want);
    }
    dq_block_free(&b);
    dq_hadamard_clear(&heads);
    dq_hadamard_clear(&inter);
}

static void blocks(void **state)
{
    (void)state;
    static const dq_act_spec off = {16, -1, true, 1.0}, a8 = {8, -1, false, 0.9}, g4 = {4, 32, true, 1.0};
    const block_case cases[] = {
        {off, false, false, false, false, DQ_BF16}, {off, true, false, false, false, DQ_BF16},
        {off, false, true, false, false, DQ_F32},   {off, false, false, true, true, DQ_BF16},
        {a8, false, false, false, false, DQ_BF16},  {a8, true, true, false, false, DQ_F32},
        {g4, false, false, true, true, DQ_F32},     {g4, true, false, false, false, DQ_BF16},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char label[80];
        snprintf(label, sizeof label, "block, case %zu", i);
        run_case(label, block_run, &cases[i], 0);
    }
    finish_cases();
}

/* ---- whole models ---- */

static double perplexity_on(const dq_backend *table, const char *options, const char *name)
{
    enum { SEQLEN = 32, WINDOWS = 2 };
    int32_t ids[SEQLEN * WINDOWS];
    fixture f;
    dq_perplexity p;
    for (int i = 0; i < SEQLEN * WINDOWS; i++) ids[i] = (i * i * 7 + i * 13 + 5) % 90;
    must(dq_env_init(&f.env, NULL, 1));
    must(dq_device_open_table(&f.env, table, options, DQ_POLICY_FORBID, &f.dev));
    dq_model *m = open_tiny(&f, name);
    must(dq_perplexity_run(m, ids, SEQLEN * WINDOWS, SEQLEN, 0, DQ_MATH_BF16, NULL, &p));
    double ppl = p.ppl;
    dq_free(p.window_nll);
    dq_model_release(m);
    fixture_close(&f);
    return ppl;
}

/* Where a table knows nothing of all this, jobs ask of it what they always did. */
static void models_as_before(void **state)
{
    static const char *const models[] = {"gqa", "opt"};
    const char *chosen = getenv("DQ_TEST_BACKEND"), *options;
    char farsim[PATH_MAX], name[PATH_MAX];
    const dq_backend *table;
    (void)state;
    if (!chosen || !chosen[0]) chosen = beside_me("../fakes/libdartquant-farsim.so", farsim);
    options = strchr(chosen, ':');
    snprintf(name, sizeof name, "%.*s", (int)strcspn(chosen, ":"), chosen);
    must(dq_backend_find(name, &table));
    dq_backend before = *table;
    before.features = 0;
    for (int i = 0; i < 2; i++) {
        double want = perplexity_on(&before, options ? options + 1 : "", models[i]);
        double got = perplexity_on(table, options ? options + 1 : "", models[i]);
        if (want != got) print_error("%s: %.17g instead of %.17g\n", models[i], got, want);
        assert_true(want == got);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_of_rows),
        cmocka_unit_test(results_of_attention),
        cmocka_unit_test(inputs_of_the_head),
        cmocka_unit_test(what_is_refused),
        cmocka_unit_test(blocks),
        cmocka_unit_test(models_as_before),
    };
    return cmocka_run_group_tests_name("conformance: rounded inputs of products", tests, open_all, close_all);
}
