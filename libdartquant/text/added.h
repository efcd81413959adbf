/* Tokens added to a vocabulary: found in the text before anything else happens to it.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_ADDED_H
#define DQ_TEXT_ADDED_H

#include "text/bytes.h"
#include "text/parts.h"
#include "text/vocab.h"

typedef struct dq_added_token {
    char *text; /* as searched: normalized when `normalized` */
    size_t bytes;
    int32_t id;
    bool special, lstrip, rstrip, single_word, normalized;
} dq_added_token;

/* One search set: leftmost, then longest match. */
typedef struct dq_added_set {
    dq_name_map *map;     /* text -> index into tokens */
    size_t *lengths[256]; /* by first byte: distinct lengths, longest first */
    size_t length_count[256];
} dq_added_set;

typedef struct dq_added {
    dq_env *env;
    dq_added_token *tokens;
    size_t count;
    dq_added_set raw, normalized; /* searched before and after the normalizers */
} dq_added;

/* Copies `token`; its text is put through `normalizers` where it says normalized. */
dq_status dq_added_add(dq_added *added, const dq_added_token *token, const dq_chain *normalizers);
/* Builds the search sets: call once after the last add. */
dq_status dq_added_finish(dq_added *added);
void dq_added_clear(dq_added *added);
/* Cuts one text span of `in` at the tokens of a set and appends the pieces. */
dq_status dq_added_split(const dq_added *added, bool normalized, bool parse_special, const dq_bytes *text,
                         const dq_span *span, dq_pieces *out);

#endif
