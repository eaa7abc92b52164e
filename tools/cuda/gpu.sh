#!/bin/bash
# Builds the CUDA library on a machine with a GPU, checks every kernel and the whole step, and times them: one
# call that needs nvcc, a C compiler and, for the comparison, PyTorch. No Go: its test binaries are taken from
# CARRY, if set, built by `go test -c` elsewhere. BUILT=1: BUILD has been made elsewhere too.
#
#   tools/cuda/gpu.sh OUT [part ...]     parts: test sanitize go decode prefill rows product step pair
#                                profile torch
#
# OUT gets log files, lines.json (one JSON line per figure) and, by table.py, table.md.
set -u
cd "$(dirname "$0")/../.." || exit 1
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
parts=${*:-test sanitize go decode prefill rows product step pair torch}
build=${BUILD:-$out/build}
mkdir -p "$build" && build=$(cd "$build" && pwd)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
rm -f "$out/failed"
: >"$out/lines.json"

wants() { case " $parts " in *" $1 "*) return 0 ;; esac; return 1; }
say() { printf '%4ds  %s\n' $SECONDS "$*"; }

# name limit command...: runs it, keeps its output, and notes a failure.
step() {
    name=$1 limit=$2
    shift 2
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        say "$name: ok: $(tail -1 "$out/$name.log" | cut -c1-120)"
    else
        code=$?
        echo " $name" >>"$out/failed"
        say "$name: FAILED ($code)"
        tail -15 "$out/$name.log" | cut -c1-200
    fi
    grep -h '^{' "$out/$name.log" >>"$out/lines.json"
}
# What is timed runs alone, what is only checked runs together: `later` starts it, `wait` ends it.
later() { step "$@" & }

arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)
arch=${arch:-90}
[ "$arch" = 90 ] && arch=90a
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$out/device.txt"
"$nvcc" --version | tail -2 | head -1

if [ -z "${BUILT:-}" ]; then
    if ! NVCC=$nvcc ARCHS=$arch tools/cuda/build.sh "$build" all >"$out/build.log" 2>&1; then
        say "the build failed"
        tail -40 "$out/build.log"
        exit 1
    fi
    for c in bench/cuda/bench_step.c csrc/tests/test_step.c csrc/tests/test_tp.c; do
        cc -O2 -Icsrc -Icsrc/include -o "$build/$(basename "$c" .c)" "$c" "$build/libinfinite.a" -lm -lpthread -ldl || exit 1
    done
fi
cudalib=$(dirname "$(dirname "$nvcc")")/lib64
say "built"
export INFINITE_CUDA_LIBRARY=$build/libinfinite_cuda.so
# cuBLASLt, where it is not among the linker's: beside nvcc, or of a Python package.
export LD_LIBRARY_PATH=$cudalib:$(python3 -c 'import nvidia, os; print(":".join(os.path.join(r, "lib") for p in nvidia.__path__ for r, d, f in os.walk(p) if "lib" in d))' 2>/dev/null):${LD_LIBRARY_PATH:-}

if wants test; then
    for t in csrc/tests/cuda/test_*.cu; do
        n=$(basename "$t" .cu)
        case " ${SKIP:-} " in *" $n "*) ;; *) later "$n" 80 "$build/cuda_$n" ;; esac
    done
    INFINITE_TEST_GPU=1 later test_step_gpu 80 "$build/test_step"
    # Ranks of one instance that share the GPU: all of tensor parallelism but NCCL.
    INFINITE_TEST_GPU=1 INFINITE_CUDA_WITH=one_gpu later test_tp_gpu 80 "$build/test_tp"
fi
if wants go && [ -n "${CARRY:-}" ]; then
    # Their data lies beside their sources. Models are told apart by the test's second level.
    (cd engine/device && step go_device 90 "$CARRY/device.test" -test.run GPU -test.v) &
    for model in ${MODELS:-llama-h llama-l 'llama-[my]' 'llama$' mistral 'qwen2$' qwen2-w qwen3}; do
        (cd engine/cmd/infinite &&
            INFINITE_TEST_DEVICE=cuda:0 step "go_exactness_$(echo "$model" | tr -cd 'a-z0-9')" 160 "$CARRY/infinite.test" \
                -test.run "${EXACTNESS:-TestExactness\$}/$model" -test.v -test.timeout 155s) &
    done
fi
wait
if wants decode; then step bench_decode 80 "$build/bench_decode"; fi
if wants rows; then step bench_rows 60 "$build/bench_rows"; fi
if wants product; then step bench_product 60 "$build/bench_product"; fi
if wants prefill; then step bench_prefill 60 "$build/bench_prefill"; fi
if wants step; then step bench_step 90 "$build/bench_step" 1 8b decode prefill; fi
if wants pair; then
    BLOCKS=8500 step bench_pair 90 "$build/bench_step" 1 8b pair
    BLOCKS=8500 step bench_pair13 60 "$build/bench_step" 1 13b4 pair
    # A million tokens, in 8 bits: 64 GiB, of which no instance with half of this GPU could hold all.
    memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
    if [ "${memory:-0}" -gt 135000 ]; then
        BLOCKS=66000 CREDITOR_BLOCKS=33000 step bench_pair_1m 90 "$build/bench_step" 1 8b fp8 pair
    fi
fi
if wants profile && command -v ncu >/dev/null; then
    # One layer's kernels of a decode step, each by itself.
    INFINITE_CUDA_WITHOUT=graphs step profile 90 ncu --clock-control none --launch-skip 1500 --launch-count 24 \
        --metrics gpu__time_duration.sum,dram__bytes_read.sum.per_second,launch__grid_size,launch__registers_per_thread \
        "$build/bench_step" 1 8b decode
fi
if wants torch; then step torch 100 python3 bench/cuda/peers.py; fi
if wants sanitize && command -v compute-sanitizer >/dev/null; then
    # The emulator's tests are about the emulator.
    for t in $(ls csrc/tests/cuda/test_*.cu | grep -v test_emu); do
        n=$(basename "$t" .cu)
        for tool in memcheck racecheck; do
            # Tests make calls that fail on purpose.
            options=$([ $tool = memcheck ] && echo "--report-api-errors no")
            SANITIZER=1 later "${tool}_$n" 90 compute-sanitizer --tool "$tool" $options --error-exitcode 9 "$build/cuda_$n" 1
        done
    done
    wait
fi
python3 tools/cuda/table.py "$out/lines.json" >"$out/table.md" || echo " table" >>"$out/failed"
say "done; failed:$(cat "$out/failed" 2>/dev/null | tr -d '\n')"
[ ! -e "$out/failed" ]
