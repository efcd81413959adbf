/* A small LLaMA with random weights as a Hugging Face folder: something to time when no model is at hand.
 * SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

enum { HIDDEN = 1024, INTERMEDIATE = 2816, LAYERS = 4, HEADS = 16, KV_HEADS = 4, HEAD_DIM = 64, VOCAB = 8192 };

static const char config_json[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 1024,\n"
    " \"intermediate_size\": 2816, \"num_hidden_layers\": 4, \"num_attention_heads\": 16,\n"
    " \"num_key_value_heads\": 4, \"head_dim\": 64, \"vocab_size\": 8192, \"max_position_embeddings\": 4096,\n"
    " \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", \"tie_word_embeddings\": true,\n"
    " \"bos_token_id\": 1, \"eos_token_id\": 2, \"torch_dtype\": \"bfloat16\"}\n";

typedef struct tensor {
    char name[72];
    int64_t rows, cols; /* cols 0: a vector of `rows` */
} tensor;

static int add(tensor *list, int n, int layer, const char *name, int64_t rows, int64_t cols)
{
    if (layer < 0)
        snprintf(list[n].name, sizeof list[n].name, "%s.weight", name);
    else
        snprintf(list[n].name, sizeof list[n].name, "model.layers.%d.%s.weight", layer, name);
    list[n].rows = rows;
    list[n].cols = cols;
    return n + 1;
}

static int list_tensors(tensor *t)
{
    int n = add(t, 0, -1, "model.embed_tokens", VOCAB, HIDDEN);
    for (int l = 0; l < LAYERS; l++) {
        n = add(t, n, l, "input_layernorm", HIDDEN, 0);
        n = add(t, n, l, "self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN);
        n = add(t, n, l, "self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN);
        n = add(t, n, l, "self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN);
        n = add(t, n, l, "self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM);
        n = add(t, n, l, "post_attention_layernorm", HIDDEN, 0);
        n = add(t, n, l, "mlp.gate_proj", INTERMEDIATE, HIDDEN);
        n = add(t, n, l, "mlp.up_proj", INTERMEDIATE, HIDDEN);
        n = add(t, n, l, "mlp.down_proj", HIDDEN, INTERMEDIATE);
    }
    return add(t, n, -1, "model.norm", HIDDEN, 0);
}

static json_t *header_of(const tensor *t, int n)
{
    json_t *header = json_object();
    int64_t offset = 0;
    for (int i = 0; i < n; i++) {
        int64_t bytes = t[i].rows * (t[i].cols ? t[i].cols : 1) * 2;
        json_t *shape = t[i].cols ? json_pack("[I, I]", (json_int_t)t[i].rows, (json_int_t)t[i].cols)
                                  : json_pack("[I]", (json_int_t)t[i].rows);
        json_object_set_new(header, t[i].name,
                            json_pack("{s:s, s:o, s:[I, I]}", "dtype", "BF16", "shape", shape, "data_offsets",
                                      (json_int_t)offset, (json_int_t)(offset + bytes)));
        offset += bytes;
    }
    return header;
}

/* bf16 of a uniform number in +-limit; a linear congruential generator (Knuth, MMIX) is random enough for timing. */
static uint16_t random_bf16(uint64_t *state, float limit)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    float x = ((float)(*state >> 40) * 0x1p-23f - 1.0f) * limit;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

static bool write_tensor(FILE *f, const tensor *t, uint64_t *state)
{
    uint16_t row[INTERMEDIATE];
    int64_t cols = t->cols ? t->cols : t->rows, rows = t->cols ? t->rows : 1;
    float limit = sqrtf(3.0f / (float)cols);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t k = 0; k < cols; k++) row[k] = t->cols ? random_bf16(state, limit) : 0x3f80; /* norms: 1 */
        if (fwrite(row, sizeof *row, (size_t)cols, f) != (size_t)cols) return false;
    }
    return true;
}

static bool write_weights(FILE *f)
{
    tensor list[2 + 9 * LAYERS];
    int n = list_tensors(list);
    json_t *header = header_of(list, n);
    char *text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    if (!text) return false;
    uint64_t length = strlen(text), state = 1;
    bool ok =
        fwrite(&length, sizeof length, 1, f) == 1 && fwrite(text, 1, length, f) == length; /* little-endian hosts */
    free(text);
    for (int i = 0; ok && i < n; i++) ok = write_tensor(f, &list[i], &state);
    return ok;
}

static int write_file(const cli *c, const char *dir, const char *name, const char *text)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f) return cli_fail(c, "%s: %s", path, strerror(errno));
    bool ok = text ? fputs(text, f) >= 0 : write_weights(f);
    if (fclose(f) != 0 || !ok) return cli_fail(c, "%s: %s", path, strerror(errno));
    return EXIT_OK;
}

int synthetic_make(const cli *c, const char *dir)
{
    int status = write_file(c, dir, "config.json", config_json);
    return status == EXIT_OK ? write_file(c, dir, "model.safetensors", NULL) : status;
}

void synthetic_remove(const char *dir)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char path[4096];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}
