#!/bin/sh
# Runs a command in a guest with Soft-RoCE devices: run.sh [options] -- COMMAND [ARGUMENT...]
# Its output comes to stdout, line by line, and its exit status is this one's. See README.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
repo=$(cd "$here/../.." && pwd -P)

usage() {
    cat >&2 <<'END'
usage: run.sh [options] -- COMMAND [ARGUMENT...]
  --mem 2G        the guest's memory
  --cpus 2        its CPUs
  --timeout 280   seconds after which it is stopped, with exit status 124
  --accel tcg     or kvm
  --out DIR       a folder that the command can write to, at the same path ($OUT by default)
one of several guests on a network, hosts.sh makes one:
  --lan SOCKET    the network's switch (tools/guest/lan), instead of the pair of devices
  --number 0      its number there, 0 to 8: 10.77.0.(number + 1)
  --clock +5h     its clock is ahead (or behind, -7h) by so many hours
  --door PORT     127.0.0.1:PORT leads to port 9000 of the guest
  --pid FILE      gets QEMU's process id: killed, the guest has lost its power
END
    exit 2
}

cannot() {
    echo "guest run: cannot $*" >&2
    exit 125
}

mem=2G cpus=2 limit=280 accel=tcg out=${OUT-} lan="" number=0 clock="" door="" pid=""
while [ $# -gt 0 ]; do
    case $1 in
    --mem | --cpus | --timeout | --accel | --out | --lan | --number | --clock | --door | --pid)
        [ $# -ge 2 ] || usage
        case $1 in
        --mem) mem=$2 ;;
        --cpus) cpus=$2 ;;
        --timeout) limit=$2 ;;
        --accel) accel=$2 ;;
        --out) out=$2 ;;
        --lan) lan=$2 ;;
        --number) number=$2 ;;
        --clock) clock=$2 ;;
        --door) door=$2 ;;
        --pid) pid=$2 ;;
        esac
        shift 2
        ;;
    --)
        shift
        break
        ;;
    *) usage ;;
    esac
done
[ $# -gt 0 ] || usage
case $limit in '' | *[!0-9]*) usage ;; esac
case $number in [0-8]) ;; *) usage ;; esac
case $door in *[!0-9]*) usage ;; esac
case $clock in
'') ;;
[+-][0-9]h | [+-][0-9][0-9]h) clock=$(date -u -d "now ${clock%h} hours" +%Y-%m-%dT%H:%M:%S) ;;
*) usage ;;
esac
case $accel in
tcg) accel="tcg,thread=multi" cpu=max ;;
kvm)
    cpu=host
    if [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then
        cannot "use KVM: no access to /dev/kvm"
    fi
    ;;
*) usage ;;
esac

"$here/setup.sh"
PATH=$PATH:/usr/sbin:/sbin
if [ -n "$out" ]; then
    mkdir -p "$out" || cannot "make $out"
    out=$(cd "$out" && pwd -P)
fi
tree=$repo/.build/guest/$(readlink "$repo/.build/guest/current")
job=$(mktemp -d "$repo/.build/guest/run.XXXXXX")
qemu="" reader=""

# shellcheck disable=SC2317  # by the trap
cleanup() {
    trap - EXIT
    [ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true
    wait
    rm -rf "$job"
}
trap cleanup EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Single quotes around a value, for a shell to read.
quoted() {
    printf "'"
    printf %s "$1" | sed "s/'/'\\\\''/g"
    printf "'"
}

setting() {
    printf '%s=' "$1"
    quoted "$2"
    echo
}

{
    setting REPO "$repo"
    setting TREE "$tree"
    setting DIR "$(pwd -P)"
    setting OUT "$out"
    setting PATH "$PATH"
    setting GOMODCACHE "$(go env GOMODCACHE 2>/dev/null || true)"
    setting LIMIT "$limit"
    setting LAN "${lan:+$number}"
} >"$job/params"
{
    printf exec
    for argument in "$@"; do
        printf ' '
        quoted "$argument"
    done
    echo
} >"$job/command"

# Options of QEMU end at a comma.
option() { printf %s "$1" | sed 's/,/,,/g'; }

share() { printf 'local,id=%s,security_model=none,multidevs=remap,%spath=%s' "$1" "$3" "$(option "$2")"; }

set -- -no-user-config -nodefaults -no-reboot -display none -nic none -accel "$accel" -cpu "$cpu" -smp "$cpus" -m "$mem" \
    -kernel "$tree/kernel" -initrd "$tree/initramfs.zst" \
    -append "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off random.trust_cpu=on audit=0 rcupdate.rcu_expedited=1 no_timer_check nowatchdog highres=off" \
    -chardev file,id=console,path=console -serial chardev:console \
    -device virtio-serial-pci -chardev file,id=out,path=out -device virtserialport,chardev=out,name=out \
    -fsdev "$(share root / readonly=on,)" -device virtio-9p-pci,fsdev=root,mount_tag=root \
    -fsdev "$(share job "$job" '')" -device virtio-9p-pci,fsdev=job,mount_tag=job
[ -z "$out" ] || set -- "$@" -fsdev "$(share out "$out" '')" -device virtio-9p-pci,fsdev=out,mount_tag=out

# The network that the guests share, and a way in for whoever started them. The latter leads nowhere else.
[ -z "$lan" ] || set -- "$@" -netdev "stream,id=lan,server=off,addr.type=unix,addr.path=$(option "$lan")" \
    -device "virtio-net-pci,netdev=lan,mac=02:00:00:00:77:0$number,host_mtu=4200,romfile="
[ -z "$door" ] || set -- "$@" -netdev "user,id=door,restrict=on,net=10.99.0.0/24,hostfwd=tcp:127.0.0.1:$door-10.99.0.15:9000" \
    -device virtio-net-pci,netdev=door,mac=02:00:00:00:99:00,romfile=
[ -z "$clock" ] || set -- "$@" -rtc "base=$clock"
[ -z "$pid" ] || set -- "$@" -pidfile "$pid"

# Whatever ends this shell ends the guest: by the trap, or else by the parent-death signals.
# The pipe's writing end is open as long as the guest lives, so that cat ends with it.
cd "$job"
mkfifo out
: >console
cat out &
reader=$!
setpriv --pdeathsig TERM timeout -k 2 "$limit" setpriv --pdeathsig KILL qemu-system-x86_64 "$@" </dev/null >qemu 2>&1 3>out &
qemu=$!
ended=0
wait "$qemu" || ended=$?
qemu=""
wait "$reader" || true

if [ -s status ]; then
    status=$(cat status)
    exit "$status"
fi
if [ "$ended" = 124 ] || [ "$ended" = 137 ]; then
    status=124 why="was stopped after $limit s"
else
    status=125 why="ended without a status (QEMU: $ended)"
fi
{
    echo "guest run: the guest $why; the end of its console:"
    tail -n 40 qemu console
} >&2
exit "$status"
