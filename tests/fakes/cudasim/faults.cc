/* cudasim: failures on demand, and a ledger of memory, streams, events and handles. Memory lies between strips of known bytes;
 * a strip that changed, a block that is freed twice or never existed ends the program, and CUDASIM_LEDGER=1 in the environment
 * has it say at its end what was never given back. SPDX-License-Identifier: Apache-2.0 */
#include "check.h"
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>

#include <map>
#include <mutex>

namespace cusim
{
namespace
{

enum { STRIP = 512 /* CUDA's alignment of blocks */, FILL = 0xd7 };

struct block {
    size_t bytes;
    bool pinned;
};

struct books {
    std::recursive_mutex lock;
    std::map<void *, block> blocks;
    cudasim_ledger now = {};
    int kind = 0, code = 0, times = 0;
    int64_t left = 0;            /* calls until the failure; 0: none is due */
    int gone = 0, gone_soon = 0; /* code of a lost card */
    books()
    {
        const char *text = getenv("CUDASIM_FAIL");
        long long n = 0;
        if (text && sscanf(text, "%d:%lld:%d:%d", &kind, &n, &code, &times) == 4) left = n;
    }
    ~books()
    {
        if (!getenv("CUDASIM_LEDGER")) return;
        fprintf(
            stderr,
            "cudasim: %lld blocks of %lld bytes, %lld pinned ones of %lld, %lld streams, %lld events and %lld handles left\n",
            (long long)now.device_blocks, (long long)now.device_bytes, (long long)now.pinned_blocks,
            (long long)now.pinned_bytes, (long long)now.streams, (long long)now.events, (long long)now.handles);
    }
};

books &book()
{
    static books b;
    return b;
}

[[noreturn]] void broken(const char *what)
{
    fprintf(stderr, "cudasim: %s\n", what);
    abort();
}

} // namespace

cudaError_t step(cudasim_kind kind, bool waits)
{
    books &b = book();
    std::lock_guard<std::recursive_mutex> lock(b.lock);
    b.now.calls[CUDASIM_CALL]++;
    if (kind != CUDASIM_CALL) b.now.calls[kind]++;
    if (waits && b.gone_soon) b.gone = b.gone_soon;
    if (b.gone) return (cudaError_t)b.gone;
    if (b.left == 0 || (b.kind != CUDASIM_CALL && b.kind != kind)) return cudaSuccess;
    if (--b.left > 0) return cudaSuccess;
    if (b.times == CUDASIM_GONE_LATE) {
        b.gone_soon = b.code;
        return cudaSuccess;
    }
    if (b.times == CUDASIM_GONE) b.gone = b.code;
    if (b.times > 1) { /* the next of its kind, too */
        b.times--;
        b.left = 1;
    }
    return (cudaError_t)b.code;
}

void count(int64_t cudasim_ledger::*what, int by)
{
    std::lock_guard<std::recursive_mutex> lock(book().lock);
    if ((book().now.*what += by) < 0) broken("something that does not exist is given back");
}

void *new_memory(size_t bytes, bool pinned)
{
    size_t whole = (bytes + 3 * STRIP - 1) / STRIP * STRIP;
    if (whole < bytes) return NULL;
    char *start = (char *)aligned_alloc(STRIP, whole);
    if (!start) return NULL;
    memset(start, FILL, STRIP);
    memset(start + STRIP + bytes, FILL, whole - STRIP - bytes);
    std::lock_guard<std::recursive_mutex> lock(book().lock);
    book().blocks[start + STRIP] = {bytes, pinned};
    cudasim_ledger &now = book().now;
    (pinned ? now.pinned_blocks : now.device_blocks) += 1;
    (pinned ? now.pinned_bytes : now.device_bytes) += (int64_t)bytes;
    check::allocated(start + STRIP, bytes, pinned);
    return start + STRIP;
}

bool is_on_card(const void *memory, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> lock(book().lock);
    auto at = book().blocks.upper_bound((void *)memory);
    if (at == book().blocks.begin()) return false;
    --at;
    size_t offset = (size_t)((const char *)memory - (const char *)at->first);
    return !at->second.pinned && offset < at->second.bytes && bytes <= at->second.bytes - offset;
}

void need_on_card(const char *call, const void *memory, size_t bytes)
{
    if (is_on_card(memory, bytes)) return;
    fprintf(stderr, "cudasim: %s: %zu bytes at %p are not memory of the card\n", call, bytes, memory);
    abort();
}

void free_memory(void *memory, bool pinned)
{
    if (!memory) return;
    std::lock_guard<std::recursive_mutex> lock(book().lock);
    auto at = book().blocks.find(memory);
    if (at == book().blocks.end()) broken("memory is given back that is not there, or twice");
    block found = at->second;
    if (found.pinned != pinned) broken("memory is given back by the wrong call");
    unsigned char *start = (unsigned char *)memory - STRIP, *end = (unsigned char *)memory + found.bytes;
    for (int i = 0; i < STRIP; i++)
        if ((start[i] != FILL || end[i] != FILL) && !check::reported()) broken("something wrote outside its memory");
    check::gone(memory);
    book().blocks.erase(at);
    cudasim_ledger &now = book().now;
    (pinned ? now.pinned_blocks : now.device_blocks) -= 1;
    (pinned ? now.pinned_bytes : now.device_bytes) -= (int64_t)found.bytes;
    free(start);
}

} // namespace cusim

extern "C" __attribute__((visibility("default"))) void cudasim_fail(int kind, int64_t n, int code, int times)
{
    cusim::books &b = cusim::book();
    std::lock_guard<std::recursive_mutex> lock(b.lock);
    b.kind = kind;
    b.left = n;
    b.code = code;
    b.times = times;
    b.gone = b.gone_soon = 0;
    (void)cusim::keep(cudaSuccess);
}

extern "C" __attribute__((visibility("default"))) void cudasim_read(cudasim_ledger *out)
{
    std::lock_guard<std::recursive_mutex> lock(cusim::book().lock);
    *out = cusim::book().now;
}
