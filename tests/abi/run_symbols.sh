#!/usr/bin/env bash
# What libdartquant.so exports and needs. Usage: run_symbols.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

check() { # name, text of what is wrong
    if [ -z "$2" ]; then echo "ok $1"; else
        echo "not ok $1"
        echo "$2"
        status=1
    fi
}

so=$out/libdartquant.so
[ -e "$so" ] || { echo "not ok library_built"; exit 1; }
case $out in
    *sanitize*) echo "note: a sanitized library carries the sanitizer's symbols; checking names only" ;;
esac

# Function names after DQ_API in the headers, comments removed.
for h in include/dartquant/*.h; do
    tr '\n' ' ' < "$h" | sed -E 's|/\*([^*]\|\*+[^*/])*\*+/| |g'
    echo
done | grep -oE 'DQ_API[^();]*\(' | grep -oE 'dq_[a-z0-9_]+[[:space:]]*\($' | tr -d ' (' | sort > "$work/headers"
grep -oE '^[[:space:]]+dq_[a-z0-9_*]+;' libdartquant/dartquant.map | tr -d ' ;' | sort > "$work/map"
nm -D --defined-only "$so" | awk '$2 != "A" {print $3}' | sed 's/@@.*//' | sort > "$work/library"
check headers_have_symbols "$([ "$(wc -l < "$work/headers")" -gt 60 ] || echo 'too few names found in the headers')"
check headers_equal_map "$(diff "$work/headers" "$work/map")"
check map_equals_library "$(diff "$work/map" "$work/library")"
check no_wildcard_export "$(sed -n '/global:/,/local:/p' libdartquant/dartquant.map | grep '\*;')"
check versioned "$(nm -D --defined-only "$so" | awk '$2 == "T"' | grep -vE '@@DARTQUANT_1\.[0-9]+$')"
check soname "$(readelf -d "$so" | grep -q 'SONAME.*\[libdartquant\.so\.1\]' || readelf -d "$so" | grep SONAME)"

case $out in
    *sanitize*) exit $status ;;
esac
# Libraries it may need: the ones of docs/architecture.md, and the C library.
readelf -d "$so" | sed -nE 's/.*NEEDED.*\[(.*)\]/\1/p' | sort > "$work/needed"
check needed_libraries "$(grep -vE '^(libopenblas\.so\.0|libjansson\.so\.4|libpcre2-8\.so\.0|libutf8proc\.so\.[0-9]+|libzip\.so\.[0-9]+|libz\.so\.1|libm\.so\.6|libc\.so\.6|libpthread\.so\.0|ld-linux.*)$' "$work/needed")"
# Nothing that ends the process, prints, takes signals or reads the environment.
check forbidden_imports "$(nm -D --undefined-only "$so" | awk '{print $2}' | sed 's/@.*//' |
    grep -xE 'abort|_exit|exit|quick_exit|printf|vprintf|puts|putchar|perror|fprintf|vfprintf|__(v?f?)printf_chk|fputs|fputc|fwrite|stdout|stderr|signal|sigaction|getenv|secure_getenv|system|fork|execv.*|popen|__assert_fail|rand|srand|random|setlocale|uselocale|chdir|umask')"
exit $status
