#!/usr/bin/env bash
# Runs the shell commands and the Python of docs/tutorial.md as they stand there, against the given build.
# Usage: run_tutorial.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${1:-build}
case $out in
    *sanitize*)
        echo "ok tutorial_skipped_under_sanitizers # its last part links an uninstrumented program"
        exit 0
        ;;
esac
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Blocks between ```sh and ```; 'make' alone is done already, and build/ is the given build.
python3 - "$work" "$out" <<'P'
import re, sys
work, out = sys.argv[1:]
blocks = re.findall(r"```sh\n(.*?)```", open("docs/tutorial.md").read(), re.S)
for i, b in enumerate(blocks):
    b = re.sub(r"^make\n", "", b)
    b = b.replace("build/tutorial", f"{work}/t").replace("$PWD/" + work, work).replace("build/bin", f"{out}/bin")
    b = b.replace("make install", f"make BUILD={out} install").replace("$PWD//", "/")
    open(f"{work}/{i:02}.sh", "w").write("set -eu\n" + b)
# The ```python blocks are one program in pieces.
program = "\n".join(re.findall(r"```python\n(.*?)```", open("docs/tutorial.md").read(), re.S))
open(f"{work}/tutorial.py", "w").write(program.replace("build/tutorial", f"{work}/t"))
P
# Each block in a shell of its own, with the exports of all.
for f in "$work"/[0-9]*.sh; do
    name=tutorial_$(basename "$f" .sh)
    exports=$(grep -h '^export' "$work"/[0-9]*.sh)
    if text=$(bash -c "$exports"$'\n'". '$f'" 2>&1); then echo "ok $name"; else
        echo "not ok $name"
        echo "$text" | tail -15
        status=1
    fi
done
# What the text claims: the saved model gives the same perplexity.
if [ -e "$work/t/w4a4kv4/dartquant.json" ] && [ -e "$work/t/from-c/dartquant.json" ]; then echo "ok tutorial_saved"; else
    echo "not ok tutorial_saved"
    status=1
fi
# The Python path, where NumPy can be had.
if text=$(tests/python/venv.sh "$out" 2>&1); then
    if text=$(PYTHONPATH=bindings/python DARTQUANT_LIBRARY=$(cd "$out" && pwd)/libdartquant.so PYTHONDONTWRITEBYTECODE=1 \
        "$out/python/venv/bin/python" "$work/tutorial.py" 2>&1) && [ -e "$work/t/from-python/dartquant.json" ]; then
        echo "ok tutorial_python"
    else
        echo "not ok tutorial_python"
        echo "$text" | tail -15
        status=1
    fi
else
    echo "note: no packages from PyPI, the Python part is skipped"
fi
exit $status
