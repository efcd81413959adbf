/* Rendering: what the files of the evaluator share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_RUN_H
#define DQ_CHAT_RUN_H

#include "chat/ast.h"
#include "text/bytes.h"

/* Bounds of one rendering; a template of many tools and a long conversation needs a hundredth of them. */
enum {
    DQ_J_MAX_STEPS = 20 << 20, /* nodes visited, and one more per 64 bytes or 8 elements gone through */
    DQ_J_MAX_DEPTH = 250,      /* nodes within nodes, macros within macros */
    DQ_J_MAX_BYTES = 64 << 20, /* made by the template, beside 16 times what it was given */
    DQ_J_MAX_ARGS = 16
};

typedef struct dq_jbinding {
    dq_jtext name;
    dq_jvalue value;
    struct dq_jbinding *next;
} dq_jbinding;
typedef struct dq_jscope {
    struct dq_jscope *parent;
    dq_jbinding *first;
} dq_jscope;

typedef struct dq_jmacro {
    const dq_jnode *node;
    dq_jscope *scope; /* where it was written */
} dq_jmacro;

typedef struct dq_jrun {
    dq_jarena arena;
    dq_bytes *out;
    dq_jscope *scope;
    enum { DQ_J_GO_ON, DQ_J_BREAK, DQ_J_CONTINUE } flow;
    int64_t steps;
    int depth, loops;
    uint32_t line;
} dq_jrun;

/* Arguments: by place, then by name. */
typedef struct dq_jargs {
    dq_jvalue items[DQ_J_MAX_ARGS];
    dq_jtext names[DQ_J_MAX_ARGS]; /* of items[places ..] */
    size_t places, count;
} dq_jargs;

dq_status dq_jfail(const dq_jrun *r, dq_status status, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* DQ_E_INVALID: "'x' is undefined" */
dq_status dq_jfail_undefined(const dq_jrun *r, const dq_jvalue *v);
/* For messages: at most 60 bytes of a text, with its size for "%.*s". */
#define DQ_J_SHOW(t) (int)((t).size < 60 ? (t).size : 60), (t).data
dq_status dq_jsteps(dq_jrun *r, uint64_t work);
dq_status dq_jdeeper(dq_jrun *r); /* r->depth-- when done */

/* ---- evaluation (evaluate.c, execute.c) ---- */
dq_status dq_jeval(dq_jrun *r, const dq_jnode *node, dq_jvalue *out);
dq_status dq_jexec(dq_jrun *r, const dq_jnode *body);
dq_status dq_jassign(dq_jrun *r, const dq_jnode *target, const dq_jvalue *value);
dq_status dq_jbind(dq_jrun *r, dq_jtext name, const dq_jvalue *value);
dq_status dq_jpush_scope(dq_jrun *r, dq_jscope *parent, dq_jscope **before);
dq_status dq_jcall_macro(dq_jrun *r, const dq_jmacro *macro, const dq_jargs *args, dq_jvalue *out);
/* Puts the output of `body` in a string. */
dq_status dq_jcapture(dq_jrun *r, const dq_jnode *body, dq_jvalue *out);
dq_status dq_jeval_args(dq_jrun *r, const dq_jnode *list, dq_jargs *out);
dq_status dq_jfilters(dq_jrun *r, const dq_jnode *filter, const dq_jvalue *innermost, dq_jvalue *out);

/* ---- operators.c, items.c ---- */
dq_status dq_jbinary(dq_jrun *r, dq_jop op, const dq_jvalue *a, const dq_jvalue *b, dq_jvalue *out);
dq_status dq_jcompare(dq_jrun *r, dq_jop op, const dq_jvalue *a, const dq_jvalue *b, bool *out);
dq_status dq_jequal(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *b, bool *out);
dq_status dq_jcontains(dq_jrun *r, const dq_jvalue *in, const dq_jvalue *what, bool *out);
/* a.name; a[index]; a[from:to:step] with NULL for what is not given */
dq_status dq_jattribute(dq_jrun *r, const dq_jvalue *a, dq_jtext name, dq_jvalue *out);
dq_status dq_jitem(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *index, dq_jvalue *out);
dq_status dq_jslice(dq_jrun *r, const dq_jvalue *a, const dq_jvalue *from, const dq_jvalue *to, const dq_jvalue *step,
                    dq_jvalue *out);
/* What a for loop goes through, as a list. */
dq_status dq_jiterate(dq_jrun *r, const dq_jvalue *v, dq_jvalue *out);

/* ---- names of the language ---- */
bool dq_jfunction_find(dq_jtext name, dq_jvalue *out);
dq_status dq_jcall(dq_jrun *r, const dq_jvalue *callee, const dq_jargs *args, dq_jvalue *out);
dq_status dq_jfilter(dq_jrun *r, dq_jtext name, const dq_jvalue *in, const dq_jargs *args, dq_jvalue *out);
dq_status dq_jtest(dq_jrun *r, dq_jtext name, const dq_jvalue *in, const dq_jargs *args, bool *out);
bool dq_jis_filter(dq_jtext name);
bool dq_jis_test(dq_jtext name);
/* Whether Python's type has a method of that name; calling it may still be unsupported. */
bool dq_jhas_method(const dq_jvalue *self, dq_jtext name);
dq_status dq_jcall_method(dq_jrun *r, const dq_jmethod *method, const dq_jargs *args, dq_jvalue *out);

/* Arguments put in the places of `names` (NULL-terminated, at most DQ_J_MAX_ARGS): slots[i] is NULL where none was given.
 * `what`: for messages. */
dq_status dq_jslots(dq_jrun *r, const char *what, dq_jtext name, const dq_jargs *args, const char *const *names,
                    const dq_jvalue **slots);
dq_status dq_jwant_string(dq_jrun *r, const char *what, const dq_jvalue *v, dq_jtext *out);
dq_status dq_jwant_int(dq_jrun *r, const char *what, const dq_jvalue *v, int64_t *out);

/* ---- texts (print.c, json.c, strings.c) ---- */
/* Adds to a buffer of this rendering, on its account. */
dq_status dq_jput(dq_jrun *r, dq_bytes *out, const char *data, size_t size);
/* A buffer's content as a string; the buffer is cleared. */
dq_status dq_jtake_bytes(dq_jrun *r, dq_bytes *b, dq_jvalue *out);
/* Python's str() and repr(). */
dq_status dq_jput_str(dq_jrun *r, dq_bytes *out, const dq_jvalue *v);
dq_status dq_jput_repr(dq_jrun *r, dq_bytes *out, const dq_jvalue *v);
dq_status dq_jfloat_text(double d, char out[40]);                     /* Python's repr */
dq_status dq_jto_text(dq_jrun *r, const dq_jvalue *v, dq_jtext *out); /* of a string: itself */
typedef struct dq_jjson {
    bool ascii, sort;
    int64_t indent;     /* -1 = one line */
    dq_jtext item, key; /* separators */
} dq_jjson;
dq_status dq_jput_json(dq_jrun *r, dq_bytes *out, const dq_jvalue *v, const dq_jjson *how, int64_t level);

enum { DQ_J_LOWER, DQ_J_UPPER, DQ_J_CAPITALIZE, DQ_J_TITLE };
dq_status dq_jcase(dq_jrun *r, dq_jtext t, int how, dq_jvalue *out);
/* Without the characters of `chars` (NULL = white space) at the ends. */
dq_status dq_jstrip(dq_jrun *r, dq_jtext t, const dq_jvalue *chars, bool left, bool right, dq_jvalue *out);
dq_status dq_jreplace(dq_jrun *r, dq_jtext t, dq_jtext old, dq_jtext new, int64_t most, dq_jvalue *out);
/* The byte of the first or (`last`) last occurrence, or -1. */
int64_t dq_jfind(dq_jtext t, dq_jtext word, bool last);
/* What that costs at most; from the end every place may take a comparison of the whole word. */
uint64_t dq_jfind_steps(dq_jtext t, dq_jtext word, bool last);
dq_status dq_jsplit(dq_jrun *r, dq_jtext t, const dq_jvalue *separator, int64_t most, bool right, dq_jvalue *out);
/* Python's str.format with {}, {0} and {name}. */
dq_status dq_jformat(dq_jrun *r, dq_jtext t, const dq_jargs *args, dq_jvalue *out);
dq_status dq_jsplit_lines(dq_jrun *r, dq_jtext t, bool keep, dq_jvalue *out);
dq_status dq_jjoin(dq_jrun *r, dq_jtext separator, const dq_jlist *items, bool convert, dq_jvalue *out);
/* A stable sort of `items` by their `keys`, which move with them. */
dq_status dq_jsort(dq_jrun *r, dq_jvalue *items, dq_jvalue *keys, size_t count, bool reverse);

#endif
