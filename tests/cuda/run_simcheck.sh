#!/usr/bin/env bash
# The CUDA backend's kernels on the simulated card with every load and store watched: accesses out of bounds, misaligned ones,
# races in shared and global memory, reads of what nobody wrote, barriers that not all threads reach - what compute-sanitizer
# looks for on a card. First the checker itself: kernels that are wrong in one way each must be found so, right ones not.
# Usage: run_simcheck.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
case $out in */sanitize-*) echo "ok simcheck_is_run_in_the_ordinary_build"; exit 0 ;; esac
card=$(realpath "$out/tests/fakes/libdartquant-simcheck.so") || exit 1
broken=$(realpath "$out/tests/fakes/simcheck-broken") || exit 1
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # name, text of what is wrong
    if [ -z "$2" ]; then echo "ok $1"; else
        echo "not ok $1"
        echo "$2"
        status=1
    fi
}
clean() { # file of reports: something was checked, nothing found
    grep -qE '^simcheck: [1-9][0-9]* launches, [1-9][0-9]* accesses checked, 0 errors' "$1" 2>/dev/null || head -40 "$1"
}

while IFS=$'\t' read -r name words; do
    CUDASIM_CHECK=$work/$name timeout 60 "$broken" "$name" > /dev/null 2>&1 || echo "it ended with $?" >> "$work/$name"
    if [ "$words" = clean ]; then
        check "simcheck_allows_$name" "$(clean "$work/$name")"
    else
        check "simcheck_finds_$name" "$(grep -qE "^simcheck: ($words)" "$work/$name" || cat "$work/$name")"
    fi
done < <("$broken" 2> /dev/null)

# Every op, and whole jobs with nothing on the host: two at a time, the longest first.
run() { # name, command
    local name=$1
    shift
    CUDASIM_CHECK=$work/$name.found DQ_TEST_BACKEND=$card timeout 400 "$@" > "$work/$name.log" 2>&1 ||
        echo "it ended with $?: $(tail -20 "$work/$name.log")" >> "$work/$name.found"
    check "simcheck_$name" "$(clean "$work/$name.found")" > "$work/$name.verdict"
}
head -c 1500 README.md > "$work/text"
job() { # name, command, further arguments
    local name=$1 command=$2
    shift 2
    run "job_$name" "$out/bin/dartquant" "$command" tests/data/tiny --threads 1 --json --backend "$card" --policy forbid "$@"
}
jobs() {
    job perplexity_bf16 ppl --seqlen 64 --text_file "$work/text" --limit 2 --math bf16
    job gptq_w4a4kv4 quantize --preset w4a4kv4 --w_groupsize 32 --seqlen 64 --nsamples 2 --cal_file "$work/text" \
        --text_file "$work/text" --ppl_eval --limit 2
    job integers quantize --w_rtn --w_bits 4 --a_bits 8 --a_asym --seqlen 64 --nsamples 2 --cal_file "$work/text" \
        --text_file "$work/text" --ppl_eval --limit 1
    job calibrate calibrate --seqlen 64 --nsamples 2 --ep 1 --cal_file "$work/text" --out "$work/r.safetensors"
    job generate generate --prompt "The model" --max_tokens 6 --kv int4
}
# The ones that take longest first.
all=(quant_ops fit_ops forward_ops generate_ops jobs)
for t in "$out"/tests/conformance/test_*; do
    name=$(basename "$t" | sed 's/^test_//')
    [ -x "$t" ] && [ -f "$t" ] || continue
    case " ${all[*]} " in *" $name "*) ;; *) all+=("$name") ;; esac
done
some() { # every second of them, from that one on
    local i
    for ((i = $1; i < ${#all[@]}; i += 2)); do
        case ${all[i]} in jobs) jobs ;; *) run "${all[i]}" "$out/tests/conformance/test_${all[i]}" ;; esac
    done
}
some 0 &
some 1
wait
for verdict in "$work"/*.verdict; do
    cat "$verdict"
    grep -q '^not ok' "$verdict" && status=1
done
exit "$status"
