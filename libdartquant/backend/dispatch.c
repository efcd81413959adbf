/* Running one op: on the device, or counted on the host when the device does not support it. An error never becomes a
 * fallback. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "backend/device_internal.h"
#include "backend/ref/ref.h"
#include "base/status.h"

static dq_device *device_of(const dq_op_call *call) { return call->operands[0].tensor->dev; }

static bool is_given(const dq_op_call *call, int i) { return !dq_tensor_is_empty(call->operands[i].tensor); }

/* Views of the operands as the host sees them; false when some memory is out of its reach. */
static bool map_operands(dq_device *dev, const dq_op_call *call, dq_view *views)
{
    if (!dev->table.host_pointer) return false;
    for (int i = 0; i < call->count; i++) {
        if (!is_given(call, i)) continue;
        views[i] = *dq_operand_view(call, i);
        views[i].mem = dev->table.host_pointer(dev->state, views[i].mem);
        if (!views[i].mem) return false;
    }
    return true;
}

/* A packed host copy of operand i, shared with an earlier operand that is the same view. */
static dq_status stage(dq_device *dev, const dq_op_call *call, int i, dq_view *views, void **copies)
{
    const dq_view *v = dq_operand_view(call, i);
    bool read = (call->operands[i].access & DQ_READ) != 0;
    views[i] = *v;
    views[i].offset = 0;
    views[i].stride = v->cols;
    for (int j = 0; j < i; j++)
        if (is_given(call, j) && dq_view_same(v, dq_operand_view(call, j))) {
            views[i].mem = views[j].mem;
            if (read && !(call->operands[j].access & DQ_READ))
                return dq_tensor_download(call->operands[i].tensor, views[i].mem);
            return DQ_OK;
        }
    copies[i] = dq_calloc(dev->env, (size_t)v->rows * (size_t)v->cols, dq_dtype_size(v->dtype));
    if (!copies[i]) return DQ_E_NOMEM;
    views[i].mem = copies[i];
    return read ? dq_tensor_download(call->operands[i].tensor, copies[i]) : DQ_OK;
}

/* A device that fails need not know what it worked for. An error of queued work may show up in a later op than its own. */
static dq_status in_op(const dq_op_call *call, dq_status status)
{
    if (status != DQ_E_BACKEND && status != DQ_E_DEVICE_LOST && status != DQ_E_DEVICE_MEMORY && status != DQ_E_NOMEM)
        return status;
    (void)dq_error_append(status, " (op %s:", call->name);
    for (int i = 0; i < call->count; i++) {
        if (!is_given(call, i)) continue;
        const dq_view *v = dq_operand_view(call, i);
        (void)dq_error_append(status, "%s %s %s [%lld, %lld]", i ? "," : "", call->operands[i].role,
                              dq_dtype_name(v->dtype), (long long)v->rows, (long long)v->cols);
    }
    return dq_error_append(status, ")");
}

static dq_status call_ref(dq_device *dev, const dq_op_call *call, const dq_view *views)
{
    const dq_view *given[DQ_OP_MAX_OPERANDS];
    for (int i = 0; i < call->count; i++) given[i] = is_given(call, i) ? &views[i] : NULL;
    dq_device_begin(dev);
    dq_status status = call->fn(dev->ref, dev->ref_state, given, call->args);
    return dq_device_finish(dev, status, call->name, dev->ref->name);
}

static dq_status run_on_host(dq_device *dev, const dq_op_call *call)
{
    dq_view views[DQ_OP_MAX_OPERANDS];
    void *copies[DQ_OP_MAX_OPERANDS] = {0};
    dq_status status = DQ_OK;
    if (map_operands(dev, call, views)) {
        dq_device_begin(dev);
        DQ_TRY(dq_device_finish(dev, dev->table.sync(dev->state), "sync", ""));
        return call_ref(dev, call, views);
    }
    for (int i = 0; i < call->count; i++)
        if (is_given(call, i)) DQ_GO(stage(dev, call, i, views, copies));
    DQ_GO(call_ref(dev, call, views));
    for (int i = 0; i < call->count; i++)
        if (is_given(call, i) && (call->operands[i].access & DQ_WRITE)) {
            dq_tensor target = *call->operands[i].tensor;
            DQ_GO(dq_tensor_upload(&target, views[i].mem));
        }
done:
    for (int i = 0; i < call->count; i++) dq_free(copies[i]);
    return status;
}

/* The device said no: the policy decides. */
static dq_status fall_back(dq_device *dev, const dq_op_call *call, dq_status (*compose)(const dq_op_call *call))
{
    pthread_mutex_lock(&dev->failure_lock);
    dq_failure failure = dev->failure;
    pthread_mutex_unlock(&dev->failure_lock);
    const char *reason = failure.set && failure.message[0] ? failure.message : "";
    if (dev->policy == DQ_POLICY_FORBID) {
        dq_fail(DQ_E_UNSUPPORTED, "op %s is not supported by device %s%s%s, and running it on the host is forbidden",
                call->name, dev->name, reason[0] ? ": " : "", reason);
        return dq_error_in_backend(DQ_E_UNSUPPORTED, dev->name, failure.set ? failure.vendor_code : 0);
    }
    uint64_t bit = (uint64_t)1 << call->id;
    if (dev->policy == DQ_POLICY_WARN && !(dev->warned & bit)) {
        dq_log(dev->env, DQ_LOG_WARNING, "op %s runs on the host: device %s does not support it%s%s", call->name,
               dev->name, reason[0] ? ": " : "", reason);
        dev->warned |= bit;
    }
    dev->counters.fallbacks++;
    return compose && dev->table.gemm ? compose(call) : run_on_host(dev, call);
}

dq_status dq_op_dispatch(const dq_op_call *call) { return dq_op_dispatch_or(call, NULL); }

/* Calls the slot; what it returns is not looked at yet. */
static dq_status call_device(const dq_op_call *call)
{
    dq_device *dev = device_of(call);
    const dq_view *views[DQ_OP_MAX_OPERANDS];
    for (int i = 0; i < call->count; i++) views[i] = is_given(call, i) ? dq_operand_view(call, i) : NULL;
    dq_device_begin(dev);
    return call->fn(&dev->table, dev->state, views, call->args);
}

static dq_status finish(const dq_op_call *call, dq_status status)
{
    return in_op(call, dq_device_finish(device_of(call), status, call->name, ""));
}

dq_status dq_op_dispatch_or(const dq_op_call *call, dq_status (*compose)(const dq_op_call *call))
{
    dq_device *dev = device_of(call);
    DQ_TRY(dq_device_usable(dev));
    dq_status status = call_device(call);
    dev->counters.ops++;
    /* What ref itself does not serve has nowhere to fall. */
    if (status == DQ_E_UNSUPPORTED && memcmp(&dev->table, dev->ref, sizeof dev->table) != 0)
        return fall_back(dev, call, compose);
    return finish(call, status);
}

dq_status dq_op_dispatch_fused(const dq_op_call *call, bool *served)
{
    dq_device *dev = device_of(call);
    DQ_TRY(dq_device_usable(dev));
    dq_status status = call_device(call);
    *served = status != DQ_E_UNSUPPORTED;
    if (!*served) return DQ_OK;
    dev->counters.ops++;
    return finish(call, status);
}

static dq_status through_f32(const dq_op_call *call, int i, dq_status (*run)(const dq_op_call *call))
{
    const dq_view *v = dq_operand_view(call, i);
    dq_op_call wide = *call;
    dq_tensor copy, narrow = *call->operands[i].tensor;
    bool read = (call->operands[i].access & DQ_READ) != 0;
    DQ_TRY(dq_tensor_alloc(device_of(call), DQ_F32, v->rows, v->cols, &copy));
    wide.operands[i].tensor = &copy;
    dq_status status = read ? dq_op_convert(&narrow, &copy) : DQ_OK;
    if (status == DQ_OK) status = run(&wide);
    if (status == DQ_OK && !read) status = dq_op_convert(&copy, &narrow);
    dq_tensor_free(&copy);
    return status;
}

dq_status dq_op_dispatch_bf16(const dq_op_call *call, int i, dq_status (*run)(const dq_op_call *call))
{
    bool served = false;
    if (!run) run = dq_op_dispatch;
    if (dq_operand_view(call, i)->dtype != DQ_BF16) return run(call);
    if (dq_device_rounds_inputs(device_of(call))) DQ_TRY(dq_op_dispatch_fused(call, &served));
    return served ? DQ_OK : through_f32(call, i, run);
}
