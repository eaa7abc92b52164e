"""Compiles the modules of FlashInfer that bench/cuda/peers.py uses, without a GPU, and gathers them with the Python
files that they need: peers_build.py PACKAGES PACK, for tools/cuda/peers.sh, which sets the environment. PACKAGES has
the two packages as the machine with the GPU needs them; this process imports its own. With --load behind it imports
PACK's, and only loads what was made."""

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore", "CUDA initialization")  # there may be no GPU here

import flashinfer
import torch
from flashinfer.jit.attention import modules

packages, pack = map(Path, sys.argv[1:3])
# Large, and of no use to attention on Hopper; what of them is imported with the rest is carried all the same.
LEFT_OUT = ("experimental", "moe_ep")


def specs():
    """By the generators, and with the values, that the wrappers of decode and prefill call them with: the names of
    modules are made of these, and a module by another name is not found there. bf16, page tables of int32, heads of
    128; no rotation, window, cap of logits or f16 products."""
    kinds = (torch.bfloat16,) * 3 + (torch.int32, 128, 128, 0, False, False)
    yield modules.gen_batch_decode_module(*kinds)
    yield modules._gen_batch_prefill_primary_module("fa2", *kinds, False)
    yield modules.gen_batch_prefill_module("fa3", *kinds, False)


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def gather():
    """The Python files of FlashInfer, and of the sources of kernels those that the generators read though nothing is
    compiled; of TVM's interface no headers."""
    ours = Path(flashinfer.__file__).parent
    files = [getattr(m, "__file__", None) for n, m in sys.modules.items() if n.split(".")[0] == "flashinfer"]
    loaded = {Path(f).relative_to(ours) for f in files if f}
    there = packages / "flashinfer"
    for path in there.rglob("*.py"):
        name = path.relative_to(there)
        if name.parts[0] != "data" and (name.parts[0] not in LEFT_OUT or name in loaded):
            copy(path, pack / "flashinfer" / name)
    for path in there.glob("data/csrc/batch_*.*"):
        copy(path, pack / "flashinfer" / path.relative_to(there))
    there = packages / "tvm_ffi"
    for path in there.rglob("*"):
        if path.suffix in (".py", ".so"):
            copy(path, pack / "tvm_ffi" / path.relative_to(there))
    for path in packages.glob("*.dist-info/**/*"):
        if path.name == "METADATA" or path.name.startswith("LICENSE"):
            copy(path, pack / path.relative_to(packages))


def build():
    gather()
    for spec in specs():
        spec.build()
        # Where FlashInfer looks for a module before it would compile one.
        module = pack / "flashinfer/data/aot" / spec.name / f"{spec.name}.so"
        copy(spec.jit_library_path, module)
        subprocess.run(["strip", "--strip-unneeded", module], check=True)
        print(f"peers: {spec.name}, {module.stat().st_size} bytes", flush=True)


def load():
    """Fails if a module does not load, or has not the functions that the wrappers call."""
    assert Path(flashinfer.__file__).is_relative_to(pack), flashinfer.__file__
    for spec in specs():
        module = spec.build_and_load()
        names = ("plan", "run") if "decode" in spec.name else ("plan", "paged_run", "ragged_run")
        assert all(callable(getattr(module, name)) for name in names), spec.name
    print("peers: all modules load")


load() if sys.argv[3:] == ["--load"] else build()
