/* Tile registers of a thread: configured for an op, released afterwards. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_AMX_H
#define DQ_BACKEND_CPU_AMX_H

#include <immintrin.h>
#include <stdint.h>

/* All eight tiles: 16 rows of 64 bytes. */
static inline void dq_amx_begin(void)
{
    /* Constant data: some compilers believe that the instruction reads 8 bytes only, and drop stores to the rest. */
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&config);
}

/* Between stores and tile loads of the same memory: GCC's tile loads do not say that they read memory. */
static inline void dq_amx_barrier(void) { __asm__ volatile("" ::: "memory"); }

static inline void dq_amx_end(void) { _tile_release(); }

#endif
