#!/usr/bin/env bash
# What capture, calibrate and quantize --r1_path say to bad input: files that are no rotations (nothing of them is run),
# activations that overflow, captured numbers that are none, no text, text of one token, a rate that diverges.
# Usage: run_calibrate_bad.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/cli/lib.sh
tells() { # NAME EXPECTED_STATUS pattern arguments...
    local name=$1 expected=$2 pattern=$3 got
    shift 3
    timeout 120 "$dq" "$@" --json > "$work/out" 2> "$work/err"
    got=$?
    if [ "$got" -eq "$expected" ] && { [ -z "$pattern" ] || grep -qE -- "$pattern" "$work/err"; }; then ok "$name"; else
        bad "$name" "exit status $got instead of $expected, or not \"$pattern\": $(head -c 400 "$work/err")"
    fi
}
holds() { # NAME 'python condition on r', the output of the last tells
    if text=$(python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); sys.exit(not eval(sys.argv[2]))' "$work/out" "$2" 2>&1)
    then ok "$1"; else bad "$1" "$2 is false: $cal $(head -c 600 "$work/out")"; fi
}

# ---- files that are no rotations ----
python3 tests/cli/bad_files.py "$work" 64 4 || { echo "not ok bad_files_made"; exit 1; }
made_texts cal 2 30000
q="quantize $model --ppl_eval --text_file $work/cal.txt --seqlen 64 --limit 1"
tells r1_good 0 '' $q --r1_path "$work/good.pt"
tells r1_runs_a_command 1 "system.pt.*the global 'posix.system' is refused" $q --r1_path "$work/system.pt"
tells r1_command_beside_it 1 "beside.bin.*the global 'posix.system' is refused" $q --r1_path "$work/beside.bin"
tells r1_eval 1 "eval.pt.*eval' is refused" $q --r1_path "$work/eval.pt"
tells r1_bare_pickle 1 'bare.pt: a bare pickle' $q --r1_path "$work/bare.pt"
tells r1_other_weights 1 'weights.bin: no tensor "R1"' $q --r1_path "$work/weights.bin"
tells r1_no_tensors 1 'numbers.pt: no tensor "R1"' $q --r1_path "$work/numbers.pt"
tells r1_integers 1 'type I64 cannot be read' $q --r1_path "$work/integers.pt"
tells r1_other_size 1 'R1 has shape \[32, 32\], the model needs \[64, 64\]' $q --r1_path "$work/small.pt"
tells r1_not_orthogonal 1 'R1 is not orthogonal: max \|R\^T R - I\| = 0.25, allowed' $q --r1_path "$work/skew.pt"
tells r1_nan 1 'R1 contains NaN or Inf' $q --r1_path "$work/nan.pt"
tells r1_text 1 'text.pt: is neither safetensors nor GGUF nor a PyTorch archive' $q --r1_path "$work/text.pt"
tells r1_empty 1 'empty.bin: is neither' $q --r1_path "$work/empty.bin"
tells r1_absent 1 'absent.pt' $q --r1_path "$work/absent.pt"
tells r1_model_itself 1 'no tensor "R1"' $q --r1_path $model/model.safetensors
tells r2_runs_a_command 1 "the global 'posix.system' is refused" $q --r2_path "$work/system.pt"
tells r2_too_many_layers 1 'holds "model.layers.4.self_attn.R2", the model has only 4' $q --r2_path "$work/deep.pt"
tells r2_too_few_layers 1 'no tensor "model.layers.3.self_attn.R2"' $q --r2_path "$work/shallow.pt"
c="--nsamples 4 --seqlen 64 --out $work/r.safetensors"
for t in r1 r2; do
    tells data_runs_a_command_$t 1 "hostile.*the global 'posix.system' is refused" calibrate $model $c --target $t --data "$work/hostile"
done
tells data_no_tokens 1 'q_proj.pt: no tokens' calibrate $model $c --target r1 --data "$work/none"
[ ! -e "$work/owned" ] && ok nothing_was_run || bad nothing_was_run "a file's pickle was executed"

# ---- numbers that are none ----
mkdir "$work/over"
python3 - $model "$work/over" <<'P'
import json, shutil, struct, sys
source, target = sys.argv[1:]
for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
    shutil.copy(f"{source}/{name}", target)
b = bytearray(open(f"{source}/model.safetensors", "rb").read())
n = struct.unpack("<Q", b[:8])[0]
for name, t in json.loads(b[8:8 + n]).items():
    if name in ("model.layers.2.mlp.gate_proj.weight", "model.layers.2.mlp.up_proj.weight"):
        assert t["dtype"] == "BF16"
        for i in range(8 + n + t["data_offsets"][0], 8 + n + t["data_offsets"][1], 2):
            x = struct.unpack_from("<H", b, i)[0]
            struct.pack_into("<H", b, i, x + (100 << 7) if x & 0x7F80 else x)  # times 2^100
open(f"{target}/model.safetensors", "wb").write(b)
P
cal="--cal_file $work/cal.txt"
tells overflow_calibrate 1 'layer 2: the result of token [0-9]+ in window [0-3] is NaN or infinite' calibrate "$work/over" $cal $c
tells overflow_capture 1 'layer 2: the result of token [0-9]+ in window [0-3] is' capture "$work/over" $cal --nsamples 4 --seqlen 64 --r_path "$work/none_left"
[ -z "$(find "$work/none_left" -type f 2>/dev/null)" ] && [ ! -e "$work/r.safetensors" ] && ok nothing_left || bad nothing_left "$(find "$work/none_left")"
tells captured 0 '' capture $model $cal --nsamples 4 --seqlen 64 --r_path "$work/cap" --capture_format upstream
python3 - "$work/cap/r1_train/sample_3_layer_1_self_attn_q_proj.pt" 50 "$work/cap/r2_train/layer_0_self_attn_o_proj.pt" 130 <<'P'
import sys, zipfile
for path, token in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    with zipfile.ZipFile(path) as z:
        entries = {i.filename: bytearray(z.read(i)) for i in z.infolist()}
    data = next(v for k, v in entries.items() if k.endswith("/data/0"))
    data[(token * 64 + 5) * 2 + 1] = 0x7F
    data[(token * 64 + 5) * 2] = 0xC0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        for k, v in entries.items():
            z.writestr(k, bytes(v))
P
tells captured_nan_r1 1 'sample_3_layer_1_self_attn_q_proj.pt: layer 1: the input of q_proj of token 50 ' calibrate $model $c --target r1 --data "$work/cap"
tells captured_nan_r2 1 'layer_0_self_attn_o_proj.pt: layer 0: the input of o_proj of token 2 in window 2' calibrate $model $c --target r2 --data "$work/cap"

# ---- hardly any text ----
: > "$work/empty.txt"
yes a | head -n 3000 | tr '\n' ' ' > "$work/same.txt"
tells no_text 1 "the text of 'empty.txt' is empty" calibrate $model --cal_file "$work/empty.txt" $c
printf 'Once upon a time' > "$work/short.txt"
tells short_text 1 'tokens; drawing windows of 64 needs at least 65' calibrate $model --cal_file "$work/short.txt" $c
tells no_windows 2 'nsamples' calibrate $model $cal $c --nsamples 0
tells one_token_for_ever 0 '' calibrate $model --cal_file "$work/same.txt" $c
holds one_token_for_ever_learns 'r["orthogonality_error"] < 1e-12 and all(x["kinds"][0]["error_after"] <= x["kinds"][0]["error_before"] for x in r["rotations"])'

# ---- a rate that is far too high ----
tells diverges 0 'warning: R2 of layer [0-3]: the loss diverged at step [0-9]+: ' calibrate $model $cal $c --method newton-schulz --lr 1e30 --ep 20 --quant_steps 0 --bsz 1
holds diverges_is_reported 'r["orthogonality_error"] < 1e-12 and any(x["diverged"] and x["diverged"]["step"] > 0 for x in r["rotations"]) and all(x["loss_after"] <= x["loss_before"] for x in r["rotations"])'
tells diverged_is_a_rotation 0 '' $q --r1_path "$work/r.safetensors" --r2_path "$work/r.safetensors"
exit $status
