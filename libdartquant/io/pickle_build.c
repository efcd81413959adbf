/* The allow-list: torch._utils' tensor builders, OrderedDict and the typed storages. SPDX-License-Identifier: Apache-2.0 */
#include "io/pickle_build.h"

#include <string.h>

#include "base/dtype.h"
#include "base/status.h"

enum { REBUILD_TENSOR, REBUILD_PARAMETER, ORDERED_DICT, FIRST_STORAGE };

static const struct {
    const char *module;
    const char *name;
    dq_dtype dtype; /* storages only */
} globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", 0}, {"torch._utils", "_rebuild_parameter", 0},
    {"collections", "OrderedDict", 0},         {"torch", "FloatStorage", DQ_F32},
    {"torch", "DoubleStorage", DQ_F64},        {"torch", "HalfStorage", DQ_F16},
    {"torch", "BFloat16Storage", DQ_BF16},     {"torch", "LongStorage", DQ_I64},
    {"torch", "IntStorage", DQ_I32},           {"torch", "ShortStorage", DQ_I16},
    {"torch", "CharStorage", DQ_I8},           {"torch", "ByteStorage", DQ_U8},
    {"torch", "BoolStorage", DQ_BOOL},
};

static bool same(const char *s, const char *text, size_t bytes)
{
    return strlen(s) == bytes && memcmp(s, text, bytes) == 0;
}

static int shown(size_t bytes) { return bytes > 80 ? 80 : (int)bytes; }

dq_status dq_pickle_find_global(const char *module, size_t module_bytes, const char *name, size_t name_bytes,
                                int64_t *number)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++) {
        if (!same(globals[i].module, module, module_bytes) || !same(globals[i].name, name, name_bytes)) continue;
        *number = (int64_t)i;
        return DQ_OK;
    }
    return dq_fail(DQ_E_UNSUPPORTED, "pickle: the global '%.*s.%.*s' is refused (only tensors in containers are read)",
                   shown(module_bytes), module, shown(name_bytes), name);
}

static bool is_text(const dq_pickle_value *v, const char *s)
{
    return v->kind == DQ_PICKLE_STRING && same(s, v->as.text, v->bytes);
}

dq_status dq_pickle_make_storage(dq_pickle *p, const dq_pickle_value *id, dq_pickle_value *out)
{
    const dq_pickle_value *v = id->kind == DQ_PICKLE_TUPLE && id->as.list->count == 5 ? id->as.list->items : NULL;
    if (!v || !is_text(&v[0], "storage") || v[1].kind != DQ_PICKLE_GLOBAL || v[1].as.integer < FIRST_STORAGE ||
        v[2].kind != DQ_PICKLE_STRING || v[4].kind != DQ_PICKLE_INT || v[4].as.integer < 0)
        return dq_fail(DQ_E_FORMAT, "pickle: a persistent id that is no (\"storage\", class, key, location, numel)");
    dq_pickle_storage *s = dq_pickle_carve(p, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    dq_dtype dtype = globals[v[1].as.integer].dtype;
    *s = (dq_pickle_storage){dtype, dq_dtype_name(dtype), v[2].as.text, v[2].bytes, v[4].as.integer};
    *out = (dq_pickle_value){.kind = DQ_PICKLE_STORAGE, .as.storage = s};
    return DQ_OK;
}

static dq_status read_sizes(const dq_pickle_value *v, const char *what, int *ndim, int64_t *out)
{
    if (v->kind != DQ_PICKLE_TUPLE) return dq_fail(DQ_E_FORMAT, "pickle: a tensor's %s is no tuple", what);
    if (v->as.list->count > DQ_MAX_DIMS)
        return dq_fail(DQ_E_UNSUPPORTED, "pickle: a tensor of %zu dimensions, at most %d are supported",
                       v->as.list->count, DQ_MAX_DIMS);
    *ndim = (int)v->as.list->count;
    for (int i = 0; i < *ndim; i++) {
        const dq_pickle_value *d = &v->as.list->items[i];
        if (d->kind != DQ_PICKLE_INT || d->as.integer < 0)
            return dq_fail(DQ_E_FORMAT, "pickle: element %d of a tensor's %s is no integer from 0 on", i, what);
        out[i] = d->as.integer;
    }
    return DQ_OK;
}

/* The last element must lie inside the storage, and no product of sizes may overflow. */
static dq_status check_extent(const dq_pickle_tensor *t)
{
    int64_t last = t->offset, span = 8; /* bytes of the widest element */
    bool empty = false, fits = true;
    for (int i = 0; i < t->ndim; i++) {
        int64_t reach;
        if (t->shape[i] == 0) {
            empty = true;
            continue;
        }
        fits = fits && !__builtin_mul_overflow(span, t->shape[i], &span) &&
               !__builtin_mul_overflow(t->shape[i] - 1, t->stride[i], &reach) &&
               !__builtin_add_overflow(last, reach, &last);
    }
    if (!fits) return dq_fail(DQ_E_FORMAT, "pickle: the sizes of a tensor overflow");
    if (!empty && last >= t->storage->numel)
        return dq_fail(DQ_E_FORMAT, "pickle: a tensor reaches element %lld of storage '%.*s', which has %lld",
                       (long long)last, shown(t->storage->key_bytes), t->storage->key, (long long)t->storage->numel);
    return DQ_OK;
}

/* (storage, offset, size, stride, requires_grad, hooks[, metadata]) */
static dq_status rebuild_tensor(dq_pickle *p, const dq_pickle_list *arguments, dq_pickle_value *out)
{
    const dq_pickle_value *v = arguments->items;
    if (arguments->count < 6 || arguments->count > 7 || v[0].kind != DQ_PICKLE_STORAGE || v[1].kind != DQ_PICKLE_INT ||
        v[1].as.integer < 0)
        return dq_fail(DQ_E_FORMAT, "pickle: wrong arguments of _rebuild_tensor_v2");
    dq_pickle_tensor *t = dq_pickle_carve(p, sizeof *t);
    if (!t) return DQ_E_NOMEM;
    *t = (dq_pickle_tensor){.storage = v[0].as.storage, .offset = v[1].as.integer};
    int strides = 0;
    DQ_TRY(read_sizes(&v[2], "size", &t->ndim, t->shape));
    DQ_TRY(read_sizes(&v[3], "stride", &strides, t->stride));
    if (strides != t->ndim)
        return dq_fail(DQ_E_FORMAT, "pickle: a tensor with %d sizes and %d strides", t->ndim, strides);
    DQ_TRY(check_extent(t));
    *out = (dq_pickle_value){.kind = DQ_PICKLE_TENSOR, .as.tensor = t};
    return DQ_OK;
}

dq_status dq_pickle_call(dq_pickle *p, int64_t global, const dq_pickle_list *arguments, dq_pickle_value *out)
{
    if (global == REBUILD_TENSOR) return rebuild_tensor(p, arguments, out);
    if (global == REBUILD_PARAMETER) { /* (tensor, requires_grad, hooks) */
        if (arguments->count != 3 || arguments->items[0].kind != DQ_PICKLE_TENSOR)
            return dq_fail(DQ_E_FORMAT, "pickle: wrong arguments of _rebuild_parameter");
        *out = arguments->items[0];
        return DQ_OK;
    }
    if (global == ORDERED_DICT && arguments->count == 0) {
        dq_pickle_list *list = dq_pickle_carve(p, sizeof *list);
        if (!list) return DQ_E_NOMEM;
        *list = (dq_pickle_list){0};
        *out = (dq_pickle_value){.kind = DQ_PICKLE_DICT, .as.list = list};
        return DQ_OK;
    }
    return dq_fail(DQ_E_FORMAT, "pickle: a call of %s with %zu arguments", globals[global].name, arguments->count);
}
