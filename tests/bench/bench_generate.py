#!/usr/bin/env python3
"""Prompt and decode speed of generation against llama.cpp (peer_llamacpp.py) on the same GGUF files, in turns; each line:
median and best of ours, ratio of the bests. Then several prompts at once, ours alone. Files and models are made from --model
in --work and kept.

usage: bench_generate.py --build BUILD --model FILE.gguf --text-file F [--work DIR] [--prompt 512] [--new 64] [--repeat 3]
       [--batches 8,32] [--cases REGEX] [--prefix "nice -n -15"] [--json FILE]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
KEYS = ("prompt_tokens_per_second", "decode_tokens_per_second")
BATCH_PROMPT, BATCH_NEW = 32, 32

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--build", required=True)
p.add_argument("--model", required=True)
p.add_argument("--text-file", required=True)
p.add_argument("--work")
p.add_argument("--prompt", type=int, default=512)
p.add_argument("--new", type=int, default=64)
p.add_argument("--repeat", type=int, default=3)
p.add_argument("--threads", type=int, default=2)
p.add_argument("--batches", default="8,32", help=f"prompts at once, of {BATCH_PROMPT} tokens each; empty: none")
p.add_argument("--cases", default="", help="only cases whose name matches")
p.add_argument("--prefix", default="", help="before each measured command")
p.add_argument("--json", help="where results are written")
a = p.parse_args()
DQ = os.path.join(a.build, "bin", "dartquant")
work = a.work or os.path.join(a.build, "bench")
os.makedirs(work, exist_ok=True)


def run(command):
    r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if r.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} failed: {r.stderr[-400:]}")
    return r.stdout


def make(name, *command):
    """A model of that name in the work folder, unless it is there already."""
    path = os.path.join(work, name)
    if not os.path.exists(path):
        run([DQ, *(path if word is None else word for word in command), "--quiet"])
    return path


def prompt_file(name, text, tokens):
    """The longest beginning of the text that has at most so many tokens, in words of the file; its path and its ids."""
    path = os.path.join(work, name)
    low, high = 1, len(text)
    while low < high:  # tokens of beginnings grow with them, but for a few at the cut
        middle = (low + high + 1) // 2
        with open(path, "w", encoding="utf-8") as f:
            f.write(text[:middle])
        if len(json.loads(run([DQ, "tokenize", a.model, "--file", path, "--json"]))["ids"]) <= tokens:
            low = middle
        else:
            high = middle - 1
    with open(path, "w", encoding="utf-8") as f:
        f.write(text[:low])
    return path, json.loads(run([DQ, "tokenize", a.model, "--file", path, "--json"]))["ids"]


def ours(model, prompts, new, *flags):
    words = [word for path in prompts for word in ("--prompt_file", path)]
    return [*a.prefix.split(), DQ, "generate", model, *words, "--no_chat", "--max_tokens", str(new), "--ignore_eos", "--json",
            "--quiet", "--threads", str(a.threads), *flags]


def peer(model, ids):
    return [*a.prefix.split(), sys.executable, os.path.join(HERE, "peer_llamacpp.py"), "--model", model, "--ids", ids[0],
            "--seqlen", str(ids[1]), "--new", str(a.new), "--threads", str(a.threads)]


def cases():
    """{name: (command, name of its peer or None)}"""
    files = {t: make(f"{t}.gguf", "export", a.model, "--format", f"gguf:{t}", "--out", None) for t in ("q4_0", "q8_0")}
    files["w4 g64"] = make("w4g64", "quantize", a.model, "--no_rotation", "--w_bits", "4", "--w_rtn", "--w_groupsize", "64",
                           "--save_qmodel_path", None)
    with open(a.text_file, encoding="utf-8", errors="ignore") as f:
        text = f.read(200_000)[2000:]
    prompt, tokens = prompt_file("prompt.txt", text[:8 * a.prompt], a.prompt)
    ids = os.path.join(work, "prompt.json"), len(tokens)
    with open(ids[0], "w", encoding="utf-8") as f:
        json.dump(tokens, f)
    table = {}
    for t in ("q4_0", "q8_0"):
        table[f"{t}, llama.cpp"] = peer(files[t], ids), f"{t}, llama.cpp"
    for t, model in files.items():
        base = f"{t if t in ('q4_0', 'q8_0') else 'q4_0'}, llama.cpp"
        for name, flags in (("", ()), (", int8 products", ("--int8_products",)), (", bf16", ("--math", "bf16")),
                            (", bf16, int8 products", ("--math", "bf16", "--int8_products"))):
            table[t + name] = ours(model, [prompt], a.new, *flags), base
    for count in (int(n) for n in a.batches.split(",") if n):
        some = [prompt_file(f"prompt{i}.txt", text[1000 + 600 * i:1600 + 600 * i], BATCH_PROMPT)[0] for i in range(count)]
        for name, flags in (("", ()), (", bf16", ("--math", "bf16")), (", int8 products", ("--int8_products",))):
            table[f"w4 g64, {count} prompts{name}"] = ours(files["w4 g64"], some, BATCH_NEW, *flags), None
    return {name: case for name, case in table.items() if re.search(a.cases, name) or case[1] == name}, len(tokens)


def line_of(name, base, found):
    """One line of the report, and what goes to the file."""
    row = {"name": name}
    line = f"  {name:32}"
    for key in KEYS:
        rates = [r[key] for r in found[name]]
        row[key] = {"median": statistics.median(rates), "best": max(rates)}
        line += f"  {key.split('_')[0]} {row[key]['median']:7.1f} {row[key]['best']:7.1f}"
        if base:
            row[key]["against llama.cpp"] = max(rates) / max(r[key] for r in found[base])
            line += f" {row[key]['against llama.cpp']:5.2f}x"
    if "weights_bytes" in found[name][0]:
        row["weights_bytes"] = found[name][0]["weights_bytes"]
        line += f"  {row['weights_bytes'] / 1e6:.1f} MB"
    return line, row


table, length = cases()
found = {name: [] for name in table}
for _ in range(a.repeat):
    for name, (command, _base) in table.items():
        found[name].append(json.loads(run(command)))
print(f"prompt of {length}, {a.new} new tokens (several prompts: {BATCH_PROMPT} and {BATCH_NEW} each), {a.threads} threads, "
      f"{a.repeat} rounds; tokens/s: median, best; best against llama.cpp")
rows = []
for name, (_command, base) in table.items():
    text, row = line_of(name, base, found)
    rows.append(row)
    print(text, flush=True)
if a.json:
    with open(a.json, "w", encoding="utf-8") as f:
        json.dump(rows, f, indent=1)
