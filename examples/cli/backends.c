/* dartquant info --backends: which devices there are, and what each cannot do. SPDX-License-Identifier: Apache-2.0 */
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { MAX_NAMES = 32, MAX_CARDS = 16, NAME = 512 };

typedef struct names {
    char name[MAX_NAMES][NAME];
    int count;
} names;

static void add_name(names *list, const char *text, size_t length)
{
    if (list->count < MAX_NAMES && length < NAME) snprintf(list->name[list->count++], NAME, "%.*s", (int)length, text);
}

/* Plug-ins that a bare name finds: LIBDIR/dartquant/backends-1/libdartquant-NAME.so. */
static void add_plugins(names *list)
{
    static const char before[] = "libdartquant-", after[] = ".so";
    const char *(*function)(void) = dq_version_string;
    void *address = NULL;
    Dl_info info;
    char folder[4096];
    memcpy(&address, &function, sizeof address); /* ISO C has no conversion between the two kinds of pointers */
    if (!dladdr(address, &info) || !info.dli_fname) return;
    const char *slash = strrchr(info.dli_fname, '/');
    snprintf(folder, sizeof folder, "%.*s/dartquant/backends-1", slash ? (int)(slash - info.dli_fname) : 1,
             slash ? info.dli_fname : ".");
    DIR *dir = opendir(folder);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        size_t n = strlen(entry->d_name), first = sizeof before - 1, last = sizeof after - 1;
        if (n > first + last && strncmp(entry->d_name, before, first) == 0 &&
            strcmp(entry->d_name + n - last, after) == 0)
            add_name(list, entry->d_name + first, n - first - last);
    }
    closedir(dir);
}

/* One device's facts, or NULL and the error in dq_error_text. */
static json_t *probe(const char *backend)
{
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    json_t *facts = NULL;
    if (dq_config_new(&config) == DQ_OK && dq_config_set(config, "backend", backend) == DQ_OK &&
        dq_context_new(config, NULL, &ctx) == DQ_OK)
        facts = cli_parse_json(dq_context_device_json(ctx));
    dq_context_free(ctx);
    dq_config_free(config);
    if (facts) json_object_set_new(facts, "option", json_string(backend));
    return facts;
}

/* All devices of a backend: those with further numbers exist as long as they open. */
static void add_devices(json_t *list, const char *name, bool plugin)
{
    char numbered[NAME + 16];
    json_t *facts = probe(name);
    if (!facts) {
        json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "option", name, "problem", dq_error_text(), "error",
                                              dq_status_name(dq_error_last())));
        return;
    }
    json_array_append_new(list, facts);
    for (int i = 1; plugin && !strchr(name, ':') && i < MAX_CARDS; i++) {
        snprintf(numbered, sizeof numbered, "%s:device=%d", name, i);
        if (!(facts = probe(numbered))) return;
        json_array_append_new(list, facts);
    }
}

static void print_device(const json_t *d)
{
    const char *problem = json_string_value(json_object_get(d, "problem"));
    const json_t *missing = json_object_get(d, "missing_ops"), *op;
    double total = json_number_value(json_object_get(d, "memory_total")) / 1e9;
    size_t i;
    printf("--backend %s\n", json_string_value(json_object_get(d, "option")));
    if (problem) {
        printf("  not usable: %s\n", problem);
        return;
    }
    printf("  %s: %s\n", json_string_value(json_object_get(d, "device")),
           json_string_value(json_object_get(d, "description")));
    if (total > 0)
        printf("  memory: %.1f GB, %.1f GB free\n", total, json_number_value(json_object_get(d, "memory_free")) / 1e9);
    printf("  operations: %s", json_array_size(missing) ? "all but" : "all");
    json_array_foreach(missing, i, op) printf(" %s", json_string_value(op));
    printf("\n");
}

int cli_list_backends(cli *c)
{
    static names list;
    json_t *devices = json_array(), *d;
    size_t i;
    const char *chosen = cli_text(c, "backend");
    if (strcmp(chosen, "auto") != 0) {
        add_name(&list, chosen, strlen(chosen));
    } else {
        add_name(&list, "cpu", 3);
        add_name(&list, "ref", 3);
        add_plugins(&list);
    }
    for (int k = 0; k < list.count; k++)
        add_devices(devices, list.name[k], strcmp(list.name[k], "cpu") != 0 && strcmp(list.name[k], "ref") != 0);
    if (c->json) return cli_print_json(c, json_pack("{s:s, s:o}", "command", "info", "backends", devices));
    json_array_foreach(devices, i, d) print_device(d);
    json_decref(devices);
    return EXIT_OK;
}
