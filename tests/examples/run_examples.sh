#!/usr/bin/env bash
# Every example compiles from the installed tree with one pkg-config line, as C and (where it may) as C++, and runs.
# Usage: run_examples.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
case $out in
    *sanitize*) echo "note: examples are tested with the ordinary build"; echo "ok examples_passed_over"; exit 0 ;;
esac
for tool in pkg-config cc c++; do
    command -v $tool >/dev/null || { echo "note: $tool is not installed"; echo "ok examples_passed_over"; exit 0; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0

result() { # name, exit status, log
    if [ "$2" -eq 0 ]; then echo "ok $1"; else
        echo "not ok $1"
        tail -15 "$3"
        status=1
    fi
}

make --no-print-directory install BUILD="$out" PREFIX=/usr DESTDIR="$work/root" > "$work/log" 2>&1
result install $? "$work/log"
export PKG_CONFIG_PATH=$work/root/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$work/root
export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1
export LD_LIBRARY_PATH=$work/root/usr/lib
# A text for the tiny model: this project's own words.
cat docs/*.md > "$work/text.txt"

built() { # name, compiler words...
    local name=$1; shift
    "$@" $(pkg-config --cflags --libs dartquant) -lm -o "$work/$name" > "$work/log" 2>&1
    result "compiles_$name" $? "$work/log"
}
run() { # test name, pattern in its output, program and arguments
    local name=$1 pattern=$2; shift 2
    timeout 120 "$work/$@" > "$work/log" 2>&1 && grep -qE "$pattern" "$work/log"
    result "runs_$name" $? "$work/log"
}

for f in examples/*.c; do
    name=$(basename "$f" .c)
    built "$name" cc -std=c99 -D_GNU_SOURCE -Wall -Wextra -Werror "$f"
done
for f in examples/*.cc; do
    name=$(basename "$f" .cc)
    built "$name" c++ -std=c++17 -Wall -Wextra -Werror "$f"
done
# Every header is C++, too: one example's calls from a C++ program.
built perplexity_as_cxx c++ -x c++ -std=c++17 -Wall -Wextra -Werror examples/perplexity.c -x none
model=tests/data/tiny
run perplexity '"ppl": ?[0-9.]+' perplexity $model "$work/text.txt" 64
run perplexity_as_cxx '"ppl": ?[0-9.]+' perplexity_as_cxx $model "$work/text.txt" 64
run quantize_model 'perplexity [0-9.]+ -> [0-9.]+' quantize_model $model "$work/text.txt" "$work/text.txt" "$work/q" \
    w4a16 w_groupsize=16 nsamples=4 seqlen=64 limit=4
run generate '^12 tokens in [0-9]+ steps' generate $model "Ada found" max_tokens=12 ignore_eos=true kv=fp8
run host_weights 'tensors came back' host_weights
run host_gptq '^RTN' host_gptq
awk '/GPTQ/ {g = $4} /RTN/ {r = $4} END {exit !(g > 0 && g < r)}' "$work/log"
result host_gptq_beats_rtn $? "$work/log"
run host_calibration 'R2: 4-bit error' host_calibration
awk '/^R[12]:/ {n++; if (!($4 > $8)) bad = 1} END {exit bad || n != 2}' "$work/log"
result host_calibration_beats_random $? "$work/log"
run calibrate_rotation 'random rotations [0-9.]+, learnt [0-9.]+' calibrate_rotation $model "$work/text.txt" "$work/text.txt" \
    "$work/r.safetensors" nsamples=8 seqlen=64 limit=16 a_bits=3
awk '/^quantization error/ {bad = !($6 > $8)} END {exit bad}' "$work/log" && [ -s "$work/r.safetensors" ]
result calibrate_rotation_learns $? "$work/log"
run host_forward 'after 0 comes 1: 0\.[0-9]+ nats \(best\)' host_forward
run custom_backend 'with my rmsnorm' custom_backend $model
run cpp_raii 'perplexity [0-9.]+ -> [0-9.]+' cpp_raii $model "$work/text.txt"
run stepwise_stops 'stopped' stepwise $model "$work/text.txt" "$work/ck" "$work/s" 2
run stepwise_resumes 'resumed at layer 2' stepwise $model "$work/text.txt" "$work/ck" "$work/s"
run stepwise_undisturbed 'started at layer 0' stepwise $model "$work/text.txt" "$work/ck" "$work/t"
cmp "$work/s/model.safetensors" "$work/t/model.safetensors" > "$work/log" 2>&1
result stepwise_same_bits $? "$work/log"
# The installed program: the same through --checkpoint and --resume, killed in between.
program=("$work/root/usr/bin/dartquant" quantize $model --w_bits 4 --w_groupsize 16 --cal-file "$work/text.txt"
    --nsamples 8 --seqlen 64 --quiet)
"${program[@]}" --save_qmodel_path "$work/u" > "$work/log" 2>&1
result program_quantizes $? "$work/log"
"${program[@]}" --save_qmodel_path "$work/v" --checkpoint "$work/ckp" > "$work/log" 2>&1 &
pid=$!
for _ in $(seq 200); do
    [ -e "$work/ckp/codes-00000.safetensors" ] && break
    sleep 0.02
done
kill -KILL $pid 2>/dev/null
wait $pid 2>/dev/null
"${program[@]}" --save_qmodel_path "$work/v" --checkpoint "$work/ckp" --resume > "$work/log" 2>&1
result program_resumes $? "$work/log"
cmp "$work/u/model.safetensors" "$work/v/model.safetensors" > "$work/log" 2>&1 && [ ! -e "$work/ckp" ]
result program_same_bits $? "$work/log"
exit $status
