/* Flash-style attention (arXiv 2205.14135) of one block of queries, compiled once per instruction set.
 * Everything is held transposed, queries along the vector lanes: S^T = K Q^T and O^T += V^T P^T are then the same kernel
 * (a broadcast scalar times a vector), and the softmax over the keys needs no horizontal operation.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/attention.h"
#include "backend/cpu/attention_mask.h"
#include "backend/cpu/vec_exp.h"
#include "base/half.h"

/* A strip is NV vectors of queries; a register tile holds ROWS * NV sums beside NV vectors and a scalar. */
enum { NV = 3, STRIP = NV * VF, ROWS = V_REGISTERS == 32 ? 8 : 4 };
_Static_assert(DQ_ATTENTION_QUERIES % STRIP == 0 && (int)STRIP <= (int)DQ_ATTENTION_STRIP, "blocks are whole strips");

/* out[r][0..STRIP) (+)= sum over t < depth of a[r * a_row + t * a_step] * b[t][0..STRIP), for R rows. */
#define TILE(R, NAME)                                                                                                  \
    static void NAME(const float *a, int64_t a_row, int64_t a_step, const float *b, int64_t depth, bool add,           \
                     float *out)                                                                                       \
    {                                                                                                                  \
        vf sum[R][NV];                                                                                                 \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < NV; v++) sum[r][v] = add ? vf_load(out + r * STRIP + v * VF) : vf_zero();              \
        for (int64_t t = 0; t < depth; t++) {                                                                          \
            vf x[NV];                                                                                                  \
            for (int v = 0; v < NV; v++) x[v] = vf_load(b + t * STRIP + v * VF);                                       \
            for (int r = 0; r < R; r++) {                                                                              \
                vf s = vf_set1(a[r * a_row + t * a_step]);                                                             \
                for (int v = 0; v < NV; v++) sum[r][v] = vf_madd(s, x[v], sum[r][v]);                                  \
            }                                                                                                          \
        }                                                                                                              \
        for (int r = 0; r < R; r++)                                                                                    \
            for (int v = 0; v < NV; v++) vf_store(out + r * STRIP + v * VF, sum[r][v]);                                \
    }
TILE(1, tile_one)
TILE(ROWS, tile)

static void product(const float *a, int64_t a_row, int64_t a_step, int64_t rows, const float *b, int64_t depth,
                    bool add, float *out)
{
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS) tile(a + r * a_row, a_row, a_step, b, depth, add, out + r * STRIP);
    for (; r < rows; r++) tile_one(a + r * a_row, a_row, a_step, b, depth, add, out + r * STRIP);
}

/* One strip's working set. */
typedef struct strip {
    float *q;   /* [dim][STRIP], scaled */
    float *o;   /* [dim][STRIP] */
    float *s;   /* [keys][STRIP]: scores, then their exponentials */
    float *max; /* [STRIP] */
    float *sum;
    float *factor; /* by which the last keys shrank what was there */
} strip;

static void load_queries(const dq_attention_block *b, int64_t q0, int64_t n, strip *w)
{
    memset(w->q, 0, sizeof(float) * (size_t)(b->dim * STRIP));
    memset(w->o, 0, sizeof(float) * (size_t)(b->dim * STRIP));
    for (int64_t i = 0; i < n; i++) {
        const float *row = b->q + (q0 - b->first + i) * b->q_stride;
        for (int64_t c = 0; c < b->dim; c++) {
            float x = b->round_q ? dq_bf16_to_f32(dq_f32_to_bf16(row[c])) : row[c];
            w->q[c * STRIP + i] = x * b->scale;
        }
    }
    for (int64_t i = 0; i < STRIP; i += VF) {
        vf_store(w->max + i, vf_set1(DQ_ATTENTION_NONE));
        vf_store(w->sum + i, vf_zero());
    }
}

static void store_output(const dq_attention_block *b, int64_t q0, int64_t n, strip *w)
{
    for (int64_t i = 0; i < STRIP; i += VF) {
        vf r = vf_set1(1.0f) / vf_load(w->sum + i);
        for (int64_t c = 0; c < b->dim; c++) vf_store(w->o + c * STRIP + i, vf_load(w->o + c * STRIP + i) * r);
    }
    for (int64_t i = 0; i < n; i++) {
        float *row = b->o + (q0 - b->first + i) * b->o_stride;
        for (int64_t c = 0; c < b->dim; c++) row[c] = w->o[c * STRIP + i];
    }
}

/* Scores to powers of two under the running maximum; what was summed before shrinks with it. */
static void softmax(int64_t dim, int64_t keys, strip *w)
{
    bool moved = false;
    for (int v = 0; v < NV; v++) {
        float *s = w->s + v * VF;
        vf before = vf_load(w->max + v * VF), top = before;
        for (int64_t j = 0; j < keys; j++) top = vf_max(vf_load(s + j * STRIP), top);
        vf factor = vf_exp2(before - top), sum = vf_load(w->sum + v * VF) * factor;
        vf_store(w->max + v * VF, top);
        vf_store(w->factor + v * VF, factor);
        moved = moved || !(vf_hmin(factor) >= 1.0f);
        for (int64_t j = 0; j < keys; j++) {
            vf p = vf_exp2(vf_load(s + j * STRIP) - top);
            sum += p;
            vf_store(s + j * STRIP, p);
        }
        vf_store(w->sum + v * VF, sum);
    }
    if (!moved) return;
    for (int64_t c = 0; c < dim; c++)
        for (int v = 0; v < NV; v++) {
            float *o = w->o + c * STRIP + v * VF;
            vf_store(o, vf_load(o) * vf_load(w->factor + v * VF));
        }
}

static void attend_strip(const dq_attention_block *b, int64_t q0, int64_t n, strip *w)
{
    const float *k = b->k, *v = b->v;
    int64_t end = dq_min64(b->seqlen, q0 + n), begin = 0;
    if (b->window && q0 - b->window + 1 > 0) begin = q0 - b->window + 1;
    load_queries(b, q0, n, w);
    for (int64_t k0 = begin; k0 < end; k0 += DQ_ATTENTION_KEYS) {
        int64_t keys = dq_min64(DQ_ATTENTION_KEYS, end - k0);
        product(k + k0 * b->dim, b->dim, 1, keys, w->q, b->dim, false, w->s);
        bool partial = k0 + keys - 1 > q0 || (b->window && k0 <= q0 + STRIP - 1 - b->window);
        if (partial) attention_mask(b, q0, k0, keys, NV, w->s);
        softmax(b->dim, keys, w);
        product(v + k0 * b->dim, 1, b->dim, b->dim, w->s, keys, true, w->o);
    }
    store_output(b, q0, n, w);
}

void DQ_ISA(dq_attend)(const dq_attention_block *b)
{
    float *p = b->scratch;
    strip w = {.q = p, .o = p + STRIP * b->dim};
    w.s = w.o + STRIP * b->dim;
    w.max = w.s + STRIP * DQ_ATTENTION_KEYS;
    w.sum = w.max + STRIP;
    w.factor = w.sum + STRIP;
    for (int64_t i = 0; i < b->count; i += STRIP) attend_strip(b, b->first + i, dq_min64(STRIP, b->count - i), &w);
}
