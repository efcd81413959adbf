/* An engine with a forward pass of its own learns a rotation: it hands over batches of activations, and gets back R1 for the
 * residual stream and R2 for the value heads of a layer. Activations are made up here: heavy-tailed features, mixed.
 *   host_calibration
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <dartquant.h>

enum { HIDDEN = 64, HEADS = 8, KV_HEADS = 4, HEAD_DIM = 16, BATCH = 512, BATCHES = 16 };

static int failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, dq_error_text());
    return 1;
}

static double uniform(void)
{
    static unsigned long long state = 88172645463325252ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return ((double)(state >> 11) + 0.5) / 9007199254740992.0;
}

/* The engine's next batch: a few features are large now and then, and every column sees several of them. */
static void forward(float *x, int rows, int width)
{
    for (int r = 0; r < rows; r++) {
        double feature[HEADS * HEAD_DIM], square = 0;
        for (int i = 0; i < width; i++) {
            double u = uniform(), laplace = (u < 0.5 ? log(2 * u) : -log(2 - 2 * u));
            feature[i] = laplace * laplace * laplace * (i % 7 == 0 ? 3 : 0.3);
        }
        for (int i = 0; i < width; i++) {
            double v = feature[i] + 0.4 * feature[(i * 5 + 3) % width] - 0.3 * feature[(i * 11 + 1) % width];
            x[r * width + i] = (float)v;
            square += v * v;
        }
        for (int i = 0; i < width; i++)
            x[r * width + i] /= (float)sqrt(square / width); /* the norm before the linear */
    }
}

static int32_t show(void *user, const dq_progress_event *e)
{
    (void)user;
    if (e->index % 10 == 0) printf("  %s, step %2llu: loss %.3f\n", e->stage, (unsigned long long)e->index, e->metric);
    return 0;
}

/* Feeds one job and takes its matrices. */
static int learn(dq_context *ctx, const char *name, int n, int heads, int groups, double *r)
{
    dq_calibrator *job = NULL;
    double before = 0, after = 0, orthogonality = 0;
    float *x = malloc(sizeof *x * BATCH * n * heads);
    int bad = !x || dq_calibrator_new_rows(ctx, NULL, n, heads, groups, &job);
    for (int b = 0; b < BATCHES && !bad; b++) {
        forward(x, BATCH, n * heads);
        bad = dq_calibrator_add_rows(job, DQ_CALIBRATION_ACTIVATIONS, x, BATCH, n * heads, DQ_F32);
    }
    bad = bad || dq_calibrator_run(job, NULL, show, NULL) ||
          dq_calibrator_copy_rotation(job, r, (size_t)groups * n * n) ||
          dq_calibrator_get_float(job, "error_before", &before) ||
          dq_calibrator_get_float(job, "error_after", &after) ||
          dq_calibrator_get_float(job, "orthogonality_error", &orthogonality);
    if (bad)
        failed(name);
    else
        printf("%s: 4-bit error %.5f (random Hadamard) -> %.5f (learnt), orthogonal to %.0e\n", name, before, after,
               orthogonality);
    dq_calibrator_free(job);
    free(x);
    return bad;
}

int main(void)
{
    static double r1[HIDDEN * HIDDEN], r2[KV_HEADS * HEAD_DIM * HEAD_DIM];
    dq_context *ctx = NULL;
    if (dq_context_new(NULL, NULL, &ctx)) return failed("context");
    int bad = learn(ctx, "R1", HIDDEN, 1, 1, r1) || learn(ctx, "R2", HEAD_DIM, HEADS, KV_HEADS, r2);
    dq_context_free(ctx);
    return bad;
}
