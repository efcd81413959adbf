/* The thread-local error record. SPDX-License-Identifier: Apache-2.0 */
#undef _GNU_SOURCE /* its strerror_r returns text; the one of POSIX returns a status */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"

/* Fixed buffers: recording an error must work when memory is gone. */
static _Thread_local struct {
    dq_status status;
    int64_t byte;
    int64_t vendor_code;
    char message[640];
    char file[512];
    char tensor[256];
    char backend[64];
    char text[1600];
} record = {.byte = -1};

void dq_error_reset(void)
{
    record.status = DQ_OK;
    record.byte = -1;
    record.vendor_code = 0;
    record.message[0] = record.file[0] = record.tensor[0] = record.backend[0] = record.text[0] = '\0';
}

static void set_message(dq_status status, const char *fmt, va_list args)
{
    dq_error_reset();
    record.status = status;
    vsnprintf(record.message, sizeof record.message, fmt, args);
}

dq_status dq_fail(dq_status status, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    set_message(status, fmt, args);
    va_end(args);
    return status;
}

dq_status dq_fail_errno(dq_status status, const char *fmt, ...)
{
    int code = errno;
    va_list args;
    va_start(args, fmt);
    set_message(status, fmt, args);
    va_end(args);
    record.vendor_code = code;
    char reason[128];
    size_t used = strlen(record.message);
    if (strerror_r(code, reason, sizeof reason) == 0)
        snprintf(record.message + used, sizeof record.message - used, ": %s", reason);
    return status;
}

static void set_once(char *field, size_t size, const char *value)
{
    if (field[0] == '\0' && value) snprintf(field, size, "%s", value);
}

dq_status dq_error_in_file(dq_status status, const char *path)
{
    if (status != DQ_OK) set_once(record.file, sizeof record.file, path);
    return status;
}

dq_status dq_error_in_tensor(dq_status status, const char *tensor)
{
    if (status != DQ_OK) set_once(record.tensor, sizeof record.tensor, tensor);
    return status;
}

dq_status dq_error_at_byte(dq_status status, uint64_t byte)
{
    if (status != DQ_OK && record.byte < 0 && byte <= INT64_MAX) record.byte = (int64_t)byte;
    return status;
}

dq_status dq_error_append(dq_status status, const char *fmt, ...)
{
    size_t used = strlen(record.message);
    va_list args;
    va_start(args, fmt);
    if (status != DQ_OK) vsnprintf(record.message + used, sizeof record.message - used, fmt, args);
    va_end(args);
    return status;
}

dq_status dq_error_in_backend(dq_status status, const char *backend, int64_t vendor_code)
{
    if (status == DQ_OK) return status;
    set_once(record.backend, sizeof record.backend, backend);
    if (record.vendor_code == 0) record.vendor_code = vendor_code;
    return status;
}

dq_status dq_error_last(void) { return record.status; }
const char *dq_error_file(void) { return record.file; }
const char *dq_error_tensor(void) { return record.tensor; }
int64_t dq_error_byte(void) { return record.byte; }
const char *dq_error_backend(void) { return record.backend; }
int64_t dq_error_vendor_code(void) { return record.vendor_code; }

static void append(const char *fmt, const char *value)
{
    size_t used = strlen(record.text);
    snprintf(record.text + used, sizeof record.text - used, fmt, value);
}

const char *dq_error_text(void)
{
    record.text[0] = '\0';
    if (record.status == DQ_OK) return record.text;
    if (record.file[0]) append("%s: ", record.file);
    append("%s", record.message);
    if (record.tensor[0]) append(" [tensor %s]", record.tensor);
    if (record.byte >= 0) {
        char at[32];
        snprintf(at, sizeof at, "%lld", (long long)record.byte);
        append(" [byte %s]", at);
    }
    if (record.backend[0]) {
        char code[32];
        snprintf(code, sizeof code, "%lld", (long long)record.vendor_code);
        append(" [backend %s", record.backend);
        append(", code %s]", code);
    }
    return record.text;
}

const char *dq_status_name(dq_status status)
{
#define CASE(x)                                                                                                        \
    case x: return #x
    switch (status) {
        CASE(DQ_OK);
        CASE(DQ_E_INVALID);
        CASE(DQ_E_NOMEM);
        CASE(DQ_E_CANCELLED);
        CASE(DQ_E_UNSUPPORTED);
        CASE(DQ_E_STATE);
        CASE(DQ_E_NOTFOUND);
        CASE(DQ_E_INTERNAL);
        CASE(DQ_E_IO);
        CASE(DQ_E_FORMAT);
        CASE(DQ_E_TRUNCATED);
        CASE(DQ_E_MISMATCH);
        CASE(DQ_E_NONFINITE);
        CASE(DQ_E_NUMERIC);
        CASE(DQ_E_TEXT);
        CASE(DQ_E_BACKEND);
        CASE(DQ_E_DEVICE_MEMORY);
        CASE(DQ_E_DEVICE_LOST);
    }
#undef CASE
    return "DQ_E_?";
}
