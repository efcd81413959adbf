#!/usr/bin/env bash
# dartquant calibrate and capture killed at any moment, and on full disks: what is left is whole, and what goes on gives the bits
# of a run that nobody disturbed. Usage: run_interrupted.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/cli/lib.sh
made_texts cal 2 30000
data="--cal_file $work/cal.txt --nsamples 4 --seqlen 64 --threads 1 --quiet"
fit="$data --ep 2 --quant_steps 4"
tensors() { # file: what follows the header
    python3 -c 'import struct, sys; b = open(sys.argv[1], "rb").read(); sys.stdout.buffer.write(b[8 + struct.unpack("<Q", b[:8])[0]:])' "$1"
}
# killed_after MILLISECONDS command...: true when the command was killed, false when it was faster
killed_after() {
    local ms=$1 pid
    shift
    "$@" > /dev/null 2> "$work/err" &
    pid=$!
    sleep "$(printf '%d.%03d' $((ms / 1000)) $((ms % 1000)))"
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    [ $? -eq 137 ]
}

# ---- calibrate, killed again and again: every process comes a little further ----
start=$(date +%s%N)
"$dq" calibrate $model $fit --out "$work/whole.safetensors" > /dev/null 2> "$work/err" || bad calibrate_undisturbed "$(cat "$work/err")"
whole=$((($(date +%s%N) - start) / 1000000))
kills=0
ms=$((whole / 16 + 2))
while [ $kills -lt 12 ] && killed_after $ms "$dq" calibrate $model $fit --out "$work/killed.safetensors" --checkpoint "$work/ck" --resume; do
    kills=$((kills + 1))
    ms=$((ms + whole / 24 + 1))
    [ -e "$work/killed.safetensors" ] || continue
    # killed with its work done: what stands there is whole
    cmp -s <(tensors "$work/whole.safetensors") <(tensors "$work/killed.safetensors") || bad nothing_before_the_end "a killed run left something else"
    break
done
[ -e "$work/killed.safetensors" ] && [ ! -e "$work/ck" ] || "$dq" calibrate $model $fit --out "$work/killed.safetensors" --checkpoint "$work/ck" --resume > /dev/null 2> "$work/err" || bad calibrate_goes_on "$(cat "$work/err")"
if [ $kills -gt 0 ] && cmp -s <(tensors "$work/whole.safetensors") <(tensors "$work/killed.safetensors"); then
    ok "calibrate_killed"
else bad calibrate_killed "after $kills kills: $(ls -l "$work"/*.safetensors 2>&1)"; fi
[ ! -e "$work/ck" ] && ok calibrate_leaves_no_checkpoint || bad calibrate_leaves_no_checkpoint "$(ls -R "$work/ck")"

# ---- capture, killed: run again it gives the same files ----
capture="$dq capture $model $data --capture_format both"
start=$(date +%s%N)
$capture --r_path "$work/cap" > /dev/null 2> "$work/err" || bad capture_undisturbed "$(cat "$work/err")"
whole=$((($(date +%s%N) - start) / 1000000))
kills=0
for n in 1 2 3 4 5 6; do
    killed_after $((whole * n / 7 + 1)) $capture --r_path "$work/again" && kills=$((kills + 1))
    # whatever stands there under its name is whole
    for f in $(cd "$work/again" 2>/dev/null && find . -name '*.safetensors' -o -name '*.pt'); do
        cmp -s "$work/again/$f" "$work/cap/$f" || bad capture_files_are_whole "$f after a kill"
    done
done
$capture --r_path "$work/again" > /dev/null 2> "$work/err" || bad capture_again "$(cat "$work/err")"
different=$(cd "$work/cap" && find . -type f ! -exec cmp -s {} "$work/again/{}" \; -print)
if [ $kills -gt 0 ] && [ -z "$different" ]; then ok capture_killed; else bad capture_killed "$kills kills; differ: $different"; fi

# ---- full disks: files cannot grow beyond some KiB ----
limited() { # KIB command...
    local kib=$1
    shift
    (
        trap '' XFSZ
        ulimit -f "$kib"
        "$@"
    ) > /dev/null 2> "$work/err"
}
for kib in 1 16 48; do
    limited $kib $capture --r_path "$work/full"
    code=$?
    if [ $code -eq 1 ] && [ ! -e "$work/full" ] && grep -qi 'large\|write' "$work/err"; then ok "capture_on_a_full_disk_$kib"; else
        bad "capture_on_a_full_disk_$kib" "exit status $code: $(ls -R "$work/full" 2>&1 | head -5) $(cat "$work/err")"
    fi
done
limited 60 "$dq" calibrate $model $fit --out "$work/disk.safetensors" --checkpoint "$work/dck"
code=$?
if [ $code -eq 1 ] && [ ! -e "$work/disk.safetensors" ]; then ok calibrate_on_a_full_disk; else
    bad calibrate_on_a_full_disk "exit status $code: $(cat "$work/err")"
fi
"$dq" calibrate $model $fit --out "$work/disk.safetensors" --checkpoint "$work/dck" --resume > /dev/null 2> "$work/err"
if cmp -s <(tensors "$work/whole.safetensors") <(tensors "$work/disk.safetensors"); then ok calibrate_after_a_full_disk; else
    bad calibrate_after_a_full_disk "$(cat "$work/err")"
fi
exit $status
