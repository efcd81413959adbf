/* What stands beside the shards of a saved model. SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "model/saver.h"

static bool is_shard(const char *name)
{
    return fnmatch("model*.safetensors", name, 0) == 0 || strcmp(name, "model.safetensors.index.json") == 0;
}

bool dq_saver_holds_shards(const char *path)
{
    bool found = false;
    DIR *dir = opendir(path);
    if (!dir) return false;
    for (struct dirent *e; !found && (e = readdir(dir));) found = is_shard(e->d_name);
    closedir(dir);
    return found;
}

/* The same to a sink, as text beside the tensors. */
static dq_status hand_over_json(dq_saver *s, const char *key, json_t *o)
{
    char *text = NULL;
    dq_status status =
        o ? dq_json_dump(s->env, o, true, &text) : dq_fail(DQ_E_NOMEM, "out of memory while writing %s", key);
    if (status == DQ_OK) status = s->files->ops->set_metadata(s->files, key, text);
    dq_free(text);
    json_decref(o);
    return status;
}

static dq_status write_json(dq_saver *s, const char *file, json_t *o)
{
    if (!s->dir) return hand_over_json(s, file, o);
    char *text = NULL, *path = dq_path_join(s->env, s->dir, file);
    dq_status status = !path ? DQ_E_NOMEM : o ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory while writing %s", file);
    if (status == DQ_OK) status = dq_json_dump(s->env, o, true, &text);
    bool replaces = status == DQ_OK && dq_path_exists(path);
    if (status == DQ_OK) status = dq_file_write(s->env, path, text, strlen(text));
    if (status == DQ_OK && !replaces) s->beside[s->beside_count++] = file;
    dq_free(text);
    dq_free(path);
    json_decref(o);
    return status;
}

static json_t *rope_config(const dq_arch *a)
{
    switch (a->rope_scaling) {
        case DQ_ROPE_LINEAR: return json_pack("{s:s, s:f}", "rope_type", "linear", "factor", a->rope_factor);
        case DQ_ROPE_LLAMA3:
            return json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", a->rope_factor,
                             "low_freq_factor", a->rope_low_freq, "high_freq_factor", a->rope_high_freq,
                             "original_max_position_embeddings", (json_int_t)a->rope_original_positions);
        case DQ_ROPE_TABLE: return json_pack("{s:s}", "rope_type", "dartquant_table");
        default: return json_null();
    }
}

/* OPT calls some sizes by other names, and says what a LLaMA need not. */
static int opt_config(const dq_arch *a, json_t *o)
{
    static const char *const foreign[] = {"intermediate_size", "hidden_act",     "num_key_value_heads",
                                          "head_dim",          "rms_norm_eps",   "rope_theta",
                                          "rope_scaling",      "attention_bias", "mlp_bias"};
    int bad = json_object_set(o, "ffn_dim", json_object_get(o, "intermediate_size"));
    bad |= json_object_set(o, "activation_function", json_object_get(o, "hidden_act"));
    bad |= json_object_set_new(o, "word_embed_proj_dim", json_integer((json_int_t)a->hidden));
    bad |= json_object_set_new(o, "do_layer_norm_before", json_true());
    bad |= json_object_set_new(o, "enable_bias", json_true());
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) json_object_del(o, foreign[i]);
    return bad;
}

json_t *dq_hf_config_json(const dq_arch *a, const char *dtype)
{
    json_t *o = dq_arch_to_json(a);
    static const char *const ours[] = {"architecture",          "rope_type",
                                       "rope_factor",           "rope_low_freq_factor",
                                       "rope_high_freq_factor", "rope_original_positions"};
    for (size_t i = 0; o && i < sizeof ours / sizeof *ours; i++) json_object_del(o, ours[i]);
    bool mistral = a->window && !a->family->partial_windows;
    int bad = !o || json_object_set_new(o, "model_type", json_string(mistral ? "mistral" : a->family->name));
    bad |= !o || json_object_set_new(o, "architectures",
                                     json_pack("[s]", mistral ? "MistralForCausalLM" : a->family->hf_class));
    bad |= !o || json_object_set_new(o, "torch_dtype", json_string(dtype));
    bad |= !o || json_object_set_new(o, "rope_scaling", rope_config(a));
    if (o && a->bos_id < 0) json_object_set_new(o, "bos_token_id", json_null());
    if (o && a->eos_id < 0) json_object_set_new(o, "eos_token_id", json_null());
    if (o && a->window == 0) json_object_del(o, "sliding_window");
    if (o && a->family->qkv_bias) json_object_del(o, "attention_bias"), json_object_del(o, "mlp_bias");
    if (o && a->family->layer_norm) bad |= opt_config(a, o);
    if (o && a->window && a->family->partial_windows) {
        bad |= json_object_set_new(o, "use_sliding_window", json_true());
        bad |= json_object_set_new(o, "max_window_layers", json_integer(0));
    }
    if (!bad) return o;
    json_decref(o);
    return NULL;
}

/* A type of model that nobody else has: other programs refuse it instead of computing nonsense. */
static int disown(json_t *o)
{
    int bad = json_object_set_new(o, "quantization_config", json_pack("{s:s}", "quant_method", "dartquant"));
    bad |= json_object_set(o, "base_model_type", json_object_get(o, "model_type"));
    return bad | json_object_set_new(o, "model_type", json_string("dartquant"));
}

dq_status dq_saver_write_config(dq_saver *s, const dq_model *m, const dq_scheme *scheme)
{
    bool online = false;
    if (m->rotations) online = m->rotations->r3.n || m->rotations->r4.n || m->rotations->r2_mode == DQ_R2_ONLINE;
    if (m->arch.family->layer_norm && m->has_r1)
        online = true; /* RMS norms, where the family's class has layer norms */
    json_t *o = dq_hf_config_json(&m->arch, "float32");
    if (o && (scheme || online) && disown(o) != 0) {
        json_decref(o);
        o = NULL;
    }
    return write_json(s, "config.json", o);
}

const char *const dq_tokenizer_files[] = {"tokenizer.json",
                                          "tokenizer_config.json",
                                          "special_tokens_map.json",
                                          "generation_config.json",
                                          "tokenizer.model",
                                          "vocab.json",
                                          "merges.txt",
                                          "added_tokens.json",
                                          "chat_template.jinja",
                                          DQ_TOKENIZER_GGUF,
                                          NULL};

static dq_status copy_file(dq_saver *s, const char *dir, const char *file)
{
    dq_map map = {0};
    char *from = dq_path_join(s->env, dir, file), *to = dq_path_join(s->env, s->dir, file);
    dq_status status = from && to ? DQ_OK : DQ_E_NOMEM;
    if (status == DQ_OK && dq_path_exists(from)) {
        bool replaces = dq_path_exists(to);
        status = dq_map_open(s->env, from, &map);
        if (status == DQ_OK) status = dq_file_write(s->env, to, map.data, map.size);
        if (status == DQ_OK && !replaces) s->beside[s->beside_count++] = file;
        dq_map_close(&map);
    }
    dq_free(from);
    dq_free(to);
    return status;
}

dq_status dq_saver_write_tokenizer(dq_saver *s, const dq_model *m)
{
    const dq_model *root = dq_model_root(m);
    if (root->gguf_names && strcmp(root->source->format, "gguf") == 0) {
        char *path = dq_path_join(s->env, s->dir, DQ_TOKENIZER_GGUF);
        bool replaces = path && dq_path_exists(path);
        dq_status status = path ? dq_gguf_write_metadata(root->source, path) : DQ_E_NOMEM;
        if (status == DQ_OK && !replaces) s->beside[s->beside_count++] = DQ_TOKENIZER_GGUF;
        dq_free(path);
        return status;
    }
    if (!root->path || !dq_path_is_dir(root->path)) return DQ_OK;
    for (const char *const *file = dq_tokenizer_files; *file; file++) DQ_TRY(copy_file(s, root->path, *file));
    return DQ_OK;
}

/* Reads back what was written: the digest of the manifest, and the proof that the shards open. */
static dq_status read_back(dq_saver *s, dq_digest *out)
{
    dq_source *source;
    DQ_TRY(dq_safetensors_open_dir(s->env, s->dir, &source));
    dq_status status = dq_digest_source(source, out);
    dq_source_free(source);
    return status;
}

static dq_status written_content(dq_saver *s, json_t **out)
{
    char hash[17];
    dq_digest d;
    if (s->dir)
        DQ_TRY(read_back(s, &d));
    else
        d = dq_digest_sink_result(s->files);
    snprintf(hash, sizeof hash, "%016" PRIx64, d.sum);
    *out =
        json_pack("{s:I, s:I, s:s}", "tensors", (json_int_t)d.count, "bytes", (json_int_t)d.bytes, "fingerprint", hash);
    return *out ? DQ_OK : dq_fail(DQ_E_NOMEM, "out of memory while writing the manifest");
}

dq_status dq_saver_write_manifest(dq_saver *s, dq_model *m, const dq_scheme *scheme, json_t *provenance)
{
    json_t *content;
    const char *fingerprint;
    DQ_TRY(dq_model_fingerprint(m, &fingerprint));
    DQ_TRY(written_content(s, &content));
    /* Version 2 has clip ratios, version 3 KVQuant, which older readers would pass over. */
    int version = scheme && dq_scheme_has_levels(scheme) ? 3 : scheme && scheme->clips ? 2 : 1;
    json_t *rotations = m->rotations ? dq_rotations_to_json(m->rotations, m->has_r1) : json_null();
    json_t *o = json_pack("{s:s, s:i, s:s, s:s, s:o, s:b, s:b, s:o, s:o, s:o, s:O?}", "format", "dartquant model",
                          "version", version, "library", DQ_VERSION_STRING, "source_fingerprint", fingerprint, "model",
                          dq_arch_to_json(&m->arch), "fused", (int)m->fused, "centered_embedding", (int)m->centered,
                          "quantization", scheme ? dq_scheme_to_json(scheme) : json_null(), "rotations", rotations,
                          "content", content, "provenance", provenance);
    if (o && m->arch.family->layer_norm && json_object_set_new(o, "layer_norm", json_boolean(m->layer_norm)) != 0) {
        json_decref(o);
        o = NULL;
    }
    return write_json(s, DQ_MANIFEST, o);
}

static void remove_file(const dq_saver *s, const char *name)
{
    char path[PATH_MAX];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", s->dir, name) < sizeof path) unlink(path);
}

/* A folder that is being overwritten is no model until the new manifest stands. */
dq_status dq_saver_remove_manifest(dq_saver *s)
{
    char *path = dq_path_join(s->env, s->dir, DQ_MANIFEST);
    if (!path) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot remove the old manifest"), path);
    dq_free(path);
    return status;
}

/* After a failure: takes back what already stands under its final name and replaced nothing. Needs no memory, which may
 * be what failed. */
void dq_saver_take_back(dq_saver *s)
{
    for (int i = 0; i < s->beside_count; i++) remove_file(s, s->beside[i]);
    DIR *dir = s->shards_visible && s->fresh ? opendir(s->dir) : NULL;
    if (!dir) return;
    for (struct dirent *e; (e = readdir(dir));)
        if (is_shard(e->d_name)) remove_file(s, e->d_name);
    closedir(dir);
}
