#!/bin/bash
# Builds the CUDA library on a machine with a GPU, checks every kernel and the whole step, and times them: one
# call that needs nvcc, a C compiler and, for the comparison, PyTorch. No Go: its test binaries are taken from
# CARRY, if set, built by `go test -c` elsewhere. BUILT=1: BUILD has been made elsewhere too. --packed: all of it
# has, by pack.sh, and no compiler is needed. PEERS: what peers.sh made, or the folder that it was unpacked to.
#
#   tools/cuda/gpu.sh [--packed PACK.txz] OUT [part ...]
#
# parts: test sanitize go decode prefill rows product step gaps pair torch, which are the default, with PEERS flashinfer
# too, and profile, switches (decode steps without each part that can be left out, with each that is not taken by
# itself, and with larger blocks; products of few rows with such parts), asleep (pair, with threads that do not
# stay awake) and halves (prefill steps of a pair, computed in halves or not).
# A test of whole steps that fails is run again by itself, and then without each of these parts: OUT/blame.txt says how it passes.
# OUT gets log files, lines.json (one JSON line per figure) and, by table.py, table.md.
# DEADLINE: in seconds from the start, none by default. What runs then is ended, what has not begun by 5 s before is
# skipped and named among what failed, "(no time)"; the tables are made all the same, as they are on SIGTERM. They
# take some seconds: where a run is killed after a time, 20 s less.
set -u
if [ "${1:-}" = --packed ]; then
    [ -r "${2:-}" ] || { echo "gpu: cannot read the pack ${2:-}" >&2; exit 1; }
    pack=$(readlink -f "$2")
    shift 2
fi
[ $# -gt 0 ] || { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ -z "${PEERS:-}" ] || PEERS=$(readlink -f "$PEERS")
cd "$(dirname "$0")/../.." || exit 1
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 1
shift
parts=${*:-test sanitize go decode prefill rows product step gaps pair torch${PEERS:+ flashinfer}}
unpacked=()
# Of what xz made; the machine has Python for the comparison, but may lack xz.
uncompressed() {
    if command -v xz >/dev/null; then xz -dc "$1"; else python3 -c '
import lzma, shutil, sys
shutil.copyfileobj(lzma.open(sys.argv[1]), sys.stdout.buffer)' "$1"; fi
}
trap 'rm -rf "${unpacked[@]}"' EXIT
if [ -n "${pack:-}" ]; then
    CARRY=$(mktemp -d) && unpacked+=("$CARRY") || exit 1
    uncompressed "$pack" | tar -xf - -C "$CARRY" || { echo "gpu: cannot unpack $pack" >&2; exit 1; }
    cat "$CARRY/pack.txt"
    BUILT=1 BUILD=$CARRY/build
fi
if [ -f "${PEERS:-}" ]; then
    packed=$PEERS
    PEERS=$(mktemp -d) && unpacked+=("$PEERS") || exit 1
    tar -xzf "$packed" -C "$PEERS" || { echo "gpu: cannot unpack $packed" >&2; exit 1; }
fi
[ -z "${PEERS:-}" ] || cat "$PEERS/peers.txt" || exit 1
build=${BUILD:-$out/build}
mkdir -p "$build" && build=$(cd "$build" && pwd)
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
rm -f "$out/failed" "$out/blamed" "$out/blame.txt" "$out"/*.passes_without_*
: >"$out/lines.json"

wants() { case " $parts " in *" $1 "*) return 0 ;; esac; return 1; }
say() { printf '%4ds  %s\n' $SECONDS "$*"; }
left() { echo $((${DEADLINE:-1000000} - SECONDS)); }

# On SIGTERM what runs is ended and no time is left. Bash waits for a command before it takes a signal, but not for one
# that it was told to wait for: so all that takes long is in the background, as `child` or as a job.
child=""
ended=""
end() {
    ended=1 DEADLINE=0
    for pid in $child $(jobs -p); do kill "$pid" 2>/dev/null; done
}
trap end TERM

# limited limit log command...: its status. What does not end when told to is killed.
limited() {
    timeout -k 3 "$1" "${@:3}" >"$2" 2>&1 &
    child=$!
    wait "$child"
    code=$?
    [ -z "$ended" ] || wait "$child" 2>/dev/null # the signal had ended the first
    child=""
    return $code
}
# In the background; a shell there has no traps of the one that began it.
aside() { { trap end TERM; "$@"; } & }
wait_all() {
    wait
    [ -z "$ended" ] || wait
}

# name limit command...: runs it, keeps its output, and notes a failure. set: says of its lines what was set
# otherwise than usual.
step() {
    name=$1 limit=$2 rest=$(left)
    shift 2
    if [ "$rest" -lt 5 ]; then
        echo " $name(no time)" >>"$out/failed"
        say "$name: no time"
        return
    fi
    [ "$limit" -le "$rest" ] || limit=$rest
    if limited "$limit" "$out/$name.log" "$@"; then
        say "$name: ok: $(tail -1 "$out/$name.log" | cut -c1-120)"
    else
        code=$?
        echo " $name" >>"$out/failed"
        say "$name: FAILED ($code)"
        tail -15 "$out/$name.log" | cut -c1-200
        if [ -n "${blame:-}" ]; then # in one piece: others may fail at the same time
            failed=$(printf '%q ' "$name" env INFINITE_TEST_GPU="${INFINITE_TEST_GPU:-}" INFINITE_CUDA_WITH="${INFINITE_CUDA_WITH:-}" "$@")
            printf '%s\n' "$failed" >>"$out/blamed"
        fi
    fi
    # One that was killed may have left half a line, to which the next log's first one must not be joined.
    [ -z "$(tail -c 1 "$out/$name.log")" ] || echo >>"$out/$name.log"
    sed -n "s/^{/{${set:+\"set\":\"$set\",}/p" "$out/$name.log" >>"$out/lines.json"
}
# The parts of the library that backend.cu can do without, and those that it takes when told to.
left_out="graphs small stay early_weights fuse early_rows early_decode wgmma direct"
added="boxes small3 through bulk_small prefetch,bulk_small"
# Once the tests are over, whose time limits these would be too many for. All parts at once, and briefly: a test that
# hangs without each of them must not take the machine from what is timed.
find_parts() {
    [ -e "$out/blamed" ] || return
    while read -r failed <&3; do
        [ -z "$failed" ] || [ "$(left)" -lt 45 ] || eval "find_part $failed"
    done 3<"$out/blamed"
}
find_part() {
    if limited 40 "$out/$1.alone.log" "${@:2}"; then
        say "$1: passes by itself" | tee -a "$out/blame.txt"
        return
    fi
    [ -z "$ended" ] && [ "$(left)" -ge 45 ] || return 0
    for part in $left_out; do INFINITE_CUDA_WITHOUT=$part aside try_without "$part" "$@"; done
    wait_all
    culprits=$(cd "$out" && ls "$1".passes_without_*.log 2>/dev/null | sed "s/.*passes_without_//; s/\.log//" | tr '\n' ' ')
    say "$1: passes without: ${culprits:-none of $left_out}" | tee -a "$out/blame.txt"
}
try_without() {
    limited 40 "$out/$2.without_$1.log" "${@:3}" && mv "$out/$2.without_$1.log" "$out/$2.passes_without_$1.log"
}
# What is timed runs alone, what is only checked runs together: `later` starts it, `wait_all` ends it.
later() { aside step "$@"; }
# From its folder, where its data lies.
in_folder() { cd "$1" && step "${@:2}"; }

# What BUILD must have when it was made elsewhere.
if [ -n "${BUILT:-}" ]; then
    needed=""
    for f in csrc/tests/cuda/test_*.cu; do needed="$needed cuda_$(basename "$f" .cu)"; done
    for f in bench/cuda/*.cu; do needed="$needed $(basename "$f" .cu)"; done
    for f in $needed libinfinite_cuda.so bench_step test_step test_drafts test_drafts_many test_tp test_tp_head; do
        [ -x "$build/$f" ] || { echo "gpu: $build lacks $f" >&2; exit 1; }
    done
    for f in ${pack:+device.test infinite.test}; do
        [ -x "$CARRY/$f" ] || { echo "gpu: $pack lacks $f" >&2; exit 1; }
    done
fi

about=$(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>&1) ||
    { echo "gpu: there is no GPU here: $about" >&2; exit 1; }
echo "$about" | tee "$out/device.txt"
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -1 | tr -d .)
arch=${arch:-90}
[ "$arch" = 90 ] && arch=90a

if [ -z "${BUILT:-}" ]; then
    "$nvcc" --version | tail -2 | head -1
    if ! NVCC=$nvcc ARCHS=$arch limited "$(left)" "$out/build.log" tools/cuda/build.sh "$build" all; then
        say "the build failed"
        tail -40 "$out/build.log"
        exit 1
    fi
else
    codes=$(sed -n 's/^code: //p' "$build/build.log" 2>/dev/null)
    case " ${codes:-80} " in
    *" 80 "* | *" $arch "*) ;; # 80 has code that a driver can translate
    *) echo "gpu: $build was built for $codes, this GPU is $arch" >&2; exit 1 ;;
    esac
fi
cuda=$(dirname "$(dirname "$nvcc")")
PATH=$PATH:$cuda/bin # compute-sanitizer and ncu, which may lie beside an nvcc that is not on it
say "built"
export INFINITE_CUDA_LIBRARY=$build/libinfinite_cuda.so
# cuBLASLt and CUPTI, where they are not among the linker's: beside nvcc, or of a Python package.
wheels=$(python3 -c 'import nvidia, os; print(":".join(os.path.join(r, "lib") for p in nvidia.__path__ for r, d, f in os.walk(p) if "lib" in d))' 2>/dev/null)
export LD_LIBRARY_PATH=$cuda/lib64:$cuda/extras/CUPTI/lib64:$wheels:${LD_LIBRARY_PATH:-}

if wants test; then
    for t in csrc/tests/cuda/test_*.cu; do
        n=$(basename "$t" .cu)
        case " ${SKIP:-} " in *" $n "*) ;; *) later "$n" 120 "$build/cuda_$n" ;; esac
    done
    wait_all # what has deadlines of its own is not for a GPU that twenty others share
    blame=1
    INFINITE_TEST_GPU=1 later test_step_gpu 80 "$build/test_step"
    INFINITE_TEST_GPU=1 later test_drafts_gpu 80 "$build/test_drafts"
    INFINITE_TEST_GPU=1 later test_drafts_many_gpu 80 "$build/test_drafts_many"
    # Ranks of one instance that share the GPU: all of tensor parallelism but NCCL.
    INFINITE_TEST_GPU=1 INFINITE_CUDA_WITH=one_gpu later test_tp_gpu 80 "$build/test_tp"
    INFINITE_TEST_GPU=1 INFINITE_CUDA_WITH=one_gpu later test_tp_head_gpu 80 "$build/test_tp_head"
    wait_all
    blame=""
fi
if wants go && [ -n "${CARRY:-}" ]; then
    # Models are told apart by the test's second level. Some at a time: each has up to eight instances on the GPU.
    aside in_folder engine/device go_device 90 "$CARRY/device.test" -test.run GPU -test.v
    n=1
    for model in ${MODELS:-gemma2 gemma3 llama-mqa 'llama-[ly]' 'llama$' llama-h mistral qwen2-w 'qwen2$' qwen2-m qwen3 mixtral '(olmo|phi3|granite)'}; do
        INFINITE_TEST_DEVICE=cuda:0 aside in_folder engine/cmd/infinite "go_exactness_$(echo "$model" | tr -cd 'a-z0-9')" 160 \
            "$CARRY/infinite.test" -test.run "${EXACTNESS:-TestExactness\$}/$model" -test.v -test.timeout 155s
        n=$((n + 1))
        [ $((n % ${MODELS_AT_A_TIME:-5})) != 0 ] || wait_all
    done
fi
wait_all
if wants decode; then step bench_decode 140 "$build/bench_decode"; fi
if wants rows; then step bench_rows 60 "$build/bench_rows"; fi
if wants product; then step bench_product 60 "$build/bench_product"; fi
if wants prefill; then step bench_prefill 60 "$build/bench_prefill"; fi
if wants step; then step bench_step 90 "$build/bench_step" 1 8b decode prefill; fi
find_parts # not before what matters most is timed: it takes up to 90 s for each test that failed
if wants switches; then
    for part in graphs small stay early_weights fuse early_rows early_decode; do
        set="without $part"
        BLOCKS=4500 INFINITE_CUDA_WITHOUT=$part step "bench_step_without_$part" 30 "$build/bench_step" 1 8b decode
    done
    for part in $added; do
        set="with $part"
        BLOCKS=4500 INFINITE_CUDA_WITH=$part step "bench_step_with_${part//,/_}" 30 "$build/bench_step" 1 8b decode
    done
    set="" # what they say themselves
    for way in "2 0" "0 1" "2 0 1"; do
        step "bench_product_${way// /_}" 20 "$build/bench_product" $way
    done
    for tokens in 64 256; do
        set="blocks of $tokens"
        BLOCKS=17000 BLOCK_SIZE=$tokens step "bench_step_blocks_$tokens" 60 "$build/bench_step" 1 8b decode
    done
    set="as it is" # beside the others, since a machine is not the same after a minute
    BLOCKS=4500 step bench_step_as_is 30 "$build/bench_step" 1 8b decode
    set=""
fi
if wants gaps; then BLOCKS=4500 step bench_gaps 90 "$build/bench_step" 1 8b gaps; fi
if wants pair; then
    BLOCKS=8500 step bench_pair 90 "$build/bench_step" 1 8b pair
    BLOCKS=8500 step bench_pair13 60 "$build/bench_step" 1 13b4 pair
    # A million tokens, in 8 bits: 64 GiB, of which no instance with half of this GPU could hold all.
    memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
    if [ "${memory:-0}" -gt 135000 ]; then
        BLOCKS=66000 CREDITOR_BLOCKS=33000 step bench_pair_1m 90 "$build/bench_step" 1 8b fp8 pair
    fi
fi
if wants asleep; then
    set="as it is"
    BLOCKS=8500 step bench_pair_as_is 90 "$build/bench_step" 1 8b pair
    set="asleep"
    BLOCKS=8500 INFINITE_AWAKE_US=0 step bench_pair_asleep 90 "$build/bench_step" 1 8b pair
    set=""
fi
if wants halves; then
    for rows in "" 0 256; do
        set=${rows:+half rows $rows}
        set=${set:-as it is}
        BLOCKS=8400 CREDITOR_BLOCKS=4200 step "bench_halves_${rows:-as_is}" 60 env ${rows:+INFINITE_HALF_ROWS=$rows} \
            "$build/bench_step" 1 8b pair_prefill
    done
    set=""
fi
if wants profile && ! command -v ncu >/dev/null; then
    echo " profile(no ncu)" >>"$out/failed"
elif wants profile; then
    # One layer's kernels of a decode step, each by itself.
    INFINITE_CUDA_WITHOUT=graphs step profile 90 ncu --clock-control none --launch-skip 1500 --launch-count 24 \
        --metrics gpu__time_duration.sum,dram__bytes_read.sum.per_second,launch__grid_size,launch__registers_per_thread \
        "$build/bench_step" 1 8b decode
fi
if wants torch; then step torch 100 python3 bench/cuda/peers.py; fi
if wants flashinfer; then
    # Compiling is not for here: a module that is missing is an error.
    step flashinfer 150 env PYTHONPATH="${PEERS:+$PEERS:}${PYTHONPATH:-}" ${PEERS:+FLASHINFER_DISABLE_JIT=1} \
        python3 bench/cuda/peers.py flashinfer
fi
if wants sanitize && ! command -v compute-sanitizer >/dev/null; then
    echo " sanitize(no compute-sanitizer)" >>"$out/failed"
elif wants sanitize; then
    for t in csrc/tests/cuda/test_*.cu; do
        n=$(basename "$t" .cu)
        case $n in test_emu*) continue ;; esac # about the emulator
        for tool in memcheck racecheck; do
            # Tests make calls that fail on purpose.
            options=()
            [ $tool = memcheck ] && options=(--report-api-errors no)
            SANITIZER=1 later "${tool}_$n" 90 compute-sanitizer --tool "$tool" "${options[@]}" --error-exitcode 9 "$build/cuda_$n" 1
        done
    done
    wait_all
fi
python3 tools/cuda/table.py "$out/lines.json" >"$out/table.md" || echo " table" >>"$out/failed"
say "done; failed:$(tr -d '\n' 2>/dev/null <"$out/failed")"
[ ! -e "$out/failed" ]
