#!/bin/sh
# Sets `infinite linkbench` over verbs beside perftest's ib_write_lat and ib_write_bw, on the same two devices,
# in one guest: linkbench.sh [--rounds 5] [--out DIR] [options of run.sh]. Wants bin/infinite (make build).
#
# An emulated CPU is noisy, and other load on the machine adds to it: the two take turns, and the figures are
# medians of the rounds, and their best, which noise touches least. Round trips are whole ones; ib_write_lat prints
# half of each, so its figures are doubled. Both ends of a round trip poll; one way the sender does, in both
# programs. Exit status 0 if the medians' ratios are within the limits (below), else 1; 77: no guest can be had here.
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
    exec "$here/run.sh" --timeout 600 "$@" -- "$here/linkbench.sh" "$rounds"
}

# ours WHAT KEY BYTES ROUNDS: from rxe1 to rxe0; prints that figure.
ours() {
    timeout 60 "$root/bin/infinite" linkbench --transport verbs --rdma-device rxe1 --peer-rdma-device rxe0 \
        --measure "$1" --sizes "$3" --rounds "$4" --duration 30s --json >/tmp/ours || fail "run linkbench"
    figure=$(sed -n "s/.*\"$2\": \([0-9.e+]*\).*/\1/p" /tmp/ours)
    [ -n "$figure" ] || fail "get a figure from linkbench"
    echo "$figure"
}

# Each prints a line of the bytes, perftest's figure and ours, in us or MiB/s.
latency() { # BYTES ROUNDS
    theirs=$(guest_perftest ib_write_lat 5 -s "$1" -n "$2")
    mine=$(ours latency p50_ns "$1" "$2")
    echo "$1 $theirs $mine" | awk '{ print $1, 2 * $2, $3 / 1000 }'
}

bandwidth() { # BYTES MESSAGES
    theirs=$(guest_perftest ib_write_bw 4 -s "$1" -n "$2")
    mine=$(ours bandwidth bytes_per_second "$1" "$2")
    echo "$1 $theirs $mine" | awk '{ print $1, $2, $3 / 1048576 }'
}

puts() { # likewise, beside the figure that perftest had for bandwidth just before
    mine=$(ours puts bytes_per_second "$1" "$2")
    echo "$1 $(awk 'END { print $2 }' /tmp/bandwidth) $mine" | awk '{ print $1, $2, $3 / 1048576 }'
}

# at_rank FILE BYTES COLUMN RANK: of that size's figures, sorted; the rank is median, least or most.
at_rank() {
    awk -v bytes="$2" -v column="$3" '$1 == bytes { print $column }' "$1" | sort -g | awk -v rank="$4" '
        { x[NR] = $1 }
        END { print rank == "least" ? x[1] : rank == "most" ? x[NR] : (x[int((NR + 1) / 2)] + x[int((NR + 2) / 2)]) / 2 }'
}

# row WHAT FILE BYTES BEST LIMIT: a row of the table, and of the JSON. The limit, 0 for none, is for the medians.
row() {
    awk -v what="$1" -v bytes="$3" -v best="$4" -v limit="$5" \
        -v theirs="$(at_rank "$2" "$3" 2 median)" -v ours="$(at_rank "$2" "$3" 3 median)" \
        -v their_best="$(at_rank "$2" "$3" 2 "$4")" -v our_best="$(at_rank "$2" "$3" 3 "$4")" 'BEGIN {
            ratio = ours / theirs
            best_ratio = our_best / their_best
            good = limit == 0 || (best == "most" ? ratio >= limit : ratio <= limit)
            printf "%-24s %8d %10.2f %10.2f %7.3f %12.2f %10.2f %7.3f  %s\n", what, bytes, theirs, ours, ratio,
                their_best, our_best, best_ratio, limit == 0 ? "" : good ? "ok" : "missed"
            printf "{\"what\": \"%s\", \"bytes\": %d, \"perftest\": %.2f, \"linkbench\": %.2f, \"ratio\": %.3f, " \
                "\"best_perftest\": %.2f, \"best_linkbench\": %.2f, \"best_ratio\": %.3f, \"ok\": %s}\n",
                what, bytes, theirs, ours, ratio, their_best, our_best, best_ratio, good ? "true" : "false" >>"/tmp/rows"
        }'
}

in_guest() {
    # shellcheck source=/dev/null
    . "$GUEST_LIB"
    echo "round, what: bytes, perftest, linkbench"
    for round in $(seq "$1"); do
        for what in "latency 16384 200" "latency 65536 100" "bandwidth 1048576 60" "puts 1048576 60"; do
            $what >/tmp/line
            echo "$round, ${what%% *}: $(cat /tmp/line)"
            cat /tmp/line >>"/tmp/${what%% *}"
        done
    done
    echo
    printf '%-33s %10s %10s %7s %12s %10s %7s\n' "over $1 rounds" median "" "" best "" ""
    printf '%-24s %8s %10s %10s %7s %12s %10s %7s\n' "" bytes perftest linkbench ratio perftest linkbench ratio
    row "round trip, us" /tmp/latency 16384 least $most_latency
    row "round trip, us" /tmp/latency 65536 least $most_latency
    row "one way, MiB/s" /tmp/bandwidth 1048576 most $least_bandwidth
    row "one way by puts, MiB/s" /tmp/puts 1048576 most 0
    if [ -n "${OUT-}" ]; then
        { echo "["; sed '$!s/$/,/' /tmp/rows; echo "]"; } >"$OUT/linkbench.json"
    fi
    ! grep -q '"ok": false' /tmp/rows
}

if [ -n "${GUEST-}" ]; then in_guest "$@"; else on_host "$@"; fi
