#!/bin/sh
# Installs what a build and the tests need on Debian 12 or Ubuntu 24.04. Idempotent: does nothing, and
# needs neither root nor the network, when everything is there. Go itself must be installed.
set -eu
cd "$(dirname "$0")/.."
mode=${1:-build}

command -v go >/dev/null 2>&1 || { echo "setup: cannot find go; install Go $(sed -n 's/^go //p' go.mod) or newer first" >&2; exit 1; }

# command -> package
need="cc:gcc c++:g++ cmake:cmake ninja:ninja-build"
libs="libc6-dev libibverbs-dev"
if [ "$mode" = test ]; then
    need="$need clang-format-14:clang-format-14 clang-tidy-14:clang-tidy-14 python3:python3 node:nodejs npm:npm curl:curl"
    libs="$libs python3-venv"
fi

missing=""
for pair in $need; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
for lib in $libs; do
    case $lib in
    python3-venv) python3 -c 'import venv, ensurepip' >/dev/null 2>&1 || missing="$missing $lib" ;;
    *) dpkg -s "$lib" >/dev/null 2>&1 || missing="$missing $lib" ;;
    esac
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    sudo=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    sudo="sudo"
else
    echo "setup: cannot install without root; run: apt-get install -y$missing" >&2
    exit 1
fi
command -v apt-get >/dev/null 2>&1 || { echo "setup: cannot find apt-get; install these yourself:$missing" >&2; exit 1; }
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -20 "$log" >&2
    echo "setup: cannot install$missing" >&2
    rm -f "$log"
    exit 1
fi
rm -f "$log"
