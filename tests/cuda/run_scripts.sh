#!/usr/bin/env bash
# The scripts of this folder do what they promise where there is no card: verdicts, reports, time limits. compute-sanitizer is
# played by a few lines of shell. Usage: run_scripts.sh [BUILD]. SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
case $out in */sanitize-*) echo "ok cuda_scripts_are_tested_in_the_ordinary_build"; exit 0 ;; esac
card=$(realpath "$out/tests/fakes/libdartquant-cudasim.so") || exit 1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
check() { # name, text of what is wrong
    if [ -z "$2" ]; then echo "ok $1"; else
        echo "not ok $1"
        echo "$2"
        status=1
    fi
}
holds() { # name, JSON file, python expression of r
    check "$1" "$(python3 -c 'import json, sys
r = json.load(open(sys.argv[1]))
if not eval("(" + sys.argv[2] + ")"): print(json.dumps(r, indent=1)[:4000])' "$2" "$3" 2>&1)"
}

# ---- what a card says of itself ----
"$out/bin/dartquant" info --backends --backend "$card" --json > "$work/info.json" 2> "$work/info.err"
holds cuda_info_fields "$work/info.json" '(lambda b: b["device"] == "cuda:0" and b["backend"] == "cuda" and b["missing_ops"] == []
    and 0 < b["memory_free"] <= b["memory_total"] and all(w in b["description"] for w in
    ("sm_90", "driver ", "runtime ", "cuBLAS ", "cuSOLVER ")) and b["option"])(r["backends"][0])'
CUDASIM_DEVICES=0 "$out/bin/dartquant" info --backends --backend "$card" --json > "$work/info.json" 2> "$work/info.err"
holds cuda_info_without_a_card "$work/info.json" 'r["backends"][0]["error"] == "DQ_E_BACKEND"
    and "no CUDA device: no CUDA-capable device is detected" in r["backends"][0]["problem"]'

# ---- the suite ----
python3 tests/cuda/suite.py --build "$out" --backend "$card" --tiny --only device,perplexity,generated,wrong_index \
    --json "$work/suite.json" > "$work/suite.out" 2>&1
check cuda_suite_passes "$([ $? = 0 ] || cat "$work/suite.out")"
holds cuda_suite_reports "$work/suite.json" \
    '[c["verdict"] for c in r["checks"]] == ["pass"] * 4 and r["device"]["backend"] == "cuda" and "ppl_fp32" in r["figures"]'
check cuda_suite_ends_with_a_summary "$(tail -2 "$work/suite.out" | head -1 | grep -qx '4 passed, 0 failed, 0 skipped' || cat "$work/suite.out")"
# The card is lost in the middle of the op suite: only the tests that fall by themselves count.
CUDASIM_FAIL=1:300:719:-2 python3 tests/cuda/suite.py --build "$out" --backend "$card" --only device,test_data_ops \
    --json "$work/lost.json" > "$work/lost.out" 2>&1
check cuda_suite_fails_with_a_lost_card "$([ $? = 1 ] || cat "$work/lost.out")"
holds cuda_suite_tries_fallen_tests_alone "$work/lost.json" \
    '"pass, alone" in r["figures"]["test_data_ops"].values() and "fail" in r["figures"]["test_data_ops"].values() and "code 719" in r["checks"][1]["reason"]'
CUDASIM_DEVICES=0 python3 tests/cuda/suite.py --build "$out" --backend "$card" --json "$work/none.json" > /dev/null 2>&1
holds cuda_suite_without_a_card "$work/none.json" \
    'r["checks"][0]["verdict"] == "fail" and "no CUDA-capable device" in r["checks"][0]["reason"] and all(c["verdict"] == "skip" for c in r["checks"][1:])'
python3 tests/cuda/suite.py --build "$out" --backend "$card" --only device,jobs --seconds 6 --json "$work/late.json" > /dev/null 2>&1
holds cuda_suite_stops_what_takes_too_long "$work/late.json" \
    'r["checks"][1]["verdict"] in ("fail", "skip") and ("stopped after" in r["checks"][1]["reason"] or "time was up" in r["checks"][1]["reason"])'

# ---- the benchmark ----
make -s "$out/tests/cuda/bench_ops" "$out/tests/cuda/bench_jobs" > "$work/make.out" 2>&1 || cat "$work/make.out"
python3 tests/cuda/bench.py --build "$out" --backend "$card" --tiny --no_peers --only G2,G7,I,Q --json "$work/bench.json" \
    > "$work/bench.out" 2>&1
check cuda_bench_runs "$([ $? = 0 ] || cat "$work/bench.out")"
holds cuda_bench_reports "$work/bench.json" \
    '{"G2", "G7", "R-bf16"} <= {o["id"] for o in r["ours"]} and any("G7" in t["name"] and t["got"] for t in r["targets"]) and not r["problems"]'

# ---- compute-sanitizer ----
cat > "$work/compute-sanitizer" <<'TOOL'
#!/usr/bin/env bash
[ "$1" = --help ] && { echo "--kernel-regex"; exit 0; }
while [ $# -gt 1 ]; do [ "$1" = --tool ] && tool=$2; shift; done
echo "========= COMPUTE-SANITIZER"
echo "[       OK ] ${DQ_TEST_FILTER:-some}"
case $tool$1$DQ_TEST_FILTER in
    memcheck*quant*) echo "========= Invalid __global__ read of size 4 bytes"; echo "=========     at grid_kernel(dq_grid_desc)+0x10 in weight.cu:40"
        echo "========= ERROR SUMMARY: 1 error"; exit 9 ;;
    memcheck*fused*) echo "========= Invalid __shared__ read of size 4 bytes"; echo "=========     at void cublas::gemv_kernel<float>(int)+0x10"
        echo "========= ERROR SUMMARY: 1 error"; exit 9 ;;
    memcheck*fit*) echo "unknown option"; exit 1 ;;
    memcheck*data*) sleep 60 ;;
    racecheck*) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"; exit 0 ;;
    *) echo "========= ERROR SUMMARY: 0 errors"; exit 0 ;;
esac
TOOL
chmod +x "$work/compute-sanitizer"
python3 tests/cuda/sanitize.py --build "$out" --tool "$work/compute-sanitizer" --backend "$card" --seconds 10 --least 0.1 \
    --only memcheck,racecheck --json "$work/sanitize.json" > "$work/sanitize.out" 2>&1
check cuda_sanitize_finds_errors "$([ $? = 1 ] || cat "$work/sanitize.out")"
holds cuda_sanitize_reports "$work/sanitize.json" \
    '(lambda v: v["memcheck_forward"] == "pass" and v["memcheck_quant"] == "fail" and v["memcheck_fused"] == "pass" and v["memcheck_fit"] == "fail" and v["memcheck_data"] == "skip" and all(x == "pass" for n, x in v.items() if n.startswith("race")))({x["name"]: x["verdict"] for x in r["runs"]}) and r["status"] == "done"'

# ---- a kit, packed up, where there is neither make nor a compiler: with the simulated card under the real one's name ----
bash tests/cuda/kit.sh "$out" "$work/kit" "$card" > "$work/kit.out" 2>&1 || cat "$work/kit.out"
rm -rf "$work/kit"
mkdir -p "$work/tree/tests" "$work/bin"
cp -r tests/cuda tests/golden tests/conformance tests/data "$work/tree/tests/"
cp -r libdartquant "$work/tree/"
for tool in awk basename bash cat cksum dirname env grep gzip head ldd ls mkdir nproc realpath rm sed sort tail tar timeout touch tr uname; do
    ln -s "$(command -v "$tool")" "$work/bin/$tool"
done
ln -s "$(python3 -c 'import sys; print(sys.executable)')" "$work/bin/python3"
mv "$work/compute-sanitizer" "$work/bin/"
bare() { # what, JSON, flags
    (cd / && env -i PATH="$work/bin" bash "$work/tree/tests/cuda/card.sh" "$1" "$work/kit.tar.gz" "$work/$2" "${@:3}") > "$work/bare.out" 2>&1
}
bare test bare-test.json --tiny --only device,perplexity,test_data_ops,test_fused_ops,unknown_option,memory_budget
check cuda_kit_tests "$([ $? = 0 ] || cat "$work/bare.out")"
holds cuda_kit_test_report "$work/bare-test.json" '[c["verdict"] for c in r["checks"]] == ["pass"] * 6 and r["backend"] == "cuda"
    and set(r["figures"]["test_data_ops"].values()) == {"pass"} and r["device"]["device"] == "cuda:0"'
bare bench bare-bench.json --tiny --no_peers --only G2,G7
check cuda_kit_benches "$([ $? = 0 ] || cat "$work/bare.out")"
holds cuda_kit_bench_report "$work/bare-bench.json" '{"G2", "G7", "R-bf16"} <= {o["id"] for o in r["ours"]} and not r["problems"]'
bare sanitize bare-sanitize.json --seconds 20 --least 0.1 --only racecheck
check cuda_kit_sanitizes "$([ $? = 0 ] || cat "$work/bare.out")"
holds cuda_kit_sanitize_report "$work/bare-sanitize.json" 'all(x["verdict"] == "pass" for x in r["runs"]) and r["status"] == "done"'
exit "$status"
