/* SPDX-License-Identifier: Apache-2.0 */
#include "text/recipes.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "io/file.h"

static const dq_recipe recipes[] = {
    {"wikitext2",
     DQ_RECIPE_WIKITEXT2,
     {"wikitext2", "wikitext-2"},
     {{"wiki.test.raw", "wiki.test.raw.gz"}, {"wiki.train.raw", "wiki.train.raw.gz"}},
     "the word-level version with <unk>, whose perplexities do not compare",
     "wiki.t*.tokens"},
    {"ptb",
     DQ_RECIPE_PTB,
     {"ptb", "penn"},
     {{"ptb.test.txt", "+test.txt"}, {"ptb.train.txt", "+train.txt"}},
     NULL,
     NULL},
    {"c4",
     DQ_RECIPE_C4,
     {"c4"},
     {{"c4-validation*.json.gz", "c4-validation*.json", "c4-validation*.jsonl", "+validation*.jsonl",
       "+validation*.json.gz"},
      {"c4-train*.json.gz", "c4-train*.json", "c4-train*.jsonl", "+train*.jsonl", "+train*.json.gz"}},
     NULL,
     NULL},
};
enum { RECIPES = sizeof recipes / sizeof *recipes };

dq_status dq_recipe_by_name(const char *name, const dq_recipe **out)
{
    for (int i = 0; i < RECIPES; i++) {
        if (strcmp(name, recipes[i].name) != 0) continue;
        *out = &recipes[i];
        return DQ_OK;
    }
    return dq_fail(DQ_E_NOTFOUND, "no dataset is called '%.60s'; known: wikitext2, ptb, c4 (or give a text file)",
                   name);
}

/* ---- folders: data_dir, its subfolders named after the dataset, and theirs ---- */
typedef struct place {
    char *path;
    bool trusted; /* inside a folder of the dataset */
} place;

typedef struct places {
    dq_env *env;
    place *list;
    size_t count;
} places;

static void places_clear(places *p)
{
    for (size_t i = 0; i < p->count; i++) dq_free(p->list[i].path);
    dq_free(p->list);
}

static dq_status places_add(places *p, char *path, bool trusted)
{
    place *bigger = path ? dq_realloc(p->env, p->list, (p->count + 1) * sizeof *bigger) : NULL;
    if (!bigger) {
        dq_free(path);
        return DQ_E_NOMEM;
    }
    p->list = bigger;
    bigger[p->count++] = (place){path, trusted};
    return DQ_OK;
}

static int by_path(const void *a, const void *b) { return strcmp(((const place *)a)->path, ((const place *)b)->path); }

static bool named_after(const dq_recipe *recipe, const char *name)
{
    for (int i = 0; i < DQ_MAX_NAMES && recipe->folders[i]; i++)
        if (strncmp(name, recipe->folders[i], strlen(recipe->folders[i])) == 0) return true;
    return false;
}

/* Folders inside `dir` in order of their names; all of them, or those of the dataset. */
static dq_status add_folders(places *p, const char *dir, const dq_recipe *recipe, bool all)
{
    DIR *d = opendir(dir);
    if (!d) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot list the folder"), dir);
    size_t first = p->count;
    dq_status status = DQ_OK;
    for (struct dirent *e = readdir(d); e && status == DQ_OK; e = readdir(d)) {
        if (e->d_name[0] == '.' || (!all && !named_after(recipe, e->d_name))) continue;
        char *path = dq_path_join(p->env, dir, e->d_name);
        if (path && !dq_path_is_dir(path))
            dq_free(path);
        else
            status = places_add(p, path, true);
    }
    closedir(d);
    if (status == DQ_OK && p->count > first) qsort(p->list + first, p->count - first, sizeof *p->list, by_path);
    return status;
}

static dq_status find_places(dq_env *env, const dq_recipe *recipe, const char *data_dir, places *p)
{
    *p = (places){.env = env};
    const char *base = strrchr(data_dir, '/');
    DQ_TRY(places_add(p, dq_strdup(env, data_dir), named_after(recipe, base ? base + 1 : data_dir)));
    DQ_TRY(add_folders(p, data_dir, recipe, false));
    size_t count = p->count;
    for (size_t i = p->list[0].trusted ? 0 : 1; i < count; i++) DQ_TRY(add_folders(p, p->list[i].path, recipe, true));
    return DQ_OK;
}

/* The first file of the folder, in order of names, that matches; *out stays NULL without one. */
static dq_status match_in(dq_env *env, const char *dir, const char *pattern, char **out)
{
    DIR *d = opendir(dir);
    if (!d) return dq_error_in_file(dq_fail_errno(DQ_E_IO, "cannot list the folder"), dir);
    char best[512] = "";
    for (struct dirent *e = readdir(d); e; e = readdir(d))
        if (fnmatch(pattern, e->d_name, 0) == 0 && (!best[0] || strcmp(e->d_name, best) < 0))
            snprintf(best, sizeof best, "%s", e->d_name);
    closedir(d);
    if (!best[0]) return DQ_OK;
    *out = dq_path_join(env, dir, best);
    return *out ? DQ_OK : DQ_E_NOMEM;
}

static dq_status match(const places *p, const char *pattern, char **out)
{
    bool plain = pattern[0] == '+';
    for (size_t i = 0; i < p->count && !*out; i++)
        if (!plain || p->list[i].trusted) DQ_TRY(match_in(p->env, p->list[i].path, pattern + plain, out));
    return DQ_OK;
}

static void append(char *text, size_t size, const char *more)
{
    size_t n = strlen(text);
    snprintf(text + n, size - n, "%s", more);
}

/* What was looked for, and what of the dataset there is. */
static dq_status not_found(const places *p, const dq_recipe *recipe, const char *data_dir, dq_split split)
{
    char text[480] = "";
    char *other = NULL, *alike = NULL;
    for (int i = 0; i < DQ_MAX_NAMES && recipe->files[split][i]; i++) {
        append(text, sizeof text, i ? ", " : "");
        append(text, sizeof text, recipe->files[split][i] + (recipe->files[split][i][0] == '+'));
    }
    append(text, sizeof text, " in the folder and in its subfolders ");
    for (int i = 0; i < DQ_MAX_NAMES && recipe->folders[i]; i++) {
        append(text, sizeof text, i ? ", " : "");
        append(text, sizeof text, recipe->folders[i]);
        append(text, sizeof text, "*");
    }
    dq_status status = DQ_OK;
    for (int i = 0; i < DQ_MAX_NAMES && recipe->files[!split][i] && !other && status == DQ_OK; i++)
        status = match(p, recipe->files[!split][i], &other);
    if (status == DQ_OK && recipe->look_alike) status = match(p, recipe->look_alike, &alike);
    if (status == DQ_OK) {
        char found[256] = "";
        if (other)
            snprintf(found, sizeof found, "; only its %s split is there (%.160s)", split ? "test" : "train", other);
        else if (alike)
            snprintf(found, sizeof found, "; %.120s is %s", alike, recipe->note);
        status = dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "no %s split of %s: looked for %s%s%s",
                                          split ? "train" : "test", recipe->name, text, found,
                                          split ? "; give another text for calibration (--cal-file)" : ""),
                                  data_dir);
    }
    dq_free(other);
    dq_free(alike);
    return status;
}

dq_status dq_recipe_find(dq_env *env, const dq_recipe *recipe, const char *data_dir, dq_split split, char **out)
{
    if (!dq_path_is_dir(data_dir)) return dq_error_in_file(dq_fail(DQ_E_NOTFOUND, "no such folder"), data_dir);
    places p = {.env = env};
    char *path = NULL;
    dq_status status = find_places(env, recipe, data_dir, &p);
    for (int i = 0; i < DQ_MAX_NAMES && recipe->files[split][i] && !path && status == DQ_OK; i++)
        status = match(&p, recipe->files[split][i], &path);
    if (status == DQ_OK && !path) status = not_found(&p, recipe, data_dir, split);
    places_clear(&p);
    if (status == DQ_OK) *out = path;
    return status;
}
