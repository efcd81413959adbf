/* Arithmetic and comparisons with Python's meaning. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/status.h"
#include "chat/run.h"

/* ---- comparisons ---- */

static dq_status equal_lists(dq_jrun *r, const dq_jlist *a, const dq_jlist *b, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++) DQ_TRY(dq_jequal(r, &a->items[i], &b->items[i], out));
    return DQ_OK;
}

static dq_status equal_dicts(dq_jrun *r, const dq_jdict *a, const dq_jdict *b, bool *out)
{
    *out = a->count == b->count;
    for (size_t i = 0; i < a->count && *out; i++) {
        DQ_TRY(dq_jsteps(r, 1 + b->count / 8));
        const dq_jvalue *other = dq_jdict_get(b, &a->keys[i]);
        *out = other != NULL;
        if (other) DQ_TRY(dq_jequal(r, &a->values[i], other, out));
    }
    return DQ_OK;
}

static dq_status equal_inside(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *b, bool *out)
{
    if (dq_jis_whole(a) && dq_jis_whole(b)) {
        *out = dq_jwhole(a) == dq_jwhole(b);
    } else if (dq_jis_number(a) && dq_jis_number(b)) {
        *out = dq_jnumber(a) == dq_jnumber(b);
    } else if (a->kind != b->kind) {
        *out = false;
    } else if (a->kind == DQ_J_STRING) {
        DQ_TRY(dq_jsteps(r, a->text.size / 64));
        *out = dq_jtext_equal(a->text, b->text);
    } else if (dq_jis_list(a)) {
        return equal_lists(r, a->list, b->list, out);
    } else if (a->kind == DQ_J_DICT) {
        return equal_dicts(r, a->dict, b->dict, out);
    } else if (a->kind == DQ_J_FUNCTION) {
        *out = a->function == b->function;
    } else {
        *out = a->kind <= DQ_J_NONE || a->dict == b->dict; /* the same object */
    }
    return DQ_OK;
}

dq_status dq_jequal(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *b, bool *out)
{
    DQ_TRY(dq_jsteps(r, 1));
    DQ_TRY(dq_jdeeper(r));
    DQ_TRY(equal_inside(r, a, b, out));
    r->depth--;
    return DQ_OK;
}

/* a < b: *sign is -1, 0 or 1, or 2 when neither (NaN). */
static dq_status order(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *b, int *sign)
{
    if (a->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, a);
    if (b->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, b);
    DQ_TRY(dq_jsteps(r, 1));
    if (dq_jis_whole(a) && dq_jis_whole(b)) {
        *sign = (dq_jwhole(a) > dq_jwhole(b)) - (dq_jwhole(a) < dq_jwhole(b));
    } else if (dq_jis_number(a) && dq_jis_number(b)) {
        double x = dq_jnumber(a), y = dq_jnumber(b);
        *sign = x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
    } else if (a->kind == DQ_J_STRING && b->kind == DQ_J_STRING) { /* UTF-8 sorts as its code points */
        size_t n = a->text.size < b->text.size ? a->text.size : b->text.size;
        DQ_TRY(dq_jsteps(r, n / 64));
        int c = n ? memcmp(a->text.data, b->text.data, n) : 0;
        *sign = c ? (c > 0) - (c < 0) : (a->text.size > b->text.size) - (a->text.size < b->text.size);
    } else if (a->kind == b->kind && dq_jis_list(a)) {
        DQ_TRY(dq_jdeeper(r));
        *sign = 0;
        for (size_t i = 0; *sign == 0 && i < a->list->count && i < b->list->count; i++)
            DQ_TRY(order(r, &a->list->items[i], &b->list->items[i], sign));
        if (*sign == 0) *sign = (a->list->count > b->list->count) - (a->list->count < b->list->count);
        r->depth--;
    } else {
        return dq_jfail(r, DQ_E_INVALID, "values of type %s and %s have no order", dq_jtype_name(a), dq_jtype_name(b));
    }
    return DQ_OK;
}

dq_status dq_jcontains(dq_jrun *r, const dq_jvalue *in, const dq_jvalue *what, bool *out)
{
    *out = false;
    switch (in->kind) {
        case DQ_J_UNDEFINED: return DQ_OK;
        case DQ_J_STRING:
            if (what->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, what);
            if (what->kind != DQ_J_STRING)
                return dq_jfail(r, DQ_E_INVALID, "a value of type %s is looked for in a string", dq_jtype_name(what));
            DQ_TRY(dq_jsteps(r, in->text.size / 64));
            *out = dq_jfind(in->text, what->text, false) >= 0;
            return DQ_OK;
        case DQ_J_LIST:
        case DQ_J_TUPLE:
            for (size_t i = 0; i < in->list->count && !*out; i++) DQ_TRY(dq_jequal(r, &in->list->items[i], what, out));
            return DQ_OK;
        case DQ_J_DICT:
            DQ_TRY(dq_jsteps(r, in->dict->count / 8));
            *out = dq_jdict_get(in->dict, what) != NULL;
            return DQ_OK;
        default: return dq_jfail(r, DQ_E_INVALID, "'in' cannot look into a value of type %s", dq_jtype_name(in));
    }
}

dq_status dq_jcompare(dq_jrun *r, dq_jop op, const dq_jvalue *a, const dq_jvalue *b, bool *out)
{
    int sign = 0;
    bool yes = false;
    if (op == DQ_JO_EQ || op == DQ_JO_NE) {
        DQ_TRY(dq_jequal(r, a, b, &yes));
        *out = yes == (op == DQ_JO_EQ);
        return DQ_OK;
    }
    if (op == DQ_JO_IN || op == DQ_JO_NOT_IN) {
        DQ_TRY(dq_jcontains(r, b, a, &yes));
        *out = yes == (op == DQ_JO_IN);
        return DQ_OK;
    }
    DQ_TRY(order(r, a, b, &sign));
    *out = op == DQ_JO_LT   ? sign == -1
           : op == DQ_JO_LE ? sign == -1 || sign == 0
           : op == DQ_JO_GT ? sign == 1
                            : sign == 1 || sign == 0;
    return DQ_OK;
}

/* ---- arithmetic ---- */

static dq_status overflow(const dq_jrun *r)
{
    return dq_jfail(r, DQ_E_UNSUPPORTED, "integers beyond 64 bits are not supported");
}

static dq_status power(dq_jrun *r, int64_t base, int64_t exponent, dq_jvalue *out)
{
    int64_t result = 1;
    for (int64_t i = 0; i < exponent; i++) {
        DQ_TRY(dq_jsteps(r, 1));
        if (__builtin_mul_overflow(result, base, &result)) return overflow(r);
    }
    *out = dq_jint(result);
    return DQ_OK;
}

static dq_status whole_numbers(dq_jrun *r, dq_jop op, int64_t a, int64_t b, dq_jvalue *out)
{
    int64_t v = 0;
    bool wrong = false;
    switch (op) {
        case DQ_JO_ADD: wrong = __builtin_add_overflow(a, b, &v); break;
        case DQ_JO_SUB: wrong = __builtin_sub_overflow(a, b, &v); break;
        case DQ_JO_MUL: wrong = __builtin_mul_overflow(a, b, &v); break;
        case DQ_JO_POW: return power(r, a, b, out);
        default: /* // and %, rounding down */
            if (a == INT64_MIN && b == -1) return overflow(r);
            v = op == DQ_JO_MOD ? a % b : a / b;
            if (a % b != 0 && (a < 0) != (b < 0)) v += op == DQ_JO_MOD ? b : -1;
            break;
    }
    if (wrong) return overflow(r);
    *out = dq_jint(v);
    return DQ_OK;
}

static dq_status numbers(dq_jrun *r, dq_jop op, const dq_jvalue *a, const dq_jvalue *b, dq_jvalue *out)
{
    double x = dq_jnumber(a), y = dq_jnumber(b), v;
    bool divides = op == DQ_JO_DIV || op == DQ_JO_FLOORDIV || op == DQ_JO_MOD;
    if (divides && y == 0) return dq_jfail(r, DQ_E_INVALID, "a division by zero");
    bool whole = dq_jis_whole(a) && dq_jis_whole(b) && op != DQ_JO_DIV;
    if (whole && !(op == DQ_JO_POW && dq_jwhole(b) < 0)) return whole_numbers(r, op, dq_jwhole(a), dq_jwhole(b), out);
    switch (op) {
        case DQ_JO_ADD: v = x + y; break;
        case DQ_JO_SUB: v = x - y; break;
        case DQ_JO_MUL: v = x * y; break;
        case DQ_JO_DIV: v = x / y; break;
        case DQ_JO_FLOORDIV: v = floor(x / y); break;
        case DQ_JO_MOD:
            v = fmod(x, y);
            if (v != 0 && (v < 0) != (y < 0)) v += y;
            break;
        default: v = pow(x, y); break;
    }
    *out = dq_jfloat(v);
    return DQ_OK;
}

static dq_status add_texts(dq_jrun *r, dq_jtext a, dq_jtext b, dq_jvalue *out)
{
    void *memory = NULL;
    size_t size;
    if (!dq_add_ok(a.size, b.size, &size)) size = SIZE_MAX;
    DQ_TRY(dq_jsteps(r, size / 64));
    DQ_TRY(dq_jarena_take(&r->arena, size, &memory));
    if (a.size) memcpy(memory, a.data, a.size);
    if (b.size) memcpy((char *)memory + a.size, b.data, b.size);
    *out = dq_jstring(dq_jtext_of(memory, size));
    return DQ_OK;
}

/* As markupsafe, which is what the filter `safe` makes of a text. */
static dq_status put_html(dq_jrun *r, dq_bytes *text, const dq_jvalue *v)
{
    static const char marks[] = "&<>\"'";
    static const char *const codes[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
    for (size_t i = 0; i < v->text.size; i++) {
        const char *c = v->text.data + i, *mark = *c && !v->safe ? strchr(marks, *c) : NULL;
        DQ_TRY(mark ? dq_jput(r, text, codes[mark - marks], strlen(codes[mark - marks])) : dq_jput(r, text, c, 1));
    }
    return DQ_OK;
}

/* One of the two is safe: the other is escaped, and the whole is safe. */
static dq_status add_escaped(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *b, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_status status = dq_jsteps(r, 1 + a->text.size / 16 + b->text.size / 16);
    if (status == DQ_OK) status = put_html(r, &text, a);
    if (status == DQ_OK) status = put_html(r, &text, b);
    if (status == DQ_OK) status = dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    if (status == DQ_OK) out->safe = true;
    return status;
}

static dq_status add_lists(dq_jrun *r, dq_jkind kind, const dq_jlist *a, const dq_jlist *b, dq_jvalue *out)
{
    size_t n = a->count + b->count; /* both are in memory */
    DQ_TRY(dq_jsteps(r, n / 8));
    DQ_TRY(dq_jlist_new(&r->arena, kind, n, out));
    if (a->count) memcpy(out->list->items, a->items, a->count * sizeof *a->items);
    if (b->count) memcpy(out->list->items + a->count, b->items, b->count * sizeof *b->items);
    out->list->count = n;
    return DQ_OK;
}

/* A string or list several times. */
static dq_status repeat(dq_jrun *r, const dq_jvalue *v, int64_t times, dq_jvalue *out)
{
    bool text = v->kind == DQ_J_STRING;
    size_t one = text ? v->text.size : v->list->count, unit = text ? 1 : sizeof(dq_jvalue), total;
    size_t n = times > 0 ? (size_t)times : 0;
    if (!dq_mul_ok(one, n, &total) || total > SIZE_MAX / unit) total = SIZE_MAX / unit;
    if (total == 0) n = 0;
    DQ_TRY(dq_jsteps(r, n + total / 64));
    if (!text) {
        DQ_TRY(dq_jlist_new(&r->arena, v->kind, total, out));
        for (size_t i = 0; i < n; i++) memcpy(out->list->items + i * one, v->list->items, one * unit);
        out->list->count = total;
        return DQ_OK;
    }
    void *memory = NULL;
    DQ_TRY(dq_jarena_take(&r->arena, total, &memory));
    for (size_t i = 0; i < n; i++) memcpy((char *)memory + i * one, v->text.data, one);
    *out = dq_jstring(dq_jtext_of(memory, total));
    return DQ_OK;
}

dq_status dq_jbinary(dq_jrun *r, dq_jop op, const dq_jvalue *a, const dq_jvalue *b, dq_jvalue *out)
{
    static const char *const signs[] = {"+", "-", "*", "/", "//", "%", "**"};
    if (a->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, a);
    if (b->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, b);
    if (dq_jis_number(a) && dq_jis_number(b)) return numbers(r, op, a, b, out);
    bool texts = a->kind == DQ_J_STRING && b->kind == DQ_J_STRING;
    if (op == DQ_JO_ADD && texts && (a->safe || b->safe)) return add_escaped(r, a, b, out);
    if (op == DQ_JO_ADD && texts) return add_texts(r, a->text, b->text, out);
    if (op == DQ_JO_ADD && dq_jis_list(a) && a->kind == b->kind) return add_lists(r, a->kind, a->list, b->list, out);
    bool first = a->kind == DQ_J_STRING || dq_jis_list(a), second = b->kind == DQ_J_STRING || dq_jis_list(b);
    if (op == DQ_JO_MUL && first && dq_jis_whole(b)) return repeat(r, a, dq_jwhole(b), out);
    if (op == DQ_JO_MUL && second && dq_jis_whole(a)) return repeat(r, b, dq_jwhole(a), out);
    if (op == DQ_JO_MOD && a->kind == DQ_J_STRING)
        return dq_jfail(r, DQ_E_UNSUPPORTED, "formatting by %% is not supported");
    return dq_jfail(r, DQ_E_INVALID, "'%s' cannot join values of type %s and %s", signs[op], dq_jtype_name(a),
                    dq_jtype_name(b));
}
