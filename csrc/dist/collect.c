/* A layer of a step: partials in. Each is merged into the local one (design, section 2) from the
 * slot it arrived in, which is the creditor's again when the device has read it (slots.c). */
#include "dist/home.h"
#include "dist/internal.h"
#include "dist/marks.h"

#include <string.h>

/* Takes the statuses of the groups that were sent; false when one is none that a creditor gives.
 * Each is read once: shared memory can change under the reader. */
static bool take_statuses(inf_dist *d, const inf_asked *a, const uint8_t *msg) {
    const volatile int32_t *status = (const volatile int32_t *)(msg + sizeof(inf_wire_head));
    for (uint32_t g = 0; g < a->n_groups; g++) {
        inf_group *group = &d->groups[a->group_off + g];
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
    inf_asked *a = inf_target_asked(d, t, s);
    if (len != a->answer.bytes) {
        return INF_EPROTO;
    }
    memcpy(&h, msg, sizeof h);
    if (memcmp(&h, &a->answer, sizeof h) != 0 || !take_statuses(d, a, msg)) {
        return INF_EPROTO;
    }
    (void)inf_mark_query_back(t->peer, h.lane, h.step_id, inf_wire_part(&h), h.n_rows, len);
    size_t heads = (size_t)d->heads, row = heads * (size_t)d->head_dim;
    const float *o2 = (const float *)(msg + inf_wire_partial_head(h.n_groups));
    const float *lse2 = o2 + (size_t)h.n_rows * row;
    for (uint32_t g = 0; g < a->n_groups; g++) {
        inf_group *group = &d->groups[a->group_off + g];
        if (!group->sent) {
            continue;
        }
        const inf_step_seq *seq = &s->seqs[group->seq];
        if (group->status != INF_OK) {
            inf_step_fail_seq(s, group->seq, group->status, t->peer);
        } else if ((s->head->flags & INF_STEP_EMPTY_REMOTE) == 0 &&
                   s->seq_out[group->seq].status == INF_OK &&
                   d->ops->merge(lane, seq->token_off, (int32_t)seq->n_tokens,
                                 o2 + (size_t)group->row_off * row,
                                 lse2 + (size_t)group->row_off * heads, d->heads) != 0) {
            t->held = true;
        }
    }
    (void)inf_mark_query_merged(t->peer, h.lane, h.step_id, inf_wire_part(&h), h.n_rows, len);
    return INF_OK;
}

/* One look at a target: true when nothing is expected of it any more. */
static bool collect_target(inf_dist *d, const inf_step_buffers *s, inf_target *t, inf_lane *lane) {
    const void *msg = NULL;
    uint64_t len = 0;
    int status = inf_peer_death(&d->peers[t->peer]);
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
        inf_target_fail(d, t, status);
    }
    inf_target_asked(d, t, s)->pending = false;
    return true;
}

/* The other half's partials may still be read where they lie, if nothing was posted since. */
static void let_go_of_others(inf_dist *d, inf_lane *lane) {
    bool held = false;
    for (uint32_t i = 0; i < d->n_targets; i++) {
        held = held || d->targets[i].held;
    }
    if (held) { /* a lane that failed ends the step, but no peer */
        (void)d->ops->sync(lane, NULL);
        inf_step_release_held(d);
    }
}

/* Until when partials are waited for. Those of a half may have been on their way for a turn of the
 * other one: their time began then, so that both together do not take twice as long; but what comes
 * in pieces, over tcp, comes when it is looked for. */
static uint64_t deadline_of(inf_dist *d, const inf_step_buffers *s, uint64_t begun) {
    uint64_t timeout = s->head->peer_timeout_ns, deadline = begun + timeout / 2;
    if (d->n_steps == 1) {
        return begun + timeout;
    }
    for (uint32_t i = 0; i < d->n_targets; i++) {
        const inf_asked *a = inf_target_asked(d, &d->targets[i], s);
        if (a->pending && a->posted_ns + timeout > deadline) {
            deadline = a->posted_ns + timeout;
        }
    }
    return deadline;
}

void inf_dist_collect(inf_dist *d, const inf_step_buffers *s, inf_lane *lane) {
    uint64_t begun = inf_now(), deadline = deadline_of(d, s, begun);
    inf_link *links[INF_MAX_PEERS];
    let_go_of_others(d, lane);
    for (;;) {
        uint32_t left = 0;
        for (uint32_t i = 0; i < d->n_targets; i++) {
            inf_target *t = &d->targets[i];
            bool pending = inf_target_asked(d, t, s)->pending;
            if (pending && !collect_target(d, s, t, lane)) {
                links[left++] = t->link;
            } else if (t->link != NULL && inf_peer_death(&d->peers[t->peer]) != INF_OK) {
                /* Nothing is expected of it; but a detach waits, and others may answer late. */
                inf_target_fail(d, t, inf_peer_death(&d->peers[t->peer]));
            }
        }
        if (left == 0) {
            break;
        }
        uint64_t now = inf_now();
        if (now >= deadline) {
            for (uint32_t i = 0; i < d->n_targets; i++) {
                if (inf_target_asked(d, &d->targets[i], s)->pending) {
                    inf_target_fail(d, &d->targets[i], INF_ETIMEOUT);
                }
            }
            break;
        }
        inf_link_wait_awake(links, left, d->step_wake, (int64_t)(deadline - now), d->awake_ns);
        inf_dist_unwake(d->step_wake);
    }
    atomic_fetch_add(&d->wait_ns, inf_now() - begun);
}
