#!/usr/bin/env python3
"""compute-sanitizer over the op suite on a card: out of bounds and misaligned accesses, races in shared memory, reads of what
nobody wrote, wrong barriers. Each tool has its share of the time and each run a limit; a run counts as passed only when the
tool printed its own summary with no error. Verdicts as JSON after every run, a summary at the end.

Usage: sanitize.py --build BUILD --tool PROGRAM [--backend cuda] [--json FILE] [--seconds N] [--only memcheck,...]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import glob
import os
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from report import backend_of_programs, nvidia_smi, our_env, tail, write_json  # noqa: E402

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--build", required=True)
p.add_argument("--tool", required=True)
p.add_argument("--backend", default="cuda")
p.add_argument("--json")
p.add_argument("--seconds", type=float, default=480)
p.add_argument("--least", type=float, default=5, help="seconds below which no run is begun")
p.add_argument("--only", default="memcheck,racecheck,synccheck,initcheck")
args = p.parse_args()

# Which runs each tool does, the most telling first: (program, one of its tests or None for all). racecheck is slow and looks at
# shared memory alone, so it gets the tests whose kernels share some, one by one.
EVERY = [(name, None) for name in ("forward", "quant", "int8", "fused", "rounding", "fit", "generate", "data", "levels")]
SHARED = [("forward", "attention"), ("quant", "hadamard"), ("quant", "gptq_block"), ("quant", "weight_search"),
          ("fit", "rotation_loss"), ("quant", "syrk"), ("forward", "rmsnorm"), ("forward", "head_nll"), ("data", "dot"),
          ("generate", "kv_attention"), ("forward", "compare_logits"), ("generate", "packed_linear"), ("fit", "stacks"),
          ("forward", "layernorm"), ("fused", "hadamard_quant"), ("fused", "rmsnorm_quant"), ("fused", "layernorm_quant"), ("int8", "quantize_rows"),
          ("int8", "int8_linear"), ("int8", "rows_in_one_pass"), ("levels", "kinds")]
RUNS = {"memcheck": EVERY, "racecheck": SHARED, "synccheck": SHARED, "initcheck": EVERY}
SHARE = {"memcheck": 0.35, "racecheck": 0.3, "synccheck": 0.15, "initcheck": 0.2}
began = time.monotonic()
results = []


def tests_of(program):
    with open("tests/conformance/test_%s_ops.c" % program, encoding="utf-8") as f:
        return re.findall(r"cmocka_unit_test\w*\((\w+)", f.read())


def flags_of(tool):
    """Only what this version knows."""
    text = subprocess.run([args.tool, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    flags = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    # Calls that fail are the library's own business. initcheck has to see who wrote what: all kernels.
    for name, value, tools in (("--kernel-regex", "kns=kernel", ("memcheck", "racecheck", "synccheck")),
                               ("--report-api-errors", "no", None), ("--track-stream-ordered-races", "all", ("memcheck",)),
                               ("--check-device-heap", "no", ("memcheck",))):
        if name in text and (tools is None or tool in tools):
            flags += [name, value]
    return flags


def kernels_of(names):
    """The kernels of our own sources."""
    found = set()
    for path in names:
        with open(path, encoding="utf-8") as f:
            found |= set(re.findall(r"\b(\w+_kernel)\(", f.read()))
    return found


OURS = kernels_of(glob.glob("libdartquant/backend/cuda/*.cu"))


def judged(found):
    """What the tool found, and whether in a kernel of ours: cuBLAS and cuSOLVER are not ours to mend."""
    text = "\n".join(found)
    places = set(re.findall(r"\bat (?:void )?([\w:]+)", text))
    mine = sorted(name for name in OURS if re.search(r"\b%s\b" % name, text))
    if mine or not places or not OURS:
        return "fail", "%s\n%s" % ("in " + ", ".join(mine) if mine else "nowhere that it names", "\n".join(found[:40]))
    return "pass", "errors in kernels of others alone: " + ", ".join(sorted(places))[:300]


def run(tool, program, test, limit):
    env = our_env({"DQ_TEST_BACKEND": backend_of_programs(args.backend, args.build), **({"DQ_TEST_FILTER": test} if test else {})})
    command = [args.tool, *flags_of(tool), os.path.join(args.build, "tests", "conformance", "test_%s_ops" % program)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=env,
                               start_new_session=True)
    try:
        text, late = process.communicate(timeout=limit)[0], False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        text, late = process.communicate()[0], True
    found = [line for line in text.splitlines() if line.startswith("=========")]
    summary = next((line for line in reversed(found) if "SUMMARY" in line), "")
    done = re.findall(r"^\[       OK \] (\w+)", text, re.M)
    counts = [int(n) for n in re.findall(r"(\d+) (?:error|hazard)", summary)]
    if any(counts) or process.returncode == 9:
        return (*judged(found), done)
    if late and any(" error" in line or "Error" in line or "Race" in line or "Invalid" in line or "Uninitialized" in line
                    for line in found):
        return (*judged(found), done)
    if late:
        return "skip", "stopped after %.0f s without an error until then, %d tests done" % (limit, len(done)), done
    if not counts:
        return "fail", "the tool gave no summary: ended with %d\n%s" % (process.returncode, tail(text, 12)), done
    if process.returncode != 0: # a test outside its band is for the op suite to judge
        return "pass", "no error of the tool; the tests ended with %d" % process.returncode, done
    return "pass", "", done


def save(status="running"):
    if args.json:
        write_json(args.json, {"what": "sanitize", "status": status, "tool": args.tool, "backend": args.backend,
                               "nvidia_smi": nvidia_smi(), "date": time.strftime("%F %T"),
                               "seconds": round(time.monotonic() - began, 1), "runs": results})


def stopped(signum, frame):
    raise KeyboardInterrupt("signal %d" % signum)


def everything():
    for tool in args.only.split(","):
        end = time.monotonic() + SHARE[tool] / sum(SHARE[t] for t in args.only.split(",")) * args.seconds
        runs = [(a, b) for a, b in RUNS[tool] if b is None or b in tests_of(a)]
        for missing in set(RUNS[tool]) - set(runs):
            print("not ok sanitize_list: test_%s_ops has no test %s" % missing)
            results.append({"name": "%s_%s_%s" % (tool, *missing), "verdict": "fail", "reason": "no such test", "seconds": 0})
        for i, (program, test) in enumerate(runs):
            start = time.monotonic()
            # an even part of what is left; what one run does not need the next ones have
            limit = min((end - start) / (len(runs) - i) * 2, end - start, began + args.seconds - start)
            name = "%s_%s" % (tool, program) + ("_" + test if test else "")
            verdict, reason, done = ("skip", "not begun: the time was up", []) if limit < args.least else run(tool, program, test, limit)
            seconds = round(time.monotonic() - start, 1)
            results.append({"name": name, "verdict": verdict, "reason": reason, "tests": done, "seconds": seconds})
            word = {"pass": "ok", "fail": "not ok", "skip": "skipped:"}[verdict]
            print("%s cuda_%s %s" % (word, name, "(%s)" % reason.splitlines()[0] if reason else ""), flush=True)
            if verdict == "fail":
                print(tail(reason, 30), flush=True)
            save()


signal.signal(signal.SIGTERM, stopped)
status = "done"
try:
    everything()
except KeyboardInterrupt as e:
    status = "stopped: %s" % e
finally:
    save(status)
    print("---- compute-sanitizer, %.0f s" % (time.monotonic() - began))
    for r in results:
        print("%-4s %-34s %6.1f s  %s" % (r["verdict"], r["name"], r["seconds"], (r["reason"].splitlines() or [""])[0][:90]))
    print(", ".join("%d %s" % (sum(r["verdict"] == v for r in results), w)
                    for v, w in (("pass", "clean"), ("fail", "with errors"), ("skip", "not finished"))))
sys.exit(status != "done" or any(r["verdict"] == "fail" for r in results))
