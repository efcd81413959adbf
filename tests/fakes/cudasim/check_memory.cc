/* cudasim's checker: what memory there is, which of it a kernel may use, what of it anybody wrote.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "check_state.h"

namespace cusim
{
namespace check
{

runner who;
__thread bool inside;
region dynamic_shared_region, parameter_region;
region *hot[HOT];
uint64_t launches, accesses;

namespace
{

enum { NEAR = 4096 /* bytes at which a block is named beside an address */ };

std::recursive_mutex lock; /* the host's threads allocate while one runs a kernel */
std::map<uintptr_t, std::unique_ptr<region>> regions;
std::map<uintptr_t, size_t> past; /* what was there, and is nobody's now */
std::set<std::string> kernels;    /* launched so far */
int next_hot;

void forget(region *r)
{
    for (region *&h : hot)
        if (h == r) h = nullptr;
    free(r->cells);
    free(r->written);
}

region *known_region(uintptr_t at)
{
    auto found = regions.upper_bound(at);
    if (found == regions.begin()) return NULL;
    --found;
    return found->second->holds(at) ? found->second.get() : NULL;
}

/* A static variable of a function is shared memory (in the simulation) if it can be written. */
region *variable_region(uintptr_t at)
{
    const symbol *s = find_symbol(at);
    if (!s || s->function || !s->writable) return NULL;
    std::unique_ptr<region> r(new region());
    r->begin = s->begin;
    r->bytes = s->bytes;
    r->what = STATIC_SHARED;
    r->name = readable(s->name);
    size_t end = s->name.rfind('E'); /* _ZZ function E variable */
    if (s->name.compare(0, 3, "_ZZ") == 0 && end != std::string::npos) r->owner = "_Z" + s->name.substr(3, end - 3);
    region *raw = r.get();
    regions[s->begin] = std::move(r);
    return raw;
}

/* Bits of the bytes [from, to) of a word. */
unsigned char bits(size_t from, size_t to) { return (unsigned char)((1u << to) - (1u << from)); }

template <class F> void each_word(size_t offset, size_t bytes, F f)
{
    size_t end = offset + bytes;
    for (size_t i = offset; i < end;) {
        size_t word = i / 4 * 4, stop = word + 4 < end ? word + 4 : end;
        f(word / 4, bits(i - word, stop - word));
        i = stop;
    }
}

} // namespace

void need_cells(region &r)
{
    if (!r.cells) r.cells = (cell *)calloc(r.bytes / 4 + 1, sizeof(cell));
    if (!r.cells) abort();
}
void mark_written(region &r, size_t offset, size_t bytes)
{
    if (offset % 4 == 0 && bytes % 4 == 0)
        memset(r.written + offset / 4, 15, bytes / 4);
    else
        each_word(offset, bytes, [&](size_t word, unsigned char b) { r.written[word] |= b; });
}
bool all_written(const region &r, size_t offset, size_t bytes)
{
    bool all = true;
    each_word(offset, bytes, [&](size_t word, unsigned char b) { all = all && (r.written[word] & b) == b; });
    return all;
}

region *find_region(uintptr_t at)
{
    for (region *h : hot)
        if (h && h->holds(at)) return h;
    region *r = dynamic_shared_region.holds(at) ? &dynamic_shared_region : known_region(at);
    if (!r && parameter_region.holds(at)) return &parameter_region;
    return r ? r : variable_region(at);
}
void remember(region *r)
{
    for (region *h : hot)
        if (h == r) return;
    need_cells(*r);
    hot[next_hot++ % HOT] = r;
}

std::string place_of(uintptr_t at)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    auto within = [&](const region &r) {
        std::string what = r.what == DYNAMIC_SHARED  ? format("%zu bytes of dynamic shared memory", r.bytes)
                           : r.what == STATIC_SHARED ? format("%zu bytes of shared memory %s", r.bytes, r.name.c_str())
                           : r.what == PARAMETERS
                               ? std::string("the kernel's parameters")
                               : format("a %s of %zu bytes%s", r.what == PINNED ? "pinned block" : "block", r.bytes,
                                        r.freed ? ", which is freed" : "");
        return format("byte %zu of %s (%p)", (size_t)(at - r.begin), what.c_str(), (void *)at);
    };
    if (dynamic_shared_region.holds(at)) return within(dynamic_shared_region);
    if (parameter_region.holds(at)) return within(parameter_region);
    if (at - who.stack < who.stack_bytes) return format("the thread's own local memory (%p)", (void *)at);
    uintptr_t shared_end = dynamic_shared_region.begin + dynamic_shared_region.bytes;
    if (at >= shared_end && at - shared_end < ((uintptr_t)256 << 10))
        return format("%zu bytes past the end of %zu bytes of dynamic shared memory (%p)", (size_t)(at - shared_end),
                      dynamic_shared_region.bytes, (void *)at);
    auto next = regions.upper_bound(at);
    const region *below = next == regions.begin() ? NULL : std::prev(next)->second.get();
    const region *above = next == regions.end() ? NULL : next->second.get();
    if (below && below->holds(at)) return within(*below);
    if (below && at - below->begin - below->bytes < 512)
        return format("%zu bytes past the end of a block of %zu bytes (%p)", (size_t)(at - below->begin - below->bytes),
                      below->bytes, (void *)at);
    if (above && above->begin - at <= 512)
        return format("%zu bytes before a block of %zu bytes (%p)", (size_t)(above->begin - at), above->bytes,
                      (void *)at);
    auto was = past.upper_bound(at);
    if (was != past.begin() && at - std::prev(was)->first < std::prev(was)->second)
        return format("a block that is freed (%p)", (void *)at);
    if (below && at - below->begin - below->bytes < NEAR)
        return format("%zu bytes past the end of a block of %zu bytes (%p)", (size_t)(at - below->begin - below->bytes),
                      below->bytes, (void *)at);
    return format("host memory or nothing at all (%p)", (void *)at);
}

/* ---- allocations, copies, libraries ---- */

void allocated(const void *memory, size_t bytes, bool pinned)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    std::unique_ptr<region> r(new region());
    r->begin = (uintptr_t)memory;
    r->bytes = bytes;
    r->what = pinned ? PINNED : GLOBAL;
    if (!pinned) r->written = (unsigned char *)calloc(bytes / 4 + 1, 1);
    auto was = past.upper_bound(r->begin + bytes);
    while (was != past.begin() && std::prev(was)->first + std::prev(was)->second > r->begin)
        was = past.erase(std::prev(was));
    regions[r->begin] = std::move(r);
}
void freed(const void *memory)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    auto found = regions.find((uintptr_t)memory);
    if (found != regions.end()) found->second->freed = true;
}
void gone(const void *memory)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    auto found = regions.find((uintptr_t)memory);
    if (found == regions.end()) return;
    past[found->first] = found->second->bytes;
    if (past.size() > 4096) past.erase(past.begin());
    forget(found->second.get());
    regions.erase(found);
}

/* Blocks of the card only; the callers have refused what lies outside of one. */
static region *on_card(const char *call, const void *memory, size_t bytes)
{
    region *r = bytes ? known_region((uintptr_t)memory) : NULL;
    if (!r || r->what != GLOBAL) return NULL;
    if (r->freed)
        report("freed memory", (const void *)call, NULL, format("%s: %s", call, place_of((uintptr_t)memory).c_str()));
    return r;
}
void reads(const char *call, const void *memory, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    region *r = on_card(call, memory, bytes);
    size_t offset = r ? (uintptr_t)memory - r->begin : 0;
    if (!r || all_written(*r, offset, bytes)) return;
    while (all_written(*r, offset, 1)) offset++;
    report("never written", (const void *)call, NULL,
           format("%s reads %s: nobody wrote there", call, place_of(r->begin + offset).c_str()));
}
void writes(const char *call, const void *memory, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    region *r = on_card(call, memory, bytes);
    if (r) mark_written(*r, (uintptr_t)memory - r->begin, bytes);
}
void copies(const void *to, const void *from, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    region *target = on_card("a copy", to, bytes), *source = on_card("a copy", from, bytes);
    if (!target && source) reads("a copy to the host", from, bytes);
    if (!target) return;
    size_t t = (uintptr_t)to - target->begin, f = source ? (uintptr_t)from - source->begin : 0;
    if (!source || all_written(*source, f, bytes)) {
        mark_written(*target, t, bytes);
        return;
    }
    for (size_t i = 0; i < bytes; i++) { /* what nobody wrote is still that in another place */
        unsigned char bit = (unsigned char)(1u << (t + i) % 4);
        if (all_written(*source, f + i, 1))
            target->written[(t + i) / 4] |= bit;
        else
            target->written[(t + i) / 4] &= (unsigned char)~bit;
    }
}

/* ---- launches ---- */

void begin_launch(const launch_facts &facts)
{
    lock.lock();
    who.launch = facts;
    who.block_times.clear();
    const symbol *s = find_symbol((uintptr_t)facts.kernel);
    who.kernel = s ? s->name : "";
    kernels.insert(who.kernel);
    when.launch = when.block = when.barrier = ++when.now;
    when.by_lanes = false;
    region &d = dynamic_shared_region, &p = parameter_region;
    free(d.cells);
    d = region();
    d.begin = (uintptr_t)facts.shared;
    d.bytes = facts.shared_bytes;
    d.what = DYNAMIC_SHARED;
    p.begin = (uintptr_t)facts.parameters;
    p.bytes = facts.parameter_bytes;
    p.what = PARAMETERS;
    memset(hot, 0, sizeof hot);
    launches++;
    inside = true;
}
void end_launch()
{
    inside = false;
    lock.unlock();
}
void begin_block()
{
    when.block = when.barrier = ++when.now;
    who.block_times.push_back(when.now);
    for (uint64_t &w : when.warp) w = when.now;
    when.by_lanes = false;
}
void run_thread(int thread, const char *stack, size_t stack_bytes)
{
    who.thread = thread;
    who.stack = (uintptr_t)stack;
    who.stack_bytes = stack_bytes;
}

/* ---- accesses ---- */

region *reach(uintptr_t at, size_t bytes, use how, const void *code)
{
    region *r = find_region(at);
    const char *word = how == READ ? "read" : how == WRITE ? "write" : "atomic";
    auto say = [&](const char *what, const char *why) {
        report(what, code, NULL,
               format("%s of %zu bytes by %s: %s%s", word, bytes, thread_name(who.thread).c_str(), place_of(at).c_str(),
                      why));
        return (region *)NULL;
    };
    if (r && r->what == PARAMETERS && how == READ) return NULL;
    if (!r && how == READ && is_constant(at)) return NULL;
    size_t most = bytes == 16 ? 8 : bytes; /* 16 may be two of 8; what needs more says so (alignment's hook) */
    if ((bytes == 2 || bytes == 4 || bytes == 8 || bytes == 16) && at % most) (void)say("misaligned access", "");
    if (!r || r->what == PINNED || r->what == PARAMETERS) return say("out of bounds", "");
    if (at - r->begin + bytes > r->bytes) return say("out of bounds", ", and the access goes past its end");
    if (r->freed) return say("freed memory", "");
    if (r->what == STATIC_SHARED && r->owner != who.kernel && kernels.count(r->owner))
        return say("out of bounds", ", which is another kernel's");
    remember(r);
    return r;
}

static bool chunk(const char *what, const void *p, bool shared, const void *where)
{
    uintptr_t at = (uintptr_t)p;
    region *r = find_region(at);
    if (at % 16)
        report("misaligned access", where, NULL,
               format("%s by %s needs an address that 16 divides: %s", what, thread_name(who.thread).c_str(),
                      place_of(at).c_str()));
    if (r && shared != (r->what == DYNAMIC_SHARED || r->what == STATIC_SHARED))
        report("out of bounds", where, NULL,
               format("%s by %s: %s is not %s memory", what, thread_name(who.thread).c_str(), place_of(at).c_str(),
                      shared ? "shared" : "global"));
    return at % 16 == 0;
}

void atomic(const void *memory, size_t bytes, const void *where) { access((uintptr_t)memory, bytes, ATOMIC, where); }
void matrix_row(const void *row, const void *where)
{
    (void)chunk("a matrix's row", row, true, where);
    access((uintptr_t)row, 16, READ, where);
}
void copy_begins(const void *to, const void *from, bool there, const void *where)
{
    bool whole = chunk("an asynchronous copy", to, true, where);
    whole = chunk("an asynchronous copy", from, false, where) && whole;
    if (there) access((uintptr_t)from, 16, READ, where);
    access((uintptr_t)to, 16, WRITE, where, whole);
}
void copy_ends(const void *to, const void *where)
{
    if ((uintptr_t)to % 16 == 0) arrived((uintptr_t)to, 16, where);
}

} // namespace check
} // namespace cusim
