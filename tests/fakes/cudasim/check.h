/* cudasim: what the simulated card tells its checker (docs/backends.md, "simulated card"). In the build without one
 * (CUDASIM_CHECK is not defined) all of it is nothing. SPDX-License-Identifier: Apache-2.0 */
#ifndef CUDASIM_CHECK_H
#define CUDASIM_CHECK_H

#include <cuda_runtime.h>

namespace cusim
{
namespace check
{

#ifdef CUDASIM_CHECK

constexpr bool on = true;

/* ---- memory, in the order of its stream ---- */
void allocated(const void *memory, size_t bytes, bool pinned);
void freed(const void *memory); /* it must not be used any more */
void gone(const void *memory);  /* its addresses may come again */
/* What libraries and copies read and write; `call` for the report. */
void reads(const char *call, const void *memory, size_t bytes);
void writes(const char *call, const void *memory, size_t bytes);
void copies(const void *to, const void *from, size_t bytes);
/* What a host reads or writes elsewhere is none of our business. */
bool reported();

/* ---- a launch, its blocks, its threads ---- */
struct launch_facts {
    const char *name;
    const void *kernel;                   /* its code */
    const void *parameters;               /* it may read them */
    size_t parameter_bytes, shared_bytes; /* of dynamic shared memory */
    const unsigned char *shared;
};
void begin_launch(const launch_facts &facts);
void end_launch();
void begin_block();
/* `thread` goes on; its locals lie at `stack`. */
void run_thread(int thread, const char *stack, size_t stack_bytes);
/* Everybody's accesses until now come before everybody's from now on: in the block; among lanes of a warp. */
void block_ordered();
void warp_ordered(int warp, unsigned mask);
/* A barrier or an exchange that a card would not survive. `where`: code of the call. */
void wrong_barrier(const void *where, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Whether two calls are the same in the source, although the compiler made two of one. */
bool same_place(const void *a, const void *b);

/* ---- accesses that are no plain loads and stores ---- */
void atomic(const void *memory, size_t bytes, const void *where);
void matrix_row(const void *row, const void *where);
void copy_begins(const void *to, const void *from, bool there, const void *where);
void copy_ends(const void *to, const void *where);

#else

constexpr bool on = false;
static inline void allocated(const void *, size_t, bool) {}
static inline void freed(const void *) {}
static inline void gone(const void *) {}
static inline void reads(const char *, const void *, size_t) {}
static inline void writes(const char *, const void *, size_t) {}
static inline void copies(const void *, const void *, size_t) {}
static inline bool reported() { return false; }
struct launch_facts {
    const char *name;
    const void *kernel, *parameters;
    size_t parameter_bytes, shared_bytes;
    const unsigned char *shared;
};
static inline void begin_launch(const launch_facts &) {}
static inline void end_launch() {}
static inline void begin_block() {}
static inline void run_thread(int, const char *, size_t) {}
static inline void block_ordered() {}
static inline void warp_ordered(int, unsigned) {}
static inline void wrong_barrier(const void *, const char *, ...) {}
static inline bool same_place(const void *, const void *) { return true; }
static inline void atomic(const void *, size_t, const void *) {}
static inline void matrix_row(const void *, const void *) {}
static inline void copy_begins(const void *, const void *, bool, const void *) {}
static inline void copy_ends(const void *, const void *) {}

#endif

/* A column-major matrix, as cuBLAS and cuSOLVER take them. */
enum part { WHOLE, LOWER, UPPER };
template <class F> static inline void each_column(int64_t rows, int64_t cols, part which, F f)
{
    for (int64_t c = 0; on && c < cols; c++) {
        int64_t first = which == LOWER ? c : 0, last = which == UPPER && c + 1 < rows ? c + 1 : rows;
        if (first < last) f(c, first, last - first);
    }
}
static inline void reads_matrix(const char *call, const void *p, int64_t rows, int64_t cols, int64_t ld, size_t size,
                                part which = WHOLE)
{
    each_column(rows, cols, which, [=](int64_t c, int64_t r, int64_t n) {
        reads(call, (const char *)p + (size_t)(c * ld + r) * size, (size_t)n * size);
    });
}
static inline void writes_matrix(const char *call, const void *p, int64_t rows, int64_t cols, int64_t ld, size_t size,
                                 part which = WHOLE)
{
    each_column(rows, cols, which, [=](int64_t c, int64_t r, int64_t n) {
        writes(call, (const char *)p + (size_t)(c * ld + r) * size, (size_t)n * size);
    });
}

} // namespace check
} // namespace cusim

#endif
