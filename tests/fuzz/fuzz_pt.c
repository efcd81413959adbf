/* Arbitrary bytes as a PyTorch archive. SPDX-License-Identifier: Apache-2.0
 * Seeds: .pt */
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_open(dq_pt_open_map, data, size, NULL);
    return 0;
}
