/* UTF-8 and the few character classes tokenizers name. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_UTF8_H
#define DQ_TEXT_UTF8_H

#include "text/bytes.h"

/* Reads one character. Returns its length in bytes (1..4) and sets *cp; for invalid bytes returns minus the length of
 * the maximal ill-formed subpart (Unicode 15, section 3.9, U+FFFD substitution). n must be > 0. */
int dq_utf8_read(const char *s, size_t n, int32_t *cp);
/* The same on text known to be valid. */
int dq_utf8_next(const char *s, int32_t *cp);
/* Length of the valid character that ends right before s + n (n > 0), and the character. */
int dq_utf8_previous(const char *s, size_t n, int32_t *cp);
/* Writes 1..4 bytes. */
int dq_utf8_write(char *out, int32_t cp);
/* Position of the first invalid byte, or n. */
size_t dq_utf8_valid_prefix(const char *s, size_t n);
/* Appends s with every ill-formed subpart replaced by U+FFFD, as Python's errors="replace". */
dq_status dq_utf8_add_lossy(dq_bytes *out, const char *s, size_t n);

bool dq_char_is_space(int32_t cp); /* Unicode White_Space */
bool dq_char_is_word(int32_t cp);  /* letter, mark, decimal or letter number, connector punctuation, joiner */
bool dq_char_is_mark(int32_t cp);

#endif
