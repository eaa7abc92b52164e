#include "kernels/cuda/team.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/clock.h"
#include "runtime/fail.h"

enum { TICKS = 20, LEAVE = TICKS / 4 }; /* of a deadline; ticks that end waits for leave */

struct inf_team {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_cond_t left; /* nobody is between enter and leave any more, or there is a loss */
    pthread_t thread;
    void (*end)(void *arg);
    void *arg;
    int32_t late;
    int64_t deadline_ms;
    _Atomic uint64_t begun, over; /* sums */
    _Atomic uint64_t waits;       /* that have begun or ended */
    atomic_int waiting;
    inf_team_loss loss; /* written once, before `lost` is */
    atomic_int lost;
    int64_t lost_at; /* ns, as loss */
    int stop, gone;  /* under lock; the thread is to end, and has come to its end */
    int used;        /* under lock, not the lock itself: what is used may block, and nothing else
                      * is to wait for that */
};

/* Under the lock: waits for a change, a tick at most; 0: there was none. */
static int wait_tick(inf_team *t, pthread_cond_t *change) {
    int64_t at = inf_now() + t->deadline_ms * 1000000 / TICKS;
    struct timespec until = {(time_t)(at / 1000000000), (long)(at % 1000000000)};
    return pthread_cond_timedwait(change, &t->lock, &until) == 0;
}

/* Under the lock. */
static void lose(inf_team *t, int32_t rank, int32_t status, const char *at, const char *why) {
    if (atomic_load(&t->lost)) {
        return;
    }
    t->loss = (inf_team_loss){.rank = rank, .status = status, .at = at};
    snprintf(t->loss.why, sizeof t->loss.why, "%s", why != NULL ? why : "");
    t->lost_at = inf_now();
    atomic_store(&t->lost, 1);
    (void)pthread_cond_broadcast(&t->changed);
    (void)pthread_cond_broadcast(&t->left);
}

static void lose_late(inf_team *t) {
    char why[160];
    snprintf(why, sizeof why, "cannot end it: no rank went on within %lld ms",
             (long long)t->deadline_ms);
    lose(t, -1, t->late, "the sum over ranks", why);
}

/* Under the lock, after a loss: whoever is between enter and leave has some time for it. */
static void await_leave(inf_team *t) {
    for (int ticks = 0; t->used && ticks < LEAVE;) {
        ticks += !wait_tick(t, &t->left);
    }
}

/* Ticks are counted, not time: a process that was stopped has missed none. */
static void *keep(void *arg) {
    inf_team *t = arg;
    uint64_t seen = 0;
    int ticks = 0;
    pthread_mutex_lock(&t->lock);
    while (!t->stop && !atomic_load(&t->lost)) {
        if (wait_tick(t, &t->changed)) {
            continue;
        }
        uint64_t begun = atomic_load(&t->begun), moves = begun + atomic_load(&t->waits);
        int busy = atomic_load(&t->over) < begun || atomic_load(&t->waiting) > 0;
        ticks = busy && moves == seen ? ticks + 1 : 0;
        seen = moves;
        if (ticks >= TICKS) {
            lose_late(t);
        }
    }
    if (atomic_load(&t->lost)) {
        await_leave(t);
        pthread_mutex_unlock(&t->lock);
        t->end(t->arg); /* beside whoever does not leave: only this may let him */
        pthread_mutex_lock(&t->lock);
    }
    t->gone = 1;
    (void)pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* Signals are the host program's: none is delivered to the thread. */
static int start(inf_team *t) {
    sigset_t all, old;
    sigfillset(&all);
    int masked = pthread_sigmask(SIG_SETMASK, &all, &old) == 0;
    int started = pthread_create(&t->thread, NULL, keep, t) == 0;
    if (masked) {
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    return started;
}

static int init_locks(inf_team *t) {
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0) {
        return 0;
    }
    int ok = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0 &&
             pthread_cond_init(&t->changed, &attr) == 0;
    if (ok && pthread_cond_init(&t->left, &attr) != 0) {
        (void)pthread_cond_destroy(&t->changed);
        ok = 0;
    }
    (void)pthread_condattr_destroy(&attr);
    if (ok && pthread_mutex_init(&t->lock, NULL) != 0) {
        (void)pthread_cond_destroy(&t->changed);
        (void)pthread_cond_destroy(&t->left);
        ok = 0;
    }
    return ok;
}

static void drop(inf_team *t) {
    (void)pthread_cond_destroy(&t->changed);
    (void)pthread_cond_destroy(&t->left);
    (void)pthread_mutex_destroy(&t->lock);
    free(t);
}

int inf_team_open(void (*end)(void *arg), void *arg, int32_t late, inf_team **out, inf_err *err) {
    const char *asked = getenv(INF_TEAM_DEADLINE);
    long long ms = asked != NULL ? strtoll(asked, NULL, 10) : 0;
    inf_team *t = calloc(1, sizeof *t);
    *out = NULL;
    if (t == NULL || !init_locks(t)) {
        free(t);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the sum over ranks");
    }
    t->end = end;
    t->arg = arg;
    t->late = late;
    t->deadline_ms = ms > 0 && ms <= INT32_MAX ? ms : INF_TEAM_DEADLINE_MS;
    if (!start(t)) {
        drop(t);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot start a thread for the sum over ranks");
    }
    *out = t;
    return INF_OK;
}

int inf_team_enter(inf_team *t) {
    pthread_mutex_lock(&t->lock);
    while (t->used && !atomic_load(&t->lost)) {
        (void)pthread_cond_wait(&t->left, &t->lock);
    }
    int may = !atomic_load(&t->lost);
    t->used |= may;
    pthread_mutex_unlock(&t->lock);
    return may;
}

void inf_team_leave(inf_team *t) {
    pthread_mutex_lock(&t->lock);
    t->used = 0;
    (void)pthread_cond_broadcast(&t->left);
    pthread_mutex_unlock(&t->lock);
}

void inf_team_begin(inf_team *t) { atomic_fetch_add(&t->begun, 1); }

uint64_t inf_team_wait(inf_team *t) {
    atomic_fetch_add(&t->waiting, 1);
    atomic_fetch_add(&t->waits, 1);
    return atomic_load(&t->begun);
}

void inf_team_waited(inf_team *t, uint64_t begun) {
    uint64_t over = atomic_load(&t->over);
    while (over < begun && !atomic_compare_exchange_weak(&t->over, &over, begun)) {
    }
    atomic_fetch_add(&t->waits, 1);
    atomic_fetch_sub(&t->waiting, 1);
}

void inf_team_lose(inf_team *t, int32_t rank, int32_t status, const char *at, const char *why) {
    if (!atomic_load(&t->lost)) {
        pthread_mutex_lock(&t->lock);
        lose(t, rank, status, at, why);
        pthread_mutex_unlock(&t->lock);
    }
}

const inf_team_loss *inf_team_lost(inf_team *t) { return atomic_load(&t->lost) ? &t->loss : NULL; }

int inf_team_given_up(inf_team *t) {
    return atomic_load(&t->lost) && inf_now() - t->lost_at > t->deadline_ms * 1000000;
}

int inf_team_close(inf_team *t) {
    if (t == NULL) {
        return 1;
    }
    pthread_mutex_lock(&t->lock);
    t->stop = 1;
    (void)pthread_cond_broadcast(&t->changed);
    while (!t->gone && !inf_team_given_up(t)) {
        (void)wait_tick(t, &t->changed);
    }
    int gone = t->gone;
    pthread_mutex_unlock(&t->lock);
    if (!gone) {
        (void)pthread_detach(t->thread);
        return 0;
    }
    (void)pthread_join(t->thread, NULL);
    drop(t);
    return 1;
}
