/* SPDX-License-Identifier: Apache-2.0 */
#include "io/pt_archive.h"

#include <string.h>

#include "base/status.h"
#include "io/limits.h"

static dq_status zip_status(const zip_error_t *error)
{
    switch (zip_error_code_zip(error)) {
        case ZIP_ER_MEMORY: return DQ_E_NOMEM;
        case ZIP_ER_EOF: return DQ_E_TRUNCATED;
        case ZIP_ER_COMPNOTSUPP:
        case ZIP_ER_ENCRNOTSUPP:
        case ZIP_ER_MULTIDISK: return DQ_E_UNSUPPORTED;
        default: return DQ_E_FORMAT;
    }
}

static dq_status fail_zip(zip_error_t *error, const char *what)
{
    return dq_fail(zip_status(error), "zip: %s: %s", what, zip_error_strerror(error));
}

/* The folder that holds data.pkl. */
static dq_status find_root(dq_pt_archive *a)
{
    static const char pickle[] = "data.pkl";
    zip_int64_t entries = zip_get_num_entries(a->zip, 0);
    for (zip_int64_t i = 0; i < entries; i++) {
        const char *name = zip_get_name(a->zip, (zip_uint64_t)i, 0);
        const char *slash = name ? strchr(name, '/') : NULL;
        if (!slash || strcmp(slash + 1, pickle) != 0) continue;
        a->root = dq_strndup(a->env, name, (size_t)(slash + 1 - name));
        return a->root ? DQ_OK : DQ_E_NOMEM;
    }
    return dq_fail(DQ_E_FORMAT, "the zip archive holds no NAME/data.pkl: it is no PyTorch checkpoint");
}

dq_status dq_pt_archive_open(dq_env *env, const dq_map *map, dq_pt_archive *out)
{
    zip_error_t error;
    zip_error_init(&error);
    dq_pt_archive a = {.env = env};
    dq_status status = DQ_OK;
    zip_source_t *source = zip_source_buffer_create(map->data, map->size, 0, &error);
    if (source) a.zip = zip_open_from_source(source, ZIP_RDONLY, &error);
    if (!a.zip) {
        status = fail_zip(&error, "cannot open");
        if (source) zip_source_free(source);
    }
    zip_error_fini(&error);
    if (status == DQ_OK) status = find_root(&a);
    if (status != DQ_OK) {
        dq_pt_archive_close(&a);
        return status;
    }
    *out = a;
    return DQ_OK;
}

void dq_pt_archive_close(dq_pt_archive *a)
{
    if (a->zip) zip_discard(a->zip);
    dq_free(a->root);
    *a = (dq_pt_archive){0};
}

static dq_status check_entry(const zip_stat_t *st, const dq_map *map)
{
    zip_uint64_t need = ZIP_STAT_INDEX | ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD;
    if ((st->valid & need) != need) return dq_fail(DQ_E_FORMAT, "zip: the entry's directory record is incomplete");
    if ((st->valid & ZIP_STAT_ENCRYPTION_METHOD) && st->encryption_method != ZIP_EM_NONE)
        return dq_fail(DQ_E_UNSUPPORTED, "zip: the entry is encrypted");
    if (st->comp_method != ZIP_CM_STORE && st->comp_method != ZIP_CM_DEFLATE)
        return dq_fail(DQ_E_UNSUPPORTED, "zip: compression method %u, stored and deflated entries are read",
                       st->comp_method);
    bool stored = st->comp_method == ZIP_CM_STORE;
    if (st->comp_size > map->size || (stored && st->size != st->comp_size) ||
        (!stored && st->size / DQ_PT_MAX_INFLATE > st->comp_size))
        return dq_fail(DQ_E_FORMAT, "zip: %llu bytes from %llu compressed in a file of %llu",
                       (unsigned long long)st->size, (unsigned long long)st->comp_size, (unsigned long long)map->size);
    return DQ_OK;
}

dq_status dq_pt_archive_find(const dq_pt_archive *a, const dq_map *map, const char *name, dq_pt_entry *out)
{
    char *path = dq_asprintf(a->env, "%s%s", a->root, name);
    if (!path) return DQ_E_NOMEM;
    zip_stat_t st;
    zip_stat_init(&st);
    dq_status status = DQ_OK;
    zip_int64_t index = zip_name_locate(a->zip, path, 0);
    if (index < 0 || zip_stat_index(a->zip, (zip_uint64_t)index, 0, &st) != 0)
        status = dq_fail(DQ_E_NOTFOUND, "the archive holds no %s", path);
    else
        status = check_entry(&st, map);
    dq_free(path);
    if (status == DQ_OK) *out = (dq_pt_entry){(uint64_t)index, st.size, st.comp_method == ZIP_CM_STORE};
    return status;
}

dq_status dq_pt_archive_read(const dq_pt_archive *a, const dq_pt_entry *e, uint64_t offset, void *out, uint64_t bytes)
{
    zip_file_t *file = zip_fopen_index(a->zip, e->index, 0);
    if (!file) return fail_zip(zip_get_error(a->zip), "cannot open an entry");
    dq_status status = DQ_OK;
    if (offset > 0 && zip_fseek(file, (zip_int64_t)offset, SEEK_SET) != 0)
        status = fail_zip(zip_file_get_error(file), "cannot seek");
    bool whole = offset == 0 && bytes == e->bytes;
    char *p = out, beyond;
    while (bytes > 0 && status == DQ_OK) {
        zip_int64_t n = zip_fread(file, p, bytes);
        if (n < 0)
            status = fail_zip(zip_file_get_error(file), "cannot read");
        else if (n == 0)
            status = dq_fail(DQ_E_TRUNCATED, "zip: the entry ends %llu bytes early", (unsigned long long)bytes);
        else
            p += n, bytes -= (uint64_t)n;
    }
    /* libzip compares the checksum when it meets the end. */
    if (status == DQ_OK && whole && zip_fread(file, &beyond, 1) != 0)
        status = fail_zip(zip_file_get_error(file), "the entry is damaged");
    zip_fclose(file);
    return status;
}
