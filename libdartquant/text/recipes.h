/* The datasets of the literature: where they lie on disk and how they become token streams. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_RECIPES_H
#define DQ_TEXT_RECIPES_H

#include <jansson.h>

#include "text/bytes.h"
#include "text/dataset.h"
#include "text/lines.h"

typedef enum dq_recipe_kind { DQ_RECIPE_WIKITEXT2, DQ_RECIPE_PTB, DQ_RECIPE_C4 } dq_recipe_kind;

enum { DQ_MAX_NAMES = 8 };
typedef struct dq_recipe {
    const char *name;
    dq_recipe_kind kind;
    const char *folders[DQ_MAX_NAMES]; /* beginnings of folder names inside data_dir */
    /* File patterns, best first. A leading '+': too plain a name to be trusted outside of such a folder. */
    const char *files[2][DQ_MAX_NAMES]; /* by dq_split */
    const char *note;                   /* a look-alike that is not taken, and why */
    const char *look_alike;
} dq_recipe;

/* DQ_E_NOTFOUND listing the known names. */
dq_status dq_recipe_by_name(const char *name, const dq_recipe **out);
/* Path of the split's file in fresh memory; DQ_E_NOTFOUND says what was looked for and what is there instead. */
dq_status dq_recipe_find(dq_env *env, const dq_recipe *recipe, const char *data_dir, dq_split split, char **out);

/* ---- dataset.c: what recipes and files share ---- */
/* "SOURCE; ONCE with byte-level BPE, BOS 1 once at the start" */
char *dq_stream_protocol(const dq_tokenizer *t, const char *source, const char *once);
/* Tokenizes a whole text into a fresh stream; DQ_E_TEXT when it is empty. */
dq_status dq_stream_build(dq_env *env, const dq_tokenizer *t, const char *name, const char *source,
                          const dq_bytes *text, dq_token_stream *out);
dq_status dq_stream_check_utf8(const dq_bytes *text, const char *path);
/* Field "text" of the next line that is not blank. *root owns the text; NULL at the end. */
dq_status dq_document_next(dq_lines *r, json_t **root, const char **text, size_t *bytes);
/* At most `limit` documents joined by `separator`. */
dq_status dq_documents_join(dq_env *env, const char *path, const char *separator, int64_t limit, dq_bytes *out,
                            int64_t *count);

#endif
