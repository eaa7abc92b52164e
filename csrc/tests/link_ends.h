/* The two ends of a shm or tcp link within one process, as package rdma would set them up between
 * two. Wants _GNU_SOURCE. */
#ifndef INF_TESTS_LINK_ENDS_H
#define INF_TESTS_LINK_ENDS_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "infinite/link.h"

/* via: INF_PROVIDER_SHM or _TCP. mem is one more descriptor of a shm link's memory, for the test
 * itself; else -1. */
typedef struct {
    inf_link_config client, server;
    int mem;
} link_ends;

static inline void tcp_sockets(int s[2]) {
    static int listener = -1; /* one for all: to end one takes the kernel milliseconds */
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (listener < 0) {
        listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        CHECK(bind(listener, (struct sockaddr *)&a, len) == 0 && listen(listener, 16) == 0);
    }
    CHECK(getsockname(listener, (struct sockaddr *)&a, &len) == 0);
    s[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(s[0], (struct sockaddr *)&a, len) == 0);
    s[1] = accept(listener, NULL, NULL);
    CHECK(s[1] >= 0);
}

static inline link_ends make_ends(uint32_t via, uint32_t slots, uint64_t slot_bytes) {
    link_ends e = {.mem = -1};
    int s[2], mem = -1, ev[2] = {-1, -1};
    if (via == INF_PROVIDER_TCP) {
        tcp_sockets(s);
    } else {
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
        mem = memfd_create("link", MFD_CLOEXEC);
        CHECK(mem >= 0 && ftruncate(mem, (off_t)inf_link_shm_bytes(slots, slot_bytes)) == 0);
        ev[0] = eventfd(0, 0);
        ev[1] = eventfd(0, 0);
        e.mem = dup(mem);
    }
    e.client = (inf_link_config){.role = INF_LINK_CLIENT,
                                 .provider = via,
                                 .slots = slots,
                                 .peer = 7,
                                 .slot_bytes = slot_bytes,
                                 .sock_fd = s[0],
                                 .mem_fd = mem,
                                 .rx_event_fd = ev[0],
                                 .tx_event_fd = ev[1]};
    e.server = e.client;
    e.server.role = INF_LINK_SERVER;
    e.server.peer = 9;
    e.server.sock_fd = s[1];
    if (mem >= 0) {
        e.server.mem_fd = dup(mem);
        e.server.rx_event_fd = dup(ev[1]);
        e.server.tx_event_fd = dup(ev[0]);
    }
    return e;
}

/* Opens both, and closes mem. */
static inline void open_ends(const link_ends *e, inf_link **client, inf_link **server) {
    inf_err err;
    CHECK(inf_link_open(&e->client, client, &err) == INF_OK);
    CHECK(inf_link_open(&e->server, server, &err) == INF_OK);
    if (e->mem >= 0)
        close(e->mem);
}

#endif
