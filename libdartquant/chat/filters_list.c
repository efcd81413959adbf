/* Filters of sequences. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "chat/filters.h"

/* ---- attributes by path: "a.b.0" ---- */

/* `missing` (may be NULL) stands for every part that is not there. */
static dq_status by_path(dq_jrun *r, const dq_jvalue *v, dq_jtext path, const dq_jvalue *missing, dq_jvalue *out)
{
    *out = *v;
    for (const char *at = path.data, *end = path.data + path.size; at <= end;) {
        const char *dot = memchr(at, '.', (size_t)(end - at));
        dq_jtext part = dq_jtext_of(at, (size_t)((dot ? dot : end) - at));
        dq_jvalue whole = *out, index = dq_jstring(part);
        int64_t n = 0;
        size_t digits = 0;
        for (; digits < part.size && digits < 9 && part.data[digits] >= '0' && part.data[digits] <= '9'; digits++)
            n = n * 10 + (part.data[digits] - '0');
        if (digits == part.size && digits > 0) index = dq_jint(n);
        DQ_TRY(dq_jitem(r, &whole, &index, out));
        if (missing && out->kind == DQ_J_UNDEFINED) *out = *missing;
        at += part.size + 1;
    }
    return DQ_OK;
}

/* The attribute that an argument names (a string or a number), or the value itself without one. */
static dq_status key_of(dq_jrun *r, const dq_jvalue *v, const dq_jvalue *attribute, const dq_jvalue *missing,
                        dq_jvalue *out)
{
    *out = *v;
    if (!attribute || attribute->kind == DQ_J_NONE) return DQ_OK;
    if (attribute->kind == DQ_J_STRING) return by_path(r, v, attribute->text, missing, out);
    DQ_TRY(dq_jitem(r, v, attribute, out));
    if (missing && out->kind == DQ_J_UNDEFINED) *out = *missing;
    return DQ_OK;
}

static dq_status keys_of(dq_jrun *r, const dq_jlist *items, const dq_jvalue *attribute, bool fold, dq_jvalue *out)
{
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, items->count, out));
    for (size_t i = 0; i < items->count; i++) {
        dq_jvalue key = {0};
        DQ_TRY(key_of(r, &items->items[i], attribute, NULL, &key));
        if (fold && key.kind == DQ_J_STRING) DQ_TRY(dq_jcase(r, key.text, DQ_J_LOWER, &key));
        DQ_TRY(dq_jlist_add(&r->arena, out->list, key));
    }
    return DQ_OK;
}

/* ---- sorting ---- */

typedef struct sort_arrays {
    dq_jvalue *items, *keys;
} sort_arrays;

/* Merges the runs [from, middle) and [middle, to) of a into b. */
static dq_status merge(dq_jrun *r, sort_arrays a, sort_arrays b, size_t from, size_t middle, size_t to, bool reverse)
{
    size_t i = from, j = middle;
    for (size_t k = from; k < to; k++) {
        bool second = i == middle;
        if (i < middle && j < to)
            DQ_TRY(dq_jcompare(r, reverse ? DQ_JO_GT : DQ_JO_LT, &a.keys[j], &a.keys[i], &second));
        size_t taken = second ? j++ : i++;
        b.items[k] = a.items[taken];
        b.keys[k] = a.keys[taken];
    }
    return DQ_OK;
}

dq_status dq_jsort(dq_jrun *r, dq_jvalue *items, dq_jvalue *keys, size_t count, bool reverse)
{
    dq_jvalue spare_items = {0}, spare_keys = {0};
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, count, &spare_items));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, count, &spare_keys));
    sort_arrays a = {items, keys}, b = {spare_items.list->items, spare_keys.list->items};
    for (size_t run = 1; run < count; run *= 2) {
        for (size_t from = 0; from < count; from += 2 * run) {
            size_t middle = from + run < count ? from + run : count;
            size_t to = from + 2 * run < count ? from + 2 * run : count;
            DQ_TRY(merge(r, a, b, from, middle, to, reverse));
        }
        sort_arrays swap = a;
        a = b;
        b = swap;
    }
    if (a.items != items && count) {
        memcpy(items, a.items, count * sizeof *items);
        memcpy(keys, a.keys, count * sizeof *keys);
    }
    return DQ_OK;
}

static dq_status copy_list(dq_jrun *r, const dq_jlist *from, dq_jvalue *out)
{
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, from->count, out));
    if (from->count) memcpy(out->list->items, from->items, from->count * sizeof *from->items);
    out->list->count = from->count;
    return DQ_OK;
}

static dq_status f_sort(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jvalue items = {0}, keys = {0};
    DQ_TRY(dq_jiterate(r, c->in, &items));
    DQ_TRY(keys_of(r, items.list, c->slots[2], !(c->slots[1] && dq_jtruth(c->slots[1])), &keys));
    DQ_TRY(copy_list(r, items.list, out));
    return dq_jsort(r, out->list->items, keys.list->items, out->list->count, c->slots[0] && dq_jtruth(c->slots[0]));
}

static dq_status pairs_of(dq_jrun *r, const dq_jvalue *in, dq_jvalue *out)
{
    if (in->kind != DQ_J_DICT && in->kind != DQ_J_UNDEFINED)
        return dq_jfail(r, DQ_E_INVALID, "a dict is needed, not a value of type %s", dq_jtype_name(in));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    for (size_t i = 0; in->kind == DQ_J_DICT && i < in->dict->count; i++) {
        dq_jvalue pair = {0};
        DQ_TRY(dq_jpair(&r->arena, in->dict->keys[i], in->dict->values[i], &pair));
        DQ_TRY(dq_jlist_add(&r->arena, out->list, pair));
    }
    return DQ_OK;
}

static dq_status f_items(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out) { return pairs_of(r, c->in, out); }

static dq_status f_dictsort(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jvalue keys = {0}, which = dq_jint(0);
    DQ_TRY(pairs_of(r, c->in, out));
    if (c->slots[1] && c->slots[1]->kind == DQ_J_STRING && dq_jtext_is(c->slots[1]->text, "value")) which = dq_jint(1);
    DQ_TRY(keys_of(r, out->list, &which, !(c->slots[0] && dq_jtruth(c->slots[0])), &keys));
    return dq_jsort(r, out->list->items, keys.list->items, out->list->count, c->slots[2] && dq_jtruth(c->slots[2]));
}

static dq_status f_unique(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jvalue items = {0}, keys = {0}, seen = {0};
    DQ_TRY(dq_jiterate(r, c->in, &items));
    DQ_TRY(keys_of(r, items.list, c->slots[1], !(c->slots[0] && dq_jtruth(c->slots[0])), &keys));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, &seen));
    for (size_t i = 0; i < items.list->count; i++) {
        bool there = false;
        DQ_TRY(dq_jcontains(r, &seen, &keys.list->items[i], &there));
        if (there) continue;
        DQ_TRY(dq_jlist_add(&r->arena, seen.list, keys.list->items[i]));
        DQ_TRY(dq_jlist_add(&r->arena, out->list, items.list->items[i]));
    }
    return DQ_OK;
}

/* ---- one of many ---- */

static dq_status f_length(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    const dq_jvalue *v = c->in;
    if (v->kind == DQ_J_STRING) {
        DQ_TRY(dq_jsteps(r, v->text.size / 64));
        *out = dq_jint((int64_t)dq_jtext_length(v->text));
    } else if (dq_jis_list(v)) {
        *out = dq_jint((int64_t)v->list->count);
    } else if (v->kind == DQ_J_DICT) {
        *out = dq_jint((int64_t)v->dict->count);
    } else if (v->kind == DQ_J_UNDEFINED) {
        *out = dq_jint(0);
    } else {
        return dq_jfail(r, DQ_E_INVALID, "a value of type %s has no length", dq_jtype_name(v));
    }
    return DQ_OK;
}

static dq_status end_of(dq_jrun *r, const dq_jvalue *in, bool last, dq_jvalue *out)
{
    dq_jvalue items = {0};
    DQ_TRY(dq_jiterate(r, in, &items));
    size_t n = items.list->count;
    *out = n ? items.list->items[last ? n - 1 : 0] : dq_jmissing(dq_jtext_c("the end of an empty sequence"), NULL);
    return DQ_OK;
}
static dq_status f_first(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out) { return end_of(r, c->in, false, out); }
static dq_status f_last(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out) { return end_of(r, c->in, true, out); }

static dq_status extreme(dq_jrun *r, const dq_jfilter_call *c, dq_jop op, dq_jvalue *out)
{
    dq_jvalue items = {0}, keys = {0};
    size_t at = 0;
    DQ_TRY(dq_jiterate(r, c->in, &items));
    DQ_TRY(keys_of(r, items.list, c->slots[1], !(c->slots[0] && dq_jtruth(c->slots[0])), &keys));
    *out = dq_jmissing(dq_jtext_c("the end of an empty sequence"), NULL);
    for (size_t i = 0; i < items.list->count; i++) {
        bool better = i == 0;
        if (i > 0) DQ_TRY(dq_jcompare(r, op, &keys.list->items[i], &keys.list->items[at], &better));
        if (better) at = i;
    }
    if (items.list->count) *out = items.list->items[at];
    return DQ_OK;
}
static dq_status f_min(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out) { return extreme(r, c, DQ_JO_LT, out); }
static dq_status f_max(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out) { return extreme(r, c, DQ_JO_GT, out); }

static dq_status f_sum(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jvalue items = {0}, keys = {0}, total = c->slots[1] ? *c->slots[1] : dq_jint(0);
    DQ_TRY(dq_jiterate(r, c->in, &items));
    DQ_TRY(keys_of(r, items.list, c->slots[0], false, &keys));
    for (size_t i = 0; i < keys.list->count; i++) {
        dq_jvalue before = total;
        DQ_TRY(dq_jbinary(r, DQ_JO_ADD, &before, &keys.list->items[i], &total));
    }
    *out = total;
    return DQ_OK;
}

/* ---- all of them ---- */

static dq_status f_list(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jvalue items = {0};
    DQ_TRY(dq_jiterate(r, c->in, &items));
    return copy_list(r, items.list, out);
}

static dq_status f_join(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    dq_jvalue items = {0}, keys = {0};
    dq_jtext separator = {"", 0};
    DQ_TRY(dq_jiterate(r, c->in, &items));
    DQ_TRY(keys_of(r, items.list, c->slots[1], false, &keys));
    if (c->slots[0]) DQ_TRY(dq_jto_text(r, c->slots[0], &separator));
    return dq_jjoin(r, separator, keys.list, true, out);
}

static dq_status f_reverse(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    const dq_jvalue back = dq_jint(-1);
    dq_jvalue items = {0};
    if (c->in->kind == DQ_J_STRING) return dq_jslice(r, c->in, NULL, NULL, &back, out);
    DQ_TRY(dq_jiterate(r, c->in, &items));
    items.kind = DQ_J_LIST;
    return dq_jslice(r, &items, NULL, NULL, &back, out);
}

/* Arguments without the first `skip`, and with the first of what is left as a name. */
static dq_status named(dq_jrun *r, const dq_jargs *args, size_t skip, const char *what, dq_jtext *name, dq_jargs *rest)
{
    DQ_TRY(dq_jwant_string(r, what, args->places > skip ? &args->items[skip] : NULL, name));
    *rest = (dq_jargs){.places = args->places - skip - 1, .count = args->count - skip - 1};
    memcpy(rest->items, args->items + skip + 1, rest->count * sizeof *rest->items);
    memcpy(rest->names, args->names + skip + 1, rest->count * sizeof *rest->names);
    return DQ_OK;
}

/* map('upper') or map(attribute='role', default=...) */
static dq_status f_map(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    static const char *const names[] = {"attribute", "default", NULL};
    const dq_jvalue *slots[2] = {NULL, NULL};
    bool attribute = c->args->places == 0;
    dq_jvalue items = {0};
    dq_jargs rest;
    dq_jtext name = {0};
    if (attribute)
        DQ_TRY(dq_jslots(r, "filter", dq_jtext_c("map"), c->args, names, slots));
    else
        DQ_TRY(named(r, c->args, 0, "the filter of map", &name, &rest));
    if (attribute && !slots[0]) return dq_jfail(r, DQ_E_INVALID, "map needs a filter or an attribute");
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    if (!dq_jtruth(c->in)) return DQ_OK; /* also of none */
    DQ_TRY(dq_jiterate(r, c->in, &items));
    for (size_t i = 0; i < items.list->count; i++) {
        dq_jvalue one = {0};
        DQ_TRY(attribute ? key_of(r, &items.list->items[i], slots[0], slots[1], &one)
                         : dq_jfilter(r, name, &items.list->items[i], &rest, &one));
        DQ_TRY(dq_jlist_add(&r->arena, out->list, one));
    }
    return DQ_OK;
}

static dq_status choose(dq_jrun *r, const dq_jfilter_call *c, bool attribute, bool wanted, dq_jvalue *out)
{
    dq_jvalue items = {0};
    dq_jargs rest = {.count = 0};
    dq_jtext name = {0};
    size_t skip = attribute;
    if (c->args->places < skip) return dq_jfail(r, DQ_E_INVALID, "the attribute to choose by is missing");
    if (c->args->places > skip) DQ_TRY(named(r, c->args, skip, "the test to choose by", &name, &rest));
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    if (!dq_jtruth(c->in)) return DQ_OK;
    DQ_TRY(dq_jiterate(r, c->in, &items));
    for (size_t i = 0; i < items.list->count; i++) {
        dq_jvalue key = {0};
        DQ_TRY(key_of(r, &items.list->items[i], attribute ? &c->args->items[0] : NULL, NULL, &key));
        bool yes = dq_jtruth(&key);
        if (name.size) DQ_TRY(dq_jtest(r, name, &key, &rest, &yes));
        if (yes == wanted) DQ_TRY(dq_jlist_add(&r->arena, out->list, items.list->items[i]));
    }
    return DQ_OK;
}
static dq_status f_select(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    return choose(r, c, false, true, out);
}
static dq_status f_reject(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    return choose(r, c, false, false, out);
}
static dq_status f_selectattr(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    return choose(r, c, true, true, out);
}
static dq_status f_rejectattr(dq_jrun *r, const dq_jfilter_call *c, dq_jvalue *out)
{
    return choose(r, c, true, false, out);
}

static const char *const none[] = {NULL}, *const joins[] = {"d", "attribute", NULL};
static const char *const sorts[] = {"reverse", "case_sensitive", "attribute", NULL};
static const char *const dictsorts[] = {"case_sensitive", "by", "reverse", NULL};
static const char *const keys[] = {"case_sensitive", "attribute", NULL}, *const sums[] = {"attribute", "start", NULL};

const dq_jfilter_entry dq_jlist_filters[] = {
    {"length", none, f_length},
    {"count", none, f_length},
    {"first", none, f_first},
    {"last", none, f_last},
    {"list", none, f_list},
    {"join", joins, f_join},
    {"reverse", none, f_reverse},
    {"sort", sorts, f_sort},
    {"dictsort", dictsorts, f_dictsort},
    {"items", none, f_items},
    {"unique", keys, f_unique},
    {"min", keys, f_min},
    {"max", keys, f_max},
    {"sum", sums, f_sum},
    {"map", NULL, f_map},
    {"select", NULL, f_select},
    {"reject", NULL, f_reject},
    {"selectattr", NULL, f_selectattr},
    {"rejectattr", NULL, f_rejectattr},
    {NULL, NULL, NULL},
};
