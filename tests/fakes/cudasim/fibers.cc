/* cudasim: blocks run one after the other; the threads of a block are fibers on one thread. A fiber runs until it
 * meets a barrier or a shuffle. The order of fibers is shuffled from block to block, so that a missing barrier changes
 * results. SPDX-License-Identifier: Apache-2.0 */
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>

#include <vector>

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

struct later {
    void *to;
    const void *from;
};

struct fiber {
    void *saved; /* stack pointer while it waits */
    char *stack;
    dim3 thread;
    state now;
    int turn;                   /* of exchanges */
    std::vector<later> copies;  /* asked for; the first ones belong to groups */
    std::vector<size_t> groups; /* sizes, the oldest first */
};

struct warp_slots {
    uint64_t bits[2][WARP]; /* by turn: a lane is at most one exchange ahead */
};

std::vector<fiber> fibers;
warp_slots slots[MOST_THREADS / WARP];
void *scheduler;
fiber *current;
const std::function<void()> *body;
unsigned char *shared_memory;
size_t shared_bytes;
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
    (*body)();
    current->now = DONE;
    cusim_switch(&current->saved, scheduler);
}

void pause(state why)
{
    current->now = why;
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
    f.turn = 0;
    f.copies.clear();
    f.groups.clear();
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
    cusim_switch(&scheduler, f.saved);
}

/* All fibers of [first, last) wait for the same thing, or are done: let them go on. */
bool release(int first, int last, state why)
{
    int waiting = 0;
    for (int i = first; i < last; i++) {
        if (fibers[i].now == DONE) continue;
        if (fibers[i].now != why) return false;
        waiting++;
    }
    for (int i = first; i < last; i++)
        if (fibers[i].now == why) fibers[i].now = READY;
    return waiting > 0;
}

void run_block(int count)
{
    for (;;) {
        /* Any order must do: walk with a stride coprime to the count. */
        shuffle_state = shuffle_state * 6364136223846793005u + 1442695040888963407u;
        int offset = (int)(shuffle_state >> 33) % count, backwards = (int)(shuffle_state >> 62) & 1;
        bool ran = false, left = false;
        for (int k = 0; k < count; k++) {
            int i = (offset + (backwards ? count - k : k)) % count;
            if (fibers[i].now != READY) continue;
            run(fibers[i]);
            ran = true;
        }
        for (int first = 0; first < count; first += WARP)
            if (release(first, first + WARP < count ? first + WARP : count, AT_EXCHANGE)) left = true;
        if (!left && release(0, count, AT_BARRIER)) left = true;
        if (left) continue;
        bool done = true;
        for (int i = 0; i < count; i++) done = done && fibers[i].now == DONE;
        if (done) return;
        if (!ran) {
            fprintf(stderr, "cudasim: threads of a block wait at different places\n");
            abort();
        }
    }
}

} // namespace

unsigned char *dynamic_shared() { return shared_memory; }
void block_barrier() { pause(AT_BARRIER); }
int lane() { return (int)(current - fibers.data()) % WARP; }

uint64_t exchange(uint64_t bits, int from)
{
    fiber *self = current;
    int index = (int)(self - fibers.data());
    uint64_t *board = slots[index / WARP].bits[self->turn];
    self->turn ^= 1;
    board[index % WARP] = bits;
    pause(AT_EXCHANGE);
    return board[from % WARP];
}

void exchange_all(uint64_t bits, uint64_t (&all)[32])
{
    fiber *self = current;
    int index = (int)(self - fibers.data());
    uint64_t *board = slots[index / WARP].bits[self->turn];
    self->turn ^= 1;
    board[index % WARP] = bits;
    pause(AT_EXCHANGE);
    memcpy(all, board, sizeof all);
}

void copy_later(void *to, const void *from)
{
    if ((uintptr_t)to % 16 || (uintptr_t)from % 16) {
        fprintf(stderr, "cudasim: an asynchronous copy that is not aligned\n");
        abort();
    }
    memset(to, 0xff, 16); /* NaN until somebody waits */
    current->copies.push_back({to, from});
}
void copies_commit()
{
    size_t grouped = 0;
    for (size_t n : current->groups) grouped += n;
    current->groups.push_back(current->copies.size() - grouped);
}
void copies_done(int pending)
{
    while ((int)current->groups.size() > pending) {
        size_t n = current->groups.front();
        for (size_t i = 0; i < n; i++) memcpy(current->copies[i].to, current->copies[i].from, 16);
        current->copies.erase(current->copies.begin(), current->copies.begin() + (long)n);
        current->groups.erase(current->groups.begin());
    }
}

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

void run_grid(dim3 grid, dim3 block, size_t shared, const std::function<void()> &kernel)
{
    int count = (int)(block.x * block.y * block.z);
    prepare(count);
    body = &kernel;
    shared_bytes = shared;
    here.block_dim = block;
    here.grid_dim = grid;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                here.block = dim3(x, y, z);
                memset(shared_memory, 0xff, shared); /* NaN: nobody may count on old contents */
                for (int i = 0; i < count; i++) start(fibers[i], i, block);
                run_block(count);
            }
}

} // namespace cusim
