#!/bin/sh
# Runs a command in several guests at once, each with a kernel, addresses and an RDMA device of its own, on one
# network: hosts.sh [--hosts 2] [options of run.sh] -- COMMAND [ARGUMENT...]
# GUEST_NUMBER tells the command which one it is in. A line of output begins with that number. Exit status: that of the
# lowest guest whose command failed, by README.md's rules, else 0.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
repo=$(cd "$here/../.." && pwd -P)

hosts=2
if [ "${1-}" = --hosts ]; then
    hosts=${2-}
    shift 2
fi
case $hosts in [2-9]) ;; *) echo "usage: hosts.sh [--hosts 2 to 9] [options of run.sh] -- COMMAND [ARGUMENT...]" >&2 && exit 2 ;; esac

"$here/setup.sh"
job=$(mktemp -d "$repo/.build/guest/hosts.XXXXXX")
children=""

# shellcheck disable=SC2317  # by the trap
cleanup() {
    trap - EXIT
    for child in $children; do
        kill "$child" 2>/dev/null || true
    done
    wait
    rm -rf "$job"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

(cd "$repo" && go build -o "$job/switch" ./tools/guest/lan/switch)
"$job/switch" "$job/lan" &
children=$!
until [ -e "$job/lan" ]; do sleep 0.1; done

# one NUMBER OPTIONS...: a guest, whose status is kept beside its output.
one() {
    number=$1
    shift
    status=0
    "$here/run.sh" --lan "$job/lan" --number "$number" "$@" || status=$?
    echo "$status" >"$job/status$number"
}

number=0
guests=""
while [ $number -lt "$hosts" ]; do
    mkfifo "$job/out$number"
    sed -u "s/^/$number: /" "$job/out$number" &
    guests="$guests $!"
    one $number "$@" >"$job/out$number" 2>&1 &
    guests="$guests $!"
    children="$children $!"
    number=$((number + 1))
done
# shellcheck disable=SC2086  # a list
wait $guests
number=0
while [ $number -lt "$hosts" ]; do
    status=$(cat "$job/status$number")
    [ "$status" = 0 ] || exit "$status"
    number=$((number + 1))
done
