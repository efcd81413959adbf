/* Ops that a device lacks run on the host, counted, or not at all; a host replaces an op of a backend of the library. Through the
 * installed headers and the shared library alone. SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "farsim_jobs.h"

/* An op on the host costs one download per input and one upload per output: here of packed tensors. */
static void fallback_costs(const char *backend, const char *extra, bool pipeline, int inputs, int outputs,
                           int64_t expected)
{
    results want, got;
    double want_ppl = 0, got_ppl = 0;
    dq_context *ref = context_on("ref", "forbid"), *far = context_on(backend, "warn");
    if (pipeline) {
        OK(run_pipeline(ref, extra, &want));
        OK(run_pipeline(far, extra, &got));
        assert_near(got.rotated, want.rotated, 1e-6);
        assert_near(got.quantized, want.quantized, 1e-3);
    } else {
        OK(run_ppl(ref, &want_ppl));
        OK(run_ppl(far, &got_ppl));
        assert_near(got_ppl, want_ppl, 1e-6);
    }
    dq_device_counters r = counters_of(ref), f = counters_of(far);
    assert_int_equal(f.fallbacks, expected);
    if (pipeline)
        assert_true(f.ops < r.ops); /* where memory is plenty, attention is computed once and kept */
    else
        assert_int_equal(f.ops, r.ops);
    assert_int_equal(f.downloads, r.downloads + f.fallbacks * (uint64_t)inputs);
    assert_int_equal(f.uploads, r.uploads + f.fallbacks * (uint64_t)outputs);
    assert_int_equal(farsim_log.warnings, 1); /* once per op, not per call */
    dq_context_free(ref);
    dq_context_free(far);
    farsim_log.warnings = 0;
}

static void missing_ops_are_counted(void **state)
{
    (void)state;
    /* x, w, targets, state in; state out; once per window and tile */
    fallback_costs("farsim:missing=head_nll", "", false, 4, 1, WINDOWS);
    assert_non_null(strstr(farsim_log.last, "head_nll"));
    assert_non_null(strstr(farsim_log.last, "farsim:0"));
    assert_non_null(strstr(farsim_log.last, "built without it"));
    /* two norms per layer and window, the last one for all windows at once */
    fallback_costs("farsim:missing=rmsnorm,depth=3", "", false, 2, 1, LAYERS * 2 * WINDOWS + 1);
    /* scale and zero are found by group: w in, two columns of parameters out */
    fallback_costs("farsim:missing=gptq_factor", "", true, 1, 1, LAYERS * 4);
}

/* farsim has no slot for these two, and no reason to give. */
static void null_slots_are_counted(void **state)
{
    (void)state;
    /* R1 and one R2 per layer come from QR: a in, q and r out */
    fallback_costs("farsim", "rotate_mode=random", true, 1, 2, 1 + LAYERS);
    assert_non_null(strstr(farsim_log.last, "op qr runs on the host"));
    /* weights into the order of work, codes back */
    fallback_costs("farsim", "act_order=true", true, 2, 1, LAYERS * 7 * 2);
    assert_non_null(strstr(farsim_log.last, "op gather_cols runs on the host"));
}

/* A table without any op: the host does everything and gets the reference's bits. */
static void no_ops_at_all(void **state)
{
    (void)state;
    double want = 0, got = 0;
    dq_backend bare = *farsim_table();
    memset((char *)&bare + offsetof(dq_backend, fill), 0, sizeof bare - offsetof(dq_backend, fill));
    dq_context *ref = context_on("ref", "forbid"), *far = context_with(&bare, "depth=5", "allow");
    OK(run_ppl(ref, &want));
    OK(run_ppl(far, &got));
    assert_true(got == want);
    dq_device_counters f = counters_of(far);
    assert_int_equal(f.fallbacks, f.ops);
    assert_int_equal(farsim_log.warnings, 0);
    dq_context_free(far);
    /* an old, shorter table means the same */
    bare = *farsim_table();
    bare.struct_size = offsetof(dq_backend, fill);
    far = context_with(&bare, NULL, "allow");
    OK(run_ppl(far, &got));
    assert_true(got == want);
    dq_context_free(far);
    dq_context_free(ref);
}

static void forbidden_fallback(void **state)
{
    (void)state;
    double ppl = -1;
    results r;
    dq_context *far = context_on("farsim:missing=rope+head_nll", "forbid");
    assert_error(run_ppl(far, &ppl), DQ_E_UNSUPPORTED, CODE_NOT_BUILT, "farsim:0",
                 "op rope is not supported by device");
    assert_true(ppl == -1);
    assert_int_equal(dq_context_fallback_count(far), 0);
    dq_context_free(far);
    far = context_on("farsim", "forbid");
    assert_error(run_pipeline(far, "rotate_mode=random", &r), DQ_E_UNSUPPORTED, 0, "farsim:0", "op qr");
    dq_context_free(far);
}

/* ---- a host replaces one op of a backend of the library ---- */

static int replaced_calls;
static const dq_backend *plain;

static dq_status counted_rope(void *dev, const dq_view *cosine, const dq_view *sine, int64_t head_dim, const dq_view *x)
{
    replaced_calls++;
    assert_non_null(plain->host_pointer(dev, x->mem));
    return plain->rope(dev, cosine, sine, head_dim, x);
}

static void one_op_replaced(void **state)
{
    (void)state;
    double want = 0, got = 0;
    const dq_backend *none = NULL;
    dq_context *ref = context_on("ref", "forbid");
    OK(dq_backend_builtin("ref", &plain));
    dq_backend mine = *plain;
    mine.name = "mine";
    mine.rope = counted_rope;
    mine.activation = NULL; /* of a copy of ref, too, what is missing runs on the host */
    dq_context *ctx = context_with(&mine, "", "allow");
    OK(run_ppl(ref, &want));
    OK(run_ppl(ctx, &got));
    assert_true(got == want);
    assert_int_equal(replaced_calls, LAYERS * WINDOWS * 2);
    assert_int_equal(dq_context_fallback_count(ctx), LAYERS * WINDOWS);
    assert_int_equal(counters_of(ctx).downloads, PPL_DOWNLOADS); /* memory in reach is not copied */
    dq_context_free(ctx);
    dq_context_free(ref);
    assert_int_equal(dq_backend_builtin("farsim", &none), DQ_E_NOTFOUND);
    assert_int_equal(dq_backend_builtin(NULL, &none), DQ_E_INVALID);
    assert_null(none);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, farsim_no_leaks)
    const struct CMUnitTest tests[] = {
        T(missing_ops_are_counted), T(null_slots_are_counted), T(no_ops_at_all),
        T(forbidden_fallback),      T(one_op_replaced),
    };
    return cmocka_run_group_tests(tests, farsim_setup, NULL);
}
