/* Links over RDMA on a bad network: loss, ports that go down, addresses that vanish, silence. Needs
 * Soft-RoCE on two ends of a veth pair and the functions that GUEST_LIB names (see tools/guest). */
#include "transport/verbs/ring.h"
#include "verbs_pair.h"

#include <pthread.h>

static rdma_ports ports;
static double broken_at; /* when the command that breaks the network was done */

static void shell(const char *command) {
    char line[512];
    snprintf(line, sizeof line, ". \"$GUEST_LIB\"; %s", command);
    CHECK(system(line) == 0);
}

typedef struct {
    inf_link *link;
    uint64_t send_seed, take_seed, count, max;
    inf_err err; /* of a link that died on the way */
} traffic;

static uint64_t length(uint64_t number, uint64_t max) {
    return number % 7 == 0 ? max : mix(number) % (number % 3 == 0 ? max + 1 : 500);
}

/* Sends and takes until count of each, or until the link is dead. */
static void *run_traffic(void *arg) {
    traffic *t = arg;
    uint64_t sent = 0, taken = 0;
    while (sent < t->count || taken < t->count) {
        int a = INF_AGAIN, b = INF_AGAIN;
        if (sent < t->count)
            a = try_send(t->link, t->send_seed + sent, length(t->send_seed + sent, t->max));
        if (taken < t->count && a >= 0)
            b = try_take(t->link, t->take_seed + taken, length(t->take_seed + taken, t->max));
        if (a < 0 || b < 0) {
            inf_link_status(t->link, &t->err);
            return NULL;
        }
        sent += a == INF_OK;
        taken += b == INF_OK;
        if (a == INF_AGAIN && b == INF_AGAIN)
            CHECK(inf_link_wait(&t->link, 1, -1, LONG_NS) == INF_OK);
    }
    return NULL;
}

static void exchange(inf_link *l[2], uint64_t count, uint64_t max) {
    traffic a = {l[0], 1000, 50000000, count, max, {0}},
            b = {l[1], 50000000, 1000, count, max, {0}};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run_traffic, &b) == 0);
    run_traffic(&a);
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++) {
        const inf_err *e = i == 0 ? &a.err : &b.err;
        if (e->code != 0) {
            fprintf(stderr, "end %d: %s\n", i, e->message);
            exit(1);
        }
    }
}

static void test_loss(const char *what, uint64_t count, uint64_t max) {
    inf_link *l[2];
    pair_links(&ports, (pair_shape){4, (max + 63) / 64 * 64, 0}, l, NULL);
    char command[128];
    snprintf(command, sizeof command, "guest_netem v0 %s; guest_netem v1 %s", what, what);
    shell(command);
    double begun = now_s();
    exchange(l, count, max);
    printf("  %s: 2 x %llu messages of up to %llu bytes in %.1f s\n", what,
           (unsigned long long)count, (unsigned long long)max, now_s() - begun);
    fflush(stdout);
    shell("guest_loss 0");
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

static void *break_it(void *command) {
    shell(command);
    broken_at = now_s();
    return NULL;
}

static bool has_address(int side) {
    static const uint8_t any[16];
    inf_verbs_gid gid;
    return inf_verbs_gid_for(ports.device[side], ports.port[side], any, &gid, NULL) == INF_OK;
}

/* A new link works, once what was broken is whole again: a GID comes a little after its address. */
static void new_link(void) {
    inf_link *l[2];
    double begun = now_s();
    while (!has_address(0) || !has_address(1)) {
        CHECK(now_s() - begun < 10);
        usleep(20000);
    }
    usleep(300000);
    pair_links(&ports, (pair_shape){4, 4096, 0}, l, NULL);
    exchange(l, 200, 4096);
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

/* The network breaks while both ends wait for messages (idle), or while they send all the time. */
static void test_break(const char *name, char *command, const char *repair, bool idle) {
    inf_link *l[2];
    inf_err err[2];
    pair_links(&ports, (pair_shape){4, 4096, 0}, l, NULL);
    exchange(l, 50, 4096);
    pthread_t breaker;
    CHECK(pthread_create(&breaker, NULL, break_it, command) == 0);
    double died[2];
    if (idle) {
        for (int i = 0; i < 2; i++) {
            expect_death(l[i], INF_EPEER, &err[i]);
            died[i] = now_s();
        }
    } else {
        const uint64_t endless = UINT64_MAX / 4;
        traffic a = {l[0], 1000, 50000000, endless, 4096, {0}},
                b = {l[1], 50000000, 1000, endless, 4096, {0}};
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, run_traffic, &b) == 0);
        run_traffic(&a);
        died[0] = now_s();
        pthread_join(thread, NULL);
        died[1] = now_s();
        err[0] = a.err;
        err[1] = b.err;
    }
    pthread_join(breaker, NULL);
    for (int i = 0; i < 2; i++) {
        CHECK(err[i].code == INF_EPEER);
        printf("  %s, %s, end %d, at %+.2f s: %s\n", name, idle ? "idle" : "busy", i,
               died[i] - broken_at, err[i].message);
        CHECK(died[i] - broken_at < 6); /* some 2 s, on processors that are emulated and shared */
        inf_link_close(l[i]);
    }
    shell(repair);
    new_link();
    fflush(stdout);
}

/* A close waits for its last word, but not for a peer that cannot hear it. */
static void test_close_unheard(void) {
    inf_link *l[2];
    pair_links(&ports, (pair_shape){4, 4096, 0}, l, NULL);
    exchange(l, 20, 4096);
    shell("guest_loss 100%");
    CHECK(try_send(l[0], 1, 4096) == INF_OK);
    double begun = now_s();
    inf_link_close(l[0]);
    double took = now_s() - begun;
    printf("  closed after %.2f s\n", took);
    CHECK(took < 0.5);
    inf_link_close(l[1]);
    shell("guest_loss 0");
}

/* While nothing that was sent is acknowledged, and the device has patience, a little more is sent
 * now and then: it wakes a device that sleeps. Then all arrives. */
static void test_nudge(void) {
    inf_link *l[2];
    pair_timeout = 18;
    pair_links(&ports, (pair_shape){4, 4096, 0}, l, NULL);
    pair_timeout = 0;
    exchange(l, 20, 4096);
    const inf_verbs_link *v = (const inf_verbs_link *)l[0];
    inf_link_wait(&l[0], 1, -1, 100000000); /* what was sent is acknowledged */
    shell("guest_loss 100%");
    uint64_t before = v->ep->q.posted.wrs[INF_WR_OTHER];
    for (uint64_t i = 0; i < 3; i++)
        CHECK(try_send(l[0], i, 4096) == INF_OK);
    CHECK(v->ep->q.signaled > 0);
    CHECK(inf_link_wait(&l[0], 1, -1, INT64_C(2800000000)) == INF_AGAIN);
    uint64_t nudges = v->ep->q.posted.wrs[INF_WR_OTHER] - before;
    printf("  %llu times in 2.8 s\n", (unsigned long long)nudges);
    CHECK(nudges >= 1 && nudges <= 3 && v->ep->q.signaled > nudges);
    shell("guest_loss 0");
    for (uint64_t i = 0; i < 3; i++)
        take_at(l[1], i, 4096, __LINE__);
    new_link();
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

/* A link that nobody looked at for long is not taken for one on which nothing moves. */
static void test_rest(void) {
    inf_link *l[2];
    pair_links(&ports, (pair_shape){4, 4096, 0}, l, NULL);
    inf_err err;
    uint64_t told = ((const inf_verbs_link *)l[0])->stuck_limit_ms;
    shell("for dev in v0 v1; do tc qdisc replace dev $dev root netem delay 20ms; done");
    for (uint64_t i = 0; i < 2; i++) { /* one of them is signaled */
        CHECK(try_send(l[0], i, 4096) == INF_OK);
        inf_link_wait(&l[0], 1, -1, 10000000);
        TAKE(l[1], i, 4096);
        if (i == 0)
            usleep((useconds_t)told * 1000 + 200000);
    }
    shell("guest_loss 0");
    CHECK_OK(inf_link_status(l[0], &err));
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

int main(void) {
    rdma_find_or_skip(&ports);
    if (!getenv("GUEST_LIB") || strcmp(ports.name[0], ports.name[1]) == 0) {
        printf("skipped: no network that may be broken\n");
        return 77;
    }
    rdma_open(&ports);
    printf("loss\n");
    test_loss("loss 1%", 3000, 20000);
    test_loss("loss 5%", 500, 20000);
    test_loss("delay 2ms loss 0.5%", 300, 100000);
    printf("close\n");
    test_close_unheard();
    printf("nudge\n");
    test_nudge();
    printf("rest\n");
    test_rest();
    printf("breaks\n");
    for (int idle = 0; idle < 2; idle++) {
        test_break("our port down", "guest_down v0", "guest_up v0", idle);
        test_break("the peer's port down", "guest_down v1", "guest_up v1", idle);
        test_break("address removed", "guest_addr_del v0", "guest_addr_add v0", idle);
        test_break("all packets lost", "guest_loss 100%", "guest_loss 0", idle);
    }
    rdma_close(&ports);
    printf("ok\n");
    return 0;
}
