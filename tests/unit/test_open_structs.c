/* Structs that may grow: callers older and newer than the library (docs/abi.md). SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "api/check.h"
#include "dartquant/backend.h"
#include "host_model.h"

#define MODEL "tests/data/tiny"

/* ---- a struct of three versions: 1.0 ends with `a`, ours with `b`, a later one with `c` ---- */

typedef struct first {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t a;
} first;
typedef struct ours {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t a, b;
} ours;
typedef struct later {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t a, b, c;
} later;

static void taken_from_the_caller(void **state)
{
    (void)state;
    ours got;
    first old = {.struct_size = sizeof old, .a = 1};
    memset(&got, 0x55, sizeof got);
    OK(DQ_TAKE_STRUCT(&got, &old, ours, a));
    assert_true(got.a == 1 && got.b == 0);
    ours same = {.struct_size = sizeof same, .a = 1, .b = 2};
    OK(DQ_TAKE_STRUCT(&got, &same, ours, a));
    assert_true(got.a == 1 && got.b == 2);
    struct {
        later l;
        uint64_t beyond;
    } new = {{.struct_size = sizeof(later), .a = 1, .b = 2, .c = 3}, 4};
    OK(DQ_TAKE_STRUCT(&got, &new, ours, a));
    assert_true(got.a == 1 && got.b == 2);
    static const uint32_t wrong[] = {0, 4, 8, 15, 65537, UINT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        same.struct_size = wrong[i];
        assert_int_equal(DQ_TAKE_STRUCT(&got, &same, ours, a), DQ_E_INVALID);
        char number[16];
        snprintf(number, sizeof number, "%u", wrong[i]);
        assert_non_null(strstr(dq_error_text(), number));
        assert_non_null(strstr(dq_error_text(), "sizeof(ours), at least 16"));
    }
}

static void filled_for_the_caller(void **state)
{
    (void)state;
    const ours full = {.struct_size = 77, .a = 1, .b = 2};
    struct {
        first f;
        uint64_t beyond;
    } old = {{.struct_size = sizeof(first)}, 9};
    OK(DQ_FILL_STRUCT(&old, &full, ours, a));
    assert_true(old.f.struct_size == sizeof(first) && old.f.a == 1 && old.beyond == 9);
    struct {
        later l;
        uint64_t beyond;
    } new = {{.struct_size = sizeof(later), .c = 8}, 9};
    OK(DQ_FILL_STRUCT(&new, &full, ours, a));
    assert_true(new.l.a == 1 && new.l.b == 2 && new.l.c == 0 && new.beyond == 9);
    old.f.struct_size = 12;
    assert_int_equal(DQ_FILL_STRUCT(&old, &full, ours, a), DQ_E_INVALID);
}

/* ---- the public ones, from a program newer than the library and with a size before 1.0 ---- */

/* `type` followed by what a later version has there. */
#define LONGER(type)                                                                                                   \
    struct {                                                                                                           \
        type given;                                                                                                    \
        void (*unknown)(void);                                                                                         \
        uint64_t tail;                                                                                                 \
    }

static void never(void) { fail(); }

static void refused(dq_status status, const char *name)
{
    assert_int_equal(status, DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), name));
    assert_non_null(strstr(dq_error_text(), "struct_size"));
}

static void services(void **state)
{
    (void)state;
    dq_context *ctx = NULL;
    LONGER(dq_services) s = {{.struct_size = sizeof s, .abi = 1}, never, 5};
    OK(dq_context_new(NULL, &s.given, &ctx));
    dq_context_free(ctx);
    ctx = NULL;
    s.given.struct_size = sizeof s.given;
    OK(dq_context_new(NULL, &s.given, &ctx));
    dq_context_free(ctx);
    ctx = NULL;
    s.given.struct_size = sizeof s.given - 8;
    refused(dq_context_new(NULL, &s.given, &ctx), "dq_services");
    s.given.struct_size = UINT32_MAX;
    refused(dq_context_new(NULL, &s.given, &ctx), "dq_services");
    s.given = (dq_services){.struct_size = sizeof s.given, .abi = 2};
    assert_int_equal(dq_context_new(NULL, &s.given, &ctx), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "abi is 2, this library knows 1"));
    assert_null(ctx);
}

static void tensor_tables(void **state)
{
    (void)state;
    host_model host, out = {0};
    dq_model *model = NULL, *none = NULL;
    dq_context *ctx = host_context(1);
    host_model_load(&host, MODEL);
    LONGER(dq_tensor_source) source = {host_model_source(&host), never, 5};
    source.given.struct_size = sizeof source;
    OK(dq_model_open_source(ctx, host.config, &source.given, &model));
    source.given.struct_size = sizeof source.given - 8;
    refused(dq_model_open_source(ctx, host.config, &source.given, &none), "dq_tensor_source");
    assert_null(none);
    LONGER(dq_tensor_sink) sink = {host_model_sink(&out, 1), never, 5};
    sink.given.struct_size = sizeof sink;
    OK(dq_model_save_to(model, &sink.given, NULL, NULL, NULL));
    assert_int_equal(out.finished, 1);
    sink.given.struct_size = sizeof sink.given - 8;
    refused(dq_model_save_to(model, &sink.given, NULL, NULL, NULL), "dq_tensor_sink");
    dq_model_free(model);
    dq_context_free(ctx);
    host_model_clear(&host);
    host_model_clear(&out);
}

static void backend_table(void **state)
{
    (void)state;
    const dq_backend *ref = NULL;
    dq_context *ctx = NULL;
    OK(dq_backend_builtin("ref", &ref));
    LONGER(dq_backend) table = {*ref, never, 5};
    table.given.struct_size = sizeof table;
    OK(dq_context_new_with_backend(NULL, NULL, &table.given, NULL, &ctx));
    dq_context_free(ctx);
    ctx = NULL;
    table.given.struct_size = UINT32_MAX;
    refused(dq_context_new_with_backend(NULL, NULL, &table.given, NULL, &ctx), "backend table");
    table.given.struct_size = offsetof(dq_backend, fill) - 8;
    refused(dq_context_new_with_backend(NULL, NULL, &table.given, NULL, &ctx), "backend table");
    assert_null(ctx);
}

#define FILLED(type, call)                                                                                             \
    do {                                                                                                               \
        LONGER(type) longer;                                                                                           \
        memset(&longer, 0x55, sizeof longer);                                                                          \
        longer.given.struct_size = sizeof longer;                                                                      \
        type *out = &longer.given;                                                                                     \
        OK(call);                                                                                                      \
        assert_int_equal(longer.given.struct_size, sizeof longer);                                                     \
        assert_true(longer.unknown == NULL && longer.tail == 0);                                                       \
        longer.given.struct_size = sizeof longer.given - 8;                                                            \
        refused(call, #type);                                                                                          \
        longer.given.struct_size = UINT32_MAX;                                                                         \
        refused(call, #type);                                                                                          \
    } while (0)

static void filled_structs(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1);
    dq_model *model = NULL;
    dq_tensors *tensors = NULL;
    OK(dq_model_open(ctx, MODEL, &model));
    OK(dq_tensors_open(ctx, MODEL, &tensors));
    FILLED(dq_option_info, dq_option_get(0, out));
    FILLED(dq_preset_info, dq_preset_get(0, out));
    FILLED(dq_tensor_desc, dq_model_tensor_info(model, 0, out));
    FILLED(dq_tensor_desc, dq_tensors_info(tensors, 0, out));
    FILLED(dq_device_counters, dq_context_counters(ctx, out));
    dq_tensors_free(tensors);
    dq_model_free(model);
    dq_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(taken_from_the_caller),
        cmocka_unit_test(filled_for_the_caller),
        cmocka_unit_test(services),
        cmocka_unit_test(tensor_tables),
        cmocka_unit_test(backend_table),
        cmocka_unit_test(filled_structs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
