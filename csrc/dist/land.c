/* The receiver's side of a move: a thread that lands pieces in hosted spans and says so.
 *
 *   move     claim the blocks, copy them in, settle
 *   ask      claim, grant (one grant for each run of blocks that lie together); answer
 *   landed   revoke, make what was put visible, settle; answer
 *
 * From claim to settle a span keeps its blocks, so a close waits: for a piece in messages as long
 * as a copy takes, for a granted one until the sender says that it has landed, or until it is given
 * up with its rail. Nobody can write before the grant or after the revocation, and nobody reads in
 * between. What a peer says is checked; a piece counts as landed if and only if it was granted on
 * this rail, whole. */
#include "dist/internal.h"
#include "dist/marks.h"

#include <string.h>

/* What one window covers on the devices that matter. */
#define GRANT_BYTES (UINT64_C(1) << 30)

/* --- answers: the slot was prepared before the message was polled --- */

static int answer(inf_dist *d, inf_rail *r, uint32_t kind, const inf_wire_move *m,
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

/* A sender asks for blocks again when the rail on which it had asked before is dead. If this end
 * has not seen that yet, it does now. */
static bool end_older(inf_dist *d, const inf_rail *r, const inf_wire_move *m) {
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
        if (end_older(d, r, m)) {
            return INF_AGAIN; /* the message is kept, and looked at again */
        }
        status = INF_ESTALE; /* a piece of this very rail has the blocks */
    }
    m->status = status == INF_EFULL ? INF_OK : status;
    return answer(d, r, INF_WIRE_ACK, m, NULL, 0);
}

/* --- pieces that are put --- */

static int refuse(inf_dist *d, inf_rail *r, inf_landing *l, int status) {
    inf_wire_move m = l->ask;
    m.status = status;
    l->state = INF_LANDING_FREE;
    r->busy = NULL;
    return answer(d, r, INF_WIRE_GRANT, &m, NULL, 0);
}

static int claim(inf_dist *d, inf_rail *r, inf_landing *l) {
    uint32_t landed;
    int status = inf_span_claim(d, r->peer, &l->ask, &l->blocks, &landed);
    if (status == INF_AGAIN && end_older(d, r, &l->ask)) {
        return INF_AGAIN;
    }
    if (status == INF_EFULL) {
        l->ask.landed = l->ask.first + l->ask.n;
        return refuse(d, r, l, INF_OK);
    }
    if (status != INF_OK) {
        return refuse(d, r, l, INF_ESTALE);
    }
    l->state = INF_LANDING_GRANTING;
    l->done = l->n_grants = 0;
    l->revoked = 0;
    return INF_OK;
}

/* The length of the run of blocks that begins with the piece's block i. */
static uint32_t run(const inf_dist *d, const inf_landing *l, uint32_t i) {
    const int32_t *b = l->blocks + l->ask.first;
    uint32_t n = 1;
    while (i + n < l->ask.n && b[i + n] == b[i] + (int32_t)n &&
           (n + 1) * d->kv.block_bytes <= GRANT_BYTES) {
        n++;
    }
    return n;
}

static uint64_t offset(const inf_dist *d, const inf_landing *l, uint32_t i) {
    return (uint64_t)l->blocks[l->ask.first + i] * d->kv.block_bytes;
}

static int grant(inf_dist *d, inf_rail *r, inf_landing *l) {
    while (l->done < l->ask.n) {
        uint32_t n = run(d, l, l->done);
        inf_grant *g = &l->grants[l->n_grants];
        uint64_t at = offset(d, l, l->done), bytes = n * d->kv.block_bytes;
        int status = INF_OK;
        if (r->offered) { /* by the offset in the pool, which the sender has open */
            *g = (inf_grant){.address = at, .bytes = bytes};
        } else {
            status = inf_link_grant(r->link, at, bytes, g);
        }
        if (status == INF_EFULL || status == INF_EINVAL) {
            l->state = INF_LANDING_UNDOING;
            return INF_OK;
        }
        if (status != INF_OK) {
            return status;
        }
        l->done += n;
        l->n_grants++;
    }
    l->state = INF_LANDING_GRANTED;
    l->granted_ns = inf_now();
    r->busy = NULL;
    return answer(d, r, INF_WIRE_GRANT, &l->ask, l->grants, l->n_grants);
}

/* All at once: each takes a round trip to the NIC. */
static int revoke(inf_rail *r, inf_landing *l) {
    int result = INF_OK;
    if (r->offered) { /* direct.c, 4 */
        return INF_OK;
    }
    for (uint32_t i = 0; i < l->n_grants; i++) {
        if ((l->revoked >> i & 1) != 0) {
            continue;
        }
        int status = inf_link_revoke(r->link, l->grants[i].id);
        if (status < 0) {
            return status;
        }
        l->revoked |= (uint64_t)(status == INF_OK) << i;
        result = status == INF_OK ? result : INF_AGAIN;
    }
    return result;
}

/* Without all of its grants a piece travels in messages. */
static int undo(inf_dist *d, inf_rail *r, inf_landing *l) {
    uint32_t landed;
    int status = revoke(r, l);
    if (status != INF_OK) {
        return status;
    }
    atomic_store(&r->puts, false);
    inf_span_settle(d, &l->ask, INF_EFULL, &landed);
    return refuse(d, r, l, INF_OK);
}

static int flush(inf_dist *d, inf_rail *r, const inf_landing *l) {
    int status = INF_OK;
    for (uint32_t i = 0, n; !r->offered && status == INF_OK && i < l->ask.n; i += n) {
        n = run(d, l, i);
        status = inf_region_flush(r->region, offset(d, l, i), n * d->kv.block_bytes, NULL);
    }
    return status;
}

static int settle(inf_dist *d, inf_rail *r, inf_landing *l) {
    int status = revoke(r, l);
    if (status == INF_OK && l->outcome == INF_OK) {
        status = flush(d, r, l);
    }
    if (status != INF_OK) {
        return status;
    }
    inf_wire_move m = l->ask;
    m.status = inf_span_settle(d, &m, l->outcome, &m.landed);
    l->state = INF_LANDING_FREE;
    r->busy = NULL;
    return answer(d, r, INF_WIRE_ACK, &m, NULL, 0);
}

/* Goes on with what keeps the rail busy. */
static int go_on(inf_dist *d, inf_rail *r) {
    int status = INF_OK;
    while (status == INF_OK && r->busy != NULL) {
        inf_landing *l = r->busy;
        switch (l->state) {
        case INF_LANDING_CLAIMING:
            status = claim(d, r, l);
            break;
        case INF_LANDING_GRANTING:
            status = grant(d, r, l);
            break;
        case INF_LANDING_UNDOING:
            status = undo(d, r, l);
            break;
        default:
            status = settle(d, r, l);
        }
    }
    return status;
}

static int take_ask(inf_dist *d, inf_rail *r, const inf_wire_move *m) {
    inf_landing *l = NULL;
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        l = r->landings[i].state == INF_LANDING_FREE ? &r->landings[i] : l;
    }
    if (l == NULL || m->n > INF_WIRE_PIECE_BLOCKS) {
        return INF_EPROTO;
    }
    l->ask = *m;
    if (!atomic_load(&r->puts)) {
        return refuse(d, r, l, INF_OK);
    }
    l->state = INF_LANDING_CLAIMING;
    r->busy = l;
    return go_on(d, r);
}

static int take_landed(inf_dist *d, inf_rail *r, const inf_wire_move *m) {
    inf_wire_move ask = *m;
    ask.status = INF_OK;
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        inf_landing *l = &r->landings[i];
        if (l->state == INF_LANDING_LATE && memcmp(&l->ask, &ask, sizeof ask) == 0) {
            ask.status = INF_ESTALE;
            l->state = INF_LANDING_FREE;
            return answer(d, r, INF_WIRE_ACK, &ask, NULL, 0);
        }
        if (l->state == INF_LANDING_GRANTED && memcmp(&l->ask, &ask, sizeof ask) == 0) {
            l->state = INF_LANDING_REVOKING;
            l->outcome = m->status;
            r->busy = l;
            return go_on(d, r);
        }
    }
    return INF_EPROTO;
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
        return take_ask(d, r, &m);
    case INF_WIRE_LANDED:
        return take_landed(d, r, &m);
    default:
        return INF_EPROTO;
    }
}

/* A sender that was granted blocks and is silent: it has failed, if what it may write can be
 * revoked with its lane. If not, the lane's end would be of no use: its blocks are given back when
 * it cannot begin to write any more, as late as if it had gone (late.c), and the lane is as good as
 * before. */
static bool overdue(inf_dist *d, inf_rail *r) {
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        inf_landing *l = &r->landings[i];
        uint64_t limit = r->offered ? 2 * INF_GRANTED_NS : INF_GRANTED_NS;
        if (l->state != INF_LANDING_GRANTED || inf_now() - l->granted_ns <= limit) {
            continue;
        }
        if (!r->offered) {
            return true;
        }
        uint32_t landed;
        inf_span_settle(d, &l->ask, INF_EPEER, &landed);
        l->state = INF_LANDING_LATE;
    }
    return false;
}

int inf_land_run(inf_dist *d, inf_rail *r) {
    int status = go_on(d, r);
    if (status != INF_OK) {
        return status == INF_AGAIN ? INF_OK : status;
    }
    if (r->msg == NULL) {
        void *slot = NULL;
        int room = inf_link_prepare(r->link, &slot);
        if (room == INF_AGAIN && !inf_link_full(r->link)) {
            return INF_OK;
        }
        status = inf_link_poll(r->link, &r->msg, &r->len);
        if (status == INF_OK && room != INF_OK) {
            /* A sender with a message under way has taken the answers before it. */
            return room == INF_AGAIN ? INF_EPROTO : room;
        }
    }
    if (status == INF_OK) {
        status = take_message(d, r, r->msg, r->len);
        if (status != INF_AGAIN || r->busy != NULL) {
            inf_link_release(r->link);
            r->msg = NULL;
        }
    }
    if (status != INF_AGAIN) {
        return status;
    }
    /* A sender whose messages are still to be looked at is not silent. */
    return r->msg == NULL && overdue(d, r) ? INF_ETIMEOUT : INF_OK;
}

void inf_land_give_up(inf_dist *d, inf_rail *r) {
    uint32_t landed;
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        inf_landing *l = &r->landings[i];
        bool claims = l->state > INF_LANDING_CLAIMING && l->state != INF_LANDING_LATE;
        if (claims && r->offered) {
            inf_land_settle_later(d, &l->ask);
        } else if (claims) {
            inf_span_settle(d, &l->ask, INF_EPEER, &landed);
        }
        l->state = INF_LANDING_FREE;
    }
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
