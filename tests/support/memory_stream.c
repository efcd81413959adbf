/* SPDX-License-Identifier: Apache-2.0 */
#include "memory_stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/status.h"

dq_status memory_put(void *arg, const void *data, uint64_t bytes)
{
    memory_stream *m = arg;
    char *grown = realloc(m->data, m->size + bytes + 1);
    if (!grown) return dq_fail(DQ_E_NOMEM, "no memory for a test's state");
    m->data = grown;
    memcpy(m->data + m->size, data, bytes);
    m->size += bytes;
    return DQ_OK;
}

dq_status memory_get(void *arg, void *data, uint64_t bytes)
{
    memory_stream *m = arg;
    if (bytes > m->size - m->at) return dq_fail(DQ_E_TRUNCATED, "the state ends early");
    memcpy(data, m->data + m->at, bytes);
    m->at += bytes;
    return DQ_OK;
}
