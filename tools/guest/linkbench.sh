#!/bin/sh
# Sets `infinite linkbench` over verbs beside perftest's ib_write_lat and ib_write_bw, on the same two devices,
# in one guest: linkbench.sh [--rounds 5] [--out DIR] [options of run.sh]. Wants bin/infinite (make build).
#
# An emulated CPU is noisy: the two take turns, and the figures are medians over the rounds. Round trips are
# whole ones; ib_write_lat prints half of each, so its figures are doubled. Both programs' ends poll. Exit status
# 0 if the ratios are within the limits (below), else 1; 77: no guest can be had here.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
root=$(cd "$here/../.." && pwd -P)

most_latency=1.15 least_bandwidth=0.9

fail() {
    echo "guest linkbench: cannot $*" >&2
    exit 1
}

on_host() {
    rounds=5
    while [ $# -gt 0 ]; do
        case $1 in
        --rounds)
            [ $# -ge 2 ] || fail "read --rounds"
            rounds=$2
            shift 2
            ;;
        *) break ;;
        esac
    done
    [ -x "$root/bin/infinite" ] || fail "find bin/infinite; run make build"
    exec "$here/run.sh" "$@" -- "$here/linkbench.sh" "$rounds"
}

# perftest PROGRAM COLUMN OPTIONS...: from rxe1 to rxe0; prints that column of the client's result.
perftest() {
    program=$1 column=$2
    shift 2
    # Timeout 14 is 67 ms, as linkbench's.
    timeout 60 "$program" -F -d rxe0 -x "$(guest_gid rxe0)" -u 14 "$@" >/tmp/server 2>&1 &
    # Port 18515, listening.
    until grep -q ':4853 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
    timeout 60 "$program" -F -d rxe1 -x "$(guest_gid rxe1)" -u 14 "$@" 127.0.0.1 >/tmp/client 2>&1 ||
        { cat /tmp/server /tmp/client >&2; fail "run $program"; }
    wait $! || { cat /tmp/server >&2; fail "run $program's server"; }
    awk -v column="$column" '$1 ~ /^[0-9]+$/ && NF >= 5 { print $column }' /tmp/client
}

# ours WHAT KEY BYTES ROUNDS: from rxe1 to rxe0; prints that figure.
ours() {
    timeout 60 "$root/bin/infinite" linkbench --transport verbs --rdma-device rxe1 --peer-rdma-device rxe0 \
        --measure "$1" --sizes "$3" --rounds "$4" --duration 30s --json >/tmp/ours || fail "run linkbench"
    sed -n "s/.*\"$2\": \([0-9.e+]*\).*/\1/p" /tmp/ours
}

# latency BYTES ROUNDS, bandwidth BYTES MESSAGES, puts likewise: a line of BYTES, perftest's figure, ours; in us
# or MiB/s.
latency() {
    theirs=$(perftest ib_write_lat 5 -s "$1" -n "$2")
    echo "$theirs $(ours latency p50_ns "$1" "$2")" | awk -v bytes="$1" '{ print bytes, 2 * $1, $2 / 1000 }'
}

bandwidth() {
    theirs=$(perftest ib_write_bw 4 -s "$1" -n "$2")
    echo "$theirs $(ours bandwidth bytes_per_second "$1" "$2")" | awk -v bytes="$1" '{ print bytes, $1, $2 / 1048576 }'
}

puts() { # beside the same figure of perftest's
    echo "$(awk '$1 == 1048576 { print $2 }' /tmp/bandwidth | tail -1) $(ours puts bytes_per_second "$1" "$2")" |
        awk -v bytes="$1" '{ print bytes, $1, $2 / 1048576 }'
}

median() { # of a column of the lines of a size
    awk -v bytes="$2" -v column="$3" '$1 == bytes { print $column }' "$1" | sort -g |
        awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'
}

# row WHAT FILE BYTES LIMIT SIGN: a row of the table, and of the JSON.
row() {
    awk -v what="$1" -v bytes="$3" -v limit="$4" -v sign="$5" -v theirs="$(median "$2" "$3" 2)" -v ours="$(median "$2" "$3" 3)" \
        -v json=/tmp/rows 'BEGIN {
            ratio = ours / theirs
            good = limit == 0 || (sign > 0 ? ratio >= limit : ratio <= limit)
            printf "%-22s %8d %12.2f %12.2f %7.3f  %s\n", what, bytes, theirs, ours, ratio, limit == 0 ? "" : good ? "ok" : "missed"
            printf "{\"what\": \"%s\", \"bytes\": %d, \"perftest\": %.2f, \"linkbench\": %.2f, \"ratio\": %.3f, \"ok\": %s}\n",
                what, bytes, theirs, ours, ratio, good ? "true" : "false" >>json
        }'
}

in_guest() {
    # shellcheck source=/dev/null
    . "$GUEST_LIB"
    echo "         bytes, perftest, linkbench"
    for round in $(seq "$1"); do
        for what in "latency 16384 200" "latency 65536 100" "bandwidth 1048576 60" "puts 1048576 60"; do
            $what >/tmp/line
            echo "$round  ${what%% *}: $(cat /tmp/line)"
            cat /tmp/line >>"/tmp/${what%% *}"
        done
    done
    echo
    echo "medians of $round rounds       bytes     perftest    linkbench   ratio"
    row "round trip, us" /tmp/latency 16384 $most_latency -1
    row "round trip, us" /tmp/latency 65536 $most_latency -1
    row "one way, MiB/s" /tmp/bandwidth 1048576 $least_bandwidth 1
    row "one way by puts, MiB/s" /tmp/puts 1048576 0 1
    if [ -n "${OUT-}" ]; then
        { echo "["; sed '$!s/$/,/' /tmp/rows; echo "]"; } >"$OUT/linkbench.json"
    fi
    ! grep -q '"ok": false' /tmp/rows
}

if [ -n "${GUEST-}" ]; then in_guest "$@"; else on_host "$@"; fi
