/* dartquant/calibrator.h fed with what it should not get: numbers that are none, rows of low rank, no tokens, a learning rate
 * that is too high. Public functions alone. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>
#include <zip.h>

#include "host_model.h"
#include "scratch.h"

enum { N = 16 };

static char warnings[4096];

static void keep_warnings(void *user, int32_t level, const char *text)
{
    (void)user;
    if (level == DQ_LOG_WARNING && strlen(warnings) + strlen(text) + 2 < sizeof warnings)
        strcat(strcat(warnings, text), "\n");
}

static dq_context *logging_context(void)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .log = keep_warnings};
    dq_context *ctx = NULL;
    warnings[0] = 0;
    OK(dq_context_new(NULL, &services, &ctx));
    return ctx;
}

static void expect(dq_status got, dq_status expected, const char *words)
{
    if (got != expected || !strstr(dq_error_text(), words))
        fail_msg("status %d instead of %d, \"%s\" should say \"%s\"", got, expected, dq_error_text(), words);
}

/* ---- activations that are not finite ---- */

/* BF16 weights of one linear, times 2^100. */
static void enlarge(host_model *m, const char *name)
{
    host_tensor *t = (host_tensor *)(uintptr_t)host_model_find(m, name);
    assert_non_null(t);
    assert_int_equal(t->dtype, DQ_BF16);
    for (uint64_t i = 0; i < t->bytes / 2; i++) {
        uint16_t *x = (uint16_t *)t->data + i;
        if (*x & 0x7f80) *x = (uint16_t)(*x + (100 << 7));
    }
}

static host_model host; /* lends its weights as long as the bench is open */

typedef struct bench {
    dq_context *ctx;
    dq_config *config;
    dq_dataset *set;
    dq_model *model;
} bench;

/* The tiny model with fused norms; `overflow`: names the linears that are enlarged, NULL-terminated. */
static bench open_bench(const char *settings, const char *const *overflow)
{
    bench b = {.ctx = host_context(2), .config = host_config(settings)};
    dq_model *plain = NULL;
    host_model_load(&host, "tests/data/tiny");
    for (; overflow && *overflow; overflow++) enlarge(&host, *overflow);
    dq_tensor_source source = host_model_source(&host);
    OK(dq_model_open_source(b.ctx, host.config, &source, &plain));
    OK(dq_model_fuse_norms(plain, b.config, &b.model));
    dq_model_free(plain);
    b.set = host_ids(b.ctx, 400);
    return b;
}

static void close_bench(bench *b)
{
    dq_model_free(b->model);
    dq_dataset_free(b->set);
    dq_config_free(b->config);
    dq_context_free(b->ctx);
    host_model_clear(&host);
    assert_int_equal(heap.live, 0);
}

static const char *const LAYER_1[] = {"model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight", NULL};

static void overflow_names_layer_and_token(void **state)
{
    (void)state;
    bench b = open_bench("nsamples=3 seqlen=32", LAYER_1);
    dq_calibrator *job = NULL;
    OK(dq_calibrator_new(b.model, b.config, &job));
    OK(dq_calibrator_bind(job, b.set));
    dq_status status = dq_calibrator_run(job, NULL, NULL, NULL);
    int layer, token, window;
    assert_int_equal(status, DQ_E_NONFINITE);
    if (sscanf(dq_error_text(), "layer %d: the result of token %d in window %d is", &layer, &token, &window) != 3)
        fail_msg("%s", dq_error_text());
    assert_int_equal(layer, 1);
    assert_in_range(token, 0, 31);
    assert_in_range(window, 0, 2);
    assert_int_equal(dq_calibrator_run(job, NULL, NULL, NULL), DQ_E_STATE);
    dq_calibrator_free(job);
    scratch_empty();
    expect(dq_model_capture(b.model, b.config, b.set, scratch_dir(), NULL, NULL, NULL), DQ_E_NONFINITE,
           "layer 1: the result of token ");
    assert_int_equal(files_in(scratch_dir()), 0);
    close_bench(&b);
}

/* One number of the storage of a PyTorch archive. */
static void change_number(const char *path, uint64_t index, uint16_t bits)
{
    zip_t *z = zip_open(path, 0, NULL);
    assert_non_null(z);
    for (zip_int64_t i = 0; i < zip_get_num_entries(z, 0); i++) {
        const char *name = zip_get_name(z, (zip_uint64_t)i, 0);
        zip_stat_t st;
        if (!strstr(name, "/data/0")) continue;
        assert_int_equal(zip_stat_index(z, (zip_uint64_t)i, 0, &st), 0);
        uint16_t *data = malloc(st.size);
        zip_file_t *f = zip_fopen_index(z, (zip_uint64_t)i, 0);
        assert_int_equal(zip_fread(f, data, st.size), st.size);
        zip_fclose(f);
        assert_true(2 * index < st.size);
        data[index] = bits;
        assert_int_equal(zip_file_replace(z, (zip_uint64_t)i, zip_source_buffer(z, data, st.size, 1), 0), 0);
        assert_int_equal(zip_set_file_compression(z, (zip_uint64_t)i, ZIP_CM_STORE, 0), 0);
        assert_int_equal(zip_close(z), 0);
        return;
    }
    fail_msg("%s: no storage", path);
}

static void expect_from_folder(bench *b, const char *dir, dq_status status, const char *words, const char *file)
{
    dq_calibrator *job = NULL;
    OK(dq_calibrator_new(b->model, b->config, &job));
    OK(dq_calibrator_bind_folder(job, dir));
    expect(dq_calibrator_run(job, NULL, NULL, NULL), status, words);
    if (!strstr(dq_error_file(), file)) fail_msg("%s instead of %s", dq_error_file(), file);
    dq_calibrator_free(job);
}

static void captured_files_that_hold_nan(void **state)
{
    enum { NAN_BITS = 0x7fc0, INF_BITS = 0xff80, HIDDEN = 64 };
    (void)state;
    bench b = open_bench("nsamples=3 seqlen=32 capture_format=upstream", NULL);
    char dir[256], path[400];
    snprintf(dir, sizeof dir, "%s/cap", scratch_dir());
    OK(dq_model_capture(b.model, b.config, b.set, dir, NULL, NULL, NULL));
    snprintf(path, sizeof path, "%s/r2_train/layer_2_self_attn_o_proj.pt", dir);
    change_number(path, (1 * 32 + 7) * HIDDEN + 3, INF_BITS);
    expect_from_folder(&b, dir, DQ_E_NONFINITE, "layer 2: the input of o_proj of token 7 in window 1",
                       "layer_2_self_attn_o_proj.pt");
    change_number(path, (1 * 32 + 7) * HIDDEN + 3, 0);
    snprintf(path, sizeof path, "%s/r1_train/sample_2_layer_3_mlp_up_proj.pt", dir);
    change_number(path, 31 * HIDDEN + 63, NAN_BITS);
    /* Also where the budget would not have drawn that row. */
    OK(dq_config_set(b.config, "budget", "40K"));
    expect_from_folder(&b, dir, DQ_E_NONFINITE, "layer 3: the input of up_proj of token 31 ",
                       "sample_2_layer_3_mlp_up_proj.pt");
    char command[400];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
    close_bench(&b);
}

/* ---- nothing, or too little ---- */

static void no_tokens(void **state)
{
    (void)state;
    bench b = open_bench("nsamples=3 seqlen=32", NULL);
    dq_calibrator *job = NULL;
    dq_dataset *few = host_ids(b.ctx, 32); /* windows are drawn below the last one */
    int32_t done;
    OK(dq_calibrator_new(b.model, b.config, &job));
    expect(dq_calibrator_step(job, NULL, NULL, NULL, &done), DQ_E_STATE, "calibration data is missing");
    expect(dq_calibrator_bind(job, few), DQ_E_TEXT, "32 tokens; drawing windows of 32 needs at least 33");
    dq_dataset *none = NULL;
    dq_status status = dq_dataset_from_ids(b.ctx, NULL, 0, "nothing", &none);
    if (status == DQ_OK) status = dq_calibrator_bind(job, none);
    assert_true(status == DQ_E_TEXT || status == DQ_E_INVALID);
    expect(dq_model_capture(b.model, b.config, few, scratch_dir(), NULL, NULL, NULL), DQ_E_TEXT, "needs at least 33");
    assert_int_equal(dq_config_set(b.config, "nsamples", "0"), DQ_E_INVALID);
    OK(dq_calibrator_bind(job, b.set)); /* the job is as it was */
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    dq_calibrator_free(job);
    dq_dataset_free(none);
    dq_dataset_free(few);
    close_bench(&b);
}

/* ---- fits of rows ---- */

static double random_number(uint64_t *s)
{
    *s = *s * 6364136223846793005u + 1442695040888963407u;
    return (double)(*s >> 11) / 9007199254740992.0 * 2 - 1;
}

/* Rows of RMS 1 in `rank` directions. */
static void make_rows(float *x, int rows, int rank)
{
    uint64_t s = 5;
    double basis[N][N];
    for (int k = 0; k < rank; k++)
        for (int i = 0; i < N; i++) basis[k][i] = random_number(&s);
    for (int r = 0; r < rows; r++) {
        double v[N] = {0}, square = 0;
        for (int k = 0; k < rank; k++) {
            double c = random_number(&s);
            for (int i = 0; i < N; i++) v[i] += c * basis[k][i];
        }
        for (int i = 0; i < N; i++) square += v[i] * v[i];
        for (int i = 0; i < N; i++) x[r * N + i] = (float)(v[i] / sqrt(square / N));
    }
}

static void check_orthogonal(dq_calibrator *job, int n, int groups)
{
    double r[N * N];
    OK(dq_calibrator_copy_rotation(job, r, N * N));
    for (int m = 0; m < groups; m++)
        for (int i = 0; i < n; i++)
            for (int j = 0; j <= i; j++) {
                double sum = 0;
                for (int k = 0; k < n; k++) sum += r[(m * n + k) * n + i] * r[(m * n + k) * n + j];
                if (!(fabs(sum - (i == j)) <= 1e-12)) fail_msg("matrix %d: R^T R differs from I by %g", m, sum);
            }
}

static dq_calibrator *rows_job(dq_context *ctx, const char *settings, int heads, const float *x, int rows)
{
    dq_calibrator *job = NULL;
    dq_config *config = host_config(settings);
    OK(dq_calibrator_new_rows(ctx, config, N / heads, heads, heads > 1 ? 2 : 1, &job));
    OK(dq_calibrator_add_rows(job, DQ_CALIBRATION_ACTIVATIONS, x, rows, N, DQ_F32));
    dq_config_free(config);
    return job;
}

static double float_of(dq_calibrator *job, const char *key)
{
    double x = NAN;
    OK(dq_calibrator_get_float(job, key, &x));
    return x;
}

/* One direction, few directions, fewer rows than dimensions: every method ends at a rotation, no worse than its start. */
static void rows_of_low_rank(void **state)
{
    static const char *const methods[] = {"qr", "qr-retraction", "cayley", "newton-schulz", "polar-mm"};
    static const struct {
        int rows, rank;
    } shapes[] = {{200, 1}, {200, 3}, {5, 5}, {1, 1}};
    (void)state;
    static float x[200 * N];
    dq_context *ctx = logging_context();
    for (int s = 0; s < 4; s++)
        for (int m = 0; m < 5; m++)
            for (int heads = 1; heads <= 4; heads += 3) {
                char settings[128];
                make_rows(x, shapes[s].rows, shapes[s].rank);
                snprintf(settings, sizeof settings, "method=%s ep=5 quant_steps=4", methods[m]);
                dq_calibrator *job = rows_job(ctx, settings, heads, x, shapes[s].rows);
                OK(dq_calibrator_run(job, NULL, NULL, NULL));
                check_orthogonal(job, N / heads, heads > 1 ? 2 : 1);
                assert_true(float_of(job, "orthogonality_error") <= 1e-12);
                assert_true(float_of(job, "error_after") <= float_of(job, "error_before"));
                dq_calibrator_free(job);
            }
    dq_context_free(ctx);
}

/* A rate that is far too high: found, reported with its step, warned of, and the best rotation before it is the result. */
static void rate_that_diverges(void **state)
{
    static const char *const methods[] = {"qr", "qr-retraction", "cayley", "newton-schulz"};
    (void)state;
    static float x[2000 * N];
    make_rows(x, 2000, N);
    for (int m = 0; m < 4; m++) {
        char settings[160];
        const char *report = NULL;
        double step = 0;
        dq_context *ctx = logging_context();
        snprintf(settings, sizeof settings, "method=%s lr=1e30 ep=30 bsz=1 seqlen=256 quant_steps=0", methods[m]);
        dq_calibrator *job = rows_job(ctx, settings, 1, x, 2000);
        OK(dq_calibrator_run(job, NULL, NULL, NULL));
        OK(dq_calibrator_report(job, &report));
        const char *diverged = strstr(report, "\"diverged\":{\"step\":");
        bool bounded = strcmp(methods[m], "cayley") == 0; /* cuts its step: it wanders about, and ends anywhere */
        if (!bounded && (!diverged || sscanf(diverged + 19, "%lf", &step) != 1)) fail_msg("%s: %s", methods[m], report);
        assert_true(bounded || step > 0);
        assert_true(float_of(job, "loss_after") <= float_of(job, "loss_before"));
        check_orthogonal(job, N, 1);
        if (!strstr(warnings, diverged ? "R1: the loss diverged at step" : "R1: ")) fail_msg("warnings: %s", warnings);
        dq_calibrator_free(job);
        dq_context_free(ctx);
    }
    /* A rate that learns is no divergence. */
    dq_context *ctx = logging_context();
    const char *report = NULL;
    dq_calibrator *job = rows_job(ctx, "method=qr lr=0.02 ep=30 bsz=1 seqlen=256 quant_steps=0", 1, x, 2000);
    OK(dq_calibrator_run(job, NULL, NULL, NULL));
    OK(dq_calibrator_report(job, &report));
    assert_non_null(strstr(report, "\"diverged\":null"));
    assert_true(float_of(job, "loss_after") < float_of(job, "loss_before"));
    dq_calibrator_free(job);
    dq_context_free(ctx);
}

/* A loss of the host's that breaks at its fifth gradient: the value, or the gradient alone. */
typedef struct breaking {
    int gradients;
    bool value;
} breaking;

static dq_status break_late(void *user, const float *o, int64_t rows, int64_t cols, float *grad, double *loss)
{
    breaking *b = user;
    bool now = grad && ++b->gradients >= 5;
    double sum = 0;
    for (int64_t i = 0; i < rows * cols; i++) {
        double x = o[i];
        sum += x * x * x * x;
        if (grad) grad[i] = now && !b->value ? NAN : (float)(4 * x * x * x / (double)rows);
    }
    *loss = now && b->value ? NAN : sum / (double)rows;
    return DQ_OK;
}

static void host_loss_that_breaks(void **state)
{
    static const char *const methods[] = {"qr", "qr-retraction", "cayley", "newton-schulz", "polar-mm"};
    (void)state;
    static float x[2000 * N];
    make_rows(x, 2000, N);
    for (int k = 0; k < 10; k++) {
        char settings[160];
        const char *report = NULL;
        breaking b = {.value = k % 2};
        dq_rotation_loss loss = {.struct_size = sizeof loss,
                                 .abi = DQ_ROTATION_LOSS_ABI,
                                 .user = &b,
                                 .name = "breaks",
                                 .evaluate = break_late,
                                 .curvature = 600};
        dq_context *ctx = logging_context();
        snprintf(settings, sizeof settings, "method=%s lr=0.001 ep=9 bsz=1 seqlen=900 quant_steps=0", methods[k / 2]);
        dq_calibrator *job = rows_job(ctx, settings, 1, x, 2000);
        OK(dq_calibrator_set_loss(job, &loss));
        OK(dq_calibrator_run(job, NULL, NULL, NULL));
        OK(dq_calibrator_report(job, &report));
        int step = 0; /* a slope that is none may show only in the loss after it */
        const char *diverged = strstr(report, "\"diverged\":{\"step\":");
        if (!diverged || sscanf(diverged + 19, "%d", &step) != 1) fail_msg("%s: %s", methods[k / 2], report);
        if (step < 5 || step > 6) fail_msg("%s, value %d: %s", methods[k / 2], b.value, report);
        assert_in_range(b.gradients, 5, 6);
        assert_non_null(strstr(report, "\"best_step\":4"));
        check_orthogonal(job, N, 1);
        assert_non_null(strstr(warnings, "R1: the loss diverged at step"));
        dq_calibrator_free(job);
        dq_context_free(ctx);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(overflow_names_layer_and_token),
        cmocka_unit_test(captured_files_that_hold_nan),
        cmocka_unit_test(no_tokens),
        cmocka_unit_test(rows_of_low_rank),
        cmocka_unit_test(rate_that_diverges),
        cmocka_unit_test(host_loss_that_breaks),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}
