/* Arbitrary bytes as a safetensors file. SPDX-License-Identifier: Apache-2.0
 * Seeds: .safetensors */
#include "fuzz.h"

static void more(dq_source *s) { (void)dq_safetensors_metadata(s, "format"); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_open(dq_safetensors_open_map, data, size, more);
    return 0;
}
