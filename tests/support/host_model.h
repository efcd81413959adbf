/* An engine that holds a model's weights itself: what the tests of the border for hosts share. Public header only.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_HOST_MODEL_H
#define DQ_TESTS_HOST_MODEL_H

#include "host.h"

/* Tensors in memory, by name; also a sink's content. */
typedef struct host_tensor {
    char name[160];
    dq_dtype dtype;
    int32_t ndim;
    int64_t shape[DQ_TENSOR_MAX_DIMS];
    uint64_t bytes;
    uint8_t *data;
} host_tensor;

typedef struct host_model {
    host_tensor *tensors;
    int64_t count;
    char *config, *manifest; /* texts that came as metadata, or were read */
    int finished, freed;
    /* how it answers */
    int mapped;        /* lends memory instead of copying */
    int64_t fail_read; /* the n-th read fails (1 = the next); 0 = never */
    int64_t fail_add;
    int64_t reads;
} host_model;

/* All tensors of a folder's safetensors and its config.json. */
void host_model_load(host_model *m, const char *dir);
void host_model_clear(host_model *m);
dq_tensor_source host_model_source(host_model *m);
/* `pieces`: takes large tensors in pieces. */
dq_tensor_sink host_model_sink(host_model *m, int pieces);
const host_tensor *host_model_find(const host_model *m, const char *name);

/* Fails the test when the two do not hold the same tensors, bit for bit. */
void host_model_assert_same(const host_model *a, const host_model *b);

#endif
