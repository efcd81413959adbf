#!/usr/bin/env bash
# Plug-in files as a user meets them: an installed tree, the program, plug-ins that are wrong. Usage: run_plugin.sh [BUILD].
# SPDX-License-Identifier: Apache-2.0
set -u
out=${1:-build}
cd "$(dirname "$0")/../.." || exit 1
status=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${CC:-cc}
sanitize=""
build=$out
case $out in
    */sanitize-*)
        sanitize=${out##*/sanitize-}
        sanitize=${sanitize//-/,}
        build=${out%/sanitize-*}
        ;;
esac

check() { # name, text of what is wrong
    if [ -z "$2" ]; then echo "ok $1"; else
        echo "not ok $1"
        echo "$2"
        status=1
    fi
}

tree=$work/tree
make --no-print-directory -s install PREFIX=/usr DESTDIR="$tree" BUILD="$build" SANITIZE="$sanitize" > "$work/install.log" 2>&1 ||
    { echo "not ok install"; tail -20 "$work/install.log"; exit 1; }
headers=$tree/usr/include
folder=$tree/usr/lib/dartquant/backends-1
mkdir -p "$folder"
head -c 3000 LICENSE > "$work/text"
program() { # arguments of `ppl`
    "$tree/usr/bin/dartquant" ppl tests/data/tiny --text_file "$work/text" --seqlen 64 --limit 2 --threads 1 --json "$@"
}

# The plug-in from the installed headers alone, by its own one-line build.
flags="-std=c11 -O2 -ffp-contract=off -fPIC -shared -D_GNU_SOURCE -fvisibility=hidden"
[ -n "$sanitize" ] && flags="$flags -fsanitize=$sanitize" || flags="$flags -Wl,-z,defs"
text=$($cc $flags -Wall -Wextra -Werror -I"$headers" tests/fakes/farsim/*.c -o "$folder/libdartquant-farsim.so" -lm -lpthread 2>&1)
check plugin_builds_from_installed_headers "$text"
check plugin_links_nothing_of_the_library "$(readelf -d "$folder/libdartquant-farsim.so" | grep -i 'NEEDED.*dartquant')"
check plugin_exports_its_entry_alone \
    "$(nm -D --defined-only "$folder/libdartquant-farsim.so" | awk '$2 == "T" && $3 != "dq_backend_entry"')"

# By bare name from the plug-in folder, by absolute path from anywhere, with options; the same numbers as ref.
program --backend ref > "$work/ref.json" 2> "$work/log"
program --backend farsim > "$work/name.json" 2>> "$work/log"
cp "$folder/libdartquant-farsim.so" "$work/somewhere.so"
program --backend "$work/somewhere.so:depth=7,missing=head_nll" > "$work/path.json" 2>> "$work/log"
text=$(python3 - "$work" <<'END' 2>&1
import json, sys
load = lambda name: json.load(open(f"{sys.argv[1]}/{name}.json"))
ref, name, path = load("ref"), load("name"), load("path")
ppl = lambda r: r["results"][0]["ppl"]
for r in name, path:
    if r["device"] != "farsim:0": print("device", r["device"])
    if abs(ppl(r) / ppl(ref) - 1) > 1e-6: print("ppl", ppl(r), "instead of", ppl(ref))
END
)
[ -n "$text" ] && text="$text"$'\n'"$(cat "$work/log")"
check plugin_by_name_and_by_path "$text"

# The example of the guide, as it stands there.
python3 -c 'import re; print(max(re.findall(r"```c\n(.*?)```", open("docs/backends.md").read(), re.S), key=len))' > "$work/toy.c"
text=$($cc $flags -Wall -Wextra -Werror -I"$headers" "$work/toy.c" -o "$work/libdartquant-toy.so" 2>&1)
if [ -z "$text" ]; then
    program --backend "$work/libdartquant-toy.so" --policy warn > "$work/toy.json" 2> "$work/log"
    text=$(python3 - "$work" <<'END' 2>&1
import json, sys
ref, toy = (json.load(open(f"{sys.argv[1]}/{name}.json")) for name in ("ref", "toy"))
if toy["device"] != "toy:0": print("device", toy["device"])
if toy["results"][0]["ppl"] != ref["results"][0]["ppl"]: print("ppl", toy["results"][0], "instead of", ref["results"][0])
END
)
    grep -q 'op gemm runs on the host: device toy:0' "$work/log" || text="$text no warning: $(cat "$work/log")"
fi
check example_of_the_guide "$text"

policy=()
# What is wrong is said, and is never a crash. arguments: name, backend, words of the message.
refuses() {
    local name=$1 backend=$2 text missing="" word
    shift 2
    text=$(program --backend "$backend" "${policy[@]}" 2>&1)
    [ $? -ne 0 ] || missing=" it succeeded"
    for word in "$@"; do grep -qF -- "$word" <<< "$text" || missing="$missing '$word'"; done
    check "refuses_$name" "${missing:+missing:$missing in: $text}"
}
plugin() { # name; source on stdin
    { printf '#include <dartquant/backend.h>\n#include <stddef.h>\n'; cat; } > "$work/$1.c"
    $cc $flags -I"$headers" "$work/$1.c" -o "$work/$1.so" || echo "not ok build_$1"
}
echo 'DQ_API int nothing; int nothing;' | plugin no_entry
echo 'DQ_API const dq_backend *dq_backend_entry(uint32_t abi); const dq_backend *dq_backend_entry(uint32_t abi) { (void)abi; return NULL; }' | plugin other_abi
echo 'static const dq_backend t = {.struct_size = sizeof t, .abi = DQ_BACKEND_ABI, .name = "hollow"};
DQ_API const dq_backend *dq_backend_entry(uint32_t abi); const dq_backend *dq_backend_entry(uint32_t abi) { (void)abi; return &t; }' | plugin hollow
echo 'static const dq_backend t = {.struct_size = sizeof t, .abi = 2, .name = "future"};
DQ_API const dq_backend *dq_backend_entry(uint32_t abi); const dq_backend *dq_backend_entry(uint32_t abi) { (void)abi; return &t; }' | plugin future
printf 'int missing_driver_call(void); DQ_API int f(void); int f(void) { return missing_driver_call(); }' > "$work/driver.tail"
{ printf '#include <dartquant/backend.h>\n'; cat "$work/driver.tail"; } > "$work/driver.c"
$cc ${flags/-Wl,-z,defs/} -I"$headers" "$work/driver.c" -o "$work/driver.so"
echo "no library" > "$work/text.so"

refuses no_entry "$work/no_entry.so" dq_backend_entry "$work/no_entry.so"
refuses other_abi "$work/other_abi.so" "does not speak abi 1" "$work/other_abi.so"
refuses table_of_other_abi "$work/future.so" "abi 2" "$work/future.so"
refuses hollow "$work/hollow.so" "'hollow' lacks the mandatory slot 'open'" "$work/hollow.so"
refuses absent_driver "$work/driver.so" missing_driver_call "$work/driver.so"
refuses text_file "$work/text.so" "cannot be loaded" "$work/text.so"
refuses absent_file "$work/absent.so" "No such file" "$work/absent.so"
refuses unknown_name quantum "no backend is called 'quantum'" "auto, cpu, ref" /lib/dartquant/backends-1/libdartquant-quantum.so
refuses odd_name 'Quantum;rm' "no backend is called"
refuses relative_path ./somewhere.so "must be absolute"
refuses bad_option "farsim:colour=red" "colour=red" farsim
policy=(--policy forbid)
refuses forbidden_fallback "farsim:missing=rope" "op rope is not supported by device farsim:0" forbidden
policy=()

# Neither the current folder nor the environment is searched.
mkdir "$work/cwd" && cp "$work/somewhere.so" "$work/cwd/libdartquant-local.so"
here=$PWD
cd "$work/cwd" || exit 1
text=$(LD_LIBRARY_PATH=$work/cwd "$tree/usr/bin/dartquant" ppl "$here/tests/data/tiny" --text_file "$work/text" --backend local 2>&1)
[ $? -ne 0 ] && grep -q "no backend is called 'local'" <<< "$text" && text=""
check current_folder_and_environment_not_searched "$text"
exit $status
