/* The creditor's side of a move: a thread that copies arriving blocks into hosted spans and says
 * so. */
#include "dist/internal.h"
#include "dist/marks.h"

#include <string.h>

static inf_link **lane(inf_peer *p) { return &p->smove; }

/* Puts a message's blocks in place. Blocks arrive in order, so what has landed is a count. */
static int32_t land(inf_dist *d, uint32_t owner, const inf_wire_move *m, const uint8_t *data,
                    uint32_t *landed) {
    const int32_t *blocks = NULL;
    int32_t n_blocks = 0;
    int status = inf_span_get(d, owner, m->handle, m->generation, &blocks, &n_blocks, landed);
    if (status != INF_OK) {
        return status;
    }
    if (m->first != *landed || m->n > (uint32_t)n_blocks - m->first) {
        status = INF_ESTALE;
    } else {
        for (uint32_t i = 0; i < m->n; i++) {
            d->ops->copy_in(d->landing,
                            d->pool + (uint64_t)blocks[m->first + i] * d->kv.block_bytes,
                            data + (uint64_t)i * d->kv.block_bytes, d->kv.block_bytes);
        }
        if (d->ops->sync(d->landing, NULL) == INF_OK) {
            *landed = m->first + m->n;
            inf_span_land(d, m->handle, *landed);
        } else {
            status = INF_EIO;
        }
    }
    inf_span_put(d, m->handle);
    return status;
}

static int answer(inf_dist *d, inf_link *link, uint32_t owner, const uint8_t *msg, uint64_t len) {
    inf_wire_head h;
    inf_wire_move m;
    uint64_t head_bytes = inf_wire_move_head();
    if (len < head_bytes) {
        return INF_EPROTO;
    }
    memcpy(&h, msg, sizeof h);
    memcpy(&m, msg + sizeof h, sizeof m);
    const inf_wire_head want = {
        .magic = INF_WIRE_MAGIC, .kind = INF_WIRE_MOVE, .bytes = len, .lane = h.lane};
    if (memcmp(&h, &want, sizeof h) != 0 || m.status != INF_OK || m.landed != 0 || m.n == 0 ||
        m.n > (uint32_t)d->num_blocks || m.first > (uint32_t)d->num_blocks ||
        len != head_bytes + (uint64_t)m.n * d->kv.block_bytes) {
        return INF_EPROTO;
    }
    void *out = NULL;
    int status = inf_link_prepare(link, &out);
    if (status != INF_OK) {
        return status == INF_AGAIN ? INF_EPROTO : status;
    }
    (void)inf_mark_move_arrived(owner, h.lane, m.ticket, m.first, m.n, len);
    m.status = land(d, owner, &m, msg + head_bytes, &m.landed);
    if (m.status == INF_EIO) {
        return INF_EIO; /* this device's own fault: the link ends, and with it all that was sent */
    }
    (void)inf_mark_move_computed(owner, h.lane, m.ticket, m.first, m.n, len);
    if (m.status != INF_OK) {
        atomic_fetch_add(&d->refused, 1);
    }
    h.kind = INF_WIRE_ACK;
    h.bytes = head_bytes;
    memset(out, 0, head_bytes);
    memcpy(out, &h, sizeof h);
    memcpy((uint8_t *)out + sizeof h, &m, sizeof m);
    status = inf_link_post(link, head_bytes);
    if (status == INF_OK) {
        (void)inf_mark_move_returned(owner, h.lane, m.ticket, m.first, m.n, head_bytes);
    }
    return status;
}

static void serve_peer(inf_dist *d, inf_link *link, uint32_t peer) {
    const void *msg = NULL;
    uint64_t len = 0;
    int status = inf_link_poll(link, &msg, &len);
    if (status == INF_AGAIN) {
        return;
    }
    if (status == INF_OK) {
        status = answer(d, link, peer, msg, len);
        inf_link_release(link);
    }
    if (status != INF_OK) {
        inf_peer_fail(d, peer, status);
    }
}

void *inf_land_main(void *dist) {
    inf_dist *d = dist;
    inf_link *links[INF_MAX_PEERS];
    uint32_t ids[INF_MAX_PEERS];
    while (!atomic_load(&d->stopping)) {
        inf_dist_unwake(d->lander.wake);
        uint32_t n = inf_worker_round(d, &d->lander, lane, links, ids);
        for (uint32_t i = 0; i < n; i++) {
            serve_peer(d, links[i], ids[i]);
        }
        inf_link_wait(links, n, d->lander.wake, 100000000);
    }
    return NULL;
}
