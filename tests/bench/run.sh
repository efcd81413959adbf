#!/usr/bin/env bash
# make bench: ours against PyTorch, transformers and llama.cpp, in turns in one run.
# BENCH_FLAGS="--only forward,ppl,generate,kernels,calib,calibrate,pipeline,memory --repeat 3" narrows or repeats it.
# SPDX-License-Identifier: Apache-2.0
set -eu
out=${1:-build}
here=$(cd "$(dirname "$0")" && pwd)
python="$out/bench-venv/bin/python"
if ! "$python" -c 'import torch, transformers, gguf, accelerate, xllamacpp' 2>/dev/null; then
    echo "setting up $out/bench-venv (torch, transformers, gguf, accelerate, xllamacpp)"
    python3 -m venv "$out/bench-venv"
    "$out/bench-venv/bin/pip" install --quiet --disable-pip-version-check numpy torch transformers gguf accelerate xllamacpp
fi
model=$("$here/../../examples/demo/fetch_model.sh" "$out")
make --no-print-directory bench-programs >&2
eval "set -- ${BENCH_FLAGS:-}" # words of the flags may be quoted
exec "$python" "$here/bench.py" --build "$out" --model "$model" "$@"
