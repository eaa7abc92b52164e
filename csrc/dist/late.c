/* Blocks of lanes that are over and whose grants nothing revokes (direct.c, 4): the sender, which
 * may be alive and only late, can still copy into them. So they stay claimed, and the span's close
 * waits, until it cannot. */
#include "dist/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

void inf_land_settle_later(inf_dist *d, const inf_wire_move *ask) {
    inf_late *late = malloc(sizeof *late);
    uint64_t until = inf_now() + INF_GRANTED_NS;
    if (late == NULL) {
        uint32_t landed;
        struct timespec rest = {.tv_sec = INF_GRANTED_NS / 1000000000};
        while (nanosleep(&rest, &rest) != 0 && errno == EINTR) {
        }
        inf_span_settle(d, ask, INF_EPEER, &landed);
        return;
    }
    pthread_mutex_lock(&d->span_lock);
    *late = (inf_late){.ask = *ask, .until_ns = until, .next = d->late};
    d->late = late;
    pthread_mutex_unlock(&d->span_lock);
}

void inf_land_settle_late(inf_dist *d, bool all) {
    uint64_t now = inf_now();
    for (;;) {
        pthread_mutex_lock(&d->span_lock);
        inf_late **at = &d->late;
        while (*at != NULL && !all && (*at)->until_ns > now) {
            at = &(*at)->next;
        }
        inf_late *due = *at;
        if (due != NULL) {
            *at = due->next;
        }
        pthread_mutex_unlock(&d->span_lock);
        if (due == NULL) {
            return;
        }
        uint32_t landed;
        inf_span_settle(d, &due->ask, INF_EPEER, &landed);
        free(due);
    }
}
