/* An unpickler that can build tensors in containers and nothing else: no object is ever constructed by name.
 * Opcodes are those of Python's Lib/pickletools.py, protocols 2 to 4. SPDX-License-Identifier: Apache-2.0 */
#include "io/pickle.h"

#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/limits.h"
#include "io/pickle_build.h"

#define BLOCK_BYTES ((size_t)65536)

/* Values are carved from blocks, so that an opcode of one byte costs no more than the value it makes. */
typedef struct block {
    struct block *next;
    size_t used, size;
} block;

struct dq_pickle {
    dq_env *env;
    const uint8_t *data;
    size_t bytes, at, opcode_at;
    dq_pickle_value *stack;
    size_t depth, stack_capacity;
    dq_pickle_value *memo; /* kind MARK = empty */
    size_t memo_count, memo_capacity;
    block *blocks;
    size_t arena_bytes;
};

static dq_status fail_at(const dq_pickle *p, dq_status status) { return dq_error_at_byte(status, p->opcode_at); }

void *dq_pickle_carve(dq_pickle *p, size_t bytes)
{
    bytes = (bytes + 15) / 16 * 16;
    block *b = p->blocks;
    if (!b || b->size - b->used < bytes) {
        size_t size = bytes > BLOCK_BYTES / 4 ? bytes : BLOCK_BYTES;
        if (size > DQ_PT_MAX_ARENA - p->arena_bytes) {
            dq_fail(DQ_E_NOMEM, "the pickled values need more than the limit of %zu bytes", DQ_PT_MAX_ARENA);
            return NULL;
        }
        b = dq_alloc(p->env, sizeof *b + 16 + size);
        if (!b) return NULL;
        *b = (block){p->blocks, 0, size};
        p->blocks = b;
        p->arena_bytes += size;
    }
    uint8_t *start = (uint8_t *)b + (sizeof *b + 15) / 16 * 16 + b->used;
    b->used += bytes;
    return start;
}

/* ---- input ---- */

static dq_status take(dq_pickle *p, uint64_t bytes, const uint8_t **out)
{
    if (bytes > p->bytes - p->at)
        return fail_at(p, dq_fail(DQ_E_TRUNCATED, "pickle: an operand needs %llu bytes, %zu follow",
                                  (unsigned long long)bytes, p->bytes - p->at));
    *out = p->data + p->at;
    p->at += bytes;
    return DQ_OK;
}

/* An unsigned little-endian operand of 1, 2, 4 or 8 bytes. */
static dq_status take_uint(dq_pickle *p, int bytes, uint64_t *out)
{
    const uint8_t *b = NULL;
    DQ_TRY(take(p, (uint64_t)bytes, &b));
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--) v = v << 8 | b[i];
    *out = v;
    return DQ_OK;
}

static dq_status take_line(dq_pickle *p, const char **text, size_t *bytes)
{
    const uint8_t *start = p->data + p->at;
    const uint8_t *end = memchr(start, '\n', p->bytes - p->at);
    if (!end) return fail_at(p, dq_fail(DQ_E_TRUNCATED, "pickle: a name has no end"));
    *text = (const char *)start;
    *bytes = (size_t)(end - start);
    p->at += *bytes + 1;
    return DQ_OK;
}

/* ---- stack and memo ---- */

static dq_status push(dq_pickle *p, dq_pickle_value v)
{
    if (p->depth == p->stack_capacity) {
        if (p->depth >= DQ_PT_MAX_STACK)
            return fail_at(p, dq_fail(DQ_E_UNSUPPORTED, "pickle: more than %zu values on the stack", DQ_PT_MAX_STACK));
        size_t bigger = p->stack_capacity ? p->stack_capacity * 2 : 256;
        dq_pickle_value *fresh = dq_realloc(p->env, p->stack, bigger * sizeof *fresh);
        if (!fresh) return DQ_E_NOMEM;
        p->stack = fresh;
        p->stack_capacity = bigger;
    }
    p->stack[p->depth++] = v;
    return DQ_OK;
}

static dq_status push_int(dq_pickle *p, dq_pickle_kind kind, int64_t v)
{
    return push(p, (dq_pickle_value){.kind = kind, .as.integer = v});
}

static dq_status pop(dq_pickle *p, dq_pickle_value *out)
{
    if (p->depth == 0 || p->stack[p->depth - 1].kind == DQ_PICKLE_MARK)
        return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: the stack is empty"));
    *out = p->stack[--p->depth];
    return DQ_OK;
}

/* The values above the topmost mark, which are popped together with it. */
static dq_status pop_mark(dq_pickle *p, const dq_pickle_value **items, size_t *count)
{
    size_t i = p->depth;
    while (i > 0 && p->stack[i - 1].kind != DQ_PICKLE_MARK) i--;
    if (i == 0) return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: no mark on the stack"));
    *items = p->stack + i;
    *count = p->depth - i;
    p->depth = i - 1;
    return DQ_OK;
}

static dq_status memo_put(dq_pickle *p, uint64_t index)
{
    if (p->depth == 0 || p->stack[p->depth - 1].kind == DQ_PICKLE_MARK)
        return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: nothing to memorise"));
    /* Picklers number upwards from 0, one opcode for each: no index can reach the length. */
    if (index >= p->bytes || index >= DQ_PT_MAX_MEMO)
        return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: memo index %llu", (unsigned long long)index));
    if (index >= p->memo_capacity) {
        size_t bigger = p->memo_capacity ? p->memo_capacity * 2 : 256;
        while (bigger <= index) bigger *= 2;
        dq_pickle_value *fresh = dq_realloc(p->env, p->memo, bigger * sizeof *fresh);
        if (!fresh) return DQ_E_NOMEM;
        memset(fresh + p->memo_capacity, 0, (bigger - p->memo_capacity) * sizeof *fresh);
        p->memo = fresh;
        p->memo_capacity = bigger;
    }
    p->memo[index] = p->stack[p->depth - 1];
    p->memo_count++;
    return DQ_OK;
}

static dq_status memo_get(dq_pickle *p, uint64_t index)
{
    if (index >= p->memo_capacity || p->memo[index].kind == DQ_PICKLE_MARK)
        return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: memo %llu is empty", (unsigned long long)index));
    return push(p, p->memo[index]);
}

/* ---- containers ---- */

static dq_status append(dq_pickle *p, dq_pickle_list *list, const dq_pickle_value *items, size_t count)
{
    if (list->capacity - list->count < count) {
        size_t bigger = list->capacity * 2 > list->count + count ? list->capacity * 2 : list->count + count;
        dq_pickle_value *fresh = dq_pickle_carve(p, bigger * sizeof *fresh);
        if (!fresh) return DQ_E_NOMEM;
        if (list->count) memcpy(fresh, list->items, list->count * sizeof *fresh);
        list->items = fresh;
        list->capacity = bigger;
    }
    if (count) memcpy(list->items + list->count, items, count * sizeof *items);
    list->count += count;
    return DQ_OK;
}

static dq_status push_list(dq_pickle *p, dq_pickle_kind kind, const dq_pickle_value *items, size_t count)
{
    dq_pickle_list *list = dq_pickle_carve(p, sizeof *list);
    if (!list) return DQ_E_NOMEM;
    *list = (dq_pickle_list){0};
    DQ_TRY(append(p, list, items, count));
    return push(p, (dq_pickle_value){.kind = kind, .as.list = list});
}

static dq_status push_tuple_of(dq_pickle *p, size_t count)
{
    dq_pickle_value items[3];
    for (size_t i = count; i-- > 0;) DQ_TRY(pop(p, &items[i]));
    return push_list(p, DQ_PICKLE_TUPLE, items, count);
}

/* Adds to the list or dict on top of the stack. */
static dq_status extend(dq_pickle *p, dq_pickle_kind kind, const dq_pickle_value *items, size_t count)
{
    if (p->depth == 0 || p->stack[p->depth - 1].kind != kind)
        return fail_at(
            p, dq_fail(DQ_E_FORMAT, "pickle: items for what is no %s", kind == DQ_PICKLE_DICT ? "dict" : "list"));
    if (kind == DQ_PICKLE_DICT && count % 2 != 0)
        return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: a key without value"));
    return append(p, p->stack[p->depth - 1].as.list, items, count);
}

static dq_status extend_from_mark(dq_pickle *p, dq_pickle_kind kind)
{
    const dq_pickle_value *items = NULL;
    size_t count = 0;
    DQ_TRY(pop_mark(p, &items, &count));
    return extend(p, kind, items, count);
}

static dq_status extend_by(dq_pickle *p, dq_pickle_kind kind, size_t count)
{
    dq_pickle_value items[2];
    for (size_t i = count; i-- > 0;) DQ_TRY(pop(p, &items[i]));
    return extend(p, kind, items, count);
}

/* ---- opcodes ---- */

static dq_status push_text(dq_pickle *p, int length_bytes)
{
    uint64_t bytes = 0;
    const uint8_t *text = NULL;
    DQ_TRY(take_uint(p, length_bytes, &bytes));
    DQ_TRY(take(p, bytes, &text));
    return push(p,
                (dq_pickle_value){.kind = DQ_PICKLE_STRING, .bytes = (uint32_t)bytes, .as.text = (const char *)text});
}

/* LONG1: two's complement, little-endian, any length; beyond 64 bits nothing here needs it. */
static dq_status push_long(dq_pickle *p)
{
    uint64_t bytes = 0, v = 0;
    const uint8_t *b = NULL;
    DQ_TRY(take_uint(p, 1, &bytes));
    DQ_TRY(take(p, bytes, &b));
    if (bytes > 8)
        return fail_at(p, dq_fail(DQ_E_UNSUPPORTED, "pickle: an integer of %llu bytes", (unsigned long long)bytes));
    if (bytes > 0 && b[bytes - 1] & 0x80) v = UINT64_MAX;
    for (uint64_t i = bytes; i-- > 0;) v = v << 8 | b[i];
    return push_int(p, DQ_PICKLE_INT, (int64_t)v);
}

static dq_status push_global(dq_pickle *p, const char *module, size_t module_bytes, const char *name, size_t name_bytes)
{
    int64_t number = -1;
    DQ_TRY(fail_at(p, dq_pickle_find_global(module, module_bytes, name, name_bytes, &number)));
    return push_int(p, DQ_PICKLE_GLOBAL, number);
}

static dq_status op_global(dq_pickle *p)
{
    const char *module = NULL, *name = NULL;
    size_t module_bytes = 0, name_bytes = 0;
    DQ_TRY(take_line(p, &module, &module_bytes));
    DQ_TRY(take_line(p, &name, &name_bytes));
    return push_global(p, module, module_bytes, name, name_bytes);
}

static dq_status op_stack_global(dq_pickle *p)
{
    dq_pickle_value name = {0}, module = {0};
    DQ_TRY(pop(p, &name));
    DQ_TRY(pop(p, &module));
    if (name.kind != DQ_PICKLE_STRING || module.kind != DQ_PICKLE_STRING)
        return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: a global without name"));
    return push_global(p, module.as.text, module.bytes, name.as.text, name.bytes);
}

static dq_status op_reduce(dq_pickle *p)
{
    dq_pickle_value arguments = {0}, callable = {0}, result = {0};
    DQ_TRY(pop(p, &arguments));
    DQ_TRY(pop(p, &callable));
    if (callable.kind != DQ_PICKLE_GLOBAL || arguments.kind != DQ_PICKLE_TUPLE)
        return fail_at(p, dq_fail(DQ_E_FORMAT, "pickle: a call of what is no known function"));
    DQ_TRY(fail_at(p, dq_pickle_call(p, callable.as.integer, arguments.as.list, &result)));
    return push(p, result);
}

static dq_status op_persistent_id(dq_pickle *p)
{
    dq_pickle_value id = {0}, result = {0};
    DQ_TRY(pop(p, &id));
    DQ_TRY(fail_at(p, dq_pickle_make_storage(p, &id, &result)));
    return push(p, result);
}

/* Attributes set on an object: torch hangs `_metadata` on a state dict, which nothing needs. */
static dq_status op_build(dq_pickle *p)
{
    dq_pickle_value state = {0};
    DQ_TRY(pop(p, &state));
    if (p->depth == 0 || p->stack[p->depth - 1].kind != DQ_PICKLE_DICT)
        return fail_at(p, dq_fail(DQ_E_UNSUPPORTED, "pickle: attributes for what is no dict"));
    return DQ_OK;
}

static dq_status run_put_get(dq_pickle *p, uint8_t opcode)
{
    uint64_t v = 0;
    DQ_TRY(take_uint(p, opcode == 'q' || opcode == 'h' ? 1 : 4, &v));
    return opcode == 'q' || opcode == 'r' ? memo_put(p, v) : memo_get(p, v);
}

static dq_status run_number(dq_pickle *p, uint8_t opcode)
{
    uint64_t v = 0;
    DQ_TRY(take_uint(p, opcode == 'K' ? 1 : opcode == 'M' ? 2 : opcode == 'J' ? 4 : 8, &v));
    if (opcode == 'G') return push_int(p, DQ_PICKLE_FLOAT, 0); /* no use of floats: the value is dropped */
    return push_int(p, DQ_PICKLE_INT, opcode == 'J' ? (int32_t)(uint32_t)v : (int64_t)v);
}

static dq_status run_protocol(dq_pickle *p)
{
    uint64_t v = 0;
    DQ_TRY(take_uint(p, 1, &v));
    if (v < 2 || v > 5) return fail_at(p, dq_fail(DQ_E_UNSUPPORTED, "pickle: protocol %llu", (unsigned long long)v));
    return DQ_OK;
}

static dq_status run_opcode(dq_pickle *p, uint8_t opcode)
{
    const dq_pickle_value *items = NULL;
    size_t count = 0;
    uint64_t ignored = 0;
    switch (opcode) {
        case 0x80: return run_protocol(p);
        case 0x95: return take_uint(p, 8, &ignored); /* FRAME: a hint for buffered readers */
        case 0x94: return memo_put(p, p->memo_count);
        case 'q':
        case 'r':
        case 'h':
        case 'j': return run_put_get(p, opcode);
        case 'J':
        case 'K':
        case 'M':
        case 'G': return run_number(p, opcode);
        case 0x8a: return push_long(p);
        case 'X': return push_text(p, 4);
        case 0x8c: return push_text(p, 1);
        case 'N': return push_int(p, DQ_PICKLE_NONE, 0);
        case 0x88: return push_int(p, DQ_PICKLE_BOOL, 1);
        case 0x89: return push_int(p, DQ_PICKLE_BOOL, 0);
        case '(': return push_int(p, DQ_PICKLE_MARK, 0);
        case '}': return push_list(p, DQ_PICKLE_DICT, NULL, 0);
        case ']': return push_list(p, DQ_PICKLE_LIST, NULL, 0);
        case ')': return push_list(p, DQ_PICKLE_TUPLE, NULL, 0);
        case 't': DQ_TRY(pop_mark(p, &items, &count)); return push_list(p, DQ_PICKLE_TUPLE, items, count);
        case 0x85:
        case 0x86:
        case 0x87: return push_tuple_of(p, opcode - 0x84u);
        case 'a': return extend_by(p, DQ_PICKLE_LIST, 1);
        case 's': return extend_by(p, DQ_PICKLE_DICT, 2);
        case 'e': return extend_from_mark(p, DQ_PICKLE_LIST);
        case 'u': return extend_from_mark(p, DQ_PICKLE_DICT);
        case 'c': return op_global(p);
        case 0x93: return op_stack_global(p);
        case 'R': return op_reduce(p);
        case 'Q': return op_persistent_id(p);
        case 'b': return op_build(p);
        default: return fail_at(p, dq_fail(DQ_E_UNSUPPORTED, "pickle: opcode 0x%02x is not allowed", opcode));
    }
}

static dq_status run(dq_pickle *p, dq_pickle_value *root)
{
    for (;;) {
        const uint8_t *opcode = NULL;
        p->opcode_at = p->at;
        DQ_TRY(take(p, 1, &opcode));
        if (*opcode == '.') return pop(p, root);
        DQ_TRY(run_opcode(p, *opcode));
    }
}

dq_status dq_pickle_load(dq_env *env, const uint8_t *data, size_t bytes, dq_pickle **out, dq_pickle_value *root)
{
    dq_pickle *p = dq_calloc(env, 1, sizeof *p);
    if (!p) return DQ_E_NOMEM;
    p->env = env;
    p->data = data;
    p->bytes = bytes;
    dq_pickle_value value = {0};
    dq_status status = run(p, &value);
    dq_free(p->stack);
    dq_free(p->memo);
    p->stack = p->memo = NULL;
    if (status != DQ_OK) {
        dq_pickle_free(p);
        return status;
    }
    *out = p;
    *root = value;
    return DQ_OK;
}

void dq_pickle_free(dq_pickle *p)
{
    if (!p) return;
    while (p->blocks) {
        block *next = p->blocks->next;
        dq_free(p->blocks);
        p->blocks = next;
    }
    dq_free(p->stack);
    dq_free(p->memo);
    dq_free(p);
}
