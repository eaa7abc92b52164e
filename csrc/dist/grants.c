/* Pieces that are put, at the receiver: what their senders may write, and for how long.
 *
 *   ask      claim, grant (one grant for each run of blocks that lie together); answer
 *   landed   revoke, make what was put visible, settle; answer
 *
 * Nobody can write before the grant or after the revocation, and nobody reads in between. A piece
 * counts as landed if and only if it was granted on this rail, whole. */
#include "dist/internal.h"
#include "dist/land.h"

#include <string.h>

/* What one window covers on the devices that matter. */
#define GRANT_BYTES (UINT64_C(1) << 30)

static int refuse(inf_dist *d, inf_rail *r, inf_landing *l, int status) {
    inf_wire_move m = l->ask;
    m.status = status;
    l->state = INF_LANDING_FREE;
    r->busy = NULL;
    return inf_land_answer(d, r, INF_WIRE_GRANT, &m, NULL, 0);
}

static int claim(inf_dist *d, inf_rail *r, inf_landing *l) {
    uint32_t landed;
    int status = inf_span_claim(d, r->peer, &l->ask, &l->blocks, &landed);
    if (status == INF_AGAIN && inf_land_end_older(d, r, &l->ask)) {
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
    return inf_land_answer(d, r, INF_WIRE_GRANT, &l->ask, l->grants, l->n_grants);
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
    return inf_land_answer(d, r, INF_WIRE_ACK, &m, NULL, 0);
}

int inf_grants_go_on(inf_dist *d, inf_rail *r) {
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

int inf_grants_ask(inf_dist *d, inf_rail *r, const inf_wire_move *m) {
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
    return inf_grants_go_on(d, r);
}

int inf_grants_landed(inf_dist *d, inf_rail *r, const inf_wire_move *m) {
    inf_wire_move ask = *m;
    ask.status = INF_OK;
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        inf_landing *l = &r->landings[i];
        if (l->state == INF_LANDING_LATE && memcmp(&l->ask, &ask, sizeof ask) == 0) {
            ask.status = INF_ESTALE;
            l->state = INF_LANDING_FREE;
            return inf_land_answer(d, r, INF_WIRE_ACK, &ask, NULL, 0);
        }
        if (l->state == INF_LANDING_GRANTED && memcmp(&l->ask, &ask, sizeof ask) == 0) {
            l->state = INF_LANDING_REVOKING;
            l->outcome = m->status;
            r->busy = l;
            return inf_grants_go_on(d, r);
        }
    }
    return INF_EPROTO;
}

/* A sender that was granted blocks and is silent: it has failed, if what it may write can be
 * revoked with its lane. If not, the lane's end would be of no use: its blocks are given back when
 * it cannot begin to write any more, as late as if it had gone (late.c), and the lane is as good as
 * before. */
bool inf_grants_overdue(inf_dist *d, inf_rail *r) {
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
