#!/usr/bin/env python3
"""Prompt and decode speed of generation against llama.cpp (peer_llamacpp.py) on the same GGUF files, in turns; each line:
median and best of ours, of the peer, ratio of the bests. Files and models are made from --model in --work and kept.

usage: bench_generate.py --build BUILD --model FILE.gguf --text-file F [--work DIR] [--prompt 512] [--new 64] [--repeat 3]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--build", required=True)
p.add_argument("--model", required=True)
p.add_argument("--text-file", required=True)
p.add_argument("--work")
p.add_argument("--prompt", type=int, default=512)
p.add_argument("--new", type=int, default=64)
p.add_argument("--repeat", type=int, default=3)
p.add_argument("--threads", type=int, default=2)
a = p.parse_args()
DQ = os.path.join(a.build, "bin", "dartquant")
work = a.work or os.path.join(a.build, "bench")
os.makedirs(work, exist_ok=True)


def run(command):
    r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode != 0:
        raise SystemExit(f"{command[:3]} failed: {r.stderr[-400:]}")
    return r.stdout


def make(path, command):
    if not os.path.exists(path):
        run(command)
    return path


files = {t: make(os.path.join(work, f"{t}.gguf"),
                 [DQ, "export", a.model, "--format", f"gguf:{t}", "--out", os.path.join(work, f"{t}.gguf"), "--quiet"])
         for t in ("q4_0", "q8_0")}
w4 = os.path.join(work, "w4g64")
make(w4, [DQ, "quantize", a.model, "--no_rotation", "--w_bits", "4", "--w_rtn", "--w_groupsize", "64",
          "--save_qmodel_path", w4, "--quiet"])

# A text of about so many tokens, and its ids for the peer.
text = open(a.text_file, encoding="utf-8", errors="ignore").read(16 * a.prompt)[2000:]
text = text[:int(len(text) * a.prompt / (len(text) / 4))]
prompt, ids = os.path.join(work, "prompt.txt"), os.path.join(work, "prompt.json")
open(prompt, "w", encoding="utf-8").write(text[:4 * a.prompt])
tokens = json.loads(run([DQ, "tokenize", a.model, "--file", prompt, "--json"]))["ids"]
json.dump(tokens, open(ids, "w", encoding="utf-8"))


def ours(model, *flags):
    return [DQ, "generate", model, "--prompt_file", prompt, "--max_tokens", str(a.new), "--ignore_eos", "--json",
            "--threads", str(a.threads), *flags]


def peer(model):
    return [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_llamacpp.py"), "--model", model,
            "--ids", ids, "--seqlen", str(len(tokens)), "--new", str(a.new), "--threads", str(a.threads)]


rounds = {}
for t, path in files.items():
    rounds.update({t: ours(path), f"{t}, int8 products": ours(path, "--int8_products"), f"{t}, bf16": ours(path, "--math", "bf16"),
                   f"{t}, llama.cpp": peer(path)})
rounds.update({"w4 g64": ours(w4), "w4 g64, int8 products": ours(w4, "--int8_products"), "w4 g64, bf16": ours(w4, "--math", "bf16")})
found = {name: [] for name in rounds}
for _ in range(a.repeat):
    for name, command in rounds.items():
        found[name].append(json.loads(run(command)))
print(f"prompt of {len(tokens)}, {a.new} new tokens, {a.threads} threads, {a.repeat} rounds; tokens/s: median, best; best against llama.cpp")
for name, results in found.items():
    base = found[("q8_0" if name.startswith("q8_0") else "q4_0") + ", llama.cpp"]
    line = f"  {name:24}"
    for key in ("prompt_tokens_per_second", "decode_tokens_per_second"):
        rates, others = [r[key] for r in results], [r[key] for r in base]
        line += f"  {key.split('_')[0]} {statistics.median(rates):7.1f} {max(rates):7.1f} {max(rates) / max(others):5.2f}x"
    if "weights_bytes" in results[0]:
        line += f"  {results[0]['weights_bytes'] / 1e6:.1f} MB"
    print(line, flush=True)
