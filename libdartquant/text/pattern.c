/* SPDX-License-Identifier: Apache-2.0 */
#include "text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/status.h"
#include "text/bytes.h"
#include "text/utf8.h"

/* Steps one match may take: long runs of blanks need a few per byte, exponential patterns are stopped. */
enum { MATCH_LIMIT = 10000000, HEAP_LIMIT_KIB = 256 * 1024 };

struct dq_pattern {
    dq_env *env;
    char *text; /* literal, or the expression as written (for error texts) */
    size_t bytes;
    pcre2_general_context *general;
    pcre2_match_context *match;
    pcre2_code *code; /* NULL: literal */
};

static void *lib_alloc(size_t size, void *env) { return dq_alloc(env, size); }
static void lib_free(void *ptr, void *env)
{
    (void)env;
    dq_free(ptr);
}

dq_status dq_pattern_literal(dq_env *env, const char *text, size_t bytes, dq_pattern **out)
{
    dq_pattern *p = dq_calloc(env, 1, sizeof *p);
    if (!p) return DQ_E_NOMEM;
    p->env = env;
    p->bytes = bytes;
    p->text = dq_alloc(env, bytes + 1);
    if (!p->text) {
        dq_free(p);
        return DQ_E_NOMEM;
    }
    memcpy(p->text, text, bytes);
    p->text[bytes] = '\0';
    *out = p;
    return DQ_OK;
}

void dq_pattern_free(dq_pattern *p)
{
    if (!p) return;
    pcre2_code_free(p->code);
    pcre2_match_context_free(p->match);
    pcre2_general_context_free(p->general);
    dq_free(p->text);
    dq_free(p);
}

/* Oniguruma means other things than PCRE2 by some constructs: \w contains marks and circled letters (rewritten here), classes can be nested
 * or intersected and \h is a hexadecimal digit (refused). */
static dq_status translate(dq_bytes *out, const char *s, size_t n, const char *file, const char *where)
{
    static const char word[] = "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}"
                               "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
    const char *refused = NULL;
    bool in_class = false;
    size_t class_start = 0;
    for (size_t i = 0; i < n && !refused; i++) {
        if (s[i] == '\\' && i + 1 < n) {
            char c = s[++i];
            if (c == 'h' || c == 'H')
                refused = c == 'h' ? "\\h" : "\\H";
            else if (c == 'W' && in_class)
                refused = "\\W inside a class";
            else if (c == 'w' && in_class)
                DQ_TRY(dq_bytes_add(out, word, strlen(word)));
            else if (c == 'w' || c == 'W') {
                DQ_TRY(dq_bytes_add(out, c == 'w' ? "[" : "[^", c == 'w' ? 1 : 2));
                DQ_TRY(dq_bytes_add(out, word, strlen(word)));
                DQ_TRY(dq_bytes_add(out, "]", 1));
            } else
                DQ_TRY(dq_bytes_add(out, s + i - 1, 2));
            continue;
        }
        if (!in_class && s[i] == '[') {
            in_class = true;
            class_start = i + 1 < n && s[i + 1] == '^' ? i + 2 : i + 1;
        } else if (in_class && s[i] == ']' && i > class_start)
            in_class = false;
        else if (in_class && s[i] == '[' && i + 1 < n && s[i + 1] != ':')
            refused = "a class inside a class";
        else if (in_class && s[i] == '[') { /* POSIX class: copy up to its end */
            const char *close = memchr(s + i, ']', n - i);
            if (close) {
                DQ_TRY(dq_bytes_add(out, s + i, (size_t)(close - (s + i))));
                i = (size_t)(close - s);
            }
        } else if (in_class && s[i] == '&' && i + 1 < n && s[i + 1] == '&')
            refused = "&& inside a class";
        DQ_TRY(dq_bytes_add(out, s + i, 1));
    }
    if (!refused) return DQ_OK;
    return dq_error_in_file(
        dq_fail(DQ_E_UNSUPPORTED, "%s: regular expression uses %s, which is not supported: %.200s", where, refused, s),
        file);
}

static dq_status compile(dq_pattern *p, const char *file, const char *where)
{
    dq_bytes regex = {.env = p->env};
    dq_status status = translate(&regex, p->text, p->bytes, file, where);
    if (status != DQ_OK) goto done;
    p->general = pcre2_general_context_create(lib_alloc, lib_free, p->env);
    pcre2_compile_context *context = p->general ? pcre2_compile_context_create(p->general) : NULL;
    p->match = p->general ? pcre2_match_context_create(p->general) : NULL;
    if (!context || !p->match) {
        pcre2_compile_context_free(context);
        status = DQ_E_NOMEM;
        goto done;
    }
    int code = 0;
    PCRE2_SIZE at = 0;
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, 200);
    p->code = pcre2_compile((PCRE2_SPTR)(regex.data ? regex.data : ""), regex.size,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &at, context);
    pcre2_compile_context_free(context);
    if (!p->code) {
        PCRE2_UCHAR text[160] = "";
        pcre2_get_error_message(code, text, sizeof text);
        /* 121: the allocator refused */
        status =
            code == 121
                ? DQ_E_NOMEM
                : dq_error_in_file(dq_fail(DQ_E_FORMAT, "%s: regular expression '%.200s' does not compile: %s at %zu",
                                           where, p->text, (const char *)text, (size_t)at),
                                   file);
        goto done;
    }
    pcre2_set_match_limit(p->match, MATCH_LIMIT);
    pcre2_set_heap_limit(p->match, HEAP_LIMIT_KIB);
    pcre2_jit_compile(p->code,
                      PCRE2_JIT_COMPLETE); /* without JIT (no memory, not allowed) the interpreter runs: same results */
done:
    dq_bytes_clear(&regex);
    return status;
}

dq_status dq_pattern_regex(dq_env *env, const char *regex, size_t bytes, const char *file, const char *where,
                           dq_pattern **out)
{
    dq_pattern *p = NULL;
    DQ_TRY(dq_pattern_literal(env, regex, bytes, &p));
    dq_status status = compile(p, file, where);
    if (status != DQ_OK) {
        dq_pattern_free(p);
        return status;
    }
    *out = p;
    return DQ_OK;
}

dq_status dq_matcher_open(dq_matcher *m, const dq_pattern *pattern)
{
    *m = (dq_matcher){.pattern = pattern};
    if (!pattern->code) return DQ_OK;
    m->data = pcre2_match_data_create(1, pattern->general); /* only the whole match is of interest */
    return m->data ? DQ_OK : DQ_E_NOMEM;
}

void dq_matcher_close(dq_matcher *m)
{
    pcre2_match_data_free(m->data);
    m->data = NULL;
}

void dq_matcher_start(dq_matcher *m, const char *s, size_t n)
{
    m->s = s;
    m->n = n;
    m->at = 0;
    m->last_end = SIZE_MAX;
}

static dq_status match_failed(const dq_matcher *m, int code)
{
    if (code == PCRE2_ERROR_NOMEMORY) return dq_fail(DQ_E_NOMEM, "no memory for matching '%.100s'", m->pattern->text);
    PCRE2_UCHAR text[160] = "";
    pcre2_get_error_message(code, text, sizeof text);
    return dq_fail(DQ_E_TEXT,
                   "the tokenizer's regular expression '%.200s' gave up at byte %zu of a piece of %zu bytes: %s",
                   m->pattern->text, m->at, m->n, (const char *)text);
}

/* The next match from m->at on, empty ones included. */
static dq_status find(dq_matcher *m, size_t *start, size_t *end, bool *found)
{
    const dq_pattern *p = m->pattern;
    *found = false;
    if (m->at > m->n) return DQ_OK;
    if (!p->code) {
        const char *hit = p->bytes && m->n ? memmem(m->s + m->at, m->n - m->at, p->text, p->bytes) : NULL;
        *found = hit != NULL;
        *start = hit ? (size_t)(hit - m->s) : 0;
        *end = *start + p->bytes;
        return DQ_OK;
    }
    PCRE2_SPTR s = (PCRE2_SPTR)(m->s ? m->s : "");
    int rc = pcre2_match(p->code, s, m->n, m->at, PCRE2_NO_UTF_CHECK, m->data, p->match);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(p->code, s, m->n, m->at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data, p->match);
    if (rc == PCRE2_ERROR_NOMATCH) return DQ_OK;
    if (rc < 0) return match_failed(m, rc);
    const PCRE2_SIZE *ovector = pcre2_get_ovector_pointer(m->data);
    *start = ovector[0];
    *end = ovector[1];
    /* \K inside a look-around can turn the match around; PCRE2 leaves the check to the caller. */
    if (*start > *end || *start < m->at)
        return dq_fail(DQ_E_TEXT, "the tokenizer's regular expression '%.200s' matches backwards", p->text);
    *found = true;
    return DQ_OK;
}

dq_status dq_matcher_next(dq_matcher *m, size_t *start, size_t *end, bool *found)
{
    for (;;) {
        DQ_TRY(find(m, start, end, found));
        if (!*found) return DQ_OK;
        bool empty = *start == *end;
        m->at = *end;
        if (empty) { /* step over one character so that the walk goes on */
            int32_t cp;
            m->at += *end < m->n ? (size_t)dq_utf8_next(m->s + *end, &cp) : 1;
            if (*end == m->last_end) continue;
        }
        m->last_end = *end;
        return DQ_OK;
    }
}
