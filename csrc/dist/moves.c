/* The home's side of a move: a thread that sends posted moves and takes their acknowledgements.
 *
 * A peer's moves run in order, peers beside each other. A slot holds as many blocks as fit; as many
 * slots as the link has are in flight. Blocks are read from the pool until the last
 * acknowledgement, so they stay readable for steps, and a move that fails loses nothing. */
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

/* A peer that acknowledges nothing for so long has failed. */
#define STALL_NS UINT64_C(5000000000)

enum { MAX_MOVES = 1024 };

static inf_link *lane(inf_peer *p) {
    return p->move;
}

static void finish(inf_dist *d, inf_peer *p, int32_t status) {
    inf_move *m = p->head;
    p->head = m->next;
    if (p->head == NULL) {
        p->tail = NULL;
    }
    d->moves--;
    m->next = NULL;
    m->status = status;
    pthread_mutex_lock(&d->done_lock);
    if (d->done_tail != NULL) {
        d->done_tail->next = m;
    } else {
        d->done_head = m;
    }
    d->done_tail = m;
    pthread_cond_signal(&d->done_cond);
    pthread_mutex_unlock(&d->done_lock);
}

void inf_moves_fail(inf_dist *d, uint32_t peer, int32_t status) {
    while (d->peers[peer].head != NULL) {
        finish(d, &d->peers[peer], status);
    }
}

int inf_dist_move_post(inf_dist *d, uint32_t peer, uint32_t handle, uint32_t generation,
                       uint32_t first, const int32_t *blocks, int32_t n, uint64_t ticket,
                       inf_err *err) {
    if (peer >= INF_MAX_PEERS || n < 1 || n > d->num_blocks) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)peer, "a move of %d blocks", n);
    }
    inf_move *m = calloc(1, sizeof *m + (size_t)n * sizeof *blocks);
    if (m == NULL) {
        return inf_dist_error(err, INF_ENOMEM, (int32_t)peer, "no memory for a move");
    }
    m->peer = peer;
    m->handle = handle;
    m->generation = generation;
    m->first = first;
    m->n = n;
    m->ticket = ticket;
    memcpy(m->blocks, blocks, (size_t)n * sizeof *blocks);
    inf_peer *p = &d->peers[peer];
    pthread_mutex_lock(&d->lock);
    int status = p->move == NULL || atomic_load(&p->dead) != INF_OK ? INF_EPEER
                 : d->moves >= MAX_MOVES                            ? INF_EFULL
                                                                    : INF_OK;
    if (status == INF_OK) {
        d->moves++;
        if (p->tail != NULL) {
            p->tail->next = m;
        } else {
            p->head = m;
            p->heard_ns = inf_now();
        }
        p->tail = m;
    }
    pthread_mutex_unlock(&d->lock);
    if (status != INF_OK) {
        free(m);
        return inf_dist_error(err, status, (int32_t)peer, "cannot post a move to the peer");
    }
    inf_dist_wake(d->mover.wake);
    return INF_OK;
}

int inf_dist_move_wait(inf_dist *d, int64_t timeout_ns, inf_move_done *out, inf_err *err) {
    (void)err;
    uint64_t at = inf_now() + (timeout_ns > 0 ? (uint64_t)timeout_ns : 0);
    struct timespec until = {(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    int status = INF_OK;
    pthread_mutex_lock(&d->done_lock);
    while (d->done_head == NULL && status == INF_OK) {
        status =
            pthread_cond_timedwait(&d->done_cond, &d->done_lock, &until) == 0 ? INF_OK : INF_AGAIN;
    }
    inf_move *m = d->done_head;
    if (m != NULL) {
        status = INF_OK;
        d->done_head = m->next;
        if (d->done_head == NULL) {
            d->done_tail = NULL;
        }
        *out = (inf_move_done){.ticket = m->ticket, .status = m->status};
    }
    pthread_mutex_unlock(&d->done_lock);
    free(m);
    return status;
}

/* Sends what fits of the peer's moves. dist.lock is held by the mover thread. */
static int send_some(inf_dist *d, inf_peer *p) {
    uint64_t head_bytes = inf_wire_move_head();
    int32_t per_slot = (int32_t)((inf_link_slot_bytes(p->move) - head_bytes) / d->kv.block_bytes);
    inf_move *m = p->head;
    while (m != NULL) {
        if (m->sent == m->n) {
            return INF_OK; /* the next move begins when this one is acknowledged */
        }
        void *buf = NULL;
        int status = inf_link_prepare(p->move, &buf);
        if (status != INF_OK) {
            return status == INF_AGAIN ? INF_OK : status;
        }
        int32_t n = m->n - m->sent < per_slot ? m->n - m->sent : per_slot;
        uint8_t *at = (uint8_t *)buf + head_bytes;
        for (int32_t i = 0; i < n; i++, at += d->kv.block_bytes) {
            memcpy(at, d->pool + (uint64_t)m->blocks[m->sent + i] * d->kv.block_bytes,
                   d->kv.block_bytes);
        }
        uint64_t bytes = head_bytes + (uint64_t)n * d->kv.block_bytes;
        inf_wire_head h = {.magic = INF_WIRE_MAGIC, .kind = INF_WIRE_MOVE, .bytes = bytes};
        inf_wire_move w = {.handle = m->handle,
                           .generation = m->generation,
                           .first = m->first + (uint32_t)m->sent,
                           .n = (uint32_t)n,
                           .ticket = m->ticket};
        memset(buf, 0, head_bytes);
        memcpy(buf, &h, sizeof h);
        memcpy((uint8_t *)buf + sizeof h, &w, sizeof w);
        status = inf_link_post(p->move, bytes);
        if (status != INF_OK) {
            return status;
        }
        m->sent += n;
        atomic_fetch_add(&d->moved_blocks, (uint64_t)n);
        atomic_fetch_add(&d->moved_bytes, bytes);
    }
    return INF_OK;
}

/* Takes arrived acknowledgements. dist.lock is held. */
static int take_acks(inf_dist *d, inf_peer *p) {
    for (;;) {
        const void *msg = NULL;
        uint64_t len = 0;
        int status = inf_link_poll(p->move, &msg, &len);
        if (status != INF_OK) {
            return status == INF_AGAIN ? INF_OK : status;
        }
        inf_wire_head h = {0};
        inf_wire_move w = {0};
        bool whole = len == inf_wire_move_head();
        if (whole) {
            memcpy(&h, msg, sizeof h);
            memcpy(&w, (const uint8_t *)msg + sizeof h, sizeof w);
        }
        inf_link_release(p->move);
        inf_move *m = p->head;
        if (!whole || h.magic != INF_WIRE_MAGIC || h.kind != INF_WIRE_ACK || m == NULL ||
            w.ticket != m->ticket || w.handle != m->handle || w.generation != m->generation ||
            w.first != m->first + (uint32_t)m->acked || w.n == 0 ||
            w.n > (uint32_t)(m->sent - m->acked)) {
            return INF_EPROTO;
        }
        if (w.status != INF_OK) {
            /* Later messages of this move may be on their way, so the lane cannot go on. */
            return w.status < 0 ? w.status : INF_EPROTO;
        }
        m->acked += (int32_t)w.n;
        p->heard_ns = inf_now();
        if (m->acked == m->n) {
            finish(d, p, INF_OK);
        }
    }
}

static void run_peer(inf_dist *d, uint32_t peer) {
    inf_peer *p = &d->peers[peer];
    pthread_mutex_lock(&d->lock);
    /* A detach may have taken the link since the round began. */
    if (p->move != NULL && atomic_load(&p->dead) == INF_OK) {
        int status = take_acks(d, p);
        status = status != INF_OK ? status : send_some(d, p);
        if (status == INF_OK && p->head != NULL && inf_now() - p->heard_ns > STALL_NS) {
            status = INF_ETIMEOUT;
        }
        if (status != INF_OK) {
            inf_peer_fail(p, status);
            inf_moves_fail(d, peer, status);
        }
    }
    pthread_mutex_unlock(&d->lock);
}

void *inf_mover_main(void *dist) {
    inf_dist *d = dist;
    inf_link *links[INF_MAX_PEERS];
    uint32_t ids[INF_MAX_PEERS];
    while (!atomic_load(&d->stopping)) {
        inf_dist_unwake(d->mover.wake);
        uint32_t n = inf_worker_round(d, &d->mover, lane, links, ids);
        for (uint32_t i = 0; i < n; i++) {
            run_peer(d, ids[i]);
        }
        inf_link_wait(links, n, d->mover.wake, 100000000);
    }
    return NULL;
}
