/* Every option and preset of the library, in the order of help texts. Names and defaults are those of the original
 * DartQuant program where it has the option; docs/numerics.md lists where ours differ.
 * SPDX-License-Identifier: Apache-2.0 */
#include "api/options.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))
#define ANY 9007199254740992.0 /* 2^53: the integers a double holds exactly */

#define INT(name, area, initial, min, max, unit, help)                                                                 \
    {                                                                                                                  \
        name, area, DQ_OPTION_INT, min, max, initial, unit, "", help                                                   \
    }
#define FLOAT(name, area, initial, min, max, help)                                                                     \
    {                                                                                                                  \
        name, area, DQ_OPTION_FLOAT, min, max, initial, "", "", help                                                   \
    }
/* A number, or the word "auto", which is 0. */
#define AUTO(name, area, initial, min, max, help)                                                                      \
    {                                                                                                                  \
        name, area, DQ_OPTION_FLOAT, min, max, initial, "", "auto", help                                               \
    }
#define BOOL(name, area, initial, help)                                                                                \
    {                                                                                                                  \
        name, area, DQ_OPTION_BOOL, 0, 1, initial, "", "", help                                                        \
    }
#define STRING(name, area, help)                                                                                       \
    {                                                                                                                  \
        name, area, DQ_OPTION_STRING, 0, 0, "", "", "", help                                                           \
    }
#define CHOICE(name, area, initial, choices, help)                                                                     \
    {                                                                                                                  \
        name, area, DQ_OPTION_CHOICE, 0, 0, initial, "", choices, help                                                 \
    }

/* clang-format off */
const dq_option dq_options[] = {
    INT("seed", "general", "0", 0, ANY, "", "Seed of rotations, of the calibration draw and of sampled tokens."),
    INT("threads", "general", "0", 0, 1024, "", "Worker threads; 0 = one per processor. Results do not depend on it."),
    {"backend", "general", DQ_OPTION_STRING, 0, 0, "auto", "", "", "Device: auto (= cpu), cpu, ref (plain C, slow, the definition of correct), or a plug-in by its name or absolute path; :key=value,... after it are its options."},
    CHOICE("policy", "general", "warn", "forbid|warn|allow", "What happens when the device lacks an operation: fail, run it on the host and log that, or run it silently."),
    CHOICE("simd", "general", "auto", "auto|plain|avx2|avx512|amx", "Highest instruction set the cpu device may use."),
    CHOICE("math", "general", "f32", "f32|bf16", "Products in fp32, or with operands rounded to bf16 and fp32 sums."),
    BOOL("integer_products", "general", "true", "Evaluation: where inputs (a_bits at most 8, one scale a token) and weights (one scale a row) are integers and the device has the operations, their products are those of integers, which is exact; false: in floats, as math says."),
    INT("device_memory", "general", "0", 0, ANY, "bytes", "Memory that tensors and scratch may take on a plug-in's device (its option memory); hidden states that do not fit wait in memory of the host, a layer that does not fit is an error with the numbers. 0 = all there is."),
    INT("memory_budget", "general", "0", 0, ANY, "bytes", "Memory that jobs may keep resident beyond their minimum; 0 = automatic."),
    {"temp_dir", "general", DQ_OPTION_STRING, 0, 0, "/var/tmp", "", "", "Folder for the unnamed temporary file that holds the codes while nothing is saved. Where no such file can be made, and with an empty value, they stay in memory; only as long as they fit in memory_budget (automatic: 1 GiB) when the folder was meant to hold them."},

    BOOL("fuse_norm", "rotation", "true", "Fold norm weights into the linears that read them. Rotations need it."),
    BOOL("center_embedding", "rotation", "false", "Subtract each embedding row's mean while fusing, as the original program does. Changes an RMSNorm model."),
    BOOL("use_r1", "rotation", "true", "Rotate the residual stream."),
    STRING("r1_path", "rotation", "File with R1 (.safetensors, .pt, R.bin); without it R1 is made from rotate_mode and seed."),
    CHOICE("use_r2", "rotation", "offline", "none|offline|online", "Rotate value heads: folded into v and o, or with a Hadamard transform across heads at run time."),
    STRING("r2_path", "rotation", "File with R2 of every layer, for use_r2 = offline."),
    BOOL("use_r3", "rotation", "true", "Hadamard transform of queries and keys after RoPE, at run time."),
    BOOL("use_r4", "rotation", "true", "Hadamard transform of the down_proj input, at run time."),
    CHOICE("rotate_mode", "rotation", "hadamard", "hadamard|random", "R1 and R2 without files: Hadamard with random signs, or random orthogonal."),
    BOOL("fp32_had", "rotation", "false", "Accepted for the original program's sake: run-time Hadamard transforms always compute in fp32 here."),

    CHOICE("target", "rotation fitting", "r1,r2", "r1,r2|r1|r2", "Which rotations are learnt: of the residual stream, of the value heads."),
    BOOL("r2_shared", "rotation fitting", "false", "Learn one R2 for all heads of a layer, as SpinQuant's R.bin holds it, instead of one for each key/value head."),
    CHOICE("loss", "rotation fitting", "whip", "whip|swd|swd-channel|swd-gauss|kurtosis|variance|quant-mse|range", "What is minimised: Whip pushes values away from zero; sliced Wasserstein distance to a uniform (all numbers together or per channel) or Gaussian distribution; kurtosis or variance of a row; squared quantization error at the target bits, as it is (quant-mse) or as the range lets expect (range)."),
    CHOICE("method", "rotation fitting", "polar-mm", "qr|qr-retraction|cayley|newton-schulz|polar-mm", "How rotations stay orthogonal: qr is QR-Orth of the original program; polar-mm (majorise-minimise) needs no learning rate."),
    CHOICE("optim", "rotation fitting", "sgd", "sgd|adam", "Update rule of the methods that have a learning rate."),
    FLOAT("lr", "rotation fitting", "0.02", 1e-12, 1e30, "Learning rate; polar-mm has none."),
    FLOAT("momentum", "rotation fitting", "0.9", 0, 0.999999, "Momentum of sgd, first decay of adam."),
    INT("ep", "rotation fitting", "3", 0, 1000000, "epochs", "Passes over the rows."),
    INT("bsz", "rotation fitting", "0", 0, 1048576, "windows", "Rows in one gradient, in windows of seqlen rows; 0 = an eighth of the rows, at least 16 for each dimension."),
    INT("accumulation", "rotation fitting", "1", 1, 1048576, "", "Gradients that are averaged for one step."),
    BOOL("cos", "rotation fitting", "false", "The learning rate falls to zero along half a cosine."),
    FLOAT("mm_boldness", "rotation fitting", "0.25", 0, 1, "polar-mm: factor on the curvature bound; 1 never raises the loss of the rows it sees, less takes longer steps."),
    FLOAT("mm_memory", "rotation fitting", "0.5", 0, 0.999999, "polar-mm: how much of the target of earlier batches is kept."),
    FLOAT("sink_ratio", "rotation fitting", "20", 0, ANY, "A row counts as massive activation (attention sink) when its residual is so many times the layer's median norm; 0 = none do."),
    FLOAT("sink_weight", "rotation fitting", "0.05", 0, 1, "Share of massive activations in the loss."),
    FLOAT("weight_weight", "rotation fitting", "0.25", 0, 1, "Share of the rows of the weights that the rotation turns, scaled to RMS 1, in the loss."),
    INT("quant_steps", "rotation fitting", "64", 0, 1000000, "", "Steps on the quantization error itself at the end (the finish)."),
    CHOICE("quant_loss", "rotation fitting", "range", "range|quant-mse", "What these steps minimise: range, the error to be expected from a row's range, and the rounding error of massive activations with their range left alone; quant-mse, the error itself with its levels held fixed (alternating Procrustes)."),
    FLOAT("holdout", "rotation fitting", "0.1", 0, 0.5, "Share of the rows that is not trained on; the best rotation is chosen and losses are reported on it."),
    INT("patience", "rotation fitting", "0", 0, 1000000, "epochs", "Stop after so many epochs without gain on held-out rows; 0 = never."),
    INT("budget", "rotation fitting", "0", 0, ANY, "bytes", "Memory for the rows of one rotation; 0 = 400 rows for each dimension, at most 2 GiB. More rows than fit are drawn from evenly."),
    CHOICE("rows_dtype", "rotation fitting", "f32", "f32|bf16", "How a model's rows are kept: bf16 takes half the memory and less time. Rows that a program feeds itself keep their type."),
    CHOICE("compat", "rotation fitting", "none", "none|upstream", "upstream: the published recipe with the original program's quirks, see docs/numerics.md; options that are set still count."),

    CHOICE("capture_format", "capture", "rows", "rows|upstream|both", "rows: the drawn rows (safetensors, as many as budget holds). upstream: every input of every token in the original program's files (.pt); mind the disk: hidden size * layers * tokens * 4 bytes for R1 in 16 bits."),

    INT("w_bits", "weights", "16", 2, 16, "bits", "Bits of the decoder's linears: 2 to 8, or 16 = leave them alone."),
    INT("w_groupsize", "weights", "-1", -1, ANY, "columns", "Columns that share a scale; -1 = the whole row."),
    BOOL("w_rtn", "weights", "false", "Round to nearest instead of GPTQ; needs no calibration data."),
    BOOL("w_awq", "weights", "false", "AWQ: activation-aware channel scales, searched on calibration text and folded into norms and linears, before GPTQ or (with w_rtn, as published) rounding to nearest. With w_rtn, w_clip then searches ranges on output error."),
    BOOL("w_clip", "weights", "false", "Search the clipping range with the smallest error."),
    BOOL("w_asym", "weights", "false", "Asymmetric grid (with zero point)."),
    BOOL("act_order", "weights", "false", "GPTQ: columns in the order of falling Hessian diagonal."),
    BOOL("static_groups", "weights", "false", "GPTQ: group scales from the original weights, before any column is changed."),
    FLOAT("percdamp", "weights", "0.01", 0, 100, "GPTQ: damping as a share of the mean Hessian diagonal; raised, and reported, when the factorization fails."),
    CHOICE("vocab_dtype", "weights", "f16", "f16|bf16|f32", "With w_bits < 16, embedding and head are rounded to this type, in memory as in the saved folder."),

    INT("a_bits", "activations", "16", 2, 16, "bits", "Bits of the inputs of the decoder's linears; 16 = off."),
    INT("a_groupsize", "activations", "-1", -1, ANY, "columns", "Columns that share a scale; -1 = the whole token."),
    BOOL("a_asym", "activations", "false", "Asymmetric grid."),
    AUTO("a_clip_ratio", "activations", "1.0", 0.001, 1, "Factor on the range of each token or group; auto: for every layer and input the one with the smallest error on calibration windows."),

    CHOICE("kv_method", "kv", "grid", "grid|kvquant", "grid: keys (after RoPE and R3) and values on integer grids, a range for each token or group. kvquant (arXiv 2401.18079): keys before RoPE with a range for each channel, calibrated; values with a range for each token; both on levels, 2 to 8 bits, outliers and attention sinks left exact. R3 is off then, k_* and v_* other than the bits have no meaning."),
    CHOICE("kv_levels", "kv", "nuq", "uniform|nuq|nf", "kvquant: equally spaced levels; non-uniform ones, fitted on calibration text for every layer; NormalFloat."),
    FLOAT("kv_outliers", "kv", "0.01", 0, 0.5, "kvquant: share of the numbers outside their range, half at each end, that keep their value: 32 bits each, 0.32 bits for every number at 0.01. 0 = none do, ranges reach from the smallest to the largest number."),
    INT("kv_sink", "kv", "1", 0, 1048576, "tokens", "kvquant: so many tokens at the head of every sequence keep their keys and values (attention sinks); they are left out of the calibration, too."),
    BOOL("kv_qnorm", "kv", "false", "kvquant: scale and shift the levels so that mean and deviation stay those of the numbers (Q-Norm), meant for 2 bits."),
    INT("k_bits", "kv", "16", 2, 16, "bits", "Bits of keys, after RoPE and R3 (before RoPE with kv_method kvquant); 16 = off."),
    INT("k_groupsize", "kv", "-1", -1, ANY, "columns", "-1 = all heads of a token share a scale; 0 or head_dim = one scale per head."),
    BOOL("k_asym", "kv", "false", "Asymmetric grid."),
    AUTO("k_clip_ratio", "kv", "1.0", 0.001, 1, "Factor on the range; auto: searched for every layer."),
    INT("v_bits", "kv", "16", 2, 16, "bits", "Bits of values; 16 = off."),
    INT("v_groupsize", "kv", "-1", -1, ANY, "columns", "Columns that share a scale; -1 = the whole token, 0 = one scale per head."),
    BOOL("v_asym", "kv", "false", "Asymmetric grid."),
    AUTO("v_clip_ratio", "kv", "1.0", 0.001, 1, "Factor on the range; auto: searched for every layer."),

    INT("nsamples", "calibration", "128", 1, 1048576, "windows", "Calibration windows of seqlen tokens."),

    INT("seqlen", "evaluation", "2048", 2, 1048576, "tokens", "Length of a window, for calibration and evaluation."),
    INT("limit", "evaluation", "0", 0, ANY, "windows", "Evaluate only that many windows; 0 = all."),

    INT("max_tokens", "generation", "50", 1, 1048576, "tokens", "New tokens of a sequence."),
    FLOAT("temperature", "generation", "0", 0, 1000, "Divides the logits before a token is drawn; 0 = always the most likely token."),
    INT("top_k", "generation", "0", 0, ANY, "tokens", "Draw among that many most likely tokens; 0 = all."),
    FLOAT("top_p", "generation", "1", 1e-9, 1, "Draw among the fewest most likely tokens whose probabilities reach this sum."),
    CHOICE("kv", "generation", "f32", "f32|f16|bf16|int8|int4|fp8", "How keys and values of past tokens are kept; int8, int4: codes with scale and zero point per token and head, fp8: E4M3."),
    CHOICE("head", "generation", "exact", "exact|int8", "The vocabulary's head in memory: as it is, or rounded to 8-bit codes in groups of 32."),
    BOOL("int8_products", "generation", "false", "Inputs of packed linears are rounded to 8 bits in runs of 32 and multiplied as integers while tokens come one by one: faster, not exact."),
    BOOL("ignore_eos", "generation", "false", "Go on after an end token."),
    INT("prefill", "generation", "512", 1, 1048576, "tokens", "Prompt tokens that go through the model together."),

    INT("part_size", "output", "10G", 1, ANY, "bytes", "Largest size of one saved file; a single larger tensor gets a file of its own."),
    STRING("save_qmodel_path", "output", "Folder to save the quantized model in; integer codes go there layer by layer. Without it they go to a temporary file, see temp_dir."),
};
const int dq_options_count = COUNT(dq_options);

/* What the DartQuant scripts use: asymmetric activations clipped at 0.9, K and V asymmetric per head, GPTQ on symmetric
 * groups of 128 with range search and damping 0.1. */
#define W4 "w_bits=4 w_groupsize=128 w_clip=true percdamp=0.1"
#define A(bits) " a_bits=" bits " a_asym=true a_clip_ratio=0.9"
#define KV(bits) " k_bits=" bits " k_asym=true k_groupsize=0 v_bits=" bits " v_asym=true v_groupsize=0"
/* What its authors measure; keys with ranges of their own for each channel want no rotation. */
#define KVQUANT(bits) "kv_method=kvquant kv_levels=nuq kv_outliers=0.01 kv_sink=1 k_bits=" bits " v_bits=" bits " use_r1=false use_r2=none use_r3=false use_r4=false"

const dq_preset dq_presets[] = {
    {"w4a16", "4-bit weights (GPTQ, groups of 128), everything else in full precision.", W4},
    {"w4a8kv8", "4-bit weights, 8-bit activations, 8-bit K and V.", W4 " a_bits=8 a_asym=true" KV("8")},
    {"w4a4kv16", "4-bit weights, 4-bit activations, K and V in full precision.", W4 A("4")},
    {"w4a4kv4", "4-bit weights, 4-bit activations, 4-bit K and V: needs rotation.", W4 A("4") KV("4")},
    {"w3a16", "3-bit weights (GPTQ, groups of 128).", "w_bits=3 w_groupsize=128 w_clip=true percdamp=0.1"},
    {"w4a16_awq", "4-bit weights (AWQ as published: scales, clipping, asymmetric groups of 128).", "w_bits=4 w_groupsize=128 w_awq=true w_rtn=true w_clip=true w_asym=true"},
    {"kvquant_nuq4", "KVQuant, 4-bit K and V: non-uniform levels, 1 % outliers, one sink token; nothing else, no rotation.", KVQUANT("4")},
    {"kvquant_nuq3", "The same with 3 bits.", KVQUANT("3")},
    {"kvquant_nuq2", "The same with 2 bits, and Q-Norm.", KVQUANT("2") " kv_qnorm=true"},
    {"w8a8", "8-bit weights per row (round to nearest), 8-bit activations.", "w_bits=8 w_rtn=true a_bits=8 a_asym=true"},
    {"w8a16", "8-bit weights per row (round to nearest).", "w_bits=8 w_rtn=true"},
    {"none", "Full precision: all bit widths 16.", "w_bits=16 a_bits=16 k_bits=16 v_bits=16"},
};
const int dq_presets_count = COUNT(dq_presets);
/* clang-format on */
