#!/usr/bin/env python3
"""Does learning R1 for a model far larger than memory stay small? Makes a stack of layers of a 70B model's shape with random
weights (standard library only), runs `dartquant calibrate` on it and checks peak_rss_bytes.

    tests/bench/calibrate_memory.py build/bin/dartquant [--hidden 8192 --layers 2 --limit-gb 6] [-- flags of calibrate]

One step of each phase on few rows; the polar factors alone take minutes of two processors, and 3.5 GB of disk are needed at the
full size: not part of `make test`. SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile


def write_model(folder, hidden, layers, vocab=256):
    heads, kv, dim, inter = hidden // 128, max(1, hidden // 1024), 128, hidden * 7 // 2
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        p = f"model.layers.{i}."
        shapes.update({p + "self_attn.q_proj.weight": (heads * dim, hidden), p + "self_attn.k_proj.weight": (kv * dim, hidden),
                       p + "self_attn.v_proj.weight": (kv * dim, hidden), p + "self_attn.o_proj.weight": (hidden, heads * dim),
                       p + "mlp.gate_proj.weight": (inter, hidden), p + "mlp.up_proj.weight": (inter, hidden),
                       p + "mlp.down_proj.weight": (hidden, inter), p + "input_layernorm.weight": (hidden,),
                       p + "post_attention_layernorm.weight": (hidden,)})
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = random.Random(1)
    # A block of small numbers, written from ever other places of it: cheap, and no two rows alike.
    numbers = [draw.gauss(0, 0.02) for _ in range(1 << 20)]
    block = b"".join(struct.pack("<f", x)[2:] for x in numbers)
    ones = struct.pack("<f", 1.0)[2:]
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            if len(shape) == 1:
                f.write(ones * shape[0])
                continue
            left = 2 * shape[0] * shape[1]
            while left > 0:
                at = 2 * draw.randrange(1 << 19)
                piece = block[at:at + min(left, 1 << 20)]
                f.write(piece)
                left -= len(piece)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inter,
              "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": dim,
              "vocab_size": vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096,
              "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("--hidden", type=int, default=8192)
    p.add_argument("--layers", type=int, default=2)
    p.add_argument("--limit-gb", type=float, default=6)
    p.add_argument("--tokenizer", default=os.path.join(os.path.dirname(__file__), "..", "data", "tiny"))
    p.add_argument("--dir", help="where the model is made (default: a temporary folder)")
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[:own.index("--")], own[own.index("--") + 1:]
    args = p.parse_args(own)
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        write_model(folder, args.hidden, args.layers, vocab=512)
        text = os.path.join(folder, "text.txt")
        with open(text, "w", encoding="utf-8") as f:
            f.write("one day a cat saw the sun and went home to sleep. " * 4000)
        command = [args.program, "calibrate", folder, "--tokenizer", args.tokenizer, "--cal-file", text, "--target", "r1",
                   "--out", os.path.join(folder, "r1.safetensors"), "--nsamples", "2", "--seqlen", "512",
                   "--budget", "512M", "--ep", "1", "--quant_steps", "1", "--math", "bf16", "--json"]
        r = subprocess.run(command + more, stdout=subprocess.PIPE, text=True)
        if r.returncode != 0:
            sys.exit(f"calibrate failed: {r.stdout}")
        report = json.loads(r.stdout)
    peak = report["peak_rss_bytes"] / 1e9
    print(json.dumps({"hidden": args.hidden, "layers": args.layers, "peak_gb": round(peak, 3),
                      "seconds": round(report["total_seconds"], 1), "seconds_per_step": report["seconds_per_step"],
                      "orthogonality_error": report["orthogonality_error"]}))
    if peak > args.limit_gb:
        sys.exit(f"{peak:.2f} GB is more than {args.limit_gb} GB")


if __name__ == "__main__":
    main()
