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
import subprocess
import sys
import tempfile

from random_model import write_model


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
        write_model(folder, args.hidden, args.hidden * 7 // 2, args.layers, args.hidden // 128, max(1, args.hidden // 1024),
                    vocab=512, dtype="BF16", tied=True)
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
