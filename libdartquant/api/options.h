/* The option table behind dq_config. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_OPTIONS_H
#define DQ_API_OPTIONS_H

#include "dartquant/config.h"

typedef struct dq_option {
    const char *name, *area;
    int type; /* DQ_OPTION_* */
    double min, max;
    const char *initial; /* default, as text */
    const char *unit, *choices, *help;
} dq_option;

typedef struct dq_preset {
    const char *name, *description;
    const char *settings; /* "name=value name=value ..." */
} dq_preset;

extern const dq_option dq_options[];
extern const int dq_options_count;
extern const dq_preset dq_presets[];
extern const int dq_presets_count;

#endif
