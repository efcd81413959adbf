/* Overriding one operation: a copy of the built-in cpu table with an own rmsnorm in it. A whole backend is written the same
 * way, slot by slot (docs/backends.md).
 *
 *   cc custom_backend.c $(pkg-config --cflags --libs dartquant) -lm -o custom_backend
 *   ./custom_backend MODEL
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <dartquant/backend.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static const dq_backend *cpu;
static long calls;

/* The cpu's memory can be touched by the host, so an operation may simply compute there. */
static float *row_of(void *dev, const dq_view *v, int64_t r)
{
    char *base = (char *)cpu->host_pointer(dev, v->mem);
    return (float *)(void *)(base + v->offset) + r * v->stride;
}

static dq_status my_rmsnorm(void *dev, const dq_view *x, const dq_view *weight, double eps, const dq_view *y)
{
    const float *w = weight ? row_of(dev, weight, 0) : NULL;
    calls++;
    for (int64_t r = 0; r < x->rows; r++) {
        const float *in = row_of(dev, x, r);
        float *out = row_of(dev, y, r);
        double sum = 0;
        for (int64_t c = 0; c < x->cols; c++) sum += (double)in[c] * (double)in[c];
        double factor = 1.0 / sqrt(sum / (double)x->cols + eps);
        for (int64_t c = 0; c < x->cols; c++) out[c] = (float)((double)in[c] * factor * (w ? (double)w[c] : 1.0));
    }
    return DQ_OK;
}

/* Perplexity over some ids; `table` NULL = the built-in device. */
static dq_status measure(const char *path, const dq_backend *table, double *ppl)
{
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_model *model = NULL;
    dq_dataset *data = NULL;
    dq_evaluator *e = NULL;
    int32_t ids[128];
    for (int i = 0; i < 128; i++) ids[i] = (i * 37 + 11) % 200;
    dq_status status = dq_config_new(&config);
    if (status == DQ_OK) status = dq_config_set(config, "seqlen", "64");
    if (status == DQ_OK)
        status =
            table ? dq_context_new_with_backend(config, NULL, table, "", &ctx) : dq_context_new(config, NULL, &ctx);
    if (status == DQ_OK) status = dq_model_open(ctx, path, &model);
    if (status == DQ_OK) status = dq_dataset_from_ids(ctx, ids, 128, "ids", &data);
    if (status == DQ_OK) status = dq_evaluator_new(model, config, &e);
    if (status == DQ_OK) status = dq_evaluator_bind(e, data);
    if (status == DQ_OK) status = dq_evaluator_run(e, NULL, NULL, NULL);
    if (status == DQ_OK) status = dq_evaluator_get_float(e, "ppl", ppl);
    dq_evaluator_free(e);
    dq_dataset_free(data);
    dq_model_free(model);
    dq_context_free(ctx);
    dq_config_free(config);
    return status;
}

int main(int argc, char **argv)
{
    dq_backend mine;
    double before = 0, after = 0;
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL\n", argv[0]);
        return 2;
    }
    dq_status status = dq_backend_builtin("cpu", &cpu);
    if (status == DQ_OK) {
        mine = *cpu;
        mine.struct_size = sizeof mine;
        mine.name = "mine";
        mine.rmsnorm = my_rmsnorm;
        status = measure(argv[1], NULL, &before);
    }
    if (status == DQ_OK) status = measure(argv[1], &mine, &after);
    if (status != DQ_OK) {
        fprintf(stderr, "failed: %s\n", dq_error_text());
        return 1;
    }
    printf("built-in %.6f, with my rmsnorm %.6f (%ld calls)\n", before, after, calls);
    return calls > 0 && fabs(after / before - 1) < 1e-4 ? 0 : 1;
}
