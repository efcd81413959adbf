/* Reading captured inputs. SPDX-License-Identifier: Apache-2.0 */
#include "calib/folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"

enum { NAME = 128, PIECE_ROWS = 4096 };

struct dq_folder {
    dq_env *env;
    const dq_arch *arch;
    char *r1_dir, *r2_dir; /* of the original layout */
    char *dir;
    bool drawn;           /* files of drawn rows */
    int32_t *samples;     /* numbers of the sequences there are R1 files of, ascending */
    int64_t sample_count; /* of samples */
    int64_t seqlen;       /* tokens in an R1 file */
    char *manifest;
};

int64_t dq_folder_tokens(const dq_folder *f) { return f->sample_count * f->seqlen; }
int64_t dq_folder_windows(const dq_folder *f) { return f->sample_count; }
const char *dq_folder_manifest(const dq_folder *f) { return f->manifest ? f->manifest : ""; }

void dq_folder_free(dq_folder *f)
{
    if (!f) return;
    dq_free(f->dir);
    dq_free(f->r1_dir);
    dq_free(f->r2_dir);
    dq_free(f->samples);
    dq_free(f->manifest);
    dq_free(f);
}

static dq_status open_in(dq_env *env, const char *dir, const char *name, dq_source **out, char **path)
{
    *path = dq_path_join(env, dir, name);
    if (!*path) return DQ_E_NOMEM;
    dq_status status = dq_source_open(env, *path, out);
    if (status != DQ_OK) {
        dq_free(*path);
        *path = NULL;
    }
    return status;
}

/* ---- what is there ---- */

static int by_number(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* Numbers S of the files sample_S_layer_0_self_attn_q_proj.pt. */
static dq_status list_samples(dq_folder *f)
{
    size_t capacity = 0;
    DIR *d = opendir(f->r1_dir);
    if (!d) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot read the folder"), f->r1_dir);
    dq_status status = DQ_OK;
    for (struct dirent *e; status == DQ_OK && (e = readdir(d));) {
        int number, end = 0;
        if (sscanf(e->d_name, "sample_%9d_layer_0_self_attn_q_proj.pt%n", &number, &end) != 1 || end == 0 ||
            e->d_name[end] || number < 0)
            continue;
        if ((size_t)f->sample_count == capacity) {
            capacity = capacity ? capacity * 2 : 128;
            int32_t *fresh = dq_realloc(f->env, f->samples, capacity * sizeof *fresh);
            if (!fresh) {
                status = DQ_E_NOMEM;
                break;
            }
            f->samples = fresh;
        }
        f->samples[f->sample_count++] = number;
    }
    closedir(d);
    if (status == DQ_OK && f->sample_count == 0)
        return dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "no file sample_S_layer_0_self_attn_q_proj.pt"), f->r1_dir);
    if (status == DQ_OK) qsort(f->samples, (size_t)f->sample_count, sizeof *f->samples, by_number);
    return status;
}

/* The shape a captured tensor must have: [..., width]; *tokens = product of the others. */
static dq_status check_captured(const dq_source *s, int64_t width, int64_t *tokens)
{
    if (s->count != 1) return dq_fail(DQ_E_FORMAT, "%lld tensors where one is expected", (long long)s->count);
    const dq_tensor_info *t = &s->tensors[0];
    if (t->ndim < 2 || t->shape[t->ndim - 1] != width)
        return dq_fail(DQ_E_MISMATCH, "rows of %lld numbers, the model needs %lld",
                       (long long)(t->ndim ? t->shape[t->ndim - 1] : 0), (long long)width);
    *tokens = 1;
    for (int i = 0; i + 1 < t->ndim; i++) *tokens *= t->shape[i];
    return *tokens > 0 ? DQ_OK : dq_fail(DQ_E_INVALID, "no tokens");
}

static dq_status measure_r1(dq_folder *f)
{
    char name[NAME], *path;
    dq_source *s = NULL;
    snprintf(name, sizeof name, "sample_%d_layer_0_self_attn_q_proj.pt", (int)f->samples[0]);
    DQ_TRY(open_in(f->env, f->r1_dir, name, &s, &path));
    dq_status status = dq_error_in_file(check_captured(s, f->arch->hidden, &f->seqlen), path);
    dq_source_free(s);
    dq_free(path);
    return status;
}

/* dir/part where that is a folder, else dir itself. */
static dq_status subfolder(dq_env *env, const char *dir, const char *part, char **out)
{
    char *inside = dq_path_join(env, dir, part);
    if (!inside) return DQ_E_NOMEM;
    if (!dq_path_is_dir(inside)) {
        dq_free(inside);
        inside = dq_strdup(env, dir);
    }
    *out = inside;
    return inside ? DQ_OK : DQ_E_NOMEM;
}

static dq_status exists_in(dq_env *env, const char *dir, const char *name, bool *out)
{
    char *path = dq_path_join(env, dir, name);
    if (!path) return DQ_E_NOMEM;
    *out = dq_path_exists(path);
    dq_free(path);
    return DQ_OK;
}

static dq_status read_manifest(dq_folder *f, const char *name)
{
    char *path;
    dq_source *s = NULL;
    DQ_TRY(open_in(f->env, f->dir, name, &s, &path));
    const char *text = strcmp(s->format, "safetensors") == 0 ? dq_safetensors_metadata(s, "manifest") : NULL;
    f->manifest = text ? dq_strdup(f->env, text) : NULL;
    dq_status status = text && !f->manifest ? DQ_E_NOMEM : DQ_OK;
    dq_source_free(s);
    dq_free(path);
    return status;
}

static dq_status look_around(dq_folder *f, const bool wanted[DQ_TARGETS])
{
    static const char *const drawn[DQ_TARGETS] = {"rows-r1.safetensors", "rows-r2-00000.safetensors"};
    bool have[DQ_TARGETS] = {!wanted[0], !wanted[1]};
    for (int t = 0; t < DQ_TARGETS; t++)
        if (wanted[t]) DQ_TRY(exists_in(f->env, f->dir, drawn[t], &have[t]));
    f->drawn = have[0] && have[1];
    if (f->drawn) return read_manifest(f, wanted[0] ? drawn[0] : drawn[1]);
    DQ_TRY(subfolder(f->env, f->dir, "r1_train", &f->r1_dir));
    DQ_TRY(subfolder(f->env, f->dir, "r2_train", &f->r2_dir));
    DQ_TRY(exists_in(f->env, f->r2_dir, "layer_0_self_attn_o_proj.pt", &have[1]));
    if (wanted[1] && !have[1])
        return dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "neither rows-r2-00000.safetensors nor "
                                                       "layer_0_self_attn_o_proj.pt"),
                                f->dir);
    if (!wanted[0]) return DQ_OK;
    DQ_TRY(list_samples(f));
    return measure_r1(f);
}

dq_status dq_folder_open(dq_env *env, const char *dir, const dq_arch *arch, const bool wanted[DQ_TARGETS],
                         dq_folder **out)
{
    dq_status status;
    if (!dq_path_is_dir(dir)) return dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "no such folder"), dir);
    dq_folder *f = dq_calloc(env, 1, sizeof *f);
    if (!f) return DQ_E_NOMEM;
    f->env = env;
    f->arch = arch;
    f->dir = dq_strdup(env, dir);
    DQ_GO(f->dir ? DQ_OK : DQ_E_NOMEM);
    DQ_GO(look_around(f, wanted));
    *out = f;
    return DQ_OK;
done:
    dq_folder_free(f);
    return status;
}

/* ---- numbers that are none ---- */

/* *row: the first row of x that is not finite, -1 = none is. */
static dq_status find_nonfinite(const dq_tensor *x, int64_t *row)
{
    int64_t index = -1;
    DQ_TRY(dq_op_find_nonfinite(x, &index));
    *row = index < 0 ? -1 : index / x->view.cols;
    return DQ_OK;
}

/* A captured tensor is [tokens, width], or [sequences, tokens, width]. */
static dq_status check_captured_rows(const dq_tensor_info *t, const dq_inputs *in, int64_t passed)
{
    int64_t row, tokens = t->ndim > 1 ? t->shape[t->ndim - 2] : 1;
    DQ_TRY(find_nonfinite(in->x, &row));
    if (row < 0) return DQ_OK;
    row += passed;
    const char *site = in->site == DQ_SITE_O ? "o_proj" : in->site == DQ_SITE_ATTN ? "q_proj" : "up_proj";
    if (t->ndim < 3)
        return dq_fail(DQ_E_NONFINITE, "layer %lld: the input of %s of token %lld is NaN or infinite",
                       (long long)in->layer, site, (long long)row);
    return dq_fail(DQ_E_NONFINITE, "layer %lld: the input of %s of token %lld in window %lld is NaN or infinite",
                   (long long)in->layer, site, (long long)(row % tokens), (long long)(row / tokens));
}

/* ---- drawn rows ---- */

static dq_status add_drawn(dq_device *dev, dq_source *s, int64_t tensor, dq_row_kind kind, dq_rows *to)
{
    const dq_tensor_info *t = &s->tensors[tensor];
    int64_t rows = dq_info_rows(t), cols = dq_info_cols(t);
    if (t->ndim != 2 || cols != dq_rows_get_spec(to)->width)
        return dq_fail(DQ_E_MISMATCH, "rows of %lld numbers, the model needs %lld", (long long)cols,
                       (long long)dq_rows_get_spec(to)->width);
    dq_status status = DQ_OK;
    float *host = dq_alloc(dq_device_env(dev), (size_t)PIECE_ROWS * (size_t)cols * sizeof *host);
    if (!host) return DQ_E_NOMEM;
    for (int64_t r = 0; r < rows && status == DQ_OK; r += PIECE_ROWS) {
        int64_t n = rows - r < PIECE_ROWS ? rows - r : PIECE_ROWS;
        dq_tensor x = {0};
        status = dq_source_read_rows(s, tensor, r, n, host);
        int64_t bad = -1;
        if (status == DQ_OK) status = dq_tensor_from_host(dev, DQ_F32, n, cols, host, &x);
        if (status == DQ_OK) status = find_nonfinite(&x, &bad);
        if (bad >= 0) status = dq_fail(DQ_E_NONFINITE, "row %lld is NaN or infinite", (long long)(r + bad));
        if (status == DQ_OK) status = dq_rows_add_finite(to, kind, &x);
        dq_tensor_free(&x);
    }
    dq_free(host);
    return status;
}

static dq_status load_drawn(dq_folder *f, dq_device *dev, const char *name, dq_rows *to)
{
    char *path;
    dq_source *s = NULL;
    dq_status status = DQ_OK;
    DQ_TRY(open_in(f->env, f->dir, name, &s, &path));
    for (int k = 0; k < DQ_ROW_KINDS && status == DQ_OK; k++) {
        const char *name_of_kind = dq_row_kind_name((dq_row_kind)k);
        int64_t tensor = dq_source_find(s, name_of_kind);
        if (tensor >= 0) status = dq_error_in_tensor(add_drawn(dev, s, tensor, (dq_row_kind)k, to), name_of_kind);
    }
    dq_error_in_file(status, path);
    dq_source_free(s);
    dq_free(path);
    return status;
}

/* ---- the original layout ---- */

/* Tokens of one file in pieces; `first` is the number of its first one. */
static dq_status show_file(dq_folder *f, dq_device *dev, dq_source *s, int64_t width, dq_inputs in,
                           const dq_visitor *visitor)
{
    const dq_tensor_info *t = &s->tensors[0];
    int64_t rows = dq_info_rows(t), tokens = dq_info_cols(t) / width; /* a row of the file is so many tokens */
    size_t bytes;
    if (!dq_mul_ok((size_t)dq_info_cols(t), sizeof(float), &bytes)) return dq_fail(DQ_E_NOMEM, "rows too large");
    int64_t step = tokens < PIECE_ROWS ? PIECE_ROWS / tokens : 1;
    float *host = dq_alloc(f->env, (size_t)step * bytes);
    if (!host) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    for (int64_t r = 0; r < rows && status == DQ_OK; r += step) {
        int64_t n = rows - r < step ? rows - r : step;
        dq_tensor x = {0};
        status = dq_source_read_rows(s, 0, r, n, host);
        if (status == DQ_OK) status = dq_tensor_from_host(dev, DQ_F32, n * tokens, width, host, &x);
        in.x = &x;
        if (status == DQ_OK) status = check_captured_rows(t, &in, r * tokens);
        if (status == DQ_OK) status = visitor->inputs(visitor->arg, &in);
        in.first += n * tokens;
        dq_tensor_free(&x);
    }
    dq_free(host);
    return status;
}

static dq_status show_r1(dq_folder *f, dq_device *dev, int64_t layer, dq_site site, const dq_visitor *visitor)
{
    for (int64_t i = 0; i < f->sample_count; i++) {
        char name[NAME], *path;
        dq_source *s = NULL;
        int64_t tokens;
        snprintf(name, sizeof name, "sample_%d_layer_%lld_%s.pt", (int)f->samples[i], (long long)layer,
                 dq_site_name(site));
        DQ_TRY(open_in(f->env, f->r1_dir, name, &s, &path));
        dq_status status = check_captured(s, f->arch->hidden, &tokens);
        if (status == DQ_OK && tokens != f->seqlen)
            status =
                dq_fail(DQ_E_MISMATCH, "%lld tokens, other files have %lld", (long long)tokens, (long long)f->seqlen);
        dq_inputs in = {.layer = layer, .first = i * f->seqlen, .site = site};
        if (status == DQ_OK) status = show_file(f, dev, s, f->arch->hidden, in, visitor);
        dq_error_in_file(status, path);
        dq_source_free(s);
        dq_free(path);
        DQ_TRY(status);
    }
    return DQ_OK;
}

static dq_status open_r2(dq_folder *f, int64_t layer, dq_source **out, char **path, int64_t *tokens)
{
    char name[NAME];
    snprintf(name, sizeof name, "layer_%lld_%s.pt", (long long)layer, dq_site_name(DQ_SITE_O));
    DQ_TRY(open_in(f->env, f->r2_dir, name, out, path));
    return dq_error_in_file(check_captured(*out, dq_site_width(f->arch, DQ_SITE_O), tokens), *path);
}

/* Shows the linears that somebody wants rows of, one after the other. */
static dq_status show_weights(dq_model *model, int64_t layer, const dq_gather *g, const dq_visitor *visitor)
{
    bool r1 = g->r1 && dq_rows_capacity(g->r1, DQ_ROWS_WEIGHT) > 0;
    bool r2 = g->r2 && dq_rows_capacity(g->r2, DQ_ROWS_WEIGHT) > 0;
    for (int i = DQ_BLOCK_Q; i < DQ_BLOCK_DOWN; i++) {
        dq_block block;
        if (!(i == DQ_BLOCK_O ? r2 : r1)) continue;
        memset(&block, 0, sizeof block);
        dq_status status = dq_model_read_linear(model, layer, (dq_role)i, &block.linear[i]);
        if (status == DQ_OK) status = visitor->weights(visitor->arg, layer, &block);
        dq_block_free(&block);
        DQ_TRY(status);
    }
    return DQ_OK;
}

static dq_status upstream_layer(dq_folder *f, dq_model *model, int64_t layer, dq_gather *g, const dq_visitor *visitor)
{
    dq_device *dev = dq_model_device(model);
    dq_source *r2 = NULL;
    char *path = NULL;
    dq_status status = g->r2 ? open_r2(f, layer, &r2, &path, &g->o_tokens) : DQ_OK;
    if (status == DQ_OK) status = visitor->begin(visitor->arg, layer);
    if (status == DQ_OK) status = show_weights(model, layer, g, visitor);
    dq_inputs in = {.layer = layer, .site = DQ_SITE_O};
    if (status == DQ_OK && r2)
        status = dq_error_in_file(show_file(f, dev, r2, dq_site_width(f->arch, DQ_SITE_O), in, visitor), path);
    dq_source_free(r2);
    dq_free(path);
    if (status == DQ_OK && g->r1) status = show_r1(f, dev, layer, DQ_SITE_ATTN, visitor);
    if (status == DQ_OK && g->r1) status = show_r1(f, dev, layer, DQ_SITE_MLP, visitor);
    return status;
}

dq_status dq_folder_layer(dq_folder *f, dq_model *model, int64_t layer, dq_gather *g, const dq_visitor *visitor)
{
    char name[NAME];
    if (!f->drawn) return upstream_layer(f, model, layer, g, visitor);
    if (g->r1 && layer == 0) DQ_TRY(load_drawn(f, dq_model_device(model), "rows-r1.safetensors", g->r1));
    snprintf(name, sizeof name, "rows-r2-%05lld.safetensors", (long long)layer);
    return g->r2 ? load_drawn(f, dq_model_device(model), name, g->r2) : DQ_OK;
}
