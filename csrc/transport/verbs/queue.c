/* Posting and completing work requests.
 *
 * No queue is left to overrun, which hardware notices late or (a completion queue on some devices)
 * not at all; each rule is checked here, and breaking one ends the link with a message:
 *
 * send queue: Each kind of work request has its budget, and the depth is their sum, plus one for
 * the mark of a drain. A place is free again when a later signaled work request has completed:
 * unsignaled ones say nothing by themselves.
 *
 * send CQ: As deep as the send queue: when a queue pair fails, all of it is flushed.
 *
 * receive queue: Always full when something leaves that lets the peer send: see ring.c.
 *
 * receive CQ: As deep as the receive queue.
 *
 * Work requests are signaled every slots/2, so that a full budget always has a signaled one in it.
 *
 * wr_id holds the place in the queue (low half) and the lap (high half): the number of the work
 * request follows from them and from what is in flight, and a completion that fits nothing in
 * flight is an error. Of a completion with an error only wr_id, status and qp_num are valid. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "runtime/clock.h"
#include "transport/verbs/verbs_impl.h"

enum { POLL_BATCH = 16 };
/* A drain takes microseconds; a device that does not end it by then is broken. */
static const int64_t DRAIN_NS = 1000000000;

static void to_err(inf_verbs_endpoint *ep) {
    if (ep->state == INF_ENDPOINT_ERR)
        return;
    ep->state = INF_ENDPOINT_ERR;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    ep->lib->modify_qp(ep->qp, &attr, IBV_QP_STATE);
}

int inf_verbs_fail(inf_verbs_endpoint *ep, int code, const char *format, ...) {
    if (ep->err.code == 0) {
        va_list args;
        va_start(args, format);
        ep->err = (inf_err){.code = code, .instance = ep->config.peer, .layer = -1};
        vsnprintf(ep->err.message, sizeof ep->err.message, format, args);
        va_end(args);
    }
    to_err(ep);
    return ep->err.code;
}

int inf_verbs_check_event(inf_verbs_endpoint *ep) {
    int event = atomic_load_explicit(&ep->event, memory_order_acquire);
    if (event == 0)
        return INF_OK;
    return inf_verbs_fail(ep, INF_EPEER, "cannot reach the peer: port %u of %s says: %s",
                          ep->config.port, ep->device->context->name,
                          ep->lib->event_type_str((enum ibv_event_type)(event - 1)));
}

static uint64_t place(uint64_t number, uint32_t depth) {
    return (uint64_t)(uint32_t)(number / depth) << 32 | number % depth;
}

/* The number of the work request, in [done, posted), that has this wr_id; posted if none has. */
static uint64_t number_of(uint64_t wr_id, uint64_t done, uint64_t posted, uint32_t depth) {
    uint64_t index = wr_id & UINT32_MAX;
    if (index >= depth)
        return posted;
    uint64_t number = done + (index + depth - done % depth) % depth;
    return number < posted && place(number, depth) == wr_id ? number : posted;
}

bool inf_verbs_has_budget(const inf_verbs_endpoint *ep, int kind, uint32_t n) {
    const inf_verbs_queues *q = &ep->q;
    return q->posted.wrs[kind] - q->done.wrs[kind] + n <= q->budget[kind];
}

int inf_verbs_post(inf_verbs_endpoint *ep, struct ibv_send_wr *first, uint32_t n, int kind,
                   uint64_t messages, uint64_t put_bytes, bool signal) {
    inf_verbs_queues *q = &ep->q;
    if (!inf_verbs_has_budget(ep, kind, n) || q->send_posted - q->send_done + n >= q->send_depth)
        return inf_verbs_fail(ep, INF_EFULL,
                              "cannot send to peer %d: %u work requests of kind %d would overrun "
                              "the send queue, a credit rule is broken",
                              ep->config.peer, n, kind);
    q->unsignaled += n;
    signal = signal || q->unsignaled >= q->signal_every;
    uint64_t number = q->send_posted;
    for (struct ibv_send_wr *wr = first; wr; wr = wr->next, number++) {
        wr->wr_id = place(number, q->send_depth);
        q->posted.wrs[kind]++;
        if (!wr->next) {
            q->posted.messages += messages;
            q->posted.put_bytes += put_bytes;
            wr->send_flags |= signal ? IBV_SEND_SIGNALED : 0;
        }
        q->notes[number % q->send_depth] = q->posted;
    }
    struct ibv_send_wr *bad = NULL; /* not every driver sets it */
    int rc = ibv_post_send(ep->qp, first, &bad);
    if (rc != 0)
        return inf_verbs_fail(ep, INF_EIO, "cannot send to peer %d: posting failed: %s",
                              ep->config.peer, strerror(rc));
    q->send_posted = number;
    if (signal) {
        if (q->signaled++ == 0)
            q->since_ms = inf_link_now_ms();
        q->unsignaled = 0;
    }
    return INF_OK;
}

int inf_verbs_fill_recv(inf_verbs_endpoint *ep) {
    enum { BATCH = 16 };
    inf_verbs_queues *q = &ep->q;
    struct ibv_recv_wr wrs[BATCH], *bad = NULL;
    while (q->recv_posted - q->recv_done < q->recv_depth) {
        uint32_t n = 0, missing = q->recv_depth - (uint32_t)(q->recv_posted - q->recv_done);
        for (; n < BATCH && n < missing; n++)
            wrs[n] = (struct ibv_recv_wr){.wr_id = place(q->recv_posted + n, q->recv_depth),
                                          .next = &wrs[n + 1]};
        wrs[n - 1].next = NULL;
        int rc = ibv_post_recv(ep->qp, wrs, &bad);
        if (rc != 0)
            return inf_verbs_fail(ep, INF_EIO, "cannot receive from peer %d: posting failed: %s",
                                  ep->config.peer, strerror(rc));
        q->recv_posted += n;
    }
    return INF_OK;
}

/* A completion says that the link is broken. Flushed requests follow from something else, which the
 * other queue or an event may tell; what fails first on the send side is it. */
static int fail_completion(inf_verbs_endpoint *ep, enum ibv_wc_status status) {
    int code = INF_EPEER;
    if (status == IBV_WC_RNR_RETRY_EXC_ERR)
        code = INF_EPROTO; /* its receive queue was empty, which the credits rule out */
    else if (status == IBV_WC_LOC_LEN_ERR || status == IBV_WC_LOC_PROT_ERR ||
             status == IBV_WC_LOC_ACCESS_ERR || status == IBV_WC_MW_BIND_ERR ||
             status == IBV_WC_GENERAL_ERR)
        code = INF_EIO;
    return inf_verbs_fail(ep, code, "cannot reach the peer over %s: %s", ep->device->context->name,
                          ep->lib->wc_status_str(status));
}

static int misfit(inf_verbs_endpoint *ep, const char *queue) {
    return inf_verbs_fail(ep, INF_EIO, "cannot use %s: its %s queue completed what was not posted",
                          ep->device->context->name, queue);
}

static int take_send(inf_verbs_endpoint *ep, const struct ibv_wc *wc) {
    inf_verbs_queues *q = &ep->q;
    uint64_t number = number_of(wc->wr_id, q->send_done, q->send_posted, q->send_depth);
    if (number == q->send_posted || wc->qp_num != ep->qp->qp_num)
        return misfit(ep, "send");
    if (wc->status != IBV_WC_SUCCESS)
        return fail_completion(ep, wc->status);
    if (q->signaled == 0)
        return misfit(ep, "send");
    q->signaled--;
    q->done = q->notes[number % q->send_depth];
    q->send_done = number + 1;
    return INF_OK;
}

int inf_verbs_poll_send(inf_verbs_endpoint *ep) {
    struct ibv_wc wc[POLL_BATCH];
    for (;;) {
        int n = ibv_poll_cq(ep->send_cq, POLL_BATCH, wc);
        if (n < 0)
            return inf_verbs_fail(ep, INF_EIO, "cannot poll the send queue of %s",
                                  ep->device->context->name);
        for (int i = 0; i < n; i++) {
            int rc = take_send(ep, &wc[i]);
            if (rc != INF_OK)
                return rc;
        }
        if (n < POLL_BATCH)
            return INF_OK;
    }
}

/* Receive requests complete in the order in which they were posted. */
static int take_recv(inf_verbs_endpoint *ep, const struct ibv_wc *wc) {
    inf_verbs_queues *q = &ep->q;
    if (q->recv_done == q->recv_posted || wc->wr_id != place(q->recv_done, q->recv_depth) ||
        wc->qp_num != ep->qp->qp_num)
        return misfit(ep, "receive");
    q->recv_done++;
    if (wc->status == IBV_WC_SUCCESS)
        return INF_OK;
    int rc = inf_verbs_check_event(ep);
    if (rc == INF_OK)
        rc = inf_verbs_poll_send(ep);
    return rc != INF_OK ? rc : fail_completion(ep, wc->status);
}

int inf_verbs_poll_recv(inf_verbs_endpoint *ep, struct ibv_wc *wc, int max) {
    if (ep->err.code != 0)
        return ep->err.code;
    int n = ibv_poll_cq(ep->recv_cq, max, wc);
    if (n < 0)
        return inf_verbs_fail(ep, INF_EIO, "cannot poll the receive queue of %s",
                              ep->device->context->name);
    for (int i = 0; i < n; i++)
        if (take_recv(ep, &wc[i]) != INF_OK) {
            ep->q.recv_done += (uint32_t)(n - 1 - i);
            /* What came before the failure is whole: it is delivered, and the next call fails. */
            return i > 0 ? i : ep->err.code;
        }
    return n;
}

/* Gives way to others: for a moment at first, then longer. */
static void pause_since(int64_t begun) {
    const struct timespec nap = {0, 50000};
    if (inf_now() - begun < 1000000)
        sched_yield();
    else
        nanosleep(&nap, NULL);
}

int inf_verbs_flush(inf_verbs_endpoint *ep, int64_t limit_ns) {
    int64_t begun = inf_now();
    for (;;) {
        int rc = inf_verbs_poll_send(ep);
        if (rc == INF_OK)
            rc = inf_verbs_check_event(ep);
        if (rc != INF_OK || ep->q.send_done == ep->q.send_posted)
            return rc;
        if (inf_now() - begun > limit_ns)
            return INF_AGAIN;
        pause_since(begun);
    }
}

/* How many receive requests were completed now. */
static uint32_t discard_recv(inf_verbs_endpoint *ep) {
    struct ibv_wc wc[POLL_BATCH];
    int n = ibv_poll_cq(ep->recv_cq, POLL_BATCH, wc);
    return n > 0 ? (uint32_t)n : 0;
}

/* Takes completions of the send queue; true once the one with this wr_id is among them. */
static bool discard_send(inf_verbs_endpoint *ep, uint64_t mark) {
    struct ibv_wc wc[POLL_BATCH];
    int n = ibv_poll_cq(ep->send_cq, POLL_BATCH, wc);
    for (int i = 0; i < n; i++)
        if (wc[i].wr_id == mark)
            return true;
    return false;
}

/* In ERR everything posted is flushed in order, and so is a mark that is posted last: unsignaled
 * requests that were complete before make no completion, so these cannot be counted. Every receive
 * request makes one. */
void inf_verbs_drain(inf_verbs_endpoint *ep) {
    static const uint64_t MARK = UINT64_MAX;
    bool sends = ep->state == INF_ENDPOINT_RTS || ep->q.send_posted > 0;
    to_err(ep);
    struct ibv_send_wr wr = {.wr_id = MARK,
                             .opcode = IBV_WR_RDMA_WRITE,
                             .send_flags = IBV_SEND_SIGNALED,
                             .wr.rdma = {ep->remote.ring_address, ep->remote.ring_key}};
    struct ibv_send_wr *bad = NULL;
    if (sends && ibv_post_send(ep->qp, &wr, &bad) != 0)
        sends = false;
    int64_t begun = inf_now();
    while (sends || ep->q.recv_done != ep->q.recv_posted) {
        ep->q.recv_done += discard_recv(ep);
        if (sends && discard_send(ep, MARK))
            sends = false;
        if (inf_now() - begun > DRAIN_NS)
            return;
        if (sends || ep->q.recv_done != ep->q.recv_posted)
            pause_since(begun);
    }
}
