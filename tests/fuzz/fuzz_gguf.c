/* Arbitrary bytes as a GGUF file. SPDX-License-Identifier: Apache-2.0
 * Seeds: .gguf */
#include "fuzz.h"

static void more(dq_source *s)
{
    static const char *const keys[] = {"general.architecture",
                                       "k.u8",
                                       "k.i16",
                                       "k.u64",
                                       "k.f32",
                                       "k.bool",
                                       "k.string",
                                       "k.strings",
                                       "k.ints",
                                       "k.floats"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        int64_t v = 0, n = 0;
        double d = 0;
        const char *text = NULL;
        size_t bytes = 0;
        dq_gguf_int(s, keys[i], &v);
        dq_gguf_double(s, keys[i], &d);
        if (dq_gguf_string(s, keys[i], &text, &bytes) == DQ_OK && bytes) v += text[bytes - 1];
        if (dq_gguf_array_length(s, keys[i], &n) != DQ_OK) continue;
        for (int64_t k = n > 100 ? n - 100 : 0; k <= n; k++) {
            if (dq_gguf_array_string(s, keys[i], k, &text, &bytes) == DQ_OK && bytes) v += text[bytes - 1];
            dq_gguf_array_int(s, keys[i], k, &v);
            dq_gguf_array_double(s, keys[i], k, &d);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_open(dq_gguf_open_map, data, size, more);
    return 0;
}
