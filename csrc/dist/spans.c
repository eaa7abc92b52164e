/* Hosted spans: which blocks of this pool hold which owner's tokens, and how many have landed. */
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

static bool matches(const inf_span *s, uint32_t owner, uint32_t generation) {
    return s->open && s->owner == owner && s->generation == generation;
}

/* Gives the span a list of at least n blocks. Readers may hold the old list, so it is kept. */
static int reserve(inf_dist *d, inf_span *s, int32_t n) {
    if (n <= s->capacity) {
        return INF_OK;
    }
    int32_t capacity = s->capacity * 2 > n ? s->capacity * 2 : n;
    int32_t *blocks = malloc((size_t)capacity * sizeof *blocks);
    inf_retired *old = s->blocks != NULL && s->users > 0 ? malloc(sizeof *old) : NULL;
    if (blocks == NULL || (s->blocks != NULL && s->users > 0 && old == NULL)) {
        free(blocks);
        free(old);
        return INF_ENOMEM;
    }
    if (s->blocks != NULL) {
        memcpy(blocks, s->blocks, (size_t)s->n_blocks * sizeof *blocks);
    }
    if (old != NULL) {
        *old = (inf_retired){d->retired, s->blocks};
        d->retired = old;
    } else {
        free(s->blocks);
    }
    s->blocks = blocks;
    s->capacity = capacity;
    return INF_OK;
}

static int set(inf_dist *d, inf_span *s, uint32_t owner, uint32_t generation, const int32_t *blocks,
               int32_t n) {
    while (!s->open && s->users > 0) { /* its close is about to return */
        pthread_cond_wait(&d->span_free, &d->span_lock);
    }
    bool same = matches(s, owner, generation);
    if (!same && s->generation != 0 && (int32_t)(generation - s->generation) <= 0) {
        return INF_ESTALE; /* generations grow, so a late message never meets a new span */
    }
    if (s->open && !same) {
        return INF_EINVAL;
    }
    if (same &&
        (n < s->n_blocks || memcmp(blocks, s->blocks, (size_t)s->n_blocks * sizeof *blocks) != 0)) {
        return INF_EINVAL;
    }
    int status = reserve(d, s, n);
    if (status != INF_OK) {
        return status;
    }
    if (!same) {
        s->open = true;
        s->owner = owner;
        s->generation = generation;
        s->landed = 0;
        s->n_blocks = 0;
    }
    memcpy(s->blocks + s->n_blocks, blocks + s->n_blocks,
           (size_t)(n - s->n_blocks) * sizeof *blocks);
    s->n_blocks = n;
    return INF_OK;
}

int inf_dist_span_set(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                      const int32_t *blocks, int32_t n_blocks, inf_err *err) {
    if (handle >= d->max_spans || n_blocks < 1 || n_blocks > d->num_blocks || generation == 0) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)owner, "span %u.%u of %d blocks", handle,
                              generation, n_blocks);
    }
    pthread_mutex_lock(&d->span_lock);
    int status = set(d, &d->span[handle], owner, generation, blocks, n_blocks);
    pthread_mutex_unlock(&d->span_lock);
    return status == INF_OK
               ? INF_OK
               : inf_dist_error(err, status, (int32_t)owner, "cannot open or extend span %u.%u",
                                handle, generation);
}

int inf_dist_span_close(inf_dist *d, uint32_t handle, uint32_t generation, inf_err *err) {
    if (handle >= d->max_spans) {
        return inf_dist_error(err, INF_EINVAL, -1, "no span handle %u", handle);
    }
    inf_span *s = &d->span[handle];
    pthread_mutex_lock(&d->span_lock);
    bool known = s->open && s->generation == generation;
    if (known) {
        s->open = false; /* nobody new gets it; those who have it finish one message's work */
        while (s->users > 0) {
            pthread_cond_wait(&d->span_free, &d->span_lock);
        }
    }
    pthread_mutex_unlock(&d->span_lock);
    return known
               ? INF_OK
               : inf_dist_error(err, INF_ESTALE, -1, "span %u.%u is not open", handle, generation);
}

int inf_span_get(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                 const int32_t **blocks, int32_t *n_blocks, uint32_t *landed) {
    if (handle >= d->max_spans) {
        return INF_ESTALE;
    }
    inf_span *s = &d->span[handle];
    int status = INF_ESTALE;
    pthread_mutex_lock(&d->span_lock);
    if (matches(s, owner, generation)) {
        s->users++;
        *blocks = s->blocks;
        *n_blocks = s->n_blocks;
        *landed = s->landed;
        status = INF_OK;
    }
    pthread_mutex_unlock(&d->span_lock);
    return status;
}

void inf_span_put(inf_dist *d, uint32_t handle) {
    pthread_mutex_lock(&d->span_lock);
    if (--d->span[handle].users == 0) {
        pthread_cond_broadcast(&d->span_free);
    }
    pthread_mutex_unlock(&d->span_lock);
}

void inf_span_land(inf_dist *d, uint32_t handle, uint32_t landed) {
    pthread_mutex_lock(&d->span_lock);
    d->span[handle].landed = landed;
    pthread_mutex_unlock(&d->span_lock);
}
