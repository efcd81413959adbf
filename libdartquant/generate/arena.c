/* SPDX-License-Identifier: Apache-2.0 */
#include "generate/arena.h"

#include "base/status.h"

/* Chunks double from the least to the most, so that small models take little; what is larger than a quarter of the most gets
 * memory of its own. */
enum { LEAST = 256 << 10, MOST = 32 << 20, ALIGN = 64 };

static dq_status add_chunk(dq_arena *a, int64_t bytes, void **mem)
{
    dq_tensor *more = dq_realloc(dq_device_env(a->dev), a->chunks, (size_t)(a->count + 1) * sizeof *more);
    if (!more) return DQ_E_NOMEM;
    a->chunks = more;
    DQ_TRY(dq_tensor_alloc(a->dev, DQ_U8, 1, bytes, &a->chunks[a->count]));
    *mem = a->chunks[a->count++].view.mem;
    return DQ_OK;
}

static dq_status grow(dq_arena *a, int64_t bytes)
{
    int64_t size = a->size ? a->size : LEAST / 2;
    do size *= 2;
    while (size < bytes);
    if (size > MOST) size = MOST;
    DQ_TRY(add_chunk(a, size, &a->mem));
    a->size = size;
    a->used = 0;
    return DQ_OK;
}

dq_status dq_arena_take(dq_arena *a, dq_dtype dtype, int64_t rows, int64_t cols, dq_tensor *out)
{
    int64_t bytes, count;
    if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &count) ||
        __builtin_mul_overflow(count, (int64_t)dq_dtype_size(dtype), &bytes) || bytes > INT64_MAX - ALIGN)
        return dq_fail(DQ_E_NOMEM, "weights of %lld x %lld do not fit in memory", (long long)rows, (long long)cols);
    dq_tensor t = {.dev = a->dev, .view = {.rows = rows, .cols = cols, .stride = cols, .dtype = dtype}};
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (bytes > MOST / 4) {
        DQ_TRY(add_chunk(a, bytes, &t.view.mem));
    } else {
        if (bytes > a->size - a->used) DQ_TRY(grow(a, bytes));
        t.view.mem = a->mem;
        t.view.offset = (uint64_t)a->used;
        a->used += bytes;
    }
    *out = t;
    return DQ_OK;
}

void dq_arena_free(dq_arena *a)
{
    for (int64_t i = 0; i < a->count; i++) dq_tensor_free(&a->chunks[i]);
    dq_free(a->chunks);
    *a = (dq_arena){.dev = a->dev};
}
