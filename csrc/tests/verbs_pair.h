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

/* For calls that fill err. */
#define CHECK_OK(call)                                                                             \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_ != INF_OK) {                                                                       \
            fprintf(stderr, "%s:%d: %s: %d %s\n", __FILE__, __LINE__, #call, rc_, err.message);    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const int64_t LONG_NS = INT64_C(60000000000);

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

static inline uint64_t mix(uint64_t x) {
    x ^= x >> 31;
    x *= UINT64_C(0x9e3779b97f4a7c15);
    return x ^ x >> 29;
}

/* Message number seed: its bytes follow from the number. A word at a time, or the emulated CPU
 * would do little else. */
static inline void fill_pattern(uint8_t *buf, uint64_t seed, uint64_t len) {
    uint64_t i = 0;
    for (; i + 8 <= len; i += 8) {
        uint64_t word = mix(seed * 1000003 + i);
        memcpy(buf + i, &word, 8);
    }
    for (; i < len; i++)
        buf[i] = (uint8_t)mix(seed + i);
}

static inline bool check_pattern(const uint8_t *buf, uint64_t seed, uint64_t len) {
    uint64_t i = 0;
    for (; i + 8 <= len; i += 8) {
        uint64_t word = mix(seed * 1000003 + i);
        if (memcmp(buf + i, &word, 8) != 0)
            return false;
    }
    for (; i < len; i++)
        if (buf[i] != (uint8_t)mix(seed + i))
            return false;
    return true;
}

/* Sends message number seed of len bytes if there is room now. */
static inline int try_send(inf_link *link, uint64_t seed, uint64_t len) {
    void *buf;
    int rc = inf_link_prepare(link, &buf);
    if (rc != INF_OK)
        return rc;
    fill_pattern(buf, seed, len);
    return inf_link_post(link, len);
}

/* Takes message number seed if it is there, and checks its bytes. */
static inline int try_take(inf_link *link, uint64_t seed, uint64_t want) {
    const void *msg;
    uint64_t len;
    int rc = inf_link_poll(link, &msg, &len);
    if (rc != INF_OK)
        return rc;
    CHECK(len == want);
    CHECK(check_pattern(msg, seed, len));
    inf_link_release(link);
    return INF_OK;
}

static inline void wait_one(inf_link *link) {
    CHECK(inf_link_wait(&link, 1, -1, LONG_NS) == INF_OK);
}

static inline void must(inf_link *link, int rc, int line) {
    if (rc != INF_OK) {
        inf_err err = {.message = "-"};
        inf_link_status(link, &err);
        fprintf(stderr, "line %d: status %d: %s\n", line, rc, err.message);
        exit(1);
    }
}

static inline void send_at(inf_link *link, uint64_t seed, uint64_t len, int line) {
    int rc;
    while ((rc = try_send(link, seed, len)) == INF_AGAIN)
        wait_one(link);
    must(link, rc, line);
}

static inline void take_at(inf_link *link, uint64_t seed, uint64_t len, int line) {
    int rc;
    while ((rc = try_take(link, seed, len)) == INF_AGAIN)
        wait_one(link);
    must(link, rc, line);
}

#define SEND(link, seed, len) send_at(link, seed, len, __LINE__)
#define TAKE(link, seed, len) take_at(link, seed, len, __LINE__)

static inline double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Waits until the link is dead and checks why; returns the seconds it took. */
static inline double expect_death(inf_link *link, int code, inf_err *err) {
    const void *msg;
    uint64_t len;
    void *buf;
    int rc;
    double begun = now_s();
    while ((rc = inf_link_poll(link, &msg, &len)) == INF_AGAIN)
        wait_one(link);
    double took = now_s() - begun;
    inf_link_status(link, err);
    if (rc != code) {
        fprintf(stderr, "status %d (%s), expected %d\n", rc, err->message, code);
        exit(1);
    }
    CHECK(inf_link_prepare(link, &buf) == code && inf_link_post(link, 0) == code);
    CHECK(err->code == code && strlen(err->message) > 0);
    return took;
}

#endif
