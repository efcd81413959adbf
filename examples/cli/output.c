/* What the program prints. SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "cli.h"

static int report(const cli *c, int exit_status, int32_t status, const char *name, const char *message, bool library)
{
    cli_progress_end(c);
    fprintf(stderr, "dartquant: %s\n", message);
    if (!c->json) return exit_status;
    json_t *error = json_pack("{s:i, s:s, s:s}", "status", (int)status, "name", name, "message", message);
    if (error && library) {
        if (dq_error_file()[0]) json_object_set_new(error, "file", json_string(dq_error_file()));
        if (dq_error_tensor()[0]) json_object_set_new(error, "tensor", json_string(dq_error_tensor()));
        if (dq_error_byte() >= 0) json_object_set_new(error, "byte", json_integer((json_int_t)dq_error_byte()));
        if (dq_error_backend()[0]) json_object_set_new(error, "backend", json_string(dq_error_backend()));
    }
    cli_print_json(c, json_pack("{s:s, s:o}", "command", c->command ? c->command->name : "", "error", error));
    return exit_status;
}

int cli_failed(const cli *c)
{
    char message[2048];
    snprintf(message, sizeof message, "%s", dq_error_text());
    return report(c, EXIT_FAILED, dq_error_last(), dq_status_name(dq_error_last()), message, true);
}

int cli_fail(const cli *c, const char *fmt, ...)
{
    char message[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    return report(c, EXIT_FAILED, DQ_E_IO, "DQ_E_IO", message, false);
}

int cli_usage(const cli *c, const char *fmt, ...)
{
    char message[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    size_t used = strlen(message);
    snprintf(message + used, sizeof message - used, " (see dartquant %s%s--help)", c->command ? c->command->name : "",
             c->command ? " " : "");
    return report(c, EXIT_USAGE, DQ_E_INVALID, "DQ_E_INVALID", message, false);
}

int cli_print_json(const cli *c, json_t *object)
{
    (void)c;
    char *text = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!text) {
        fprintf(stderr, "dartquant: the result cannot be written as JSON (out of memory, or not finite)\n");
        return EXIT_FAILED;
    }
    int written = printf("%s\n", text);
    free(text);
    return written < 0 || fflush(stdout) != 0 ? EXIT_FAILED : EXIT_OK;
}

json_t *cli_parse_json(const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    return value ? value : json_null();
}

/* VmHWM counts from exec on; ru_maxrss would also remember a large parent that started this program. */
uint64_t cli_peak_rss(void)
{
    char line[256];
    unsigned long long kilobytes = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && !kilobytes && fgets(line, sizeof line, f)) sscanf(line, "VmHWM: %llu kB", &kilobytes);
    if (f) fclose(f);
    if (kilobytes) return (uint64_t)kilobytes * 1024;
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

double cli_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void cli_note(const cli *c, const char *fmt, ...)
{
    if (c->quiet) return;
    cli_progress_end(c);
    fflush(stdout); /* what was said before comes before, also where both go to one file */
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}
