#!/usr/bin/env bash
# The Python package: interface table, tests, and the wheel in a clean environment. Usage: run_python.sh [BUILD]
# SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
out=${1:-build}
status=0
case $out in
    *sanitize*)
        echo "ok python_skipped_under_sanitizers # the interpreter is not instrumented"
        exit 0
        ;;
esac
build=$(cd "$out" && pwd)
export DARTQUANT_LIBRARY=$build/libdartquant.so DARTQUANT_TEST_BUILD=$build PYTHONDONTWRITEBYTECODE=1
# Needs nothing but Python.
PYTHONPATH=bindings/python python3 bindings/python/tests/parity.py || status=1

if ! text=$(tests/python/venv.sh "$out" 2>&1); then
    echo "note: no packages from PyPI, the other Python tests are skipped: $(tail -1 <<< "$text")"
    exit $status
fi
text=$(PYTHONPATH=$PWD/bindings/python "$build/python/venv/bin/python" -m pytest -p no:cacheprovider -rA -q --tb=short \
    --basetemp="$build/python/tmp" bindings/python/tests 2>&1)
result=$?
# "PASSED path::name[parameters]" at the start of a line; parameters may hold anything, so they become one word.
sed -nE 's/^PASSED [^:]*::(.*)$/\1/p' <<< "$text" | sed -E 's/[^A-Za-z0-9_]+/_/g; s/_+$//; s/^/ok python_/' | cut -c1-90
sed -nE 's/^(FAILED|ERROR) [^:]*::([^ ]*).*$/\2/p' <<< "$text" | sed -E 's/[^A-Za-z0-9_]+/_/g; s/^/not ok python_/' | cut -c1-90
if [ $result -ne 0 ]; then
    grep -q '^FAILED\|^ERROR' <<< "$text" || echo "not ok python_pytest"
    grep -vE '^PASSED' <<< "$text" | tail -60
    status=1
fi

# A wheel, in an environment that knows nothing of the source tree. NumPy is lent from the other one: it is not under test.
unset DARTQUANT_LIBRARY
clean=$build/python/clean
rm -rf "$clean"
if wheel=$(tests/python/package.sh wheel "$out") && python3 -m venv --without-pip "$clean" &&
    site=$("$clean/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    "$build/python/venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --no-index --target "$site" "$wheel"; then
    lent=$("$build/python/venv/bin/python" -c 'import numpy, os; print(os.path.dirname(numpy.__path__[0]))')
    for part in numpy numpy.libs; do [ -e "$lent/$part" ] && ln -s "$lent/$part" "$site/$part"; done
    found=$(cd / && "$clean/bin/python" - "$OLDPWD/tests/data/tiny" 2>&1 <<'P'
import os, sys
import dartquant
package = os.path.dirname(dartquant.__file__)
assert dartquant.library_path.startswith(package + "/libdartquant.so"), dartquant.library_path
assert os.path.exists(package + "/py.typed")
model = dartquant.Model.open(sys.argv[1])
small = model.quantize(w_bits=4, w_rtn=True)
print("works", small.logits(model.tokenize("Once upon a time")).shape)
P
    )
    if grep -q '^works (6, 512)\|^works ([0-9]*, 512)' <<< "$found"; then echo "ok python_wheel"; else
        echo "not ok python_wheel"
        echo "$found"
        status=1
    fi
else
    echo "not ok python_wheel"
    status=1
fi
exit $status
