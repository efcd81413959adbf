/* Steps and errors of the parser. SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>

#include "base/status.h"
#include "chat/parser.h"

dq_status dq_jparse_fail(const dq_jparser *p, dq_status status, const char *fmt, ...)
{
    char text[300];
    va_list list;
    va_start(list, fmt);
    vsnprintf(text, sizeof text, fmt, list);
    va_end(list);
    return dq_fail(status, "chat template, line %u: %s", p->at->line, text);
}

dq_status dq_jparse_unexpected(const dq_jparser *p, const char *wanted)
{
    static const char *const kinds[] = {
        "the end of the template", "text", "{{", "}}", "{%", "%}", "", "a string", "a number", "a number", ""};
    const dq_jtoken *t = p->at;
    if (t->kind != DQ_JT_NAME && t->kind != DQ_JT_OPERATOR)
        return dq_jparse_fail(p, DQ_E_FORMAT, "%s where %s is needed", kinds[t->kind], wanted);
    return dq_jparse_fail(p, DQ_E_FORMAT, "'%.*s' where %s is needed", (int)(t->text.size < 60 ? t->text.size : 60),
                          t->text.data, wanted);
}

dq_status dq_jparse_node(dq_jparser *p, dq_jnode_kind kind, dq_jnode **out)
{
    void *memory = NULL;
    DQ_TRY(dq_jarena_take(p->arena, sizeof(dq_jnode), &memory));
    *out = memory;
    **out = (dq_jnode){.kind = kind, .line = p->at->line};
    return DQ_OK;
}

void dq_jnext(dq_jparser *p)
{
    if (p->at->kind != DQ_JT_END) p->at++;
}

bool dq_jat_op(const dq_jparser *p, const char *op)
{
    return p->at->kind == DQ_JT_OPERATOR && dq_jtext_is(p->at->text, op);
}

bool dq_jat_name(const dq_jparser *p, const char *name)
{
    return p->at->kind == DQ_JT_NAME && dq_jtext_is(p->at->text, name);
}

bool dq_jskip_op(dq_jparser *p, const char *op)
{
    if (!dq_jat_op(p, op)) return false;
    dq_jnext(p);
    return true;
}

bool dq_jskip_name(dq_jparser *p, const char *name)
{
    if (!dq_jat_name(p, name)) return false;
    dq_jnext(p);
    return true;
}

dq_status dq_jexpect_op(dq_jparser *p, const char *op)
{
    char wanted[16];
    if (dq_jskip_op(p, op)) return DQ_OK;
    snprintf(wanted, sizeof wanted, "'%s'", op);
    return dq_jparse_unexpected(p, wanted);
}

dq_status dq_jexpect_name(dq_jparser *p, dq_jtext *out)
{
    if (p->at->kind != DQ_JT_NAME) return dq_jparse_unexpected(p, "a name");
    *out = p->at->text;
    dq_jnext(p);
    return DQ_OK;
}

dq_status dq_jenter(dq_jparser *p)
{
    if (p->depth >= DQ_J_MAX_NESTING)
        return dq_jparse_fail(p, DQ_E_FORMAT, "nested deeper than %d levels", DQ_J_MAX_NESTING);
    p->depth++;
    return DQ_OK;
}
