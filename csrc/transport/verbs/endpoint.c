/* An endpoint: a reliable connected queue pair, its completion queues, its memory.
 *
 * Memory: the receive ring, `slots` slots that the peer writes into, and the staging slots that
 * this end sends from, somewhat more of them. A slot is a line for the header of a long message,
 * then slot_bytes of payload.
 *
 * Who may write: only the peer's queue pair, only into the receive ring, and nobody may read or use
 * atomics. Where the device has type-2 memory windows the ring's own key gives no remote access; a
 * window over the ring, bound to this queue pair, does. Its key is known before the window is
 * bound, so it is in the local info already. Without windows (or for rings that are too large for
 * one) the ring is registered for remote writes in a protection domain of this queue pair's own, so
 * that no other queue pair's peer can use the key; such an endpoint has no puts, since the pool is
 * registered in the device's domain.
 *
 * The end: queue pair to ERR, completions taken until nothing is outstanding, window, queue pair,
 * completion queues, memory regions, memory. Never RESET, which takes completions along. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#include "transport/verbs/verbs_impl.h"

enum { MAX_TIMEOUT = 20, MAX_RETRIES = 6, PSN_MASK = 0xffffff };

/* The most that a window can cover on the devices that matter. */
static const uint64_t WINDOW_BYTES = UINT64_C(1) << 31;

static _Atomic uint64_t cookies = 1;

static const char *device_name(const inf_verbs_endpoint *ep) { return ep->device->context->name; }

static int sys_error(const inf_verbs_endpoint *ep, inf_err *err, const char *what) {
    int reason = errno ? errno : EIO;
    return inf_link_error(err, ep->config.peer, reason == ENOMEM ? INF_ENOMEM : INF_EIO,
                          "cannot make %s on %s: %s", what, device_name(ep), strerror(reason));
}

/* Staging slots: as many as the peer's ring has, and half as many again (ring.c says why). */
static uint32_t staging(uint32_t slots) { return slots + (slots + 1) / 2; }

uint64_t inf_verbs_endpoint_bytes(uint32_t slots, uint64_t slot_bytes) {
    if (inf_link_shm_bytes(slots, slot_bytes) == 0)
        return 0;
    return (slots + staging(slots)) * (INF_VERBS_LINE + slot_bytes);
}

static int check_config(const inf_verbs_config *c, inf_err *err) {
    if (inf_link_shm_bytes(c->slots, c->slot_bytes) == 0)
        return inf_link_error(err, c->peer, INF_EINVAL,
                              "cannot make an endpoint: %u slots of %llu bytes are not allowed",
                              c->slots, (unsigned long long)c->slot_bytes);
    if (c->service_level > 15 || c->traffic_class > 255 || c->timeout > MAX_TIMEOUT ||
        c->retries > MAX_RETRIES || (c->flags & ~(uint32_t)INF_VERBS_NO_WINDOWS) != 0)
        return inf_link_error(err, c->peer, INF_EINVAL,
                              "cannot make an endpoint: service level %u (0..15), traffic class %u "
                              "(0..255), timeout %u (1..20), retries %u (1..6) or flags %#x",
                              c->service_level, c->traffic_class, c->timeout, c->retries, c->flags);
    return INF_OK;
}

/* The port must be up, and its GID is looked for by its bytes. */
static int choose_port(inf_verbs_endpoint *ep, inf_err *err) {
    const inf_verbs_context *c = ep->device->context;
    struct ibv_port_attr attr;
    inf_verbs_gid gid;
    if (inf_verbs_query_port(ep->lib, c->ibv, ep->config.port, &attr) != 0)
        return inf_link_error(err, ep->config.peer, INF_EINVAL, "cannot look at port %u of %s",
                              ep->config.port, c->name);
    if (attr.state != IBV_PORT_ACTIVE)
        return inf_link_error(err, ep->config.peer, INF_EIO, "cannot use port %u of %s: it is down",
                              ep->config.port, c->name);
    if (attr.max_msg_sz < INF_VERBS_LONG)
        return inf_link_error(err, ep->config.peer, INF_EUNSUPPORTED,
                              "cannot use port %u of %s: its messages are of %u bytes at most",
                              ep->config.port, c->name, attr.max_msg_sz);
    int rc = inf_verbs_gid_for(ep->device, ep->config.port, ep->config.gid, &gid, err);
    if (rc != INF_OK)
        return rc;
    if (gid.index > UINT8_MAX) /* an address handle's field is that wide */
        return inf_link_error(err, ep->config.peer, INF_EUNSUPPORTED,
                              "cannot use port %u of %s: its GID is number %u of the table",
                              ep->config.port, c->name, gid.index);
    ep->gid_index = gid.index;
    ep->link_layer =
        attr.link_layer == IBV_LINK_LAYER_ETHERNET ? INF_VERBS_ETHERNET : INF_VERBS_INFINIBAND;
    ep->local.link_layer = (uint16_t)ep->link_layer;
    ep->local.mtu = inf_verbs_mtu_bytes(attr.active_mtu);
    ep->local.lid = attr.lid;
    memcpy(ep->local.gid, gid.bytes, sizeof ep->local.gid);
    return INF_OK;
}

/* The depths of the queues, from the shape of the ring. */
static int plan_queues(inf_verbs_endpoint *ep, inf_err *err) {
    const struct ibv_device_attr *attr = &ep->device->context->attr;
    inf_verbs_queues *q = &ep->q;
    uint32_t slots = ep->config.slots;
    uint64_t bytes = ep->config.slot_bytes;
    ep->tx_slots = staging(slots);
    ep->stride = INF_VERBS_LINE + bytes;
    ep->tx_bytes = ep->tx_slots * ep->stride;
    ep->rx_bytes = slots * ep->stride;
    ep->long_wrs =
        bytes <= INF_VERBS_LONG ? 1 : (uint32_t)((bytes + INF_VERBS_LONG - 1) / INF_VERBS_LONG) + 1;
    q->budget[INF_WR_MESSAGE] = ep->tx_slots * ep->long_wrs;
    q->budget[INF_WR_CREDIT] = slots;
    q->budget[INF_WR_PUT] = INF_VERBS_PUTS;
    q->budget[INF_WR_BIND] = INF_VERBS_BINDS;
    q->budget[INF_WR_OTHER] = 6;
    for (int i = 0; i < INF_WR_KINDS; i++)
        q->send_depth += q->budget[i];
    q->send_depth += 1;            /* the mark of a drain */
    q->recv_depth = 2 * slots + 1; /* messages, credits, the last word */
    q->signal_every = slots / 2;
    ep->max_sge = attr->max_sge < INF_VERBS_SGES ? (uint32_t)attr->max_sge : INF_VERBS_SGES;
    if ((int)q->send_depth > attr->max_qp_wr || (int)q->send_depth > attr->max_cqe ||
        (int)q->recv_depth > attr->max_cqe)
        return inf_link_error(err, ep->config.peer, INF_EUNSUPPORTED,
                              "cannot use %s: %u slots of %llu bytes need queues of %u requests",
                              device_name(ep), slots, (unsigned long long)bytes, q->send_depth);
    q->notes = calloc(q->send_depth, sizeof *q->notes);
    ep->wrs = calloc(ep->long_wrs, sizeof *ep->wrs);
    ep->sges = calloc(ep->long_wrs, sizeof *ep->sges);
    if (!q->notes || !ep->wrs || !ep->sges)
        return inf_link_error(err, ep->config.peer, INF_ENOMEM,
                              "cannot make an endpoint: no memory");
    return INF_OK;
}

/* Pages of its own, which a fork leaves alone: what the child wrote would take them from the
 * device. */
static uint8_t *map_pages(uint64_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    madvise(p, bytes, MADV_DONTFORK);
    return p;
}

static int make_memory(inf_verbs_endpoint *ep, inf_err *err) {
    bool windows = (ep->device->context->attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B) &&
                   !(ep->config.flags & INF_VERBS_NO_WINDOWS) && ep->rx_bytes <= WINDOW_BYTES;
    ep->pd = ep->device->pd;
    if (!windows) {
        ep->pd = ep->lib->alloc_pd(ep->device->context->ibv);
        if (!ep->pd)
            return sys_error(ep, err, "a protection domain");
        ep->own_pd = true;
    }
    ep->tx = map_pages(ep->tx_bytes);
    ep->rx = map_pages(ep->rx_bytes);
    unsigned long long bytes = ep->tx_bytes + ep->rx_bytes;
    if (!ep->tx || !ep->rx)
        return inf_link_error(err, ep->config.peer, INF_ENOMEM, "cannot map %llu bytes: %s", bytes,
                              strerror(errno));
    int access = IBV_ACCESS_LOCAL_WRITE | (windows ? IBV_ACCESS_MW_BIND : IBV_ACCESS_REMOTE_WRITE);
    ep->tx_mr = ep->lib->reg_mr(ep->pd, ep->tx, ep->tx_bytes, IBV_ACCESS_LOCAL_WRITE);
    if (ep->tx_mr)
        ep->rx_mr = ep->lib->reg_mr(ep->pd, ep->rx, ep->rx_bytes, access);
    if (!ep->rx_mr)
        return inf_verbs_registration_error(err, ep->config.peer, bytes, errno);
    ep->local.ring_key = ep->rx_mr->rkey; /* a window's key takes its place */
    ep->local.ring_address = (uint64_t)(uintptr_t)ep->rx;
    return INF_OK;
}

/* What events of the queues are known by: a number, where the library wants a pointer. */
static void *cookie_of(const inf_verbs_endpoint *ep) {
    void *pointer = NULL;
    uintptr_t cookie = ep->cookie;
    memcpy(&pointer, &cookie, sizeof pointer);
    return pointer;
}

static struct ibv_qp *create_qp(inf_verbs_endpoint *ep, uint32_t max_inline) {
    struct ibv_qp_init_attr attr = {.qp_context = cookie_of(ep),
                                    .send_cq = ep->send_cq,
                                    .recv_cq = ep->recv_cq,
                                    .cap = {.max_send_wr = ep->q.send_depth,
                                            .max_recv_wr = ep->q.recv_depth,
                                            .max_send_sge = ep->own_pd ? 1 : ep->max_sge,
                                            .max_recv_sge = 1,
                                            .max_inline_data = max_inline},
                                    .qp_type = IBV_QPT_RC};
    ep->max_inline = max_inline;
    errno = 0;
    return ep->lib->create_qp(ep->pd, &attr);
}

static int make_queues(inf_verbs_endpoint *ep, inf_err *err) {
    struct ibv_context *ibv = ep->device->context->ibv;
    void *cookie = cookie_of(ep);
    int vector =
        ibv->num_comp_vectors > 0 ? (int)(ep->cookie % (uint32_t)ibv->num_comp_vectors) : 0;
    errno = 0;
    ep->channel = ep->lib->create_comp_channel(ibv);
    if (!ep->channel || fcntl(ep->channel->fd, F_SETFL, O_NONBLOCK) < 0)
        return sys_error(ep, err, "a completion channel");
    ep->send_cq = ep->lib->create_cq(ibv, (int)ep->q.send_depth, cookie, ep->channel, vector);
    ep->recv_cq = ep->lib->create_cq(ibv, (int)ep->q.recv_depth, cookie, ep->channel, vector);
    if (!ep->send_cq || !ep->recv_cq)
        return sys_error(ep, err, "a completion queue");
    static const uint32_t INLINE[] = {INF_VERBS_INLINE, INF_VERBS_INLINE / 4, 0};
    for (int i = 0; i < 3 && !ep->qp; i++)
        ep->qp = create_qp(ep, INLINE[i]);
    if (!ep->qp)
        return sys_error(ep, err, "a queue pair");
    ep->local.qp_number = ep->qp->qp_num;
    inf_verbs_list_endpoint(ep);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT,
                               .port_num = (uint8_t)ep->config.port,
                               .qp_access_flags = IBV_ACCESS_REMOTE_WRITE};
    int rc = ep->lib->modify_qp(
        ep->qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
    if (rc != 0) {
        errno = rc;
        return sys_error(ep, err, "an initialised queue pair");
    }
    rc = inf_verbs_fill_recv(ep);
    if (rc != INF_OK && err)
        *err = ep->err;
    return rc;
}

/* After the queue pair: when a process is killed the kernel frees the youngest first, and a window
 * that is bound to a queue pair keeps it (Soft-RoCE: for a minute, in which the process does not
 * end). */
static int make_window(inf_verbs_endpoint *ep, inf_err *err) {
    if (ep->own_pd)
        return INF_OK;
    errno = 0;
    ep->window = ibv_alloc_mw(ep->pd, IBV_MW_TYPE_2);
    if (!ep->window)
        return sys_error(ep, err, "a memory window");
    ep->local.ring_key = ibv_inc_rkey(ep->window->rkey);
    return INF_OK;
}

int inf_verbs_endpoint_create(inf_verbs_device *device, const inf_verbs_config *config,
                              inf_verbs_endpoint **out, inf_verbs_info *local, inf_err *err) {
    if (!device || !config || !out || !local)
        return inf_link_error(err, -1, INF_EINVAL,
                              "cannot make an endpoint: an argument is missing");
    *out = NULL;
    int rc = check_config(config, err);
    if (rc != INF_OK)
        return rc;
    inf_verbs_endpoint *ep = calloc(1, sizeof *ep);
    if (!ep)
        return inf_link_error(err, config->peer, INF_ENOMEM, "cannot make an endpoint: no memory");
    inf_verbs_device_hold(device);
    ep->device = device;
    ep->lib = device->context->lib;
    ep->config = *config;
    ep->cookie = atomic_fetch_add(&cookies, 1);
    ep->local = (inf_verbs_info){.magic = INF_VERBS_MAGIC,
                                 .version = INF_VERBS_VERSION,
                                 .slots = config->slots,
                                 .slot_bytes = config->slot_bytes};
    uint32_t psn = 0;
    if (getrandom(&psn, sizeof psn, 0) != sizeof psn)
        rc = inf_link_error(err, config->peer, INF_EIO, "cannot draw a packet number: %s",
                            strerror(errno));
    ep->local.psn = psn & PSN_MASK;
    rc = rc == INF_OK ? choose_port(ep, err) : rc;
    rc = rc == INF_OK ? plan_queues(ep, err) : rc;
    rc = rc == INF_OK ? make_memory(ep, err) : rc;
    rc = rc == INF_OK ? make_queues(ep, err) : rc;
    rc = rc == INF_OK ? make_window(ep, err) : rc;
    if (rc != INF_OK) {
        inf_verbs_endpoint_destroy(ep);
        return rc;
    }
    *local = ep->local;
    *out = ep;
    return INF_OK;
}

static void free_pages(uint8_t *pages, uint64_t bytes) {
    if (pages)
        munmap(pages, bytes);
}

void inf_verbs_endpoint_destroy(inf_verbs_endpoint *ep) {
    if (!ep)
        return;
    const inf_verbs_lib *lib = ep->lib;
    if (ep->qp) {
        inf_verbs_unlist_endpoint(ep);
        inf_verbs_drain(ep);
    }
    inf_verbs_puts_free(ep);
    if (ep->window)
        ibv_dealloc_mw(ep->window);
    if (ep->qp)
        lib->destroy_qp(ep->qp);
    if (ep->recv_cq)
        lib->destroy_cq(ep->recv_cq);
    if (ep->send_cq)
        lib->destroy_cq(ep->send_cq);
    if (ep->channel)
        lib->destroy_comp_channel(ep->channel);
    if (ep->rx_mr)
        lib->dereg_mr(ep->rx_mr);
    if (ep->tx_mr)
        lib->dereg_mr(ep->tx_mr);
    free_pages(ep->tx, ep->tx_bytes);
    free_pages(ep->rx, ep->rx_bytes);
    if (ep->own_pd)
        lib->dealloc_pd(ep->pd);
    free(ep->q.notes);
    free(ep->wrs);
    free(ep->sges);
    inf_verbs_device_close(ep->device);
    free(ep);
}
