/* The metadata of a GGUF file as a file of its own: header and keys as they stand, no tensors.
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"
#include "io/gguf.h"
#include "io/gguf_writer.h"

enum { HEADER_BYTES = 24 }; /* magic, version, tensor count, key count */

static uint64_t string_end(const dq_gguf_source *s, uint64_t at) { return at + 8 + dq_load_u64(s->map.data + at); }

/* Where the value of a key ends; the reader has checked that it lies in the file. */
static uint64_t value_end(const dq_gguf_source *s, const dq_gguf_kv *kv)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    if (kv->type != DQ_GGUF_STRING) return kv->offset + kv->count * sizes[kv->type];
    if (!kv->array) return string_end(s, kv->offset);
    return kv->count ? string_end(s, kv->strings[kv->count - 1]) : kv->offset;
}

dq_status dq_gguf_write_metadata(const dq_source *source, const char *path)
{
    if (strcmp(source->format, "gguf") != 0) return dq_fail(DQ_E_INVALID, "the source is no GGUF file");
    const dq_gguf_source *s = (const dq_gguf_source *)source;
    uint64_t end = s->kv_count ? value_end(s, &s->kvs[s->kv_count - 1]) : HEADER_BYTES;
    uint8_t header[HEADER_BYTES];
    memcpy(header, s->map.data, HEADER_BYTES);
    memset(header + 8, 0, 8);
    dq_writer *w;
    DQ_TRY(dq_writer_open(source->env, path, &w));
    dq_status status = dq_writer_write(w, header, HEADER_BYTES);
    if (status == DQ_OK) status = dq_writer_write(w, s->map.data + HEADER_BYTES, end - HEADER_BYTES);
    if (status == DQ_OK) status = dq_writer_commit(w);
    dq_writer_free(w);
    return status;
}

dq_status dq_gguf_copy_keys(const dq_source *source, const char *prefix, dq_gguf_writer *w)
{
    if (strcmp(source->format, "gguf") != 0) return DQ_OK;
    const dq_gguf_source *s = (const dq_gguf_source *)source;
    for (size_t i = 0; i < s->kv_count; i++) {
        const dq_gguf_kv *kv = &s->kvs[i];
        if (kv->key_bytes < strlen(prefix) || memcmp(kv->key, prefix, strlen(prefix)) != 0) continue;
        const uint8_t *start = (const uint8_t *)kv->key - 8;
        DQ_TRY(dq_gguf_writer_raw_key(w, start, value_end(s, kv) - (uint64_t)(start - s->map.data)));
    }
    return DQ_OK;
}
