/* Named tensors that can be read by rows: what a file format offers and a model consumes. Neither side knows the
 * other. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_SOURCE_H
#define DQ_BASE_SOURCE_H

#include <stdbool.h>

#include "base/env.h"

enum { DQ_MAX_DIMS = 8 };

typedef struct dq_tensor_info {
    const char *name;           /* owned by the source */
    dq_dtype dtype;             /* DQ_BLOCK: see type_name */
    const char *type_name;      /* the format's own name: "F32", "Q4_1", ...; static or owned by the source */
    int ndim;                   /* 0 = scalar */
    int64_t shape[DQ_MAX_DIMS]; /* outermost first */
    uint64_t bytes;
    const char *file; /* path; owned by the source */
    uint64_t offset;  /* byte position in `file` */
} dq_tensor_info;

/* Rows of a tensor: a matrix [shape[0], product of the others]; a vector or scalar is one row. */
static inline int64_t dq_info_rows(const dq_tensor_info *t) { return t->ndim >= 2 ? t->shape[0] : 1; }
static inline int64_t dq_info_cols(const dq_tensor_info *t)
{
    int64_t n = 1;
    for (int i = t->ndim >= 2 ? 1 : 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

typedef struct dq_source dq_source;

typedef struct dq_source_ops {
    void (*free)(dq_source *source);
    /* Decodes rows [row, row+count) to fp32 (any floating or block type; refuses integers). Bad bytes are reported
     * with file, tensor and byte. Thread-safe for disjoint outputs. */
    dq_status (*read_rows)(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out);
    /* Copies `bytes` raw bytes from `offset` inside the tensor. */
    dq_status (*read_raw)(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out);
    /* Tells that the tensor's pages are no longer needed (may be NULL). */
    void (*release)(dq_source *source, int64_t tensor);
} dq_source_ops;

/* First member of every concrete source. Filled once by its opener, read-only afterwards. */
struct dq_source {
    const dq_source_ops *ops;
    dq_env *env;
    bool one_thread;    /* read_rows is called on the thread of the job only (a host's callbacks) */
    const char *format; /* "safetensors", "gguf", "pytorch", "memory" */
    int64_t count;
    dq_tensor_info *tensors;   /* [count] */
    struct dq_name_map *names; /* tensor name -> index */
};

/* Index of a tensor, or -1. */
int64_t dq_source_find(const dq_source *source, const char *name);
/* The same for a tensor that has to be there: DQ_E_MISMATCH with its name, and the file's where there is only one. */
dq_status dq_source_need(const dq_source *source, const char *name, int64_t *index);
void dq_source_free(dq_source *source); /* NULL is accepted */
dq_status dq_source_read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out);
dq_status dq_source_read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out);
void dq_source_release(dq_source *source, int64_t tensor);

/* A growable string -> int64 map (FNV-1a, open addressing); keys are borrowed. */
typedef struct dq_name_map dq_name_map;
dq_status dq_name_map_new(dq_env *env, size_t expected, dq_name_map **out);
void dq_name_map_free(dq_name_map *map);
/* DQ_E_INVALID without error record when the key is already there. */
dq_status dq_name_map_add(dq_name_map *map, const char *key, size_t length, int64_t value);
int64_t dq_name_map_get(const dq_name_map *map, const char *key, size_t length); /* -1 = absent */

/* Where tensors go: files or memory. Calls come in order: add for each tensor, then finish. */
typedef struct dq_sink dq_sink;
typedef struct dq_sink_ops {
    dq_status (*add)(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape, const void *data,
                     uint64_t bytes); /* the data is copied or written before return */
    /* Key/value text stored beside the tensors. */
    dq_status (*set_metadata)(dq_sink *sink, const char *key, const char *value);
    dq_status (*finish)(dq_sink *sink); /* nothing is visible under its final name before this returns DQ_OK */
    void (*free)(dq_sink *sink);        /* before finish: removes what was written */
    /* A tensor in pieces: begin, then appends that sum up to `bytes`, with no other call between. Both NULL when the
     * sink takes whole tensors only. */
    dq_status (*begin)(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape, uint64_t bytes);
    dq_status (*append)(dq_sink *sink, const void *data, uint64_t bytes);
} dq_sink_ops;
struct dq_sink {
    const dq_sink_ops *ops;
    dq_env *env;
};

#endif
