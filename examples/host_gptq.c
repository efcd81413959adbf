/* An engine with its own forward pass quantizes one of its linear layers: it feeds the layer's inputs batch by batch and
 * takes integer codes and scales.
 *
 *   cc host_gptq.c $(pkg-config --cflags --libs dartquant) -o host_gptq
 *   ./host_gptq
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <stdio.h>

enum { OUT = 96, IN = 128, BATCH = 64, BATCHES = 8, GROUP = 32, GROUPS = IN / GROUP };

static float noise(void)
{
    static uint32_t seed = 7;
    seed = seed * 1664525u + 1013904223u;
    return (float)(seed >> 8) / 8388608.0f - 1.0f;
}

/* Stands for the engine's forward pass up to this layer. Neighbouring features hang together, as real ones do. */
static void layer_inputs(float x[BATCH][IN])
{
    for (int r = 0; r < BATCH; r++)
        for (int i = 0; i < IN; i++) x[r][i] = i ? 0.9f * x[r][i - 1] + 0.3f * noise() : noise();
}

/* Mean squared difference of the layer's outputs. */
static double output_error(float a[OUT][IN], float b[OUT][IN], float x[BATCH][IN])
{
    double sum = 0;
    for (int r = 0; r < BATCH; r++)
        for (int o = 0; o < OUT; o++) {
            double d = 0;
            for (int i = 0; i < IN; i++) d += (double)x[r][i] * (double)(a[o][i] - b[o][i]);
            sum += d * d;
        }
    return sum / (BATCH * OUT);
}

static float weight[OUT][IN], back[OUT][IN], inputs[BATCH][IN];
static uint8_t codes[OUT][IN];
static float scale[OUT][GROUPS], zero[OUT][GROUPS];
static int32_t group_of[IN];

static dq_status quantize(dq_context *ctx, const dq_config *config, const dq_hessian *h, const char *name)
{
    double error = 0;
    dq_status status = dq_quantize_weight(ctx, config, &weight[0][0], OUT, IN, h, &codes[0][0], &scale[0][0],
                                          &zero[0][0], group_of, &error, NULL);
    if (status == DQ_OK) /* weight = scale * (code - zero) */
        status =
            dq_dequantize_weight(ctx, &codes[0][0], &scale[0][0], &zero[0][0], group_of, OUT, IN, GROUP, &back[0][0]);
    if (status == DQ_OK) printf("%-5s output error %.6f\n", name, output_error(weight, back, inputs));
    return status;
}

int main(void)
{
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_hessian *hessian = NULL;
    for (int o = 0; o < OUT; o++)
        for (int i = 0; i < IN; i++) weight[o][i] = noise();
    dq_status status = dq_config_new(&config);
    if (status == DQ_OK) status = dq_config_set(config, "w_bits", "3");
    if (status == DQ_OK) status = dq_config_set_int(config, "w_groupsize", GROUP);
    if (status == DQ_OK) status = dq_context_new(config, NULL, &ctx);
    if (status == DQ_OK) status = dq_hessian_new(ctx, IN, &hessian);
    for (int batch = 0; batch < BATCHES && status == DQ_OK; batch++) {
        layer_inputs(inputs);
        status = dq_hessian_add(hessian, inputs, BATCH, IN, DQ_F32);
    }
    if (status == DQ_OK) status = quantize(ctx, config, hessian, "GPTQ");
    if (status == DQ_OK) status = dq_config_set(config, "w_rtn", "true");
    if (status == DQ_OK) status = quantize(ctx, config, NULL, "RTN");
    if (status != DQ_OK) fprintf(stderr, "failed: %s\n", dq_error_text());
    dq_hessian_free(hessian);
    dq_context_free(ctx);
    dq_config_free(config);
    return status == DQ_OK ? 0 : 1;
}
