/* rotation: Hadamard constructions. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/status.h"
#include "rotation/rotation.h"

static dq_env env;
static uint64_t at_start;
static char last_log[256];

static void keep_log(void *user, int32_t level, const char *text)
{
    (void)user;
    (void)level;
    strncpy(last_log, text, sizeof last_log - 1);
}

static int setup(void **state)
{
    (void)state;
    dq_services services = {.struct_size = sizeof services, .abi = 1, .log = keep_log};
    dq_status status = dq_env_init(&env, &services, 1);
    at_start = atomic_load(&env.memory_now);
    return status;
}

static int teardown(void **state)
{
    (void)state;
    int leaked = atomic_load(&env.memory_now) != at_start;
    dq_env_clear(&env);
    return leaked;
}

/* Rows of +-1 as bit strings, so that H H^T = n I is a popcount. */
static void assert_hadamard(const int8_t *h, int64_t n)
{
    int64_t words = (n + 63) / 64;
    uint64_t *bits = calloc((size_t)(n * words), 8);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            assert_true(h[i * n + j] == 1 || h[i * n + j] == -1);
            if (h[i * n + j] < 0) bits[i * words + j / 64] |= 1ull << (j % 64);
        }
    for (int64_t a = 0; a < n; a++)
        for (int64_t b = 0; b < a; b++) {
            int64_t differ = 0;
            for (int64_t w = 0; w < words; w++)
                differ += __builtin_popcountll(bits[a * words + w] ^ bits[b * words + w]);
            if (2 * differ != n)
                fail_msg("order %lld: rows %lld and %lld are not orthogonal", (long long)n, (long long)a, (long long)b);
        }
    free(bits);
}

static void check_order(int64_t n, int64_t expected_k)
{
    dq_hadamard h = {0};
    if (dq_hadamard_make(&env, n, false, &h) != DQ_OK) fail_msg("%lld: %s", (long long)n, dq_error_text());
    assert_int_equal(h.n, n);
    assert_int_equal(h.blocks, 1);
    if (h.k != expected_k)
        fail_msg("%lld: k %lld instead of %lld", (long long)n, (long long)h.k, (long long)expected_k);
    if (h.k > 1) assert_hadamard(h.hk, h.k);
    if (n <= 1200) {
        int8_t *dense = malloc((size_t)(n * n));
        dq_hadamard_dense(&h, dense);
        assert_hadamard(dense, n);
        free(dense);
    }
    dq_hadamard_clear(&h);
    assert_int_equal(h.n, 0);
}

static void tabulated_orders(void **state)
{
    (void)state;
    static const int64_t k[] = {172, 156, 140, 108, 60, 52, 36, 28, 40, 20, 12};
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
        for (int64_t m = 1; m <= 4; m *= 2) check_order(k[i] * m, k[i] == 20 && m > 1 ? 40 : k[i]);
    for (int64_t n = 1; n <= 1024; n *= 2) check_order(n, 1);
}

static void paley_orders(void **state)
{
    (void)state;
    /* order, K: q = K - 1 (I) or K / 2 - 1 (II) */
    static const int64_t cases[][2] = {{24, 12},   {44, 44},   {48, 12},   {68, 68},   {72, 36},   {76, 76},
                                       {84, 84},   {88, 44},   {104, 52},  {124, 124}, {132, 132}, {148, 148},
                                       {152, 76},  {164, 164}, {180, 180}, {184, 0},   {196, 196}, {204, 204},
                                       {212, 212}, {368, 368}, {684, 684}, {924, 924}, {1012, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i][1] != 0) {
            check_order(cases[i][0], cases[i][1]);
            continue;
        }
        dq_hadamard h;
        assert_int_equal(dq_hadamard_make(&env, cases[i][0], false, &h), DQ_E_UNSUPPORTED);
    }
}

static void sizes_of_real_models(void **state)
{
    (void)state;
    static const int64_t cases[][2] = {{4096, 1},    {5120, 40},   {8192, 1},   {3072, 12},   {576, 36},
                                       {1536, 12},   {768, 12},    {2560, 40},  {7168, 28},   {9216, 36},
                                       {11008, 172}, {13824, 108}, {28672, 28}, {14336, 28},  {20480, 40},
                                       {36864, 36},  {5632, 44},   {4864, 76},  {18944, 148}, {10944, 684},
                                       {29568, 924}, {80, 40},     {40, 40},    {56, 28},     {72, 36}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_order(cases[i][0], cases[i][1]);
}

static void blocks_where_no_matrix_is_known(void **state)
{
    (void)state;
    static const int64_t cases[][3] = {{13696, 107, 128}, {6, 3, 2}, {92, 23, 4}, {10, 5, 2}, {1012, 23, 44}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dq_hadamard h = {.n = -7};
        assert_int_equal(dq_hadamard_make(&env, cases[i][0], false, &h), DQ_E_UNSUPPORTED);
        assert_int_equal(h.n, -7); /* outputs untouched */
        last_log[0] = 0;
        assert_int_equal(dq_hadamard_make(&env, cases[i][0], true, &h), DQ_OK);
        assert_non_null(strstr(last_log, "blocks of order")); /* said aloud */
        assert_int_equal(h.blocks, cases[i][1]);
        assert_int_equal(h.n, cases[i][2]);
        dq_hadamard_clear(&h);
    }
    dq_hadamard h;
    assert_int_equal(dq_hadamard_make(&env, 15, true, &h), DQ_E_UNSUPPORTED);
    assert_int_equal(dq_hadamard_make(&env, 0, true, &h), DQ_E_INVALID);
    assert_int_equal(dq_hadamard_make(&env, -4, true, &h), DQ_E_INVALID);
}

static void assert_row(const int8_t *row, const char *expected)
{
    for (size_t j = 0; expected[j]; j++) assert_int_equal(row[j], expected[j] == '+' ? 1 : -1);
}

/* Rows worked out by hand from the rules. */
static void entries_by_hand(void **state)
{
    (void)state;
    dq_hadamard h;
    /* Paley I, q = 11: residues 1 3 4 5 9; row 1 = 1, 1, chi(-1), chi(-2), ... = chi(10), chi(9), ..., chi(1) */
    assert_int_equal(dq_hadamard_make(&env, 12, false, &h), DQ_OK);
    assert_row(h.hk, "+-----------");
    assert_row(h.hk + 12, "++-+---+++-+");
    assert_row(h.hk + 24, "+++-+---+++-");
    dq_hadamard_clear(&h);
    /* Paley II, q = 13: residues 1 3 4 9 10 12; S[1] = 1, 0, chi(12), chi(11), ..., chi(1) */
    assert_int_equal(dq_hadamard_make(&env, 28, false, &h), DQ_OK);
    assert_row(h.hk, "++++++++++++++"
                     "-+++++++++++++");
    assert_row(h.hk + 28, "+++-++----++-+"
                          "+-+-++----++-+");
    assert_row(h.hk + 14 * 28, "-+++++++++++++"
                               "--------------");
    dq_hadamard_clear(&h);
    /* Williamson 52: first row A B C D, row 13 = -B A -D C, blocks circulant and symmetric */
    assert_int_equal(dq_hadamard_make(&env, 52, false, &h), DQ_OK);
    assert_row(h.hk, "+-+--++++--+-"
                     "+---++++++---"
                     "++-+--++--+-+"
                     "+----+--+----");
    assert_row(h.hk + 13 * 52, "-+++------+++"
                               "+-+--++++--+-"
                               "-++++-++-++++"
                               "++-+--++--+-+");
    assert_row(h.hk + 52, "-+-+--++++--+");
    dq_hadamard_clear(&h);
    /* Kronecker order: H24 = H12 (x) [[1, 1], [1, -1]] */
    int8_t dense[24 * 24];
    assert_int_equal(dq_hadamard_make(&env, 24, false, &h), DQ_OK);
    dq_hadamard_dense(&h, dense);
    assert_row(dense, "++----------------------");
    assert_row(dense + 24, "+--+-+-+-+-+-+-+-+-+-+-+");
    dq_hadamard_clear(&h);
}

static int32_t allowed;
static void *counted_alloc(void *user, size_t bytes)
{
    (void)user;
    return allowed-- > 0 ? malloc(bytes) : NULL;
}
static void counted_free(void *user, void *ptr, size_t bytes)
{
    (void)user;
    (void)bytes;
    free(ptr);
}

static void every_allocation_may_fail(void **state)
{
    (void)state;
    dq_env poor;
    dq_services services = {.struct_size = sizeof services, .abi = 1, .allocator = {counted_alloc, counted_free, NULL}};
    allowed = 100;
    assert_int_equal(dq_env_init(&poor, &services, 1), DQ_OK);
    uint64_t before = atomic_load(&poor.memory_now);
    for (int n = 0;; n++) {
        dq_hadamard h;
        allowed = n;
        dq_status status = dq_hadamard_make(&poor, 160, false, &h);
        if (status == DQ_OK) {
            assert_true(n >= 3);
            dq_hadamard_clear(&h);
            break;
        }
        assert_int_equal(status, DQ_E_NOMEM);
        assert_int_equal(atomic_load(&poor.memory_now), before);
    }
    allowed = 100;
    dq_env_clear(&poor);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tabulated_orders),     cmocka_unit_test(paley_orders),
        cmocka_unit_test(sizes_of_real_models), cmocka_unit_test(blocks_where_no_matrix_is_known),
        cmocka_unit_test(entries_by_hand),      cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
