/* Telling models apart: a hash over names, types, shapes and samples of the content. It finds foreign and swapped files;
 * it is no protection against someone who forges them. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "model/internal.h"

/* Small tensors are hashed whole; of others PIECES pieces of PIECE bytes spread from the first to the last byte. */
enum { WHOLE = 1 << 16, PIECES = 16, PIECE = 256 };

static uint64_t mix(uint64_t h)
{
    /* finalizer of SplitMix64 (Steele, Lea, Flood 2014) */
    h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
    h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
    return h ^ (h >> 31);
}

static uint64_t hash_bytes(uint64_t h, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++) h = (h ^ p[i]) * 1099511628211u;
    return mix(h);
}

static dq_status hash_content(uint64_t bytes, dq_digest_read read, void *arg, uint64_t *h)
{
    uint8_t buffer[4096];
    if (bytes <= WHOLE) {
        for (uint64_t at = 0; at < bytes; at += sizeof buffer) {
            uint64_t n = bytes - at < sizeof buffer ? bytes - at : sizeof buffer;
            dq_status status = read(arg, at, n, buffer);
            if (status != DQ_OK) return status;
            *h = hash_bytes(*h, buffer, (size_t)n);
        }
        return DQ_OK;
    }
    for (uint64_t i = 0; i < PIECES; i++) {
        uint64_t at = (bytes - PIECE) / (PIECES - 1) * i;
        if (i == PIECES - 1) at = bytes - PIECE;
        dq_status status = read(arg, at, PIECE, buffer);
        if (status != DQ_OK) return status;
        *h = hash_bytes(*h, buffer, PIECE);
    }
    return DQ_OK;
}

dq_status dq_digest_tensor(dq_digest *digest, const char *name, dq_dtype dtype, const char *type_name, int ndim,
                           const int64_t *shape, uint64_t bytes, dq_digest_read read, void *arg)
{
    if (dtype < DQ_BLOCK) type_name = dq_dtype_name(dtype);
    uint64_t h = hash_bytes(1469598103934665603u, name, strlen(name));
    h = hash_bytes(h, type_name, strlen(type_name));
    for (int i = 0; i < ndim; i++) h = mix(h ^ (uint64_t)shape[i]);
    h = mix(h ^ bytes);
    dq_status status = hash_content(bytes, read, arg, &h);
    if (status != DQ_OK) return status;
    digest->sum += mix(h);
    digest->count++;
    digest->bytes += bytes;
    return DQ_OK;
}

typedef struct source_read {
    dq_source *source;
    int64_t tensor;
} source_read;

static dq_status read_source(void *arg, uint64_t offset, uint64_t bytes, void *out)
{
    source_read *r = arg;
    return dq_source_read_raw(r->source, r->tensor, offset, bytes, out);
}

dq_status dq_digest_source(dq_source *source, dq_digest *out)
{
    dq_digest digest = {0};
    for (int64_t t = 0; t < source->count; t++) {
        const dq_tensor_info *info = &source->tensors[t];
        source_read r = {source, t};
        dq_status status = dq_digest_tensor(&digest, info->name, info->dtype, info->type_name, info->ndim, info->shape,
                                            info->bytes, read_source, &r);
        dq_source_release(source, t);
        if (status != DQ_OK) return status;
    }
    *out = digest;
    return DQ_OK;
}

dq_status dq_model_fingerprint(dq_model *model, const char **out)
{
    dq_model *root = model;
    while (root->base) root = root->base;
    *out = root->fingerprint;
    if (root->fingerprint[0]) return DQ_OK;
    const dq_arch *a = &root->arch;
    dq_digest digest;
    DQ_TRY(dq_digest_source(root->source, &digest));
    const int64_t sizes[] = {a->hidden,
                             a->intermediate,
                             a->layers,
                             a->heads,
                             a->kv_heads,
                             a->head_dim,
                             a->vocab,
                             a->activation,
                             a->window,
                             a->tied,
                             (int64_t)a->rope_scaling};
    const double reals[] = {a->norm_eps,      a->rope_theta,     a->rope_factor,
                            a->rope_low_freq, a->rope_high_freq, a->rope_original_positions};
    uint64_t h = hash_bytes(digest.sum, sizes, sizeof sizes);
    h = hash_bytes(h, reals, sizeof reals);
    snprintf(root->fingerprint, sizeof root->fingerprint, "%016llx", (unsigned long long)h);
    return DQ_OK;
}

dq_status dq_model_codes_digest(const dq_model *model, char out[17])
{
    dq_digest digest;
    while (model && !model->store) model = model->base;
    if (!model) {
        snprintf(out, 17, "none");
        return DQ_OK;
    }
    dq_status status = dq_digest_source(model->store, &digest);
    if (status == DQ_OK) snprintf(out, 17, "%016llx", (unsigned long long)digest.sum);
    return status;
}
