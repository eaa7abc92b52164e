/* Puts: writes straight from this end's region into what the peer granted of its own.
 *
 * A grant is a type-2 memory window over the stretch, bound to this link's queue pair: no other
 * peer can use its key, nothing beside it can be written, and an invalidation ends it. Binding and
 * invalidating are work requests of the link's own send queue, so a message that follows carries a
 * key that is good already, and a revocation is over when it is complete.
 *
 * Windows are made when first needed and used again, each time with the next key; a key of an
 * earlier grant is dead.
 *
 * Stretches that follow each other at the peer under one key become one write that gathers its
 * pieces from this end's memory: a move of scattered blocks to a contiguous place is one request.
 * The last request of a call is signaled, so that the bytes in flight are known. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "transport/verbs/ring.h"

enum { WINDOW_FREE, WINDOW_GRANTED, WINDOW_ENDING };
enum { DEFAULT_LIMIT = 1 << 20 };

static inf_verbs_endpoint *endpoint(inf_link *link) { return ((inf_verbs_link *)link)->ep; }

static int fail(inf_link *link) { return inf_verbs_link_fail((inf_verbs_link *)link); }

/* Something has to wait for the send queue. What is in flight has a signaled request in it. */
static int wait_for_progress(inf_verbs_endpoint *ep) {
    ep->puts.wants = true;
    ep->puts.wanted_at = ep->q.send_done;
    return INF_AGAIN;
}

/* Can n requests of the kind be posted now? INF_AGAIN if not. */
static int make_room(inf_link *link, int kind, uint32_t n) {
    inf_verbs_endpoint *ep = endpoint(link);
    if (!inf_verbs_has_budget(ep, kind, n) && inf_verbs_poll_send(ep) != INF_OK)
        return fail(link);
    ep->puts.wants = false;
    return inf_verbs_has_budget(ep, kind, n) ? INF_OK : wait_for_progress(ep);
}

/* --- the region --- */

/* The rings are what GPU memory is copied from and to when nothing better works. */
static void pin_rings(inf_verbs_endpoint *ep, const inf_region *region) {
    const inf_memory_ops *ops = region->memory.ops;
    if (!ops->pin || !ops->unpin || ep->puts.pinned ||
        ops->pin(ops->arg, ep->tx, ep->tx_bytes) != 0)
        return;
    if (ops->pin(ops->arg, ep->rx, ep->rx_bytes) != 0)
        ops->unpin(ops->arg, ep->tx);
    else
        ep->puts.pinned = true;
}

static int use_region(inf_link *link, inf_region *region) {
    inf_verbs_endpoint *ep = endpoint(link);
    if (ep->puts.region || region->device != ep->device)
        return INF_EINVAL;
    bool bounce = region->way == INF_WAY_BOUNCE;
    if (ep->own_pd && !bounce)
        return INF_EUNSUPPORTED;
    if (!bounce) {
        ep->puts.windows = calloc(INF_VERBS_GRANTS, sizeof *ep->puts.windows);
        if (!ep->puts.windows)
            return INF_ENOMEM;
        ep->puts.limit = DEFAULT_LIMIT;
    }
    ep->puts.region = region;
    atomic_fetch_add(&region->links, 1);
    if (!bounce)
        return INF_OK;
    pin_rings(ep, region);
    return INF_EUNSUPPORTED;
}

/* Are there puts at all, and does the stretch lie in the region? */
static int check(const inf_verbs_endpoint *ep, uint64_t offset, uint64_t bytes) {
    const inf_region *r = ep->puts.region;
    if (!ep->puts.windows)
        return r ? INF_EUNSUPPORTED : INF_EINVAL;
    return bytes <= r->memory.bytes && offset <= r->memory.bytes - bytes ? INF_OK : INF_EINVAL;
}

/* --- grants --- */

/* A free window, or a new one; NULL and the status if there is none. */
static inf_verbs_window *take_window(inf_verbs_endpoint *ep, int *status) {
    inf_verbs_puts *p = &ep->puts;
    for (uint32_t i = 0; i < p->n_windows; i++)
        if (p->windows[i].state == WINDOW_FREE)
            return &p->windows[i];
    *status = INF_EFULL;
    if (p->n_windows == INF_VERBS_GRANTS)
        return NULL;
    inf_verbs_window *w = &p->windows[p->n_windows];
    w->mw = ibv_alloc_mw(ep->pd, IBV_MW_TYPE_2);
    if (!w->mw)
        return NULL;
    w->key = w->mw->rkey;
    p->n_windows++;
    return w;
}

static int grant(inf_link *link, uint64_t offset, uint64_t bytes, inf_grant *out) {
    inf_verbs_endpoint *ep = endpoint(link);
    inf_verbs_puts *p = &ep->puts;
    int rc = check(ep, offset, bytes);
    if (rc == INF_OK && bytes > UINT32_MAX / 2) /* what a window can cover on some devices */
        rc = INF_EINVAL;
    rc = rc == INF_OK ? make_room(link, INF_WR_BIND, 1) : rc;
    if (rc != INF_OK)
        return rc;
    inf_verbs_window *w = take_window(ep, &rc);
    if (!w)
        return rc;
    w->key = ibv_inc_rkey(w->key);
    struct ibv_send_wr wr = {.opcode = IBV_WR_BIND_MW};
    wr.bind_mw.mw = w->mw;
    wr.bind_mw.rkey = w->key;
    wr.bind_mw.bind_info = (struct ibv_mw_bind_info){.mr = p->region->mr,
                                                     .addr = p->region->iova + offset,
                                                     .length = bytes,
                                                     .mw_access_flags = IBV_ACCESS_REMOTE_WRITE};
    if (inf_verbs_post(ep, &wr, 1, INF_WR_BIND, 0, 0, false) != INF_OK)
        return fail(link);
    w->mw->rkey = w->key; /* drivers name the window by its last key in the next bind */
    w->state = WINDOW_GRANTED;
    w->generation++;
    *out = (inf_grant){.address = p->region->iova + offset,
                       .bytes = bytes,
                       .key = w->key,
                       .id = (uint32_t)w->generation << 16 | (uint32_t)(w - p->windows)};
    return INF_OK;
}

static int revoke(inf_link *link, uint32_t id) {
    inf_verbs_endpoint *ep = endpoint(link);
    inf_verbs_puts *p = &ep->puts;
    uint32_t index = id & UINT16_MAX;
    if (!p->windows || index >= p->n_windows || p->windows[index].generation != id >> 16 ||
        p->windows[index].state == WINDOW_FREE)
        return INF_EINVAL;
    inf_verbs_window *w = &p->windows[index];
    if (w->state == WINDOW_GRANTED) {
        int rc = make_room(link, INF_WR_BIND, 1);
        if (rc != INF_OK)
            return rc;
        struct ibv_send_wr wr = {.opcode = IBV_WR_LOCAL_INV, .invalidate_rkey = w->key};
        if (inf_verbs_post(ep, &wr, 1, INF_WR_BIND, 0, 0, true) != INF_OK)
            return fail(link);
        w->state = WINDOW_ENDING;
        w->ended_at = ep->q.send_posted;
    }
    if (ep->q.send_done < w->ended_at && inf_verbs_poll_send(ep) != INF_OK)
        return fail(link);
    if (ep->q.send_done < w->ended_at) {
        /* Watched here too: while messages wait to be polled, ready does not come to it. */
        return inf_verbs_watch((inf_verbs_link *)link) < 0 ? fail(link) : wait_for_progress(ep);
    }
    w->state = WINDOW_FREE;
    p->wants = false;
    return INF_OK;
}

/* --- puts --- */

typedef struct {
    struct ibv_send_wr wrs[INF_PUT_MAX];
    struct ibv_sge sges[INF_PUT_MAX];
    uint32_t n_wrs, n_sges;
    uint64_t bytes;    /* of all */
    uint64_t wr_bytes; /* of the last request */
} request;

/* Adds a stretch: to the last request if it follows it at the peer, to its last piece if it also
 * follows that one here. */
static void add(const inf_verbs_endpoint *ep, request *r, const inf_put *put) {
    const inf_region *region = ep->puts.region;
    uint64_t from = region->iova + put->offset;
    struct ibv_send_wr *wr = r->n_wrs > 0 ? &r->wrs[r->n_wrs - 1] : NULL;
    bool follows = wr && wr->wr.rdma.rkey == put->key &&
                   wr->wr.rdma.remote_addr + r->wr_bytes == put->remote &&
                   r->wr_bytes + put->bytes <= INF_VERBS_LONG;
    struct ibv_sge *last = r->n_sges > 0 ? &r->sges[r->n_sges - 1] : NULL;
    if (follows && last->addr + last->length == from) {
        last->length += put->bytes;
    } else if (follows && (uint32_t)wr->num_sge < ep->max_sge) {
        r->sges[r->n_sges++] = (struct ibv_sge){from, put->bytes, region->mr->lkey};
        wr->num_sge++;
    } else {
        r->sges[r->n_sges] = (struct ibv_sge){from, put->bytes, region->mr->lkey};
        r->wrs[r->n_wrs] = (struct ibv_send_wr){.opcode = IBV_WR_RDMA_WRITE,
                                                .sg_list = &r->sges[r->n_sges++],
                                                .num_sge = 1,
                                                .wr.rdma = {put->remote, put->key}};
        if (wr)
            wr->next = &r->wrs[r->n_wrs];
        r->n_wrs++;
        r->wr_bytes = 0;
    }
    r->wr_bytes += put->bytes;
    r->bytes += put->bytes;
}

static uint64_t in_flight(const inf_verbs_endpoint *ep) {
    return ep->q.posted.put_bytes - ep->q.done.put_bytes;
}

static int put(inf_link *link, const inf_put *puts, uint32_t n) {
    inf_verbs_endpoint *ep = endpoint(link);
    inf_verbs_puts *p = &ep->puts;
    request r = {.n_wrs = 0};
    for (uint32_t i = 0; i < n; i++) {
        int rc = check(ep, puts[i].offset, puts[i].bytes);
        if (rc == INF_OK && (puts[i].bytes == 0 || puts[i].bytes > INF_VERBS_LONG))
            rc = INF_EINVAL;
        if (rc != INF_OK)
            return rc;
        add(ep, &r, &puts[i]);
    }
    if (in_flight(ep) > 0 && inf_verbs_poll_send(ep) != INF_OK)
        return fail(link);
    if (in_flight(ep) > 0 && in_flight(ep) + r.bytes > p->limit)
        return wait_for_progress(ep);
    int rc = make_room(link, INF_WR_PUT, r.n_wrs);
    if (rc != INF_OK)
        return rc;
    return inf_verbs_post(ep, r.wrs, r.n_wrs, INF_WR_PUT, 0, r.bytes, true) == INF_OK ? INF_OK
                                                                                      : fail(link);
}

static void set_limit(inf_link *link, uint64_t bytes) { endpoint(link)->puts.limit = bytes; }

static uint64_t pending(inf_link *link) {
    inf_verbs_endpoint *ep = endpoint(link);
    if (in_flight(ep) > 0 && inf_verbs_poll_send(ep) != INF_OK)
        fail(link);
    else if (in_flight(ep) > 0)
        wait_for_progress(ep); /* the caller may want to */
    return in_flight(ep);
}

const inf_put_ops INF_VERBS_PUT_OPS = {
    .use_region = use_region,
    .grant = grant,
    .revoke = revoke,
    .put = put,
    .limit = set_limit,
    .pending = pending,
};

/* Says so once: who does not ask again has no more use for it. */
bool inf_verbs_puts_ready(inf_verbs_endpoint *ep) {
    bool ready = ep->puts.wants && ep->q.send_done != ep->puts.wanted_at;
    ep->puts.wants = ep->puts.wants && !ready;
    return ready;
}

void inf_verbs_puts_free(inf_verbs_endpoint *ep) {
    inf_verbs_puts *p = &ep->puts;
    for (uint32_t i = 0; i < p->n_windows; i++)
        ibv_dealloc_mw(p->windows[i].mw);
    free(p->windows);
    if (p->pinned) {
        p->region->memory.ops->unpin(p->region->memory.ops->arg, ep->tx);
        p->region->memory.ops->unpin(p->region->memory.ops->arg, ep->rx);
    }
    if (p->region)
        atomic_fetch_sub(&p->region->links, 1);
}
