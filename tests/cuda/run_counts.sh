#!/usr/bin/env bash
# What perplexity under bf16 asks of a card, counted on the simulated one: the numbers that docs/backends.md reckons with. A
# weight is rounded once, however many windows there are, inputs of products where they are made, and no layer makes the host
# wait. Usage: run_counts.sh [BUILD].
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
case $out in */sanitize-*) echo "ok counts_are_tested_in_the_ordinary_build"; exit 0 ;; esac
card=$(realpath "$out/tests/fakes/libdartquant-cudasim.so") || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c 3000 LICENSE > "$work/text"

measure() { # windows, model, report, further arguments
    local windows=$1 model=$2 report=$3
    shift 3
    CUDASIM_REPORT=$work/$report timeout 120 "$out/bin/dartquant" ppl "$model" --seqlen 64 --threads 1 --json --math bf16 \
        --text_file "$work/text" --limit "$windows" --backend "$card" --policy forbid "$@" > "$work/log" 2>&1 || cat "$work/log"
}
measure 1 tests/data/tiny 1
measure 3 tests/data/tiny 3
"$out/bin/dartquant" quantize tests/data/tiny --w_rtn --w_bits 4 --a_bits 4 --backend cpu --save_qmodel_path "$work/w4a4" \
    > "$work/log" 2>&1 || cat "$work/log"
for integers in true false; do
    for windows in 1 3; do measure $windows "$work/w4a4" "$integers$windows" --integer_products $integers; done
done
python3 - "$work/1" "$work/3" "$work/true1" "$work/true3" "$work/false1" "$work/false3" <<'END'
import json, sys

reports = [{line.split("\t")[0]: int(line.split("\t")[1]) for line in open(f)} for f in sys.argv[1:]]
one, three = reports[:2]
layers = json.load(open("tests/data/tiny/config.json"))["num_hidden_layers"]
# launches in a window: of one layer, and of the head; inputs of products are rounded by what makes them, the last states once
expected = {"gemm bf16": (7, 1), "(norm_kernel<LAYER, cu_bf16>)": (2, 0),
            "rope_fours_kernel": (2, 0), "(pad_kernel<D, true>)": (1, 0), "attention_mma_kernel<D>": (1, 0),
            "activation_kernel<cu_bf16>": (1, 0), "nll_kernel": (0, 1)}
failed = False


def check(name, wrong):
    global failed
    failed = failed or bool(wrong)
    print(("not ok " if wrong else "ok ") + name + (": " + wrong if wrong else ""))


more = {name: (three[name] - one.get(name, 0)) / 2 for name in three if three[name] != one.get(name, 0)}
wanted = {name: float(layer * layers + head) for name, (layer, head) in expected.items()}
check("counts_of_launches", "" if more == wanted else f"{more} instead of {wanted}")
check("counts_of_waits", "" if three["wait of the host"] == one["wait of the host"] <= 6 else f"{one} {three}")
check("counts_of_uploads", "" if three["copy to the card"] == one["copy to the card"] else f"{one} {three}")

# Quantized inputs and weights as integers: no weight becomes a float, and the inputs of a window's products are rounded to codes.
on, off = ({name: (last.get(name, 0) - first.get(name, 0)) / 2 for name in set(first) | set(last)}
           for first, last in (reports[2:4], reports[4:6]))
expected = {"gemm int8": 7 * layers, "int8_finish_kernel": 7 * layers, "quantize_rows_kernel<NORM>": 3 * layers,
            "(hadamard_tile_kernel<K, true>)": layers, "rmsnorm_kernel": 0, "gemm bf16": 1}
check("counts_of_integer_products", "" if all(on.get(name, 0) == count for name, count in expected.items()) else f"{on}")
check("counts_of_integer_weights", "" if "dequantize_kernel" not in reports[2] and reports[4]["dequantize_kernel"] == 7 * layers
      else f"{reports[2]} {reports[4]}")
check("counts_of_integer_uploads", "" if reports[2]["copy to the card"] < reports[4]["copy to the card"] else f"{reports[2]}")
check("counts_of_integer_waits", "" if reports[3]["wait of the host"] == reports[2]["wait of the host"] else f"{reports[3]}")
check("counts_without_integers", "" if off.get("gemm bf16") == 7 * layers + 1 and not off.get("gemm int8") else f"{off}")
sys.exit(failed)
END
