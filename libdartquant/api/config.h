/* Reading options inside api/. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_CONFIG_H
#define DQ_API_CONFIG_H

#include "dartquant/config.h"

/* Values by literal name; BOOL as 0/1, CHOICE as index. */
int64_t dq_config_int(const dq_config *config, const char *name);
double dq_config_float(const dq_config *config, const char *name);
const char *dq_config_text(const dq_config *config, const char *name);
/* A config that is NULL becomes the defaults, which *own holds for the caller to free; else *own is NULL. */
dq_status dq_config_or_defaults(const dq_config **config, dq_config **own);

#endif
