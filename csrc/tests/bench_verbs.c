/* Round trips and bandwidth of a verbs link between two processes, to be set against perftest's
 * ib_write_lat and ib_write_bw on the same ports.
 *
 *   bench_verbs lat BYTES ROUNDS    both ends poll; whole round trips, in us
 *   bench_verbs wait BYTES ROUNDS   both ends sleep between messages
 *   bench_verbs bw BYTES MESSAGES   one direction, MiB/s
 *   bench_verbs put BYTES MESSAGES  likewise by puts of scattered blocks of 16 KiB, each BYTES of
 * them followed by a message
 *
 * ib_write_lat prints half round trips. */
#include "verbs_pair.h"

#include <signal.h>
#include <sys/wait.h>

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void post_next(inf_link *link, uint64_t len, bool sleeps) {
    void *buf;
    int rc;
    while ((rc = inf_link_prepare(link, &buf)) == INF_AGAIN)
        if (sleeps)
            wait_one(link);
    must(link, rc == INF_OK ? inf_link_post(link, len) : rc, __LINE__);
}

static void take_next(inf_link *link, uint64_t len, bool sleeps) {
    const void *msg;
    uint64_t got;
    int rc;
    while ((rc = inf_link_poll(link, &msg, &got)) == INF_AGAIN)
        if (sleeps)
            wait_one(link);
    must(link, rc, __LINE__);
    CHECK(got == len);
    inf_link_release(link);
}

static void latency(inf_link *link, bool client, uint64_t len, int rounds, bool sleeps) {
    int warm = rounds / 10;
    double *took = calloc((size_t)rounds, sizeof *took), sum = 0;
    for (int i = -warm; i < rounds; i++) {
        double begun = now_s();
        if (client)
            post_next(link, len, sleeps);
        take_next(link, len, sleeps);
        if (!client)
            post_next(link, len, sleeps);
        if (i >= 0)
            sum += took[i] = 1e6 * (now_s() - begun);
    }
    qsort(took, (size_t)rounds, sizeof *took, by_value);
    if (client)
        printf(
            "%llu bytes, round trip: median %.2f us, least %.2f us, mean %.2f us, 99%% %.2f us\n",
            (unsigned long long)len, took[rounds / 2], took[0], sum / rounds,
            took[rounds * 99 / 100]);
    free(took);
}

static void bandwidth(inf_link *link, bool client, uint64_t len, int messages) {
    if (!client) {
        for (int i = 0; i < messages; i++)
            take_next(link, len, true);
        post_next(link, 0, true);
        take_next(link, 0, true);
        return;
    }
    double begun = now_s();
    for (int i = 0; i < messages; i++)
        post_next(link, len, true);
    take_next(link, 0, true);
    double took = now_s() - begun;
    post_next(link, 0, true);
    printf("%llu bytes, one direction: %.2f MiB/s\n", (unsigned long long)len,
           (double)len * messages / took / (1 << 20));
}

enum { PUT_BLOCK = 16384 };

/* The sender's blocks lie in reverse order, so that every one is a piece of its own. */
static void put_all(inf_link *link, const inf_grant *grant, uint64_t bytes) {
    for (uint64_t at = 0; at < bytes;) {
        inf_put puts[INF_PUT_MAX];
        uint32_t n = 0;
        for (; n < INF_PUT_MAX && at < bytes; n++, at += PUT_BLOCK)
            puts[n] = (inf_put){bytes - PUT_BLOCK - at, grant->address + at, grant->key, PUT_BLOCK};
        int rc;
        while ((rc = inf_link_put(link, puts, n)) == INF_AGAIN)
            wait_one(link);
        must(link, rc, __LINE__);
    }
}

static void puts_bandwidth(inf_link *link, bool client, inf_verbs_device *device, uint64_t bytes,
                           int messages) {
    inf_err err;
    inf_grant grant;
    inf_region *region;
    uint8_t *pool = aligned_alloc(4096, bytes);
    CHECK(pool && bytes % PUT_BLOCK == 0);
    memset(pool, 1, bytes);
    inf_memory m = {.address = (uint64_t)(uintptr_t)pool, .bytes = bytes, .kind = INF_MEMORY_HOST};
    CHECK_OK(inf_region_open(device, &m, &region, &err));
    must(link, inf_link_use_region(link, region), __LINE__);
    if (!client) {
        void *buf;
        must(link, inf_link_grant(link, 0, bytes, &grant), __LINE__);
        must(link, inf_link_prepare(link, &buf), __LINE__);
        memcpy(buf, &grant, sizeof grant);
        must(link, inf_link_post(link, sizeof grant), __LINE__);
        for (int i = 0; i < messages; i++)
            take_next(link, 8, true);
        post_next(link, 0, true);
    } else {
        const void *msg;
        uint64_t len;
        while (inf_link_poll(link, &msg, &len) == INF_AGAIN)
            wait_one(link);
        memcpy(&grant, msg, sizeof grant);
        inf_link_release(link);
        must(link, inf_link_put_limit(link, UINT64_C(16) << 20), __LINE__);
        double begun = now_s();
        for (int i = 0; i < messages; i++) {
            put_all(link, &grant, bytes);
            post_next(link, 8, true);
        }
        take_next(link, 0, true);
        printf("%llu bytes by puts, one direction: %.2f MiB/s\n", (unsigned long long)bytes,
               (double)bytes * messages / (now_s() - begun) / (1 << 20));
    }
    inf_link_close(link);
    CHECK_OK(inf_region_close(region));
    free(pool);
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: bench_verbs lat|wait|bw|put BYTES COUNT\n");
        return 2;
    }
    const char *mode = argv[1];
    uint64_t len = strtoull(argv[2], NULL, 10);
    int count = atoi(argv[3]), s[2];
    bool bw = strcmp(mode, "bw") == 0, puts = strcmp(mode, "put") == 0;
    CHECK(count > 0);
    pair_shape shape = {bw || puts ? 16 : 2, puts ? 64 : (len + 63) / 64 * 64, 0};
    shape.slot_bytes = shape.slot_bytes ? shape.slot_bytes : 64;
    rdma_ports ports;
    rdma_find_or_skip(&ports);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    bool client = child > 0;
    int side = client ? 0 : 1;
    close(s[1 - side]);
    rdma_open(&ports);
    inf_link *link = join_link(&ports, side, shape, s[side]);
    if (puts) {
        puts_bandwidth(link, client, ports.device[side], len, count);
        link = NULL;
    } else if (bw) {
        bandwidth(link, client, len, count);
    } else {
        latency(link, client, len, count, strcmp(mode, "wait") == 0);
    }
    inf_link_close(link);
    rdma_close(&ports);
    if (client)
        waitpid(child, NULL, 0);
    return 0;
}
