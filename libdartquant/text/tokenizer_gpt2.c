/* vocab.json + merges.txt, the files of GPT-2 and OPT. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "io/file.h"
#include "io/json.h"
#include "text/internal.h"
#include "text/utf8.h"

enum { MAX_FILE = 256 << 20 };

static dq_status add_line(const dq_vocab *vocab, const char *line, size_t n, uint32_t rank, dq_merges *out)
{
    const char *gap = memchr(line, ' ', n);
    size_t left = gap ? (size_t)(gap - line) : 0;
    if (!gap || left == 0 || left + 1 == n || memchr(gap + 1, ' ', n - left - 1))
        return dq_fail(DQ_E_FORMAT, "line '%.*s' is not two tokens separated by one space", (int)(n < 80 ? n : 80),
                       line);
    return dq_merges_add(out, vocab, line, left, gap + 1, n - left - 1, rank);
}

dq_status dq_merges_read_text(dq_env *env, const dq_vocab *vocab, const char *path, dq_merges *out)
{
    char *text = NULL;
    size_t bytes = 0, lines = 1;
    dq_merges merges = {.env = env};
    dq_status status;
    DQ_GO(dq_file_read(env, path, MAX_FILE, &text, &bytes));
    for (size_t i = 0; i < bytes; i++) lines += text[i] == '\n';
    DQ_GO(dq_merges_open(env, lines, &merges));
    uint32_t rank = 0;
    for (size_t at = 0; at < bytes;) {
        const char *end = memchr(text + at, '\n', bytes - at);
        size_t n = end ? (size_t)(end - (text + at)) : bytes - at, next = at + n + 1;
        if (n && text[at + n - 1] == '\r') n--;
        if (n && !(n >= 8 && memcmp(text + at, "#version", 8) == 0)) {
            status = add_line(vocab, text + at, n, rank++, &merges);
            if (status != DQ_OK) {
                dq_error_at_byte(dq_error_in_file(status, path), at);
                goto done;
            }
        }
        at = next;
    }
    *out = merges;
    merges.slots = NULL;
done:
    dq_merges_clear(&merges);
    dq_free(text);
    return status;
}

/* Tokens that these vocabularies treat as special wherever they stand. */
static dq_status add_specials(dq_tokenizer *t)
{
    static const char *const names[] = {"<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int32_t id = dq_vocab_id(&t->vocab, names[i], strlen(names[i]));
        if (id < 0) continue;
        dq_added_token token = {(char *)(uintptr_t)names[i], strlen(names[i]), id, true, false, false, false, false};
        t->vocab.tokens[id].special = true;
        DQ_TRY(dq_added_add(&t->added, &token, &t->normalizers));
    }
    return DQ_OK;
}

dq_status dq_tokenizer_from_gpt2(dq_env *env, const char *vocab_path, const char *merges_path, int32_t bos,
                                 dq_tokenizer **out)
{
    dq_json_at at = {.env = env, .file = vocab_path, .where = "$"};
    json_t *root = NULL;
    dq_tokenizer *t = NULL;
    dq_status status;
    DQ_GO(dq_tokenizer_new(env, &t));
    DQ_GO(dq_json_load(env, vocab_path, MAX_FILE, &root));
    DQ_GO(dq_vocab_read_json(&at, root, 0, 0, &t->vocab));
    DQ_GO(dq_merges_read_text(env, &t->vocab, merges_path, &t->bpe.merges));
    t->bpe.unk = dq_vocab_id(&t->vocab, "<unk>", 5);
    DQ_GO(dq_pretokenizers_add_bytelevel(&t->pretokenizers, false, true));
    DQ_GO(dq_decoders_add_bytelevel(&t->decoders));
    DQ_GO(add_specials(t));
    t->eos = dq_vocab_id(&t->vocab, "<|endoftext|>", 13);
    if (t->eos < 0) t->eos = dq_vocab_id(&t->vocab, "</s>", 4);
    if (bos >= 0) {
        DQ_GO(dq_id_list_add(&t->post.before, bos));
        t->bos = bos;
    }
    DQ_GO(dq_error_in_file(dq_tokenizer_finish(t), vocab_path));
    *out = t;
    t = NULL;
done:
    dq_tokenizer_destroy(t);
    json_decref(root);
    return status;
}
