/* Files described in a line of text, for tests of readers. A recipe is a list of words:
 *   N:V   the number V in N bytes, little-endian      t:TEXT  the text itself
 *   s:TEXT  u64 length and text (GGUF strings)         u:TEXT  'X', u32 length and text (pickle's BINUNICODE)
 *   c:MODULE,NAME  pickle's GLOBAL                     z:N  N zero bytes     p:N  zeros up to a multiple of N
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef TEST_RECIPE_H
#define TEST_RECIPE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct recipe_bytes {
    uint8_t data[16384];
    size_t size;
} recipe_bytes;

static inline void recipe_add(recipe_bytes *b, const void *data, size_t n)
{
    if (n > sizeof b->data - b->size) abort();
    memcpy(b->data + b->size, data, n);
    b->size += n;
}

static inline void recipe_number(recipe_bytes *b, uint64_t v, size_t n) { recipe_add(b, &v, n); }

static inline void recipe_zeros(recipe_bytes *b, size_t n)
{
    while (n-- > 0) recipe_add(b, "", 1);
}

static inline void recipe_word(recipe_bytes *b, const char *word)
{
    const char *text = word + 2;
    size_t n = strlen(text);
    if (word[1] != ':') abort();
    switch (word[0]) {
        case 't': recipe_add(b, text, n); break;
        case 's':
            recipe_number(b, n, 8);
            recipe_add(b, text, n);
            break;
        case 'u':
            recipe_add(b, "X", 1);
            recipe_number(b, n, 4);
            recipe_add(b, text, n);
            break;
        case 'c': {
            const char *comma = strchr(text, ',');
            recipe_add(b, "c", 1);
            recipe_add(b, text, (size_t)(comma - text));
            recipe_add(b, "\n", 1);
            recipe_add(b, comma + 1, strlen(comma + 1));
            recipe_add(b, "\n", 1);
            break;
        }
        case 'z': recipe_zeros(b, (size_t)atoi(text)); break;
        case 'p':
            while (b->size % (size_t)atoi(text) != 0) recipe_zeros(b, 1);
            break;
        case '1':
        case '2':
        case '4':
        case '8': recipe_number(b, strtoull(text, NULL, 0), (size_t)(word[0] - '0')); break;
        default: abort();
    }
}

static inline void recipe_cook(recipe_bytes *b, const char *recipe)
{
    b->size = 0;
    while (*recipe) {
        char word[512];
        size_t n = strcspn(recipe, " ");
        if (n >= sizeof word) abort();
        memcpy(word, recipe, n);
        word[n] = '\0';
        if (n) recipe_word(b, word);
        recipe += n + (recipe[n] == ' ');
    }
}

#endif
