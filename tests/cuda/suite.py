#!/usr/bin/env python3
"""All checks of the CUDA backend on one card, real or simulated: every op against the reference, then the tiny model from end
to end. Each check has a time limit of its own and a verdict: pass, fail or skip, with the reason. The JSON (device, clocks,
driver, library versions, verdicts, figures) is written anew after every check; the last lines are a summary.

Usage: suite.py --build BUILD --backend cuda[:N]|/abs/plugin.so [--json FILE] [--quick] [--tiny] [--only A,B] [--seconds N]
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "golden")]
from tiny_text import text as text_of  # noqa: E402
from report import backend_of_programs, codes_that_differ, nvidia_smi, our_env, tail, write_json  # noqa: E402

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--build", required=True)
p.add_argument("--backend", required=True)
p.add_argument("--json")
p.add_argument("--name", default="cuda", help="what the names of checks start with")
p.add_argument("--quick", action="store_true", help="without the op suite and the job program")
p.add_argument("--tiny", action="store_true", help="shorter texts, for a simulated card")
p.add_argument("--only", default="", help="names of checks, with commas between them; a name may end in *")
p.add_argument("--seconds", type=float, default=480, help="for everything; what has not begun by then is skipped")
args = p.parse_args()
ROOT = os.path.dirname(os.path.dirname(HERE))
args.json = args.json and os.path.abspath(args.json)
os.chdir(ROOT)
DQ = os.path.join(args.build, "bin", "dartquant")
work = tempfile.mkdtemp(prefix="dq-card-")
text = os.path.join(work, "text")
with open(text, "w", encoding="utf-8") as f:
    f.write(text_of(3, 3000))  # what the tiny model was trained on
began = time.monotonic()
deadline = began + args.seconds  # of the check that runs
checks, figures, log = [], {}, []
report = {"what": "tests", "command": " ".join(sys.argv), "backend": args.backend, "date": time.strftime("%F %T"),
          "device": {}, "nvidia_smi": {}, "checks": checks, "figures": figures}


class Skip(Exception):
    """A check that cannot say anything here."""


class Late(Exception):
    """A program that was stopped."""


def run(command, env=None):
    """Exit code, output, errors, within the check's time; a program that is stopped takes its children along."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                               env=our_env(env), start_new_session=True)
    limit = max(1.0, deadline - time.monotonic())
    try:
        out, err = process.communicate(timeout=limit)
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        late = Late("stopped after %.0f s: %s\n%s" % (limit, " ".join(command), tail(out + err, 12)))
        late.text = out + err
        raise late from None


def save():
    report["seconds"] = round(time.monotonic() - began, 1)
    if args.json:
        write_json(args.json, report)


def wanted(name):
    names = args.only.split(",") if args.only else ["*"]
    return any(name == n or (n.endswith("*") and name.startswith(n[:-1])) for n in names)


def check(name, limit, test):
    """test() returns what is wrong, or nothing."""
    global deadline
    if not wanted(name):
        return
    start = time.monotonic()
    verdict, reason = "pass", ""
    if start - began > args.seconds - 5:
        verdict, reason = "skip", "not begun: the time was up"
    elif report["device"].get("error") and name != "device":
        verdict, reason = "skip", "no device"
    else:
        deadline = min(start + limit, began + args.seconds)
        try:
            reason = test() or ""
            verdict = "fail" if reason else "pass"
        except Skip as e:
            verdict, reason = "skip", str(e)
        except Exception as e:  # a figure that is missing is a failure like any other
            verdict, reason = "fail", str(e) if isinstance(e, (Late, RuntimeError)) else "%s: %s" % (type(e).__name__, e)
    seconds = time.monotonic() - start
    checks.append({"name": name, "verdict": verdict, "seconds": round(seconds, 2), "reason": reason})
    word = {"pass": "ok", "fail": "not ok", "skip": "skipped:"}[verdict]
    print("%s %s_%s" % (word, args.name, name) + (" (%s)" % reason if verdict == "skip" else ""), flush=True)
    if verdict == "fail":
        print(tail(reason, 14), flush=True)
    save()


def dq(command, *flags, backend=None, model="tests/data/tiny", words=("--seqlen", "32" if args.tiny else "64")):
    """The program's JSON; an error is raised with its text."""
    which = ["--backend", backend or args.backend] + ([] if backend else ["--policy", "forbid"])
    code, out, err = run([DQ, command, model, *words, "--threads", "1", "--json", *flags, *which])
    if code != 0:
        raise RuntimeError("dartquant %s ended with %d: %s" % (command, code, (err or out).strip()[-600:]))
    return json.loads(out)


def ppl(answer):
    return answer["results"][0]["ppl"]


def near(name, got, want, band):
    figures[name] = {"got": got, "want": want, "relative": got / want - 1, "band": band}
    return None if abs(got - want) <= band * abs(want) else "%r is not %r within %g" % (got, want, band)


LATE = 124  # exit code of what was stopped


# ---- the ops: a program of many tests; those that fell with a lost card or a crash are tried again, each alone ----
def tests_of(program):
    source = os.path.join("tests", os.path.basename(os.path.dirname(program)), os.path.basename(program) + ".c")
    with open(source, encoding="utf-8") as f:
        return re.findall(r"cmocka_unit_test\w*\((\w+)", f.read())


def run_tests(program, which=None):
    env = {"DQ_TEST_BACKEND": backend_of_programs(args.backend, args.build), **({"DQ_TEST_FILTER": which} if which else {})}
    try:
        code, out, err = run([program], env)
        both = out + err
    except Late as e:
        code, both = LATE, e.text + "\n" + str(e).splitlines()[0]
    log.append("== %s %s\n%s" % (program, which or "", both))
    passed = set(re.findall(r"^\[       OK \] (\w+)", both, re.M))
    on_host = [line for line in both.splitlines() if "runs on the host" in line]
    return code, passed, both, on_host


def program_of_tests(program):
    def test():
        code, passed, both, on_host = run_tests(program)
        known = tests_of(program)
        single = {name: "pass" for name in known if name in passed}
        if code == LATE:
            figures[os.path.basename(program)] = {**{name: "not reached" for name in known}, **single}
            return "%s; passed until then: %s" % (both.splitlines()[-1], " ".join(passed) or "none")
        fallen = code < 0 or "lost" in both or code > len(known)
        wrong = on_host[:3]
        for name in (n for n in known if n not in passed):
            words = both
            if fallen:
                alone, again, words, _ = run_tests(program, name)
                if alone == 0 and name in again:
                    single[name] = "pass, alone"
                    continue
            single[name] = "fail"
            errors = [line for line in words.splitlines() if line.strip() and not re.match(r"\[(=|-| )+(R|O|=|F|P|\])", line)]
            wrong.append("%s: %s" % (name, "\n".join(errors[:6]) or "did not run (is the program older than its source?)"))
        figures[os.path.basename(program)] = single
        if code != 0 and not wrong:
            wrong.append("ended with %d" % code)
        return "\n".join(wrong) or (None if passed else "no test ran")
    return test


# ---- the tiny model ----
measure = ["--text_file", text, "--limit", "1" if args.tiny else "2"]
scheme = ["--w_groupsize", "32", "--percdamp", "0.1", "--nsamples", "1" if args.tiny else "2", "--cal_file", text, "--ppl_eval", *measure]


def device():
    code, out, err = run([DQ, "info", "--backends", "--backend", args.backend, "--json"])
    try:
        report["device"] = json.loads(out)["backends"][0]
    except (ValueError, KeyError, IndexError):
        report["device"] = {"error": "info ended with %d" % code, "problem": tail(out + err, 6)}
    report["nvidia_smi"] = nvidia_smi()
    print(json.dumps(report["device"])[:600], flush=True)
    return report["device"].get("problem", report["device"].get("error"))


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


def integers():
    """Quantized inputs and weights multiplied as integers, beside the same in floats on the reference."""
    flags = ["--w_bits", "8", "--w_rtn", "--a_bits", "8", "--w_groupsize", "-1"]
    flags = [*scheme[2:], *flags]
    ours, want = dq("quantize", *flags), dq("quantize", *flags, "--integer_products", "false", backend="ref")
    return near("integers", ppl(ours), ppl(want), 5e-3)


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


def same_codes():
    """GPTQ's codes on the card and on the CPU: equal but for values at a rounding tie, which are counted."""
    folders = [os.path.join(work, "codes-" + b) for b in ("card", "cpu")]
    for folder, backend in zip(folders, (None, "cpu")):
        dq("quantize", *scheme[:scheme.index("--ppl_eval")], "--w_bits", "4", "--save_qmodel_path", folder, backend=backend)
    differ, all_codes = codes_that_differ(*folders)
    figures["codes"] = {"differ": differ, "of": all_codes}
    return None if differ <= 0.002 * all_codes else "%d of %d codes differ" % (differ, all_codes)


def calibrated():
    """Learnt rotations on the card and on the CPU: the same losses at the start, and both come down."""
    flags = ["--cal_file", text, "--nsamples", "1" if args.tiny else "2", "--ep", "1", "--quant_steps", "1"]
    reports = [dq("calibrate", *flags, "--out", os.path.join(work, "r%d.safetensors" % i), backend=backend)
               for i, backend in enumerate((None, "cpu"))]
    first, last = ([r[key] for r in reports] for key in ("loss_before", "loss_after"))
    figures["calibration"] = {"before": first, "after": last}
    if not last[0] < first[0]:
        return "the loss rose from %r to %r" % (first[0], last[0])
    return near("calibration_loss_before", first[0], first[1], 1e-4) or near("calibration_loss", last[0], last[1], 1e-2)


def captured():
    """Files of captured inputs, compared by what is learnt from them on the CPU."""
    flags = ["--nsamples", "1" if args.tiny else "2", "--cal_file", text]
    losses = []
    for i, backend in enumerate((None, "cpu")):
        folder = os.path.join(work, "capture%d" % i)
        dq("capture", *flags, "--r_path", folder, backend=backend)
        losses.append(dq("calibrate", "--data", folder, "--ep", "1", "--quant_steps", "0", "--target", "r1", "--out",
                         os.path.join(work, "c%d.safetensors" % i), backend="cpu")["loss_before"])
    return near("captured_loss", losses[0], losses[1], 1e-4)


def generated():
    """Greedy text of a 4-bit model with 8-bit keys and values."""
    folder = os.path.join(work, "rtn")
    dq("quantize", "--w_bits", "4", "--w_rtn", "--w_groupsize", "32", "--save_qmodel_path", folder, backend="cpu", words=())
    flags = ["--prompt", "The library", "--max_tokens", "8", "--temperature", "0", "--kv", "int8", "--ignore_eos"]
    ours, cpu = (dq("generate", *flags, model=folder, backend=b, words=()) for b in (None, "cpu"))
    figures["generated"] = {"got": ours["results"][0]["text"], "want": cpu["results"][0]["text"]}
    return None if ours["results"][0]["text"] == cpu["results"][0]["text"] else json.dumps(figures["generated"])


def any_chunking():
    """The budget of host and device memory changes how work is cut, not what comes out."""
    runs = [ppl(dq("quantize", *scheme, "--w_bits", "4", "--memory_budget", b)) for b in ("1", "100M")]
    return None if runs[0] == runs[1] else "%r with little memory, %r with much" % tuple(runs)


def refused(pattern, options):
    def test():
        sep = "," if ":" in args.backend else ":"
        try:
            dq("ppl", *measure, backend=args.backend + sep + options)
        except RuntimeError as e:
            return None if re.search(pattern, str(e)) else str(e)
        return "it succeeded"
    return test


def main():
    check("device", 90, device)
    check("perplexity", 60, perplexity)
    check("perplexity_bf16", 60, perplexity_bf16)
    programs = [] if args.quick else sorted(t for t in glob.glob(os.path.join(args.build, "tests", "conformance", "test_*"))
                                            if os.access(t, os.X_OK) and not t.endswith(".d"))
    for program in programs:
        check(os.path.basename(program), 110, program_of_tests(program))
    check("gptq_w4a16", 60, quantized("gptq_w4a16", 1e-3, "--w_bits", "4"))
    check("gptq_w4a4kv4", 60, quantized("gptq_w4a4kv4", 2e-2, "--preset", "w4a4kv4"))
    check("rtn_w4a4kv4", 60, quantized("rtn_w4a4kv4", 2e-2, "--preset", "w4a4kv4", "--w_rtn"))
    check("integers", 60, integers)
    check("same_codes", 60, same_codes)
    check("calibrated", 60, calibrated)
    check("captured", 60, captured)
    check("generated", 60, generated)
    job_program = os.path.join(args.build, "tests", "cuda", "test_card")
    if not args.quick and os.path.exists(job_program):
        check("jobs", 110, program_of_tests(job_program))
    check("same_result_twice", 60, same_twice)
    check("saved_and_loaded", 60, saved_and_loaded)
    check("any_chunking", 60, any_chunking)
    check("wrong_index", 30, refused("there is no such card; this machine has", "device=99"))
    check("unknown_option", 30, refused("'speed=9' is not an option", "speed=9"))
    check("memory_budget", 30, refused("of 200000 bytes are in use.*tensor ", "memory=200000"))
    check("refused_memory", 30, refused(r"refused as asked for \(allocation 25\)", "fail_at=25"))


def summary():
    count = {v: sum(c["verdict"] == v for c in checks) for v in ("pass", "fail", "skip")}
    print("---- %s, %.0f s" % (args.backend, time.monotonic() - began))
    for c in checks:
        figure = figures.get(c["name"]) or figures.get(c["name"].replace("perplexity", "ppl") + ("" if "bf16" in c["name"] else "_fp32"))
        note = ""
        if isinstance(figure, dict) and "relative" in figure:
            note = "%.6g, off by %.1e of %.0e allowed" % (figure["got"], abs(figure["relative"]), figure["band"])
        elif isinstance(figure, dict) and c["name"].startswith("test_"):
            note = "%d of %d" % (sum(v.startswith("pass") for v in figure.values()), len(figure))
        elif c["name"] == "same_codes" and "codes" in figures:
            note = "%(differ)d of %(of)d differ" % figures["codes"]
        if c["verdict"] != "pass":
            note = (c["reason"].strip().splitlines() or [""])[0][:110]
        print("%-4s %-22s %6.1f s  %s" % (c["verdict"], c["name"], c["seconds"], note))
    print("%(pass)d passed, %(fail)d failed, %(skip)d skipped" % count, flush=True)
    return count["fail"]


def stopped(signum, frame):
    raise KeyboardInterrupt("signal %d" % signum)


signal.signal(signal.SIGTERM, stopped)
try:
    main()
except KeyboardInterrupt as e:
    checks.append({"name": "suite", "verdict": "fail", "seconds": 0, "reason": "stopped: %s" % e})
finally:
    save()
    if args.json and log:
        with open(os.path.splitext(args.json)[0] + ".ops.log", "w", encoding="utf-8") as f:
            f.write("\n".join(log))
    shutil.rmtree(work, ignore_errors=True)
    failed = summary()
    if args.json:
        print("written: " + args.json)
sys.exit(failed > 0)
