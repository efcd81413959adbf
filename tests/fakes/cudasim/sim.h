/* cudasim: what its files share: injected failures, the ledger of what is alive, the current card.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef CUDASIM_SIM_H
#define CUDASIM_SIM_H

#include <cuda_runtime.h>

#include "control.h"

namespace cusim
{

/* Before a call does anything: the failure that was asked for it, or success. `waits`: it sees what kernels did before. */
cudaError_t step(cudasim_kind kind, bool waits = false);
/* Remembered until somebody asks. */
cudaError_t keep(cudaError_t error);
/* The calling thread's card. */
int current_card();

/* Bytes of dynamic shared memory that a launch of the kernel may ask for now. */
size_t shared_allowed(const void *kernel);

int card_of(cudaStream_t stream);
/* Streams, events and handles come and go. */
void count(int64_t cudasim_ledger::*what, int by);

/* Memory between two strips that must not change. */
void *new_memory(size_t bytes, bool pinned);
void free_memory(void *memory, bool pinned);
size_t memory_left();
bool is_on_card(const void *memory, size_t bytes);
/* What a card would trap or corrupt ends the program with a sentence. */
void need_on_card(const char *call, const void *memory, size_t bytes);

} // namespace cusim

#endif
