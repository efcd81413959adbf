# What the scripts of this folder share. They change to the repository's root and source it with the build folder as $1.
# SPDX-License-Identifier: Apache-2.0
out=${1:-build}
dq=$out/bin/dartquant
model=tests/data/tiny
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=tests/golden PYTHONDONTWRITEBYTECODE=1

ok() { echo "ok $1"; }
bad() { # name, reason
    echo "not ok $1"
    echo "  $2"
    status=1
}
verdict() { # name, 0 = good
    if [ "$2" -eq 0 ]; then ok "$1"; else bad "$1" "exit status $2"; fi
}
same() { # name, file, file
    if cmp -s "$2" "$3"; then ok "$1"; else bad "$1" "$2 and $3 differ"; fi
}
# made_texts NAME SEED SIZE ...: $work/NAME.txt
made_texts() {
    python3 - "$work" "$@" <<'P' || { echo "not ok test_text_made"; exit 1; }
import sys
from tiny_text import text
work, *rest = sys.argv[1:]
for name, seed, size in zip(*[iter(rest)] * 3):
    open(f"{work}/{name}.txt", "w").write(text(int(seed), int(size)))
P
}
# run NAME EXPECTED_STATUS arguments...: keeps $work/NAME.out and .err
run() {
    local name=$1 expected=$2 got
    shift 2
    timeout 120 "$dq" "$@" > "$work/$name.out" 2> "$work/$name.err"
    got=$?
    [ "$got" -eq "$expected" ] && return 0
    bad "$name" "exit status $got instead of $expected: $(head -c 400 "$work/$name.err")"
    return 1
}
# json NAME EXPECTED_STATUS 'python condition on r' arguments...: stdout must be exactly one line, one JSON object.
json() {
    local name=$1 expected=$2 condition=$3 text
    shift 3
    run "$name" "$expected" "$@" --json || return
    if text=$(python3 - "$work" "$name" "$condition" 2>&1 <<'P'
import json, math, sys
work, name, condition = sys.argv[1:]
def load(n):
    lines = open(f"{work}/{n}.out").read().splitlines()
    assert len(lines) == 1, f"{len(lines)} lines on stdout"
    value = json.loads(lines[0], parse_constant=lambda c: (_ for _ in ()).throw(ValueError(c)))
    assert isinstance(value, dict)
    return value
r = load(name)
assert eval(condition), f"condition is false for {json.dumps(r)[:600]}"
P
    ); then ok "$name"; else bad "$name" "$text"; fi
}
# says NAME EXPECTED_STATUS 'text on stderr' arguments...
says() {
    local name=$1 expected=$2 pattern=$3
    shift 3
    run "$name" "$expected" "$@" || return
    if grep -qE -- "$pattern" "$work/$name.err"; then ok "$name"; else
        bad "$name" "stderr lacks \"$pattern\": $(head -c 400 "$work/$name.err")"
    fi
}
