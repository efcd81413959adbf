/* SPDX-License-Identifier: Apache-2.0 */
#include "formats/packed_source.h"

#include <stdio.h>
#include <string.h>

#include "base/status.h"

enum { NAME = 256 };

/* A tensor of the view: one of a source, or a linear that reads like a weight (`packed` >= 0). */
typedef struct entry {
    int source;
    int64_t tensor, packed;
} entry;

typedef struct linear {
    char *name, *weight_name;
    int source;
    dq_packed packed;
    dq_host_codes codes; /* of the head: it is read by rows, so it is unpacked once */
} linear;

/* FP8 and Diffulex hold no codes of our kind; the head's are not kept as codes by models. */
static bool reads_as_weight(const linear *l)
{
    return !dq_layout_gives_codes(l->packed.layout.kind) || strcmp(l->name, "lm_head") == 0;
}

typedef struct view {
    dq_source base;
    dq_source *sources[2];
    entry *entries;
    linear *linears;
    int64_t linear_count, linear_capacity;
    dq_name_map *by_name; /* of linears */
} view;

static void dequantize_rows(const dq_host_codes *c, int64_t row, int64_t count, float *out)
{
    for (int64_t n = row; n < row + count; n++)
        for (int64_t k = 0; k < c->in; k++) {
            int64_t g = n * c->groups + dq_host_codes_group_of(c, k);
            *out++ = c->scale[g] * (float)((int)c->codes[n * c->in + k] - (int)c->zero[g]);
        }
}

static dq_status read_rows(dq_source *source, int64_t tensor, int64_t row, int64_t count, float *out)
{
    view *v = (view *)source;
    const entry *e = &v->entries[tensor];
    if (e->packed < 0) return dq_source_read_rows(v->sources[e->source], e->tensor, row, count, out);
    const linear *l = &v->linears[e->packed];
    if (!l->codes.codes) return dq_packed_rows(v->sources[e->source], &l->packed, row, count, out);
    dequantize_rows(&l->codes, row, count, out);
    return DQ_OK;
}

/* The bytes of a linear that reads like a weight are those of its parts, one after the other. */
static dq_status read_raw(dq_source *source, int64_t tensor, uint64_t offset, uint64_t bytes, void *out)
{
    view *v = (view *)source;
    const entry *e = &v->entries[tensor];
    dq_source *s = v->sources[e->source];
    if (e->packed < 0) return dq_source_read_raw(s, e->tensor, offset, bytes, out);
    const dq_packed *p = &v->linears[e->packed].packed;
    uint8_t *to = out;
    for (int i = 0; i < DQ_PARTS && bytes > 0; i++) {
        if (p->part[i] < 0) continue;
        uint64_t size = s->tensors[p->part[i]].bytes;
        if (offset >= size) {
            offset -= size;
            continue;
        }
        uint64_t n = size - offset < bytes ? size - offset : bytes;
        DQ_TRY(dq_source_read_raw(s, p->part[i], offset, n, to));
        to += n;
        bytes -= n;
        offset = 0;
    }
    return DQ_OK;
}

static void release(dq_source *source, int64_t tensor)
{
    view *v = (view *)source;
    const entry *e = &v->entries[tensor];
    if (e->packed < 0) {
        dq_source_release(v->sources[e->source], e->tensor);
        return;
    }
    const dq_packed *p = &v->linears[e->packed].packed;
    for (int i = 0; i < DQ_PARTS; i++)
        if (p->part[i] >= 0) dq_source_release(v->sources[e->source], p->part[i]);
}

static void view_free(dq_source *source)
{
    view *v = (view *)source;
    for (int64_t i = 0; i < v->linear_count; i++) {
        dq_free(v->linears[i].name);
        dq_free(v->linears[i].weight_name);
        dq_host_codes_free(&v->linears[i].codes);
    }
    dq_free(v->linears);
    dq_free(v->entries);
    dq_free(v->base.tensors);
    dq_name_map_free(v->by_name);
    dq_name_map_free(v->base.names);
    dq_source_free(v->sources[0]);
    dq_source_free(v->sources[1]);
    dq_free(v);
}

static const dq_source_ops view_ops = {view_free, read_rows, read_raw, release};

/* ---- making it ---- */

static bool ends_with(const char *name, const char *suffix, size_t *stem)
{
    size_t n = strlen(name), m = strlen(suffix);
    *stem = n - m;
    return n > m && strcmp(name + n - m, suffix) == 0;
}

static dq_status refuse(const dq_tensor_info *t, dq_status code, const char *why)
{
    return dq_error_in_tensor(dq_error_in_file(dq_fail(code, "%s", why), t->file), t->name);
}

/* Signs of another method than the configuration's. */
static dq_status check_foreign(const dq_source *s, const dq_quant_config *config)
{
    static const char *const foreign[4][3] = {{".weight_packed", ".weight_scale", NULL},
                                              {".weight_packed", ".weight_scale", NULL},
                                              {".qweight", ".qzeros", NULL},
                                              {".weight_packed", ".weight_scale", NULL}};
    size_t stem;
    for (int64_t t = 0; t < s->count; t++)
        for (const char *const *suffix = foreign[config->method]; *suffix; suffix++)
            if (ends_with(s->tensors[t].name, *suffix, &stem)) {
                char why[160];
                snprintf(why, sizeof why, "a tensor of another method in a checkpoint whose configuration says %s",
                         dq_quant_method_name(config->method));
                return refuse(&s->tensors[t], DQ_E_MISMATCH, why);
            }
    return DQ_OK;
}

/* Whether tensor t marks a quantized linear; its name goes to `name`. */
static bool marks_linear(const dq_source *s, int64_t t, const dq_quant_config *config, char *name)
{
    static const char *const ct[] = {".weight_packed", ".weight_scale"};
    static const char *const q[] = {".qweight", ".qweight"};
    const char *const *marks = config->method == DQ_METHOD_CT ? ct : q;
    size_t stem;
    for (int i = 0; i < 2; i++) {
        if (!ends_with(s->tensors[t].name, marks[i], &stem) || stem >= NAME) continue;
        memcpy(name, s->tensors[t].name, stem);
        name[stem] = '\0';
        return true;
    }
    return false;
}

static dq_status add_linear(view *v, int source, const char *name, const dq_packed *p)
{
    if (v->linear_count == v->linear_capacity) {
        int64_t bigger = v->linear_capacity ? v->linear_capacity * 2 : 64;
        linear *grown = dq_realloc(v->base.env, v->linears, (size_t)bigger * sizeof *grown);
        if (!grown) return DQ_E_NOMEM;
        v->linears = grown;
        v->linear_capacity = bigger;
    }
    linear *l = &v->linears[v->linear_count++];
    *l = (linear){dq_strdup(v->base.env, name), dq_asprintf(v->base.env, "%s.weight", name), source, *p, {0}};
    if (!l->name || !l->weight_name) return DQ_E_NOMEM;
    if (reads_as_weight(l) && dq_layout_gives_codes(p->layout.kind))
        DQ_TRY(dq_packed_read(v->sources[source], name, p, &l->codes));
    return dq_name_map_add(v->by_name, l->name, strlen(l->name), v->linear_count - 1);
}

static dq_status check_beside(const view *v, int source, const char *name, const dq_layout *l)
{
    const dq_source *s = v->sources[source];
    int64_t weight = dq_part_find(s, name, ".weight");
    if (weight < 0 || l->kind == DQ_LAYOUT_CT_INT || l->kind == DQ_LAYOUT_CT_FLOAT) return DQ_OK;
    return refuse(&s->tensors[weight], DQ_E_MISMATCH, "a plain weight beside the codes of the same linear");
}

static dq_status find_linears(view *v, int source, const dq_quant_config *config)
{
    const dq_source *s = v->sources[source];
    char name[NAME];
    for (int64_t t = 0; t < s->count; t++) {
        bool quantized;
        dq_layout layout;
        dq_packed packed;
        if (!marks_linear(s, t, config, name) || dq_name_map_get(v->by_name, name, strlen(name)) >= 0) continue;
        DQ_TRY(dq_quant_config_layout(config, name, &quantized, &layout));
        if (!quantized)
            return refuse(&s->tensors[t], DQ_E_MISMATCH,
                          config->method == DQ_METHOD_DIFFULEX ? "the metadata lists no quantized module of that name"
                                                               : "the configuration leaves this linear unquantized");
        if (strstr(name, "embed_tokens"))
            return refuse(&s->tensors[t], DQ_E_UNSUPPORTED, "a quantized embedding is not supported");
        DQ_TRY(check_beside(v, source, name, &layout));
        DQ_TRY(dq_packed_bind(s, name, &layout, 0, &packed));
        DQ_TRY(add_linear(v, source, name, &packed));
    }
    if (v->linear_count > 0) return DQ_OK;
    return dq_error_in_file(dq_fail(DQ_E_MISMATCH, "the configuration says %s, but no linear is stored that way",
                                    dq_quant_method_name(config->method)),
                            s->count > 0 ? s->tensors[0].file : NULL);
}

/* Diffulex: every module of the metadata must be there. */
static dq_status check_listed(const view *v, const dq_quant_config *config)
{
    size_t i;
    json_t *entry_json;
    if (config->method != DQ_METHOD_DIFFULEX) return DQ_OK;
    json_array_foreach(json_object_get(config->json, "quantized_modules"), i, entry_json)
    {
        const char *name = NULL;
        int64_t out = 0, in = 0;
        DQ_TRY(dq_json_string(entry_json, "name", true, config->path, &name));
        DQ_TRY(dq_json_int(entry_json, "out_features", 1, 1 << 28, false, config->path, &out));
        DQ_TRY(dq_json_int(entry_json, "in_features", 1, 1 << 28, false, config->path, &in));
        int64_t at = dq_name_map_get(v->by_name, name, strlen(name));
        if (at < 0)
            return dq_error_in_tensor(
                dq_fail(DQ_E_NOTFOUND, "the metadata lists this module, but its qweight is not in the file"), name);
        dq_packed *p = &v->linears[at].packed;
        if (in > 0 && (in + 1) / 2 == (p->in + 1) / 2) p->in = in;
        if ((out > 0 && out != p->out) || (in > 0 && in != p->in))
            return dq_error_in_tensor(
                dq_fail(DQ_E_MISMATCH,
                        "%lld x %lld elements, the metadata says %lld x %lld; files split for tensor parallel runs "
                        "are not supported",
                        (long long)p->out, (long long)p->in, (long long)out, (long long)in),
                name);
    }
    return DQ_OK;
}

static dq_status add_entry(view *v, int source, int64_t tensor, int64_t packed)
{
    dq_tensor_info *info = &v->base.tensors[v->base.count];
    const linear *l = packed >= 0 ? &v->linears[packed] : NULL;
    *info = v->sources[source]->tensors[tensor];
    if (l) {
        bool float8 = l->packed.layout.kind == DQ_LAYOUT_CT_FLOAT;
        *info = (dq_tensor_info){.name = l->weight_name,
                                 .dtype = DQ_BLOCK,
                                 .ndim = 2,
                                 .bytes = l->packed.bytes,
                                 .shape = {l->packed.out, l->packed.in},
                                 .file = info->file,
                                 .offset = info->offset,
                                 .type_name = float8           ? "F8_E4M3 scaled"
                                              : l->codes.codes ? "packed codes"
                                                               : "I8 packed"};
    }
    v->entries[v->base.count] = (entry){source, tensor, packed};
    dq_status status = dq_name_map_add(v->base.names, info->name, strlen(info->name), v->base.count);
    if (status == DQ_E_INVALID) return refuse(info, DQ_E_FORMAT, "the tensor exists twice");
    if (status == DQ_OK) v->base.count++;
    return status;
}

/* The linear a tensor of the file is a part of, when that linear reads like a weight. */
static int64_t hidden_by(const view *v, int source, int64_t tensor)
{
    static const char *const parts[] = {
        ".qweight",    ".qzeros", ".scales",        ".g_idx",        ".weight_scale",      ".weight",
        ".group_size", ".bits",   ".weight_packed", ".weight_shape", ".weight_zero_point", ".weight_g_idx"};
    const char *name = v->sources[source]->tensors[tensor].name;
    size_t stem;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!ends_with(name, parts[i], &stem)) continue;
        int64_t at = dq_name_map_get(v->by_name, name, stem);
        if (at >= 0 && reads_as_weight(&v->linears[at])) return at;
    }
    return -1;
}

static dq_status list_tensors(view *v)
{
    int64_t most = v->linear_count;
    for (int i = 0; i < 2; i++) most += v->sources[i] ? v->sources[i]->count : 0;
    v->base.tensors = dq_calloc(v->base.env, (size_t)most, sizeof *v->base.tensors);
    v->entries = dq_calloc(v->base.env, (size_t)most, sizeof *v->entries);
    if (!v->base.tensors || !v->entries) return DQ_E_NOMEM;
    DQ_TRY(dq_name_map_new(v->base.env, (size_t)most, &v->base.names));
    for (int i = 0; i < 2; i++)
        for (int64_t t = 0; v->sources[i] && t < v->sources[i]->count; t++)
            if (hidden_by(v, i, t) < 0) DQ_TRY(add_entry(v, i, t, -1));
    for (int64_t l = 0; l < v->linear_count; l++)
        if (reads_as_weight(&v->linears[l]))
            DQ_TRY(add_entry(v, v->linears[l].source, v->linears[l].packed.part[DQ_PART_WEIGHT], l));
    return DQ_OK;
}

dq_status dq_packed_source_open(dq_source *base, dq_source *quantized, const dq_quant_config *config, dq_source **out)
{
    dq_status status;
    int holder = quantized ? 1 : 0;
    view *v = dq_calloc(base->env, 1, sizeof *v);
    if (!v) {
        dq_source_free(base);
        dq_source_free(quantized);
        return DQ_E_NOMEM;
    }
    v->base = (dq_source){.ops = &view_ops, .env = base->env, .format = dq_quant_method_name(config->method)};
    v->sources[0] = base;
    v->sources[1] = quantized;
    v->base.one_thread = base->one_thread;
    DQ_GO(dq_name_map_new(base->env, 256, &v->by_name));
    DQ_GO(check_foreign(v->sources[holder], config));
    DQ_GO(find_linears(v, holder, config));
    DQ_GO(check_listed(v, config));
    DQ_GO(list_tensors(v));
    *out = &v->base;
    return DQ_OK;
done:
    view_free(&v->base);
    return status;
}

static const linear *find(const dq_source *source, const char *name)
{
    if (source->ops != &view_ops) return NULL;
    const view *v = (const view *)source;
    int64_t at = dq_name_map_get(v->by_name, name, strlen(name));
    return at < 0 ? NULL : &v->linears[at];
}

const dq_packed *dq_packed_source_find(const dq_source *source, const char *name)
{
    const linear *l = find(source, name);
    return l && !reads_as_weight(l) ? &l->packed : NULL;
}

dq_status dq_packed_source_read(dq_source *source, const char *name, dq_host_codes *out)
{
    const linear *l = find(source, name);
    if (!l) return dq_error_in_tensor(dq_fail(DQ_E_STATE, "the linear is not quantized"), name);
    return dq_packed_read(((view *)source)->sources[l->source], l->name, &l->packed, out);
}

bool dq_packed_source_summary(const dq_source *source, dq_layout *out)
{
    if (source->ops != &view_ops) return false;
    const view *v = (const view *)source;
    bool found = false;
    for (int64_t i = 0; i < v->linear_count; i++) {
        const dq_packed *p = &v->linears[i].packed;
        if (reads_as_weight(&v->linears[i])) continue;
        if (!found) *out = p->layout;
        if (p->layout.bits > out->bits) out->bits = p->layout.bits;
        found = true;
    }
    return found;
}
