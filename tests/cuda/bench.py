#!/usr/bin/env python3
"""make cuda-bench: our ops and jobs on a card and, where torch can be imported, the same in PyTorch. A table with each figure
beside its roofline and its peer; all of it as JSON with device, clocks, driver and library versions.

Usage: bench.py --build BUILD --backend cuda[:N]|/abs/plugin.so --json FILE [--tiny] [--only ID,...] [--seconds N]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import subprocess
import sys
import time

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--build", required=True)
p.add_argument("--backend", required=True)
p.add_argument("--json", required=True)
p.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
p.add_argument("--only", default="G1,F,G4,G3,G5,G2,G7,G6")
p.add_argument("--seconds", type=float, default=500, help="sections that have not begun by then are left out")
p.add_argument("--no_peers", action="store_true")
args = p.parse_args()
HERE = os.path.dirname(os.path.abspath(__file__))
began = time.monotonic()
DQ = os.path.join(args.build, "bin", "dartquant")
PEER_DEVICE = "cpu" if args.tiny else "cuda"


def lines(command, limit):
    """JSON objects of a program's output, also of one that was cut off."""
    left = args.seconds + 30 - (time.monotonic() - began)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=max(5, min(limit, left)))
        problem = err.strip()[-400:] if process.returncode else ""
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        problem = "stopped after its time"
    found = []
    for line in out.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    return found, problem


def nvidia_smi():
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    try:
        r = subprocess.run(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader"], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True, timeout=20)
        return dict(zip(fields.split(","), r.stdout.strip().split("\n")[0].split(", "))) if r.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired):
        return {}


def has_torch():
    code = "import torch, sys; sys.exit(0 if %r == 'cpu' or torch.cuda.is_available() else 1)" % PEER_DEVICE
    try:
        return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, timeout=120).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def ours(ident):
    tiny = ["--tiny"] if args.tiny else []
    if ident in ("G6", "G7"):
        return lines([os.path.join(args.build, "tests", "cuda", "bench_jobs"), "--backend", args.backend,
                      "gptq" if ident == "G6" else "ppl", *tiny], 200)
    return lines([os.path.join(args.build, "tests", "cuda", "bench_ops"), "--backend", args.backend, ident, *tiny], 150)


def peers(ident):
    return lines([sys.executable, os.path.join(HERE, "peers.py"), "--device", PEER_DEVICE, ident,
                  *(["--tiny"] if args.tiny else [])], 150)


with_peers = not args.no_peers and has_torch()
if not with_peers:
    print("skipped: torch cannot be imported here with a device to run on, so there are no peers")
info, _ = lines([DQ, "info", "--backends", "--backend", args.backend, "--json"], 60)
report = {"what": "bench", "command": " ".join(sys.argv), "date": time.strftime("%F %T"), "backend": args.backend,
          "device": info[0] if info else {}, "nvidia_smi_before": nvidia_smi(), "rooflines": {}, "ours": [],
          "peers": [], "problems": [], "ratios": []}


def save():
    report["seconds"] = round(time.monotonic() - began, 1)
    report["nvidia_smi_after"] = nvidia_smi()
    with open(args.json, "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)


def key(row):
    """Rows that mean the same job: a bf16 step of ours stands beside the fp32 one of the peer."""
    return row["what"].replace(", bf16", "").replace(", fp32", "").replace("F32", "").replace("BF16", "")


def table(ident, mine, theirs):
    roof = report["rooflines"]
    for row in mine:
        if row["id"].startswith("R-"):
            roof[row["id"]] = row["tflops"] or row["gbytes_s"]
            continue
        share = row.get("of_roofline")
        if share is None and row.get("flops") and roof.get("R-bf16"):
            share = row["tflops"] / roof["R-bf16"]
        text = "%-4s %-58s %11.3f ms" % (ident, row["what"], row["seconds"] * 1e3)
        text += "  %5.1f%% of roofline" % (100 * share) if share else ""
        for peer in theirs:
            if peer.get("seconds") and key(peer) == key(row):
                ratio = peer["seconds"] / row["seconds"]
                if row.get("tokens_s"):
                    ratio = row["tokens_s"] / peer["tokens_s"]
                report["ratios"].append({"id": ident, "what": row["what"], "peer": peer["what"], "ratio": ratio})
                text += "  %.2fx torch (%s)" % (ratio, "bf16" if "bf16" in peer["what"].lower() else "fp32")
        print(text, flush=True)


for ident in args.only.split(","):
    if time.monotonic() - began > args.seconds:
        report["problems"].append("%s: the time was up" % ident)
        print("%s: not run, the time was up" % ident)
        continue
    mine, problem = ours(ident)
    theirs, peer_problem = peers(ident) if with_peers else ([], "")
    for who, text in (("ours", problem), ("peers", peer_problem)):
        if text:
            report["problems"].append("%s, %s: %s" % (ident, who, text))
            print("%s, %s: %s" % (ident, who, text))
    report["ours"] += mine
    report["peers"] += theirs
    table(ident, mine, theirs)
    save()
save()
print("written: %s (%.0f s)" % (args.json, report["seconds"]))
sys.exit(any(", ours: " in text or "time was up" in text for text in report["problems"]))
