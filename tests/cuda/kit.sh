#!/usr/bin/env bash
# Everything the tests and benchmarks of a card need, in one folder for a machine that has a driver but neither our
# libraries nor their headers: programs, plug-in, and the shared libraries they load (not the CUDA ones, which that machine
# has). Folder and FOLDER.tar.gz, a third of its size, stand in for BUILD there: make cuda-test KIT=FOLDER, or without make
# bash tests/cuda/card.sh test FOLDER.tar.gz. Usage: kit.sh BUILD FOLDER [PLUGIN, for another one under the same name].
# SPDX-License-Identifier: Apache-2.0
set -eu
out=$1
kit=$2
rm -rf "$kit"
mkdir -p "$kit/bin" "$kit/lib" "$kit/dartquant/backends-1" "$kit/tests/conformance" "$kit/tests/cuda"
cp "$out/bin/dartquant" "$kit/bin/"
cp "$out"/libdartquant.so.*.*.* "$kit/libdartquant.so.1"
cp "${3:-$out/dartquant/backends-1/libdartquant-cuda.so}" "$kit/dartquant/backends-1/libdartquant-cuda.so"
for program in "$out"/tests/conformance/test_* "$out"/tests/cuda/test_card "$out"/tests/cuda/bench_*; do
    case $program in *.d) continue ;; esac
    cp "$program" "$kit/${program#"$out"/}"
done
strip "$kit"/bin/* "$kit"/tests/*/* "$kit/libdartquant.so.1"
# What they load, but the C library and what every system has with it (its libstdc++ may need a newer libgcc_s than ours).
for program in "$kit"/bin/* "$kit"/tests/*/* "$kit/libdartquant.so.1"; do ldd "$program"; done |
    awk '$3 ~ /^\// { print $3 }' | sort -u |
    grep -vE '/(libdartquant|libc|libm|libdl|librt|libpthread|libgcc_s|ld-linux[^/]*)\.so' |
    while read -r library; do cp -L "$library" "$kit/lib/"; done
tar -czf "$kit.tar.gz" -C "$kit" .
du -sh "$kit" "$kit.tar.gz" | awk '{ print "written: " $2 ", " $1 }'
