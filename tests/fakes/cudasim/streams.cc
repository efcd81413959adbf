/* cudasim: streams, events, memory in stream order, copies. A stream is a queue; what is in it runs when somebody waits for
 * it, and only as far as is waited for, so that order exists only where events and waits make it:
 *   CUDASIM_RUN=late     (default) all queues run as late as possible
 *   CUDASIM_RUN=kernels  a device's first stream runs at once, its second as late as possible
 *   CUDASIM_RUN=copies   the other way round
 * Memory that was freed is handed out again at once to the stream that freed it, and spoilt in that stream's order. For tests
 * of the tests: CUDASIM_DROP=waits makes streams ignore events, CUDASIM_DROP=host makes the host ignore them.
 * CUDASIM_REPORT=FILE writes how often everything was asked for when the last stream is gone.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "sim.h"

using cusim::keep;

namespace
{

const size_t most_spoilt = (size_t)1 << 20, most_kept = (size_t)256 << 20;

/* One call of cudaEventRecord. */
struct record {
    bool done;
    cudaStream_t stream;
};

struct entry {
    std::shared_ptr<record> wait, mark;
    std::function<void()> work;
};

} // namespace

struct cusim_event {
    std::shared_ptr<record> last;
    int card;
};

struct cusim_stream {
    std::deque<entry> queue;
    bool eager;
    int card;
    std::multimap<size_t, void *> kept; /* freed here, by size */
    size_t kept_bytes;
};

namespace
{

std::recursive_mutex lock; /* two devices may be used by two threads */
std::vector<cudaStream_t> streams;
struct pooled {
    size_t bytes;
    int card;
};
std::map<void *, pooled> blocks; /* of pools */
std::map<std::string, std::pair<int64_t, double>> counts;

bool setting(const char *name, const char *value)
{
    const char *text = getenv(name);
    return text && strcmp(text, value) == 0;
}

void run_until(const std::shared_ptr<record> &r);

void step(cudaStream_t s)
{
    entry e = std::move(s->queue.front());
    s->queue.pop_front();
    if (e.wait) run_until(e.wait);
    if (e.work) e.work();
    if (e.mark) e.mark->done = true;
}

void run_until(const std::shared_ptr<record> &r)
{
    while (!r->done) {
        if (r->stream->queue.empty()) {
            fprintf(stderr, "cudasim: streams wait for each other\n");
            abort();
        }
        step(r->stream);
    }
}

void finish(cudaStream_t s)
{
    while (!s->queue.empty()) step(s);
}

void put(cudaStream_t s, entry e)
{
    s->queue.push_back(std::move(e));
    if (s->eager) finish(s);
}

void spoil(void *memory, size_t bytes, int value) { memset(memory, value, bytes < most_spoilt ? bytes : most_spoilt); }

void give_back(cudaStream_t s)
{
    finish(s);
    for (auto &b : s->kept) {
        blocks.erase(b.second);
        cusim::free_memory(b.second, false);
    }
    s->kept.clear();
    s->kept_bytes = 0;
}

void report()
{
    const char *path = getenv("CUDASIM_REPORT");
    FILE *f = path ? fopen(path, "w") : NULL;
    if (!f) return;
    for (auto &c : counts) fprintf(f, "%s\t%lld\t%.0f\n", c.first.c_str(), (long long)c.second.first, c.second.second);
    fclose(f);
}

void copy(cudaStream_t stream, const char *name, void *to, size_t to_pitch, const void *from, size_t from_pitch,
          size_t width, size_t height)
{
    cusim::enqueue(stream, name, (double)width * (double)height, [=]() {
        for (size_t r = 0; r < height; r++) {
            char *t = (char *)to + r * to_pitch;
            const char *f = (const char *)from + r * from_pitch;
            cusim::check::copies(t, f, width);
            memmove(t, f, width);
        }
    });
}

const char *name_of(cudaMemcpyKind kind)
{
    return kind == cudaMemcpyHostToDevice   ? "copy to the card"
           : kind == cudaMemcpyDeviceToHost ? "copy from the card"
                                            : "copy on the card";
}

} // namespace

/* Every call starts with this. */
#define STEP(...)                                                                                                      \
    do {                                                                                                               \
        cudaError_t e_ = cusim::step(__VA_ARGS__);                                                                     \
        if (e_ != cudaSuccess) return keep(e_);                                                                        \
    } while (0)
/* What belongs to another card than the current one is refused. */
#define OWN(what)                                                                                                      \
    do {                                                                                                               \
        if ((what)->card != cusim::current_card()) return keep(cudaErrorInvalidResourceHandle);                        \
    } while (0)

int cusim::card_of(cudaStream_t stream) { return stream->card; }

void cusim::enqueue(cudaStream_t stream, const char *name, double amount, std::function<void()> work)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    auto &c = counts[name];
    c.first++;
    c.second += amount;
    put(stream, {nullptr, nullptr, std::move(work)});
}

void cusim::enqueue_kernel(cudaStream_t stream, const char *name, dim3 grid, dim3 block, size_t shared,
                           invocation *kernel)
{
    std::shared_ptr<invocation> held(kernel);
    enqueue(stream, name, 0, [=]() { run_grid(name, grid, block, shared, *held); });
}

/* ---- streams and events ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    static unsigned made;
    STEP(CUDASIM_CALL);
    cusim::count(&cudasim_ledger::streams, 1);
    std::lock_guard<std::recursive_mutex> held(lock);
    cudaStream_t s = new cusim_stream();
    s->eager = setting("CUDASIM_RUN", made++ % 2 ? "copies" : "kernels");
    s->card = cusim::current_card();
    streams.push_back(s);
    *stream = s;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    give_back(stream);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream) streams.erase(streams.begin() + (long)i--);
    delete stream;
    if (streams.empty()) report();
    cusim::count(&cudasim_ledger::streams, -1);
    STEP(CUDASIM_CALL);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    STEP(CUDASIM_CALL, true);
    OWN(stream);
    std::lock_guard<std::recursive_mutex> held(lock);
    counts["wait of the host"].first++;
    finish(stream);
    return cudaSuccess;
}
/* Only errors are asked for here. */
cudaError_t cudaStreamQuery(cudaStream_t)
{
    STEP(CUDASIM_CALL, true);
    return cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    STEP(CUDASIM_CALL);
    std::lock_guard<std::recursive_mutex> held(lock);
    if (event->last && !setting("CUDASIM_DROP", "waits")) put(stream, {event->last, nullptr, nullptr});
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    STEP(CUDASIM_CALL);
    cusim::count(&cudasim_ledger::events, 1);
    *event = new cusim_event();
    (*event)->card = cusim::current_card();
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    cusim::count(&cudasim_ledger::events, -1);
    STEP(CUDASIM_CALL);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    STEP(CUDASIM_CALL);
    OWN(stream);
    OWN(event);
    std::lock_guard<std::recursive_mutex> held(lock);
    event->last = std::make_shared<record>(record{false, stream});
    put(stream, {nullptr, event->last, nullptr});
    return cudaSuccess;
}
/* What is not there yet has come every third time, so that both ways are gone. */
cudaError_t cudaEventQuery(cudaEvent_t event)
{
    static int times;
    STEP(CUDASIM_CALL, true);
    std::lock_guard<std::recursive_mutex> held(lock);
    if (!event->last || event->last->done || setting("CUDASIM_DROP", "host")) return cudaSuccess;
    if (++times % 3) return keep(cudaErrorNotReady);
    run_until(event->last);
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    STEP(CUDASIM_CALL, true);
    std::lock_guard<std::recursive_mutex> held(lock);
    counts["wait of the host"].first++;
    if (event->last && !setting("CUDASIM_DROP", "host")) run_until(event->last);
    return cudaSuccess;
}

/* ---- memory ---- */

/* What a card's pool keeps goes back when somebody outside it wants memory. */
static cudaError_t take(void **memory, size_t bytes, cudasim_kind kind, bool from_pools = true)
{
    STEP(kind);
    bool pinned = kind == CUDASIM_PINNED;
    std::lock_guard<std::recursive_mutex> held(lock);
    if (!pinned && from_pools && bytes > cusim::memory_left())
        for (cudaStream_t s : streams) give_back(s);
    if (!pinned && bytes > cusim::memory_left()) return keep(cudaErrorMemoryAllocation);
    *memory = cusim::new_memory(bytes, pinned);
    if (!*memory) return keep(cudaErrorMemoryAllocation);
    spoil(*memory, bytes, 0xa5);
    return cudaSuccess;
}
/* Waits for the whole card. */
static cudaError_t put_back(void *memory, bool pinned)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    for (cudaStream_t s : streams) finish(s);
    cusim::free_memory(memory, pinned);
    STEP(CUDASIM_CALL);
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **memory, size_t bytes) { return take(memory, bytes, CUDASIM_DEVICE); }
cudaError_t cudaFree(void *memory) { return put_back(memory, false); }
cudaError_t cudaMallocHost(void **memory, size_t bytes) { return take(memory, bytes, CUDASIM_PINNED); }
cudaError_t cudaFreeHost(void *memory) { return put_back(memory, true); }

cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream)
{
    OWN(stream);
    std::lock_guard<std::recursive_mutex> held(lock);
    auto found = stream->kept.lower_bound(bytes);
    /* The checker wants to see who uses what was given back. */
    if (!cusim::check::on && found != stream->kept.end() && found->first <= 2 * bytes) {
        STEP(CUDASIM_DEVICE);
        *memory = found->second;
        stream->kept_bytes -= found->first;
        stream->kept.erase(found);
        return cudaSuccess;
    }
    /* What is kept in other sizes is no help. */
    cudaError_t error = take(memory, bytes, CUDASIM_DEVICE, false);
    if (error == cudaSuccess) blocks[*memory] = {bytes, stream->card};
    return error;
}
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
    std::lock_guard<std::recursive_mutex> held(lock);
    size_t bytes = blocks.at(memory).bytes;
    for (cudaStream_t s : streams)
        for (auto &b : s->kept)
            if (b.second == memory) {
                fprintf(stderr, "cudasim: memory is given back twice\n");
                abort();
            }
    put(stream, {nullptr, nullptr, [=]() {
                     cusim::check::freed(memory);
                     spoil(memory, bytes, 0xff);
                 }});
    stream->kept.emplace(bytes, memory);
    stream->kept_bytes += bytes;
    if (stream->kept_bytes > most_kept) give_back(stream);
    STEP(CUDASIM_CALL);
    return cudaSuccess;
}

/* ---- a card's only pool: what its streams keep ---- */

struct cusim_pool {
    int card;
};
static std::map<int, cusim_pool> pools;

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int card)
{
    STEP(CUDASIM_CALL);
    std::lock_guard<std::recursive_mutex> held(lock);
    pools[card].card = card;
    *pool = &pools[card];
    return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void *)
{
    STEP(CUDASIM_CALL);
    return attribute == cudaMemPoolAttrReleaseThreshold ? cudaSuccess : keep(cudaErrorInvalidValue);
}
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value)
{
    STEP(CUDASIM_CALL);
    std::lock_guard<std::recursive_mutex> held(lock);
    uint64_t bytes = 0;
    for (auto &b : blocks)
        if (b.second.card == pool->card) bytes += b.second.bytes;
    if (attribute == cudaMemPoolAttrUsedMemCurrent)
        for (cudaStream_t s : streams)
            if (s->card == pool->card) bytes -= s->kept_bytes;
    *(uint64_t *)value = bytes;
    return cudaSuccess;
}
/* What may still be used by queued work stays. */
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t)
{
    STEP(CUDASIM_CALL);
    std::lock_guard<std::recursive_mutex> held(lock);
    for (cudaStream_t s : streams)
        if (s->card == pool->card && s->queue.empty()) give_back(s);
    return cudaSuccess;
}

static void check_sides(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    bool down = kind == cudaMemcpyDeviceToHost, up = kind == cudaMemcpyHostToDevice;
    if (!down) cusim::need_on_card("a copy to the card", to, bytes);
    if (!up) cusim::need_on_card("a copy from the card", from, bytes);
    if ((down && cusim::is_on_card(to, 1)) || (up && cusim::is_on_card(from, 1))) {
        fprintf(stderr, "cudasim: a copy in the wrong direction\n");
        abort();
    }
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream)
{
    STEP(CUDASIM_COPY);
    OWN(stream);
    check_sides(to, from, bytes, kind);
    copy(stream, name_of(kind), to, bytes, from, bytes, bytes, 1);
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream)
{
    STEP(CUDASIM_COPY);
    OWN(stream);
    if (width > to_pitch || width > from_pitch) return keep(cudaErrorInvalidValue);
    for (size_t r = 0; r < height; r++)
        check_sides((char *)to + r * to_pitch, (const char *)from + r * from_pitch, width, kind);
    copy(stream, name_of(kind), to, to_pitch, from, from_pitch, width, height);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    STEP(CUDASIM_COPY);
    OWN(stream);
    cusim::need_on_card("a memset", memory, bytes);
    cusim::enqueue(stream, "memset", (double)bytes, [=]() {
        cusim::check::writes("a memset", memory, bytes);
        memset(memory, value, bytes);
    });
    return cudaSuccess;
}
