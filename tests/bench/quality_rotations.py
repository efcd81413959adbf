#!/usr/bin/env python3
"""Perplexity of rotations on a real model: random Hadamard, the published recipe and the default of `dartquant calibrate`,
over seeds, schemes and weight methods; a table of means and ranges. Every finished cell is appended to --log, and cells
found there are not measured again, so an interrupted run goes on.

usage: quality_rotations.py --dartquant build/bin/dartquant --model MODEL --cal-file TEXT --ids IDS.json --log FILE.jsonl
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time

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
p.add_argument("--clip", choices=["fixed", "auto"], default="fixed",
               help="clip ratios: 0.9 of activations and 0.95 of keys and values, or searched on 4 calibration windows")
p.add_argument("--math", choices=["f32", "bf16"], default="bf16")
p.add_argument("--published", default="--compat upstream", help="flags of `calibrate` for the published recipe")
p.add_argument("--default", default="", help="flags of `calibrate` for the default and its halves, to try others")
p.add_argument("--keep", action="store_true", help="keep the quantized models, some 200 MB each")
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


def weights(method, kind, seed):
    """The model with 4-bit weights, saved: activations, keys and values do not change its codes."""
    path = os.path.join(work, f"{method}-{kind.replace(' ', '-')}-{seed}")
    if not os.path.exists(path):
        flags = ["--w_rtn"] if method == "rtn" else ["--cal_file", a.cal_file, "--nsamples", str(a.nsamples)]
        program("quantize", a.model, "--w_bits", "4", "--w_clip", "--seed", str(seed), *rotation_flags(kind, seed), *flags,
                "--save_qmodel_path", path)
    return path


def run_time_flags(scheme):
    """Of activations, keys and values."""
    _, act, kv = BITS[scheme]
    ratio = {"a": "0.9", "k": "0.95", "v": "0.95"} if a.clip == "fixed" else dict.fromkeys("akv", "auto")
    flags = []
    if act < 16:
        flags += ["--a_bits", str(act), "--a_asym", "--a_clip_ratio", ratio["a"]]
    if kv < 16:
        for x in "kv":
            flags += [f"--{x}_bits", str(kv), f"--{x}_asym", f"--{x}_clip_ratio", ratio[x], f"--{x}_groupsize", "0"]
    if flags and a.clip == "auto":
        flags += ["--cal_file", a.cal_file, "--nsamples", "4"]
    return flags


def cells(kind, seed, method):
    """What is measured on one set of weights."""
    for scheme in a.schemes:
        if (BITS[scheme][0] == 16) == (method == "none"):
            yield {"scheme": scheme, "method": method, "kind": kind, "seed": seed, "windows": a.limit, "clip": a.clip}


def perplexity(c):
    if c["method"] == "none":
        source = [a.model, "--seed", str(c["seed"]), *rotation_flags(c["kind"], c["seed"])]
    else:
        source = [weights(c["method"], c["kind"], c["seed"])]
    report = program("quantize", *source, "--ids", a.ids, "--ppl_eval", "--limit", str(a.limit), *run_time_flags(c["scheme"]))
    return report["results"][0]["ppl"]


def read():
    found = {}
    if os.path.exists(a.log):
        with open(a.log) as f:
            for line in f:
                r = json.loads(line)
                found[r["scheme"], r["method"], r["kind"], r["seed"], r["windows"], r["clip"]] = r["ppl"]
    return found


def measure():
    found = read()
    os.makedirs(work, exist_ok=True)
    for seed in a.seeds:
        for kind in a.kinds:
            for method in [*a.methods, "none"]:
                for c in cells(kind, seed, method):
                    if tuple(c.values()) in found:
                        continue
                    c["ppl"] = perplexity(c)
                    with open(a.log, "a") as f:
                        f.write(json.dumps(c) + "\n")
                    print(c, file=sys.stderr)
                if method != "none" and not a.keep:
                    shutil.rmtree(os.path.join(work, f"{method}-{kind.replace(' ', '-')}-{seed}"), ignore_errors=True)


if not a.table:
    measure()
found = read()
print("| weights, scheme | " + " | ".join(a.kinds) + " |")
print("|---|" + "---|" * len(a.kinds))
for scheme in a.schemes:
    for method in a.methods if BITS[scheme][0] < 16 else ["none"]:
        row = []
        for kind in a.kinds:
            v = [found[k] for k in ((scheme, method, kind, s, a.limit, a.clip) for s in a.seeds) if k in found]
            row.append(f"{sum(v) / len(v):.2f} ({min(v):.2f}-{max(v):.2f}, {len(v)})" if v else "")
        if any(row):
            print(f"| {method.upper() if method != 'none' else '-'} {scheme} | " + " | ".join(row) + " |")
print(f"mean (smallest-largest, seeds), {a.limit} windows, clip ratios: {a.clip}")
