#!/bin/sh
# Builds libinfinite_cuda.so, and the tests and benches of the CUDA files, with nvcc 11.8 to 13 and nothing else but a C and
# a C++ compiler.
#
#   tools/cuda/build.sh [OUT_DIR [library|tests|all|check]]
#                                                          .build/cuda and tests, with the library, by default; all
#                                                          has the benches too, and bench_step, test_step, test_drafts, test_drafts_many, test_tp and test_tp_head
#
# check: no library and no programs. The tests and benches are compiled, as fast as can be and for sm_80 alone, so that a
# machine without a GPU says whether they can be; into an OUT_DIR of its own, since the flags differ.
#
# NVCC, CC, CXX   the compilers; nvcc is looked for (toolkit.sh), and given a g++ that it takes
# ARCHS           "80 90a" by default, with nvcc 11 "80 90": code for these, and for 80 what a driver can translate
#                 for GPUs that came later
# JOBS            compilers at a time
#
# OUT_DIR/build.log tells the versions, and what each kernel takes: registers, shared memory, spills. A kernel
# that spills, and what ptxas warns of, are printed too.
set -eu
cd "$(dirname "$0")/../.."

# ---- one file: build.sh --compile FILE, with the variables below in the environment ----

object() { echo "$OUT/$(echo "$1" | tr '/.' '__').o"; }

compile() {
    o=$(object "$1")
    # What a header changes is not traced: a newer one makes all objects stale.
    if [ -e "$o" ] && [ ! "$1" -nt "$o" ] && [ ! "$OUT/flags" -nt "$o" ] &&
        [ -z "$(find csrc bench -name '*.*h' -newer "$o" | head -1)" ]; then
        return 0
    fi
    rm -f "$o"
    case $1 in
    *.cu) "$NVCC" $NVCC_FLAGS -c "$1" -o "$o.new" >"$o.log" 2>&1 ;;
    *_avx512_bf16.c) $CC $C_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mfma -mavx2 -mf16c -c "$1" -o "$o.new" >"$o.log" 2>&1 ;;
    *_avx512_vnni.c) $CC $C_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mavx2 -mf16c -c "$1" -o "$o.new" >"$o.log" 2>&1 ;;
    *_avx512.c) $CC $C_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mavx2 -mf16c -c "$1" -o "$o.new" >"$o.log" 2>&1 ;;
    *_avx2.c) $CC $C_FLAGS -mavx2 -mfma -mf16c -c "$1" -o "$o.new" >"$o.log" 2>&1 ;;
    *) $CC $C_FLAGS -c "$1" -o "$o.new" >"$o.log" 2>&1 ;;
    esac || {
        echo "build: cannot compile $1"
        cat "$o.log"
        exit 255 # xargs stops
    }
    mv "$o.new" "$o"
}

if [ "${1:-}" = --compile ]; then
    compile "$2"
    exit 0
fi

# ---- the compilers ----

OUT=${1:-.build/cuda}
what=${2:-}
mkdir -p "$OUT"
NVCC=$(tools/cuda/toolkit.sh --find) || { echo "build: there is no nvcc; set NVCC, or run tools/cuda/toolkit.sh" >&2; exit 1; }
CC=${CC:-cc}
CXX=${CXX:-g++}
version=$("$NVCC" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
major=${version%%.*} minor=${version#*.}

# The newest g++ that this nvcc takes.
case $version in
11.*) newest=11 ;;
12.[0-3]) newest=12 ;;
12.[4-7]) newest=13 ;;
12.*) newest=14 ;;
*) newest=15 ;;
esac
have=$($CXX -dumpversion | cut -d. -f1)
i=$newest
while [ "$have" -gt "$newest" ] && [ "$i" -gt 8 ]; do
    if command -v "g++-$i" >/dev/null; then
        CXX=g++-$i have=$i
    fi
    i=$((i - 1))
done
[ "$have" -le "$newest" ] || echo "build: nvcc $version takes g++ up to $newest, this is $have" >&2

default="80 90a"
[ "$major" -ge 12 ] || default="80 90"
codes=""
for arch in ${ARCHS:-$default}; do
    [ "$arch" = 80 ] && codes="$codes -gencode=arch=compute_80,code=[sm_80,compute_80]" ||
        codes="$codes -gencode=arch=compute_$arch,code=sm_$arch"
done
libs=""
root=$(dirname "$(dirname "$(readlink -f "$NVCC")")")
for dir in "$root/lib64" "$root/lib" "$root/targets/x86_64-linux/lib"; do
    [ -e "$dir/libcudart_static.a" ] && libs="$libs -L$dir"
done
level="-O3 -Xptxas -v" c_level=-O3
if [ "$what" = check ]; then
    codes=-gencode=arch=compute_80,code=sm_80 level="-O0 -Xptxas -O0" c_level=-O0
fi
NVCC_FLAGS="-std=c++17 $level $codes -ccbin $CXX -I. -Icsrc -Icsrc/include -Xcompiler -fPIC,-fvisibility=hidden"
C_FLAGS="-std=gnu11 $c_level -fPIC -fvisibility=hidden -fno-math-errno -I. -Icsrc -Icsrc/include"
export OUT NVCC NVCC_FLAGS CC C_FLAGS
flags="$NVCC $version $NVCC_FLAGS $CC $C_FLAGS"
[ "$(cat "$OUT/flags" 2>/dev/null)" = "$flags" ] || echo "$flags" >"$OUT/flags"

# ---- what is built ----

library=$(ls csrc/kernels/cuda/*.cu csrc/kernels/cuda/*.c csrc/kernels/cpu/convert.c)
tests="" base="" step=""
if [ "$what" != library ]; then
    tests=$(ls csrc/tests/cuda/test_*.cu)
    if [ "$what" = all ]; then
        tests="$tests $(ls bench/cuda/*.cu)"
        step=$(find bench/cuda -name '*.c' ! -name 'test_*')
    fi
    # All of libinfinite.a but verbs, which a build with nvcc alone may lack the headers of.
    base=$(ls csrc/runtime/*.c csrc/model/*.c csrc/kernels/cpu/*.c csrc/kernels/tp/*.c csrc/dist/*.c csrc/transport/*.c \
        csrc/transport/shm/*.c csrc/transport/tcp/*.c csrc/transport/verbs/stub.c)
fi
programs=${step:+csrc/tests/test_step.c csrc/tests/test_drafts.c csrc/tests/test_drafts_many.c csrc/tests/test_tp.c csrc/tests/test_tp_head.c} # like bench_step, they load the library
# The slowest first, as far as size tells.
compile_all() {
    printf '%s\n' "$@" | sort -u | xargs ls -S | xargs -P "${JOBS:-$(nproc 2>/dev/null || echo 2)}" -n 1 "$0" --compile
}
if [ "$what" = check ]; then
    compile_all csrc/tests/cuda/test_*.cu bench/cuda/*.cu bench/cuda/*.c
    echo "build: the tests and benches compile by nvcc $version"
    exit 0
fi
compile_all $library $base $tests $step $programs

objects() { for f in "$@"; do object "$f"; done; }
runtime="$libs -lcudart_static -ldl -lpthread -lrt -lm"
$CXX -shared -o "$OUT/libinfinite_cuda.so" $(objects $library) $runtime
if [ -n "$tests" ]; then
    rm -f "$OUT/libinfinite.a" "$OUT/libparts.a"
    ar rcs "$OUT/libinfinite.a" $(objects $base)
    ar rcs "$OUT/libparts.a" $(objects $library)
    for t in $tests; do
        name=$(basename "$t" .cu)
        case $t in csrc/*) name=cuda_$name ;; esac
        $CXX -o "$OUT/$name" "$(object "$t")" "$OUT/libparts.a" "$OUT/libinfinite.a" $runtime
    done
fi
for program in ${step:+bench_step} $programs; do
    case $program in bench_step) files=$step ;; *) files=$program ;; esac
    $CC -o "$OUT/$(basename "$program" .c)" $(objects $files) "$OUT/libinfinite.a" -lm -lpthread -ldl
done

# ---- the log: a line per kernel and architecture ----

demangle=$(command -v cu++filt || command -v c++filt || echo cat)
{
    "$NVCC" --version | sed -n 's/^Cuda compilation tools, /nvcc: /p'
    $CXX --version | sed -n '1s/^/host: /p'
    echo "code: ${ARCHS:-$default}"
    for f in $library $tests; do
        case $f in *.cu) ;; *) continue ;; esac
        echo "$f"
        awk '/Compiling entry function/ { split($0, q, "\x27"); name = q[2]; arch = q[4] }
             /bytes stack frame/ { spill = $0; sub(/^.*stack frame, /, "", spill)
                 gsub(/ bytes spill (stores|loads)/, "", spill); sub(/, /, "+", spill) }
             /Used [0-9]+ registers/ { for (i = 1; i < NF; i++) if ($i == "Used") r = $(i + 1)
                 smem = 0; for (i = 2; i <= NF; i++) if ($i ~ /^smem/) smem = $(i - 2)
                 printf "  %-7s %3d registers  %6d bytes shared  spilled %s  %s\n", arch, r, smem, spill, name }
             /Potential Performance Loss|warning/ { print "  " $0 }' "$(object "$f").log" | $demangle
    done
} >"$OUT/build.log"
grep -E 'spilled ([1-9]|0\+[1-9])|Performance Loss|warning' "$OUT/build.log" | cut -c1-160 || true
echo "build: $OUT/libinfinite_cuda.so by nvcc $version for ${ARCHS:-$default}"
