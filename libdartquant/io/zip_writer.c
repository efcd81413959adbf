/* Zip archives of stored entries (PKWARE APPNOTE 6.3.10). SPDX-License-Identifier: Apache-2.0 */
#include "io/zip_writer.h"

#include <string.h>
#include <zlib.h>

#include "base/status.h"

enum {
    LOCAL_HEADER = 30,
    CENTRAL_HEADER = 46,
    END_RECORD = 22,
    END64_RECORD = 56,
    LOCATOR = 20,
    ALIGNMENT = 64,
    ZIP64_EXTRA = 0x0001,
    PADDING_EXTRA = 0x4246, /* "FB": what torch.save pads with */
    STAMP = 0x0021          /* the first of January 1980: archives do not depend on the clock */
};

#define LIMIT32 UINT64_C(0xffffffff)

typedef struct entry {
    char *name;
    uint64_t bytes, offset;
    uint32_t crc;
} entry;

struct dq_zip_writer {
    dq_env *env;
    dq_writer *writer;
    entry *entries;
    size_t count, capacity;
    uint64_t missing; /* bytes that the open entry still waits for */
    bool open;
};

/* ---- little-endian fields ---- */

typedef struct record {
    uint8_t bytes[128];
    size_t used;
} record;

static void put(record *r, uint64_t value, int width)
{
    for (int i = 0; i < width; i++) r->bytes[r->used++] = (uint8_t)(value >> (8 * i));
}

static bool is_large(const entry *e) { return e->bytes >= LIMIT32; }

/* ---- entries ---- */

dq_status dq_zip_open(dq_env *env, const char *path, dq_zip_writer **out)
{
    dq_zip_writer *z = dq_calloc(env, 1, sizeof *z);
    if (!z) return DQ_E_NOMEM;
    z->env = env;
    dq_status status = dq_writer_open(env, path, &z->writer);
    if (status == DQ_OK)
        *out = z;
    else
        dq_zip_free(z);
    return status;
}

static dq_status grow(dq_zip_writer *z)
{
    if (z->count < z->capacity) return DQ_OK;
    size_t bigger = z->capacity ? z->capacity * 2 : 16;
    entry *fresh = dq_realloc(z->env, z->entries, bigger * sizeof *fresh);
    if (!fresh) return DQ_E_NOMEM;
    z->entries = fresh;
    z->capacity = bigger;
    return DQ_OK;
}

/* What stands in a local and in a central header alike. */
static void put_common(record *r, const entry *e)
{
    uint64_t size = is_large(e) ? LIMIT32 : e->bytes;
    put(r, is_large(e) ? 45 : 20, 2); /* version needed */
    put(r, 0x0800, 2);                /* names are UTF-8 */
    put(r, 0, 2);                     /* stored */
    put(r, 0, 2);
    put(r, STAMP, 2);
    put(r, e->crc, 4);
    put(r, size, 4);
    put(r, size, 4);
    put(r, strlen(e->name), 2);
}

dq_status dq_zip_begin(dq_zip_writer *z, const char *name, uint64_t bytes)
{
    static const uint8_t zeros[ALIGNMENT];
    if (z->open) return dq_fail(DQ_E_INTERNAL, "zip: %s before the end of the entry before it", name);
    DQ_TRY(grow(z));
    entry e = {.name = dq_strdup(z->env, name), .bytes = bytes, .offset = dq_writer_position(z->writer)};
    if (!e.name) return DQ_E_NOMEM;
    z->entries[z->count++] = e;
    size_t large = is_large(&e) ? 20 : 0;
    uint64_t start = e.offset + LOCAL_HEADER + strlen(name) + large + 4;
    size_t padding = (size_t)((ALIGNMENT - start % ALIGNMENT) % ALIGNMENT);
    record r = {.used = 0};
    put(&r, 0x04034b50, 4);
    put_common(&r, &e);
    put(&r, large + 4 + padding, 2);
    DQ_TRY(dq_writer_write(z->writer, r.bytes, r.used));
    DQ_TRY(dq_writer_write(z->writer, name, strlen(name)));
    r.used = 0;
    if (large) {
        put(&r, ZIP64_EXTRA, 2);
        put(&r, 16, 2);
        put(&r, bytes, 8);
        put(&r, bytes, 8);
    }
    put(&r, PADDING_EXTRA, 2);
    put(&r, padding, 2);
    DQ_TRY(dq_writer_write(z->writer, r.bytes, r.used));
    DQ_TRY(dq_writer_write(z->writer, zeros, padding));
    z->open = true;
    z->missing = bytes;
    return DQ_OK;
}

dq_status dq_zip_append(dq_zip_writer *z, const void *data, uint64_t bytes)
{
    if (!z->open || bytes > z->missing) return dq_fail(DQ_E_INTERNAL, "zip: more data than announced");
    entry *e = &z->entries[z->count - 1];
    const uint8_t *p = data;
    for (uint64_t done = 0; done < bytes;) {
        uint64_t piece = bytes - done < (1u << 30) ? bytes - done : 1u << 30;
        e->crc = (uint32_t)crc32(e->crc, p + done, (uInt)piece);
        done += piece;
    }
    z->missing -= bytes;
    return dq_writer_write(z->writer, data, bytes);
}

dq_status dq_zip_end(dq_zip_writer *z)
{
    if (!z->open || z->missing) return dq_fail(DQ_E_INTERNAL, "zip: an entry ends early");
    const entry *e = &z->entries[z->count - 1];
    record r = {.used = 0};
    put(&r, e->crc, 4);
    z->open = false;
    return dq_writer_patch(z->writer, e->offset + 14, r.bytes, r.used);
}

/* ---- the directory ---- */

static dq_status write_central(dq_zip_writer *z, const entry *e)
{
    bool far = e->offset >= LIMIT32;
    size_t extra = (is_large(e) ? 16u : 0u) + (far ? 8u : 0u);
    record r = {.used = 0};
    put(&r, 0x02014b50, 4);
    put(&r, 45, 2); /* version made by */
    put_common(&r, e);
    put(&r, extra ? extra + 4 : 0, 2);
    put(&r, 0, 2 + 2); /* comment, disk */
    put(&r, 0, 2 + 4); /* attributes */
    put(&r, far ? LIMIT32 : e->offset, 4);
    DQ_TRY(dq_writer_write(z->writer, r.bytes, r.used));
    DQ_TRY(dq_writer_write(z->writer, e->name, strlen(e->name)));
    if (!extra) return DQ_OK;
    r.used = 0;
    put(&r, ZIP64_EXTRA, 2);
    put(&r, extra, 2);
    if (is_large(e)) {
        put(&r, e->bytes, 8);
        put(&r, e->bytes, 8);
    }
    if (far) put(&r, e->offset, 8);
    return dq_writer_write(z->writer, r.bytes, r.used);
}

static dq_status write_end(dq_zip_writer *z, uint64_t start)
{
    uint64_t end = dq_writer_position(z->writer), size = end - start, count = z->count;
    bool large = start >= LIMIT32 || size >= LIMIT32 || count >= 0xffff;
    record r = {.used = 0};
    if (large) {
        put(&r, 0x06064b50, 4);
        put(&r, END64_RECORD - 12, 8);
        put(&r, 45, 2);
        put(&r, 45, 2);
        put(&r, 0, 4 + 4); /* this disk, the directory's disk */
        put(&r, count, 8);
        put(&r, count, 8);
        put(&r, size, 8);
        put(&r, start, 8);
        put(&r, 0x07064b50, 4); /* locator */
        put(&r, 0, 4);
        put(&r, end, 8);
        put(&r, 1, 4);
    }
    put(&r, 0x06054b50, 4);
    put(&r, 0, 2 + 2);
    put(&r, count < 0xffff ? count : 0xffff, 2);
    put(&r, count < 0xffff ? count : 0xffff, 2);
    put(&r, size < LIMIT32 ? size : LIMIT32, 4);
    put(&r, start < LIMIT32 ? start : LIMIT32, 4);
    put(&r, 0, 2);
    return dq_writer_write(z->writer, r.bytes, r.used);
}

dq_status dq_zip_finish(dq_zip_writer *z)
{
    if (z->open) return dq_fail(DQ_E_INTERNAL, "zip: finish inside an entry");
    uint64_t start = dq_writer_position(z->writer);
    for (size_t i = 0; i < z->count; i++) DQ_TRY(write_central(z, &z->entries[i]));
    DQ_TRY(write_end(z, start));
    return dq_writer_commit(z->writer);
}

void dq_zip_free(dq_zip_writer *z)
{
    if (!z) return;
    dq_writer_free(z->writer);
    for (size_t i = 0; i < z->count; i++) dq_free(z->entries[i].name);
    dq_free(z->entries);
    dq_free(z);
}
