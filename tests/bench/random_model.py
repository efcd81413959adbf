"""Checkpoints of LLaMA's layout with random weights, of any size, written with the standard library and little memory.

SPDX-License-Identifier: Apache-2.0
"""
import json
import os
import random
import struct

# The upper half of a float is a BF16; struct knows F16 itself.
PACKED = {"F16": lambda x: struct.pack("<e", x), "BF16": lambda x: struct.pack("<f", x)[2:]}


def shapes_of(hidden, inter, layers, heads, kv, dim, vocab, tied):
    """Names and shapes, in groups that a shard holds: the ends, then layer by layer."""
    ends = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        ends["lm_head.weight"] = (vocab, hidden)
    groups = [ends]
    for i in range(layers):
        p = f"model.layers.{i}."
        groups.append({p + "self_attn.q_proj.weight": (heads * dim, hidden), p + "self_attn.k_proj.weight": (kv * dim, hidden),
                       p + "self_attn.v_proj.weight": (kv * dim, hidden), p + "self_attn.o_proj.weight": (hidden, heads * dim),
                       p + "mlp.gate_proj.weight": (inter, hidden), p + "mlp.up_proj.weight": (inter, hidden),
                       p + "mlp.down_proj.weight": (hidden, inter), p + "input_layernorm.weight": (hidden,),
                       p + "post_attention_layernorm.weight": (hidden,)})
    return groups


class Numbers:
    """A block of small normal numbers, written from ever other places of it: cheap, and no two rows alike."""

    def __init__(self, dtype):
        self.draw = random.Random(1)
        pack = PACKED[dtype]
        self.block = b"".join(pack(self.draw.gauss(0, 0.02)) for _ in range(1 << 20))
        self.one = pack(1.0)

    def write(self, f, shape):
        if len(shape) == 1:  # norms
            f.write(self.one * shape[0])
            return
        left = 2 * shape[0] * shape[1]
        while left > 0:
            at = 2 * self.draw.randrange(1 << 19)
            piece = self.block[at:at + min(left, 1 << 20)]
            f.write(piece)
            left -= len(piece)


def write_file(path, shapes, dtype, numbers):
    """One safetensors file; returns the bytes of its data."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            numbers.write(f, shape)
    return offset


def write_model(folder, hidden, inter, layers, heads, kv, vocab, dtype, tied, per_shard=0):
    """Writes config.json and model.safetensors, or shards of so many layers with their index; returns the bytes of all weights."""
    dim = hidden // heads
    groups = shapes_of(hidden, inter, layers, heads, kv, dim, vocab, tied)
    numbers, total, where = Numbers(dtype), 0, {}
    step = per_shard or len(groups)
    count = (len(groups) + step - 1) // step
    for n in range(count):
        shapes = {}
        for group in groups[n * step:(n + 1) * step]:
            shapes.update(group)
        name = "model.safetensors" if count == 1 else f"model-{n + 1:05d}-of-{count:05d}.safetensors"
        total += write_file(os.path.join(folder, name), shapes, dtype, numbers)
        where.update({tensor: name for tensor in shapes})
    if count > 1:
        with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as f:
            json.dump({"metadata": {"total_size": total}, "weight_map": where}, f)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inter,
              "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim,
              "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096,
              "hidden_act": "silu", "tie_word_embeddings": tied, "torch_dtype": {"F16": "float16", "BF16": "bfloat16"}[dtype]}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    return total
