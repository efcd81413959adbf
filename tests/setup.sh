#!/usr/bin/env bash
# Installs what a target needs, once: setup.sh build|test|bench|fuzz. As root or with sudo; otherwise prints the line.
# SPDX-License-Identifier: Apache-2.0
set -eu
what=${1:-build}
packages="gcc make pkg-config libopenblas-dev libjansson-dev libpcre2-dev libutf8proc-dev libzip-dev zlib1g-dev python3 python3-venv python3-pip"
case $what in
    test) packages="$packages g++ libcmocka-dev valgrind abigail-tools doxygen" ;;
    bench) packages="$packages" ;;
    fuzz) packages="$packages clang libclang-rt-14-dev" ;;
esac
missing=""
for p in $packages; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -eq 0 ]; then sudo=""; elif command -v sudo >/dev/null; then sudo="sudo"; else
    echo "please run as root: apt-get install -y$missing" >&2
    exit 1
fi
echo "installing:$missing"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
