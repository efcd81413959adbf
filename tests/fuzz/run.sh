#!/usr/bin/env bash
# Builds every tests/fuzz/fuzz_*.c with libFuzzer and sanitizers and runs each for FUZZ_SECONDS (default 15) from its seeds:
# run.sh [OUT] [NAME...]. A target names its seeds in its head comment: "Seeds: .SUFFIX..." are the files under tests/data
# of that suffix, "Pickles: .SUFFIX..." the data.pkl of PyTorch archives, "Templates: FILE" the cases of such a file, template and
# values with a NUL between. What crashes stays in OUT/fuzz/NAME.crash-*.
# SPDX-License-Identifier: Apache-2.0
set -eu
out=${1:-build}
[ $# -gt 0 ] && shift
cd "$(dirname "$0")/../.."
dir="$out/fuzz"
mkdir -p "$dir"
# Only the rooms that read files: they need no other.
rooms=$(ls libdartquant/base/*.c libdartquant/io/*.c libdartquant/text/*.c libdartquant/chat/*.c 2>/dev/null | tr '\n' ' ')
make --no-print-directory -j"$(nproc)" LIB_SRC="$rooms" CC=clang BUILD="$dir" SANITIZE=address,undefined CFLAGS="-O1 -g -fsanitize=fuzzer-no-link" \
    "$dir/sanitize-address-undefined/libdartquant.a" > "$dir/build.log" 2>&1 || { tail -20 "$dir/build.log"; exit 1; }
libs=$(pkg-config --libs openblas jansson libpcre2-8 libutf8proc libzip zlib)
failed=0
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c); name=${name#fuzz_}
    if [ $# -gt 0 ] && ! [[ " $* " == *" $name "* ]]; then continue; fi
    clang -std=c11 -O1 -g -D_GNU_SOURCE -Iinclude -Ilibdartquant -Itests/fuzz -fsanitize=fuzzer,address,undefined \
        -fno-sanitize-recover=undefined "$source" "$dir/sanitize-address-undefined/libdartquant.a" -o "$dir/$name" $libs -lm -lpthread
    seeds="$dir/$name.seeds"
    rm -rf "$seeds"; mkdir -p "$seeds" "$dir/$name.corpus"
    for suffix in $(sed -n 's/.*Seeds: \(.*\) \*\/$/\1/p' "$source"); do
        find tests/data -type f -name "*$suffix" -size -64k -exec cp --backup=numbered -t "$seeds" {} +
    done
    for suffix in $(sed -n 's/.*Pickles: \(.*\) \*\/$/\1/p' "$source"); do
        find tests/data -type f -name "*$suffix" -exec python3 -c 'import os, sys, zipfile
for path in filter(zipfile.is_zipfile, sys.argv[2:]):
    z = zipfile.ZipFile(path)
    with open(os.path.join(sys.argv[1], os.path.basename(path) + ".pkl"), "wb") as f:
        f.write(z.read(next(n for n in z.namelist() if n.endswith("data.pkl"))))' "$seeds" {} +
    done
    for file in $(sed -n 's/.*Templates: \(.*\) \*\/$/\1/p' "$source"); do
        python3 -c 'import json, os, sys
root = json.load(open(sys.argv[2]))
for i, case in enumerate(root["cases"] + root["refused"]):
    values = case.get("values")
    values = values if isinstance(values, dict) else root["shared"]
    with open(os.path.join(sys.argv[1], f"{i}.template"), "wb") as f:
        f.write(case["template"].encode() + b"\0" + json.dumps(values).encode())' "$seeds" "tests/data/$file"
    done
    if "$dir/$name" -max_total_time="${FUZZ_SECONDS:-15}" -max_len=32768 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$dir/$name." "$dir/$name.corpus" "$seeds" > "$dir/$name.log" 2>&1; then
        echo "ok fuzz_$name ($(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "$dir/$name.log") runs)"
    else
        echo "not ok fuzz_$name"
        tail -25 "$dir/$name.log"
        failed=1
    fi
done
exit $failed
