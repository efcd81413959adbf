/* A tiny library with a few types of the interface, built by run_abidiff.sh from changed copies of the headers to see that
 * the comparison notices. SPDX-License-Identifier: Apache-2.0 */
#include "dartquant.h"
#include "dartquant/backend.h"

DQ_API int32_t shim_services(const dq_services *services, const dq_tensor_sink *sink);
DQ_API int32_t shim_progress(dq_progress_fn progress, const dq_progress_event *event);
DQ_API int32_t shim_backend(const dq_backend *backend, const dq_view *view);

int32_t shim_services(const dq_services *services, const dq_tensor_sink *sink)
{
    return services != NULL && sink != NULL;
}

int32_t shim_progress(dq_progress_fn progress, const dq_progress_event *event)
{
    return progress != NULL ? progress(NULL, event) : 0;
}

#ifndef SHIM_WITHOUT_BACKEND
int32_t shim_backend(const dq_backend *backend, const dq_view *view) { return backend != NULL && view != NULL; }
#endif

#ifdef SHIM_WITH_MORE
DQ_API int32_t shim_more(void);
int32_t shim_more(void) { return 1; }
#endif
