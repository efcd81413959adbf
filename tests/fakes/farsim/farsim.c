/* The table of farsim: options, and one slot per op that copies everything into a command. It has no slot for qr,
 * gather_cols, qr_batch and polar, and knows one loss of rotated rows. SPDX-License-Identifier: Apache-2.0 */
#include "farsim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- options: key=value,key=value ---- */

static const char *const op_names[] = {
    "fill",       "convert",       "axpy",    "scale_cols",  "gather_rows",   "find_nonfinite",  "dot",
    "gemm",       "rmsnorm",       "rope",    "activation",  "attention",     "head_nll",        "fake_quant",
    "hadamard",   "syrk",          "diag",    "gptq_factor", "weight_grid",   "quantize_weight", "dequantize_weight",
    "gptq_block", "rotation_loss", "qr_grad", "layernorm",   "quantize_rows", "int8_linear",     "levels_quant",
};
enum { OPS = sizeof op_names / sizeof op_names[0] };

/* missing=head_nll+syrk */
static bool set_missing(far_dev *dev, const char *text, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t length = strcspn(text + at, "+,"), i = 0;
        while (i < OPS && (strlen(op_names[i]) != length || memcmp(op_names[i], text + at, length) != 0)) i++;
        if (i == OPS) return false;
        dev->missing |= (uint64_t)1 << i;
        at += length + 1;
    }
    return true;
}

static bool set_option(far_dev *dev, const char *text, size_t n)
{
    const struct {
        const char *key;
        int64_t *value;
    } numbers[] = {{"limit=", (int64_t *)&dev->limit},
                   {"depth=", &dev->depth},
                   {"oom_at=", &dev->oom_at},
                   {"fail_copy=", &dev->fail_copy},
                   {"lost_at=", &dev->lost_at}};
    if (strncmp(text, "missing=", 8) == 0) return set_missing(dev, text + 8, n - 8);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        size_t length = strlen(numbers[i].key);
        if (n <= length || strncmp(text, numbers[i].key, length) != 0) continue;
        char *end;
        errno = 0;
        long long value = strtoll(text + length, &end, 10);
        *numbers[i].value = value;
        return end == text + n && errno == 0 && value >= 1;
    }
    return false;
}

static dq_status set_options(far_dev *dev, const char *options)
{
    for (const char *at = options; *at;) {
        size_t n = strcspn(at, ",");
        if (!set_option(dev, at, n))
            return far_fail(dev, DQ_E_INVALID, FAR_BAD_OPTION, "farsim does not understand the option '%.*s'", (int)n,
                            at);
        at += n + (at[n] == ',');
    }
    return DQ_OK;
}

/* ---- device ---- */

static dq_status far_open(const dq_host *host, const char *options, void **out)
{
    far_dev *dev = host->alloc(host->self, sizeof *dev);
    if (!dev) return host->fail(host->self, DQ_E_NOMEM, 0, "no host memory for farsim");
    memset(dev, 0, sizeof *dev);
    dev->host = host;
    dev->limit = (uint64_t)256 << 20;
    dev->depth = 64;
    dq_status status = set_options(dev, options);
    if (status == DQ_OK) status = far_start(dev);
    if (status != DQ_OK) {
        host->free(host->self, dev);
        return status;
    }
    *out = dev;
    return DQ_OK;
}

static void far_close(void *device)
{
    far_dev *dev = device;
    far_stop(dev);
    while (dev->blocks) far_unmap(dev, dev->blocks->base); /* what the library forgot */
    dev->host->free(dev->host->self, dev);
}

static dq_status far_info(void *device, dq_device_info *out)
{
    far_dev *dev = device;
    snprintf(out->name, sizeof out->name, "farsim:0");
    snprintf(out->description, sizeof out->description, "made-up device: protected pages, a late stream");
    pthread_mutex_lock(&dev->lock);
    out->memory_total = dev->limit;
    out->memory_free = dev->limit - dev->used;
    pthread_mutex_unlock(&dev->lock);
    return DQ_OK;
}

static dq_status far_sync(void *device) { return far_wait(device); }

/* ---- ops ---- */

/* First words of every op: an old failure, an op that is not built, a command with its operands. */
static dq_status begin(far_dev *dev, const char *name, far_kernel kernel, const dq_view *const *v, int count,
                       size_t payload_bytes, far_cmd **out)
{
    dq_status status = far_error(dev);
    if (status != DQ_OK) return status;
    for (int i = 0; i < OPS; i++)
        if (dev->missing >> i & 1 && strcmp(op_names[i], name) == 0)
            return far_fail(dev, DQ_E_UNSUPPORTED, FAR_NOT_BUILT, "this farsim was built without it");
    far_cmd *c = far_cmd_new(dev, name, kernel, payload_bytes);
    if (!c) return far_fail(dev, DQ_E_NOMEM, 0, "no host memory for a command");
    for (int i = 0; i < count && status == DQ_OK; i++) status = far_operand(dev, c, i, v[i]);
    if (status != DQ_OK)
        dev->host->free(dev->host->self, c);
    else
        *out = c;
    return status;
}

/* A slot with operands `...`; the block after it fills in the rest of command `c`. */
#define QUEUE(op, payload_bytes, fill_in, ...)                                                                         \
    far_dev *dev = device;                                                                                             \
    far_cmd *c = NULL;                                                                                                 \
    const dq_view *const operands[] = {__VA_ARGS__};                                                                   \
    dq_status status =                                                                                                 \
        begin(dev, #op, far_k_##op, operands, (int)(sizeof operands / sizeof operands[0]), payload_bytes, &c);         \
    if (status != DQ_OK) return status;                                                                                \
    fill_in;                                                                                                           \
    far_enqueue(dev, c)

static dq_status op_fill(void *device, double value, const dq_view *y)
{
    QUEUE(fill, 0, c->alpha = value, y);
    return DQ_OK;
}

static dq_status op_convert(void *device, const dq_view *x, const dq_view *y)
{
    QUEUE(convert, 0, (void)0, x, y);
    return DQ_OK;
}

static dq_status op_axpy(void *device, double alpha, const dq_view *x, const dq_view *y)
{
    QUEUE(axpy, 0, c->alpha = alpha, x, y);
    return DQ_OK;
}

static dq_status op_scale_cols(void *device, const dq_view *x, const dq_view *v, const dq_view *y)
{
    QUEUE(scale_cols, 0, (void)0, x, v, y);
    return DQ_OK;
}

static dq_status op_gather_rows(void *device, const dq_view *x, const dq_view *index, const dq_view *y)
{
    QUEUE(gather_rows, 0, (void)0, x, index, y);
    return DQ_OK;
}

static dq_status op_find_nonfinite(void *device, const dq_view *x, int64_t *index)
{
    QUEUE(find_nonfinite, 0, c->result = index, x);
    return far_wait(dev);
}

static dq_status op_dot(void *device, const dq_view *x, const dq_view *y, double *out)
{
    QUEUE(dot, 0, c->result = out, x, y);
    return far_wait(dev);
}

static dq_status op_gemm(void *device, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a,
                         const dq_view *b, double beta, const dq_view *y, int32_t math)
{
    QUEUE(gemm, 0, (c->flag[0] = trans_a, c->flag[1] = trans_b, c->math = math, c->alpha = alpha, c->beta = beta), a, b,
          y);
    return DQ_OK;
}

static dq_status op_rmsnorm(void *device, const dq_view *x, const dq_view *weight, double eps, const dq_view *y)
{
    QUEUE(rmsnorm, 0, c->alpha = eps, x, weight, y);
    return DQ_OK;
}

static dq_status op_layernorm(void *device, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                              const dq_view *y)
{
    QUEUE(layernorm, 0, c->alpha = eps, x, weight, bias, y);
    return DQ_OK;
}

static dq_status op_rope(void *device, const dq_view *cosine, const dq_view *sine, int64_t head_dim, const dq_view *x)
{
    QUEUE(rope, 0, c->number = head_dim, cosine, sine, x);
    return DQ_OK;
}

static dq_status op_activation(void *device, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y)
{
    QUEUE(activation, 0, c->flag[0] = kind, gate, up, y);
    return DQ_OK;
}

static dq_status op_attention(void *device, const dq_attention_desc *d, const dq_view *q, const dq_view *k,
                              const dq_view *v, const dq_view *o)
{
    QUEUE(attention, 0, c->d.attention = *d, q, k, v, o);
    return DQ_OK;
}

static dq_status op_head_nll(void *device, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                             const dq_view *state, int32_t math)
{
    QUEUE(head_nll, 0, (c->number = first, c->math = math), x, w, targets, state);
    return DQ_OK;
}

static dq_status op_fake_quant(void *device, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y)
{
    QUEUE(fake_quant, 0, c->d.fake_quant = *d, x, y);
    return DQ_OK;
}

static dq_status op_hadamard(void *device, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y)
{
    size_t table = d->k > 1 ? (size_t)(d->k * d->k) : 0;
    QUEUE(hadamard, table, c->d.hadamard = *d; if (table) memcpy(c->payload, d->hk, table), x, y);
    return DQ_OK;
}

static dq_status op_syrk(void *device, double alpha, const dq_view *x, double beta, const dq_view *h)
{
    QUEUE(syrk, 0, (c->alpha = alpha, c->beta = beta), x, h);
    return DQ_OK;
}

static dq_status op_diag(void *device, const dq_view *h, const dq_view *v)
{
    QUEUE(diag, 0, (void)0, h, v);
    return DQ_OK;
}

static dq_status op_gptq_factor(void *device, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                                int64_t *info)
{
    QUEUE(gptq_factor, 0, (c->alpha = damp, c->result = info), h, perm, u);
    return far_wait(dev);
}

static dq_status op_weight_grid(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                const dq_view *zero)
{
    QUEUE(weight_grid, 0, c->d.grid = *d, w, scale, zero);
    return DQ_OK;
}

static dq_status op_quantize_weight(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                    const dq_view *zero, const dq_view *group_index, const dq_view *codes)
{
    QUEUE(quantize_weight, 0, c->d.grid = *d, w, scale, zero, group_index, codes);
    return DQ_OK;
}

static dq_status op_dequantize_weight(void *device, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                      const dq_view *zero, const dq_view *group_index, const dq_view *w)
{
    QUEUE(dequantize_weight, 0, c->d.grid = *d, codes, scale, zero, group_index, w);
    return DQ_OK;
}

static dq_status op_gptq_block(void *device, const dq_grid_desc *d, const dq_view *w, const dq_view *u,
                               const dq_view *scale, const dq_view *zero, const dq_view *group_index,
                               const dq_view *codes, const dq_view *err)
{
    QUEUE(gptq_block, 0, c->d.grid = *d, w, u, scale, zero, group_index, codes, err);
    return DQ_OK;
}

static dq_status op_rotation_loss(void *device, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                                  const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss)
{
    if (d->kind != DQ_LOSS_WHIP) return DQ_E_UNSUPPORTED; /* one of the answers an op may give */
    QUEUE(rotation_loss, 0, (c->d.loss = *d, c->result = loss), x, weight, r, grad, row_loss);
    return far_wait(dev);
}

static dq_status op_qr_grad(void *device, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                            const dq_view *da)
{
    (void)groups; /* rows / cols */
    QUEUE(qr_grad, 0, (void)0, q, r, dq, da);
    return DQ_OK;
}

static dq_status op_quantize_rows(void *device, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *codes,
                                  const dq_view *grid)
{
    QUEUE(quantize_rows, 0, c->d.fake_quant = *d, x, codes, grid);
    return DQ_OK;
}

static dq_status op_int8_linear(void *device, double beta, const dq_view *x, const dq_view *x_grid, const dq_view *w,
                                const dq_view *w_grid, const dq_view *y)
{
    QUEUE(int8_linear, 0, c->beta = beta, x, x_grid, w, w_grid, y);
    return DQ_OK;
}

static dq_status op_levels_quant(void *device, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                                 const dq_view *levels, const dq_view *position, const dq_view *y)
{
    QUEUE(levels_quant, 0, c->d.levels = *d, x, range, levels, position, y);
    return DQ_OK;
}

/* ---- table ---- */

static const dq_backend table = {
    .struct_size = sizeof(dq_backend),
    .abi = DQ_BACKEND_ABI,
    .name = "farsim",
    .open = far_open,
    .close = far_close,
    .info = far_info,
    .alloc = far_alloc,
    .free = far_free,
    .upload = far_upload,
    .download = far_download,
    .sync = far_sync,
    .fill = op_fill,
    .convert = op_convert,
    .axpy = op_axpy,
    .scale_cols = op_scale_cols,
    .gather_rows = op_gather_rows,
    .find_nonfinite = op_find_nonfinite,
    .dot = op_dot,
    .gemm = op_gemm,
    .rmsnorm = op_rmsnorm,
    .rope = op_rope,
    .activation = op_activation,
    .attention = op_attention,
    .head_nll = op_head_nll,
    .fake_quant = op_fake_quant,
    .hadamard = op_hadamard,
    .syrk = op_syrk,
    .diag = op_diag,
    .gptq_factor = op_gptq_factor,
    .weight_grid = op_weight_grid,
    .quantize_weight = op_quantize_weight,
    .dequantize_weight = op_dequantize_weight,
    .gptq_block = op_gptq_block,
    .rotation_loss = op_rotation_loss,
    .qr_grad = op_qr_grad,
    .layernorm = op_layernorm,
    .quantize_rows = op_quantize_rows,
    .int8_linear = op_int8_linear,
    .levels_quant = op_levels_quant,
    .features = DQ_FEATURE_BF16,
};

DQ_API const dq_backend *dq_backend_entry(uint32_t abi);

const dq_backend *dq_backend_entry(uint32_t abi) { return abi == DQ_BACKEND_ABI ? &table : NULL; }
