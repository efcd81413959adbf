#!/usr/bin/env bash
# One command to each format of other programs; what stands there opens again with the perplexity that was stated.
# Usage: run_formats.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/cli/lib.sh
made_texts cal 2 30000 eval 3 6000
p="--text_file $work/eval.txt --seqlen 128"
ppl() { python3 -c 'import json, sys; print(repr(json.load(open(sys.argv[1]))["results"][0]["ppl"]))' "$1"; }
# quantizes and exports in one go; the folder alone gives the same perplexity
both() { # format, path to open, options...
    local f=$1 path=$2 name=${1//[:.]/_} a b
    shift 2
    timeout 120 "$dq" quantize $model "$@" --export "$f" --out "$work/$name" --ppl_eval $p --json > "$work/$name.json" 2> "$work/err" &&
        timeout 60 "$dq" ppl "$work/$path" $p --json > "$work/$name.again.json" 2>> "$work/err" || {
        cat "$work/err"
        verdict "$name" 1
        return
    }
    a=$(ppl "$work/$name.json") b=$(ppl "$work/$name.again.json")
    [ -n "$a" ] && [ "$a" = "$b" ]
    verdict "$name" $?
}
r="--w_rtn --w_groupsize 64"
both gptq gptq --no_rotation --w_bits 4 $r
both gptq_v2 gptq_v2 --no_rotation --w_bits 3 --w_asym --w_groupsize 32 --act_order --cal_file "$work/cal.txt" --nsamples 8 --seqlen 128
both awq awq --no_rotation --w_bits 4 --w_asym $r
mv "$work/awq" "$work/awq_plain"
both awq awq --no_rotation --w_bits 4 --w_asym --w_awq --w_clip --cal_file "$work/cal.txt" --nsamples 8 --seqlen 128 $r
! cmp -s "$work/awq/model.safetensors" "$work/awq_plain/model.safetensors"
verdict awq_scales_are_in_the_file $?
both compressed-tensors compressed-tensors --w_bits 4 $r --use_r3 false
both compressed-tensors:int-quantized compressed-tensors_int-quantized --no_rotation --w_bits 8 --w_rtn
both gguf:q4_0 gguf_q4_0/model.gguf --no_rotation --w_bits 4 $r
both gguf:q4_1 gguf_q4_1/model.gguf --no_rotation --w_bits 4 --w_asym $r
both gguf:q5_0 gguf_q5_0/model.gguf --no_rotation --w_bits 5 $r
both gguf:q5_1 gguf_q5_1/model.gguf --no_rotation --w_bits 5 --w_asym $r
both gguf:q8_0 gguf_q8_0/model.gguf --no_rotation --w_bits 8 $r
both gguf:q4_k gguf_q4_k/model.gguf --no_rotation --w_bits 16
both gguf:q6_k gguf_q6_k/model.gguf --no_rotation --w_bits 16
both gguf:f16 gguf_f16/model.gguf --use_r4 false --use_r3 false --w_bits 16
both gguf:bf16 gguf_bf16/model.gguf --no_rotation --w_bits 16
both hf:f32 hf_f32 --use_r4 false --use_r3 false --w_bits 4 $r
both hf:bf16 hf_bf16 --no_rotation --w_bits 16
both diffulex-gptq diffulex-gptq --no_rotation --w_bits 16
both diffulex-awq diffulex-awq --no_rotation --w_bits 16

# ---- a file to another format, the codes untouched ----
timeout 60 "$dq" export "$work/gptq" --format compressed-tensors --out "$work/ct2" > /dev/null 2>&1 &&
    timeout 60 "$dq" export "$work/ct2" --format gptq --out "$work/gptq2" > /dev/null 2>&1
cmp -s "$work/gptq/model.safetensors" "$work/gptq2/model.safetensors"
verdict gptq_to_compressed_tensors_and_back $?

# ---- the shortest way ----
timeout 120 "$dq" quantize-model --model-path $model --output-path "$work/qm" --quant-format gptq --group-size 64 --bits 4 \
    --cal_file "$work/cal.txt" --nsamples 8 --seqlen 128 > /dev/null 2> "$work/err" && [ -f "$work/qm/quantize_config.json" ]
verdict quantize_model_gptq $?
timeout 120 "$dq" quantize-model --model-path $model --output-path "$work/qa" --quant-format awq --group-size 32 --bits 4 > /dev/null 2> "$work/err" &&
    grep -q '"awq"' "$work/qa/config.json" && grep -q "without AWQ" "$work/err"
verdict quantize_model_awq $?
timeout 120 "$dq" quantize-model --model-path $model --output-path "$work/qb" --quant-format awq --group-size 32 --bits 4 \
    --cal_file "$work/cal.txt" --nsamples 8 --seqlen 128 > /dev/null 2> "$work/err" && grep -q '"awq"' "$work/qb/config.json" &&
    ! cmp -s "$work/qa/model.safetensors" "$work/qb/model.safetensors"
verdict quantize_model_awq_calibrated $?

# ---- refused before any work, and nothing is left ----
refuses() { # name, word, arguments
    local name=$1 word=$2
    shift 2
    if timeout 60 "$dq" "$@" --out "$work/refused" > /dev/null 2> "$work/err"; then verdict "$name" 1; else
        grep -q -- "$word" "$work/err" && [ ! -e "$work/refused" ] && [ -z "$(find "$work" -name '*.tmp.*')" ]
        verdict "$name" $?
    fi
}
refuses refuses_r4 R4 quantize $model --w_bits 4 --w_rtn --export gptq
refuses refuses_asymmetric gptq_v2 quantize $model --no_rotation --w_bits 4 --w_rtn --w_asym --export gptq
refuses refuses_plain "quantize it first" export $model --format awq
refuses refuses_unknown "no export format" export $model --format gptq_v9
refuses refuses_twice "gguf:q4_0 holds the codes" export "$work/gptq" --format gguf:q8_0
timeout 60 "$dq" export $model --format hf --out "$work/gptq" > /dev/null 2> "$work/err"
[ $? -eq 1 ] && grep -q "not empty" "$work/err" && [ -f "$work/gptq/model.safetensors" ]
verdict refuses_used_folder $?
exit $status
