/* Finding a backend: part of the library, or a plug-in. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/device_internal.h"
#include "backend/ref/ref.h"
#include "base/status.h"

const dq_backend *dq_builtin_backend(const char *name)
{
    static const struct {
        const char *name;
        const dq_backend *(*table)(void);
    } known[] = {
        {"auto", dq_cpu_backend},
        {"cpu", dq_cpu_backend},
        {"ref", dq_ref_backend},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (name && strcmp(known[i].name, name) == 0) return known[i].table();
    return NULL;
}

dq_status dq_backend_find(const char *name, const dq_backend **out)
{
    const dq_backend *table = dq_builtin_backend(name);
    if (!table) return dq_plugin_find(name ? name : "(null)", out);
    *out = table;
    return DQ_OK;
}
