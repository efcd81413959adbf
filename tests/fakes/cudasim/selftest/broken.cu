/* Kernels that are wrong in one way each, for the checker of the simulated card to find, and some that are right and look as
 * if they were not. `broken` lists them with what must be said (nothing: the word "clean"); `broken NAME` runs one.
 * SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <stdlib.h>

#include "backend/cuda/mma.h"

static struct {
    cudaStream_t stream;
} the_card, *card = &the_card;

static float *memory(size_t bytes, bool filled)
{
    void *p = NULL;
    if (cudaMallocAsync(&p, bytes, card->stream) != cudaSuccess) abort();
    if (filled && cudaMemsetAsync(p, 0, bytes, card->stream) != cudaSuccess) abort();
    return (float *)p;
}
#define RUN(kernel, grid, block, shared, ...) CU_LAUNCH(card, kernel, grid, block, shared, __VA_ARGS__)

/* ---- addresses ---- */

__global__ void read_kernel(const float *x, float *y) { y[threadIdx.x] = x[threadIdx.x]; }
static void past_end() { RUN(read_kernel, 1, 101, 0, memory(400, true), memory(512, true)); }
static void past_end_write() { RUN(read_kernel, 1, 101, 0, memory(512, true), memory(400, true)); }
static void before_start() { RUN(read_kernel, 1, 32, 0, memory(512, true), memory(512, true) - 1); }
static void freed()
{
    float *x = memory(512, true), *y = memory(512, true);
    (void)cudaFreeAsync(x, card->stream);
    RUN(read_kernel, 1, 32, 0, x, y);
}
static void given_back()
{
    float *x = NULL, *y = memory(512, true);
    (void)cudaMalloc((void **)&x, 512);
    (void)cudaFree(x);
    RUN(read_kernel, 1, 32, 0, x, y);
    (void)cudaStreamSynchronize(card->stream);
}
static void of_host()
{
    static float *x;
    x = (float *)calloc(32, 4);
    RUN(read_kernel, 1, 32, 0, x, memory(512, true));
}
static void pinned()
{
    float *x = NULL;
    (void)cudaMallocHost((void **)&x, 512);
    RUN(read_kernel, 1, 32, 0, x, memory(512, true));
}

__global__ void dynamic_shared_kernel(int n, float *y)
{
    CU_DYNAMIC_SHARED(shared);
    float *s = (float *)shared;
    for (int i = threadIdx.x; i < n; i += (int)blockDim.x) s[i] = (float)i;
    __syncthreads();
    y[threadIdx.x] = s[n - 1 - (int)threadIdx.x];
}
static void past_shared() { RUN(dynamic_shared_kernel, 1, 32, 63 * 4, 64, memory(512, true)); }
static void within_shared()
{
    for (int i = 0; i < 3; i++) RUN(dynamic_shared_kernel, 1, 32, 64 * 4, 64, memory(512, true));
}

__global__ void static_shared_kernel(float *y)
{
    __shared__ float s[32];
    s[threadIdx.x] = 1;
    __syncthreads();
    y[0] = s[0];
}
static void past_static_shared() { RUN(static_shared_kernel, 1, 33, 0, memory(512, true)); }

/* ---- alignment ---- */

__global__ void wide_kernel(const float *x, float *y)
{
    float4 four = *(const float4 *)(x + 4 * threadIdx.x);
    y[4 * threadIdx.x] = four.x + four.w;
}
__global__ void wide_store_kernel(float *y)
{
    float4 four = {1, 2, 3, 4};
    ((float4 *)y)[threadIdx.x] = four;
}
__global__ void narrow_kernel(const char *x, float *y) { y[threadIdx.x] = *(const float *)(x + 2 + 4 * threadIdx.x); }
static void misaligned_float4() { RUN(wide_kernel, 1, 8, 0, memory(512, true) + 1, memory(512, true)); }
static void misaligned_store() { RUN(wide_store_kernel, 1, 8, 0, memory(512, true) + 2); }
static void misaligned_float() { RUN(narrow_kernel, 1, 8, 0, (const char *)memory(512, true), memory(512, true)); }
static void aligned_float4() { RUN(wide_kernel, 1, 8, 0, memory(512, true) + 4, memory(512, true)); }

/* ---- shared memory ---- */

enum { NOTHING, BARRIER, WARP, SHUFFLE };
template <int BETWEEN> __device__ static inline void wait_for_others()
{
    if (BETWEEN == BARRIER) __syncthreads();
    if (BETWEEN == WARP) __syncwarp();
    if (BETWEEN == SHUFFLE) (void)__shfl_xor_sync(CU_ALL, 1, 1);
}
/* Everybody leaves a number for the thread `away` places on, which has read its own one before. */
template <int BEFORE, int AFTER> __global__ void neighbours_kernel(int away, float *y)
{
    CU_DYNAMIC_SHARED(shared);
    float *s = (float *)shared;
    s[threadIdx.x] = 1;
    wait_for_others<BARRIER>();
    y[threadIdx.x] = s[threadIdx.x];
    wait_for_others<BEFORE>();
    s[threadIdx.x ^ (unsigned)away] = 2;
    wait_for_others<AFTER>();
    y[threadIdx.x] += s[threadIdx.x];
}
#define NEIGHBOURS(before, after, away) RUN((neighbours_kernel<before, after>), 1, 64, 256, away, memory(512, true))
static void no_barrier_read() { NEIGHBOURS(BARRIER, NOTHING, 32); }
static void no_barrier_write() { NEIGHBOURS(NOTHING, BARRIER, 32); }
static void warp_is_no_block() { NEIGHBOURS(BARRIER, WARP, 32); }
static void no_syncwarp() { NEIGHBOURS(WARP, NOTHING, 1); }
static void no_syncwarp_before() { NEIGHBOURS(NOTHING, WARP, 1); }
static void shuffle_orders_nothing() { NEIGHBOURS(WARP, SHUFFLE, 1); }
static void warp_is_enough() { NEIGHBOURS(WARP, WARP, 1); }
static void barrier_is_enough() { NEIGHBOURS(BARRIER, BARRIER, 33); }

/* Half a warp waits for itself. */
__global__ void halves_kernel(int away, float *y)
{
    __shared__ float s[32];
    unsigned half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
    s[threadIdx.x] = 1;
    __syncwarp(half);
    y[threadIdx.x] = s[threadIdx.x ^ (unsigned)away];
}
static void own_half() { RUN(halves_kernel, 1, 32, 0, 8, memory(512, true)); }
static void other_half() { RUN(halves_kernel, 1, 32, 0, 16, memory(512, true)); }

/* Neighbours' bytes and 16-bit words are nobody else's. */
__global__ void narrow_words_kernel(unsigned char *a, uint16_t *b)
{
    a[threadIdx.x] = (unsigned char)(a[threadIdx.x] + 1);
    b[threadIdx.x] = (uint16_t)(b[threadIdx.x] + 1);
}
static void narrow_words()
{
    RUN(narrow_words_kernel, 1, 64, 0, (unsigned char *)memory(64, true), (uint16_t *)memory(128, true));
}

/* ---- memory of the card ---- */

__global__ void add_up_kernel(float *sum) { *sum += 1; }
static void blocks_race() { RUN(add_up_kernel, 2, 1, 0, memory(4, true)); }
static void threads_race() { RUN(add_up_kernel, 1, 33, 0, memory(4, true)); }
static void one_after_the_other()
{
    float *x = memory(4, true);
    for (int i = 0; i < 2; i++) RUN(add_up_kernel, 1, 1, 0, x);
}
__global__ void read_next_kernel(float *x)
{
    if (blockIdx.x == 0)
        x[2] = x[1];
    else
        x[1] = 1;
}
static void read_by_another_block() { RUN(read_next_kernel, 2, 1, 0, memory(16, true)); }
__global__ void atomic_kernel(unsigned long long *p, bool look)
{
    atomicMin(p, (unsigned long long)blockIdx.x);
    if (look && threadIdx.x == 0 && *p > 100) p[1] = 0;
}
static void atomics() { RUN(atomic_kernel, 4, 64, 0, (unsigned long long *)memory(16, true), false); }
static void atomics_and_a_look() { RUN(atomic_kernel, 4, 64, 0, (unsigned long long *)memory(16, true), true); }

/* ---- what nobody wrote ---- */

static void never_written() { RUN(read_kernel, 1, 32, 0, memory(512, false), memory(512, true)); }
__global__ void shared_never_written_kernel(float *y)
{
    __shared__ float s[64];
    if (threadIdx.x > 0) s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
static void shared_never_written() { RUN(shared_never_written_kernel, 1, 64, 0, memory(512, true)); }
static void download_never_written()
{
    static char host[512];
    float *x = memory(512, false), *y = memory(256, true);
    RUN(read_kernel, 1, 64, 0, y, x);
    (void)cudaMemcpyAsync(host, x, 256, cudaMemcpyDeviceToHost, card->stream);
    (void)cudaMemcpyAsync(host, x, 257, cudaMemcpyDeviceToHost, card->stream);
}
static void copied_never_written()
{
    float *x = memory(512, false), *y = memory(512, true);
    (void)cudaMemcpyAsync(y, x, 512, cudaMemcpyDeviceToDevice, card->stream);
    RUN(read_kernel, 1, 32, 0, y, x);
}
static void product(bool filled)
{
    cublasHandle_t blas;
    float one = 1, zero = 0, *a = memory(64, true), *b = memory(64, filled), *c = memory(64, false);
    (void)cublasCreate(&blas);
    (void)cublasSetStream(blas, card->stream);
    (void)cublasSetWorkspace(blas, memory(4096, false), 4096);
    (void)cublasGemmEx_64(blas, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 4, &one, a, CUDA_R_32F, 4, b, CUDA_R_32F, 4, &zero, c,
                          CUDA_R_32F, 4, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    RUN(read_kernel, 1, 16, 0, c, a);
    (void)cudaStreamSynchronize(card->stream);
    (void)cublasDestroy(blas);
}
static void product_of_nothing() { product(false); }
static void product_is_written() { product(true); }

/* ---- barriers ---- */

__global__ void some_wait_kernel(float *y)
{
    if (threadIdx.x < 40) __syncthreads();
    y[threadIdx.x] = 1;
}
static void some_wait() { RUN(some_wait_kernel, 1, 64, 0, memory(512, true)); }
__global__ void two_barriers_kernel(float *y)
{
    if (threadIdx.x < 40) {
        y[threadIdx.x] = 1;
        __syncthreads();
    } else {
        y[threadIdx.x] = 2;
        __syncthreads();
        y[threadIdx.x] += 1;
    }
}
static void two_barriers() { RUN(two_barriers_kernel, 1, 64, 0, memory(512, true)); }
__global__ void stuck_kernel(float *y)
{
    if (threadIdx.x == 3)
        __syncthreads();
    else
        __syncwarp();
    y[threadIdx.x] = 1;
}
static void stuck() { RUN(stuck_kernel, 2, 64, 0, memory(512, true)); }
__global__ void shuffle_kernel(unsigned mask, int from, int lanes, float *y)
{
    if ((int)threadIdx.x < lanes) y[threadIdx.x] = __shfl_sync(mask, y[threadIdx.x], from);
}
static void shuffle_from_nobody() { RUN(shuffle_kernel, 1, 32, 0, 0xffffu, 16, 16, memory(512, true)); }
static void shuffle_from_ended() { RUN(shuffle_kernel, 1, 32, 0, CU_ALL, 16, 16, memory(512, true)); }
static void shuffle_past_block() { RUN(shuffle_kernel, 1, 16, 0, CU_ALL, 16, 16, memory(512, true)); }
static void mask_without_self() { RUN(shuffle_kernel, 1, 32, 0, 0xffffu, 1, 32, memory(512, true)); }
static void shuffle_of_some() { RUN(shuffle_kernel, 1, 32, 0, 0xffffu, 3, 16, memory(512, true)); }
__global__ void product_of_some_kernel(float *y)
{
    float c[4] = {};
    uint32_t a[4] = {};
    if (threadIdx.x < 16) cu_mma(c, a, 0, 0);
    y[threadIdx.x] = c[0];
}
static void product_of_some() { RUN(product_of_some_kernel, 1, 32, 0, memory(512, true)); }

/* ---- copies under way, matrices ---- */

enum { EARLY, NO_BARRIER, RIGHT, AGAIN };
template <int HOW> __global__ void tiles_kernel(const char *x, float *y)
{
    CU_DYNAMIC_SHARED(shared);
    unsigned at = 16 * threadIdx.x, next = 16 * (threadIdx.x ^ 32u);
    cu_copy_async(shared + at, x + at, true);
    cu_copies_commit();
    if (HOW == EARLY)
        cu_copies_done<1>();
    else
        cu_copies_done<0>();
    if (HOW != NO_BARRIER) __syncthreads();
    y[threadIdx.x] = *(const float *)(shared + next);
    if (HOW == AGAIN) { /* others may still read */
        cu_copy_async(shared + at, x + at, true);
        cu_copies_commit();
        cu_copies_done<0>();
    }
}
static void copy_not_waited()
{
    RUN(tiles_kernel<EARLY>, 1, 64, 1024, (const char *)memory(1024, true), memory(512, true));
}
static void copy_without_barrier()
{
    RUN(tiles_kernel<NO_BARRIER>, 1, 64, 1024, (const char *)memory(1024, true), memory(512, true));
}
static void copy_over_readers()
{
    RUN(tiles_kernel<AGAIN>, 1, 64, 1024, (const char *)memory(1024, true), memory(512, true));
}
static void copy_misaligned()
{
    RUN(tiles_kernel<RIGHT>, 1, 64, 1024, (const char *)memory(1100, true) + 8, memory(512, true));
}
static void copy_past_end()
{
    RUN(tiles_kernel<RIGHT>, 1, 64, 1024, (const char *)memory(1016, true), memory(512, true));
}
static void copy_of_nothing()
{
    RUN(tiles_kernel<RIGHT>, 1, 64, 1024, (const char *)memory(1024, false), memory(512, true));
}
static void copy_right()
{
    RUN(tiles_kernel<RIGHT>, 1, 64, 1024, (const char *)memory(1024, true), memory(1024, true));
}

template <bool WAIT> __global__ void matrices_kernel(int shift, uint32_t *y)
{
    CU_DYNAMIC_SHARED(shared);
    uint32_t *s = (uint32_t *)shared, out[4];
    for (int i = 0; i < 4; i++) s[4 * (threadIdx.x ^ 1u) + (unsigned)i] = threadIdx.x;
    if (WAIT) __syncwarp();
    cu_load_matrices(out, shared + 16 * threadIdx.x + shift);
    y[threadIdx.x] = out[0] + out[3];
}
static void matrices_misaligned() { RUN(matrices_kernel<true>, 1, 32, 528, 8, (uint32_t *)memory(512, true)); }
static void matrices_without_syncwarp() { RUN(matrices_kernel<false>, 1, 32, 512, 0, (uint32_t *)memory(512, true)); }
static void matrices_right() { RUN(matrices_kernel<true>, 1, 32, 512, 0, (uint32_t *)memory(512, true)); }

#define WORDS "of [0-9]+ bytes"
static const struct {
    const char *name, *words;
    void (*run)();
} cases[] = {
#define CASE(name, words)                                                                                              \
    {                                                                                                                  \
#name, words, name                                                                                             \
    }
    CASE(past_end, "out of bounds: read_kernel: read " WORDS
                   " by thread 100 of block .0,0,0.: 0 bytes past the end of a block of 400"),
    CASE(past_end_write,
         "out of bounds: read_kernel: write " WORDS " by thread 100 .*: 0 bytes past the end of a block of 400"),
    CASE(before_start, "out of bounds: read_kernel: write " WORDS " by thread 0 .*: 4 bytes before a block of 512"),
    CASE(freed, "freed memory: read_kernel: read .*a block of 512 bytes, which is freed"),
    CASE(given_back, "out of bounds: read_kernel: read .*a block that is freed"),
    CASE(of_host, "out of bounds: read_kernel: read .*host memory"),
    CASE(pinned, "out of bounds: read_kernel: read .*pinned block of 512 bytes"),
    CASE(past_shared,
         "out of bounds: dynamic_shared_kernel: write .*0 bytes past the end of 252 bytes of dynamic shared memory"),
    CASE(within_shared, "clean"),
    CASE(past_static_shared, "out of bounds: static_shared_kernel: index 32 of 'float \\[32\\]'"),
    CASE(misaligned_float4,
         "misaligned access: wide_kernel: .*float4.* needs an address that 16 divides, this is byte [0-9]+ of"),
    CASE(misaligned_store, "misaligned access: wide_store_kernel: .*float4.* needs an address that 16 divides"),
    CASE(misaligned_float, "misaligned access: narrow_kernel: .*float.* needs an address that 4 divides"),
    CASE(aligned_float4, "clean"),
    CASE(no_barrier_read, "race in shared memory: .*: (read|write) .*(wrote|read) it before, and no barrier"),
    CASE(no_barrier_write, "race in shared memory: .*: (write|read) .*(read|wrote) it before, and no barrier"),
    CASE(warp_is_no_block, "race in shared memory"),
    CASE(no_syncwarp, "race in shared memory"),
    CASE(no_syncwarp_before, "race in shared memory"),
    CASE(shuffle_orders_nothing, "race in shared memory"),
    CASE(warp_is_enough, "clean"),
    CASE(barrier_is_enough, "clean"),
    CASE(own_half, "clean"),
    CASE(other_half, "race in shared memory: halves_kernel"),
    CASE(narrow_words, "clean"),
    CASE(blocks_race,
         "race in global memory: add_up_kernel: .*thread 0 of block .1,0,0.*thread 0 of block .0,0,0. wrote it before"),
    CASE(threads_race, "race in global memory: add_up_kernel: .*of the same block"),
    CASE(one_after_the_other, "clean"),
    CASE(read_by_another_block, "race in global memory: read_next_kernel: write .*block .0,0,0. read it before"),
    CASE(atomics, "clean"),
    CASE(atomics_and_a_look, "race in global memory: atomic_kernel: (read .*changed .atomically.|atomic .* read it)"),
    CASE(never_written, "never written: read_kernel: read .*byte [0-9]+ of a block of 512 .*: nobody wrote there"),
    CASE(shared_never_written,
         "never written: shared_never_written_kernel: read .*byte 0 of 256 .*: nobody in this block wrote"),
    CASE(download_never_written, "never written: a library: a copy to the host reads byte 256 of a block of 512"),
    CASE(copied_never_written, "never written: read_kernel: read"),
    CASE(product_of_nothing, "never written: a library: gemm: b reads byte 0 of a block of 64"),
    CASE(product_is_written, "clean"),
    CASE(
        some_wait,
        "divergent barrier: some_wait_kernel: __syncthreads is reached by 40 threads of the block, the other 24 have ended"),
    CASE(two_barriers,
         "divergent barrier: two_barriers_kernel: thread [0-9]+ waits at another __syncthreads than thread 0"),
    CASE(stuck, "divergent barrier: stuck_kernel: .*nobody can go on"),
    CASE(shuffle_from_nobody, "divergent barrier: shuffle_kernel: a shuffle reads lane 16, which does not take part"),
    CASE(shuffle_from_ended, "divergent barrier: shuffle_kernel: a shuffle reads lane 16, which does not take part"),
    CASE(shuffle_past_block, "divergent barrier: shuffle_kernel: a shuffle reads lane 16, which does not take part"),
    CASE(mask_without_self, "divergent barrier: shuffle_kernel: mask 0000ffff .* does not name its own lane [0-9]+"),
    CASE(shuffle_of_some, "clean"),
    CASE(product_of_some,
         "divergent barrier: product_of_some_kernel: an instruction of a whole warp is reached by lanes 0000ffff"),
    CASE(copy_not_waited, "asynchronous copy: .*: read .*where a copy is under way"),
    CASE(copy_without_barrier, "race in shared memory: tiles_kernel"),
    CASE(copy_over_readers, "race in shared memory: .*: (write .*read|read .*wrote) it before"),
    CASE(copy_misaligned, "misaligned access: .*: an asynchronous copy .*needs an address that 16 divides"),
    CASE(copy_past_end, "out of bounds: .*: read .*1008 of a block of 1016 bytes.*past its end"),
    CASE(copy_of_nothing, "never written: .*: read of 16 bytes"),
    CASE(copy_right, "clean"),
    CASE(matrices_misaligned, "misaligned access: .*: a matrix's row .*needs an address that 16 divides"),
    CASE(matrices_without_syncwarp, "race in shared memory: .*: (read of 16|write of 4) bytes"),
    CASE(matrices_right, "clean"),
};

int main(int argc, char **argv)
{
    for (auto &c : cases) {
        if (argc < 2) {
            printf("%s\t%s\n", c.name, c.words);
        } else if (strcmp(argv[1], c.name) == 0) {
            if (cudaStreamCreateWithFlags(&card->stream, cudaStreamNonBlocking) != cudaSuccess) return 1;
            c.run();
            (void)cudaStreamSynchronize(card->stream);
            (void)cudaStreamDestroy(card->stream);
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}
