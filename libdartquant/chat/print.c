/* Values as text: Python's str() and repr(). SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/number.h"
#include "base/status.h"
#include "chat/run.h"
#include "text/utf8.h"

dq_status dq_jput(dq_jrun *r, dq_bytes *out, const char *data, size_t size)
{
    DQ_TRY(dq_jarena_charge(&r->arena, size));
    DQ_TRY(dq_jsteps(r, size / 64));
    return dq_bytes_add(out, data, size);
}

dq_status dq_jtake_bytes(dq_jrun *r, dq_bytes *b, dq_jvalue *out)
{
    dq_jtext text = {0};
    dq_status status = dq_jtext_copy(&r->arena, b->data, b->size, &text);
    dq_bytes_clear(b);
    if (status == DQ_OK) *out = dq_jstring(text);
    return status;
}

/* The fewest digits that give the number back; exponents below -4 and from 16 on (CPython's float_repr_style "short"). */
dq_status dq_jfloat_text(double d, char out[40])
{
    char digits[40] = "", *end;
    int precision = 1;
    if (!isfinite(d)) {
        strcpy(out, isnan(d) ? "nan" : d > 0 ? "inf" : "-inf");
        return DQ_OK;
    }
    for (; precision <= 17; precision++) {
        double back;
        snprintf(digits, sizeof digits, "%.*e", precision - 1, d);
        dq_number_point(digits);
        DQ_TRY(dq_number_read(digits, &end, &back));
        if (back == d) break;
    }
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int places = precision - 1 - exponent;
        snprintf(out, 40, "%.*f", places > 0 ? places : 1, d);
        dq_number_point(out);
        return DQ_OK;
    }
    char *e = strchr(digits, 'e');
    snprintf(out, 40, "%.*se%c%02d", (int)(e - digits), digits, exponent < 0 ? '-' : '+', abs(exponent));
    return DQ_OK;
}

/* ---- repr ---- */

static bool is_printable(int32_t cp)
{
    switch (utf8proc_category(cp)) {
        case UTF8PROC_CATEGORY_CN:
        case UTF8PROC_CATEGORY_CC:
        case UTF8PROC_CATEGORY_CF:
        case UTF8PROC_CATEGORY_CS:
        case UTF8PROC_CATEGORY_CO:
        case UTF8PROC_CATEGORY_ZL:
        case UTF8PROC_CATEGORY_ZP: return false;
        case UTF8PROC_CATEGORY_ZS: return cp == ' ';
        default: return true;
    }
}

static dq_status put_quoted(dq_jrun *r, dq_bytes *out, dq_jtext t)
{
    bool single = t.size && memchr(t.data, '\'', t.size), twice = t.size && memchr(t.data, '"', t.size);
    char quote = single && !twice ? '"' : '\'', code[12];
    DQ_TRY(dq_jput(r, out, &quote, 1));
    for (size_t at = 0; at < t.size;) {
        int32_t cp;
        int n = dq_utf8_next(t.data + at, &cp), size = n;
        const char *text = t.data + at, *named = cp < 128 && cp ? strchr("\n\r\t\\", cp) : NULL;
        if (named || cp == quote)
            size = snprintf(code, sizeof code, "\\%c", named ? "nrt\\"[named - "\n\r\t\\"] : quote);
        else if (!is_printable(cp))
            size = snprintf(code, sizeof code, cp < 256 ? "\\x%02x" : cp < 65536 ? "\\u%04x" : "\\U%08x", (unsigned)cp);
        else
            code[0] = '\0';
        DQ_TRY(dq_jput(r, out, code[0] ? code : text, (size_t)size));
        at += (size_t)n;
    }
    return dq_jput(r, out, &quote, 1);
}

static dq_status put_c(dq_jrun *r, dq_bytes *out, const char *text) { return dq_jput(r, out, text, strlen(text)); }

static dq_status put_list(dq_jrun *r, dq_bytes *out, const dq_jvalue *v)
{
    bool list = v->kind == DQ_J_LIST;
    DQ_TRY(put_c(r, out, list ? "[" : "("));
    for (size_t i = 0; i < v->list->count; i++) {
        if (i > 0) DQ_TRY(put_c(r, out, ", "));
        DQ_TRY(dq_jput_repr(r, out, &v->list->items[i]));
    }
    return put_c(r, out, list ? "]" : v->list->count == 1 ? ",)" : ")");
}

static dq_status put_dict(dq_jrun *r, dq_bytes *out, const dq_jdict *d)
{
    DQ_TRY(put_c(r, out, "{"));
    for (size_t i = 0; i < d->count; i++) {
        if (i > 0) DQ_TRY(put_c(r, out, ", "));
        DQ_TRY(dq_jput_repr(r, out, &d->keys[i]));
        DQ_TRY(put_c(r, out, ": "));
        DQ_TRY(dq_jput_repr(r, out, &d->values[i]));
    }
    return put_c(r, out, "}");
}

static dq_status put_number(dq_jrun *r, dq_bytes *out, const dq_jvalue *v)
{
    char text[40];
    if (v->kind == DQ_J_FLOAT)
        DQ_TRY(dq_jfloat_text(v->number, text));
    else
        snprintf(text, sizeof text, "%lld", (long long)v->integer);
    return put_c(r, out, text);
}

static dq_status put_repr(dq_jrun *r, dq_bytes *out, const dq_jvalue *v)
{
    switch (v->kind) {
        case DQ_J_UNDEFINED: return put_c(r, out, "Undefined");
        case DQ_J_NONE: return put_c(r, out, "None");
        case DQ_J_BOOL: return put_c(r, out, v->truth ? "True" : "False");
        case DQ_J_INT:
        case DQ_J_FLOAT: return put_number(r, out, v);
        case DQ_J_STRING: return put_quoted(r, out, v->text);
        case DQ_J_LIST:
        case DQ_J_TUPLE: return put_list(r, out, v);
        case DQ_J_DICT: return put_dict(r, out, v->dict);
        default: return dq_jfail(r, DQ_E_UNSUPPORTED, "a value of type %s as text is not supported", dq_jtype_name(v));
    }
}

dq_status dq_jput_repr(dq_jrun *r, dq_bytes *out, const dq_jvalue *v)
{
    DQ_TRY(dq_jsteps(r, 1));
    DQ_TRY(dq_jdeeper(r));
    DQ_TRY(put_repr(r, out, v));
    r->depth--;
    return DQ_OK;
}

dq_status dq_jput_str(dq_jrun *r, dq_bytes *out, const dq_jvalue *v)
{
    if (v->kind == DQ_J_UNDEFINED) return DQ_OK;
    return v->kind == DQ_J_STRING ? dq_jput(r, out, v->text.data, v->text.size) : dq_jput_repr(r, out, v);
}

dq_status dq_jto_text(dq_jrun *r, const dq_jvalue *v, dq_jtext *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_jvalue made = *v;
    dq_status status = DQ_OK;
    if (v->kind != DQ_J_STRING) {
        status = dq_jput_str(r, &text, v);
        if (status == DQ_OK) status = dq_jtake_bytes(r, &text, &made);
        dq_bytes_clear(&text);
    }
    if (status == DQ_OK) *out = made.text;
    return status;
}
