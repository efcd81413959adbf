#!/usr/bin/env bash
# Runs every test program under $1/tests and every script tests/*/run_*.sh; ends with 'N passed, N failed'.
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root" || exit 1
passed=0
failed=0
log="$out/test.log"
mkdir -p "$out"
: > "$log"

# A program prints cmocka's "[       OK ]" / "[  FAILED  ]" lines; a script prints "ok NAME" / "not ok NAME" lines.
# Dying without a failed line counts as one failure.
run() {
    local name=$1; shift
    local text status ok bad
    text=$("$@" 2>&1); status=$?
    printf '== %s\n%s\n' "$name" "$text" >> "$log"
    ok=$(grep -cE '^\[       OK \]|^ok ' <<< "$text")
    bad=$(grep -cE '^\[  FAILED  \] [A-Za-z_0-9]+$|^not ok ' <<< "$text")
    if [ "$status" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    if [ "$status" -eq 0 ] && [ "$ok" -eq 0 ]; then bad=1; text="$text"$'\n'"no test ran"; fi
    passed=$((passed + ok)); failed=$((failed + bad))
    if [ "$bad" -gt 0 ]; then
        echo "FAIL $name (exit $status)"
        grep -vE '^\[ RUN      \]|^\[       OK \]|^ok ' <<< "$text" | tail -40
    else
        echo "pass $name ($ok)"
    fi
}

for t in $(find "$out/tests" -type f -name 'test_*' ! -name '*.d' 2>/dev/null | sort); do
    run "${t#"$out"/tests/}" "$t"
done
for s in $(find tests -name 'run_*.sh' | sort); do
    run "${s#tests/}" bash "$s" "$out"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
