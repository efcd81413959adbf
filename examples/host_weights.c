/* An engine lends the weights it holds in memory and takes the quantized tensors back in memory: no file is touched.
 * The "engine" here has a small LLaMA with made-up weights.
 *
 *   cc host_weights.c $(pkg-config --cflags --libs dartquant) -o host_weights
 *   ./host_weights
 *
 * SPDX-License-Identifier: Apache-2.0 */
#include <dartquant.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HIDDEN = 64, FFN = 128, LAYERS = 2, VOCAB = 256, MOST = 32 };

static const char config_json[] = "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 128, "
                                  "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"vocab_size\": 256, "
                                  "\"tie_word_embeddings\": true}";

/* The engine's own table of tensors. */
typedef struct tensor {
    char name[96];
    int64_t rows, cols; /* cols 0: a vector */
    float *data;
} tensor;

typedef struct engine {
    tensor tensors[MOST];
    int64_t count;
    uint64_t received, pieces; /* what came back */
} engine;

static void add(engine *e, const char *name, int64_t rows, int64_t cols)
{
    static uint32_t seed = 1;
    tensor *t = &e->tensors[e->count++];
    int64_t n = rows * (cols ? cols : 1);
    snprintf(t->name, sizeof t->name, "%s", name);
    t->rows = rows;
    t->cols = cols;
    t->data = malloc((size_t)n * sizeof *t->data);
    for (int64_t i = 0; t->data && i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        t->data[i] = cols ? (float)(seed >> 8) / 16777216.0f * 0.2f - 0.1f : 1.0f;
    }
}

static void make_weights(engine *e)
{
    static const struct {
        const char *name;
        int64_t rows, cols;
    } parts[] = {{"input_layernorm", HIDDEN, 0},       {"post_attention_layernorm", HIDDEN, 0},
                 {"self_attn.q_proj", HIDDEN, HIDDEN}, {"self_attn.k_proj", HIDDEN, HIDDEN},
                 {"self_attn.v_proj", HIDDEN, HIDDEN}, {"self_attn.o_proj", HIDDEN, HIDDEN},
                 {"mlp.gate_proj", FFN, HIDDEN},       {"mlp.up_proj", FFN, HIDDEN},
                 {"mlp.down_proj", HIDDEN, FFN}};
    char name[96];
    add(e, "model.embed_tokens.weight", VOCAB, HIDDEN);
    add(e, "model.norm.weight", HIDDEN, 0);
    for (int layer = 0; layer < LAYERS; layer++)
        for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, parts[i].name);
            add(e, name, parts[i].rows, parts[i].cols);
        }
}

/* The library asks what there is ... */
static dq_status describe(void *user, int64_t i, dq_tensor_desc *out)
{
    const tensor *t = &((engine *)user)->tensors[i];
    out->name = t->name;
    out->dtype = DQ_F32; /* F16, BF16 and F64 are read too */
    out->ndim = t->cols ? 2 : 1;
    out->shape[0] = t->rows;
    out->shape[1] = t->cols;
    return DQ_OK;
}

/* ... and where it lies. An engine with weights elsewhere gives `read` instead. */
static dq_status map(void *user, int64_t i, const void **out)
{
    *out = ((engine *)user)->tensors[i].data;
    return *out ? DQ_OK : DQ_E_NOMEM;
}

/* Results come tensor by tensor: names and layout stand in docs/formats.md, "Saved models". */
static dq_status receive(void *user, const char *name, dq_dtype dtype, int32_t ndim, const int64_t *shape,
                         const void *data, uint64_t bytes)
{
    engine *e = user;
    (void)dtype, (void)data;
    if (strstr(name, "layers.0.self_attn.q_proj"))
        printf("%-45s %lld x %lld, %llu bytes\n", name, (long long)shape[0], ndim > 1 ? (long long)shape[1] : 1,
               (unsigned long long)bytes);
    e->received += bytes;
    e->pieces++;
    return DQ_OK;
}

int main(void)
{
    engine e = {0};
    dq_config *config = NULL;
    dq_context *ctx = NULL;
    dq_model *model = NULL;
    dq_quantizer *job = NULL;
    make_weights(&e);
    dq_tensor_source source = {.struct_size = sizeof source, .abi = DQ_TENSOR_SOURCE_ABI, .user = &e};
    source.count = e.count;
    source.describe = describe;
    source.map = map;
    dq_tensor_sink sink = {.struct_size = sizeof sink, .abi = DQ_TENSOR_SINK_ABI, .user = &e, .add = receive};
    dq_status status = dq_config_new(&config);
    if (status == DQ_OK) status = dq_config_apply_preset(config, "w8a16");
    if (status == DQ_OK) status = dq_context_new(config, NULL, &ctx);
    if (status == DQ_OK) status = dq_model_open_source(ctx, config_json, &source, &model);
    if (status == DQ_OK) status = dq_quantizer_new(model, config, &job);
    if (status == DQ_OK) status = dq_quantizer_set_sink(job, &sink);
    if (status == DQ_OK) status = dq_quantizer_run(job, NULL, NULL, NULL);
    if (status == DQ_OK)
        printf("%llu tensors came back, %llu bytes\n", (unsigned long long)e.pieces, (unsigned long long)e.received);
    else
        fprintf(stderr, "failed: %s\n", dq_error_text());
    dq_quantizer_free(job);
    dq_model_free(model);
    dq_context_free(ctx);
    dq_config_free(config);
    for (int64_t i = 0; i < e.count; i++) free(e.tensors[i].data);
    return status == DQ_OK ? 0 : 1;
}
