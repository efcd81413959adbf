/* Reading weights through the chain of derived models: fp32 from the file, fp64 while transforms run, fp32 at the end.
 * SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "model/internal.h"

/* Rows of the embedding and the head are transformed in blocks that start at multiples of this, so that a row has the
 * same bits whoever asks for it. */
enum { ROW_BLOCK = 256 };
/* Numbers of a linear that are in fp64 at a time, where rows can be transformed alone. */
enum { WIDE_NUMBERS = 1 << 22 };

static bool is_transformed(const dq_model *m)
{
    for (; m->base; m = m->base)
        if (m->kind != DQ_MODEL_QUANTIZED) return true;
    return false;
}

/* Fusing norms scales columns, or takes a mean over all rows; rotating and scaling channels take the whole matrix. */
static bool rows_stand_alone(const dq_model *m, dq_role role)
{
    for (; m->base; m = m->base) {
        if (m->kind != DQ_MODEL_FUSED && m->kind != DQ_MODEL_QUANTIZED) return false;
        if (m->kind == DQ_MODEL_FUSED && dq_fuse_mixes_rows(m, role)) return false;
    }
    return true;
}

/* In whole heads: files may keep the rows of one in another order. */
int64_t dq_rows_at_once(const dq_model *m, int64_t rows, int64_t cols)
{
    int64_t step = WIDE_NUMBERS / cols / m->arch.head_dim * m->arch.head_dim;
    if (step < m->arch.head_dim) step = m->arch.head_dim;
    return step < rows ? step : rows;
}

/* Rows from `first` on; all of them unless rows stand alone. *bound: no magnitude exceeds it. */
dq_status dq_linear64(dq_model *m, int64_t layer, dq_role role, int64_t first, dq_tensor *w, double *bound)
{
    if (m->kind == DQ_MODEL_ROOT) return dq_root_read(m, role, false, dq_root_weight(m, layer, role), first, w, bound);
    DQ_TRY(dq_linear64(m->base, layer, role, first, w, bound));
    if (m->kind == DQ_MODEL_FUSED) return dq_fuse_linear(m, layer, role, w, bound);
    if (m->kind == DQ_MODEL_SCALED) return dq_scale_linear(m, layer, role, w, bound);
    return m->kind == DQ_MODEL_ROTATED ? dq_rotate_linear(m, layer, role, w, bound) : DQ_OK;
}

static dq_status bias64(dq_model *m, int64_t layer, dq_role role, dq_tensor *bias, double *bound)
{
    if (m->kind == DQ_MODEL_ROOT) return dq_root_read(m, role, true, dq_root_bias(m, layer, role), 0, bias, bound);
    DQ_TRY(bias64(m->base, layer, role, bias, bound));
    if (m->kind == DQ_MODEL_FUSED) return dq_fuse_bias(m, layer, role, bias, bound);
    if (m->kind == DQ_MODEL_SCALED) return dq_scale_bias(m, layer, role, bias, bound);
    return m->kind == DQ_MODEL_ROTATED ? dq_rotate_bias(m, layer, role, bias, bound) : DQ_OK;
}

static dq_status rows64(dq_model *m, dq_role role, int64_t first, dq_tensor *rows, double *bound)
{
    if (m->kind == DQ_MODEL_ROOT) return dq_root_read(m, role, false, dq_root_weight(m, 0, role), first, rows, bound);
    DQ_TRY(rows64(m->base, role, first, rows, bound));
    if (m->kind == DQ_MODEL_FUSED) return dq_fuse_rows(m, role, rows, bound);
    return m->kind == DQ_MODEL_ROTATED ? dq_rotate_rows(m, role, rows, bound) : DQ_OK;
}

/* Whether a number of that magnitude could become infinite as `dtype` (with room for what sums round). */
static bool may_overflow(double bound, dq_dtype dtype) { return !(bound <= (dtype == DQ_F16 ? 65000.0 : 1e38)); }

/* Rounds rows from `first` on to fp32 and makes sure that nothing overflowed on the way: what was read is finite, so that a
 * bound of the magnitudes answers nearly always, and nobody waits for the device. */
dq_status dq_round_weight(const dq_model *m, int64_t layer, dq_role role, int64_t first, const dq_tensor *from,
                          double bound, dq_tensor *to)
{
    int64_t at;
    DQ_TRY(dq_op_convert(from, to));
    if (!may_overflow(bound, from->view.dtype)) return DQ_OK;
    DQ_TRY(dq_op_find_nonfinite(to, &at));
    if (at < 0) return DQ_OK;
    char name[DQ_TENSOR_NAME];
    dq_arch_tensor_name(&m->arch, role, layer, name, sizeof name);
    return dq_error_in_tensor(dq_fail(DQ_E_NONFINITE, "the transformed weight is not finite in row %lld, column %lld",
                                      (long long)(first + at / to->view.cols), (long long)(at % to->view.cols)),
                              name);
}

dq_status dq_model_read_bias(dq_model *m, int64_t layer, dq_role role, dq_tensor *out)
{
    int64_t rows, cols;
    if (!dq_arch_has_bias(&m->arch, role)) {
        *out = (dq_tensor){0};
        return DQ_OK;
    }
    dq_tensor wide = {0}, bias = {0};
    dq_status status;
    double bound;
    dq_arch_shape(&m->arch, role, &rows, &cols);
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, 1, rows, &wide));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F32, 1, rows, &bias));
    DQ_GO(bias64(m, layer, role, &wide, &bound));
    DQ_GO(dq_round_weight(m, layer, role, 0, &wide, bound, &bias));
    *out = bias;
    bias = (dq_tensor){0};
done:
    dq_tensor_free(&wide);
    dq_tensor_free(&bias);
    return status;
}

static dq_status read_transformed(dq_model *m, int64_t layer, dq_role role, dq_tensor *w)
{
    int64_t rows = w->view.rows, cols = w->view.cols, step = rows;
    double bound;
    dq_tensor wide = {0};
    dq_status status;
    if (rows_stand_alone(m, role)) step = dq_rows_at_once(m, rows, cols);
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, step, cols, &wide));
    for (int64_t first = 0; first < rows; first += step) {
        int64_t n = rows - first < step ? rows - first : step;
        dq_tensor block = dq_tensor_rows(&wide, 0, n), part = dq_tensor_rows(w, first, n);
        DQ_GO(dq_linear64(m, layer, role, first, &block, &bound));
        DQ_GO(dq_round_weight(m, layer, role, first, &block, bound, &part));
    }
done:
    dq_tensor_free(&wide);
    return status;
}

/* The type in which a weight is read for products under `math`: the one that they would round it to, where nothing but the
 * root has a say. From F16 and BF16 that rounds at most once, as F32 in between holds both exactly. */
static dq_dtype factor_type(const dq_model *m, int math)
{
    return (math & DQ_MATH_BF16) && dq_device_is_far(m->dev) && !is_transformed(m) ? DQ_BF16 : DQ_F32;
}

/* The weight of a linear that has no codes. */
static dq_status read_float(dq_model *m, int64_t layer, dq_role role, int math, dq_tensor *out)
{
    int64_t rows, cols;
    double bound;
    dq_tensor w = {0};
    dq_status status;
    dq_arch_shape(&m->arch, role, &rows, &cols);
    DQ_GO(dq_tensor_alloc(m->dev, factor_type(m, math), rows, cols, &w));
    if (is_transformed(m)) {
        DQ_GO(read_transformed(m, layer, role, &w));
    } else {
        const dq_model *root = dq_model_root(m);
        DQ_GO(dq_root_read(root, role, false, dq_root_weight(root, layer, role), 0, &w, &bound));
    }
    *out = w;
    w = (dq_tensor){0};
done:
    dq_tensor_free(&w);
    return status;
}

static dq_status read_quantized(dq_model *m, int64_t layer, dq_role role, dq_tensor *out)
{
    dq_codes codes = {0};
    dq_tensor w = {0};
    dq_status status;
    DQ_GO(dq_model_read_codes(m, layer, role, &codes));
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F32, codes.out, codes.in, &w));
    dq_grid_desc grid = {.bits = codes.bits, .symmetric = codes.symmetric, .group = codes.group};
    DQ_GO(dq_op_dequantize_weight(&grid, &codes.codes, &codes.scale, &codes.zero,
                                  dq_tensor_is_empty(&codes.group_index) ? NULL : &codes.group_index, &w));
    *out = w;
    w = (dq_tensor){0};
done:
    dq_tensor_free(&w);
    dq_codes_free(&codes);
    return status;
}

static dq_status check_layer(const dq_model *m, int64_t layer)
{
    if (layer >= 0 && layer < m->arch.layers) return DQ_OK;
    return dq_fail(DQ_E_INVALID, "layer %lld of %lld", (long long)layer, (long long)m->arch.layers);
}

dq_status dq_model_read_linear(dq_model *model, int64_t layer, dq_role role, dq_linear *out)
{
    return dq_model_read_factor(model, layer, role, DQ_MATH_F32, out);
}

dq_status dq_model_read_factor(dq_model *model, int64_t layer, dq_role role, int math, dq_linear *out)
{
    dq_linear l = {0};
    dq_status status;
    DQ_TRY(check_layer(model, layer));
    if (role < 0 || role > DQ_DOWN_PROJ || !dq_arch_has(&model->arch, role))
        return dq_fail(DQ_E_INVALID, "%s is not a linear of this model", dq_role_name(role));
    if (dq_model_has_codes(model, layer, role))
        DQ_GO(read_quantized(model, layer, role, &l.weight));
    else
        DQ_GO(read_float(model, layer, role, math, &l.weight));
    DQ_GO(dq_weight_narrow(&l.weight, math));
    DQ_GO(dq_model_read_bias(model, layer, role, &l.bias));
    *out = l;
    return DQ_OK;
done:
    dq_tensor_free(&l.weight);
    dq_tensor_free(&l.bias);
    return status;
}

static dq_status read_transformed_rows(dq_model *m, dq_role role, int64_t first, dq_tensor *out, double *bound)
{
    int64_t all, hidden, end = first + out->view.rows;
    dq_tensor wide = {0};
    dq_status status;
    *bound = 0;
    dq_arch_shape(&m->arch, role, &all, &hidden);
    DQ_GO(dq_tensor_alloc(m->dev, DQ_F64, ROW_BLOCK, hidden, &wide));
    for (int64_t start = first / ROW_BLOCK * ROW_BLOCK; start < end; start += ROW_BLOCK) {
        int64_t rows = all - start < ROW_BLOCK ? all - start : ROW_BLOCK;
        int64_t from = start > first ? start : first;
        int64_t to = start + rows < end ? start + rows : end;
        dq_tensor block = dq_tensor_rows(&wide, 0, rows);
        dq_tensor wanted = dq_tensor_rows(&block, from - start, to - from);
        dq_tensor part = dq_tensor_rows(out, from - first, to - from);
        double here;
        DQ_GO(rows64(m, role, start, &block, &here));
        DQ_GO(dq_round_weight(m, 0, role, from, &wanted, here, &part));
        if (!(here <= *bound)) *bound = here;
    }
done:
    dq_tensor_free(&wide);
    return status;
}

dq_dtype dq_model_vocab_dtype(const dq_model *m)
{
    for (; m; m = m->base)
        if (m->kind == DQ_MODEL_QUANTIZED && m->scheme && m->scheme->w.bits < 16) return m->scheme->w.vocab_dtype;
    return DQ_F32;
}

/* Rounds to the element type that the vocabulary tables of a quantized model have. */
static dq_status round_rows(const dq_model *m, dq_role role, int64_t first, double bound, dq_tensor *rows)
{
    dq_dtype dtype = dq_model_vocab_dtype(m);
    dq_tensor narrow = {0};
    if (dtype == DQ_F32) return DQ_OK;
    DQ_TRY(dq_tensor_alloc(m->dev, dtype, rows->view.rows, rows->view.cols, &narrow));
    dq_status status = dq_op_convert(rows, &narrow);
    if (status == DQ_OK) status = dq_round_weight(m, 0, role, first, &narrow, bound, rows);
    dq_tensor_free(&narrow);
    return status;
}

static dq_status read_rows(dq_model *model, dq_role role, int64_t first, int64_t count, dq_dtype dtype, dq_tensor *out)
{
    dq_tensor rows = {0};
    dq_status status;
    double bound;
    int64_t all, hidden;
    if (role < DQ_EMBED || role == DQ_FINAL_NORM || !dq_arch_has(&model->arch, role))
        return dq_fail(DQ_E_INVALID, "%s has no rows", dq_role_name(role));
    dq_arch_shape(&model->arch, role, &all, &hidden);
    if (first < 0 || count < 1 || count > all - first)
        return dq_fail(DQ_E_INVALID, "rows %lld..%lld of a %s of %lld", (long long)first, (long long)(first + count),
                       role == DQ_POSITIONS ? "table of positions" : "vocabulary", (long long)all);
    DQ_TRY(dq_tensor_alloc(model->dev, dtype, count, model->arch.hidden, &rows));
    const dq_model *root = dq_model_root(model);
    if (is_transformed(model))
        DQ_GO(read_transformed_rows(model, role, first, &rows, &bound));
    else
        DQ_GO(dq_root_read(root, role, false, dq_root_weight(root, 0, role), first, &rows, &bound));
    DQ_GO(round_rows(model, role, first, bound, &rows));
    *out = rows;
    return DQ_OK;
done:
    dq_tensor_free(&rows);
    return status;
}

dq_status dq_model_read_rows(dq_model *model, dq_role role, int64_t first, int64_t count, dq_tensor *out)
{
    return read_rows(model, role, first, count, DQ_F32, out);
}

dq_status dq_model_read_head(dq_model *model, int64_t first, int64_t count, int math, dq_tensor *out)
{
    bool rounded = dq_model_vocab_dtype(model) != DQ_F32; /* from F32 */
    DQ_TRY(read_rows(model, DQ_HEAD, first, count, rounded ? DQ_F32 : factor_type(model, math), out));
    dq_status status = dq_weight_narrow(out, math);
    if (status != DQ_OK) dq_tensor_free(out);
    return status;
}

bool dq_model_transforms_rows(const dq_model *model) { return is_transformed(model); }

/* KVQuant's tables of one layer. */
static dq_status load_levels(dq_model *model, int64_t layer, dq_block *b)
{
    const dq_kv_tables *t = model->scheme->tables;
    dq_kv_level_tables *l = &b->levels;
    memcpy(l->norm, t->norms + 4 * layer, sizeof l->norm);
    if (t->k_levels) {
        const float *ranges = t->ranges + 2 * layer * t->channels;
        DQ_TRY(dq_tensor_from_host(model->dev, DQ_F32, 2, t->channels, ranges, &l->k_range));
        DQ_TRY(dq_tensor_from_host(model->dev, DQ_F32, 1, t->k_levels, t->k + layer * t->k_levels, &l->k));
    }
    if (!t->v_levels) return DQ_OK;
    return dq_tensor_from_host(model->dev, DQ_F32, 1, t->v_levels, t->v + layer * t->v_levels, &l->v);
}

dq_status dq_model_load_frame(dq_model *model, int64_t layer, dq_block *out)
{
    dq_block b;
    dq_status status;
    memset(&b, 0, sizeof b);
    DQ_GO(dq_model_read_norm(model, layer, DQ_ATTN_NORM, &b.attn_norm));
    DQ_GO(dq_model_read_norm(model, layer, DQ_MLP_NORM, &b.mlp_norm));
    DQ_GO(dq_model_read_norm(model, layer, DQ_Q_NORM, &b.q_norm));
    DQ_GO(dq_model_read_norm(model, layer, DQ_K_NORM, &b.k_norm));
    DQ_GO(dq_model_read_norm_bias(model, layer, DQ_ATTN_NORM, &b.attn_norm_bias));
    DQ_GO(dq_model_read_norm_bias(model, layer, DQ_MLP_NORM, &b.mlp_norm_bias));
    if (model->scheme && model->scheme->clips) memcpy(b.clip, model->scheme->clips->ratio[layer], sizeof b.clip);
    if (model->scheme && model->scheme->tables) DQ_GO(load_levels(model, layer, &b));
    *out = b;
    return DQ_OK;
done:
    dq_block_free(&b);
    return status;
}

/* Linears that read the same input. */
typedef struct site {
    int first, count;
} site;

static const site sites[] = {{DQ_BLOCK_Q, 3}, {DQ_BLOCK_O, 1}, {DQ_BLOCK_GATE, 2}, {DQ_BLOCK_DOWN, 1}};
enum { SITES = sizeof sites / sizeof *sites };

static dq_status load_int8(dq_model *model, int64_t layer, dq_role role, dq_linear *l)
{
    DQ_TRY(dq_model_read_integers(model, layer, role, &l->int8));
    return dq_model_read_bias(model, layer, role, &l->bias);
}

/* Integers where all of them can be. */
static dq_status has_integers(dq_model *model, int64_t layer, const site *at, bool *codes)
{
    for (int i = at->first; i < at->first + at->count && *codes; i++)
        if (dq_arch_has(&model->arch, (dq_role)i)) DQ_TRY(dq_model_has_integers(model, layer, (dq_role)i, codes));
    return DQ_OK;
}

static dq_status load_site(dq_model *model, int64_t layer, const site *at, int math, bool codes, dq_block *b)
{
    DQ_TRY(has_integers(model, layer, at, &codes));
    for (int i = at->first; i < at->first + at->count; i++) {
        if (!dq_arch_has(&model->arch, (dq_role)i)) continue;
        if (codes)
            DQ_TRY(load_int8(model, layer, (dq_role)i, &b->linear[i]));
        else
            DQ_TRY(dq_model_read_factor(model, layer, (dq_role)i, math, &b->linear[i]));
    }
    return DQ_OK;
}

static dq_status load_block(dq_model *model, int64_t layer, int math, bool codes, dq_block *out)
{
    dq_block b;
    dq_status status;
    DQ_TRY(dq_model_load_frame(model, layer, &b));
    for (int i = 0; i < SITES; i++) DQ_GO(load_site(model, layer, &sites[i], math, codes, &b));
    *out = b;
    return DQ_OK;
done:
    dq_block_free(&b);
    return status;
}

dq_status dq_model_load_block(dq_model *model, int64_t layer, dq_block *out)
{
    return load_block(model, layer, DQ_MATH_F32, false, out);
}

dq_status dq_model_load_forward(dq_model *model, int64_t layer, const dq_block_spec *spec, dq_block *out)
{
    return load_block(model, layer, spec->math, spec->codes, out);
}

dq_status dq_model_count_integers(dq_model *model, const dq_block_spec *spec, int64_t *out)
{
    int64_t count = 0;
    for (int64_t layer = 0; layer < model->arch.layers && spec->codes; layer++)
        for (int i = 0; i < SITES; i++) {
            bool codes = true;
            DQ_TRY(has_integers(model, layer, &sites[i], &codes));
            for (int role = sites[i].first; codes && role < sites[i].first + sites[i].count; role++)
                count += dq_arch_has(&model->arch, (dq_role)role);
        }
    *out = count;
    return DQ_OK;
}
