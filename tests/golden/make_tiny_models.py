#!/usr/bin/env python3
"""Makes tests/data/models: tiny random LLaMAs and relatives in several layouts and their logits.

Needs torch, transformers, safetensors, gguf. The weights are random (seeded) and rounded to the type they are stored in;
the expected logits come from transformers run in float64 on the stored weights. Names as arguments make these models alone.
SPDX-License-Identifier: Apache-2.0
"""
import json
import pathlib
import shutil
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, OPTConfig,
                          OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

OUT = pathlib.Path(__file__).resolve().parents[1] / "data" / "models"
VOCAB, TOKENS = 96, 24
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_theta": 500.0}

# name -> class, dtype, sharded, config
MODELS = {
    "mha": (LlamaForCausalLM, torch.float32, False,
            LlamaConfig(hidden_size=48, intermediate_size=80, num_attention_heads=4, num_key_value_heads=4)),
    "gqa": (LlamaForCausalLM, torch.bfloat16, False,
            LlamaConfig(hidden_size=64, intermediate_size=96, num_attention_heads=8, num_key_value_heads=2,
                        rope_parameters=LLAMA3)),
    "tied": (LlamaForCausalLM, torch.float16, True,
             LlamaConfig(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=16, tie_word_embeddings=True)),
    "bias": (LlamaForCausalLM, torch.float16, False,
             LlamaConfig(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
                         attention_bias=True, mlp_bias=True, hidden_act="gelu")),
    "window": (MistralForCausalLM, torch.bfloat16, False,
               MistralConfig(hidden_size=48, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
                             head_dim=12, sliding_window=7)),
    "qwen2": (Qwen2ForCausalLM, torch.float16, False,
              Qwen2Config(hidden_size=64, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
                          num_hidden_layers=2, sliding_window=5, use_sliding_window=False)),
    "opt": (OPTForCausalLM, torch.float16, False,
            OPTConfig(hidden_size=64, ffn_dim=96, num_attention_heads=4, word_embed_proj_dim=64)),
    "qwen3": (Qwen3ForCausalLM, torch.bfloat16, False,
              Qwen3Config(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2,
                          num_hidden_layers=2, head_dim=32)),
}


def randomize(model, generator):
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name and name.endswith("bias"):
            p.data = 0.3 * noise
        elif "norm" in name:
            p.data = 1.0 + 0.3 * noise
        elif p.dim() == 1:
            p.data = 0.2 * noise
        elif "embed" in name or "lm_head" in name:
            p.data = noise
        else:
            p.data = noise * 1.5 / p.shape[1] ** 0.5


def old_style_rope(folder):
    """The layout of configs before rope_parameters existed."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    path.write_text(json.dumps(config, indent=2) + "\n")


def make(name, index, cls, dtype, sharded, config):
    config.vocab_size, config.num_hidden_layers, config.max_position_embeddings = VOCAB, 2, 64
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, None
    generator = torch.Generator().manual_seed(100 + index)
    model = cls(config)
    randomize(model, generator)
    folder = OUT / name
    model.to(dtype).save_pretrained(folder, max_shard_size="40KB" if sharded else "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name == "gqa":
        old_style_rope(folder)
    ids = torch.randint(0, VOCAB, (1, TOKENS), generator=generator)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(ids).logits[0]
    nll = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    save_file({"ids": ids[0].to(torch.int32), "logits": logits.float().contiguous(), "nll": nll.double().reshape(1)},
              folder / "expected.bin")
    return ids, logits


def interleave(w, heads):
    """Rows of each head from halves to interleaved pairs, as GGUF keeps q and k."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)


GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        layer, rest = stem[len("model.layers."):].split(".", 1)
        return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[stem] + "." + kind


def to_gguf(name, rope_divisor=None, arch="llama"):
    """The same weights as a GGUF file: matrices F16, vectors F32, q and k of a LLaMA permuted."""
    folder = OUT / name
    config = json.loads((folder / "config.json").read_text())
    weights = {}
    for shard in folder.glob("*.safetensors"):
        weights.update(load_file(shard))
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    w = gguf.GGUFWriter(OUT / f"{name}.gguf", arch)
    w.add_context_length(64)
    w.add_embedding_length(config["hidden_size"])
    w.add_block_count(2)
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    if arch != "qwen2":
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    if arch == "llama":
        w.add_rope_dimension_count(head_dim)
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    w.add_vocab_size(VOCAB)
    w.add_tokenizer_model("gpt2")
    w.add_token_list([f"t{i}" for i in range(VOCAB)])
    w.add_bos_token_id(1)
    for key in sorted(weights):
        a = weights[key].float().numpy()
        if arch == "llama" and ("q_proj" in key or "k_proj" in key):
            a = interleave(a, heads if "q_proj" in key else kv)
        w.add_tensor(gguf_name(key), np.ascontiguousarray(a.astype(np.float32 if a.ndim == 1 else np.float16)))
    if rope_divisor is not None:
        w.add_tensor("rope_freqs.weight", np.asarray(rope_divisor, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    wanted = sys.argv[1:] or list(MODELS)
    OUT.mkdir(parents=True, exist_ok=True)
    for index, (name, spec) in enumerate(MODELS.items()):
        if name in wanted:
            shutil.rmtree(OUT / name, ignore_errors=True)
            make(name, index, *spec)
    if "tied" in wanted:
        to_gguf("tied")
    if "bias" in wanted:
        to_gguf("bias", rope_divisor=[1.0] * 6)
    if "qwen2" in wanted:
        to_gguf("qwen2", arch="qwen2")
    if "qwen3" in wanted:
        to_gguf("qwen3", arch="qwen3")
    total = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{OUT}: {total} bytes")


if __name__ == "__main__":
    main()
