/* The backends that are part of the library. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/cpu/cpu.h"
#include "backend/device_internal.h"
#include "backend/ref/ref.h"
#include "base/status.h"

const dq_backend *dq_registry_find(const char *name)
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
    dq_fail(DQ_E_NOTFOUND, "no backend is called '%s'; known: auto, cpu, ref", name ? name : "(null)");
    return NULL;
}
