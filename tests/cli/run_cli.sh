#!/usr/bin/env bash
# The dartquant program on the tiny model: every subcommand, its JSON, its exit status, wrong usage, bad input, Ctrl-C.
# Usage: run_cli.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/cli/lib.sh
made_texts cal 2 30000 eval 3 12000 long 5 400000

# ---- usage ----
for sub in info tokenize logits ppl capture calibrate quantize bench; do
    run "help_$sub" 0 "$sub" --help && { grep -q "usage: dartquant $sub" "$work/help_$sub.out" && ok "help_$sub" || bad "help_$sub" "no usage line"; }
done
run overview 0 --help && ok overview
run version 0 --version && ok version
run no_arguments 2 && ok no_arguments
says unknown_subcommand 2 'no subcommand' frobnicate
says unknown_flag 2 'did you mean "w_bits"' quantize $model --w_bist 4
says foreign_flag 2 'no option of info' info $model --w_bits 4
says flag_without_value 2 'needs a value' ppl $model --text_file
says value_out_of_bounds 2 'w_bits' quantize $model --w_bits 40
says value_not_a_number 2 'percdamp' quantize $model --percdamp much
says bad_switch_value 2 'true or false' quantize $model --w_asym=perhaps
says no_model 2 'needs a MODEL' info
says two_models 2 'too many' info $model $model
says unknown_preset 2 'w4a4kv4' quantize $model --preset w99
says nothing_to_measure 2 'nothing to measure' ppl $model
says gptq_without_text 2 'calibration' quantize $model --w_bits 4
says load_and_model 2 'either MODEL' quantize $model --load_qmodel_path x
says tokenize_without_text 2 'either --text or --file' tokenize $model
json usage_as_json 2 'r["error"]["name"] == "DQ_E_INVALID" and "w_bits" in r["error"]["message"]' quantize $model --w_bits 40

# ---- info ----
json info 0 'r["command"] == "info" and r["hidden_size"] == 64 and r["intermediate_size"] == 192 and r["num_hidden_layers"] == 4 and r["num_attention_heads"] == 4 and r["num_key_value_heads"] == 2 and r["head_dim"] == 16 and r["vocab_size"] == 512 and r["tie_word_embeddings"] is True and r["architecture"] == "llama" and r["dtype"] == "BF16" and r["parameters"] > 0 and r["bytes"] > 0 and "tensors" not in r' info $model
json info_tensors 0 'len(r["tensors"]) == r["tensor_count"] and all(set(t) >= {"name","dtype","shape","bytes","file"} for t in r["tensors"])' info $model --tensors
json info_safetensors 0 'r["format"] == "safetensors" and r["tensors"] == load("info_tensors")["tensors"]' info $model/model.safetensors --tensors
run info_text 0 info $model && { grep -qE '^hidden_size +64$' "$work/info_text.out" && ok info_text || bad info_text "no hidden_size line"; }

# ---- tokenize ----
json tokenize 0 'len(r["ids"]) == r["count"] > 3 and all(0 <= i < 512 for i in r["ids"])' tokenize $model --text "Once upon a time"
printf 'Once upon a time' > "$work/once.txt"
json tokenize_file 0 'r["ids"] == load("tokenize")["ids"]' tokenize $model --file "$work/once.txt"
json tokenize_no_special 0 'r["ids"] == [i for i in load("tokenize")["ids"] if i != r["bos_id"]]' tokenize $model --text "Once upon a time" --no-special
json tokenize_empty 0 'r["count"] <= 1' tokenize $model --text ""
json tokenize_eval 0 'r["count"] > 1000' tokenize $model --file "$work/eval.txt"

# ---- logits ----
json logits 0 'r["shape"] == [4, 512] and len(r["top"]) == 4 and all(len(t) == 5 for t in r["top"]) and r["nll"] > 0' logits $model --ids 1,20,300,4
json logits_out 0 'r["nll"] == load("logits")["nll"] and "top" not in r' logits $model --ids 1,20,300,4 --out "$work/l.npy"
if text=$(python3 - "$work" 2>&1 <<'P'
import array, ast, json, math, sys
data = open(f"{sys.argv[1]}/l.npy", "rb").read()
assert data[:8] == b"\x93NUMPY\x01\x00"
n = int.from_bytes(data[8:10], "little")
assert (10 + n) % 64 == 0
head = ast.literal_eval(data[10:10 + n].decode())
assert head == {"descr": "<f4", "fortran_order": False, "shape": (4, 512)}, head
v = array.array("f", data[10 + n:])
r = json.load(open(f"{sys.argv[1]}/logits.out"))
ids, nll = [1, 20, 300, 4], 0
for i in range(3):
    row = v[i * 512:(i + 1) * 512]
    nll += math.log(sum(math.exp(x) for x in row)) - row[ids[i + 1]]
assert abs(nll / 3 - r["nll"]) < 1e-9, (nll / 3, r["nll"])
for i in range(4):
    row = v[i * 512:(i + 1) * 512]
    best = sorted(range(512), key=lambda k: -row[k])[:5]
    assert [t["id"] for t in r["top"][i]] == best and abs(r["top"][i][0]["logit"] - row[best[0]]) < 1e-6
P
); then ok npy_file; else bad npy_file "$text"; fi
json logits_one_id 0 'r["nll"] is None and r["shape"] == [1, 512]' logits $model --ids 7
json logits_foreign_id 1 'r["error"]["name"] == "DQ_E_MISMATCH"' logits $model --ids 1,512
says logits_bad_list 2 'no list of token ids' logits $model --ids 1,,2
says logits_unwritable 1 'No such file|Not a directory' logits $model --ids 1,2 --out "$work/none/l.npy"
# A pipe or device is written to, not replaced by a file.
mkfifo "$work/pipe"
timeout 20 cat "$work/pipe" > "$work/piped.npy" &
json logits_to_pipe 0 'r["out"]' logits $model --ids 1,20,300,4 --out "$work/pipe"
wait $!
if [ -p "$work/pipe" ] && cmp -s "$work/piped.npy" "$work/l.npy"; then ok logits_pipe_stays; else bad logits_pipe_stays "$(ls -l "$work")"; fi

# ---- ppl ----
p="--text_file $work/eval.txt --seqlen 64 --limit 8"
json ppl 0 'set(r["results"][0]) >= {"dataset","ppl","nll","windows","tokens","seqlen","protocol","seconds","tokens_per_second"} and r["results"][0]["windows"] == 8 and r["results"][0]["tokens"] == 512 and abs(math.exp(r["results"][0]["nll"]) / r["results"][0]["ppl"] - 1) < 1e-12 and r["results"][0]["ppl"] < 50 and r["peak_rss_bytes"] > 0' ppl $model $p
json ppl_dashes 0 'r["results"][0]["ppl"] == load("ppl")["results"][0]["ppl"]' ppl $model --text-file "$work/eval.txt" --seqlen=64 --limit=8
json ppl_one_thread 0 'r["results"][0]["ppl"] == load("ppl")["results"][0]["ppl"]' ppl $model $p --threads 1
json ppl_reference 0 'abs(r["results"][0]["ppl"] / load("ppl")["results"][0]["ppl"] - 1) < 1e-4 and r["device"].startswith("ref")' ppl $model $p --backend ref --limit 2 --limit 8
python3 -c "import json;r=json.load(open('$work/tokenize_eval.out'));json.dump(r['ids'],open('$work/ids.json','w'))"
json ppl_ids 0 'r["results"][0]["ppl"] == load("ppl")["results"][0]["ppl"]' ppl $model --ids "$work/ids.json" --seqlen 64 --limit 8
json ppl_two_files 0 'len(r["results"]) == 2' ppl $model $p --text_file "$work/cal.txt"
json ppl_too_short 1 '"less than one window" in r["error"]["message"]' ppl $model --text_file "$work/once.txt" --seqlen 64
: > "$work/empty.txt"
json ppl_empty_text 1 'r["error"]["status"] < 0' ppl $model --text_file "$work/empty.txt" --seqlen 64
json ppl_missing_text 1 'r["error"]["name"] == "DQ_E_IO" and "absent.txt" in r["error"]["message"]' ppl $model --text_file "$work/absent.txt"
json ppl_missing_dataset 1 '"wiki" in r["error"]["message"]' ppl $model --dataset wikitext2 --data_dir "$work"
mkdir -p "$work/data/wikitext2"
cp "$work/eval.txt" "$work/data/wikitext2/wiki.test.raw"
cp "$work/cal.txt" "$work/data/wikitext2/wiki.train.raw"
json ppl_dataset 0 'r["results"][0]["dataset"] == "wikitext2" and r["results"][0]["windows"] == 4' ppl $model --dataset wikitext2 --data_dir "$work/data" --seqlen 64 --limit 4

# ---- quantize ----
c="--cal-file $work/cal.txt --nsamples 8 --ppl_eval $p"
json q_plain 0 'r["results"][0]["ppl"] == load("ppl")["results"][0]["ppl"] and r["layers"] == []' quantize $model --no_rotation --ppl_eval $p
json q_rotated 0 'abs(r["results"][0]["ppl"] / load("ppl")["results"][0]["ppl"] - 1) < 1e-4 and r["rotations"]' quantize $model --ppl_eval $p
json q_rtn 0 'len(r["layers"]) == 28 and all(l["bits"] == 4 for l in r["layers"])' quantize $model --w_bits 4 --w_rtn $c
json q_gptq 0 'len(r["layers"]) == 28 and all(l["damping"] > 0 for l in r["layers"]) and 4 < r["bits_per_weight"] < 6 and r["results"][0]["ppl"] < load("q_rtn")["results"][0]["ppl"]' quantize $model --w_bits 4 $c
json q_cal_dataset 0 'r["calibration"]["dataset"] == "wikitext2" and [x["dataset"] for x in r["results"]] == ["wikitext2"]' quantize $model --w_bits 4 --nsamples 2 --cal_dataset wikitext2 --data-dir "$work/data" --ppl_eval --ppl_eval_dataset wikitext2 --seqlen 64 --limit 2
json q_model_after_list 0 'r["model"] == "tests/data/tiny"' quantize --ppl_eval --ppl_eval_dataset wikitext2 $model --data-dir "$work/data" --seqlen 64 --limit 2
json q_switches 0 'r["scheme"]["w"]["symmetric"] is False and r["scheme"]["a"]["symmetric"] is False and r["scheme"]["w"]["clip_search"] is True and r["rotations"]["r1"] in (False, None)' quantize $model --w-asym --a_asym true --w_clip=yes --use_r1 false --w_bits 4 --w-rtn --a-bits 8 $c
json q_preset_refined 0 'r["scheme"]["w"]["bits"] == 3 and r["scheme"]["a"]["bits"] == 8 and r["scheme"]["k"]["groupsize"] == 16' quantize $model --w_bits 3 --preset w4a8kv8 --w_rtn $c
json q_save 0 'r["saved"] and r["results"][0]["ppl"] > 1' quantize $model --preset w4a4kv4 $c --save_qmodel_path "$work/saved/w4a4kv4"
python3 -c 'import json, sys; c = json.load(open(sys.argv[1])); sys.exit((c["model_type"], c["base_model_type"]) != ("dartquant", "llama"))' "$work/saved/w4a4kv4/config.json"
verdict q_save_is_refused_elsewhere $?
cp -r $model "$work/own"
says q_save_over_source 1 'read from this folder' quantize "$work/own" --w_bits 4 --w_rtn --save_qmodel_path "$work/own/."
cmp -s $model/model.safetensors "$work/own/model.safetensors" && [ ! -e "$work/own/dartquant.json" ] && ok q_source_kept || bad q_source_kept ""
says q_load_unused 0 'w_bits has no effect' quantize --load_qmodel_path "$work/saved/w4a4kv4" --w_bits 3 --ppl_eval $p
json q_load 0 'r["results"][0]["ppl"] == load("q_save")["results"][0]["ppl"]' quantize --load_qmodel_path "$work/saved/w4a4kv4" --ppl_eval $p
json q_ppl_of_saved 0 'r["results"][0]["ppl"] == load("q_save")["results"][0]["ppl"]' ppl "$work/saved/w4a4kv4" $p
json q_info_of_saved 0 'r["quantization"] and r["rotations"]' info "$work/saved/w4a4kv4"
# The codes of a saved model stay when only the activations change.
json q_saved_other_activations 0 'r["scheme"]["w"]["bits"] == 4 and r["scheme"]["a"]["bits"] == 8 and r["results"][0]["ppl"] < load("q_save")["results"][0]["ppl"]' quantize "$work/saved/w4a4kv4" --a_bits 8 --a_asym --ppl_eval $p
json q_threads 0 'r["results"][0]["ppl"] == load("q_save")["results"][0]["ppl"] and r["layers"] == load("q_save")["layers"]' quantize $model --preset w4a4kv4 $c --threads 1
says q_awq_rotated 0 'R1 mixes the channels' quantize $model --w_bits 4 --w_rtn --w_awq --cal-file $work/cal.txt --nsamples 1 --seqlen 64
json q_no_calibration_file 1 'r["error"]["name"] == "DQ_E_IO"' quantize $model --w_bits 4 --cal_file "$work/absent.txt"
json q_short_calibration 1 'r["error"]["name"] == "DQ_E_TEXT"' quantize $model --w_bits 4 --cal_file "$work/once.txt" --seqlen 64
: > "$work/file"
json q_unwritable 1 'r["error"]["name"] == "DQ_E_IO"' quantize $model --w_bits 4 --w_rtn --save_qmodel_path "$work/file/below"

# A full target: files beyond 100 blocks are refused. Nothing that looks like a model stays behind.
(trap '' XFSZ; ulimit -f 100; timeout 60 "$dq" quantize $model --w_bits 8 --w_rtn --save_qmodel_path "$work/full" --json > "$work/full.out" 2> "$work/full.err")
if [ $? -eq 1 ] && grep -q '"DQ_E_IO"' "$work/full.out" && [ -z "$(ls -A "$work/full" 2>/dev/null)" ]; then ok target_full; else
    bad target_full "$(cat "$work/full.out" "$work/full.err"; ls -A "$work/full" 2>/dev/null)"
fi

# ---- bad input ----
json missing_model 1 'r["error"]["name"] == "DQ_E_IO" and "nowhere" in r["error"]["message"]' info "$work/nowhere"
mkdir "$work/cut"
cp $model/config.json $model/tokenizer*.json "$work/cut/"
head -c 200000 $model/model.safetensors > "$work/cut/model.safetensors"
json truncated_model 1 'r["error"]["status"] <= -100 and r["error"]["file"].endswith("model.safetensors")' ppl "$work/cut" $p
cp -r "$work/saved/w4a4kv4" "$work/shardless"
rm "$work/shardless/"*.safetensors
json missing_shard 1 'r["error"]["status"] < 0 and "shardless" in r["error"]["message"]' ppl "$work/shardless" $p
if "$dq" info $model --json > /dev/full 2> "$work/devfull.err"; [ $? -eq 1 ]; then ok stdout_full; else bad stdout_full "exit status was not 1"; fi

# ---- Ctrl-C: the reference device is slow enough to be interrupted ----
interrupt() { # name, seconds, arguments...
    local name=$1 seconds=$2 pid got
    shift 2
    "$dq" "$@" --json > "$work/$name.out" 2> "$work/$name.err" &
    pid=$!
    sleep "$seconds"
    kill -INT "$pid" 2>/dev/null
    for _ in $(seq 600); do # a minute, then by force
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null
    wait "$pid"
    got=$?
    if [ "$got" -eq 1 ] && grep -q DQ_E_CANCELLED "$work/$name.out"; then ok "$name"; else
        bad "$name" "exit status $got: $(head -c 300 "$work/$name.out" "$work/$name.err")"
    fi
}
interrupt interrupted_ppl 1 ppl $model --text_file "$work/long.txt" --seqlen 256 --backend ref
interrupt interrupted_quantize 1 quantize $model --w_bits 4 --cal_file "$work/long.txt" --seqlen 256 --nsamples 128 --backend ref --save_qmodel_path "$work/interrupted"
if [ -z "$(ls -A "$work/interrupted" 2>/dev/null)" ]; then ok interrupted_leaves_nothing; else bad interrupted_leaves_nothing "$(ls -A "$work/interrupted")"; fi

# ---- searched clip ratios, and comparisons ----
auto="--a_bits 4 --a_asym --a_clip_ratio auto --k_bits 4 --k_asym --k_clip_ratio AUTO --v_bits 4 --v_asym"
json clip_auto 0 'set(r["scheme"]["clip_ratios"]) == {"q_k_v", "o", "gate_up", "down", "keys"} and all(len(x) == 4 and all(0.5 <= y <= 1 for y in x) for x in r["scheme"]["clip_ratios"].values()) and r["seconds"]["quantize_stages"]["search"] > 0' quantize $model --w_bits 4 --w_rtn $auto $c --save_qmodel_path "$work/auto"
json clip_auto_reopened 0 'r["results"][0]["ppl"] == load("clip_auto")["results"][0]["ppl"]' ppl "$work/auto" $p
json clip_auto_info 0 'r["quantization"]["clip_ratios"] == load("clip_auto")["scheme"]["clip_ratios"]' info "$work/auto"
run clip_auto_text 0 quantize $model --w_bits 4 --w_rtn $auto $c && grep -qE '^clip ratios: q_k_v 0\.[0-9]+, .*keys' "$work/clip_auto_text.out" && ok clip_auto_text || bad clip_auto_text "$(cat "$work/clip_auto_text.out")"
# ---- KVQuant ----
kv="--preset kvquant-nuq3 --k_bits 4 --kv_outliers 0.02"
json kvquant 0 'r["scheme"]["kvquant"]["levels"] == "nuq" and r["scheme"]["kvquant"]["sink"] == 1 and abs(r["scheme"]["kvquant"]["key_bits"] - 4.64) < 1e-9 and abs(r["scheme"]["kvquant"]["average_bits"] - 4.14) < 1e-9 and len(r["scheme"]["kvquant"]["tables"]) == 16 and r["seconds"]["quantize_stages"]["search"] > 0' quantize $model $kv $c --save_qmodel_path "$work/kvquant"
json kvquant_reopened 0 'r["results"][0]["ppl"] == load("kvquant")["results"][0]["ppl"]' ppl "$work/kvquant" $p
json kvquant_info 0 'r["quantization"]["kvquant"] == {"levels": "nuq", "outliers": 0.02, "sink": 1, "qnorm": False}' info "$work/kvquant"
run kvquant_text 0 quantize $model $kv $c && grep -qE '^keys and values: nuq levels, 4\.64 and 3\.64 bits, 1 sink' "$work/kvquant_text.out" && ok kvquant_text || bad kvquant_text "$(cat "$work/kvquant_text.out")"
json kvquant_compare 0 'r["rows"][1]["quantization"]["kvquant"]["levels"] == "nf" and r["rows"][1]["kl"] > 0' compare $model --cal-file "$work/cal.txt" --nsamples 8 $p --schemes none:kv4:kvquant:kv_levels=nf
says kvquant_needs_text 2 'calibration text' quantize $model --preset kvquant-nuq4
says kvquant_with_r3 1 'use_r3 with kv_method kvquant' quantize $model --preset kvquant-nuq4 --use_r3 true $c
for idle in "--k_bits 4 --kv_levels nf:kv_levels changes nothing" "--kv_method kvquant:kv_method kvquant changes nothing"; do
    run kvquant_idle 0 quantize $model ${idle%%:*} $c && grep -q "warning: ${idle#*:}" "$work/kvquant_idle.err" && ok kvquant_idle || bad kvquant_idle "$(cat "$work/kvquant_idle.err")"
done
says kvquant_cache 1 'kv = int8' generate "$work/kvquant" --prompt Once --kv int8
run kvquant_generates 0 generate "$work/kvquant" --prompt "Once upon a time" --max_tokens 5 && ok kvquant_generates

says clip_auto_needs_text 2 'calibration text' quantize $model --a_bits 4 --a_clip_ratio auto
says clip_word 2 'neither? a number nor auto|not a number nor auto' quantize $model --a_bits 4 --a_clip_ratio best
schemes="none:w4a4kv4:rtn,hadamard:w4a4kv4:rtn,hadamard:w4a4:seed=1:a_clip_ratio=auto,$work/auto"
cmp="--cal-file $work/cal.txt --nsamples 8 $p --cache $work/reference.safetensors"
json compare 0 '[x["scheme"] for x in r["rows"]][:2] == ["full precision", "none:w4a4kv4:rtn"] and len(r["rows"]) == 5 and r["rows"][0]["kl"] == 0 and all(x["kl"] > 0 and 0 < x["top1_agreement"] < 1 and x["kl"] < x["kl_max"] for x in r["rows"][1:]) and not r["rows"][0]["cached"] and "clip_ratios" in r["rows"][3]["quantization"]' compare $model $cmp --schemes "$schemes" --plot "$work/compare.svg"
json compare_saved_is_the_same 0 'r["rows"][4]["ppl"] == load("clip_auto")["results"][0]["ppl"]' compare $model $cmp --schemes "$schemes"
json compare_from_cache 0 'r["rows"][0]["cached"] and [x["kl"] for x in r["rows"]] == [x["kl"] for x in load("compare")["rows"]] and r["rows"][0]["ppl"] == load("compare")["rows"][0]["ppl"]' compare $model $cmp --schemes "$schemes" --threads 1
json compare_matches_ppl 0 'r["results"][0]["ppl"] == load("compare")["rows"][0]["ppl"] and r["results"][0]["top1_accuracy"] > 0' ppl $model $p
if python3 - "$work/compare.svg" <<'P'
import sys, xml.dom.minidom
d = xml.dom.minidom.parse(sys.argv[1])
words = [t.firstChild.data for t in d.getElementsByTagName("text")]
assert len(d.getElementsByTagName("rect")) == 1 + 2 * 5 and "none:w4a4kv4:rtn" in words, words
P
then ok compare_plot; else bad compare_plot "$(head -c 300 "$work/compare.svg")"; fi
run compare_table 0 compare $model $cmp --schemes "hadamard:a4" && grep -qE '^full precision +[0-9.]+ +0\.00000 +100\.00%' "$work/compare_table.out" && ok compare_table || bad compare_table "$(cat "$work/compare_table.out")"
json compare_other_text 1 'r["error"]["name"] == "DQ_E_MISMATCH" and "other tokens" in r["error"]["message"]' compare $model --cache "$work/reference.safetensors" --schemes hadamard:a4 --text_file "$work/cal.txt" --seqlen 64 --limit 8
json compare_cache_of_another_model 1 'r["error"]["name"] == "DQ_E_MISMATCH"' compare "$work/auto" --cache "$work/reference.safetensors" --schemes none:a4 --tokenizer $model $p
says compare_bad_bits 2 'does not name bits' compare $model $cmp --schemes hadamard:four
says compare_no_bits 2 'names no bits' compare $model $cmp --schemes hadamard
says compare_bad_rotation 2 'neither a kind of rotation' compare $model $cmp --schemes none:a4,whirl:a4
says compare_bad_option 2 'no option "sead"; did you mean "seed"' compare $model $cmp --schemes hadamard:a4:sead=1
says compare_needs_calibration 2 'calibration text' compare $model $p --schemes hadamard:w4

# ---- bench, and the example program ----
json bench 0 'len(r["ops"]) >= 10 and r["sgemm_gflops"] > 0 and r["forward"]["tokens_per_second"] > 0' bench $model --seqlen 64 --seconds 0.001
if text=$("$out/bin/quantize_model" $model "$work/cal.txt" "$work/eval.txt" "$work/example" seqlen=64 nsamples=8 limit=8 2>&1) &&
    grep -qE 'perplexity [0-9.]+ -> [0-9.]+ at [45]\.[0-9]+ bits' <<< "$text" && [ -e "$work/example/dartquant.json" ]; then ok example_quantize_model; else
    bad example_quantize_model "$text"
fi
# ---- generate, list-layers, test-forward ----
json generate 0 'len(r["results"]) == 1 and len(r["results"][0]["ids"]) == 12 and r["results"][0]["finish"] == "length" and r["tokens"] == 12 and r["cache_bytes"] > 0 and r["weights_bytes"] > 0' generate $model --prompt "Ada found" --max-tokens 12 --ignore-eos
run generate_stream 0 generate $model --prompt "Ada found" --max-tokens 12 --ignore-eos && [ "$(cat "$work/generate_stream.out")" = "$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["results"][0]["text"])' "$work/generate.out")" ] && ok generate_stream || bad generate_stream "$(cat "$work/generate_stream.out")"
json generate_batch 0 'len(r["results"]) == 2 and r["results"][0]["ids"] == load("generate")["results"][0]["ids"]' generate $model --prompt "Ada found" --prompt "The market" --max-tokens 12 --ignore-eos --kv f16
json generate_sampled 0 'len(r["results"][0]["ids"]) == 12' generate $model --prompt "Ada" --max-tokens 12 --ignore-eos --temperature 1.2 --top-k 50 --top-p 0.9 --seed 4
json generate_sampled_again 0 'r["results"] == load("generate_sampled")["results"]' generate $model --prompt "Ada" --max-tokens 12 --ignore-eos --temperature 1.2 --top-k 50 --top-p 0.9 --seed 4 --threads 1
json generate_stop 0 'r["results"][0]["finish"] == "stop" and load("generate")["results"][0]["text"].startswith(r["results"][0]["text"])' generate $model --prompt "Ada found" --max-tokens 12 --ignore-eos --stop "$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["results"][0]["text"][6:10], end="")' "$work/generate.out")"
says generate_no_prompt 2 'give --prompt' generate $model
says generate_bad_kv 2 'kv' generate $model --prompt a --kv f64
says generate_int8_plain 1 'int8_products: none of the model.s 28 linears can have them' generate $model --prompt Ada --max-tokens 2 --int8-products
says generate_chat_unknown 0 'no chat template' generate $model --prompt Ada --chat --max-tokens 2
mkdir -p "$work/chat" && cp $model/* "$work/chat"
printf '%s' "{% for m in messages %}{{ m.content }}{% endfor %}{{ more }}" > "$work/chat/chat_template.jinja"
printf '%s' '[{"role": "user", "content": "Ada"}, {"role": "assistant", "content": " found"}]' > "$work/messages.json"
printf '%s' '{"messages": [{"role": "user", "content": "Ada"}], "more": " found"}' > "$work/variables.json"
printf '%s' '{{ messages[0].content }} found' > "$work/other.jinja"
printf '%s' '{{ messages[0].content | shout }}' > "$work/bad.jinja"
same='r["results"][0]["ids"] == load("generate")["results"][0]["ids"]'
rest="--max-tokens 12 --ignore-eos"
json generate_messages 0 "$same" generate "$work/chat" --messages "$work/messages.json" $rest
json generate_variables 0 "$same" generate "$work/chat" --messages "$work/variables.json" $rest
json generate_chat 0 "$same" generate "$work/chat" --chat --prompt " found" --system "Ada" $rest
json generate_template 0 "$same" generate "$work/chat" --chat-template "$work/other.jinja" --prompt "Ada" $rest
says generate_bad_template 1 "line 1: the filter 'shout' is not supported" generate "$work/chat" --chat-template "$work/bad.jinja" --prompt "Ada"
says generate_bad_messages 1 'neither a JSON array' generate "$work/chat" --messages $model/config.json
says generate_broken_messages 1 'bad.jinja, line 1' generate "$work/chat" --messages "$work/bad.jinja"
says generate_bad_strategy 2 'not of the form' generate $model --prompt a --strategies gptq
says generate_missing_strategy 1 'no weights .*awq_w4a16' generate $model --prompt a --strategies awq_w4a16_fp8kv
mkdir -p "$work/strategies" && cp $model/tokenizer.json $model/tokenizer_config.json $model/config.json $model/model.safetensors "$work/strategies"
run strategy_weights 0 quantize $model --w_bits 4 --w_groupsize 32 --w_rtn --no_rotation --save_qmodel_path "$work/strategies/gptq_w4a16"
run strategy_awq 0 quantize-model --model-path $model --output-path "$work/strategies/awq_w4a16" --quant-format awq --group-size 32 --bits 4
run strategies 0 generate "$work/strategies" --prompt "Ada found" --max-tokens 5 --ignore-eos --strategies gptq_w4a16_bf16kv,awq_w4a16_fp8kv && [ "$(grep -c '^== \(gptq\|awq\)_w4a16' "$work/strategies.out")" -eq 2 ] && ok strategies || bad strategies "$(cat "$work/strategies.out")"
json list_layers 0 'r["linears"] == 28 and r["quantized"] == 0 and r["layers"][5]["name"] == "up_proj" and r["layers"][5]["rows"] == 192 and "error" not in r["layers"][0]' list-layers $model
json list_layers_opt 0 'r["linears"] == 12 and [x["name"] for x in r["layers"][6:]] == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"] and r["layers"][4]["rows"] == 96 and r["layers"][5]["dtype"] == "F16"' list-layers tests/data/models/opt
run info_opt 0 info tests/data/models/opt && grep -q '^architecture  *opt$' "$work/info_opt.out" && grep -q '^linears .* fc1 96x64 fc2 64x96$' "$work/info_opt.out" && ok info_opt || bad info_opt "$(cat "$work/info_opt.out")"
json list_layers_quantized 0 'r["quantized"] == 28 and all(x["bits"] == 4 and x["group"] == 32 and 0 < x["error"] < 0.05 for x in r["layers"])' list-layers "$work/strategies/gptq_w4a16"
json list_layers_reference 0 'r["reference"].endswith("tiny") and all(0.01 < x["weight_error"] < 0.2 and not x["rescaled"] and abs(x["weight_error"] ** 2 - x["error"]) < 1e-6 for x in r["layers"]) and r["mean_weight_error"] < r["largest_weight_error"] < 0.2' list-layers "$work/strategies/gptq_w4a16" --reference $model
run list_layers_text 0 list-layers "$work/strategies/awq_w4a16" --reference $model && grep -q '^weights against .*tiny: mean error 0\.0[0-9]*, largest' "$work/list_layers_text.out" && grep -q 'weight error' "$work/list_layers_text.out" && ok list_layers_text || bad list_layers_text "$(tail -3 "$work/list_layers_text.out")"
run list_layers_gguf_made 0 export $model --format gguf:q4_k --out "$work/q4_k.gguf"
json list_layers_gguf 0 'r["quantized"] == 28 and {(x["type"], x["bits"], x["group"]) for x in r["layers"]} == {("Q5_0", 5, 32)} and 0.01 < r["mean_weight_error"] < 0.1' list-layers "$work/q4_k.gguf" --reference $model
says list_layers_rotated 1 'rotated' list-layers "$work/auto" --reference $model
json list_layers_rotated_alike 0 'r["mean_weight_error"] == 0' list-layers "$work/auto" --reference "$work/auto"
json strategies_json 0 'len(r["strategies"]) == 2 and [x["strategy"] for x in r["strategies"]] == ["gptq_w4a16_bf16kv", "awq_w4a16_fp8kv"] and [x["kv"] for x in r["strategies"]] == ["bf16", "fp8"] and all(len(x["results"][0]["ids"]) == 5 for x in r["strategies"])' generate "$work/strategies" --prompt "Ada found" --max-tokens 5 --ignore-eos --strategies gptq_w4a16_bf16kv,awq_w4a16_fp8kv
json test_forward 0 'len(r["parts"]) >= 5 and r["nll"] > 0 and all(x["milliseconds"] >= 0 for x in r["parts"])' test-forward "$work/strategies/gptq_w4a16"
exit $status
