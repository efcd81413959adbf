/* The reference backend: plain C, every op, fp64 accumulation. It is the definition of correct. Memory handles are host
 * pointers. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_REF_H
#define DQ_BACKEND_REF_H

#include "dartquant/backend.h"

/* First member of every device whose memory is host memory, so that the functions below serve it too. */
typedef struct dq_ref_dev {
    const dq_host *host;
} dq_ref_dev;

/* The full table; cpu starts from a copy of it and overwrites slots. */
const dq_backend *dq_ref_backend(void);

static inline void *dq_view_at(const dq_view *v, int64_t row, int64_t col, int64_t element_size)
{
    return (char *)v->mem + v->offset + (row * v->stride + col) * element_size;
}
static inline float *dq_view_f32(const dq_view *v, int64_t row) { return dq_view_at(v, row, 0, 4); }
static inline double *dq_view_f64(const dq_view *v, int64_t row) { return dq_view_at(v, row, 0, 8); }
static inline uint8_t *dq_view_u8(const dq_view *v, int64_t row) { return dq_view_at(v, row, 0, 1); }
static inline int32_t *dq_view_i32(const dq_view *v, int64_t row) { return dq_view_at(v, row, 0, 4); }

#endif
