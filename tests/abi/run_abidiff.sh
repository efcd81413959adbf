#!/usr/bin/env bash
# Compares the library's binary interface with the committed baseline (abidiff, libabigail), and tries the comparison on
# seeded changes. Usage: run_abidiff.sh [BUILD] [--baseline]: with --baseline writes the baseline anew.
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
baseline=tests/abi/dartquant-1.abi
so=$out/libdartquant.so
status=0
case $out in
    *sanitize*)
        echo "ok abidiff_skipped_under_sanitizers # the interface is that of the ordinary build"
        exit 0
        ;;
esac
[ -e "$so" ] || { echo "not ok library_built"; exit 1; }
command -v abidiff >/dev/null || { echo "not ok abidiff_installed # tests/setup.sh test"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# library, folder of headers: the interface as text, without names of folders and lines, so that it changes only when the
# interface does. What the public headers leave opaque is opaque here.
interface() {
    abidw --headers-dir "$2" --drop-private-types --exported-interfaces-only --drop-undefined-syms --no-show-locs \
        --no-comp-dir-path --no-corpus-path --no-architecture --no-elf-needed --no-parameter-names \
        --no-write-default-sizes "$1"
}
# old, new interface: prints what broke; fails for any difference that allowed.suppr does not name.
compare() {
    abidiff --suppressions tests/abi/allowed.suppr --no-added-syms --no-show-locs --no-unreferenced-symbols "$1" "$2" || return
    python3 tests/abi/open_structs.py tests/abi/allowed.suppr "$1" "$2"
}

interface "$so" include > "$work/now.abi" || { echo "not ok interface_read"; exit 1; }
# Without debug information there would be symbols only, and nothing to compare.
if ! grep -q "class-decl name='dq_services'" "$work/now.abi"; then
    echo "not ok interface_has_types # the library needs to be built with -g"
    exit 1
fi
if [ "${2:-}" = --baseline ]; then
    cp "$work/now.abi" "$baseline"
    echo "written: $baseline ($(wc -c < "$baseline") bytes)"
    exit 0
fi
if text=$(compare "$baseline" "$work/now.abi" 2>&1); then echo "ok abi_unchanged"; else
    echo "not ok abi_unchanged"
    echo "$text"
    status=1
fi
if grep -qE "='/|comp-dir-path|filepath=" "$baseline"; then
    echo "not ok abi_baseline_without_paths"
    status=1
else echo "ok abi_baseline_without_paths"; fi

# name, header and sed script that change it, further flags: the shim's interface in $work/NAME.abi
variant() {
    local name=$1 header=$2 edit=$3
    shift 3
    rm -rf "$work/include"
    cp -r include "$work/include"
    sed -i -E "$edit" "$work/include/dartquant/$header"
    if [ -n "$edit" ] && cmp -s "include/dartquant/$header" "$work/include/dartquant/$header"; then
        echo "the edit of $header changed nothing" >&2
        return 1
    fi
    "${CC:-gcc}" -std=c11 -g -O0 -fPIC -fvisibility=hidden -shared "$@" -I"$work/include" tests/abi/shim.c \
        -o "$work/shim.so" && interface "$work/shim.so" "$work/include" > "$work/$name.abi"
}
# expected (breaks|allowed), pattern its report must have, then as for variant
seeded() {
    local expected=$1 pattern=$2 name=$3 text result
    shift 2
    if ! variant "$@"; then
        echo "not ok abi_$name"
        status=1
        return
    fi
    text=$(compare "$work/shim.abi" "$work/$name.abi" 2>&1)
    result=$?
    # As abidiff says it: bit 0 and 1 = could not compare, bit 2 = a change.
    if [ "$expected" = allowed ] && [ $result -eq 0 ]; then echo "ok abi_allows_$name"
    elif [ "$expected" = breaks ] && [ $((result & 3)) -eq 0 ] && [ $((result & 4)) -ne 0 ] &&
        grep -q "$pattern" <<< "$text"; then
        echo "ok abi_catches_$name"
    else
        echo "not ok abi_$name (expected: $expected, abidiff $result)"
        echo "$text"
        status=1
    fi
}
variant shim types.h "" || { echo "not ok abi_shim"; exit 1; }
seeded allowed "" nothing types.h ""
seeded breaks dq_services member_inserted context.h 's/^( +)dq_runner runner;/\1uint64_t inserted;\n&/'
seeded breaks dq_progress_event member_of_other_type progress.h 's/^( +)uint64_t total;/\1double total;/'
seeded breaks dq_services grown_and_changed context.h 's/^( +)void \*log_user;/\1uint64_t log_user;/; s/^\} dq_services;/    uint64_t grown;\n&/'
seeded breaks dq_tensor_sink slot_changed source.h 's/^( +dq_status \(\*append\)\(.*)uint64_t bytes/\1uint32_t bytes/'
seeded breaks dq_tensor_sink member_removed source.h 's/^ +dq_status \(\*finish\)\(void \*user\);//'
seeded breaks dq_view closed_struct_grown backend.h 's/^\} dq_view;/    int64_t grown;\n&/'
seeded breaks dq_progress callback_changed progress.h 's/(dq_progress_fn\)\()void \*user, /\1/; s/^typedef int32_t \(\*dq_progress_fn/&/' \
    -Dprogress\(a,b\)=progress\(b\)
seeded breaks shim_backend function_removed types.h "" -DSHIM_WITHOUT_BACKEND
seeded allowed "" open_struct_grown context.h 's/^\} dq_services;/    uint64_t grown;\n&/'
seeded allowed "" backend_slot_appended backend.h 's/^\} dq_backend;/    dq_status (*more)(void *dev);\n&/'
seeded allowed "" function_added types.h "" -DSHIM_WITH_MORE
exit $status
