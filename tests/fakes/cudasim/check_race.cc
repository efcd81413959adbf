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
inline bool unordered(stamp s, int thread, uint64_t begin)
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

__attribute__((noinline, cold)) void say_race(const attempt &a, stamp s, const char *did)
{
    bool shared = a.r.what != GLOBAL;
    report(shared ? "race in shared memory" : "race in global memory", a.code, code_at(code_of(s)),
           format("%s; thread %d %s %s it before, and no barrier is between", describe(a.how, a.bytes, a.at).c_str(),
                  thread_of(s), block_of(s).c_str(), did));
}

const char *did(stamp w) { return w & FLAG ? "changed (atomically)" : "wrote"; }

/* The running thread uses what `c` stands for. */
inline void use_cell(cell &c, const attempt &a)
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

/* Where this launch may access `bytes` at that address; what is wrong has been reported when it is NULL. */
static inline region *region_for(place_of_code &from, uintptr_t at, size_t bytes, use how)
{
    size_t odd = bytes & (bytes - 1) ? 0 : at & ((bytes < 8 ? bytes : 8) - 1);
    auto fits = [=](const region *r) { return at - r->begin < r->bytes && bytes <= r->bytes - (at - r->begin); };
    if (from.launch == launches && fits(from.met) && !odd) return from.met;
    region *found = NULL;
    for (region *h : hot)
        if (h && fits(h)) found = h;
    if (!found || odd) found = reach(at, bytes, how, from.code);
    if (found) {
        from.met = found;
        from.launch = launches;
    }
    return found;
}

void access(uintptr_t at, size_t bytes, use how, const void *code, bool async)
{
    if (at - who.stack < who.stack_bytes || at - (uintptr_t)&here < sizeof here || !bytes) return;
    accesses++;
    int number = number_of(code);
    if (!number) codes[0] = {code, NULL, 0};
    region *found = region_for(codes[number], at, bytes, how);
    if (!found) return;
    region &r = *found;
    bool global = r.what == GLOBAL, fresh = false;
    stamp me = when.now << TIME_SHIFT | (uint64_t)number << (THREAD_BITS + FLAG_BITS) | (uint64_t)who.thread |
               (how == ATOMIC ? (uint64_t)FLAG : 0) | (async && how == WRITE ? (uint64_t)UNDER_WAY : 0);
    size_t first = at - r.begin, end = first + bytes;
    /* The same instruction of the same thread, and nobody wrote meanwhile. */
    if (how == READ && bytes == 4 && first % 4 == 0 && r.cells[first / 4].read == me) return;
    attempt a = {r, at, bytes, how, code, me, global ? when.launch : when.block};
    for (size_t i = first; i < end;) {
        cell &c = r.cells[i / 4];
        size_t part = i % 4, n = end - i < 4 - part ? end - i : 4 - part;
        if (n < 4 && c.write != IN_PARTS) into_parts(r, c);
        cell *used = c.write == IN_PARTS ? &r.parts[c.read + part] : &c;
        for (size_t k = 0; k < (used == &c ? 1 : n); k++) {
            fresh = fresh || (!global && how != WRITE && !is_written(used[k]));
            use_cell(used[k], a);
        }
        i += n;
    }
    if (global && how != WRITE) {
        bool whole = bytes % 4 == 0 && first % 4 == 0;
        for (size_t i = first / 4; whole && i < end / 4; i++) whole = r.written[i] == 15;
        fresh = !whole && !all_written(r, first, bytes);
    }
    if (fresh)
        report("never written", code, NULL,
               describe(how, bytes, at) + (global ? ": nobody wrote there" : ": nobody in this block wrote there"));
    if (global && how != READ) mark_written(r, first, bytes);
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
