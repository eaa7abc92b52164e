/* The measuring loops of linkbench.h.
 *
 * Nothing is allocated, printed or called but the link's functions and the clock between the first
 * message of a phase and its last. While a try finds nothing the clock is read now and then only,
 * so that polling costs what the link's poll costs. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "infinite/linkbench.h"
#include "infinite/verbs.h"
#include "runtime/clock.h"
#include "transport/link_impl.h"

enum {
    LOOK_EVERY = 64,    /* fruitless tries between two looks at the clock */
    CLOCK_EVERY = 16,   /* small messages likewise */
    SMALL_BYTES = 4096, /* smaller ones are small */
    PUT_BLOCK = 16384,
    NOTICE_BYTES = 8, /* of the message that tells of a put */
};
/* A poll that found nothing for so long also does what only a wait does: see after a silent peer.
 */
static const int64_t QUIET_NS = 20000000;
static const int64_t SLEEP_NS = 100000000; /* a sleep in which nobody stops us */
static const uint64_t PUTS_IN_FLIGHT = UINT64_C(16) << 20;

typedef struct {
    inf_link *link;
    const inf_bench *bench;
    inf_err *err;
    bool waits;       /* this end sleeps when it has nothing to do */
    uint64_t message; /* bytes of a message */
    uint8_t *copy;    /* [message], NULL: messages are not copied */
    inf_grant grant;  /* puts */
    int64_t *ns;
    uint64_t rounds; /* of the last phase */
    int64_t took_ns;
} run;

/* Since when one thing is waited for. */
typedef struct {
    uint32_t tries;
    int64_t begun;
} patience;

/* The link's own failure. */
static int fail_link(run *r, int code) {
    inf_link_error(r->err, r->link->config.peer, code, "cannot measure the link: status %d", code);
    inf_link_status(r->link, r->err); /* knows better, if the link is dead */
    return code;
}

static bool stopped(const run *r) {
    return r->bench->stop && __atomic_load_n(r->bench->stop, __ATOMIC_RELAXED) != 0;
}

static int fail_stopped(const run *r) {
    return inf_link_error(r->err, r->link->config.peer, INF_ETIMEOUT,
                          "cannot finish measuring: stopped");
}

/* After a try that found nothing: INF_OK to try again. */
static int again(run *r, patience *p) {
    bool waits = r->waits;
    if (waits) {
        int rc = inf_link_wait(&r->link, 1, -1, SLEEP_NS);
        if (rc < 0)
            return fail_link(r, rc);
    } else if (++p->tries % LOOK_EVERY != 0) {
        return INF_OK;
    }
    if (stopped(r))
        return fail_stopped(r);
    int64_t now = inf_now();
    p->begun = p->begun == 0 ? now : p->begun;
    if (now - p->begun > r->bench->silence_ns)
        return inf_link_error(r->err, r->link->config.peer, INF_ETIMEOUT,
                              "cannot reach the peer: nothing came from it for %.1f s",
                              (double)r->bench->silence_ns / 1e9);
    if (!waits && now - p->begun > QUIET_NS) {
        int rc = inf_link_wait(&r->link, 1, -1, 0);
        if (rc < 0)
            return fail_link(r, rc);
    }
    return INF_OK;
}

/* Waits for a free slot. */
static int next_slot(run *r, void **buf) {
    patience p = {0};
    int rc;
    while ((rc = inf_link_prepare(r->link, buf)) == INF_AGAIN)
        if ((rc = again(r, &p)) != INF_OK)
            return rc;
    return rc == INF_OK ? INF_OK : fail_link(r, rc);
}

/* Waits for a message. */
static int next_message(run *r, const void **msg, uint64_t *got) {
    patience p = {0};
    int rc;
    while ((rc = inf_link_poll(r->link, msg, got)) == INF_AGAIN)
        if ((rc = again(r, &p)) != INF_OK)
            return rc;
    return rc == INF_OK ? INF_OK : fail_link(r, rc);
}

static int send_message(run *r, uint64_t len) {
    void *buf;
    int rc = next_slot(r, &buf);
    if (rc != INF_OK)
        return rc;
    if (r->copy)
        memcpy(buf, r->copy, len);
    rc = inf_link_post(r->link, len);
    return rc == INF_OK ? INF_OK : fail_link(r, rc);
}

/* Takes a message of len bytes, or an empty one if `over` is not NULL, which is then true. */
static int take_message(run *r, uint64_t len, bool *over) {
    const void *msg;
    uint64_t got;
    int rc = next_message(r, &msg, &got);
    if (rc != INF_OK)
        return rc;
    if (over)
        *over = got == 0;
    if (got != len && !(over && got == 0))
        return inf_link_error(r->err, r->link->config.peer, INF_EPROTO,
                              "peer %d: a message of %llu bytes, %llu were agreed on",
                              r->link->config.peer, (unsigned long long)got,
                              (unsigned long long)len);
    if (r->copy && got > 0)
        memcpy(r->copy, msg, got);
    inf_link_release(r->link);
    return INF_OK;
}

/* --- the client --- */

static int put_all(run *r) {
    uint64_t bytes = r->bench->bytes;
    for (uint64_t at = 0; at < bytes;) {
        inf_put puts[INF_PUT_MAX];
        uint32_t n = 0;
        /* Backwards here and forwards at the peer, so that every stretch is a piece of its own. */
        for (; n < INF_PUT_MAX && at < bytes; n++) {
            uint32_t part = bytes - at < PUT_BLOCK ? (uint32_t)(bytes - at) : PUT_BLOCK;
            puts[n] = (inf_put){bytes - at - part, r->grant.address + at, r->grant.key, part};
            at += part;
        }
        patience p = {0};
        int rc;
        while ((rc = inf_link_put(r->link, puts, n)) == INF_AGAIN)
            if ((rc = again(r, &p)) != INF_OK)
                return rc;
        if (rc != INF_OK)
            return fail_link(r, rc);
    }
    return INF_OK;
}

static int one_round(run *r) {
    int rc = r->bench->kind == INF_BENCH_PUTS ? put_all(r) : INF_OK;
    rc = rc == INF_OK ? send_message(r, r->message) : rc;
    if (rc == INF_OK && r->bench->kind == INF_BENCH_LATENCY)
        rc = take_message(r, r->message, NULL);
    return rc;
}

/* Up to n rounds; ns may be NULL. */
static int client_phase(run *r, uint64_t n, int64_t *ns) {
    const inf_bench *b = r->bench;
    bool every = b->kind == INF_BENCH_LATENCY || b->bytes >= SMALL_BYTES;
    int64_t begun = inf_now(), last = begun;
    uint64_t i = 0;
    bool over = n == 0;
    while (!over) {
        int rc = one_round(r);
        if (rc != INF_OK)
            return rc;
        i++;
        over = i == n;
        if (every || i % CLOCK_EVERY == 0) {
            int64_t now = inf_now();
            if (ns)
                ns[i - 1] = now - last;
            last = now;
            over = over || (b->duration_ns > 0 && now - begun >= b->duration_ns) || stopped(r);
        }
    }
    r->rounds = i;
    int rc = send_message(r, 0);
    rc = rc == INF_OK ? take_message(r, 0, NULL) : rc;
    r->took_ns = inf_now() - begun;
    return rc;
}

/* The server's grant, its first message. */
static int take_grant(run *r) {
    const void *msg;
    uint64_t got;
    int rc = next_message(r, &msg, &got);
    if (rc != INF_OK)
        return rc;
    if (got == sizeof r->grant)
        memcpy(&r->grant, msg, sizeof r->grant);
    if (got != sizeof r->grant || r->grant.bytes != r->bench->bytes)
        return inf_link_error(r->err, r->link->config.peer, INF_EPROTO,
                              "peer %d: its grant is not of the bytes that were agreed on",
                              r->link->config.peer);
    inf_link_release(r->link);
    rc = inf_link_put_limit(r->link, PUTS_IN_FLIGHT);
    return rc == INF_OK ? INF_OK : fail_link(r, rc);
}

static int run_client(run *r) {
    int rc = r->bench->kind == INF_BENCH_PUTS ? take_grant(r) : INF_OK;
    rc = rc == INF_OK ? client_phase(r, r->bench->warmup, NULL) : rc;
    return rc == INF_OK ? client_phase(r, r->bench->rounds, r->ns) : rc;
}

/* --- the server --- */

/* Up to n rounds: the client may not go on for ever. */
static int server_phase(run *r, uint64_t n) {
    for (uint64_t i = 0;; i++) {
        bool over;
        int rc = take_message(r, r->message, &over);
        if (rc == INF_OK && over)
            return send_message(r, 0);
        if (rc == INF_OK && i == n)
            rc = inf_link_error(r->err, r->link->config.peer, INF_EPROTO,
                                "peer %d: more messages than the %llu that were agreed on",
                                r->link->config.peer, (unsigned long long)n);
        else if (rc == INF_OK && r->bench->kind == INF_BENCH_LATENCY)
            rc = send_message(r, r->message);
        if (rc == INF_OK && i % CLOCK_EVERY == 0 && stopped(r))
            rc = fail_stopped(r);
        if (rc != INF_OK)
            return rc;
    }
}

static int send_grant(run *r) {
    void *buf;
    patience p = {0};
    int rc;
    while ((rc = inf_link_grant(r->link, 0, r->bench->bytes, &r->grant)) == INF_AGAIN)
        if ((rc = again(r, &p)) != INF_OK)
            return rc;
    if (rc != INF_OK)
        return fail_link(r, rc);
    rc = next_slot(r, &buf);
    if (rc != INF_OK)
        return rc;
    memcpy(buf, &r->grant, sizeof r->grant);
    rc = inf_link_post(r->link, sizeof r->grant);
    return rc == INF_OK ? INF_OK : fail_link(r, rc);
}

static int end_grant(run *r) {
    patience p = {0};
    int rc;
    while ((rc = inf_link_revoke(r->link, r->grant.id)) == INF_AGAIN)
        if ((rc = again(r, &p)) != INF_OK)
            return rc;
    return rc == INF_OK ? INF_OK : fail_link(r, rc);
}

static int run_server(run *r) {
    bool puts = r->bench->kind == INF_BENCH_PUTS;
    int rc = puts ? send_grant(r) : INF_OK;
    rc = rc == INF_OK ? server_phase(r, r->bench->warmup) : rc;
    rc = rc == INF_OK ? server_phase(r, r->bench->rounds) : rc;
    return rc == INF_OK && puts ? end_grant(r) : rc;
}

/* --- */

static int check(const inf_link *link, const inf_bench *b, const int64_t *ns,
                 const inf_bench_result *out, inf_err *err) {
    if (!link || !b)
        return inf_link_error(err, -1, INF_EINVAL, "cannot measure a link: no link or no bench");
    bool puts = b->kind == INF_BENCH_PUTS, client = link->config.role == INF_LINK_CLIENT;
    uint64_t message = puts ? sizeof(inf_grant) : b->bytes; /* the largest */
    if (b->kind < INF_BENCH_LATENCY || b->kind > INF_BENCH_PUTS || b->bytes == 0 ||
        message > link->config.slot_bytes || b->silence_ns <= 0 || b->duration_ns < 0 ||
        b->rounds == 0 || (b->flags & ~(uint32_t)(INF_BENCH_WAITS | INF_BENCH_COPIES)) != 0)
        return inf_link_error(err, link->config.peer, INF_EINVAL,
                              "cannot measure a link: kind %u, %llu bytes in slots of %llu, %llu "
                              "rounds or flags %#x",
                              b->kind, (unsigned long long)b->bytes,
                              (unsigned long long)link->config.slot_bytes,
                              (unsigned long long)b->rounds, b->flags);
    if (client && (!out || (b->kind == INF_BENCH_LATENCY && !ns)))
        return inf_link_error(err, link->config.peer, INF_EINVAL,
                              "cannot measure a link: no room for the result");
    return INF_OK;
}

/* Who polls an RDMA device does it from the CPUs beside it, as an instance's threads do. True:
 * `before` is where this thread was. */
static bool go_near(const inf_link *link, cpu_set_t *before) {
    uint64_t cpus[INF_CPU_WORDS];
    const inf_verbs_device *device = inf_link_verbs_device(link);
    if (!device || inf_verbs_device_cpus(device, cpus) != INF_OK ||
        sched_getaffinity(0, sizeof *before, before) != 0)
        return false;
    inf_verbs_pin(cpus);
    return true;
}

int inf_link_bench(inf_link *link, const inf_bench *bench, int64_t *ns, inf_bench_result *out,
                   inf_err *err) {
    int rc = check(link, bench, ns, out, err);
    if (rc != INF_OK)
        return rc;
    run r = {.link = link, .bench = bench, .err = err};
    r.message = bench->kind == INF_BENCH_PUTS ? NOTICE_BYTES : bench->bytes;
    r.waits = (bench->flags & INF_BENCH_WAITS) ||
              (bench->kind != INF_BENCH_LATENCY && link->config.role == INF_LINK_SERVER);
    r.ns = bench->kind == INF_BENCH_LATENCY ? ns : NULL;
    if (bench->flags & INF_BENCH_COPIES) {
        r.copy = calloc(1, r.message);
        if (!r.copy)
            return inf_link_error(err, link->config.peer, INF_ENOMEM,
                                  "cannot measure a link: no memory");
    }
    cpu_set_t before;
    bool moved = go_near(link, &before);
    rc = link->config.role == INF_LINK_CLIENT ? run_client(&r) : run_server(&r);
    if (moved)
        sched_setaffinity(0, sizeof before, &before);
    free(r.copy);
    if (rc == INF_OK && out)
        *out = (inf_bench_result){r.rounds, r.took_ns};
    return rc;
}
