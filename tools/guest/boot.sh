#!/bin/busybox sh
# shellcheck shell=dash
# The initramfs's /init: loads the modules, mounts the host's root read-only, with writable tmpfs where
# programs expect to write, and hands over to init.sh. All by busybox: a program from the host's root costs
# the emulated CPU a tenth of a second.
set -eu
bb=/bin/busybox

# Into the console's log, with the seconds since the start.
say() {
    read -r up _ </proc/uptime
    echo "guest: $up $*"
}

cannot() {
    say "cannot $*"
    $bb reboot -f
}

tmpfs() { $bb mount -t tmpfs -o "mode=$1" tmpfs "$2" || cannot "mount a tmpfs on $2"; }
share() { $bb mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" || cannot "mount the share $1 on $2"; }

$bb mount -t proc proc /proc
$bb mount -t sysfs sys /sys
$bb mount -t devtmpfs dev /dev
$bb mkdir -p /dev/pts /dev/shm
$bb mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
tmpfs 1777 /dev/shm
$bb ln -s /proc/self/fd /dev/fd
$bb ln -s /proc/self/fd/0 /dev/stdin
$bb ln -s /proc/self/fd/1 /dev/stdout
$bb ln -s /proc/self/fd/2 /dev/stderr

say "loads modules"
for module in /modules/*; do
    $bb insmod "$module" || cannot "load $module"
done

say "mounts the host's root"
# The host's files do not change under a run, so that the guest may cache them.
share root /host ro,cache=loose
share job /job rw,cache=none
# shellcheck source=/dev/null
. /job/params

# The repository stays visible where a tmpfs would hide it.
$bb mount -o bind "/host$REPO" /keep || cannot "find $REPO"
for dir in /tmp /var/tmp /run; do
    tmpfs 1777 "/host$dir"
done
if [ ! -e "/host$REPO/tools/guest/init.sh" ]; then
    $bb mkdir -p "/host$REPO"
    $bb mount -o bind /keep "/host$REPO"
fi
if [ -n "$OUT" ]; then
    $bb mkdir -p "/host$OUT" || cannot "make $OUT"
    share out "/host$OUT" rw,cache=mmap
fi
$bb mkdir -p /host/run/job /host/run/guest /host/tmp/home
$bb mount -o move /job /host/run/job
for dir in /proc /sys /dev; do
    $bb mount -o move "$dir" "/host$dir"
done
exec $bb switch_root /host /bin/sh "$REPO/tools/guest/init.sh"
