/* Links over RDMA: a ring of slots in the receiver's memory, which the sender writes into.
 *
 * A message is one RDMA write with 32 immediate bits (wire.h) from a staging slot into the
 * receiver's slot; the completion of a receive request that the write consumed tells of it, its
 * length and its immediate. No copy, no wait; small ones travel in the work request itself.
 *
 * Credits. Of a sender's messages at most `slots` are not released by the receiver. Released counts
 * travel with messages the other way, or as an immediate of their own:
 *
 *   - after a release, at the end of a poll that found nothing, and before sleep, if the peer has
 *     used up all that it was told of, or half of its slots can be told;
 *   - never twice with the same count. So while a receiver does not look, at most `slots` messages
 *     and `slots` such credits come to it, then the last word: its receive queue has that depth,
 *     and is filled up before anything leaves that lets the peer send more.
 *
 * A staging slot is free when its write is complete, which a lost acknowledgement can delay beyond
 * the peer's answer. There are half as many again as the peer has slots, so that an answer is
 * normally followed by the next message all the same.
 *
 * Sleep. Each completion queue is armed and then looked at once more; what came in between is found
 * then, what comes after makes an event. An armed queue stays armed until its event, so that busy
 * links arm seldom. The send queue matters only to who waits for room.
 *
 * Death. The end of the socket is the peer's; its last word, which follows its last message, may be
 * on the way for a moment still. A link on which nothing moves is looked after by watch.c. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "transport/verbs/ring.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { LIVENESS_EVERY = 64, POLL_BATCH = 16 };
enum { GRACE_MS = 20 }; /* from the socket's end to the link's: the last messages may come */
/* A close waits so long for what was posted to be complete: a lost packet may be sent again once.
 * It looks at the socket now and then, and does not wait for a peer that is gone. */
enum { CLOSE_SLICES = 20 };
static const int64_t CLOSE_SLICE_NS = 5000000;

static inf_verbs_link *as_verbs(inf_link *link) { return (inf_verbs_link *)link; }

static int fail_gone(inf_verbs_link *v) {
    inf_verbs_fail(v->ep, INF_EPEER, "cannot reach the peer: its end of the verbs link is closed");
    return inf_verbs_link_fail(v);
}

/* --- arrivals --- */

/* Takes all that arrived. What arrived whole before a failure is delivered before it shows. */
static int take_arrivals(inf_verbs_link *v) {
    struct ibv_wc wc[POLL_BATCH];
    int n;
    do {
        n = inf_verbs_poll_recv(v->ep, wc, POLL_BATCH);
        if (n < 0)
            return v->rx_next != v->rx_head ? INF_OK : inf_verbs_link_fail(v);
        for (int i = 0; i < n; i++) {
            if (wc[i].opcode != IBV_WC_RECV_RDMA_WITH_IMM || !(wc[i].wc_flags & IBV_WC_WITH_IMM))
                return inf_verbs_violation(v, "kind of an arrival", wc[i].opcode,
                                           IBV_WC_RECV_RDMA_WITH_IMM);
            int rc = inf_verbs_arrival(v, ntohl(wc[i].imm_data), wc[i].byte_len);
            if (rc != INF_OK)
                return rc;
        }
    } while (n == POLL_BATCH);
    int rc = inf_verbs_check_event(v->ep);
    return rc == INF_OK || v->rx_next != v->rx_head ? INF_OK : inf_verbs_link_fail(v);
}

/* --- sending --- */

static bool has_room(const inf_verbs_link *v) {
    return v->tx_sent - v->tx_released < v->base.config.slots &&
           v->tx_sent - v->ep->q.done.messages < v->ep->tx_slots;
}

/* An immediate without data. */
static int post_immediate(inf_verbs_link *v, uint32_t imm, int kind, bool signal) {
    struct ibv_send_wr wr = {
        .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .imm_data = htonl(imm),
        .wr.rdma = {v->ep->remote.ring_address, v->ep->remote.ring_key},
    };
    if (inf_verbs_fill_recv(v->ep) != INF_OK ||
        inf_verbs_post(v->ep, &wr, 1, kind, 0, 0, signal) != INF_OK)
        return inf_verbs_link_fail(v);
    return INF_OK;
}

/* Tells the peer of released messages if that is due; later if the send queue has no room now. */
static int settle_credit(inf_verbs_link *v) {
    uint64_t news = v->rx_tail - v->rx_told;
    uint32_t slots = v->base.config.slots;
    bool starved = v->rx_head - v->rx_told >= slots;
    if (news == 0 || !(starved || (news >= 2 && news >= slots / 2)) || v->last_word || v->gone)
        return INF_OK;
    if (!inf_verbs_has_budget(v->ep, INF_WR_CREDIT, 1)) {
        if (inf_verbs_poll_send(v->ep) != INF_OK)
            return inf_verbs_link_fail(v);
        if (!inf_verbs_has_budget(v->ep, INF_WR_CREDIT, 1))
            return INF_OK;
    }
    int rc = post_immediate(v, inf_imm_count(INF_IMM_CREDIT, v->rx_tail), INF_WR_CREDIT, false);
    if (rc == INF_OK)
        v->rx_told = v->rx_tail;
    return rc;
}

static int verbs_prepare(inf_link *link, void **buf) {
    inf_verbs_link *v = as_verbs(link);
    if (!has_room(v)) {
        if (take_arrivals(v) < 0)
            return link->err.code;
        /* Watched here too: while a message waits to be polled, ready does not come to it. */
        if (inf_verbs_poll_send(v->ep) != INF_OK || inf_verbs_watch(v) < 0)
            return inf_verbs_link_fail(v);
    }
    if (v->last_word || v->gone)
        return fail_gone(v);
    if (!has_room(v))
        return INF_AGAIN;
    *buf = v->ep->tx + v->tx_sent % v->ep->tx_slots * v->ep->stride + INF_VERBS_LINE;
    return INF_OK;
}

static bool verbs_full(const inf_link *link) {
    const inf_verbs_link *v = (const inf_verbs_link *)link;
    return v->tx_sent - v->tx_released >= link->config.slots;
}

/* Describes the message in the staging slot as work requests; their number. */
static uint32_t describe(inf_verbs_link *v, uint64_t len) {
    inf_verbs_endpoint *ep = v->ep;
    uint32_t slots = v->base.config.slots, n = 0;
    uint8_t *from = ep->tx + v->tx_sent % ep->tx_slots * ep->stride + INF_VERBS_LINE;
    uint64_t to = ep->remote.ring_address + v->tx_sent % slots * ep->stride + INF_VERBS_LINE;
    bool is_long = len > INF_VERBS_LONG;
    for (uint64_t at = 0; is_long && at < len; at += INF_VERBS_LONG, n++) {
        uint64_t part = len - at < INF_VERBS_LONG ? len - at : INF_VERBS_LONG;
        ep->sges[n] =
            (struct ibv_sge){(uint64_t)(uintptr_t)(from + at), (uint32_t)part, ep->tx_mr->lkey};
        ep->wrs[n] = (struct ibv_send_wr){.opcode = IBV_WR_RDMA_WRITE,
                                          .sg_list = &ep->sges[n],
                                          .num_sge = 1,
                                          .next = &ep->wrs[n + 1],
                                          .wr.rdma = {to + at, ep->remote.ring_key}};
    }
    uint64_t last = len;
    if (is_long) {
        inf_verbs_header h = {.magic = INF_VERBS_HEADER_MAGIC,
                              .slot = (uint32_t)(v->tx_sent % slots),
                              .number = v->tx_sent,
                              .released = v->rx_tail,
                              .length = len};
        last = sizeof h;
        from -= sizeof h;
        to -= sizeof h;
        memcpy(from, &h, sizeof h);
    }
    ep->sges[n] = (struct ibv_sge){(uint64_t)(uintptr_t)from, (uint32_t)last, ep->tx_mr->lkey};
    ep->wrs[n] = (struct ibv_send_wr){
        .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .imm_data = htonl(inf_imm_message(is_long ? INF_IMM_LONG : INF_IMM_MESSAGE, v->tx_sent,
                                          slots, v->rx_tail)),
        .sg_list = &ep->sges[n],
        .num_sge = last > 0,
        .send_flags = last > 0 && last <= ep->max_inline ? IBV_SEND_INLINE : 0,
        .wr.rdma = {to, ep->remote.ring_key}};
    return n + 1;
}

static int verbs_post(inf_link *link, uint64_t len) {
    inf_verbs_link *v = as_verbs(link);
    if (v->ep->err.code != 0) /* what arrived before is not polled yet: poll tells */
        return INF_OK;
    uint32_t n = describe(v, len);
    if (inf_verbs_fill_recv(v->ep) != INF_OK ||
        inf_verbs_post(v->ep, v->ep->wrs, n, INF_WR_MESSAGE, 1, 0, false) != INF_OK)
        return inf_verbs_link_fail(v);
    v->tx_sent++;
    v->rx_told = v->rx_tail;
    return INF_OK;
}

/* --- receiving --- */

/* Nothing is ever sent on the socket: its end is the peer's death. */
static int look_at_socket(inf_verbs_link *v) {
    v->idle = 0;
    char byte;
    ssize_t n = recv(v->base.config.sock_fd, &byte, 1, MSG_DONTWAIT);
    if (n > 0)
        return inf_verbs_violation(v, "number of bytes on the socket", 1, 0);
    if ((n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) && !v->gone) {
        v->gone = true;
        v->gone_ms = inf_link_now_ms();
    }
    return INF_OK;
}

/* Nothing is there to poll. INF_AGAIN, or why nothing will come. */
static int nothing(inf_verbs_link *v) {
    if (v->last_word || (v->gone && inf_link_now_ms() - v->gone_ms >= GRACE_MS))
        return fail_gone(v);
    return INF_AGAIN;
}

static int verbs_poll(inf_link *link, const void **msg, uint64_t *len) {
    inf_verbs_link *v = as_verbs(link);
    if (v->rx_next == v->rx_head) {
        if (take_arrivals(v) < 0 || settle_credit(v) < 0)
            return link->err.code;
        if (v->rx_next == v->rx_head) {
            if (++v->idle >= LIVENESS_EVERY && look_at_socket(v) < 0)
                return link->err.code;
            return nothing(v);
        }
    }
    uint64_t slot = v->rx_next % link->config.slots;
    *msg = v->ep->rx + slot * v->ep->stride + INF_VERBS_LINE;
    *len = v->rx_len[slot];
    v->rx_next++;
    return INF_OK;
}

static void verbs_release(inf_link *link) {
    inf_verbs_link *v = as_verbs(link);
    v->rx_tail++;
    if (v->ep->err.code == 0)
        settle_credit(v);
}

/* --- sleep --- */

static bool wants_send(const inf_verbs_link *v) {
    return (v->base.wants_room && v->tx_sent - v->ep->q.done.messages >= v->ep->tx_slots) ||
           !inf_verbs_has_budget(v->ep, INF_WR_CREDIT, 1) || v->ep->puts.wants;
}

static bool verbs_ready(inf_link *link) {
    inf_verbs_link *v = as_verbs(link);
    if (v->rx_next != v->rx_head || take_arrivals(v) < 0 || v->rx_next != v->rx_head)
        return true;
    if (settle_credit(v) < 0 || nothing(v) < 0)
        return true;
    if (v->ep->q.signaled > 0 && inf_verbs_poll_send(v->ep) != INF_OK) {
        inf_verbs_link_fail(v);
        return true;
    }
    if (inf_verbs_watch(v) < 0) {
        inf_verbs_link_fail(v);
        return true;
    }
    return (link->wants_room && has_room(v)) || inf_verbs_puts_ready(v->ep);
}

static bool arm_queue(inf_verbs_link *v, struct ibv_cq *cq, bool *armed) {
    if (!*armed && ibv_req_notify_cq(cq, 0) != 0)
        inf_verbs_fail(v->ep, INF_EIO, "cannot arm a completion queue of %s",
                       v->ep->device->context->name);
    *armed = true;
    return v->ep->err.code == 0;
}

static bool verbs_arm(inf_link *link, struct pollfd fds[INF_LINK_FDS]) {
    inf_verbs_link *v = as_verbs(link);
    if (!arm_queue(v, v->ep->recv_cq, &v->recv_armed) ||
        (wants_send(v) && !arm_queue(v, v->ep->send_cq, &v->send_armed))) {
        inf_verbs_link_fail(v);
        return true;
    }
    fds[0] = (struct pollfd){.fd = v->ep->channel->fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = link->config.sock_fd, .events = POLLIN | POLLRDHUP};
    return verbs_ready(link);
}

static void verbs_disarm(inf_link *link, const struct pollfd fds[INF_LINK_FDS]) {
    inf_verbs_link *v = as_verbs(link);
    if (fds[0].revents) {
        struct ibv_cq *cq;
        void *context;
        while (v->ep->lib->get_cq_event(v->ep->channel, &cq, &context) == 0) {
            v->ep->lib->ack_cq_events(cq, 1);
            *(cq == v->ep->recv_cq ? &v->recv_armed : &v->send_armed) = false;
        }
    }
    if (fds[1].revents && link->err.code == 0)
        look_at_socket(v);
}

/* --- close and open --- */

/* What was posted leaves, and the peer is told that nothing follows. */
static void say_last_word(inf_verbs_link *v) {
    if (v->base.err.code != 0 || take_arrivals(v) < 0 || v->ep->err.code != 0 || v->last_word ||
        look_at_socket(v) < 0 || v->gone)
        return;
    if (inf_verbs_poll_send(v->ep) != INF_OK || !inf_verbs_has_budget(v->ep, INF_WR_OTHER, 1) ||
        post_immediate(v, inf_imm_count(INF_IMM_LAST, v->tx_sent), INF_WR_OTHER, true) != INF_OK)
        return;
    for (int i = 0; i < CLOSE_SLICES && !v->gone; i++)
        if (inf_verbs_flush(v->ep, CLOSE_SLICE_NS) != INF_AGAIN || look_at_socket(v) < 0)
            return;
}

static void verbs_close(inf_link *link) {
    inf_verbs_link *v = as_verbs(link);
    say_last_word(v);
    inf_verbs_endpoint_destroy(v->ep);
    free(v); /* the socket's end of file, right after, wakes a sleeping peer */
}

static uint8_t *verbs_slot(const inf_link *link, uint32_t index) {
    const inf_verbs_endpoint *ep = ((const inf_verbs_link *)link)->ep;
    uint32_t slots = link->config.slots;
    if (index >= slots + ep->tx_slots) {
        return NULL;
    }
    uint8_t *first = index < slots ? ep->rx : ep->tx;
    return first + (index < slots ? index : index - slots) * ep->stride + INF_VERBS_LINE;
}

static const inf_link_ops VERBS_OPS = {
    .slot = verbs_slot,
    .prepare = verbs_prepare,
    .post = verbs_post,
    .poll = verbs_poll,
    .release = verbs_release,
    .ready = verbs_ready,
    .arm = verbs_arm,
    .disarm = verbs_disarm,
    .close = verbs_close,
    .puts = &INF_VERBS_PUT_OPS,
    .full = verbs_full,
};

inf_verbs_device *inf_link_verbs_device(const inf_link *link) {
    return link && link->ops == &VERBS_OPS ? ((const inf_verbs_link *)link)->ep->device : NULL;
}

int inf_link_attach_verbs(const inf_link_config *config, inf_verbs_endpoint *ep, inf_link **out,
                          inf_err *err) {
    if (ep->state != INF_ENDPOINT_RTS || config->slots != ep->config.slots ||
        config->slot_bytes != ep->config.slot_bytes) {
        inf_link_error(err, config->peer, ep->err.code != 0 ? ep->err.code : INF_EINVAL, "%s",
                       ep->err.code != 0
                           ? ep->err.message
                           : "cannot open a verbs link: its endpoint is not connected "
                             "or has another shape");
        int rc = ep->err.code != 0 ? ep->err.code : INF_EINVAL;
        inf_verbs_endpoint_destroy(ep);
        return rc;
    }
    inf_verbs_link *v = calloc(1, sizeof *v);
    if (!v) {
        inf_verbs_endpoint_destroy(ep);
        return inf_link_error(err, config->peer, INF_ENOMEM, "cannot open a verbs link: no memory");
    }
    ep->config.peer = config->peer;
    v->base.ops = &VERBS_OPS;
    v->base.config = *config;
    v->ep = ep;
    inf_verbs_watch_begin(v);
    *out = &v->base;
    return INF_OK;
}
