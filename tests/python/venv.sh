#!/usr/bin/env bash
# venv.sh BUILD: a virtual environment for the Python package's tools and tests, made once in BUILD/python/venv; fails when
# pip cannot fetch what belongs in it. SPDX-License-Identifier: Apache-2.0
set -eu
venv=$1/python/venv
wanted="setuptools>=70.1 numpy pytest matplotlib tqdm"
[ "$(cat "$venv/.ready" 2>/dev/null)" = "$wanted" ] && exit 0
mkdir -p "$1/python"
python3 -m venv "$venv"
# shellcheck disable=SC2086
"$venv/bin/python" -m pip install -q --disable-pip-version-check --retries 1 --timeout 20 $wanted >&2
echo "$wanted" > "$venv/.ready"
