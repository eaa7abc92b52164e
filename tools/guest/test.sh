#!/bin/sh
# `make rdma-test`: the C and Go suites over RDMA verbs in the guest with Soft-RoCE, then clusters of three
# instances over verbs, then a cluster over three guests. One line for each suite; all they say is in .build/guest/rdma-test/. Exit status 0 if
# all passed. With TEST_ALL=1 (make test-all) the longest are whole, else shorter. Where no guest can be had the test is
# skipped, with the reason and status 0; with CI set, or RDMA_TEST=required, that is a failure.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
repo=$(cd "$here/../.." && pwd -P)
build=$repo/.build/guest/rdma-test
limit=3000 # seconds, against a guest that hangs
short=-test.short=true rounds=20
[ "${TEST_ALL-}" != 1 ] || short=-test.short=false rounds=100

say() { echo "rdma-test: $*"; }

fail() {
    say "cannot $*" >&2
    exit 1
}

# skip REASON
skip() {
    [ -z "${CI-}" ] || fail "be skipped where CI is set: $1"
    [ "${RDMA_TEST-}" != required ] || fail "be skipped where RDMA_TEST=required: $1"
    say "skipped: $1"
    exit 0
}

# Prepares the guest; what that says is shown as it comes, and its last line is the reason for a skip.
set_up() {
    mkdir -p "$build"
    { "$here/setup.sh" 2>&1 || echo $? >"$build/status"; } | tee "$build/setup" >&2
    [ -e "$build/status" ] || return 0
    [ "$(cat "$build/status")" = 77 ] || fail "set the guest up"
    skip "$(tail -n 1 "$build/setup" | sed 's/^guest setup: //')"
}

on_host() {
    begun=$(date +%s)
    status=0
    rm -rf "$build"
    set_up
    mkdir -p "$build/bin" "$build/log"
    cd "$repo"
    { cmake --preset cpu && cmake --build --preset cpu; } >"$build/log/build" 2>&1 || { tail -n 40 "$build/log/build" >&2; fail "build the C tests"; }
    go test -c -o "$build/bin/rdma.test" ./rdma || fail "build the Go tests of rdma"
    go test -c -o "$build/bin/infinite.test" ./engine/cmd/infinite || fail "build the Go tests of the program"
    "$here/run.sh" --mem 3G --timeout "$limit" --out "$build/log" -- env TEST_ALL="${TEST_ALL-}" "$here/test.sh" || status=$?
    hosts || status=1
    say "$(($(date +%s) - begun)) s in all; the logs are in ${build#"$repo"/}/log"
    exit "$status"
}

# hosts: a cluster over several guests, which a test outside starts, cuts off and takes the power from.
hosts() {
    since=$(date +%s)
    why=""
    (cd "$repo/engine/cmd/infinite" && INFINITE_TEST_GUESTS="$here/run.sh" timeout -k 5 "$limit" \
        "$build/bin/infinite.test" -test.v "$short" -test.timeout 0 -test.run '^TestHosts$') >"$build/log/hosts" 2>&1 </dev/null || why="status $?"
    ! grep -q -e '--- SKIP' "$build/log/hosts" || why="was skipped"
    if [ -z "$why" ]; then
        say "passed hosts, $(($(date +%s) - since)) s"
        return
    fi
    say "FAILED hosts, $(($(date +%s) - since)) s: $why; the end of what it says:"
    tail -n 60 "$build/log/hosts"
    return 1
}

# seconds: since the guest's start.
seconds() {
    read -r up _ </proc/uptime
    echo "${up%.*}"
}

failed="" passed=0

# suite NAME LIMIT COMMAND...: runs it, for at most so many seconds, and goes on whatever comes of it. What skips
# itself here fails: here is all that it needs.
suite() {
    name=$1 most=$2
    shift 2
    since=$(seconds)
    status=0
    timeout -k 5 "$most" "$@" >"$OUT/$name" 2>&1 </dev/null &
    group=$! # timeout leads one
    wait "$group" || status=$?
    took="$(($(seconds) - since)) s"
    [ "$status" != 0 ] || ! grep -q -e '--- SKIP' "$OUT/$name" || status=77
    case $status in
    0)
        say "passed $name, $took"
        passed=$((passed + 1))
        return
        ;;
    77) why="was skipped" ;;
    124 | 137) why="ran out of time" ;;
    *) why="status $status" ;;
    esac
    say "FAILED $name, $took: $why; the end of what it says:"
    tail -n 60 "$OUT/$name"
    failed="$failed $name"
    mend_network
}

# Whatever a suite that failed has left behind.
mend_network() {
    kill -KILL -- "-$group" 2>/dev/null || true
    guest_loss 0
    for number in $(guest_numbers); do
        guest_up "v$number"
    done
    sleep 1
}

# without_library COMMAND...: as on a machine without libibverbs: an overlay of the folder where it lies, for this
# command alone, lacks the file.
without_library() {
    libraries=$(ldconfig -p | sed -n 's/.*libibverbs\.so\.1 .*x86-64.*=> \(.*\)\/[^/]*$/\1/p' | head -n 1)
    libraries=$(cd "$libraries" && pwd -P)
    mkdir -p /tmp/without/upper /tmp/without/work
    mknod /tmp/without/upper/libibverbs.so.1 c 0 0 # an overlay's mark for a file that is not there
    mount -t overlay -o "lowerdir=$libraries,upperdir=/tmp/without/upper,workdir=/tmp/without/work" overlay "$libraries"
    "$@"
}

# The package's tests, of which those over verbs skip themselves, for this reason.
without_library_suite() {
    cd "$repo/rdma"
    without_library "$build/bin/rdma.test" -test.v >"/tmp/without.log" 2>&1 || { cat /tmp/without.log; exit 1; }
    sed 's/^--- SKIP/--- without verbs/' /tmp/without.log
    grep -q 'cannot load the RDMA library: libibverbs.so.1: cannot open shared object file' /tmp/without.log
    grep -q -e '--- PASS: TestLinksExchangeMessages/shm' /tmp/without.log
    grep -q -e '--- PASS: TestLinksExchangeMessages/tcp' /tmp/without.log
    ! grep -q -e '--- PASS: TestLinksExchangeMessages/verbs' /tmp/without.log
}

# What the kernel has of all processes, after a moment for those that have just ended.
nothing_left() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        rdma resource show >"$OUT/objects.after"
        ! cmp -s "$OUT/objects.before" "$OUT/objects.after" || return 0
        sleep 0.5
    done
    echo "the kernel had:"
    cat "$OUT/objects.before"
    echo "and has now:"
    cat "$OUT/objects.after"
    return 1
}

in_guest() {
    # shellcheck source=/dev/null
    . "$GUEST_LIB"
    c=$repo/.build/cpu
    # On the pair of devices.
    suite links 120 "$c/test_verbs"
    suite leaks 120 "$c/test_verbs_leaks" $((rounds * 10)) "$rounds"
    suite ways 60 "$c/test_verbs_ways"
    suite puts 60 "$c/test_verbs_put"
    suite arrivals 60 "$c/test_verbs_arrivals"
    suite hostile 120 "$c/test_verbs_hostile" $((rounds * 1000))
    suite rails 120 "$c/test_rails"
    suite rail-lies 60 "$c/test_rails_lies"
    suite network 120 "$c/test_verbs_net"
    cd "$repo/rdma"
    suite go-links 120 "$build/bin/rdma.test" -test.v
    suite go-without-library 120 unshare -m "$here/test.sh" without-library
    # Instances, each with devices of its own at a switch.
    guest_switch 4
    rdma resource show >"$OUT/objects.before"
    cd "$repo/engine/cmd/infinite"
    for test in $("$build/bin/infinite.test" -test.list '^TestVerbs'); do
        suite "cluster-${test#TestVerbs}" 900 "$build/bin/infinite.test" -test.v "$short" -test.run "^$test\$"
    done
    suite nothing-left 30 "$here/test.sh" nothing-left
    [ -z "$failed" ] || fail "pass:$failed"
    say "passed $passed suites, $(seconds) s in the guest"
}

case "${GUEST-} ${1-}" in
" ") on_host ;;
"1 ") in_guest ;;
"1 without-library") without_library_suite ;;
"1 nothing-left") nothing_left ;;
*) fail "run with $*" ;;
esac
