/* libdartquant: the context holds the services (memory, log, threads) and the devices that all other objects use.
 * Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_CONTEXT_H
#define DARTQUANT_CONTEXT_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Host-supplied memory. alloc returns NULL on failure and memory aligned to at least 16 bytes; free receives the
 * size that was asked for. Both may be called from any thread. All NULL = malloc/free. */
typedef struct dq_allocator {
    void *(*alloc)(void *user, size_t bytes);
    void (*free)(void *user, void *ptr, size_t bytes);
    void *user;
} dq_allocator;

/* Host-supplied threads: must call task(arg, i, thread) once for each i in [0, count) with 0 <= thread < threads,
 * and return after the last. run == NULL = the library's own pool. */
typedef struct dq_runner {
    void (*run)(void *user, int64_t count, void (*task)(void *arg, int64_t i, int thread), void *arg);
    void *user;
    int32_t threads; /* upper bound of `thread` + 1 */
    int32_t reserved;
} dq_runner;

enum { DQ_LOG_ERROR = 1, DQ_LOG_WARNING = 2, DQ_LOG_INFO = 3, DQ_LOG_DEBUG = 4 };
/* `text` is one line without newline, valid during the call. Must not call back into the library. */
typedef void (*dq_log_fn)(void *user, int32_t level, const char *text);

/* Everything a host may inject. Set struct_size to sizeof(dq_services), abi to 1, unused members to zero. */
typedef struct dq_services {
    uint32_t struct_size;
    uint32_t abi;
    dq_allocator allocator;
    dq_runner runner;
    dq_log_fn log;
    void *log_user;
} dq_services;

/* Creates a context. `config` (NULL = defaults) supplies "threads", "backend", "policy", "simd", "device_memory", "memory_budget"
 * and is copied; `services` (NULL = defaults) is copied too, what it points to must outlive the context and its objects. One
 * thread at a time per context and its objects.
 * "backend" is NAME or NAME:OPTIONS, OPTIONS being handed to the backend. NAME is a backend of the library (auto, cpu, ref),
 * else a plug-in (dartquant/backend.h): either its absolute path, which must not contain ':', or the bare name of
 * LIBDIR/dartquant/backends-1/libdartquant-NAME.so, LIBDIR being the folder libdartquant itself was loaded from. Nothing
 * else is searched, neither the current folder nor the environment, and nothing is loaded unless it is named.
 * Errors: DQ_E_INVALID, DQ_E_NOTFOUND (no such backend), DQ_E_UNSUPPORTED (instruction set absent, or a plug-in for
 * another version of backend.h), DQ_E_BACKEND (plug-in that cannot be loaded or lacks its entry, device that does not open;
 * dq_error_text has the reason), DQ_E_NOMEM. */
DQ_API dq_status dq_context_new(const dq_config *config, const dq_services *services, dq_context **out);

struct dq_backend; /* dartquant/backend.h */
/* The same on a backend that the host brings: "backend" and "simd" of `config` are not read. The table is copied; its
 * functions must outlive the context and its objects. `options` (NULL = "") goes to the backend's open.
 * Errors: as dq_context_new; DQ_E_INVALID for a table of another ABI or without a mandatory slot (the message names it). */
DQ_API dq_status dq_context_new_with_backend(const dq_config *config, const dq_services *services,
                                             const struct dq_backend *backend, const char *options, dq_context **out);
/* *out = the static table of "cpu" or "ref" ("auto" = "cpu"), for a host that replaces single ops in a copy of it: a
 * replaced op gets the same device and reaches its operands through the table's host_pointer.
 * Errors: DQ_E_INVALID, DQ_E_NOTFOUND. */
DQ_API dq_status dq_backend_builtin(const char *name, const struct dq_backend **out);
/* Gives the context up; NULL is accepted. Objects made from it keep what they need alive until they are freed too, so
 * the order of freeing does not matter. */
DQ_API void dq_context_free(dq_context *ctx);

/* Name of the device in use, e.g. "cpu:avx512"; owned by the context. */
DQ_API const char *dq_context_device_name(const dq_context *ctx);
/* JSON text describing device, backend, threads and memory: {"device","description","backend","threads","memory_total",
 * "memory_free","missing_ops"}, the last a list of names of operations that its backend does not have; owned by the context. These getters give "" or 0 for NULL. */
DQ_API const char *dq_context_device_json(const dq_context *ctx);
/* Bytes the context's objects hold now, and the most they ever held (through the allocator, so without mapped files
 * and without what OpenBLAS or the system libraries take themselves). */
DQ_API uint64_t dq_context_memory_now(const dq_context *ctx);
DQ_API uint64_t dq_context_memory_peak(const dq_context *ctx);
/* How many ops ran on the host because the device did not support them ("policy" = warn or allow). */
DQ_API uint64_t dq_context_fallback_count(const dq_context *ctx);

/* What went over the border to the device since the context was made. Set struct_size to sizeof(dq_device_counters). */
typedef struct dq_device_counters {
    uint32_t struct_size;
    uint32_t reserved;
    uint64_t ops;       /* ops asked of the device, those that fell back included */
    uint64_t fallbacks; /* ops that ran on the host instead */
    uint64_t uploads;   /* copies to the device that succeeded, those of fallbacks included: one per tensor, or one */
    uint64_t downloads; /* per row of a tensor with gaps between its rows; and back */
    uint64_t upload_bytes;
    uint64_t download_bytes;
} dq_device_counters;
/* Fills *out, as much of it as out->struct_size covers. Errors: DQ_E_INVALID. */
DQ_API dq_status dq_context_counters(const dq_context *ctx, dq_device_counters *out);

#ifdef __cplusplus
}
#endif
#endif
