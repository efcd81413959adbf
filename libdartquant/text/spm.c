/* SentencePiece's BPE over scored tokens, as llama.cpp runs it on GGUF vocabularies of kind "llama": neighbours whose
 * joint text is a token are merged by descending score, leftmost first; what is no token in the end falls apart into
 * byte tokens. SPDX-License-Identifier: Apache-2.0 */
#include "base/half.h"
#include "base/status.h"
#include "text/bpe.h"
#include "text/utf8.h"

/* Ascending order of this key is descending order of the score (IEEE 754 bits made monotonic). */
static uint64_t key_of(float score, int32_t left)
{
    uint32_t u = dq_f32_bits(score == 0.0f ? 0.0f : score);
    uint32_t ascending = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (uint64_t)~ascending << 32 | (uint32_t)left;
}

static dq_status push_pair(const dq_bpe *bpe, const dq_vocab *vocab, const char *word, dq_queue *q,
                           const dq_symbol *symbols, int32_t left)
{
    int32_t right = left >= 0 ? symbols[left].next : -1;
    if (right < 0) return DQ_OK;
    size_t bytes = (size_t)symbols[left].length + symbols[right].length;
    int32_t id = dq_vocab_id(vocab, word + symbols[left].start, bytes);
    if (id < 0) return DQ_OK;
    return dq_queue_push(q, (dq_candidate){key_of(bpe->scores[id], left), left, right, bytes});
}

static dq_status merge(const dq_bpe *bpe, const dq_vocab *vocab, const char *word, dq_symbol *symbols, int32_t count)
{
    dq_queue q = {.env = vocab->env};
    dq_status status = DQ_OK;
    for (int32_t i = 0; i + 1 < count; i++) DQ_GO(push_pair(bpe, vocab, word, &q, symbols, i));
    while (q.count) {
        dq_candidate c = dq_queue_pop(&q);
        dq_symbol *left = &symbols[c.left], *right = &symbols[c.right];
        if (left->length == 0 || right->length == 0 || left->length + (uint64_t)right->length != c.payload) continue;
        left->length += right->length;
        right->length = 0;
        left->next = right->next;
        if (right->next >= 0) symbols[right->next].previous = c.left;
        DQ_GO(push_pair(bpe, vocab, word, &q, symbols, left->previous));
        DQ_GO(push_pair(bpe, vocab, word, &q, symbols, c.left));
    }
done:
    dq_free(q.heap);
    return status;
}

static dq_status emit(const dq_bpe *bpe, const dq_vocab *vocab, const char *text, size_t bytes, dq_id_list *out)
{
    int32_t id = dq_vocab_id(vocab, text, bytes);
    if (id >= 0) return dq_id_list_add(out, id);
    for (size_t i = 0; i < bytes; i++) {
        id = bpe->bytes[(unsigned char)text[i]];
        if (id < 0) id = dq_vocab_id(vocab, text + i, 1);
        if (id < 0) id = bpe->unk;
        if (id < 0)
            return dq_fail(DQ_E_TEXT, "the vocabulary has no token for byte 0x%02X and no unknown token",
                           (unsigned char)text[i]);
        DQ_TRY(dq_id_list_add(out, id));
    }
    return DQ_OK;
}

dq_status dq_spm_word(const dq_bpe *bpe, const dq_vocab *vocab, const char *word, size_t bytes, dq_id_list *out)
{
    if (bytes == 0) return DQ_OK;
    if (bytes > INT32_MAX / 2)
        return dq_fail(DQ_E_TEXT, "a single word of %zu bytes is too long for the tokenizer", bytes);
    dq_symbol *symbols = dq_alloc(vocab->env, bytes * sizeof *symbols);
    if (!symbols) return DQ_E_NOMEM;
    int32_t count = 0;
    for (size_t i = 0; i < bytes;) {
        int32_t cp;
        uint32_t n = (uint32_t)dq_utf8_next(word + i, &cp);
        symbols[count] = (dq_symbol){count - 1, count + 1, -1, n, i};
        count++;
        i += n;
    }
    symbols[count - 1].next = -1;
    dq_status status = merge(bpe, vocab, word, symbols, count);
    for (int32_t i = 0; i >= 0 && status == DQ_OK; i = symbols[i].next)
        status = emit(bpe, vocab, word + symbols[i].start, symbols[i].length, out);
    dq_free(symbols);
    return status;
}
