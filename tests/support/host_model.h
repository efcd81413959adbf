/* An engine that holds a model's weights itself: what the tests of the border for hosts share. Public header only.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_HOST_MODEL_H
#define DQ_TESTS_HOST_MODEL_H

#include <dartquant.h>
#include <stdbool.h>

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        dq_status s_ = (call);                                                                                         \
        if (s_ != DQ_OK) fail_msg("%s: %d %s", #call, s_, dq_error_text());                                            \
    } while (0)

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

/* A context on `threads` threads whose allocator counts; host_live_blocks is 0 when all was given back. */
dq_context *host_context(int threads);
extern long host_live_blocks;
/* "name=value name=value" */
dq_config *host_config(const char *settings);
dq_dataset *host_ids(dq_context *ctx, size_t count);
/* What tests of a job work on: the tiny model, fused and rotated if asked, with options and 400 ids. */
typedef struct host_bench {
    dq_context *ctx;
    dq_config *config;
    dq_dataset *set;
    dq_model *model;
} host_bench;
host_bench host_bench_open(const char *settings, int threads, bool rotate);
void host_bench_close(host_bench *b);
double host_perplexity(dq_model *model, const dq_config *config, const dq_dataset *set);
/* Fails the test when the two do not hold the same tensors, bit for bit. */
void host_model_assert_same(const host_model *a, const host_model *b);

#endif
