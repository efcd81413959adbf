/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_SCHEME_H
#define DQ_API_SCHEME_H

#include <jansson.h>

#include "base/env.h"
#include "base/scheme.h"
#include "dartquant/config.h"
#include "model/arch.h"

/* The part about weights. */
dq_status dq_weight_spec_from_config(const dq_config *config, dq_weight_spec *out);
/* What a config asks for, checked against the model's sizes. */
dq_status dq_scheme_from_config(const dq_config *config, const dq_arch *arch, dq_scheme *out);
/* Bits 1 << DQ_CLIP_*: where its clip ratios are to be searched ("auto"). */
unsigned dq_scheme_auto_sites(const dq_config *config, const dq_scheme *scheme);
/* Warns of options about KVQuant that were given and change nothing. */
void dq_scheme_warn_idle(dq_env *env, const dq_config *config, const dq_scheme *scheme);
/* {"w": {...}, "a": {...}, "k": {...}, "v": {...}}, with "clip_ratios" and "kvquant" where there are; NULL when out of memory. */
json_t *dq_scheme_json(const dq_scheme *scheme);

#endif
