#!/usr/bin/env bash
# The CUDA plug-in as built by nvcc: what can be said of it without a card, and the op suite with one.
# Usage: run_cuda.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
plugin=$out/dartquant/backends-1/libdartquant-cuda.so
if [ ! -f "$plugin" ]; then
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
check cuda_exports_its_entry_alone "$(nm -D --defined-only "$plugin" | awk '$2 == "T" && $3 != "dq_backend_entry"')"
check cuda_links_nothing_of_the_library "$(readelf -d "$plugin" | grep -i 'NEEDED.*dartquant')"
check library_links_no_cuda "$(readelf -d "$out/libdartquant.so" | grep -iE 'NEEDED.*(cuda|cublas)')"

# No local memory: registers that spill would halve the hot kernels. The compiler's own report.
if command -v cuobjdump > /dev/null; then
    spills=$(cuobjdump --dump-resource-usage "$plugin" 2>/dev/null | c++filt | awk '
        /^ Function/ { name = $0 }
        / STACK:/ { for (i = 1; i <= NF; i++) if ($i ~ /^STACK:/) { split($i, a, ":"); if (a[2] > 0) print name, $i } }' |
        grep -E 'attention_kernel|block_kernel|grid_kernel|hadamard_kernel|loss_kernel')
    check cuda_hot_kernels_do_not_spill "$spills"
else
    echo "skipped: cuobjdump is not here to look for spills"
fi

text=$("$out/bin/dartquant" info tests/data/tiny --backend cuda 2>&1)
if grep -q 'no CUDA device' <<< "$text"; then
    check cuda_says_why_there_is_no_device "$(grep -qE 'cuda:0: no CUDA device: .+ \[backend cuda, code [0-9]+\]' <<< "$text" || echo "$text")"
    for t in "$out"/tests/conformance/test_*; do
        [ -x "$t" ] && [ -f "$t" ] && echo "skipped: no CUDA device: $(basename "$t")"
    done
    exit "$status"
fi
for t in "$out"/tests/conformance/test_*; do
    [ -x "$t" ] && [ -f "$t" ] || continue
    text=$(DQ_TEST_BACKEND=cuda "$t" 2>&1) && text=$(grep 'runs on the host' <<< "$text")
    check "cuda_$(basename "$t")" "$(tail -30 <<< "$text")"
done
exit "$status"
