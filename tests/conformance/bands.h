/* How far a device may be from the reference, op by op. An element passes when
 *   |got - want| <= absolute * scale + relative * |want|
 * with the scale named in the comment. Zero means equal to the bit (up to the sign of zero). Integer results (codes) and
 * everything whose arithmetic backend.h defines in fp32 must be equal; what may differ is counted in the tests.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_BANDS_H
#define DQ_TESTS_BANDS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct band {
    const char *op;
    const char *variant; /* storage type, or "bf16 math" */
    double absolute;
    double relative;
} band;

static const band bands[] = {
    {"fill", "any", 0, 0},
    {"convert", "any", 0, 0},
    {"axpy", "f32", 3e-7, 0}, /* scale 1 + |alpha|; inputs in [-1, 1] here and below */
    {"axpy", "f64", 5e-16, 0},
    {"scale_cols", "f32", 0, 0},
    {"scale_cols", "f64", 0, 0},
    {"gather", "any", 0, 0},
    {"find_nonfinite", "any", 0, 0},
    {"dot", "f32", 1e-13, 0}, /* elements; products and sum are fp64 */
    {"dot", "f64", 1e-13, 0},
    {"gemm", "f32", 2e-6, 0}, /* |alpha| sqrt(depth) + |beta| */
    {"gemm", "f64", 4e-15, 0},
    /* From the rounded or from the unrounded product, |alpha| sqrt(depth) (1 + depth / 1000) + |beta|: tensor cores cut their
     * sums off instead of rounding them, which adds up. Also for F16 x F16, BF16 x BF16. */
    {"gemm", "bf16 math", 2e-6, 0},
    {"rmsnorm", "f32", 0, 1e-6},
    {"layernorm", "f32", 1e-6, 1e-6},  /* 1 */
    {"rope", "f32", 3e-7, 0},          /* 1 */
    {"activation", "f32", 1e-6, 2e-6}, /* 1 */
    {"attention", "f32", 4e-6, 0},     /* 1 */
    {"attention", "bf16 math", 2e-2, 0},
    {"head_nll", "f32", 3e-6, 3e-6}, /* sqrt(depth) */
    {"head_nll", "bf16 math", 3e-6, 3e-6},
    {"compare_logits", "f32", 3e-7, 1e-6}, /* sqrt(vocabulary) */
    {"packed_linear", "f32", 4e-6, 0},     /* sqrt(depth) + |beta|; weights within [-1, 1] */
    {"packed_linear", "bf16 math", 4e-6, 0},
    {"kv_store", "any", 0, 0},
    {"kv_attention", "f32", 4e-6, 0}, /* 1 */
    {"fake_quant", "f32", 0, 0},
    {"levels_quant", "f32", 0, 0},
    {"quantize_rows", "any", 0, 0},
    {"int8_linear", "f32", 0, 0},
    {"hadamard", "f32", 1e-6, 0}, /* |scale| sqrt(order) */
    {"hadamard", "f64", 2e-15, 0},
    {"fused", "f32", 0, 0},      /* rmsnorm_quant, hadamard_quant: the device's own two ops */
    {"syrk", "f32", 2e-6, 3e-6}, /* |alpha| sqrt(tokens) + |beta| */
    /* More than 200 tokens on a device out of reach, up to 2100: three products on tensor cores, cut off as for gemm. */
    {"syrk", "long sums", 4e-6, 4e-5},
    {"diag", "f32", 0, 0},
    {"gptq_factor", "f32", 2e-6, 0}, /* 1; condition number about 3 */
    {"qr", "f32", 1e-4, 0},          /* 1; r: largest entry */
    {"qr", "f64", 1e-12, 0},
    {"weight_grid", "f32", 0, 0},       /* without search */
    {"weight_grid", "search", 0, 1e-4}, /* error of the chosen range against the smallest error */
    {"quantize_weight", "u8", 0, 0},
    {"dequantize_weight", "f32", 0, 0},
    {"gptq", "error of a linear", 0, 2e-3}, /* rounding ties may fall either way */
    {"gptq_block", "f32", 2e-5, 2e-5},      /* 1; rows with another code at a rounding tie are counted apart */
    {"rotation_loss", "loss", 1e-6, 2e-6},  /* elements, or rows when relative */
    {"rotation_loss", "loss, bf16 math", 1e-6, 2e-6}, /* from rounded or from unrounded operands */
    {"rotation_loss", "f32", 5e-6, 0},                /* |scale| sqrt(vectors of a group) and the largest inputs */
    {"rotation_loss", "bf16 math", 2.5e-3, 0}, /* both factors of a term may round to bf16 either way: 2^-9 each */
    {"qr_grad", "f32", 3e-5, 1e-4},            /* sqrt(order); condition number below 10 */
    {"qr_grad", "f64", 1e-13, 1e-12},
    {"adam", "moments", 3e-7, 0},      /* 1 */
    {"adam", "direction", 1e-6, 2e-6}, /* 1 */
    {"polar", "f32", 3e-6, 0},         /* 1; condition number below 10 */
    {"polar", "f64", 3e-14, 0},
    {"polar", "bf16 math", 3e-2, 0},
    {"polar", "error", 4e-6, 0}, /* 1; of a factor stored in fp32 */
    {"polar", "error, f64", 1e-13, 0},
};

static inline const band *band_of(const char *op, const char *variant)
{
    for (size_t i = 0; i < sizeof bands / sizeof bands[0]; i++)
        if (strcmp(bands[i].op, op) == 0 && strcmp(bands[i].variant, variant) == 0) return &bands[i];
    fprintf(stderr, "no band for %s %s\n", op, variant);
    exit(1);
}

#endif
