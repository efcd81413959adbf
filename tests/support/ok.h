/* OK(call): fails the running test with the library's own words. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_OK_H
#define DQ_TESTS_OK_H

#include <dartquant/error.h>

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        dq_status s_ = (call);                                                                                         \
        if (s_ != DQ_OK) fail_msg("%s: %d %s", #call, s_, dq_error_text());                                            \
    } while (0)

#endif
