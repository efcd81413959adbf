/* libFuzzer: the input is a tokenizer.json and, behind a NUL byte, a text to encode and decode with it.
 * SPDX-License-Identifier: Apache-2.0
 * Seeds: .json */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "text/tokenizer.h"

static dq_env env;
static char path[64];

static void remove_file(void) { unlink(path); }

static void start(void)
{
    static bool started;
    if (started) return;
    started = true;
    if (dq_env_init(&env, NULL, 1) != DQ_OK) abort();
    snprintf(path, sizeof path, "/tmp/fuzz-tokenizer-%d.json", (int)getpid());
    atexit(remove_file);
}

static void use(const dq_tokenizer *t, const char *text, size_t bytes)
{
    for (int special = 0; special < 2; special++) {
        dq_ids ids = {0};
        char *back = NULL;
        if (dq_tokenizer_encode_text(t, text, bytes, special, special, &ids) != DQ_OK) continue;
        for (size_t i = 0; i < ids.count; i++)
            if (ids.data[i] < 0 || ids.data[i] >= dq_tokenizer_size(t)) abort();
        if (dq_tokenizer_decode_ids(t, ids.data, ids.count, special, &back, NULL) == DQ_OK) dq_free(back);
        dq_free(ids.data);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char fallback[] = "It isn't 12 \xc3\xa9 <s> \xff\n";
    start();
    const uint8_t *nul = size ? memchr(data, 0, size) : NULL;
    size_t json = nul ? (size_t)(nul - data) : size;
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, json, f) != json || fclose(f) != 0) abort();
    uint64_t before = atomic_load(&env.memory_now);
    dq_tokenizer *t = NULL;
    if (dq_tokenizer_from_json(&env, path, &t) == DQ_OK) {
        if (nul)
            use(t, (const char *)nul + 1, size - json - 1);
        else
            use(t, fallback, sizeof fallback - 1);
        dq_tokenizer_destroy(t);
    }
    if (atomic_load(&env.memory_now) != before) abort(); /* a leak of our own counting */
    return 0;
}
