/* Functions of the language and how arguments reach them. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "chat/run.h"

/* ---- arguments ---- */

dq_status dq_jslots(dq_jrun *r, const char *what, dq_jtext name, const dq_jargs *args, const char *const *names,
                    const dq_jvalue **slots)
{
    size_t n = 0;
    for (; names[n]; n++) slots[n] = NULL;
    if (args->places > n)
        return dq_jfail(r, DQ_E_INVALID, "%s '%.*s' takes at most %zu arguments", what, DQ_J_SHOW(name), n);
    for (size_t i = 0; i < args->count; i++) {
        size_t at = i;
        if (i >= args->places)
            for (at = 0; at < n && !dq_jtext_is(args->names[i], names[at]);) at++;
        if (at == n || slots[at])
            return dq_jfail(r, DQ_E_UNSUPPORTED, "%s '%.*s' takes no argument '%.*s'", what, DQ_J_SHOW(name),
                            DQ_J_SHOW(args->names[i]));
        slots[at] = &args->items[i];
    }
    return DQ_OK;
}

dq_status dq_jwant_string(dq_jrun *r, const char *what, const dq_jvalue *v, dq_jtext *out)
{
    if (!v) return dq_jfail(r, DQ_E_INVALID, "%s is missing", what);
    if (v->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, v);
    if (v->kind != DQ_J_STRING)
        return dq_jfail(r, DQ_E_INVALID, "%s is of type %s, a string is needed", what, dq_jtype_name(v));
    *out = v->text;
    return DQ_OK;
}

dq_status dq_jwant_int(dq_jrun *r, const char *what, const dq_jvalue *v, int64_t *out)
{
    if (!v) return dq_jfail(r, DQ_E_INVALID, "%s is missing", what);
    if (v->kind == DQ_J_UNDEFINED) return dq_jfail_undefined(r, v);
    if (!dq_jis_whole(v))
        return dq_jfail(r, DQ_E_INVALID, "%s is of type %s, an integer is needed", what, dq_jtype_name(v));
    *out = dq_jwhole(v);
    return DQ_OK;
}

/* ---- functions ---- */

static dq_status call_range(dq_jrun *r, const dq_jargs *args, dq_jvalue *out)
{
    static const char *const names[] = {"start", "stop", "step", NULL};
    const dq_jvalue *slots[3];
    int64_t start = 0, stop = 0, step = 1, count = 0;
    DQ_TRY(dq_jslots(r, "function", dq_jtext_c("range"), args, names, slots));
    DQ_TRY(dq_jwant_int(r, "an end of range", slots[0], &stop));
    if (slots[1]) {
        start = stop;
        DQ_TRY(dq_jwant_int(r, "an end of range", slots[1], &stop));
    }
    if (slots[2]) DQ_TRY(dq_jwant_int(r, "the step of range", slots[2], &step));
    if (step == 0) return dq_jfail(r, DQ_E_INVALID, "range with step 0");
    DQ_TRY(dq_jlist_new(&r->arena, DQ_J_LIST, 0, out));
    for (int64_t i = start; step > 0 ? i < stop : i > stop; count++) {
        if (count >= 100000) /* as Jinja's sandbox */
            return dq_jfail(r, DQ_E_INVALID, "a range of more than 100000 numbers");
        DQ_TRY(dq_jlist_add(&r->arena, out->list, dq_jint(i)));
        if (__builtin_add_overflow(i, step, &i)) break;
    }
    return DQ_OK;
}

/* namespace(a=1, ...), dict(a=1, ...), also with a dict to start from. */
static dq_status call_dict(dq_jrun *r, dq_jkind kind, const dq_jargs *args, dq_jvalue *out)
{
    DQ_TRY(dq_jdict_new(&r->arena, kind, out));
    if (args->places > 1 || (args->places == 1 && args->items[0].kind != DQ_J_DICT))
        return dq_jfail(r, DQ_E_UNSUPPORTED, "%s takes one dict, and values by name",
                        kind == DQ_J_DICT ? "dict" : "namespace");
    for (size_t i = 0; args->places == 1 && i < args->items[0].dict->count; i++) {
        const dq_jdict *d = args->items[0].dict;
        DQ_TRY(dq_jsteps(r, 1 + i / 8));
        DQ_TRY(dq_jdict_set(&r->arena, out->dict, d->keys[i], d->values[i]));
    }
    for (size_t i = args->places; i < args->count; i++)
        DQ_TRY(dq_jdict_set(&r->arena, out->dict, dq_jstring(args->names[i]), args->items[i]));
    return DQ_OK;
}

static dq_status call_namespace(dq_jrun *r, const dq_jargs *args, dq_jvalue *out)
{
    return call_dict(r, DQ_J_NAMESPACE, args, out);
}

static dq_status call_new_dict(dq_jrun *r, const dq_jargs *args, dq_jvalue *out)
{
    return call_dict(r, DQ_J_DICT, args, out);
}

static dq_status call_raise(dq_jrun *r, const dq_jargs *args, dq_jvalue *out)
{
    dq_jtext text = {"", 0};
    (void)out;
    if (args->count > 0) DQ_TRY(dq_jto_text(r, &args->items[0], &text));
    return dq_jfail(r, DQ_E_INVALID, "the template refuses: %.*s", (int)(text.size < 300 ? text.size : 300), text.data);
}

static const struct {
    const char *name;
    dq_status (*call)(dq_jrun *r, const dq_jargs *args, dq_jvalue *out);
} functions[] = {
    {"range", call_range},
    {"namespace", call_namespace},
    {"dict", call_new_dict},
    {"raise_exception", call_raise},
};

bool dq_jfunction_find(dq_jtext name, dq_jvalue *out)
{
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (dq_jtext_is(name, functions[i].name)) {
            *out = (dq_jvalue){.kind = DQ_J_FUNCTION, .function = (int)i};
            return true;
        }
    return false;
}

/* loop.cycle(a, b, ...) */
static dq_status call_cycle(dq_jrun *r, const dq_jloop *loop, const dq_jargs *args, dq_jvalue *out)
{
    if (args->places == 0) return dq_jfail(r, DQ_E_INVALID, "loop.cycle without values");
    *out = args->items[loop->at % args->places];
    return DQ_OK;
}

dq_status dq_jcall(dq_jrun *r, const dq_jvalue *callee, const dq_jargs *args, dq_jvalue *out)
{
    DQ_TRY(dq_jsteps(r, 1));
    switch (callee->kind) {
        case DQ_J_UNDEFINED: return dq_jfail_undefined(r, callee);
        case DQ_J_FUNCTION: return functions[callee->function].call(r, args, out);
        case DQ_J_MACRO: return dq_jcall_macro(r, callee->macro, args, out);
        case DQ_J_METHOD:
            if (callee->method->self.kind == DQ_J_LOOP) return call_cycle(r, callee->method->self.loop, args, out);
            return dq_jcall_method(r, callee->method, args, out);
        default: return dq_jfail(r, DQ_E_INVALID, "a value of type %s is called", dq_jtype_name(callee));
    }
}
