/* Every n-th allocation, copy and op fails: an error with name and code, nothing leaks, the job can be run again. Through the
 * installed headers and the shared library alone. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "farsim_jobs.h"

typedef struct fault {
    const char *option;
    dq_status status;
    int64_t code;
    const char *word;
} fault;

static const fault faults[] = {{"oom_at", DQ_E_DEVICE_MEMORY, CODE_OOM, "was told to fail"},
                               {"fail_copy", DQ_E_BACKEND, CODE_COPY, "load of "},
                               {"lost_at", DQ_E_DEVICE_LOST, CODE_LOST, "the device was lost"}};

/* The n-th allocation, copy or op fails. False once n is past the end of the job. */
static bool fault_at(const fault *f, int64_t n, double healthy)
{
    char backend[96];
    double ppl = -1;
    snprintf(backend, sizeof backend, "farsim:%s=%lld,depth=%lld", f->option, (long long)n, (long long)(1 + n % 40));
    dq_context *far = context_on(backend, "forbid");
    dq_status status = run_ppl(far, &ppl);
    bool happened = status != DQ_OK;
    if (happened) {
        assert_error(status, f->status, f->code, "farsim:0", f->word);
        assert_true(ppl == -1);
    }
    /* The same context again: only a lost device stays lost, and says why. */
    status = run_ppl(far, &ppl);
    if (happened && f->status == DQ_E_DEVICE_LOST)
        assert_error(status, DQ_E_DEVICE_LOST, CODE_LOST, "farsim:0", "was lost");
    else if (status != DQ_OK)
        assert_false(happened); /* it came in the second run */
    else
        assert_true(ppl == healthy);
    dq_context_free(far);
    assert_int_equal(heap.live, 0);
    return happened;
}

static void every_fault_is_an_error(void **state)
{
    (void)state;
    double healthy = 0, again = 0;
    dq_context *far = context_on("farsim", "forbid");
    OK(run_ppl(far, &healthy));
    dq_context_free(far);
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        int64_t n = 1, seen = 0;
        for (; fault_at(&faults[i], n, healthy); n += 1 + n / 8) seen++;
        print_message("%s: %lld places, the last before %lld\n", faults[i].option, (long long)seen, (long long)n);
        assert_true(seen > 12);
    }
    /* and the process is none the worse */
    far = context_on("farsim", "forbid");
    OK(run_ppl(far, &again));
    assert_true(again == healthy);
    dq_context_free(far);
}

static void quantization_survives_faults(void **state)
{
    (void)state;
    results want, got;
    dq_context *far = context_on("farsim", "forbid");
    OK(run_pipeline(far, "", &want));
    dq_device_counters c = counters_of(far);
    dq_context_free(far);
    uint64_t copies = c.uploads + c.downloads;
    int64_t where[3][3] = {{50, 200, 400},
                           {(int64_t)copies / 4, (int64_t)copies / 2, (int64_t)copies * 3 / 4},
                           {(int64_t)c.ops / 4, (int64_t)c.ops / 2, (int64_t)c.ops * 3 / 4}};
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < 3; k++) {
            char backend[96];
            snprintf(backend, sizeof backend, "farsim:%s=%lld", faults[i].option, (long long)where[i][k]);
            far = context_on(backend, "forbid");
            assert_error(run_pipeline(far, "", &got), faults[i].status, faults[i].code, "farsim:0", faults[i].word);
            if (faults[i].status != DQ_E_DEVICE_LOST && k == 1) { /* the same job, the same device, the same bits */
                OK(run_pipeline(far, "", &got));
                assert_true(got.quantized == want.quantized && got.rotated == want.rotated);
            }
            dq_context_free(far);
            assert_int_equal(heap.live, 0);
        }
    dq_context *ref = context_on("ref", "forbid"); /* another backend takes over */
    OK(run_pipeline(ref, "", &got));
    assert_near(got.quantized, want.quantized, 1e-3);
    dq_context_free(ref);
}

static void small_memory(void **state)
{
    (void)state;
    double ppl = 0, want = 0;
    dq_context *far = context_on("farsim:limit=100000", "forbid");
    assert_error(run_ppl(far, &ppl), DQ_E_DEVICE_MEMORY, CODE_OOM, "farsim:0", "of 100000 bytes are in use");
    dq_context_free(far);
    /* One layer is in memory at a time, and what is freed comes back although the release is queued. */
    far = context_on("farsim:limit=600000,depth=100000", "forbid");
    OK(run_ppl(far, &ppl));
    dq_context_free(far);
    far = context_on("farsim", "forbid");
    OK(run_ppl(far, &want));
    assert_true(ppl == want);
    dq_context_free(far);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, farsim_no_leaks)
    const struct CMUnitTest tests[] = {
        T(every_fault_is_an_error),
        T(quantization_survives_faults),
        T(small_memory),
    };
    return cmocka_run_group_tests(tests, farsim_setup, NULL);
}
