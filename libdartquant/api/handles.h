/* The context behind all public handles, and what api/ keeps beside them. A public handle holds one reference to its
 * context, so that handles can be freed in any order. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_API_HANDLES_H
#define DQ_API_HANDLES_H

#include <jansson.h>
#include <stdatomic.h>

#include "api/guard.h"
#include "backend/device.h"
#include "base/env.h"
#include "base/progress.h"
#include "model/model.h"
#include "text/dataset.h"

/* What the border knows about a model beyond the model itself. One per model that the host holds. */
typedef struct dq_model_card {
    dq_model *model;
    int handles;      /* public handles to it: a job may hand the same model out again */
    json_t *facts;    /* parsed description, NULL until asked for */
    char *text;       /* the same as text, borrowed by the host */
    char *provenance; /* JSON object about how it was made, for the manifest; NULL = unknown */
    struct dq_model_card *next;
} dq_model_card;

struct dq_context {
    dq_env env; /* must be first: the context of an environment is its own address */
    atomic_int references;
    dq_guard guard;
    dq_device *dev;
    dq_model_card *cards;
    char *device_name, *device_json, *benchmark_json;
};

struct dq_dataset {
    dq_context *ctx;
    dq_token_stream stream;
};

struct dq_rotation {
    dq_context *ctx;
    dq_rotation_set *set;
    char *text;
};

dq_context *dq_context_retain(dq_context *ctx);
void dq_context_release(dq_context *ctx); /* NULL is accepted */
static inline dq_context *dq_context_of(const dq_env *env) { return (dq_context *)env; }
dq_context *dq_context_of_model(const dq_model *model);

/* Turns a fresh reference to a model into a public handle (the reference is taken over also on failure). */
dq_status dq_model_publish(dq_model *model, const char *provenance, dq_model **out);
/* The card of a public handle; NULL (error recorded) for a pointer that is none. */
dq_model_card *dq_model_card_of(const dq_model *model);

/* DQ_MATH_* as the option says, DQ_MATH_F32 for NULL. */
int dq_config_math(const dq_config *config);
/* The same with DQ_MATH_CODES where integer_products is on, as for NULL. */
int dq_config_products(const dq_config *config);
/* A number of a JSON object: integers, reals, and booleans as 0 / 1. `what` stands in messages. */
dq_status dq_facts_float(const json_t *facts, const char *key, const char *what, double *out);
dq_status dq_facts_int(const json_t *facts, const char *key, const char *what, int64_t *out);

static inline dq_progress dq_progress_make(const dq_cancel *cancel, dq_progress_fn fn, void *user)
{
    return (dq_progress){.fn = fn, .user = user, .cancel = cancel};
}

#endif
