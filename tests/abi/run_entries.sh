#!/usr/bin/env bash
# Versions and guards of all public functions (entries.py), and seeded omissions that must be noticed.
# SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

text=$(python3 tests/abi/entries.py include libdartquant/dartquant.map libdartquant/api 2>&1)
if [ $? -eq 0 ]; then echo "ok entries"; else
    echo "not ok entries"
    echo "$text"
    status=1
fi
# name, file, sed script, words of the complaint
notices() {
    local name=$1 file=$2 edit=$3 words=$4
    rm -rf "$work/tree"
    mkdir "$work/tree" && cp -r include libdartquant/dartquant.map libdartquant/api "$work/tree"
    sed -i -E "$edit" "$work/tree/$file"
    text=$(python3 tests/abi/entries.py "$work/tree/include" "$work/tree/dartquant.map" "$work/tree/api" 2>&1)
    if [ $? -ne 0 ] && grep -qF -- "$words" <<< "$text"; then echo "ok notices_$name"; else
        echo "not ok notices_$name"
        echo "$text"
        status=1
    fi
}
notices symbol_of_a_later_version dartquant.map 's/^ +dq_model_save;//; $a DARTQUANT_1.1 { global: dq_model_save; } DARTQUANT_1.0;' \
    'dq_model_save says it came with 1.0, its version node is 1.1'
notices header_without_a_version include/dartquant/model.h 's/Since 1\.0\.//' 'model.h: its head comment'
notices unguarded_function api/model.c '/^dq_status dq_model_describe\(/,/^\}/s/DQ_ENTER_CONTEXT\([^,]*, /DQ_ENTER(/' \
    'dq_model_describe does not begin with DQ_ENTER_CONTEXT('
notices unguarded_free api/dataset.c 's/dq_context_discard\([^;]*/destroy(dataset)/' 'dq_dataset_free does not go through'
exit $status
