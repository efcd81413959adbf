/* Opening devices and lending them the services of the environment. SPDX-License-Identifier: Apache-2.0 */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "backend/device_internal.h"
#include "backend/ref/ref.h"
#include "base/open_struct.h"

/* ---- services ---- */

static void *host_alloc(void *self, size_t bytes) { return dq_alloc(((dq_device *)self)->env, bytes); }

static void host_free(void *self, void *ptr)
{
    (void)self;
    dq_free(ptr);
}

static void host_run(void *self, int64_t count, void (*task)(void *arg, int64_t i, int thread), void *arg)
{
    dq_run(((dq_device *)self)->env, count, task, arg);
}

static int host_threads(void *self) { return dq_threads(((dq_device *)self)->env); }

/* Error records are per thread, and a backend may fail on a worker: keep the first message with the device. */
static dq_status host_fail(void *self, dq_status status, int64_t vendor_code, const char *message)
{
    dq_device *dev = self;
    pthread_mutex_lock(&dev->failure_lock);
    if (!dev->failure.set) {
        dev->failure.set = true;
        dev->failure.status = status;
        dev->failure.vendor_code = vendor_code;
        snprintf(dev->failure.message, sizeof dev->failure.message, "%s", message ? message : "");
    }
    pthread_mutex_unlock(&dev->failure_lock);
    return status;
}

void dq_device_begin(dq_device *dev)
{
    pthread_mutex_lock(&dev->failure_lock);
    dev->failure.set = false;
    pthread_mutex_unlock(&dev->failure_lock);
}

dq_status dq_device_finish(dq_device *dev, dq_status status, const char *what, const char *who)
{
    if (status == DQ_OK) return DQ_OK;
    const char *name = who[0] ? who : dev->name;
    pthread_mutex_lock(&dev->failure_lock);
    dq_failure failure = dev->failure;
    pthread_mutex_unlock(&dev->failure_lock);
    if (strcmp(dq_status_name(status), "DQ_E_?") == 0) {
        dq_fail(DQ_E_BACKEND, "%s returned %d, which is no status", what, (int)status);
        return dq_error_in_backend(DQ_E_BACKEND, name, failure.set ? failure.vendor_code : 0);
    }
    if (status == DQ_E_DEVICE_LOST && !who[0]) {
        dev->lost = true;
        dev->failure_of_loss = failure;
    }
    if (!failure.set || failure.status != status || failure.message[0] == '\0') {
        dq_fail(status, "%s failed with %s and no message", what, dq_status_name(status));
        return dq_error_in_backend(status, name, failure.set ? failure.vendor_code : 0);
    }
    dq_fail(status, "%s", failure.message);
    return dq_error_in_backend(status, name, failure.vendor_code);
}

dq_status dq_device_usable(const dq_device *dev)
{
    if (!dev->lost) return DQ_OK;
    const char *why = dev->failure_of_loss.message;
    dq_fail(DQ_E_DEVICE_LOST, "the device was lost before%s%s", why[0] ? ": " : "", why);
    return dq_error_in_backend(DQ_E_DEVICE_LOST, dev->name, dev->failure_of_loss.vendor_code);
}

/* ---- tables ---- */

dq_status dq_backend_check(const dq_backend *table)
{
    if (!table) return dq_fail(DQ_E_INVALID, "backend table is NULL");
    if (table->abi != DQ_BACKEND_ABI)
        return dq_fail(DQ_E_INVALID, "backend table has abi %u, this library speaks %u", table->abi, DQ_BACKEND_ABI);
    if (table->struct_size < offsetof(dq_backend, fill) || table->struct_size > DQ_STRUCT_LIMIT)
        return dq_fail(DQ_E_INVALID, "backend table has struct_size %u, sizeof(dq_backend) and at least %zu is needed",
                       table->struct_size, offsetof(dq_backend, fill));
    if (!table->name || table->name[0] == '\0') return dq_fail(DQ_E_INVALID, "backend table has no name");
    const struct {
        const char *name;
        bool present;
    } slots[] = {{"open", table->open != NULL},         {"close", table->close != NULL},
                 {"info", table->info != NULL},         {"alloc", table->alloc != NULL},
                 {"free", table->free != NULL},         {"upload", table->upload != NULL},
                 {"download", table->download != NULL}, {"sync", table->sync != NULL}};
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++)
        if (!slots[i].present)
            return dq_fail(DQ_E_INVALID, "backend '%s' lacks the mandatory slot '%s'", table->name, slots[i].name);
    return DQ_OK;
}

const char *dq_device_missing_op(const dq_device *dev, int i)
{
#define SLOT(op)                                                                                                       \
    {                                                                                                                  \
#op, dev->table.op != NULL                                                                                     \
    }
    const struct {
        const char *name;
        bool present;
    } slots[] = {SLOT(fill),
                 SLOT(convert),
                 SLOT(axpy),
                 SLOT(scale_cols),
                 SLOT(gather_rows),
                 SLOT(gather_cols),
                 SLOT(find_nonfinite),
                 SLOT(dot),
                 SLOT(gemm),
                 SLOT(rmsnorm),
                 SLOT(rope),
                 SLOT(activation),
                 SLOT(attention),
                 SLOT(head_nll),
                 SLOT(fake_quant),
                 SLOT(hadamard),
                 SLOT(syrk),
                 SLOT(diag),
                 SLOT(gptq_factor),
                 SLOT(qr),
                 SLOT(weight_grid),
                 SLOT(gptq_block),
                 SLOT(quantize_weight),
                 SLOT(dequantize_weight),
                 SLOT(rotation_loss),
                 SLOT(qr_batch),
                 SLOT(qr_grad),
                 SLOT(polar),
                 SLOT(compare_logits),
                 SLOT(adam),
                 SLOT(layernorm),
                 SLOT(packed_linear),
                 SLOT(kv_store),
                 SLOT(kv_attention),
                 SLOT(levels_quant)};
#undef SLOT
    for (size_t k = 0; k < sizeof slots / sizeof slots[0]; k++)
        if (!slots[k].present && i-- == 0) return slots[k].name;
    return NULL;
}

/* ---- life of a device ---- */

static dq_status open_states(dq_device *dev, const char *options)
{
    dq_device_info info;
    dq_device_begin(dev);
    DQ_TRY(dq_device_finish(dev, dev->ref->open(&dev->host, "", &dev->ref_state), "open", dev->ref->name));
    dq_device_begin(dev);
    void *state = NULL;
    DQ_TRY(dq_device_finish(dev, dev->table.open(&dev->host, options ? options : "", &state), "open", ""));
    dev->state = state;
    if (!state) return dq_error_in_backend(dq_fail(DQ_E_BACKEND, "open succeeded without a device"), dev->name, 0);
    DQ_TRY(dq_device_get_info(dev, &info));
    if (info.name[0]) snprintf(dev->name, sizeof dev->name, "%s", info.name);
    return DQ_OK;
}

dq_status dq_device_open_table(dq_env *env, const dq_backend *table, const char *options, dq_policy policy,
                               dq_device **out)
{
    DQ_TRY(dq_backend_check(table));
    dq_device *dev = dq_calloc(env, 1, sizeof *dev);
    if (!dev) return DQ_E_NOMEM;
    dev->env = env;
    dev->host =
        (dq_host){sizeof(dq_host), DQ_BACKEND_ABI, dev, host_alloc, host_free, host_run, host_threads, host_fail};
    size_t known = table->struct_size < sizeof dev->table ? table->struct_size : sizeof dev->table;
    memcpy(&dev->table, table, known);
    dev->ref = dq_ref_backend();
    dev->policy = policy;
    snprintf(dev->name, sizeof dev->name, "%s", table->name);
    snprintf(dev->backend, sizeof dev->backend, "%s", table->name);
    pthread_mutex_init(&dev->failure_lock, NULL);
    dq_status status = open_states(dev, options);
    if (status != DQ_OK) {
        dq_device_close(dev);
        return status;
    }
    *out = dev;
    return DQ_OK;
}

dq_status dq_device_open(dq_env *env, const char *name, const char *options, dq_policy policy, dq_device **out)
{
    const dq_backend *table = NULL;
    DQ_TRY(dq_backend_find(name, &table));
    return dq_device_open_table(env, table, options, policy, out);
}

void dq_device_close(dq_device *dev)
{
    if (!dev) return;
    if (dev->tensors)
        dq_log(dev->env, DQ_LOG_ERROR, "device %s is closed while %llu tensors are alive", dev->name,
               (unsigned long long)dev->tensors);
    if (dev->state) dev->table.close(dev->state);
    if (dev->ref_state) dev->ref->close(dev->ref_state);
    pthread_mutex_destroy(&dev->failure_lock);
    dq_free(dev);
}

dq_env *dq_device_env(const dq_device *dev) { return dev->env; }
uint64_t dq_device_fallbacks(const dq_device *dev) { return dev->counters.fallbacks; }
const dq_device_counters *dq_device_get_counters(const dq_device *dev) { return &dev->counters; }
bool dq_device_has_integers(const dq_device *dev) { return dev->table.quantize_rows && dev->table.int8_linear; }
bool dq_device_is_far(const dq_device *dev) { return !dev->table.host_pointer; }
bool dq_device_rounds_inputs(const dq_device *dev) { return (dev->table.features & DQ_FEATURE_BF16) != 0; }
const char *dq_device_backend(const dq_device *dev) { return dev->backend; }

dq_status dq_device_get_info(dq_device *dev, dq_device_info *out)
{
    dq_device_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    DQ_TRY(dq_device_usable(dev));
    dq_device_begin(dev);
    DQ_TRY(dq_device_finish(dev, dev->table.info(dev->state, &info), "info", ""));
    info.name[sizeof info.name - 1] = '\0';
    info.description[sizeof info.description - 1] = '\0';
    *out = info;
    return DQ_OK;
}
