/* What the tests and the bench of the verbs provider share: two ports that reach each other, and
 * pairs of endpoints and links between them. Where there is no RDMA device a test is skipped,
 * status 77. */
#ifndef INF_TEST_VERBS_PAIR_H
#define INF_TEST_VERBS_PAIR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "infinite/verbs.h"
#include "link_messages.h"

/* For calls that fill err. */
#define CHECK_OK(call)                                                                             \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_ != INF_OK) {                                                                       \
            fprintf(stderr, "%s:%d: %s: %d %s\n", __FILE__, __LINE__, #call, rc_, err.message);    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

typedef struct {
    char name[2][INF_VERBS_NAME]; /* the same twice if there is one port only */
    uint32_t port[2];
    inf_verbs_device *device[2];
} rdma_ports;

static inline bool rdma_port_good(const inf_verbs_port *p) {
    static const uint8_t any[16];
    inf_verbs_device *device;
    inf_verbs_gid gid;
    bool good = false;
    if (p->active && inf_verbs_device_open(p->device, "test", &device, NULL) == INF_OK) {
        good = inf_verbs_gid_for(device, p->port, any, &gid, NULL) == INF_OK;
        inf_verbs_device_close(device);
    }
    return good;
}

/* The first two ports that can be used, or one twice. False: there is none. */
static inline bool rdma_find(rdma_ports *out) {
    inf_verbs_port ports[16];
    inf_err err;
    uint32_t n = 0, found = 0;
    if (inf_verbs_ports(ports, 16, &n, &err) != INF_OK)
        return false;
    for (uint32_t i = 0; i < n && i < 16 && found < 2; i++)
        if (rdma_port_good(&ports[i])) {
            memcpy(out->name[found], ports[i].device, INF_VERBS_NAME);
            out->port[found++] = ports[i].port;
        }
    if (found == 1) {
        memcpy(out->name[1], out->name[0], INF_VERBS_NAME);
        out->port[1] = out->port[0];
    }
    return found > 0;
}

static inline void rdma_find_or_skip(rdma_ports *out) {
    if (!rdma_find(out)) {
        printf("skipped: no RDMA device\n");
        exit(77);
    }
}

static inline void rdma_open(rdma_ports *p) {
    inf_err err;
    for (int i = 0; i < 2; i++)
        CHECK_OK(inf_verbs_device_open(p->name[i], "test", &p->device[i], &err));
}

static inline void rdma_close(rdma_ports *p) {
    for (int i = 0; i < 2; i++)
        inf_verbs_device_close(p->device[i]);
}

typedef struct {
    uint32_t slots;
    uint64_t slot_bytes;
    uint32_t flags;
} pair_shape;

static uint32_t pair_timeout; /* of endpoints made from now on; 0: as usual */

static inline inf_verbs_config pair_config(const rdma_ports *p, int side, pair_shape shape) {
    return (inf_verbs_config){.port = p->port[side],
                              .slots = shape.slots,
                              .slot_bytes = shape.slot_bytes,
                              .peer = side == 0 ? 7 : 9,
                              .timeout = pair_timeout,
                              .flags = shape.flags};
}

/* Two connected endpoints in this process. */
static inline void pair_endpoints(rdma_ports *p, pair_shape shape, inf_verbs_endpoint *ep[2]) {
    inf_verbs_info info[2];
    inf_err err;
    for (int i = 0; i < 2; i++) {
        inf_verbs_config c = pair_config(p, i, shape);
        CHECK_OK(inf_verbs_endpoint_create(p->device[i], &c, &ep[i], &info[i], &err));
    }
    for (int i = 0; i < 2; i++)
        CHECK_OK(inf_verbs_endpoint_to_rtr(ep[i], &info[1 - i], &err));
    for (int i = 0; i < 2; i++)
        CHECK_OK(inf_verbs_endpoint_to_rts(ep[i], &err));
}

static inline inf_link_config pair_link_config(int side, pair_shape shape, int sock) {
    return (inf_link_config){.role = side == 0 ? INF_LINK_CLIENT : INF_LINK_SERVER,
                             .provider = INF_PROVIDER_VERBS,
                             .slots = shape.slots,
                             .peer = side == 0 ? 7 : 9,
                             .slot_bytes = shape.slot_bytes,
                             .sock_fd = sock,
                             .mem_fd = -1,
                             .rx_event_fd = -1,
                             .tx_event_fd = -1};
}

/* Two linked ends in this process; sock gets a copy of each end's socket if it is not NULL. */
static inline void pair_links(rdma_ports *p, pair_shape shape, inf_link *link[2], int sock[2]) {
    inf_verbs_endpoint *ep[2];
    int s[2];
    inf_err err;
    pair_endpoints(p, shape, ep);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    for (int i = 0; i < 2; i++) {
        if (sock)
            sock[i] = dup(s[i]);
        inf_link_config c = pair_link_config(i, shape, s[i]);
        CHECK_OK(inf_link_open_verbs(&c, ep[i], &link[i], &err));
    }
}

/* Exchanges fixed-size records with the process at the other end of a socket. */
static inline void swap_records(int sock, const void *mine, void *theirs, size_t bytes) {
    CHECK(send(sock, mine, bytes, MSG_NOSIGNAL) == (ssize_t)bytes);
    CHECK(recv(sock, theirs, bytes, MSG_WAITALL) == (ssize_t)bytes);
}

/* One end of a link to another process, which does the same with its end of the socket. Takes sock.
 */
static inline inf_link *join_link(rdma_ports *p, int side, pair_shape shape, int sock) {
    inf_verbs_endpoint *ep;
    inf_verbs_info mine, theirs;
    inf_verbs_config c = pair_config(p, side, shape);
    inf_link *link;
    inf_err err;
    char ready = 1, theirs_ready;
    CHECK_OK(inf_verbs_endpoint_create(p->device[side], &c, &ep, &mine, &err));
    swap_records(sock, &mine, &theirs, sizeof mine);
    CHECK_OK(inf_verbs_endpoint_to_rtr(ep, &theirs, &err));
    swap_records(sock, &ready, &theirs_ready, 1);
    CHECK_OK(inf_verbs_endpoint_to_rts(ep, &err));
    swap_records(sock, &ready, &theirs_ready, 1);
    inf_link_config lc = pair_link_config(side, shape, sock);
    CHECK_OK(inf_link_open_verbs(&lc, ep, &link, &err));
    return link;
}

#endif
