#!/usr/bin/env bash
# The reference pages build without a warning, and something undocumented is one. Usage: run_doxygen.sh [BUILD]
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
command -v doxygen >/dev/null || { echo "not ok doxygen_installed # tests/setup.sh test"; exit 1; }
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
report() { # name, condition held (0), text
    if [ "$2" -eq 0 ]; then echo "ok $1"; else
        echo "not ok $1"
        echo "$3" | tail -20
        status=1
    fi
}
text=$(make --no-print-directory BUILD="$out" DOCS="$work/html" docs 2>&1)
report doxygen_no_warnings $? "$text"
missing=$(for h in include/dartquant/*.h; do
    b=$(basename "$h" .h)
    [ -e "$work/html/${b//_/__}_8h.html" ] || echo "no page of $h"
done)
[ -z "$missing" ]
report doxygen_page_for_each_header $? "$missing"
grep -q 'dq_quantize_weight' "$work"/html/tensor__ops_8h.html && grep -q 'one code per byte' "$work"/html/tensor__ops_8h.html
report doxygen_has_the_comments $? "dq_quantize_weight or its text is missing"
# The same with a function that has no comment.
mkdir -p "$work/seed/docs" "$work/bad"
cp -r include "$work/seed/"
cp docs/Doxyfile docs/doxygen_filter.py "$work/seed/docs/"
sed -i 's|^DQ_API dq_status dq_cancel_new|\nDQ_API dq_status dq_undocumented(void);\n\n/* x */\n&|' "$work/seed/include/dartquant/progress.h"
text=$(cd "$work/seed" && DQ_VERSION=0 DQ_DOCS="$work/bad" doxygen docs/Doxyfile 2>&1)
[ $? -ne 0 ] && grep -q 'dq_undocumented.*not documented' <<< "$text"
report doxygen_catches_undocumented $? "$text"
exit $status
