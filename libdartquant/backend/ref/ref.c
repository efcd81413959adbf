/* The reference table, its memory and the helpers of its ops. SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "backend/ref/ops.h"

static const dq_host *host_of(void *dev) { return ((dq_ref_dev *)dev)->host; }

dq_status dq_ref_fail(void *dev, dq_status status, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    const dq_host *host = host_of(dev);
    return host->fail(host->self, status, 0, text);
}

void *dq_ref_scratch(void *dev, int64_t count, size_t size)
{
    const dq_host *host = host_of(dev);
    size_t bytes;
    void *ptr = NULL;
    if (count >= 0 && !__builtin_mul_overflow((size_t)count, size, &bytes)) ptr = host->alloc(host->self, bytes);
    if (!ptr) dq_ref_fail(dev, DQ_E_NOMEM, "no memory for scratch of %lld x %zu bytes", (long long)count, size);
    return ptr;
}

void dq_ref_release(void *dev, void *ptr) { host_of(dev)->free(host_of(dev)->self, ptr); }

dq_status dq_ref_check_index(void *dev, const dq_view *index, int64_t limit, const char *op)
{
    const int32_t *at = dq_view_i32(index, 0);
    for (int64_t i = 0; i < index->cols; i++)
        if (at[i] < 0 || at[i] >= limit)
            return dq_ref_fail(dev, DQ_E_INVALID, "%s: index[%lld] is %d, must lie in [0, %lld)", op, (long long)i,
                               at[i], (long long)limit);
    return DQ_OK;
}

static dq_status ref_open(const dq_host *host, const char *options, void **dev)
{
    if (options && options[0] != '\0') {
        char text[200];
        snprintf(text, sizeof text, "the reference backend takes no options, got '%.100s'", options);
        return host->fail(host->self, DQ_E_INVALID, 0, text);
    }
    dq_ref_dev *self = host->alloc(host->self, sizeof *self);
    if (!self) return host->fail(host->self, DQ_E_NOMEM, 0, "no memory for the reference device");
    self->host = host;
    *dev = self;
    return DQ_OK;
}

static void ref_close(void *dev)
{
    const dq_host *host = host_of(dev);
    host->free(host->self, dev);
}

static dq_status ref_info(void *dev, dq_device_info *out)
{
    (void)dev;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    snprintf(out->name, sizeof out->name, "ref");
    snprintf(out->description, sizeof out->description, "plain C, fp32 storage, fp64 accumulation, one thread");
    return DQ_OK;
}

static dq_status ref_alloc(void *dev, uint64_t bytes, void **mem)
{
    const dq_host *host = host_of(dev);
    void *ptr = bytes <= SIZE_MAX ? host->alloc(host->self, (size_t)bytes) : NULL;
    if (!ptr) return dq_ref_fail(dev, DQ_E_NOMEM, "no memory for a tensor of %llu bytes", (unsigned long long)bytes);
    *mem = ptr;
    return DQ_OK;
}

static void ref_free(void *dev, void *mem) { dq_ref_release(dev, mem); }

static dq_status ref_upload(void *dev, void *mem, uint64_t offset, const void *src, uint64_t bytes)
{
    (void)dev;
    if (bytes) memcpy((char *)mem + offset, src, (size_t)bytes);
    return DQ_OK;
}

static dq_status ref_download(void *dev, void *dst, void *mem, uint64_t offset, uint64_t bytes)
{
    (void)dev;
    if (bytes) memcpy(dst, (const char *)mem + offset, (size_t)bytes);
    return DQ_OK;
}

static dq_status ref_sync(void *dev)
{
    (void)dev;
    return DQ_OK;
}

static void *ref_host_pointer(void *dev, void *mem)
{
    (void)dev;
    return mem;
}

static const dq_backend table = {
    .struct_size = sizeof(dq_backend),
    .abi = DQ_BACKEND_ABI,
    .name = "ref",
    .open = ref_open,
    .close = ref_close,
    .info = ref_info,
    .alloc = ref_alloc,
    .free = ref_free,
    .upload = ref_upload,
    .download = ref_download,
    .sync = ref_sync,
    .host_pointer = ref_host_pointer,
    .fill = dq_ref_fill,
    .convert = dq_ref_convert,
    .axpy = dq_ref_axpy,
    .scale_cols = dq_ref_scale_cols,
    .gather_rows = dq_ref_gather_rows,
    .gather_cols = dq_ref_gather_cols,
    .find_nonfinite = dq_ref_find_nonfinite,
    .dot = dq_ref_dot,
    .gemm = dq_ref_gemm,
    .rmsnorm = dq_ref_rmsnorm,
    .rope = dq_ref_rope,
    .activation = dq_ref_activation,
    .attention = dq_ref_attention,
    .head_nll = dq_ref_head_nll,
    .fake_quant = dq_ref_fake_quant,
    .hadamard = dq_ref_hadamard,
    .syrk = dq_ref_syrk,
    .diag = dq_ref_diag,
    .gptq_factor = dq_ref_gptq_factor,
    .gptq_root = dq_ref_gptq_root,
    .qr = dq_ref_qr,
    .weight_grid = dq_ref_weight_grid,
    .quantize_weight = dq_ref_quantize_weight,
    .dequantize_weight = dq_ref_dequantize_weight,
    .gptq_block = dq_ref_gptq_block,
    .rotation_loss = dq_ref_rotation_loss,
    .qr_batch = dq_ref_qr_batch,
    .qr_grad = dq_ref_qr_grad,
    .polar = dq_ref_polar,
    .compare_logits = dq_ref_compare_logits,
    .packed_linear = dq_ref_packed_linear,
    .kv_store = dq_ref_kv_store,
    .kv_attention = dq_ref_kv_attention,
    .adam = dq_ref_adam,
    .layernorm = dq_ref_layernorm,
    .quantize_rows = dq_ref_quantize_rows,
    .int8_linear = dq_ref_int8_linear,
    .levels_quant = dq_ref_levels_quant,
};

const dq_backend *dq_ref_backend(void) { return &table; }
