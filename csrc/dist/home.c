/* The home's side of a step: queries out, partials in.
 *
 * begin sorts the step's spans by creditor: one target per creditor, in it one group per request,
 * in it the request's spans there. ask writes one message per target straight into the link's
 * slot, where the device puts the queries, and post sends it: about rows * heads * head_dim * 4
 * bytes leave, and as many come back, whatever the spans' length. collect merges each partial into
 * the local one (design, section 2) from the slot it arrived in, which is the creditor's again when
 * the device has read it (slots.c).
 *
 * A target that fails is dead for good: its late answer could otherwise be taken for a newer one.
 */
#include "dist/internal.h"
#include "dist/marks.h"

#include <string.h>

static void fail_seq(const inf_step_buffers *s, uint32_t seq, int32_t status, uint32_t peer) {
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

/* Gives back the slots that the lane has read, as slots.c, 4, has it. */
static void release_held(inf_dist *d) {
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
        release_held(d);
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

static void fail_target(inf_dist *d, const inf_step_buffers *s, inf_target *t, int32_t status) {
    for (uint32_t g = 0; g < t->n_groups; g++) {
        fail_seq(s, d->groups[t->group_off + g].seq, status, t->peer);
    }
    inf_peer_fail(d, t->peer, status, t->link);
    let_go(d, t);
    t->pending = false;
}

/* Why the peer cannot be asked, INF_OK while it can. */
static int32_t death(inf_peer *p) {
    int32_t dead = atomic_load(&p->dead);
    return dead == INF_OK && atomic_load(&p->leaving) ? INF_EPEER : dead;
}

/* Adds the groups of one peer; false when no request has spans there. */
static bool plan_peer(inf_dist *d, const inf_step_buffers *s, uint32_t peer, uint32_t *n_groups,
                      uint32_t *n_entries) {
    inf_target *t = &d->targets[d->n_targets];
    *t = (inf_target){.peer = peer, .group_off = *n_groups};
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
            t->n_groups++;
        }
    }
    if (t->n_groups == 0) {
        return false;
    }
    d->n_targets++;
    return true;
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

void inf_dist_begin(inf_dist *d, const inf_step_buffers *s) {
    bool seen[INF_MAX_PEERS] = {false};
    uint32_t n_groups = 0, n_entries = 0;
    for (uint32_t i = 0; i < s->head->n_spans; i++) {
        uint32_t peer = s->spans[i].peer;
        if (peer >= INF_MAX_PEERS || seen[peer]) {
            continue;
        }
        seen[peer] = true;
        if (plan_peer(d, s, peer, &n_groups, &n_entries) &&
            !take_hold(d, &d->targets[d->n_targets - 1])) {
            inf_target *t = &d->targets[--d->n_targets];
            int32_t status = death(&d->peers[peer]);
            for (uint32_t g = 0; g < t->n_groups; g++) {
                fail_seq(s, d->groups[t->group_off + g].seq, status != INF_OK ? status : INF_EPEER,
                         peer);
            }
        }
    }
    atomic_store(&d->stepping, d->n_targets > 0);
    mark_step(d, s);
}

/* Does any row of the request see the span in this layer? The first row looks back furthest. */
static bool visible(const inf_step_seq *q, const inf_step_span *s, int32_t window) {
    return window <= 0 ||
           (uint64_t)s->pos0 + s->n_tokens + (uint32_t)window > (uint64_t)q->pos0 + 1;
}

/* Writes one target's message, the queries by post's wait; returns its bytes, 0 when nothing is
 * to be asked in this layer. */
static uint64_t write_query(inf_dist *d, const inf_step_buffers *s, inf_target *t, int32_t layer,
                            inf_lane *lane, const void *q, uint8_t *buf) {
    uint32_t groups = 0, entries = 0, rows = 0;
    int32_t window = d->windows[layer];
    for (uint32_t g = 0; g < t->n_groups; g++) {
        inf_group *group = &d->groups[t->group_off + g];
        const inf_step_seq *seq = &s->seqs[group->seq];
        uint32_t n = 0;
        for (uint32_t k = 0; k < group->n_spans; k++) {
            n += visible(seq, &d->spans[group->span_off + k], window);
        }
        group->sent = n > 0 && s->seq_out[group->seq].status == INF_OK;
        if (group->sent) {
            groups++;
            entries += n;
        }
    }
    if (groups == 0) {
        return 0;
    }
    uint64_t head_bytes = inf_wire_query_head(groups, entries);
    inf_wire_group *wg = (inf_wire_group *)(buf + sizeof(inf_wire_head));
    inf_wire_entry *we = (inf_wire_entry *)(wg + groups);
    float *out = (float *)(buf + head_bytes);
    size_t row = (size_t)d->heads * (size_t)d->head_dim;
    uint32_t at = 0;
    uint8_t *tail = (uint8_t *)(we + entries);
    memset(tail, 0, (size_t)((uint8_t *)out - tail));
    for (uint32_t g = 0; g < t->n_groups; g++) {
        inf_group *group = &d->groups[t->group_off + g];
        if (!group->sent) {
            continue;
        }
        const inf_step_seq *seq = &s->seqs[group->seq];
        *wg = (inf_wire_group){
            .row_off = rows, .rows = seq->n_tokens, .q_pos0 = seq->pos0, .entry_off = at};
        for (uint32_t k = 0; k < group->n_spans; k++) {
            const inf_step_span *sp = &d->spans[group->span_off + k];
            if (visible(seq, sp, window)) {
                we[at++] = (inf_wire_entry){sp->handle, sp->generation, sp->pos0, sp->n_tokens};
                wg->n_entries++;
            }
        }
        wg++;
        group->row_off = rows;
        d->ops->queries(lane, q, seq->token_off, (int32_t)seq->n_tokens, out + (size_t)rows * row,
                        d->heads);
        rows += seq->n_tokens;
    }
    inf_wire_head h = {.magic = INF_WIRE_MAGIC,
                       .kind = INF_WIRE_QUERY,
                       .step_id = s->head->step_id,
                       .layer = (uint32_t)layer,
                       .n_groups = groups,
                       .n_entries = entries,
                       .n_rows = rows,
                       .bytes = head_bytes + rows * row * sizeof(float),
                       .lane = t->lane};
    memcpy(buf, &h, sizeof h);
    t->answer = h;
    t->answer.kind = INF_WIRE_PARTIAL;
    t->answer.bytes =
        inf_wire_partial_head(groups) + rows * (row + (size_t)d->heads) * sizeof(float);
    return h.bytes;
}

/* A slot for the target's next message. The creditor answers a message only after it took it, so a
 * ring that is full of what it has not taken breaks the protocol; but messages that it took may not
 * be known to have arrived, when acknowledgements of the wire were lost. */
static int take_slot(inf_dist *d, const inf_step_buffers *s, inf_target *t, void **buf) {
    uint64_t deadline = inf_now() + s->head->peer_timeout_ns;
    for (;;) {
        int status = death(&d->peers[t->peer]);
        status = status != INF_OK ? status : inf_link_prepare(t->link, buf);
        if (status != INF_AGAIN) {
            return status;
        }
        uint64_t now = inf_now();
        if (inf_link_full(t->link) || now >= deadline) {
            return now >= deadline ? INF_ETIMEOUT : INF_EPROTO;
        }
        inf_link_wait_awake(&t->link, 1, d->step_wake, (int64_t)(deadline - now), d->awake_ns);
        inf_dist_unwake(d->step_wake);
    }
}

static int prepare_target(inf_dist *d, const inf_step_buffers *s, inf_target *t, int32_t layer,
                          inf_lane *lane, const void *q, uint64_t *bytes) {
    void *buf = NULL;
    int status = take_slot(d, s, t, &buf);
    if (status != INF_OK) {
        return status;
    }
    *bytes = write_query(d, s, t, layer, lane, q, buf); /* 0: prepared for the next layer */
    return INF_OK;
}

static int post_target(inf_dist *d, inf_target *t, uint64_t bytes) {
    const inf_wire_head *h = &t->answer;
    (void)inf_mark_query_posted(t->peer, h->lane, h->step_id, h->layer, h->n_rows, bytes);
    int status = inf_link_post(t->link, bytes);
    if (status == INF_OK) {
        (void)inf_mark_query_wire(t->peer, h->lane, h->step_id, h->layer, h->n_rows, bytes);
        t->pending = true;
        atomic_fetch_add(&d->query_messages, 1);
        atomic_fetch_add(&d->query_rows, t->answer.n_rows);
        atomic_fetch_add(&d->query_sent_bytes, bytes);
    }
    return status;
}

void inf_dist_ask(inf_dist *d, const inf_step_buffers *s, int32_t layer, inf_lane *lane,
                  const void *q) {
    d->asking = false;
    d->step_lane = lane;
    for (uint32_t i = 0; i < d->n_targets; i++) {
        inf_target *t = &d->targets[i];
        d->lengths[i] = 0;
        t->pending = false;
        int status =
            t->link != NULL ? prepare_target(d, s, t, layer, lane, q, &d->lengths[i]) : INF_OK;
        if (status != INF_OK) {
            fail_target(d, s, t, status);
        }
        d->asking = d->asking || d->lengths[i] > 0;
    }
    if (d->asking && d->ops->leave != NULL) {
        d->ops->leave(lane);
    }
}

int32_t inf_dist_post(inf_dist *d, const inf_step_buffers *s, inf_lane *lane) {
    int32_t asked = 0;
    if (!d->asking) {
        return 0;
    }
    /* One wait for the queries of all; a lane that failed ends the step, but no peer. */
    int status = d->ops->left != NULL ? d->ops->left(lane, NULL) : d->ops->sync(lane, NULL);
    if (status != INF_OK) {
        return 0;
    }
    release_held(d);
    for (uint32_t i = 0; i < d->n_targets; i++) {
        inf_target *t = &d->targets[i];
        status = d->lengths[i] > 0 ? post_target(d, t, d->lengths[i]) : INF_OK;
        if (status != INF_OK) {
            fail_target(d, s, t, status);
        }
        asked += t->pending;
    }
    return asked;
}

/* Takes the statuses of the groups that were sent; false when one is none that a creditor gives.
 * Each is read once: shared memory can change under the reader. */
static bool take_statuses(inf_dist *d, const inf_target *t, const uint8_t *msg) {
    const volatile int32_t *status = (const volatile int32_t *)(msg + sizeof(inf_wire_head));
    for (uint32_t g = 0; g < t->n_groups; g++) {
        inf_group *group = &d->groups[t->group_off + g];
        if (group->sent) {
            group->status = *status++;
            if (!inf_wire_status_ok(group->status)) {
                return false;
            }
        }
    }
    return true;
}

/* Merges one arrived partial; INF_EPROTO when it is not the answer to what was asked. */
static int merge_partial(inf_dist *d, const inf_step_buffers *s, inf_target *t, const uint8_t *msg,
                         uint64_t len, inf_lane *lane) {
    inf_wire_head h;
    if (len != t->answer.bytes) {
        return INF_EPROTO;
    }
    memcpy(&h, msg, sizeof h);
    if (memcmp(&h, &t->answer, sizeof h) != 0 || !take_statuses(d, t, msg)) {
        return INF_EPROTO;
    }
    (void)inf_mark_query_back(t->peer, h.lane, h.step_id, h.layer, h.n_rows, len);
    size_t heads = (size_t)d->heads, row = heads * (size_t)d->head_dim;
    const float *o2 = (const float *)(msg + inf_wire_partial_head(h.n_groups));
    const float *lse2 = o2 + (size_t)h.n_rows * row;
    for (uint32_t g = 0; g < t->n_groups; g++) {
        inf_group *group = &d->groups[t->group_off + g];
        if (!group->sent) {
            continue;
        }
        const inf_step_seq *seq = &s->seqs[group->seq];
        if (group->status != INF_OK) {
            fail_seq(s, group->seq, group->status, t->peer);
        } else if ((s->head->flags & INF_STEP_EMPTY_REMOTE) == 0 &&
                   s->seq_out[group->seq].status == INF_OK &&
                   d->ops->merge(lane, seq->token_off, (int32_t)seq->n_tokens,
                                 o2 + (size_t)group->row_off * row,
                                 lse2 + (size_t)group->row_off * heads, d->heads) != 0) {
            t->held = true;
        }
    }
    (void)inf_mark_query_merged(t->peer, h.lane, h.step_id, h.layer, h.n_rows, len);
    return INF_OK;
}

/* One look at a target: true when nothing is expected of it any more. */
static bool collect_target(inf_dist *d, const inf_step_buffers *s, inf_target *t, inf_lane *lane) {
    const void *msg = NULL;
    uint64_t len = 0;
    int status = death(&d->peers[t->peer]);
    if (status == INF_OK) {
        status = inf_link_poll(t->link, &msg, &len);
    }
    if (status == INF_AGAIN) {
        return false;
    }
    if (msg != NULL) {
        status = merge_partial(d, s, t, msg, len, lane);
        if (!t->held) {
            inf_link_release(t->link);
        }
    }
    if (status != INF_OK) {
        fail_target(d, s, t, status);
    }
    t->pending = false;
    return true;
}

void inf_dist_collect(inf_dist *d, const inf_step_buffers *s, int32_t layer, inf_lane *lane) {
    uint64_t begun = inf_now(), deadline = begun + s->head->peer_timeout_ns;
    inf_link *links[INF_MAX_PEERS];
    (void)layer; /* what was posted last, which each target remembers */
    for (;;) {
        uint32_t left = 0;
        for (uint32_t i = 0; i < d->n_targets; i++) {
            inf_target *t = &d->targets[i];
            if (t->pending && !collect_target(d, s, t, lane)) {
                links[left++] = t->link;
            } else if (t->link != NULL && death(&d->peers[t->peer]) != INF_OK) {
                /* Nothing is expected of it; but a detach waits, and others may answer late. */
                fail_target(d, s, t, death(&d->peers[t->peer]));
            }
        }
        if (left == 0) {
            break;
        }
        uint64_t now = inf_now();
        if (now >= deadline) {
            for (uint32_t i = 0; i < d->n_targets; i++) {
                if (d->targets[i].pending) {
                    fail_target(d, s, &d->targets[i], INF_ETIMEOUT);
                }
            }
            break;
        }
        inf_link_wait_awake(links, left, d->step_wake, (int64_t)(deadline - now), d->awake_ns);
        inf_dist_unwake(d->step_wake);
    }
    atomic_fetch_add(&d->wait_ns, inf_now() - begun);
}
