/* Pre-tokenizers of tokenizer.json. Most are splits by a pattern. SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "text/parts.h"
#include "text/utf8.h"

enum { SPLIT, BYTE_LEVEL, METASPACE };
/* What happens with the matches of a split (`invert`: matches and gaps change places). */
enum { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS, BEHAVIORS };
static const char *const behaviors[BEHAVIORS] = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                                                 "Contiguous"};
enum { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER };

/* The split of GPT-2 (encoder.py of openai/gpt-2). */
static const char gpt2_regex[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Pre-tokenizers without options that are splits by a fixed expression. */
static const struct {
    const char *name, *regex;
    int behavior;
    bool invert;
} fixed_splits[] = {
    {"Whitespace", "\\w+|[^\\w\\s]+", REMOVED, true},
    {"WhitespaceSplit", "\\s", REMOVED, false},
};

static dq_status add_regex_split(dq_chain *chain, const char *regex, int behavior, bool invert, const char *file,
                                 const char *where)
{
    dq_step step = {.kind = SPLIT, .behavior = behavior, .flag = invert};
    DQ_TRY(dq_pattern_regex(chain->env, regex, strlen(regex), file, where, &step.pattern));
    return dq_chain_add(chain, step);
}

dq_status dq_pretokenizers_add_split(dq_chain *chain, const char *regex, const char *file, const char *where)
{
    return add_regex_split(chain, regex, ISOLATED, false, file, where);
}

dq_status dq_pretokenizers_add_bytelevel(dq_chain *chain, bool prefix_space, bool use_regex)
{
    dq_step step = {.kind = BYTE_LEVEL, .behavior = ISOLATED, .flag = prefix_space};
    if (use_regex)
        DQ_TRY(dq_pattern_regex(chain->env, gpt2_regex, strlen(gpt2_regex), NULL, "GPT-2 split", &step.pattern));
    return dq_chain_add(chain, step);
}

static dq_status read_behavior(const dq_json_at *at, const json_t *json, int *out)
{
    const char *text = NULL;
    DQ_TRY(dq_at_string(at, json, "behavior", true, &text, NULL));
    for (int i = 0; i < BEHAVIORS; i++) {
        if (strcmp(text, behaviors[i]) != 0) continue;
        *out = i;
        return DQ_OK;
    }
    return dq_at_fail(at, DQ_E_UNSUPPORTED, "split behavior '%.60s' is not supported", text);
}

static dq_status read_split(const dq_json_at *at, const json_t *json, dq_chain *chain)
{
    dq_step step = {.kind = SPLIT};
    DQ_TRY(read_behavior(at, json, &step.behavior));
    DQ_TRY(dq_at_bool(at, json, "invert", false, &step.flag));
    DQ_TRY(dq_at_pattern(at, json, "pattern", &step.pattern));
    return dq_chain_add(chain, step);
}

static dq_status read_metaspace(const dq_json_at *at, const json_t *json, dq_chain *chain)
{
    const char *mark = "\xe2\x96\x81", *scheme = NULL;
    size_t bytes = 3;
    bool legacy = true;
    dq_step step = {.kind = METASPACE};
    DQ_TRY(dq_at_string(at, json, "replacement", true, &mark, &bytes));
    int32_t cp;
    if (bytes == 0 || (size_t)dq_utf8_next(mark, &cp) != bytes)
        return dq_at_fail(at, DQ_E_FORMAT, "'replacement' must be one character");
    DQ_TRY(dq_at_bool(at, json, "add_prefix_space", true, &legacy)); /* files of tokenizers < 0.15 */
    DQ_TRY(dq_at_bool(at, json, "split", true, &step.flag2));
    DQ_TRY(dq_at_string(at, json, "prepend_scheme", false, &scheme, NULL));
    if (!scheme) scheme = legacy ? "always" : "never";
    if (strcmp(scheme, "always") == 0)
        step.behavior = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        step.behavior = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        step.behavior = PREPEND_NEVER;
    else
        return dq_at_fail(at, DQ_E_UNSUPPORTED, "prepend_scheme '%.60s' is not supported", scheme);
    DQ_TRY(dq_step_set_text(at->env, &step, mark, bytes));
    return dq_chain_add(chain, step);
}

static dq_status read_step(const dq_json_at *at, const json_t *json, const char *type, dq_chain *chain)
{
    bool flag, use_regex;
    for (size_t i = 0; i < sizeof fixed_splits / sizeof *fixed_splits; i++)
        if (strcmp(type, fixed_splits[i].name) == 0)
            return add_regex_split(chain, fixed_splits[i].regex, fixed_splits[i].behavior, fixed_splits[i].invert,
                                   at->file, at->where);
    if (strcmp(type, "ByteLevel") == 0) {
        DQ_TRY(dq_at_bool(at, json, "add_prefix_space", true, &flag));
        DQ_TRY(dq_at_bool(at, json, "use_regex", true, &use_regex));
        return dq_pretokenizers_add_bytelevel(chain, flag, use_regex);
    }
    if (strcmp(type, "Split") == 0) return read_split(at, json, chain);
    if (strcmp(type, "Metaspace") == 0) return read_metaspace(at, json, chain);
    if (strcmp(type, "Digits") == 0) {
        DQ_TRY(dq_at_bool(at, json, "individual_digits", false, &flag));
        return add_regex_split(chain, "\\p{N}", flag ? ISOLATED : CONTIGUOUS, false, at->file, at->where);
    }
    if (strcmp(type, "Punctuation") == 0) {
        int behavior = ISOLATED;
        if (json_object_get(json, "behavior")) DQ_TRY(read_behavior(at, json, &behavior));
        return add_regex_split(chain, "[\\p{P}$+<=>\\^`|~]", behavior, false, at->file, at->where);
    }
    return dq_at_fail(at, DQ_E_UNSUPPORTED, "pre-tokenizer '%.60s' is not supported", type);
}

dq_status dq_pretokenizers_read(const dq_json_at *at, const json_t *json, dq_chain *chain)
{
    return dq_chain_read(at, json, "pretokenizers", read_step, chain);
}

/* The pieces of one span while its matches and gaps arrive from left to right. */
typedef struct cut {
    dq_pieces *out;
    const dq_span *span;
    int behavior;
    size_t start, end;  /* piece not yet written */
    bool open, matched; /* whether there is one; whether its last part was a match */
} cut;

static dq_status cut_flush(cut *c)
{
    bool open = c->open && c->end > c->start;
    c->open = false;
    if (!open) return DQ_OK;
    return dq_pieces_add(c->out, c->span->start + c->start, c->end - c->start, -1, c->span->first && c->start == 0);
}

/* One match or gap [start, end). The joins are those of `tokenizers`: of several matches in a row only the one beside
 * a gap is merged with it. */
static dq_status cut_part(cut *c, size_t start, size_t end, bool match)
{
    bool join = false;
    if (c->behavior == CONTIGUOUS)
        join = c->open && match == c->matched;
    else if (c->behavior == MERGED_WITH_PREVIOUS)
        join = c->open && match && !c->matched;
    else if (c->behavior == MERGED_WITH_NEXT)
        join = c->open && !match && c->matched;
    if (!join) {
        DQ_TRY(cut_flush(c));
        c->start = start;
    }
    c->end = end;
    c->open = !(c->behavior == REMOVED && match);
    c->matched = match;
    return DQ_OK;
}

static dq_status split_span(const dq_step *step, dq_matcher *m, const dq_pieces *in, const dq_span *span,
                            dq_pieces *out)
{
    cut c = {.out = out, .span = span, .behavior = step->behavior};
    size_t from = 0, start, end;
    bool found;
    dq_matcher_start(m, in->text.data + span->start, span->length);
    for (;;) {
        DQ_TRY(dq_matcher_next(m, &start, &end, &found));
        if (!found) break;
        if (start > from) DQ_TRY(cut_part(&c, from, start, step->flag));
        DQ_TRY(cut_part(&c, start, end, !step->flag));
        from = end;
    }
    if (span->length > from) DQ_TRY(cut_part(&c, from, span->length, step->flag));
    return cut_flush(&c);
}

/* Rebuilds the list of spans; the text stays. */
static dq_status split_all(const dq_step *step, dq_pieces *pieces)
{
    dq_pieces out;
    dq_matcher m;
    dq_pieces_init(&out, pieces->text.env);
    DQ_TRY(dq_matcher_open(&m, step->pattern));
    dq_status status = DQ_OK;
    for (size_t i = 0; i < pieces->count && status == DQ_OK; i++) {
        const dq_span *span = &pieces->spans[i];
        status = span->id >= 0 ? dq_pieces_add(&out, span->start, span->length, span->id, span->first)
                               : split_span(step, &m, pieces, span, &out);
    }
    dq_matcher_close(&m);
    if (status != DQ_OK) {
        dq_pieces_clear(&out);
        return status;
    }
    dq_free(pieces->spans);
    pieces->spans = out.spans;
    pieces->count = out.count;
    pieces->capacity = out.capacity;
    return DQ_OK;
}

static dq_status bytelevel_span(const dq_pieces *in, const dq_span *span, dq_pieces *out)
{
    size_t start = out->text.size;
    DQ_TRY(dq_bytes_reserve(&out->text, 2 * span->length));
    for (size_t i = 0; i < span->length; i++)
        out->text.size +=
            (size_t)dq_bytelevel_char((unsigned char)in->text.data[span->start + i], out->text.data + out->text.size);
    return dq_pieces_add(out, start, out->text.size - start, -1, span->first);
}

static dq_status prefix_span(const dq_pieces *in, const dq_span *span, dq_pieces *out)
{
    size_t start = out->text.size;
    if (in->text.data[span->start] != ' ') DQ_TRY(dq_bytes_add(&out->text, " ", 1));
    DQ_TRY(dq_bytes_add(&out->text, in->text.data + span->start, span->length));
    return dq_pieces_add(out, start, out->text.size - start, -1, span->first);
}

/* ' ' becomes the mark, one mark is put in front by the scheme, pieces begin at marks. */
static dq_status metaspace_span(const dq_step *step, const dq_pieces *in, const dq_span *span, dq_pieces *out)
{
    const char *s = in->text.data + span->start;
    size_t n = span->length, bytes = step->bytes, start = out->text.size, from = start;
    bool has = s[0] == ' ' || (n >= bytes && memcmp(s, step->text, bytes) == 0);
    bool prepend = step->behavior == PREPEND_ALWAYS || (step->behavior == PREPEND_FIRST && span->first);
    if (prepend && !has) DQ_TRY(dq_bytes_add(&out->text, step->text, bytes));
    for (size_t i = 0; i < n;) {
        int32_t cp;
        size_t step_in = (size_t)dq_utf8_next(s + i, &cp);
        bool mark = cp == ' ' || (step_in == bytes && memcmp(s + i, step->text, bytes) == 0);
        if (mark && step->flag2 && out->text.size > from) {
            DQ_TRY(dq_pieces_add(out, from, out->text.size - from, -1, span->first && from == start));
            from = out->text.size;
        }
        DQ_TRY(dq_bytes_add(&out->text, mark ? step->text : s + i, mark ? bytes : step_in));
        i += step_in;
    }
    return dq_pieces_add(out, from, out->text.size - from, -1, span->first && from == start);
}

enum { REWRITE_PREFIX, REWRITE_BYTES, REWRITE_METASPACE };

/* Writes all spans anew into a fresh text. */
static dq_status rewrite_all(const dq_step *step, int how, dq_pieces *pieces)
{
    dq_pieces out;
    dq_pieces_init(&out, pieces->text.env);
    dq_status status = DQ_OK;
    for (size_t i = 0; i < pieces->count && status == DQ_OK; i++) {
        const dq_span *span = &pieces->spans[i];
        if (span->id >= 0)
            status = dq_pieces_add(&out, out.text.size, 0, span->id, span->first);
        else if (span->length == 0)
            continue;
        else if (how == REWRITE_PREFIX)
            status = prefix_span(pieces, span, &out);
        else if (how == REWRITE_BYTES)
            status = bytelevel_span(pieces, span, &out);
        else
            status = metaspace_span(step, pieces, span, &out);
    }
    if (status != DQ_OK) {
        dq_pieces_clear(&out);
        return status;
    }
    dq_pieces_clear(pieces);
    *pieces = out;
    return DQ_OK;
}

dq_status dq_pretokenize(const dq_chain *chain, dq_pieces *pieces)
{
    for (size_t i = 0; i < chain->count; i++) {
        const dq_step *step = &chain->steps[i];
        if (step->kind == SPLIT) DQ_TRY(split_all(step, pieces));
        if (step->kind == METASPACE) DQ_TRY(rewrite_all(step, REWRITE_METASPACE, pieces));
        if (step->kind != BYTE_LEVEL) continue;
        if (step->flag) DQ_TRY(rewrite_all(step, REWRITE_PREFIX, pieces));
        if (step->pattern) DQ_TRY(split_all(step, pieces));
        DQ_TRY(rewrite_all(step, REWRITE_BYTES, pieces));
    }
    return DQ_OK;
}
