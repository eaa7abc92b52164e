/* Connecting an endpoint: RTR with what the peer told, RTS, and the window over the ring.
 *
 * What the peer told is checked before a device sees it: its numbers within their bits, the shape
 * the same as ours, the ring's addresses within the address space. Whether its ring is really there
 * shows when we write to it, and harms nobody but the link. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <string.h>

#include "transport/verbs/verbs_impl.h"

enum {
    DEFAULT_TIMEOUT = 14, /* 67 ms, seven times: 0.47 s */
    DEFAULT_RETRIES = 6,  /* 7 means for ever on some devices */
    /* Credits keep the peer's receive queue from running dry. Some retries, and short ones: a
     * broken rule shows as an error rather than as a slow link. */
    RNR_RETRIES = 2,
    RNR_TIMER = 12, /* 0.64 ms */
    HOP_LIMIT = 64,
    NUMBER_MASK = 0xffffff, /* queue pair numbers and PSNs have 24 bits */
    LAST_UNICAST_LID = 0xbfff,
};

static const int64_t BIND_NS = 1000000000;

static uint32_t timeout_of(const inf_verbs_endpoint *ep) {
    return ep->config.timeout ? ep->config.timeout : DEFAULT_TIMEOUT;
}

static uint32_t retries_of(const inf_verbs_endpoint *ep) {
    return ep->config.retries ? ep->config.retries : DEFAULT_RETRIES;
}

uint64_t inf_verbs_retry_ms(const inf_verbs_endpoint *ep) {
    return (UINT64_C(4096) << timeout_of(ep)) * (retries_of(ep) + 1) / 1000000;
}

static int refuse(const inf_verbs_endpoint *ep, inf_err *err, const char *what) {
    return inf_link_error(err, ep->config.peer, INF_EPROTO, "cannot connect to peer %d: its %s",
                          ep->config.peer, what);
}

static bool is_mtu(uint32_t mtu) {
    return mtu == 256 || mtu == 512 || mtu == 1024 || mtu == 2048 || mtu == 4096;
}

static int check_remote(const inf_verbs_endpoint *ep, const inf_verbs_info *r, inf_err *err) {
    static const uint8_t NONE[16];
    if (r->magic != INF_VERBS_MAGIC || r->version != INF_VERBS_VERSION)
        return refuse(ep, err, "version of the RDMA transport is another");
    if (r->link_layer != ep->link_layer)
        return refuse(ep, err, "port is of another kind: one is Ethernet, one InfiniBand");
    if (r->qp_number == 0 || r->qp_number > NUMBER_MASK || r->psn > NUMBER_MASK)
        return refuse(ep, err, "queue pair number or packet number is none");
    if (!is_mtu(r->mtu))
        return refuse(ep, err, "MTU is none");
    bool ethernet = ep->link_layer == INF_VERBS_ETHERNET;
    if (ethernet && (memcmp(r->gid, NONE, sizeof NONE) == 0 || r->gid[0] == 0xff))
        return refuse(ep, err, "GID is none, or one of many");
    if (!ethernet && (r->lid == 0 || r->lid > LAST_UNICAST_LID))
        return refuse(ep, err, "LID is none, or one of many");
    if (r->slots != ep->config.slots || r->slot_bytes != ep->config.slot_bytes)
        return refuse(ep, err, "ring has another shape");
    if (r->ring_address % INF_VERBS_LINE != 0 || r->ring_address > UINT64_MAX - ep->rx_bytes)
        return refuse(ep, err, "ring is at an address where none can be");
    if ((r->reserved[0] | r->reserved[1]) != 0)
        return refuse(ep, err, "info says more than this version knows");
    return INF_OK;
}

static enum ibv_mtu path_mtu(uint32_t a, uint32_t b) {
    uint32_t bytes = a < b ? a : b;
    enum ibv_mtu mtu = IBV_MTU_256;
    while (mtu < IBV_MTU_4096 && inf_verbs_mtu_bytes(mtu) < bytes)
        mtu++;
    return mtu;
}

/* Sets the queue pair's next state; the mask names what attr holds. */
static int modify(inf_verbs_endpoint *ep, struct ibv_qp_attr *attr, int mask, const char *state,
                  inf_err *err) {
    int rc = inf_verbs_check_event(ep);
    if (rc == INF_OK) {
        rc = ep->lib->modify_qp(ep->qp, attr, mask);
        if (rc != 0)
            rc = inf_verbs_fail(ep, INF_EPEER,
                                "cannot connect to peer %d over %s: no queue pair in %s: %s",
                                ep->config.peer, ep->device->context->name, state, strerror(rc));
    }
    if (rc != INF_OK && err)
        *err = ep->err;
    return rc;
}

/* The table may have changed before the endpoint was listed for events. */
static int check_gid(inf_verbs_endpoint *ep, inf_err *err) {
    union ibv_gid gid;
    if (ep->lib->query_gid(ep->device->context->ibv, (uint8_t)ep->config.port, (int)ep->gid_index,
                           &gid) == 0 &&
        memcmp(gid.raw, ep->local.gid, sizeof gid.raw) == 0)
        return INF_OK;
    inf_verbs_fail(ep, INF_EIO, "cannot connect to peer %d: the address on port %u of %s is gone",
                   ep->config.peer, ep->config.port, ep->device->context->name);
    if (err)
        *err = ep->err;
    return ep->err.code;
}

/* Is the endpoint there, and in the state that comes before the next? */
static int check_state(const inf_verbs_endpoint *ep, inf_endpoint_state state, inf_err *err) {
    if (ep && ep->err.code != 0) {
        if (err)
            *err = ep->err;
        return ep->err.code;
    }
    return ep && ep->state == state
               ? INF_OK
               : inf_link_error(err, -1, INF_EINVAL,
                                "cannot connect: no endpoint, or one in another state");
}

int inf_verbs_endpoint_to_rtr(inf_verbs_endpoint *ep, const inf_verbs_info *remote, inf_err *err) {
    int rc = check_state(ep, INF_ENDPOINT_INIT, err);
    if (rc != INF_OK)
        return rc;
    if (!remote)
        return inf_link_error(err, ep->config.peer, INF_EINVAL, "cannot connect to nothing");
    rc = check_remote(ep, remote, err);
    rc = rc == INF_OK ? check_gid(ep, err) : rc;
    if (rc != INF_OK)
        return rc;
    ep->remote = *remote;
    bool ethernet = ep->link_layer == INF_VERBS_ETHERNET;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR,
                               .path_mtu = path_mtu(ep->local.mtu, remote->mtu),
                               .dest_qp_num = remote->qp_number,
                               .rq_psn = remote->psn,
                               .max_dest_rd_atomic = 0,
                               .min_rnr_timer = RNR_TIMER};
    attr.ah_attr.port_num = (uint8_t)ep->config.port;
    attr.ah_attr.sl = (uint8_t)ep->config.service_level;
    attr.ah_attr.dlid = ethernet ? 0 : (uint16_t)remote->lid;
    /* Within an InfiniBand subnet a LID does. The first half of a GID is the subnet's. */
    attr.ah_attr.is_global = ethernet || memcmp(ep->local.gid, remote->gid, 8) != 0;
    if (attr.ah_attr.is_global) {
        attr.ah_attr.grh.sgid_index = (uint8_t)ep->gid_index;
        attr.ah_attr.grh.hop_limit = HOP_LIMIT;
        attr.ah_attr.grh.traffic_class = (uint8_t)ep->config.traffic_class;
        memcpy(attr.ah_attr.grh.dgid.raw, remote->gid, sizeof remote->gid);
    }
    rc = modify(ep, &attr,
                IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
                "RTR", err);
    if (rc == INF_OK)
        ep->state = INF_ENDPOINT_RTR;
    return rc;
}

/* Lets the peer's queue pair, and it alone, write into the ring. */
static int open_window(inf_verbs_endpoint *ep) {
    struct ibv_send_wr wr = {.opcode = IBV_WR_BIND_MW};
    wr.bind_mw.mw = ep->window;
    wr.bind_mw.rkey = ep->local.ring_key;
    wr.bind_mw.bind_info = (struct ibv_mw_bind_info){.mr = ep->rx_mr,
                                                     .addr = (uint64_t)(uintptr_t)ep->rx,
                                                     .length = ep->rx_bytes,
                                                     .mw_access_flags = IBV_ACCESS_REMOTE_WRITE};
    int rc = inf_verbs_post(ep, &wr, 1, INF_WR_BIND, 0, 0, true);
    rc = rc == INF_OK ? inf_verbs_flush(ep, BIND_NS) : rc;
    return rc != INF_AGAIN ? rc
                           : inf_verbs_fail(ep, INF_ETIMEOUT,
                                            "cannot bind a memory window on %s: it took too long",
                                            ep->device->context->name);
}

int inf_verbs_endpoint_to_rts(inf_verbs_endpoint *ep, inf_err *err) {
    int rc = check_state(ep, INF_ENDPOINT_RTR, err);
    if (rc != INF_OK)
        return rc;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTS,
                               .sq_psn = ep->local.psn,
                               .timeout = (uint8_t)timeout_of(ep),
                               .retry_cnt = (uint8_t)retries_of(ep),
                               .rnr_retry = RNR_RETRIES,
                               .max_rd_atomic = 0};
    rc = modify(ep, &attr,
                IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                    IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC,
                "RTS", err);
    if (rc != INF_OK)
        return rc;
    ep->state = INF_ENDPOINT_RTS;
    rc = ep->window ? open_window(ep) : INF_OK;
    if (rc != INF_OK && err)
        *err = ep->err;
    return rc;
}
