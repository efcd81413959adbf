/* The part of Python's pickle that torch.save writes for tensors in containers. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_PICKLE_H
#define DQ_IO_PICKLE_H

#include "base/source.h"

typedef enum dq_pickle_kind {
    DQ_PICKLE_MARK,
    DQ_PICKLE_NONE,
    DQ_PICKLE_BOOL,
    DQ_PICKLE_INT,
    DQ_PICKLE_FLOAT,
    DQ_PICKLE_STRING,
    DQ_PICKLE_TUPLE,
    DQ_PICKLE_LIST,
    DQ_PICKLE_DICT, /* items are key, value, key, value, ... */
    DQ_PICKLE_GLOBAL,
    DQ_PICKLE_STORAGE,
    DQ_PICKLE_TENSOR
} dq_pickle_kind;

typedef struct dq_pickle_value {
    dq_pickle_kind kind;
    uint32_t bytes; /* of text */
    union {
        int64_t integer;             /* also BOOL and the number of a GLOBAL in the allow-list */
        const char *text;            /* STRING: in the pickle, not NUL-terminated */
        struct dq_pickle_list *list; /* TUPLE, LIST, DICT */
        struct dq_pickle_storage *storage;
        struct dq_pickle_tensor *tensor;
    } as;
} dq_pickle_value;

typedef struct dq_pickle_list {
    dq_pickle_value *items;
    size_t count, capacity;
} dq_pickle_list;

/* A persistent id ("storage", class, key, location, numel); the location is ignored. */
typedef struct dq_pickle_storage {
    dq_dtype dtype;
    const char *type_name; /* "F32", ... */
    const char *key;
    uint32_t key_bytes;
    int64_t numel;
} dq_pickle_storage;

typedef struct dq_pickle_tensor {
    const dq_pickle_storage *storage;
    int64_t offset; /* elements */
    int ndim;
    int64_t shape[DQ_MAX_DIMS];
    int64_t stride[DQ_MAX_DIMS];
} dq_pickle_tensor;

/* Values live in here until it is freed. */
typedef struct dq_pickle dq_pickle;

/* Runs the pickle. Globals outside the allow-list are refused by name, opcodes outside the known subset by number; error
 * bytes count from the start of `data`, which must outlive the values. Every tensor lies inside its storage's numel. */
dq_status dq_pickle_load(dq_env *env, const uint8_t *data, size_t bytes, dq_pickle **out, dq_pickle_value *root);
void dq_pickle_free(dq_pickle *p);

#endif
