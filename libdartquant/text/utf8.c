/* SPDX-License-Identifier: Apache-2.0 */
#include "text/utf8.h"

#include <utf8proc.h>

#include "base/status.h"

int dq_utf8_read(const char *s, size_t n, int32_t *cp)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) {
        *cp = u[0];
        return 1;
    }
    int length = u[0] >= 0xc2 && u[0] <= 0xdf   ? 2
                 : u[0] >= 0xe0 && u[0] <= 0xef ? 3
                 : u[0] >= 0xf0 && u[0] <= 0xf4 ? 4
                                                : 0;
    if (length == 0) return -1;
    /* Table 3-7 of the Unicode standard: the second byte excludes overlong forms, surrogates and > U+10FFFF. */
    unsigned low = u[0] == 0xe0 ? 0xa0 : u[0] == 0xf0 ? 0x90 : 0x80;
    unsigned high = u[0] == 0xed ? 0x9f : u[0] == 0xf4 ? 0x8f : 0xbf;
    int32_t value = u[0] & (0x7f >> length);
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= n || u[i] < low || u[i] > high) return -i;
        value = (int32_t)((uint32_t)value << 6 | (u[i] & 0x3fu));
        low = 0x80;
        high = 0xbf;
    }
    *cp = value;
    return length;
}

int dq_utf8_next(const char *s, int32_t *cp)
{
    int length = dq_utf8_read(s, 4, cp);
    return length > 0 ? length : 1;
}

int dq_utf8_previous(const char *s, size_t n, int32_t *cp)
{
    size_t start = n - 1;
    while (start > 0 && n - start < 4 && ((unsigned char)s[start] & 0xc0) == 0x80) start--;
    int length = dq_utf8_read(s + start, n - start, cp);
    return length > 0 ? length : 1;
}

int dq_utf8_write(char *out, int32_t cp) { return (int)utf8proc_encode_char(cp, (utf8proc_uint8_t *)out); }

size_t dq_utf8_valid_prefix(const char *s, size_t n)
{
    size_t i = 0;
    int32_t cp;
    while (i < n) {
        int length = dq_utf8_read(s + i, n - i, &cp);
        if (length < 0) return i;
        i += (size_t)length;
    }
    return n;
}

dq_status dq_utf8_add_lossy(dq_bytes *out, const char *s, size_t n)
{
    while (n > 0) {
        size_t good = dq_utf8_valid_prefix(s, n);
        DQ_TRY(dq_bytes_add(out, s, good));
        s += good;
        n -= good;
        if (n == 0) break;
        int32_t cp;
        int bad = -dq_utf8_read(s, n, &cp);
        DQ_TRY(dq_bytes_add(out, "\xef\xbf\xbd", 3));
        s += bad;
        n -= (size_t)bad;
    }
    return DQ_OK;
}

bool dq_char_is_space(int32_t cp)
{
    if (cp < 0x80) return cp == ' ' || (cp >= '\t' && cp <= '\r');
    if (cp == 0x85) return true;
    utf8proc_category_t c = utf8proc_category(cp);
    return c == UTF8PROC_CATEGORY_ZS || c == UTF8PROC_CATEGORY_ZL || c == UTF8PROC_CATEGORY_ZP;
}

bool dq_char_is_word(int32_t cp)
{
    switch (utf8proc_category(cp)) {
        case UTF8PROC_CATEGORY_LU:
        case UTF8PROC_CATEGORY_LL:
        case UTF8PROC_CATEGORY_LT:
        case UTF8PROC_CATEGORY_LM:
        case UTF8PROC_CATEGORY_LO:
        case UTF8PROC_CATEGORY_MN:
        case UTF8PROC_CATEGORY_MC:
        case UTF8PROC_CATEGORY_ME:
        case UTF8PROC_CATEGORY_ND:
        case UTF8PROC_CATEGORY_NL:
        case UTF8PROC_CATEGORY_PC: return true;
        default: break;
    }
    /* circled and squared letters are alphabetic symbols (Other_Alphabetic) */
    if (cp >= 0x1f130 && cp <= 0x1f189) return cp <= 0x1f149 || (cp >= 0x1f150 && cp <= 0x1f169) || cp >= 0x1f170;
    return (cp >= 0x24b6 && cp <= 0x24e9) || cp == 0x200c || cp == 0x200d;
}

bool dq_char_is_mark(int32_t cp)
{
    utf8proc_category_t c = utf8proc_category(cp);
    return c == UTF8PROC_CATEGORY_MN || c == UTF8PROC_CATEGORY_MC || c == UTF8PROC_CATEGORY_ME;
}
