/* Operations on texts, as methods and filters need them. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <utf8proc.h>

#include "base/status.h"
#include "chat/lexer_parts.h"
#include "chat/run.h"
#include "text/utf8.h"

/* ---- case ---- */

/* One to one, except for the sharp s and the I with a dot, which Python makes two characters. */
static dq_status put_case(dq_jrun *r, dq_bytes *out, int32_t cp, bool upper, bool title)
{
    char bytes[4];
    if (cp == 0xdf && upper) return dq_jput(r, out, title ? "Ss" : "SS", 2);
    if (cp == 0x130 && !upper) return dq_jput(r, out, "i\xcc\x87", 3);
    cp = !upper ? utf8proc_tolower(cp) : title ? utf8proc_totitle(cp) : utf8proc_toupper(cp);
    return dq_jput(r, out, bytes, (size_t)dq_utf8_write(bytes, cp));
}

static bool is_cased(int32_t cp) { return utf8proc_tolower(cp) != cp || utf8proc_toupper(cp) != cp; }

dq_status dq_jcase(dq_jrun *r, dq_jtext t, int how, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_status status = dq_jsteps(r, 1 + t.size / 16);
    bool inside = false; /* a word */
    for (size_t at = 0; at < t.size && status == DQ_OK;) {
        int32_t cp;
        at += (size_t)dq_utf8_next(t.data + at, &cp);
        bool first = how == DQ_J_CAPITALIZE ? text.size == 0 : how == DQ_J_TITLE && !inside;
        status = put_case(r, &text, cp, how == DQ_J_UPPER || first, first);
        inside = is_cased(cp);
    }
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

/* ---- ends ---- */

/* Whether the character of n bytes at s is to go. */
static bool goes(dq_jtext chars, const char *s, size_t n) { return dq_jfind(chars, dq_jtext_of(s, n), false) >= 0; }

dq_status dq_jstrip(dq_jrun *r, dq_jtext t, const dq_jvalue *given, bool left, bool right, dq_jvalue *out)
{
    dq_jtext chars = {0};
    const char *start = t.data, *end = t.data + t.size;
    int32_t cp;
    if (given) DQ_TRY(dq_jwant_string(r, "the characters to strip", given, &chars));
    DQ_TRY(dq_jsteps(r, 1 + t.size / 32 * (1 + chars.size / 16)));
    while (left && start < end) {
        size_t n = given ? (size_t)dq_utf8_next(start, &cp) : dq_jspace_at(start, (size_t)(end - start));
        if (n == 0 || (given && !goes(chars, start, n))) break;
        start += n;
    }
    while (right && start < end) {
        size_t size = (size_t)(end - start);
        size_t n = given ? (size_t)dq_utf8_previous(start, size, &cp) : dq_jspace_before(start, size);
        if (n == 0 || (given && !goes(chars, end - n, n))) break;
        end -= n;
    }
    *out = dq_jstring(dq_jtext_of(start, (size_t)(end - start)));
    return DQ_OK;
}

/* ---- finding and replacing ---- */

int64_t dq_jfind(dq_jtext t, dq_jtext word, bool last)
{
    if (word.size > t.size) return -1;
    if (word.size == 0) return last ? (int64_t)t.size : 0;
    if (!last) {
        const char *at = memmem(t.data, t.size, word.data, word.size);
        return at ? at - t.data : -1;
    }
    for (size_t i = t.size - word.size + 1; i-- > 0;)
        if (memcmp(t.data + i, word.data, word.size) == 0) return (int64_t)i;
    return -1;
}

uint64_t dq_jfind_steps(dq_jtext t, dq_jtext word, bool last)
{
    return 1 + t.size / 32 * (last ? 1 + word.size / 64 : 1);
}

/* Python puts the new text between all characters where the old is empty. */
static dq_status replace_empty(dq_jrun *r, dq_bytes *text, dq_jtext t, dq_jtext new, int64_t most)
{
    int64_t n = 0;
    for (size_t at = 0;; n++) {
        if (most < 0 || n < most) DQ_TRY(dq_jput(r, text, new.data, new.size));
        if (at == t.size) return DQ_OK;
        size_t size = dq_jtext_offset(dq_jtext_of(t.data + at, t.size - at), 1);
        DQ_TRY(dq_jput(r, text, t.data + at, size));
        at += size;
    }
}

static dq_status replace_words(dq_jrun *r, dq_bytes *text, dq_jtext t, dq_jtext old, dq_jtext new, int64_t most)
{
    for (int64_t n = 0; most < 0 || n < most; n++) {
        int64_t at = dq_jfind(t, old, false);
        if (at < 0) break;
        DQ_TRY(dq_jput(r, text, t.data, (size_t)at));
        DQ_TRY(dq_jput(r, text, new.data, new.size));
        t = dq_jtext_of(t.data + at + old.size, t.size - (size_t)at - old.size);
    }
    return dq_jput(r, text, t.data, t.size);
}

dq_status dq_jreplace(dq_jrun *r, dq_jtext t, dq_jtext old, dq_jtext new, int64_t most, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_status status = dq_jsteps(r, 1 + t.size / 32);
    if (status == DQ_OK)
        status = old.size ? replace_words(r, &text, t, old, new, most) : replace_empty(r, &text, t, new, most);
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

/* ---- splitting and joining ---- */

static dq_status add_part(dq_jrun *r, dq_jlist *list, const char *start, const char *end)
{
    return dq_jlist_add(&r->arena, list, dq_jstring(dq_jtext_of(start, (size_t)(end - start))));
}

static void turn_around(dq_jlist *list)
{
    for (size_t i = 0, j = list->count; j > i + 1; i++) {
        dq_jvalue v = list->items[i];
        list->items[i] = list->items[--j];
        list->items[j] = v;
    }
}

static dq_status split_at(dq_jrun *r, dq_jtext t, dq_jtext word, int64_t most, bool right, dq_jlist *list)
{
    for (int64_t n = 0; most < 0 || n < most; n++) {
        int64_t at = dq_jfind(t, word, right);
        if (at < 0) break;
        const char *found = t.data + at, *behind = found + word.size, *end = t.data + t.size;
        DQ_TRY(dq_jsteps(r, 1));
        DQ_TRY(right ? add_part(r, list, behind, end) : add_part(r, list, t.data, found));
        t = right ? dq_jtext_of(t.data, (size_t)at) : dq_jtext_of(behind, (size_t)(end - behind));
    }
    return add_part(r, list, t.data, t.data + t.size);
}

static size_t space(dq_jtext t, bool right)
{
    return right ? dq_jspace_before(t.data, t.size) : dq_jspace_at(t.data, t.size);
}

static dq_jtext without(dq_jtext t, size_t n, bool right)
{
    return dq_jtext_of(right ? t.data : t.data + n, t.size - n);
}

/* At runs of white space; those at the ends go too, but the last one's where `most` is reached. */
static dq_status split_words(dq_jrun *r, dq_jtext t, int64_t most, bool right, dq_jlist *list)
{
    for (int64_t n = 0;; n++) {
        DQ_TRY(dq_jsteps(r, 1));
        for (size_t s; (s = space(t, right)) > 0;) t = without(t, s, right);
        if (t.size == 0) return DQ_OK;
        if (most >= 0 && n == most) break;
        dq_jtext word = t;
        while (t.size && space(t, right) == 0) {
            int32_t cp;
            int size = right ? dq_utf8_previous(t.data, t.size, &cp) : dq_utf8_next(t.data, &cp);
            t = without(t, (size_t)size, right);
        }
        DQ_TRY(right ? add_part(r, list, t.data + t.size, word.data + word.size)
                     : add_part(r, list, word.data, t.data));
    }
    return dq_jlist_add(&r->arena, list, dq_jstring(t));
}

dq_status dq_jsplit(dq_jrun *r, dq_jtext t, const dq_jvalue *separator, int64_t most, bool right, dq_jvalue *out)
{
    dq_jtext word = {0};
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    if (separator) DQ_TRY(dq_jwant_string(r, "the separator", separator, &word));
    DQ_TRY(dq_jsteps(r, dq_jfind_steps(t, word, right)));
    if (separator) {
        if (word.size == 0) return dq_jfail(r, DQ_E_INVALID, "an empty separator");
        DQ_TRY(split_at(r, t, word, most, right, out->list));
    } else {
        DQ_TRY(split_words(r, t, most, right, out->list));
    }
    if (right) turn_around(out->list);
    return DQ_OK;
}

/* Bytes of a line end at s: Python's list of them. */
static size_t line_end(const char *s, const char *end)
{
    int32_t cp;
    if (*s == '\r' && s + 1 < end && s[1] == '\n') return 2;
    int n = dq_utf8_next(s, &cp);
    bool yes = (cp >= 0x0a && cp <= 0x0d) || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85 || cp == 0x2028 || cp == 0x2029;
    return yes ? (size_t)n : 0;
}

dq_status dq_jsplit_lines(dq_jrun *r, dq_jtext t, bool keep, dq_jvalue *out)
{
    const char *start = t.data, *at = t.data, *end = t.data + t.size;
    DQ_TRY(dq_jsteps(r, 1 + t.size / 16));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    while (at < end) {
        int32_t cp;
        size_t n = line_end(at, end);
        if (n > 0) {
            DQ_TRY(add_part(r, out->list, start, keep ? at + n : at));
            start = at + n;
        }
        at += n > 0 ? n : (size_t)dq_utf8_next(at, &cp);
    }
    return start < end ? add_part(r, out->list, start, end) : DQ_OK;
}

dq_status dq_jjoin(dq_jrun *r, dq_jtext separator, const dq_jlist *items, bool convert, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_status status = DQ_OK;
    for (size_t i = 0; i < items->count && status == DQ_OK; i++) {
        const dq_jvalue *one = &items->items[i];
        if (!convert && one->kind != DQ_J_STRING)
            status = dq_jfail(r, DQ_E_INVALID, "join: value %zu is of type %s", i, dq_jtype_name(one));
        if (status == DQ_OK && i > 0) status = dq_jput(r, &text, separator.data, separator.size);
        if (status == DQ_OK) status = dq_jput_str(r, &text, one);
    }
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

/* ---- formatting ---- */

static bool is_number(dq_jtext t)
{
    bool yes = t.size > 0 && t.size < 3;
    for (size_t i = 0; i < t.size; i++) yes = yes && t.data[i] >= '0' && t.data[i] <= '9';
    return yes;
}

/* The value that a field of a format names: none, a number, or a name. */
static dq_status field_value(dq_jrun *r, const dq_jargs *args, dq_jtext field, size_t *next, const dq_jvalue **out)
{
    size_t at = args->count;
    if (field.size == 0) {
        at = (*next)++;
    } else if (is_number(field)) {
        at = (size_t)(field.data[0] - '0');
        if (field.size == 2) at = at * 10 + (size_t)(field.data[1] - '0');
    } else {
        for (size_t i = args->places; i < args->count; i++)
            if (dq_jtext_equal(args->names[i], field)) at = i;
        if (at < args->count) {
            *out = &args->items[at];
            return DQ_OK;
        }
        return dq_jfail(r, DQ_E_UNSUPPORTED, "format: the field '{%.*s}' is not supported", DQ_J_SHOW(field));
    }
    if (at >= args->places) return dq_jfail(r, DQ_E_INVALID, "format: there is no value %zu", at);
    *out = &args->items[at];
    return DQ_OK;
}

static dq_status put_format(dq_jrun *r, dq_jtext t, const dq_jargs *args, dq_bytes *text)
{
    size_t next = 0;
    for (size_t at = 0; at < t.size;) {
        char c = t.data[at];
        bool brace = c == '{' || c == '}';
        if (!brace || (at + 1 < t.size && t.data[at + 1] == c)) {
            DQ_TRY(dq_jput(r, text, &c, 1));
            at += brace ? 2 : 1;
            continue;
        }
        const char *end = c == '{' ? memchr(t.data + at, '}', t.size - at) : NULL;
        const dq_jvalue *value = NULL;
        if (!end) return dq_jfail(r, DQ_E_INVALID, "format: a brace stands alone");
        dq_jtext field = dq_jtext_of(t.data + at + 1, (size_t)(end - t.data) - at - 1);
        DQ_TRY(field_value(r, args, field, &next, &value));
        DQ_TRY(dq_jput_str(r, text, value));
        at += field.size + 2;
    }
    return DQ_OK;
}

dq_status dq_jformat(dq_jrun *r, dq_jtext t, const dq_jargs *args, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_status status = dq_jsteps(r, 1 + t.size / 16);
    if (status == DQ_OK) status = put_format(r, t, args, &text);
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}
