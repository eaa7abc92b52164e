/* Ports, GIDs, and the limit on locked memory.
 *
 * A GID is found by its bytes: its index in the port's table depends on the order in which
 * addresses came and goes with them. On Ethernet only RoCE v2 GIDs of routable addresses are good:
 * v1 does not cross routers, and a link-local address is no one's in particular. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "transport/verbs/verbs_impl.h"

uint32_t inf_verbs_mtu_bytes(enum ibv_mtu mtu) {
    return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0;
}

int inf_verbs_query_port(const inf_verbs_lib *lib, struct ibv_context *ibv, uint32_t port,
                         struct ibv_port_attr *out) {
    memset(out, 0, sizeof *out);
    if (port == 0 || port > UINT8_MAX)
        return EINVAL;
    return lib->query_port(ibv, (uint8_t)port, out);
}

/* The specification's codes of a lane's speed, in Mbit/s. */
static uint32_t lane_speed(uint8_t code) {
    static const struct {
        uint8_t code;
        uint32_t speed;
    } SPEEDS[] = {{1, 2500},   {2, 5000},   {4, 10000},  {8, 10000},
                  {16, 14000}, {32, 25000}, {64, 50000}, {128, 100000}};
    for (size_t i = 0; i < sizeof SPEEDS / sizeof SPEEDS[0]; i++)
        if (SPEEDS[i].code == code)
            return SPEEDS[i].speed;
    return 0;
}

static uint32_t lanes(uint8_t code) {
    return code == 1 ? 1 : code == 2 ? 4 : code == 4 ? 8 : code == 8 ? 12 : code == 16 ? 2 : 0;
}

static bool has_windows(const struct ibv_device_attr *attr) {
    return (attr->device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B) != 0;
}

/* Adds the ports of one device. */
static void add_ports(const inf_verbs_lib *lib, struct ibv_device *device, inf_verbs_port *out,
                      uint32_t max, uint32_t *n) {
    struct ibv_context *ibv = lib->open_device(device);
    if (!ibv)
        return; /* no right to its device file, most likely: not ours to use */
    struct ibv_device_attr attr;
    int ports = lib->query_device(ibv, &attr) == 0 ? attr.phys_port_cnt : 0;
    for (int i = 1; i <= ports; i++) {
        struct ibv_port_attr p;
        if (inf_verbs_query_port(lib, ibv, (uint32_t)i, &p) != 0)
            continue;
        if (*n < max) {
            bool ethernet = p.link_layer == IBV_LINK_LAYER_ETHERNET;
            out[*n] =
                (inf_verbs_port){.port = (uint32_t)i,
                                 .link_layer = ethernet ? INF_VERBS_ETHERNET : INF_VERBS_INFINIBAND,
                                 .active = p.state == IBV_PORT_ACTIVE,
                                 .mtu = inf_verbs_mtu_bytes(p.active_mtu),
                                 .speed = lane_speed(p.active_speed) * lanes(p.active_width),
                                 .lid = p.lid,
                                 .gids = (uint32_t)p.gid_tbl_len,
                                 .windows = has_windows(&attr)};
            strncpy(out[*n].device, lib->get_device_name(device), INF_VERBS_NAME - 1);
        }
        ++*n;
    }
    lib->close_device(ibv);
}

int inf_verbs_available(inf_err *err) { return inf_verbs_lib_get(err) ? INF_OK : INF_EUNSUPPORTED; }

int inf_verbs_ports(inf_verbs_port *out, uint32_t max, uint32_t *n, inf_err *err) {
    const inf_verbs_lib *lib = inf_verbs_lib_get(err);
    if (!n || (max > 0 && !out))
        return inf_link_error(err, -1, INF_EINVAL, "cannot list RDMA ports: no place for them");
    *n = 0;
    if (!lib)
        return INF_EUNSUPPORTED;
    int devices = 0;
    struct ibv_device **list = lib->get_device_list(&devices);
    if (!list)
        return errno == ENOSYS /* a kernel without RDMA: none */
                   ? INF_OK
                   : inf_link_error(err, -1, INF_EIO, "cannot list RDMA devices: %s",
                                    strerror(errno));
    for (int i = 0; i < devices; i++)
        add_ports(lib, list[i], out, max, n);
    lib->free_device_list(list);
    return INF_OK;
}

static bool is_link_local(const uint8_t gid[16]) {
    return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80;
}

inf_verbs_gid *inf_verbs_list_gids(const inf_verbs_lib *lib, struct ibv_context *ibv, uint32_t port,
                                   uint32_t *n) {
    struct ibv_port_attr attr;
    *n = 0;
    size_t max = 0;
    /* The library fills the tables of all ports together. */
    struct ibv_device_attr device;
    if (lib->query_device(ibv, &device) != 0)
        return NULL;
    for (uint32_t i = 1; i <= device.phys_port_cnt; i++)
        if (inf_verbs_query_port(lib, ibv, i, &attr) == 0 && attr.gid_tbl_len > 0)
            max += (size_t)attr.gid_tbl_len;
    struct ibv_gid_entry *entries = calloc(max + 1, sizeof *entries);
    inf_verbs_gid *out = calloc(max + 1, sizeof *out);
    ssize_t found = -1;
    if (entries && out)
        found = lib->query_gid_table(ibv, entries, max, 0, sizeof *entries);
    for (ssize_t i = 0; i < found; i++) {
        if (entries[i].port_num != port)
            continue;
        inf_verbs_gid *g = &out[(*n)++];
        memcpy(g->bytes, entries[i].gid.raw, sizeof g->bytes);
        g->index = entries[i].gid_index;
        g->type = entries[i].gid_type;
        g->netdev = entries[i].ndev_ifindex;
        g->is_link = is_link_local(g->bytes);
    }
    free(entries);
    if (*n > 0)
        return out;
    free(out);
    return NULL;
}

int inf_verbs_gids(const char *device, uint32_t port, inf_verbs_gid *out, uint32_t max, uint32_t *n,
                   inf_err *err) {
    if (!device || !n || (max > 0 && !out))
        return inf_link_error(err, -1, INF_EINVAL, "cannot list GIDs: no device or no place");
    *n = 0;
    inf_verbs_device *d;
    int rc = inf_verbs_device_open(device, "", &d, err);
    if (rc != INF_OK)
        return rc;
    inf_verbs_gid *all = inf_verbs_list_gids(d->context->lib, d->context->ibv, port, n);
    if (all)
        memcpy(out, all, (*n < max ? *n : max) * sizeof *all);
    free(all);
    inf_verbs_device_close(d);
    return INF_OK;
}

static bool same(const uint8_t a[16], const uint8_t b[16]) { return memcmp(a, b, 16) == 0; }

int inf_verbs_gid_for(inf_verbs_device *device, uint32_t port, const uint8_t address[16],
                      inf_verbs_gid *out, inf_err *err) {
    static const uint8_t NONE[16], MAPPED[12] = {[10] = 0xff, [11] = 0xff};
    if (!device || !out || !address)
        return inf_link_error(err, -1, INF_EINVAL, "cannot look for a GID: an argument is missing");
    const inf_verbs_context *c = device->context;
    struct ibv_port_attr attr;
    if (inf_verbs_query_port(c->lib, c->ibv, port, &attr) != 0)
        return inf_link_error(err, -1, INF_EINVAL, "cannot look at port %u of %s", port, c->name);
    bool ethernet = attr.link_layer == IBV_LINK_LAYER_ETHERNET, any = same(address, NONE);
    uint32_t n, best = 0;
    inf_verbs_gid *all = inf_verbs_list_gids(c->lib, c->ibv, port, &n);
    for (uint32_t i = 0; i < n; i++) {
        const inf_verbs_gid *g = &all[i];
        bool good = ethernet ? g->type == INF_VERBS_GID_ROCE_V2 && !g->is_link
                             : g->type == INF_VERBS_GID_IB;
        if (!good || !(any || same(g->bytes, address)))
            continue;
        uint32_t rank = memcmp(g->bytes, MAPPED, sizeof MAPPED) == 0 ? 2 : 1;
        if (rank > best) {
            best = rank;
            *out = *g;
        }
    }
    free(all);
    return best > 0 ? INF_OK
                    : inf_link_error(err, -1, INF_EINVAL, "cannot find %s GID %son port %u of %s",
                                     ethernet ? "a routable RoCE v2" : "an InfiniBand",
                                     any ? "" : "of the given address ", port, c->name);
}

static bool may_lock_all(void) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
    return syscall(SYS_capget, &header, data) == 0 &&
           (data[CAP_TO_INDEX(CAP_IPC_LOCK)].effective & CAP_TO_MASK(CAP_IPC_LOCK)) != 0;
}

int inf_verbs_memlock(uint64_t bytes, inf_err *err) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_MEMLOCK, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ||
        limit.rlim_cur >= bytes || may_lock_all())
        return INF_OK;
    return inf_link_error(err, -1, INF_ENOMEM,
                          "cannot lock %llu bytes of memory for RDMA, the limit is %llu: raise it "
                          "(ulimit -l unlimited, LimitMEMLOCK=infinity, --ulimit memlock=-1)",
                          (unsigned long long)bytes, (unsigned long long)limit.rlim_cur);
}

int inf_verbs_registration_error(inf_err *err, int32_t peer, uint64_t bytes, int reason) {
    int rc = reason == ENOMEM || reason == EAGAIN || reason == EPERM ? inf_verbs_memlock(bytes, err)
                                                                     : INF_OK;
    if (rc != INF_OK) {
        if (err)
            err->instance = peer;
        return rc;
    }
    return inf_link_error(err, peer, reason == ENOMEM ? INF_ENOMEM : INF_EIO,
                          "cannot register %llu bytes of memory for RDMA: %s",
                          (unsigned long long)bytes, strerror(reason));
}
