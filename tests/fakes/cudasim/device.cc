/* cudasim: what a thread does besides plain loads and stores: atomics, asynchronous copies to shared memory, loads of matrices
 * for tensor cores. Not instrumented; the checker is told of each. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "check.h"
#include "sim.h"

namespace cusim
{
namespace
{

enum { CHUNK = 16 /* bytes of a copy, of a matrix's row */ };

struct later {
    void *to;
    const void *from;
};

/* What a thread has asked for; the first copies belong to groups. */
struct under_way {
    std::vector<later> copies;
    std::vector<size_t> groups; /* sizes, the oldest first */
};
std::vector<under_way> waits;
const char zeros[CHUNK] = {};

void need_alignment(const char *what, const void *p)
{
    if (check::on || (uintptr_t)p % CHUNK == 0) return; /* the checker says more */
    fprintf(stderr, "cudasim: %s that is not aligned\n", what);
    abort();
}

} // namespace

void forget_copies(int threads)
{
    if ((int)waits.size() < threads) waits.resize((size_t)threads);
    for (int i = 0; i < threads; i++) {
        waits[(size_t)i].copies.clear();
        waits[(size_t)i].groups.clear();
    }
}

void copy_later(void *to, const void *from, bool there)
{
    need_alignment("an asynchronous copy", to);
    need_alignment("an asynchronous copy", from);
    check::copy_begins(to, from, there, __builtin_return_address(0));
    memset(to, 0xff, CHUNK); /* NaN until somebody waits */
    waits[(size_t)thread_index()].copies.push_back({to, there ? from : zeros});
}
void copies_commit()
{
    under_way &w = waits[(size_t)thread_index()];
    size_t grouped = 0;
    for (size_t n : w.groups) grouped += n;
    w.groups.push_back(w.copies.size() - grouped);
}
void copies_done(int pending)
{
    under_way &w = waits[(size_t)thread_index()];
    while ((int)w.groups.size() > pending) {
        size_t n = w.groups.front();
        for (size_t i = 0; i < n; i++) {
            memcpy(w.copies[i].to, w.copies[i].from, CHUNK);
            check::copy_ends(w.copies[i].to, __builtin_return_address(0));
        }
        w.copies.erase(w.copies.begin(), w.copies.begin() + (long)n);
        w.groups.erase(w.groups.begin());
    }
}

/* All lanes leave their rows, read when all have come, and go on when all have read. The hardware reads all rows at once, so
 * that each belongs to the lane that named it. */
void load_matrices(uint32_t (&out)[4], const void *row, bool transposed)
{
    uint64_t rows[32];
    need_alignment("a row of a matrix", row);
    check::matrix_row(row, __builtin_return_address(0));
    exchange_all((uint64_t)(uintptr_t)row, rows);
    int g = lane() / 4, t = lane() % 4;
    for (int i = 0; i < 4; i++) {
        uint16_t two[2];
        for (int k = 0; k < 2; k++) {
            const uint16_t *r = (const uint16_t *)(uintptr_t)rows[8 * i + (transposed ? 2 * t + k : g)];
            two[k] = r[transposed ? g : 2 * t + k];
        }
        out[i] = two[0] | (uint32_t)two[1] << 16;
    }
    exchange_all(0, rows);
}

/* Nobody comes between the two: fibers switch elsewhere. */
void atomic_begin(const void *p, void *value, size_t bytes)
{
    check::atomic(p, bytes, __builtin_return_address(0));
    memcpy(value, p, bytes);
}
void atomic_end(void *p, const void *value, size_t bytes) { memcpy(p, value, bytes); }

} // namespace cusim
