/* A model as GGUF: keys, vocabulary, tensors in llama.cpp's names, q and k of a LLaMA with interleaved rows.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/dtype.h"
#include "base/status.h"
#include "export/gguf_parts.h"
#include "io/gguf.h"

enum { PIECE_ROWS = 1024 };

/* ---- keys ---- */

/* "<architecture>.<name>" */
static const char *key(const dq_arch *a, const char *name, char *buf, size_t size)
{
    snprintf(buf, size, "%s.%s", a->family->gguf_archs[0], name);
    return buf;
}

static void write_keys(const dq_export_plan *p, dq_gguf_writer *w)
{
    const dq_arch *a = dq_model_arch(p->model);
    char buf[128];
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"context_length", a->max_positions > 0 ? a->max_positions : 2048},
                 {"embedding_length", a->hidden},
                 {"block_count", a->layers},
                 {"feed_forward_length", a->intermediate},
                 {"attention.head_count", a->heads},
                 {"attention.head_count_kv", a->kv_heads},
                 {"attention.key_length", a->head_dim},
                 {"attention.value_length", a->head_dim},
                 {"rope.dimension_count", a->head_dim},
                 {"vocab_size", a->vocab}};
    dq_gguf_writer_string(w, "general.architecture", a->family->gguf_archs[0]);
    dq_gguf_writer_string(w, "general.name", "dartquant export");
    dq_gguf_writer_u32(w, "general.quantization_version", 2);
    dq_gguf_writer_u32(w, "general.file_type", dq_gguf_block_file_type(p->spec->block));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        dq_gguf_writer_u32(w, key(a, sizes[i].name, buf, sizeof buf), (uint32_t)sizes[i].value);
    dq_gguf_writer_f32(w, key(a, "attention.layer_norm_rms_epsilon", buf, sizeof buf), (float)a->norm_eps);
    dq_gguf_writer_f32(w, key(a, "rope.freq_base", buf, sizeof buf), (float)a->rope_theta);
    if (a->rope_scaling != DQ_ROPE_LINEAR) return;
    dq_gguf_writer_string(w, key(a, "rope.scaling.type", buf, sizeof buf), "linear");
    dq_gguf_writer_f32(w, key(a, "rope.scaling.factor", buf, sizeof buf), (float)a->rope_factor);
}

/* ---- tensors ---- */

/* Of a matrix with `cols` columns: as llama.cpp does where rows are no whole blocks, a type of blocks of 32 takes over. */
static dq_gguf_block type_for(dq_gguf_block type, int64_t cols)
{
    if (cols % dq_gguf_block_elements(type) == 0) return type;
    if (type == DQ_GGUF_OUT_Q4_K && cols % 32 == 0) return DQ_GGUF_OUT_Q5_0;
    if (type == DQ_GGUF_OUT_Q6_K && cols % 32 == 0) return DQ_GGUF_OUT_Q8_0;
    return DQ_GGUF_OUT_F16;
}

static dq_gguf_block vocab_type(const dq_export_plan *p)
{
    if (!dq_gguf_block_is_quantized(p->spec->block)) return p->spec->block;
    return p->dtype == DQ_F32 ? DQ_GGUF_OUT_F32 : p->dtype == DQ_F16 ? DQ_GGUF_OUT_F16 : DQ_GGUF_OUT_BF16;
}

static const char *gguf_name(const dq_arch *a, dq_role role, int64_t layer, const char *suffix, char *buf, size_t size)
{
    const char *pattern = a->family->gguf_names[role], *mark = strstr(pattern, "%d");
    if (mark)
        snprintf(buf, size, "%.*s%lld%s%s", (int)(mark - pattern), pattern, (long long)layer, mark + 2, suffix);
    else
        snprintf(buf, size, "%s%s", pattern, suffix);
    return buf;
}

static void list_tensor(const dq_export_plan *p, dq_gguf_writer *w, dq_role role, int64_t layer)
{
    const dq_arch *a = dq_model_arch(p->model);
    char name[DQ_TENSOR_NAME];
    int64_t rows, cols;
    dq_arch_shape(a, role, &rows, &cols);
    bool norm = dq_role_is_norm(role) || dq_role_is_head_norm(role);
    dq_gguf_block type = norm ? DQ_GGUF_OUT_F32 : role >= DQ_EMBED ? vocab_type(p) : type_for(p->spec->block, cols);
    gguf_name(a, role, layer, ".weight", name, sizeof name);
    dq_gguf_writer_tensor(w, name, norm ? 0 : rows, cols, dq_gguf_block_id(type),
                          dq_gguf_block_bytes(type, rows * cols));
    if (role > DQ_DOWN_PROJ || !dq_arch_has_bias(a, role)) return;
    gguf_name(a, role, layer, ".bias", name, sizeof name);
    dq_gguf_writer_tensor(w, name, 0, rows, 0, (uint64_t)rows * 4);
}

/* Order of the file: embedding, layers, final norm, head, RoPE divisors. */
static void list_tensors(const dq_export_plan *p, dq_gguf_writer *w)
{
    const dq_arch *a = dq_model_arch(p->model);
    list_tensor(p, w, DQ_EMBED, 0);
    for (int64_t layer = 0; layer < a->layers; layer++)
        for (int role = 0; dq_role_is_in_layer((dq_role)role); role++)
            if (dq_arch_has(a, (dq_role)role)) list_tensor(p, w, (dq_role)role, layer);
    list_tensor(p, w, DQ_FINAL_NORM, 0);
    if (!a->tied) list_tensor(p, w, DQ_HEAD, 0);
    if (a->rope_scaling == DQ_ROPE_LLAMA3 || a->rope_scaling == DQ_ROPE_TABLE)
        dq_gguf_writer_tensor(w, "rope_freqs.weight", 0, a->head_dim / 2, 0, (uint64_t)(a->head_dim / 2) * 4);
}

static dq_status put(dq_gguf_writer *w, const void *data, uint64_t bytes)
{
    DQ_TRY(dq_gguf_writer_data(w, data, bytes));
    return dq_gguf_writer_end_tensor(w);
}

/* Row of the HF layout that stands at row r of the file: pairs of a q or k head lie next to each other. */
static int64_t source_row(const dq_arch *a, dq_role role, int64_t r)
{
    int64_t d = a->head_dim, i = r % d;
    if (!a->family->gguf_permuted_qk || (role != DQ_Q_PROJ && role != DQ_K_PROJ)) return r;
    return r - i + i / 2 + i % 2 * (d / 2);
}

/* Rows of the file from codes or from floats; the search for the scales of some types is worth all threads. */
typedef struct encoding {
    const dq_arch *a;
    dq_role role;
    dq_gguf_block type;
    const dq_host_codes *codes; /* or x */
    const float *x;
    int64_t cols, first; /* row of the piece */
    uint64_t bytes;      /* of a row */
    uint8_t *piece;
} encoding;

static void encode_row(void *arg, int64_t i, int thread)
{
    const encoding *e = arg;
    int64_t row = source_row(e->a, e->role, e->first + i);
    uint8_t *out = e->piece + (uint64_t)i * e->bytes;
    (void)thread;
    if (e->codes)
        dq_gguf_encode_codes(e->type, e->codes, row, out);
    else
        dq_gguf_encode(e->type, e->x + row * e->cols, e->cols, out);
}

static dq_status put_rows(const dq_export_plan *p, dq_gguf_writer *w, encoding *e, int64_t rows)
{
    int64_t most = rows < PIECE_ROWS ? rows : PIECE_ROWS;
    e->bytes = dq_gguf_block_bytes(e->type, e->cols);
    e->piece = dq_alloc(p->env, (size_t)e->bytes * (size_t)most);
    dq_status status = e->piece ? DQ_OK : DQ_E_NOMEM;
    for (; status == DQ_OK && e->first < rows; e->first += most) {
        int64_t n = rows - e->first < most ? rows - e->first : most;
        dq_run(p->env, n, encode_row, e);
        status = dq_gguf_writer_data(w, e->piece, e->bytes * (uint64_t)n);
    }
    dq_free(e->piece);
    return status == DQ_OK ? dq_gguf_writer_end_tensor(w) : status;
}

static dq_status put_codes(const dq_export_plan *p, dq_gguf_writer *w, int64_t layer, dq_role role)
{
    dq_host_codes c;
    DQ_TRY(dq_export_read_codes(p, layer, role, &c));
    encoding e = {.a = dq_model_arch(p->model), .role = role, .type = p->spec->block, .codes = &c, .cols = c.in};
    dq_status status = put_rows(p, w, &e, c.out);
    dq_host_codes_free(&c);
    return status;
}

static dq_status put_floats(const dq_export_plan *p, dq_gguf_writer *w, dq_role role, const float *x)
{
    int64_t rows, cols;
    encoding e = {.a = dq_model_arch(p->model), .role = role, .x = x};
    dq_arch_shape(e.a, role, &rows, &cols);
    e.type = type_for(p->spec->block, cols);
    e.cols = cols;
    return put_rows(p, w, &e, rows);
}

static dq_status put_bias(const dq_export_plan *p, dq_gguf_writer *w, dq_role role, const float *bias)
{
    const dq_arch *a = dq_model_arch(p->model);
    int64_t rows, cols;
    dq_arch_shape(a, role, &rows, &cols);
    for (int64_t r = 0; r < rows; r++) DQ_TRY(dq_gguf_writer_data(w, bias + source_row(a, role, r), 4));
    return dq_gguf_writer_end_tensor(w);
}

static dq_status put_linear(const dq_export_plan *p, dq_gguf_writer *w, int64_t layer, dq_role role)
{
    bool codes = dq_gguf_block_is_quantized(p->spec->block) && dq_model_has_codes(p->model, layer, role);
    float *weight = NULL, *bias = NULL;
    dq_status status = DQ_OK;
    if (codes) DQ_GO(put_codes(p, w, layer, role));
    if (codes && !dq_arch_has_bias(dq_model_arch(p->model), role)) goto done;
    DQ_GO(dq_export_linear_f32(p, layer, role, &weight, &bias));
    if (!codes) DQ_GO(put_floats(p, w, role, weight));
    if (bias) status = put_bias(p, w, role, bias);
done:
    dq_free(weight);
    dq_free(bias);
    return status;
}

static dq_status put_norm(const dq_export_plan *p, dq_gguf_writer *w, int64_t layer, dq_role role)
{
    float *values;
    int64_t rows, cols;
    DQ_TRY(dq_export_norm_f32(p, layer, role, &values));
    dq_arch_shape(dq_model_arch(p->model), role, &rows, &cols);
    dq_status status = put(w, values, (uint64_t)cols * 4);
    dq_free(values);
    return status;
}

static dq_status put_vocab(const dq_export_plan *p, dq_gguf_writer *w, dq_role role)
{
    const dq_arch *a = dq_model_arch(p->model);
    dq_dtype dtype = vocab_type(p) == DQ_GGUF_OUT_F32 ? DQ_F32 : vocab_type(p) == DQ_GGUF_OUT_F16 ? DQ_F16 : DQ_BF16;
    uint64_t row = (uint64_t)a->hidden * dq_dtype_size(dtype);
    void *host = dq_alloc(p->env, (size_t)row * PIECE_ROWS);
    dq_status status = host ? DQ_OK : DQ_E_NOMEM;
    for (int64_t first = 0; status == DQ_OK && first < a->vocab; first += PIECE_ROWS) {
        int64_t n = a->vocab - first < PIECE_ROWS ? a->vocab - first : PIECE_ROWS;
        status = dq_export_rows(p, role, first, n, dtype, host);
        if (status == DQ_OK) status = dq_gguf_writer_data(w, host, row * (uint64_t)n);
    }
    dq_free(host);
    return status == DQ_OK ? dq_gguf_writer_end_tensor(w) : status;
}

/* By what the plain frequencies are divided: the rule of Llama 3.1, or the table of the source. */
static dq_status put_rope(const dq_export_plan *p, dq_gguf_writer *w)
{
    const dq_arch *a = dq_model_arch(p->model);
    int64_t half = a->head_dim / 2;
    if (a->rope_scaling == DQ_ROPE_TABLE) return put(w, dq_model_root(p->model)->rope_divisor, (uint64_t)half * 4);
    if (a->rope_scaling != DQ_ROPE_LLAMA3) return DQ_OK;
    for (int64_t i = 0; i < half; i++) {
        float divisor = (float)dq_arch_rope_divisor(a, i);
        DQ_TRY(dq_gguf_writer_data(w, &divisor, 4));
    }
    return dq_gguf_writer_end_tensor(w);
}

static dq_status put_tensors(const dq_export_plan *p, dq_gguf_writer *w)
{
    const dq_arch *a = dq_model_arch(p->model);
    uint64_t units = (uint64_t)a->layers + 2;
    DQ_TRY(put_vocab(p, w, DQ_EMBED));
    for (int64_t layer = 0; layer < a->layers; layer++) {
        for (int role = 0; role <= DQ_DOWN_PROJ; role++) DQ_TRY(put_linear(p, w, layer, (dq_role)role));
        for (int role = DQ_ATTN_NORM; dq_role_is_in_layer((dq_role)role); role++)
            if (dq_arch_has(a, (dq_role)role)) DQ_TRY(put_norm(p, w, layer, (dq_role)role));
        DQ_TRY(dq_progress_report(p->progress, "export", (uint64_t)layer + 1, units, 0.0));
    }
    DQ_TRY(put_norm(p, w, 0, DQ_FINAL_NORM));
    if (!a->tied) DQ_TRY(put_vocab(p, w, DQ_HEAD));
    return put_rope(p, w);
}

dq_status dq_export_gguf(const dq_export_plan *p, const char *path)
{
    dq_gguf_writer *w = NULL;
    dq_status status;
    DQ_GO(dq_gguf_writer_open(p->env, path, &w));
    write_keys(p, w);
    DQ_GO(dq_export_gguf_vocab(p, w));
    list_tensors(p, w);
    DQ_GO(dq_gguf_writer_begin(w));
    DQ_GO(put_tensors(p, w));
    status = dq_gguf_writer_commit(w);
done:
    dq_gguf_writer_free(w);
    return status;
}
