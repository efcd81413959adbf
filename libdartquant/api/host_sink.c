/* dartquant/source.h: tensors handed to the host. SPDX-License-Identifier: Apache-2.0 */
#include "api/check.h"
#include "api/handles.h"
#include "api/host_tensors.h"
#include "io/decode.h"

typedef struct host_sink {
    dq_sink base; /* must be first */
    dq_tensor_sink table;
    /* a tensor in pieces, for hosts that take whole ones only */
    char *name;
    uint8_t *data;
    dq_tensor_info info;
    uint64_t position;
} host_sink;

static dq_status answer(dq_status status, const char *callback, const char *name)
{
    if (status == DQ_OK) return DQ_OK;
    dq_status known = status < 0 ? status : DQ_E_IO;
    dq_fail(known, "the host's tensor sink failed: %s returned %d (%s)", callback, status, dq_status_name(known));
    return name ? dq_error_in_tensor(known, name) : known;
}

static dq_status add(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape, const void *data,
                     uint64_t bytes)
{
    const dq_tensor_sink *t = &((host_sink *)sink)->table;
    dq_tensor_info info;
    DQ_TRY(dq_sink_check(name, dtype, ndim, shape, bytes, &info));
    return answer(t->add(t->user, name, dtype, ndim, shape, data, bytes), "add", name);
}

static void forget_pieces(host_sink *s)
{
    dq_free(s->name);
    dq_free(s->data);
    s->name = NULL;
    s->data = NULL;
}

static dq_status begin(dq_sink *sink, const char *name, dq_dtype dtype, int ndim, const int64_t *shape, uint64_t bytes)
{
    host_sink *s = (host_sink *)sink;
    const dq_tensor_sink *t = &s->table;
    forget_pieces(s);
    DQ_TRY(dq_sink_check(name, dtype, ndim, shape, bytes, &s->info));
    s->name = dq_strdup(sink->env, name);
    if (!s->name) return DQ_E_NOMEM;
    s->position = 0;
    if (t->begin) return answer(t->begin(t->user, name, dtype, ndim, shape, bytes), "begin", name);
    s->data = dq_alloc(sink->env, (size_t)bytes);
    return s->data ? DQ_OK : DQ_E_NOMEM;
}

static dq_status append(dq_sink *sink, const void *data, uint64_t bytes)
{
    host_sink *s = (host_sink *)sink;
    const dq_tensor_sink *t = &s->table;
    if (!s->data) return answer(t->append(t->user, data, bytes), "append", s->name);
    memcpy(s->data + s->position, data, (size_t)bytes);
    s->position += bytes;
    if (s->position < s->info.bytes) return DQ_OK;
    dq_status status = answer(
        t->add(t->user, s->name, s->info.dtype, s->info.ndim, s->info.shape, s->data, s->info.bytes), "add", s->name);
    forget_pieces(s);
    return status;
}

static dq_status set_metadata(dq_sink *sink, const char *key, const char *value)
{
    const dq_tensor_sink *t = &((host_sink *)sink)->table;
    return t->set_metadata ? answer(t->set_metadata(t->user, key, value), "set_metadata", key) : DQ_OK;
}

static dq_status finish(dq_sink *sink)
{
    const dq_tensor_sink *t = &((host_sink *)sink)->table;
    return t->finish ? answer(t->finish(t->user), "finish", NULL) : DQ_OK;
}

static void sink_free(dq_sink *sink)
{
    host_sink *s = (host_sink *)sink;
    forget_pieces(s);
    dq_free(s);
}

static const dq_sink_ops ops = {
    .add = add, .set_metadata = set_metadata, .finish = finish, .free = sink_free, .begin = begin, .append = append};

dq_status dq_host_sink_check(const dq_tensor_sink *table, dq_tensor_sink *out)
{
    dq_tensor_sink t;
    DQ_TRY(DQ_TAKE_STRUCT(&t, table, dq_tensor_sink, append));
    if (t.abi != DQ_TENSOR_SINK_ABI)
        return dq_fail(DQ_E_INVALID, "dq_tensor_sink: abi is %u, this library knows %u", t.abi, DQ_TENSOR_SINK_ABI);
    if (!t.add || !t.begin != !t.append)
        return dq_fail(DQ_E_INVALID, "dq_tensor_sink: add must be there, begin and append both or neither");
    *out = t;
    return DQ_OK;
}

dq_status dq_host_sink_open(dq_env *env, const dq_tensor_sink *table, dq_sink **out)
{
    dq_tensor_sink checked;
    DQ_TRY(dq_host_sink_check(table, &checked));
    host_sink *s = dq_calloc(env, 1, sizeof *s);
    if (!s) return DQ_E_NOMEM;
    s->base = (dq_sink){&ops, env};
    s->table = checked;
    *out = &s->base;
    return DQ_OK;
}

dq_status dq_model_save_to(dq_model *model, const dq_tensor_sink *table, const dq_cancel *cancel,
                           dq_progress_fn progress, void *user)
{
    DQ_ENTER_CONTEXT(dq_context_of_model(model), model && table);
    dq_model_card *card = dq_model_card_of(model);
    if (!card) return DQ_E_INVALID;
    dq_env *env = &dq_context_of_model(model)->env;
    dq_progress p = dq_progress_make(cancel, progress, user);
    dq_sink *sink = NULL;
    dq_saver *saver = NULL;
    DQ_TRY(dq_host_sink_open(env, table, &sink));
    DQ_TRY(dq_saver_open_sink(env, sink, &saver));
    dq_status status = dq_saver_finish(saver, model, NULL, card->provenance, &p);
    dq_saver_free(saver);
    return status;
}
