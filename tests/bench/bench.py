#!/usr/bin/env python3
"""Runs our program and its peers in turn (A B A B ...) and prints medians, minima and ratios; JSON in BUILD/bench.json.

Each section checks the numbers too: perplexities of ours and of the peer stand side by side.
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "examples", "demo"))
from demo import COMMON, find_text  # noqa: E402

p = argparse.ArgumentParser(description=__doc__)
p.add_argument("--build", required=True)
p.add_argument("--model", required=True)
p.add_argument("--only", default="forward,ppl,generate,kernels,calib,calibrate,pipeline,memory")
p.add_argument("--repeat", type=int, default=3)
p.add_argument("--windows", type=int, default=4)
p.add_argument("--nsamples", type=int, default=8)
p.add_argument("--calib-nsamples", type=int, default=128, help="windows of the whole calibration")
p.add_argument("--calib-parts", default="2,2,2", help="windows and batches of R1 and R2 that PyTorch is measured on, 0,0,0: all")
p.add_argument("--calib-cases", nargs="*", default=[], help="beginnings of the cases of the section calib; all without")
p.add_argument("--prefix", default="", help='before each measured command, such as "chrt -r 10" on a busy machine')
p.add_argument("--pause", type=float, default=0, help="seconds before each measured command, for others on the machine")
p.add_argument("--malloc", choices=["both", "usual", "kept"], default="both",
               help="PyTorch with glibc's malloc as it is, which gives large blocks back at every free, or keeping them")
p.add_argument("--cal-file")
p.add_argument("--text-file")
args = p.parse_args()
args.tiny = False
DQ = os.path.join(args.build, "bin", "dartquant")
work = os.path.join(args.build, "bench")
os.makedirs(work, exist_ok=True)
sections = args.only.split(",")
results = {}


# Large tensors of PyTorch come from fresh pages at every step unless malloc keeps what is freed.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
MALLOCS = {"usual": {}, "kept": KEPT}
mallocs = {m: MALLOCS[m] for m in MALLOCS if args.malloc in (m, "both")}


wall = [0.0]  # seconds of the last command


def measured(command, settings):
    time.sleep(args.pause)
    start = time.perf_counter()
    r = subprocess.run([*args.prefix.split(), *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                       env={**os.environ, **(settings or {})})
    wall[0] = time.perf_counter() - start
    return r


def last_json(command, settings=None):
    r = measured(command, settings)
    if r.returncode != 0:
        print(f"  {os.path.basename(command[1])} failed: {r.stderr.strip().splitlines()[-1:]}", flush=True)
        return None
    try:
        return json.loads(r.stdout)
    except json.JSONDecodeError:
        return json.loads(r.stdout.strip().splitlines()[-1])


def peer(script, *flags):
    return [sys.executable, os.path.join(HERE, script), *flags]


def interleave(commands, repeat):
    """commands: {name: command}; {name: list of results}, in turn so that drift of the machine hits all alike."""
    runs = {name: [] for name in commands}
    for _ in range(repeat):
        for name, command in commands.items():
            r = last_json(command)
            if r is not None:
                runs[name].append(r)
    return runs


def busy():
    """Share of a core that others use, from the load of the last minute."""
    return os.getloadavg()[0]


cal, test, origin = find_text(args, work)
print(f"machine: {os.cpu_count()} cores, {platform.machine()}; load before the run {busy():.2f}; text: {origin}")



def ids_file(path, name):
    target = os.path.join(work, name)
    with open(target, "w", encoding="utf-8") as f:
        json.dump(last_json([DQ, "tokenize", args.model, "--file", path, "--json"])["ids"], f)
    return target


cal_ids, test_ids = ids_file(cal, "cal_ids.json"), ids_file(test, "test_ids.json")

if "ppl" in sections:
    print("\n== perplexity, SmolLM2-135M, windows of 2048 (tokens/s: median, best; ratio of medians)")
    limit = ["--limit", str(args.windows)]
    runs = interleave({
        "ours f32": [DQ, "ppl", args.model, "--ids", test_ids, "--json", *limit],
        "transformers f32": peer("peer_ppl.py", "--model", args.model, "--ids", test_ids, *limit),
        "ours bf16": [DQ, "ppl", args.model, "--ids", test_ids, "--json", "--math", "bf16", *limit],
        "transformers bf16": peer("peer_ppl.py", "--model", args.model, "--ids", test_ids, "--dtype", "bf16", *limit),
        "llama.cpp": peer("peer_llamacpp.py", "--model", args.model, "--ids", test_ids, *limit),
    }, args.repeat)
    table = {}
    for name, rs in runs.items():
        flat = [r["results"][0] if "results" in r else r for r in rs]
        if not flat:
            continue
        speed = [r["tokens_per_second"] for r in flat]
        table[name] = {"tokens_per_second": statistics.median(speed), "best": max(speed), "ppl": flat[0]["ppl"]}
        print(f"  {name:20} {table[name]['tokens_per_second']:8.0f} {table[name]['best']:8.0f}   ppl {flat[0]['ppl']:.4f}")
    for kind in ("f32", "bf16"):
        if f"ours {kind}" in table and f"transformers {kind}" in table:
            ratio = table[f"ours {kind}"]["tokens_per_second"] / table[f"transformers {kind}"]["tokens_per_second"]
            print(f"  ours / transformers {kind}: {ratio:.2f}x")
            table[f"ratio {kind}"] = ratio
    results["ppl"] = table

def json_lines(command, settings=None):
    """{(case, shape): object} of a program that prints one JSON object a line."""
    text = measured(command, settings).stdout
    found = {}
    for line in text.splitlines():
        if line.startswith("{"):
            r = json.loads(line)
            if "case" in r:
                found[(r["case"], str(r["shape"]))] = r
    return found


if "generate" in sections:
    print("\n== generation with SmolLM2-135M", flush=True)
    found = os.path.join(work, "generate.json")
    r = subprocess.run(peer("bench_generate.py", "--build", args.build, "--model", args.model, "--text-file", cal, "--work", work,
                            "--repeat", str(args.repeat), "--prefix", args.prefix, "--json", found))
    if r.returncode == 0:
        with open(found, encoding="utf-8") as f:
            results["generate"] = json.load(f)

if "forward" in sections:
    print("\n== one forward pass against the machine's own OpenBLAS sgemm rate (linear + half attention + head, counted)")
    table = {}
    for math in ("f32", "bf16"):
        r = last_json([DQ, "bench", args.model, "--json", "--no_ops", "--math", math])
        if r:
            table[math] = {"sgemm_gflops": r["sgemm_gflops"], **r["forward"]}
            print(f"  {math:5} {r['forward']['gflops']:7.1f} GFLOP/s, {r['forward']['tokens_per_second']:7.0f} tokens/s, "
                  f"sgemm {r['sgemm_gflops']:.1f} GFLOP/s, ratio {r['forward']['gflops'] / r['sgemm_gflops']:.2f}")
    results["forward"] = table

if "kernels" in sections:
    programs = os.path.join(args.build, "tests", "bench")
    print("\n== forward kernels beside sgemm and memcpy of the same size", flush=True)
    subprocess.run([os.path.join(programs, "bench_kernels")])
    print("\n== quantization ops: seconds of ours, of PyTorch, ratio; and the ratio to memcpy or OpenBLAS where it applies")
    ours = json_lines([os.path.join(programs, "bench_quant"), "--threads", "2"])
    theirs = json_lines(peer("peer_quant.py", "--threads", "2", "--reps", str(args.repeat)))
    table = []
    for key, r in ours.items():
        t = theirs.get(key)
        row = {"case": key[0], "shape": key[1], "ours": r["seconds"], "yardstick_ratio": r.get("ratio"),
               "torch": t["seconds"] if t else None, "torch_ratio": t["seconds"] / r["seconds"] if t else None}
        table.append(row)
        print(f"  {key[0]:28} {key[1]:16} {row['ours']:9.4f} "
              + (f"{row['torch']:9.4f} {row['torch_ratio']:6.1f}x" if t else f"{'':17}")
              + (f"   of yardstick {row['yardstick_ratio']:.2f}" if row["yardstick_ratio"] else ""))
    results["kernels"] = table

def calib_section():
    print("\n== steps of fitting rotations: seconds of ours, of PyTorch in fp32 (malloc as it is; keeping its memory), ratios of medians")
    program = os.path.join(args.build, "tests", "bench", "bench_calib")
    ours, theirs = {}, {m: {} for m in mallocs}
    for _ in range(args.repeat):
        for times, command, settings in ((ours, [program, "--threads", "2", "--reps", "3", *args.calib_cases], None),
                                         *((theirs[m], peer("peer_calib.py", "--threads", "2", "--reps", "3", *args.calib_cases),
                                          mallocs[m])
                                           for m in mallocs)):
            for key, r in json_lines(command, settings).items():
                times.setdefault(key, []).append(r["seconds"])
    table = []
    for (case, shape), times in ours.items():
        # Upstream's steps are fp32; the two halves of QR are one call of PyTorch's autograd.
        name = " ".join(case.split()[:3]) + " f32" if " step " in case else case
        row = {"case": case, "shape": shape, "ours": statistics.median(times), "best": min(times)}
        line = f"  {case:32} {shape:18} {row['ours']:9.4f}"
        for m in mallocs:
            t = theirs[m].get((name, shape))
            if t:
                row[f"torch {m}"] = statistics.median(t)
                row[f"ratio {m}"] = row[f"torch {m}"] / row["ours"]
                line += f"   {row[f'torch {m}']:9.4f} {row[f'ratio {m}']:6.1f}x"
        table.append(row)
        print(line)
    for m in mallocs:
        for (case, shape), times in theirs[m].items():
            if case == "qr both" or case.endswith("bf16"):
                print(f"  PyTorch alone ({m}): {case:17} {shape:18} {'':9} {statistics.median(times):9.4f}")
    return table


def calibrate_section():
    """The published recipe on both sides: windows of 2048, R1 10 epochs of a tenth of the inputs, R2 10 epochs of all. Batches
    are half as many windows as there are, as published, so that R2 takes its steps of two batches."""
    bsz = str(max(1, args.calib_nsamples // 2))
    parts = args.calib_parts.split(",")
    rows = int(0.1 * min(args.calib_nsamples, 100) * 60) * 2048  # of 30 layers with two inputs each
    recipe = ["--compat", "upstream", "--ep", "10", "--bsz", bsz,
              "--budget", str(max(rows, args.calib_nsamples * 2048) * 576 * 4)]
    print(f"\n== whole calibration of R1 and R2, SmolLM2-135M, {args.calib_nsamples} windows of 2048, the published recipe (seconds)")
    table = {}
    out = os.path.join(work, "bench_rotations.safetensors")
    usual = [DQ, "calibrate", args.model, "--cal-file", cal, "--out", out, "--json", "--quiet",
             "--nsamples", str(args.calib_nsamples), "--seqlen", "2048"]
    runs = {"ours bf16": ([*usual, *recipe, "--math", "bf16"], None), "ours f32": ([*usual, *recipe], None),
            "ours, our own recipe, bf16": ([*usual, "--math", "bf16"], None)}
    for m in mallocs:
        runs[f"PyTorch ({m})"] = (peer("peer_calibrate.py", "--model", args.model, "--ids", cal_ids, "--work", work,
                                       "--nsamples", str(args.calib_nsamples), "--bsz", bsz, "--capture_windows", parts[0],
                                       "--r1_batches", parts[1], "--r2_batches", parts[2]), mallocs[m])
    for name, (command, settings) in runs.items():
        r = last_json(command, settings)
        if not r:
            continue
        if "peer" not in r:
            r["seconds"] = wall[0]
            spent = {k: sum(x["seconds"] for x in r["rotations"] if (x["name"] == "R1") == (k == "r1")) for k in ("r1", "r2")}
            r["stages"] = {"capture and the rest": r["seconds"] - sum(spent.values()), **spent}
        table[name] = {k: r[k] for k in ("seconds", "stages", "parts") if k in r}
        detail = ", ".join(f"{k} {v:.0f}" for k, v in table[name].get("stages", {}).items())
        how = "; measured: " + ", ".join(f"{k} {v}" for k, v in r["parts"].items()) if "parts" in r else ""
        print(f"  {name:28} {table[name]['seconds']:8.1f}   {detail}{how}", flush=True)
    for m in mallocs:
        for kind in ("ours bf16", "ours f32"):
            if kind in table and f"PyTorch ({m})" in table:
                print(f"  PyTorch ({m}) / {kind}: {table[f'PyTorch ({m})']['seconds'] / table[kind]['seconds']:.1f}x")
    return table


if "calib" in sections:
    results["calib"] = calib_section()
if "calibrate" in sections:
    results["calibrate"] = calibrate_section()

if "pipeline" in sections:
    print("\n== whole W4A4KV4 GPTQ pipeline on SmolLM2 (seconds)")
    sizes = ["--nsamples", str(args.nsamples), "--limit", str(args.windows)]
    four = ["--w_bits", "4", "--a_bits", "4", "--k_bits", "4", "--v_bits", "4"]
    runs = interleave({
        "ours": [DQ, "quantize", args.model, "--ppl_eval", "--w_clip", "--json", "--cal-file", cal, "--text-file", test,
                 "--seqlen", "2048", *COMMON, *four, *sizes],
        "PyTorch": peer("peer_pipeline.py", "--model", args.model, "--cal-ids", cal_ids, "--test-ids", test_ids,
                        *four, *sizes),
    }, 1)
    table = {}
    for name, rs in runs.items():
        if rs:
            r = rs[0]
            ppl = r["results"][0]["ppl"] if "results" in r else r["ppl"]
            seconds = r.get("total_seconds", r["seconds"] if isinstance(r.get("seconds"), (int, float)) else None)
            table[name] = {"seconds": seconds, "ppl": ppl}
            print(f"  {name:10} {seconds:8.1f} s   ppl {ppl:.2f}")
    if len(table) == 2:
        table["ratio"] = table["PyTorch"]["seconds"] / table["ours"]["seconds"]
        print(f"  PyTorch / ours: {table['ratio']:.2f}x")
    results["pipeline"] = table

if "memory" in sections:
    print("\n== peak memory against 1.3 x (weights file + boundary activations + one layer in fp32 + its Hessians)")
    table = {}
    for name, command in {
        "ppl": [DQ, "ppl", args.model, "--ids", test_ids, "--json", "--limit", "8"],
        "quantize": [DQ, "quantize", args.model, "--json", "--cal-file", cal, "--nsamples", "16", "--seqlen", "2048",
                     "--w_bits", "4"],
    }.items():
        r = last_json(command)
        if r:
            total = sum(v for k, v in r["memory_model"].items() if k != "sum")
            table[name] = {"peak_rss_bytes": r["peak_rss_bytes"], "model": total, "ratio": r["peak_rss_bytes"] / total}
            print(f"  {name:10} peak {r['peak_rss_bytes'] / 1e6:7.1f} MB, model {total / 1e6:7.1f} MB, "
                  f"ratio {table[name]['ratio']:.2f}")
    results["memory"] = table

path = os.path.join(args.build, "bench.json")
with open(path, "w", encoding="utf-8") as f:
    json.dump(results, f, indent=1)
print(f"\nresults: {path}")
