/* calib: learning the rotations of a model, interruption at every step, captured inputs on disk.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <signal.h>
#include <cmocka.h>

#include "base/status.h"
#include "calib/folder.h"
#include "calib/job.h"
#include "io/file.h"
#include "memory_stream.h"
#include "models.h"
#include "ok.h"
#include "rotation/rotation.h"
#include "scratch.h"

enum { SAMPLES = 6, SEQLEN = 32, TOKENS = SAMPLES * SEQLEN };

static int32_t ids[TOKENS];

static dq_model *open_fused(fixture *f, const char *name)
{
    dq_model *model = open_tiny(f, name), *fused;
    OK(dq_model_derive_fused(model, false, &fused));
    dq_model_release(model);
    for (int i = 0; i < TOKENS; i++) ids[i] = (int32_t)((i * 37 + i / 5) % dq_model_arch(fused)->vocab);
    return fused;
}

static dq_calibrate_spec make_spec(bool r1, bool r2)
{
    dq_calibrate_spec s = {.wanted = {r1, r2}, .sink_ratio = 20, .seed = 7, .math = DQ_MATH_F32};
    for (int t = 0; t < DQ_TARGETS; t++) {
        dq_fit_spec *fit = &s.fit[t];
        fit->method = DQ_FIT_QR;
        fit->loss.kind = DQ_FIT_WHIP;
        fit->lr = t ? 0.05 : 0.01;
        fit->momentum = 0.9;
        fit->epochs = 3;
        fit->batch = 64;
        fit->accumulation = 1;
        fit->mm_boldness = fit->mm_memory = 0.5;
        fit->weight[DQ_ROWS_ACTIVATION] = 0.8;
        fit->weight[DQ_ROWS_WEIGHT] = 0.2;
        for (int k = 0; k < DQ_ROW_KINDS; k++) fit->quant[k] = (dq_quant_target){.bits = 4, .clip = 0.9};
        s.rows[t] = (dq_rows_spec){.dtype = DQ_F32, .budget = 80000, .share = {0.7, 0.05, 0.25}, .held_out = 0.1};
    }
    s.stream_most = UINT64_MAX;
    s.temp_dir = "/tmp";
    return s;
}

static dq_calibrate_job *new_job(dq_model *model, const dq_calibrate_spec *spec, dq_folder *folder)
{
    dq_calibrate_job *job = NULL;
    OK(dq_calibrate_job_new(model, spec, folder ? NULL : ids, SAMPLES, SEQLEN, folder, &job));
    return job;
}

static dq_rotation_set *result_of(fixture *f, dq_model *model, const dq_calibrate_job *job)
{
    dq_rotation_set *set;
    dq_rotation_options o = {.use_r1 = true, .use_r2 = DQ_R2_OFFLINE, .seed = 3};
    OK(dq_rotation_set_make(f->dev, dq_model_arch(model), &o, &set));
    OK(dq_calibrate_job_result(job, set));
    return set;
}

static dq_rotation_set *run_all(fixture *f, dq_model *model, const dq_calibrate_spec *spec, dq_folder *folder)
{
    dq_calibrate_job *job = new_job(model, spec, folder);
    for (bool done = false; !done;) OK(dq_calibrate_job_step(job, NULL, &done));
    dq_rotation_set *set = result_of(f, model, job);
    dq_calibrate_job_free(job);
    return set;
}

static size_t r1_bytes(const dq_rotation_set *s) { return (size_t)(s->hidden * s->hidden) * sizeof(double); }
static size_t r2_bytes(const dq_rotation_set *s)
{
    return (size_t)(s->layers * s->kv_heads * s->head_dim * s->head_dim) * sizeof(double);
}

static void assert_same(const dq_rotation_set *a, const dq_rotation_set *b)
{
    assert_memory_equal(a->r1, b->r1, r1_bytes(a));
    assert_memory_equal(a->r2, b->r2, r2_bytes(a));
}

/* ---- learning ---- */

static void rotations_are_learnt(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 2);
    dq_model *model = open_fused(&f, "gqa");
    const dq_arch *a = dq_model_arch(model);
    dq_calibrate_spec spec = make_spec(true, true);
    dq_calibrate_job *job = new_job(model, &spec, NULL);
    dq_rotation_set unfinished = {0};
    int64_t steps = 0, done, total, count;
    assert_int_equal(dq_calibrate_job_result(job, &unfinished), DQ_E_STATE);
    for (bool last = false; !last; steps++) OK(dq_calibrate_job_step(job, NULL, &last));
    dq_calibrate_job_count(job, &done, &total);
    assert_int_equal(done, steps);
    assert_int_equal(total, steps);
    const dq_learnt *l = dq_calibrate_job_learnt(job, &count);
    assert_int_equal(count, a->layers + 1);
    for (int64_t i = 0; i < count; i++) {
        assert_int_equal(l[i].target, i < a->layers ? DQ_TARGET_R2 : DQ_TARGET_R1);
        assert_int_equal(l[i].layer, i < a->layers ? i : -1);
        assert_true(l[i].fit.loss_after < l[i].fit.loss_before);
        assert_true(l[i].fit.kinds[DQ_ROWS_WEIGHT].rows_train > 0);
        assert_true(l[i].fit.orthogonality <= 1e-12);
        assert_true(isfinite(l[i].fit.history[0].loss));
    }
    dq_rotation_set *set = result_of(&f, model, job);
    double error;
    OK(dq_rotation_set_error(f.dev, set, &error));
    assert_true(error <= 1e-12);
    bool last;
    assert_int_equal(dq_calibrate_job_step(job, NULL, &last), DQ_E_STATE);
    dq_calibrate_job_free(job);
    /* One alone is the same as with the other; what is not wanted stays as it was drawn. */
    spec = make_spec(true, false);
    dq_rotation_set *one = run_all(&f, model, &spec, NULL);
    assert_memory_equal(one->r1, set->r1, r1_bytes(set));
    assert_memory_not_equal(one->r2, set->r2, r2_bytes(set));
    dq_rotation_set_free(one);
    spec = make_spec(false, true);
    one = run_all(&f, model, &spec, NULL);
    assert_memory_equal(one->r2, set->r2, r2_bytes(set));
    dq_rotation_set_free(one);
    dq_rotation_set_free(set);
    dq_model_release(model);
    fixture_close(&f);
}

static void threads_and_stream_change_nothing(void **state)
{
    (void)state;
    dq_rotation_set *sets[3];
    fixture f[3];
    for (int i = 0; i < 3; i++) {
        fixture_open(&f[i], "cpu", i == 1 ? 3 : 1);
        dq_model *model = open_fused(&f[i], "gqa");
        dq_calibrate_spec spec = make_spec(true, true);
        if (i == 2) spec.stream_most = 0;
        sets[i] = run_all(&f[i], model, &spec, NULL);
        dq_model_release(model);
    }
    assert_same(sets[0], sets[1]);
    assert_same(sets[0], sets[2]);
    for (int i = 0; i < 3; i++) {
        dq_rotation_set_free(sets[i]);
        fixture_close(&f[i]);
    }
}

/* ---- interruption ---- */

/* Goes on in a fresh job after every single step. */
static void interrupted_at_every_step(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_fused(&f, "gqa");
    dq_calibrate_spec spec = make_spec(true, true);
    spec.stream_most = 0;
    spec.fit[0].epochs = spec.fit[1].epochs = 2;
    dq_rotation_set *whole = run_all(&f, model, &spec, NULL);
    dq_calibrate_job *job = new_job(model, &spec, NULL);
    memory_stream bulk = {0}, rest = {0};
    int64_t saved = -1, jobs = 0;
    for (bool done = false;; jobs++) {
        if (dq_calibrate_job_generation(job) != saved) {
            bulk.size = 0;
            OK(dq_calibrate_job_save_bulk(job, &(dq_put){memory_put, &bulk}));
            saved = dq_calibrate_job_generation(job);
        }
        rest.size = 0;
        OK(dq_calibrate_job_save_rest(job, &(dq_put){memory_put, &rest}));
        dq_calibrate_job_free(job);
        job = new_job(model, &spec, NULL);
        bulk.at = rest.at = 0;
        OK(dq_calibrate_job_load_bulk(job, &(dq_get){memory_get, &bulk}));
        OK(dq_calibrate_job_load_rest(job, &(dq_get){memory_get, &rest}));
        assert_int_equal(bulk.at, bulk.size);
        assert_int_equal(rest.at, rest.size);
        OK(dq_calibrate_job_step(job, NULL, &done));
        if (done) break;
    }
    assert_true(jobs > 10);
    dq_rotation_set *pieced = result_of(&f, model, job);
    assert_same(whole, pieced);
    dq_calibrate_job_free(job);
    /* Damaged state is refused. */
    for (size_t cut = 0; cut < bulk.size; cut += 1 + bulk.size / 20) {
        memory_stream part = {bulk.data, cut, 0};
        job = new_job(model, &spec, NULL);
        assert_int_not_equal(dq_calibrate_job_load_bulk(job, &(dq_get){memory_get, &part}), DQ_OK);
        dq_calibrate_job_free(job);
    }
    job = new_job(model, &spec, NULL);
    bulk.at = rest.at = 0;
    memset(rest.data, 0, sizeof(int64_t)); /* no steps, but a layer under way */
    OK(dq_calibrate_job_load_bulk(job, &(dq_get){memory_get, &bulk}));
    assert_int_equal(dq_calibrate_job_load_rest(job, &(dq_get){memory_get, &rest}), DQ_E_FORMAT);
    dq_calibrate_job_free(job);
    free(bulk.data);
    free(rest.data);
    dq_rotation_set_free(whole);
    dq_rotation_set_free(pieced);
    dq_model_release(model);
    fixture_close(&f);
}

static int32_t stop_late(void *user, const dq_progress_event *e)
{
    (void)e;
    return ++*(int *)user > 3;
}

static void cancelled(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_fused(&f, "gqa");
    dq_calibrate_spec spec = make_spec(true, true);
    dq_calibrate_job *job = new_job(model, &spec, NULL);
    int calls = 0;
    dq_progress progress = {.fn = stop_late, .user = &calls};
    dq_status status = DQ_OK;
    for (bool done = false; !done && status == DQ_OK;) status = dq_calibrate_job_step(job, &progress, &done);
    assert_int_equal(status, DQ_E_CANCELLED);
    bool done;
    assert_int_equal(dq_calibrate_job_step(job, NULL, &done), DQ_E_STATE);
    dq_calibrate_job_free(job);
    dq_model_release(model);
    fixture_close(&f);
}

/* ---- folders ---- */

static dq_folder *open_folder(fixture *f, dq_model *model, const char *dir, const dq_calibrate_spec *spec)
{
    dq_folder *folder = NULL;
    OK(dq_folder_open(&f->env, dir, dq_model_arch(model), spec->wanted, &folder));
    return folder;
}

/* Drawn rows on disk give what streaming gives, to the bit. */
static void drawn_rows_on_disk(void **state)
{
    (void)state;
    fixture f;
    char dir[256];
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_fused(&f, "gqa");
    dq_calibrate_spec spec = make_spec(true, true);
    make_folder(dir, sizeof dir);
    OK(dq_folder_write(model, &spec, ids, SAMPLES, SEQLEN, DQ_FOLDER_ROWS, dir, "{\"seed\": 7}", NULL));
    assert_int_equal(files_in(dir), 1 + dq_model_arch(model)->layers);
    dq_folder *folder = open_folder(&f, model, dir, &spec);
    assert_string_equal(dq_folder_manifest(folder), "{\"seed\": 7}");
    dq_rotation_set *streamed = run_all(&f, model, &spec, NULL), *read = run_all(&f, model, &spec, folder);
    assert_same(streamed, read);
    dq_folder_free(folder);
    dq_rotation_set_free(streamed);
    dq_rotation_set_free(read);
    remove_folder(dir);
    dq_model_release(model);
    fixture_close(&f);
}

/* Every input of every token, as the original program lays it out; the same draw from it gives the same rows as far as
 * sixteen bits tell. */
static void original_layout(void **state)
{
    (void)state;
    fixture f;
    char dir[256], command[400];
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_fused(&f, "gqa");
    const dq_arch *a = dq_model_arch(model);
    dq_calibrate_spec spec = make_spec(true, true);
    for (int t = 0; t < DQ_TARGETS; t++) spec.rows[t].share[DQ_ROWS_SINK] = 0;
    make_folder(dir, sizeof dir);
    OK(dq_folder_write(model, &spec, ids, SAMPLES, SEQLEN, DQ_FOLDER_UPSTREAM, dir, "{}", NULL));
    snprintf(command, sizeof command, "%s/r1_train", dir);
    assert_int_equal(files_in(command), 2 * SAMPLES * a->layers);
    snprintf(command, sizeof command, "%s/r2_train", dir);
    assert_int_equal(files_in(command), a->layers);
    snprintf(command, sizeof command, "%s/r1_train/sample_5_layer_1_mlp_up_proj.pt", dir);
    assert_true(dq_path_exists(command));
    dq_folder *folder = open_folder(&f, model, dir, &spec);
    assert_int_equal(dq_folder_tokens(folder), TOKENS);
    dq_rotation_set *streamed = run_all(&f, model, &spec, NULL), *read = run_all(&f, model, &spec, folder);
    double worst = 0, error;
    for (int64_t i = 0; i < a->hidden * a->hidden; i++) worst = fmax(worst, fabs(streamed->r1[i] - read->r1[i]));
    assert_true(worst > 0 && worst < 0.02); /* captured as BF16 */
    OK(dq_rotation_set_error(f.dev, read, &error));
    assert_true(error <= 1e-12);
    dq_folder_free(folder);
    /* A file that is missing is named. */
    assert_int_equal(unlink(command), 0);
    folder = open_folder(&f, model, dir, &spec);
    dq_calibrate_job *job = new_job(model, &spec, folder);
    dq_status status = DQ_OK;
    for (bool done = false; !done && status == DQ_OK;) status = dq_calibrate_job_step(job, NULL, &done);
    assert_int_equal(status, DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "sample_5_layer_1_mlp_up_proj.pt"));
    dq_calibrate_job_free(job);
    dq_folder_free(folder);
    dq_rotation_set_free(streamed);
    dq_rotation_set_free(read);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    assert_int_equal(system(command), 0);
    dq_model_release(model);
    fixture_close(&f);
}

static void folders_without_data(void **state)
{
    (void)state;
    fixture f;
    char dir[256];
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_fused(&f, "gqa");
    dq_calibrate_spec spec = make_spec(true, true);
    dq_folder *folder = NULL;
    make_folder(dir, sizeof dir);
    assert_int_equal(dq_folder_open(&f.env, dir, dq_model_arch(model), spec.wanted, &folder), DQ_E_NOTFOUND);
    assert_int_equal(dq_folder_open(&f.env, "/nonexistent", dq_model_arch(model), spec.wanted, &folder), DQ_E_NOTFOUND);
    remove_folder(dir);
    dq_model_release(model);
    fixture_close(&f);
}

/* The disk is full at ever later bytes: a plain error, and nothing is left. */
static void full_disk(void **state)
{
    (void)state;
    fixture f;
    char dir[256];
    struct rlimit limit, old;
    fixture_open(&f, "cpu", 1);
    dq_model *model = open_fused(&f, "gqa");
    dq_calibrate_spec spec = make_spec(true, true);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    make_folder(dir, sizeof dir);
    for (int formats = DQ_FOLDER_ROWS; formats <= DQ_FOLDER_UPSTREAM; formats++)
        for (rlim_t bytes = 0; bytes < 20000; bytes += 3500) {
            limit = old;
            limit.rlim_cur = bytes;
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
            dq_status status = dq_folder_write(model, &spec, ids, SAMPLES, SEQLEN, formats, dir, "{}", NULL);
            assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
            assert_int_equal(status, DQ_E_IO);
            assert_int_equal(files_in(dir), 0);
        }
    remove_folder(dir);
    dq_model_release(model);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rotations_are_learnt),      cmocka_unit_test(threads_and_stream_change_nothing),
        cmocka_unit_test(interrupted_at_every_step), cmocka_unit_test(cancelled),
        cmocka_unit_test(drawn_rows_on_disk),        cmocka_unit_test(original_layout),
        cmocka_unit_test(folders_without_data),      cmocka_unit_test(full_disk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
