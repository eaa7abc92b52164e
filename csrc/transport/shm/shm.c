/* Links between processes of one host: two rings in shared memory, one per direction.
 *
 * Memory: a page of control words, then the client-to-server slots, then the server-to-client
 * slots. A slot is a 64-byte header that holds the length, then slot_bytes of payload.
 *
 * Counters only grow and count messages since open: `head` those posted, written by the sender,
 * `tail` those released, written by the receiver. Each end keeps its own counters in private memory
 * and only publishes them, so that nothing the peer writes can move them; what it reads of the
 * peer's it reads once and checks against its own: tail <= head <= tail + slots.
 *
 * Sleep: an end sets `sleeping` and then looks once more; the peer publishes and then looks at
 * `sleeping`. A sequentially consistent fence stands between the two on both sides, so at least one
 * of them sees the other and no wake-up is lost. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "transport/link_impl.h"

enum { LINE = 64, CONTROL_BYTES = 4096 };
enum { SLEEPS_FOR_MESSAGE = 1, SLEEPS_FOR_ROOM = 2 };
/* A peer that was killed shows on the socket only; calls that find nothing look there this often.
 */
enum { LIVENESS_EVERY = 64 };

/* What one end writes: the counters of the ring it sends on, and of the one it receives on. */
typedef struct {
    _Alignas(LINE) _Atomic uint64_t head;
    _Alignas(LINE) _Atomic uint64_t tail;
    _Alignas(LINE) _Atomic uint32_t sleeping;
    _Alignas(LINE) _Atomic uint32_t closed;
} shm_end;

typedef struct {
    shm_end client, server;
    /* What either end tells of itself, and before it a word that says so. */
    struct {
        _Alignas(LINE) uint8_t line[LINE + INF_LINK_TOLD];
    } client_note, server_note;
} shm_control;

_Static_assert(sizeof(shm_control) <= CONTROL_BYTES, "the control words fit their page");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "the counters are shared between processes");

typedef struct {
    inf_link base;
    uint8_t *memory;
    uint64_t bytes;
    shm_end *self, *peer;
    uint8_t *tx, *rx; /* first slot of each direction */
    uint64_t stride;
    uint64_t tx_head, tx_tail; /* posted; seen released by the peer */
    uint64_t rx_head;          /* seen posted by the peer */
    uint64_t rx_next, rx_tail; /* polled; released */
    uint32_t idle;             /* fruitless calls since the socket was looked at */
    bool gone;                 /* the peer closed or died; messages may be left in the ring */
} shm_link;

uint64_t inf_link_shm_bytes(uint32_t slots, uint64_t slot_bytes) {
    if (slots < INF_LINK_MIN_SLOTS || slots > INF_LINK_MAX_SLOTS || slot_bytes == 0 ||
        slot_bytes % LINE != 0 || slot_bytes > INF_LINK_MAX_SLOT_BYTES)
        return 0;
    uint64_t bytes = CONTROL_BYTES + 2 * (uint64_t)slots * (LINE + slot_bytes);
    return (bytes + CONTROL_BYTES - 1) / CONTROL_BYTES * CONTROL_BYTES;
}

static shm_link *as_shm(inf_link *link) { return (shm_link *)link; }

static uint8_t *slot_at(const shm_link *s, uint8_t *ring, uint64_t index) {
    return ring + index % s->base.config.slots * s->stride;
}

/* Wakes the peer if it sleeps for `reason`. The caller has published before. */
static void wake_peer(shm_link *s, uint32_t reason) {
    atomic_thread_fence(memory_order_seq_cst);
    if (!(atomic_load_explicit(&s->peer->sleeping, memory_order_relaxed) & reason))
        return;
    atomic_store_explicit(&s->peer->sleeping, 0, memory_order_relaxed);
    uint64_t one = 1;
    /* EAGAIN means the counter is full, so the peer is being woken anyway. */
    ssize_t n = write(s->base.config.tx_event_fd, &one, sizeof one);
    (void)n;
}

/* Looks at the socket: nothing is ever sent on it, so that end of file is the peer's death. */
static int look_at_socket(shm_link *s) {
    s->idle = 0;
    char byte;
    ssize_t n = recv(s->base.config.sock_fd, &byte, 1, MSG_DONTWAIT);
    if (n > 0)
        return inf_link_fail(&s->base, INF_EPROTO, "peer %d wrote to the socket of a shm link",
                             s->base.config.peer);
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        s->gone = true;
    return INF_OK;
}

static int check_alive(shm_link *s) {
    if (atomic_load_explicit(&s->peer->closed, memory_order_acquire) != 0)
        s->gone = true;
    if (!s->gone && ++s->idle >= LIVENESS_EVERY)
        return look_at_socket(s);
    return INF_OK;
}

static int fail_gone(shm_link *s) {
    return inf_link_fail_peer(&s->base, "its end of the shm link is closed");
}

/* Takes the peer's counter of posted messages. */
static int refresh_rx(shm_link *s) {
    uint64_t head = atomic_load_explicit(&s->peer->head, memory_order_acquire);
    if (head - s->rx_tail > s->base.config.slots || head - s->rx_tail < s->rx_head - s->rx_tail)
        return inf_link_fail(&s->base, INF_EPROTO, "peer %d: counter of posted messages is wrong",
                             s->base.config.peer);
    s->rx_head = head;
    return INF_OK;
}

/* Takes the peer's counter of released messages. */
static int refresh_tx(shm_link *s) {
    uint64_t tail = atomic_load_explicit(&s->peer->tail, memory_order_acquire);
    if (tail - s->tx_tail > s->tx_head - s->tx_tail)
        return inf_link_fail(&s->base, INF_EPROTO, "peer %d: counter of released messages is wrong",
                             s->base.config.peer);
    s->tx_tail = tail;
    return INF_OK;
}

static bool has_room(const shm_link *s) { return s->tx_head - s->tx_tail < s->base.config.slots; }

static int shm_prepare(inf_link *link, void **buf) {
    shm_link *s = as_shm(link);
    if (!has_room(s) && refresh_tx(s) < 0)
        return link->err.code;
    if (atomic_load_explicit(&s->peer->closed, memory_order_acquire) != 0)
        s->gone = true;
    if (!s->gone && !has_room(s) && check_alive(s) < 0)
        return link->err.code;
    if (s->gone)
        return fail_gone(s);
    if (!has_room(s))
        return INF_AGAIN;
    *buf = slot_at(s, s->tx, s->tx_head) + LINE;
    return INF_OK;
}

static int shm_post(inf_link *link, uint64_t len) {
    shm_link *s = as_shm(link);
    _Atomic uint64_t *length = (_Atomic uint64_t *)(void *)slot_at(s, s->tx, s->tx_head);
    atomic_store_explicit(length, len, memory_order_relaxed);
    s->tx_head++;
    atomic_store_explicit(&s->self->head, s->tx_head, memory_order_release);
    wake_peer(s, SLEEPS_FOR_MESSAGE);
    return INF_OK;
}

static int shm_poll(inf_link *link, const void **msg, uint64_t *len) {
    shm_link *s = as_shm(link);
    if (s->rx_next == s->rx_head) {
        /* Liveness first: what was posted before a close is then seen by the refresh. */
        if (check_alive(s) < 0 || refresh_rx(s) < 0)
            return link->err.code;
        if (s->rx_next == s->rx_head)
            return s->gone ? fail_gone(s) : INF_AGAIN;
    }
    uint8_t *slot = slot_at(s, s->rx, s->rx_next);
    uint64_t size = atomic_load_explicit((_Atomic uint64_t *)(void *)slot, memory_order_relaxed);
    if (size > link->config.slot_bytes)
        return inf_link_fail(link, INF_EPROTO, "peer %d: message of %llu bytes in a slot of %llu",
                             link->config.peer, (unsigned long long)size,
                             (unsigned long long)link->config.slot_bytes);
    s->rx_next++;
    *msg = slot + LINE;
    *len = size;
    return INF_OK;
}

static void shm_release(inf_link *link) {
    shm_link *s = as_shm(link);
    s->rx_tail++;
    atomic_store_explicit(&s->self->tail, s->rx_tail, memory_order_release);
    wake_peer(s, SLEEPS_FOR_ROOM);
}

static bool shm_ready(inf_link *link) {
    shm_link *s = as_shm(link);
    if (s->rx_next != s->rx_head)
        return true;
    if (atomic_load_explicit(&s->peer->closed, memory_order_acquire) != 0)
        s->gone = true;
    if (refresh_rx(s) < 0 || s->rx_next != s->rx_head)
        return true;
    if (s->gone) {
        fail_gone(s);
        return true;
    }
    return link->wants_room && (has_room(s) || refresh_tx(s) < 0 || has_room(s));
}

static bool shm_arm(inf_link *link, struct pollfd fds[INF_LINK_FDS]) {
    shm_link *s = as_shm(link);
    uint32_t reasons = SLEEPS_FOR_MESSAGE | (link->wants_room ? SLEEPS_FOR_ROOM : 0);
    atomic_store_explicit(&s->self->sleeping, reasons, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    fds[0] = (struct pollfd){.fd = link->config.rx_event_fd, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = link->config.sock_fd, .events = POLLIN | POLLRDHUP};
    return shm_ready(link);
}

static void shm_disarm(inf_link *link, const struct pollfd fds[INF_LINK_FDS]) {
    shm_link *s = as_shm(link);
    atomic_store_explicit(&s->self->sleeping, 0, memory_order_relaxed);
    if (fds[0].revents) {
        uint64_t count;
        ssize_t n = read(link->config.rx_event_fd, &count, sizeof count);
        (void)n; /* EAGAIN: nothing to drain */
    }
    if (fds[1].revents && link->err.code == 0)
        look_at_socket(s);
}

static uint8_t *shm_note(const inf_link *link, bool own) {
    const shm_link *s = (const shm_link *)link;
    shm_control *control = (shm_control *)(void *)s->memory;
    bool client = (link->config.role == INF_LINK_CLIENT) == own;
    return (client ? control->client_note.line : control->server_note.line) + LINE;
}

static uint8_t *shm_slot(const inf_link *link, uint32_t index) {
    const shm_link *s = (const shm_link *)link;
    return index < 2 * link->config.slots ? s->memory + CONTROL_BYTES + index * s->stride + LINE
                                          : NULL;
}

static void shm_close(inf_link *link) {
    shm_link *s = as_shm(link);
    atomic_store_explicit(&s->self->closed, 1, memory_order_release);
    munmap(s->memory, s->bytes);
    free(s); /* the socket's end of file, right after, wakes a sleeping peer */
}

static const inf_link_ops SHM_OPS = {
    .prepare = shm_prepare,
    .post = shm_post,
    .poll = shm_poll,
    .release = shm_release,
    .ready = shm_ready,
    .arm = shm_arm,
    .disarm = shm_disarm,
    .close = shm_close,
    .slot = shm_slot,
    .note = shm_note,
};

int inf_link_open_shm(const inf_link_config *config, inf_link **out, inf_err *err) {
    uint64_t bytes = inf_link_shm_bytes(config->slots, config->slot_bytes);
    struct stat st;
    if (fstat(config->mem_fd, &st) < 0 || st.st_size < 0 || (uint64_t)st.st_size != bytes)
        return inf_link_error(err, config->peer, INF_EINVAL,
                              "cannot open a shm link: its memory is not of %llu bytes",
                              (unsigned long long)bytes);
    shm_link *s = calloc(1, sizeof *s);
    if (!s)
        return inf_link_error(err, config->peer, INF_ENOMEM, "cannot open a shm link: no memory");
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, config->mem_fd, 0);
    if (memory == MAP_FAILED) {
        free(s);
        return inf_link_error(err, config->peer, INF_ENOMEM, "cannot map %llu bytes: %s",
                              (unsigned long long)bytes, strerror(errno));
    }
    s->base.ops = &SHM_OPS;
    s->base.config = *config;
    s->memory = memory;
    s->bytes = bytes;
    s->stride = LINE + config->slot_bytes;
    shm_control *control = memory;
    uint8_t *requests = s->memory + CONTROL_BYTES;
    uint8_t *replies = requests + config->slots * s->stride;
    bool client = config->role == INF_LINK_CLIENT;
    s->self = client ? &control->client : &control->server;
    s->peer = client ? &control->server : &control->client;
    s->tx = client ? requests : replies;
    s->rx = client ? replies : requests;
    *out = &s->base;
    return INF_OK;
}
