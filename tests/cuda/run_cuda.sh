#!/usr/bin/env bash
# The CUDA plug-in as built by nvcc: what can be said of it without a card, and with one the whole suite.
# Usage: run_cuda.sh [BUILD [JSON [FLAGS]]]. With JSON (make cuda-test) a card is required and the suite's report goes there.
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
json=${2:-}
cd "$(dirname "$0")/../.." || exit 1
. tests/cuda/env.sh
if [ ! -f "$plugin" ]; then
    [ -z "$json" ] || { echo "not ok cuda_is_built"; echo "no $plugin: make cuda needs nvcc"; exit 1; }
    echo "ok cuda_is_optional"
    echo "skipped: the CUDA backend is not built here (make cuda needs nvcc)"
    exit 0
fi
status=0
check() { # name, text of what is wrong
    if [ -z "$2" ]; then echo "ok $1"; else
        echo "not ok $1"
        echo "$2"
        status=1
    fi
}
if command -v nm > /dev/null && command -v readelf > /dev/null; then
    check cuda_exports_its_entry_alone "$(nm -D --defined-only "$plugin" | awk '$2 == "T" && $3 != "dq_backend_entry"')"
    check cuda_links_nothing_of_the_library "$(readelf -d "$plugin" | grep -i 'NEEDED.*dartquant')"
    check library_links_no_cuda "$(readelf -d "$out/libdartquant.so.1" | grep -iE 'NEEDED.*(cuda|cublas)')"
fi

# Registers that spill to local memory would halve the hot kernels. What ptxas said when the plug-in was compiled; each name
# of the list must be there, with every card's code, so that a kernel that was renamed is not lost from sight.
hot='attention_kernel<4> attention_kernel<8> attention_kernel<16> attention_mma_kernel<32> attention_mma_kernel<64>
attention_mma_kernel<128> block_kernel<4> block_kernel<5> grid_kernel quantize_kernel dequantize_kernel fake_quant_kernel
hadamard_kernel<float> hadamard_tile_kernel<1,true> hadamard_tile_kernel<12,true> hadamard_tile_kernel<28,true>
hadamard_tile_kernel<40,true> hadamard_tile_kernel<172,true>
loss_kernel total_kernel split_kernel sum_kernel norm_kernel norm_quant_kernel pad_kernel rope_kernel
rope_fours_kernel fake_quant_held_kernel
activation_kernel nll_kernel dot_kernel<double> convert_kernel<float,float> gather_kernel few_rows_kernel span_kernel
unpack_kernel store_kernel newton_kernel quantize_rows_kernel<0> quantize_rows_kernel<1> int8_product_kernel int8_finish_kernel
levels_columns_kernel levels_rows_kernel<true>'
if ls "$out"/obj/libdartquant/backend/cuda/*.usage > /dev/null 2>&1 && command -v c++filt > /dev/null; then
    # "Compiling entry function 'NAME' for 'sm_90'", then "N bytes stack frame, N bytes spill stores, N bytes spill loads"
    kernels=$(cat "$out"/obj/libdartquant/backend/cuda/*.usage | c++filt | awk '
        /Compiling entry function/ { name = $0; sub(/^[^\047]*\047/, "", name); gsub(/, /, ",", name) }
        /bytes stack frame/ { print name " : " ($1 + $5 + $9) }')
    spills=
    for kernel in $hot; do
        lines=$(grep -F -e "$kernel<" -e "$kernel(" <<< "$kernels" | grep -E "(^|[ :])${kernel%%<*}[<(]")
        [ -n "$lines" ] || spills+="$kernel: not among what was compiled"$'\n'
        bad=$(grep -v ' : 0$' <<< "$lines")
        [ -z "$bad" ] || spills+=$bad$'\n'
    done
    check cuda_hot_kernels_do_not_spill "$spills"
else
    echo "skipped: the compiler's report is not here to look for spills"
fi

text=$(ours timeout 90 "$out/bin/dartquant" info --backends --backend cuda 2>&1)
if grep -q 'not usable' <<< "$text"; then
    check cuda_says_why_there_is_no_device \
        "$(grep -qE 'cuda:0: no CUDA device: .+ \[backend cuda, code [0-9]+\]' <<< "$text" || echo "$text")"
    for t in "$out"/tests/conformance/test_* "$out"/tests/cuda/test_*; do
        [ -x "$t" ] && [ -f "$t" ] && echo "skipped: no CUDA device: $(basename "$t")"
    done
    [ -n "$json" ] || exit "$status"
    echo "not ok cuda_has_a_device" # and the report says so
fi
echo "$text"
python3 tests/cuda/suite.py --build "$out" --backend cuda --json "${json:-$out/cuda-test.json}" "${@:3}" || status=1
exit "$status"
