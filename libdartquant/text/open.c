/* Finding the tokenizer of a folder or file. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>

#include "base/status.h"
#include "io/file.h"
#include "io/formats.h"
#include "text/internal.h"

/* Whether dir/name exists; its path in *path. */
static dq_status probe(dq_env *env, const char *dir, const char *name, char **path, bool *there)
{
    *path = dq_path_join(env, dir, name);
    if (!*path) return DQ_E_NOMEM;
    *there = dq_path_exists(*path);
    return DQ_OK;
}

/* OPT puts </s> in front of every text. Its dictionary (fairseq's: <s> <pad> </s> <unk> come first) tells it where no
 * configuration does; GPT-2's has no such tokens. */
static int32_t gpt2_bos(const dq_tokenizer *t, const dq_tokenizer_config *c)
{
    const char *text = c->bos ? c->bos : "</s>";
    int32_t id = dq_vocab_id(&t->vocab, text, strlen(text));
    if (c->add_bos >= 0) return c->add_bos == 1 ? id : -1;
    bool dictionary = dq_vocab_id(&t->vocab, "<s>", 3) == 0 && dq_vocab_id(&t->vocab, "<pad>", 5) == 1 &&
                      dq_vocab_id(&t->vocab, "</s>", 4) == 2;
    return c->opt || dictionary ? id : -1;
}

static dq_status open_gpt2(dq_env *env, const char *dir, const char *vocab, const char *merges, dq_tokenizer **out)
{
    dq_tokenizer_config config = {0};
    dq_tokenizer *t = NULL;
    dq_status status;
    DQ_GO(dq_tokenizer_config_read(env, dir, &config));
    DQ_GO(dq_tokenizer_from_gpt2(env, vocab, merges, -1, &t));
    int32_t bos = gpt2_bos(t, &config);
    if (bos >= 0) DQ_GO(dq_id_list_add(&t->post.before, bos));
    if (bos >= 0)
        t->bos = bos;
    else if (config.bos)
        t->bos = dq_vocab_id(&t->vocab, config.bos, strlen(config.bos));
    if (config.eos) t->eos = dq_vocab_id(&t->vocab, config.eos, strlen(config.eos));
    dq_tokenizer_take_chat(t, &config);
    *out = t;
    t = NULL;
done:
    dq_tokenizer_destroy(t);
    dq_tokenizer_config_clear(&config);
    return status;
}

static dq_status open_gguf(dq_env *env, const char *path, dq_tokenizer **out)
{
    dq_source *gguf = NULL;
    DQ_TRY(dq_gguf_open(env, path, &gguf));
    dq_status status = dq_tokenizer_from_gguf(gguf, out);
    dq_source_free(gguf);
    return dq_error_in_file(status, path);
}

static dq_status open_dir(dq_env *env, const char *dir, dq_tokenizer **out)
{
    char *json = NULL, *vocab = NULL, *merges = NULL, *model = NULL, *gguf = NULL;
    bool has_json = false, has_vocab = false, has_merges = false, has_model = false, has_gguf = false;
    dq_status status;
    DQ_GO(probe(env, dir, "tokenizer.json", &json, &has_json));
    DQ_GO(probe(env, dir, "vocab.json", &vocab, &has_vocab));
    DQ_GO(probe(env, dir, "merges.txt", &merges, &has_merges));
    DQ_GO(probe(env, dir, "tokenizer.model", &model, &has_model));
    DQ_GO(probe(env, dir, "tokenizer.gguf", &gguf, &has_gguf)); /* in models we saved from GGUF files */
    if (has_json)
        status = dq_tokenizer_from_json(env, json, out);
    else if (has_vocab && has_merges)
        status = open_gpt2(env, dir, vocab, merges, out);
    else if (has_gguf)
        status = open_gguf(env, gguf, out);
    else if (has_model)
        status = dq_error_in_file(dq_fail(DQ_E_UNSUPPORTED,
                                          "a SentencePiece model is not read; convert it to tokenizer.json "
                                          "(transformers: AutoTokenizer.from_pretrained(dir).save_pretrained(dir))"),
                                  model);
    else
        status = dq_error_in_file(dq_fail(DQ_E_NOTFOUND,
                                          "the folder has no tokenizer: looked for tokenizer.json, vocab.json "
                                          "with merges.txt, tokenizer.gguf, tokenizer.model"),
                                  dir);
done:
    dq_free(json);
    dq_free(vocab);
    dq_free(merges);
    dq_free(model);
    dq_free(gguf);
    return status;
}

static bool is_gguf(const char *path)
{
    char magic[4] = "";
    FILE *f = fopen(path, "rbe");
    if (!f) return false;
    bool yes = fread(magic, 1, 4, f) == 4 && memcmp(magic, "GGUF", 4) == 0;
    fclose(f);
    return yes;
}

dq_status dq_tokenizer_open_path(dq_env *env, const char *path, dq_tokenizer **out)
{
    if (!dq_path_exists(path)) return dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "no such file or folder"), path);
    if (dq_path_is_dir(path)) return open_dir(env, path, out);
    if (!is_gguf(path)) return dq_tokenizer_from_json(env, path, out);
    return open_gguf(env, path, out);
}
