/* The home's side of a step: its creditors, from its begin to its end.
 *
 * begin sorts the step's spans by creditor: one target per creditor, in it one group per request,
 * in it the request's spans there; of a step in halves once for each half. In each layer queries go
 * out (ask.c) and partials come in (collect.c): about rows * heads * head_dim * 4 bytes leave, and
 * as many come back, whatever the spans' length.
 *
 * A target that fails is dead for good: its late answer could otherwise be taken for a newer one.
 */
#include "dist/home.h"
#include "dist/internal.h"
#include "dist/marks.h"

void inf_step_fail_seq(const inf_step_buffers *s, uint32_t seq, int32_t status, uint32_t peer) {
    if (s->seq_out[seq].status == INF_OK) {
        s->seq_out[seq].status = status;
        s->seq_out[seq].peer = (int32_t)peer;
    }
}

/* The step may use the peer's query link until it lets go. */
static bool take_hold(inf_dist *d, inf_target *t) {
    inf_peer *p = &d->peers[t->peer];
    pthread_mutex_lock(&d->lock);
    p->in_step = p->query != NULL && atomic_load(&p->dead) == INF_OK && !atomic_load(&p->leaving);
    t->link = p->in_step ? p->query : NULL;
    t->lane = p->lane;
    pthread_mutex_unlock(&d->lock);
    return t->link != NULL;
}

void inf_step_release_held(inf_dist *d) {
    for (uint32_t i = 0; i < d->n_targets; i++) {
        inf_target *t = &d->targets[i];
        if (t->held) {
            inf_link_release(t->link);
            t->held = false;
        }
    }
}

/* Lets go of the peer's query link, at once and for the rest of the step: a detach waits for it.
 * The lane first lets go of its slots; it may have failed, and then runs nothing any more. Of a
 * dead peer the mover closes it, if no detach does: that waits for the device, and others' answers
 * are due. */
static void let_go(inf_dist *d, inf_target *t) {
    if (t->link == NULL) {
        return;
    }
    if (t->held) {
        (void)d->ops->sync(d->step_lane, NULL);
        inf_step_release_held(d);
    }
    inf_peer *p = &d->peers[t->peer];
    pthread_mutex_lock(&d->lock);
    p->in_step = false;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->lock);
    if (atomic_load(&p->dead) != INF_OK) {
        inf_dist_wake(d->mover.wake);
    }
    t->link = NULL;
}

void inf_dist_end(inf_dist *d) {
    for (uint32_t i = 0; i < d->n_targets; i++) {
        let_go(d, &d->targets[i]);
    }
    d->n_targets = 0;
    atomic_store(&d->stepping, false);
    (void)inf_mark_step_ended(d->step_id);
}

/* All requests that have spans there. */
static void fail_requests(inf_dist *d, inf_target *t, int32_t status) {
    for (uint32_t i = 0; i < d->n_steps; i++) {
        inf_asked *a = &t->asked[i];
        for (uint32_t g = 0; g < a->n_groups; g++) {
            inf_step_fail_seq(&d->steps[i], d->groups[a->group_off + g].seq, status, t->peer);
        }
        a->pending = false;
    }
}

void inf_target_fail(inf_dist *d, inf_target *t, int32_t status) {
    fail_requests(d, t, status);
    inf_peer_fail(d, t->peer, status, t->link);
    let_go(d, t);
}

int32_t inf_peer_death(inf_peer *p) {
    int32_t dead = atomic_load(&p->dead);
    return dead == INF_OK && atomic_load(&p->leaving) ? INF_EPEER : dead;
}

/* Adds the groups that the step, or half, has at one peer. */
static void plan_asked(inf_dist *d, const inf_step_buffers *s, uint32_t peer, inf_asked *a,
                       uint32_t *n_groups, uint32_t *n_entries) {
    *a = (inf_asked){.group_off = *n_groups};
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *q = &s->seqs[i];
        inf_group g = {.seq = i, .span_off = *n_entries};
        for (uint32_t k = 0; k < q->n_spans; k++) {
            if (s->spans[q->span_off + k].peer == peer) {
                d->spans[(*n_entries)++] = s->spans[q->span_off + k];
                g.n_spans++;
            }
        }
        if (g.n_spans > 0) {
            d->groups[(*n_groups)++] = g;
            a->n_groups++;
        }
    }
}

/* Adds a peer; false when no request has spans there. */
static bool plan_peer(inf_dist *d, uint32_t peer, uint32_t *n_groups, uint32_t *n_entries) {
    inf_target *t = &d->targets[d->n_targets];
    uint32_t before = *n_groups;
    *t = (inf_target){.peer = peer};
    for (uint32_t i = 0; i < d->n_steps; i++) {
        plan_asked(d, &d->steps[i], peer, &t->asked[i], n_groups, n_entries);
    }
    d->n_targets += *n_groups > before;
    return *n_groups > before;
}

/* Names the step and its requests to a tracer. */
static void mark_step(inf_dist *d, const inf_step_buffers *s) {
    const inf_step_head *h = s->head;
    d->step_id = h->step_id;
    (void)inf_mark_step_begun(h->step_id, h->n_seqs, h->n_tokens, d->n_targets);
    for (uint32_t i = 0; i < h->n_seqs; i++) {
        const inf_step_seq *q = &s->seqs[i];
        if (q->n_spans > 0) {
            (void)inf_mark_step_seq(h->step_id, q->tag, q->slot, q->pos0, q->n_tokens,
                                    q->local_pos0);
        }
    }
}

void inf_dist_begin(inf_dist *d, const inf_step_buffers *s, const inf_step_buffers *halves) {
    bool seen[INF_MAX_PEERS] = {false};
    uint32_t n_groups = 0, n_entries = 0;
    d->steps = halves != NULL ? halves : s;
    d->n_steps = halves != NULL ? INF_HALVES : 1;
    atomic_fetch_add(&d->halved_steps, halves != NULL);
    for (uint32_t i = 0; i < s->head->n_spans; i++) {
        uint32_t peer = s->spans[i].peer;
        if (peer >= INF_MAX_PEERS || seen[peer]) {
            continue;
        }
        seen[peer] = true;
        if (plan_peer(d, peer, &n_groups, &n_entries) &&
            !take_hold(d, &d->targets[d->n_targets - 1])) {
            int32_t status = inf_peer_death(&d->peers[peer]);
            fail_requests(d, &d->targets[--d->n_targets], status != INF_OK ? status : INF_EPEER);
        }
    }
    atomic_store(&d->stepping, d->n_targets > 0);
    mark_step(d, s);
}
