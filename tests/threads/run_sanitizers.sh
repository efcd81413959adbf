#!/usr/bin/env bash
# Threaded tests under ThreadSanitizer, and the whole pipeline under valgrind's memcheck. Usage: run_sanitizers.sh [BUILD].
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
case $out in
    *sanitize*) echo "note: done with the ordinary build"; echo "ok sanitizers_passed_over"; exit 0 ;;
esac
status=0
cc=${CC:-cc}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

result() { # name, exit status, log
    if [ "$2" -eq 0 ]; then echo "ok $1"; else
        echo "not ok $1"
        tail -40 "$3"
        status=1
    fi
}

# ---- ThreadSanitizer: the library and these tests in a build of their own, kept for the next time ----
programs="unit/test_threads unit/test_guard"
export TSAN_OPTIONS="exitcode=66 halt_on_error=0 second_deadlock_stack=1"
echo 'int main(void) { return 0; }' > "$work/empty.c"
if ! { $cc -fsanitize=thread "$work/empty.c" -o "$work/empty" && "$work/empty"; } > "$work/log" 2>&1; then
    echo "note: ThreadSanitizer does not run here: $(head -1 "$work/log")"
else
    $cc -fsanitize=thread -g tests/threads/seeded_race.c -o "$work/race" > "$work/log" 2>&1
    "$work/race" > "$work/log" 2>&1
    [ $? -eq 66 ] && grep -q 'data race' "$work/log"
    result tsan_notices_a_race $? "$work/log"
    tsan=$out/sanitize-thread
    make --no-print-directory -s -j"${JOBS:-$(nproc)}" BUILD="$out" SANITIZE=thread CFLAGS='-O1 -g1' \
        $(for p in $programs; do echo "$tsan/tests/$p"; done) > "$work/log" 2>&1
    result tsan_builds $? "$work/log"
    for p in $programs; do
        timeout 120 "$tsan/tests/$p" > "$work/log" 2>&1 && ! grep -q 'WARNING: ThreadSanitizer' "$work/log"
        result "tsan_${p#*/}" $? "$work/log"
    done
fi

# ---- valgrind: open, fuse, rotate, GPTQ, measure, save; then open what was saved ----
if ! command -v valgrind > /dev/null; then
    echo "note: valgrind is not installed"
else
    # It knows no AVX-512 and no AMX; the library sees that from cpuid.
    check="valgrind -q --error-exitcode=9 --leak-check=full --errors-for-leak-kinds=definite,possible"
    $cc -O0 -g tests/threads/seeded_fault.c -o "$work/fault" > "$work/log" 2>&1
    $check "$work/fault" > "$work/log" 2>&1
    [ $? -eq 9 ] && grep -q 'uninitialised' "$work/log" && grep -q 'definitely lost' "$work/log"
    result memcheck_notices_faults $? "$work/log"
    head -c 6000 docs/formats.md > "$work/text"
    common=(--text_file "$work/text" --seqlen 32 --limit 2 --threads 2 --quiet)
    timeout 120 $check "$out/bin/dartquant" quantize tests/data/tiny --w_bits 4 --w_groupsize 32 --a_bits 4 --k_bits 4 \
        --v_bits 4 --cal_file "$work/text" --nsamples 2 --ppl_eval --save_qmodel_path "$work/saved" "${common[@]}" > "$work/log" 2>&1
    result memcheck_quantize $? "$work/log"
    timeout 120 $check "$out/bin/dartquant" ppl "$work/saved" --simd plain "${common[@]}" > "$work/log" 2>&1
    result memcheck_ppl_of_saved $? "$work/log"
fi
exit $status
