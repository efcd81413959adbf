/* Statements at work: output, conditions, loops, assignments, macros. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "chat/run.h"

/* ---- scopes ---- */

dq_status dq_jpush_scope(dq_jrun *r, dq_jscope *parent, dq_jscope **before)
{
    void *memory = NULL;
    DQ_TRY(dq_jarena_take(&r->arena, sizeof(dq_jscope), &memory));
    *(dq_jscope *)memory = (dq_jscope){.parent = parent};
    *before = r->scope;
    r->scope = memory;
    return DQ_OK;
}

dq_status dq_jbind(dq_jrun *r, dq_jtext name, const dq_jvalue *value)
{
    void *memory = NULL;
    for (dq_jbinding *b = r->scope->first; b; b = b->next)
        if (dq_jtext_equal(b->name, name)) {
            b->value = *value;
            return DQ_OK;
        }
    DQ_TRY(dq_jarena_take(&r->arena, sizeof(dq_jbinding), &memory));
    *(dq_jbinding *)memory = (dq_jbinding){name, *value, r->scope->first};
    r->scope->first = memory;
    return DQ_OK;
}

/* Jinja keeps what begins with an underscore out of namespaces, as Python uses such names for itself. */
static dq_status assign_attribute(dq_jrun *r, const dq_jnode *target, const dq_jvalue *value)
{
    dq_jnode name = {.kind = DQ_JN_NAME, .line = target->line, .text = target->text};
    dq_jvalue space = {0};
    DQ_TRY(dq_jeval(r, &name, &space));
    if (space.kind != DQ_J_NAMESPACE)
        return dq_jfail(r, DQ_E_INVALID, "'%.*s' is not a namespace, its attributes cannot be set",
                        DQ_J_SHOW(target->text));
    if (target->text2.size && target->text2.data[0] == '_')
        return dq_jfail(r, DQ_E_INVALID, "a namespace takes no attribute '%.*s'", DQ_J_SHOW(target->text2));
    DQ_TRY(dq_jsteps(r, space.dict->count / 8));
    return dq_jdict_set(&r->arena, space.dict, dq_jstring(target->text2), *value);
}

dq_status dq_jassign(dq_jrun *r, const dq_jnode *target, const dq_jvalue *value)
{
    if (target->kind == DQ_JN_NAME) return dq_jbind(r, target->text, value);
    if (target->kind == DQ_JN_NSREF) return assign_attribute(r, target, value);
    dq_jvalue items = {0};
    size_t n = 0;
    DQ_TRY(dq_jiterate(r, value, &items));
    for (const dq_jnode *at = target->a; at; at = at->next) n++;
    if (items.list->count != n) return dq_jfail(r, DQ_E_INVALID, "%zu values for %zu names", items.list->count, n);
    n = 0;
    for (const dq_jnode *at = target->a; at; at = at->next) DQ_TRY(dq_jassign(r, at, &items.list->items[n++]));
    return DQ_OK;
}

/* ---- output into a string ---- */

dq_status dq_jcapture(dq_jrun *r, const dq_jnode *body, dq_jvalue *out)
{
    dq_bytes text = {.env = r->arena.env}, *before = r->out;
    r->out = &text;
    dq_status status = dq_jexec(r, body);
    r->out = before;
    if (status == DQ_OK) return dq_jtake_bytes(r, &text, out);
    dq_bytes_clear(&text);
    return status;
}

/* The same in a scope of its own. */
static dq_status capture_scoped(dq_jrun *r, const dq_jnode *body, dq_jvalue *out)
{
    dq_jscope *before;
    DQ_TRY(dq_jpush_scope(r, r->scope, &before));
    DQ_TRY(dq_jcapture(r, body, out));
    r->scope = before;
    return DQ_OK;
}

static dq_status exec_set(dq_jrun *r, const dq_jnode *node)
{
    dq_jvalue value = {0};
    if (node->b) {
        DQ_TRY(dq_jeval(r, node->b, &value));
    } else {
        DQ_TRY(capture_scoped(r, node->body, &value));
        if (node->c) DQ_TRY(dq_jfilters(r, node->c, &value, &value));
    }
    r->line = node->line;
    return dq_jassign(r, node->a, &value);
}

static dq_status exec_filtered(dq_jrun *r, const dq_jnode *node)
{
    dq_jvalue text = {0};
    DQ_TRY(capture_scoped(r, node->body, &text));
    DQ_TRY(dq_jfilters(r, node->c, &text, &text));
    return dq_jput_str(r, r->out, &text);
}

static dq_status exec_with(dq_jrun *r, const dq_jnode *node)
{
    dq_jscope *before, *inner;
    DQ_TRY(dq_jpush_scope(r, r->scope, &before));
    inner = r->scope;
    for (const dq_jnode *at = node->a; at; at = at->next) {
        dq_jvalue value = {0};
        r->scope = before; /* the values are those of outside */
        DQ_TRY(dq_jeval(r, at->b, &value));
        r->scope = inner;
        DQ_TRY(dq_jassign(r, at->a, &value));
    }
    DQ_TRY(dq_jexec(r, node->body));
    r->scope = before;
    return DQ_OK;
}

/* ---- conditions and loops ---- */

static dq_status exec_if(dq_jrun *r, const dq_jnode *node)
{
    for (const dq_jnode *at = node->a; at; at = at->next) {
        dq_jvalue condition = dq_jbool(true);
        if (at->a) DQ_TRY(dq_jeval(r, at->a, &condition));
        if (dq_jtruth(&condition)) return dq_jexec(r, at->body);
    }
    return DQ_OK;
}

/* What the loop goes through, less what its "if" leaves out. */
static dq_status loop_items(dq_jrun *r, const dq_jnode *node, dq_jvalue *out)
{
    dq_jvalue all = {0}, kept = {0};
    dq_jscope *before;
    DQ_TRY(dq_jeval(r, node->b, &all));
    r->line = node->line;
    DQ_TRY(dq_jiterate(r, &all, out));
    if (!node->c) return DQ_OK;
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, &kept));
    DQ_TRY(dq_jpush_scope(r, r->scope, &before));
    for (size_t i = 0; i < out->list->count; i++) {
        dq_jvalue keep = {0};
        DQ_TRY(dq_jassign(r, node->a, &out->list->items[i]));
        DQ_TRY(dq_jeval(r, node->c, &keep));
        if (dq_jtruth(&keep)) DQ_TRY(dq_jlist_add(&r->arena, kept.list, out->list->items[i]));
    }
    r->scope = before;
    *out = kept;
    return DQ_OK;
}

static dq_status exec_iteration(dq_jrun *r, const dq_jnode *node, const dq_jlist *items, size_t at)
{
    dq_jscope *before;
    void *memory = NULL;
    DQ_TRY(dq_jpush_scope(r, r->scope, &before));
    DQ_TRY(dq_jarena_take(&r->arena, sizeof(dq_jloop), &memory));
    *(dq_jloop *)memory = (dq_jloop){items, at, r->loops};
    dq_jvalue loop = {.kind = DQ_J_LOOP, .loop = memory};
    DQ_TRY(dq_jbind(r, dq_jtext_c("loop"), &loop));
    DQ_TRY(dq_jassign(r, node->a, &items->items[at]));
    r->loops++;
    DQ_TRY(dq_jexec(r, node->body));
    r->loops--;
    r->scope = before;
    return DQ_OK;
}

static dq_status exec_for(dq_jrun *r, const dq_jnode *node)
{
    dq_jvalue items = {0};
    DQ_TRY(loop_items(r, node, &items));
    for (size_t i = 0; i < items.list->count; i++) {
        DQ_TRY(dq_jsteps(r, 1));
        DQ_TRY(exec_iteration(r, node, items.list, i));
        bool stop = r->flow == DQ_J_BREAK;
        r->flow = DQ_J_GO_ON;
        if (stop) break;
    }
    if (items.list->count > 0 || !node->orelse) return DQ_OK;
    dq_jscope *before;
    DQ_TRY(dq_jpush_scope(r, r->scope, &before));
    DQ_TRY(dq_jexec(r, node->orelse));
    r->scope = before;
    return DQ_OK;
}

/* ---- macros ---- */

static dq_status exec_macro(dq_jrun *r, const dq_jnode *node)
{
    void *memory = NULL;
    DQ_TRY(dq_jarena_take(&r->arena, sizeof(dq_jmacro), &memory));
    *(dq_jmacro *)memory = (dq_jmacro){node, r->scope};
    dq_jvalue macro = {.kind = DQ_J_MACRO, .macro = memory};
    return dq_jbind(r, node->text, &macro);
}

static const dq_jvalue *argument(const dq_jargs *args, size_t place, dq_jtext name)
{
    if (place < args->places) return &args->items[place];
    for (size_t i = args->places; i < args->count; i++)
        if (dq_jtext_equal(args->names[i], name)) return &args->items[i];
    return NULL;
}

/* Binds parameters in the macro's own scope, where defaults are evaluated too. */
static dq_status bind_parameters(dq_jrun *r, const dq_jnode *node, const dq_jargs *args)
{
    size_t place = 0, taken = 0;
    for (const dq_jnode *at = node->a; at; at = at->next, place++) {
        const dq_jvalue *given = argument(args, place, at->text);
        dq_jvalue value = given ? *given : dq_jmissing(at->text, NULL);
        if (given)
            taken++;
        else if (at->a)
            DQ_TRY(dq_jeval(r, at->a, &value));
        DQ_TRY(dq_jbind(r, at->text, &value));
    }
    if (taken == args->count) return DQ_OK;
    return dq_jfail(r, DQ_E_INVALID, "macro '%.*s' does not take all of its %zu arguments", DQ_J_SHOW(node->text),
                    args->count);
}

dq_status dq_jcall_macro(dq_jrun *r, const dq_jmacro *macro, const dq_jargs *args, dq_jvalue *out)
{
    dq_jscope *before;
    int loops = r->loops;
    DQ_TRY(dq_jdeeper(r));
    DQ_TRY(dq_jpush_scope(r, macro->scope, &before));
    DQ_TRY(bind_parameters(r, macro->node, args));
    r->loops = 0;
    DQ_TRY(dq_jcapture(r, macro->node->body, out));
    r->loops = loops;
    r->scope = before;
    r->depth--;
    return DQ_OK;
}

/* ---- all statements ---- */

static dq_status exec_one(dq_jrun *r, const dq_jnode *node)
{
    dq_jvalue v = {0};
    switch (node->kind) {
        case DQ_JN_DATA: return dq_jput(r, r->out, node->text.data, node->text.size);
        case DQ_JN_PRINT: DQ_TRY(dq_jeval(r, node->a, &v)); return dq_jput_str(r, r->out, &v);
        case DQ_JN_IF: return exec_if(r, node);
        case DQ_JN_FOR: return exec_for(r, node);
        case DQ_JN_SET: return exec_set(r, node);
        case DQ_JN_WITH: return exec_with(r, node);
        case DQ_JN_MACRO: return exec_macro(r, node);
        case DQ_JN_FILTERED: return exec_filtered(r, node);
        case DQ_JN_GROUP: return dq_jexec(r, node->body);
        case DQ_JN_BREAK: r->flow = DQ_J_BREAK; return DQ_OK;
        case DQ_JN_CONTINUE: r->flow = DQ_J_CONTINUE; return DQ_OK;
        default: return dq_jfail(r, DQ_E_INTERNAL, "node %d is no statement", (int)node->kind);
    }
}

dq_status dq_jexec(dq_jrun *r, const dq_jnode *body)
{
    DQ_TRY(dq_jdeeper(r));
    for (const dq_jnode *at = body; at && r->flow == DQ_J_GO_ON; at = at->next) {
        r->line = at->line;
        DQ_TRY(dq_jsteps(r, 1));
        DQ_TRY(exec_one(r, at));
    }
    r->depth--;
    return DQ_OK;
}
