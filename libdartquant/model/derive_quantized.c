/* Models whose linears are integer codes and whose activations are fake-quantized. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "model/internal.h"

/* The linear's name, DQ_TENSOR_NAME bytes, and where its codes are. */
static dq_status find_codes(dq_model *model, int64_t layer, dq_role role, char *name, dq_source **store)
{
    if (role < 0 || role > DQ_DOWN_PROJ || !dq_arch_has(&model->arch, role) || layer < 0 || layer >= model->arch.layers)
        return dq_fail(DQ_E_INVALID, "no linear %s in layer %lld", dq_role_name(role), (long long)layer);
    dq_arch_module_name(&model->arch, role, layer, name, DQ_TENSOR_NAME);
    *store = dq_model_codes_source(model);
    if (!*store || !dq_codes_exist(*store, name))
        return dq_error_in_tensor(dq_fail(DQ_E_STATE, "the linear is not quantized"), name);
    return DQ_OK;
}

dq_status dq_model_codes_layout(dq_model *model, int64_t layer, dq_role role, dq_codes *out)
{
    char name[DQ_TENSOR_NAME];
    dq_source *store = NULL;
    DQ_TRY(find_codes(model, layer, role, name, &store));
    return dq_codes_read_layout(model->env, store, name, out);
}

static dq_status check_sizes(const dq_model *model, dq_role role, const char *name, int64_t out, int64_t in)
{
    int64_t rows, cols;
    dq_arch_shape(&model->arch, role, &rows, &cols);
    if (out == rows && in == cols) return DQ_OK;
    return dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "codes of %lld x %lld, the model needs %lld x %lld",
                                      (long long)out, (long long)in, (long long)rows, (long long)cols),
                              name);
}

dq_status dq_model_read_codes(dq_model *model, int64_t layer, dq_role role, dq_codes *out)
{
    char name[DQ_TENSOR_NAME];
    dq_source *store = NULL;
    dq_codes codes;
    DQ_TRY(find_codes(model, layer, role, name, &store));
    DQ_TRY(dq_codes_read(model->dev, store, name, &codes));
    dq_status status = check_sizes(model, role, name, codes.out, codes.in);
    if (status == DQ_OK)
        *out = codes;
    else
        dq_codes_free(&codes);
    return status;
}

/* ---- for products of integers ---- */

dq_status dq_model_has_integers(dq_model *model, int64_t layer, dq_role role, bool *has)
{
    char name[DQ_TENSOR_NAME];
    dq_source *store = NULL;
    int64_t rows, cols, groups;
    *has = false;
    if (!dq_model_has_codes(model, layer, role)) return DQ_OK;
    DQ_TRY(find_codes(model, layer, role, name, &store));
    DQ_TRY(dq_codes_count_groups(model->env, store, name, &groups));
    dq_arch_shape(&model->arch, role, &rows, &cols);
    *has = groups == 1 && cols <= DQ_INT8_COLUMNS;
    return DQ_OK;
}

typedef struct shift_job {
    const dq_host_codes *codes;
    float *grid;
} shift_job;

/* A row's codes, in place, and its zero less 2^(bits - 1); a group index has nothing to say about one group. */
static void shift_row(void *arg, int64_t r, int thread)
{
    const shift_job *j = arg;
    const dq_host_codes *c = j->codes;
    uint8_t *row = c->codes + r * c->in;
    int32_t shift = 1 << (c->bits - 1), sum = 0;
    (void)thread;
    for (int64_t k = 0; k < c->in; k++) {
        sum += row[k] - shift;
        row[k] = (uint8_t)(row[k] - shift); /* as int8_t from here on */
    }
    j->grid[3 * r] = c->scale[r];
    j->grid[3 * r + 1] = (float)(c->zero[r] - shift);
    j->grid[3 * r + 2] = (float)sum;
}

dq_status dq_model_read_integers(dq_model *model, int64_t layer, dq_role role, dq_int8_weight *out)
{
    char name[DQ_TENSOR_NAME];
    dq_source *store = NULL;
    dq_host_codes h;
    dq_int8_weight w = {0};
    dq_status status;
    DQ_TRY(find_codes(model, layer, role, name, &store));
    DQ_TRY(dq_codes_read_host(model->env, store, name, &h));
    float *grid = NULL;
    DQ_GO(check_sizes(model, role, name, h.out, h.in));
    grid = dq_calloc(model->env, (size_t)h.out, 3 * sizeof *grid);
    DQ_GO(grid ? DQ_OK : DQ_E_NOMEM);
    dq_run(model->env, h.out, shift_row, &(shift_job){&h, grid});
    DQ_GO(dq_tensor_from_host(model->dev, DQ_I8, h.out, h.in, h.codes, &w.codes));
    DQ_GO(dq_tensor_from_host(model->dev, DQ_F32, h.out, 3, grid, &w.grid));
    *out = w;
    w = (dq_int8_weight){0};
done:
    dq_int8_weight_free(&w);
    dq_host_codes_free(&h);
    dq_free(grid);
    return status;
}

static dq_status check_act(const char *what, const dq_act_spec *s)
{
    if (s->bits == 16) return DQ_OK;
    if (s->bits < 2 || s->bits > 15) return dq_fail(DQ_E_INVALID, "%s: %d bits, 2 to 16 are possible", what, s->bits);
    if (!(s->clip > 0.0 && s->clip <= 1.0))
        return dq_fail(DQ_E_INVALID, "%s: clip ratio %g is not in (0, 1]", what, s->clip);
    if (s->group != -1 && s->group < 1)
        return dq_fail(DQ_E_INVALID, "%s: group size %lld, -1 or more than 0 is possible", what, (long long)s->group);
    return DQ_OK;
}

/* Whether every linear has codes of the width the scheme promises. */
static dq_status check_store(const dq_model *m)
{
    char name[DQ_TENSOR_NAME];
    if (!m->store || m->scheme->w.bits >= 16) return DQ_OK;
    for (int64_t layer = 0; layer < m->arch.layers; layer++) {
        for (int role = 0; role < DQ_LINEARS; role++) {
            if (!dq_arch_has(&m->arch, (dq_role)role)) continue;
            dq_arch_module_name(&m->arch, (dq_role)role, layer, name, sizeof name);
            if (!dq_codes_exist(m->store, name))
                return dq_error_in_tensor(dq_fail(DQ_E_MISMATCH, "the store has no codes of this linear"), name);
        }
    }
    return DQ_OK;
}

dq_status dq_model_derive_quantized(dq_model *base, dq_source *store, const dq_scheme *scheme, dq_model **out)
{
    dq_model *m = NULL;
    dq_status status;
    DQ_GO(check_act("activations", &scheme->a));
    DQ_GO(check_act("keys", &scheme->k));
    DQ_GO(check_act("values", &scheme->v));
    if (store && base->scheme && base->scheme->w.bits < 16) {
        status = dq_fail(DQ_E_STATE, "the weights are quantized already");
        goto done;
    }
    DQ_GO(dq_model_derive(base, DQ_MODEL_QUANTIZED, &m));
    DQ_GO(dq_model_own_scheme(m, scheme));
    m->store = store;
    store = NULL; /* the model frees it from here on */
    if (!m->store && base->scheme)
        m->own_scheme.w = base->scheme->w; /* the codes below stay what they are */
    else if (!m->store)
        m->own_scheme.w.bits = 16;
    DQ_GO(check_store(m));
    dq_block_spec spec; /* group sizes against the sizes of the model */
    DQ_GO(dq_model_block_spec(m, 1, DQ_MATH_F32, &spec));
    dq_block_spec_clear(&spec);
    *out = m;
    return DQ_OK;
done:
    dq_source_free(store);
    dq_model_release(m);
    return status;
}
