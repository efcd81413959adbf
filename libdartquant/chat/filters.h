/* The filters, in two files: of one value (filters.c), of sequences (filters_list.c). SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_FILTERS_H
#define DQ_CHAT_FILTERS_H

#include "chat/run.h"

enum { DQ_J_FILTER_SLOTS = 5 };

/* `args`: all of them as they came, for filters whose `names` is NULL; else slots. */
typedef struct dq_jfilter_call {
    const dq_jvalue *in;
    const dq_jargs *args;
    const dq_jvalue *slots[DQ_J_FILTER_SLOTS];
} dq_jfilter_call;
typedef struct dq_jfilter_entry {
    const char *name;
    const char *const *names;
    dq_status (*apply)(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out);
} dq_jfilter_entry;

extern const dq_jfilter_entry dq_jlist_filters[]; /* ends with name NULL */

#endif
