/* A call that takes long, and is held up by a test: what goes on beside it? */
#ifndef INF_TESTS_HELD_H
#define INF_TESTS_HELD_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <time.h>

#include "check.h"

typedef struct held_call {
    sem_t there, go;
    atomic_bool late; /* it went on by itself: what was to go on beside it had waited for it */
    pthread_t alarm;
} held_call;

static inline void held_open(held_call *h) {
    CHECK(sem_init(&h->there, 0, 0) == 0 && sem_init(&h->go, 0, 0) == 0);
}

/* The call itself. */
static inline void held_here(held_call *h) {
    CHECK(sem_post(&h->there) == 0 && sem_wait(&h->go) == 0);
}

/* Waits until the call is there. */
static inline void held_await(held_call *h) { CHECK(sem_wait(&h->there) == 0); }

static inline void *held_alarm(void *arg) {
    held_call *h = arg;
    nanosleep(&(struct timespec){3, 0}, NULL);
    atomic_store(&h->late, true);
    CHECK(sem_post(&h->go) == 0);
    return NULL;
}

/* The call goes on after a while; held_end waits for that. */
static inline void held_begin(held_call *h) {
    atomic_store(&h->late, false);
    CHECK(pthread_create(&h->alarm, NULL, held_alarm, h) == 0);
}
static inline void held_end(held_call *h) { CHECK(pthread_join(h->alarm, NULL) == 0); }

#endif
