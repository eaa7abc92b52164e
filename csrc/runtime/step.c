/* The step thread. The caller's thread only validates and waits; one thread per device computes,
 * with the pool's help, so that the caller may sleep in wait with a time limit. */
#include <errno.h>
#include <time.h>

#include "runtime/clock.h"
#include "runtime/fail.h"
#include "runtime/runtime.h"
#include "runtime/vigil.h"

enum { AWAKE_FOR_STEP = 16 };

/* Looks for as long as the device's threads stay awake, and timeout_ns at most (-1: no matter)
 * while a step is running, or while none is. A step takes longer than what is between two. */
static void stay_awake(inf_device *d, int running, int64_t timeout_ns) {
    int64_t awake = d->backend->awake_ns, most = running ? AWAKE_FOR_STEP * awake : awake;
    inf_vigil v = inf_vigil_begin(timeout_ns >= 0 && timeout_ns < most ? timeout_ns : most);
    while ((atomic_load(&d->state) == INF_STEP_RUNNING) == running && !atomic_load(&d->quit) &&
           inf_vigil_goes_on(&v)) {
    }
}

static void *step_main(void *arg) {
    inf_device *d = arg;
    for (;;) {
        stay_awake(d, 0, -1);
        pthread_mutex_lock(&d->mutex);
        while (d->state != INF_STEP_RUNNING && !d->quit) {
            pthread_cond_wait(&d->changed, &d->mutex);
        }
        if (d->state != INF_STEP_RUNNING) {
            break;
        }
        pthread_mutex_unlock(&d->mutex);
        uint64_t start = inf_now();
        inf_err err = {0};
        int status = inf_forward_step(d->forward, &d->step, &err);
        /* What shows in work for others is this device's fault all the same. */
        status = status != INF_OK ? status : inf_dist_fault(d->dist, &err);
        inf_dist_waves_end(d->dist, &d->step, status);
        atomic_fetch_add(&d->step_ns, inf_now() - start);
        atomic_fetch_add(&d->steps, 1);
        atomic_fetch_add(&d->tokens, d->step.head->n_tokens);
        pthread_mutex_lock(&d->mutex);
        for (uint32_t i = 0; i < d->step.head->n_seqs; i++) {
            d->slot_marks[d->step.seqs[i].slot] = 0;
        }
        d->state = INF_STEP_DONE;
        if (status != INF_OK) {
            err.code = status;
            d->fault = err;
        }
        pthread_cond_broadcast(&d->changed);
        pthread_mutex_unlock(&d->mutex);
    }
    pthread_mutex_unlock(&d->mutex);
    return NULL;
}

int inf_step_thread_start(inf_device *d, inf_err *err) {
    int error = pthread_create(&d->thread, NULL, step_main, d);
    if (error != 0) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot start the step thread: error %d", error);
    }
    d->thread_started = 1;
    return INF_OK;
}

void inf_step_thread_stop(inf_device *d) {
    if (!d->thread_started) {
        return;
    }
    pthread_mutex_lock(&d->mutex);
    d->quit = 1;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->mutex);
    pthread_join(d->thread, NULL);
    d->thread_started = 0;
}

/* The device's own fault, INF_OK while it works. The mutex is held. */
static int fault_of(const inf_device *d, inf_err *err) {
    if (d->fault.code != INF_OK && err != NULL) {
        *err = d->fault;
    }
    return d->fault.code;
}

int inf_device_submit(inf_device *d, inf_err *err) {
    if (d == NULL || !d->ready || d->forward == NULL) {
        return inf_fail(err, INF_EINVAL, -1, -1, "the device is not ready, or runs no steps");
    }
    pthread_mutex_lock(&d->mutex);
    int status = fault_of(d, err);
    if (status == INF_OK) {
        status = d->state == INF_STEP_IDLE
                     ? inf_validate_step(d, err)
                     : inf_fail(err, INF_EINVAL, -1, -1, "the step before was not waited for");
    }
    if (status == INF_OK) {
        d->state = INF_STEP_RUNNING;
        pthread_cond_broadcast(&d->changed);
    }
    pthread_mutex_unlock(&d->mutex);
    return status;
}

/* The point in time timeout_ns from now; far ahead when negative. */
static struct timespec deadline(int64_t timeout_ns) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t nsec = (int64_t)t.tv_nsec + timeout_ns % 1000000000;
    t.tv_sec += (time_t)(timeout_ns / 1000000000 + nsec / 1000000000);
    t.tv_nsec = (long)(nsec % 1000000000);
    return t;
}

int inf_device_wait(inf_device *d, int64_t timeout_ns, inf_err *err) {
    if (d == NULL || !d->ready) {
        return inf_fail(err, INF_EINVAL, -1, -1, "the device is not ready");
    }
    struct timespec until = deadline(timeout_ns > 0 ? timeout_ns : 0);
    int status = INF_OK, late = 0;
    stay_awake(d, 1, timeout_ns);
    pthread_mutex_lock(&d->mutex);
    while (d->state == INF_STEP_RUNNING && !late) {
        if (timeout_ns < 0) {
            pthread_cond_wait(&d->changed, &d->mutex);
        } else {
            late = pthread_cond_timedwait(&d->changed, &d->mutex, &until) == ETIMEDOUT;
        }
    }
    if (d->state == INF_STEP_DONE) {
        d->state = INF_STEP_IDLE;
        status = fault_of(d, err);
    } else if (d->state == INF_STEP_RUNNING) {
        status = INF_AGAIN;
    } else {
        status = inf_fail(err, INF_EINVAL, -1, -1, "no step is in flight");
    }
    pthread_mutex_unlock(&d->mutex);
    return status;
}
