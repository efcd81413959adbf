/* Where the datasets of the literature lie on disk. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TEXT_RECIPES_H
#define DQ_TEXT_RECIPES_H

#include "text/dataset.h"

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

#endif
