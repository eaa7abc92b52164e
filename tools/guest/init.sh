#!/bin/sh
# The guest's process 1, with the host's root as its own: devices, command, status, end.
# Its output is the serial console, which run.sh shows only when something went wrong.
set -eu
# shellcheck source=/dev/null
. /run/job/params
export PATH
# shellcheck source=/dev/null
. "$REPO/tools/guest/lib.sh"

finish() {
    sync
    busybox reboot -f
}
trap finish EXIT

# Into the console's log, with the seconds since the start.
say() {
    read -r up _ </proc/uptime
    echo "guest: $up $*"
}

# The kernel asks this for what it lacks (queueing disciplines, ciphers), from the unpacked tree.
autoload() {
    # shellcheck disable=SC2016  # for the other script to expand
    printf '%s\n' '#!/bin/sh' '. /run/job/params' 'exec modprobe -d "$TREE" "$@"' >/run/guest/modprobe
    chmod 755 /run/guest/modprobe
    echo /run/guest/modprobe >/proc/sys/kernel/modprobe
}

# The port that run.sh named "out".
out_port() {
    for port in /sys/class/virtio-ports/*; do
        read -r name <"$port/name"
        [ "$name" != out ] || echo "/dev/${port##*/}"
    done
}

# Shortly before run.sh stops the guest, what still runs goes into the console's last lines.
watch_time() {
    read -r up _ </proc/uptime
    left=$((LIMIT - ${up%.*} - 4))
    [ "$left" -gt 0 ] || return 0
    sleep "$left"
    say "out of time; what still runs:"
    # shellcheck disable=SC2009  # not to find one, but to leave out the kernel's
    ps -eo pid,ppid,stat,wchan:20,time,args | grep -v ' \[.*\]$'
}

kill_all_but() {
    for dir in /proc/[0-9]*; do
        pid=${dir#/proc/}
        line=""
        { read -r line <"$dir/cmdline"; } 2>/dev/null || true
        # Kernel threads have an empty command line.
        [ -z "$line" ] || [ "$pid" = 1 ] || [ "$pid" = "$1" ] || kill -9 "$pid" 2>/dev/null || true
    done
}

# The command sees a pipe, as anywhere else: the port itself can be opened only once.
run_command() {
    mkfifo /run/guest/out
    cat /run/guest/out >"$(out_port)" &
    reader=$!
    cd "$DIR" 2>/dev/null || cd "$REPO"
    status=0
    setsid env -i PATH="$PATH" HOME=/tmp/home USER=root TMPDIR=/tmp LANG=C.UTF-8 TERM=dumb \
        XDG_CACHE_HOME=/tmp/home/.cache GOCACHE=/tmp/home/gocache GOMODCACHE="$GOMODCACHE" GOTOOLCHAIN=local GOPROXY=off \
        OUT="$OUT" GUEST=1 GUEST_NUMBER="${LAN-}" GUEST_LIB="$REPO/tools/guest/lib.sh" \
        sh /run/job/command </dev/null >/run/guest/out 2>&1 || status=$?
    # Nothing left behind may hold the pipe open.
    kill_all_but "$reader"
    wait "$reader" || true
    echo "$status" >/run/job/status
}

say "has the host's root"
echo "guest${LAN-}" >/proc/sys/kernel/hostname
# shellcheck disable=SC3045  # Debian's and Ubuntu's sh has both
ulimit -l unlimited && ulimit -n 65536
autoload
if [ -n "${LAN-}" ]; then guest_lan "$LAN"; else guest_pair; fi
say "runs the command"
watch_time &
run_command
say "ends"
