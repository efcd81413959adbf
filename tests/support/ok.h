/* OK(call) and assert_fails: what the library answers, and its own words when a test fails. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_OK_H
#define DQ_TESTS_OK_H

#include <dartquant/error.h>

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        dq_status s_ = (call);                                                                                         \
        if (s_ != DQ_OK) fail_msg("%s: %d %s", #call, s_, dq_error_text());                                            \
    } while (0)

/* For functions that return a status: passes a failure on. */
#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        dq_status status_ = (call);                                                                                    \
        if (status_ != DQ_OK) return status_;                                                                          \
    } while (0)

/* The call fails with that status, in the error record too, and the record's text holds `words`. */
#define assert_fails(call, status, words)                                                                              \
    do {                                                                                                               \
        assert_int_equal(call, status);                                                                                \
        assert_int_equal(dq_error_last(), status);                                                                     \
        if (!strstr(dq_error_text(), words)) fail_msg("'%s' lacks '%s'", dq_error_text(), words);                      \
    } while (0)

#endif
