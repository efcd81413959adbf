/* cudasim: blocks run one after the other; the threads of a block are fibers on one thread. A fiber runs until it
 * meets a barrier or a shuffle. The order of fibers is shuffled from block to block, so that a missing barrier changes
 * results. SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "check.h"
#include "sim.h"

#ifndef __x86_64__
#error "cudasim switches stacks in x86-64 assembly"
#endif

namespace cusim
{

place here;

namespace
{

enum { WARP = 32, STACK = 128 << 10, MOST_THREADS = 1024, SHARED = 256 << 10 };
enum state { READY, AT_BARRIER, AT_EXCHANGE, DONE };

struct fiber {
    void *saved; /* stack pointer while it waits */
    char *stack;
    dim3 thread;
    state now;
    const void *where; /* it waits, for `exchange` if at one */
    warp_exchange *exchange;
};

std::vector<fiber> fibers;
void *scheduler;
fiber *current;
const invocation *body;
unsigned char *shared_memory;
uint64_t shuffle_state = 1;

/* Leaves the callee-saved registers on this stack, puts its pointer in *from and goes on with another stack: what
 * swapcontext does, without its two system calls. */
extern "C" void cusim_switch(void **from, void *to);
asm(R"(
    .text
    .type cusim_switch, @function
cusim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cusim_switch, .-cusim_switch
)");

void entry()
{
    body->run();
    current->now = DONE;
    cusim_switch(&current->saved, scheduler);
}

void pause(state why, const void *where)
{
    current->now = why;
    current->where = where;
    cusim_switch(&current->saved, scheduler);
}

void prepare(int count)
{
    while ((int)fibers.size() < count) {
        fiber f = {};
        f.stack = (char *)malloc(STACK);
        if (!f.stack) abort();
        fibers.push_back(f);
    }
    if (!shared_memory) shared_memory = (unsigned char *)aligned_alloc(64, SHARED);
}

void start(fiber &f, int i, dim3 block)
{
    f.thread = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    f.now = READY;
    /* As if it had switched away at the start of `entry`: six registers, the address to return to, and a stack that is
     * aligned as after a call. */
    void **top = (void **)(((uintptr_t)f.stack + STACK) & ~(uintptr_t)15) - 2;
    top[0] = (void *)entry;
    top[1] = NULL;
    f.saved = top - 6;
    memset(f.saved, 0, 6 * sizeof(void *));
}

void run(fiber &f)
{
    current = &f;
    here.thread = f.thread;
    check::run_thread((int)(&f - fibers.data()), f.stack, STACK);
    cusim_switch(&scheduler, f.saved);
}

/* ---- barriers of the block ---- */

/* All fibers wait for each other, or are done: let them go on. */
bool release_block(int count)
{
    int waiting = 0, first = -1;
    for (int i = 0; i < count; i++) {
        if (fibers[i].now == DONE) continue;
        if (fibers[i].now != AT_BARRIER) return false;
        if (first < 0) first = i;
        waiting++;
    }
    if (!waiting) return false;
    if (waiting < count)
        check::wrong_barrier(fibers[first].where,
                             "__syncthreads is reached by %d threads of the block, the other %d have ended", waiting,
                             count - waiting);
    for (int i = 0; i < count; i++) {
        if (fibers[i].now != AT_BARRIER) continue;
        if (fibers[i].where != fibers[first].where && !check::same_place(fibers[i].where, fibers[first].where))
            check::wrong_barrier(fibers[i].where, "thread %d waits at another __syncthreads than thread %d", i, first);
        fibers[i].now = READY;
    }
    check::block_ordered();
    return true;
}

/* ---- exchanges of a warp ---- */

/* Which of the lanes that `f` waits for have come to the same exchange; -1 while one that could has not. */
int64_t arrived(const fiber &f, int first, int last)
{
    unsigned there = 0, mask = f.exchange->mask;
    for (int j = first; j < last; j++) {
        const fiber &other = fibers[j];
        if (!(mask >> (j - first) & 1) || other.now == DONE) continue;
        if (other.now != AT_EXCHANGE || other.exchange->mask != mask || other.exchange->kind != f.exchange->kind)
            return -1;
        there |= 1u << (j - first);
    }
    return there;
}

/* Gives each of them what it asked for. */
void hand_over(int first, unsigned there)
{
    uint64_t offers[WARP];
    for (int l = 0; l < WARP; l++) offers[l] = there >> l & 1 ? fibers[first + l].exchange->bits : ~(uint64_t)0;
    for (int l = 0; l < WARP; l++) {
        if (!(there >> l & 1)) continue;
        fiber &f = fibers[first + l];
        warp_exchange &e = *f.exchange;
        if (e.kind == EXCHANGE_ALL) {
            if (there != ~0u)
                check::wrong_barrier(f.where, "an instruction of a whole warp is reached by lanes %08x alone", there);
            memcpy(e.all, offers, sizeof offers);
        } else if (e.kind == EXCHANGE_ONE) {
            if (!(there >> e.from & 1))
                check::wrong_barrier(f.where, "a shuffle reads lane %d, which does not take part (lanes %08x do)",
                                     e.from, there);
            e.bits = offers[e.from];
        }
        f.now = READY;
    }
}

/* Whether any lanes of the warp can go on. */
bool release_warp(int first, int last)
{
    unsigned incomplete = 0; /* mask of an exchange that somebody has not reached */
    bool any = false;
    for (int i = first; i < last; i++) {
        const fiber &f = fibers[i];
        if (f.now != AT_EXCHANGE || f.exchange->mask == incomplete) continue;
        int64_t there = arrived(f, first, last);
        if (there < 0) {
            incomplete = f.exchange->mask;
            continue;
        }
        if (f.exchange->kind == WARP_BARRIER) check::warp_ordered(first / WARP, (unsigned)there);
        hand_over(first, (unsigned)there);
        any = true;
    }
    return any;
}

/* ---- blocks ---- */

void say_why_stuck(int count)
{
    int barrier = -1, exchange = -1, at_barrier = 0, at_exchange = 0, ended = 0;
    for (int i = 0; i < count; i++) {
        if (fibers[i].now == AT_BARRIER) at_barrier++, barrier = i;
        if (fibers[i].now == AT_EXCHANGE) at_exchange++, exchange = i;
        ended += fibers[i].now == DONE;
    }
    const char *format =
        "of a block's %d threads, %d wait in __syncthreads (thread %d), %d in shuffles or __syncwarp (thread %d, "
        "mask %08x), %d have ended: nobody can go on";
    unsigned mask = exchange < 0 ? 0 : fibers[exchange].exchange->mask;
    if (check::on)
        check::wrong_barrier(fibers[exchange < 0 ? barrier : exchange].where, format, count, at_barrier, barrier,
                             at_exchange, exchange, mask, ended);
    else {
        fprintf(stderr, "cudasim: threads of a block wait at different places: ");
        fprintf(stderr, format, count, at_barrier, barrier, at_exchange, exchange, mask, ended);
        fprintf(stderr, "\n");
        abort();
    }
}

void run_block(int count)
{
    for (;;) {
        /* Any order must do: walk with a stride coprime to the count. */
        shuffle_state = shuffle_state * 6364136223846793005u + 1442695040888963407u;
        int offset = (int)(shuffle_state >> 33) % count, backwards = (int)(shuffle_state >> 62) & 1;
        bool ran = false, left = false, done = true;
        for (int k = 0; k < count; k++) {
            int i = (offset + (backwards ? count - k : k)) % count;
            if (fibers[i].now != READY) continue;
            run(fibers[i]);
            ran = true;
        }
        for (int first = 0; first < count; first += WARP)
            if (release_warp(first, first + WARP < count ? first + WARP : count)) left = true;
        if (!left && release_block(count)) left = true;
        if (left) continue;
        for (int i = 0; i < count; i++) done = done && fibers[i].now == DONE;
        if (done) return;
        if (!ran) {
            say_why_stuck(count);
            return; /* without its end */
        }
    }
}

} // namespace

/* ---- what threads ask for ---- */

unsigned char *dynamic_shared() { return shared_memory; }
void block_barrier() { pause(AT_BARRIER, __builtin_return_address(0)); }
int thread_index() { return (int)(current - fibers.data()); }
int lane() { return thread_index() % WARP; }

static void exchange(warp_exchange *e, const void *where)
{
    if (!(e->mask >> lane() & 1)) {
        check::wrong_barrier(where, "mask %08x of a shuffle or __syncwarp does not name its own lane %d", e->mask,
                             lane());
        e->mask |= 1u << lane();
    }
    current->exchange = e;
    pause(AT_EXCHANGE, where);
}
void warp_barrier(unsigned mask)
{
    warp_exchange e = {WARP_BARRIER, mask, 0, 0, NULL};
    exchange(&e, __builtin_return_address(0));
}
uint64_t exchange(unsigned mask, uint64_t bits, int from)
{
    warp_exchange e = {EXCHANGE_ONE, mask, from % WARP, bits, NULL};
    exchange(&e, __builtin_return_address(0));
    return e.bits;
}
void exchange_all(uint64_t bits, uint64_t (&all)[32])
{
    warp_exchange e = {EXCHANGE_ALL, ~0u, 0, bits, all};
    exchange(&e, __builtin_return_address(0));
}

/* ---- launches ---- */

bool check_launch(cudaStream_t stream, const void *kernel, dim3 grid, dim3 block, size_t shared)
{
    int64_t count = (int64_t)block.x * block.y * block.z;
    if (grid.x < 1 || grid.y < 1 || grid.z < 1 || count < 1 || count > MOST_THREADS ||
        shared > shared_allowed(kernel) || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) {
        fprintf(stderr, "cudasim: a launch no card would take\n");
        abort();
    }
    cudaError_t error = step(CUDASIM_LAUNCH);
    if (error == cudaSuccess && card_of(stream) != current_card()) error = cudaErrorInvalidResourceHandle;
    if (error != cudaSuccess) (void)keep(error);
    return error == cudaSuccess;
}

void run_grid(const char *name, dim3 grid, dim3 block, size_t shared, const invocation &kernel)
{
    int count = (int)(block.x * block.y * block.z);
    prepare(count);
    body = &kernel;
    here.block_dim = block;
    here.grid_dim = grid;
    check::begin_launch({name, kernel.code, &kernel, kernel.bytes, shared, shared_memory});
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                here.block = dim3(x, y, z);
                memset(shared_memory, 0xff, shared); /* NaN: nobody may count on old contents */
                check::begin_block();
                forget_copies(count);
                for (int i = 0; i < count; i++) start(fibers[i], i, block);
                run_block(count);
            }
    check::end_launch();
}

} // namespace cusim
