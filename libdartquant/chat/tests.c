/* Tests: what stands behind "is". SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "chat/run.h"

/* Tests that look at the kind alone, one bit for each. */
#define K(kind) (1u << DQ_J_##kind)
static const struct {
    const char *name;
    unsigned kinds;
} by_kind[] = {
    {"undefined", K(UNDEFINED)},
    {"none", K(NONE)},
    {"boolean", K(BOOL)},
    {"integer", K(INT)},
    {"float", K(FLOAT)},
    {"number", K(BOOL) | K(INT) | K(FLOAT)},
    {"string", K(STRING)},
    {"mapping", K(DICT)},
    {"sequence", K(UNDEFINED) | K(STRING) | K(LIST) | K(TUPLE) | K(DICT)},
    {"iterable", K(UNDEFINED) | K(STRING) | K(LIST) | K(TUPLE) | K(DICT) | K(LOOP)},
    {"callable", K(UNDEFINED) | K(METHOD) | K(FUNCTION) | K(MACRO) | K(LOOP)},
};

static const struct {
    const char *name;
    dq_jop op;
} comparisons[] = {
    {"==", DQ_JO_EQ},       {"eq", DQ_JO_EQ}, {"equalto", DQ_JO_EQ}, {"!=", DQ_JO_NE},
    {"ne", DQ_JO_NE},       {">", DQ_JO_GT},  {"gt", DQ_JO_GT},      {"greaterthan", DQ_JO_GT},
    {">=", DQ_JO_GE},       {"ge", DQ_JO_GE}, {"<", DQ_JO_LT},       {"lt", DQ_JO_LT},
    {"lessthan", DQ_JO_LT}, {"<=", DQ_JO_LE}, {"le", DQ_JO_LE},      {"in", DQ_JO_IN},
};

#define COUNT(a) (sizeof(a) / sizeof *(a))

static dq_status divisible(dq_jrun *r, const dq_jvalue *in, int64_t by, int64_t rest, bool *out)
{
    const dq_jvalue divisor = dq_jint(by);
    dq_jvalue left = {0};
    DQ_TRY(dq_jbinary(r, DQ_JO_MOD, in, &divisor, &left));
    *out = dq_jis_number(&left) && dq_jnumber(&left) == (double)rest;
    return DQ_OK;
}

/* The same object; here: equal, and of one type. */
static dq_status same(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *b, bool *out)
{
    *out = false;
    return a->kind == b->kind ? dq_jequal(r, a, b, out) : DQ_OK;
}

/* Whether a text has letters and all of them are of one case. */
static dq_status cased(dq_jrun *r, const dq_jvalue *in, int how, bool *out)
{
    dq_jtext t = {0};
    dq_jvalue changed = {0}, other = {0};
    DQ_TRY(dq_jto_text(r, in, &t));
    DQ_TRY(dq_jcase(r, t, how, &changed));
    DQ_TRY(dq_jcase(r, t, how == DQ_J_LOWER ? DQ_J_UPPER : DQ_J_LOWER, &other));
    *out = dq_jtext_equal(t, changed.text) && !dq_jtext_equal(t, other.text);
    return DQ_OK;
}

static const char *const plain[] = {"defined", "odd",   "even",  "divisibleby", "true", "false",
                                    "sameas",  "lower", "upper", "filter",      "test"};

static dq_status plain_test(dq_jrun *r, dq_jtext name, const dq_jvalue *in, const dq_jvalue *arg, bool *out)
{
    int64_t by = 0;
    *out = in->kind != DQ_J_UNDEFINED;
    if (dq_jtext_is(name, "defined")) return DQ_OK;
    if (dq_jtext_is(name, "odd")) return divisible(r, in, 2, 1, out);
    if (dq_jtext_is(name, "even")) return divisible(r, in, 2, 0, out);
    *out = in->kind == DQ_J_BOOL && in->truth == dq_jtext_is(name, "true");
    if (dq_jtext_is(name, "true") || dq_jtext_is(name, "false")) return DQ_OK;
    if (dq_jtext_is(name, "lower")) return cased(r, in, DQ_J_LOWER, out);
    if (dq_jtext_is(name, "upper")) return cased(r, in, DQ_J_UPPER, out);
    *out = in->kind == DQ_J_STRING && (dq_jtext_is(name, "filter") ? dq_jis_filter(in->text) : dq_jis_test(in->text));
    if (dq_jtext_is(name, "filter") || dq_jtext_is(name, "test")) return DQ_OK;
    if (!arg) return dq_jfail(r, DQ_E_INVALID, "the test '%.*s' needs a value", DQ_J_SHOW(name));
    if (dq_jtext_is(name, "sameas")) return same(r, in, arg, out);
    DQ_TRY(dq_jwant_int(r, "the divisor", arg, &by));
    return divisible(r, in, by, 0, out);
}

bool dq_jis_test(dq_jtext name)
{
    for (size_t i = 0; i < COUNT(by_kind); i++)
        if (dq_jtext_is(name, by_kind[i].name)) return true;
    for (size_t i = 0; i < COUNT(comparisons); i++)
        if (dq_jtext_is(name, comparisons[i].name)) return true;
    for (size_t i = 0; i < COUNT(plain); i++)
        if (dq_jtext_is(name, plain[i])) return true;
    return false;
}

dq_status dq_jtest(dq_jrun *r, dq_jtext name, const dq_jvalue *in, const dq_jargs *args, bool *out)
{
    if (args->places != args->count || args->count > 1)
        return dq_jfail(r, DQ_E_UNSUPPORTED, "the test '%.*s' takes one value at most, not by name", DQ_J_SHOW(name));
    const dq_jvalue *arg = args->count ? &args->items[0] : NULL;
    DQ_TRY(dq_jsteps(r, 1));
    for (size_t i = 0; i < COUNT(by_kind); i++)
        if (dq_jtext_is(name, by_kind[i].name)) {
            *out = by_kind[i].kinds >> in->kind & 1;
            return DQ_OK;
        }
    for (size_t i = 0; i < COUNT(comparisons); i++) {
        if (!dq_jtext_is(name, comparisons[i].name)) continue;
        if (!arg) return dq_jfail(r, DQ_E_INVALID, "the test '%.*s' needs a value", DQ_J_SHOW(name));
        return dq_jcompare(r, comparisons[i].op, in, arg, out);
    }
    if (dq_jis_test(name)) return plain_test(r, name, in, arg, out);
    return dq_jfail(r, DQ_E_UNSUPPORTED, "the test '%.*s' is not supported", DQ_J_SHOW(name));
}
