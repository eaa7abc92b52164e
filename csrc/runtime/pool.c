/* The thread pool.
 *
 * The whole state of a loop is one 64-bit word, `cursor`: the loop's number in the upper half, the
 * count of unclaimed indexes in the lower. A thread claims an index by a compare-and-swap that
 * lowers the count. A worker that slept through several loops therefore cannot claim from a loop
 * with the task of another:
 *
 *   1. it loads the cursor (acquire), reads task and arg, and swaps the cursor;
 *   2. task and arg change only between loops, when the count is 0;
 *   3. the swap succeeds only if number and count are unchanged and the count is not 0, hence the
 * loop was the same from 1 on and the task read is its own.
 *
 * `pending` counts the calls that have not returned. A thread subtracts what it executed once, when
 * it finds nothing more to claim; so a loop of many small tasks costs one swap per task. The thread
 * that brings it to 0 wakes the caller if the caller sleeps.
 *
 * Sleeping uses a mutex and condition variables. The words tested before sleeping (`cursor`,
 * `pending`) and the counts tested before waking (`sleepers`, `caller_sleeps`) are sequentially
 * consistent: the sleeper announces itself and then tests, the waker changes the word and then
 * looks for sleepers. */
#include "runtime/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "infinite/status.h"
#include "kernels/kernels.h"
#include "runtime/vigil.h"

/* Looks before sleeping: about 5 microseconds, what a sleep and a wake-up cost where CPUs are not
 * virtual and not deep asleep themselves. */
enum { SPINS = 150, CACHE_LINE = 64 };

typedef struct worker {
    pthread_t id;
    inf_pool *pool;
    int32_t thread;
} worker;

struct inf_pool {
    _Alignas(CACHE_LINE) _Atomic uint64_t cursor;
    _Atomic(inf_task) task;
    _Atomic(void *) arg;
    _Alignas(CACHE_LINE) _Atomic int32_t pending;
    _Alignas(CACHE_LINE) _Atomic int32_t sleepers;
    _Atomic int32_t caller_sleeps;
    _Atomic int32_t stop;
    _Atomic int64_t awake_ns;
    uint32_t epoch; /* the caller's */
    int32_t threads;
    int32_t started; /* workers that exist */
    void *scratch;   /* NULL with one thread */
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    worker workers[];
};

static uint32_t epoch_of(uint64_t cursor) { return (uint32_t)(cursor >> 32); }
static uint32_t left_of(uint64_t cursor) { return (uint32_t)cursor; }

/* Executes indexes of the current loop until none is unclaimed; returns the cursor then seen. */
static uint64_t work_off(inf_pool *pool, int32_t thread) {
    int32_t executed = 0;
    uint64_t seen = atomic_load_explicit(&pool->cursor, memory_order_acquire);
    while (left_of(seen) != 0) {
        inf_task task = atomic_load_explicit(&pool->task, memory_order_relaxed);
        void *arg = atomic_load_explicit(&pool->arg, memory_order_relaxed);
        if (!atomic_compare_exchange_weak_explicit(&pool->cursor, &seen, seen - 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        task(arg, (int32_t)(left_of(seen) - 1), thread);
        executed++;
        seen = atomic_load_explicit(&pool->cursor, memory_order_acquire);
    }
    /* Until this subtraction the loop cannot end, so everything executed was of one loop. */
    if (executed > 0 && atomic_fetch_sub(&pool->pending, executed) == executed && thread != 0 &&
        atomic_load(&pool->caller_sleeps)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_signal(&pool->done);
        pthread_mutex_unlock(&pool->lock);
    }
    return seen;
}

static int idle(inf_pool *pool, uint32_t epoch) {
    return epoch_of(atomic_load(&pool->cursor)) == epoch && !atomic_load(&pool->stop);
}

/* Whether to look an i-th time rather than sleep. The clock is looked at now and then. */
static int keep_looking(inf_pool *pool, int i, inf_vigil *v) {
    if (i < SPINS)
        return 1;
    if (i == SPINS)
        *v = inf_vigil_begin(atomic_load_explicit(&pool->awake_ns, memory_order_relaxed));
    return v->until > v->seen && (i % 8 != 0 || inf_vigil_goes_on(v));
}

static void *worker_main(void *arg) {
    worker *w = arg;
    inf_pool *pool = w->pool;
    while (!atomic_load(&pool->stop)) {
        uint32_t epoch = epoch_of(work_off(pool, w->thread));
        inf_vigil v = {0, 0};
        for (int i = 0; idle(pool, epoch) && keep_looking(pool, i, &v); i++)
            inf_cpu_relax();
        if (!idle(pool, epoch))
            continue;
        pthread_mutex_lock(&pool->lock);
        atomic_fetch_add(&pool->sleepers, 1);
        while (idle(pool, epoch))
            pthread_cond_wait(&pool->work, &pool->lock);
        atomic_fetch_sub(&pool->sleepers, 1);
        pthread_mutex_unlock(&pool->lock);
    }
    return NULL;
}

static int start_workers(inf_pool *pool) {
    /* Signals are the host program's: none is delivered to a worker. */
    sigset_t all, old;
    sigfillset(&all);
    int masked = pthread_sigmask(SIG_SETMASK, &all, &old) == 0;
    int status = INF_OK;
    for (int32_t i = 0; i < pool->threads - 1; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->thread = i + 1;
        if (pthread_create(&w->id, NULL, worker_main, w) != 0) {
            status = INF_ENOMEM;
            break;
        }
        pool->started++;
    }
    if (masked)
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    return status;
}

int inf_pool_open(int32_t threads, inf_pool **out) {
    *out = NULL;
    if (threads < 1 || threads > INF_POOL_MAX_THREADS)
        return INF_EINVAL;
    size_t bytes = sizeof(inf_pool) + (size_t)threads * sizeof(worker);
    bytes = (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    inf_pool *pool = aligned_alloc(CACHE_LINE, bytes);
    if (pool == NULL)
        return INF_ENOMEM;
    atomic_init(&pool->cursor, 0);
    atomic_init(&pool->task, NULL);
    atomic_init(&pool->arg, NULL);
    atomic_init(&pool->pending, 0);
    atomic_init(&pool->sleepers, 0);
    atomic_init(&pool->caller_sleeps, 0);
    atomic_init(&pool->stop, 0);
    atomic_init(&pool->awake_ns, 0);
    pool->epoch = 0;
    pool->threads = threads;
    pool->started = 0;
    pool->scratch = threads > 1 ? malloc((size_t)threads * INF_POOL_SCRATCH) : NULL;
    if ((threads > 1 && pool->scratch == NULL) || pthread_mutex_init(&pool->lock, NULL) != 0) {
        free(pool->scratch);
        free(pool);
        return INF_ENOMEM;
    }
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);
    int status = start_workers(pool);
    if (status != INF_OK) {
        inf_pool_close(pool);
        return status;
    }
    *out = pool;
    return INF_OK;
}

void inf_pool_stay_awake(inf_pool *pool, int64_t ns) {
    if (pool != NULL)
        atomic_store(&pool->awake_ns, ns);
}

void *inf_pool_scratch(inf_pool *pool, uint64_t *bytes) {
    int some = pool != NULL && pool->scratch != NULL;
    *bytes = some ? (uint64_t)pool->threads * INF_POOL_SCRATCH : 0;
    return some ? pool->scratch : NULL;
}

int32_t inf_pool_threads(const inf_pool *pool) { return pool == NULL ? 1 : pool->threads; }

static void wake_workers(inf_pool *pool, int32_t useful) {
    int32_t sleepers = atomic_load(&pool->sleepers);
    if (sleepers == 0)
        return;
    pthread_mutex_lock(&pool->lock);
    if (useful >= sleepers)
        pthread_cond_broadcast(&pool->work);
    else
        for (int32_t i = 0; i < useful; i++)
            pthread_cond_signal(&pool->work);
    pthread_mutex_unlock(&pool->lock);
}

void inf_pool_run(inf_pool *pool, inf_task task, void *arg, int32_t n) {
    if (n <= 0)
        return;
    if (pool == NULL || pool->threads == 1 || n == 1) {
        for (int32_t i = 0; i < n; i++)
            task(arg, i, 0);
        return;
    }
    atomic_store_explicit(&pool->task, task, memory_order_relaxed);
    atomic_store_explicit(&pool->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&pool->pending, n, memory_order_relaxed);
    pool->epoch++;
    atomic_store(&pool->cursor, (uint64_t)pool->epoch << 32 | (uint32_t)n);
    wake_workers(pool, n - 1);

    work_off(pool, 0);
    inf_vigil v = {0, 0};
    for (int i = 0; atomic_load(&pool->pending) != 0 && keep_looking(pool, i, &v); i++)
        inf_cpu_relax();
    if (atomic_load(&pool->pending) == 0)
        return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->caller_sleeps, 1);
    while (atomic_load(&pool->pending) != 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->caller_sleeps, 0);
    pthread_mutex_unlock(&pool->lock);
}

void inf_pool_close(inf_pool *pool) {
    if (pool == NULL)
        return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->stop, 1);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 0; i < pool->started; i++)
        pthread_join(pool->workers[i].id, NULL);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->work);
    pthread_mutex_destroy(&pool->lock);
    free(pool->scratch);
    free(pool);
}
