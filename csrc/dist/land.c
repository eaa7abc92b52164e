/* The receiver's side of a move: a thread that lands pieces in hosted spans and says so.
 *
 *   move          claim the blocks, copy them in, settle
 *   ask, landed   a piece that is put: grants.c
 *
 * From claim to settle a span keeps its blocks, so a close waits: for a piece in messages as long
 * as a copy takes, for a granted one until the sender says that it has landed, or until it is given
 * up with its rail. What a peer says is checked. */
#include "dist/land.h"
#include "dist/internal.h"
#include "dist/marks.h"

#include <string.h>

/* --- answers: a slot was prepared when the message was polled --- */

int inf_land_answer(inf_dist *d, inf_rail *r, uint32_t kind, const inf_wire_move *m,
                    const inf_grant *grants, uint32_t n) {
    void *out = NULL;
    int status = inf_link_prepare(r->link, &out);
    if (status != INF_OK) {
        return status == INF_AGAIN ? INF_EPROTO : status;
    }
    if (m->status != INF_OK) {
        atomic_fetch_add(&d->refused, 1);
    }
    if (kind == INF_WIRE_ACK) {
        (void)inf_mark_move_computed(r->peer, r->lane, m->ticket, m->first, m->n,
                                     m->n * d->kv.block_bytes);
    }
    uint64_t bytes = inf_wire_grant_bytes(n), head_bytes = inf_wire_move_head();
    inf_wire_head h = {
        .magic = INF_WIRE_MAGIC, .kind = kind, .n_entries = n, .bytes = bytes, .lane = r->lane};
    memset(out, 0, bytes);
    memcpy(out, &h, sizeof h);
    memcpy((uint8_t *)out + sizeof h, m, sizeof *m);
    if (n > 0) {
        memcpy((uint8_t *)out + head_bytes, grants, n * sizeof *grants);
    }
    status = inf_link_post(r->link, bytes);
    if (status == INF_OK && kind == INF_WIRE_ACK) {
        (void)inf_mark_move_returned(r->peer, r->lane, m->ticket, m->first, m->n, bytes);
    }
    return status;
}

/* --- pieces in messages --- */

static bool overlap(const inf_wire_move *a, const inf_wire_move *b) {
    return a->handle == b->handle && a->generation == b->generation && a->first < b->first + b->n &&
           b->first < a->first + a->n;
}

bool inf_land_end_older(inf_dist *d, const inf_rail *r, const inf_wire_move *m) {
    bool found = false;
    pthread_mutex_lock(&d->lock);
    for (uint32_t k = 0; k < INF_MAX_RAILS; k++) {
        inf_rail *other = d->peers[r->peer].in[k];
        for (int i = 0; other != NULL && other != r && i < INF_WIRE_PIECES; i++) {
            const inf_landing *l = &other->landings[i];
            if (l->state > INF_LANDING_CLAIMING && l->state != INF_LANDING_LATE &&
                overlap(&l->ask, m)) {
                inf_rail_fail(d, other, INF_EPEER);
                found = true;
            }
        }
    }
    pthread_mutex_unlock(&d->lock);
    return found;
}

/* Blocks from a message into those claimed; INF_EIO: the lane failed. */
static int copy_blocks(inf_dist *d, const inf_wire_move *m, const int32_t *blocks,
                       const uint8_t *data) {
    int status = inf_lane_take(d, &d->landing);
    uint64_t block = d->kv.block_bytes;
    if (status != INF_OK) {
        return status;
    }
    for (uint32_t i = 0; i < m->n; i++) {
        d->ops->copy_in(d->landing.lane, d->pool + (uint64_t)blocks[m->first + i] * block,
                        data + (uint64_t)i * block, block);
    }
    return inf_lane_sync(d, &d->landing);
}

static int land_blocks(inf_dist *d, inf_rail *r, inf_wire_move *m, const uint8_t *data) {
    const int32_t *blocks = NULL;
    int status = INF_EIO; /* also without a try: each is one rail's, and all of them wait */
    if (inf_lane_rests(&d->landing) == 0) {
        status = inf_span_claim(d, r->peer, m, &blocks, &m->landed);
    } else if (inf_lane_none(&d->landing) != INF_EIO) {
        return INF_AGAIN; /* the message is kept until it may be tried */
    }
    if (status == INF_OK) {
        status = copy_blocks(d, m, blocks, data);
        if (status == INF_EIO) { /* the lane's fault, or the piece's: that shows on another lane */
            status = copy_blocks(d, m, blocks, data);
        }
        bool later = status == INF_ENOMEM;
        status = inf_span_settle(d, m, status, &m->landed);
        if (later) {
            return INF_AGAIN;
        }
    }
    if (status == INF_EIO) {
        if (inf_dist_fault(d, NULL) != INF_OK) {
            return INF_EIO; /* the link ends, and with it all that was sent */
        }
        status = INF_ESTALE; /* the sender has the blocks still, and only this move ends */
    }
    if (status == INF_AGAIN) {
        if (inf_land_end_older(d, r, m)) {
            return INF_AGAIN; /* the message is kept, and looked at again */
        }
        status = INF_ESTALE; /* a piece of this very rail has the blocks */
    }
    m->status = status == INF_EFULL ? INF_OK : status;
    return inf_land_answer(d, r, INF_WIRE_ACK, m, NULL, 0);
}

/* --- the thread --- */

static int take_message(inf_dist *d, inf_rail *r, const uint8_t *msg, uint64_t len) {
    inf_wire_head h;
    inf_wire_move m;
    uint64_t head_bytes = inf_wire_move_head();
    if (len < head_bytes) {
        return INF_EPROTO;
    }
    memcpy(&h, msg, sizeof h);
    memcpy(&m, msg + sizeof h, sizeof m);
    uint32_t kind = h.kind;
    const inf_wire_head want = {
        .magic = INF_WIRE_MAGIC, .kind = kind, .bytes = len, .lane = h.lane};
    uint64_t blocks = kind == INF_WIRE_MOVE ? m.n * d->kv.block_bytes : 0;
    bool status_ok = kind == INF_WIRE_LANDED ? inf_wire_status_ok(m.status) : m.status == INF_OK;
    if (memcmp(&h, &want, sizeof h) != 0 || !status_ok || m.landed != 0 || m.n == 0 ||
        m.n > (uint32_t)d->num_blocks || m.first > (uint32_t)d->num_blocks ||
        len != head_bytes + blocks) {
        return INF_EPROTO;
    }
    r->lane = h.lane;
    if (kind != INF_WIRE_ASK) {
        (void)inf_mark_move_arrived(r->peer, h.lane, m.ticket, m.first, m.n,
                                    m.n * d->kv.block_bytes);
    }
    switch (kind) {
    case INF_WIRE_MOVE:
        return land_blocks(d, r, &m, msg + head_bytes);
    case INF_WIRE_ASK:
        return inf_grants_ask(d, r, &m);
    case INF_WIRE_LANDED:
        return inf_grants_landed(d, r, &m);
    default:
        return INF_EPROTO;
    }
}

int inf_land_run(inf_dist *d, inf_rail *r) {
    int status = inf_grants_go_on(d, r);
    if (status != INF_OK) {
        return status == INF_AGAIN ? INF_OK : status;
    }
    const void *msg = NULL;
    uint64_t len = 0;
    void *slot = NULL;
    status = inf_dist_take(r->link, &msg, &len, &slot);
    if (status == INF_OK) {
        status = take_message(d, r, msg, len);
        if (status == INF_AGAIN && r->busy == NULL) {
            inf_link_keep(r->link, msg, len); /* it may be tried later */
            return INF_OK;
        }
        inf_link_release(r->link);
        msg = NULL;
    }
    if (status != INF_AGAIN) {
        return status;
    }
    /* A sender whose messages are still to be looked at is not silent. */
    return msg == NULL && inf_grants_overdue(d, r) ? INF_ETIMEOUT : INF_OK;
}

void *inf_land_main(void *dist) {
    inf_dist *d = dist;
    inf_rail *rails[INF_LINK_WAIT_MAX];
    inf_link *links[INF_LINK_WAIT_MAX];
    while (!atomic_load(&d->stopping)) {
        inf_dist_unwake(d->lander.wake);
        inf_near_follow(d, &d->lander);
        inf_land_settle_late(d, false);
        uint32_t n = inf_rails_round(d, &d->lander, false, rails, links);
        for (uint32_t i = 0; i < n; i++) {
            /* One that an earlier rail has ended is not heard any more. */
            int status =
                atomic_load(&rails[i]->dead) == INF_OK ? inf_land_run(d, rails[i]) : INF_OK;
            if (status != INF_OK) {
                inf_rail_fail(d, rails[i], status);
            }
        }
        inf_lane_wait(&d->landing, links, n, d->lander.wake, 100000000, 0);
    }
    return NULL;
}
