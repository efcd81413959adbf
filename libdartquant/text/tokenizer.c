/* Making and closing tokenizers. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "text/internal.h"

dq_status dq_tokenizer_new(dq_env *env, dq_tokenizer **out)
{
    dq_tokenizer *t = dq_calloc(env, 1, sizeof *t);
    if (!t) return DQ_E_NOMEM;
    t->env = t->vocab.env = t->added.env = env;
    t->normalizers.env = t->pretokenizers.env = t->decoders.env = env;
    t->bpe.merges.env = t->post.before.env = t->post.after.env = env;
    t->bpe.unk = t->bos = t->eos = -1;
    for (int b = 0; b < 256; b++) t->bpe.bytes[b] = -1;
    t->kind = "byte-level BPE";
    *out = t;
    return DQ_OK;
}

static dq_status check_ids(const dq_tokenizer *t, const dq_id_list *ids)
{
    for (size_t i = 0; i < ids->count; i++)
        if (ids->data[i] < 0 || ids->data[i] >= t->vocab.size || !t->vocab.tokens[ids->data[i]].text)
            return dq_fail(DQ_E_FORMAT, "the post-processor adds id %d, which is not in the vocabulary of %lld tokens",
                           ids->data[i], (long long)t->vocab.size);
    return DQ_OK;
}

dq_status dq_tokenizer_finish(dq_tokenizer *t)
{
    DQ_TRY(check_ids(t, &t->post.before));
    DQ_TRY(check_ids(t, &t->post.after));
    DQ_TRY(dq_added_finish(&t->added));
    if (t->bos < 0 && t->post.before.count) t->bos = t->post.before.data[0];
    dq_bpe_find_cuts(&t->bpe, &t->vocab);
    return DQ_OK;
}

dq_tokenizer *dq_tokenizer_retain(const dq_tokenizer *t)
{
    dq_tokenizer *held = (dq_tokenizer *)(uintptr_t)t; /* only the count changes */
    atomic_fetch_add(&held->shared, 1);
    return held;
}

void dq_tokenizer_destroy(dq_tokenizer *t)
{
    if (!t || atomic_fetch_sub(&t->shared, 1) > 0) return;
    dq_chain_clear(&t->normalizers);
    dq_chain_clear(&t->pretokenizers);
    dq_chain_clear(&t->decoders);
    dq_post_clear(&t->post);
    dq_bpe_clear(&t->bpe);
    dq_added_clear(&t->added);
    dq_vocab_clear(&t->vocab);
    dq_named_clear(&t->templates);
    dq_named_clear(&t->specials);
    dq_free(t);
}

int64_t dq_tokenizer_size(const dq_tokenizer *t) { return t->vocab.size; }
int32_t dq_tokenizer_bos_id(const dq_tokenizer *t) { return t->bos; }
int32_t dq_tokenizer_eos_id(const dq_tokenizer *t) { return t->eos; }
const char *dq_tokenizer_kind(const dq_tokenizer *t) { return t->kind; }

const char *dq_tokenizer_chat_template(const dq_tokenizer *t, const char *name)
{
    return dq_named_get(&t->templates, name);
}

const char *dq_tokenizer_special_text(const dq_tokenizer *t, size_t index, const char **key)
{
    if (index >= t->specials.count) return NULL;
    *key = t->specials.items[index].name;
    return t->specials.items[index].text;
}
