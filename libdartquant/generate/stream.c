/* Streaming of text. SPDX-License-Identifier: Apache-2.0 */
#include "generate/stream.h"

#include <string.h>

#include "base/status.h"

enum { CONTEXT = 4 /* ids before the first new one that it is decoded with */ };

void dq_text_stream_start(dq_text_stream *s, size_t prompt)
{
    *s = (dq_text_stream){.prefix = prompt > CONTEXT ? prompt - CONTEXT : 0, .read = prompt};
}

void dq_text_stream_free(dq_text_stream *s)
{
    dq_free(s->text);
    *s = (dq_text_stream){0};
}

/* Models may have more rows than the tokenizer has words: those ids have no text. */
static dq_status decode(dq_env *env, const dq_tokenizer *tokenizer, const int32_t *ids, size_t count, char **out,
                        size_t *bytes)
{
    int32_t *known = dq_alloc(env, (count + 1) * sizeof *known);
    size_t n = 0;
    if (!known) return DQ_E_NOMEM;
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= 0 && ids[i] < dq_tokenizer_size(tokenizer)) known[n++] = ids[i];
    dq_status status = dq_tokenizer_decode_ids(tokenizer, known, n, true, out, bytes);
    dq_free(known);
    return status;
}

static bool ends_open(const char *text, size_t bytes)
{
    return bytes >= 3 && memcmp(text + bytes - 3, "\xef\xbf\xbd", 3) == 0;
}

static dq_status append(dq_env *env, dq_text_stream *s, const char *text, size_t bytes)
{
    char *longer = dq_realloc(env, s->text, s->bytes + bytes + 1);
    if (!longer) return DQ_E_NOMEM;
    memcpy(longer + s->bytes, text, bytes);
    s->text = longer;
    s->bytes += bytes;
    s->text[s->bytes] = '\0';
    return DQ_OK;
}

/* Bytes at the end that may be the beginning of a stop text. */
static size_t open_stop(const dq_text_stream *s, const dq_stops *stops)
{
    size_t most = 0;
    for (int64_t i = 0; i < stops->count; i++) {
        size_t n = strlen(stops->text[i]);
        for (size_t k = n - 1 < s->bytes ? n - 1 : s->bytes; k > most; k--)
            if (memcmp(s->text + s->bytes - k, stops->text[i], k) == 0) most = k;
    }
    return most;
}

/* The first stop text in what was not shown yet, or NULL. */
static const char *find_stop(const dq_text_stream *s, const dq_stops *stops)
{
    const char *first = NULL;
    for (int64_t i = 0; s->text && i < stops->count; i++) {
        const char *at = memmem(s->text + s->shown, s->bytes - s->shown, stops->text[i], strlen(stops->text[i]));
        if (at && (!first || at < first)) first = at;
    }
    return first;
}

dq_status dq_text_stream_take(dq_env *env, dq_text_stream *s, const dq_tokenizer *tokenizer, const dq_stops *stops,
                              const int32_t *ids, size_t count, bool last, bool *stopped, size_t *end)
{
    char *before = NULL, *after = NULL;
    size_t known = 0, bytes = 0;
    dq_status status;
    DQ_GO(decode(env, tokenizer, ids + s->prefix, s->read - s->prefix, &before, &known));
    DQ_GO(decode(env, tokenizer, ids + s->prefix, count - s->prefix, &after, &bytes));
    if (bytes > known && (last || !ends_open(after, bytes))) {
        DQ_GO(append(env, s, after + known, bytes - known));
        s->prefix = s->read;
        s->read = count;
    }
    const char *stop = find_stop(s, stops);
    *stopped = stop != NULL;
    if (stop) {
        s->bytes = (size_t)(stop - s->text);
        s->text[s->bytes] = '\0';
    }
    *end = s->bytes - (stop || last ? 0 : open_stop(s, stops));
    if (*end < s->shown) *end = s->shown;
done:
    dq_free(before);
    dq_free(after);
    return status;
}
