/* SPDX-License-Identifier: Apache-2.0 */
#include "text/bpe.h"

#include "base/status.h"
#include "text/utf8.h"

static size_t slot_of(const dq_merges *m, int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    size_t i = (size_t)(h >> 32) & (m->capacity - 1);
    while (m->slots[i].left >= 0 && (m->slots[i].left != left || m->slots[i].right != right))
        i = (i + 1) & (m->capacity - 1);
    return i;
}

static const dq_merge *merge_of(const dq_merges *m, int32_t left, int32_t right)
{
    if (m->count == 0) return NULL;
    const dq_merge *found = &m->slots[slot_of(m, left, right)];
    return found->left >= 0 ? found : NULL;
}

dq_status dq_merges_open(dq_env *env, size_t expected, dq_merges *out)
{
    dq_merges m = {.env = env, .capacity = 16};
    while (m.capacity / 2 < expected && m.capacity < SIZE_MAX / 4) m.capacity *= 2;
    size_t bytes;
    if (!dq_mul_ok(m.capacity, sizeof *m.slots, &bytes)) return dq_fail(DQ_E_NOMEM, "%zu merges do not fit", expected);
    m.slots = dq_alloc(env, bytes);
    if (!m.slots) return DQ_E_NOMEM;
    memset(m.slots, 0xff, bytes);
    *out = m;
    return DQ_OK;
}

void dq_merges_put(dq_merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    dq_merge *slot = &m->slots[slot_of(m, left, right)];
    if (slot->left < 0) m->count++;
    *slot = (dq_merge){left, right, rank, id};
}

static int32_t concatenated(const dq_vocab *vocab, const char *left, size_t left_bytes, const char *right,
                            size_t right_bytes, dq_env *env, dq_status *status)
{
    char local[256];
    size_t bytes = left_bytes + right_bytes;
    char *text = bytes <= sizeof local ? local : dq_alloc(env, bytes);
    if (!text) {
        *status = DQ_E_NOMEM;
        return -1;
    }
    memcpy(text, left, left_bytes);
    memcpy(text + left_bytes, right, right_bytes);
    int32_t id = dq_vocab_id(vocab, text, bytes);
    if (text != local) dq_free(text);
    return id;
}

dq_status dq_merges_add(dq_merges *m, const dq_vocab *vocab, const char *left, size_t left_bytes, const char *right,
                        size_t right_bytes, uint32_t rank)
{
    dq_status status = DQ_OK;
    int32_t a = dq_vocab_id(vocab, left, left_bytes), b = dq_vocab_id(vocab, right, right_bytes);
    int32_t id = concatenated(vocab, left, left_bytes, right, right_bytes, m->env, &status);
    DQ_TRY(status);
    if (a < 0 || b < 0 || id < 0)
        return dq_fail(DQ_E_FORMAT, "merge %u ('%.*s' + '%.*s') needs a token that is not in the vocabulary: %s", rank,
                       (int)(left_bytes < 60 ? left_bytes : 60), left, (int)(right_bytes < 60 ? right_bytes : 60),
                       right,
                       a < 0   ? "the left part"
                       : b < 0 ? "the right part"
                               : "the result");
    dq_merges_put(m, a, b, rank, id);
    return DQ_OK;
}

void dq_merges_clear(dq_merges *m)
{
    dq_free(m->slots);
    *m = (dq_merges){.env = m->env};
}

void dq_bpe_clear(dq_bpe *bpe)
{
    dq_merges_clear(&bpe->merges);
    dq_free((void *)(uintptr_t)bpe->scores);
    bpe->scores = NULL;
}

/* Whether U+2581 stands behind another character in the token. */
static bool mark_inside(const dq_token *t)
{
    static const char mark[] = "\xe2\x96\x81";
    if (!t->text) return false;
    for (size_t i = 3; i + 3 <= t->bytes; i++)
        if (memcmp(t->text + i, mark, 3) == 0 && memcmp(t->text + i - 3, mark, 3) != 0) return true;
    for (size_t i = 1; i < 3 && i + 3 <= t->bytes; i++)
        if (memcmp(t->text + i, mark, 3) == 0) return true;
    return false;
}

void dq_bpe_find_cuts(dq_bpe *bpe, const dq_vocab *vocab)
{
    bpe->cut_at_mark = !bpe->ignore_merges && dq_vocab_id(vocab, "\xe2\x96\x81", 3) >= 0;
    if (bpe->scores)
        for (int64_t i = 0; i < vocab->size && bpe->cut_at_mark; i++)
            bpe->cut_at_mark = !mark_inside(&vocab->tokens[i]);
    else
        for (size_t i = 0; i < bpe->merges.capacity && bpe->cut_at_mark; i++)
            if (bpe->merges.slots[i].left >= 0)
                bpe->cut_at_mark = !mark_inside(&vocab->tokens[bpe->merges.slots[i].id]);
}

/* ---- queue ---- */

dq_status dq_queue_push(dq_queue *q, dq_candidate c)
{
    if (q->count == q->capacity) {
        size_t capacity = q->capacity ? q->capacity * 2 : 64;
        dq_candidate *bigger = dq_realloc(q->env, q->heap, capacity * sizeof *bigger);
        if (!bigger) return DQ_E_NOMEM;
        q->heap = bigger;
        q->capacity = capacity;
    }
    size_t i = q->count++;
    for (; i > 0 && q->heap[(i - 1) / 2].key > c.key; i = (i - 1) / 2) q->heap[i] = q->heap[(i - 1) / 2];
    q->heap[i] = c;
    return DQ_OK;
}

dq_candidate dq_queue_pop(dq_queue *q)
{
    dq_candidate top = q->heap[0], last = q->heap[--q->count];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= q->count) break;
        if (child + 1 < q->count && q->heap[child + 1].key < q->heap[child].key) child++;
        if (q->heap[child].key >= last.key) break;
        q->heap[i] = q->heap[child];
        i = child;
    }
    q->heap[i] = last;
    return top;
}

/* ---- ranks ---- */

/* A word being merged: short ones live on the stack. */
enum { SHORT_WORD = 64 };

static void add_symbol(dq_symbol *symbols, int32_t *count, int32_t id)
{
    symbols[*count] = (dq_symbol){*count - 1, *count + 1, id, 1, 0};
    (*count)++;
}

/* The ids a word starts from: its characters, byte tokens or unk. At most one symbol per byte. */
static int32_t first_symbols(const dq_bpe *bpe, const dq_vocab *vocab, const char *word, size_t bytes,
                             dq_symbol *symbols)
{
    int32_t count = 0;
    bool pending = false; /* an unk that further unknown characters may join */
    for (size_t i = 0; i < bytes;) {
        int32_t cp;
        size_t n = (size_t)dq_utf8_next(word + i, &cp);
        int32_t id = dq_vocab_id(vocab, word + i, n);
        bool fallback = id < 0 && bpe->byte_fallback;
        for (size_t k = 0; k < n && fallback; k++) fallback = bpe->bytes[(unsigned char)word[i + k]] >= 0;
        if (id >= 0) {
            if (pending) add_symbol(symbols, &count, bpe->unk);
            pending = false;
            add_symbol(symbols, &count, id);
        } else if (fallback) { /* a pending unk stays behind the bytes, as in `tokenizers` */
            for (size_t k = 0; k < n; k++) add_symbol(symbols, &count, bpe->bytes[(unsigned char)word[i + k]]);
        } else if (bpe->unk >= 0) {
            if (pending && !bpe->fuse_unk) add_symbol(symbols, &count, bpe->unk);
            pending = true;
        }
        i += n;
    }
    if (pending) add_symbol(symbols, &count, bpe->unk);
    if (count) symbols[count - 1].next = -1;
    return count;
}

static dq_status push_pair(const dq_bpe *bpe, dq_queue *q, const dq_symbol *symbols, int32_t left)
{
    int32_t right = left >= 0 ? symbols[left].next : -1;
    if (right < 0) return DQ_OK;
    const dq_merge *m = merge_of(&bpe->merges, symbols[left].id, symbols[right].id);
    if (!m) return DQ_OK;
    return dq_queue_push(q, (dq_candidate){(uint64_t)m->rank << 32 | (uint32_t)left, left, right, (uint64_t)m->id});
}

/* Joins symbol `left` with its successor. */
static void join(dq_symbol *symbols, int32_t left, int32_t id)
{
    int32_t right = symbols[left].next;
    symbols[left].id = id;
    symbols[left].next = symbols[right].next;
    if (symbols[right].next >= 0) symbols[symbols[right].next].previous = left;
    symbols[right].length = 0;
}

static dq_status merge_long(const dq_bpe *bpe, dq_env *env, dq_symbol *symbols, int32_t count)
{
    dq_queue q = {.env = env};
    dq_status status = DQ_OK;
    for (int32_t i = 0; i + 1 < count; i++) DQ_GO(push_pair(bpe, &q, symbols, i));
    while (q.count) {
        dq_candidate c = dq_queue_pop(&q);
        if (symbols[c.left].length == 0 || symbols[c.left].next < 0) continue;
        const dq_merge *m = merge_of(&bpe->merges, symbols[c.left].id, symbols[symbols[c.left].next].id);
        if (!m || (uint64_t)m->id != c.payload) continue; /* the pair has changed since */
        join(symbols, c.left, m->id);
        DQ_GO(push_pair(bpe, &q, symbols, symbols[c.left].previous));
        DQ_GO(push_pair(bpe, &q, symbols, c.left));
    }
done:
    dq_free(q.heap);
    return status;
}

/* The same for a few symbols: look for the lowest rank, leftmost first. */
static void merge_short(const dq_bpe *bpe, dq_symbol *symbols, int32_t count)
{
    const dq_merge *pair[SHORT_WORD];
    int32_t id[SHORT_WORD];
    for (int32_t i = 0; i < count; i++) id[i] = symbols[i].id;
    for (int32_t i = 0; i + 1 < count; i++) pair[i] = merge_of(&bpe->merges, id[i], id[i + 1]);
    for (;;) {
        int32_t best = -1;
        for (int32_t i = 0; i + 1 < count; i++)
            if (pair[i] && (best < 0 || pair[i]->rank < pair[best]->rank)) best = i;
        if (best < 0) break;
        id[best] = pair[best]->id;
        count--;
        memmove(id + best + 1, id + best + 2, (size_t)(count - best - 1) * sizeof *id);
        memmove(pair + best, pair + best + 1, (size_t)(count - best - 1) * sizeof *pair);
        if (best > 0) pair[best - 1] = merge_of(&bpe->merges, id[best - 1], id[best]);
        if (best + 1 < count) pair[best] = merge_of(&bpe->merges, id[best], id[best + 1]);
    }
    for (int32_t i = 0; i < count; i++) symbols[i] = (dq_symbol){i - 1, i + 1 < count ? i + 1 : -1, id[i], 1, 0};
}

dq_status dq_bpe_word(const dq_bpe *bpe, const dq_vocab *vocab, const char *word, size_t bytes, dq_id_list *out)
{
    if (bytes == 0) return DQ_OK;
    int32_t whole = bpe->ignore_merges ? dq_vocab_id(vocab, word, bytes) : -1;
    if (whole >= 0) return dq_id_list_add(out, whole);
    if (bytes > INT32_MAX / 2)
        return dq_fail(DQ_E_TEXT, "a single word of %zu bytes is too long for the tokenizer", bytes);
    dq_symbol local[SHORT_WORD];
    dq_symbol *symbols = local;
    dq_status status = DQ_OK;
    if (bytes + 1 > SHORT_WORD) {
        symbols = dq_alloc(vocab->env, (bytes + 1) * sizeof *symbols);
        if (!symbols) return DQ_E_NOMEM;
    }
    int32_t count = first_symbols(bpe, vocab, word, bytes, symbols);
    if (count <= SHORT_WORD)
        merge_short(bpe, symbols, count);
    else
        DQ_GO(merge_long(bpe, vocab->env, symbols, count));
    for (int32_t i = count ? 0 : -1; i >= 0; i = symbols[i].next) DQ_GO(dq_id_list_add(out, symbols[i].id));
done:
    if (symbols != local) dq_free(symbols);
    return status;
}
