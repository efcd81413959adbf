/* Statements: what stands between {% and %}. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "chat/parser.h"

static dq_status parse_body(dq_jparser *p, const char *const *ends, dq_jnode **out);

/* "%}", statements, "{%" and one of the words `ends` (NULL-terminated), at which it stops. */
static dq_status parse_block(dq_jparser *p, const char *const *ends, dq_jnode **out)
{
    dq_jskip_op(p, ":"); /* as Jinja allows */
    if (p->at->kind != DQ_JT_BLOCK_END) return dq_jparse_unexpected(p, "%}");
    dq_jnext(p);
    DQ_TRY(dq_jenter(p));
    DQ_TRY(parse_body(p, ends, out));
    dq_jleave(p);
    return DQ_OK;
}

/* The same up to one word, which is stepped over. */
static dq_status parse_until(dq_jparser *p, const char *end, dq_jnode **out)
{
    const char *const ends[] = {end, NULL};
    DQ_TRY(parse_block(p, ends, out));
    dq_jnext(p);
    return DQ_OK;
}

/* ---- targets of assignments ---- */

static dq_status parse_name_target(dq_jparser *p, bool attributes, dq_jnode **out)
{
    DQ_TRY(dq_jparse_node(p, DQ_JN_NAME, out));
    DQ_TRY(dq_jexpect_name(p, &(*out)->text));
    if (!attributes || !dq_jskip_op(p, ".")) return DQ_OK;
    (*out)->kind = DQ_JN_NSREF;
    return dq_jexpect_name(p, &(*out)->text2);
}

/* a name, name.name where `attributes`, or several with commas between, also in parentheses. */
static dq_status parse_target(dq_jparser *p, bool attributes, dq_jnode **out)
{
    dq_jnode *tuple = NULL, **tail;
    bool closed = dq_jskip_op(p, "(");
    DQ_TRY(parse_name_target(p, attributes, out));
    if (dq_jat_op(p, ",")) {
        DQ_TRY(dq_jparse_node(p, DQ_JN_TUPLE, &tuple));
        tail = &tuple->a;
        dq_jappend(&tail, *out);
        while (dq_jskip_op(p, ",") && p->at->kind == DQ_JT_NAME && !dq_jat_name(p, "in")) {
            dq_jnode *one = NULL;
            DQ_TRY(parse_name_target(p, attributes, &one));
            dq_jappend(&tail, one);
        }
        *out = tuple;
    }
    return closed ? dq_jexpect_op(p, ")") : DQ_OK;
}

/* ---- one statement each; its word is behind us ---- */

static dq_status parse_if(dq_jparser *p, dq_jnode *node)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    dq_jnode **tail = &node->a;
    node->kind = DQ_JN_IF;
    for (bool more = true; more;) {
        dq_jnode *branch = NULL;
        DQ_TRY(dq_jparse_node(p, DQ_JN_BRANCH, &branch));
        DQ_TRY(dq_jparse_tuple(p, false, &branch->a));
        DQ_TRY(parse_block(p, ends, &branch->body));
        dq_jappend(&tail, branch);
        more = dq_jskip_name(p, "elif");
    }
    if (!dq_jskip_name(p, "else")) {
        dq_jnext(p);
        return DQ_OK;
    }
    dq_jnode *last = NULL;
    DQ_TRY(dq_jparse_node(p, DQ_JN_BRANCH, &last));
    dq_jappend(&tail, last);
    return parse_until(p, "endif", &last->body);
}

static dq_status parse_for(dq_jparser *p, dq_jnode *node)
{
    static const char *const ends[] = {"endfor", "else", NULL};
    node->kind = DQ_JN_FOR;
    DQ_TRY(parse_target(p, false, &node->a));
    if (!dq_jskip_name(p, "in")) return dq_jparse_unexpected(p, "'in'");
    DQ_TRY(dq_jparse_tuple(p, false, &node->b));
    if (dq_jskip_name(p, "if")) DQ_TRY(dq_jparse_expression(p, true, &node->c));
    if (dq_jat_name(p, "recursive"))
        return dq_jparse_fail(p, DQ_E_UNSUPPORTED, "a recursive for loop is not supported");
    p->loops++;
    DQ_TRY(parse_block(p, ends, &node->body));
    p->loops--;
    if (dq_jskip_name(p, "else")) return parse_until(p, "endfor", &node->orelse);
    dq_jnext(p);
    return DQ_OK;
}

static dq_status parse_set(dq_jparser *p, dq_jnode *node)
{
    node->kind = DQ_JN_SET;
    DQ_TRY(parse_target(p, true, &node->a));
    if (dq_jskip_op(p, "=")) return dq_jparse_tuple(p, true, &node->b);
    DQ_TRY(dq_jparse_filters(p, NULL, &node->c));
    return parse_until(p, "endset", &node->body);
}

static dq_status parse_with(dq_jparser *p, dq_jnode *node)
{
    dq_jnode **tail = &node->a;
    node->kind = DQ_JN_WITH;
    while (p->at->kind != DQ_JT_BLOCK_END) {
        dq_jnode *set = NULL;
        if (node->a) DQ_TRY(dq_jexpect_op(p, ","));
        DQ_TRY(dq_jparse_node(p, DQ_JN_SET, &set));
        DQ_TRY(parse_name_target(p, false, &set->a));
        DQ_TRY(dq_jexpect_op(p, "="));
        DQ_TRY(dq_jparse_expression(p, true, &set->b));
        dq_jappend(&tail, set);
    }
    return parse_until(p, "endwith", &node->body);
}

static dq_status parse_macro(dq_jparser *p, dq_jnode *node)
{
    dq_jnode **tail = &node->a;
    int loops = p->loops;
    node->kind = DQ_JN_MACRO;
    DQ_TRY(dq_jexpect_name(p, &node->text));
    DQ_TRY(dq_jexpect_op(p, "("));
    while (!dq_jskip_op(p, ")")) {
        dq_jnode *param = NULL;
        if (node->a) DQ_TRY(dq_jexpect_op(p, ","));
        DQ_TRY(dq_jparse_node(p, DQ_JN_PARAM, &param));
        DQ_TRY(dq_jexpect_name(p, &param->text));
        if (dq_jskip_op(p, "=")) DQ_TRY(dq_jparse_expression(p, true, &param->a));
        dq_jappend(&tail, param);
    }
    p->loops = 0;
    DQ_TRY(parse_until(p, "endmacro", &node->body));
    p->loops = loops;
    return DQ_OK;
}

static dq_status parse_filter_block(dq_jparser *p, dq_jnode *node)
{
    node->kind = DQ_JN_FILTERED;
    DQ_TRY(dq_jparse_filter(p, NULL, &node->c));
    DQ_TRY(dq_jparse_filters(p, node->c, &node->c));
    return parse_until(p, "endfilter", &node->body);
}

static dq_status parse_generation(dq_jparser *p, dq_jnode *node)
{
    node->kind = DQ_JN_GROUP;
    return parse_until(p, "endgeneration", &node->body);
}

static dq_status parse_jump(dq_jparser *p, dq_jnode *node)
{
    if (p->loops == 0) return dq_jparse_fail(p, DQ_E_FORMAT, "break or continue outside of a for loop");
    node->kind = dq_jtext_is(node->text, "break") ? DQ_JN_BREAK : DQ_JN_CONTINUE;
    return DQ_OK;
}

static dq_status parse_print(dq_jparser *p, dq_jnode *node)
{
    node->kind = DQ_JN_PRINT;
    return dq_jparse_expression(p, true, &node->a);
}

/* Behind "{%". */
static dq_status parse_statement(dq_jparser *p, dq_jnode **out)
{
    static const struct {
        const char *word;
        dq_status (*parse)(dq_jparser *p, dq_jnode *node);
    } statements[] = {{"if", parse_if},
                      {"for", parse_for},
                      {"set", parse_set},
                      {"with", parse_with},
                      {"macro", parse_macro},
                      {"filter", parse_filter_block},
                      {"generation", parse_generation},
                      {"break", parse_jump},
                      {"continue", parse_jump},
                      {"print", parse_print}};
    static const char *const others[] = {"include", "import", "from",  "extends",    "block",    "call",
                                         "do",      "trans",  "debug", "autoescape", "pluralize"};
    DQ_TRY(dq_jparse_node(p, DQ_JN_GROUP, out));
    DQ_TRY(dq_jexpect_name(p, &(*out)->text));
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (dq_jtext_is((*out)->text, statements[i].word)) {
            DQ_TRY(statements[i].parse(p, *out));
            if (p->at->kind != DQ_JT_BLOCK_END) return dq_jparse_unexpected(p, "%}");
            dq_jnext(p);
            return DQ_OK;
        }
    p->at--; /* errors name the line of the word */
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (dq_jat_name(p, others[i]))
            return dq_jparse_fail(p, DQ_E_UNSUPPORTED, "the statement '%s' is not supported", others[i]);
    return dq_jparse_unexpected(p, "a statement");
}

static bool at_end_word(const dq_jparser *p, const char *const *ends)
{
    for (; ends && *ends; ends++)
        if (dq_jat_name(p, *ends)) return true;
    return false;
}

/* Text and tags until "{%" and one of the words `ends`; NULL: until the template ends. */
static dq_status parse_body(dq_jparser *p, const char *const *ends, dq_jnode **out)
{
    dq_jnode **tail = out;
    while (p->at->kind != DQ_JT_END) {
        dq_jnode *node = NULL;
        if (p->at->kind == DQ_JT_DATA) {
            DQ_TRY(dq_jparse_node(p, DQ_JN_DATA, &node));
            node->text = p->at->text;
            dq_jnext(p);
        } else if (p->at->kind == DQ_JT_PRINT_BEGIN) {
            dq_jnext(p);
            DQ_TRY(dq_jparse_node(p, DQ_JN_PRINT, &node));
            DQ_TRY(dq_jparse_tuple(p, true, &node->a));
            if (p->at->kind != DQ_JT_PRINT_END) return dq_jparse_unexpected(p, "}}");
            dq_jnext(p);
        } else {
            dq_jnext(p); /* "{%" */
            if (at_end_word(p, ends)) return DQ_OK;
            DQ_TRY(parse_statement(p, &node));
        }
        dq_jappend(&tail, node);
    }
    if (!ends) return DQ_OK;
    return dq_jparse_fail(p, DQ_E_FORMAT, "the template ends where '%s' is needed", ends[0]);
}

dq_status dq_jparse(dq_jarena *arena, const dq_jtokens *tokens, dq_jnode **out)
{
    dq_jparser p = {.arena = arena, .at = tokens->items};
    return parse_body(&p, NULL, out);
}
