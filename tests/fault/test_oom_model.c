/* Allocations of models, derivations, runs and saving are made to fail, one per run: DQ_E_NOMEM or DQ_E_DEVICE_MEMORY each
 * time, nothing leaks, and an unfinished folder does not open as a model. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/rotation_set.h"
#include "base/status.h"
#include "eval/perplexity.h"
#include "io/file.h"
#include "models.h"
#include "rotation/rotation.h"

typedef struct limited {
    atomic_long left; /* allocations until one fails; negative = none */
    atomic_long held, count;
} limited;

static void *limited_alloc(void *user, size_t bytes)
{
    limited *l = user;
    atomic_fetch_add(&l->count, 1);
    if (atomic_fetch_sub(&l->left, 1) == 0) return NULL;
    atomic_fetch_add(&l->held, 1);
    return malloc(bytes);
}

static void limited_free(void *user, void *ptr, size_t bytes)
{
    (void)bytes;
    atomic_fetch_sub(&((limited *)user)->held, 1);
    free(ptr);
}

static char folder[64];
static const char *family; /* the tiny model in use */

/* Opens, fuses, rotates; what follows is the job's. */
static dq_status with_rotated(dq_device *dev, dq_status (*job)(dq_model *m))
{
    dq_model *base = NULL, *fused = NULL, *m = NULL;
    dq_rotation_set *set = NULL;
    dq_rotation_options o = {.use_r1 = true, .use_r3 = true, .use_r4 = true, .use_r2 = DQ_R2_OFFLINE};
    dq_status status;
    DQ_GO(dq_model_open_path(dev, tiny_path(family), &base));
    DQ_GO(dq_model_derive_fused(base, false, &fused));
    DQ_GO(dq_rotation_set_make(dev, dq_model_arch(base), &o, &set));
    DQ_GO(dq_model_derive_rotated(fused, set, &m));
    status = job(m);
done:
    dq_rotation_set_free(set);
    dq_model_release(m);
    dq_model_release(fused);
    dq_model_release(base);
    return status;
}

static dq_status run_perplexity(dq_model *m)
{
    static const int32_t ids[8] = {1, 5, 9, 13, 2, 6, 10, 14};
    dq_scheme s = plain_scheme();
    dq_model *q = NULL;
    dq_perplexity p;
    s.a.bits = s.k.bits = 8;
    DQ_TRY(dq_model_derive_quantized(m, NULL, &s, &q));
    dq_status status = dq_perplexity_run(q, ids, 8, 4, 0, DQ_MATH_F32, NULL, &p);
    if (status == DQ_OK) dq_free(p.window_nll);
    dq_model_release(q);
    return status;
}

static dq_status run_logits(dq_model *m)
{
    static const int32_t ids[3] = {1, 5, 9};
    float out[3 * 96];
    char *text = NULL;
    DQ_TRY(dq_model_forward_logits(m, ids, 3, DQ_MATH_F32, out));
    dq_status status = dq_model_describe_json(m, &text);
    dq_free(text);
    return status;
}

static dq_status run_save(dq_model *m)
{
    dq_model *again = NULL;
    DQ_TRY(dq_model_save_dir(m, folder, 60000, NULL));
    DQ_TRY(dq_model_open_path(dq_model_device(m), folder, &again));
    dq_model_release(again);
    return DQ_OK;
}

/* One run in which allocation number `refused` is refused (-1: none). Gives how many there were. */
static long run_once(dq_status (*job)(dq_model *m), long refused)
{
    limited l;
    atomic_init(&l.left, refused);
    atomic_init(&l.held, 0);
    atomic_init(&l.count, 0);
    dq_services services = {.struct_size = sizeof services, .abi = 1};
    services.allocator = (dq_allocator){limited_alloc, limited_free, &l};
    dq_env env;
    dq_device *dev = NULL;
    dq_status status = dq_env_init(&env, &services, 1); /* workers that cannot start are done without */
    if (status == DQ_OK) {
        status = dq_device_open(&env, "cpu", "", DQ_POLICY_FORBID, &dev);
        if (status == DQ_OK) status = with_rotated(dev, job);
        dq_device_close(dev);
        dq_env_clear(&env);
    }
    if (refused < 0) {
        if (status != DQ_OK) print_message("%s\n", dq_error_text());
        assert_int_equal(status, DQ_OK);
    } else if (status != DQ_E_NOMEM && status != DQ_E_DEVICE_MEMORY) {
        print_message("allocation %ld: status %d: %s\n", refused, status, dq_error_text());
        fail();
    }
    dq_error_reset();
    assert_int_equal(atomic_load(&l.held), 0);
    return atomic_load(&l.count);
}

/* All of the first allocations, then ever fewer. */
static void fail_each(dq_status (*job)(dq_model *m), long dense)
{
    static const char *const families[] = {"bias", "opt"};
    for (int n = 0; n < 2; n++) {
        family = families[n];
        long total = run_once(job, -1);
        assert_true(total > 100);
        for (long i = 0; i < total; i += i < dense ? 1 : 1 + i / 40) run_once(job, i);
    }
}

static void perplexity_runs_out_of_memory(void **state)
{
    (void)state;
    fail_each(run_perplexity, 5000);
}

static void logits_run_out_of_memory(void **state)
{
    (void)state;
    fail_each(run_logits, 5000);
}

static void saving_runs_out_of_memory(void **state)
{
    (void)state;
    make_folder(folder, sizeof folder);
    fail_each(run_save, 300);
    remove_folder(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(perplexity_runs_out_of_memory),
        cmocka_unit_test(logits_run_out_of_memory),
        cmocka_unit_test(saving_runs_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
