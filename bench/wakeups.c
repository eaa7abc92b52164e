/* What sleeps and wake-ups cost between two instances of a host: a round trip over shared memory as
 * a layer of a step has it, 16 KiB each way, WORK_US at the other end, PAUSE_US until the next one,
 * with both ends asleep while they wait and with both awake (infinite/link.h). In turns, in one
 * run; it wants two CPUs. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench/link_pair.h"
#include "csrc/runtime/clock.h"

enum { BYTES = 16 << 10, WORK_US = 30, PAUSE_US = 120, ROUNDS = 2000, TURNS = 5 };

static const int64_t SECOND = 1000000000;

static void work(int64_t us) {
    for (int64_t end = inf_now() + us * 1000; inf_now() < end;) {
    }
}

static void must(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "wakeups: cannot %s\n", what);
        exit(1);
    }
}

typedef struct end {
    inf_link *link;
    int64_t awake_ns;
} end;

/* Waits for a message; 0: the link is over. */
static int take(const end *e, const void **msg, uint64_t *bytes) {
    int status;
    while ((status = inf_link_poll(e->link, msg, bytes)) == INF_AGAIN) {
        (void)inf_link_wait_awake(&e->link, 1, -1, SECOND, e->awake_ns);
    }
    return status == INF_OK;
}

static void give(const end *e, uint64_t bytes) {
    void *slot;
    must(inf_link_prepare(e->link, &slot) == INF_OK, "prepare a message");
    must(inf_link_post(e->link, bytes) == INF_OK, "post it");
}

static void *answer(void *arg) {
    const end *e = arg;
    const void *msg;
    uint64_t bytes;
    while (take(e, &msg, &bytes)) {
        work(WORK_US);
        give(e, bytes);
        inf_link_release(e->link);
    }
    return NULL;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The median round trip, in microseconds. */
static double round_trip(int64_t awake_ns) {
    static double us[ROUNDS];
    end home = {NULL, awake_ns}, creditor = {NULL, awake_ns};
    pthread_t thread;
    must(link_pair(BYTES, &home.link, &creditor.link), "open a link");
    must(pthread_create(&thread, NULL, answer, &creditor) == 0, "start a thread");
    for (int i = 0; i < ROUNDS; i++) {
        const void *msg;
        uint64_t bytes;
        work(PAUSE_US);
        int64_t begun = inf_now();
        give(&home, BYTES);
        must(take(&home, &msg, &bytes), "take an answer");
        us[i] = 1e-3 * (double)(inf_now() - begun);
        inf_link_release(home.link);
    }
    inf_link_close(home.link);
    must(pthread_join(thread, NULL) == 0, "end a thread");
    inf_link_close(creditor.link);
    qsort(us, ROUNDS, sizeof *us, compare);
    return us[ROUNDS / 2];
}

int main(void) {
    double asleep[TURNS], awake[TURNS];
    for (int i = 0; i < TURNS; i++) {
        asleep[i] = round_trip(0);
        awake[i] = round_trip(SECOND / 1000);
    }
    qsort(asleep, TURNS, sizeof *asleep, compare);
    qsort(awake, TURNS, sizeof *awake, compare);
    printf("round trip of %d KiB over shm, %d us of work at the other end, every %d us: asleep "
           "%.1f us (%.1f to %.1f), awake %.1f us (%.1f to %.1f), %.2f of it\n",
           BYTES >> 10, WORK_US, PAUSE_US + WORK_US, asleep[TURNS / 2], asleep[0],
           asleep[TURNS - 1], awake[TURNS / 2], awake[0], awake[TURNS - 1],
           awake[TURNS / 2] / asleep[TURNS / 2]);
    return 0;
}
