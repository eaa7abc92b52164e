/* What the tests of links share, whatever the provider: messages whose bytes follow from their
 * number, sent, awaited and checked; and the end of a link. Wants _GNU_SOURCE. */
#ifndef INF_TESTS_LINK_MESSAGES_H
#define INF_TESTS_LINK_MESSAGES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "infinite/link.h"

static const int64_t LONG_NS = INT64_C(60000000000);

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

/* The same, of a link to that peer, for which nobody waits any more. */
static inline void expect_end(inf_link *link, int code, int32_t peer) {
    inf_err err;
    expect_death(link, code, &err);
    CHECK(inf_link_wait(&link, 1, -1, LONG_NS) == INF_OK);
    CHECK(inf_link_status(link, &err) == code && err.instance == peer);
}

#endif
