/* Search patterns of tokenizer files: literal strings and regular expressions (PCRE2 standing in for Oniguruma).
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_PATTERN_H
#define DQ_TEXT_PATTERN_H

#include "base/env.h"

typedef struct dq_pattern dq_pattern;

/* `file` and `where` (JSON path or table name) only serve error texts. */
dq_status dq_pattern_literal(dq_env *env, const char *text, size_t bytes, dq_pattern **out);
dq_status dq_pattern_regex(dq_env *env, const char *regex, size_t bytes, const char *file, const char *where,
                           dq_pattern **out);
void dq_pattern_free(dq_pattern *pattern);

/* One walk over the matches in s[0..n), valid UTF-8. The pattern sees nothing outside of it. */
typedef struct dq_matcher {
    const dq_pattern *pattern;
    void *data; /* match data of PCRE2 */
    const char *s;
    size_t n, at;
    size_t last_end; /* end of the previous match; SIZE_MAX = none */
} dq_matcher;

dq_status dq_matcher_open(dq_matcher *m, const dq_pattern *pattern);
void dq_matcher_close(dq_matcher *m);
void dq_matcher_start(dq_matcher *m, const char *s, size_t n);
/* *found = false at the end. Matches do not overlap; an empty match right after a match is passed over. A regular
 * expression that needs more steps than PCRE2's match limit allows is an error (DQ_E_TEXT). */
dq_status dq_matcher_next(dq_matcher *m, size_t *start, size_t *end, bool *found);

#endif
