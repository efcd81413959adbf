/* What the programs of tests/bench share: options, choice of cases, timing of an op in turns with a yardstick, reports as one
 * JSON object a line. Included once by each program. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_BENCH_H
#define DQ_TESTS_BENCH_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backend/device.h"
#include "base/env.h"
#include "base/status.h"

enum { BENCH_MOST_REPS = 64 };

static dq_env env;
static int reps = 7;
static const char *simd = "auto";
static clockid_t bench_clock = CLOCK_MONOTONIC;
static char **wanted;
static int wanted_count;

static inline void must(dq_status status)
{
    if (status == DQ_OK) return;
    fprintf(stderr, "%s\n", dq_error_text());
    exit(1);
}

static inline double now(void)
{
    struct timespec t;
    clock_gettime(bench_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --simd LEVEL, --threads N, --reps N, --clock wall|cpu; what follows are the beginnings of the cases that are wanted. Opens
 * env. With --clock cpu, processor time of the process is counted, on one thread unless more are asked for: of use on a
 * busy machine. */
static inline void bench_options(int argc, char **argv, int usual_reps)
{
    int i = 1, threads = -1;
    reps = usual_reps;
    for (; i + 1 < argc && strncmp(argv[i], "--", 2) == 0; i += 2) {
        if (strcmp(argv[i], "--simd") == 0) {
            simd = argv[i + 1];
        } else if (strcmp(argv[i], "--threads") == 0) {
            threads = atoi(argv[i + 1]);
        } else if (strcmp(argv[i], "--reps") == 0) {
            reps = atoi(argv[i + 1]);
        } else if (strcmp(argv[i], "--clock") == 0) {
            if (strcmp(argv[i + 1], "cpu") == 0) bench_clock = CLOCK_PROCESS_CPUTIME_ID;
        } else {
            break;
        }
    }
    if (i < argc && strncmp(argv[i], "--", 2) == 0) {
        fprintf(stderr, "unknown option %s\n", argv[i]);
        exit(2);
    }
    if (reps < 1 || reps > BENCH_MOST_REPS) reps = usual_reps;
    wanted = argv + i;
    wanted_count = argc - i;
    if (threads < 0) threads = bench_clock == CLOCK_MONOTONIC ? 0 : 1;
    must(dq_env_init(&env, NULL, threads));
}

static inline bool want(const char *name)
{
    for (int i = 0; i < wanted_count; i++)
        if (strncmp(name, wanted[i], strlen(wanted[i])) == 0) return true;
    return wanted_count == 0;
}

/* Whether any case may be wanted whose name starts so. */
static inline bool want_some(const char *prefix)
{
    for (int i = 0; i < wanted_count; i++)
        if (strncmp(prefix, wanted[i], strlen(prefix)) == 0) return true;
    return want(prefix);
}

/* ---- timing ---- */

typedef void (*body)(void *arg);

typedef struct timing {
    double median, least;
} timing;

static inline int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline timing summary(double *t)
{
    qsort(t, (size_t)reps, sizeof *t, by_value);
    return (timing){t[reps / 2], t[0]};
}

static inline double seconds_of(body run, void *arg)
{
    double start = now();
    run(arg);
    return now() - start;
}

/* Runs the op and its yardstick (may be NULL) in turns. With warm, every timed call follows one of the same kind, and the
 * op waits for OpenBLAS's own threads, which spin for some 25 ms after a product and would take our processors. */
static inline timing measure(body op, void *arg, body yardstick, void *other, bool warm, timing *of_yardstick)
{
    const struct timespec pause = {0, 60000000};
    double a[BENCH_MOST_REPS], b[BENCH_MOST_REPS] = {0};
    op(arg);
    if (yardstick) yardstick(other);
    for (int i = 0; i < reps; i++) {
        if (warm && yardstick && dq_threads(&env) > 1) nanosleep(&pause, NULL);
        if (warm) op(arg);
        a[i] = seconds_of(op, arg);
        if (warm && yardstick) yardstick(other);
        if (yardstick) b[i] = seconds_of(yardstick, other);
    }
    if (of_yardstick) *of_yardstick = summary(b);
    return summary(a);
}

/* work: what the op does in units of `unit` (NULL: none is told) per second. */
static inline void report(const char *name, const char *shape, body op, body yardstick, void *arg, double work,
                          const char *unit)
{
    timing y;
    if (!want(name)) return;
    timing o = measure(op, arg, yardstick, arg, false, &y);
    printf("{\"case\":\"%s\",\"shape\":\"%s\",\"seconds\":%.6g,\"seconds_min\":%.6g", name, shape, o.median, o.least);
    if (unit) printf(",\"rate\":%.4g,\"unit\":\"%s\"", work / o.median, unit);
    if (yardstick) printf(",\"yardstick_seconds\":%.6g,\"ratio\":%.3f", y.median, y.median / o.median);
    printf("}\n");
    fflush(stdout);
}

/* ---- the device, and tensors on it ---- */

static inline dq_device *bench_device(const char *openblas)
{
    char option[64];
    dq_device *dev;
    dq_device_info info = {.struct_size = sizeof info};
    snprintf(option, sizeof option, "simd=%.40s", simd);
    must(dq_device_open(&env, "cpu", option, DQ_POLICY_FORBID, &dev));
    must(dq_device_get_info(dev, &info));
    printf("{\"device\":\"%s\",\"threads\":%d,\"openblas\":\"%s\"}\n", info.name, dq_threads(&env), openblas);
    return dev;
}

static inline dq_tensor bench_tensor(dq_device *dev, dq_dtype dtype, int64_t rows, int64_t cols)
{
    dq_tensor t;
    must(dq_tensor_alloc(dev, dtype, rows, cols, &t));
    must(dq_op_fill(0, &t));
    return t;
}

#endif
