/* Normalizers of tokenizer.json; Unicode forms through utf8proc. SPDX-License-Identifier: Apache-2.0 */
#include <utf8proc.h>

#include "base/status.h"
#include "text/parts.h"
#include "text/utf8.h"

enum { NFC, NFD, NFKC, NFKD, PREPEND, REPLACE, LOWERCASE, STRIP, STRIP_ACCENTS, BYTE_LEVEL, KINDS };
static const char *const names[KINDS] = {"NFC",     "NFD",       "NFKC",  "NFKD",         "Prepend",
                                         "Replace", "Lowercase", "Strip", "StripAccents", "ByteLevel"};

static dq_status read_step(const dq_json_at *at, const json_t *json, int kind, dq_step *step)
{
    const char *text = NULL;
    size_t bytes = 0;
    step->kind = kind;
    if (kind == PREPEND) {
        DQ_TRY(dq_at_string(at, json, "prepend", true, &text, &bytes));
        return dq_step_set_text(at->env, step, text, bytes);
    }
    if (kind == REPLACE) {
        DQ_TRY(dq_at_string(at, json, "content", true, &text, &bytes));
        DQ_TRY(dq_step_set_text(at->env, step, text, bytes));
        return dq_at_pattern(at, json, "pattern", &step->pattern);
    }
    if (kind == STRIP) {
        DQ_TRY(dq_at_bool(at, json, "strip_left", true, &step->flag));
        return dq_at_bool(at, json, "strip_right", true, &step->flag2);
    }
    return DQ_OK;
}

static dq_status add_step(const dq_json_at *at, const json_t *json, const char *type, dq_chain *chain)
{
    int kind = 0;
    while (kind < KINDS && strcmp(type, names[kind]) != 0) kind++;
    if (kind == KINDS) return dq_at_fail(at, DQ_E_UNSUPPORTED, "normalizer '%.60s' is not supported", type);
    dq_step step = {0};
    dq_status status = read_step(at, json, kind, &step);
    return dq_chain_take(chain, step, status);
}

dq_status dq_normalizers_read(const dq_json_at *at, const json_t *json, dq_chain *chain)
{
    return dq_chain_read(at, json, "normalizers", add_step, chain);
}

dq_status dq_normalizers_metaspace(dq_chain *chain, bool prefix)
{
    static const char mark[] = "\xe2\x96\x81";
    if (prefix) {
        dq_step step = {.kind = PREPEND};
        DQ_TRY(dq_step_set_text(chain->env, &step, mark, 3));
        DQ_TRY(dq_chain_add(chain, step));
    }
    dq_step step = {.kind = REPLACE};
    dq_status status = dq_step_set_text(chain->env, &step, mark, 3);
    if (status == DQ_OK) status = dq_pattern_literal(chain->env, " ", 1, &step.pattern);
    return dq_chain_take(chain, step, status);
}

static bool is_ascii(const dq_bytes *text)
{
    for (size_t i = 0; i < text->size; i++)
        if ((unsigned char)text->data[i] >= 0x80) return false;
    return true;
}

static dq_status unicode_form(int kind, dq_bytes *text)
{
    if (is_ascii(text)) return DQ_OK;
    utf8proc_option_t options = UTF8PROC_STABLE;
    options |= kind == NFC || kind == NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (kind == NFKC || kind == NFKD) options |= UTF8PROC_COMPAT;
    const utf8proc_uint8_t *in = (const utf8proc_uint8_t *)text->data;
    utf8proc_ssize_t n = utf8proc_decompose(in, (utf8proc_ssize_t)text->size, NULL, 0, options);
    if (n < 0) return dq_fail(DQ_E_TEXT, "Unicode normalization: %s", utf8proc_errmsg(n));
    size_t bytes;
    if (!dq_mul_ok((size_t)n + 1, sizeof(utf8proc_int32_t), &bytes)) return dq_fail(DQ_E_NOMEM, "text too long");
    utf8proc_int32_t *points = dq_alloc(text->env, bytes);
    if (!points) return DQ_E_NOMEM;
    n = utf8proc_decompose(in, (utf8proc_ssize_t)text->size, points, n, options);
    if (n >= 0) n = utf8proc_reencode(points, n, options);
    dq_status status = n < 0 ? dq_fail(DQ_E_TEXT, "Unicode normalization: %s", utf8proc_errmsg(n)) : DQ_OK;
    if (status == DQ_OK) {
        text->size = 0;
        status = dq_bytes_add(text, points, (size_t)n);
    }
    dq_free(points);
    return status;
}

/* No writing system needs more (a ligature of Arabic becomes 18 letters); a file that lies could ask for any amount. */
enum { MOST_GROWTH = 64, FREE_GROWTH = 1 << 16 };

static dq_status check_growth(const dq_bytes *out, size_t limit)
{
    if (out->size <= limit) return DQ_OK;
    return dq_fail(DQ_E_TEXT, "the tokenizer's normalizer makes more than %zu bytes of %zu", limit,
                   (limit - FREE_GROWTH) / MOST_GROWTH);
}

static dq_status replace(const dq_step *step, const dq_bytes *in, size_t limit, dq_bytes *out)
{
    dq_matcher m;
    DQ_TRY(dq_matcher_open(&m, step->pattern));
    dq_matcher_start(&m, in->data, in->size);
    size_t from = 0, start, end;
    bool found;
    dq_status status;
    for (;;) {
        DQ_GO(dq_matcher_next(&m, &start, &end, &found));
        if (!found) break;
        DQ_GO(dq_bytes_add(out, in->data + from, start - from));
        DQ_GO(dq_bytes_add(out, step->text, step->bytes));
        DQ_GO(check_growth(out, limit));
        from = end;
    }
    DQ_GO(dq_bytes_add(out, in->data + from, in->size - from));
done:
    dq_matcher_close(&m);
    return status;
}

static dq_status strip(const dq_step *step, const dq_bytes *in, dq_bytes *out)
{
    size_t start = 0, end = in->size;
    int32_t cp;
    while (step->flag && start < end) {
        int n = dq_utf8_next(in->data + start, &cp);
        if (!dq_char_is_space(cp)) break;
        start += (size_t)n;
    }
    while (step->flag2 && end > start) {
        int n = dq_utf8_previous(in->data, end, &cp);
        if (!dq_char_is_space(cp)) break;
        end -= (size_t)n;
    }
    return dq_bytes_add(out, in->data + start, end - start);
}

/* Steps that look at one character at a time. */
static dq_status by_character(int kind, const dq_bytes *in, dq_bytes *out)
{
    DQ_TRY(dq_bytes_reserve(out, in->size));
    for (size_t i = 0; i < in->size;) {
        int32_t cp;
        int n = dq_utf8_next(in->data + i, &cp);
        char text[8];
        if (kind == STRIP_ACCENTS) {
            if (!dq_char_is_mark(cp)) DQ_TRY(dq_bytes_add(out, in->data + i, (size_t)n));
        } else if (kind == BYTE_LEVEL) {
            for (int k = 0; k < n; k++) {
                int m = dq_bytelevel_char((unsigned char)in->data[i + (size_t)k], text);
                DQ_TRY(dq_bytes_add(out, text, (size_t)m));
            }
        } else if (cp == 0x130) { /* the only character whose full lower case is longer: i, dot above */
            DQ_TRY(dq_bytes_add(out, "i\xcc\x87", 3));
        } else {
            int m = dq_utf8_write(text, utf8proc_tolower(cp));
            DQ_TRY(dq_bytes_add(out, text, (size_t)m));
        }
        i += (size_t)n;
    }
    return DQ_OK;
}

dq_status dq_normalize(const dq_chain *chain, dq_bytes *text)
{
    size_t limit =
        text->size < (SIZE_MAX - FREE_GROWTH) / MOST_GROWTH ? text->size * MOST_GROWTH + FREE_GROWTH : SIZE_MAX;
    for (size_t i = 0; i < chain->count; i++) {
        const dq_step *step = &chain->steps[i];
        if (text->size == 0) return DQ_OK;
        if (step->kind <= NFKD) {
            DQ_TRY(unicode_form(step->kind, text));
            continue;
        }
        dq_bytes out = {.env = text->env};
        dq_status status;
        if (step->kind == PREPEND) {
            status = dq_bytes_add(&out, step->text, step->bytes);
            if (status == DQ_OK) status = dq_bytes_add(&out, text->data, text->size);
        } else if (step->kind == REPLACE)
            status = replace(step, text, limit, &out);
        else if (step->kind == STRIP)
            status = strip(step, text, &out);
        else
            status = by_character(step->kind, text, &out);
        if (status == DQ_OK) status = check_growth(&out, limit);
        if (status != DQ_OK) {
            dq_bytes_clear(&out);
            return status;
        }
        dq_bytes_clear(text);
        *text = out;
    }
    return DQ_OK;
}
