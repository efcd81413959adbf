#!/usr/bin/env python3
"""All checks of the CUDA backend on one card, real or simulated: every op against the reference, then the tiny model from end
to end. Prints "ok NAME" or "not ok NAME" lines and writes JSON: device, clocks, driver, library versions, checks, figures.

Usage: suite.py --build BUILD --backend cuda[:N]|/abs/plugin.so [--json FILE] [--quick] [--seconds N]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--build", required=True)
p.add_argument("--backend", required=True)
p.add_argument("--json")
p.add_argument("--name", default="cuda", help="what the names of checks start with")
p.add_argument("--quick", action="store_true", help="without the op suite and the job program")
p.add_argument("--only", default="", help="names of checks, with commas between them")
p.add_argument("--seconds", type=float, default=520, help="what has not begun by then is reported as not run")
args = p.parse_args()
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.chdir(ROOT)
DQ = os.path.join(args.build, "bin", "dartquant")
work = tempfile.mkdtemp(prefix="dq-card-")
text = os.path.join(work, "text")
with open("README.md", "rb") as f, open(text, "wb") as g:
    g.write(f.read(3000))
began = time.monotonic()
checks, figures = [], {}


def run(command, env=None, limit=400):
    left = max(5.0, args.seconds + 15 - (time.monotonic() - began))
    try:
        r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=min(limit, left),
                           env=dict(os.environ, **(env or {})))
        return r.returncode, r.stdout, r.stderr
    except subprocess.TimeoutExpired as e:
        return 124, str(e.stdout or ""), "it took longer than %.0f s" % e.timeout


def check(name, test):
    """test() returns what is wrong, or nothing."""
    start = time.monotonic()
    if args.only and name not in args.only.split(","):
        return
    if start - began > args.seconds:
        wrong = "not run: the time was up"
    else:
        try:
            wrong = test()
        except Exception as e:  # a figure that is missing is a failure like any other
            wrong = "%s: %s" % (type(e).__name__, e)
    seconds = time.monotonic() - start
    checks.append({"name": name, "ok": not wrong, "seconds": round(seconds, 2), "wrong": wrong or ""})
    print("%s %s_%s" % ("not ok" if wrong else "ok", args.name, name), flush=True)
    if wrong:
        print(wrong, flush=True)


def dq(command, *flags, backend=None, model="tests/data/tiny", policy="forbid"):
    """The program's JSON; an error is raised with its text."""
    which = ["--backend", backend or args.backend] + (["--policy", policy] if not backend else [])
    code, out, err = run([DQ, command, model, "--seqlen", "64", "--threads", "1", "--json", *flags, *which])
    if code != 0:
        raise RuntimeError((err or out).strip()[-600:])
    return json.loads(out)


def ppl(report):
    return report["results"][0]["ppl"]


def near(name, got, want, band):
    figures[name] = {"got": got, "want": want, "relative": got / want - 1, "band": band}
    return None if abs(got - want) <= band * abs(want) else "%r is not %r within %g" % (got, want, band)


# ---- the ops ----
def conformance(program):
    def test():
        code, out, err = run([program], {"DQ_TEST_BACKEND": args.backend})
        on_host = [line for line in (out + err).splitlines() if "runs on the host" in line]
        figures[os.path.basename(program)] = {"tests": out.count("[       OK ]")}
        if code == 0 and not on_host and "[       OK ]" in out:
            return None
        return "\n".join((out + err).splitlines()[-40:] + on_host)
    return test


# ---- the tiny model ----
measure = ["--text_file", text, "--limit", "2"]
scheme = ["--w_groupsize", "32", "--nsamples", "2", "--cal_file", text, "--ppl_eval", *measure]


def perplexity():
    return near("ppl_fp32", ppl(dq("ppl", *measure)), ppl(dq("ppl", *measure, backend="ref")), 1e-5)


def perplexity_bf16():
    return near("ppl_bf16", ppl(dq("ppl", *measure, "--math", "bf16")), ppl(dq("ppl", *measure, backend="ref")), 1e-2)


def quantized(name, band, *flags):
    def test():
        ours, cpu = dq("quantize", *scheme, *flags), dq("quantize", *scheme, *flags, backend="cpu")
        figures[name + "_error"] = {"got": ours.get("mean_error"), "want": cpu.get("mean_error")}
        return near(name, ppl(ours), ppl(cpu), band)
    return test


def same_twice():
    runs = [ppl(dq("quantize", *scheme, "--preset", "w4a4kv4")) for _ in range(2)]
    return None if runs[0] == runs[1] else "%r, then %r" % tuple(runs)


def saved_and_loaded():
    folder = os.path.join(work, "saved")
    wrote = ppl(dq("quantize", *scheme, "--preset", "w4a8kv8", "--save_qmodel_path", folder))
    here, cpu = ppl(dq("ppl", *measure, model=folder)), ppl(dq("ppl", *measure, model=folder, backend="cpu"))
    if wrote != here:
        return "measured %r after quantizing and %r from the folder" % (wrote, here)
    return near("saved_on_card_read_on_cpu", here, cpu, 1e-3)


def calibrated():
    """A learnt R1 on the card and on the CPU: the same losses at the start, and both come down."""
    flags = ["--cal_file", text, "--nsamples", "2", "--ep", "2", "--quant_steps", "2"]
    reports = [dq("calibrate", *flags, "--out", os.path.join(work, "r%d.safetensors" % i), backend=backend)
               for i, backend in enumerate((None, "cpu"))]
    first, last = ([r[key] for r in reports] for key in ("loss_before", "loss_after"))
    figures["calibration"] = {"before": first, "after": last}
    if not last[0] < first[0]:
        return "the loss rose from %r to %r" % (first[0], last[0])
    return near("calibration_loss", last[0], last[1], 1e-2)


def any_chunking():
    """The budget of host and device memory changes how work is cut, not what comes out."""
    runs = [ppl(dq("quantize", *scheme, "--memory_budget", b)) for b in ("1", "100M")]
    return None if runs[0] == runs[1] else "%r with little memory, %r with much" % tuple(runs)


def refused(pattern, options):
    def test():
        sep = "," if ":" in args.backend else ":"
        try:
            dq("ppl", *measure, backend=args.backend + sep + options)
        except RuntimeError as e:
            return None if pattern in str(e) else str(e)
        return "it succeeded"
    return test


# ---- the machine ----
def smi():
    fields = "name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    try:
        r = subprocess.run(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader"], stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL, text=True, timeout=20)
        return dict(zip(fields.split(","), r.stdout.strip().split("\n")[0].split(", "))) if r.returncode == 0 else {}
    except (OSError, subprocess.TimeoutExpired):
        return {}


def device():
    return json.loads(run([DQ, "info", "--backends", "--backend", args.backend, "--json"])[1] or "{}")


programs = [] if args.quick else sorted(t for t in glob.glob(os.path.join(args.build, "tests", "conformance", "test_*"))
                                        if os.access(t, os.X_OK) and not t.endswith(".d"))
for program in programs:
    check(os.path.basename(program), conformance(program))
job_program = os.path.join(args.build, "tests", "cuda", "test_card")
if not args.quick and os.path.exists(job_program):
    check("jobs", conformance(job_program))
check("perplexity", perplexity)
check("perplexity_bf16", perplexity_bf16)
check("gptq_w4a16", quantized("gptq_w4a16", 1e-3, "--w_bits", "4"))
check("gptq_w4a4kv4", quantized("gptq_w4a4kv4", 2e-2, "--preset", "w4a4kv4"))
check("rtn_w4a4kv4", quantized("rtn_w4a4kv4", 2e-2, "--preset", "w4a4kv4", "--w_rtn"))
check("same_result_twice", same_twice)
check("saved_and_loaded", saved_and_loaded)
check("calibrated", calibrated)
check("any_chunking", any_chunking)
check("wrong_index", refused("there is no such card; this machine has", "device=99"))
check("unknown_option", refused("'speed=9' is not an option", "speed=9"))
check("memory_budget", refused("of 200000 bytes are in use", "memory=200000"))
report = {"what": "tests", "command": " ".join(sys.argv), "backend": args.backend, "device": device(), "nvidia_smi": smi(), "date": time.strftime("%F %T"),
          "seconds": round(time.monotonic() - began, 1), "checks": checks, "figures": figures}
if args.json:
    with open(args.json, "w", encoding="utf-8") as f:
        json.dump(report, f, indent=1)
    print("written: " + args.json)
shutil.rmtree(work, ignore_errors=True)
sys.exit(any(not c["ok"] for c in checks))
