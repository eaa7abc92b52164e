/* Links over RDMA: order and contents, credits, both directions at once, sleep and wake-up, the
 * death of a peer. Needs an RDMA device, Soft-RoCE will do. */
#include "verbs_pair.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

static rdma_ports ports;

/* --- discovery --- */

static void test_discovery(void) {
    inf_err err;
    inf_verbs_port list[16];
    inf_verbs_gid gids[64], gid;
    uint32_t n = 0, g = 0;
    CHECK_OK(inf_verbs_available(&err));
    CHECK_OK(inf_verbs_ports(list, 16, &n, &err));
    for (uint32_t i = 0; i < n && i < 16; i++) {
        CHECK_OK(inf_verbs_gids(list[i].device, list[i].port, gids, 64, &g, &err));
        printf("  %s port %u: %s, %s, MTU %u, %u Mbit/s, %s, %u of %u GIDs\n", list[i].device,
               list[i].port, list[i].link_layer == INF_VERBS_ETHERNET ? "Ethernet" : "InfiniBand",
               list[i].active ? "up" : "down", list[i].mtu, list[i].speed,
               list[i].windows ? "memory windows" : "no memory windows", g, list[i].gids);
    }
    static const uint8_t any[16];
    CHECK_OK(inf_verbs_gid_for(ports.device[0], ports.port[0], any, &gid, &err));
    CHECK(!gid.is_link);
    inf_verbs_gid again;
    CHECK_OK(inf_verbs_gid_for(ports.device[0], ports.port[0], gid.bytes, &again, &err));
    CHECK(again.index == gid.index);
    /* A link-local address is there, but is not taken for one. */
    for (uint32_t i = 0; i < g && i < 64; i++)
        if (gids[i].is_link)
            CHECK(inf_verbs_gid_for(ports.device[0], ports.port[0], gids[i].bytes, &gid, &err) ==
                  INF_EINVAL);
    static const uint8_t foreign[16] = {0x20, 0x01, 0x0d, 0xb8};
    CHECK(inf_verbs_gid_for(ports.device[0], ports.port[0], foreign, &gid, &err) == INF_EINVAL);
    inf_verbs_device *none;
    CHECK(inf_verbs_device_open("no such device", "test", &none, &err) == INF_EINVAL);
    CHECK(inf_verbs_device_open("", "test", &none, &err) == INF_EINVAL);
}

/* --- messages --- */

static void test_ping_pong(uint32_t slots, uint32_t flags) {
    inf_link *l[2];
    pair_links(&ports, (pair_shape){slots, 1024, flags}, l, NULL);
    CHECK(inf_link_peer(l[0]) == 7 && inf_link_peer(l[1]) == 9);
    CHECK(inf_link_slot_bytes(l[0]) == 1024);
    CHECK(inf_link_wait(&l[0], 1, -1, 0) == INF_AGAIN);
    CHECK(inf_link_wait(&l[0], 1, -1, 1000000) == INF_AGAIN);
    for (uint64_t i = 0; i < 1500; i++) {
        uint64_t len = i % 1025;
        SEND(l[0], i, len);
        TAKE(l[1], i, len);
        SEND(l[1], i + 1, 1024 - len);
        TAKE(l[0], i + 1, 1024 - len);
    }
    CHECK(inf_link_status(l[0], NULL) == INF_OK && inf_link_status(l[1], NULL) == INF_OK);
    inf_link_close(l[0]);
    inf_err err;
    expect_death(l[1], INF_EPEER, &err);
    inf_link_close(l[1]);
}

/* As a step and its creditor do it: the request is released after the answer went out, and the next
 * request leaves at once. There is always room. */
static void test_request_and_answer(void) {
    inf_link *l[2];
    pair_links(&ports, (pair_shape){2, 4096, 0}, l, NULL);
    for (uint64_t i = 0; i < 2000; i++) {
        void *buf;
        const void *msg;
        uint64_t len;
        int rc;
        CHECK(inf_link_prepare(l[0], &buf) == INF_OK && inf_link_post(l[0], 4096) == INF_OK);
        while ((rc = inf_link_poll(l[1], &msg, &len)) == INF_AGAIN)
            wait_one(l[1]);
        CHECK(rc == INF_OK && inf_link_prepare(l[1], &buf) == INF_OK);
        CHECK(inf_link_post(l[1], 1000) == INF_OK);
        inf_link_release(l[1]);
        while ((rc = inf_link_poll(l[0], &msg, &len)) == INF_AGAIN)
            wait_one(l[0]);
        CHECK(rc == INF_OK && len == 1000);
        inf_link_release(l[0]);
    }
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

/* prepare comes to an end after all slots, what was posted arrives, and room wakes the sender. */
static void test_back_pressure(uint32_t slots, uint64_t len) {
    inf_link *l[2];
    pair_links(&ports, (pair_shape){slots, len, 0}, l, NULL);
    for (int round = 0; round < 3; round++) {
        uint64_t sent = 0, taken = 0;
        int waits = 0;
        do {
            while (try_send(l[0], sent, len) == INF_OK)
                CHECK(++sent <= slots);
            CHECK(waits++ == 0 || round > 0);
        } while (inf_link_wait(&l[0], 1, -1, 20000000) == INF_OK); /* what it released shows late */
        /* Later, the peer need not have told of everything it released, only of enough. */
        CHECK(round == 0 ? sent == slots : sent > 0);
        void *a, *b;
        CHECK(inf_link_prepare(l[0], &a) == INF_AGAIN);
        while (taken < sent) {
            wait_one(l[1]);
            if (try_take(l[1], taken, len) == INF_OK)
                taken++;
        }
        wait_one(l[0]); /* room */
        CHECK(inf_link_prepare(l[0], &a) == INF_OK && inf_link_prepare(l[0], &b) == INF_OK);
        CHECK(a == b);
        CHECK(inf_link_post(l[0], 0) == INF_OK);
        TAKE(l[1], 0, 0);
    }
    void *a;
    while (inf_link_prepare(l[0], &a) == INF_AGAIN)
        wait_one(l[0]);
    CHECK(inf_link_post(l[0], len + 1) == INF_EINVAL);
    CHECK(inf_link_prepare(l[0], &a) == INF_EINVAL);
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

typedef struct {
    inf_link *link;
    uint64_t send_seed, take_seed, send, take, max;
} traffic;

static uint64_t traffic_len(uint64_t number, uint64_t max) {
    uint64_t x = mix(number);
    switch (number % 8) {
    case 0:
        return 0;
    case 1:
        return max;
    case 2:
        return max - x % 64;
    default:
        return number % 3 == 0 ? x % (max + 1) : x % 300 % (max + 1);
    }
}

static void *run_traffic(void *arg) {
    traffic *t = arg;
    uint64_t sent = 0, taken = 0;
    while (sent < t->send || taken < t->take) {
        int busy = 0;
        if (sent < t->send) {
            int rc =
                try_send(t->link, t->send_seed + sent, traffic_len(t->send_seed + sent, t->max));
            if (rc < 0)
                must(t->link, rc, __LINE__);
            busy |= rc == INF_OK;
            sent += rc == INF_OK;
        }
        if (taken < t->take) {
            int rc =
                try_take(t->link, t->take_seed + taken, traffic_len(t->take_seed + taken, t->max));
            if (rc < 0)
                must(t->link, rc, __LINE__);
            busy |= rc == INF_OK;
            taken += rc == INF_OK;
        }
        if (!busy)
            wait_one(t->link);
    }
    return NULL;
}

static void test_traffic(pair_shape shape, uint64_t there, uint64_t back) {
    inf_link *l[2];
    double begun = now_s();
    pair_links(&ports, shape, l, NULL);
    traffic a = {l[0], 1000, 50000000, there, back, shape.slot_bytes},
            b = {l[1], 50000000, 1000, back, there, shape.slot_bytes};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run_traffic, &b) == 0);
    run_traffic(&a);
    pthread_join(thread, NULL);
    inf_link_close(l[0]);
    inf_link_close(l[1]);
    printf("  %llu + %llu messages, %u slots of %llu bytes: %.1f s\n", (unsigned long long)there,
           (unsigned long long)back, shape.slots, (unsigned long long)shape.slot_bytes,
           now_s() - begun);
}

/* --- sleep --- */

typedef struct {
    inf_link *link;
    useconds_t after_us;
} later;

static void *send_later(void *arg) {
    later *l = arg;
    usleep(l->after_us);
    CHECK(try_send(l->link, 1, 33) == INF_OK);
    return NULL;
}

static double cpu_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A sleeping end costs no time, and every message wakes it, however it falls between arming and
 * sleep. */
static void test_sleep(void) {
    inf_link *l[2];
    pair_links(&ports, (pair_shape){4, 4096, 0}, l, NULL);
    later slow = {l[1], 700000};
    pthread_t thread;
    double begun = now_s(), cpu = cpu_s();
    CHECK(pthread_create(&thread, NULL, send_later, &slow) == 0);
    TAKE(l[0], 1, 33);
    CHECK(now_s() - begun > 0.6 && now_s() - begun < 5);
    printf("  0.7 s of sleep cost %.1f ms\n", 1e3 * (cpu_s() - cpu));
    CHECK(cpu_s() - cpu < 0.2);
    pthread_join(thread, NULL);
    for (useconds_t i = 0; i < 400; i++) {
        later soon = {l[1], i % 50 * 10};
        begun = now_s();
        CHECK(pthread_create(&thread, NULL, send_later, &soon) == 0);
        TAKE(l[0], 1, 33);
        CHECK(now_s() - begun < 0.4); /* not by the look that ends every sleep after a while */
        pthread_join(thread, NULL);
        SEND(l[0], 2, 10);
        TAKE(l[1], 2, 10);
    }
    /* A second of silence: signs of life go both ways and change nothing. */
    CHECK(inf_link_wait(l, 2, -1, 1000000000) == INF_AGAIN);
    SEND(l[0], 3, 10);
    TAKE(l[1], 3, 10);
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

/* --- death --- */

static void test_last_words(void) {
    inf_link *l[2];
    inf_err err;
    pair_links(&ports, (pair_shape){4, 256, 0}, l, NULL);
    CHECK(try_send(l[0], 1, 256) == INF_OK && try_send(l[0], 2, 0) == INF_OK);
    inf_link_close(l[0]);
    TAKE(l[1], 1, 256);
    TAKE(l[1], 2, 0);
    int rc;
    while ((rc = try_take(l[1], 3, 0)) == INF_AGAIN)
        ;
    CHECK(rc == INF_EPEER);
    expect_death(l[1], INF_EPEER, &err);
    inf_link_release(l[1]);
    inf_link_close(l[1]);
}

/* The child answers one message and is killed: while the parent waits for the next answer, or
 * (idle) while it waits for nothing in particular. Runs before this process uses the device. */
static void test_killed_peer(bool idle) {
    int s[2], status;
    pair_shape shape = {2, 4096, 0};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    int side = child == 0;
    close(s[1 - side]);
    rdma_open(&ports);
    inf_link *link = join_link(&ports, side, shape, s[side]);
    if (child == 0) {
        TAKE(link, 1, 64);
        SEND(link, 2, 4096);
        if (!idle)
            wait_one(link); /* the second message: dies without a word */
        else
            usleep(300000);
        raise(SIGKILL);
    }
    SEND(link, 1, 64);
    TAKE(link, 2, 4096);
    if (!idle)
        SEND(link, 3, 64);
    inf_err err;
    double took = expect_death(link, INF_EPEER, &err);
    printf("  killed peer seen after %.3f s: %s\n", took, err.message);
    CHECK(took < (idle ? 1.0 : 0.7));
    inf_link_close(link);
    rdma_close(&ports);
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
}

/* --- set-up --- */

/* What a peer says of itself is not believed. */
static void test_wrong_info(void) {
    pair_shape shape = {2, 64, 0};
    inf_err err;
    for (int kind = 0; kind < 12; kind++) {
        inf_verbs_endpoint *ep;
        inf_verbs_config c = pair_config(&ports, 0, shape);
        inf_verbs_info info, r;
        CHECK_OK(inf_verbs_endpoint_create(ports.device[0], &c, &ep, &info, &err));
        CHECK(inf_verbs_endpoint_to_rts(ep, &err) == INF_EINVAL);
        r = info;
        switch (kind) {
        case 0:
            r.magic++;
            break;
        case 1:
            r.version++;
            break;
        case 2:
            r.link_layer ^= 3;
            break;
        case 3:
            r.qp_number = 0;
            break;
        case 4:
            r.qp_number = 1 << 24;
            break;
        case 5:
            r.psn = 1 << 24;
            break;
        case 6:
            r.mtu = 1500;
            break;
        case 7:
            memset(r.gid, 0, sizeof r.gid);
            r.lid = 0;
            break;
        case 8:
            r.slots = 3;
            break;
        case 9:
            r.slot_bytes = 128;
            break;
        case 10:
            r.ring_address = UINT64_MAX - 127;
            break;
        default:
            r.reserved[1] = 1;
            break;
        }
        CHECK(inf_verbs_endpoint_to_rtr(ep, &r, &err) == INF_EPROTO && err.code == INF_EPROTO);
        CHECK_OK(inf_verbs_endpoint_to_rtr(ep, &info, &err)); /* itself */
        inf_verbs_endpoint_destroy(ep);
    }
    inf_verbs_config c = pair_config(&ports, 0, shape);
    inf_verbs_endpoint *ep;
    inf_verbs_info info;
    c.slots = 1;
    CHECK(inf_verbs_endpoint_create(ports.device[0], &c, &ep, &info, &err) == INF_EINVAL);
    c = pair_config(&ports, 0, shape);
    c.retries = 7;
    CHECK(inf_verbs_endpoint_create(ports.device[0], &c, &ep, &info, &err) == INF_EINVAL);
    c = pair_config(&ports, 0, shape);
    c.port = 99;
    CHECK(inf_verbs_endpoint_create(ports.device[0], &c, &ep, &info, &err) == INF_EINVAL);
    inf_verbs_endpoint_destroy(NULL);
}

static void run(const char *name) { printf("%s\n", name), fflush(stdout); }

int main(int argc, char **argv) {
    uint64_t scale = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
    rdma_find_or_skip(&ports);
    run("killed peer");
    test_killed_peer(false);
    test_killed_peer(true);
    rdma_open(&ports);
    run("discovery");
    test_discovery();
    run("ping pong");
    test_ping_pong(2, 0);
    test_ping_pong(5, 0);
    test_ping_pong(64, INF_VERBS_NO_WINDOWS);
    test_request_and_answer();
    run("back pressure");
    test_back_pressure(2, 4096);
    test_back_pressure(7, 256 * 1024);
    test_back_pressure(64, 64);
    run("last words");
    test_last_words();
    run("sleep");
    test_sleep();
    run("wrong info");
    test_wrong_info();
    run("traffic");
    test_traffic((pair_shape){8, 4096, 0}, 40000 * scale, 40000 * scale);
    test_traffic((pair_shape){2, 64, 0}, 5000 * scale, 5000 * scale);
    test_traffic((pair_shape){2, 64, 0}, 5000 * scale, 0);
    test_traffic((pair_shape){4, 65536, INF_VERBS_NO_WINDOWS}, 1500 * scale, 1500 * scale);
    test_traffic((pair_shape){2, 20 << 20, 0}, 10 * scale, 10 * scale); /* long messages */
    rdma_close(&ports);
    printf("ok\n");
    return 0;
}
