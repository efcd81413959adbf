/* Arbitrary bytes as the pickle of a PyTorch archive: the zip's checksum would keep most changes from ever getting there.
 * SPDX-License-Identifier: Apache-2.0
 * Pickles: .pt */
#include "fuzz.h"
#include "io/pt_names.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dq_env env;
    dq_pickle *pickle = NULL;
    dq_pickle_value root = {0};
    if (dq_env_init(&env, NULL, 1) != DQ_OK) abort();
    uint64_t before = atomic_load(&env.memory_now);
    if (dq_pickle_load(&env, data, size, &pickle, &root) == DQ_OK) {
        dq_pt_names *names = malloc(sizeof *names);
        dq_status status = dq_pt_collect(&env, &root, names);
        for (size_t i = 0; status == DQ_OK && i < names->count; i++) {
            const dq_pickle_tensor *t = names->items[i].tensor;
            int64_t last = t->offset, elements = 1;
            for (int d = 0; d < t->ndim; d++) {
                elements *= t->shape[d];
                if (t->shape[d] > 0) last += (t->shape[d] - 1) * t->stride[d];
            }
            if (elements > 0 && (last < 0 || last >= t->storage->numel)) abort();
        }
        dq_pt_names_clear(names);
        free(names);
        dq_pickle_free(pickle);
    }
    if (atomic_load(&env.memory_now) != before) abort();
    dq_env_clear(&env);
    return 0;
}
