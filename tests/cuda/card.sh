#!/usr/bin/env bash
# One command for a machine with a card, with a build or a kit (make cuda-kit; the folder or its .tar.gz), where neither make
# nor a compiler need be. Usage: card.sh test|bench|sanitize BUILD|KIT|KIT.tar.gz [JSON [FLAGS]].
# SPDX-License-Identifier: Apache-2.0
set -u
what=${1:?test, bench or sanitize}
out=${2:-build}
json=${3:-}
cd "$(dirname "$0")/../.." || exit 1
case $out in
    *.tar.gz) # unpacked beside it, or where one can write; anew when it is another one
        folder=${out%.tar.gz}
        sum=$(cksum < "$out") || exit 1
        mkdir -p "$folder" 2> /dev/null && [ -w "$folder" ] || folder=${TMPDIR:-/tmp}/$(basename "$folder")
        [ "$(cat "$folder/.unpacked" 2> /dev/null)" = "$sum" ] || {
            rm -rf "$folder"
            mkdir -p "$folder" && tar -xzf "$out" -C "$folder" && echo "$sum" > "$folder/.unpacked" || exit 1
        }
        out=$folder
        ;;
esac
case $what in
    test) exec bash tests/cuda/run_cuda.sh "$out" "${json:-$out/cuda-test.json}" "${@:4}" ;;
    sanitize) exec bash tests/cuda/sanitize.sh "$out" "${json:-$out/cuda-sanitize.json}" "${@:4}" ;;
    bench)
        . tests/cuda/env.sh
        exec python3 tests/cuda/bench.py --build "$out" --backend "${BACKEND:-cuda}" --json "${json:-$out/cuda-bench.json}" "${@:4}"
        ;;
    *) echo "card.sh: '$what' is none of test, bench, sanitize" && exit 2 ;;
esac
