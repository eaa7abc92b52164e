/* Links over a TCP connection: frames of a 16-byte header and a payload, both directions at once.
 *
 *   magic u32 "INFL" | flags u32, 0 | length u64        little-endian
 *
 * Sending never blocks and no call waits for one direction alone: what does not fit the socket
 * stays in its slot and leaves during later calls, which read as well. So two ends that write big
 * messages to each other at the same time both get through.
 *
 * Back-pressure: reading stops while every receive slot is filled and not released; the peer's
 * socket then fills, and its prepare says INF_AGAIN.
 *
 * A host that vanishes shows within 2 to 3 s: by keep-alive while the connection is idle, otherwise
 * because nobody acknowledges the kernel's tries. TCP_USER_TIMEOUT would tell the latter as well,
 * but it also ends the connection to a peer that lives and merely does not read for so long, as a
 * home does while it computes its own part of a layer. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "transport/link_impl.h"

enum { LINE = 64 };
enum { KEEPALIVE_S = 1, KEEPALIVE_PROBES = 2 };
/* A host is gone that left so many tries unanswered, over so long; how often that is looked at. */
enum { SILENT_TRIES = 3, SILENT_MS = 1500, LOOK_MS = 100, TICK_MS = 10 };
/* Small frames are read through a buffer, several with one call; the rest of a larger one goes
 * straight into its slot. */
enum { STAGE_BYTES = 16384 };

static const uint32_t MAGIC = UINT32_C(0x4c464e49);

typedef struct {
    uint32_t magic, flags;
    uint64_t length;
} tcp_header;

_Static_assert(sizeof(tcp_header) == 16, "the header is sent as it lies in memory");

typedef struct {
    inf_link base;
    uint8_t *tx; /* slots; a frame's header ends where its payload begins, LINE into the slot */
    uint8_t *rx; /* slots of slot_bytes */
    uint64_t *rx_len;          /* [slots] */
    uint64_t tx_head, tx_tail; /* posted; left completely */
    uint64_t tx_off;           /* bytes of frame tx_tail that left */
    uint64_t *tx_len;          /* [slots] frame bytes, header included */
    uint64_t rx_head;          /* arrived completely */
    uint64_t rx_next, rx_tail; /* polled; released */
    uint64_t rx_off;           /* payload bytes of frame rx_head that arrived */
    bool in_frame;             /* frame rx_head's header was read */
    bool gone;                 /* no byte comes or goes any more */
    int gone_errno;            /* why, 0: end of file */
    uint64_t looked_ms;        /* when the kernel's counts were looked at */
    uint64_t answered_ms;      /* when all tries so far had been acknowledged */
    uint32_t answered_tries;   /* retransmissions and probes until then */
    uint32_t stage_at, stage_end;
    uint8_t stage[STAGE_BYTES];
} tcp_link;

static tcp_link *as_tcp(inf_link *link) { return (tcp_link *)link; }

static void set_gone(tcp_link *t, int reason) {
    if (!t->gone)
        t->gone_errno = reason;
    t->gone = true;
}

static int fail_gone(tcp_link *t) {
    return inf_link_fail_peer(&t->base,
                              t->gone_errno ? strerror(t->gone_errno) : "it closed the connection");
}

static bool transient(int reason) {
    return reason == EAGAIN || reason == EWOULDBLOCK || reason == EINTR || reason == ENOBUFS;
}

/* Sends what the socket takes. */
static void pump_tx(tcp_link *t) {
    while (!t->gone && t->tx_tail != t->tx_head) {
        uint32_t i = (uint32_t)(t->tx_tail % t->base.config.slots);
        const uint8_t *frame =
            t->tx + i * (LINE + t->base.config.slot_bytes) + LINE - sizeof(tcp_header);
        ssize_t n = send(t->base.config.sock_fd, frame + t->tx_off, t->tx_len[i] - t->tx_off,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0) {
            if (!transient(errno))
                set_gone(t, errno);
            return;
        }
        t->tx_off += (uint64_t)n;
        if (t->tx_off == t->tx_len[i]) {
            t->tx_off = 0;
            t->tx_tail++;
        }
    }
}

/* One recv. Bytes read; 0 if there is nothing more for now. */
static uint64_t receive(tcp_link *t, void *to, uint64_t room) {
    ssize_t n = recv(t->base.config.sock_fd, to, room, MSG_DONTWAIT);
    if (n > 0)
        return (uint64_t)n;
    if (n == 0 || !transient(errno))
        set_gone(t, n == 0 ? 0 : errno);
    return 0;
}

/* Reads a header off the stage. False: its bytes are not all there. */
static bool take_header(tcp_link *t) {
    tcp_header h;
    if (t->stage_end - t->stage_at < sizeof h)
        return false;
    memcpy(&h, t->stage + t->stage_at, sizeof h);
    t->stage_at += (uint32_t)sizeof h;
    uint64_t length = le64toh(h.length);
    if (le32toh(h.magic) != MAGIC || h.flags != 0) {
        inf_link_fail(&t->base, INF_EPROTO, "peer %d: bad frame header", t->base.config.peer);
        return false;
    }
    if (length > t->base.config.slot_bytes) {
        inf_link_fail(&t->base, INF_EPROTO, "peer %d: frame of %llu bytes in a slot of %llu",
                      t->base.config.peer, (unsigned long long)length,
                      (unsigned long long)t->base.config.slot_bytes);
        return false;
    }
    t->rx_len[t->rx_head % t->base.config.slots] = length;
    t->rx_off = 0;
    t->in_frame = true;
    return true;
}

/* Takes from the stage what it holds of the frames that have a slot. */
static void unstage(tcp_link *t) {
    uint32_t slots = t->base.config.slots;
    while (t->rx_head - t->rx_tail < slots) {
        if (!t->in_frame && !take_header(t))
            return;
        uint32_t i = (uint32_t)(t->rx_head % slots);
        uint64_t missing = t->rx_len[i] - t->rx_off, there = t->stage_end - t->stage_at;
        uint64_t n = missing < there ? missing : there;
        memcpy(t->rx + i * t->base.config.slot_bytes + t->rx_off, t->stage + t->stage_at, n);
        t->stage_at += (uint32_t)n;
        t->rx_off += n;
        if (t->rx_off < t->rx_len[i])
            return;
        t->in_frame = false;
        t->rx_head++;
    }
}

/* Reads until the socket is empty, every slot is full, or the link is dead. */
static void pump_rx(tcp_link *t) {
    uint32_t slots = t->base.config.slots;
    for (;;) {
        unstage(t);
        if (t->base.err.code < 0 || t->rx_head - t->rx_tail == slots)
            return;
        uint64_t got, room;
        uint32_t i = (uint32_t)(t->rx_head % slots);
        if (t->in_frame && t->rx_len[i] - t->rx_off >= STAGE_BYTES) {
            /* The stage is empty here: unstage took everything for this frame. */
            room = t->rx_len[i] - t->rx_off;
            got = receive(t, t->rx + i * t->base.config.slot_bytes + t->rx_off, room);
            t->rx_off += got;
            if (t->rx_off == t->rx_len[i]) {
                t->in_frame = false;
                t->rx_head++;
            }
        } else {
            memmove(t->stage, t->stage + t->stage_at, t->stage_end - t->stage_at);
            t->stage_end -= t->stage_at;
            t->stage_at = 0;
            room = STAGE_BYTES - t->stage_end;
            got = receive(t, t->stage + t->stage_end, room);
            t->stage_end += (uint32_t)got;
            unstage(t);
        }
        if (got < room)
            return; /* the socket was emptied; what follows shows in the next call */
    }
}

static bool has_room(const tcp_link *t) { return t->tx_head - t->tx_tail < t->base.config.slots; }

static int tcp_prepare(inf_link *link, void **buf) {
    tcp_link *t = as_tcp(link);
    if (t->tx_head != t->tx_tail)
        pump_tx(t);
    if (t->gone)
        return fail_gone(t);
    if (!has_room(t))
        return INF_AGAIN;
    *buf = t->tx + t->tx_head % link->config.slots * (LINE + link->config.slot_bytes) + LINE;
    return INF_OK;
}

static int tcp_post(inf_link *link, uint64_t len) {
    tcp_link *t = as_tcp(link);
    uint32_t i = (uint32_t)(t->tx_head % link->config.slots);
    tcp_header h = {.magic = htole32(MAGIC), .length = htole64(len)};
    memcpy(t->tx + i * (LINE + link->config.slot_bytes) + LINE - sizeof h, &h, sizeof h);
    t->tx_len[i] = sizeof h + len;
    t->tx_head++;
    pump_tx(t);
    /* A broken connection may still hold the answer to an earlier message: poll tells. */
    return INF_OK;
}

static int tcp_poll(inf_link *link, const void **msg, uint64_t *len) {
    tcp_link *t = as_tcp(link);
    if (t->rx_next == t->rx_head) {
        pump_tx(t);
        pump_rx(t);
        if (link->err.code < 0)
            return link->err.code;
        if (t->rx_next == t->rx_head)
            return t->gone ? fail_gone(t) : INF_AGAIN;
    }
    uint32_t i = (uint32_t)(t->rx_next % link->config.slots);
    *msg = t->rx + i * link->config.slot_bytes;
    *len = t->rx_len[i];
    t->rx_next++;
    return INF_OK;
}

static void tcp_release(inf_link *link) { as_tcp(link)->rx_tail++; }

/* Has the peer's host vanished? A window that is shut is probed too, and a living host answers the
 * probes, however long its process does not read. The longer it has been shut the rarer they are:
 * that lane may tell late, and the peer's other lane tells first. */
static void look_at_host(tcp_link *t) {
    uint64_t now = inf_link_now_ms();
    if (now - t->looked_ms < LOOK_MS)
        return;
    struct tcp_info info = {0};
    socklen_t len = sizeof info;
    if (getsockopt(t->base.config.sock_fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0) {
        uint32_t tries = info.tcpi_total_retrans + info.tcpi_probes;
        bool heard = info.tcpi_last_ack_recv <= now - t->looked_ms + TICK_MS;
        if (heard || tries == t->answered_tries) {
            t->answered_tries = tries;
            t->answered_ms = now;
        } else if ((int32_t)(tries - t->answered_tries) >= SILENT_TRIES &&
                   now - t->answered_ms >= SILENT_MS) {
            set_gone(t, ETIMEDOUT);
        }
    }
    t->looked_ms = now;
}

static bool tcp_ready(inf_link *link) {
    tcp_link *t = as_tcp(link);
    look_at_host(t);
    pump_tx(t);
    pump_rx(t);
    if (link->err.code < 0 || t->rx_next != t->rx_head)
        return true;
    if (t->gone) {
        fail_gone(t);
        return true;
    }
    return link->wants_room && has_room(t);
}

static bool tcp_arm(inf_link *link, struct pollfd fds[INF_LINK_FDS]) {
    tcp_link *t = as_tcp(link);
    fds[0].fd = link->config.sock_fd;
    fds[0].events = POLLRDHUP;
    if (t->rx_head - t->rx_tail < link->config.slots)
        fds[0].events |= POLLIN;
    if (t->tx_head != t->tx_tail)
        fds[0].events |= POLLOUT;
    return false; /* poll(2) looks at the socket's state, so nothing is lost in between */
}

static void tcp_disarm(inf_link *link, const struct pollfd fds[INF_LINK_FDS]) {
    tcp_link *t = as_tcp(link);
    if (!(fds[0].revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)))
        return;
    /* With a free slot pump_rx reads what is left and then finds the end. Without one it cannot
     * look, and the event would come back at once, for ever. */
    if (t->rx_head - t->rx_tail == link->config.slots)
        set_gone(t, 0);
}

static void tcp_free(tcp_link *t) {
    free(t->tx);
    free(t->rx);
    free(t->tx_len);
    free(t->rx_len);
    free(t);
}

static void tcp_close(inf_link *link) {
    tcp_link *t = as_tcp(link);
    pump_tx(t);
    tcp_free(t);
}

static const inf_link_ops TCP_OPS = {
    .prepare = tcp_prepare,
    .post = tcp_post,
    .poll = tcp_poll,
    .release = tcp_release,
    .ready = tcp_ready,
    .arm = tcp_arm,
    .disarm = tcp_disarm,
    .close = tcp_close,
};

/* Low latency and early detection of a vanished host. Other stream sockets have no such options. */
static int set_options(int fd) {
    struct sockaddr_storage name = {.ss_family = AF_UNSPEC};
    socklen_t len = sizeof name;
    if (getsockname(fd, (struct sockaddr *)&name, &len) < 0)
        return -1;
    if (name.ss_family != AF_INET && name.ss_family != AF_INET6)
        return 0;
    const struct {
        int level, option, value;
    } options[] = {
        {IPPROTO_TCP, TCP_NODELAY, 1},
        {IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_S},
        {IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_S},
        {IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES},
        {SOL_SOCKET, SO_KEEPALIVE, 1},
    };
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        if (setsockopt(fd, options[i].level, options[i].option, &options[i].value, sizeof(int)) < 0)
            return -1;
    return 0;
}

int inf_link_open_tcp(const inf_link_config *config, inf_link **out, inf_err *err) {
    if (set_options(config->sock_fd) < 0)
        return inf_link_error(err, config->peer, INF_EIO, "cannot set up the connection: %s",
                              strerror(errno));
    tcp_link *t = calloc(1, sizeof *t);
    if (!t)
        return inf_link_error(err, config->peer, INF_ENOMEM, "cannot open a tcp link: no memory");
    t->base.ops = &TCP_OPS;
    t->base.config = *config;
    t->tx = aligned_alloc(LINE, config->slots * (LINE + config->slot_bytes));
    t->rx = aligned_alloc(LINE, config->slots * config->slot_bytes);
    t->tx_len = calloc(config->slots, sizeof *t->tx_len);
    t->rx_len = calloc(config->slots, sizeof *t->rx_len);
    if (!t->tx || !t->rx || !t->tx_len || !t->rx_len) {
        tcp_free(t);
        return inf_link_error(err, config->peer, INF_ENOMEM,
                              "cannot open a tcp link: no memory for 2 x %u slots of %llu bytes",
                              config->slots, (unsigned long long)config->slot_bytes);
    }
    *out = &t->base;
    return INF_OK;
}
