/* KVQuant's settings as JSON, its tables as tensors of a saved model. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_MODEL_KVQUANT_H
#define DQ_MODEL_KVQUANT_H

#include <jansson.h>

#include "base/kv_tables.h"
#include "base/source.h"
#include "model/arch.h"

/* {levels, outliers, sink, qnorm} */
json_t *dq_kvquant_to_json(const dq_kvquant_spec *spec);
/* Of a scheme whose bits are read already. `path` may be NULL. */
dq_status dq_kvquant_from_json(const json_t *object, const char *path, const dq_scheme *scheme, dq_kvquant_spec *out);
/* Whether 2 to 8 bits, or 16, are asked for, and the shares and counts are possible. DQ_E_INVALID. */
dq_status dq_kvquant_check(const dq_scheme *scheme);

/* Writes the tables that have numbers: dartquant.key_ranges F32 [layers, 2, channels], key_levels, value_levels [layers, n],
 * kv_norms [layers, 4]. */
dq_status dq_kv_tables_put(dq_sink *sink, const dq_kv_tables *tables);
/* Reads and checks them. */
dq_status dq_kv_tables_read(dq_source *source, const dq_scheme *scheme, const dq_arch *arch, dq_kv_tables **out);
/* Whether they are those of the scheme and of a model of these sizes; NULL where the scheme needs none. */
dq_status dq_kv_tables_fit(const dq_kv_tables *tables, const dq_scheme *scheme, const dq_arch *arch);

#endif
