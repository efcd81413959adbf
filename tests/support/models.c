/* SPDX-License-Identifier: Apache-2.0 */
#include "models.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/status.h"
#include "io/formats.h"
#include "io/json.h"
#include "paths.h"

static void ok(dq_status status)
{
    if (status != DQ_OK) print_message("%s\n", dq_error_text());
    assert_int_equal(status, DQ_OK);
}

const char *tiny_path(const char *name)
{
    static char path[4][256];
    static int next;
    char *p = path[next++ % 4];
    snprintf(p, sizeof path[0], "tests/data/models/%s", name);
    return p;
}

dq_model *open_tiny(fixture *f, const char *name)
{
    dq_model *m;
    ok(dq_model_open_path(f->dev, tiny_path(name), &m));
    return m;
}

void read_expected(fixture *f, const char *name, expected *out)
{
    char path[256];
    dq_source *s;
    snprintf(path, sizeof path, "tests/data/models/%s/expected.bin", name);
    ok(dq_safetensors_open(&f->env, path, &s));
    int64_t ids = dq_source_find(s, "ids"), logits = dq_source_find(s, "logits"), nll = dq_source_find(s, "nll");
    assert_true(ids >= 0 && logits >= 0 && nll >= 0);
    out->tokens = s->tensors[logits].shape[0];
    out->vocab = s->tensors[logits].shape[1];
    assert_true(out->tokens <= 64 && out->vocab <= 128);
    ok(dq_source_read_raw(s, ids, 0, (uint64_t)out->tokens * 4, out->ids));
    ok(dq_source_read_raw(s, logits, 0, (uint64_t)(out->tokens * out->vocab) * 4, out->logits));
    ok(dq_source_read_raw(s, nll, 0, 8, &out->nll));
    dq_source_free(s);
}

bool open_stories(fixture *f, dq_model **model, json_t **figures)
{
    char path[1100];
    const char *folder = shared_data("stories260k");
    if (!folder) return false;
    fixture_open(f, "cpu", 2);
    snprintf(path, sizeof path, "%s/hf", folder);
    ok(dq_model_open_path(f->dev, path, model));
    snprintf(path, sizeof path, "%s/expected.json", folder);
    ok(dq_json_load(&f->env, path, 1 << 24, figures));
    return true;
}

double max_difference(const float *a, const float *b, int64_t n)
{
    double worst = 0.0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; /* a NaN sticks out */
    }
    return worst;
}

void logits_of(dq_model *model, const expected *e, float *out)
{
    ok(dq_model_forward_logits(model, e->ids, e->tokens, DQ_MATH_F32, out));
}

double logits_difference(dq_model *model, const expected *e)
{
    static float logits[64 * 128];
    logits_of(model, e, logits);
    return max_difference(logits, e->logits, e->tokens * e->vocab);
}

dq_source *copy_source(fixture *f, dq_source *from, change_fn change, void *arg)
{
    dq_sink *sink;
    dq_source *source;
    ok(dq_memory_sink(&f->env, &sink));
    for (int64_t t = 0; t < from->count; t++) {
        const dq_tensor_info *info = &from->tensors[t];
        int64_t rows = dq_info_rows(info), cols = dq_info_cols(info);
        float *values = malloc((size_t)(rows * cols) * sizeof *values);
        assert_non_null(values);
        ok(dq_source_read_rows(from, t, 0, rows, values));
        if (!change || change(info->name, rows, cols, values, arg))
            ok(sink->ops->add(sink, info->name, DQ_F32, info->ndim, info->shape, values, (uint64_t)(rows * cols) * 4));
        free(values);
    }
    ok(sink->ops->finish(sink));
    ok(dq_memory_source(sink, &source));
    sink->ops->free(sink);
    return source;
}

dq_status changed_model(fixture *f, const char *name, change_fn change, void *arg, dq_model **out)
{
    dq_model *base = open_tiny(f, name);
    dq_arch arch = *dq_model_arch(base);
    dq_source *copy = copy_source(f, dq_model_root_source(base), change, arg);
    dq_model_release(base);
    return dq_model_from_source(f->dev, &arch, copy, false, out);
}

dq_scheme plain_scheme(void)
{
    dq_act_spec off = {.bits = 16, .group = -1, .symmetric = true, .clip = 1.0};
    dq_scheme s = {.w = {.bits = 16, .group = -1, .symmetric = true, .percdamp = 0.01}, .a = off, .k = off, .v = off};
    return s;
}

static void quantize_linear(fixture *f, const dq_tensor *w, int bits, bool symmetric, int64_t group, bool g_idx,
                            dq_codes *c)
{
    int64_t out = w->view.rows, in = w->view.cols;
    memset(c, 0, sizeof *c);
    c->bits = bits;
    c->symmetric = symmetric;
    c->out = out;
    c->in = in;
    c->group = group > 0 ? group : in;
    c->groups = (in + c->group - 1) / c->group;
    dq_grid_desc d = {.bits = bits, .symmetric = symmetric, .group = c->group};
    ok(dq_tensor_alloc(f->dev, DQ_U8, out, in, &c->codes));
    ok(dq_tensor_alloc(f->dev, DQ_F32, out, c->groups, &c->scale));
    ok(dq_tensor_alloc(f->dev, DQ_F32, out, c->groups, &c->zero));
    ok(dq_op_weight_grid(&d, w, &c->scale, &c->zero));
    if (g_idx) {
        int32_t index[512];
        assert_true(in <= 512);
        for (int64_t i = 0; i < in; i++) index[i] = (int32_t)((in - 1 - i) / c->group);
        ok(dq_tensor_from_host(f->dev, DQ_I32, 1, in, index, &c->group_index));
    }
    ok(dq_op_quantize_weight(&d, w, &c->scale, &c->zero, g_idx ? &c->group_index : NULL, &c->codes));
}

dq_source *quantize_to_memory(fixture *f, dq_model *model, int bits, bool symmetric, int64_t group, bool g_idx)
{
    const dq_arch *a = dq_model_arch(model);
    dq_sink *sink;
    dq_source *source;
    ok(dq_memory_sink(&f->env, &sink));
    for (int64_t layer = 0; layer < a->layers; layer++) {
        for (int role = 0; role < DQ_LINEARS; role++) {
            if (!dq_arch_has(a, (dq_role)role)) continue;
            char name[DQ_TENSOR_NAME];
            dq_linear l;
            dq_codes c;
            ok(dq_model_read_linear(model, layer, (dq_role)role, &l));
            quantize_linear(f, &l.weight, bits, symmetric, group, g_idx, &c);
            dq_arch_module_name(a, (dq_role)role, layer, name, sizeof name);
            ok(dq_codes_write(sink, name, &c));
            dq_codes_free(&c);
            dq_tensor_free(&l.weight);
            dq_tensor_free(&l.bias);
        }
    }
    ok(sink->ops->finish(sink));
    ok(dq_memory_source(sink, &source));
    sink->ops->free(sink);
    return source;
}

char *make_folder(char *buffer, size_t size)
{
    snprintf(buffer, size, "/tmp/dartquant-test-XXXXXX");
    assert_non_null(mkdtemp(buffer));
    return buffer;
}

void remove_folder(const char *path)
{
    DIR *d = opendir(path);
    if (!d) return;
    for (struct dirent *e; (e = readdir(d));) {
        char file[1024];
        snprintf(file, sizeof file, "%s/%s", path, e->d_name);
        unlink(file);
    }
    closedir(d);
    rmdir(path);
}
