/* A verbs link on which nothing moves. A peer whose host vanished is found by the retries of
 * anything in flight; while nothing is, an empty write now and then makes sure. Work that the
 * device keeps beyond all retries ends the link as well. */
#include "transport/verbs/ring.h"

enum {
    PROBE_MS = 250,  /* of silence, before an empty write */
    NUDGE_MS = 1000, /* that work is under way and none is completed, before one as well */
    STUCK_MS = 5000, /* that the device may keep a work request, plus all its retries */
};

void inf_verbs_watch_begin(inf_verbs_link *v) {
    v->active_ms = v->stuck_ms = inf_link_now_ms();
    v->stuck_limit_ms = STUCK_MS + inf_verbs_retry_ms(v->ep);
}

/* A sign of life: an empty write, which the peer's device acknowledges and nobody notices. */
static int probe(inf_verbs_link *v) {
    struct ibv_send_wr wr = {.opcode = IBV_WR_RDMA_WRITE,
                             .wr.rdma = {v->ep->remote.ring_address, v->ep->remote.ring_key}};
    if (!inf_verbs_has_budget(v->ep, INF_WR_OTHER, 2)) /* one is kept for the last word */
        return INF_OK;
    return inf_verbs_post(v->ep, &wr, 1, INF_WR_OTHER, 0, 0, true);
}

int inf_verbs_watch(inf_verbs_link *v) {
    inf_verbs_queues *q = &v->ep->q;
    uint64_t now = inf_link_now_ms(), rx = q->recv_done;
    if (rx != v->seen_rx || q->send_done != v->seen_done)
        v->active_ms = now;
    if (q->send_done != v->seen_done)
        v->stuck_ms = now;
    if (v->stuck_ms < q->since_ms)
        v->stuck_ms = q->since_ms; /* nobody may have looked at a link at rest */
    v->seen_rx = rx;
    v->seen_done = q->send_done;
    if (q->signaled > 0 && now - v->stuck_ms > v->stuck_limit_ms)
        return inf_verbs_fail(v->ep, INF_ETIMEOUT,
                              "cannot reach the peer: %s completes nothing any more",
                              v->ep->device->context->name);
    if (q->signaled == 0) {
        if (now - v->active_ms < PROBE_MS)
            return INF_OK;
        v->active_ms = now;
        return probe(v);
    }
    /* The device gives a peer up in time, if it is awake. Soft-RoCE's sender stops while many
     * packets are on their way, and says by a plain flag that it wants to be woken; what is posted
     * wakes it in any case. */
    uint64_t since = v->nudged_ms > v->stuck_ms ? v->nudged_ms : v->stuck_ms;
    if (now - since < NUDGE_MS)
        return INF_OK;
    v->nudged_ms = now;
    return probe(v);
}
