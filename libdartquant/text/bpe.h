/* Models that build tokens by merging neighbours: byte pair encoding by merge rank (Sennrich et al. 2016, as in
 * `tokenizers`) and SentencePiece's BPE by token score (as in llama.cpp). SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_BPE_H
#define DQ_TEXT_BPE_H

#include "text/bytes.h"
#include "text/vocab.h"

/* (left id, right id) -> (rank, merged id), open addressing. */
typedef struct dq_merge {
    int32_t left, right; /* left < 0: free slot */
    uint32_t rank;
    int32_t id;
} dq_merge;

typedef struct dq_merges {
    dq_env *env;
    dq_merge *slots;
    size_t capacity; /* power of two, 0 = empty table */
    size_t count;
} dq_merges;

dq_status dq_merges_open(dq_env *env, size_t expected, dq_merges *out);
/* Of two rules for one pair the later one counts. `expected` rules fit. */
void dq_merges_put(dq_merges *merges, int32_t left, int32_t right, uint32_t rank, int32_t id);
/* Looks up the two parts and their concatenation; DQ_E_FORMAT names what is missing. */
dq_status dq_merges_add(dq_merges *merges, const dq_vocab *vocab, const char *left, size_t left_bytes,
                        const char *right, size_t right_bytes, uint32_t rank);
void dq_merges_clear(dq_merges *merges);

typedef struct dq_bpe {
    dq_merges merges;
    int32_t unk;         /* -1: unknown characters vanish */
    bool fuse_unk;       /* a run of unknown characters gives one unk */
    bool byte_fallback;  /* unknown characters become byte tokens where all of them exist */
    bool ignore_merges;  /* a word that is a token is taken whole */
    int32_t bytes[256];  /* byte tokens, -1 = missing */
    const float *scores; /* [vocab->size]: merge by score, `merges` unused (owned) */
    bool cut_at_mark;    /* no merge result has U+2581 behind another character: words can be tokenized alone */
} dq_bpe;

void dq_bpe_clear(dq_bpe *bpe);
/* Decides cut_at_mark once vocabulary and merges stand. */
void dq_bpe_find_cuts(dq_bpe *bpe, const dq_vocab *vocab);
/* Appends the ids of one word (valid UTF-8). */
dq_status dq_bpe_word(const dq_bpe *bpe, const dq_vocab *vocab, const char *word, size_t bytes, dq_id_list *out);

/* spm.c: the same by score. */
dq_status dq_spm_word(const dq_bpe *bpe, const dq_vocab *vocab, const char *word, size_t bytes, dq_id_list *out);

/* ---- the queue both use: smallest key first ---- */
typedef struct dq_candidate {
    uint64_t key; /* priority, then position */
    int32_t left, right;
    uint64_t payload; /* rank model: merged id; score model: bytes of the merged text */
} dq_candidate;

typedef struct dq_queue {
    dq_env *env;
    dq_candidate *heap;
    size_t count, capacity;
} dq_queue;

dq_status dq_queue_push(dq_queue *q, dq_candidate c);
dq_candidate dq_queue_pop(dq_queue *q); /* not empty */

/* Doubly linked symbols of one word. */
typedef struct dq_symbol {
    int32_t previous, next; /* -1 = none */
    int32_t id;             /* rank model */
    uint32_t length;        /* bytes; 0 = merged away */
    size_t start;           /* byte position in the word */
} dq_symbol;

#endif
