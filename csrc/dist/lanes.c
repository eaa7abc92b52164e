/* The lanes of the threads that work for others, and whose fault it is when one fails.
 *
 * A lane keeps its first fault, and others' work goes over it too. So who sees one fail says so,
 * and it is closed and opened anew:
 *
 *  1. It opens: the fault was the work's, or memory was short. What was asked is asked once more,
 *     by itself; who fails again fails alone.
 *  2. It does not, and the backend says INF_EIO: the device is over, and so is all that the
 *     instance does. That is noted once: its next step ends with it, and no peer is taken.
 *  3. It does not for another reason: it is tried again after a while. Blocks wait for that, though
 *     not for ever.
 *
 * After a fault the thread rests, longer if nothing was done since the one before, so that a fault
 * that comes again and again costs little. Whoever has something to ask waits so long, and is
 * refused only by a try; blocks also without, once there was none for HOPE_NS. Where all is well
 * none of this costs more than a comparison. */
#include "dist/internal.h"

#include <stdio.h>

#define REST_NS UINT64_C(10000000)   /* after the first fault */
#define HOPE_NS UINT64_C(3000000000) /* a sender gives a silent peer up after 5 s (send.c) */

enum { MOST_DOUBLINGS = 5 }; /* of the rest: 320 ms */

/* Notes what a lane, or its opening, says. What was said of a device that is over stays. */
static void note(inf_dist *d, bool over, const inf_err *err) {
    pthread_mutex_lock(&d->note_lock);
    if (d->fault.code == INF_OK) {
        snprintf(d->fault.message, sizeof d->fault.message, "%s",
                 err->message[0] != 0 ? err->message : "it does not say why");
        d->fault.instance = d->fault.layer = -1;
        if (over) {
            d->fault.code = INF_EIO;
            atomic_store(&d->over, true);
        }
    }
    pthread_mutex_unlock(&d->note_lock);
}

int inf_dist_fault(inf_dist *d, inf_err *err) {
    if (!atomic_load(&d->over)) {
        return INF_OK;
    }
    if (err != NULL) {
        pthread_mutex_lock(&d->note_lock);
        *err = d->fault;
        pthread_mutex_unlock(&d->note_lock);
    }
    return INF_EIO;
}

void inf_lane_said(inf_dist *d, char *out, uint64_t bytes) {
    pthread_mutex_lock(&d->note_lock);
    snprintf(out, bytes, "%s", d->fault.message);
    pthread_mutex_unlock(&d->note_lock);
}

static void rest(inf_own_lane *l) {
    uint64_t now = inf_now();
    l->since_ns = l->faults == 0 ? now : l->since_ns;
    l->again_ns = now + (REST_NS << (l->faults < MOST_DOUBLINGS ? l->faults : MOST_DOUBLINGS));
    l->faults++;
}

static int open_lane(inf_dist *d, inf_own_lane *l) {
    /* Queries come rotated, so a lane of this kind has no use for frequencies. */
    inf_lane_config c = {.kind = l->kind,
                         .device = &d->config,
                         .kv = d->kv,
                         .pool = d->pool,
                         .windows = d->windows,
                         .scale = d->scale,
                         .threads = l->kind == INF_LANE_ANSWER ? d->workers : NULL,
                         .max_rows = (int32_t)d->max_tokens,
                         .max_segments = (int32_t)d->max_entries,
                         .max_blocks = d->num_blocks};
    inf_err err = {0};
    int status = d->ops->lane_open(d->backend, &c, &l->lane, &err);
    if (status != INF_OK) {
        l->lane = NULL;
        note(d, status == INF_EIO, &err);
    }
    return status;
}

int inf_lane_none(const inf_own_lane *l) {
    return l->faults > 0 && inf_now() - l->since_ns > HOPE_NS ? INF_EIO : INF_ENOMEM;
}

int inf_lane_take(inf_dist *d, inf_own_lane *l) {
    if (l->lane != NULL) {
        return INF_OK;
    }
    if (atomic_load(&d->over)) {
        return INF_EIO;
    }
    if (inf_lane_rests(l) > 0) {
        return inf_lane_none(l);
    }
    int status = open_lane(d, l);
    if (status != INF_OK) {
        rest(l);
    }
    return status == INF_OK || status == INF_EIO ? status : inf_lane_none(l);
}

void inf_lane_failed(inf_dist *d, inf_own_lane *l, const inf_err *err) {
    note(d, false, err); /* so far the device is not over */
    d->ops->lane_close(l->lane);
    l->lane = NULL;
    rest(l);
    (void)open_lane(d, l);
}

int inf_lane_sync(inf_dist *d, inf_own_lane *l) {
    inf_err err = {0};
    int status = d->ops->sync(l->lane, &err);
    if (status != INF_OK) {
        inf_lane_failed(d, l, &err);
        return INF_EIO;
    }
    inf_lane_worked(l);
    return INF_OK;
}

uint64_t inf_lane_rests(const inf_own_lane *l) {
    uint64_t now = l->again_ns != 0 ? inf_now() : 0;
    return l->again_ns > now ? l->again_ns - now : 0;
}

void inf_lane_wait(const inf_own_lane *l, inf_link *const *links, uint32_t n, int wake,
                   int64_t timeout_ns, int64_t spin_ns) {
    uint64_t rests = inf_lane_rests(l);
    if (rests == 0) {
        inf_link_wait_awake(links, n, wake, timeout_ns, spin_ns);
        return;
    }
    /* What is there to be taken stays; what was posted goes on. */
    inf_link_wait(links, n, -1, 0);
    inf_link_wait(NULL, 0, wake, (int64_t)(rests < REST_NS ? rests : REST_NS));
}
