/* cudasim's checker: what its files share. SPDX-License-Identifier: Apache-2.0 */
#ifndef CUDASIM_CHECK_STATE_H
#define CUDASIM_CHECK_STATE_H

#include <string>
#include <vector>

#include "check.h"

namespace cusim
{
namespace check
{

/* ---- when ----
 * A clock goes forward at every barrier and at the start of blocks and launches. An access is remembered as its time, thread
 * and code; two of them are ordered when a barrier that both threads took part in lies between them. */
enum { WARP = 32, MOST_THREADS = 1024, THREAD_BITS = 10, FLAG_BITS = 2, CODE_BITS = 15 };
typedef uint64_t stamp; /* 0: never */
enum : uint64_t {
    THREAD_MASK = MOST_THREADS - 1,
    FLAG = (uint64_t)1 << THREAD_BITS,           /* of a write: atomic; of a read: other lanes of the warp read, too */
    UNDER_WAY = (uint64_t)1 << (THREAD_BITS + 1) /* of a write: an asynchronous copy that was not waited for */
};
enum { TIME_SHIFT = THREAD_BITS + FLAG_BITS + CODE_BITS };
static inline uint64_t time_of(stamp s) { return s >> TIME_SHIFT; }
static inline int thread_of(stamp s) { return (int)(s & THREAD_MASK); }
static inline int code_of(stamp s) { return (int)(s >> (THREAD_BITS + FLAG_BITS)) & ((1 << CODE_BITS) - 1); }

struct timing {
    uint64_t now, launch, block, barrier; /* the present; starts; the last barrier of the block */
    uint64_t warp[MOST_THREADS / WARP];   /* the last __syncwarp of all lanes */
    bool by_lanes;                        /* some had other masks: */
    uint64_t known[MOST_THREADS][WARP];   /* what of its warp's lanes a thread has seen */
};
extern timing when;

/* ---- where ---- */
/* 4 bytes of memory: who used them last. A word that was used in parts has four of these elsewhere. */
struct cell {
    stamp write, read;
    stamp other;     /* the last read by another warp than `read`'s */
    stamp elsewhere; /* the last read by another block of this launch */
};
const stamp IN_PARTS = ~(stamp)0; /* `write` of a word whose parts are at 4 * `read` */

enum kind { GLOBAL, PINNED, DYNAMIC_SHARED, STATIC_SHARED, CONSTANT, PARAMETERS };
struct region {
    uintptr_t begin;
    size_t bytes;
    kind what;
    bool freed;
    std::string name;                 /* of a variable */
    std::string owner;                /* the kernel (or function) of a shared variable, as linkers call it */
    std::vector<cell> parts;          /* of words that were used in parts */
    cell *cells = nullptr;            /* made when first needed */
    unsigned char *written = nullptr; /* of memory of the card: a bit a byte, 4 of them in each */
    bool holds(uintptr_t at) const { return at - begin < bytes; }
};
extern region dynamic_shared_region, parameter_region;

/* Whatever is at that address; NULL if nothing that a kernel may use. */
region *find_region(uintptr_t at);
/* Where this launch may read and write, used last; their cells are there. */
enum { HOT = 8 };
extern region *hot[HOT];
void remember(region *r);
/* The words of a report: "byte 12 of 96 bytes of ..." */
std::string place_of(uintptr_t at);
void need_cells(region &r);
void mark_written(region &r, size_t offset, size_t bytes);
bool all_written(const region &r, size_t offset, size_t bytes);

/* ---- who ---- */
struct runner {
    int thread;
    uintptr_t stack;
    size_t stack_bytes;
    launch_facts launch;
    std::string kernel;                /* as linkers call it */
    std::vector<uint64_t> block_times; /* of this launch */
};
extern runner who;
extern __thread bool inside __attribute__((tls_model("initial-exec"))); /* a kernel, on this thread of the host */
extern uint64_t launches, accesses;

enum use { READ, WRITE, ATOMIC };
/* One access of the running thread; `async`: an asynchronous copy's. */
void access(uintptr_t at, size_t bytes, use how, const void *code, bool async = false);
/* The same where it is in none of the hot regions, or not aligned: reports what is wrong; NULL if there is no more to check. */
region *reach(uintptr_t at, size_t bytes, use how, const void *code);
/* The copy that was begun there has come. */
void arrived(uintptr_t at, size_t bytes, const void *code);

/* ---- what to say ---- */
/* A place that accesses memory, in a table; what it met last in this launch. */
struct place_of_code {
    const void *code;
    region *met;
    uint64_t launch;
};
extern place_of_code codes[1 << CODE_BITS];
/* Number 0 is for those that found no room. */
static inline int number_of(const void *code)
{
    enum { ALL = 1 << CODE_BITS, TRIES = 64 };
    size_t at = ((uintptr_t)code * 0x9e3779b97f4a7c15u) >> (64 - CODE_BITS);
    for (int i = 0; i < TRIES; i++, at = (at + 1) % ALL) {
        if (at && codes[at].code == code) return (int)at;
        if (at == 0 || codes[at].code) continue;
        codes[at].code = code;
        return (int)at;
    }
    return 0;
}
static inline const void *code_at(int number) { return codes[number].code; }
/* Once for each kind of error and place in the source. `earlier`: code of the other access, or NULL. */
void report(const char *what, const void *code, const void *earlier, const std::string &text);
std::string source_of(const void *code);
std::string thread_name(int thread);
std::string format(const char *text, ...) __attribute__((format(printf, 1, 2)));

/* ---- the program's own names ---- */
struct symbol {
    uintptr_t begin;
    size_t bytes;
    bool function, writable;
    std::string name;
};
const symbol *find_symbol(uintptr_t at);
/* Constants and literals. */
bool is_constant(uintptr_t at);
std::string readable(const std::string &name);

} // namespace check
} // namespace cusim

#endif
