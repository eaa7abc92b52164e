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

/* What a span is made of: empty blocks, which moves fill; shared ones, that hold their KV already,
 * so that they are opened at once and stay as they are, since what has landed is never claimed for
 * writing; or, with a wave, ours. */
typedef struct source {
    uint8_t state;
    uint32_t wave;
} source;

static int set(inf_dist *d, inf_span *s, uint32_t owner, uint32_t generation, const int32_t *blocks,
               int32_t n, source from) {
    while (!s->open && s->users > 0) { /* its close is about to return */
        pthread_cond_wait(&d->span_free, &d->span_lock);
    }
    bool same = matches(s, owner, generation);
    if (!same && s->generation != 0 && (int32_t)(generation - s->generation) <= 0) {
        return INF_ESTALE; /* generations grow, so a late message never meets a new span */
    }
    inf_wave *wave = inf_wave_of(d, from.wave);
    if ((s->open && (!same || s->wave != 0 || from.state != INF_BLOCK_EMPTY)) ||
        (from.wave != 0 && wave == NULL)) {
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
    if (wave != NULL && !inf_wave_agree(wave, blocks, (uint32_t)n)) {
        return INF_EINVAL;
    }
    if (!same) {
        s->open = true;
        s->wave = from.wave;
        s->owner = owner;
        s->generation = generation;
        s->landed = 0;
        s->n_blocks = 0;
    }
    memcpy(s->blocks + s->n_blocks, blocks + s->n_blocks,
           (size_t)(n - s->n_blocks) * sizeof *blocks);
    memset(s->state + s->n_blocks, from.state, (size_t)(n - s->n_blocks));
    s->n_blocks = n;
    s->landed = from.state == INF_BLOCK_LANDED ? (uint32_t)n : s->landed;
    return INF_OK;
}

static int span_set(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                    const int32_t *blocks, int32_t n_blocks, source from, inf_err *err) {
    if (handle >= d->max_spans || n_blocks < 1 || n_blocks > d->num_blocks || generation == 0) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)owner, "span %u.%u of %d blocks", handle,
                              generation, n_blocks);
    }
    pthread_mutex_lock(&d->span_lock);
    int status = set(d, &d->span[handle], owner, generation, blocks, n_blocks, from);
    pthread_mutex_unlock(&d->span_lock);
    return status == INF_OK
               ? INF_OK
               : inf_dist_error(err, status, (int32_t)owner, "cannot open or extend span %u.%u",
                                handle, generation);
}

int inf_dist_span_set(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                      const int32_t *blocks, int32_t n_blocks, inf_err *err) {
    source from = {INF_BLOCK_EMPTY, 0};
    return span_set(d, owner, handle, generation, blocks, n_blocks, from, err);
}

int inf_dist_span_share(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                        const int32_t *blocks, int32_t n_blocks, inf_err *err) {
    source from = {INF_BLOCK_LANDED, 0};
    return span_set(d, owner, handle, generation, blocks, n_blocks, from, err);
}

int inf_dist_span_wave(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                       const int32_t *blocks, int32_t n_blocks, uint32_t wave, inf_err *err) {
    source from = {INF_BLOCK_OURS, wave};
    if (wave == 0) {
        return inf_dist_error(err, INF_EINVAL, (int32_t)owner, "cannot open span %u.%u of no wave",
                              handle, generation);
    }
    return span_set(d, owner, handle, generation, blocks, n_blocks, from, err);
}

int inf_dist_span_close(inf_dist *d, uint32_t handle, uint32_t generation, inf_err *err) {
    if (handle >= d->max_spans) {
        return inf_dist_error(err, INF_EINVAL, -1, "no span handle %u", handle);
    }
    inf_span *s = &d->span[handle];
    pthread_mutex_lock(&d->span_lock);
    bool known = s->open && s->generation == generation;
    bool awaited = known && s->wave != 0;
    if (known) {
        s->open = false; /* nobody new gets it; those who have it finish one message's work */
        s->wave = 0;
        while (s->users > 0) {
            pthread_cond_wait(&d->span_free, &d->span_lock);
        }
    }
    pthread_mutex_unlock(&d->span_lock);
    if (awaited) { /* a message may be kept for it */
        inf_dist_wake(d->server.wake);
    }
    return known
               ? INF_OK
               : inf_dist_error(err, INF_ESTALE, -1, "span %u.%u is not open", handle, generation);
}

/* Whether so many tokens of the span can be read. */
static int has(inf_dist *d, const inf_span *s, uint32_t tokens, uint32_t layer, inf_wait *wait) {
    uint32_t blocks = tokens / (uint32_t)d->kv.block_size;
    if (s->wave == 0) {
        return blocks <= s->landed ? INF_OK : INF_ESTALE;
    }
    return blocks <= (uint32_t)s->n_blocks ? inf_wave_reach(d, s, tokens, layer, wait) : INF_ESTALE;
}

int inf_span_get(inf_dist *d, uint32_t owner, const inf_wire_entry *e, uint32_t layer,
                 const int32_t **blocks, inf_wait *wait) {
    if (e->handle >= d->max_spans) {
        return INF_ESTALE;
    }
    inf_span *s = &d->span[e->handle];
    int status = INF_ESTALE;
    pthread_mutex_lock(&d->span_lock);
    if (matches(s, owner, e->generation)) {
        status = has(d, s, e->n_tokens, layer, wait);
    }
    if (status == INF_OK) {
        s->users++;
        *blocks = s->blocks;
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
        if (s->state[i] == INF_BLOCK_OURS) {
            return INF_ESTALE;
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
