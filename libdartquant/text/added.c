/* SPDX-License-Identifier: Apache-2.0 */
#include "text/added.h"

#include <stdlib.h>

#include "base/status.h"
#include "text/utf8.h"

dq_status dq_added_add(dq_added *added, const dq_added_token *token, const dq_chain *normalizers)
{
    if (token->bytes == 0) return DQ_OK;
    dq_bytes text = {.env = added->env};
    dq_status status = DQ_OK;
    DQ_GO(dq_bytes_add(&text, token->text, token->bytes));
    if (token->normalized) DQ_GO(dq_normalize(normalizers, &text));
    if ((added->count & (added->count - 1)) == 0) { /* full at every power of two */
        dq_added_token *bigger =
            dq_realloc(added->env, added->tokens, (added->count ? added->count * 2 : 1) * sizeof *bigger);
        if (!bigger) DQ_GO(DQ_E_NOMEM);
        added->tokens = bigger;
    }
    added->tokens[added->count] = *token;
    added->tokens[added->count].text = text.data;
    added->tokens[added->count].bytes = text.size;
    added->count++;
    return DQ_OK;
done:
    dq_bytes_clear(&text);
    return status;
}

static dq_status add_length(dq_env *env, dq_added_set *set, unsigned char first, size_t bytes)
{
    size_t n = set->length_count[first], i = 0;
    while (i < n && set->lengths[first][i] > bytes) i++;
    if (i < n && set->lengths[first][i] == bytes) return DQ_OK;
    size_t *bigger = dq_realloc(env, set->lengths[first], (n + 1) * sizeof *bigger);
    if (!bigger) return DQ_E_NOMEM;
    memmove(bigger + i + 1, bigger + i, (n - i) * sizeof *bigger);
    bigger[i] = bytes;
    set->lengths[first] = bigger;
    set->length_count[first]++;
    return DQ_OK;
}

dq_status dq_added_finish(dq_added *added)
{
    DQ_TRY(dq_name_map_new(added->env, 16, &added->raw.map));
    DQ_TRY(dq_name_map_new(added->env, 16, &added->normalized.map));
    for (size_t i = 0; i < added->count; i++) {
        const dq_added_token *t = &added->tokens[i];
        if (t->bytes == 0) continue;
        dq_added_set *set = t->normalized ? &added->normalized : &added->raw;
        dq_status status = dq_name_map_add(set->map, t->text, t->bytes, (int64_t)i);
        if (status == DQ_E_INVALID) continue; /* two tokens normalized to one text: the first counts */
        DQ_TRY(status);
        DQ_TRY(add_length(added->env, set, (unsigned char)t->text[0], t->bytes));
    }
    return DQ_OK;
}

static void clear_set(dq_added_set *set)
{
    dq_name_map_free(set->map);
    for (int b = 0; b < 256; b++) dq_free(set->lengths[b]);
    *set = (dq_added_set){0};
}

void dq_added_clear(dq_added *added)
{
    clear_set(&added->raw);
    clear_set(&added->normalized);
    for (size_t i = 0; i < added->count; i++) dq_free(added->tokens[i].text);
    dq_free(added->tokens);
    *added = (dq_added){.env = added->env};
}

static const dq_added_token *match_at(const dq_added *added, const dq_added_set *set, const char *s, size_t n)
{
    unsigned char first = (unsigned char)s[0];
    for (size_t i = 0; i < set->length_count[first]; i++) {
        size_t bytes = set->lengths[first][i];
        int64_t index = bytes <= n ? dq_name_map_get(set->map, s, bytes) : -1;
        if (index >= 0) return &added->tokens[index];
    }
    return NULL;
}

/* single_word: no word character on either side. */
static bool stands_alone(const char *s, size_t n, size_t start, size_t end)
{
    int32_t cp = 0;
    if (start > 0) {
        dq_utf8_previous(s, start, &cp);
        if (dq_char_is_word(cp)) return false;
    }
    if (end < n) {
        dq_utf8_next(s + end, &cp);
        if (dq_char_is_word(cp)) return false;
    }
    return true;
}

static size_t spaces_before(const char *s, size_t from, size_t start)
{
    int32_t cp;
    while (start > from) {
        int n = dq_utf8_previous(s, start, &cp);
        if (!dq_char_is_space(cp)) break;
        start -= (size_t)n;
    }
    return start < from ? from : start;
}

static size_t spaces_after(const char *s, size_t n, size_t end)
{
    int32_t cp;
    while (end < n) {
        int length = dq_utf8_next(s + end, &cp);
        if (!dq_char_is_space(cp)) break;
        end += (size_t)length;
    }
    return end;
}

dq_status dq_added_split(const dq_added *added, bool normalized, bool parse_special, const dq_bytes *text,
                         const dq_span *span, dq_pieces *out)
{
    const dq_added_set *set = normalized ? &added->normalized : &added->raw;
    const char *s = span->length ? text->data + span->start : "";
    size_t n = span->length, from = 0;
    for (size_t i = 0; i < n;) {
        const dq_added_token *t = set->length_count[(unsigned char)s[i]] ? match_at(added, set, s + i, n - i) : NULL;
        if (!t) {
            i++;
            continue;
        }
        size_t start = i, end = i + t->bytes;
        i = end; /* a match that is turned down below still uses up its text, as in `tokenizers` */
        if (t->special && !parse_special) continue;
        if (t->single_word && !stands_alone(s, n, start, end)) continue;
        if (start < from) continue; /* swallowed by the rstrip of the token before */
        if (t->lstrip) start = spaces_before(s, from, start);
        if (t->rstrip) end = spaces_after(s, n, end);
        if (start > from) DQ_TRY(dq_pieces_add(out, span->start + from, start - from, -1, span->first && from == 0));
        DQ_TRY(dq_pieces_add(out, span->start + start, end - start, t->id, false));
        from = end;
    }
    if (n > from) DQ_TRY(dq_pieces_add(out, span->start + from, n - from, -1, span->first && from == 0));
    return DQ_OK;
}
