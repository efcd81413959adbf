/* Rotations as public handles. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_ROTATION_H
#define DQ_API_ROTATION_H

#include "dartquant/config.h"
#include "dartquant/types.h"

/* dq_rotation_new inside a call that holds the context. */
dq_status dq_rotation_make(dq_model *model, const dq_config *config, dq_rotation **out);
/* Brings the description up to date after the set was changed. */
dq_status dq_rotation_refresh(dq_rotation *rotation);

#endif
