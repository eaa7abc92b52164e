#!/bin/sh
# Installs QEMU and the RDMA tools, and prepares a kernel and an initramfs for run.sh under .build/guest.
# Idempotent: does nothing, and needs neither root nor the network, when everything is there.
# Exit status 77: this machine cannot have a guest; the reason is on stderr.
#
# GUEST_KERNEL=linux-image-... picks another kernel package than the distribution's default.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
base=$(cd "$here/../.." && pwd -P)/.build/guest

say() { echo "guest setup: $*" >&2; }
skip() {
    say "$*"
    exit 77
}

# command -> package, then the packages that bring no command
commands="qemu-system-x86_64:qemu-system-x86 busybox:busybox-static zstd:zstd cpio:cpio modprobe:kmod ip:iproute2
    rdma:iproute2 ibv_devinfo:ibverbs-utils ib_write_lat:perftest setpriv:util-linux flock:util-linux"
libraries="rdma-core libibverbs-dev ibverbs-providers"

# For the initramfs; what else the guest needs it loads from the unpacked tree. Without a crc32 from the
# crypto layer rxe refuses to make devices.
modules="virtio_pci virtio_console 9pnet_virtio 9p crc32_generic veth rdma_rxe ib_uverbs rdma_ucm"

missing_packages() {
    missing=""
    for pair in $commands; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
    done
    for package in $libraries; do
        dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
    done
    # A dynamic busybox cannot run in the initramfs.
    dpkg -s busybox-static >/dev/null 2>&1 || missing="$missing busybox-static"
    printf %s "$missing" | tr ' ' '\n' | sort -u | tr '\n' ' '
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 77
    fi
}

install_packages() {
    wanted=$(missing_packages)
    wanted=${wanted# }
    [ -n "$wanted" ] || return 0
    as_root true || skip "cannot install without root; run: apt-get install --no-install-recommends $wanted"
    say "installing $wanted"
    # shellcheck disable=SC2086  # a list
    { as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $wanted; } >"$base/apt.log" 2>&1 ||
        { tail -n 5 "$base/apt.log" >&2; skip "cannot install $wanted"; }
}

# The versioned package behind the distribution's metapackage: linux-image-6.1.0-*-amd64 on Debian 12,
# linux-image-*-generic on Ubuntu.
kernel_package() {
    if [ -n "${GUEST_KERNEL-}" ]; then
        echo "$GUEST_KERNEL"
        return
    fi
    for meta in linux-image-amd64 linux-image-generic; do
        apt-cache depends --no-recommends --no-suggests "$meta" 2>/dev/null |
            sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p'
    done | head -n 1
}

# Debian has image and modules in one package, Ubuntu in three; rdma_rxe is in the last.
kernel_parts() {
    echo "$1"
    for part in linux-modules linux-modules-extra; do
        name=$part-$version
        [ -z "$(apt-cache pkgnames "$name" 2>/dev/null)" ] || echo "$name"
    done
}

unpack_kernel() {
    rm -rf "$tree.part"
    mkdir -p "$tree.part/deb"
    parts=$(kernel_parts "$1" | tr '\n' ' ')
    say "downloading $parts"
    # shellcheck disable=SC2086  # a list
    (cd "$tree.part/deb" && apt-get download -q $parts) >"$base/apt.log" 2>&1 ||
        { rm -rf "$tree.part"; tail -n 5 "$base/apt.log" >&2; skip "cannot download $parts"; }
    for deb in "$tree.part/deb"/*.deb; do
        # The bulk of a kernel is drivers that a virtual machine has no use for.
        dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tree.part" --exclude='*/drivers/gpu/*' \
            --exclude='*/drivers/media/*' --exclude='*/net/wireless/*' --exclude='*/kernel/sound/*' \
            --exclude='./usr/share/*'
    done
    rm -rf "$tree.part/deb"
    # kmod looks in one of the two places, the package has the other one perhaps.
    mkdir -p "$tree.part/usr"
    [ -e "$tree.part/lib" ] || ln -s usr/lib "$tree.part/lib"
    [ -e "$tree.part/usr/lib" ] || ln -s ../lib "$tree.part/usr/lib"
    depmod -b "$tree.part" "$version"
    unpack_image "$tree.part/boot/vmlinuz-$version" "$tree.part/kernel"
    rm -rf "$tree"
    mv "$tree.part" "$tree"
}

# An integer of $3 bytes at offset $2 of file $1.
integer() { od -An -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# The ELF kernel inside a bzImage: an emulated CPU spends seconds on unpacking what the host unpacks in one.
# QEMU starts it by its PVH entry. See the kernel's Documentation/x86/boot.rst for the offsets.
unpack_image() {
    start=$((($(integer "$1" 497 1) + 1) * 512 + $(integer "$1" 584 4)))
    length=$(($(integer "$1" 588 4) - 4))
    for unpack in "xz -dcq" "zstd -dcq" "lz4 -dcq" "gzip -dcq"; do
        # shellcheck disable=SC2086  # a command with its options
        if tail -c "+$((start + 1))" "$1" | head -c "$length" | $unpack >"$2" 2>/dev/null &&
            [ "$(head -c 4 "$2" | tail -c 3)" = ELF ]; then
            return
        fi
    done
    cp "$1" "$2"
}

build_initramfs() {
    root=$tree/initramfs
    rm -rf "$root"
    mkdir -p "$root/bin" "$root/modules" "$root/proc" "$root/sys" "$root/dev" "$root/job" "$root/keep" "$root/host"
    cp "$(command -v busybox)" "$root/bin/busybox"
    cp "$here/boot.sh" "$root/init"
    chmod 755 "$root/init"
    # In the order of dependence, each once; a built-in one has no file.
    for module in $modules; do
        modprobe -d "$tree" -S "$version" --show-depends "$module" || skip "cannot find the module $module in $tree"
    done >"$root/order"
    number=100
    sed -n 's/^insmod \(.*[^ ]\) *$/\1/p' "$root/order" | awk '!seen[$0]++' | while read -r file; do
        name=$(basename "$file")
        case $name in
        *.zst) zstd -q -d -c "$file" ;;
        *.xz) xz -d -c "$file" ;;
        *) cat "$file" ;;
        esac >"$root/modules/$number-${name%%.*}"
        number=$((number + 1))
    done
    (cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet | zstd -q -3) >"$tree/initramfs.part"
    rm -rf "$root"
    mv "$tree/initramfs.part" "$tree/initramfs.zst"
}

initramfs_current() {
    [ -e "$1/initramfs.zst" ] && [ -z "$(find "$here/boot.sh" "$here/setup.sh" -newer "$1/initramfs.zst")" ]
}

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || skip "cannot run on $(uname -s) $(uname -m): only Linux on x86-64"
command -v apt-get >/dev/null 2>&1 || skip "cannot find apt-get: only Debian and Ubuntu are known here"
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$base"
# run.sh calls this each time, from several places at once perhaps.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$base/lock"
    flock 9
fi
# Without the lock: services that a package starts would keep it.
install_packages 9>&-

# Only ask apt for a kernel where none has been chosen yet.
if [ -z "${GUEST_KERNEL-}" ] && [ -e "$base/current/kernel" ]; then
    tree=$(readlink "$base/current")
    version=$tree
    tree=$base/$tree
else
    package=$(kernel_package)
    if [ -z "$package" ]; then
        as_root apt-get update -q >"$base/apt.log" 2>&1 || true
        package=$(kernel_package)
    fi
    [ -n "$package" ] || skip "cannot find a kernel package: neither linux-image-amd64 nor linux-image-generic is known to apt"
    version=${package#linux-image-}
    tree=$base/$version
    [ -e "$tree/kernel" ] || unpack_kernel "$package"
fi
initramfs_current "$tree" || build_initramfs
[ "$(readlink "$base/current" || true)" = "$version" ] || ln -sfn "$version" "$base/current"
