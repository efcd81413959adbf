#!/usr/bin/env python3
"""Memory of generation with packed 4-bit weights against the model's size in fp16. Makes a checkpoint of LLaMA-2-7B's shape with
random fp16 weights (standard library only, shard by shard), rounds it to 4 bits in groups (RTN) with `dartquant quantize`, runs
`dartquant generate` for a few tokens and checks weights_bytes against --limit times the fp16 size. One JSON line.

    tests/bench/generate_memory.py build/bin/dartquant [--layers 32 --dir /var/tmp] [-- flags of generate]

At the full size: 13.5 GB and 4 GB of disk, some minutes; not part of `make test`. SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from random_model import write_model


def run(command):
    """Its report, with the wall time of the whole program."""
    start = time.perf_counter()
    r = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if r.returncode != 0:
        sys.exit(f"{command[1]} failed with status {r.returncode}: {r.stdout}")
    return {**json.loads(r.stdout), "wall": time.perf_counter() - start}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("program")
    p.add_argument("--hidden", type=int, default=4096)
    p.add_argument("--inter", type=int, default=11008)
    p.add_argument("--layers", type=int, default=32)
    p.add_argument("--heads", type=int, default=32)
    p.add_argument("--kv-heads", type=int, default=32)
    p.add_argument("--vocab", type=int, default=32000)
    p.add_argument("--group", type=int, default=128)
    p.add_argument("--new", type=int, default=8)
    p.add_argument("--limit", type=float, default=0.35)
    p.add_argument("--tokenizer", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "tiny"))
    p.add_argument("--dir", help="where the models are made (default: a temporary folder)")
    p.add_argument("--keep", action="store_true", help="leave the 4-bit model in --dir, as w4")
    own, more = sys.argv[1:], []
    if "--" in own:
        own, more = own[:own.index("--")], own[own.index("--") + 1:]
    a = p.parse_args(own)
    with tempfile.TemporaryDirectory(dir=a.dir) as folder:
        full = os.path.join(folder, "fp16")
        w4 = os.path.join(a.dir if a.keep and a.dir else folder, "w4")
        os.mkdir(full)
        start = time.perf_counter()
        size = write_model(full, a.hidden, a.inter, a.layers, a.heads, a.kv_heads, a.vocab, "F16", tied=False, per_shard=1)
        print(f"{size / 1e9:.2f} GB written in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        q = run([a.program, "quantize", full, "--no_rotation", "--w_bits", "4", "--w_groupsize", str(a.group), "--w_rtn",
                 "--save_qmodel_path", w4, "--json", "--quiet"])
        for name in os.listdir(full):
            os.remove(os.path.join(full, name))
        g = run([a.program, "generate", w4, "--tokenizer", a.tokenizer, "--prompt", "one day a cat saw the sun",
                 "--max_tokens", str(a.new), "--ignore_eos", "--json", "--quiet", *more])
    ratio = g["weights_bytes"] / size
    print(json.dumps({"fp16_bytes": size, "quantize_seconds": round(q["wall"], 1), "quantize_peak_gb": round(q["peak_rss_bytes"] / 1e9, 2),
                      "weights_bytes": g["weights_bytes"], "ratio": round(ratio, 4), "generate_peak_gb": round(g["peak_rss_bytes"] / 1e9, 2),
                      "cache_bytes": g["cache_bytes"], "load_seconds": round(g["load_seconds"], 1), "tokens": g["tokens"],
                      "decode_tokens_per_second": round(g["decode_tokens_per_second"], 2)}))
    if ratio > a.limit:
        sys.exit(f"{ratio:.3f} of the fp16 size, {a.limit} is the most")


if __name__ == "__main__":
    main()
