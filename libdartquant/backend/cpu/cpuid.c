/* What this processor and operating system can run: CPUID feature bits, the register state the OS saves (XGETBV) and,
 * for AMX, its permission. Never the model number: virtual machines report ids that do not match their features.
 * SPDX-License-Identifier: Apache-2.0 */
#include "backend/cpu/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* XCR0: which register files the OS saves on a context switch. */
enum {
    XCR0_AVX = 0x06,    /* xmm and ymm */
    XCR0_AVX512 = 0xe6, /* also opmask and zmm */
    XCR0_AMX = 0x60000  /* tile configuration and tile data */
};

static uint64_t read_xcr0(void)
{
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (uint64_t)hi << 32 | lo;
}

/* Linux hands out the 8 KiB tile state on request only, once per process; it refuses when a signal stack is too small. */
static bool request_tile_data(void)
{
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}

static bool has(uint32_t word, int bit) { return (word >> bit & 1u) != 0; }

dq_simd dq_cpu_detect(bool *vnni, bool *bf16, bool *amx)
{
    uint32_t a, b, c, d;
    *vnni = *bf16 = *amx = false;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return DQ_SIMD_PLAIN;
    bool fma = has(c, 12), osxsave = has(c, 27), avx = has(c, 28), f16c = has(c, 29);
    if (!osxsave || !avx || !fma || !f16c) return DQ_SIMD_PLAIN;
    uint64_t xcr0 = read_xcr0();
    uint32_t max_subleaf, b7, c7, d7;
    if ((xcr0 & XCR0_AVX) != XCR0_AVX || !__get_cpuid_count(7, 0, &max_subleaf, &b7, &c7, &d7)) return DQ_SIMD_PLAIN;
    if (!has(b7, 5)) return DQ_SIMD_PLAIN;                                  /* AVX2 */
    bool avx512 = has(b7, 16) && has(b7, 17) && has(b7, 30) && has(b7, 31); /* F, DQ, BW, VL */
    if (!avx512 || (xcr0 & XCR0_AVX512) != XCR0_AVX512) return DQ_SIMD_AVX2;
    *vnni = has(c7, 11);
    uint32_t a71 = 0;
    if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d)) *bf16 = has(a71, 5);
    bool tiles = has(d7, 22) && has(d7, 24) && (xcr0 & XCR0_AMX) == XCR0_AMX; /* AMX-BF16, AMX-TILE */
    *amx = *bf16 && tiles && request_tile_data();
    return DQ_SIMD_AVX512;
}
#else
dq_simd dq_cpu_detect(bool *vnni, bool *bf16, bool *amx)
{
    *vnni = *bf16 = *amx = false;
    return DQ_SIMD_PLAIN;
}
#endif
