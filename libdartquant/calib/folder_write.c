/* Writing captured inputs. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "calib/folder.h"
#include "io/file.h"
#include "io/formats.h"

enum { NAME = 128 };

typedef struct recorder {
    dq_env *env;
    dq_device *dev;
    const dq_arch *arch;
    dq_capture *capture;
    dq_gather gather;
    const dq_calibrate_spec *spec;
    int formats;
    const char *dir, *manifest;
    char *r1_dir, *r2_dir;
    dq_dtype dtype;          /* of the original layout */
    dq_sink *open[DQ_SITES]; /* its files under way */
    char *path[DQ_SITES];    /* their names */
    char **written;          /* files that are complete */
    size_t count, capacity;
    dq_progress *progress;
    bool made_dir; /* the folder was not there before */
} recorder;

/* ---- files ---- */

/* Remembers a file that is to vanish should something fail later; the name is taken over. */
static dq_status remember(recorder *r, char *path)
{
    if (r->count == r->capacity) {
        size_t bigger = r->capacity ? r->capacity * 2 : 64;
        char **fresh = dq_realloc(r->env, r->written, bigger * sizeof *fresh);
        if (!fresh) {
            dq_free(path);
            return DQ_E_NOMEM;
        }
        r->written = fresh;
        r->capacity = bigger;
    }
    r->written[r->count++] = path;
    return DQ_OK;
}

/* The name is remembered first, so that a file never is without its name. */
static dq_status finish_file(recorder *r, dq_sink *sink, char *path)
{
    DQ_TRY(remember(r, path));
    return sink->ops->finish(sink);
}

static dq_status append_to(void *arg, const void *data, uint64_t bytes)
{
    dq_sink *sink = arg;
    return sink->ops->append(sink, data, bytes);
}

static dq_status kind_tensor(recorder *r, dq_sink *sink, const char *name, const dq_tensor *rows)
{
    const int64_t shape[2] = {rows->view.rows, rows->view.cols};
    size_t bytes = (size_t)shape[0] * (size_t)shape[1] * dq_dtype_size(rows->view.dtype);
    DQ_TRY(sink->ops->begin(sink, name, rows->view.dtype, 2, shape, bytes));
    return dq_put_tensor(r->env, &(dq_put){append_to, sink}, rows);
}

static dq_status fill_rows(recorder *r, dq_sink *sink, const dq_rows *rows)
{
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        dq_tensor kept = dq_rows_view(rows, (dq_row_kind)k);
        if (!dq_tensor_is_empty(&kept)) DQ_TRY(kind_tensor(r, sink, dq_row_kind_name((dq_row_kind)k), &kept));
    }
    return sink->ops->set_metadata(sink, "manifest", r->manifest);
}

static dq_status write_rows(recorder *r, const char *stem, const dq_rows *rows)
{
    dq_sink *sink = NULL;
    char *path = dq_asprintf(r->env, "%s/%s.safetensors", r->dir, stem);
    if (!path) return DQ_E_NOMEM;
    dq_status status = dq_safetensors_sink(r->env, r->dir, stem, UINT64_MAX, &sink);
    if (status == DQ_OK) status = fill_rows(r, sink, rows);
    if (status == DQ_OK)
        status = finish_file(r, sink, path);
    else
        dq_free(path);
    if (sink) sink->ops->free(sink);
    return status;
}

/* ---- the original layout ---- */

static dq_status open_pt(recorder *r, dq_site site, int64_t layer, int64_t sample)
{
    char name[NAME];
    bool o = site == DQ_SITE_O;
    if (o)
        snprintf(name, sizeof name, "layer_%lld_%s.pt", (long long)layer, dq_site_name(site));
    else
        snprintf(name, sizeof name, "sample_%lld_layer_%lld_%s.pt", (long long)sample, (long long)layer,
                 dq_site_name(site));
    r->path[site] = dq_path_join(r->env, o ? r->r2_dir : r->r1_dir, name);
    if (!r->path[site]) return DQ_E_NOMEM;
    DQ_TRY(dq_pt_sink(r->env, r->path[site], true, &r->open[site]));
    int64_t width = dq_site_width(r->arch, site);
    const int64_t shape[3] = {r->capture->nsamples, r->capture->seqlen, width};
    uint64_t bytes = (uint64_t)shape[1] * (uint64_t)shape[2] * dq_dtype_size(r->dtype);
    dq_sink *s = r->open[site];
    return o ? s->ops->begin(s, "", r->dtype, 3, shape, bytes * (uint64_t)shape[0])
             : s->ops->begin(s, "", r->dtype, 2, shape + 1, bytes);
}

static dq_status close_pt(recorder *r, dq_site site)
{
    char *path = r->path[site];
    r->path[site] = NULL;
    dq_status status = finish_file(r, r->open[site], path);
    r->open[site]->ops->free(r->open[site]);
    r->open[site] = NULL;
    return status;
}

static dq_status append_rows(recorder *r, dq_site site, const dq_tensor *rows)
{
    dq_sink *s = r->open[site];
    const dq_put put = {append_to, s};
    if (r->dtype == DQ_F32) return dq_put_tensor(r->env, &put, rows);
    dq_tensor narrow = {0};
    dq_status status = dq_tensor_alloc(r->dev, r->dtype, rows->view.rows, rows->view.cols, &narrow);
    if (status == DQ_OK) status = dq_op_convert(rows, &narrow);
    if (status == DQ_OK) status = dq_put_tensor(r->env, &put, &narrow);
    dq_tensor_free(&narrow);
    return status;
}

/* One file per window at the R1 sites, one per layer at the other. */
static dq_status record_inputs(recorder *r, const dq_inputs *in)
{
    int64_t tokens = in->x->view.rows, unit = in->site == DQ_SITE_O ? r->capture->tokens : r->capture->seqlen;
    for (int64_t done = 0; done < tokens;) {
        int64_t at = in->first + done, left = unit - at % unit, n = tokens - done < left ? tokens - done : left;
        if (at % unit == 0) DQ_TRY(open_pt(r, in->site, in->layer, at / unit));
        dq_tensor part = dq_tensor_rows(in->x, done, n);
        DQ_TRY(append_rows(r, in->site, &part));
        if (n == left) DQ_TRY(close_pt(r, in->site));
        done += n;
    }
    return DQ_OK;
}

/* ---- the pass ---- */

static dq_status on_layer(void *arg, int64_t layer)
{
    recorder *r = arg;
    return r->formats & DQ_FOLDER_ROWS ? dq_gather_begin(&r->gather, layer, r->capture->norms) : DQ_OK;
}

static dq_status on_weights(void *arg, int64_t layer, const dq_block *block)
{
    recorder *r = arg;
    return r->formats & DQ_FOLDER_ROWS ? dq_gather_weights(&r->gather, layer, block) : DQ_OK;
}

static dq_status on_inputs(void *arg, const dq_inputs *in)
{
    recorder *r = arg;
    DQ_TRY(dq_gather_inputs(&r->gather, in));
    bool wanted = r->spec->wanted[in->site == DQ_SITE_O ? DQ_TARGET_R2 : DQ_TARGET_R1];
    return wanted && (r->formats & DQ_FOLDER_UPSTREAM) ? record_inputs(r, in) : DQ_OK;
}

static dq_status on_tick(void *arg, int64_t tokens)
{
    const recorder *r = arg;
    uint64_t all = (uint64_t)r->capture->tokens;
    return dq_progress_report(r->progress, "capture", (uint64_t)r->capture->layer * all + (uint64_t)tokens,
                              (uint64_t)r->arch->layers * all, NAN);
}

static dq_status open_rows(recorder *r, dq_target target, int64_t layer, dq_rows **out)
{
    dq_rows_spec spec = r->spec->rows[target];
    if (!(r->formats & DQ_FOLDER_ROWS) || !r->spec->wanted[target]) return DQ_OK;
    spec.width = target == DQ_TARGET_R1 ? r->arch->hidden : dq_site_width(r->arch, DQ_SITE_O);
    spec.seed = r->spec->seed + (target == DQ_TARGET_R1 ? 0 : 1 + (uint64_t)layer);
    return dq_rows_new(r->dev, &spec, out);
}

static dq_status record_layer(recorder *r, int64_t layer)
{
    const dq_visitor visitor = {r, on_layer, on_weights, on_inputs, on_tick};
    char stem[NAME];
    snprintf(stem, sizeof stem, "rows-r2-%05lld", (long long)layer);
    DQ_TRY(on_tick(r, 0));
    DQ_TRY(open_rows(r, DQ_TARGET_R2, layer, &r->gather.r2));
    dq_status status = dq_capture_layer(r->capture, &visitor);
    if (status == DQ_OK && r->gather.r2) status = write_rows(r, stem, r->gather.r2);
    dq_rows_free(r->gather.r2);
    r->gather.r2 = NULL;
    return status;
}

/* The type the weights came in, as far as PyTorch has it. */
static dq_dtype model_dtype(dq_model *model)
{
    const dq_source *s = dq_model_root_source(model);
    for (int64_t i = 0; s && i < s->count; i++)
        if (s->tensors[i].ndim == 2) {
            dq_dtype t = s->tensors[i].dtype;
            return t == DQ_F32 || t == DQ_BF16 ? t : DQ_F16;
        }
    return DQ_F32;
}

static dq_status record(recorder *r)
{
    bool upstream = r->formats & DQ_FOLDER_UPSTREAM;
    r->r1_dir = dq_path_join(r->env, r->dir, "r1_train");
    r->r2_dir = dq_path_join(r->env, r->dir, "r2_train");
    if (!r->r1_dir || !r->r2_dir) return DQ_E_NOMEM;
    DQ_TRY(dq_make_dirs(r->env, r->dir));
    if (upstream && r->spec->wanted[DQ_TARGET_R1]) DQ_TRY(dq_make_dirs(r->env, r->r1_dir));
    if (upstream && r->spec->wanted[DQ_TARGET_R2]) DQ_TRY(dq_make_dirs(r->env, r->r2_dir));
    DQ_TRY(open_rows(r, DQ_TARGET_R1, 0, &r->gather.r1));
    for (int64_t layer = 0; layer < r->arch->layers; layer++) DQ_TRY(record_layer(r, layer));
    return r->gather.r1 ? write_rows(r, "rows-r1", r->gather.r1) : DQ_OK;
}

static void clean_up(recorder *r, bool keep)
{
    for (int s = 0; s < DQ_SITES; s++) {
        if (r->open[s]) r->open[s]->ops->free(r->open[s]);
        dq_free(r->path[s]);
    }
    for (size_t i = 0; i < r->count; i++) {
        if (!keep) unlink(r->written[i]);
        dq_free(r->written[i]);
    }
    if (!keep) { /* folders only when nothing else is in them */
        if (r->r1_dir) rmdir(r->r1_dir);
        if (r->r2_dir) rmdir(r->r2_dir);
        if (r->made_dir) rmdir(r->dir);
    }
    dq_free(r->written);
    dq_free(r->r1_dir);
    dq_free(r->r2_dir);
    dq_gather_clear(&r->gather);
    dq_rows_free(r->gather.r1);
    dq_rows_free(r->gather.r2);
    dq_capture_free(r->capture);
}

dq_status dq_folder_write(dq_model *model, const dq_calibrate_spec *spec, const int32_t *windows, int64_t nsamples,
                          int64_t seqlen, int formats, const char *dir, const char *manifest, dq_progress *progress)
{
    dq_device *dev = dq_model_device(model);
    dq_env *env = dq_device_env(dev);
    recorder r = {.env = env, .dev = dev, .arch = dq_model_arch(model), .spec = spec, .formats = formats};
    r.dir = dir;
    r.manifest = manifest;
    r.progress = progress;
    r.made_dir = !dq_path_is_dir(dir);
    r.dtype = model_dtype(model);
    bool sinks = spec->wanted[DQ_TARGET_R1] && spec->sink_ratio > 0;
    DQ_TRY(dq_capture_new(model, windows, nsamples, seqlen, spec->math, spec->stream_most,
                          spec->temp_dir ? spec->temp_dir : "", sinks, &r.capture));
    r.gather = (dq_gather){.env = env, .dev = dev, .arch = r.arch, .seed = spec->seed};
    r.gather.tokens = r.capture->tokens;
    r.gather.sink_ratio = spec->sink_ratio;
    dq_status status = record(&r);
    clean_up(&r, status == DQ_OK);
    return status;
}
