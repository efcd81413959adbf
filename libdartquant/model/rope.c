/* Tables of rotary position embedding (RoFormer, arXiv 2104.09864) with the frequency scalings in use.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "model/arch.h"

/* Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between blended. */
static double llama3(const dq_arch *a, double frequency)
{
    static const double pi = 3.14159265358979323846;
    double wavelength = 2.0 * pi / frequency;
    double longest = a->rope_original_positions / a->rope_low_freq;
    double shortest = a->rope_original_positions / a->rope_high_freq;
    if (wavelength < shortest) return frequency;
    if (wavelength > longest) return frequency / a->rope_factor;
    double smooth =
        (a->rope_original_positions / wavelength - a->rope_low_freq) / (a->rope_high_freq - a->rope_low_freq);
    return (1.0 - smooth) * frequency / a->rope_factor + smooth * frequency;
}

static double frequency_of(const dq_arch *a, const float *divisor, int64_t i)
{
    double frequency = pow(a->rope_theta, -2.0 * (double)i / (double)a->head_dim);
    switch (a->rope_scaling) {
        case DQ_ROPE_LINEAR: return frequency / a->rope_factor;
        case DQ_ROPE_LLAMA3: return llama3(a, frequency);
        case DQ_ROPE_TABLE: return frequency / (double)divisor[i];
        default: return frequency;
    }
}

void dq_arch_rope_table(const dq_arch *arch, const float *inv_freq_divisor, int64_t seqlen, float *cosines,
                        float *sines)
{
    int64_t half = arch->head_dim / 2;
    for (int64_t i = 0; i < half; i++) {
        double frequency = frequency_of(arch, inv_freq_divisor, i);
        for (int64_t t = 0; t < seqlen; t++) {
            cosines[t * half + i] = (float)cos((double)t * frequency);
            sines[t * half + i] = (float)sin((double)t * frequency);
        }
    }
}

double dq_arch_rope_divisor(const dq_arch *a, int64_t i)
{
    double plain = pow(a->rope_theta, -2.0 * (double)i / (double)a->head_dim);
    return a->rope_scaling == DQ_ROPE_LLAMA3 ? plain / llama3(a, plain) : 1.0;
}
