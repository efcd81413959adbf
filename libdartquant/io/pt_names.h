/* The tensors of an unpickled value under dotted names. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_PT_NAMES_H
#define DQ_IO_PT_NAMES_H

#include "io/pickle.h"

typedef struct dq_pt_named {
    char *name; /* dq_free */
    const dq_pickle_tensor *tensor;
} dq_pt_named;

typedef struct dq_pt_names {
    dq_env *env;
    dq_pt_named *items;
    size_t count, capacity;
    size_t visited;
    char prefix[4096];
} dq_pt_names;

/* Keys of dicts (text or integers) and positions in lists are joined with '.'; a bare tensor is called "". What is no
 * tensor is passed over. Clear also after a failure. */
dq_status dq_pt_collect(dq_env *env, const dq_pickle_value *root, dq_pt_names *out);
void dq_pt_names_clear(dq_pt_names *names);

#endif
