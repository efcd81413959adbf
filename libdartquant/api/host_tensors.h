/* The host's tensors as the library's own records. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_HOST_TENSORS_H
#define DQ_API_HOST_TENSORS_H

#include "base/source.h"
#include "dartquant/source.h"

/* Checks the table and describes all tensors. From then on dq_source_free calls the host's free. */
dq_status dq_host_source_open(dq_env *env, const dq_tensor_source *table, dq_source **out);
/* Checks the table. The sink takes whole tensors and pieces. */
dq_status dq_host_sink_open(dq_env *env, const dq_tensor_sink *table, dq_sink **out);
/* The table's own members as a copy, checked. */
dq_status dq_host_sink_check(const dq_tensor_sink *table, dq_tensor_sink *out);

#endif
