/* cudasim: what tests may ask of the simulated card and how they make it fail. The plug-in exports these functions beside its
 * entry; a test finds them with dlsym in the file that the library has loaded. SPDX-License-Identifier: Apache-2.0 */
#ifndef CUDASIM_CONTROL_H
#define CUDASIM_CONTROL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum cudasim_kind {
    CUDASIM_CALL,   /* every call of the runtime, cuBLAS and cuSOLVER, and every launch */
    CUDASIM_LAUNCH, /* of a kernel */
    CUDASIM_DEVICE, /* memory of the card */
    CUDASIM_PINNED, /* memory of the host that the card reads */
    CUDASIM_COPY,   /* and memsets */
    CUDASIM_KINDS
} cudasim_kind;

/* `times` of a failure, or: */
enum {
    CUDASIM_GONE = -1,     /* it and every later call */
    CUDASIM_GONE_LATE = -2 /* it succeeds, as launches do; the next call that waits fails and every later one */
};

/* What is alive now, and what was called since the start. */
typedef struct cudasim_ledger {
    int64_t device_blocks, device_bytes, pinned_blocks, pinned_bytes, streams, events, handles;
    int64_t calls[CUDASIM_KINDS];
} cudasim_ledger;

/* The n-th call of a kind from now on (1: the next one) fails with `code`; n = 0 takes everything back, also a lost card.
 * In the environment of a program: CUDASIM_FAIL=KIND:N:CODE:TIMES with the numbers above. */
void cudasim_fail(int kind, int64_t n, int code, int times);
void cudasim_read(cudasim_ledger *out);

#ifdef __cplusplus
}
#endif

#endif
