/* A layer of a step: queries out. ask writes one message per target straight into the link's slot,
 * where the device puts the queries, and post sends it. */
#include "dist/home.h"
#include "dist/internal.h"
#include "dist/marks.h"

#include <string.h>
#include <time.h>

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
    inf_asked *asked = inf_target_asked(d, t, s);
    for (uint32_t g = 0; g < asked->n_groups; g++) {
        inf_group *group = &d->groups[asked->group_off + g];
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
    for (uint32_t g = 0; g < asked->n_groups; g++) {
        inf_group *group = &d->groups[asked->group_off + g];
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
                       .lane = t->lane,
                       .half = (uint32_t)(s - d->steps)};
    memcpy(buf, &h, sizeof h);
    asked->answer = h;
    asked->answer.kind = INF_WIRE_PARTIAL;
    asked->answer.bytes =
        inf_wire_partial_head(groups) + rows * (row + (size_t)d->heads) * sizeof(float);
    return h.bytes;
}

/* A slot for the target's next message. The creditor keeps one of each half at most, so a ring that
 * is full of what it has not released breaks the protocol (device.h, INF_QUERY_SLOTS); but messages
 * that it took may not be known to have arrived, when acknowledgements of the wire were lost. */
static int take_slot(inf_dist *d, const inf_step_buffers *s, inf_target *t, void **buf) {
    uint64_t deadline = inf_now() + s->head->peer_timeout_ns;
    for (int woken = INF_AGAIN;;) {
        int status = inf_peer_death(&d->peers[t->peer]);
        status = status != INF_OK ? status : inf_link_prepare(t->link, buf);
        if (status != INF_AGAIN) {
            return status;
        }
        uint64_t now = inf_now();
        if (inf_link_full(t->link) || now >= deadline) {
            return now >= deadline ? INF_ETIMEOUT : INF_EPROTO;
        }
        if (woken == INF_OK) { /* by the other half's answer, for which this is not the time */
            (void)nanosleep(&(struct timespec){0, 50000}, NULL);
        }
        woken =
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

static int post_target(inf_dist *d, inf_target *t, inf_asked *asked, uint64_t bytes) {
    const inf_wire_head *h = &asked->answer;
    (void)inf_mark_query_posted(t->peer, h->lane, h->step_id, inf_wire_part(h), h->n_rows, bytes);
    int status = inf_link_post(t->link, bytes);
    asked->posted_ns = inf_now();
    if (status == INF_OK) {
        (void)inf_mark_query_wire(t->peer, h->lane, h->step_id, inf_wire_part(h), h->n_rows, bytes);
        asked->pending = true;
        atomic_fetch_add(&d->query_messages, 1);
        atomic_fetch_add(&d->query_rows, h->n_rows);
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
        inf_asked *a = inf_target_asked(d, t, s);
        a->pending = false;
        bool asked = t->link != NULL && a->n_groups > 0;
        int status = asked ? prepare_target(d, s, t, layer, lane, q, &d->lengths[i]) : INF_OK;
        if (status != INF_OK) {
            inf_target_fail(d, t, status);
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
    inf_step_release_held(d);
    for (uint32_t i = 0; i < d->n_targets; i++) {
        inf_target *t = &d->targets[i];
        inf_asked *a = inf_target_asked(d, t, s);
        bool written = d->lengths[i] > 0 && t->link != NULL;
        status = written ? post_target(d, t, a, d->lengths[i]) : INF_OK;
        if (status != INF_OK) {
            inf_target_fail(d, t, status);
        }
        asked += a->pending;
    }
    return asked;
}
