/* Methods of strings, dicts and lists. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "chat/run.h"

typedef dq_status (*method_fn)(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out);
typedef struct method {
    const char *name;
    const char *const *names; /* of arguments */
    method_fn call;
} method;

static const char *const no_names[] = {NULL}, *const one_name[] = {"", NULL}, *const two_names[] = {"", "", NULL};
static const char *const split_names[] = {"sep", "maxsplit", NULL}, *const lines_names[] = {"keepends", NULL};
static const char *const replace_names[] = {"", "", "count", NULL};

/* ---- strings ---- */

static const dq_jvalue *unless_none(const dq_jvalue *v) { return v && v->kind == DQ_J_NONE ? NULL : v; }

static dq_status str_strip(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return dq_jstrip(r, self->text, unless_none(slots[0]), true, true, out);
}
static dq_status str_lstrip(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return dq_jstrip(r, self->text, unless_none(slots[0]), true, false, out);
}
static dq_status str_rstrip(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return dq_jstrip(r, self->text, unless_none(slots[0]), false, true, out);
}

static dq_status str_lower(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    (void)slots;
    return dq_jcase(r, self->text, DQ_J_LOWER, out);
}
static dq_status str_upper(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    (void)slots;
    return dq_jcase(r, self->text, DQ_J_UPPER, out);
}
static dq_status str_capitalize(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    (void)slots;
    return dq_jcase(r, self->text, DQ_J_CAPITALIZE, out);
}
static dq_status str_title(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    (void)slots;
    return dq_jcase(r, self->text, DQ_J_TITLE, out);
}

static bool begins(dq_jtext t, dq_jtext word, bool end)
{
    if (word.size > t.size) return false;
    return word.size == 0 || memcmp(end ? t.data + t.size - word.size : t.data, word.data, word.size) == 0;
}

/* One word, or a tuple of which any may fit. */
static dq_status fits(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *words, bool end, dq_jvalue *out)
{
    dq_jtext word = {0};
    bool yes = false;
    size_t n = words && words->kind == DQ_J_TUPLE ? words->list->count : 1;
    for (size_t i = 0; i < n && !yes; i++) {
        const dq_jvalue *one = words && words->kind == DQ_J_TUPLE ? &words->list->items[i] : words;
        DQ_TRY(dq_jwant_string(r, "what a string begins or ends with", one, &word));
        DQ_TRY(dq_jsteps(r, 1 + word.size / 64));
        yes = begins(self->text, word, end);
    }
    *out = dq_jbool(yes);
    return DQ_OK;
}

static dq_status str_startswith(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return fits(r, self, slots[0], false, out);
}
static dq_status str_endswith(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return fits(r, self, slots[0], true, out);
}

static dq_status str_removeprefix(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    dq_jtext word = {0}, t = self->text;
    DQ_TRY(dq_jwant_string(r, "a prefix", slots[0], &word));
    size_t n = begins(t, word, false) ? word.size : 0;
    *out = dq_jstring(dq_jtext_of(t.data + n, t.size - n));
    return DQ_OK;
}
static dq_status str_removesuffix(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    dq_jtext word = {0}, t = self->text;
    DQ_TRY(dq_jwant_string(r, "a suffix", slots[0], &word));
    *out = dq_jstring(dq_jtext_of(t.data, t.size - (begins(t, word, true) ? word.size : 0)));
    return DQ_OK;
}

static dq_status find(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *what, bool last, dq_jvalue *out)
{
    dq_jtext word = {0};
    DQ_TRY(dq_jwant_string(r, "what is looked for", what, &word));
    DQ_TRY(dq_jsteps(r, dq_jfind_steps(self->text, word, last)));
    int64_t at = dq_jfind(self->text, word, last);
    *out = dq_jint(at < 0 ? -1 : (int64_t)dq_jtext_length(dq_jtext_of(self->text.data, (size_t)at)));
    return DQ_OK;
}
static dq_status str_find(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return find(r, self, slots[0], false, out);
}
static dq_status str_rfind(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return find(r, self, slots[0], true, out);
}

static dq_status str_count(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    dq_jtext word = {0}, t = self->text;
    int64_t n = 0, at;
    DQ_TRY(dq_jwant_string(r, "what is counted", slots[0], &word));
    DQ_TRY(dq_jsteps(r, 1 + t.size / 32));
    if (word.size == 0) n = (int64_t)dq_jtext_length(t) + 1;
    for (; word.size && (at = dq_jfind(t, word, false)) >= 0; n++)
        t = dq_jtext_of(t.data + at + word.size, t.size - (size_t)at - word.size);
    *out = dq_jint(n);
    return DQ_OK;
}

static dq_status str_replace(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    dq_jtext old = {0}, new = {0};
    int64_t most = -1;
    DQ_TRY(dq_jwant_string(r, "what is replaced", slots[0], &old));
    DQ_TRY(dq_jwant_string(r, "what it is replaced by", slots[1], &new));
    if (slots[2]) DQ_TRY(dq_jwant_int(r, "the number of replacements", slots[2], &most));
    return dq_jreplace(r, self->text, old, new, most, out);
}

static dq_status split(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, bool right, dq_jvalue *out)
{
    int64_t most = -1;
    if (slots[1]) DQ_TRY(dq_jwant_int(r, "the number of splits", slots[1], &most));
    return dq_jsplit(r, self->text, unless_none(slots[0]), most, right, out);
}
static dq_status str_split(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return split(r, self, slots, false, out);
}
static dq_status str_rsplit(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return split(r, self, slots, true, out);
}
static dq_status str_splitlines(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    return dq_jsplit_lines(r, self->text, slots[0] && dq_jtruth(slots[0]), out);
}

static dq_status str_join(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    dq_jvalue items = {0};
    if (!slots[0]) return dq_jfail(r, DQ_E_INVALID, "join without strings");
    DQ_TRY(dq_jiterate(r, slots[0], &items));
    return dq_jjoin(r, self->text, items.list, false, out);
}

static dq_status str_isdigit(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    bool yes = self->text.size > 0;
    (void)slots;
    DQ_TRY(dq_jsteps(r, self->text.size / 64));
    for (size_t i = 0; i < self->text.size && yes; i++) yes = self->text.data[i] >= '0' && self->text.data[i] <= '9';
    *out = dq_jbool(yes);
    return DQ_OK;
}

/* ---- dicts ---- */

static dq_status dict_get(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    if (!slots[0]) return dq_jfail(r, DQ_E_INVALID, "get without a key");
    DQ_TRY(dq_jsteps(r, self->dict->count / 8));
    const dq_jvalue *found = dq_jdict_get(self->dict, slots[0]);
    *out = found ? *found : slots[1] ? *slots[1] : dq_jnone();
    return DQ_OK;
}

static dq_status dict_items(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    (void)slots;
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, self->dict->count, out));
    for (size_t i = 0; i < self->dict->count; i++) {
        dq_jvalue pair = {0};
        DQ_TRY(dq_jpair(&r->arena, self->dict->keys[i], self->dict->values[i], &pair));
        DQ_TRY(dq_jlist_add(&r->arena, out->list, pair));
    }
    return DQ_OK;
}

static dq_status column(dq_jrun *r, const dq_jdict *d, const dq_jvalue *values, dq_jvalue *out)
{
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, d->count, out));
    if (d->count) memcpy(out->list->items, values, d->count * sizeof *values);
    out->list->count = d->count;
    return DQ_OK;
}
static dq_status dict_keys(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    (void)slots;
    return column(r, self->dict, self->dict->keys, out);
}
static dq_status dict_values(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    (void)slots;
    return column(r, self->dict, self->dict->values, out);
}

/* ---- lists ---- */

static dq_status list_count(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    int64_t n = 0;
    if (!slots[0]) return dq_jfail(r, DQ_E_INVALID, "count without a value");
    for (size_t i = 0; i < self->list->count; i++) {
        bool same = false;
        DQ_TRY(dq_jequal(r, &self->list->items[i], slots[0], &same));
        n += same;
    }
    *out = dq_jint(n);
    return DQ_OK;
}

static dq_status list_index(dq_jrun *r, const dq_jvalue *self, const dq_jvalue *const *slots, dq_jvalue *out)
{
    bool same = false;
    size_t i = 0;
    if (!slots[0]) return dq_jfail(r, DQ_E_INVALID, "index without a value");
    for (; i < self->list->count && !same; i++) DQ_TRY(dq_jequal(r, &self->list->items[i], slots[0], &same));
    if (!same) return dq_jfail(r, DQ_E_INVALID, "index: the value is not in the list");
    *out = dq_jint((int64_t)i - 1);
    return DQ_OK;
}

/* ---- tables ---- */

static const method of_strings[] = {
    {"strip", one_name, str_strip},
    {"lstrip", one_name, str_lstrip},
    {"rstrip", one_name, str_rstrip},
    {"lower", no_names, str_lower},
    {"upper", no_names, str_upper},
    {"capitalize", no_names, str_capitalize},
    {"title", no_names, str_title},
    {"startswith", one_name, str_startswith},
    {"endswith", one_name, str_endswith},
    {"removeprefix", one_name, str_removeprefix},
    {"removesuffix", one_name, str_removesuffix},
    {"find", one_name, str_find},
    {"rfind", one_name, str_rfind},
    {"count", one_name, str_count},
    {"replace", replace_names, str_replace},
    {"split", split_names, str_split},
    {"rsplit", split_names, str_rsplit},
    {"splitlines", lines_names, str_splitlines},
    {"join", one_name, str_join},
    {"isdigit", no_names, str_isdigit},
};
static const method of_dicts[] = {
    {"get", two_names, dict_get},
    {"items", no_names, dict_items},
    {"keys", no_names, dict_keys},
    {"values", no_names, dict_values},
};
static const method of_lists[] = {{"count", one_name, list_count}, {"index", one_name, list_index}};

/* Python has them, a template that uses them is refused. */
static const char *const refused_strings[] = {
    "casefold",    "center",  "encode",     "expandtabs", "format",       "format_map", "index",
    "isalnum",     "isalpha", "isascii",    "isdecimal",  "isidentifier", "islower",    "isnumeric",
    "isspace",     "istitle", "isupper",    "ljust",      "maketrans",    "partition",  "rindex",
    "isprintable", "rjust",   "rpartition", "swapcase",   "translate",    "zfill"};
static const char *const refused_dicts[] = {"clear", "copy", "fromkeys", "pop", "popitem", "setdefault", "update"};
static const char *const refused_lists[] = {"append", "clear",  "copy",    "extend", "insert",
                                            "pop",    "remove", "reverse", "sort"};

typedef struct kind_methods {
    const method *table;
    size_t count;
    const char *const *refused;
    size_t refused_count;
} kind_methods;

static kind_methods methods_of(const dq_jvalue *self)
{
#define COUNT(a) (sizeof(a) / sizeof *(a))
    switch (self->kind) {
        case DQ_J_STRING: return (kind_methods){of_strings, COUNT(of_strings), refused_strings, COUNT(refused_strings)};
        case DQ_J_DICT: return (kind_methods){of_dicts, COUNT(of_dicts), refused_dicts, COUNT(refused_dicts)};
        case DQ_J_LIST: return (kind_methods){of_lists, COUNT(of_lists), refused_lists, COUNT(refused_lists)};
        case DQ_J_TUPLE: return (kind_methods){of_lists, COUNT(of_lists), NULL, 0};
        default: return (kind_methods){NULL, 0, NULL, 0};
    }
}

bool dq_jhas_method(const dq_jvalue *self, dq_jtext name)
{
    kind_methods m = methods_of(self);
    if (self->kind == DQ_J_LOOP) return dq_jtext_is(name, "cycle");
    for (size_t i = 0; i < m.count; i++)
        if (dq_jtext_is(name, m.table[i].name)) return true;
    for (size_t i = 0; i < m.refused_count; i++)
        if (dq_jtext_is(name, m.refused[i])) return true;
    return false;
}

/* What comes of a text marked as safe is marked too. */
static void mark_safe(dq_jvalue *v)
{
    if (v->kind == DQ_J_STRING) v->safe = true;
    for (size_t i = 0; v->kind == DQ_J_LIST && i < v->list->count; i++)
        if (v->list->items[i].kind == DQ_J_STRING) v->list->items[i].safe = true;
}

dq_status dq_jcall_method(dq_jrun *r, const dq_jmethod *called, const dq_jargs *args, dq_jvalue *out)
{
    kind_methods m = methods_of(&called->self);
    const dq_jvalue *slots[4] = {NULL, NULL, NULL, NULL};
    static const char *const escaping[] = {"replace", "join", "format"};
    for (size_t i = 0; called->self.safe && i < sizeof escaping / sizeof *escaping; i++)
        if (dq_jtext_is(called->name, escaping[i]))
            return dq_jfail(r, DQ_E_UNSUPPORTED, "'%s' of a text marked as safe is not supported", escaping[i]);
    if (called->self.kind == DQ_J_STRING && dq_jtext_is(called->name, "format"))
        return dq_jformat(r, called->self.text, args, out);
    for (size_t i = 0; i < m.count; i++) {
        if (!dq_jtext_is(called->name, m.table[i].name)) continue;
        DQ_TRY(dq_jslots(r, "method", called->name, args, m.table[i].names, slots));
        DQ_TRY(m.table[i].call(r, &called->self, slots, out));
        if (called->self.safe) mark_safe(out);
        return DQ_OK;
    }
    return dq_jfail(r, DQ_E_UNSUPPORTED, "the method '%.*s' of a value of type %s is not supported",
                    DQ_J_SHOW(called->name), dq_jtype_name(&called->self));
}
