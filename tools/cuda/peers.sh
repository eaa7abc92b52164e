#!/bin/sh
# Makes one file of what bench/cuda/peers.py times beside PyTorch and is no package of the machine with the GPU: FlashInfer's
# Python files and its attention kernels, compiled ahead for GPUs of compute capability 9.0. None of it is in this
# repository. Needs nvcc, a network, 6 GB of disk and, on one core, a quarter of an hour; no GPU.
#
#   tools/cuda/peers.sh [PEERS.tgz]                      .gpu/peers.tgz by default
#   PEERS=PEERS.tgz tools/cuda/gpu.sh OUT [part ...]     there, with PyTorch for the same major version of CUDA
#
# NVCC             looked for otherwise (toolkit.sh)
# PYTHON           python3 by default; if it has no PyTorch, one is installed in .build/peers, as FlashInfer imports it
# PYTHON_THERE     3.12 by default: the version of python3 on the machine with the GPU
# JOBS             compilers at a time
# MOST_MIB         14: a larger file is refused, as by pack.sh
set -eu
cd "$(dirname "$0")/../.."
peers=${1:-.gpu/peers.tgz}
there=${PYTHON_THERE:-3.12}
build=$PWD/.build/peers
mkdir -p "$build" "$(dirname "$peers")"
NVCC=$(tools/cuda/toolkit.sh --find) || { echo "peers: there is no nvcc; set NVCC, or run tools/cuda/toolkit.sh" >&2; exit 1; }

# ---- Python here: PyTorch and what FlashInfer imports; the two packages as they will be there ----

python=$build/venv/bin/python
pip() { "$python" -m pip "$@" -q --disable-pip-version-check; }
[ -x "$python" ] || "${PYTHON:-python3}" -m venv --system-site-packages "$build/venv"
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "peers: installing PyTorch into .build/peers"
    pip install torch==2.11.0
fi
pip install ninja==1.13.2 numpy nvidia-ml-py packaging requests tqdm
if ! echo "$there" | cat tools/cuda/peers.txt - | cmp -s - "$build/stamp"; then
    rm -rf "$build/here" "$build/there" "$build/work"
    pip install --no-deps --only-binary :all: --require-hashes --target "$build/here" -r tools/cuda/peers.txt
    # The tags of platforms are matched one by one, those of the two packages among them.
    pip install --no-deps --only-binary :all: --require-hashes --target "$build/there" --python-version "$there" \
        --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 -r tools/cuda/peers.txt
    echo "$there" | cat tools/cuda/peers.txt - >"$build/stamp"
fi

# ---- nvcc's folder in the form that FlashInfer looks for; of the driver, only the name is needed to link ----

root=$(dirname "$(dirname "$(readlink -f "$NVCC")")")
cuda=$build/cuda
rm -rf "$cuda"
mkdir -p "$cuda/lib64/stubs"
for part in bin include nvvm; do
    [ ! -e "$root/$part" ] || ln -s "$root/$part" "$cuda/$part"
done
runtime=$(find -L "$root/lib64" "$root/lib" "$root/targets/x86_64-linux/lib" -maxdepth 1 -name 'libcudart.so.*' 2>/dev/null | head -1)
[ -n "$runtime" ] || { echo "peers: there is no libcudart.so beside $NVCC" >&2; exit 1; }
ln -s "$runtime" "$cuda/lib64/libcudart.so"
"${CC:-cc}" -shared -o "$cuda/lib64/stubs/libcuda.so.1" -Wl,-soname,libcuda.so.1 -x c /dev/null
ln -s libcuda.so.1 "$cuda/lib64/stubs/libcuda.so"

# Of curand its headers alone, for what CUTLASS declares: nvcc's folder may lack them, PyTorch's packages have them.
if [ ! -e "$root/include/curand_kernel.h" ] && [ ! -e "$root/targets/x86_64-linux/include/curand_kernel.h" ]; then
    mkdir -p "$build/curand"
    "$python" -c 'import nvidia, pathlib, shutil, sys
for header in (h for p in nvidia.__path__ for h in pathlib.Path(p).rglob("curand*.h")):
    shutil.copy2(header, sys.argv[1])' "$build/curand"
    export CPATH="$build/curand${CPATH:+:$CPATH}"
fi

# ---- the modules, and what of the packages is carried ----

rm -rf "$build/pack"
export CUDA_HOME="$cuda" FLASHINFER_CUDA_ARCH_LIST=9.0a FLASHINFER_WORKSPACE_BASE="$build/work" PATH="$build/venv/bin:$PATH"
export MAX_JOBS="${JOBS:-$(nproc 2>/dev/null || echo 2)}"
begin=$(date +%s)
PYTHONPATH=$build/here "$python" tools/cuda/peers_build.py "$build/there" "$build/pack"
echo "peers: built in $(($(date +%s) - begin)) s"
here=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$here" = "$there" ]; then
    FLASHINFER_DISABLE_JIT=1 LD_LIBRARY_PATH=$cuda/lib64/stubs PYTHONPATH=$build/pack \
        "$python" tools/cuda/peers_build.py "$build/there" "$build/pack" --load
    find "$build/pack" -name __pycache__ -prune -exec rm -rf {} +
else
    echo "peers: not loaded: Python here is $here"
fi
{
    grep -o '^[a-z].*==[^ ]*' tools/cuda/peers.txt
    "$NVCC" --version | sed -n 's/^Cuda compilation tools, /by nvcc /p'
    echo "for sm_90a, Python $there"
} >"$build/pack/peers.txt"

tar -czf "$peers.new" -C "$build/pack" --owner=0 --group=0 .
tools/cuda/keep.sh peers "$peers" "${MOST_MIB:-14}"
