/* Values of the template language, as Python's and Jinja's. Values are never changed once made (namespaces apart), and
 * live until the rendering ends: no value is freed by itself. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_VALUE_H
#define DQ_CHAT_VALUE_H

#include "base/env.h"

typedef enum dq_jkind {
    DQ_J_UNDEFINED,
    DQ_J_NONE,
    DQ_J_BOOL,
    DQ_J_INT,
    DQ_J_FLOAT,
    DQ_J_STRING,
    DQ_J_LIST,
    DQ_J_TUPLE,
    DQ_J_DICT,
    DQ_J_NAMESPACE,
    DQ_J_LOOP,     /* `loop` */
    DQ_J_METHOD,   /* a method of a string, list or dict */
    DQ_J_FUNCTION, /* range, dict, namespace, raise_exception */
    DQ_J_MACRO
} dq_jkind;

/* UTF-8 without a closing NUL. */
typedef struct dq_jtext {
    const char *data;
    size_t size;
} dq_jtext;

typedef struct dq_jvalue dq_jvalue;
typedef struct dq_jlist {
    dq_jvalue *items;
    size_t count, capacity;
} dq_jlist;
typedef struct dq_jdict {
    dq_jvalue *keys, *values;
    size_t count, capacity;
} dq_jdict;

struct dq_jvalue {
    dq_jkind kind;
    bool safe; /* a string that went through the filter `safe`: Jinja escapes what is added to it */
    union {
        bool truth;
        int64_t integer;
        double number;
        dq_jtext text;
        dq_jlist *list; /* and tuple */
        dq_jdict *dict; /* and namespace */
        int function;
        const struct dq_jloop *loop;
        const struct dq_jmethod *method;
        const struct dq_jmacro *macro;
        struct {
            dq_jtext name;     /* what is not there */
            const char *owner; /* the kind of object that lacks it; NULL = a variable */
        } missing;
    };
};

typedef struct dq_jmethod {
    dq_jvalue self;
    dq_jtext name;
} dq_jmethod;

/* One iteration of a for statement. */
typedef struct dq_jloop {
    const dq_jlist *items;
    size_t at;
    int level; /* of nesting, from 0 */
} dq_jloop;

/* Memory that is given back as a whole; `bytes` counts what was asked for against `limit`. */
typedef struct dq_jarena {
    dq_env *env;
    struct dq_jchunk *chunks;
    uint64_t bytes, limit;
} dq_jarena;

dq_status dq_jarena_take(dq_jarena *arena, size_t bytes, void **out);
/* Bytes that are asked for elsewhere on the same account. */
dq_status dq_jarena_charge(dq_jarena *arena, size_t bytes);
void dq_jarena_clear(dq_jarena *arena);

static inline dq_jtext dq_jtext_of(const char *data, size_t size) { return (dq_jtext){data, size}; }
dq_jtext dq_jtext_c(const char *text); /* static text */
bool dq_jtext_is(dq_jtext text, const char *word);
bool dq_jtext_equal(dq_jtext a, dq_jtext b);
dq_status dq_jtext_copy(dq_jarena *arena, const char *data, size_t size, dq_jtext *out);

static inline dq_jvalue dq_jnone(void) { return (dq_jvalue){.kind = DQ_J_NONE}; }
static inline dq_jvalue dq_jbool(bool b) { return (dq_jvalue){.kind = DQ_J_BOOL, .truth = b}; }
static inline dq_jvalue dq_jint(int64_t i) { return (dq_jvalue){.kind = DQ_J_INT, .integer = i}; }
static inline dq_jvalue dq_jfloat(double d) { return (dq_jvalue){.kind = DQ_J_FLOAT, .number = d}; }
static inline dq_jvalue dq_jstring(dq_jtext t) { return (dq_jvalue){.kind = DQ_J_STRING, .text = t}; }
static inline dq_jvalue dq_jmissing(dq_jtext name, const char *owner)
{
    return (dq_jvalue){.kind = DQ_J_UNDEFINED, .missing = {name, owner}};
}
static inline bool dq_jis_list(const dq_jvalue *v) { return v->kind == DQ_J_LIST || v->kind == DQ_J_TUPLE; }
static inline bool dq_jis_whole(const dq_jvalue *v) { return v->kind == DQ_J_INT || v->kind == DQ_J_BOOL; }
static inline bool dq_jis_number(const dq_jvalue *v) { return dq_jis_whole(v) || v->kind == DQ_J_FLOAT; }
static inline int64_t dq_jwhole(const dq_jvalue *v) { return v->kind == DQ_J_BOOL ? v->truth : v->integer; }
static inline double dq_jnumber(const dq_jvalue *v) { return v->kind == DQ_J_FLOAT ? v->number : (double)dq_jwhole(v); }
const char *dq_jtype_name(const dq_jvalue *v); /* Python's: "str", "NoneType", ... */
bool dq_jtruth(const dq_jvalue *v);

/* *out is an empty list (or tuple) with room for `capacity`. */
dq_status dq_jlist_new(dq_jarena *arena, dq_jkind kind, size_t capacity, dq_jvalue *out);
dq_status dq_jlist_add(dq_jarena *arena, dq_jlist *list, dq_jvalue item);
dq_status dq_jpair(dq_jarena *arena, dq_jvalue a, dq_jvalue b, dq_jvalue *out);
dq_status dq_jdict_new(dq_jarena *arena, dq_jkind kind, dq_jvalue *out);
/* Replaces the value of a key that is there. Keys are strings, numbers or none. */
dq_status dq_jdict_set(dq_jarena *arena, dq_jdict *dict, dq_jvalue key, dq_jvalue value);
/* NULL = absent. */
const dq_jvalue *dq_jdict_get(const dq_jdict *dict, const dq_jvalue *key);
const dq_jvalue *dq_jdict_find(const dq_jdict *dict, dq_jtext key);

/* Characters (code points), and the byte where character `index` begins (size when there are fewer). */
size_t dq_jtext_length(dq_jtext t);
size_t dq_jtext_offset(dq_jtext t, size_t index);

#endif
