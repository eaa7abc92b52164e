# shellcheck shell=sh
# Functions for scripts that run in the guest:  . "$GUEST_LIB"
#
# Number I stands for netdev vI with 10.77.0.(I+1), fd77::(I+1) and RDMA device rxeI. At the start there are
# v0 and v1, the two ends of one veth pair. Changes go to ip in batches: an emulated CPU starts few processes
# a second.

guest_mtu=4200 # a path MTU of 4096 needs 4176

# The numbers of the devices that there are.
guest_numbers() {
    for guest_dir in /sys/class/net/v[0-9]*; do
        [ ! -e "$guest_dir" ] || echo "${guest_dir##*/v}"
    done
}

# Batches for ip: the addresses of number $1, its routes, and what it must know of each number in $2.
guest_address_lines() {
    echo "addr replace 10.77.0.$(($1 + 1))/24 dev v$1"
    echo "addr replace fd77::$(($1 + 1))/64 dev v$1 nodad"
}

guest_route_lines() {
    echo "route replace 10.77.0.0/24 dev v$1 table $((100 + $1))"
    echo "route replace fd77::/64 dev v$1 table $((100 + $1))"
    for guest_other in $2; do
        [ "$guest_other" != "$1" ] || continue
        echo "neigh replace 10.77.0.$((guest_other + 1)) lladdr 02:00:00:00:77:0$guest_other dev v$1 nud permanent"
        echo "neigh replace fd77::$((guest_other + 1)) lladdr 02:00:00:00:77:0$guest_other dev v$1 nud permanent"
    done
}

# All addresses are this machine's own, so that the kernel would deliver without a wire. These rules send
# what goes from one to another out by its device, and accept what comes in.
guest_rule_lines() {
    echo "rule add pref 1 iif v$1 lookup local"
    echo "rule add pref 10 from $2$(($1 + 1)) to $3 lookup $((100 + $1))"
}

guest_local_rule_lines() {
    echo "rule add pref 100 lookup local"
    echo "rule del pref 0"
}

# guest_in_order DEV...: what arrives at a device is dealt with in the order in which it was sent, as on a wire:
# by one CPU. Otherwise it is by the CPU that sent it, packets overtake each other, and rxe, which takes each
# for a loss, sends again, and at times the wrong packet when an acknowledgement comes in between.
guest_in_order() {
    for guest_device in "$@"; do
        echo 1 >"/sys/class/net/$guest_device/queues/rx-0/rps_cpus"
    done
}

guest_addresses() {
    for guest_number in $1; do
        echo "link set v$guest_number up"
        guest_address_lines "$guest_number"
        guest_route_lines "$guest_number" "$1"
    done | ip -batch -
}

guest_rdma() {
    for guest_number in $1; do
        echo "link add rxe$guest_number type rxe netdev v$guest_number"
    done | rdma -b -
}

# guest_pair: v0 and v1, ends of one wire: when one goes down, the other has no carrier. init.sh calls it.
guest_pair() {
    # The sender's address is our own, which looks like a forgery otherwise.
    echo 1 >/proc/sys/net/ipv4/conf/default/accept_local
    echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter
    echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
    {
        echo "link set lo up"
        echo "link add v0 address 02:00:00:00:77:00 mtu $guest_mtu type veth peer name v1 address 02:00:00:00:77:01 mtu $guest_mtu"
        guest_local_rule_lines
        guest_rule_lines 0 10.77.0. 10.77.0.0/24
        guest_rule_lines 1 10.77.0. 10.77.0.0/24
    } | ip -batch -
    {
        guest_local_rule_lines
        guest_rule_lines 0 fd77:: fd77::/64
        guest_rule_lines 1 fd77:: fd77::/64
    } | ip -6 -batch -
    guest_in_order v0 v1
    guest_addresses "0 1"
    guest_rdma "0 1"
}

# guest_lan NUMBER: instead of the pair v0 with RDMA device rxe0 at a network of several guests, and door, by which
# run.sh's caller comes in. init.sh calls it.
guest_lan() {
    modprobe -d "$TREE" virtio_net
    for guest_dir in /sys/class/net/*; do
        read -r guest_mac <"$guest_dir/address"
        case $guest_mac in
        02:00:00:00:77:*) echo "link set ${guest_dir##*/} name v0 up" ;;
        02:00:00:00:99:*) echo "link set ${guest_dir##*/} name door up" ;;
        esac
    done >/run/guest/links
    echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad
    ip link set lo up
    ip -batch /run/guest/links
    printf 'addr add 10.77.0.%s/24 dev v0\naddr add fd77::%s/64 dev v0 nodad\n' $(($1 + 1)) $(($1 + 1)) | ip -batch -
    [ ! -e /sys/class/net/door ] || ip addr add 10.99.0.15/24 dev door
    rdma link add rxe0 type rxe netdev v0
}

# guest_switch COUNT: instead of the pair, COUNT (2 to 9) devices at a switch: when one goes down, the others
# stay up, as with real ones.
guest_switch() {
    guest_all=""
    guest_number=0
    while [ $guest_number -lt "$1" ]; do
        guest_all="$guest_all $guest_number"
        guest_number=$((guest_number + 1))
    done
    printf 'link delete rxe0\nlink delete rxe1\n' | rdma -b -
    {
        echo "link del v0"
        echo "link add switch type bridge mcast_snooping 0"
        echo "link set switch up"
        for guest_number in $guest_all; do
            echo "link add v$guest_number address 02:00:00:00:77:0$guest_number mtu $guest_mtu type veth peer name port$guest_number mtu $guest_mtu"
            echo "link set port$guest_number master switch up"
            [ "$guest_number" -lt 2 ] || guest_rule_lines "$guest_number" 10.77.0. 10.77.0.0/24
        done
    } | ip -batch -
    for guest_number in $guest_all; do
        guest_in_order "v$guest_number" "port$guest_number"
        [ "$guest_number" -lt 2 ] || guest_rule_lines "$guest_number" fd77:: fd77::/64
    done | ip -6 -batch -
    guest_addresses "$guest_all"
    guest_rdma "$guest_all"
}

# guest_hosts COUNT: namespaces host0, host1, ... with a TCP network of their own, 10.88.0.(I+1) each, that
# stand for machines; run with "ip netns exec host0 COMMAND". rxe sends only from the first namespace, but its
# devices can be opened from all: let a process in hostI use rxeI and nothing else.
guest_hosts() {
    {
        echo "link add lan type bridge mcast_snooping 0"
        echo "addr add 10.88.0.254/24 dev lan"
        echo "link set lan up"
    } | ip -batch -
    guest_number=0
    while [ $guest_number -lt "$1" ]; do
        ip netns add "host$guest_number"
        {
            echo "link add lan$guest_number type veth peer name eth0 netns host$guest_number"
            echo "link set lan$guest_number master lan up"
        } | ip -batch -
        {
            echo "link set lo up"
            echo "addr add 10.88.0.$((guest_number + 1))/24 dev eth0"
            echo "link set eth0 up"
        } | ip -n "host$guest_number" -batch -
        guest_number=$((guest_number + 1))
    done
}

# guest_gid RXE: the index of its IPv4 GID, for perftest's -x. Indexes differ between devices and change.
guest_gid() {
    for guest_dir in 0 1 2 3 4 5 6 7; do
        read -r guest_line <"/sys/class/infiniband/$1/ports/1/gids/$guest_dir"
        case $guest_line in 0000:0000:0000:0000:0000:ffff:*) echo "$guest_dir" && return ;; esac
    done
    return 1
}

# guest_addr_del DEV: takes DEV's addresses away; its GIDs go with them, a little later.
guest_addr_del() {
    printf 'addr del %s/24 dev %s\naddr del %s/64 dev %s\n' "10.77.0.$((${1#v} + 1))" "$1" "fd77::$((${1#v} + 1))" "$1" |
        ip -batch -
}

# guest_addr_add DEV: gives DEV its addresses back, and the routes that went with them.
guest_addr_add() {
    {
        guest_address_lines "${1#v}"
        guest_route_lines "${1#v}" "$(guest_numbers)"
    } | ip -batch -
}

guest_down() { ip link set "$1" down; }

# guest_up DEV: the link comes back, and with it the addresses and routes that going down took away.
guest_up() {
    {
        echo "link set $1 up"
        guest_address_lines "${1#v}"
        guest_route_lines "${1#v}" "$(guest_numbers)"
    } | ip -batch -
}

# guest_flap DEV [SECONDS]: the link goes down and comes back.
guest_flap() {
    guest_down "$1"
    sleep "${2:-1}"
    guest_up "$1"
}

# guest_netem DEV ARGUMENTS...: what DEV sends suffers, e.g. guest_netem v0 delay 5ms loss 1%
guest_netem() {
    guest_dev=$1
    shift
    tc qdisc replace dev "$guest_dev" root netem "$@"
}

# guest_loss SHARE [DEV...]: of what DEV sends (all if none is named) this share is lost; 0 ends it.
guest_loss() {
    guest_share=$1
    shift
    # shellcheck disable=SC2046  # a list of numbers
    [ $# -gt 0 ] || set -- $(guest_numbers | sed 's/^/v/')
    for guest_dev in "$@"; do
        case $guest_share in
        0 | 0%) tc qdisc del dev "$guest_dev" root 2>/dev/null || true ;; # there may be none
        *) tc qdisc replace dev "$guest_dev" root netem loss "$guest_share" ;;
        esac
    done
}

# Where perftest's two ends run (commands to go before, such as ip netns exec host0), and how they meet.
guest_at_server="" guest_at_client="" guest_address=127.0.0.1

# guest_perftest PROGRAM COLUMN OPTIONS...: from rxe1 to rxe0; prints that column of the client's result. On a busy
# host perftest may fail to find the clock's rate and say inf: once more then. Status 1, with what the two said on
# stderr, if there is no figure.
# shellcheck disable=SC2086  # guest_at_server and guest_at_client are commands
guest_perftest() {
    guest_program=$1
    guest_column=$2
    shift 2
    for _ in 1 2 3; do
        # Timeout 14 is 67 ms: the default would make a lost packet cost far more.
        $guest_at_server timeout 60 "$guest_program" -F -d rxe0 -x "$(guest_gid rxe0)" -u 14 "$@" >/tmp/server 2>&1 &
        # Port 18515, listening.
        until $guest_at_server grep -q ':4853 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done
        $guest_at_client timeout 60 "$guest_program" -F -d rxe1 -x "$(guest_gid rxe1)" -u 14 "$@" "$guest_address" >/tmp/client 2>&1 || break
        wait $! || break
        guest_figure=$(awk -v column="$guest_column" '$1 ~ /^[0-9]+$/ && NF >= 5 { print $column }' /tmp/client)
        case $guest_figure in
        inf | nan) ;;
        *[1-9]*)
            echo "$guest_figure"
            return
            ;;
        *) break ;;
        esac
    done
    cat /tmp/server /tmp/client >&2
    echo "guest: cannot get a figure from $guest_program" >&2
    return 1
}
