#!/usr/bin/env python3
"""make cuda-bench: our ops and jobs on a card and, where torch can be imported, the same in PyTorch. A table with each figure
beside its roofline and its peer; all of it as JSON with device, clocks, driver and library versions.

Usage: bench.py --build BUILD --backend cuda[:N]|/abs/plugin.so --json FILE [--tiny] [--only ID,...] [--seconds N]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from report import backend_of_programs, nvidia_smi, our_env, tail, write_json  # noqa: E402

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--build", required=True)
p.add_argument("--backend", required=True)
p.add_argument("--json", required=True)
p.add_argument("--tiny", action="store_true", help="sizes that only show that it runs")
p.add_argument("--only", default="G1,F,I,G4,G3,G5,G2,G7,G6,Q")
p.add_argument("--seconds", type=float, default=470, help="sections that have not begun by then are left out")
p.add_argument("--no_peers", action="store_true")
args = p.parse_args()
HERE = os.path.dirname(os.path.abspath(__file__))
began = time.monotonic()
DQ = os.path.join(args.build, "bin", "dartquant")
PEER_DEVICE = "cpu" if args.tiny else "cuda"


def lines(command, limit, env=None):
    """JSON objects of a program's output, also of one that was cut off."""
    left = args.seconds + 30 - (time.monotonic() - began)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                               env=env or our_env(), start_new_session=True)
    limit = max(5, min(limit, left))
    try:
        out, err = process.communicate(timeout=limit)
        problem = "ended with %d: %s" % (process.returncode, tail(err, 5)) if process.returncode else ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        problem = "stopped after %.0f s %s" % (limit, tail(err, 3))
    found = []
    for line in out.splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    return found, problem


def has_torch():
    code = "import torch, sys; sys.exit(0 if %r == 'cpu' or torch.cuda.is_available() else 1)" % PEER_DEVICE
    try:
        return subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, timeout=120).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def ours(ident):
    tiny, backend = ["--tiny"] if args.tiny else [], backend_of_programs(args.backend, args.build)
    jobs = {"G6": "gptq", "G7": "ppl", "Q": "codes"}
    if ident in jobs:
        return lines([os.path.join(args.build, "tests", "cuda", "bench_jobs"), "--backend", backend,
                      jobs[ident], *tiny], 200)
    return lines([os.path.join(args.build, "tests", "cuda", "bench_ops"), "--backend", backend, ident, *tiny], 150)


def peers(ident):
    return lines([sys.executable, os.path.join(HERE, "peers.py"), "--device", PEER_DEVICE, ident,
                  *(["--tiny"] if args.tiny else [])], 150, dict(os.environ))


with_peers = not args.no_peers and has_torch()
if not with_peers:
    print("skipped: torch cannot be imported here with a device to run on, so there are no peers")
info, _ = lines([DQ, "info", "--backends", "--backend", args.backend, "--json"], 90)
info = info[0].get("backends", [{}])[0] if info else {}
report = {"what": "bench", "command": " ".join(sys.argv), "date": time.strftime("%F %T"), "backend": args.backend,
          "device": info, "nvidia_smi_before": nvidia_smi(), "rooflines": {}, "ours": [],
          "peers": [], "problems": [], "ratios": []}


def save():
    report["seconds"] = round(time.monotonic() - began, 1)
    report["nvidia_smi_after"] = nvidia_smi()
    write_json(args.json, report)


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
        if row.get("parts"):
            text += "  " + " ".join("%s %.2f s" % (k, v) for k, v in row["parts"].items())
        text += "  %5.1f%% of roofline" % (100 * share) if share else ""
        for peer in theirs:
            if peer.get("seconds") and key(peer) == key(row):
                ratio = peer["seconds"] / row["seconds"]
                if row.get("tokens_s"):
                    ratio = row["tokens_s"] / peer["tokens_s"]
                report["ratios"].append({"id": ident, "what": row["what"], "peer": peer["what"], "ratio": ratio})
                text += "  %.2fx torch (%s)" % (ratio, "bf16" if "bf16" in peer["what"].lower() else "fp32")
        print(text, flush=True)


def per_token(rows, n, dtype):
    """Seconds a token of the Hessian of order n; of several lengths the best."""
    found = []
    for row in rows:
        m = re.match(r"Hessian of (\d+), (\d+) (\w+) tokens", row["what"])
        if m and int(m[1]) == n and m[3] == dtype and row.get("seconds"):
            found.append(row["seconds"] / int(m[2]))
    return min(found) if found else None


def targets():
    """What was asked for beside what was measured: name, goal, figure (None: not measured), whether more is better."""
    ours_of = {row["what"]: row for row in report["ours"]}
    ratio = {r["what"]: r["ratio"] for r in report["ratios"]}
    for n in (4096, 14336):
        mine, slow, fast = per_token(report["ours"], n, "BF16"), per_token(report["peers"], n, "F32"), per_token(report["peers"], n, "BF16")
        yield "G1 Hessian of %d over torch fp32" % n, 20, slow / mine if mine and slow else None, True
        yield "G1 Hessian of %d over torch bf16" % n, 1.8, fast / mine if mine and fast else None, True
    for columns in (4096, 14336):
        yield "G3 GPTQ of 4096 x %d over a column loop" % columns, 30, ratio.get("GPTQ of 4096 x %d, one range a row" % columns), True
    shares = {what: row["of_roofline"] for what, row in ours_of.items() if re.match(r"Hadamard of order \d+ = 1 x", what)}
    if shares:
        worst = min(shares, key=shares.get)
        yield "G4 %s, of copy speed (the slowest)" % worst, 0.95, shares[worst], True
    yield "G4 Hadamard and rounding over torch", 2.5, ratio.get("Hadamard of order 4096, then 4-bit rounding"), True
    yield "G5 R1 step over torch fp32", 6, ratio.get("R1 step of width 4096, 131072 rows, bf16"), True
    gptq = ours_of.get("GPTQ, 4 bits, groups of 128 with range search", {})
    yield "G6 8B model through GPTQ, seconds", 40, gptq.get("seconds"), False
    yield "G7 perplexity over transformers", 1.3, ratio.get("perplexity, bf16"), True
    ppl, rate = ours_of.get("perplexity, bf16", {}), report["rooflines"].get("R-bf16")
    yield "G7 perplexity, share of the product rate", 0.65, ppl["tflops"] / rate if ppl and rate else None, True


def summary():
    report["targets"] = []
    print("---- %s, %.0f s; asked for and measured%s" % (report["device"].get("description", args.backend), time.monotonic() - began,
                                                       " (tiny sizes: these say nothing)" if args.tiny else ""))
    for name, goal, got, more in targets():
        met = None if got is None else got >= goal if more else got <= goal
        report["targets"].append({"name": name, "goal": goal, "got": got, "met": met})
        print("%-5s %-62s %s %-6g %s" % ({True: "met", False: "short", None: "-"}[met], name, ">=" if more else "<=", goal,
                                        "not measured" if got is None else "%.3g" % got))
    for text in report["problems"]:
        print("problem: " + text.splitlines()[0][:200])


def stopped(signum, frame):
    raise KeyboardInterrupt("signal %d" % signum)


def sections():
    for ident in args.only.split(","):
        if time.monotonic() - began > args.seconds:
            report["problems"].append("%s: the time was up" % ident)
            print("%s: not run, the time was up" % ident)
            continue
        mine, problem = ours(ident)
        theirs, peer_problem = peers(ident) if with_peers else ([], "")
        peer_problem = peer_problem or "; ".join(row["error"] for row in theirs if row.get("error"))
        for who, text in (("ours", problem), ("peers", peer_problem)):
            if text:
                report["problems"].append("%s, %s: %s" % (ident, who, text))
                print("%s, %s: %s" % (ident, who, text))
        report["ours"] += mine
        report["peers"] += theirs
        table(ident, mine, theirs)
        save()


signal.signal(signal.SIGTERM, stopped)
try:
    sections()
except KeyboardInterrupt as e:
    report["problems"].append("stopped: %s" % e)
finally:
    summary()
    save()
print("written: %s (%.0f s)" % (args.json, report["seconds"]))
sys.exit(any(", ours: " in text or "time was up" in text or "stopped: " in text for text in report["problems"]))
