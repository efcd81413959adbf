#!/usr/bin/env bash
# compute-sanitizer over the op suite on a card: memory, races, uninitialised reads, barriers; one program a tool at a time,
# each within its share of the time. Usage: sanitize.sh BUILD [SECONDS]. SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
seconds=${2:-500}
cd "$(dirname "$0")/../.." || exit 1
. tests/cuda/env.sh
tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
[ -n "$tool" ] || { echo "skipped: compute-sanitizer is not installed here"; exit 0; }
"$out/bin/dartquant" info --backends --backend cuda 2>&1 | grep -q 'not usable' && {
    echo "skipped: no CUDA device for compute-sanitizer"
    exit 0
}
status=0
begin=$SECONDS
for check in memcheck racecheck initcheck synccheck; do
    for t in "$out"/tests/conformance/test_*; do
        [ -x "$t" ] && [ -f "$t" ] && [ "${t%.d}" = "$t" ] || continue
        left=$((seconds - (SECONDS - begin)))
        name=${check}_$(basename "$t")
        [ "$left" -gt 10 ] || { echo "not run: $name, the time was up"; continue; }
        flags="--error-exitcode 9 --kernel-regex kns=kernel"
        [ "$check" = memcheck ] && flags="$flags --leak-check full"
        text=$(DQ_TEST_BACKEND=cuda timeout "$left" "$tool" --tool "$check" $flags "$t" 2>&1)
        code=$?
        # Other ends than the tool's own are for the op suite to judge: it runs slowly here and may be cut off.
        if [ "$code" = 9 ]; then
            echo "not ok cuda_$name"
            grep '^=========' <<< "$text" | head -60
            status=1
        elif [ "$code" = 124 ]; then
            echo "not finished: $name (no error until then)"
        else
            echo "ok cuda_$name"
        fi
    done
done
exit "$status"
