/* Tile registers of a thread: configured for an op, released afterwards. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_CPU_AMX_H
#define DQ_BACKEND_CPU_AMX_H

#include <immintrin.h>
#include <stdint.h>

/* All eight tiles: 16 rows of 64 bytes. */
static inline void dq_amx_begin(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = 64;
        config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
}

static inline void dq_amx_end(void) { _tile_release(); }

#endif
