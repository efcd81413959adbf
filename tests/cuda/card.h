/* Contexts on the card under test and on the CPU beside it. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_CUDA_CARD_H
#define DQ_TESTS_CUDA_CARD_H

#include <dartquant.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "../support/ok.h"
#include "simulated.h"

static char card[PATH_MAX]; /* the backend: a name, or the path of a plug-in */

/* One thread, nothing on the host. `options` go to the card's backend; NULL: the CPU. services may be NULL. */
static inline dq_status context_on(const char *options, const dq_services *services, dq_context **out)
{
    char text[PATH_MAX + 64];
    dq_config *config = NULL;
    snprintf(text, sizeof text, "%s%s%s", options ? card : "cpu", options && options[0] ? ":" : "",
             options ? options : "");
    OK(dq_config_new(&config));
    OK(dq_config_set(config, "threads", "1"));
    OK(dq_config_set(config, "backend", text));
    OK(dq_config_set(config, "policy", "forbid"));
    dq_status status = dq_context_new(config, services, out);
    dq_config_free(config);
    return status;
}

#endif
