/* The way of a text through the parts of a tokenizer, and back. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "text/internal.h"
#include "text/utf8.h"

/* ---- words already seen in this text ---- */
typedef struct word_cache {
    dq_name_map *map; /* word -> index into `ends`, keys lie in the text */
    dq_id_list ids;   /* ids of all words one after the other */
    size_t *ends;
    size_t count, capacity;
} word_cache;

/* Long words hardly come twice, and a map without end would cost more than it saves. */
enum { CACHE_WORD_BYTES = 64, CACHE_WORDS = 1 << 18 };

static dq_status cache_add(dq_env *env, word_cache *c, const char *word, size_t bytes, const int32_t *ids, size_t count)
{
    if (c->count == c->capacity) {
        size_t capacity = c->capacity ? c->capacity * 2 : 1024;
        size_t *bigger = dq_realloc(env, c->ends, capacity * sizeof *bigger);
        if (!bigger) return DQ_E_NOMEM;
        c->ends = bigger;
        c->capacity = capacity;
    }
    DQ_TRY(dq_id_list_grow(&c->ids, count));
    DQ_TRY(dq_name_map_add(c->map, word, bytes, (int64_t)c->count));
    if (count) memcpy(c->ids.data + c->ids.count, ids, count * sizeof *ids);
    c->ids.count += count;
    c->ends[c->count++] = c->ids.count;
    return DQ_OK;
}

static dq_status encode_word(const dq_tokenizer *t, word_cache *c, const char *word, size_t bytes, dq_id_list *out)
{
    bool small = bytes <= CACHE_WORD_BYTES;
    int64_t known = small ? dq_name_map_get(c->map, word, bytes) : -1;
    if (known >= 0) {
        size_t from = known ? c->ends[known - 1] : 0, count = c->ends[known] - from;
        DQ_TRY(dq_id_list_grow(out, count));
        if (count) memcpy(out->data + out->count, c->ids.data + from, count * sizeof *out->data);
        out->count += count;
        return DQ_OK;
    }
    size_t before = out->count;
    DQ_TRY(t->bpe.scores ? dq_spm_word(&t->bpe, &t->vocab, word, bytes, out)
                         : dq_bpe_word(&t->bpe, &t->vocab, word, bytes, out));
    if (!small || c->count >= CACHE_WORDS) return DQ_OK;
    return cache_add(t->env, c, word, bytes, out->data ? out->data + before : NULL, out->count - before);
}

/* A span without pre-tokenizer can be a whole book: where no merge crosses the start of a word, words go alone. */
static dq_status encode_span(const dq_tokenizer *t, word_cache *c, const char *s, size_t n, dq_id_list *out)
{
    static const char mark[] = "\xe2\x96\x81";
    size_t from = 0;
    for (size_t i = 1; t->bpe.cut_at_mark && i + 3 <= n; i++) {
        const char *next = memchr(s + i, mark[0], n - i);
        if (!next) break;
        i = (size_t)(next - s);
        if (i + 3 > n || memcmp(next, mark, 3) != 0) continue;
        if (i >= 3 && memcmp(next - 3, mark, 3) == 0) continue;
        DQ_TRY(encode_word(t, c, s + from, i - from, out));
        from = i;
    }
    return n > from ? encode_word(t, c, s + from, n - from, out) : DQ_OK;
}

static dq_status encode_pieces(const dq_tokenizer *t, const dq_pieces *p, dq_id_list *out)
{
    word_cache c = {.ids = {.env = t->env}};
    dq_status status;
    DQ_GO(dq_name_map_new(t->env, 512, &c.map));
    for (size_t i = 0; i < p->count; i++) {
        const dq_span *span = &p->spans[i];
        if (span->id >= 0)
            DQ_GO(dq_id_list_add(out, span->id));
        else
            DQ_GO(encode_span(t, &c, p->text.data + span->start, span->length, out));
    }
done:
    dq_name_map_free(c.map);
    dq_free(c.ids.data);
    dq_free(c.ends);
    return status;
}

/* Added tokens of the raw text, normalizers on the rest, added tokens of the normalized text. */
static dq_status find_added(const dq_tokenizer *t, bool parse_special, dq_pieces *p)
{
    dq_pieces raw, out;
    dq_pieces_init(&raw, t->env);
    dq_pieces_init(&out, t->env);
    dq_span all = {0, p->text.size, -1, true};
    dq_bytes text = {.env = t->env};
    dq_status status = dq_added_split(&t->added, false, parse_special, &p->text, &all, &raw);
    for (size_t i = 0; i < raw.count && status == DQ_OK; i++) {
        const dq_span *span = &raw.spans[i];
        if (span->id >= 0) {
            status = dq_pieces_add(&out, out.text.size, 0, span->id, false);
            continue;
        }
        text.size = 0;
        DQ_GO(dq_bytes_add(&text, p->text.data + span->start, span->length));
        DQ_GO(dq_normalize(&t->normalizers, &text));
        dq_span moved = {out.text.size, text.size, -1, span->first};
        DQ_GO(dq_bytes_add(&out.text, text.data, text.size));
        status = dq_added_split(&t->added, true, parse_special, &out.text, &moved, &out);
    }
    if (status != DQ_OK) goto done;
    dq_pieces swap = *p;
    *p = out;
    out = swap;
done:
    dq_bytes_clear(&text);
    dq_pieces_clear(&raw);
    dq_pieces_clear(&out);
    return status;
}

static dq_status add_all(dq_id_list *out, const dq_id_list *ids)
{
    for (size_t i = 0; i < ids->count; i++) DQ_TRY(dq_id_list_add(out, ids->data[i]));
    return DQ_OK;
}

dq_status dq_tokenizer_encode_text(const dq_tokenizer *t, const char *text, size_t bytes, bool add_special,
                                   bool parse_special, dq_ids *out)
{
    dq_pieces p;
    dq_id_list ids = {.env = t->env};
    dq_status status;
    dq_pieces_init(&p, t->env);
    DQ_GO(dq_utf8_add_lossy(&p.text, text, bytes));
    DQ_GO(find_added(t, parse_special, &p));
    DQ_GO(dq_pretokenize(&t->pretokenizers, &p));
    if (add_special) DQ_GO(add_all(&ids, &t->post.before));
    DQ_GO(encode_pieces(t, &p, &ids));
    if (add_special) DQ_GO(add_all(&ids, &t->post.after));
    DQ_GO(dq_id_list_grow(&ids, 1)); /* a valid pointer for no ids, too */
    *out = (dq_ids){ids.data, ids.count};
    ids.data = NULL;
done:
    dq_free(ids.data);
    dq_pieces_clear(&p);
    return status;
}

dq_status dq_tokenizer_decode_ids(const dq_tokenizer *t, const int32_t *ids, size_t count, bool skip_special,
                                  char **out, size_t *bytes)
{
    dq_pieces p;
    dq_bytes text = {.env = t->env};
    dq_status status = DQ_OK;
    dq_pieces_init(&p, t->env);
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= t->vocab.size || !t->vocab.tokens[ids[i]].text)
            DQ_GO(dq_fail(DQ_E_TEXT, "id %d at position %zu is not in the vocabulary of %lld tokens", ids[i], i,
                          (long long)t->vocab.size));
        const dq_token *token = &t->vocab.tokens[ids[i]];
        if (skip_special && token->special) continue;
        /* without a decoder tokens are separated by spaces, as in `tokenizers` */
        if (t->decoders.count == 0 && p.count) DQ_GO(dq_bytes_add(&p.text, " ", 1));
        DQ_GO(dq_pieces_add(&p, p.text.size, token->shown_bytes, -1, false));
        DQ_GO(dq_bytes_add(&p.text, token->shown, token->shown_bytes));
    }
    DQ_GO(dq_decode(&t->decoders, &p));
    DQ_GO(dq_bytes_add(&text, p.text.data, p.text.size));
    *out = text.data;
    if (bytes) *bytes = text.size;
    text.data = NULL;
done:
    dq_bytes_clear(&text);
    dq_pieces_clear(&p);
    return status;
}
