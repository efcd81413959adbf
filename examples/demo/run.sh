#!/usr/bin/env bash
# make demo: obtains a model and text, then runs the main job for a table of schemes.
# SPDX-License-Identifier: Apache-2.0
set -eu
out=${1:-build}
here=$(cd "$(dirname "$0")" && pwd)
if model=$("$here/fetch_model.sh" "$out" 2>"$out/fetch.log"); then
    echo "model: SmolLM2-135M-Instruct ($model)"
else
    model="$here/../../tests/data/tiny"
    tail -n 2 "$out/fetch.log" >&2
    echo "SmolLM2 could not be obtained (see $out/fetch.log); using the tiny model of tests/data/tiny instead."
    echo "Its numbers show that the pipeline works, not how good it is."
fi
# The plot needs matplotlib; a private environment keeps the system clean. Without it the table is still printed.
python="$out/venv/bin/python"
if ! "$python" -c 'import matplotlib' 2>/dev/null; then
    echo "installing matplotlib into $out/venv for the plot"
    python3 -m venv "$out/venv" 2>/dev/null &&
        "$out/venv/bin/pip" install --quiet --disable-pip-version-check matplotlib 2>>"$out/fetch.log" || true
fi
"$python" -c 'import matplotlib' 2>/dev/null || python=python3
exec "$python" "$here/demo.py" --program "$out/bin/dartquant" --model "$model" --out "$out/demo" ${DEMO_FLAGS:-}
