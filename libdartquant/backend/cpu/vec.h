/* One vocabulary of short vectors, so that a kernel is written once and compiled once per instruction set: a file
 * NAME_avx512.c includes the kernel with AVX-512 flags, NAME_avx2.c with AVX2 flags, NAME_plain.c without any. vf holds
 * VF floats, vd holds VD doubles; + - * / work on both. Except for the *_madd functions, which fuse where the hardware
 * can, every function gives the same bits at every level. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CPU_VEC_H
#define DQ_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "backend/cpu/vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "backend/cpu/vec_avx2.h"
#else
#include "backend/cpu/vec_plain.h"
#endif

#define VEC_INLINE static inline __attribute__((always_inline))

#endif
