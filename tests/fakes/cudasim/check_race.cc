/* cudasim's checker: who used a word last, and whether a barrier lies between two uses. Races are found where two accesses
 * are not ordered, whatever the order in which the simulation happened to do them.
 * SPDX-License-Identifier: Apache-2.0 */
#include "check_state.h"

namespace cusim
{
namespace check
{

timing when;

void block_ordered() { when.barrier = ++when.now; }

/* Of all lanes, as nearly always; else the lanes learn what any of them knows. */
void warp_ordered(int warp, unsigned mask)
{
    uint64_t now = ++when.now, known[WARP] = {};
    if (mask == ~0u) {
        when.warp[warp] = now;
        return;
    }
    if (!when.by_lanes) memset(when.known, 0, sizeof when.known);
    when.by_lanes = true;
    for (int i = 0; i < WARP; i++)
        for (int j = 0; mask >> i & 1 && j < WARP; j++) {
            uint64_t k = when.known[warp * WARP + i][j];
            if (k > known[j]) known[j] = k;
        }
    for (int j = 0; j < WARP; j++)
        if (mask >> j & 1) known[j] = now;
    for (int i = 0; i < WARP; i++)
        if (mask >> i & 1) memcpy(when.known[warp * WARP + i], known, sizeof known);
}

namespace
{

/* Whether nothing lies between an earlier access and the running thread's; before `begin` is another launch, or for shared
 * memory another block. */
bool unordered(stamp s, int thread, uint64_t begin)
{
    uint64_t t = time_of(s);
    int other = thread_of(s), warp = thread / WARP;
    if (t < begin) return false;
    if (t < when.block) return true;
    if (other == thread || t < when.barrier) return false;
    if (other / WARP != warp) return true;
    if (t < when.warp[warp]) return false;
    return !when.by_lanes || t >= when.known[thread][other % WARP];
}

/* Another lane of the running thread's warp read, too, and no barrier of the warp came since. */
bool others_of_warp(stamp s, int thread)
{
    uint64_t t = time_of(s);
    return (s & FLAG) && t >= when.block && t >= when.barrier && thread_of(s) / WARP == thread / WARP &&
           t >= when.warp[thread / WARP] && !when.by_lanes;
}

std::string describe(use how, size_t bytes, uintptr_t at)
{
    return format("%s of %zu bytes at %s by %s",
                  how == READ    ? "read"
                  : how == WRITE ? "write"
                                 : "atomic",
                  bytes, place_of(at).c_str(), thread_name(who.thread).c_str());
}

std::string block_of(stamp s)
{
    uint64_t t = time_of(s);
    if (t >= when.block) return "of the same block";
    size_t low = 0, high = who.block_times.size();
    while (low + 1 < high) {
        size_t middle = (low + high) / 2;
        (who.block_times[middle] <= t ? low : high) = middle;
    }
    unsigned x = (unsigned)low % here.grid_dim.x, rest = (unsigned)low / here.grid_dim.x;
    return format("of block (%u,%u,%u)", x, rest % here.grid_dim.y, rest / here.grid_dim.y);
}

struct attempt {
    region &r;
    uintptr_t at; /* of the whole access */
    size_t bytes;
    use how;
    const void *code;
    stamp me;
    uint64_t begin; /* of what it may race with */
};

void say_race(const attempt &a, stamp s, const char *did)
{
    bool shared = a.r.what != GLOBAL;
    report(shared ? "race in shared memory" : "race in global memory", a.code, code_at(code_of(s)),
           format("%s; thread %d %s %s it before, and no barrier is between", describe(a.how, a.bytes, a.at).c_str(),
                  thread_of(s), block_of(s).c_str(), did));
}

const char *did(stamp w) { return w & FLAG ? "changed (atomically)" : "wrote"; }

/* The running thread uses what `c` stands for. */
void use_cell(cell &c, const attempt &a)
{
    int me = who.thread;
    if ((c.write & UNDER_WAY) && time_of(c.write) >= when.block)
        report("asynchronous copy", a.code, code_at(code_of(c.write)),
               describe(a.how, a.bytes, a.at) + ", where a copy is under way that its thread has not waited for");
    else if (c.write && unordered(c.write, me, a.begin) && !(a.how == ATOMIC && (c.write & FLAG)))
        say_race(a, c.write, did(c.write));
    if (a.how == READ) {
        if (c.read == a.me) return;
        if (c.read) {
            uint64_t t = time_of(c.read);
            if (t < when.block)
                c.elsewhere = t < when.launch ? 0 : c.read;
            else if (thread_of(c.read) / WARP != me / WARP)
                c.other = c.read;
            else if ((thread_of(c.read) != me || (c.read & FLAG)) && t >= when.barrier && t >= when.warp[me / WARP]) {
                c.read = a.me | FLAG;
                return;
            }
        }
        c.read = a.me;
        return;
    }
    if (c.read) {
        if (unordered(c.read, me, a.begin))
            say_race(a, c.read, "read");
        else if (others_of_warp(c.read, me))
            say_race(a, c.read, "(or another lane of its warp) read");
        else if (c.other && unordered(c.other, me, a.begin))
            say_race(a, c.other, "read");
        else if (c.elsewhere && unordered(c.elsewhere, me, a.begin))
            say_race(a, c.elsewhere, "read");
    }
    c.write = a.me;
    c.read = c.other = c.elsewhere = 0;
}

/* Shared memory begins with every block. */
bool is_written(const cell &c) { return time_of(c.write) >= when.block; }

void into_parts(region &r, cell &c)
{
    size_t first = r.parts.size();
    r.parts.insert(r.parts.end(), 4, c);
    c.write = IN_PARTS;
    c.read = first;
}

} // namespace

void check_cells(region &r, uintptr_t at, size_t bytes, use how, const void *code, bool async)
{
    stamp me = when.now << TIME_SHIFT | (uint64_t)number_of(code) << (THREAD_BITS + FLAG_BITS) | (uint64_t)who.thread |
               (how == ATOMIC ? (uint64_t)FLAG : 0) | (async && how == WRITE ? (uint64_t)UNDER_WAY : 0);
    attempt a = {r, at, bytes, how, code, me, r.what == GLOBAL ? when.launch : when.block};
    size_t first = at - r.begin, end = first + bytes;
    bool fresh = false;
    auto one = [&](cell &c) {
        fresh = fresh || (r.what != GLOBAL && how != WRITE && !is_written(c));
        use_cell(c, a);
    };
    need_cells(r);
    for (size_t i = first; i < end;) {
        cell &c = r.cells[i / 4];
        size_t part = i % 4, n = end - i < 4 - part ? end - i : 4 - part;
        if (n < 4 && c.write != IN_PARTS) into_parts(r, c);
        if (c.write != IN_PARTS)
            one(c);
        else
            for (size_t k = 0; k < n; k++) one(r.parts[c.read + part + k]);
        i += n;
    }
    if (fresh) report("never written", code, NULL, describe(how, bytes, at) + ": nobody in this block wrote there");
    if (r.what != GLOBAL) return;
    if (how != WRITE && !all_written(r, first, bytes))
        report("never written", code, NULL, describe(how, bytes, at) + ": nobody wrote there");
    if (how != READ) mark_written(r, first, bytes);
}

void arrived(uintptr_t at, size_t bytes, const void *code)
{
    region *r = find_region(at);
    if (!r || at + bytes > r->begin + r->bytes) return;
    stamp me = when.now << TIME_SHIFT | (uint64_t)number_of(code) << (THREAD_BITS + FLAG_BITS) | (uint64_t)who.thread;
    need_cells(*r);
    for (size_t i = (at - r->begin) / 4; i < (at - r->begin + bytes) / 4; i++) {
        cell &c = r->cells[i];
        if (c.write == IN_PARTS)
            for (size_t k = 0; k < 4; k++) r->parts[c.read + k] = {me, 0, 0, 0};
        else
            c = {me, 0, 0, 0};
    }
}

} // namespace check
} // namespace cusim
