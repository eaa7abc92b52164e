/* Moves as their callers know them, and the thread that sends them.
 *
 * A peer's moves begin in order, and their pieces go over whichever rail has room (send.c). Blocks
 * are read from the pool until the last acknowledgement, and the caller keeps them so long: they
 * stay readable for steps, and a move that fails loses nothing.
 *
 * A refused piece ends its move alone: nothing more of it is begun, and it completes when the
 * answers to what is under way are in. */
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

#define PROBE_NS UINT64_C(100000000)

enum { MAX_MOVES = 1024 };

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
}

/* Counts the move in, or says why it cannot be taken. */
static int take_move(inf_dist *d, inf_peer *p, inf_move *m) {
    pthread_mutex_lock(&d->lock);
    int status = p->out[0] == NULL || atomic_load(&p->dead) != INF_OK ? INF_EPEER
                 : atomic_load(&d->moves) >= MAX_MOVES                ? INF_EFULL
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
    inf_move *m = calloc(1, sizeof *m + (size_t)n * (sizeof *blocks + 1));
    if (m == NULL) {
        return inf_dist_error(err, INF_ENOMEM, (int32_t)peer, "no memory for a move");
    }
    m->handle = handle;
    m->generation = generation;
    m->first = first;
    m->n = n;
    m->ticket = ticket;
    m->state = (uint8_t *)(m->blocks + n);
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

/* Takes over what was posted, under dist.lock. */
static void take_posted(inf_dist *d, inf_peer *p) {
    pthread_mutex_lock(&d->lock);
    for (inf_move *m; (m = pop(&p->posted)) != NULL;) {
        push(&p->active, m);
    }
    pthread_mutex_unlock(&d->lock);
}

/* Reports the moves that are over. */
static void report(inf_dist *d, inf_peer *p) {
    inf_moves left = {0};
    for (inf_move *m; (m = pop(&p->active)) != NULL;) {
        bool over = m->pieces == 0 && (m->status != INF_OK || m->acked == m->n);
        over ? finish(d, m, m->status) : push(&left, m);
    }
    p->active = left;
}

static bool has_rails(const inf_peer *p) {
    for (int k = 0; k < INF_MAX_RAILS; k++) {
        if (p->out[k] != NULL) {
            return true;
        }
    }
    return false;
}

/* Ends the moves of dead peers, once no rail reads their blocks; and looks after query links that
 * no step uses: otherwise their death would show only in the next step. */
static void settle(inf_dist *d, bool probe) {
    inf_link *over[INF_MAX_PEERS];
    uint32_t n_over = 0;
    pthread_mutex_lock(&d->lock);
    for (uint32_t i = 0; i < INF_MAX_PEERS; i++) {
        inf_peer *p = &d->peers[i];
        bool idle = p->query != NULL && !p->in_step;
        if (idle && probe && atomic_load(&p->dead) == INF_OK) {
            inf_link_wait(&p->query, 1, -1, 0);
            int status = inf_link_status(p->query, NULL);
            if (status != INF_OK) {
                inf_peer_fail(d, i, status, p->query);
            }
        }
        if (atomic_load(&p->dead) == INF_OK) {
            continue;
        }
        if (!has_rails(p) && !atomic_load(&p->leaving)) { /* else the detach has them still */
            inf_moves_fail(d, p, atomic_load(&p->dead));
        }
        if (idle && !atomic_load(&p->leaving)) {
            over[n_over++] = p->query;
            p->query = NULL;
        }
    }
    pthread_mutex_unlock(&d->lock);
    while (n_over > 0) { /* before this thread's next round, for which a detach waits */
        inf_query_link_close(d, over[--n_over]);
    }
}

void *inf_mover_main(void *dist) {
    inf_dist *d = dist;
    inf_rail *rails[INF_LINK_WAIT_MAX];
    inf_link *links[INF_LINK_WAIT_MAX];
    uint64_t probed = 0;
    while (!atomic_load(&d->stopping)) {
        inf_dist_unwake(d->mover.wake);
        inf_near_follow(d, &d->mover);
        uint32_t n = inf_rails_round(d, &d->mover, true, rails, links);
        for (uint32_t i = 0; i < n; i++) {
            inf_peer *p = &d->peers[rails[i]->peer];
            if (rails[i]->number == 0) { /* the list has a peer's rails in order */
                take_posted(d, p);
            }
            int status = inf_send_run(d, rails[i]);
            if (status != INF_OK) {
                inf_rail_fail(d, rails[i], status);
            }
            if (i + 1 == n || rails[i + 1]->peer != rails[i]->peer) {
                report(d, p);
            }
        }
        uint64_t now = inf_now();
        bool probe = now - probed >= PROBE_NS;
        probed = probe ? now : probed;
        settle(d, probe);
        inf_lane_wait(&d->moving, links, n, d->mover.wake, (int64_t)PROBE_NS, 0);
    }
    return NULL;
}
