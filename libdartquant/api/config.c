/* dartquant/config.h: option values by name. SPDX-License-Identifier: Apache-2.0 */
#include "api/config.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/check.h"
#include "api/options.h"
#include "base/number.h"
#include "base/status.h"

enum { NAME_MAX_BYTES = 64 };

typedef struct option_value {
    char *text;      /* malloc'ed; as given, NULL = the option's initial text */
    int64_t integer; /* INT, BOOL, CHOICE */
    double number;   /* INT, FLOAT */
    bool set;
} option_value;

/* A config exists before any context, so it lives in plain malloc memory. */
struct dq_config {
    int64_t count;
    option_value values[]; /* [count] */
};

/* ---- names ---- */

/* Lower case with '_'; false when longer than any option name. */
static bool normalise(const char *name, char out[NAME_MAX_BYTES])
{
    size_t n = strlen(name);
    if (n >= NAME_MAX_BYTES) return false;
    for (size_t i = 0; i <= n; i++) out[i] = name[i] == '-' ? '_' : (char)tolower((unsigned char)name[i]);
    return true;
}

/* Levenshtein distance. */
static int distance(const char *a, const char *b)
{
    int row[NAME_MAX_BYTES + 1];
    int nb = (int)strlen(b);
    for (int j = 0; j <= nb; j++) row[j] = j;
    for (int i = 0; a[i]; i++) {
        int diagonal = row[0];
        row[0] = i + 1;
        for (int j = 0; j < nb; j++) {
            int best = diagonal + (a[i] != b[j]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j + 1] + 1 < best) best = row[j + 1] + 1;
            diagonal = row[j + 1];
            row[j + 1] = best;
        }
    }
    return row[nb];
}

static dq_status find(const char *name, int *out)
{
    char wanted[NAME_MAX_BYTES];
    if (!normalise(name, wanted)) return dq_fail(DQ_E_NOTFOUND, "no option has so long a name");
    int nearest = 0, best = 1 << 20;
    for (int i = 0; i < dq_options_count; i++) {
        int d = distance(wanted, dq_options[i].name);
        if (d == 0) {
            *out = i;
            return DQ_OK;
        }
        if (d < best) {
            best = d;
            nearest = i;
        }
    }
    if (best <= 3)
        return dq_fail(DQ_E_NOTFOUND, "no option \"%s\"; did you mean \"%s\"?", name, dq_options[nearest].name);
    return dq_fail(DQ_E_NOTFOUND, "no option \"%s\"", name);
}

/* ---- parsing ---- */

/* Factor of a size suffix, 0 when unknown. "GB" and the like are refused: they mean 10^9 to some and 2^30 to others. */
static int64_t suffix_factor(const char *s)
{
    static const char letters[] = "KMGT";
    if (*s == '\0') return 1;
    const char *at = strchr(letters, toupper((unsigned char)*s));
    if (!at || (s[1] != '\0' && strcmp(s + 1, "iB") != 0)) return 0;
    return INT64_C(1) << (10 * (at - letters + 1));
}

static dq_status parse_int(const dq_option *o, const char *text, option_value *v)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || errno != 0) return dq_fail(DQ_E_INVALID, "option %s: \"%s\" is not an integer", o->name, text);
    int64_t factor = strcmp(o->unit, "bytes") == 0 ? suffix_factor(end) : *end == '\0';
    int64_t integer;
    if (factor == 0)
        return dq_fail(DQ_E_INVALID, "option %s: \"%s\" is not an integer%s", o->name, text,
                       strcmp(o->unit, "bytes") == 0 ? ", optionally with suffix K, M, G or T" : "");
    if (__builtin_mul_overflow((int64_t)value, factor, &integer) || (double)integer < o->min ||
        (double)integer > o->max)
        return dq_fail(DQ_E_INVALID, "option %s: %s is outside %.0f .. %.0f", o->name, text, o->min, o->max);
    v->integer = integer;
    v->number = (double)integer;
    return DQ_OK;
}

static dq_status parse_float(const dq_option *o, const char *text, option_value *v)
{
    if (o->choices[0] && strcasecmp(text, o->choices) == 0) {
        v->number = 0; /* "auto"; no such option may be 0 otherwise */
        return DQ_OK;
    }
    char *end;
    double number;
    DQ_TRY(dq_number_read(text, &end, &number));
    if (end == text || *end != '\0' || !isfinite(number))
        return dq_fail(DQ_E_INVALID, "option %s: \"%s\" is not a number%s%s", o->name, text,
                       o->choices[0] ? " nor " : "", o->choices);
    if (number < o->min || number > o->max)
        return dq_fail(DQ_E_INVALID, "option %s: %s is outside %g .. %g", o->name, text, o->min, o->max);
    v->number = number;
    return DQ_OK;
}

static dq_status parse_bool(const dq_option *o, const char *text, option_value *v)
{
    static const char *const words[2][4] = {{"false", "no", "off", "0"}, {"true", "yes", "on", "1"}};
    for (int value = 0; value < 2; value++)
        for (int i = 0; i < 4; i++)
            if (strcasecmp(text, words[value][i]) == 0) {
                v->integer = value;
                v->number = value;
                return DQ_OK;
            }
    return dq_fail(DQ_E_INVALID, "option %s: \"%s\" is neither true nor false", o->name, text);
}

static dq_status parse_choice(const dq_option *o, const char *text, option_value *v)
{
    size_t n = strlen(text);
    int64_t index = 0;
    for (const char *at = o->choices; at; index++) {
        const char *bar = strchr(at, '|');
        size_t length = bar ? (size_t)(bar - at) : strlen(at);
        if (length == n && strncasecmp(at, text, n) == 0) {
            v->integer = index;
            v->number = (double)index;
            return DQ_OK;
        }
        at = bar ? bar + 1 : NULL;
    }
    return dq_fail(DQ_E_INVALID, "option %s: \"%s\" is none of %s", o->name, text, o->choices);
}

static dq_status parse(const dq_option *o, const char *text, option_value *v)
{
    switch (o->type) {
        case DQ_OPTION_INT: return parse_int(o, text, v);
        case DQ_OPTION_FLOAT: return parse_float(o, text, v);
        case DQ_OPTION_BOOL: return parse_bool(o, text, v);
        case DQ_OPTION_CHOICE: return parse_choice(o, text, v);
        default: return DQ_OK;
    }
}

static dq_status set_option(dq_config *config, int i, const char *text)
{
    option_value v = {.set = true};
    DQ_TRY(parse(&dq_options[i], text, &v));
    v.text = strdup(text);
    if (!v.text) return dq_fail(DQ_E_NOMEM, "out of memory: option %s", dq_options[i].name);
    free(config->values[i].text);
    config->values[i] = v;
    return DQ_OK;
}

/* ---- life ---- */

static size_t config_bytes(void) { return sizeof(dq_config) + (size_t)dq_options_count * sizeof(option_value); }

dq_status dq_config_new(dq_config **out)
{
    DQ_ENTER(out);
    dq_config *config = calloc(1, config_bytes());
    if (!config) return dq_fail(DQ_E_NOMEM, "out of memory: config");
    config->count = dq_options_count;
    for (int i = 0; i < dq_options_count; i++) {
        dq_status status = parse(&dq_options[i], dq_options[i].initial, &config->values[i]);
        if (status != DQ_OK) { /* the table contradicts itself */
            free(config);
            return status;
        }
    }
    *out = config;
    return DQ_OK;
}

dq_status dq_config_or_defaults(const dq_config **config, dq_config **own)
{
    *own = NULL;
    if (*config) return DQ_OK;
    DQ_TRY(dq_config_new(own));
    *config = *own;
    return DQ_OK;
}

void dq_config_free(dq_config *config)
{
    if (!config) return;
    for (int i = 0; i < dq_options_count; i++) free(config->values[i].text);
    free(config);
}

dq_status dq_config_copy(const dq_config *config, dq_config **out)
{
    DQ_ENTER(config && out);
    dq_config *copy = malloc(config_bytes());
    if (!copy) return dq_fail(DQ_E_NOMEM, "out of memory: config");
    memcpy(copy, config, config_bytes());
    bool complete = true;
    for (int i = 0; i < dq_options_count; i++) {
        if (!config->values[i].text) continue;
        copy->values[i].text = complete ? strdup(config->values[i].text) : NULL;
        complete = complete && copy->values[i].text;
    }
    if (!complete) {
        dq_config_free(copy);
        return dq_fail(DQ_E_NOMEM, "out of memory: config");
    }
    *out = copy;
    return DQ_OK;
}

/* ---- values ---- */

dq_status dq_config_set(dq_config *config, const char *name, const char *text)
{
    DQ_ENTER(config && name && text);
    int i;
    DQ_TRY(find(name, &i));
    return set_option(config, i, text);
}

dq_status dq_config_set_int(dq_config *config, const char *name, int64_t value)
{
    DQ_ENTER(config && name);
    int i;
    char text[32];
    DQ_TRY(find(name, &i));
    int type = dq_options[i].type;
    if (type == DQ_OPTION_STRING || type == DQ_OPTION_CHOICE)
        return dq_fail(DQ_E_INVALID, "option %s takes text, not a number", dq_options[i].name);
    snprintf(text, sizeof text, "%lld", (long long)value);
    return set_option(config, i, text);
}

dq_status dq_config_set_float(dq_config *config, const char *name, double value)
{
    DQ_ENTER(config && name);
    int i;
    char text[40];
    DQ_TRY(find(name, &i));
    if (dq_options[i].type != DQ_OPTION_FLOAT)
        return dq_fail(DQ_E_INVALID, "option %s does not take a fractional number", dq_options[i].name);
    snprintf(text, sizeof text, "%.17g", value);
    if (isfinite(value)) dq_number_point(text);
    return set_option(config, i, text);
}

dq_status dq_config_get(const dq_config *config, const char *name, const char **out)
{
    DQ_ENTER(config && name && out);
    int i;
    DQ_TRY(find(name, &i));
    *out = config->values[i].text ? config->values[i].text : dq_options[i].initial;
    return DQ_OK;
}

dq_status dq_config_get_int(const dq_config *config, const char *name, int64_t *out)
{
    DQ_ENTER(config && name && out);
    int i;
    DQ_TRY(find(name, &i));
    int type = dq_options[i].type;
    if (type == DQ_OPTION_STRING || type == DQ_OPTION_FLOAT)
        return dq_fail(DQ_E_INVALID, "option %s is no integer", dq_options[i].name);
    *out = config->values[i].integer;
    return DQ_OK;
}

dq_status dq_config_get_float(const dq_config *config, const char *name, double *out)
{
    DQ_ENTER(config && name && out);
    int i;
    DQ_TRY(find(name, &i));
    int type = dq_options[i].type;
    if (type != DQ_OPTION_INT && type != DQ_OPTION_FLOAT)
        return dq_fail(DQ_E_INVALID, "option %s is no number", dq_options[i].name);
    *out = config->values[i].number;
    return DQ_OK;
}

dq_status dq_config_is_set(const dq_config *config, const char *name, int32_t *out)
{
    DQ_ENTER(config && name && out);
    int i;
    DQ_TRY(find(name, &i));
    *out = config->values[i].set;
    return DQ_OK;
}

/* For the rest of api/: the names are literals, so a miss is a bug of ours that the unit test finds. */
static const option_value *value_of(const dq_config *config, const char *name, const char **initial)
{
    int i = 0;
    while (i < dq_options_count && strcmp(dq_options[i].name, name) != 0) i++;
    *initial = dq_options[i].initial;
    return &config->values[i];
}

int64_t dq_config_int(const dq_config *config, const char *name)
{
    const char *initial;
    return value_of(config, name, &initial)->integer;
}

double dq_config_float(const dq_config *config, const char *name)
{
    const char *initial;
    return value_of(config, name, &initial)->number;
}

const char *dq_config_text(const dq_config *config, const char *name)
{
    const char *initial;
    const option_value *v = value_of(config, name, &initial);
    return v->text ? v->text : initial;
}

/* ---- tables ---- */

int32_t dq_option_count(void) { return dq_options_count; }

dq_status dq_option_get(int32_t index, dq_option_info *out)
{
    DQ_ENTER(out);
    if (index < 0 || index >= dq_options_count)
        return dq_fail(DQ_E_INVALID, "option index %d of %d", (int)index, dq_options_count);
    const dq_option *o = &dq_options[index];
    dq_option_info full = {
        .type = o->type,
        .name = o->name,
        .area = o->area,
        .help = o->help,
        .unit = o->unit,
        .default_value = o->initial,
        .choices = o->choices,
        .min = o->min,
        .max = o->max,
    };
    return DQ_FILL_STRUCT(out, &full, dq_option_info, max);
}

dq_status dq_option_find(const char *name, int32_t *out)
{
    DQ_ENTER(name && out);
    int i;
    DQ_TRY(find(name, &i));
    *out = i;
    return DQ_OK;
}

int32_t dq_preset_count(void) { return dq_presets_count; }

dq_status dq_preset_get(int32_t index, dq_preset_info *out)
{
    DQ_ENTER(out);
    if (index < 0 || index >= dq_presets_count)
        return dq_fail(DQ_E_INVALID, "preset index %d of %d", (int)index, dq_presets_count);
    const dq_preset *p = &dq_presets[index];
    dq_preset_info full = {.name = p->name, .description = p->description, .settings = p->settings};
    return DQ_FILL_STRUCT(out, &full, dq_preset_info, settings);
}

static dq_status apply(dq_config *config, const char *settings)
{
    char text[512];
    if ((size_t)snprintf(text, sizeof text, "%s", settings) >= sizeof text)
        return dq_fail(DQ_E_INTERNAL, "preset longer than %zu bytes", sizeof text);
    char *rest = text;
    for (char *item; (item = strsep(&rest, " ")) != NULL;) {
        char *value = strchr(item, '=');
        int i;
        if (!value) return dq_fail(DQ_E_INTERNAL, "preset item \"%s\" has no value", item);
        *value = '\0';
        DQ_TRY(find(item, &i));
        DQ_TRY(set_option(config, i, value + 1));
    }
    return DQ_OK;
}

dq_status dq_config_apply_preset(dq_config *config, const char *preset)
{
    DQ_ENTER(config && preset);
    char known[256] = "", wanted[NAME_MAX_BYTES];
    if (normalise(preset, wanted))
        for (int i = 0; i < dq_presets_count; i++)
            if (strcmp(wanted, dq_presets[i].name) == 0) {
                dq_config *changed = NULL; /* all of the preset or nothing */
                DQ_TRY(dq_config_copy(config, &changed));
                dq_status status = apply(changed, dq_presets[i].settings);
                if (status == DQ_OK)
                    for (int j = 0; j < dq_options_count; j++) {
                        option_value old = config->values[j];
                        config->values[j] = changed->values[j];
                        changed->values[j] = old;
                    }
                dq_config_free(changed);
                return status;
            }
    for (int i = 0; i < dq_presets_count; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", dq_presets[i].name);
    }
    return dq_fail(DQ_E_NOTFOUND, "no preset \"%s\"; there are %s", preset, known);
}
