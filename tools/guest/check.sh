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

# Where perftest's two ends run and how they meet.
at_server="" at_client="" address=127.0.0.1

# measure PROGRAM OPTIONS...: from rxe1 to rxe0; leaves the client's output in /tmp/client.
# shellcheck disable=SC2086  # at_server and at_client are commands
measure() {
    program=$1
    shift
    # Timeout 14 is 67 ms: the default would make a lost packet cost far more.
    $at_server timeout 60 "$program" -F -d rxe0 -x "$(guest_gid rxe0)" -u 14 "$@" >/tmp/server 2>&1 &
    # Port 18515, listening.
    until $at_server grep -q ':4853 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
    $at_client timeout 60 "$program" -F -d rxe1 -x "$(guest_gid rxe1)" -u 14 "$@" "$address" >/tmp/client 2>&1 ||
        { cat /tmp/server /tmp/client; fail "run $program"; }
    wait $! || { cat /tmp/server; fail "run $program's server"; }
}

# perf PROGRAM COLUMN OPTIONS...: prints the figure in that column of the result. On a busy host perftest may
# fail to find the clock's rate and say inf: once more then.
perf() {
    column=$2
    name=$1
    shift 2
    for _ in 1 2 3; do
        measure "$name" "$@"
        figure=$(awk -v column="$column" '$1 ~ /^[0-9]+$/ && NF >= 5 { print $column }' /tmp/client)
        case $figure in
        inf | nan) ;;
        *[1-9]*)
            echo "$name $*: $figure"
            return
            ;;
        *) break ;;
        esac
    done
    cat /tmp/client
    fail "get a figure from $name"
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
    at_server="ip netns exec host0" at_client="ip netns exec host1" address=10.88.0.1
    perf ib_write_lat 5 -s 8 -n 100

    step end
    echo "all done" >"$OUT/done"
    exit 3
}

if [ -n "${GUEST-}" ]; then in_guest; else on_host "$@"; fi
