/* Decoders of tokenizer.json: from token strings back to text. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "text/parts.h"
#include "text/utf8.h"

static const char mark[] = "\xe2\x96\x81";

static dq_status read_step(const dq_json_at *at, const json_t *json, const char *type, dq_step *step)
{
    const char *text = NULL;
    size_t bytes = 0;
    if (strcmp(type, "ByteLevel") == 0)
        step->kind = DQ_DECODER_BYTELEVEL;
    else if (strcmp(type, "ByteFallback") == 0)
        step->kind = DQ_DECODER_BYTE_FALLBACK;
    else if (strcmp(type, "Fuse") == 0)
        step->kind = DQ_DECODER_FUSE;
    else if (strcmp(type, "Replace") == 0) {
        step->kind = DQ_DECODER_REPLACE;
        DQ_TRY(dq_at_string(at, json, "content", true, &text, &bytes));
        DQ_TRY(dq_step_set_text(at->env, step, text, bytes));
        return dq_at_pattern(at, json, "pattern", &step->pattern);
    } else if (strcmp(type, "Strip") == 0) {
        step->kind = DQ_DECODER_STRIP;
        DQ_TRY(dq_at_string(at, json, "content", true, &text, &bytes));
        DQ_TRY(dq_at_int(at, json, "start", 0, INT32_MAX, &step->start));
        DQ_TRY(dq_at_int(at, json, "stop", 0, INT32_MAX, &step->stop));
        return dq_step_set_text(at->env, step, text, bytes);
    } else if (strcmp(type, "Metaspace") == 0) {
        const char *scheme = NULL;
        bool legacy = true;
        step->kind = DQ_DECODER_METASPACE;
        DQ_TRY(dq_at_string(at, json, "replacement", true, &text, &bytes));
        DQ_TRY(dq_at_bool(at, json, "add_prefix_space", true, &legacy));
        DQ_TRY(dq_at_string(at, json, "prepend_scheme", false, &scheme, NULL));
        step->flag = scheme ? strcmp(scheme, "never") != 0 : legacy; /* marks of the first token vanish */
        return dq_step_set_text(at->env, step, text, bytes);
    } else
        return dq_at_fail(at, DQ_E_UNSUPPORTED, "decoder '%.60s' is not supported", type);
    return DQ_OK;
}

static dq_status add_step(const dq_json_at *at, const json_t *json, const char *type, dq_chain *chain)
{
    dq_step step = {0};
    dq_status status = read_step(at, json, type, &step);
    return dq_chain_take(chain, step, status);
}

dq_status dq_decoders_read(const dq_json_at *at, const json_t *json, dq_chain *chain)
{
    return dq_chain_read(at, json, "decoders", add_step, chain);
}

dq_status dq_decoders_add_bytelevel(dq_chain *chain)
{
    return dq_chain_add(chain, (dq_step){.kind = DQ_DECODER_BYTELEVEL});
}

static dq_status add_with_text(dq_chain *chain, dq_step step, const char *text, size_t bytes)
{
    dq_status status = dq_step_set_text(chain->env, &step, text, bytes);
    return dq_chain_take(chain, step, status);
}

dq_status dq_decoders_add_sentencepiece(dq_chain *chain, bool strip)
{
    dq_step step = {.kind = DQ_DECODER_REPLACE};
    DQ_TRY(dq_pattern_literal(chain->env, mark, 3, &step.pattern));
    DQ_TRY(add_with_text(chain, step, " ", 1));
    DQ_TRY(dq_chain_add(chain, (dq_step){.kind = DQ_DECODER_BYTE_FALLBACK}));
    DQ_TRY(dq_chain_add(chain, (dq_step){.kind = DQ_DECODER_FUSE}));
    return strip ? add_with_text(chain, (dq_step){.kind = DQ_DECODER_STRIP, .start = 1}, " ", 1) : DQ_OK;
}

/* ---- steps: each writes its tokens into a fresh list ---- */

static dq_status whole(size_t from, dq_pieces *out)
{
    return dq_pieces_add(out, from, out->text.size - from, -1, false);
}

static bool token_bytes(const char *s, size_t n, dq_bytes *out)
{
    size_t before = out->size;
    for (size_t i = 0; i < n;) {
        int32_t cp;
        i += (size_t)dq_utf8_next(s + i, &cp);
        int b = dq_bytelevel_byte(cp);
        if (b < 0) {
            out->size = before;
            return false;
        }
        out->data[out->size++] = (char)b; /* never longer than the characters */
    }
    return true;
}

/* All tokens together give bytes; ill-formed ones become U+FFFD. A token with other characters stands for itself. */
static dq_status bytelevel(const dq_pieces *in, dq_pieces *out)
{
    dq_bytes raw = {.env = in->text.env};
    dq_status status = dq_bytes_reserve(&raw, in->text.size);
    for (size_t i = 0; i < in->count && status == DQ_OK; i++) {
        const char *s = in->text.data + in->spans[i].start;
        if (!token_bytes(s, in->spans[i].length, &raw)) status = dq_bytes_add(&raw, s, in->spans[i].length);
    }
    if (status == DQ_OK) status = dq_utf8_add_lossy(&out->text, raw.data, raw.size);
    dq_bytes_clear(&raw);
    return status == DQ_OK ? whole(0, out) : status;
}

static int byte_token(const char *s, size_t n)
{
    static const char digits[] = "0123456789ABCDEFabcdef";
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        const char *d = s[i] ? strchr(digits, s[i]) : NULL;
        if (!d) return -1;
        int v = (int)(d - digits);
        value = value * 16 + (v >= 16 ? v - 6 : v);
    }
    return value;
}

/* A run of byte tokens is text when it is valid UTF-8 as a whole, else one U+FFFD per byte. */
static dq_status byte_fallback(const dq_pieces *in, dq_pieces *out)
{
    for (size_t i = 0; i < in->count;) {
        size_t from = out->text.size;
        const char *s = in->text.data + in->spans[i].start;
        int b = byte_token(s, in->spans[i].length);
        if (b < 0) {
            DQ_TRY(dq_bytes_add(&out->text, s, in->spans[i].length));
            DQ_TRY(whole(from, out));
            i++;
            continue;
        }
        size_t run = 0;
        for (; i < in->count; i++, run++) {
            b = byte_token(in->text.data + in->spans[i].start, in->spans[i].length);
            if (b < 0) break;
            char c = (char)b;
            DQ_TRY(dq_bytes_add(&out->text, &c, 1));
        }
        if (dq_utf8_valid_prefix(out->text.data + from, run) != run) {
            out->text.size = from;
            for (size_t k = 0; k < run; k++) DQ_TRY(dq_bytes_add(&out->text, "\xef\xbf\xbd", 3));
        }
        DQ_TRY(whole(from, out));
    }
    return DQ_OK;
}

static dq_status replace(const dq_step *step, const dq_pieces *in, dq_pieces *out)
{
    dq_matcher m;
    DQ_TRY(dq_matcher_open(&m, step->pattern));
    dq_status status = DQ_OK;
    for (size_t i = 0; i < in->count; i++) {
        const char *s = in->text.data + in->spans[i].start;
        size_t from = out->text.size, done_to = 0, start, end;
        bool found;
        dq_matcher_start(&m, s, in->spans[i].length);
        for (;;) {
            DQ_GO(dq_matcher_next(&m, &start, &end, &found));
            if (!found) break;
            DQ_GO(dq_bytes_add(&out->text, s + done_to, start - done_to));
            DQ_GO(dq_bytes_add(&out->text, step->text, step->bytes));
            done_to = end;
        }
        DQ_GO(dq_bytes_add(&out->text, s + done_to, in->spans[i].length - done_to));
        DQ_GO(whole(from, out));
    }
done:
    dq_matcher_close(&m);
    return status;
}

static dq_status strip(const dq_step *step, const dq_pieces *in, dq_pieces *out)
{
    for (size_t i = 0; i < in->count; i++) {
        const char *s = in->text.data + in->spans[i].start;
        size_t n = in->spans[i].length, b = step->bytes, from = out->text.size;
        if (b == 0) b = SIZE_MAX;
        for (int64_t k = 0; k < step->start && n >= b && memcmp(s, step->text, b) == 0; k++) s += b, n -= b;
        for (int64_t k = 0; k < step->stop && n >= b && memcmp(s + n - b, step->text, b) == 0; k++) n -= b;
        DQ_TRY(dq_bytes_add(&out->text, s, n));
        DQ_TRY(whole(from, out));
    }
    return DQ_OK;
}

static dq_status metaspace(const dq_step *step, const dq_pieces *in, dq_pieces *out)
{
    for (size_t i = 0; i < in->count; i++) {
        const char *s = in->text.data + in->spans[i].start;
        size_t from = out->text.size;
        for (size_t k = 0; k < in->spans[i].length;) {
            int32_t cp;
            size_t n = (size_t)dq_utf8_next(s + k, &cp);
            bool is_mark = n == step->bytes && memcmp(s + k, step->text, n) == 0;
            if (!is_mark)
                DQ_TRY(dq_bytes_add(&out->text, s + k, n));
            else if (i > 0 || !step->flag)
                DQ_TRY(dq_bytes_add(&out->text, " ", 1));
            k += n;
        }
        DQ_TRY(whole(from, out));
    }
    return DQ_OK;
}

static dq_status fuse(const dq_pieces *in, dq_pieces *out)
{
    for (size_t i = 0; i < in->count; i++)
        DQ_TRY(dq_bytes_add(&out->text, in->text.data + in->spans[i].start, in->spans[i].length));
    return whole(0, out);
}

dq_status dq_decode(const dq_chain *chain, dq_pieces *tokens)
{
    for (size_t i = 0; i < chain->count; i++) {
        const dq_step *step = &chain->steps[i];
        dq_pieces out;
        dq_status status = DQ_E_INTERNAL;
        dq_pieces_init(&out, tokens->text.env);
        switch (step->kind) {
            case DQ_DECODER_BYTELEVEL: status = bytelevel(tokens, &out); break;
            case DQ_DECODER_METASPACE: status = metaspace(step, tokens, &out); break;
            case DQ_DECODER_REPLACE: status = replace(step, tokens, &out); break;
            case DQ_DECODER_BYTE_FALLBACK: status = byte_fallback(tokens, &out); break;
            case DQ_DECODER_FUSE: status = fuse(tokens, &out); break;
            case DQ_DECODER_STRIP: status = strip(step, tokens, &out); break;
        }
        if (status != DQ_OK) {
            dq_pieces_clear(&out);
            return status;
        }
        dq_pieces_clear(tokens);
        *tokens = out;
    }
    return DQ_OK;
}
