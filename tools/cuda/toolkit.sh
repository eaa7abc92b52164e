#!/bin/sh
# Says where nvcc is, and first installs one into .build/cuda-toolkit when the machine has none: the pinned
# packages of toolkit.txt, by pip. Idempotent.
#
#   tools/cuda/toolkit.sh          prints nvcc's path; installs if need be
#   tools/cuda/toolkit.sh --find   does not install; nothing printed and status 1 when there is none
set -eu
cd "$(dirname "$0")/../.."
installed=$PWD/.build/cuda-toolkit

find_nvcc() {
    for nvcc in "${NVCC:-}" "$(command -v nvcc || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" \
        "$installed/nvidia/cu13/bin/nvcc"; do
        if [ -n "$nvcc" ] && [ -x "$nvcc" ]; then
            echo "$nvcc"
            return 0
        fi
    done
    return 1
}

# The packages are there in full only when the stamp is.
cmp -s tools/cuda/toolkit.txt "$installed/toolkit.txt" || rm -rf "$installed"
find_nvcc && exit 0
[ "${1:-}" = --find ] && exit 1
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "toolkit: there is no nvcc, and none to install for $(uname -sm)" >&2
    exit 1
fi
echo "toolkit: installing nvcc into .build/cuda-toolkit" >&2
mkdir -p "$installed"
python3 -m venv "$installed/venv"
"$installed/venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --target "$installed" -r tools/cuda/toolkit.txt >&2
chmod +x "$installed"/nvidia/cu13/bin/* "$installed"/nvidia/cu13/nvvm/bin/*
rm -rf "$installed/venv"
cp tools/cuda/toolkit.txt "$installed/"
find_nvcc
