/* calib: row sets. Budgets, draws, parts and batches. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/half.h"
#include "base/status.h"
#include "calib/rows.h"
#include "fixture.h"
#include "ok.h"

enum { WIDTH = 4 };

static fixture f;

static int open_device(void **state)
{
    (void)state;
    fixture_open(&f, "cpu", 1);
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    fixture_close(&f);
    return 0;
}

static dq_rows *new_set(int64_t rows_of_budget, double held_out, uint64_t seed)
{
    dq_rows *rows = NULL;
    dq_rows_spec spec = {.width = WIDTH,
                         .dtype = DQ_F32,
                         .budget = (uint64_t)rows_of_budget * WIDTH * 4,
                         .share = {0.5, 0.5, 0},
                         .held_out = held_out,
                         .seed = seed};
    OK(dq_rows_new(f.dev, &spec, &rows));
    return rows;
}

/* Rows first, first + 1, ... : each holds its own number. */
static dq_status add_numbers(dq_rows *rows, dq_row_kind kind, int64_t first, int64_t count)
{
    dq_tensor t = {0};
    float *x = malloc((size_t)(count * WIDTH) * sizeof *x);
    for (int64_t i = 0; i < count * WIDTH; i++) x[i] = (float)(first + i / WIDTH);
    OK(dq_tensor_from_host(f.dev, DQ_F32, count, WIDTH, x, &t));
    dq_status status = dq_rows_add(rows, kind, &t);
    dq_tensor_free(&t);
    free(x);
    return status;
}

/* The numbers of `count` rows of a batch. */
static void take_numbers(dq_rows *rows, dq_row_kind kind, dq_row_part part, int64_t epoch, int64_t first, int64_t count,
                         int *out)
{
    dq_tensor t = {0};
    float *x = malloc((size_t)(count * WIDTH) * sizeof *x);
    OK(dq_tensor_alloc(f.dev, DQ_F32, count, WIDTH, &t));
    OK(dq_rows_batch(rows, kind, part, epoch, first, count, &t));
    OK(dq_tensor_download(&t, x));
    for (int64_t r = 0; r < count; r++) {
        for (int c = 1; c < WIDTH; c++) assert_true(x[r * WIDTH + c] == x[r * WIDTH]);
        out[r] = (int)x[r * WIDTH];
    }
    dq_tensor_free(&t);
    free(x);
}

static void every_row_once_in_each_epoch(void **state)
{
    (void)state;
    int order[2][100], held_out[25], differ = 0;
    dq_rows *rows = new_set(1000, 0.2, 1);
    OK(add_numbers(rows, DQ_ROWS_ACTIVATION, 0, 77));
    OK(add_numbers(rows, DQ_ROWS_ACTIVATION, 77, 48));
    OK(dq_rows_seal(rows));
    assert_int_equal(dq_rows_part(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_TRAIN), 100);
    assert_int_equal(dq_rows_part(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_HELD_OUT), 25);
    assert_int_equal(dq_rows_part(rows, DQ_ROWS_SINK, DQ_ROWS_TRAIN), 0);
    take_numbers(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_HELD_OUT, 0, 0, 25, held_out);
    for (int e = 0; e < 2; e++) {
        int again[25], seen[125] = {0};
        for (int b = 0; b < 4; b++)
            take_numbers(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_TRAIN, e, 25 * b, 25, order[e] + 25 * b);
        take_numbers(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_HELD_OUT, e, 0, 25, again);
        assert_memory_equal(held_out, again, sizeof again);
        for (int i = 0; i < 100; i++) seen[order[e][i]]++;
        for (int i = 0; i < 25; i++) seen[held_out[i]]++;
        for (int i = 0; i < 125; i++) assert_int_equal(seen[i], 1);
    }
    for (int i = 0; i < 100; i++) differ += order[0][i] != order[1][i];
    assert_true(differ > 80);
    take_numbers(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_TRAIN, 0, 0, 100, order[1]); /* back to an earlier epoch */
    assert_memory_equal(order[0], order[1], sizeof order[0]);
    dq_rows_free(rows);
}

/* Beyond the budget every row ever added has the same chance, and how they come in calls does not matter. */
static void reservoir_is_uniform(void **state)
{
    enum { CAPACITY = 100, ROWS = 1000, TRIALS = 200 };
    (void)state;
    int tenth[10] = {0};
    for (int trial = 0; trial < TRIALS; trial++) {
        int numbers[CAPACITY], other[CAPACITY];
        uint64_t hash[2];
        for (int way = 0; way < 2; way++) {
            dq_rows *rows = new_set(2 * CAPACITY, 0, (uint64_t)trial);
            int step = way ? 350 : 13;
            for (int at = 0; at < ROWS; at += step)
                OK(add_numbers(rows, DQ_ROWS_ACTIVATION, at, ROWS - at < step ? ROWS - at : step));
            assert_int_equal(dq_rows_seen(rows, DQ_ROWS_ACTIVATION), ROWS);
            assert_int_equal(dq_rows_count(rows, DQ_ROWS_ACTIVATION), CAPACITY);
            OK(dq_rows_seal(rows));
            OK(dq_rows_fingerprint(rows, &hash[way]));
            take_numbers(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_TRAIN, 0, 0, CAPACITY, way ? other : numbers);
            dq_rows_free(rows);
        }
        assert_memory_equal(numbers, other, sizeof numbers);
        assert_true(hash[0] == hash[1]);
        for (int i = 0; i < CAPACITY; i++) tenth[numbers[i] / (ROWS / 10)]++;
    }
    for (int i = 0; i < 10; i++) /* 2000 expected, standard deviation 40 */
        if (abs(tenth[i] - 2000) > 200) fail_msg("part %d was drawn %d times", i, tenth[i]);
}

static void kinds_do_not_disturb_each_other(void **state)
{
    (void)state;
    int a[60], b[60], sinks[7];
    dq_rows *one = new_set(120, 0, 9), *two = new_set(120, 0, 9);
    OK(add_numbers(one, DQ_ROWS_ACTIVATION, 0, 500));
    OK(add_numbers(two, DQ_ROWS_ACTIVATION, 0, 200));
    OK(add_numbers(two, DQ_ROWS_SINK, 5000, 7));
    OK(add_numbers(two, DQ_ROWS_WEIGHT, 7000, 9)); /* has no share: takes none */
    OK(add_numbers(two, DQ_ROWS_ACTIVATION, 200, 300));
    OK(dq_rows_seal(one));
    OK(dq_rows_seal(two));
    take_numbers(one, DQ_ROWS_ACTIVATION, DQ_ROWS_TRAIN, 3, 0, 60, a);
    take_numbers(two, DQ_ROWS_ACTIVATION, DQ_ROWS_TRAIN, 3, 0, 60, b);
    assert_memory_equal(a, b, sizeof a);
    take_numbers(two, DQ_ROWS_SINK, DQ_ROWS_TRAIN, 0, 0, 7, sinks);
    for (int i = 0; i < 7; i++) assert_in_range(sinks[i], 5000, 5006);
    assert_int_equal(dq_rows_count(two, DQ_ROWS_WEIGHT), 0);
    dq_rows_free(one);
    dq_rows_free(two);
}

static void stored_as_asked(void **state)
{
    (void)state;
    dq_rows *rows = NULL;
    dq_tensor t = {0}, out = {0};
    float x[WIDTH] = {1.001f, -3.7f, 1e-20f, 300};
    uint16_t got[WIDTH];
    dq_rows_spec spec = {.width = WIDTH, .dtype = DQ_BF16, .budget = 0, .share = {1, 0, 0}};
    OK(dq_rows_new(f.dev, &spec, &rows)); /* no budget still keeps one row */
    OK(dq_tensor_from_host(f.dev, DQ_F32, 1, WIDTH, x, &t));
    OK(dq_rows_add(rows, DQ_ROWS_ACTIVATION, &t));
    OK(dq_rows_seal(rows));
    OK(dq_tensor_alloc(f.dev, DQ_BF16, 1, WIDTH, &out));
    OK(dq_rows_batch(rows, DQ_ROWS_ACTIVATION, DQ_ROWS_TRAIN, 0, 0, 1, &out));
    OK(dq_tensor_download(&out, got));
    for (int i = 0; i < WIDTH; i++) assert_int_equal(got[i], dq_f32_to_bf16(x[i]));
    dq_tensor_free(&t);
    dq_tensor_free(&out);
    dq_rows_free(rows);
}

static void bad_rows_are_named(void **state)
{
    (void)state;
    dq_tensor t = {0};
    float x[3 * WIDTH] = {0};
    dq_rows *rows = new_set(50, 0, 0);
    x[2 * WIDTH + 1] = NAN;
    OK(dq_tensor_from_host(f.dev, DQ_F32, 3, WIDTH, x, &t));
    assert_int_equal(dq_rows_add(rows, DQ_ROWS_SINK, &t), DQ_E_NONFINITE);
    assert_non_null(strstr(dq_error_text(), "sink row 2 is not finite at column 1"));
    assert_int_equal(dq_rows_count(rows, DQ_ROWS_SINK), 0);
    assert_int_equal(dq_rows_seal(rows), DQ_E_INVALID);
    assert_int_equal(dq_rows_batch(rows, DQ_ROWS_SINK, DQ_ROWS_TRAIN, 0, 0, 1, &t), DQ_E_STATE);
    OK(add_numbers(rows, DQ_ROWS_SINK, 0, 3));
    OK(dq_rows_seal(rows));
    assert_int_equal(add_numbers(rows, DQ_ROWS_SINK, 3, 1), DQ_E_STATE);
    dq_rows_unseal(rows);
    OK(add_numbers(rows, DQ_ROWS_SINK, 3, 1));
    OK(dq_rows_seal(rows));
    assert_int_equal(dq_rows_part(rows, DQ_ROWS_SINK, DQ_ROWS_TRAIN), 4);
    dq_tensor wrong = dq_tensor_slice(&t, 0, 3, 0, WIDTH - 1);
    dq_rows_unseal(rows);
    assert_int_equal(dq_rows_add(rows, DQ_ROWS_SINK, &wrong), DQ_E_INVALID);
    dq_tensor_free(&t);
    dq_rows_free(rows);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_once_in_each_epoch),
        cmocka_unit_test(reservoir_is_uniform),
        cmocka_unit_test(kinds_do_not_disturb_each_other),
        cmocka_unit_test(stored_as_asked),
        cmocka_unit_test(bad_rows_are_named),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
