/* What a pickle may call, and what comes of it. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_PICKLE_BUILD_H
#define DQ_IO_PICKLE_BUILD_H

#include "io/pickle.h"

/* Memory that lives as long as the pickle's values; NULL with the error recorded. */
void *dq_pickle_carve(dq_pickle *p, size_t bytes);

/* The number of an allowed global; any other is refused by name. */
dq_status dq_pickle_find_global(const char *module, size_t module_bytes, const char *name, size_t name_bytes,
                                int64_t *number);
dq_status dq_pickle_call(dq_pickle *p, int64_t global, const dq_pickle_list *arguments, dq_pickle_value *out);
dq_status dq_pickle_make_storage(dq_pickle *p, const dq_pickle_value *id, dq_pickle_value *out);

#endif
