/* Packing: columns sorted by group where an index scatters them, narrow symmetric codes moved to the middle of 4 or 8
 * bits. SPDX-License-Identifier: Apache-2.0 */
#include "generate/pack.h"

#include <string.h>

#include "base/half.h"
#include "base/status.h"

enum { UNIT = 8, HEAD_GROUP = 32 };

/* How codes are laid out: stored column j shows order[j], or j without an order. */
typedef struct plan {
    int32_t *order; /* NULL = columns as they are */
    int64_t columns, group;
} plan;

static int64_t round_up(int64_t n) { return (n + UNIT - 1) / UNIT * UNIT; }

/* Every group gets the width of the largest. */
static dq_status plan_sorted(const dq_host_codes *c, plan *p)
{
    int64_t *size = dq_calloc(c->env, (size_t)c->groups, sizeof *size), most = 1;
    if (!size) return DQ_E_NOMEM;
    for (int64_t k = 0; k < c->in; k++) {
        int64_t *n = &size[dq_host_codes_group_of(c, k)];
        if (++*n > most) most = *n;
    }
    p->group = round_up(most);
    p->columns = p->group * c->groups;
    if (p->columns <= c->in + c->in / 4 + UNIT) {
        p->order = dq_alloc(c->env, (size_t)p->columns * sizeof *p->order);
        if (!p->order) {
            dq_free(size);
            return DQ_E_NOMEM;
        }
        memset(p->order, 0xff, (size_t)p->columns * sizeof *p->order);
        memset(size, 0, (size_t)c->groups * sizeof *size);
        for (int64_t k = 0; k < c->in; k++) {
            int64_t g = dq_host_codes_group_of(c, k);
            p->order[g * p->group + size[g]++] = (int32_t)k;
        }
    }
    dq_free(size);
    return DQ_OK;
}

static dq_status make_plan(const dq_host_codes *c, plan *p)
{
    *p = (plan){.columns = c->in, .group = c->group};
    if (c->groups == 1) {
        p->group = round_up(c->in);
        return DQ_OK;
    }
    return c->group_index || c->group % UNIT != 0 ? plan_sorted(c, p) : DQ_OK;
}

static void pack_row(const plan *p, int bits, int shift, const uint8_t *codes, uint8_t *out)
{
    for (int64_t j = 0; j < p->columns; j++) {
        int64_t k = p->order ? p->order[j] : j;
        uint8_t code = k < 0 ? 0 : (uint8_t)(codes[k] + shift);
        if (bits == 8)
            out[j] = code;
        else if (j & 1)
            out[j / 2] = (uint8_t)(out[j / 2] | code << 4);
        else
            out[j / 2] = code;
    }
}

/* Whether all n values are exact in the type. */
static bool fits(const float *x, size_t n, dq_dtype dtype)
{
    for (size_t i = 0; i < n; i++) {
        float back = dtype == DQ_BF16 ? dq_bf16_to_f32(dq_f32_to_bf16(x[i])) : dq_f16_to_f32(dq_f32_to_f16(x[i]));
        if (!(back == x[i])) return false;
    }
    return true;
}

void dq_host_packed_free(dq_host_packed *p)
{
    dq_free(p->codes);
    dq_free(p->scale);
    dq_free(p->minimum);
    dq_free(p->zero);
    dq_free(p->order);
    *p = (dq_host_packed){0};
}

typedef struct pack_job {
    const dq_host_codes *codes;
    const plan *plan;
    uint8_t *out;
    int64_t bytes; /* of a row */
    int bits, shift;
} pack_job;

static void pack_task(void *arg, int64_t row, int thread)
{
    const pack_job *j = arg;
    (void)thread;
    pack_row(j->plan, j->bits, j->shift, j->codes->codes + row * j->codes->in, j->out + row * j->bytes);
}

static dq_status copy_of(dq_env *env, const void *data, size_t bytes, void *out)
{
    void *copy = dq_alloc(env, bytes);
    if (!copy) return DQ_E_NOMEM;
    memcpy(copy, data, bytes);
    *(void **)out = copy;
    return DQ_OK;
}

static dq_status pack(const dq_host_codes *c, const float *minimum, const plan *p, dq_host_packed *out)
{
    dq_host_packed w = {.bits = c->bits <= 4 ? 4 : 8, .out = c->out, .columns = p->columns, .group = p->group};
    size_t n = (size_t)(c->out * c->groups);
    dq_status status;
    w.groups = c->groups;
    w.row_bytes = w.bits == 8 ? p->columns : (p->columns + 1) / 2;
    pack_job job = {.codes = c, .plan = p, .bits = w.bits, .bytes = w.row_bytes};
    if (c->symmetric) job.shift = (1 << (w.bits - 1)) - (1 << (c->bits - 1));
    w.codes = job.out = dq_alloc(c->env, (size_t)(c->out * w.row_bytes));
    if (!w.codes) return DQ_E_NOMEM;
    DQ_GO(copy_of(c->env, c->scale, n * sizeof *c->scale, &w.scale));
    if (minimum)
        DQ_GO(copy_of(c->env, minimum, n * sizeof *minimum, &w.minimum));
    else if (!c->symmetric)
        DQ_GO(copy_of(c->env, c->zero, n, &w.zero));
    if (p->order) DQ_GO(copy_of(c->env, p->order, (size_t)p->columns * sizeof *p->order, &w.order));
    dq_run(c->env, c->out, pack_task, &job);
    *out = w;
    return DQ_OK;
done:
    dq_host_packed_free(&w);
    return status;
}

dq_status dq_pack_codes(const dq_host_codes *codes, const float *minimum, dq_host_packed *out, bool *packed)
{
    plan p;
    DQ_TRY(make_plan(codes, &p));
    bool worth = p.order || p.columns == codes->in;
    dq_status status = worth ? pack(codes, minimum, &p, out) : DQ_OK;
    dq_free(p.order);
    *packed = status == DQ_OK && worth;
    return status;
}

dq_status dq_pack_rows8(const dq_tensor *rows, dq_host_packed *out)
{
    dq_device *dev = rows->dev;
    dq_env *env = dq_device_env(dev);
    int64_t n = rows->view.rows, in = rows->view.cols;
    dq_grid_desc grid = {.bits = 8, .symmetric = 1, .group = in < HEAD_GROUP ? round_up(in) : HEAD_GROUP};
    dq_host_packed w = {.bits = 8, .out = n, .columns = in, .group = grid.group, .row_bytes = in};
    dq_tensor scale = {0}, zero = {0}, codes = {0};
    dq_status status;
    w.groups = (in + grid.group - 1) / grid.group;
    w.codes = dq_alloc(env, (size_t)(n * in));
    w.scale = dq_alloc(env, (size_t)(n * w.groups) * sizeof *w.scale);
    status = DQ_E_NOMEM;
    if (!w.codes || !w.scale) goto done;
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, n, w.groups, &scale));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, n, w.groups, &zero));
    DQ_GO(dq_tensor_alloc(dev, DQ_U8, n, in, &codes));
    DQ_GO(dq_op_weight_grid(&grid, rows, &scale, &zero));
    DQ_GO(dq_op_quantize_weight(&grid, rows, &scale, &zero, NULL, &codes));
    DQ_GO(dq_tensor_download(&scale, w.scale));
    DQ_GO(dq_tensor_download(&codes, w.codes));
    *out = w;
    w = (dq_host_packed){0};
done:
    dq_tensor_free(&scale);
    dq_tensor_free(&zero);
    dq_tensor_free(&codes);
    dq_host_packed_free(&w);
    return status;
}

/* ---- on the device ---- */

bool dq_packs_join(const dq_host_packed *a, const dq_host_packed *b)
{
    if (a->bits != b->bits || a->columns != b->columns || a->group != b->group || !a->zero != !b->zero ||
        !a->minimum != !b->minimum || !a->order != !b->order)
        return false;
    return !a->order || memcmp(a->order, b->order, (size_t)a->columns * sizeof *a->order) == 0;
}

/* Floats of all parts as one tensor of that type. */
static dq_status upload_floats(dq_arena *arena, const dq_host_packed *parts, int count, bool minima, dq_dtype dtype,
                               dq_tensor *out)
{
    dq_env *env = dq_device_env(arena->dev);
    int64_t rows = 0, groups = parts[0].groups, first = 0;
    dq_status status = DQ_OK;
    for (int i = 0; i < count; i++) rows += parts[i].out;
    DQ_TRY(dq_arena_take(arena, dtype, rows, groups, out));
    uint16_t *half = dtype == DQ_F16 ? dq_alloc(env, (size_t)(rows * groups) * sizeof *half) : NULL;
    if (dtype == DQ_F16 && !half) return DQ_E_NOMEM;
    for (int i = 0; status == DQ_OK && i < count; first += parts[i++].out) {
        const float *from = minima ? parts[i].minimum : parts[i].scale;
        dq_tensor to = dq_tensor_rows(out, first, parts[i].out);
        for (int64_t k = 0; half && k < parts[i].out * groups; k++) half[k] = dq_f32_to_f16(from[k]);
        status = dq_tensor_upload(&to, half ? (const void *)half : from);
    }
    dq_free(half);
    return status;
}

static dq_status upload_bytes(dq_arena *arena, const dq_host_packed *parts, int count, bool zeros, dq_tensor *out)
{
    int64_t rows = 0, cols = zeros ? parts[0].groups : parts[0].row_bytes, first = 0;
    for (int i = 0; i < count; i++) rows += parts[i].out;
    DQ_TRY(dq_arena_take(arena, DQ_U8, rows, cols, out));
    for (int i = 0; i < count; first += parts[i++].out) {
        dq_tensor to = dq_tensor_rows(out, first, parts[i].out);
        DQ_TRY(dq_tensor_upload(&to, zeros ? parts[i].zero : parts[i].codes));
    }
    return DQ_OK;
}

static bool all_fit(const dq_host_packed *parts, int count)
{
    bool fit = true;
    for (int i = 0; fit && i < count; i++) {
        size_t n = (size_t)(parts[i].out * parts[i].groups);
        fit = fits(parts[i].scale, n, DQ_F16) && (!parts[i].minimum || fits(parts[i].minimum, n, DQ_F16));
    }
    return fit;
}

dq_status dq_pack_upload(dq_arena *arena, const dq_host_packed *parts, int count, dq_packed_weight *out)
{
    dq_packed_weight w = {.bits = parts[0].bits, .group = parts[0].group};
    dq_dtype dtype = all_fit(parts, count) ? DQ_F16 : DQ_F32;
    DQ_TRY(upload_bytes(arena, parts, count, false, &w.codes));
    DQ_TRY(upload_floats(arena, parts, count, false, dtype, &w.scale));
    if (parts[0].minimum) DQ_TRY(upload_floats(arena, parts, count, true, dtype, &w.zero));
    if (parts[0].zero) DQ_TRY(upload_bytes(arena, parts, count, true, &w.zero));
    if (parts[0].order) {
        DQ_TRY(dq_arena_take(arena, DQ_I32, 1, parts[0].columns, &w.order));
        DQ_TRY(dq_tensor_upload(&w.order, parts[0].order));
    }
    *out = w;
    return DQ_OK;
}

dq_status dq_narrow_exact(dq_tensor *t)
{
    dq_env *env = dq_device_env(t->dev);
    size_t n = (size_t)(t->view.rows * t->view.cols);
    dq_tensor narrow = {0};
    float *host = dq_alloc(env, n * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    dq_status status;
    DQ_GO(dq_tensor_download(t, host));
    dq_dtype dtype = fits(host, n, DQ_BF16) ? DQ_BF16 : fits(host, n, DQ_F16) ? DQ_F16 : DQ_F32;
    if (dtype == DQ_F32) goto done;
    DQ_GO(dq_tensor_alloc(t->dev, dtype, t->view.rows, t->view.cols, &narrow));
    DQ_GO(dq_op_convert(t, &narrow));
    dq_tensor_free(t);
    *t = narrow;
    narrow = (dq_tensor){0};
done:
    dq_tensor_free(&narrow);
    dq_free(host);
    return status;
}

static uint64_t tensor_bytes(const dq_tensor *t)
{
    if (dq_tensor_is_empty(t)) return 0;
    return (uint64_t)(t->view.rows * t->view.cols) * dq_dtype_size(t->view.dtype);
}

uint64_t dq_linear_bytes(const dq_linear *l)
{
    const dq_packed_weight *p = &l->packed;
    return tensor_bytes(&l->weight) + tensor_bytes(&l->bias) + tensor_bytes(&p->codes) + tensor_bytes(&p->scale) +
           tensor_bytes(&p->zero) + tensor_bytes(&p->order);
}
