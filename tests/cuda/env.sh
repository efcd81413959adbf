# Sourced by the scripts of this folder: where the programs of $out find their libraries. A kit brings its own; CUDA's may
# lie beside nvcc or, where Python packages brought them, in the interpreter's folders. SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
if [ -d "$out/lib" ]; then export LD_LIBRARY_PATH="$PWD/$out:$PWD/$out/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"; fi
plugin=$out/dartquant/backends-1/libdartquant-cuda.so
missing() { ldd "$plugin" 2>/dev/null | grep -q 'not found'; }
if [ -f "$plugin" ] && missing; then
    for folder in /usr/local/cuda/lib64 /usr/local/cuda*/targets/*/lib \
        $(python3 -c 'import glob, site, sys
for p in sys.path + site.getsitepackages():
    print(*glob.glob(p + "/nvidia/*/lib"))' 2>/dev/null | tr ' ' '\n' | sort -u); do
        [ -d "$folder" ] || continue
        ls "$folder"/libcublas.so.* "$folder"/libcusolver.so.* > /dev/null 2>&1 || ls "$folder"/libcu*.so* > /dev/null 2>&1 || continue
        export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
        missing || break
    done
fi
