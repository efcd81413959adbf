/* SPDX-License-Identifier: Apache-2.0 */
#include "fit_job.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/rng.h"
#include "base/status.h"

dq_rows *new_rows(fixture *f, int64_t width, dq_dtype dtype, uint64_t budget, double held_out)
{
    dq_rows *rows = NULL;
    dq_rows_spec spec = {
        .width = width, .dtype = dtype, .budget = budget, .share = {0.6, 0.1, 0.3}, .held_out = held_out, .seed = 3};
    OK(dq_rows_new(f->dev, &spec, &rows));
    return rows;
}

void add_rows(fixture *f, dq_rows *rows, dq_row_kind kind, const float *x, int64_t count)
{
    dq_tensor t = {0};
    OK(dq_tensor_from_host(f->dev, DQ_F32, count, dq_rows_get_spec(rows)->width, x, &t));
    OK(dq_rows_add(rows, kind, &t));
    dq_tensor_free(&t);
}

float *heavy_rows(int64_t count, int64_t width, uint64_t seed)
{
    dq_rng rng;
    float *x = malloc((size_t)(count * width) * sizeof *x);
    double *mix = malloc((size_t)(width * width) * sizeof *mix), *source = malloc((size_t)width * sizeof *source);
    dq_rng_seed_torch(&rng, 1);
    for (int64_t i = 0; i < width * width; i++) mix[i] = 0.25 * dq_rng_normal(&rng) + (i % (width + 1) == 0);
    dq_rng_seed_torch(&rng, seed);
    for (int64_t t = 0; t < count; t++) {
        double square = 0;
        for (int64_t k = 0; k < width; k++) {
            double v = dq_rng_normal(&rng);
            source[k] = v * v * v * (k % 5 == 0 ? 4 : 0.5);
        }
        for (int64_t c = 0; c < width; c++) {
            double sum = 0;
            for (int64_t k = 0; k < width; k++) sum += source[k] * mix[k * width + c];
            x[t * width + c] = (float)sum;
            square += sum * sum;
        }
        for (int64_t c = 0; c < width; c++) x[t * width + c] /= (float)sqrt(square / (double)width);
    }
    free(mix);
    free(source);
    return x;
}

dq_fit_spec usual_spec(int64_t n, int32_t heads, int32_t groups)
{
    dq_quant_target target = {.bits = 4, .clip = 0.9};
    dq_loss procrustes = {.kind = DQ_FIT_QUANT, .quant = target, .relative = true};
    return (dq_fit_spec){.orbit = {n, heads, groups},
                         .finish = {procrustes, procrustes, procrustes},
                         .finish_boldness = 1,
                         .method = DQ_FIT_QR,
                         .loss = {.kind = DQ_FIT_WHIP},
                         .lr = 0.02,
                         .momentum = 0.9,
                         .epochs = 10,
                         .accumulation = 1,
                         .mm_boldness = 0.25,
                         .mm_memory = 0.5,
                         .weight = {0.75, 0.05, 0.2},
                         .quant = {target, target, target}};
}

void open_job(fit_job *j, int threads, const dq_fit_spec *spec)
{
    int64_t width = dq_orbit_width(&spec->orbit);
    float *x = heavy_rows(3000, width, 2), *sinks = heavy_rows(24, width, 7), *weights = heavy_rows(700, width, 9);
    fixture_open(&j->f, "cpu", threads);
    j->rows = new_rows(&j->f, width, DQ_BF16, 1 << 22, 0.1);
    add_rows(&j->f, j->rows, DQ_ROWS_ACTIVATION, x, 3000);
    add_rows(&j->f, j->rows, DQ_ROWS_SINK, sinks, 24);
    add_rows(&j->f, j->rows, DQ_ROWS_WEIGHT, weights, 700);
    OK(dq_rows_seal(j->rows));
    OK(dq_fit_new(j->f.dev, spec, j->rows, NULL, &j->fit));
    free(x);
    free(sinks);
    free(weights);
}

void close_job(fit_job *j)
{
    dq_fit_free(j->fit);
    dq_rows_free(j->rows);
    fixture_close(&j->f);
}

void run_fit(dq_fit *fit)
{
    for (bool done = dq_fit_done(fit); !done;) OK(dq_fit_step(fit, &done));
}

void check_orthogonal(const double *r, int64_t n, int32_t groups)
{
    for (int32_t g = 0; g < groups; g++, r += n * n)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j <= i; j++) {
                double sum = 0;
                for (int64_t k = 0; k < n; k++) sum += r[k * n + i] * r[k * n + j];
                assert_true(fabs(sum - (i == j)) <= 1e-12);
            }
}
