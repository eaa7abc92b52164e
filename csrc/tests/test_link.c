/* Links of both providers: order and contents, back-pressure, traffic in both directions at once,
 * waits, and the death of a peer. test_link_lies has peers that lie. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "infinite/link.h"

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #cond, provider_name);         \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static const char *provider_name = "-";

#include "link_ends.h"
#include "link_messages.h"

static void test_ping_pong(uint32_t provider) {
    link_ends e = make_ends(provider, 4, 1024);
    inf_link *c, *s;
    open_ends(&e, &c, &s);
    CHECK(inf_link_peer(c) == 7 && inf_link_peer(s) == 9 && inf_link_slot_bytes(c) == 1024);
    CHECK(inf_link_wait(&c, 1, -1, 0) == INF_AGAIN);
    CHECK(inf_link_wait(&c, 1, -1, 1000000) == INF_AGAIN);
    for (uint64_t i = 0; i < 500; i++) {
        uint64_t len = i % 1025;
        CHECK(try_send(c, i, len) == INF_OK);
        TAKE(s, i, len);
        CHECK(try_send(s, i + 1, 1024 - len) == INF_OK);
        TAKE(c, i + 1, 1024 - len);
    }
    CHECK(inf_link_status(c, NULL) == INF_OK && inf_link_status(s, NULL) == INF_OK);
    inf_link_close(c);
    expect_end(s, INF_EPEER, 9);
    inf_link_close(s);
}

/* prepare must come to an end, what was posted must arrive, and room must wake a waiting sender. */
static void test_back_pressure(uint32_t provider) {
    const uint64_t len = 256 * 1024;
    link_ends e = make_ends(provider, 3, len);
    inf_link *c, *s;
    open_ends(&e, &c, &s);
    uint64_t sent = 0, taken = 0;
    while (try_send(c, sent, len) == INF_OK)
        CHECK(++sent < 10000);
    void *a, *b;
    CHECK(inf_link_prepare(c, &a) == INF_AGAIN);
    inf_link *both[2] = {c, s};
    while (taken < sent) {
        CHECK(inf_link_wait(both, 2, -1, LONG_NS) == INF_OK);
        if (try_take(s, taken, len) == INF_OK)
            taken++;
    }
    CHECK(inf_link_wait(&c, 1, -1, LONG_NS) == INF_OK); /* room */
    CHECK(inf_link_prepare(c, &a) == INF_OK && inf_link_prepare(c, &b) == INF_OK && a == b);
    CHECK(inf_link_post(c, len + 1) == INF_EINVAL);
    CHECK(inf_link_prepare(c, &a) == INF_EINVAL);
    inf_link_close(c);
    inf_link_close(s);
}

typedef struct {
    inf_link *link;
    uint64_t send_seed, take_seed, count, max;
    atomic_int *finished; /* ends that have taken everything */
} traffic;

static uint64_t traffic_len(uint64_t seed, uint64_t i, uint64_t max) {
    uint64_t x = (seed + i) * 0xd6e8feb86659fd93u;
    x ^= x >> 32;
    return i % 5 == 0 ? max - x % 64 : x % (i % 3 == 0 ? 65 : max / 8 + 1);
}

/* Sends and takes count messages of random sizes, in whatever order the link allows. */
static void *run_traffic(void *arg) {
    traffic *t = arg;
    uint64_t sent = 0, taken = 0;
    while (sent < t->count || taken < t->count) {
        int busy = 0;
        if (sent < t->count) {
            int rc =
                try_send(t->link, t->send_seed + sent, traffic_len(t->send_seed, sent, t->max));
            CHECK(rc >= 0);
            busy |= rc == INF_OK;
            sent += rc == INF_OK;
        }
        if (taken < t->count) {
            int rc =
                try_take(t->link, t->take_seed + taken, traffic_len(t->take_seed, taken, t->max));
            CHECK(rc >= 0);
            busy |= rc == INF_OK;
            taken += rc == INF_OK;
        }
        if (!busy)
            wait_one(t->link);
    }
    /* The other end may still need this one to push its last bytes out. */
    atomic_fetch_add(t->finished, 1);
    while (atomic_load(t->finished) < 2)
        CHECK(inf_link_wait(&t->link, 1, -1, 1000000) >= 0);
    return NULL;
}

static void test_both_directions(uint32_t provider, uint32_t slots, uint64_t max, uint64_t count) {
    link_ends e = make_ends(provider, slots, max);
    inf_link *c, *s;
    open_ends(&e, &c, &s);
    atomic_int finished = 0;
    traffic tc = {c, 1000, 500000, count, max, &finished};
    traffic ts = {s, 500000, 1000, count, max, &finished};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run_traffic, &ts) == 0);
    run_traffic(&tc);
    CHECK(pthread_join(thread, NULL) == 0);
    inf_link_close(c);
    inf_link_close(s);
}

static void close_ends(const inf_link_config *c) {
    close(c->sock_fd);
    if (c->mem_fd >= 0) {
        close(c->mem_fd);
        close(c->rx_event_fd);
        close(c->tx_event_fd);
    }
}

/* The child answers one message and is killed while the parent sleeps in wait. */
static void test_killed_peer(uint32_t provider) {
    link_ends e = make_ends(provider, 2, 64);
    inf_err err;
    inf_link *link;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close_ends(&e.client);
        CHECK(inf_link_open(&e.server, &link, &err) == INF_OK);
        TAKE(link, 1, 64);
        CHECK(try_send(link, 2, 10) == INF_OK);
        wait_one(link); /* the second message: die without a word */
        raise(SIGKILL);
        _exit(1);
    }
    close_ends(&e.server);
    CHECK(inf_link_open(&e.client, &link, &err) == INF_OK);
    CHECK(try_send(link, 1, 64) == INF_OK);
    TAKE(link, 2, 10);
    CHECK(try_send(link, 3, 64) == INF_OK);
    expect_end(link, INF_EPEER, 7);
    inf_link_close(link);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    if (e.mem >= 0)
        close(e.mem);
}

/* What the peer posted before it closed is delivered, then comes INF_EPEER; also without wait. */
static void test_last_words(uint32_t provider) {
    link_ends e = make_ends(provider, 4, 256);
    inf_link *c, *s;
    open_ends(&e, &c, &s);
    CHECK(try_send(c, 1, 256) == INF_OK && try_send(c, 2, 0) == INF_OK);
    inf_link_close(c);
    TAKE(s, 1, 256);
    TAKE(s, 2, 0);
    int rc;
    while ((rc = try_take(s, 3, 0)) == INF_AGAIN)
        ;
    CHECK(rc == INF_EPEER);
    inf_link_release(s);
    inf_link_close(s);
}

static void *send_later(void *arg) {
    uint64_t one = 1;
    usleep(2000);
    CHECK(write(*(int *)arg, &one, sizeof one) == sizeof one);
    return NULL;
}

static void test_wait(uint32_t provider) {
    enum { N = 512 };
    static inf_link *client[N + 1], *server[N + 1];
    for (int i = 0; i < N; i++) {
        link_ends e = make_ends(provider, 2, 64);
        open_ends(&e, &client[i], &server[i]);
    }
    CHECK(inf_link_wait(server, N, -1, 1000) == INF_AGAIN);
    CHECK(inf_link_wait(server, N + 1, -1, 0) == INF_EINVAL);
    CHECK(try_send(client[N - 1], 1, 33) == INF_OK);
    CHECK(inf_link_wait(server, N, -1, LONG_NS) == INF_OK);
    CHECK(try_take(server[0], 0, 0) == INF_AGAIN);
    CHECK(try_take(server[N - 1], 1, 33) == INF_OK);
    int wake = eventfd(0, EFD_NONBLOCK);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, send_later, &wake) == 0);
    CHECK(inf_link_wait(server, N, wake, -1) == INF_OK);
    CHECK(inf_link_wait(NULL, 0, wake, LONG_NS) == INF_OK);
    CHECK(pthread_join(thread, NULL) == 0);
    close(wake);
    CHECK(inf_link_wait(NULL, 0, -1, 1000) == INF_AGAIN);
    for (int i = 0; i < N; i++) {
        inf_link_close(client[i]);
        inf_link_close(server[i]);
    }
}

/* Who waits awake is not woken: it never gives up its CPU by itself. Who sleeps does. */
typedef struct {
    uint32_t provider;
    int64_t spin_ns;
    long sleeps;
} waiter;

static void *send_after_a_while(void *link) {
    usleep(2000);
    CHECK(try_send(link, 3, 100) == INF_OK);
    return NULL;
}

static void *wait_once(void *arg) {
    waiter *w = arg;
    link_ends e = make_ends(w->provider, 4, 1024);
    inf_link *c, *s;
    open_ends(&e, &c, &s);
    struct rusage before, after;
    pthread_t sender;
    CHECK(pthread_create(&sender, NULL, send_after_a_while, c) == 0);
    CHECK(getrusage(RUSAGE_THREAD, &before) == 0);
    CHECK(inf_link_wait_awake(&s, 1, -1, LONG_NS, w->spin_ns) == INF_OK);
    CHECK(getrusage(RUSAGE_THREAD, &after) == 0);
    CHECK(pthread_join(sender, NULL) == 0);
    TAKE(s, 3, 100);
    inf_link_close(c);
    inf_link_close(s);
    w->sleeps = after.ru_nvcsw - before.ru_nvcsw;
    return NULL;
}

static long sleeps_of_wait(uint32_t provider, int64_t spin_ns) {
    waiter w = {provider, spin_ns, -1};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, wait_once, &w) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    return w.sleeps;
}

/* A thread that is held up sleeps all the same, and one that comes late has nothing to wait for, so
 * there are several tries, each by another one. */
static void test_awake(uint32_t provider) {
    cpu_set_t cpus;
    CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0);
    int tries = 0;
    while (CPU_COUNT(&cpus) > 1 && sleeps_of_wait(provider, LONG_NS) > 0)
        CHECK(++tries < 1000);
    for (tries = 0; sleeps_of_wait(provider, 0) == 0;)
        CHECK(++tries < 1000);
}

static bool is_open(int fd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return access(path, F_OK) == 0;
}

/* open refuses wrong shapes and takes the descriptors all the same. */
static void test_open(uint32_t provider) {
    CHECK(inf_link_shm_bytes(1, 64) == 0 && inf_link_shm_bytes(65, 64) == 0);
    CHECK(inf_link_shm_bytes(2, 63) == 0 && inf_link_shm_bytes(2, 0) == 0);
    CHECK(inf_link_shm_bytes(2, (UINT64_C(1) << 30) + 64) == 0);
    CHECK(inf_link_shm_bytes(2, 64) >= 2 * 2 * 64);
    for (int kind = 0; kind < 6; kind++) {
        link_ends e = make_ends(provider, 2, 64);
        inf_link_config c = e.client;
        int want = INF_EINVAL;
        if (kind == 0)
            c.role = 3;
        else if (kind == 1)
            c.slots = 65;
        else if (kind == 2)
            c.slot_bytes = 100;
        else if (kind == 3)
            c.slot_bytes = 0;
        else if (kind == 4) {
            c.provider = 99;
            want = INF_EUNSUPPORTED;
        } else if (provider == INF_PROVIDER_SHM) {
            c.slots = 64; /* the memory is too small for it */
        } else {
            close(c.sock_fd);
            c.sock_fd = -1;
        }
        inf_err err;
        inf_link *link = (inf_link *)&e;
        CHECK(inf_link_open(&c, &link, &err) == want && err.code == want && link == NULL);
        CHECK(!is_open(e.client.sock_fd) && (e.mem < 0 || !is_open(e.client.mem_fd)));
        close_ends(&e.server);
        if (e.mem >= 0)
            close(e.mem);
    }
    inf_link_close(NULL);
}

int main(void) {
    static const uint32_t providers[] = {INF_PROVIDER_SHM, INF_PROVIDER_TCP};
    for (int i = 0; i < 2; i++) {
        uint32_t p = providers[i];
        provider_name = p == INF_PROVIDER_SHM ? "shm" : "tcp";
        test_killed_peer(p); /* first: it forks, and later tests start threads */
        test_open(p);
        test_ping_pong(p);
        test_back_pressure(p);
        test_last_words(p);
        test_both_directions(p, 2, 64, 2000);
        test_both_directions(p, 4, 8192, 1500);
        test_both_directions(p, 3, 8 << 20, 30);
        test_wait(p);
        test_awake(p);
    }
    printf("ok\n");
    return 0;
}
