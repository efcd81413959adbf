#!/usr/bin/env python3
"""Perplexity of rotations on a real model: random Hadamard, the published recipe and the default of `dartquant calibrate`,
over seeds, schemes and weight methods; a table of means and ranges. Every finished cell is appended to --log, and cells
found there are not measured again, so an interrupted run goes on.

usage: quality_rotations.py --dartquant build/bin/dartquant --model MODEL --cal-file TEXT --ids IDS.json --log FILE.jsonl
"""
import argparse
import json
import os
import shlex
import subprocess
import sys
import time

A = ["--a_asym", "--a_clip_ratio", "0.9"]
KV = ["--k_asym", "--k_clip_ratio", "0.95", "--k_groupsize", "0", "--v_asym", "--v_clip_ratio", "0.95", "--v_groupsize", "0"]
BITS = {"W16A4": (16, 4, 16), "W4A4KV4": (4, 4, 4), "W4A4KV16": (4, 4, 16), "W4A8KV8": (4, 8, 8), "W4A16": (4, 16, 16)}
KINDS = ["random", "published", "default", "R1 alone", "R2 alone"]
METHODS = ["gptq", "rtn"]

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--dartquant", default="build/bin/dartquant")
p.add_argument("--model", required=True)
p.add_argument("--cal-file", required=True, help="calibration text, another one than the evaluation's")
p.add_argument("--ids", required=True, help="token ids to evaluate on, JSON")
p.add_argument("--log", required=True, help="results, one JSON object a line")
p.add_argument("--work", help="folder for the learnt rotations; beside --log by default")
p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
p.add_argument("--limit", type=int, default=20, help="windows of 2048 tokens")
p.add_argument("--nsamples", type=int, default=16, help="calibration windows, for rotations as for GPTQ")
p.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
p.add_argument("--schemes", nargs="+", choices=list(BITS), default=list(BITS))
p.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
p.add_argument("--math", choices=["f32", "bf16"], default="bf16")
p.add_argument("--published", default="--compat upstream", help="flags of `calibrate` for the published recipe")
p.add_argument("--default", default="", help="flags of `calibrate` for the default and its halves, to try others")
p.add_argument("--table", action="store_true", help="only print the table of --log")
a = p.parse_args()
work = a.work or os.path.splitext(a.log)[0] + ".rotations"


def program(*flags):
    done = subprocess.run([a.dartquant, *flags, "--json", "--quiet", "--math", a.math], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"dartquant {' '.join(flags)}\n{done.stderr}")
    return json.loads(done.stdout)


def learnt(recipe, seed):
    """File of the rotations that a recipe learns with a seed."""
    path = os.path.join(work, f"{recipe}-{seed}.safetensors")
    if not os.path.exists(path):
        os.makedirs(work, exist_ok=True)
        flags = shlex.split(a.published if recipe == "published" else a.default)
        start = time.time()
        report = program("calibrate", a.model, "--cal_file", a.cal_file, "--nsamples", str(a.nsamples), "--seed", str(seed),
                         "--out", path, *flags)
        with open(os.path.splitext(path)[0] + ".json", "w") as f:
            json.dump(report, f)
        print(f"learnt {recipe}, seed {seed}: {time.time() - start:.0f} s", file=sys.stderr)
    return path


def rotation_flags(kind, seed):
    if kind == "random":
        return []
    path = learnt("published" if kind == "published" else "default", seed)
    return (["--r1_path", path] if kind != "R2 alone" else []) + (["--r2_path", path] if kind != "R1 alone" else [])


def scheme_flags(scheme, method):
    w, act, kv = BITS[scheme]
    flags = []
    if w < 16:
        flags += ["--w_bits", str(w), "--w_clip"]
        flags += ["--w_rtn"] if method == "rtn" else ["--cal_file", a.cal_file, "--nsamples", str(a.nsamples)]
    if act < 16:
        flags += ["--a_bits", str(act), *A]
    if kv < 16:
        flags += ["--k_bits", str(kv), "--v_bits", str(kv), *KV]
    return flags


def cells():
    for scheme in a.schemes:
        for method in a.methods if BITS[scheme][0] < 16 else ["none"]:
            for seed in a.seeds:
                for kind in a.kinds:
                    yield {"scheme": scheme, "method": method, "kind": kind, "seed": seed, "windows": a.limit}


def read():
    found = {}
    if os.path.exists(a.log):
        with open(a.log) as f:
            for line in f:
                r = json.loads(line)
                found[r["scheme"], r["method"], r["kind"], r["seed"], r["windows"]] = r["ppl"]
    return found


if not a.table:
    found = read()
    for c in cells():
        if tuple(c.values()) in found:
            continue
        report = program("quantize", a.model, "--ids", a.ids, "--ppl_eval", "--limit", str(a.limit), "--seed", str(c["seed"]),
                         *rotation_flags(c["kind"], c["seed"]), *scheme_flags(c["scheme"], c["method"]))
        c["ppl"] = report["results"][0]["ppl"]
        with open(a.log, "a") as f:
            f.write(json.dumps(c) + "\n")
        print(c, file=sys.stderr)

found = read()
print("| weights, scheme | " + " | ".join(a.kinds) + " |")
print("|---|" + "---|" * len(a.kinds))
for scheme in a.schemes:
    for method in a.methods if BITS[scheme][0] < 16 else ["none"]:
        row = []
        for kind in a.kinds:
            v = [found[k] for k in ((scheme, method, kind, s, a.limit) for s in a.seeds) if k in found]
            row.append(f"{sum(v) / len(v):.2f} ({min(v):.2f}-{max(v):.2f}, {len(v)})" if v else "")
        if any(row):
            print(f"| {method.upper() if method != 'none' else '-'} {scheme} | " + " | ".join(row) + " |")
print(f"mean (smallest-largest, seeds), {a.limit} windows")
