/* Operators by rising precedence, comparisons, conditions, tuples. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "chat/parser.h"

/* Operators that go from left to right, by rising precedence. */
enum { LEVELS = 4, CONCAT_LEVEL = 1, LEVEL_OPS = 4 };
static const struct {
    const char *text;
    dq_jop op;
} binary[LEVELS][LEVEL_OPS] = {
    {{"+", DQ_JO_ADD}, {"-", DQ_JO_SUB}},
    {{NULL, DQ_JO_ADD}}, /* ~ */
    {{"*", DQ_JO_MUL}, {"/", DQ_JO_DIV}, {"//", DQ_JO_FLOORDIV}, {"%", DQ_JO_MOD}},
    {{"**", DQ_JO_POW}},
};

static dq_status parse_binary(dq_jparser *p, int level, dq_jnode **out);

static dq_status parse_concat(dq_jparser *p, dq_jnode **out)
{
    dq_jnode *node = NULL, **tail;
    DQ_TRY(parse_binary(p, CONCAT_LEVEL + 1, out));
    if (!dq_jat_op(p, "~")) return DQ_OK;
    DQ_TRY(dq_jparse_node(p, DQ_JN_CONCAT, &node));
    tail = &node->a;
    dq_jappend(&tail, *out);
    while (dq_jskip_op(p, "~")) {
        dq_jnode *one = NULL;
        DQ_TRY(parse_binary(p, CONCAT_LEVEL + 1, &one));
        dq_jappend(&tail, one);
    }
    *out = node;
    return DQ_OK;
}

static dq_status parse_binary(dq_jparser *p, int level, dq_jnode **out)
{
    if (level == LEVELS) return dq_jparse_unary(p, true, out);
    if (level == CONCAT_LEVEL) return parse_concat(p, out);
    DQ_TRY(parse_binary(p, level + 1, out));
    for (;;) {
        int i = 0;
        while (i < LEVEL_OPS && binary[level][i].text && !dq_jat_op(p, binary[level][i].text)) i++;
        if (i == LEVEL_OPS || !binary[level][i].text) return DQ_OK;
        dq_jnode *node = NULL;
        DQ_TRY(dq_jparse_node(p, DQ_JN_BINARY, &node));
        dq_jnext(p);
        node->op = binary[level][i].op;
        node->a = *out;
        DQ_TRY(parse_binary(p, level + 1, &node->b));
        *out = node;
    }
}

/* Whether a comparison stands here; steps over it. */
static bool skip_comparison(dq_jparser *p, dq_jop *op)
{
    static const struct {
        const char *text;
        dq_jop op;
    } words[] = {{"==", DQ_JO_EQ}, {"!=", DQ_JO_NE}, {"<", DQ_JO_LT},
                 {"<=", DQ_JO_LE}, {">", DQ_JO_GT},  {">=", DQ_JO_GE}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (dq_jskip_op(p, words[i].text)) {
            *op = words[i].op;
            return true;
        }
    *op = DQ_JO_IN;
    if (dq_jskip_name(p, "in")) return true;
    if (!dq_jat_name(p, "not") || p->at[1].kind != DQ_JT_NAME || !dq_jtext_is(p->at[1].text, "in")) return false;
    dq_jnext(p);
    dq_jnext(p);
    *op = DQ_JO_NOT_IN;
    return true;
}

static dq_status parse_compare(dq_jparser *p, dq_jnode **out)
{
    dq_jnode *node = NULL, **tail = NULL;
    dq_jop op;
    DQ_TRY(parse_binary(p, 0, out));
    while (skip_comparison(p, &op)) {
        dq_jnode *operand = NULL;
        if (!node) {
            DQ_TRY(dq_jparse_node(p, DQ_JN_COMPARE, &node));
            node->a = *out;
            tail = &node->b;
        }
        DQ_TRY(dq_jparse_node(p, DQ_JN_OPERAND, &operand));
        operand->op = op;
        DQ_TRY(parse_binary(p, 0, &operand->a));
        dq_jappend(&tail, operand);
    }
    if (node) *out = node;
    return DQ_OK;
}

static dq_status parse_not(dq_jparser *p, dq_jnode **out)
{
    if (!dq_jat_name(p, "not")) return parse_compare(p, out);
    dq_jnode *node = NULL;
    DQ_TRY(dq_jparse_node(p, DQ_JN_NOT, &node));
    dq_jnext(p);
    DQ_TRY(dq_jenter(p));
    DQ_TRY(parse_not(p, &node->a));
    dq_jleave(p);
    *out = node;
    return DQ_OK;
}

static dq_status parse_logic(dq_jparser *p, bool either, dq_jnode **out)
{
    DQ_TRY(either ? parse_logic(p, false, out) : parse_not(p, out));
    while (dq_jat_name(p, either ? "or" : "and")) {
        dq_jnode *node = NULL;
        DQ_TRY(dq_jparse_node(p, either ? DQ_JN_OR : DQ_JN_AND, &node));
        dq_jnext(p);
        node->a = *out;
        DQ_TRY(either ? parse_logic(p, false, &node->b) : parse_not(p, &node->b));
        *out = node;
    }
    return DQ_OK;
}

dq_status dq_jparse_expression(dq_jparser *p, bool condition, dq_jnode **out)
{
    DQ_TRY(dq_jenter(p));
    DQ_TRY(parse_logic(p, true, out));
    while (condition && dq_jat_name(p, "if")) {
        dq_jnode *node = NULL;
        DQ_TRY(dq_jparse_node(p, DQ_JN_COND, &node));
        dq_jnext(p);
        node->b = *out;
        DQ_TRY(parse_logic(p, true, &node->a));
        if (dq_jskip_name(p, "else")) DQ_TRY(dq_jparse_expression(p, true, &node->c));
        *out = node;
    }
    dq_jleave(p);
    return DQ_OK;
}

static bool at_tuple_end(const dq_jparser *p)
{
    return p->at->kind == DQ_JT_PRINT_END || p->at->kind == DQ_JT_BLOCK_END || dq_jat_op(p, ")");
}

dq_status dq_jparse_tuple(dq_jparser *p, bool condition, dq_jnode **out)
{
    dq_jnode *tuple = NULL, **tail;
    DQ_TRY(dq_jparse_expression(p, condition, out));
    if (!dq_jat_op(p, ",")) return DQ_OK;
    DQ_TRY(dq_jparse_node(p, DQ_JN_TUPLE, &tuple));
    tail = &tuple->a;
    dq_jappend(&tail, *out);
    while (dq_jskip_op(p, ",") && !at_tuple_end(p)) {
        dq_jnode *one = NULL;
        DQ_TRY(dq_jparse_expression(p, condition, &one));
        dq_jappend(&tail, one);
    }
    *out = tuple;
    return DQ_OK;
}
