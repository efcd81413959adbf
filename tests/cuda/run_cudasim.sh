#!/usr/bin/env bash
# The CUDA backend's own sources on a made-up card (tests/fakes/cudasim): every kernel runs, thread by thread, on the CPU.
# This checks arithmetic, indexing, calls and errors; not speed and not the hardware. Usage: run_cudasim.sh [BUILD].
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
case $out in */sanitize-*) echo "ok cudasim_is_tested_in_the_ordinary_build"; exit 0 ;; esac
card=$(realpath "$out/tests/fakes/libdartquant-cudasim.so") || exit 1
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c 3000 LICENSE > "$work/text"

check() { # name, text of what is wrong
    if [ -z "$2" ]; then echo "ok $1"; else
        echo "not ok $1"
        echo "$2"
        status=1
    fi
}

# Every op against the reference, in its band; an op that ran on the host instead is an error.
for t in "$out"/tests/conformance/test_*; do
    [ -x "$t" ] && [ -f "$t" ] || continue
    log=$work/$(basename "$t").log
    DQ_TEST_BACKEND=$card "$t" > "$log" 2>&1 || cp "$log" "$log.bad"
    grep -q 'runs on the host' "$log" && grep 'runs on the host' "$log" >> "$log.bad"
    check "cudasim_$(basename "$t")" "$(tail -30 "$log.bad" 2>/dev/null)"
done

# Small squares and several parts, as only large Hessians have them.
for options in syrk_block=32 syrk_block=48,syrk_parts=3 syrk_block=500,syrk_parts=7; do
    log=$work/parts.log
    DQ_TEST_BACKEND=$card:$options "$out/tests/conformance/test_quant_ops" > "$log" 2>&1 || cp "$log" "$log.bad"
    check "cudasim_hessian_with_$options" "$(tail -30 "$log.bad" 2>/dev/null)"
done

program() { # command, further arguments; JSON on stdout
    local command=$1
    shift
    timeout 120 "$out/bin/dartquant" "$command" tests/data/tiny --seqlen 64 --threads 1 --json "$@" 2>> "$work/log"
}
number() { # file, python expression of r
    python3 -c "import json,sys; r=json.load(open(sys.argv[1])); print(eval(sys.argv[2]))" "$1" "$2"
}
near() { # name, file, file, expression, relative band
    check "$1" "$(python3 - "$2" "$3" "$4" "$5" <<'END' 2>&1
import json, sys
a, b = (eval(sys.argv[3], {"r": json.load(open(f))}) for f in sys.argv[1:3])
if not abs(a - b) <= float(sys.argv[4]) * abs(a): print(a, "is not", b)
END
)"
}

# Whole jobs, nothing on the host.
forbid="--policy forbid"
program ppl --text_file "$work/text" --limit 2 --backend ref > "$work/a"
program ppl --text_file "$work/text" --limit 2 --backend "$card" $forbid > "$work/b"
near cudasim_perplexity "$work/a" "$work/b" 'r["results"][0]["ppl"]' 1e-6
# Hidden states that do not fit on the card beside a layer.
python3 -c "print([i * i % 500 for i in range(3300)])" > "$work/ids"
program ppl --ids "$work/ids" --limit 50 --backend "$card" $forbid > "$work/a"
program ppl --ids "$work/ids" --limit 50 --backend "$card" $forbid --device_memory 2600000 > "$work/b"
near cudasim_small_card "$work/a" "$work/b" 'r["results"][0]["ppl"]' 0
scheme="--preset w4a4kv4 --w_groupsize 32 --nsamples 2 --cal_file $work/text --text_file $work/text --ppl_eval --limit 2"
program quantize $scheme --backend ref > "$work/a"
program quantize $scheme --backend "$card" $forbid > "$work/b"
near cudasim_gptq_w4a4kv4 "$work/a" "$work/b" 'r["results"][0]["ppl"]' 2e-2
program quantize $scheme --w_rtn --backend cpu > "$work/a"
program quantize $scheme --w_rtn --backend "$card" $forbid > "$work/b"
near cudasim_rtn_w4a4kv4 "$work/a" "$work/b" 'r["results"][0]["ppl"]' 2e-2

kv="--preset kvquant_nuq3 --kv_qnorm --nsamples 2 --cal_file $work/text --text_file $work/text --ppl_eval --limit 2"
program quantize $kv --backend ref > "$work/a"
program quantize $kv --backend "$card" $forbid > "$work/b"
near cudasim_kvquant "$work/a" "$work/b" 'r["results"][0]["ppl"]' 2e-2

# Quantized inputs and weights multiplied as integers, and as floats: the reference's perplexity, but for rounding ties
# (tests/unit/test_integer_products.c looks closer).
whole="--w_rtn --w_bits 4 --a_bits 4 --nsamples 2 --cal_file $work/text --text_file $work/text --ppl_eval --limit 2"
program quantize $whole --backend ref > "$work/a"
for integers in true false; do
    program quantize $whole --backend "$card" $forbid --integer_products $integers > "$work/b"
    near cudasim_integer_products_$integers "$work/a" "$work/b" 'r["results"][0]["ppl"]' 2e-2
done

# The same result twice, to the bit.
program quantize $scheme --backend "$card" $forbid > "$work/c"
program quantize $scheme --backend "$card" $forbid > "$work/d"
check cudasim_same_result_twice "$([ "$(number "$work/c" 'r["results"][0]["ppl"]')" = "$(number "$work/d" 'r["results"][0]["ppl"]')" ] || echo differs)"

# What goes wrong says so.
refused() { # name, pattern, arguments of ppl
    local name=$1 pattern=$2
    shift 2
    "$out/bin/dartquant" ppl tests/data/tiny --text_file "$work/text" --seqlen 64 --limit 2 "$@" > "$work/out" 2>&1 &&
        echo "it succeeded" >> "$work/out"
    check "$name" "$(grep -qE "$pattern" "$work/out" || cat "$work/out")"
}
CUDASIM_DEVICES=0 refused cudasim_no_device 'no CUDA device: no CUDA-capable device.*code 100' --backend "$card"
refused cudasim_wrong_index 'cuda:3: there is no such card; this machine has 1' --backend "$card:3"
refused cudasim_unknown_option "'speed=9' is not an option" --backend "$card:speed=9"
CUDASIM_CAPABILITY=7 refused cudasim_old_card 'compute capability 7.0 is too old' --backend "$card"
refused cudasim_memory_budget 'does not fit: .* of 200000 bytes are in use' --backend "$card:memory=200000"

# Every n-th allocation refused: an error with the backend's name each time, until n is past the last.
bad=""
for n in 1 2 3 5 8 13 21 34 55 89 144 233 377; do
    if "$out/bin/dartquant" ppl tests/data/tiny --text_file "$work/text" --seqlen 64 --limit 1 \
        --backend "$card:fail_at=$n" > "$work/out" 2>&1; then
        [ "$n" -gt 34 ] || bad="$bad allocation $n was never made;"
    else
        grep -q "refused as asked for (allocation $n).*backend cuda:0, code 2" "$work/out" || bad="$bad $n: $(cat "$work/out")"
    fi
done
check cudasim_allocation_failures "$bad"
exit "$status"
