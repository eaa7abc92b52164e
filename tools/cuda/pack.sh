#!/bin/sh
# Makes one file of all that gpu.sh needs on a machine with a GPU but without Go, nvcc or a network; this one needs Go
# and nvcc, and no GPU.
#
#   tools/cuda/pack.sh [PACK.txz]                     .gpu/pack.txz by default
#   tools/cuda/gpu.sh --packed PACK.txz OUT [part ...]  there, in the same state of the repository
#
# NVCC, CC, CXX, JOBS   as for build.sh, which makes the CUDA library and the C programs
# ARCHS                 "90a" by default
# CUDA_HOME, CUDA_STUBS as for make build-cuda, which makes the Go ones
# MOST_MIB              34: a larger pack, which takes long to copy, is refused
set -eu
cd "$(dirname "$0")/../.."
pack=${1:-.gpu/pack.txz}
build=.build/pack
mkdir -p "$build" "$(dirname "$pack")"

ARCHS=${ARCHS:-90a} tools/cuda/build.sh "$build/build" all
make -s cuda-tests CUDA_TESTS="$build" ${JOBS:+JOBS="$JOBS"}
{
    echo "packed: $(git describe --always --dirty 2>/dev/null || echo unknown)"
    sed -n 's/^nvcc: /by nvcc /p; s/^code: /for /p' "$build/build/build.log"
} >"$build/pack.txt"

# Programs and their log: what was compiled for them stays here.
programs=$(cd "$build" && find build -maxdepth 1 -type f -perm -u+x)
# What the programs have in common is most of them: xz with a dictionary for all makes 16 MiB of it, gzip 41.
# shellcheck disable=SC2086 # a list
tar -cf - -C "$build" --owner=0 --group=0 pack.txt infinite.test device.test build/build.log $programs | xz -9 >"$pack.new"
tools/cuda/keep.sh pack "$pack" "${MOST_MIB:-34}"
