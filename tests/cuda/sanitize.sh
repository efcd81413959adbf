#!/usr/bin/env bash
# compute-sanitizer over the op suite on a card (sanitize.py). Usage: sanitize.sh BUILD [JSON [FLAGS]].
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
json=${2:-$out/cuda-sanitize.json}
cd "$(dirname "$0")/../.." || exit 1
. tests/cuda/env.sh
tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -1)
[ -n "$tool" ] || { echo "skipped: compute-sanitizer is not installed here"; exit 0; }
ours timeout 90 "$out/bin/dartquant" info --backends --backend cuda 2>&1 | grep -q 'not usable' && {
    echo "skipped: no CUDA device for compute-sanitizer"
    exit 0
}
exec python3 tests/cuda/sanitize.py --build "$out" --tool "$tool" --json "$json" "${@:3}"
