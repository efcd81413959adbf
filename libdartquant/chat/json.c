/* tojson: JSON as Python's json.dumps writes it. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "chat/run.h"
#include "text/utf8.h"

static dq_status put_c(dq_jrun *r, dq_bytes *out, const char *text) { return dq_jput(r, out, text, strlen(text)); }

static dq_status put_escape(dq_jrun *r, dq_bytes *out, int32_t cp)
{
    static const char plain[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    char code[16];
    const char *named = cp && cp < 128 ? strchr(plain, cp) : NULL;
    if (named)
        snprintf(code, sizeof code, "\\%c", letters[named - plain]);
    else if (cp < 65536)
        snprintf(code, sizeof code, "\\u%04x", (unsigned)cp);
    else
        snprintf(code, sizeof code, "\\u%04x\\u%04x", 0xd800 + (unsigned)((cp - 65536) >> 10),
                 0xdc00 + (unsigned)((cp - 65536) & 0x3ff));
    return put_c(r, out, code);
}

static dq_status put_string(dq_jrun *r, dq_bytes *out, dq_jtext t, bool ascii)
{
    size_t plain = 0; /* from here on nothing needed an escape */
    DQ_TRY(put_c(r, out, "\""));
    for (size_t at = 0; at < t.size;) {
        int32_t cp;
        int n = dq_utf8_next(t.data + at, &cp);
        if (cp == '"' || cp == '\\' || cp < 0x20 || (ascii && cp > 126)) {
            DQ_TRY(dq_jput(r, out, t.data + plain, at - plain));
            DQ_TRY(cp == 127 ? put_c(r, out, "\x7f") : put_escape(r, out, cp));
            plain = at + (size_t)n;
        }
        at += (size_t)n;
    }
    DQ_TRY(dq_jput(r, out, t.data + plain, t.size - plain));
    return put_c(r, out, "\"");
}

static dq_status put_number(dq_jrun *r, dq_bytes *out, const dq_jvalue *v)
{
    char text[40];
    if (v->kind == DQ_J_FLOAT && !isfinite(v->number))
        return put_c(r, out, isnan(v->number) ? "NaN" : v->number > 0 ? "Infinity" : "-Infinity");
    if (v->kind == DQ_J_FLOAT)
        DQ_TRY(dq_jfloat_text(v->number, text));
    else
        snprintf(text, sizeof text, "%lld", (long long)v->integer);
    return put_c(r, out, text);
}

static dq_status put_break(dq_jrun *r, dq_bytes *out, const dq_jjson *how, int64_t level)
{
    if (how->indent < 0) return DQ_OK;
    DQ_TRY(put_c(r, out, "\n"));
    for (int64_t i = 0; i < how->indent * level; i++) DQ_TRY(put_c(r, out, " "));
    return DQ_OK;
}

static dq_status put_list(dq_jrun *r, dq_bytes *out, const dq_jlist *l, const dq_jjson *how, int64_t level)
{
    if (l->count == 0) return put_c(r, out, "[]");
    DQ_TRY(put_c(r, out, "["));
    for (size_t i = 0; i < l->count; i++) {
        if (i > 0) DQ_TRY(dq_jput(r, out, how->item.data, how->item.size));
        DQ_TRY(put_break(r, out, how, level + 1));
        DQ_TRY(dq_jput_json(r, out, &l->items[i], how, level + 1));
    }
    DQ_TRY(put_break(r, out, how, level));
    return put_c(r, out, "]");
}

/* Keys are strings in JSON; numbers, truths and none become their text. */
static dq_status put_key(dq_jrun *r, dq_bytes *out, const dq_jvalue *key, const dq_jjson *how)
{
    if (key->kind == DQ_J_STRING) return put_string(r, out, key->text, how->ascii);
    DQ_TRY(put_c(r, out, "\""));
    DQ_TRY(dq_jput_json(r, out, key, how, 0));
    return put_c(r, out, "\"");
}

static dq_status put_pairs(dq_jrun *r, dq_bytes *out, const dq_jvalue *keys, const dq_jvalue *values, size_t count,
                           const dq_jjson *how, int64_t level)
{
    DQ_TRY(put_c(r, out, "{"));
    for (size_t i = 0; i < count; i++) {
        if (i > 0) DQ_TRY(dq_jput(r, out, how->item.data, how->item.size));
        DQ_TRY(put_break(r, out, how, level + 1));
        DQ_TRY(put_key(r, out, &keys[i], how));
        DQ_TRY(dq_jput(r, out, how->key.data, how->key.size));
        DQ_TRY(dq_jput_json(r, out, &values[i], how, level + 1));
    }
    DQ_TRY(put_break(r, out, how, level));
    return put_c(r, out, "}");
}

static dq_status put_dict(dq_jrun *r, dq_bytes *out, const dq_jdict *d, const dq_jjson *how, int64_t level)
{
    if (d->count == 0) return put_c(r, out, "{}");
    if (!how->sort) return put_pairs(r, out, d->keys, d->values, d->count, how, level);
    dq_jvalue keys = {0}, values = {0};
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, d->count, &keys));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, d->count, &values));
    memcpy(keys.list->items, d->keys, d->count * sizeof *d->keys);
    memcpy(values.list->items, d->values, d->count * sizeof *d->values);
    DQ_TRY(dq_jsort(r, values.list->items, keys.list->items, d->count, false));
    return put_pairs(r, out, keys.list->items, values.list->items, d->count, how, level);
}

static dq_status put_json(dq_jrun *r, dq_bytes *out, const dq_jvalue *v, const dq_jjson *how, int64_t level)
{
    switch (v->kind) {
        case DQ_J_UNDEFINED: return dq_jfail_undefined(r, v);
        case DQ_J_NONE: return put_c(r, out, "null");
        case DQ_J_BOOL: return put_c(r, out, v->truth ? "true" : "false");
        case DQ_J_INT:
        case DQ_J_FLOAT: return put_number(r, out, v);
        case DQ_J_STRING: return put_string(r, out, v->text, how->ascii);
        case DQ_J_LIST:
        case DQ_J_TUPLE: return put_list(r, out, v->list, how, level);
        case DQ_J_DICT: return put_dict(r, out, v->dict, how, level);
        default: return dq_jfail(r, DQ_E_INVALID, "a value of type %s is no JSON", dq_jtype_name(v));
    }
}

dq_status dq_jput_json(dq_jrun *r, dq_bytes *out, const dq_jvalue *v, const dq_jjson *how, int64_t level)
{
    DQ_TRY(dq_jsteps(r, 1));
    DQ_TRY(dq_jdeeper(r));
    DQ_TRY(put_json(r, out, v, how, level));
    r->depth--;
    return DQ_OK;
}
