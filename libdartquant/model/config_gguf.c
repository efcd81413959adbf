/* Architecture from GGUF metadata. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <string.h>

#include "base/status.h"
#include "dartquant/backend.h"
#include "io/formats.h"
#include "model/arch.h"

enum { KEY_SIZE = 128 };

typedef struct reader {
    const dq_source *gguf;
    char prefix[64]; /* general.architecture */
    char key[KEY_SIZE];
} reader;

static const char *key(reader *r, const char *name)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->prefix, name);
    return r->key;
}

static dq_status integer(reader *r, const char *name, bool required, int64_t *out)
{
    if (!dq_gguf_has(r->gguf, key(r, name)) && !required) return DQ_OK;
    return dq_gguf_int(r->gguf, r->key, out);
}

static dq_status number(reader *r, const char *name, bool required, double *out)
{
    if (!dq_gguf_has(r->gguf, key(r, name)) && !required) return DQ_OK;
    return dq_gguf_double(r->gguf, r->key, out);
}

static dq_status read_sizes(reader *r, dq_arch *a)
{
    DQ_TRY(integer(r, "embedding_length", true, &a->hidden));
    DQ_TRY(integer(r, "feed_forward_length", true, &a->intermediate));
    DQ_TRY(integer(r, "block_count", true, &a->layers));
    DQ_TRY(integer(r, "attention.head_count", true, &a->heads));
    a->kv_heads = a->heads;
    DQ_TRY(integer(r, "attention.head_count_kv", false, &a->kv_heads));
    DQ_TRY(integer(r, "context_length", true, &a->max_positions));
    DQ_TRY(number(r, "attention.layer_norm_rms_epsilon", true, &a->norm_eps));
    DQ_TRY(integer(r, "attention.sliding_window", false, &a->window));
    DQ_TRY(integer(r, "attention.key_length", false, &a->head_dim));
    if (a->head_dim == 0) {
        if (a->heads <= 0 || a->hidden % a->heads != 0)
            return dq_fail(DQ_E_FORMAT,
                           "%lld heads do not divide embedding_length %lld and attention.key_length is "
                           "not given",
                           (long long)a->heads, (long long)a->hidden);
        a->head_dim = a->hidden / a->heads;
    }
    int64_t value_dim = a->head_dim, rotary = a->head_dim, experts = 0;
    DQ_TRY(integer(r, "attention.value_length", false, &value_dim));
    DQ_TRY(integer(r, "rope.dimension_count", false, &rotary));
    DQ_TRY(integer(r, "expert_count", false, &experts));
    if (value_dim != a->head_dim)
        return dq_fail(DQ_E_UNSUPPORTED, "value heads of %lld next to key heads of %lld are not supported",
                       (long long)value_dim, (long long)a->head_dim);
    if (rotary != a->head_dim)
        return dq_fail(DQ_E_UNSUPPORTED, "RoPE on %lld of %lld dimensions of a head is not supported",
                       (long long)rotary, (long long)a->head_dim);
    if (experts != 0)
        return dq_fail(DQ_E_UNSUPPORTED, "mixtures of experts are not supported (%lld experts)", (long long)experts);
    return DQ_OK;
}

static dq_status read_rope(reader *r, dq_arch *a)
{
    const char *type = "none";
    size_t bytes = 4;
    a->rope_theta = 10000.0;
    DQ_TRY(number(r, "rope.freq_base", false, &a->rope_theta));
    if (dq_gguf_has(r->gguf, key(r, "rope.scaling.type"))) DQ_TRY(dq_gguf_string(r->gguf, r->key, &type, &bytes));
    double factor = 0.0, old_factor = 0.0;
    DQ_TRY(number(r, "rope.scaling.factor", false, &factor));
    DQ_TRY(number(r, "rope.scale_linear", false, &old_factor));
    if (bytes == 6 && memcmp(type, "linear", 6) == 0) {
        a->rope_scaling = DQ_ROPE_LINEAR;
        a->rope_factor = factor;
    } else if (bytes != 4 || memcmp(type, "none", 4) != 0) {
        return dq_fail(DQ_E_UNSUPPORTED, "RoPE scaling type \"%.*s\" is not supported (known: none, linear)",
                       (int)(bytes < 64 ? bytes : 64), type);
    } else if (old_factor != 0.0 && old_factor != 1.0) {
        a->rope_scaling = DQ_ROPE_LINEAR;
        a->rope_factor = old_factor;
    }
    /* Llama 3 files carry the divisors of the frequencies as a tensor instead. */
    if (dq_source_find(r->gguf, "rope_freqs.weight") >= 0) {
        if (a->rope_scaling != DQ_ROPE_PLAIN)
            return dq_fail(DQ_E_UNSUPPORTED, "rope_freqs.weight together with linear RoPE scaling is not supported");
        a->rope_scaling = DQ_ROPE_TABLE;
    }
    return DQ_OK;
}

static dq_status token_id(const dq_source *gguf, const char *name, int32_t *out)
{
    int64_t id = -1;
    if (dq_gguf_has(gguf, name)) DQ_TRY(dq_gguf_int(gguf, name, &id));
    if (id < -1 || id > INT32_MAX) return dq_fail(DQ_E_FORMAT, "%s = %lld is not a token id", name, (long long)id);
    *out = (int32_t)id;
    return DQ_OK;
}

static dq_status read_arch(const dq_source *gguf, dq_arch *a)
{
    const char *name;
    size_t bytes;
    reader r = {.gguf = gguf};
    DQ_TRY(dq_gguf_string(gguf, "general.architecture", &name, &bytes));
    snprintf(r.prefix, sizeof r.prefix, "%.*s", (int)(bytes < 63 ? bytes : 63), name);
    a->family = dq_family_by_gguf(r.prefix);
    if (!a->family)
        return dq_fail(DQ_E_UNSUPPORTED, "GGUF architecture \"%s\" is not supported (known: %s)", r.prefix,
                       dq_family_gguf_list());
    DQ_TRY(read_sizes(&r, a));
    DQ_TRY(read_rope(&r, a));
    int64_t embed;
    DQ_TRY(dq_source_need(gguf, "token_embd.weight", &embed));
    a->vocab = dq_info_rows(&gguf->tensors[embed]);
    a->activation = DQ_ACT_SILU;
    a->tied = dq_source_find(gguf, "output.weight") < 0;
    a->attention_bias = dq_source_find(gguf, "blk.0.attn_q.bias") >= 0;
    a->mlp_bias = dq_source_find(gguf, "blk.0.ffn_gate.bias") >= 0;
    DQ_TRY(token_id(gguf, "tokenizer.ggml.bos_token_id", &a->bos_id));
    DQ_TRY(token_id(gguf, "tokenizer.ggml.eos_token_id", &a->eos_id));
    return dq_arch_check(a, NULL);
}

dq_status dq_arch_from_gguf(const dq_source *gguf, dq_arch *out)
{
    dq_arch arch;
    memset(&arch, 0, sizeof arch);
    dq_status status = read_arch(gguf, &arch);
    if (status != DQ_OK) return gguf->count > 0 ? dq_error_in_file(status, gguf->tensors[0].file) : status;
    *out = arch;
    return DQ_OK;
}
