/* What the tests of models share: tiny models of tests/data/models, their expected logits, copies with changed
 * tensors. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_SUPPORT_MODELS_H
#define DQ_TESTS_SUPPORT_MODELS_H

#include <jansson.h>

#include "fixture.h"
#include "model/model.h"

/* tests/data/models/<name>, relative to the root of the repository. */
const char *tiny_path(const char *name);
dq_model *open_tiny(fixture *f, const char *name);

typedef struct expected {
    int64_t tokens, vocab;
    int32_t ids[64];
    float logits[64 * 128];
    double nll;
} expected;
void read_expected(fixture *f, const char *name, expected *out);

/* Logits of the model on the expected ids; the largest difference. */
double logits_difference(dq_model *model, const expected *e);
void logits_of(dq_model *model, const expected *e, float *out);
double max_difference(const float *a, const float *b, int64_t n);

/* The small trained model of the shared data with the figures published for it; false, with a note, where it is absent. */
bool open_stories(fixture *f, dq_model **model, json_t **figures);

/* A source in memory with the tensors of `from`; `change` may alter the values (F32), or return false to leave the
 * tensor out. */
typedef bool (*change_fn)(const char *name, int64_t rows, int64_t cols, float *values, void *arg);
dq_source *copy_source(fixture *f, dq_source *from, change_fn change, void *arg);
/* A tiny model with changed weights. */
dq_status changed_model(fixture *f, const char *name, change_fn change, void *arg, dq_model **out);

/* Codes by rounding to nearest for every linear, as a memory source. group -1 = whole rows; g_idx writes the group of
 * each column explicitly. */
dq_source *quantize_to_memory(fixture *f, dq_model *model, int bits, bool symmetric, int64_t group, bool g_idx);
dq_scheme plain_scheme(void);

/* A fresh folder under the system's temporary files, and its removal with all files in it. */
char *make_folder(char *buffer, size_t size);
void remove_folder(const char *path);

#endif
