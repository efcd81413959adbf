#!/usr/bin/env bash
# The CUDA plug-in as built by nvcc: what can be said of it without a card, and with one the whole suite.
# Usage: run_cuda.sh [BUILD [JSON]]. With JSON (make cuda-test) a card is required and the suite's report goes there.
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

# Registers that spill to local memory would halve the hot kernels. The compiler's own report: of the plug-in, or of a fresh
# compilation where the tool is absent.
hot='attention_kernel|mma_kernel|block_kernel|grid_kernel|hadamard|loss_kernel|split_kernel'
if command -v cuobjdump > /dev/null; then
    spills=$(cuobjdump --dump-resource-usage "$plugin" 2>/dev/null | c++filt | awk '
        /^ Function/ { name = $0 }
        / STACK:/ { for (i = 1; i <= NF; i++) if ($i ~ /^STACK:/) { split($i, a, ":"); if (a[2] > 0) print name, $i } }' |
        grep -E "$hot")
    check cuda_hot_kernels_do_not_spill "$spills"
elif ls "$out"/obj/libdartquant/backend/cuda/*.usage > /dev/null 2>&1; then
    # ptxas -v: "Function properties for NAME", then "N bytes stack frame, N bytes spill stores, N bytes spill loads"
    spills=$(cat "$out"/obj/libdartquant/backend/cuda/*.usage | c++filt | awk '
        /Compiling entry function/ { name = $0 }
        /bytes stack frame/ && !/^ *0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ { print name, $0 }' |
        grep "'sm_90'" | grep -E "$hot")
    check cuda_hot_kernels_do_not_spill "$spills"
else
    echo "skipped: neither cuobjdump nor the compiler's report is here to look for spills"
fi

text=$("$out/bin/dartquant" info --backends --backend cuda 2>&1)
if grep -q 'not usable' <<< "$text"; then
    check cuda_says_why_there_is_no_device \
        "$(grep -qE 'cuda:0: no CUDA device: .+ \[backend cuda, code [0-9]+\]' <<< "$text" || echo "$text")"
    for t in "$out"/tests/conformance/test_* "$out"/tests/cuda/test_*; do
        [ -x "$t" ] && [ -f "$t" ] && echo "skipped: no CUDA device: $(basename "$t")"
    done
    [ -z "$json" ] || { echo "not ok cuda_has_a_device"; status=1; }
    exit "$status"
fi
echo "$text"
python3 tests/cuda/suite.py --build "$out" --backend cuda --json "${json:-$out/cuda-test.json}" || status=1
exit "$status"
