/* The home's side of a move: a thread that sends posted moves and takes their acknowledgements.
 *
 * A peer's moves run in order, peers beside each other. A message holds as many blocks as fit its
 * slot. Blocks are read from the pool when their message is written, and the caller keeps them
 * until the last acknowledgement: they stay readable for steps, and a move that fails loses
 * nothing.
 *
 * A refused message ends its move alone: what was sent of it is refused too, because blocks land in
 * order; nothing more of it is sent, and it completes when the last refusal is in. */
#include "dist/internal.h"
#include "dist/marks.h"

#include <stdlib.h>
#include <string.h>

/* A peer that acknowledges nothing for so long has failed. */
#define STALL_NS UINT64_C(5000000000)
#define PROBE_NS UINT64_C(100000000)

enum {
    MAX_MOVES = 1024,
    /* Messages of a peer without acknowledgement: one is written while the other is on its way. It
     * is the least that links have as slots, so the creditor always finds one for its answer. */
    MAX_IN_FLIGHT = 2,
};

static inf_link **lane(inf_peer *p) { return &p->move; }

static void push(inf_moves *list, inf_move *m) {
    m->next = NULL;
    if (list->tail != NULL) {
        list->tail->next = m;
    } else {
        list->head = m;
    }
    list->tail = m;
}

static inf_move *pop(inf_moves *list) {
    inf_move *m = list->head;
    if (m != NULL) {
        list->head = m->next;
        list->tail = list->head == NULL ? NULL : list->tail;
    }
    return m;
}

static void finish(inf_dist *d, inf_move *m, int32_t status) {
    m->status = status;
    pthread_mutex_lock(&d->done_lock);
    push(&d->done, m);
    pthread_cond_signal(&d->done_cond);
    pthread_mutex_unlock(&d->done_lock);
}

void inf_moves_fail(inf_dist *d, inf_peer *p, int32_t status) {
    for (inf_move *m; (m = pop(&p->active)) != NULL;) {
        finish(d, m, m->status != INF_OK ? m->status : status);
    }
    for (inf_move *m; (m = pop(&p->posted)) != NULL;) {
        finish(d, m, status);
    }
    p->in_flight = 0;
}

/* Counts the move in, or says why it cannot be taken. */
static int take_move(inf_dist *d, inf_peer *p, inf_move *m) {
    pthread_mutex_lock(&d->lock);
    int status = p->move == NULL || atomic_load(&p->dead) != INF_OK ? INF_EPEER
                 : atomic_load(&d->moves) >= MAX_MOVES              ? INF_EFULL
                                                                    : INF_OK;
    if (status == INF_OK) {
        atomic_fetch_add(&d->moves, 1);
        push(&p->posted, m);
    }
    pthread_mutex_unlock(&d->lock);
    return status;
}

int inf_dist_move_post(inf_dist *d, uint32_t peer, uint32_t handle, uint32_t generation,
                       uint32_t first, const int32_t *blocks, int32_t n, uint64_t ticket,
                       inf_err *err) {
    if (peer >= INF_MAX_PEERS || n < 1 || n > d->num_blocks || first > INT32_MAX) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)peer, "cannot move %d blocks to index %u",
                              n, first);
    }
    inf_move *m = calloc(1, sizeof *m + (size_t)n * sizeof *blocks);
    if (m == NULL) {
        return inf_dist_error(err, INF_ENOMEM, (int32_t)peer, "no memory for a move");
    }
    m->handle = handle;
    m->generation = generation;
    m->first = first;
    m->n = n;
    m->ticket = ticket;
    memcpy(m->blocks, blocks, (size_t)n * sizeof *blocks);
    int status = take_move(d, &d->peers[peer], m);
    if (status != INF_OK) {
        free(m);
        return inf_dist_error(err, status, (int32_t)peer,
                              status == INF_EFULL ? "too many moves are not waited for"
                                                  : "no living link for moves to the peer");
    }
    inf_dist_wake(d->mover.wake);
    return INF_OK;
}

int inf_dist_move_wait(inf_dist *d, int64_t timeout_ns, inf_move_done *out, inf_err *err) {
    (void)err;
    uint64_t at = inf_now() + (timeout_ns > 0 ? (uint64_t)timeout_ns : 0);
    struct timespec until = {(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    int late = 0;
    pthread_mutex_lock(&d->done_lock);
    while (d->done.head == NULL && late == 0) {
        late = pthread_cond_timedwait(&d->done_cond, &d->done_lock, &until);
    }
    inf_move *m = pop(&d->done);
    pthread_mutex_unlock(&d->done_lock);
    if (m == NULL) {
        return INF_AGAIN;
    }
    atomic_fetch_sub(&d->moves, 1);
    *out = (inf_move_done){.ticket = m->ticket, .status = m->status};
    free(m);
    return INF_OK;
}

static int32_t part(const inf_dist *d, const inf_link *link, const inf_move *m, int32_t from) {
    uint64_t room = inf_link_slot_bytes(link) - inf_wire_move_head(), left = m->n - from;
    uint64_t fits = room / d->kv.block_bytes;
    return (int32_t)(left < fits ? left : fits);
}

/* Writes and posts the move's next message. */
static int send_part(inf_dist *d, const inf_peer *p, inf_link *link, inf_move *m, uint8_t *buf) {
    int32_t n = part(d, link, m, m->sent);
    uint64_t head_bytes = inf_wire_move_head(), bytes = head_bytes + n * d->kv.block_bytes;
    inf_wire_head h = {
        .magic = INF_WIRE_MAGIC, .kind = INF_WIRE_MOVE, .bytes = bytes, .lane = p->lane};
    inf_wire_move w = {.handle = m->handle,
                       .generation = m->generation,
                       .first = m->first + (uint32_t)m->sent,
                       .n = (uint32_t)n,
                       .ticket = m->ticket};
    memset(buf, 0, head_bytes);
    memcpy(buf, &h, sizeof h);
    memcpy(buf + sizeof h, &w, sizeof w);
    uint8_t *at = buf + head_bytes;
    for (int32_t i = 0; i < n; i++, at += d->kv.block_bytes) {
        d->ops->copy_out(d->moving, at,
                         d->pool + (uint64_t)m->blocks[m->sent + i] * d->kv.block_bytes,
                         d->kv.block_bytes);
    }
    int status = d->ops->sync(d->moving, NULL);
    uint32_t peer = (uint32_t)(p - d->peers);
    if (status == INF_OK) {
        (void)inf_mark_move_posted(peer, h.lane, w.ticket, w.first, w.n, bytes);
        status = inf_link_post(link, bytes);
    }
    if (status == INF_OK) {
        (void)inf_mark_move_wire(peer, h.lane, w.ticket, w.first, w.n, bytes);
        m->sent += n;
        atomic_fetch_add(&d->moved_blocks, (uint64_t)n);
        atomic_fetch_add(&d->moved_bytes, bytes);
    }
    return status;
}

static int send_some(inf_dist *d, inf_peer *p, inf_link *link) {
    inf_move *m = p->active.head;
    while (p->in_flight < MAX_IN_FLIGHT) {
        while (m != NULL && (m->sent == m->n || m->status != INF_OK)) {
            m = m->next;
        }
        /* Also when there is nothing to send: after a prepare that found no room, a wait returns at
         * once whenever there is room, until another prepare has taken note of it. */
        void *buf = NULL;
        int status = inf_link_prepare(link, &buf);
        if (status == INF_OK) {
            status = m == NULL ? INF_AGAIN : send_part(d, p, link, m, buf);
        }
        if (status != INF_OK) {
            return status == INF_AGAIN ? INF_OK : status;
        }
        p->heard_ns = p->in_flight++ == 0 ? inf_now() : p->heard_ns;
    }
    return INF_OK;
}

/* Is the message the acknowledgement that must come next? */
static bool ack_ok(const inf_dist *d, const inf_peer *p, const inf_link *link, const uint8_t *msg,
                   uint64_t len, inf_wire_move *w) {
    inf_wire_head h;
    const inf_move *m = p->active.head;
    if (len != inf_wire_move_head() || m == NULL || m->acked == m->sent) {
        return false;
    }
    memcpy(&h, msg, sizeof h);
    memcpy(w, msg + sizeof h, sizeof *w);
    const inf_wire_head want = {
        .magic = INF_WIRE_MAGIC, .kind = INF_WIRE_ACK, .bytes = len, .lane = p->lane};
    uint32_t n = (uint32_t)part(d, link, m, m->acked);
    return memcmp(&h, &want, sizeof h) == 0 && w->ticket == m->ticket && w->handle == m->handle &&
           w->generation == m->generation && w->first == m->first + (uint32_t)m->acked &&
           w->n == n && inf_wire_status_ok(w->status) &&
           (w->status != INF_OK || (w->landed == w->first + n && m->status == INF_OK));
}

static int take_acks(inf_dist *d, inf_peer *p, inf_link *link) {
    for (;;) {
        const void *msg = NULL;
        uint64_t len = 0;
        int status = inf_link_poll(link, &msg, &len);
        if (status != INF_OK) {
            return status == INF_AGAIN ? INF_OK : status;
        }
        inf_wire_move w;
        bool ok = ack_ok(d, p, link, msg, len, &w);
        inf_link_release(link);
        if (!ok) {
            return INF_EPROTO;
        }
        uint32_t peer = (uint32_t)(p - d->peers);
        (void)inf_mark_move_back(peer, p->lane, w.ticket, w.first, w.n, len);
        inf_move *m = p->active.head;
        m->acked += (int32_t)w.n;
        m->status = m->status != INF_OK ? m->status : w.status;
        p->in_flight--;
        p->heard_ns = inf_now();
        if (m->acked == m->sent && (m->sent == m->n || m->status != INF_OK)) {
            finish(d, pop(&p->active), m->status);
        }
    }
}

static int run_peer(inf_dist *d, inf_peer *p, inf_link *link) {
    pthread_mutex_lock(&d->lock);
    for (inf_move *m; (m = pop(&p->posted)) != NULL;) {
        push(&p->active, m);
    }
    pthread_mutex_unlock(&d->lock);
    int status = take_acks(d, p, link);
    status = status != INF_OK ? status : send_some(d, p, link);
    bool stalled = p->in_flight > 0 && inf_now() - p->heard_ns > STALL_NS;
    return status == INF_OK && stalled ? INF_ETIMEOUT : status;
}

/* Ends the moves of dead peers, and looks after query links that no step uses: otherwise their
 * death would show only in the next step. */
static void settle(inf_dist *d, bool probe) {
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < INF_MAX_PEERS; i++) {
        inf_peer *p = &d->peers[i];
        bool idle = p->query != NULL && !p->in_step;
        if (idle && probe && atomic_load(&p->dead) == INF_OK) {
            inf_link_wait(&p->query, 1, -1, 0);
            int status = inf_link_status(p->query, NULL);
            if (status != INF_OK) {
                inf_peer_fail(d, i, status);
            }
        }
        if (atomic_load(&p->dead) == INF_OK) {
            continue;
        }
        inf_moves_fail(d, p, atomic_load(&p->dead));
        if (idle) {
            inf_link_close(p->query);
            p->query = NULL;
        }
    }
    pthread_mutex_unlock(&d->lock);
}

void *inf_mover_main(void *dist) {
    inf_dist *d = dist;
    inf_link *links[INF_MAX_PEERS];
    uint32_t ids[INF_MAX_PEERS];
    uint64_t probed = 0;
    while (!atomic_load(&d->stopping)) {
        inf_dist_unwake(d->mover.wake);
        uint32_t n = inf_worker_round(d, &d->mover, lane, links, ids);
        for (uint32_t i = 0; i < n; i++) {
            int status = run_peer(d, &d->peers[ids[i]], links[i]);
            if (status != INF_OK) {
                inf_peer_fail(d, ids[i], status);
            }
        }
        bool probe = inf_now() - probed >= PROBE_NS;
        probed = probe ? inf_now() : probed;
        settle(d, probe);
        inf_link_wait(links, n, d->mover.wake, (int64_t)PROBE_NS);
    }
    return NULL;
}
