/* libdartquant: options by name. One table names every option with its type, bounds, default and meaning; programs,
 * bindings and help texts are generated from it. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_CONFIG_H
#define DARTQUANT_CONFIG_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A config is a plain value: it belongs to no context, every object copies what it needs when it is made, so later
 * changes and freeing the config do not matter to it. One thread at a time may change it; any number may read.
 *
 * In names '-' and '_' are the same and case does not matter. An unknown name is DQ_E_NOTFOUND and the message
 * proposes the nearest known one; a value that does not parse or is out of bounds is DQ_E_INVALID and names the bounds.
 * A failed call leaves the config as it was. */

/* Kinds of options (dq_option_info.type). */
enum {
    DQ_OPTION_INT =
        0, /* decimal integer; with unit "bytes" also 512K, 64M, 10G, 1T or KiB, MiB, GiB, TiB (all 1024-based) */
    DQ_OPTION_FLOAT = 1,  /* finite decimal number, or the word in `choices` when there is one, which reads as 0 */
    DQ_OPTION_BOOL = 2,   /* true/false, yes/no, on/off, 1/0 */
    DQ_OPTION_STRING = 3, /* any text, often a path; "" = not given */
    DQ_OPTION_CHOICE = 4  /* one of `choices` */
};

/* One row of the option table. All text is static. Set struct_size to sizeof(dq_option_info) before the call. */
typedef struct dq_option_info {
    uint32_t struct_size;
    int32_t type;              /* DQ_OPTION_* */
    const char *name;          /* written with '_' */
    const char *area;          /* heading in help texts: "general", "rotation", "weights", ... */
    const char *help;          /* one or two sentences */
    const char *unit;          /* "bytes", "tokens", "columns", ... or "" */
    const char *default_value; /* as text */
    const char *choices;       /* DQ_OPTION_CHOICE: "a|b|c"; DQ_OPTION_FLOAT: "auto" or ""; others "" */
    double min;                /* smallest and largest number allowed (INT, FLOAT) */
    double max;
} dq_option_info;

/* One preset: a named set of option values. All text is static. Set struct_size to sizeof(dq_preset_info). */
typedef struct dq_preset_info {
    uint32_t struct_size;
    uint32_t reserved;
    const char *name;        /* "w4a4kv4" */
    const char *description; /* one sentence */
    const char *settings;    /* "w_bits=4 w_groupsize=128 ..." */
} dq_preset_info;

/* A config with every option at its default. Errors: DQ_E_INVALID (out NULL), DQ_E_NOMEM. */
DQ_API dq_status dq_config_new(dq_config **out);
/* NULL is accepted. */
DQ_API void dq_config_free(dq_config *config);
/* An independent copy; the caller frees it. Errors: DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_config_copy(const dq_config *config, dq_config **out);

/* Sets an option from text, a number or 0/1. _int also serves BOOL (0 or 1) and FLOAT options, _float only FLOAT ones.
 * Errors: DQ_E_NOTFOUND, DQ_E_INVALID, DQ_E_NOMEM. */
DQ_API dq_status dq_config_set(dq_config *config, const char *name, const char *text);
DQ_API dq_status dq_config_set_int(dq_config *config, const char *name, int64_t value);
DQ_API dq_status dq_config_set_float(dq_config *config, const char *name, double value);

/* Reads an option: as text for every type (owned by the config, valid until that option is set again or the config
 * freed), as integer (INT; BOOL as 0/1; CHOICE as index into `choices`), as number (INT, FLOAT).
 * Errors: DQ_E_NOTFOUND, DQ_E_INVALID. */
DQ_API dq_status dq_config_get(const dq_config *config, const char *name, const char **out);
DQ_API dq_status dq_config_get_int(const dq_config *config, const char *name, int64_t *out);
DQ_API dq_status dq_config_get_float(const dq_config *config, const char *name, double *out);
/* *out = 1 when the option was set (by a setter or a preset), else 0. */
DQ_API dq_status dq_config_is_set(const dq_config *config, const char *name, int32_t *out);

/* Number of options; options are numbered 0 .. count-1 in the order of help texts. New ones are appended to their area,
 * so indices are not stable across versions: names are. */
DQ_API int32_t dq_option_count(void);
/* Fills *out, as much of it as out->struct_size covers. Errors: DQ_E_INVALID (index, NULL, struct_size). */
DQ_API dq_status dq_option_get(int32_t index, dq_option_info *out);
/* *out = index of the option called `name`. Errors: DQ_E_NOTFOUND with a proposal, DQ_E_INVALID. */
DQ_API dq_status dq_option_find(const char *name, int32_t *out);

/* Sets all options of a preset, e.g. "w4a4kv4"; options it does not name keep their values, so apply a preset first and
 * refine afterwards. Errors: DQ_E_NOTFOUND with the known names, DQ_E_INVALID. */
DQ_API dq_status dq_config_apply_preset(dq_config *config, const char *preset);
DQ_API int32_t dq_preset_count(void);
/* As dq_option_get. */
DQ_API dq_status dq_preset_get(int32_t index, dq_preset_info *out);

#ifdef __cplusplus
}
#endif
#endif
