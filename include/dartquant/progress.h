/* libdartquant: progress of long jobs and ways to stop them. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_PROGRESS_H
#define DARTQUANT_PROGRESS_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Sent on the thread that runs the job, with no lock held, at most every 100 ms plus at stage ends. */
typedef struct dq_progress_event {
    uint32_t struct_size;
    uint32_t reserved;
    const char *stage; /* e.g. "gptq", "perplexity"; static text */
    uint64_t index;    /* units done */
    uint64_t total;    /* units in the stage; 0 = unknown */
    double metric;     /* stage's own figure (running perplexity, layer error); NaN when none */
    double elapsed;    /* seconds since the stage began */
    /* max |R^T R - I| of the rotation that is being fitted, in its fp32 form; NaN in other stages. */
    double orthogonality_error;
} dq_progress_event;

/* Non-zero cancels the job, which then fails with DQ_E_CANCELLED. */
typedef int32_t (*dq_progress_fn)(void *user, const dq_progress_event *event);

/* A flag that any thread (also a signal handler) may set; jobs look at it between units of work. */
DQ_API dq_status dq_cancel_new(dq_cancel **out);
DQ_API void dq_cancel_free(dq_cancel *cancel);
DQ_API void dq_cancel_set(dq_cancel *cancel);
DQ_API void dq_cancel_clear(dq_cancel *cancel);

#ifdef __cplusplus
}
#endif
#endif
