#!/usr/bin/env bash
# Every public header compiles alone as C99, C11 and C++17, with -pedantic -Werror. SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
status=0

# name, compiler, language, standard
try() {
    local name=$1 compiler=$2 language=$3 standard=$4 h text bad=""
    if ! command -v "$compiler" >/dev/null; then
        echo "note: $compiler is not installed, $name skipped"
        return
    fi
    for h in include/dartquant.h include/dartquant/*.h; do
        # Twice, so that a missing include guard shows.
        text=$(printf '#include "%s"\n#include "%s"\n' "${h#include/}" "${h#include/}" |
            "$compiler" -x "$language" -std="$standard" -pedantic -Wall -Wextra -Wundef -Werror -Iinclude -fsyntax-only - 2>&1) ||
            bad="$bad$h: $text"$'\n'
    done
    if [ -z "$bad" ]; then echo "ok headers_$name"; else
        echo "not ok headers_$name"
        echo "$bad"
        status=1
    fi
}
try gcc_c99 gcc c c99
try gcc_c11 gcc c c11
try gcc_cxx17 g++ c++ c++17
try clang_c99 clang c c99
try clang_c11 clang c c11
try clang_cxx17 clang++ c++ c++17

# The umbrella names every header but backend.h.
bad=""
for h in include/dartquant/*.h; do
    b=dartquant/$(basename "$h")
    if grep -q "#include \"$b\"" include/dartquant.h; then
        [ "$b" = dartquant/backend.h ] && bad="$bad $b"
    else
        [ "$b" = dartquant/backend.h ] || bad="$bad $b"
    fi
done
if [ -z "$bad" ]; then echo "ok umbrella_complete"; else
    echo "not ok umbrella_complete:$bad"
    status=1
fi

# No long, bool, enum or FILE * crosses the border: every function can be called from any language.
bad=$(for h in include/dartquant/*.h; do
    sed -e ':a' -e 's|/\*[^*]*\*\+\([^/*][^*]*\*\+\)*/||;ta' -e '/\/\*/{N;ba' -e '}' "$h" |
        grep -nE '\b(long|bool|_Bool|FILE|va_list)\b|\.\.\.' | sed "s|^|$h:|"
done)
if [ -z "$bad" ]; then echo "ok ffi_clean"; else
    echo "not ok ffi_clean"
    echo "$bad"
    status=1
fi
exit $status
