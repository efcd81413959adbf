/* Attributes, indices, slices, and what loops go through. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "chat/run.h"
#include "text/utf8.h"

/* ---- loop.index and its like ---- */

static bool loop_attribute(const dq_jloop *l, dq_jtext name, dq_jvalue *out)
{
    int64_t at = (int64_t)l->at, n = (int64_t)l->items->count;
    const struct {
        const char *name;
        dq_jvalue value;
    } facts[] = {{"index", dq_jint(at + 1)},    {"index0", dq_jint(at)},
                 {"revindex", dq_jint(n - at)}, {"revindex0", dq_jint(n - at - 1)},
                 {"first", dq_jbool(at == 0)},  {"last", dq_jbool(at == n - 1)},
                 {"length", dq_jint(n)},        {"depth", dq_jint(l->level + 1)},
                 {"depth0", dq_jint(l->level)}};
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++)
        if (dq_jtext_is(name, facts[i].name)) {
            *out = facts[i].value;
            return true;
        }
    bool previous = dq_jtext_is(name, "previtem"), next = dq_jtext_is(name, "nextitem");
    if (!previous && !next) return false;
    if (previous ? at > 0 : at + 1 < n)
        *out = l->items->items[previous ? at - 1 : at + 1];
    else
        *out = dq_jmissing(name, "LoopContext");
    return true;
}

static dq_status method(dq_jrun *r, const dq_jvalue *self, dq_jtext name, dq_jvalue *out)
{
    void *memory = NULL;
    DQ_TRY(dq_jarena_take(&r->arena, sizeof(dq_jmethod), &memory));
    *(dq_jmethod *)memory = (dq_jmethod){*self, name};
    *out = (dq_jvalue){.kind = DQ_J_METHOD, .method = memory};
    return DQ_OK;
}

/* Python's attributes of a value; *out stays undefined where there is none. */
static dq_status own_attribute(dq_jrun *r, const dq_jvalue *v, dq_jtext name, dq_jvalue *out)
{
    *out = dq_jmissing(name, dq_jtype_name(v));
    if (v->kind == DQ_J_LOOP && loop_attribute(v->loop, name, out)) return DQ_OK;
    if (v->kind == DQ_J_NAMESPACE) {
        const dq_jvalue *found = dq_jdict_find(v->dict, name);
        if (found) *out = *found;
        return DQ_OK;
    }
    return dq_jhas_method(v, name) ? method(r, v, name, out) : DQ_OK;
}

static dq_status dict_item(dq_jrun *r, const dq_jdict *d, const dq_jvalue *key, dq_jvalue *out)
{
    DQ_TRY(dq_jsteps(r, d->count / 8));
    const dq_jvalue *found = dq_jdict_get(d, key);
    if (found) *out = *found;
    return DQ_OK;
}

/* Methods come before the keys of a dict. */
dq_status dq_jattribute(dq_jrun *r, const dq_jvalue *v, dq_jtext name, dq_jvalue *out)
{
    if (v->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, v);
    DQ_TRY(own_attribute(r, v, name, out));
    if (out->kind != DQ_J_UNDEFINED || v->kind != DQ_J_DICT) return DQ_OK;
    const dq_jvalue key = dq_jstring(name);
    return dict_item(r, v->dict, &key, out);
}

/* The index of Python for `count` elements; false = outside. */
static bool place(int64_t index, size_t count, size_t *out)
{
    int64_t n = (int64_t)count;
    if (index < 0) index += n;
    if (index < 0 || index >= n) return false;
    *out = (size_t)index;
    return true;
}

static dq_jtext character(dq_jtext t, size_t index)
{
    size_t start = dq_jtext_offset(t, index);
    dq_jtext rest = {t.data + start, t.size - start};
    return dq_jtext_of(rest.data, dq_jtext_offset(rest, 1));
}

/* Keys of a dict come before its methods. */
dq_status dq_jitem(dq_jrun *r, const dq_jvalue *v, const dq_jvalue *index, dq_jvalue *out)
{
    size_t at;
    if (v->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, v);
    *out = dq_jmissing(dq_jtext_c("element of that number"), dq_jtype_name(v));
    if (v->kind == DQ_J_DICT) {
        if (index->kind == DQ_J_STRING) out->missing.name = index->text;
        DQ_TRY(dict_item(r, v->dict, index, out));
    } else if (dq_jis_list(v) && dq_jis_whole(index)) {
        if (place(dq_jwhole(index), v->list->count, &at)) *out = v->list->items[at];
    } else if (v->kind == DQ_J_STRING && dq_jis_whole(index)) {
        DQ_TRY(dq_jsteps(r, v->text.size / 32));
        if (place(dq_jwhole(index), dq_jtext_length(v->text), &at)) *out = dq_jstring(character(v->text, at));
        out->safe = v->safe;
    }
    if (out->kind == DQ_J_UNDEFINED && index->kind == DQ_J_STRING) return own_attribute(r, v, index->text, out);
    return DQ_OK;
}

/* ---- slices ---- */

/* One end as Python's slice.indices cuts it. */
static dq_status slice_end(dq_jrun *r, const dq_jvalue *given, int64_t fallback, int64_t n, bool backwards,
                           int64_t *out)
{
    int64_t low = backwards ? -1 : 0, high = backwards ? n - 1 : n, v = fallback;
    if (given) {
        DQ_TRY(dq_jwant_int(r, "the end of a slice", given, &v));
        if (v < 0) v = v < -n ? low : v + n;
        v = v < low ? low : v > high ? high : v;
    }
    *out = v;
    return DQ_OK;
}

static dq_status slice_text(dq_jrun *r, dq_jtext t, int64_t from, int64_t to, int64_t step, dq_jvalue *out)
{
    if (step == 1) {
        size_t start = dq_jtext_offset(t, (size_t)from), end = to > from ? dq_jtext_offset(t, (size_t)to) : start;
        *out = dq_jstring(dq_jtext_of(t.data + start, end - start));
        return DQ_OK;
    }
    dq_bytes text = {.env = r->arena.env};
    dq_status status = DQ_OK;
    for (int64_t i = from; status == DQ_OK && (step > 0 ? i < to : i > to); i += step) {
        dq_jtext c = character(t, (size_t)i);
        status = dq_jsteps(r, 1 + t.size / 32);
        if (status == DQ_OK) status = dq_jput(r, &text, c.data, c.size);
    }
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

dq_status dq_jslice(dq_jrun *r, const dq_jvalue *v, const dq_jvalue *first, const dq_jvalue *last,
                    const dq_jvalue *stride, dq_jvalue *out)
{
    int64_t n, from = 0, to = 0, step = 1;
    bool text = v->kind == DQ_J_STRING;
    if (v->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, v);
    if (!text && !dq_jis_list(v)) return dq_jfail(r, DQ_E_INVALID, "a slice of a value of type %s", dq_jtype_name(v));
    n = (int64_t)(text ? dq_jtext_length(v->text) : v->list->count);
    DQ_TRY(dq_jsteps(r, (uint64_t)n / 8));
    if (stride) DQ_TRY(dq_jwant_int(r, "the step of a slice", stride, &step));
    if (step == 0) return dq_jfail(r, DQ_E_INVALID, "a slice with step 0");
    step = step > n ? n + 1 : step < -n ? -n - 1 : step; /* beyond the end is beyond the end */
    DQ_TRY(slice_end(r, first, step < 0 ? n - 1 : 0, n, step < 0, &from));
    DQ_TRY(slice_end(r, last, step < 0 ? -1 : n, n, step < 0, &to));
    if (text) {
        DQ_TRY(slice_text(r, v->text, from, to, step, out));
        out->safe = v->safe;
        return DQ_OK;
    }
    DQ_TRY(dq_jlist_new(&r->arena, v->kind, 0, out));
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step)
        DQ_TRY(dq_jlist_add(&r->arena, out->list, v->list->items[i]));
    return DQ_OK;
}

/* ---- what loops go through ---- */

static dq_status characters(dq_jrun *r, dq_jtext t, dq_jvalue *out)
{
    DQ_TRY(dq_jsteps(r, t.size / 8));
    for (size_t at = 0; at < t.size;) {
        dq_jtext rest = {t.data + at, t.size - at};
        size_t n = dq_jtext_offset(rest, 1);
        DQ_TRY(dq_jlist_add(&r->arena, out->list, dq_jstring(dq_jtext_of(rest.data, n))));
        at += n;
    }
    return DQ_OK;
}

dq_status dq_jiterate(dq_jrun *r, const dq_jvalue *v, dq_jvalue *out)
{
    if (dq_jis_list(v)) {
        *out = *v;
        return DQ_OK;
    }
    if (v->kind != DQ_J_UNDEFINED && v->kind != DQ_J_STRING && v->kind != DQ_J_DICT)
        return dq_jfail(r, DQ_E_INVALID, "a value of type %s cannot be gone through", dq_jtype_name(v));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    if (v->kind == DQ_J_STRING) return characters(r, v->text, out);
    for (size_t i = 0; v->kind == DQ_J_DICT && i < v->dict->count; i++)
        DQ_TRY(dq_jlist_add(&r->arena, out->list, v->dict->keys[i]));
    return DQ_OK;
}
