/* Round trips and bandwidth of a verbs link between two processes, to be set against perftest's
 * ib_write_lat and ib_write_bw on the same ports.
 *
 *   bench_verbs lat BYTES ROUNDS    both ends poll; the median and mean of whole round trips, in us
 *   bench_verbs wait BYTES ROUNDS   both ends sleep between messages
 *   bench_verbs bw BYTES MESSAGES   one direction, MiB/s
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
        printf("%llu bytes, round trip: median %.2f us, mean %.2f us, 99%% %.2f us\n",
               (unsigned long long)len, took[rounds / 2], sum / rounds, took[rounds * 99 / 100]);
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

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: bench_verbs lat|wait|bw BYTES COUNT\n");
        return 2;
    }
    const char *mode = argv[1];
    uint64_t len = strtoull(argv[2], NULL, 10);
    int count = atoi(argv[3]), s[2];
    bool bw = strcmp(mode, "bw") == 0;
    CHECK(count > 0);
    pair_shape shape = {bw ? 16 : 2, (len + 63) / 64 * 64, 0};
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
    if (bw)
        bandwidth(link, client, len, count);
    else
        latency(link, client, len, count, strcmp(mode, "wait") == 0);
    inf_link_close(link);
    rdma_close(&ports);
    if (client)
        waitpid(child, NULL, 0);
    return 0;
}
