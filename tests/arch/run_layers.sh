#!/usr/bin/env bash
# The room table of docs/architecture.md: who may include whose headers. SPDX-License-Identifier: Apache-2.0
set -u
cd "$(dirname "$0")/../.." || exit 1

# Allowed prefixes of #include "..." per room, separated by blanks. A room may always include itself.
public="dartquant/types.h dartquant/error.h dartquant/context.h dartquant/progress.h dartquant/backend.h"
declare -A may=(
    [base]="$public"
    [backend]="$public base/ backend/device.h backend/ref/ref.h backend/cpu/cpu.h"
    [backend/ref]="dartquant/backend.h base/half.h base/fp8.h base/dtype.h backend/ref/"
    [backend/cpu]="dartquant/backend.h base/half.h base/fp8.h base/dtype.h backend/ref/ backend/cpu/"
    [backend/cuda]="dartquant/backend.h backend/cuda/"
    [graph]="$public base/ backend/device.h"
    [io]="$public base/"
    [text]="$public base/ io/"
    [chat]="$public base/ io/json.h text/"
    [formats]="$public base/ io/json.h"
    [model]="$public base/ backend/device.h graph/ io/ formats/"
    [rotation]="$public base/ backend/device.h io/ model/arch.h"
    [quant]="$public base/ backend/device.h graph/ model/"
    [calib]="$public base/ backend/device.h graph/ io/ model/ rotation/"
    [export]="$public base/ backend/device.h graph/ io/ formats/ model/"
    [generate]="$public dartquant/generator.h base/ backend/device.h graph/ model/ text/tokenizer.h"
    [eval]="$public base/ backend/device.h graph/ model/"
    [api]="dartquant base/ backend/device.h graph/ io/ text/ model/ rotation/ quant/ calib/ eval/ export/ generate/ chat/"
)

room_of() {
    case $1 in
        libdartquant/backend/ref/*) echo backend/ref ;;
        libdartquant/backend/cpu/*) echo backend/cpu ;;
        libdartquant/backend/cuda/*) echo backend/cuda ;;
        *) cut -d/ -f2 <<< "$1" ;;
    esac
}

# Prints "file: header" for every include the table does not allow; $1 = file.
violations() {
    local file=$1 room allowed header ok prefix
    room=$(room_of "$file")
    allowed="${may[$room]-}"
    if [ -z "$allowed" ]; then
        echo "$file: room $room is not in the table"
        return
    fi
    while read -r header; do
        ok=0
        # A plain name lies in the room's own folder.
        case $header in
            */*) ;;
            *) [ -f "$(dirname "$file")/$header" ] && ok=1 ;;
        esac
        for prefix in "$room/" $allowed; do
            case $header in
                "$prefix"*) ok=1 ;;
            esac
        done
        # backend/ as a prefix of itself must not open ref/ and cpu/ to everything else in the room.
        [ "$ok" -eq 1 ] || echo "$file: \"$header\""
    done < <(sed -nE 's/^[[:space:]]*#[[:space:]]*include[[:space:]]*"([^"]+)".*/\1/p' "$file")
}

status=0
bad=$(git ls-files --cached --others --exclude-standard 'libdartquant/*.c' 'libdartquant/*.h' 'libdartquant/*.cu' | while read -r f; do
    [ -f "$f" ] && violations "$f"
done)
if [ -z "$bad" ]; then echo "ok layers"; else
    echo "not ok layers"
    echo "$bad"
    status=1
fi

# Programs and examples know the public header alone.
bad=$(grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' examples/*.c examples/*/*.[ch] 2>/dev/null |
    grep -vE '"(dartquant(/[a-z]+)?\.h|[a-z_]+\.h)"')
for h in $(grep -hoE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"[a-z_]+\.h"' examples/cli/*.[ch] 2>/dev/null |
    grep -oE '[a-z_]+\.h' | sort -u); do
    [ "$h" = dartquant.h ] || [ -f "examples/cli/$h" ] || bad="$bad examples/cli: $h"
done
if [ -z "$bad" ]; then echo "ok examples_use_public_header"; else
    echo "not ok examples_use_public_header"
    echo "$bad"
    status=1
fi

# OpenBLAS is called from backend/cpu alone, the C library's forbidden calls from nowhere.
bad=$(grep -lE 'cblas\.h|openblas' -r libdartquant --include='*.[ch]' | grep -v '^libdartquant/backend/cpu/')
bad="$bad$(grep -nE '\b(abort|exit|_exit|printf|puts|putchar|perror|signal|sigaction|getenv|secure_getenv|fork|system)[[:space:]]*\(' \
    -r libdartquant --include='*.[ch]' | grep -vE '^[^:]+:[0-9]+:[[:space:]]*(/?\*|.*__attribute__)' | grep -vE '/\*[^*]*\b(abort|exit|printf|getenv)')"
if [ -z "$bad" ]; then echo "ok forbidden_calls"; else
    echo "not ok forbidden_calls"
    echo "$bad"
    status=1
fi

# A file holds one idea: never past 800 lines.
bad=$(git ls-files --cached --others --exclude-standard '*.c' '*.h' '*.cu' '*.cc' | while read -r f; do
    [ -f "$f" ] && n=$(wc -l < "$f") && [ "$n" -gt 800 ] && echo "$f: $n lines"
done)
if [ -z "$bad" ]; then echo "ok file_length"; else
    echo "not ok file_length"
    echo "$bad"
    status=1
fi

# The check itself must be able to fail: a seeded violation is found.
seed=$(mktemp -d)
trap 'rm -rf "$seed"' EXIT
mkdir -p "$seed/libdartquant/io"
printf '#include "quant/quantize.h"\n#include "base/env.h"\n' > "$seed/libdartquant/io/seeded.c"
found=$(cd "$seed" && violations libdartquant/io/seeded.c)
if [ "$found" = 'libdartquant/io/seeded.c: "quant/quantize.h"' ]; then echo "ok seeded_violation_found"; else
    echo "not ok seeded_violation_found"
    status=1
fi
exit $status
