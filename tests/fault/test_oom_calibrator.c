/* A rotation learnt with a host's allocator that refuses: each failing point gives DQ_E_NOMEM and leaks nothing.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "dartquant.h"
#include "ok.h"
#include "refusing_heap.h"
#include "scratch.h"

enum { N = 8, ROWS = 96 };

typedef struct objects {
    dq_config *config;
    dq_context *ctx;
    dq_calibrator *job, *resumed;
} objects;

/* Two steps, a checkpoint, the rest in another job, the result. */
static dq_status learn(objects *o, const char *method, const char *loss, const float *x, double *r)
{
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {refuse_alloc, refuse_free, NULL}};
    int32_t done = 0;
    const char *report = NULL;
    TRY(dq_config_new(&o->config));
    TRY(dq_config_set(o->config, "threads", "1"));
    TRY(dq_config_set(o->config, "method", method));
    TRY(dq_config_set(o->config, "loss", loss));
    TRY(dq_config_set(o->config, "ep", "3"));
    TRY(dq_config_set(o->config, "quant_steps", "2"));
    TRY(dq_context_new(o->config, &services, &o->ctx));
    for (int i = 0; i < 2; i++) {
        dq_calibrator **job = i ? &o->resumed : &o->job;
        TRY(dq_calibrator_new_rows(o->ctx, o->config, N / 2, 2, 1, job));
        TRY(dq_calibrator_add_rows(*job, DQ_CALIBRATION_ACTIVATIONS, x, ROWS / 2, 2 * N, DQ_F32));
        if (i == 0) {
            TRY(dq_calibrator_step(*job, NULL, NULL, NULL, &done));
            TRY(dq_calibrator_checkpoint(*job, scratch_dir()));
        }
    }
    TRY(dq_calibrator_restore(o->resumed, scratch_dir()));
    TRY(dq_calibrator_run(o->resumed, NULL, NULL, NULL));
    TRY(dq_calibrator_report(o->resumed, &report));
    return dq_calibrator_copy_rotation(o->resumed, r, N * N / 4);
}

static dq_status run(const char *method, const char *loss)
{
    static float x[ROWS * N];
    double r[N * N / 4];
    objects o = {0};
    for (int i = 0; i < ROWS * N; i++) x[i] = (float)(sin(1.7 * i) + 2 * (i % 13 == 0));
    heap.live = heap.calls = 0;
    dq_status status = learn(&o, method, loss, x, r);
    dq_calibrator_free(o.job);
    dq_calibrator_free(o.resumed);
    dq_context_free(o.ctx);
    dq_config_free(o.config);
    scratch_empty();
    assert_int_equal(heap.live, 0);
    return status;
}

static void every_allocation_may_fail(void **state)
{
    static const char *const ways[][2] = {{"qr", "whip"}, {"polar-mm", "swd-channel"}, {"cayley", "kurtosis"}};
    (void)state;
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++)
        for (heap.for_good = 0; heap.for_good < 2; heap.for_good++) {
            heap.fail_at = 0;
            assert_int_equal(run(ways[w][0], ways[w][1]), DQ_OK);
            long calls = heap.calls;
            assert_true(calls > 50);
            for (long at = 1; at <= calls; at += 1 + (long)w + heap.for_good) {
                heap.fail_at = at;
                dq_status status = run(ways[w][0], ways[w][1]);
                if (status != DQ_E_NOMEM) fail_msg("%s, allocation %ld: status %d", ways[w][0], at, status);
            }
        }
}

static int open_folder(void **state)
{
    (void)state;
    return scratch_open();
}

static int close_folder(void **state)
{
    (void)state;
    scratch_close();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_allocation_may_fail)};
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
