/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/fields.h"

enum { LINES_PER_TASK = 64 };

int64_t dq_fields_words(dq_field_order order, int bits, int64_t count)
{
    int64_t per_word = 32 / bits;
    if (order == DQ_FIELDS_PADDED) return (count + per_word - 1) / per_word;
    return (count * bits + 31) / 32;
}

bool dq_fields_fit(dq_field_order order, int bits, int64_t count)
{
    if (order == DQ_FIELDS_PLANAR) return count % 32 == 0;
    return order != DQ_FIELDS_AWQ || (bits == 4 && count % 8 == 0);
}

/* Widths of the bit planes, low to high; single planes are the dense stream. */
static int plane_width(int bits, int plane)
{
    static const uint8_t widths[9][3] = {{0}, {1}, {2}, {2, 1}, {4}, {4, 1}, {4, 2}, {4, 2, 1}, {8}};
    return plane < 3 ? widths[bits][plane] : 0;
}

static uint32_t planar_get(const uint32_t *words, int64_t step, int64_t i, int bits)
{
    int64_t word = i / 32 * bits, j = i % 32;
    uint32_t value = 0;
    int offset = 0;
    for (int p = 0; offset < bits; p++) {
        int width = plane_width(bits, p), per_word = 32 / width;
        uint32_t w = words[(word + j / per_word) * step];
        value |= (w >> (j % per_word * width) & ((1u << width) - 1u)) << offset;
        word += width;
        offset += width;
    }
    return value;
}

static void planar_put(uint32_t *words, int64_t step, int64_t i, int bits, uint32_t value)
{
    int64_t word = i / 32 * bits, j = i % 32;
    int offset = 0;
    for (int p = 0; offset < bits; p++) {
        int width = plane_width(bits, p), per_word = 32 / width;
        words[(word + j / per_word) * step] |= (value >> offset & ((1u << width) - 1u)) << (j % per_word * width);
        word += width;
        offset += width;
    }
}

/* First bit of value i, as a position in the stream of words (all orders but PLANAR). */
static int64_t first_bit(dq_field_order order, int bits, int64_t i)
{
    static const uint8_t nibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    if (order == DQ_FIELDS_AWQ) return i / 8 * 32 + 4 * nibble[i % 8];
    if (order == DQ_FIELDS_PADDED) return i / (32 / bits) * 32 + i % (32 / bits) * bits;
    return i * bits;
}

static uint32_t get(const dq_fields *f, const uint32_t *words, int64_t i)
{
    if (f->order == DQ_FIELDS_PLANAR) return planar_get(words, f->word_step, i, f->bits);
    int64_t bit = first_bit(f->order, f->bits, i), word = bit / 32;
    int shift = (int)(bit % 32);
    uint32_t value = words[word * f->word_step] >> shift;
    if (shift + f->bits > 32) value |= words[(word + 1) * f->word_step] << (32 - shift);
    return value & ((1u << f->bits) - 1u);
}

static void put(const dq_fields *f, uint32_t *words, int64_t i, uint32_t value)
{
    if (f->order == DQ_FIELDS_PLANAR) {
        planar_put(words, f->word_step, i, f->bits, value);
        return;
    }
    int64_t bit = first_bit(f->order, f->bits, i), word = bit / 32;
    int shift = (int)(bit % 32);
    words[word * f->word_step] |= value << shift;
    if (shift + f->bits > 32) words[(word + 1) * f->word_step] |= value >> (32 - shift);
}

typedef struct job {
    const dq_fields *f;
    uint32_t *out_words;
    const uint32_t *in_words;
    uint8_t *out_values;
    const uint8_t *in_values;
} job;

static void run_task(void *arg, int64_t task, int thread)
{
    (void)thread;
    job *j = arg;
    const dq_fields *f = j->f;
    int64_t first = task * LINES_PER_TASK, end = first + LINES_PER_TASK < f->lines ? first + LINES_PER_TASK : f->lines;
    for (int64_t l = first; l < end; l++) {
        int64_t base = l * f->value_line_step, words = l * f->line_step;
        if (j->out_values)
            for (int64_t i = 0; i < f->count; i++)
                j->out_values[base + i * f->value_step] = (uint8_t)get(f, j->in_words + words, i);
        else
            for (int64_t i = 0; i < f->count; i++)
                put(f, j->out_words + words, i, j->in_values[base + i * f->value_step]);
    }
}

void dq_fields_unpack(dq_env *env, const dq_fields *f, const uint32_t *words, uint8_t *values)
{
    job j = {.f = f, .in_words = words, .out_values = values};
    dq_run(env, (f->lines + LINES_PER_TASK - 1) / LINES_PER_TASK, run_task, &j);
}

/* Lines never share a word, so that tasks may run side by side. */
void dq_fields_pack(dq_env *env, const dq_fields *f, const uint8_t *values, uint32_t *words)
{
    job j = {.f = f, .out_words = words, .in_values = values};
    dq_run(env, (f->lines + LINES_PER_TASK - 1) / LINES_PER_TASK, run_task, &j);
}
