/* What the fuzz targets of the readers share. SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_FUZZ_H
#define TEST_FUZZ_H

#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Reads a little of everything an opened source offers. */
static inline void fuzz_read_all(dq_source *s)
{
    enum { MOST = 1 << 16 };
    float *out = malloc(MOST * sizeof *out);
    for (int64_t t = 0; t < s->count && t < 64; t++) {
        const dq_tensor_info *info = &s->tensors[t];
        int64_t rows = dq_info_rows(info), cols = dq_info_cols(info);
        if (dq_source_find(s, info->name) != t) abort();
        if (rows > 0 && cols > 0 && cols <= MOST) {
            int64_t count = rows < MOST / cols ? rows : MOST / cols;
            dq_source_read_rows(s, t, 0, count, out);
            dq_source_read_rows(s, t, rows - 1, 1, out);
        }
        uint64_t bytes = info->bytes < MOST ? info->bytes : MOST;
        dq_source_read_raw(s, t, info->bytes - bytes, bytes, out);
        dq_source_release(s, t);
    }
    free(out);
}

typedef dq_status (*fuzz_opener)(dq_env *env, const char *path, dq_map *map, dq_source **out);

/* A failure must be recorded with a text; success must give a source that can be read; nothing may leak. */
static inline void fuzz_open(fuzz_opener open, const uint8_t *data, size_t size, void (*more)(dq_source *))
{
    dq_env env;
    dq_source *s = NULL;
    if (dq_env_init(&env, NULL, 1) != DQ_OK) abort();
    uint64_t before = atomic_load(&env.memory_now);
    dq_map map = {.data = data, .size = size, .borrowed = true};
    dq_error_reset();
    dq_status status = open(&env, "fuzz", &map, &s);
    if (status == DQ_OK) {
        if (!s || map.data) abort();
        fuzz_read_all(s);
        if (more) more(s);
        dq_source_free(s);
    } else if (s || dq_error_last() != status || dq_error_text()[0] == '\0') {
        abort();
    }
    if (atomic_load(&env.memory_now) != before) abort();
    dq_env_clear(&env);
}

#endif
