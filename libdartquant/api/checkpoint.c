/* dartquant/checkpoint.h, and what the jobs share. SPDX-License-Identifier: Apache-2.0 */
#include "api/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "api/check.h"
#include "api/config.h"
#include "api/handles.h"
#include "api/scheme.h"
#include "dartquant/checkpoint.h"
#include "dartquant/version.h"
#include "io/file.h"
#include "io/json.h"

enum { VERSION = 1, STATE_LIMIT = 1 << 26, PIECE = 1 << 22 };

/* ---- fingerprints ---- */

/* FNV-1a over words of eight bytes (the tail padded with zeros), for speed. */
static uint64_t hash_bytes(uint64_t h, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t word = 0;
        memcpy(&word, p + i, bytes - i < 8 ? bytes - i : 8);
        h = (h ^ word) * 1099511628211u;
        h ^= h >> 32;
    }
    return h;
}

static const uint64_t HASH_START = 1469598103934665603u;

static json_t *hash_text(uint64_t h) { return json_sprintf("%016" PRIx64, h); }

static uint64_t hash_transform(uint64_t h, const dq_hadamard *t)
{
    const int64_t sizes[] = {t->n, t->blocks, t->k};
    h = hash_bytes(h, sizes, sizeof sizes);
    return t->hk ? hash_bytes(h, t->hk, (size_t)(t->k * t->k)) : h;
}

/* Numbers that another backend makes in double precision, too, but not to the last bit: as multiples of `grid`, a power of
 * two far above such differences, and not all of them, so that none of them comes to lie on the other side of a half. */
enum { ROUNDED_MOST = 65536 };

static uint64_t hash_rounded(uint64_t h, double value, double grid)
{
    int64_t multiple = (int64_t)rint(value / grid);
    return hash_bytes(h, &multiple, sizeof multiple);
}

static uint64_t hash_matrix(uint64_t h, const double *values, int64_t count)
{
    int64_t step = (count / ROUNDED_MOST) | 1; /* odd: passes through all columns of a power of two */
    for (int64_t i = 0; i < count; i += step) h = hash_rounded(h, values[i], 0x1p-20);
    return h;
}

static uint64_t hash_rotations(const dq_rotation_set *s)
{
    if (!s) return 0;
    int64_t mode = (int64_t)s->r2_mode;
    uint64_t h = hash_bytes(HASH_START, &mode, sizeof mode);
    if (s->r1) h = hash_matrix(h, s->r1, s->hidden * s->hidden);
    if (s->r2) h = hash_matrix(h, s->r2, s->layers * s->kv_heads * s->head_dim * s->head_dim);
    h = hash_transform(h, &s->r2_heads);
    h = hash_transform(h, &s->r2_head_dim);
    h = hash_transform(h, &s->r3);
    return hash_transform(h, &s->r4);
}

/* A row with all transforms, rounded to 2^-14 of its largest number. */
static uint64_t hash_row(uint64_t h, const float *row, int64_t n)
{
    float most = 0;
    int exponent;
    for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf(row[i]));
    frexpf(most, &exponent);
    for (int64_t i = 0; i < n; i++) h = hash_rounded(h, row[i], ldexp(1, exponent - 14));
    return h;
}

/* The first rows of the embedding as the job sees them. */
static dq_status hash_embedding(dq_model *model, uint64_t *out)
{
    const dq_arch *a = dq_model_arch(model);
    dq_tensor rows = {0};
    int64_t n = a->vocab < 256 ? a->vocab : 256;
    float *host = dq_alloc(dq_device_env(dq_model_device(model)), (size_t)(n * a->hidden) * sizeof *host);
    dq_status status = host ? dq_model_read_rows(model, DQ_EMBED, 0, n, &rows) : DQ_E_NOMEM;
    if (status == DQ_OK) status = dq_tensor_download(&rows, host);
    uint64_t h = HASH_START;
    for (int64_t r = 0; status == DQ_OK && r < n; r++) h = hash_row(h, host + r * a->hidden, a->hidden);
    if (status == DQ_OK) *out = h;
    dq_tensor_free(&rows);
    dq_free(host);
    return status;
}

static bool decides(const dq_option_info *o)
{
    static const char *const areas[] = {"weights", "activations", "kv", "calibration", "rotation fitting"};
    static const char *const names[] = {"seed", "math", "seqlen", "limit"};
    for (size_t i = 0; i < sizeof areas / sizeof *areas; i++)
        if (strcmp(o->area, areas[i]) == 0) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(o->name, names[i]) == 0) return true;
    return false;
}

/* How the model quantizes already, as a hash; "none" where it does not. */
static dq_status scheme_text(dq_model *model, json_t **out)
{
    const dq_scheme *scheme = dq_model_scheme(model);
    char *text = NULL;
    json_t *o = scheme ? dq_scheme_json(scheme) : NULL;
    if (scheme) {
        dq_status status = dq_json_dump(dq_device_env(dq_model_device(model)), o, false, &text);
        json_decref(o);
        if (status != DQ_OK) return status;
    }
    *out = text ? hash_text(hash_bytes(HASH_START, text, strlen(text))) : json_string("none");
    dq_free(text);
    return DQ_OK;
}

dq_status dq_model_identity(dq_model *model, json_t **out)
{
    uint64_t embedding;
    char codes[17];
    json_t *scheme = NULL;
    const char *fingerprint;
    DQ_TRY(dq_model_fingerprint(model, &fingerprint));
    DQ_TRY(hash_embedding(model, &embedding));
    DQ_TRY(dq_model_codes_digest(model, codes));
    DQ_TRY(scheme_text(model, &scheme));
    json_t *o = json_pack("{s:s, s:s, s:o, s:o, s:o, s:s}", "model", fingerprint, "fused norms",
                          dq_model_is_fused(model) ? "yes" : "no", "rotations",
                          hash_text(hash_rotations(dq_model_rotations(model))), "embedding", hash_text(embedding),
                          "quantization", scheme, "codes", codes);
    if (!o) return dq_fail(DQ_E_NOMEM, "out of memory: fingerprint");
    *out = o;
    return DQ_OK;
}

json_t *dq_ids_fingerprint(const int32_t *ids, int64_t count)
{
    return hash_text(hash_bytes(HASH_START, ids, ids ? (size_t)count * sizeof *ids : 0));
}

dq_status dq_job_fingerprint(dq_model *model, const dq_config *config, const int32_t *ids, int64_t count, json_t **out)
{
    json_t *o = NULL;
    DQ_TRY(dq_model_identity(model, &o));
    json_object_set_new(o, "library", json_string(dq_version_string()));
    json_object_set_new(o, "data", dq_ids_fingerprint(ids, count));
    for (int32_t i = 0; i < dq_option_count(); i++) {
        dq_option_info info = {.struct_size = sizeof info};
        const char *text = "";
        if (dq_option_get(i, &info) == DQ_OK && decides(&info) && dq_config_get(config, info.name, &text) == DQ_OK)
            json_object_set_new(o, info.name, json_string(text));
    }
    *out = o;
    return DQ_OK;
}

dq_status dq_fingerprint_compare(const char *what, const json_t *there, const json_t *here)
{
    char text[400];
    size_t used = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)here, key, value)
    {
        const char *mine = json_string_value(value), *theirs = json_string_value(json_object_get(there, key));
        if (theirs && strcmp(mine, theirs) == 0) continue;
        int n = snprintf(text + used, sizeof text - used, "%s%s is %s there and %s here", used ? "; " : "", key,
                         theirs ? theirs : "missing", mine);
        used += (size_t)n < sizeof text - used ? (size_t)n : sizeof text - used - 1;
    }
    return used ? dq_fail(DQ_E_MISMATCH, "%s: %s", what, text) : DQ_OK;
}

/* ---- the state ---- */

dq_status dq_checkpoint_write(dq_context *ctx, const char *dir, const char *job, const json_t *fingerprint,
                              json_t *state)
{
    char *text = NULL, *path = dq_path_join(&ctx->env, dir, DQ_CHECKPOINT_STATE);
    json_t *head = json_pack("{s:s, s:i, s:s, s:s, s:O}", "format", "dartquant checkpoint", "version", VERSION, "job",
                             job, "device", ctx->device_name, "fingerprint", fingerprint);
    bool whole = head && state && json_object_update(head, state) == 0;
    dq_status status = !path ? DQ_E_NOMEM : whole ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory: checkpoint");
    if (status == DQ_OK) status = dq_json_dump(&ctx->env, head, true, &text);
    if (status == DQ_OK) status = dq_file_write(&ctx->env, path, text, strlen(text));
    json_decref(head);
    json_decref(state);
    dq_free(text);
    dq_free(path);
    return status;
}

static dq_status check_state(dq_context *ctx, const json_t *o, const char *path, const char *job,
                             const json_t *fingerprint)
{
    const char *format, *kind, *device;
    int64_t version;
    if (!json_is_object(o)) return dq_fail(DQ_E_FORMAT, "the checkpoint is no object");
    DQ_TRY(dq_json_string(o, "format", true, path, &format));
    if (strcmp(format, "dartquant checkpoint") != 0) return dq_fail(DQ_E_FORMAT, "this is no checkpoint");
    DQ_TRY(dq_json_int(o, "version", 1, INT32_MAX, true, path, &version));
    if (version != VERSION)
        return dq_fail(DQ_E_UNSUPPORTED, "checkpoint version %lld, this library reads version %d", (long long)version,
                       VERSION);
    DQ_TRY(dq_json_string(o, "job", true, path, &kind));
    if (strcmp(kind, job) != 0)
        return dq_fail(DQ_E_MISMATCH, "the checkpoint is of a job called \"%s\", not \"%s\"", kind, job);
    if (!json_is_object(json_object_get(o, "fingerprint"))) return dq_fail(DQ_E_FORMAT, "no fingerprint");
    DQ_TRY(dq_fingerprint_compare("the checkpoint is of another job", json_object_get(o, "fingerprint"), fingerprint));
    DQ_TRY(dq_json_string(o, "device", true, path, &device));
    if (strcmp(device, ctx->device_name) != 0)
        dq_log(&ctx->env, DQ_LOG_WARNING,
               "the checkpoint was written on %s and goes on on %s: not the bits of an uninterrupted run", device,
               ctx->device_name);
    return DQ_OK;
}

dq_status dq_checkpoint_read(dq_context *ctx, const char *dir, const char *job, const json_t *fingerprint, json_t **out)
{
    char *path = dq_path_join(&ctx->env, dir, DQ_CHECKPOINT_STATE);
    json_t *o = NULL;
    if (!path) return DQ_E_NOMEM;
    dq_status status =
        dq_path_exists(path) ? DQ_OK : dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "there is no checkpoint"), path);
    if (status == DQ_OK) status = dq_json_load(&ctx->env, path, STATE_LIMIT, &o);
    if (status == DQ_OK) status = dq_error_in_file(check_state(ctx, o, path, job, fingerprint), path);
    dq_free(path);
    if (status == DQ_OK)
        *out = o;
    else
        json_decref(o);
    return status;
}

/* ---- tensors ---- */

typedef dq_status (*piece_fn)(void *arg, dq_tensor *rows, void *buffer, size_t bytes);

/* All tensors piece by piece through a buffer. */
static dq_status each_piece(dq_env *env, const dq_tensor *const *tensors, int count, piece_fn fn, void *arg)
{
    dq_status status = DQ_OK;
    for (int i = 0; i < count && status == DQ_OK; i++) {
        const dq_tensor *t = tensors[i];
        size_t width = (size_t)t->view.cols * dq_dtype_size(t->view.dtype);
        int64_t most = width < PIECE ? (int64_t)(PIECE / width) : 1;
        void *buffer = dq_alloc(env, (size_t)most * width);
        if (!buffer) return DQ_E_NOMEM;
        for (int64_t r = 0; r < t->view.rows && status == DQ_OK; r += most) {
            int64_t n = t->view.rows - r < most ? t->view.rows - r : most;
            dq_tensor rows = dq_tensor_rows(t, r, n);
            status = fn(arg, &rows, buffer, (size_t)n * width);
        }
        dq_free(buffer);
    }
    return status;
}

typedef struct transfer {
    dq_writer *writer;
    const uint8_t *data;
    uint64_t hash, bytes, size;
} transfer;

static dq_status write_piece(void *arg, dq_tensor *rows, void *buffer, size_t bytes)
{
    transfer *t = arg;
    DQ_TRY(dq_tensor_download(rows, buffer));
    t->hash = hash_bytes(t->hash, buffer, bytes);
    t->bytes += bytes;
    return dq_writer_write(t->writer, buffer, bytes);
}

dq_status dq_checkpoint_save_tensors(dq_env *env, const char *dir, int slot, const dq_tensor *const *tensors, int count,
                                     json_t **out)
{
    char name[32];
    transfer t = {.hash = HASH_START};
    snprintf(name, sizeof name, "activations-%d.bin", slot);
    char *path = dq_path_join(env, dir, name);
    dq_status status = path ? dq_writer_open(env, path, &t.writer) : DQ_E_NOMEM;
    if (status == DQ_OK) status = each_piece(env, tensors, count, write_piece, &t);
    if (status == DQ_OK) status = dq_writer_commit(t.writer);
    dq_writer_free(t.writer);
    dq_free(path);
    DQ_TRY(status);
    *out = json_pack("{s:s, s:I, s:o}", "file", name, "bytes", (json_int_t)t.bytes, "hash", hash_text(t.hash));
    return *out ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory: checkpoint");
}

static dq_status read_piece(void *arg, dq_tensor *rows, void *buffer, size_t bytes)
{
    transfer *t = arg;
    if (bytes > t->size - t->bytes)
        return dq_fail(DQ_E_MISMATCH, "%llu bytes of activations are too few", (unsigned long long)t->size);
    memcpy(buffer, t->data + t->bytes, bytes);
    t->hash = hash_bytes(t->hash, buffer, bytes);
    t->bytes += bytes;
    return dq_tensor_upload(rows, buffer);
}

dq_status dq_checkpoint_load_tensors(dq_env *env, const char *dir, const json_t *record, dq_tensor *const *tensors,
                                     int count)
{
    const char *name, *hash;
    char found[17];
    dq_map map = {0};
    if (!json_is_object(record)) return dq_fail(DQ_E_FORMAT, "the checkpoint names no activations");
    DQ_TRY(dq_json_string(record, "file", true, NULL, &name));
    DQ_TRY(dq_json_string(record, "hash", true, NULL, &hash));
    if (fnmatch("activations-[01].bin", name, 0) != 0) return dq_fail(DQ_E_FORMAT, "a file called \"%s\"", name);
    char *path = dq_path_join(env, dir, name);
    dq_status status = path ? dq_map_open(env, path, &map) : DQ_E_NOMEM;
    transfer t = {.data = map.data, .size = map.size, .hash = HASH_START};
    if (status == DQ_OK) status = each_piece(env, (const dq_tensor *const *)tensors, count, read_piece, &t);
    snprintf(found, sizeof found, "%016" PRIx64, t.hash);
    if (status == DQ_OK && (t.bytes != t.size || strcmp(found, hash) != 0))
        status = dq_fail(DQ_E_MISMATCH, "the activations are not those of the checkpoint");
    if (path) dq_error_in_file(status, path);
    dq_map_close(&map);
    dq_free(path);
    return status;
}

/* ---- other state ---- */

static dq_status put_state(void *arg, const void *data, uint64_t bytes)
{
    transfer *t = arg;
    t->hash = hash_bytes(t->hash, data, (size_t)bytes);
    t->bytes += bytes;
    return dq_writer_write(t->writer, data, bytes);
}

static dq_status get_state(void *arg, void *data, uint64_t bytes)
{
    transfer *t = arg;
    if (bytes > t->size - t->bytes)
        return dq_fail(DQ_E_TRUNCATED, "%llu bytes of state are too few", (unsigned long long)t->size);
    memcpy(data, t->data + t->bytes, bytes);
    t->hash = hash_bytes(t->hash, data, (size_t)bytes);
    t->bytes += bytes;
    return DQ_OK;
}

dq_status dq_checkpoint_save_state(dq_env *env, const char *dir, const char *stem, int slot,
                                   dq_status (*save)(void *arg, const dq_put *put), void *arg, json_t **out)
{
    char name[32];
    transfer t = {.hash = HASH_START};
    snprintf(name, sizeof name, "%s-%d.bin", stem, slot);
    char *path = dq_path_join(env, dir, name);
    dq_status status = path ? dq_writer_open(env, path, &t.writer) : DQ_E_NOMEM;
    if (status == DQ_OK) status = save(arg, &(dq_put){put_state, &t});
    if (status == DQ_OK) status = dq_writer_commit(t.writer);
    dq_writer_free(t.writer);
    dq_free(path);
    DQ_TRY(status);
    *out = json_pack("{s:s, s:I, s:o}", "file", name, "bytes", (json_int_t)t.bytes, "hash", hash_text(t.hash));
    return *out ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory: checkpoint");
}

dq_status dq_checkpoint_load_state(dq_env *env, const char *dir, const char *stem, const json_t *record,
                                   dq_status (*load)(void *arg, const dq_get *get), void *arg)
{
    const char *name, *hash;
    char found[17], pattern[32];
    dq_map map = {0};
    if (!json_is_object(record)) return dq_fail(DQ_E_FORMAT, "the checkpoint names no %s", stem);
    DQ_TRY(dq_json_string(record, "file", true, NULL, &name));
    DQ_TRY(dq_json_string(record, "hash", true, NULL, &hash));
    snprintf(pattern, sizeof pattern, "%s-[01].bin", stem);
    if (fnmatch(pattern, name, 0) != 0) return dq_fail(DQ_E_FORMAT, "a file called \"%s\"", name);
    char *path = dq_path_join(env, dir, name);
    dq_status status = path ? dq_map_open(env, path, &map) : DQ_E_NOMEM;
    transfer t = {.data = map.data, .size = map.size, .hash = HASH_START};
    if (status == DQ_OK) status = load(arg, &(dq_get){get_state, &t});
    snprintf(found, sizeof found, "%016" PRIx64, t.hash);
    if (status == DQ_OK && (t.bytes != t.size || strcmp(found, hash) != 0))
        status = dq_fail(DQ_E_MISMATCH, "the state is not that of the checkpoint");
    if (path) dq_error_in_file(status, path);
    dq_map_close(&map);
    dq_free(path);
    return status;
}

/* ---- the folder ---- */

static bool is_ours(const char *name)
{
#define CODES "codes-[0-9][0-9][0-9][0-9][0-9]"
    static const char *const patterns[] = {DQ_CHECKPOINT_STATE,    DQ_CHECKPOINT_STATE ".tmp.*",
                                           "activations-[01].bin", "activations-[01].bin.tmp.*",
                                           "calibration-[01].bin", "calibration-[01].bin.tmp.*",
                                           "fit-[01].bin",         "fit-[01].bin.tmp.*",
                                           CODES ".safetensors",   CODES ".tmp.*",
                                           CODES ".*.tmp.*",       CODES ".part*"};
#undef CODES
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (fnmatch(patterns[i], name, 0) == 0) return true;
    return false;
}

static dq_status remove_file(const char *dir, const char *name)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", dir, name) >= sizeof path)
        return dq_fail(DQ_E_IO, "a path of more than %d bytes", PATH_MAX);
    if (unlink(path) != 0 && errno != ENOENT) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot remove"), path);
    return DQ_OK;
}

dq_status dq_checkpoint_clear(dq_env *env, const char *dir)
{
    (void)env;
    dq_status status = remove_file(dir, DQ_CHECKPOINT_STATE); /* first: without it the rest counts for nothing */
    DIR *d = opendir(dir);
    if (!d) return errno == ENOENT ? DQ_OK : dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot read the folder"), dir);
    for (struct dirent *e; status == DQ_OK && (e = readdir(d));)
        if (is_ours(e->d_name)) status = remove_file(dir, e->d_name);
    closedir(d);
    if (status == DQ_OK) rmdir(dir); /* only when it is empty */
    return status;
}

dq_status dq_checkpoint_exists(dq_context *ctx, const char *dir, int32_t *out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && dir && out);
    char *path = dq_path_join(&ctx->env, dir, DQ_CHECKPOINT_STATE);
    if (!path) return DQ_E_NOMEM;
    *out = dq_path_exists(path);
    dq_free(path);
    return DQ_OK;
}

dq_status dq_checkpoint_remove(dq_context *ctx, const char *dir)
{
    DQ_ENTER_CONTEXT(ctx, ctx && dir);
    return dq_checkpoint_clear(&ctx->env, dir);
}
