# Sourced by the scripts of this folder: where the programs of $out find their libraries. A kit brings its own; CUDA's may
# lie beside nvcc or, where Python packages brought them, in the interpreter's folders. DQ_LIBRARY_PATH is for our programs
# alone (`ours COMMAND`, and report.py): a kit's libraries would not do for that machine's Python.
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
libs=
if [ -d "$out/lib" ]; then libs=$(realpath "$out"):$(realpath "$out/lib"); fi
plugin=$out/dartquant/backends-1/libdartquant-cuda.so
ours() { LD_LIBRARY_PATH="$libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "$@"; }
missing() { ours ldd "$plugin" 2>/dev/null | grep -q 'not found'; }
if [ -f "$plugin" ] && missing; then
    for folder in /usr/local/cuda/lib64 /usr/local/cuda*/targets/*/lib \
        $(python3 -c 'import glob, site, sys
for p in sys.path + site.getsitepackages():
    print(*glob.glob(p + "/nvidia/*/lib"))' 2>/dev/null | tr ' ' '\n' | sort -u); do
        ls "$folder"/lib*.so* > /dev/null 2>&1 || continue
        libs=${libs:+$libs:}$folder
        missing || break
    done
fi
export DQ_LIBRARY_PATH=$libs
