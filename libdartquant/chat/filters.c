/* Filters of one value, and how filters are found. SPDX-License-Identifier: Apache-2.0 */
#include "chat/filters.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "base/number.h"
#include "base/status.h"

/* ---- texts: other values are taken as their text, as Jinja does ---- */

static dq_status cased(dq_jrun *r, const dq_jvalue *in, int how, dq_jvalue *out)
{
    dq_jtext t = {0};
    DQ_TRY(dq_jto_text(r, in, &t));
    return dq_jcase(r, t, how, out);
}
static dq_status f_lower(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    return cased(r, c->in, DQ_J_LOWER, out);
}
static dq_status f_upper(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    return cased(r, c->in, DQ_J_UPPER, out);
}
static dq_status f_capitalize(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    return cased(r, c->in, DQ_J_CAPITALIZE, out);
}

static dq_status f_trim(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jtext t = {0};
    const dq_jvalue *chars = c->slots[0] && c->slots[0]->kind != DQ_J_NONE ? c->slots[0] : NULL;
    DQ_TRY(dq_jto_text(r, c->in, &t));
    return dq_jstrip(r, t, chars, true, true, out);
}

static dq_status f_string(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jtext t = {0};
    DQ_TRY(dq_jto_text(r, c->in, &t));
    *out = dq_jstring(t);
    return DQ_OK;
}

static dq_status f_safe(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    DQ_TRY(f_string(r, c, out));
    out->safe = true;
    return DQ_OK;
}

static dq_status f_replace(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jtext t = {0}, old = {0}, new = {0};
    int64_t most = -1;
    DQ_TRY(dq_jto_text(r, c->in, &t));
    DQ_TRY(dq_jwant_string(r, "what is replaced", c->slots[0], &old));
    DQ_TRY(dq_jwant_string(r, "what it is replaced by", c->slots[1], &new));
    if (c->slots[2] && c->slots[2]->kind != DQ_J_NONE)
        DQ_TRY(dq_jwant_int(r, "the number of replacements", c->slots[2], &most));
    return dq_jreplace(r, t, old, new, most, out);
}

/* Every line but the first, and but empty ones, gets blanks in front. */
static dq_status put_indented(dq_jrun *r, const dq_jlist *lines, dq_jtext pad, bool first, bool blank, dq_bytes *text)
{
    for (size_t i = 0; i < lines->count; i++) {
        dq_jtext line = lines->items[i].text;
        if (i > 0) DQ_TRY(dq_jput(r, text, "\n", 1));
        if ((i > 0 || first) && (line.size > 0 || blank || i == 0)) DQ_TRY(dq_jput(r, text, pad.data, pad.size));
        DQ_TRY(dq_jput(r, text, line.data, line.size));
    }
    return DQ_OK;
}

static dq_status f_indent(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_jvalue pad = dq_jstring(dq_jtext_c("    ")), blank = dq_jstring(dq_jtext_c(" ")), lines = {0};
    dq_jtext t = {0}, ends = {0};
    DQ_TRY(dq_jto_text(r, c->in, &t));
    if (c->slots[0] && c->slots[0]->kind == DQ_J_STRING)
        pad = *c->slots[0];
    else if (c->slots[0])
        DQ_TRY(dq_jbinary(r, DQ_JO_MUL, &blank, c->slots[0], &pad));
    if (t.size > 0 && t.data[t.size - 1] == '\n') ends = dq_jtext_c(""); /* the last line is empty then */
    DQ_TRY(dq_jsplit_lines(r, t, false, &lines));
    if (ends.data) DQ_TRY(dq_jlist_add(&r->arena, lines.list, dq_jstring(ends)));
    dq_status status = put_indented(r, lines.list, pad.text, c->slots[1] && dq_jtruth(c->slots[1]),
                                    c->slots[2] && dq_jtruth(c->slots[2]), &text);
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

static dq_status separators(dq_jrun *r, const dq_jvalue *v, dq_jjson *how)
{
    if (!dq_jis_list(v) || v->list->count != 2) return dq_jfail(r, DQ_E_INVALID, "tojson: separators are two strings");
    DQ_TRY(dq_jwant_string(r, "a separator of tojson", &v->list->items[0], &how->item));
    return dq_jwant_string(r, "a separator of tojson", &v->list->items[1], &how->key);
}

/* transformers' form of it: names of arguments as json.dumps, nothing escaped for HTML. */
static dq_status f_tojson(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_jjson how = {.indent = -1, .item = dq_jtext_c(", "), .key = dq_jtext_c(": ")};
    const dq_jvalue *const *s = c->slots;
    how.ascii = s[0] && dq_jtruth(s[0]);
    how.sort = s[3] && dq_jtruth(s[3]);
    if (s[1] && s[1]->kind != DQ_J_NONE) {
        DQ_TRY(dq_jwant_int(r, "the indent of tojson", s[1], &how.indent));
        if (how.indent < 0 || how.indent > 100)
            return dq_jfail(r, DQ_E_INVALID, "tojson: indent %lld", (long long)how.indent);
        how.item = dq_jtext_c(",");
    }
    if (s[2] && s[2]->kind != DQ_J_NONE) DQ_TRY(separators(r, s[2], &how));
    dq_status status = dq_jput_json(r, &text, c->in, &how, 0);
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

/* ---- numbers ---- */

/* The number that the whole of a text is, as Python's float() reads it; false where it is none. */
static dq_status text_number(dq_jtext t, double *out, bool *is_number)
{
    char text[64], *end = text;
    *is_number = false;
    if (t.size == 0 || t.size >= sizeof text) return DQ_OK;
    memcpy(text, t.data, t.size);
    text[t.size] = '\0';
    DQ_TRY(dq_number_read(text, &end, out));
    *is_number = end == text + t.size;
    return DQ_OK;
}

/* The same for int() of digits, which a double may not hold. */
static bool text_whole(dq_jtext t, int64_t *out)
{
    char text[64], *end;
    if (t.size == 0 || t.size >= sizeof text) return false;
    memcpy(text, t.data, t.size);
    text[t.size] = '\0';
    errno = 0;
    *out = strtoll(text, &end, 10);
    return end == text + t.size && errno == 0;
}

static dq_status f_int(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    const dq_jvalue *in = c->in;
    double d = NAN;
    int64_t whole;
    bool given = in->kind == DQ_J_FLOAT;
    if (in->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, in);
    *out = c->slots[0] ? *c->slots[0] : dq_jint(0);
    if (dq_jis_whole(in))
        *out = dq_jint(dq_jwhole(in));
    else if (in->kind == DQ_J_STRING && text_whole(in->text, &whole))
        *out = dq_jint(whole);
    else if (in->kind == DQ_J_STRING)
        DQ_TRY(text_number(in->text, &d, &given));
    else if (given)
        d = in->number;
    if (given && isfinite(d) && fabs(d) < 0x1p62) *out = dq_jint((int64_t)d);
    return DQ_OK;
}

static dq_status f_float(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    const dq_jvalue *in = c->in;
    bool given = dq_jis_number(in);
    double d = given ? dq_jnumber(in) : 0;
    if (in->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, in);
    if (in->kind == DQ_J_STRING) DQ_TRY(text_number(in->text, &d, &given));
    *out = given ? dq_jfloat(d) : c->slots[0] ? *c->slots[0] : dq_jfloat(0);
    return DQ_OK;
}

static dq_status f_abs(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    const dq_jvalue zero = dq_jint(0);
    if (!dq_jis_number(c->in)) return dq_jfail(r, DQ_E_INVALID, "abs of a value of type %s", dq_jtype_name(c->in));
    *out = c->in->kind == DQ_J_FLOAT ? dq_jfloat(fabs(c->in->number)) : dq_jint(dq_jwhole(c->in));
    return out->kind == DQ_J_INT && out->integer < 0 ? dq_jbinary(r, DQ_JO_SUB, &zero, c->in, out) : DQ_OK;
}

/* ---- all kinds ---- */

static dq_status f_default(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    (void)r;
    bool falsy = c->slots[1] && dq_jtruth(c->slots[1]) && !dq_jtruth(c->in);
    if (c->in->kind != DQ_J_UNDEFINED && !falsy)
        *out = *c->in;
    else
        *out = c->slots[0] ? *c->slots[0] : dq_jstring(dq_jtext_c(""));
    return DQ_OK;
}

static dq_status f_attr(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jtext name = {0};
    DQ_TRY(dq_jwant_string(r, "the name for attr", c->slots[0], &name));
    return dq_jattribute(r, c->in, name, out);
}

static const char *const none[] = {NULL}, *const chars[] = {"chars", NULL}, *const name[] = {"name", NULL};
static const char *const replaces[] = {"old", "new", "count", NULL}, *const indents[] = {"width", "first", "blank",
                                                                                         NULL};
static const char *const defaults[] = {"default_value", "boolean", NULL}, *const number[] = {"default", NULL};
static const char *const dumps[] = {"ensure_ascii", "indent", "separators", "sort_keys", NULL};

static const dq_jfilter_entry filters[] = {
    {"trim", chars, f_trim},
    {"upper", none, f_upper},
    {"lower", none, f_lower},
    {"string", none, f_string},
    {"capitalize", none, f_capitalize},
    {"safe", none, f_safe},
    {"replace", replaces, f_replace},
    {"indent", indents, f_indent},
    {"tojson", dumps, f_tojson},
    {"int", number, f_int},
    {"float", number, f_float},
    {"abs", none, f_abs},
    {"default", defaults, f_default},
    {"d", defaults, f_default},
    {"attr", name, f_attr},
    {NULL, NULL, NULL},
};

static const dq_jfilter_entry *find_filter(dq_jtext word)
{
    for (const dq_jfilter_entry *f = filters; f->name; f++)
        if (dq_jtext_is(word, f->name)) return f;
    for (const dq_jfilter_entry *f = dq_jlist_filters; f->name; f++)
        if (dq_jtext_is(word, f->name)) return f;
    return NULL;
}

bool dq_jis_filter(dq_jtext word) { return find_filter(word) != NULL; }

dq_status dq_jfilter(dq_jrun *r, dq_jtext word, const dq_jvalue *in, const dq_jargs *args, dq_jvalue *out)
{
    const dq_jfilter_entry *f = find_filter(word);
    const dq_jvalue kept = *in; /* `out` may be the same place */
    dq_jfilter_call call = {.in = &kept, .args = args};
    if (!f) return dq_jfail(r, DQ_E_UNSUPPORTED, "the filter '%.*s' is not supported", DQ_J_SHOW(word));
    DQ_TRY(dq_jsteps(r, 1));
    if (f->names) DQ_TRY(dq_jslots(r, "filter", word, args, f->names, call.slots));
    DQ_TRY(f->apply(r, &call, out));
    if (kept.safe && out->kind == DQ_J_STRING && f->apply != f_replace) out->safe = true;
    return DQ_OK;
}
