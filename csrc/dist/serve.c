/* The creditor's side of a step: a thread that answers queries over hosted spans.
 *
 * Debtors step on their own, and each asks for one layer at a time. What messages are there when
 * the thread looks, of all debtors, is a batch: its spans, whatever their layers, are given to the
 * device in one call, so that a GPU answers them in one plan and one launch, and then each debtor
 * gets its answer. Nothing waits for a batch to fill. q is read from the request's slot and o is
 * written into the reply's slot.
 *
 * Rules of a batch:
 *  1. It has one message of a link at most, INF_SERVE_MESSAGES at most, no more groups and entries
 *     than one message may have, and not more than SERVE_ROWS rows unless a message alone has more:
 *     a decode step does not wait for a prefill's queries because both came at once.
 *  2. Both slots of a message, polled and prepared, are this thread's until the batch is over; then
 *     the answer is posted, and the message released.
 *  3. The spans of a message are held from when it gets into the batch until after the call.
 *  4. A message fails alone: a malformed one never gets into a batch; a stale span costs its group;
 *     and when a call fails, each message of it is asked for again by itself, on another lane if
 *     this one has failed (lanes.c). Only a message whose own call fails ends its peer.
 *
 * A message over tokens that a wave has not computed so far (waves.c) is kept, and gets into a
 * batch later:
 *  5. It is kept as a whole, in its debtor's inbox, and holds nothing but its slot: no scratch, and
 *     no span, so that a close does not wait for it. What it says is read from the slot again each
 *     time, and checked again.
 *  6. What its debtor sends meanwhile is polled too, and waits behind it, so that a look at the
 *     link tells its death, and a wait returns for nothing that cannot be answered. A debtor has a
 *     message of each half of its step on the way at most: a third one is none of a debtor's.
 *  7. It is looked at again when the thread is woken, whoever does it, and when its patience ends;
 *     then its groups that still wait are refused as those of stale spans are. The step thread
 *     wakes it when what is waited for is there, and so does whoever ends a wave or a span of one.
 *  8. A link that leaves the thread takes its inbox along. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "dist/marks.h"
#include "dist/query.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SERVE_ROWS = 256 };

/* Only a creditor needs them. Without threads of its own it still answers, on this one. */
static void open_workers(inf_dist *d) {
    if (d->answering_tried) {
        return;
    }
    d->answering_tried = true;
    /* Threads begin where their maker may run, and this one may be kept beside a NIC. */
    cpu_set_t mine, all;
    bool keeps = sched_getaffinity(0, sizeof mine, &mine) == 0 &&
                 sched_getaffinity(getpid(), sizeof all, &all) == 0 &&
                 sched_setaffinity(0, sizeof all, &all) == 0;
    if (inf_pool_open(d->threads, &d->workers) != INF_OK) {
        d->workers = NULL;
    }
    if (keeps) {
        sched_setaffinity(0, sizeof mine, &mine);
    }
}

/* One call for n messages whose asked is set; it is cleared. Those of a window stand side by
 * side: layers with the same window can share a launch. */
static int ask(inf_dist *d, inf_query *first, uint32_t n) {
    uint32_t args = 0;
    for (uint32_t i = 0; i < n; i++) {
        bool asked = first[i].asked;
        int32_t window = d->windows[first[i].head.layer];
        for (uint32_t k = i; asked && k < n; k++) {
            if (first[k].asked && d->windows[first[k].head.layer] == window) {
                args += inf_query_args(d, &first[k], d->attn + args);
                first[k].asked = false;
            }
        }
    }
    if (args == 0) { /* every group was refused */
        return INF_OK;
    }
    int status = inf_lane_take(d, &d->answering);
    if (status != INF_OK) {
        return status;
    }
    inf_err err = {0};
    atomic_fetch_add(&d->served_batches, 1);
    status = d->ops->answer(d->answering.lane, d->attn, (int32_t)args, &err);
    if (status == INF_OK) {
        inf_lane_worked(&d->answering);
    } else if (status != INF_EINVAL) { /* which is the message's */
        inf_lane_failed(d, &d->answering, &err);
    }
    return status;
}

static void compute(inf_dist *d) {
    inf_query *queries = d->queries;
    uint32_t n = d->n_queries;
    for (uint32_t i = 0; i < n; i++) {
        queries[i].asked = true;
    }
    int status = ask(d, queries, n);
    bool again = status != INF_OK && (n > 1 || status != INF_EINVAL);
    for (uint32_t i = 0; i < n; i++) {
        inf_query *m = &queries[i];
        m->asked = true;
        m->status = again ? ask(d, m, 1) : status;
    }
    for (uint32_t i = 0; i < n; i++) {
        inf_query_put(d, &queries[i]);
    }
}

static int give_answer(inf_dist *d, const inf_query *m) {
    const inf_wire_head *h = &m->head;
    (void)inf_mark_query_computed(m->owner, h->lane, h->step_id, inf_wire_part(h), h->n_rows,
                                  m->bytes);
    uint64_t bytes = inf_query_finish(d, m);
    atomic_fetch_add(&d->served_messages, 1);
    atomic_fetch_add(&d->served_rows, h->n_rows);
    atomic_fetch_add(&d->served_bytes, bytes);
    int status = inf_link_post(m->link, bytes);
    if (status == INF_OK) {
        (void)inf_mark_query_returned(m->owner, h->lane, h->step_id, inf_wire_part(h), h->n_rows,
                                      bytes);
    }
    return status;
}

/* Answers what was gathered. */
static void answer_batch(inf_dist *d) {
    if (d->n_queries == 0) {
        return;
    }
    open_workers(d);
    compute(d);
    for (uint32_t i = 0; i < d->n_queries; i++) {
        inf_query *m = &d->queries[i];
        int status = m->status != INF_OK ? m->status : give_answer(d, m);
        inf_link_release(m->link);
        if (status != INF_OK) {
            inf_peer_fail(d, m->owner, status, m->link);
        }
    }
    atomic_store(&d->answered_ns, inf_now());
    d->n_queries = d->batch_groups = d->batch_entries = d->batch_rows = 0;
}

/* The place of the batch's next message. */
static inf_query *next_query(inf_dist *d, inf_link *link, uint32_t peer, void *out) {
    inf_query *m = &d->queries[d->n_queries];
    *m = (inf_query){.link = link,
                     .owner = peer,
                     .groups = d->wire_groups + d->batch_groups,
                     .entries = d->wire_entries + d->batch_entries,
                     .lists = d->lists + d->batch_entries,
                     .statuses = d->statuses + d->batch_groups,
                     .out = out};
    return m;
}

/* Takes a message into the batch; the batch before it is answered if both are too much. INF_AGAIN:
 * it is to wait. */
static int gather(inf_dist *d, inf_link *link, uint32_t peer, const uint8_t *msg, uint64_t len,
                  void *out, inf_wait *wait) {
    inf_query *m = next_query(d, link, peer, out);
    int status = inf_query_parse(d, msg, len, d->max_groups - d->batch_groups,
                                 d->max_entries - d->batch_entries, m);
    bool many =
        status == INF_OK && d->batch_rows > 0 && d->batch_rows + m->head.n_rows > SERVE_ROWS;
    if (status == INF_AGAIN || many) {
        answer_batch(d);
        m = next_query(d, link, peer, out);
        status = inf_query_parse(d, msg, len, d->max_groups, d->max_entries, m);
    }
    if (status != INF_OK) {
        return status;
    }
    const inf_wire_head *h = &m->head;
    bool is_new = wait->since_ns == 0;
    if (is_new) {
        (void)inf_mark_query_arrived(peer, h->lane, h->step_id, inf_wire_part(h), h->n_rows, len);
    }
    status = inf_query_take(d, m, wait);
    if (status != INF_OK) {
        atomic_fetch_add(&d->kept, is_new);
        return status;
    }
    m->o = (float *)(m->out + inf_wire_partial_head(h->n_groups));
    m->lse = m->o + (size_t)h->n_rows * (size_t)d->heads * (size_t)d->head_dim;
    d->batch_groups += h->n_groups;
    d->batch_entries += h->n_entries;
    d->batch_rows += h->n_rows;
    d->n_queries++;
    return INF_OK;
}

/* Puts a message behind those that wait. INF_EPROTO: its debtor cannot have sent so many. */
static int keep(inf_dist *d, inf_inbox *box, inf_link *link, const void *msg, uint64_t len) {
    if (box->n == INF_HALVES) {
        return INF_EPROTO;
    }
    d->n_inboxes += box->n == 0;
    box->link = link;
    box->at[box->n].msg = msg;
    box->at[box->n].kept_ns = inf_now();
    box->at[box->n++].bytes = len;
    return INF_OK;
}

/* The oldest is not in the inbox any more. The next one has waited since it came: debtors count the
 * patience of both halves from then. */
static void advance(inf_dist *d, inf_inbox *box) {
    box->at[0] = box->at[1];
    box->n--;
    box->wait = (inf_wait){box->n > 0 ? box->at[0].kept_ns : 0, 0};
    if (box->n == 0) {
        box->link = NULL;
        d->n_inboxes--;
    }
}

static void forget(inf_dist *d, inf_inbox *box) {
    while (box->n > 0) {
        advance(d, box);
    }
}

/* Inboxes of links that have left. */
static void forget_gone(inf_dist *d, inf_link *const *links, const uint32_t *ids, uint32_t n) {
    uint32_t k = 0; /* ids grow */
    for (uint32_t peer = 0; d->n_inboxes > 0 && peer < INF_MAX_PEERS; peer++) {
        inf_inbox *box = &d->inboxes[peer];
        while (k < n && ids[k] < peer) {
            k++;
        }
        if (box->n > 0 && (k == n || ids[k] != peer || links[k] != box->link)) {
            forget(d, box);
        }
    }
}

/* The oldest message that waits, if it need not any more. */
static int try_again(inf_dist *d, inf_inbox *box, uint32_t peer) {
    void *out = NULL;
    inf_link *link = box->link;
    int status = inf_link_prepare(link, &out);
    if (status == INF_AGAIN) { /* a wait returns when there is room */
        box->wait.until_ns = UINT64_MAX;
        return inf_link_full(link) ? INF_EPROTO : INF_AGAIN;
    }
    if (status == INF_OK) {
        status = gather(d, link, peer, box->at[0].msg, box->at[0].bytes, out, &box->wait);
    }
    if (status == INF_OK) {
        advance(d, box);
    }
    return status;
}

static int look_into(inf_dist *d, inf_inbox *box, uint32_t peer) {
    const void *msg = NULL;
    uint64_t len = 0;
    int status;
    while ((status = inf_link_poll(box->link, &msg, &len)) == INF_OK) {
        status = keep(d, box, box->link, msg, len);
        if (status != INF_OK) {
            return status;
        }
    }
    return status == INF_AGAIN ? try_again(d, box, peer) : status;
}

static int look_at_link(inf_dist *d, inf_inbox *box, inf_link *link, uint32_t peer) {
    const void *msg = NULL;
    void *out = NULL;
    uint64_t len = 0;
    inf_wait wait = {0, 0};
    int status = inf_dist_take(link, &msg, &len, &out);
    if (status != INF_OK) {
        return status;
    }
    status = gather(d, link, peer, msg, len, out, &wait);
    if (status == INF_AGAIN) {
        status = keep(d, box, link, msg, len);
        box->wait = wait;
    } else if (status != INF_OK) {
        inf_link_release(link);
    }
    return status;
}

/* Takes the peer's message, if there is one. */
static void look_at(inf_dist *d, inf_link *link, uint32_t peer) {
    inf_inbox *box = &d->inboxes[peer];
    int status = box->n > 0 ? look_into(d, box, peer) : look_at_link(d, box, link, peer);
    if (status != INF_OK && status != INF_AGAIN) {
        forget(d, box);
        inf_peer_fail(d, peer, status, link);
    }
}

/* How long the thread may wait for links: until the patience of what it keeps ends. */
static int64_t wait_for(const inf_dist *d) {
    uint64_t most = 100000000, now = d->n_inboxes > 0 ? inf_now() : 0;
    for (uint32_t peer = 0; d->n_inboxes > 0 && peer < INF_MAX_PEERS; peer++) {
        const inf_inbox *box = &d->inboxes[peer];
        uint64_t until = box->wait.until_ns, left = until > now ? until - now : 0;
        most = box->n > 0 && left < most ? left : most;
    }
    return (int64_t)most;
}

/* A debtor's next layer follows soon, so who has just answered stays awake for it; but who keeps
 * messages is woken by what only a sleeper looks at. */
static int64_t awake_for(inf_dist *d) {
    if (d->awake_ns == 0 || d->n_inboxes > 0) {
        return 0;
    }
    int64_t since = (int64_t)(inf_now() - atomic_load(&d->answered_ns));
    return since < d->awake_ns ? d->awake_ns - since : 0;
}

void *inf_serve_main(void *dist) {
    inf_dist *d = dist;
    inf_link *links[INF_MAX_PEERS];
    uint32_t ids[INF_MAX_PEERS];
    while (!atomic_load(&d->stopping)) {
        inf_dist_unwake(d->server.wake);
        inf_near_follow(d, &d->server);
        uint32_t n = inf_server_round(d, links, ids);
        forget_gone(d, links, ids, n);
        for (uint32_t i = 0; i < n && inf_lane_rests(&d->answering) == 0; i++) {
            look_at(d, links[i], ids[i]);
            if (d->n_queries == INF_SERVE_MESSAGES) {
                answer_batch(d);
            }
        }
        answer_batch(d);
        inf_lane_wait(&d->answering, links, n, d->server.wake, wait_for(d), awake_for(d));
    }
    return NULL;
}
