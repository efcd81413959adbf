/* Inside of the GGUF reader: the metadata table and the tensor types. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_GGUF_H
#define DQ_IO_GGUF_H

#include "base/source.h"
#include "io/file.h"

/* Value types of the format. */
enum {
    DQ_GGUF_U8 = 0,
    DQ_GGUF_I8 = 1,
    DQ_GGUF_U16 = 2,
    DQ_GGUF_I16 = 3,
    DQ_GGUF_U32 = 4,
    DQ_GGUF_I32 = 5,
    DQ_GGUF_F32 = 6,
    DQ_GGUF_BOOL = 7,
    DQ_GGUF_STRING = 8,
    DQ_GGUF_ARRAY = 9,
    DQ_GGUF_U64 = 10,
    DQ_GGUF_I64 = 11,
    DQ_GGUF_F64 = 12
};

typedef struct dq_gguf_kv {
    const char *key; /* in the map, not NUL-terminated */
    size_t key_bytes;
    uint32_t type; /* of the value, or of the elements when `array` */
    bool array;
    uint64_t count;    /* elements; 1 for a plain value */
    uint64_t offset;   /* first element in the file */
    uint64_t *strings; /* array of strings: where each element's length field is */
} dq_gguf_kv;

typedef struct dq_gguf_source {
    dq_source base;
    char *path;
    dq_map map;
    uint64_t data_start;
    uint64_t alignment;
    dq_gguf_kv *kvs;
    size_t kv_count;
    dq_name_map *keys;
    uint32_t *types; /* [base.count] GGML type numbers */
} dq_gguf_source;

/* A tensor type: `block` elements take `bytes` bytes. */
typedef struct dq_gguf_type {
    uint32_t id;
    const char *name;
    uint32_t block;
    uint32_t bytes;
    dq_dtype dtype;
} dq_gguf_type;
const dq_gguf_type *dq_gguf_find_type(uint32_t id); /* NULL = unknown */

/* A position in the file; every step is checked against its end. */
typedef struct dq_gguf_cursor {
    const dq_map *map;
    uint64_t at;
} dq_gguf_cursor;
dq_status dq_gguf_take(dq_gguf_cursor *c, uint64_t bytes, const char *what, const uint8_t **out);
dq_status dq_gguf_take_u32(dq_gguf_cursor *c, const char *what, uint32_t *out);
dq_status dq_gguf_take_u64(dq_gguf_cursor *c, const char *what, uint64_t *out);
dq_status dq_gguf_take_string(dq_gguf_cursor *c, const char *what, const char **out, uint64_t *bytes);

/* Reads s->kv_count pairs (s->kvs is allocated) and the alignment. */
dq_status dq_gguf_read_metadata(dq_gguf_source *s, dq_gguf_cursor *c);

extern const dq_source_ops dq_gguf_ops;

#endif
