#!/usr/bin/env python3
"""Turns a model into every export format, one command each, and opens each result again.

    tests/bench/export_formats.py --model MODEL --ids IDS.json --out DIR [--only FORMAT...] [--keep] [--log FILE]

Prints a table: size, bits per weight, the perplexity that the exporting command states, and that of the folder opened by
itself, which must be the same number. Weights are rounded to nearest (no calibration), so that a run takes minutes. Lines
already in --log are not measured again. SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

ASYM, G64 = ["--w_asym"], ["--w_groupsize", "64"]
PLAIN = ["--no_rotation"]
OFFLINE = ["--use_r3", "false", "--use_r4", "false"]
# format: what is done to the weights
CASES = [
    ("gptq", "W4 g64", PLAIN + ["--w_bits", "4"] + G64),
    ("gptq_v2", "W4 g64 asymmetric", PLAIN + ["--w_bits", "4"] + ASYM + G64),
    ("awq", "W4 g64 asymmetric", PLAIN + ["--w_bits", "4"] + ASYM + G64),
    ("compressed-tensors", "W4 g64 asymmetric, R1, R2", OFFLINE + ["--w_bits", "4"] + ASYM + G64),
    ("compressed-tensors:int-quantized", "W8 rows", PLAIN + ["--w_bits", "8"]),
    ("gguf:q4_0", "W4 g32", PLAIN + ["--w_bits", "4", "--w_groupsize", "32"]),
    ("gguf:q4_1", "W4 g32 asymmetric", PLAIN + ["--w_bits", "4", "--w_groupsize", "32"] + ASYM),
    ("gguf:q5_0", "W5 g32", PLAIN + ["--w_bits", "5", "--w_groupsize", "32"]),
    ("gguf:q5_1", "W5 g32 asymmetric", PLAIN + ["--w_bits", "5", "--w_groupsize", "32"] + ASYM),
    ("gguf:q8_0", "W8 g32", PLAIN + ["--w_bits", "8", "--w_groupsize", "32"]),
    ("gguf:q4_k", "plain", PLAIN + ["--w_bits", "16"]),
    ("gguf:q6_k", "plain", PLAIN + ["--w_bits", "16"]),
    ("gguf:f16", "R1, R2", OFFLINE + ["--w_bits", "16"]),
    ("gguf:bf16", "plain", PLAIN + ["--w_bits", "16"]),
    ("gguf:f32", "plain", PLAIN + ["--w_bits", "16"]),
    ("hf:bf16", "R1, R2", OFFLINE + ["--w_bits", "16"]),
    ("hf:f32", "W4 g64, R1, R2", OFFLINE + ["--w_bits", "4"] + G64),
    ("diffulex-gptq", "plain", PLAIN + ["--w_bits", "16"]),
    ("diffulex-awq", "plain", PLAIN + ["--w_bits", "16"]),
]


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def measure(args, name, options):
    folder = pathlib.Path(args.out) / name.replace(":", "_")
    shutil.rmtree(folder, ignore_errors=True)
    how = ["--ids", args.ids, "--seqlen", str(args.seqlen), "--limit", str(args.limit), "--math", args.math, "--json"]
    rounding = [] if "16" in options else ["--w_rtn"]
    stated = run([args.dartquant, "quantize", args.model, *options, *rounding, "--export", name, "--out", str(folder),
                  "--ppl_eval", *how])
    opened = folder / "model.gguf" if name.startswith("gguf") else folder
    again = run([args.dartquant, "ppl", str(opened), *how])
    size = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".safetensors", ".gguf") and f.stem != "tokenizer")
    if not args.keep:
        shutil.rmtree(folder)
    return {"format": name, "bits_per_weight": stated.get("bits_per_weight"), "megabytes": size / 1e6,
            "stated": stated["results"][0]["ppl"], "opened": again["results"][0]["ppl"]}


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True)
    p.add_argument("--ids", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--dartquant", default="build/bin/dartquant")
    p.add_argument("--only", nargs="*")
    p.add_argument("--keep", action="store_true")
    p.add_argument("--log")
    p.add_argument("--seqlen", type=int, default=2048)
    p.add_argument("--limit", type=int, default=2)
    p.add_argument("--math", default="bf16")
    args = p.parse_args()
    log = pathlib.Path(args.log) if args.log else None
    lines = [json.loads(l) for l in log.read_text().splitlines()] if log and log.exists() else []
    known = {l["format"]: l for l in lines}
    status = 0
    print("| format | weights | MB | stated | opened again |\n|---|---|---|---|---|", flush=True)
    for name, what, options in CASES:
        if args.only and name not in args.only:
            continue
        if name not in known:
            known[name] = measure(args, name, options)
            if log:
                with log.open("a") as f:
                    f.write(json.dumps(known[name]) + "\n")
        r = known[name]
        same = r["stated"] == r["opened"]
        status |= not same
        print(f"| `{name}` | {what} | {r['megabytes']:.1f} | {r['stated']:.4f} | "
              f"{'the same' if same else repr(r['opened']) + ' (differs)'} |", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
