/* The pool: every index once, visible results, many short loops, few indexes for many threads. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "infinite/status.h"
#include "kernels/kernels.h"
#include "runtime/pool.h"

static int failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition) && failures++ < 20)                                                       \
            printf("%s:%d: %s\n", __func__, __LINE__, #condition);                                 \
    } while (0)

enum { MOST = 1000 };

/* calls is written by whoever executes an index and read by the caller after the run, neither with
 * an atomic: the thread sanitizer proves that the pool orders them. */
typedef struct loop {
    int32_t calls[MOST];
    int32_t round[MOST];
    int32_t this_round, threads;
    atomic_int bad_thread;
} loop;

static void mark(void *arg, int32_t index, int32_t thread) {
    loop *l = arg;
    l->calls[index]++;
    l->round[index] = l->this_round;
    if (thread < 0 || thread >= l->threads)
        atomic_store(&l->bad_thread, 1);
}

/* A second task: an index claimed with the task of another loop would add to the wrong sum. */
typedef struct sums {
    int64_t of[MOST];
} sums;

static void add_square(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    ((sums *)arg)->of[index] += (int64_t)index * index;
}

static void test_threads(int32_t threads, int32_t rounds, int64_t awake_ns) {
    static const int32_t sizes[] = {0, 1, 2, 3, 7, 64, MOST};
    inf_pool *pool = NULL;
    CHECK(inf_pool_open(threads, &pool) == INF_OK);
    CHECK(inf_pool_threads(pool) == threads);
    inf_pool_stay_awake(pool, awake_ns);
    loop *l = calloc(1, sizeof *l);
    sums *s = calloc(1, sizeof *s);
    if (pool == NULL || l == NULL || s == NULL)
        exit(2);
    l->threads = threads;
    int32_t want[MOST] = {0};
    for (int32_t round = 1; round <= rounds; round++) {
        int32_t n = sizes[round % 7];
        l->this_round = round;
        inf_pool_run(pool, mark, l, n);
        inf_pool_run(pool, add_square, s, n);
        for (int32_t i = 0; i < MOST; i++) {
            want[i] += i < n;
            CHECK(l->calls[i] == want[i]);
            CHECK(i >= n || l->round[i] == round);
            CHECK(s->of[i] == (int64_t)i * i * want[i]);
        }
    }
    CHECK(!atomic_load(&l->bad_thread));
    inf_pool_close(pool);
    free(l);
    free(s);
}

/* Long tasks, so that workers and caller sleep in between. */
static void spin(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    volatile uint64_t x = 0;
    for (int32_t i = 0; i < 20000 * (index % 3); i++)
        x = x + 1;
    ((uint64_t *)arg)[index] = x;
}

static void test_uneven(void) {
    inf_pool *pool = NULL;
    CHECK(inf_pool_open(4, &pool) == INF_OK);
    for (int32_t round = 0; round < 100; round++) {
        uint64_t out[10] = {0};
        inf_pool_run(pool, spin, out, 10);
        for (uint64_t i = 0; i < 10; i++)
            CHECK(out[i] == 20000 * (i % 3));
    }
    inf_pool_close(pool);
}

static void test_arguments(void) {
    inf_pool *pool = (inf_pool *)&failures;
    CHECK(inf_pool_open(0, &pool) == INF_EINVAL && pool == NULL);
    CHECK(inf_pool_open(-1, &pool) == INF_EINVAL);
    CHECK(inf_pool_open(INF_POOL_MAX_THREADS + 1, &pool) == INF_EINVAL);
    inf_pool_close(NULL);
    CHECK(inf_pool_threads(NULL) == 1);
    uint64_t out[4] = {9, 9, 9, 9};
    inf_pool_run(NULL, spin, out, 3);
    CHECK(out[0] == 0 && out[1] == 20000 && out[2] == 40000 && out[3] == 9);
    inf_pool_run(NULL, spin, out, -1);
}

int main(void) {
    test_arguments();
    test_threads(1, 50, 0);
    test_threads(2, 2000, 0);
    test_threads(3, 2000, 0);
    test_threads(2, 2000, 50000);
    test_threads(3, 500, 50000);
    test_threads(16, 500, 0);
    for (int32_t i = 0; i < 50; i++) /* open and close without a run, and at once after one */
        test_threads(5, i % 2, i % 3 * 50000);
    test_uneven();
    printf("pool: %s\n", failures == 0 ? "ok" : "FAILED");
    return failures == 0 ? 0 : 1;
}
