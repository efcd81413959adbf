/* Bounded JSON reading through jansson. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_JSON_H
#define DQ_IO_JSON_H

#include <jansson.h>

#include "base/env.h"

/* Parses text; duplicate keys, trailing garbage, invalid UTF-8 and depth beyond jansson's limit are refused. Errors
 * carry `path` (may be NULL) and the byte. Integers beyond 64 bits become reals. Caller: json_decref. */
dq_status dq_json_parse(const char *text, size_t bytes, const char *path, json_t **out);
/* The same for text that starts at byte `base` of the file: errors count from there. */
dq_status dq_json_parse_at(const char *text, size_t bytes, uint64_t base, const char *path, json_t **out);
/* Whole file, at most `limit` bytes. */
dq_status dq_json_load(dq_env *env, const char *path, uint64_t limit, json_t **out);

/* Typed members of an object. The _req forms fail when the key is absent; the others leave *out alone. A present
 * member of the wrong type or out of range always fails, naming the key and `path`. null counts as absent. */
dq_status dq_json_int(const json_t *object, const char *key, int64_t min, int64_t max, bool required, const char *path,
                      int64_t *out);
dq_status dq_json_double(const json_t *object, const char *key, bool required, const char *path, double *out);
dq_status dq_json_bool(const json_t *object, const char *key, bool required, const char *path, bool *out);
/* *out is owned by the object. */
dq_status dq_json_string(const json_t *object, const char *key, bool required, const char *path, const char **out);

/* Serialises into fresh memory of `env`. `pretty`: indented. */
dq_status dq_json_dump(dq_env *env, const json_t *value, bool pretty, char **out);

#endif
