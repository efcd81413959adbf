#!/usr/bin/env python3
"""The main job on a real model: quantize it by several schemes and show what each one cost.

Drives the `dartquant` program; standard library only (matplotlib, when importable, draws the plot).
SPDX-License-Identifier: Apache-2.0
"""
import argparse
import json
import math
import os
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ACTIVATIONS = {
    "W4A16": [],
    "W4A8KV8": ["--a_bits", "8", "--k_bits", "8", "--v_bits", "8"],
    "W4A4KV4": ["--a_bits", "4", "--k_bits", "4", "--v_bits", "4"],
}
# Asymmetric activations, clipped a little: what the QuaRot and DartQuant tables use.
COMMON = ["--a_asym", "--k_asym", "--v_asym", "--a_clip_ratio", "0.9", "--k_clip_ratio", "0.95",
          "--v_clip_ratio", "0.95"]


def find_text(args, out):
    """Calibration and evaluation files: given, from the shared data folder, or parts of Python's own manual."""
    if args.cal_file and args.text_file:
        return args.cal_file, args.text_file, "files given by the user"
    shared = os.path.join(HERE, "..", "..", "..", "shared", "data")
    cal = os.path.join(shared, "wikipedia-sample", "wikipedia-sample.txt")
    test = os.path.join(shared, "wikitext2", "wiki.test.raw")
    if os.path.exists(cal) and os.path.exists(test) and not args.tiny:
        return cal, test, "calibration: wikipedia sample, evaluation: WikiText-2 test"
    cal, test = os.path.join(out, "calibration.txt"), os.path.join(out, "evaluation.txt")
    if args.tiny:
        sys.path.insert(0, os.path.join(HERE, "..", "..", "tests", "golden"))
        from tiny_text import text
        parts, origin = (text(2, 300_000), text(3, 200_000)), "generated stories, different seeds"
    else:
        from pydoc_data.topics import topics  # installed with Python: English reference text
        names = sorted(topics)
        parts = ["\n\n".join(topics[n] for n in names[i::2]) for i in (0, 1)]
        origin = "Python's language reference, every other chapter each"
    for path, part in zip((cal, test), parts):
        with open(path, "w", encoding="utf-8") as f:
            f.write(part)
    return cal, test, origin


def run(command):
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit(f"demo: {' '.join(command)} failed with status {result.returncode}\n{result.stdout}")
    return json.loads(result.stdout)


def row_of(name, report):
    r = report["results"][0]
    return {"scheme": name, "ppl": r["ppl"], "bits_per_weight": report.get("bits_per_weight"),
            "bytes": report.get("bytes"), "seconds": report.get("total_seconds"),
            "tokens_per_second": r["tokens_per_second"], "windows": r["windows"], "seqlen": r["seqlen"],
            "protocol": r["protocol"]}


def print_table(rows):
    print(f"\n{'scheme':34} {'perplexity':>10} {'bits/weight':>11} {'size MB':>8} {'seconds':>8} {'tokens/s':>8}")
    for r in rows:
        ppl = f"{r['ppl']:.2f}" if r["ppl"] < 1e5 else f"{r['ppl']:.3g}"
        print(f"{r['scheme']:34} {ppl:>10} {r['bits_per_weight']:>11.2f} {r['bytes'] / 1e6:>8.1f} "
              f"{r['seconds']:>8.1f} {r['tokens_per_second']:>8.0f}")


def plot(rows, path):
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    base = rows[0]["ppl"]
    kinds = ["RTN, no rotation", "RTN, rotated", "GPTQ, rotated", "GPTQ, learnt rotation"]
    colors = ["#b3b3b3", "#6baed6", "#08519c", "#d95f02"]
    fig, ax = plt.subplots(figsize=(8, 4.5))
    for k, (kind, color) in enumerate(zip(kinds, colors)):
        values = [next(r["ppl"] for r in rows if r["scheme"] == f"{a} {kind}") for a in ACTIVATIONS]
        places = [i + (k - 1.5) * 0.21 for i in range(len(values))]
        bars = ax.bar(places, values, 0.2, label=kind, color=color)
        ax.bar_label(bars, [f"{v:.2f}" if v < 10 else f"{v:.1f}" if v < 1000 else f"{v:.2g}" for v in values], fontsize=8)
    ax.axhline(base, color="black", linewidth=1, linestyle="--", label=f"full precision {base:.2f}")
    ax.set_yscale("log")
    if max(r["ppl"] for r in rows) < 5 * base:  # less than a decade: its ticks lie between the powers of ten
        ax.yaxis.set_minor_formatter("{x:.3g}")
    ax.set_xticks(range(len(ACTIVATIONS)), list(ACTIVATIONS))
    ax.set_ylabel("perplexity (log scale, lower is better)")
    ax.set_title("What 4-bit weights, activations and KV cache cost")
    ax.legend(frameon=False)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    print(f"plot: {path}")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--program", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--out", required=True)
    p.add_argument("--cal-file")
    p.add_argument("--text-file")
    p.add_argument("--seqlen", type=int, default=0)
    p.add_argument("--windows", type=int, default=4, help="evaluation windows")
    p.add_argument("--nsamples", type=int, default=16, help="calibration windows")
    args = p.parse_args()
    args.tiny = os.path.isdir(args.model)
    seqlen = args.seqlen or (256 if args.tiny else 2048)
    os.makedirs(args.out, exist_ok=True)
    cal, test, origin = find_text(args, args.out)
    print(f"text: {origin}; {args.windows} windows of {seqlen} tokens scored", flush=True)
    start = time.time()
    measure = ["--text-file", test, "--seqlen", str(seqlen), "--limit", str(args.windows), "--json"]
    quantize = [args.program, "quantize", args.model, "--ppl_eval", "--w_bits", "4", "--w_clip", "--cal-file", cal,
                "--nsamples", str(args.nsamples)] + COMMON + measure
    rows = []

    def add(name, command):
        rows.append(row_of(name, run(command)))
        print(f"  {name:34} perplexity {rows[-1]['ppl']:.2f}", flush=True)

    # 16 bits everywhere: the model as it is.
    add("full precision", [args.program, "quantize", args.model, "--ppl_eval", "--no_rotation"] + measure)
    for activations, flags in ACTIVATIONS.items():
        add(f"{activations} RTN, no rotation", quantize + ["--no_rotation", "--w_rtn"] + flags)
    for activations, flags in ACTIVATIONS.items():
        add(f"{activations} RTN, rotated", quantize + ["--w_rtn"] + flags)
    learnt = os.path.join(args.out, "rotation.safetensors")
    print("  learning rotations", flush=True)
    fit = run([args.program, "calibrate", args.model, "--cal-file", cal, "--nsamples", str(args.nsamples), "--seqlen",
               str(seqlen), "--out", learnt, "--json"])
    print(f"  learnt in {fit['total_seconds']:.0f} s: quantization error of activations "
          f"{fit['error_before']:.4f} -> {fit['error_after']:.4f}", flush=True)
    # The integer weights do not depend on how activations are quantized later: calibrate once, then measure the saved
    # model three times.
    for kind, rotation in (("rotated", []), ("learnt rotation", ["--r1_path", learnt, "--r2_path", learnt])):
        saved = os.path.join(args.out, "gptq-w4-" + kind.split()[0])
        for activations, flags in ACTIVATIONS.items():
            name = f"{activations} GPTQ, {kind}"
            if activations == "W4A16":
                add(name, quantize + rotation + ["--save_qmodel_path", saved])
            else:
                add(name, [args.program, "quantize", saved, "--ppl_eval", "--quiet"] + COMMON + measure + flags)

    print_table(rows)
    result = {"model": os.path.basename(args.model), "text": origin, "rows": rows,
              "learnt_rotations": {k: fit[k] for k in ("error_before", "error_after", "total_seconds")},
              "total_seconds": round(time.time() - start, 1)}
    path = os.path.join(args.out, "demo.json")
    with open(path, "w", encoding="utf-8") as f:
        json.dump(result, f, indent=1)
    print(f"\nresults: {path}")
    plot(rows, os.path.join(args.out, "perplexity.png"))
    print(f"total: {result['total_seconds']:.0f} s")
    if not all(math.isfinite(r["ppl"]) for r in rows):
        sys.exit("demo: a perplexity is not finite")


if __name__ == "__main__":
    main()
