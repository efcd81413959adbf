/* Values of expressions. SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>

#include "base/status.h"
#include "chat/run.h"

/* ---- errors and bounds ---- */

dq_status dq_jfail(const dq_jrun *r, dq_status status, const char *fmt, ...)
{
    char text[400];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    return dq_fail(status, "chat template, line %u: %s", r->line, text);
}

dq_status dq_jfail_undefined(const dq_jrun *r, const dq_jvalue *v)
{
    dq_jtext name = v->missing.name;
    if (dq_jtext_is(name, "strftime_now") && !v->missing.owner)
        return dq_jfail(r, DQ_E_UNSUPPORTED,
                        "strftime_now is not supported: texts do not depend on the clock; give the date as a variable");
    if (v->missing.owner)
        return dq_jfail(r, DQ_E_INVALID, "a value of type %s has no '%.*s'", v->missing.owner, DQ_J_SHOW(name));
    return dq_jfail(r, DQ_E_INVALID, "'%.*s' is undefined", DQ_J_SHOW(name));
}

dq_status dq_jsteps(dq_jrun *r, uint64_t work)
{
    if (work > DQ_J_MAX_STEPS || r->steps + (int64_t)work > DQ_J_MAX_STEPS)
        return dq_jfail(r, DQ_E_INVALID, "the template takes more than %d steps", (int)DQ_J_MAX_STEPS);
    r->steps += (int64_t)work;
    return DQ_OK;
}

dq_status dq_jdeeper(dq_jrun *r)
{
    if (r->depth >= DQ_J_MAX_DEPTH)
        return dq_jfail(r, DQ_E_INVALID, "nested deeper than %d levels", (int)DQ_J_MAX_DEPTH);
    r->depth++;
    return DQ_OK;
}

/* ---- names ---- */

static dq_status eval_name(dq_jrun *r, dq_jtext name, dq_jvalue *out)
{
    for (const dq_jscope *s = r->scope; s; s = s->parent)
        for (const dq_jbinding *b = s->first; b; b = b->next)
            if (dq_jtext_equal(b->name, name)) {
                *out = b->value;
                return DQ_OK;
            }
    if (!dq_jfunction_find(name, out)) *out = dq_jmissing(name, NULL);
    return DQ_OK;
}

/* ---- what is made of several values ---- */

static dq_status eval_items(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    DQ_TRY(dq_jlist_new(&r->arena, node->kind == DQ_JN_LIST ? DQ_J_LIST : DQ_J_TUPLE, 0, out));
    for (const dq_jnode *at = node->a; at; at = at->next) {
        dq_jvalue item = {0};
        DQ_TRY(dq_jeval(r, at, &item));
        DQ_TRY(dq_jlist_add(&r->arena, out->list, item));
    }
    return DQ_OK;
}

static dq_status eval_dict(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    DQ_TRY(dq_jdict_new(&r->arena, DQ_J_DICT, out));
    for (const dq_jnode *at = node->a; at; at = at->next) {
        dq_jvalue key = {0}, value = {0};
        DQ_TRY(dq_jeval(r, at->a, &key));
        DQ_TRY(dq_jeval(r, at->b, &value));
        if (key.kind != DQ_J_STRING && key.kind != DQ_J_NONE && !dq_jis_number(&key))
            return dq_jfail(r, DQ_E_UNSUPPORTED, "a key of type %s is not supported", dq_jtype_name(&key));
        DQ_TRY(dq_jsteps(r, out->dict->count / 8));
        DQ_TRY(dq_jdict_set(&r->arena, out->dict, key, value));
    }
    return DQ_OK;
}

static dq_status eval_concat(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env};
    dq_status status = DQ_OK;
    for (const dq_jnode *at = node->a; at && status == DQ_OK; at = at->next) {
        dq_jvalue part = {0};
        status = dq_jeval(r, at, &part);
        if (status == DQ_OK) status = dq_jput_str(r, &text, &part);
    }
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

/* ---- operators ---- */

/* Each comparison of a chain has the value before as its left side. */
static dq_status eval_compare(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue left = {0}, right = {0};
    bool yes = true;
    DQ_TRY(dq_jeval(r, node->a, &left));
    for (const dq_jnode *at = node->b; at && yes; at = at->next) {
        DQ_TRY(dq_jeval(r, at->a, &right));
        DQ_TRY(dq_jcompare(r, at->op, &left, &right, &yes));
        left = right;
    }
    *out = dq_jbool(yes);
    return DQ_OK;
}

static dq_status eval_sign(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue v = {0};
    DQ_TRY(dq_jeval(r, node->a, &v));
    if (v.kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, &v);
    if (!dq_jis_number(&v)) return dq_jfail(r, DQ_E_INVALID, "a sign before a value of type %s", dq_jtype_name(&v));
    if (v.kind == DQ_J_FLOAT) {
        *out = dq_jfloat(node->kind == DQ_JN_NEG ? -v.number : v.number);
        return DQ_OK;
    }
    const dq_jvalue zero = dq_jint(0);
    return dq_jbinary(r, node->kind == DQ_JN_NEG ? DQ_JO_SUB : DQ_JO_ADD, &zero, &v, out);
}

static dq_status eval_binary(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue a = {0}, b = {0};
    DQ_TRY(dq_jeval(r, node->a, &a));
    DQ_TRY(dq_jeval(r, node->b, &b));
    r->line = node->line;
    return dq_jbinary(r, node->op, &a, &b, out);
}

static dq_status eval_item(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue whole = {0}, index = {0}, parts[3] = {{0}};
    const dq_jvalue *given[3] = {NULL, NULL, NULL};
    DQ_TRY(dq_jeval(r, node->a, &whole));
    if (node->b->kind != DQ_JN_SLICE) {
        DQ_TRY(dq_jeval(r, node->b, &index));
        r->line = node->line;
        return dq_jitem(r, &whole, &index, out);
    }
    const dq_jnode *nodes[3] = {node->b->a, node->b->b, node->b->c};
    for (int i = 0; i < 3; i++) {
        if (!nodes[i]) continue;
        DQ_TRY(dq_jeval(r, nodes[i], &parts[i]));
        if (parts[i].kind != DQ_J_NONE) given[i] = &parts[i];
    }
    r->line = node->line;
    return dq_jslice(r, &whole, given[0], given[1], given[2], out);
}

/* ---- calls, filters, tests ---- */

dq_status dq_jeval_args(dq_jrun *r, const dq_jnode *list, dq_jargs *out)
{
    *out = (dq_jargs){.count = 0};
    for (const dq_jnode *at = list; at; at = at->next) {
        bool keyword = at->kind == DQ_JN_KEYWORD;
        if (out->count == DQ_J_MAX_ARGS)
            return dq_jfail(r, DQ_E_UNSUPPORTED, "more than %d arguments", (int)DQ_J_MAX_ARGS);
        DQ_TRY(dq_jeval(r, keyword ? at->a : at, &out->items[out->count]));
        if (keyword) out->names[out->count] = at->text;
        out->places += !keyword;
        out->count++;
    }
    return DQ_OK;
}

static dq_status eval_call(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue callee = {0};
    dq_jargs args;
    DQ_TRY(dq_jeval(r, node->a, &callee));
    DQ_TRY(dq_jeval_args(r, node->b, &args));
    r->line = node->line;
    return dq_jcall(r, &callee, &args, out);
}

dq_status dq_jfilters(dq_jrun *r, const dq_jnode *filter, const dq_jvalue *innermost, dq_jvalue *out)
{
    dq_jvalue in = {0};
    dq_jargs args;
    DQ_TRY(dq_jdeeper(r));
    if (!filter->a)
        in = *innermost;
    else if (filter->a->kind == DQ_JN_FILTER && innermost)
        DQ_TRY(dq_jfilters(r, filter->a, innermost, &in));
    else
        DQ_TRY(dq_jeval(r, filter->a, &in));
    DQ_TRY(dq_jeval_args(r, filter->b, &args));
    r->line = filter->line;
    r->depth--;
    return dq_jfilter(r, filter->text, &in, &args, out);
}

static dq_status eval_test(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue in = {0};
    dq_jargs args;
    bool yes = false;
    DQ_TRY(dq_jeval(r, node->a, &in));
    DQ_TRY(dq_jeval_args(r, node->b, &args));
    r->line = node->line;
    DQ_TRY(dq_jtest(r, node->text, &in, &args, &yes));
    *out = dq_jbool(yes);
    return DQ_OK;
}

static dq_status eval_choice(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue v = {0};
    DQ_TRY(dq_jeval(r, node->a, &v));
    bool truth = dq_jtruth(&v);
    if (node->kind == DQ_JN_NOT) {
        *out = dq_jbool(!truth);
        return DQ_OK;
    }
    if (node->kind == DQ_JN_COND) {
        const dq_jnode *chosen = truth ? node->b : node->c;
        *out = dq_jmissing(dq_jtext_c("the value of an if without else"), NULL);
        return chosen ? dq_jeval(r, chosen, out) : DQ_OK;
    }
    if (truth == (node->kind == DQ_JN_AND)) return dq_jeval(r, node->b, out);
    *out = v;
    return DQ_OK;
}

static dq_status eval_kind(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue v = {0};
    switch (node->kind) {
        case DQ_JN_CONST: *out = node->value; return DQ_OK;
        case DQ_JN_NAME: return eval_name(r, node->text, out);
        case DQ_JN_LIST:
        case DQ_JN_TUPLE: return eval_items(r, node, out);
        case DQ_JN_DICT: return eval_dict(r, node, out);
        case DQ_JN_ATTR:
            DQ_TRY(dq_jeval(r, node->a, &v));
            r->line = node->line;
            return dq_jattribute(r, &v, node->text, out);
        case DQ_JN_ITEM: return eval_item(r, node, out);
        case DQ_JN_CALL: return eval_call(r, node, out);
        case DQ_JN_FILTER: return dq_jfilters(r, node, NULL, out);
        case DQ_JN_TEST: return eval_test(r, node, out);
        case DQ_JN_NEG:
        case DQ_JN_POS: return eval_sign(r, node, out);
        case DQ_JN_BINARY: return eval_binary(r, node, out);
        case DQ_JN_NOT:
        case DQ_JN_AND:
        case DQ_JN_OR:
        case DQ_JN_COND: return eval_choice(r, node, out);
        case DQ_JN_COMPARE: return eval_compare(r, node, out);
        case DQ_JN_CONCAT: return eval_concat(r, node, out);
        default: return dq_jfail(r, DQ_E_INTERNAL, "node %d is no expression", (int)node->kind);
    }
}

dq_status dq_jeval(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    r->line = node->line;
    DQ_TRY(dq_jsteps(r, 1));
    DQ_TRY(dq_jdeeper(r));
    DQ_TRY(eval_kind(r, node, out));
    r->depth--;
    return DQ_OK;
}
