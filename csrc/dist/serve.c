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
 *  3. The spans of a message are held from before the call until after it.
 *  4. A message fails alone: a malformed one never gets into a batch; a stale span costs its group;
 *     and when a call fails, each message of it is asked for again by itself, on another lane if
 *     this one has failed (lanes.c). Only a message whose own call fails ends its peer. */
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
        inf_query_take(d, &queries[i]);
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

/* Takes a message into the batch; the batch before it is answered if both are too much. */
static int gather(inf_dist *d, inf_link *link, uint32_t peer, const uint8_t *msg, uint64_t len,
                  void *out) {
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
    (void)inf_mark_query_arrived(peer, h->lane, h->step_id, inf_wire_part(h), h->n_rows, len);
    m->o = (float *)(m->out + inf_wire_partial_head(h->n_groups));
    m->lse = m->o + (size_t)h->n_rows * (size_t)d->heads * (size_t)d->head_dim;
    d->batch_groups += h->n_groups;
    d->batch_entries += h->n_entries;
    d->batch_rows += h->n_rows;
    d->n_queries++;
    return INF_OK;
}

/* Takes the peer's message, if there is one. */
static void look_at(inf_dist *d, inf_link *link, uint32_t peer) {
    const void *msg = NULL;
    void *out = NULL;
    uint64_t len = 0;
    int status = inf_dist_take(link, &msg, &len, &out);
    if (status == INF_AGAIN) {
        return;
    }
    if (status == INF_OK) {
        status = gather(d, link, peer, msg, len, out);
        if (status != INF_OK) {
            inf_link_release(link);
        }
    }
    if (status != INF_OK) {
        inf_peer_fail(d, peer, status, link);
    }
}

/* A debtor's next layer follows soon, so who has just answered stays awake for it. */
static int64_t awake_for(inf_dist *d) {
    if (d->awake_ns == 0) {
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
        for (uint32_t i = 0; i < n && inf_lane_rests(&d->answering) == 0; i++) {
            look_at(d, links[i], ids[i]);
            if (d->n_queries == INF_SERVE_MESSAGES) {
                answer_batch(d);
            }
        }
        answer_batch(d);
        inf_lane_wait(&d->answering, links, n, d->server.wake, 100000000, awake_for(d));
    }
    return NULL;
}
