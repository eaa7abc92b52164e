#!/bin/sh
# Checks the guest itself: devices, perftest between them, loss, a link flap, addresses that go and come, a
# Go binary, files and the exit status that come back. Exit status 77: no guest can be had here.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
build=$(cd "$here/../.." && pwd -P)/.build/guest/check

fail() {
    echo "guest check: cannot $*" >&2
    exit 1
}

# Runs on the host. A status that is neither 0 nor 1 shows that it is the command's own.
on_host() {
    "$here/setup.sh"
    rm -rf "$build"
    mkdir -p "$build/out"
    (cd "$here/testdata/hello" && go build -o "$build/hello" .) || fail "build the Go program"
    status=0
    "$here/run.sh" --timeout 200 --out "$build/out" "$@" -- "$here/check.sh" || status=$?
    [ "$status" != 77 ] || exit 77
    [ "$status" = 3 ] || fail "pass: status $status instead of 3"
    [ "$(cat "$build/out/done")" = "all done" ] || fail "read the file that the guest wrote"
    echo "guest check: passed"
}

step() {
    read -r up _ </proc/uptime
    echo "--- $1 ($up s)"
}

# A GID comes and goes a little after the address.
wait_gid() {
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        gid=$(guest_gid "$1") || gid=none
        case $gid in
        none) [ "$2" = there ] || return 0 ;;
        *) [ "$2" = gone ] || return 0 ;;
        esac
        sleep 0.2
    done
    fail "see the IPv4 GID of $1 $2"
}

# perf PROGRAM COLUMN OPTIONS...: prints the figure in that column of the result.
perf() {
    figure=$(guest_perftest "$@") || fail "run $1"
    name=$1
    shift 2
    echo "$name $*: $figure"
}

packets() { cat /sys/class/net/v0/statistics/rx_packets; }

in_guest() {
    # shellcheck source=/dev/null
    . "$GUEST_LIB"
    step devices
    for number in 0 1; do
        ibv_devinfo -v -d rxe$number >/tmp/info
        for word in "PORT_ACTIVE" "active_mtu:.*4096" "::ffff:10.77.0.$((number + 1)), RoCE v2" "fd77::$((number + 1)), RoCE v2"; do
            grep -q "$word" /tmp/info || { cat /tmp/info; fail "see $word at rxe$number"; }
        done
    done

    step "typical latency, us"
    before=$(packets)
    perf ib_write_lat 5 -s 8 -n 300
    [ $(($(packets) - before)) -ge 300 ] || fail "see the packets cross the wire"
    perf ib_write_lat 5 -s 16384 -n 100
    step "bandwidth, MB/s"
    perf ib_write_bw 4 -s 16384 -n 300

    step "2 % loss"
    guest_loss 2%
    perf ib_write_bw 4 -s 16384 -n 100
    tc -s qdisc show dev v1 | grep -q 'dropped [1-9]' || fail "see packets dropped"
    guest_loss 0

    step "link flap"
    guest_down v1
    ibv_devinfo -d rxe1 | grep -q PORT_DOWN || fail "see the port down"
    guest_up v1
    wait_gid rxe1 there
    perf ib_write_lat 5 -s 8 -n 100

    step "addresses gone and back"
    guest_addr_del v1
    wait_gid rxe1 gone
    guest_addr_add v1
    wait_gid rxe1 there
    perf ib_write_lat 5 -s 8 -n 100

    step "a Go binary"
    [ "$("$build/hello")" = "hello: 2 devices" ] || fail "run the Go binary"

    step "three devices at a switch, three hosts"
    guest_switch 3
    guest_hosts 3
    wait_gid rxe2 there
    guest_down v2
    ibv_devinfo | grep -c PORT_ACTIVE | grep -qx 2 || fail "see two ports up and one down"
    guest_up v2
    # shellcheck disable=SC2034  # guest_perftest looks at them
    guest_at_server="ip netns exec host0" guest_at_client="ip netns exec host1" guest_address=10.88.0.1
    perf ib_write_lat 5 -s 8 -n 100

    step end
    echo "all done" >"$OUT/done"
    exit 3
}

if [ -n "${GUEST-}" ]; then in_guest; else on_host "$@"; fi
