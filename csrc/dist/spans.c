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
    uint8_t *state = realloc(s->state, (size_t)capacity); /* looked at under the lock alone */
    s->state = state != NULL ? state : s->state;
    int32_t *blocks = malloc((size_t)capacity * sizeof *blocks);
    inf_retired *old = s->blocks != NULL && s->users > 0 ? malloc(sizeof *old) : NULL;
    if (state == NULL || blocks == NULL || (s->blocks != NULL && s->users > 0 && old == NULL)) {
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

/* shared: the blocks hold their KV already. They are opened at once and stay as they are: what has
 * landed is never claimed for writing. */
static int set(inf_dist *d, inf_span *s, uint32_t owner, uint32_t generation, const int32_t *blocks,
               int32_t n, bool shared) {
    while (!s->open && s->users > 0) { /* its close is about to return */
        pthread_cond_wait(&d->span_free, &d->span_lock);
    }
    bool same = matches(s, owner, generation);
    if (!same && s->generation != 0 && (int32_t)(generation - s->generation) <= 0) {
        return INF_ESTALE; /* generations grow, so a late message never meets a new span */
    }
    if (s->open && (!same || shared)) {
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
    memset(s->state + s->n_blocks, shared ? INF_BLOCK_LANDED : INF_BLOCK_EMPTY,
           (size_t)(n - s->n_blocks));
    s->n_blocks = n;
    s->landed = shared ? (uint32_t)n : s->landed;
    return INF_OK;
}

static int span_set(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                    const int32_t *blocks, int32_t n_blocks, bool shared, inf_err *err) {
    if (handle >= d->max_spans || n_blocks < 1 || n_blocks > d->num_blocks || generation == 0) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)owner, "span %u.%u of %d blocks", handle,
                              generation, n_blocks);
    }
    pthread_mutex_lock(&d->span_lock);
    int status = set(d, &d->span[handle], owner, generation, blocks, n_blocks, shared);
    pthread_mutex_unlock(&d->span_lock);
    return status == INF_OK
               ? INF_OK
               : inf_dist_error(err, status, (int32_t)owner, "cannot open or extend span %u.%u",
                                handle, generation);
}

int inf_dist_span_set(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                      const int32_t *blocks, int32_t n_blocks, inf_err *err) {
    return span_set(d, owner, handle, generation, blocks, n_blocks, false, err);
}

int inf_dist_span_share(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                        const int32_t *blocks, int32_t n_blocks, inf_err *err) {
    return span_set(d, owner, handle, generation, blocks, n_blocks, true, err);
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

static void put(inf_dist *d, uint32_t handle) {
    if (--d->span[handle].users == 0) {
        pthread_cond_broadcast(&d->span_free);
    }
}

void inf_span_put(inf_dist *d, uint32_t handle) {
    pthread_mutex_lock(&d->span_lock);
    put(d, handle);
    pthread_mutex_unlock(&d->span_lock);
}

static int claim(inf_span *s, uint32_t first, uint32_t n) {
    uint32_t blocks = (uint32_t)s->n_blocks, landed = 0;
    if (first > blocks || n > blocks - first) {
        return INF_ESTALE;
    }
    for (uint32_t i = first; i < first + n; i++) {
        if (s->state[i] == INF_BLOCK_CLAIMED) {
            return INF_AGAIN;
        }
        landed += s->state[i] == INF_BLOCK_LANDED;
    }
    if (landed > 0) {
        return landed == n ? INF_EFULL : INF_ESTALE;
    }
    memset(s->state + first, INF_BLOCK_CLAIMED, n);
    return INF_OK;
}

int inf_span_claim(inf_dist *d, uint32_t owner, const inf_wire_move *m, const int32_t **blocks,
                   uint32_t *landed) {
    *landed = 0;
    if (m->handle >= d->max_spans) {
        return INF_ESTALE;
    }
    inf_span *s = &d->span[m->handle];
    int status = INF_ESTALE;
    pthread_mutex_lock(&d->span_lock);
    if (matches(s, owner, m->generation)) {
        *landed = s->landed;
        status = claim(s, m->first, m->n);
    }
    if (status == INF_OK) {
        s->users++;
        *blocks = s->blocks;
    }
    pthread_mutex_unlock(&d->span_lock);
    return status;
}

int inf_span_settle(inf_dist *d, const inf_wire_move *m, int status, uint32_t *landed) {
    inf_span *s = &d->span[m->handle];
    pthread_mutex_lock(&d->span_lock);
    memset(s->state + m->first, status == INF_OK ? INF_BLOCK_LANDED : INF_BLOCK_EMPTY, m->n);
    while (s->landed < (uint32_t)s->n_blocks && s->state[s->landed] == INF_BLOCK_LANDED) {
        s->landed++;
    }
    *landed = s->landed;
    bool over = !s->open;
    put(d, m->handle);
    pthread_mutex_unlock(&d->span_lock);
    return status == INF_OK && over ? INF_ESTALE : status;
}
