/* Memory of the caches. SPDX-License-Identifier: Apache-2.0 */
#include "generate/cache.h"

#include "base/status.h"

static dq_status alloc_one(dq_device *dev, const dq_kv_desc *d, dq_dtype dtype, int64_t slots, dq_tensor *codes,
                           dq_tensor *grid, uint64_t *bytes)
{
    int64_t width = (int64_t)d->heads * d->head_dim;
    if (d->bits == 4) width /= 2;
    DQ_TRY(dq_tensor_alloc(dev, dtype, slots, width, codes));
    *bytes += (uint64_t)(slots * width) * dq_dtype_size(dtype);
    if (d->kind != DQ_KV_INT) return DQ_OK;
    DQ_TRY(dq_tensor_alloc(dev, DQ_F32, slots, 2 * (int64_t)d->heads, grid));
    *bytes += (uint64_t)slots * 8u * (uint64_t)d->heads;
    return DQ_OK;
}

dq_status dq_kv_caches_new(dq_device *dev, dq_kv_format format, const dq_arch *arch, int64_t slots, dq_kv_cache **out,
                           uint64_t *bytes)
{
    static const dq_dtype dtypes[] = {DQ_F32, DQ_F16, DQ_BF16, DQ_U8, DQ_U8, DQ_U8};
    dq_kv_desc d = {.heads = (int32_t)arch->kv_heads, .head_dim = (int32_t)arch->head_dim};
    if (slots > INT32_MAX) return dq_fail(DQ_E_NOMEM, "a cache of %lld tokens", (long long)slots);
    if (format == DQ_KV_INT4 && arch->head_dim % 2 != 0)
        return dq_fail(DQ_E_UNSUPPORTED, "a cache of 4-bit codes for heads of %lld: the size must be even",
                       (long long)arch->head_dim);
    d.kind = format == DQ_KV_E4M3 ? DQ_KV_FP8 : format >= DQ_KV_INT8 ? DQ_KV_INT : DQ_KV_FLOAT;
    d.bits = format == DQ_KV_INT8 ? 8 : format == DQ_KV_INT4 ? 4 : 0;
    dq_kv_cache *caches = dq_calloc(dq_device_env(dev), (size_t)arch->layers, sizeof *caches);
    if (!caches) return DQ_E_NOMEM;
    dq_status status;
    uint64_t sum = 0;
    for (int64_t i = 0; i < arch->layers; i++) {
        caches[i].desc = d;
        DQ_GO(alloc_one(dev, &d, dtypes[format], slots, &caches[i].k, &caches[i].k_grid, &sum));
        DQ_GO(alloc_one(dev, &d, dtypes[format], slots, &caches[i].v, &caches[i].v_grid, &sum));
    }
    *out = caches;
    *bytes = sum;
    return DQ_OK;
done:
    dq_kv_caches_free(caches, arch->layers);
    return status;
}

void dq_kv_caches_free(dq_kv_cache *caches, int64_t layers)
{
    for (int64_t i = 0; caches && i < layers; i++) {
        dq_tensor_free(&caches[i].k);
        dq_tensor_free(&caches[i].k_grid);
        dq_tensor_free(&caches[i].v);
        dq_tensor_free(&caches[i].v_grid);
    }
    dq_free(caches);
}
