/* Values: names, constants, brackets, and what stands behind them. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "chat/parser.h"

/* ---- what is not made of smaller parts by an operator ---- */

/* Items up to `close`, whose opening bracket is behind us. */
static dq_status parse_items(dq_jparser *p, const char *close, bool pairs, dq_jnode **out)
{
    dq_jnode **tail = out;
    while (!dq_jskip_op(p, close)) {
        dq_jnode *item = NULL, *pair = NULL;
        if (*out) {
            DQ_TRY(dq_jexpect_op(p, ","));
            if (dq_jskip_op(p, close)) break;
        }
        DQ_TRY(dq_jparse_expression(p, true, &item));
        if (pairs) {
            DQ_TRY(dq_jparse_node(p, DQ_JN_PAIR, &pair));
            DQ_TRY(dq_jexpect_op(p, ":"));
            pair->a = item;
            DQ_TRY(dq_jparse_expression(p, true, &pair->b));
            item = pair;
        }
        dq_jappend(&tail, item);
    }
    return DQ_OK;
}

static dq_status parse_name(dq_jparser *p, dq_jnode *node)
{
    static const struct {
        const char *name;
        dq_jkind kind;
        bool truth;
    } words[] = {{"true", DQ_J_BOOL, true},   {"True", DQ_J_BOOL, true},  {"false", DQ_J_BOOL, false},
                 {"False", DQ_J_BOOL, false}, {"none", DQ_J_NONE, false}, {"None", DQ_J_NONE, false}};
    node->kind = DQ_JN_NAME;
    node->text = p->at->text;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (dq_jtext_is(node->text, words[i].name)) {
            node->kind = DQ_JN_CONST;
            node->value = (dq_jvalue){.kind = words[i].kind, .truth = words[i].truth};
        }
    dq_jnext(p);
    return DQ_OK;
}

/* Strings side by side are one. */
static dq_status parse_string(dq_jparser *p, dq_jnode *node)
{
    dq_jtext whole = p->at->text;
    for (dq_jnext(p); p->at->kind == DQ_JT_STRING; dq_jnext(p)) {
        void *memory = NULL;
        size_t size = whole.size + p->at->text.size; /* both are parts of one template */
        DQ_TRY(dq_jarena_take(p->arena, size, &memory));
        memcpy(memory, whole.data, whole.size);
        memcpy((char *)memory + whole.size, p->at->text.data, p->at->text.size);
        whole = dq_jtext_of(memory, size);
    }
    node->value = dq_jstring(whole);
    return DQ_OK;
}

static dq_status parse_parentheses(dq_jparser *p, dq_jnode *node, dq_jnode **out)
{
    dq_jnext(p);
    if (dq_jskip_op(p, ")")) {
        node->kind = DQ_JN_TUPLE;
        *out = node;
        return DQ_OK;
    }
    DQ_TRY(dq_jparse_tuple(p, true, out));
    return dq_jexpect_op(p, ")");
}

dq_status dq_jparse_primary(dq_jparser *p, dq_jnode **out)
{
    dq_jnode *node = NULL;
    DQ_TRY(dq_jparse_node(p, DQ_JN_CONST, &node));
    *out = node;
    switch (p->at->kind) {
        case DQ_JT_NAME: return parse_name(p, node);
        case DQ_JT_STRING: return parse_string(p, node);
        case DQ_JT_INT: node->value = dq_jint(p->at->integer); break;
        case DQ_JT_FLOAT: node->value = dq_jfloat(p->at->number); break;
        default:
            if (dq_jat_op(p, "(")) return parse_parentheses(p, node, out);
            if (dq_jskip_op(p, "[")) {
                node->kind = DQ_JN_LIST;
                return parse_items(p, "]", false, &node->a);
            }
            if (dq_jskip_op(p, "{")) {
                node->kind = DQ_JN_DICT;
                return parse_items(p, "}", true, &node->a);
            }
            return dq_jparse_unexpected(p, "an expression");
    }
    dq_jnext(p);
    return DQ_OK;
}

/* ---- behind a value: .name [index] (arguments) | filter, is test ---- */

/* "(", arguments, ")". */
static dq_status parse_arguments(dq_jparser *p, dq_jnode **out)
{
    dq_jnode **tail = out;
    bool keywords = false;
    DQ_TRY(dq_jexpect_op(p, "("));
    while (!dq_jskip_op(p, ")")) {
        dq_jnode *one = NULL;
        if (*out) {
            DQ_TRY(dq_jexpect_op(p, ","));
            if (dq_jskip_op(p, ")")) break;
        }
        if (dq_jat_op(p, "*") || dq_jat_op(p, "**"))
            return dq_jparse_fail(p, DQ_E_UNSUPPORTED, "arguments by * and ** are not supported");
        const dq_jtoken *t = p->at;
        if (t->kind == DQ_JT_NAME && t[1].kind == DQ_JT_OPERATOR && dq_jtext_is(t[1].text, "=")) {
            DQ_TRY(dq_jparse_node(p, DQ_JN_KEYWORD, &one));
            one->text = t->text;
            dq_jnext(p);
            dq_jnext(p);
            DQ_TRY(dq_jparse_expression(p, true, &one->a));
            keywords = true;
        } else {
            if (keywords) return dq_jparse_unexpected(p, "another argument by name");
            DQ_TRY(dq_jparse_expression(p, true, &one));
        }
        dq_jappend(&tail, one);
    }
    return DQ_OK;
}

/* Between the brackets of an index: an expression or a slice. */
static dq_status parse_index(dq_jparser *p, dq_jnode **out)
{
    dq_jnode *slice = NULL;
    DQ_TRY(dq_jparse_node(p, DQ_JN_SLICE, &slice));
    if (!dq_jat_op(p, ":")) {
        DQ_TRY(dq_jparse_expression(p, true, out));
        if (!dq_jat_op(p, ":")) return DQ_OK;
        slice->a = *out;
    }
    dq_jnext(p);
    if (!dq_jat_op(p, ":") && !dq_jat_op(p, "]")) DQ_TRY(dq_jparse_expression(p, true, &slice->b));
    if (dq_jskip_op(p, ":") && !dq_jat_op(p, "]")) DQ_TRY(dq_jparse_expression(p, true, &slice->c));
    *out = slice;
    return DQ_OK;
}

static dq_status parse_subscript(dq_jparser *p, dq_jnode *node)
{
    if (dq_jskip_op(p, "[")) {
        node->kind = DQ_JN_ITEM;
        DQ_TRY(parse_index(p, &node->b));
        if (dq_jat_op(p, ",")) return dq_jparse_fail(p, DQ_E_UNSUPPORTED, "a tuple as index is not supported");
        return dq_jexpect_op(p, "]");
    }
    dq_jnext(p); /* the dot */
    if (p->at->kind == DQ_JT_INT) {
        node->kind = DQ_JN_ITEM;
        return dq_jparse_primary(p, &node->b);
    }
    return dq_jexpect_name(p, &node->text);
}

/* .name, [index] and (arguments) behind *node. */
static dq_status parse_postfix(dq_jparser *p, dq_jnode **node)
{
    for (;;) {
        bool call = dq_jat_op(p, "(");
        dq_jnode *outer = NULL;
        if (!call && !dq_jat_op(p, ".") && !dq_jat_op(p, "[")) return DQ_OK;
        DQ_TRY(dq_jparse_node(p, call ? DQ_JN_CALL : DQ_JN_ATTR, &outer));
        outer->a = *node;
        DQ_TRY(call ? parse_arguments(p, &outer->b) : parse_subscript(p, outer));
        *node = outer;
    }
}

dq_status dq_jparse_filter(dq_jparser *p, dq_jnode *operand, dq_jnode **out)
{
    dq_jnode *node = NULL;
    DQ_TRY(dq_jparse_node(p, DQ_JN_FILTER, &node));
    DQ_TRY(dq_jexpect_name(p, &node->text));
    node->a = operand;
    if (dq_jat_op(p, "(")) DQ_TRY(parse_arguments(p, &node->b));
    *out = node;
    return DQ_OK;
}

dq_status dq_jparse_filters(dq_jparser *p, dq_jnode *operand, dq_jnode **out)
{
    *out = operand;
    while (dq_jskip_op(p, "|")) DQ_TRY(dq_jparse_filter(p, *out, out));
    return DQ_OK;
}

/* One argument of a test may stand there without brackets. */
static bool at_argument(const dq_jparser *p)
{
    switch (p->at->kind) {
        case DQ_JT_NAME:
            return !dq_jat_name(p, "else") && !dq_jat_name(p, "or") && !dq_jat_name(p, "and") &&
                   !dq_jat_name(p, "is") && !dq_jat_name(p, "if") && !dq_jat_name(p, "not") && !dq_jat_name(p, "in");
        case DQ_JT_STRING:
        case DQ_JT_INT:
        case DQ_JT_FLOAT: return true;
        default: return dq_jat_op(p, "[") || dq_jat_op(p, "{");
    }
}

/* Behind "is". */
static dq_status parse_test(dq_jparser *p, dq_jnode **node)
{
    dq_jnode *test = NULL, *negated = NULL;
    bool no = dq_jskip_name(p, "not");
    DQ_TRY(dq_jparse_node(p, DQ_JN_TEST, &test));
    DQ_TRY(dq_jexpect_name(p, &test->text));
    test->a = *node;
    if (dq_jat_op(p, "(")) {
        DQ_TRY(parse_arguments(p, &test->b));
    } else if (at_argument(p)) {
        DQ_TRY(dq_jparse_primary(p, &test->b));
        DQ_TRY(parse_postfix(p, &test->b));
    }
    *node = test;
    if (!no) return DQ_OK;
    DQ_TRY(dq_jparse_node(p, DQ_JN_NOT, &negated));
    negated->a = test;
    *node = negated;
    return DQ_OK;
}

static dq_status parse_filter_chain(dq_jparser *p, dq_jnode **node)
{
    for (;;) {
        if (dq_jat_op(p, "|"))
            DQ_TRY(dq_jparse_filters(p, *node, node));
        else if (dq_jskip_name(p, "is"))
            DQ_TRY(parse_test(p, node));
        else if (dq_jat_op(p, "("))
            DQ_TRY(parse_postfix(p, node));
        else
            return DQ_OK;
    }
}

dq_status dq_jparse_unary(dq_jparser *p, bool filters, dq_jnode **out)
{
    bool minus = dq_jat_op(p, "-"), plus = dq_jat_op(p, "+");
    if (minus || plus) {
        dq_jnode *node = NULL;
        DQ_TRY(dq_jparse_node(p, minus ? DQ_JN_NEG : DQ_JN_POS, &node));
        dq_jnext(p);
        DQ_TRY(dq_jenter(p));
        DQ_TRY(dq_jparse_unary(p, false, &node->a));
        dq_jleave(p);
        *out = node;
    } else {
        DQ_TRY(dq_jparse_primary(p, out));
    }
    DQ_TRY(parse_postfix(p, out));
    return filters ? parse_filter_chain(p, out) : DQ_OK;
}
