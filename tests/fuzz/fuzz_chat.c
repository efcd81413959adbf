/* libFuzzer: the input is a chat template and, behind a NUL byte, a JSON object with the values it is rendered with.
 * SPDX-License-Identifier: Apache-2.0
 * Templates: chat/templates.json */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "chat/template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static json_t *values_of(const char *text, size_t bytes)
{
    static const char fallback[] = "{\"messages\": [{\"role\": \"user\", \"content\": \"A\\u00e9 <b>\"}, {\"role\": "
                                   "\"assistant\", \"content\": [1, -2.5, null, true, {\"k\": \"v\"}]}], "
                                   "\"add_generation_prompt\": true, \"bos_token\": \"<s>\", \"tools\": []}";
    json_t *values = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    if (json_is_object(values)) return values;
    json_decref(values);
    return json_loads(fallback, 0, NULL);
}

/* A failure must be recorded with a text, success must give text with its length; nothing may leak. */
static void check(dq_status status, const char *text, size_t bytes)
{
    if (status == DQ_OK ? !text || text[bytes] != '\0' : dq_error_last() != status || dq_error_text()[0] == '\0')
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dq_env env;
    dq_template *t = NULL;
    if (dq_env_init(&env, NULL, 1) != DQ_OK) abort();
    uint64_t before = atomic_load(&env.memory_now);
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t length = nul ? (size_t)(nul - data) : size;
    json_t *values = values_of(nul ? (const char *)nul + 1 : "", nul ? size - length - 1 : 0);
    dq_error_reset();
    dq_status status = dq_template_parse(&env, (const char *)data, length, &t);
    check(status, "", 0);
    if (status == DQ_OK) {
        char *out = NULL;
        size_t bytes = 0;
        dq_error_reset();
        status = dq_template_render(t, values, &out, &bytes);
        check(status, out, bytes);
        dq_free(out);
        dq_template_free(t);
    }
    json_decref(values);
    if (atomic_load(&env.memory_now) != before) abort(); /* a leak of our own counting */
    dq_env_clear(&env);
    return 0;
}
