/* Text of a growing list of ids: whole characters only, held back where a stop text may begin.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_GENERATE_STREAM_H
#define DQ_GENERATE_STREAM_H

#include "text/tokenizer.h"

typedef struct dq_stops {
    char **text;
    int64_t count;
} dq_stops;

typedef struct dq_text_stream {
    char *text; /* NUL-terminated once there is any; NULL before */
    size_t bytes, shown;
    size_t prefix, read; /* ids before `read` are in the text; decoding starts at `prefix`, so that blanks stay */
} dq_text_stream;

/* Takes in ids[0, count), of which the first `prompt` are no part of the text. *stopped when a stop text is in it, which is
 * then cut off. `last`: nothing more comes. Afterwards text[shown, bytes) that may be shown ends at *end. */
dq_status dq_text_stream_take(dq_env *env, dq_text_stream *s, const dq_tokenizer *tokenizer, const dq_stops *stops,
                              const int32_t *ids, size_t count, bool last, bool *stopped, size_t *end);
void dq_text_stream_start(dq_text_stream *s, size_t prompt);
void dq_text_stream_free(dq_text_stream *s);

#endif
