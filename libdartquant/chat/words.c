/* Names, numbers, strings and operators inside of tags. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/number.h"
#include "base/status.h"
#include "chat/lexer_parts.h"
#include "text/utf8.h"

static bool is_space(int32_t cp) { return dq_char_is_space(cp) || (cp >= 0x1c && cp <= 0x1f); }

size_t dq_jspace_at(const char *s, size_t n)
{
    int32_t cp;
    int size = n > 0 ? dq_utf8_read(s, n, &cp) : 0;
    return size > 0 && is_space(cp) ? (size_t)size : 0;
}

size_t dq_jspace_before(const char *s, size_t n)
{
    int32_t cp;
    int size = n > 0 ? dq_utf8_previous(s, n, &cp) : 0;
    return size > 0 && is_space(cp) ? (size_t)size : 0;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

/* ---- strings ---- */

static int hex_digit(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* `digits` hexadecimal digits at s. */
static dq_status take_code(const dq_jlexer *x, const char *s, const char *end, int digits, int32_t *cp)
{
    int64_t value = 0;
    for (int i = 0; i < digits; i++) {
        int d = s + i < end ? hex_digit(s[i]) : -1;
        if (d < 0) return dq_jlex_fail(x, "an escape in a string lacks hexadecimal digits");
        value = value * 16 + d;
    }
    if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return dq_jlex_fail(x, "an escape in a string is no character");
    *cp = (int32_t)value;
    return DQ_OK;
}

/* The escape at s (behind the backslash) of Python's string literals; writes to out, which moves on. */
static dq_status take_escape(const dq_jlexer *x, const char **s, const char *end, char **out)
{
    static const char plain[] = "\\'\"abfnrtv", meant[] = "\\'\"\a\b\f\n\r\t\v";
    char c = *(*s)++;
    const char *known = c ? strchr(plain, c) : NULL;
    int32_t cp = 0;
    if (c == '\n') return DQ_OK;
    if (known) {
        *(*out)++ = meant[known - plain];
        return DQ_OK;
    }
    if (c == 'x' || c == 'u' || c == 'U') {
        int digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        DQ_TRY(take_code(x, *s, end, digits, &cp));
        *s += digits;
    } else if (c >= '0' && c <= '7') {
        (*s)--;
        for (int i = 0; i < 3 && *s < end && **s >= '0' && **s <= '7'; i++) cp = cp * 8 + (*(*s)++ - '0');
    } else if (c == 'N') {
        return dq_jlex_fail(x, "characters by name (\\N{...}) are not supported in strings");
    } else { /* Python keeps what it does not know */
        *(*out)++ = '\\';
        *(*out)++ = c;
        return DQ_OK;
    }
    *out += dq_utf8_write(*out, cp);
    return DQ_OK;
}

static dq_status take_string(dq_jlexer *x)
{
    const char *s = x->at + 1, *end = s;
    while (end < x->end && *end != *x->at) end += *end == '\\' && x->end - end > 1 ? 2 : 1;
    if (end == x->end) return dq_jlex_fail(x, "a string is not closed");
    void *memory = NULL; /* an escape is never shorter than what it stands for */
    DQ_TRY(dq_jarena_take(x->arena, (size_t)(end - s) + 1, &memory));
    char *out = memory;
    while (s < end) {
        if (*s == '\\') {
            s++;
            DQ_TRY(take_escape(x, &s, end, &out));
        } else {
            *out++ = *s++;
        }
    }
    dq_jtext text = dq_jtext_of(memory, (size_t)(out - (char *)memory));
    DQ_TRY(dq_jlex_add(x, (dq_jtoken){.kind = DQ_JT_STRING, .text = text}));
    dq_jlex_advance(x, end + 1);
    return DQ_OK;
}

/* ---- numbers ---- */

static const char *skip_digits(const dq_jlexer *x, const char *at)
{
    while (at < x->end && (is_digit(*at) || (*at == '_' && at + 1 < x->end && is_digit(at[1])))) at++;
    return at;
}

/* Behind the digits: a fraction, an exponent, or both. */
static const char *skip_fraction(const dq_jlexer *x, const char *at)
{
    if (at + 1 < x->end && *at == '.' && is_digit(at[1])) at = skip_digits(x, at + 1);
    const char *e = at;
    if (e < x->end && (*e == 'e' || *e == 'E')) {
        e++;
        if (e < x->end && (*e == '-' || *e == '+')) e++;
        if (e < x->end && is_digit(*e)) at = skip_digits(x, e);
    }
    return at;
}

static dq_status take_number(dq_jlexer *x)
{
    const char *whole = skip_digits(x, x->at), *end = skip_fraction(x, whole);
    char digits[64];
    size_t n = 0;
    for (const char *at = x->at; at < end; at++) {
        if (*at == '_') continue;
        if (n == sizeof digits - 1) return dq_jlex_fail(x, "a number is too long");
        digits[n++] = *at;
    }
    digits[n] = '\0';
    if (end < x->end && is_letter(*end)) return dq_jlex_fail(x, "a number goes on with a letter");
    dq_jtoken token = {.kind = end > whole ? DQ_JT_FLOAT : DQ_JT_INT};
    if (token.kind == DQ_JT_FLOAT) {
        char *behind;
        DQ_TRY(dq_number_read(digits, &behind, &token.number));
        if (!isfinite(token.number)) return dq_jlex_fail(x, "a number is too large");
    } else {
        errno = 0;
        token.integer = strtoll(digits, NULL, 10);
        if (errno) return dq_jlex_fail(x, "a number is too large");
    }
    DQ_TRY(dq_jlex_add(x, token));
    dq_jlex_advance(x, end);
    return DQ_OK;
}

/* ---- operators ---- */

static dq_status balance(dq_jlexer *x, char c)
{
    if (c == '(' || c == '[' || c == '{') {
        if (x->open == DQ_J_MAX_OPEN) return dq_jlex_fail(x, "brackets are nested too deep");
        x->brackets[x->open++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (x->open == 0 || x->brackets[--x->open] != c) return dq_jlex_fail(x, "a bracket is closed that is not open");
    }
    return DQ_OK;
}

static dq_status take_operator(dq_jlexer *x)
{
    static const char *const two[] = {"**", "//", "==", "!=", ">=", "<="};
    size_t n = 1;
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (dq_jlex_starts(x, x->at, two[i])) n = 2;
    if (n == 1 && !strchr("+-/*%~[](){}<>=.:|,;", *x->at)) return dq_jlex_fail(x, "an unexpected character");
    if (n == 1) DQ_TRY(balance(x, *x->at));
    DQ_TRY(dq_jlex_add(x, (dq_jtoken){.kind = DQ_JT_OPERATOR, .text = dq_jtext_of(x->at, n)}));
    dq_jlex_advance(x, x->at + n);
    return DQ_OK;
}

dq_status dq_jlex_word(dq_jlexer *x)
{
    if (*x->at == '"' || *x->at == '\'') return take_string(x);
    if (is_digit(*x->at)) return take_number(x);
    if (!is_letter(*x->at)) return *x->at ? take_operator(x) : dq_jlex_fail(x, "a NUL character");
    const char *end = x->at;
    while (end < x->end && (is_letter(*end) || is_digit(*end))) end++;
    DQ_TRY(dq_jlex_add(x, (dq_jtoken){.kind = DQ_JT_NAME, .text = dq_jtext_of(x->at, (size_t)(end - x->at))}));
    dq_jlex_advance(x, end);
    return DQ_OK;
}
