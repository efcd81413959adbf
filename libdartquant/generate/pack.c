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

static void pack_row(const dq_host_codes *c, const plan *p, int bits, int shift, const uint8_t *codes, uint8_t *out)
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
    (void)c;
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
    pack_row(j->codes, j->plan, j->bits, j->shift, j->codes->codes + row * j->codes->in, j->out + row * j->bytes);
}

static dq_status upload(dq_device *dev, const dq_host_codes *c, const plan *p, dq_packed_weight *out)
{
    dq_packed_weight w = {.bits = c->bits <= 4 ? 4 : 8, .group = p->group};
    pack_job job = {.codes = c, .plan = p, .bits = w.bits, .bytes = w.bits == 8 ? p->columns : (p->columns + 1) / 2};
    dq_status status;
    if (c->symmetric) job.shift = (1 << (w.bits - 1)) - (1 << (c->bits - 1));
    job.out = dq_alloc(c->env, (size_t)(c->out * job.bytes));
    if (!job.out) return DQ_E_NOMEM;
    dq_run(c->env, c->out, pack_task, &job);
    DQ_GO(dq_tensor_from_host(dev, DQ_U8, c->out, job.bytes, job.out, &w.codes));
    DQ_GO(dq_tensor_from_host(dev, DQ_F32, c->out, c->groups, c->scale, &w.scale));
    if (!c->symmetric) DQ_GO(dq_tensor_from_host(dev, DQ_U8, c->out, c->groups, c->zero, &w.zero));
    if (p->order) DQ_GO(dq_tensor_from_host(dev, DQ_I32, 1, p->columns, p->order, &w.order));
    *out = w;
    w = (dq_packed_weight){0};
done:
    dq_packed_weight_free(&w);
    dq_free(job.out);
    return status;
}

dq_status dq_pack_codes(dq_device *dev, const dq_host_codes *codes, dq_packed_weight *out, bool *packed)
{
    plan p;
    DQ_TRY(make_plan(codes, &p));
    bool worth = p.order || p.columns == codes->in;
    dq_status status = worth ? upload(dev, codes, &p, out) : DQ_OK;
    dq_free(p.order);
    if (status == DQ_OK) *packed = worth;
    return status;
}

dq_status dq_pack_rows8(const dq_tensor *rows, dq_packed_weight *out)
{
    dq_device *dev = rows->dev;
    int64_t n = rows->view.rows, in = rows->view.cols;
    dq_grid_desc grid = {.bits = 8, .symmetric = 1, .group = in < HEAD_GROUP ? round_up(in) : HEAD_GROUP};
    dq_packed_weight w = {.bits = 8, .group = grid.group};
    dq_tensor zero = {0};
    dq_status status;
    int64_t groups = (in + grid.group - 1) / grid.group;
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, n, groups, &w.scale));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, n, groups, &zero));
    DQ_GO(dq_tensor_alloc(dev, DQ_U8, n, in, &w.codes));
    DQ_GO(dq_op_weight_grid(&grid, rows, &w.scale, &zero));
    DQ_GO(dq_op_quantize_weight(&grid, rows, &w.scale, &zero, NULL, &w.codes));
    *out = w;
    w = (dq_packed_weight){0};
done:
    dq_tensor_free(&zero);
    dq_packed_weight_free(&w);
    return status;
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
