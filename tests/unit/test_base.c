/* base: errors, memory, half floats, random numbers, threads. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/env.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/source.h"
#include "base/status.h"

/* Python: random.seed(0); [random.randint(0, 997951) for _ in range(8)] */
static void python_randint(void **state)
{
    (void)state;
    static const uint64_t expected[] = {885440, 403958, 794772, 933488, 441001, 42450, 271493, 536110};
    dq_rng rng;
    dq_rng_seed_python(&rng, 0);
    for (size_t i = 0; i < 8; i++) assert_int_equal(dq_rng_below(&rng, 997952), expected[i]);
}

/* torch.manual_seed(0); torch.randint(0, 2, (16,)) on the CPU */
static void torch_signs(void **state)
{
    (void)state;
    static const char expected[] = "-++-+++++++--+--";
    dq_rng rng;
    dq_rng_seed_torch(&rng, 0);
    for (size_t i = 0; i < 16; i++) assert_int_equal(dq_rng_u32(&rng) & 1u, expected[i] == '+');
}

static void half_round_trip(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = dq_f16_to_f32((uint16_t)h);
        if (isnan(f))
            assert_true(isnan(dq_f16_to_f32(dq_f32_to_f16(f))));
        else
            assert_int_equal(dq_f32_to_f16(f), h);
        float b = dq_bf16_to_f32((uint16_t)h);
        if (!isnan(b)) assert_int_equal(dq_f32_to_bf16(b), h);
    }
    assert_int_equal(dq_f32_to_f16(65519.9f), 0x7bff);
    assert_int_equal(dq_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(dq_f32_to_f16(1.0f + 0x1p-11f), 0x3c00); /* tie to even */
    assert_int_equal(dq_f32_to_f16(1.0f + 3 * 0x1p-11f), 0x3c02);
    assert_int_equal(dq_f32_to_f16(0x1p-25f), 0); /* tie to even */
    assert_int_equal(dq_f32_to_f16(0x1.8p-25f), 1);
    assert_int_equal(dq_f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
    assert_int_equal(dq_f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);
}

static void memory_is_counted(void **state)
{
    (void)state;
    dq_env env;
    assert_int_equal(dq_env_init(&env, NULL, 2), DQ_OK);
    uint64_t before = atomic_load(&env.memory_now);
    char *p = dq_alloc(&env, 1000);
    assert_int_equal((uintptr_t)p % 64, 0);
    assert_int_equal(atomic_load(&env.memory_now) - before, 1000);
    p = dq_realloc(&env, p, 5000);
    dq_free(p);
    assert_int_equal(atomic_load(&env.memory_now), before);
    assert_true(atomic_load(&env.memory_peak) >= before + 5000);
    assert_null(dq_alloc(&env, SIZE_MAX - 10));
    assert_int_equal(dq_error_last(), DQ_E_NOMEM);
    assert_null(dq_calloc(&env, SIZE_MAX / 2, 3));
    dq_env_clear(&env);
}

static void count_task(void *arg, int64_t i, int thread)
{
    (void)thread;
    atomic_fetch_add((atomic_int *)arg + i, 1);
}

static void every_task_runs_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        dq_env env;
        assert_int_equal(dq_env_init(&env, NULL, threads), DQ_OK);
        atomic_int counts[1000];
        for (int round = 0; round < 50; round++) {
            for (int i = 0; i < 1000; i++) atomic_init(&counts[i], 0);
            dq_run(&env, 1000, count_task, counts);
            for (int i = 0; i < 1000; i++) assert_int_equal(atomic_load(&counts[i]), 1);
        }
        dq_env_clear(&env);
    }
}

static void error_record(void **state)
{
    (void)state;
    dq_status s = dq_fail(DQ_E_FORMAT, "bad %d", 7);
    dq_error_at_byte(dq_error_in_tensor(dq_error_in_file(s, "a.gguf"), "x"), 12);
    dq_error_in_file(s, "outer");
    assert_string_equal(dq_error_text(), "a.gguf: bad 7 [tensor x] [byte 12]");
    assert_string_equal(dq_status_name(s), "DQ_E_FORMAT");
    dq_error_reset();
    assert_string_equal(dq_error_text(), "");
    errno = ENOENT;
    dq_fail_errno(DQ_E_IO, "cannot open");
    assert_non_null(strstr(dq_error_text(), "cannot open: "));
    assert_non_null(strstr(dq_error_text(), strerror(ENOENT)));
    dq_error_reset();
}

static void name_map(void **state)
{
    (void)state;
    dq_env env;
    assert_int_equal(dq_env_init(&env, NULL, 1), DQ_OK);
    dq_name_map *map;
    assert_int_equal(dq_name_map_new(&env, 0, &map), DQ_OK);
    char keys[500][8];
    for (int i = 0; i < 500; i++) {
        snprintf(keys[i], sizeof keys[i], "k%d", i);
        assert_int_equal(dq_name_map_add(map, keys[i], strlen(keys[i]), i), DQ_OK);
    }
    assert_int_not_equal(dq_name_map_add(map, "k3", 2, 1), DQ_OK);
    for (int i = 0; i < 500; i++) assert_int_equal(dq_name_map_get(map, keys[i], strlen(keys[i])), i);
    assert_int_equal(dq_name_map_get(map, "absent", 6), -1);
    dq_name_map_free(map);
    dq_env_clear(&env);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(python_randint),    cmocka_unit_test(torch_signs),          cmocka_unit_test(half_round_trip),
        cmocka_unit_test(memory_is_counted), cmocka_unit_test(every_task_runs_once), cmocka_unit_test(error_record),
        cmocka_unit_test(name_map),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
