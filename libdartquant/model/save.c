/* Saving a model as a stream: codes as they are made, then everything else, then the manifest, which alone makes the
 * folder a model. The layout stands in docs/formats.md. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "model/kvquant.h"
#include "model/saver.h"

static const char STAGE[] = "save";
enum { PIECE_ROWS = 4096 }; /* rows of the vocabulary written at a time; a multiple of the transforms' blocks */

static dq_status note(dq_saver *s, const char *name)
{
    size_t n = strlen(name);
    if (n < 7 || strcmp(name + n - 7, ".layout") != 0) return DQ_OK;
    if (s->count == s->capacity) {
        size_t bigger = s->capacity ? 2 * s->capacity : 64;
        char **keys = dq_realloc(s->env, s->keys, bigger * sizeof *keys);
        if (!keys) return DQ_E_NOMEM;
        s->keys = keys;
        s->capacity = bigger;
    }
    char *key = dq_strndup(s->env, name, n - 7);
    if (!key) return DQ_E_NOMEM;
    s->keys[s->count++] = key;
    return dq_name_map_add(s->names, key, n - 7, 1);
}

static dq_status sink_add(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape,
                          const void *data, uint64_t bytes)
{
    dq_saver *s = (dq_saver *)sink;
    DQ_TRY(s->files->ops->add(s->files, name, dtype, ndim, shape, data, bytes));
    return note(s, name);
}

static dq_status sink_set_metadata(dq_sink *sink, const char *key, const char *value)
{
    dq_saver *s = (dq_saver *)sink;
    return s->files->ops->set_metadata(s->files, key, value);
}

static dq_status sink_finish(dq_sink *sink)
{
    (void)sink;
    return DQ_OK;
}

static void sink_free(dq_sink *sink) { (void)sink; }

static const dq_sink_ops saver_ops = {
    .add = sink_add, .set_metadata = sink_set_metadata, .finish = sink_finish, .free = sink_free};

dq_status dq_saver_open_sink(dq_env *env, dq_sink *target, dq_saver **out)
{
    dq_status status;
    dq_saver *s = dq_calloc(env, 1, sizeof *s);
    if (!s) {
        target->ops->free(target);
        return DQ_E_NOMEM;
    }
    s->sink = (dq_sink){&saver_ops, env};
    s->env = env;
    DQ_GO(dq_digest_sink_new(target, &s->files));
    DQ_GO(dq_name_map_new(env, 1024, &s->names));
    *out = s;
    return DQ_OK;
done:
    dq_saver_free(s);
    return status;
}

dq_status dq_saver_check_dir(const dq_model *model, const char *dir)
{
    const char *path = dq_model_root(model)->path;
    struct stat target, source;
    if (!path || stat(path, &source) != 0 || !S_ISDIR(source.st_mode) || stat(dir, &target) != 0) return DQ_OK;
    if (source.st_dev != target.st_dev || source.st_ino != target.st_ino) return DQ_OK;
    return dq_error_in_file(dq_fail(DQ_E_INVALID, "the model is read from this folder; save it in another one"), dir);
}

dq_status dq_saver_open(dq_env *env, const char *dir, uint64_t part_size, dq_saver **out)
{
    dq_status status;
    dq_saver *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->sink = (dq_sink){&saver_ops, env};
    s->env = env;
    s->dir = dq_strdup(env, dir);
    if (!s->dir) {
        status = DQ_E_NOMEM;
        goto done;
    }
    DQ_GO(dq_name_map_new(env, 1024, &s->names));
    DQ_GO(dq_make_dirs(env, dir));
    s->fresh = !dq_saver_holds_shards(dir);
    DQ_GO(dq_safetensors_sink(env, dir, "model", part_size, &s->files));
    *out = s;
    return DQ_OK;
done:
    dq_saver_free(s);
    return status;
}

dq_sink *dq_saver_sink(dq_saver *saver) { return &saver->sink; }

void dq_saver_free(dq_saver *saver)
{
    if (!saver) return;
    if (saver->files) saver->files->ops->free(saver->files);
    for (size_t i = 0; i < saver->count; i++) dq_free(saver->keys[i]);
    dq_free(saver->keys);
    dq_name_map_free(saver->names);
    dq_free(saver->dir);
    dq_free(saver);
}

/* ---- tensors ---- */

static dq_status put_f32(dq_saver *s, const char *name, const dq_tensor *t, bool vector)
{
    int64_t shape[2] = {t->view.rows, t->view.cols};
    size_t bytes = (size_t)(shape[0] * shape[1]) * sizeof(float);
    float *host = dq_alloc(s->env, bytes);
    if (!host) return DQ_E_NOMEM;
    dq_status status = dq_tensor_download(t, host);
    if (status == DQ_OK)
        status = sink_add(&s->sink, name, DQ_F32, vector ? 1 : 2, vector ? shape + 1 : shape, host, bytes);
    dq_free(host);
    return status;
}

static const char *weight_name(const dq_model *m, dq_role role, int64_t layer, char *buf)
{
    dq_arch_tensor_name(&m->arch, role, layer, buf, DQ_TENSOR_NAME);
    return buf;
}

/* Norms that are fused away are written as ones (biases as zeros): other readers of the folder expect them. */
static dq_status put_norm(dq_saver *s, dq_model *m, int64_t layer, dq_role role)
{
    char name[DQ_TENSOR_NAME + 8];
    dq_tensor t[2] = {{0}};
    dq_status status = DQ_OK;
    int parts = dq_arch_has_bias(&m->arch, role) ? 2 : 1;
    DQ_GO(dq_model_read_norm(m, layer, role, &t[0]));
    DQ_GO(dq_model_read_norm_bias(m, layer, role, &t[1]));
    for (int i = 0; i < parts; i++) {
        if (dq_tensor_is_empty(&t[i])) {
            DQ_GO(dq_tensor_alloc(m->dev, DQ_F32, 1, m->arch.hidden, &t[i]));
            DQ_GO(dq_op_fill(i ? 0.0 : 1.0, &t[i]));
        }
        dq_arch_module_name(&m->arch, role, layer, name, DQ_TENSOR_NAME);
        size_t used = strlen(name);
        snprintf(name + used, sizeof name - used, i ? ".bias" : ".weight");
        DQ_GO(put_f32(s, name, &t[i], true));
    }
done:
    dq_tensor_free(&t[0]);
    dq_tensor_free(&t[1]);
    return status;
}

/* One piece of a table, rounded to `dtype`, in host memory. */
static dq_status fetch_rows(dq_model *m, dq_role role, int64_t first, int64_t count, dq_dtype dtype, void *host)
{
    dq_tensor rows = {0}, narrow = {0};
    dq_status status;
    DQ_GO(dq_model_read_rows(m, role, first, count, &rows));
    DQ_GO(dq_tensor_alloc(m->dev, dtype, count, m->arch.hidden, &narrow));
    DQ_GO(dq_op_convert(&rows, &narrow));
    status = dq_tensor_download(&narrow, host);
done:
    dq_tensor_free(&rows);
    dq_tensor_free(&narrow);
    return status;
}

/* The embedding, the positions or the head in pieces, so that the whole table is never in memory. */
static dq_status put_rows(dq_saver *s, dq_model *m, const dq_scheme *scheme, dq_role role)
{
    dq_dtype dtype = scheme && scheme->w.bits < 16 ? scheme->w.vocab_dtype : DQ_F32;
    size_t size = dq_dtype_size(dtype);
    char name[DQ_TENSOR_NAME];
    int64_t all, hidden;
    dq_arch_shape(&m->arch, role, &all, &hidden);
    int64_t shape[2] = {all, hidden}, piece = all < PIECE_ROWS ? all : PIECE_ROWS;
    char *host = dq_alloc(s->env, (size_t)(piece * hidden) * size);
    if (!host) return DQ_E_NOMEM;
    dq_status status =
        s->files->ops->begin(s->files, weight_name(m, role, 0, name), dtype, 2, shape, (uint64_t)(all * hidden) * size);
    for (int64_t first = 0; status == DQ_OK && first < all; first += piece) {
        int64_t n = all - first < piece ? all - first : piece;
        status = fetch_rows(m, role, first, n, dtype, host);
        if (status == DQ_OK) status = s->files->ops->append(s->files, host, (uint64_t)(n * hidden) * size);
    }
    dq_free(host);
    return status;
}

static dq_status put_linear(dq_saver *s, dq_model *m, const dq_scheme *scheme, int64_t layer, dq_role role)
{
    char name[DQ_TENSOR_NAME], bias[DQ_TENSOR_NAME + 8];
    dq_linear l = {0};
    dq_codes codes = {0};
    dq_status status = DQ_OK;
    dq_arch_module_name(&m->arch, role, layer, name, sizeof name);
    bool there = dq_name_map_get(s->names, name, strlen(name)) >= 0;
    if (!there && dq_model_has_codes(m, layer, role)) {
        DQ_GO(dq_model_read_codes(m, layer, role, &codes));
        DQ_GO(dq_codes_write(&s->sink, name, &codes));
        there = true;
    }
    if (!there && scheme && scheme->w.bits < 16 && !(scheme == m->scheme && m->kind == DQ_MODEL_ROOT)) {
        status = dq_error_in_tensor(
            dq_fail(DQ_E_STATE, "the scheme promises codes of %d bits, none were written", scheme->w.bits), name);
        goto done;
    }
    if (there && !dq_arch_has_bias(&m->arch, role)) goto done;
    DQ_GO(dq_model_read_linear(m, layer, role, &l));
    if (!there) DQ_GO(put_f32(s, weight_name(m, role, layer, bias), &l.weight, false));
    snprintf(bias, sizeof bias, "%s.bias", name);
    if (!dq_tensor_is_empty(&l.bias)) status = put_f32(s, bias, &l.bias, true);
done:
    dq_codes_free(&codes);
    dq_tensor_free(&l.weight);
    dq_tensor_free(&l.bias);
    return status;
}

static dq_status put_tables(dq_saver *s, dq_model *m, const dq_scheme *scheme)
{
    char name[DQ_TENSOR_NAME];
    const dq_model *root = dq_model_root(m);
    int64_t half = m->arch.head_dim / 2;
    if (root->rope_divisor)
        DQ_TRY(sink_add(&s->sink, "rope_freqs.weight", DQ_F32, 1, &half, root->rope_divisor, (uint64_t)half * 4));
    if (scheme && scheme->tables) DQ_TRY(dq_kv_tables_put(&s->sink, scheme->tables));
    if (!m->rotations) return DQ_OK;
    const dq_hadamard *const all[] = {&m->rotations->r2_heads, &m->rotations->r2_head_dim, &m->rotations->r3,
                                      &m->rotations->r4};
    for (int i = 0; i < DQ_ONLINE_TRANSFORMS; i++) {
        int64_t shape[2] = {all[i]->k, all[i]->k};
        if (all[i]->n == 0 || all[i]->k == 1) continue;
        snprintf(name, sizeof name, "dartquant.%s.hk", dq_online_name(i));
        DQ_TRY(sink_add(&s->sink, name, DQ_I8, 2, shape, all[i]->hk, (uint64_t)(shape[0] * shape[1])));
    }
    return DQ_OK;
}

static dq_status put_tensors(dq_saver *s, dq_model *m, const dq_scheme *scheme, dq_progress *progress)
{
    uint64_t units = (uint64_t)m->arch.layers + 2;
    DQ_TRY(s->files->ops->set_metadata(s->files, "format", "pt"));
    DQ_TRY(put_tables(s, m, scheme));
    DQ_TRY(put_rows(s, m, scheme, DQ_EMBED));
    if (dq_arch_learns_positions(&m->arch)) DQ_TRY(put_rows(s, m, scheme, DQ_POSITIONS));
    for (int64_t layer = 0; layer < m->arch.layers; layer++) {
        for (int role = DQ_ATTN_NORM; dq_role_is_in_layer((dq_role)role); role++)
            if (dq_arch_has(&m->arch, (dq_role)role)) DQ_TRY(put_norm(s, m, layer, (dq_role)role));
        for (int n = 0; n < dq_arch_linears(&m->arch); n++)
            DQ_TRY(put_linear(s, m, scheme, layer, dq_arch_linear(&m->arch, n)));
        DQ_TRY(dq_progress_report(progress, STAGE, (uint64_t)layer + 1, units, 0.0));
    }
    DQ_TRY(put_norm(s, m, 0, DQ_FINAL_NORM));
    if (!m->arch.tied) DQ_TRY(put_rows(s, m, scheme, DQ_HEAD));
    return dq_progress_report(progress, STAGE, units - 1, units, 0.0);
}

/* The metadata comes before finish, which is the host's sign that all is there. */
static dq_status finish_sink(dq_saver *s, dq_model *model, const dq_scheme *scheme, json_t *provenance)
{
    DQ_TRY(dq_saver_write_config(s, model, scheme));
    DQ_TRY(dq_saver_write_manifest(s, model, scheme, provenance));
    return s->files->ops->finish(s->files);
}

/* Shards first, then the manifest, which makes the folder a model. */
static dq_status finish_folder(dq_saver *s, dq_model *model, const dq_scheme *scheme, json_t *provenance)
{
    DQ_TRY(dq_saver_remove_manifest(s));
    DQ_TRY(dq_saver_write_config(s, model, scheme));
    DQ_TRY(dq_saver_write_tokenizer(s, model));
    DQ_TRY(s->files->ops->finish(s->files));
    s->shards_visible = true;
    return dq_saver_write_manifest(s, model, scheme, provenance);
}

dq_status dq_saver_finish(dq_saver *s, dq_model *model, const dq_scheme *scheme, const char *provenance,
                          dq_progress *progress)
{
    json_t *extra = NULL;
    if (!scheme) scheme = model->scheme;
    if (provenance) DQ_TRY(dq_json_parse(provenance, strlen(provenance), NULL, &extra));
    dq_status status;
    uint64_t units = (uint64_t)model->arch.layers + 2;
    DQ_GO(put_tensors(s, model, scheme, progress));
    DQ_GO(dq_progress_report(progress, STAGE, units, units, 0.0));
    status = s->dir ? finish_folder(s, model, scheme, extra) : finish_sink(s, model, scheme, extra);
done:
    if (status != DQ_OK && s->dir) dq_saver_take_back(s);
    json_decref(extra);
    return status;
}

dq_status dq_model_save_dir(dq_model *model, const char *dir, uint64_t part_size, dq_progress *progress)
{
    dq_saver *saver;
    DQ_TRY(dq_saver_open(model->env, dir, part_size, &saver));
    dq_status status = dq_saver_finish(saver, model, NULL, NULL, progress);
    dq_saver_free(saver);
    return status;
}
