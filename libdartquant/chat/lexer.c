/* Cutting a template into tags and text: whitespace control with trim_blocks and lstrip_blocks (Jinja 3.1, lexer.py).
 * SPDX-License-Identifier: Apache-2.0 */
#include "chat/lexer.h"

#include <string.h>

#include "base/status.h"
#include "chat/lexer_parts.h"

dq_status dq_jlex_fail(const dq_jlexer *x, const char *what)
{
    return dq_fail(DQ_E_FORMAT, "chat template, line %u: %s", x->line, what);
}

dq_status dq_jlex_add(dq_jlexer *x, dq_jtoken token)
{
    dq_jtokens *t = x->out;
    if (t->count == t->capacity) {
        size_t more = t->capacity ? 2 * t->capacity : 256;
        void *items = NULL;
        DQ_TRY(dq_jarena_take(x->arena, more * sizeof *t->items, &items));
        if (t->count) memcpy(items, t->items, t->count * sizeof *t->items);
        t->items = items;
        t->capacity = more;
    }
    token.line = x->line;
    t->items[t->count++] = token;
    return DQ_OK;
}

/* Steps to `end` and counts the lines passed. */
void dq_jlex_advance(dq_jlexer *x, const char *end)
{
    for (; x->at < end; x->at++) x->line += *x->at == '\n';
}

bool dq_jlex_starts(const dq_jlexer *x, const char *at, const char *word)
{
    size_t n = strlen(word);
    return (size_t)(x->end - at) >= n && memcmp(at, word, n) == 0;
}

static const char *skip_space(const dq_jlexer *x, const char *at)
{
    for (size_t n; (n = dq_jspace_at(at, (size_t)(x->end - at))) > 0;) at += n;
    return at;
}

/* Where the text before a tag ends, and with it what the tag's sign or lstrip_blocks takes off. */
static const char *strip_before(const dq_jlexer *x, const char *start, const char *tag, char sign, bool variable)
{
    const char *end = tag;
    if (sign == '-') {
        for (size_t n; (n = dq_jspace_before(start, (size_t)(end - start))) > 0;) end -= n;
        return end;
    }
    if (sign == '+' || variable) return tag;
    while (end > start && end[-1] != '\n') end--;
    if (end == start && !x->line_starting) return tag; /* the line began with another tag */
    const char *at = end;
    for (size_t n; at < tag && (n = dq_jspace_at(at, (size_t)(tag - at))) > 0;) at += n;
    return at == tag ? end : tag;
}

static dq_status add_data(dq_jlexer *x, const char *start, const char *end)
{
    if (end == start) return DQ_OK;
    return dq_jlex_add(x, (dq_jtoken){.kind = DQ_JT_DATA, .text = dq_jtext_of(start, (size_t)(end - start))});
}

/* Behind a tag that ends at `end`: '-' takes all white space, else a line break goes where `trim`. */
static void leave_tag(dq_jlexer *x, const char *end, char sign, bool trim)
{
    if (sign == '-')
        end = skip_space(x, end);
    else if (trim && sign != '+' && end < x->end && *end == '\n')
        end++;
    x->line_starting = end[-1] == '\n';
    dq_jlex_advance(x, end);
}

/* "-%}", "+%}" or "%}" at `at`: the place behind it and the sign; NULL = not there. */
static const char *closing(const dq_jlexer *x, const char *at, const char *mark, char *sign)
{
    *sign = at < x->end && (*at == '-' || *at == '+') ? *at : 0;
    if (*sign) at++;
    return dq_jlex_starts(x, at, mark) ? at + 2 : NULL;
}

static dq_status skip_comment(dq_jlexer *x, const char *inside)
{
    for (const char *at = inside; at + 1 < x->end; at++) {
        if (at[0] != '#' || at[1] != '}') continue;
        char sign = at > inside && (at[-1] == '-' || at[-1] == '+') ? at[-1] : 0;
        leave_tag(x, at + 2, sign, true);
        return DQ_OK;
    }
    return dq_jlex_fail(x, "a comment is not closed");
}

/* Behind "{%" and its sign: whether the tag is just `word`; then *after is its closing mark. */
static bool lone_word(const dq_jlexer *x, const char *at, const char *word, const char **after)
{
    at = skip_space(x, at);
    if (!dq_jlex_starts(x, at, word)) return false;
    *after = skip_space(x, at + strlen(word));
    return true;
}

/* {% raw %} ... {% endraw %}: `body` is where the text begins. */
static dq_status take_raw(dq_jlexer *x, const char *body)
{
    for (const char *at = body; at + 1 < x->end; at++) {
        const char *after, *end;
        char before = 0, sign = 0;
        if (at[0] != '{' || at[1] != '%') continue;
        if (at + 2 < x->end && (at[2] == '-' || at[2] == '+')) before = at[2];
        if (!lone_word(x, at + 2 + (before != 0), "endraw", &after)) continue;
        if (!(end = closing(x, after, "%}", &sign))) continue;
        dq_jlex_advance(x, body);
        x->line_starting = body[-1] == '\n';
        DQ_TRY(add_data(x, body, strip_before(x, body, at, before, false)));
        leave_tag(x, end, sign, true);
        return DQ_OK;
    }
    return dq_jlex_fail(x, "{% raw %} is not closed");
}

/* The words of one tag, up to its closing mark where no bracket is open. */
static dq_status take_tag(dq_jlexer *x, bool variable)
{
    const char *mark = variable ? "}}" : "%}";
    dq_jtoken_kind closed = variable ? DQ_JT_PRINT_END : DQ_JT_BLOCK_END;
    x->open = 0;
    for (;;) {
        char sign = 0;
        dq_jlex_advance(x, skip_space(x, x->at));
        if (x->at == x->end) return dq_jlex_fail(x, variable ? "{{ is not closed" : "{% is not closed");
        const char *end = x->open == 0 ? closing(x, x->at, mark, &sign) : NULL;
        if (end && !(variable && sign == '+')) {
            DQ_TRY(dq_jlex_add(x, (dq_jtoken){.kind = closed}));
            leave_tag(x, end, sign, !variable);
            return DQ_OK;
        }
        DQ_TRY(dq_jlex_word(x));
    }
}

static const char *find_tag(const dq_jlexer *x)
{
    for (const char *at = x->at; at + 1 < x->end; at++)
        if (at[0] == '{' && (at[1] == '{' || at[1] == '%' || at[1] == '#')) return at;
    return NULL;
}

static dq_status take_next(dq_jlexer *x)
{
    const char *tag = find_tag(x), *after;
    if (!tag) {
        DQ_TRY(add_data(x, x->at, x->end));
        dq_jlex_advance(x, x->end);
        return DQ_OK;
    }
    char sign = tag + 2 < x->end && (tag[2] == '-' || tag[2] == '+') ? tag[2] : 0;
    bool variable = tag[1] == '{';
    DQ_TRY(add_data(x, x->at, strip_before(x, x->at, tag, sign, variable)));
    dq_jlex_advance(x, tag);
    const char *inside = tag + 2 + (sign != 0), *end;
    if (tag[1] == '#') return skip_comment(x, inside);
    char behind = 0;
    if (!variable && lone_word(x, inside, "raw", &after) && (end = closing(x, after, "%}", &behind)) && behind != '+')
        return take_raw(x, behind == '-' ? skip_space(x, end) : end);
    DQ_TRY(dq_jlex_add(x, (dq_jtoken){.kind = variable ? DQ_JT_PRINT_BEGIN : DQ_JT_BLOCK_BEGIN}));
    dq_jlex_advance(x, inside);
    return take_tag(x, variable);
}

/* Line ends become \n, and one at the very end goes. */
static dq_status normal_lines(dq_jarena *arena, const char *text, size_t bytes, dq_jtext *out)
{
    void *memory = NULL;
    size_t n = 0;
    DQ_TRY(dq_jarena_take(arena, bytes, &memory));
    char *copy = memory;
    for (size_t i = 0; i < bytes; i++) {
        if (text[i] == '\r' && i + 1 < bytes && text[i + 1] == '\n') continue;
        copy[n++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (n && copy[n - 1] == '\n') n--;
    *out = dq_jtext_of(copy, n);
    return DQ_OK;
}

dq_status dq_jlex(dq_jarena *arena, const char *text, size_t bytes, dq_jtokens *out)
{
    dq_jtext clean = {0};
    DQ_TRY(normal_lines(arena, text, bytes, &clean));
    dq_jlexer x = {
        .arena = arena, .out = out, .at = clean.data, .end = clean.data + clean.size, .line = 1, .line_starting = true};
    *out = (dq_jtokens){0};
    while (x.at < x.end) DQ_TRY(take_next(&x));
    return dq_jlex_add(&x, (dq_jtoken){.kind = DQ_JT_END});
}
