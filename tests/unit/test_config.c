/* Options, presets and their tables. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "comma_locale.h"
#include "dartquant.h"

static dq_config *fresh(void)
{
    dq_config *config = NULL;
    assert_int_equal(dq_config_new(&config), DQ_OK);
    return config;
}

static const char *text_of(dq_config *config, const char *name)
{
    const char *text = NULL;
    assert_int_equal(dq_config_get(config, name, &text), DQ_OK);
    return text;
}

static int64_t int_of(dq_config *config, const char *name)
{
    int64_t value = -77;
    assert_int_equal(dq_config_get_int(config, name, &value), DQ_OK);
    return value;
}

static double float_of(dq_config *config, const char *name)
{
    double value = -77;
    assert_int_equal(dq_config_get_float(config, name, &value), DQ_OK);
    return value;
}

/* The names and defaults of the original program. */
static void defaults(void **state)
{
    (void)state;
    static const char *const expected[][2] = {
        {"seed", "0"},         {"fuse_norm", "true"},
        {"use_r1", "true"},    {"r1_path", ""},
        {"use_r2", "offline"}, {"r2_path", ""},
        {"use_r3", "true"},    {"use_r4", "true"},
        {"fp32_had", "false"}, {"rotate_mode", "hadamard"},
        {"a_bits", "16"},      {"a_groupsize", "-1"},
        {"a_asym", "false"},   {"a_clip_ratio", "1.0"},
        {"w_bits", "16"},      {"w_groupsize", "-1"},
        {"w_rtn", "false"},    {"w_clip", "false"},
        {"w_asym", "false"},   {"act_order", "false"},
        {"percdamp", "0.01"},  {"nsamples", "128"},
        {"v_bits", "16"},      {"v_groupsize", "-1"},
        {"v_asym", "false"},   {"v_clip_ratio", "1.0"},
        {"k_bits", "16"},      {"k_groupsize", "-1"},
        {"k_asym", "false"},   {"k_clip_ratio", "1.0"},
        {"seqlen", "2048"},    {"part_size", "10G"},
        {"limit", "0"},
    };
    dq_config *config = fresh();
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        assert_string_equal(text_of(config, expected[i][0]), expected[i][1]);
    assert_int_equal(int_of(config, "part_size"), INT64_C(10) << 30);
    dq_config_free(config);
}

/* Every row of the table is complete, its default parses and can be set again. */
static void table_is_sound(void **state)
{
    (void)state;
    dq_config *config = fresh();
    assert_true(dq_option_count() > 30);
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        assert_int_equal(dq_option_get(i, &info), DQ_OK);
        assert_true(strlen(info.name) > 0 && strlen(info.name) < 64 && strlen(info.area) > 0 && strlen(info.help) > 10);
        assert_int_equal(info.type == DQ_OPTION_CHOICE, strchr(info.choices, '|') != NULL);
        assert_int_equal(dq_config_set(config, info.name, info.default_value), DQ_OK);
        int32_t found = -1, set = 0;
        assert_int_equal(dq_option_find(info.name, &found), DQ_OK);
        assert_int_equal(found, i);
        assert_int_equal(dq_config_is_set(config, info.name, &set), DQ_OK);
        assert_int_equal(set, 1);
        for (int32_t j = 0; j < i; j++) {
            dq_option_info other = {.struct_size = sizeof other};
            assert_int_equal(dq_option_get(j, &other), DQ_OK);
            assert_string_not_equal(info.name, other.name);
        }
    }
    dq_config_free(config);
}

static void names(void **state)
{
    (void)state;
    dq_config *config = fresh();
    assert_int_equal(dq_config_set(config, "w-bits", "4"), DQ_OK);
    assert_int_equal(int_of(config, "W_Bits"), 4);
    assert_int_equal(dq_config_set(config, "w_bit", "3"), DQ_E_NOTFOUND);
    assert_non_null(strstr(dq_error_text(), "did you mean \"w_bits\""));
    assert_int_equal(dq_config_set(config, "completely_different", "3"), DQ_E_NOTFOUND);
    assert_null(strstr(dq_error_text(), "did you mean"));
    char longest[200];
    memset(longest, 'a', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    assert_int_equal(dq_config_set(config, longest, "3"), DQ_E_NOTFOUND);
    assert_int_equal(int_of(config, "w_bits"), 4);
    dq_config_free(config);
}

static void bad_values(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"w_bits", "1"},       {"w_bits", "17"},
        {"w_bits", "4.5"},     {"w_bits", ""},
        {"w_bits", "4K"},      {"w_bits", "99999999999999999999"},
        {"percdamp", "-1"},    {"percdamp", "nan"},
        {"percdamp", "inf"},   {"percdamp", "0.1x"},
        {"a_clip_ratio", "0"}, {"a_clip_ratio", "1.5"},
        {"w_asym", "maybe"},   {"use_r2", "on"},
        {"use_r2", ""},        {"use_r2", "none|offline"},
        {"part_size", "1GB"},  {"part_size", "1Ki"},
        {"part_size", "0"},    {"part_size", "9999999T"},
        {"seed", "-1"},        {"w_groupsize", "-2"},
    };
    dq_config *config = fresh();
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char *before = strdup(text_of(config, bad[i][0]));
        if (dq_config_set(config, bad[i][0], bad[i][1]) != DQ_E_INVALID)
            fail_msg("%s=%s was taken", bad[i][0], bad[i][1]);
        assert_non_null(strstr(dq_error_text(), bad[i][0]));
        assert_string_equal(text_of(config, bad[i][0]), before);
        free(before);
    }
    assert_int_equal(dq_config_set_int(config, "use_r2", 1), DQ_E_INVALID);
    assert_int_equal(dq_config_set_float(config, "w_bits", 4), DQ_E_INVALID);
    int64_t i64 = 5;
    double f64 = 5;
    assert_int_equal(dq_config_get_int(config, "percdamp", &i64), DQ_E_INVALID);
    assert_int_equal(dq_config_get_float(config, "r1_path", &f64), DQ_E_INVALID);
    assert_true(i64 == 5 && f64 == 5);
    dq_config_free(config);
}

static void good_values(void **state)
{
    (void)state;
    dq_config *config = fresh();
    assert_int_equal(dq_config_set(config, "memory-budget", "64M"), DQ_OK);
    assert_int_equal(int_of(config, "memory_budget"), 64 << 20);
    assert_int_equal(dq_config_set(config, "memory-budget", "2GiB"), DQ_OK);
    assert_int_equal(int_of(config, "memory_budget"), INT64_C(2) << 30);
    assert_int_equal(dq_config_set(config, "w_asym", "YES"), DQ_OK);
    assert_int_equal(int_of(config, "w_asym"), 1);
    assert_int_equal(dq_config_set_int(config, "w_asym", 0), DQ_OK);
    assert_int_equal(int_of(config, "w_asym"), 0);
    assert_int_equal(dq_config_set(config, "use_r2", "Online"), DQ_OK);
    assert_int_equal(int_of(config, "use_r2"), 2);
    assert_int_equal(dq_config_set_float(config, "percdamp", 0.1), DQ_OK);
    assert_true(float_of(config, "percdamp") == 0.1);
    assert_int_equal(dq_config_set_int(config, "percdamp", 1), DQ_OK);
    assert_true(float_of(config, "percdamp") == 1.0);
    dq_config_free(config);
}

/* Options are written and read with a point whatever the host's locale says. */
static void locale_does_not_matter(void **state)
{
    (void)state;
    if (!comma_locale_enter()) skip();
    dq_config *config = fresh();
    assert_int_equal(dq_config_set(config, "percdamp", "0.25"), DQ_OK);
    assert_true(float_of(config, "percdamp") == 0.25);
    assert_int_equal(dq_config_set_float(config, "percdamp", 0.125), DQ_OK);
    assert_string_equal(text_of(config, "percdamp"), "0.125");
    dq_config_free(config);
    comma_locale_leave();
}

static void copies_are_independent(void **state)
{
    (void)state;
    dq_config *a = fresh(), *b = NULL;
    assert_int_equal(dq_config_set(a, "r1_path", "R.bin"), DQ_OK);
    assert_int_equal(dq_config_copy(a, &b), DQ_OK);
    assert_int_equal(dq_config_set(a, "r1_path", "other"), DQ_OK);
    assert_string_equal(text_of(b, "r1_path"), "R.bin");
    dq_config_free(a);
    assert_string_equal(text_of(b, "r1_path"), "R.bin");
    dq_config_free(b);
    dq_config_free(NULL);
}

static void presets(void **state)
{
    (void)state;
    for (int32_t i = 0; i < dq_preset_count(); i++) {
        dq_preset_info info = {.struct_size = sizeof info};
        assert_int_equal(dq_preset_get(i, &info), DQ_OK);
        dq_config *config = fresh();
        assert_int_equal(dq_config_apply_preset(config, info.name), DQ_OK);
        dq_config_free(config);
    }
    dq_config *config = fresh();
    assert_int_equal(dq_config_set(config, "seed", "7"), DQ_OK);
    assert_int_equal(dq_config_apply_preset(config, "W4A8KV8"), DQ_OK);
    assert_int_equal(int_of(config, "w_bits"), 4);
    assert_int_equal(int_of(config, "a_bits"), 8);
    assert_int_equal(int_of(config, "k_bits"), 8);
    assert_int_equal(int_of(config, "v_bits"), 8);
    assert_int_equal(int_of(config, "seed"), 7);
    assert_int_equal(dq_config_apply_preset(config, "w5"), DQ_E_NOTFOUND);
    assert_non_null(strstr(dq_error_text(), "w4a4kv4"));
    dq_config_free(config);
}

static void misuse(void **state)
{
    (void)state;
    dq_config *config = fresh(), *out = NULL;
    const char *text = "kept";
    int64_t value = 9;
    int32_t index = 9;
    dq_option_info info = {.struct_size = 8};
    dq_preset_info preset = {.struct_size = 0};
    assert_int_equal(dq_config_new(NULL), DQ_E_INVALID);
    assert_int_equal(dq_config_copy(NULL, &out), DQ_E_INVALID);
    assert_int_equal(dq_config_set(NULL, "seed", "1"), DQ_E_INVALID);
    assert_int_equal(dq_config_set(config, NULL, "1"), DQ_E_INVALID);
    assert_int_equal(dq_config_set(config, "seed", NULL), DQ_E_INVALID);
    assert_int_equal(dq_config_get(config, "nothing", &text), DQ_E_NOTFOUND);
    assert_int_equal(dq_config_get_int(NULL, "seed", &value), DQ_E_INVALID);
    assert_int_equal(dq_option_get(0, &info), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "struct_size"));
    info.struct_size = sizeof info;
    assert_int_equal(dq_option_get(-1, &info), DQ_E_INVALID);
    assert_int_equal(dq_option_get(dq_option_count(), &info), DQ_E_INVALID);
    assert_int_equal(dq_preset_get(0, &preset), DQ_E_INVALID);
    assert_int_equal(dq_option_find("nothing", &index), DQ_E_NOTFOUND);
    assert_null(out);
    assert_string_equal(text, "kept");
    assert_true(value == 9 && index == 9);
    /* A caller built against a later header, with a longer struct. */
    struct {
        dq_option_info info;
        uint64_t later;
    } longer = {.info.struct_size = sizeof longer, .later = 3};
    assert_int_equal(dq_option_get(0, &longer.info), DQ_OK);
    assert_int_equal(longer.later, 0);
    assert_int_equal(longer.info.struct_size, sizeof longer);
    dq_config_free(config);
}

static void versions(void **state)
{
    (void)state;
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", DQ_VERSION_MAJOR, DQ_VERSION_MINOR, DQ_VERSION_PATCH);
    assert_string_equal(dq_version_string(), text);
    assert_int_equal(dq_version_number(), DQ_VERSION_NUMBER);
    assert_int_equal(dq_abi_version(), DQ_ABI_VERSION);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(table_is_sound),
        cmocka_unit_test(names),
        cmocka_unit_test(bad_values),
        cmocka_unit_test(good_values),
        cmocka_unit_test(locale_does_not_matter),
        cmocka_unit_test(copies_are_independent),
        cmocka_unit_test(presets),
        cmocka_unit_test(misuse),
        cmocka_unit_test(versions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
