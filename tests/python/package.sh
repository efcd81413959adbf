#!/usr/bin/env bash
# package.sh wheel|sdist BUILD: packages bindings/python into BUILD/python/dist. SPDX-License-Identifier: Apache-2.0
set -eu
cd "$(dirname "$0")/../.."
what=$1 out=$2
tests/python/venv.sh "$out"
stage=$out/python/stage-$what
rm -rf "$stage"
mkdir -p "$stage" "$out/python/dist"
cp -r bindings/python/{dartquant,pyproject.toml,setup.py,MANIFEST.in,README.md} LICENSE "$stage/"
rm -rf "$stage"/dartquant/__pycache__ "$stage"/dartquant/libdartquant.so*
if [ "$what" = sdist ]; then # the sources that compile the library
    mkdir -p "$stage/native/tests"
    cp -r Makefile libdartquant include "$stage/native/"
    cp tests/tests.mk "$stage/native/tests/"
fi
dist=$(cd "$out/python/dist" && pwd)
rm -f "$dist"/dartquant-*"$([ "$what" = wheel ] && echo .whl || echo .tar.gz)"
build=$(cd "$out" && pwd)
cd "$stage"
DARTQUANT_BUILD=$build "$build/python/venv/bin/python" -c '
import sys
from setuptools import build_meta
kind, dist = sys.argv[1:]
print(dist + "/" + getattr(build_meta, "build_" + kind)(dist))' "$what" "$dist" > "$build/python/$what.log" 2>&1 || { tail -30 "$build/python/$what.log" >&2; exit 1; }
tail -1 "$build/python/$what.log"
