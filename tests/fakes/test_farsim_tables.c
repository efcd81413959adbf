/* Options that a backend does not understand, tables that lack slots, lie, or return garbage. Through the
 * installed headers and the shared library alone. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "farsim_jobs.h"

static void bad_options(void **state)
{
    (void)state;
    static const char *const bad[] = {"farsim:limit=", "farsim:limit=-4", "farsim:colour=red",
                                      "farsim:missing=teleport"};
    for (int i = 0; i < 4; i++) {
        dq_context *ctx = NULL;
        dq_config *config = config_of(bad[i], "forbid");
        assert_error(dq_context_new(config, &farsim_services, &ctx), DQ_E_INVALID, 11, "farsim", "does not understand");
        assert_null(ctx);
        dq_config_free(config);
    }
}

/* Built-in tables take options too, and "simd" reaches only them. */
static void options_of_builtin_backends(void **state)
{
    (void)state;
    dq_context *ctx = context_on("cpu:simd=plain", "forbid");
    assert_string_equal(dq_context_device_name(ctx), "cpu:plain");
    dq_context_free(ctx);
    dq_config *config = config_of("farsim", "forbid");
    OK(dq_config_set(config, "simd", "avx2"));
    OK(dq_context_new(config, NULL, &ctx));
    assert_string_equal(dq_context_device_name(ctx), "farsim:0");
    dq_context_free(ctx);
    dq_config_free(config);
}

/* ---- tables that are wrong or lie ---- */

static const dq_backend *honest;
static dq_backend liar;

static void refused(const dq_backend *table, const char *word)
{
    dq_context *ctx = NULL;
    assert_int_equal(dq_context_new_with_backend(NULL, &farsim_services, table, "", &ctx), DQ_E_INVALID);
    if (!strstr(dq_error_text(), word)) fail_msg("'%s' lacks '%s'", dq_error_text(), word);
    assert_null(ctx);
}

static void wrong_tables(void **state)
{
    (void)state;
    honest = farsim_table();
    refused(NULL, "NULL argument");
    liar = *honest, liar.abi = 7, refused(&liar, "abi 7");
    liar = *honest, liar.struct_size = 40, refused(&liar, "struct_size 40");
    liar = *honest, liar.name = NULL, refused(&liar, "no name");
    liar = *honest, liar.open = NULL, refused(&liar, "'open'");
    liar = *honest, liar.close = NULL, refused(&liar, "'close'");
    liar = *honest, liar.info = NULL, refused(&liar, "'info'");
    liar = *honest, liar.alloc = NULL, refused(&liar, "'alloc'");
    liar = *honest, liar.free = NULL, refused(&liar, "'free'");
    liar = *honest, liar.upload = NULL, refused(&liar, "'upload'");
    liar = *honest, liar.download = NULL, refused(&liar, "'download'");
    liar = *honest, liar.sync = NULL, refused(&liar, "'sync'");
}

static dq_status open_nothing(const dq_host *host, const char *options, void **dev)
{
    (void)host;
    (void)options;
    (void)dev;
    return DQ_OK;
}

static dq_status alloc_nothing(void *dev, uint64_t bytes, void **mem)
{
    (void)dev;
    (void)bytes;
    (void)mem;
    return DQ_OK;
}

static dq_status positive_status(void *dev, const dq_view *cosine, const dq_view *sine, int64_t head_dim,
                                 const dq_view *x)
{
    (void)dev;
    (void)cosine;
    (void)sine;
    (void)head_dim;
    (void)x;
    return 17;
}

static dq_status endless_name(void *dev, dq_device_info *out)
{
    (void)dev;
    memset(out->name, 'x', sizeof out->name);
    memset(out->description, 'y', sizeof out->description);
    return DQ_OK;
}

static void lying_tables(void **state)
{
    (void)state;
    double ppl;
    dq_context *ctx = NULL;
    honest = farsim_table();
    liar = *honest;
    liar.open = open_nothing;
    assert_error(dq_context_new_with_backend(NULL, &farsim_services, &liar, "", &ctx), DQ_E_BACKEND, 0, "farsim",
                 "without a device");
    liar = *honest;
    liar.alloc = alloc_nothing;
    ctx = context_with(&liar, "", "forbid");
    assert_error(run_ppl(ctx, &ppl), DQ_E_BACKEND, 0, "farsim:0", "succeeded without memory");
    dq_context_free(ctx);
    liar = *honest;
    liar.rope = positive_status;
    ctx = context_with(&liar, "", "allow");
    assert_error(run_ppl(ctx, &ppl), DQ_E_BACKEND, 0, "farsim:0", "rope returned 17, which is no status");
    assert_int_equal(dq_context_fallback_count(ctx), 0); /* an error is no reason to fall back */
    dq_context_free(ctx);
    liar = *honest;
    liar.info = endless_name;
    ctx = context_with(&liar, "", "forbid");
    assert_int_equal(strlen(dq_context_device_name(ctx)), 63);
    dq_context_free(ctx);
}

int main(void)
{
#define T(name) cmocka_unit_test_teardown(name, farsim_no_leaks)
    const struct CMUnitTest tests[] = {
        T(bad_options),
        T(options_of_builtin_backends),
        T(wrong_tables),
        T(lying_tables),
    };
    return cmocka_run_group_tests(tests, farsim_setup, NULL);
}
