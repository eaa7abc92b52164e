/* Waves: hosted spans whose blocks are filled by steps that run here, and that are read layer by
 * layer meanwhile.
 *
 *   step thread     appends K and V of layer l | there[l] = tokens | wakes the server, if it waits
 *   query server    a message over tokens of layer l: there[l] says enough? answer : keep (serve.c)
 *
 * Three counts say what may be read:
 *  - there[l], per layer: local tokens of the request whose K and V of layer l are in the pool. The
 *    step thread stores it after they are, the server loads it before they are read.
 *  - full: what was there in all layers before the step that holds the wave; the next step begins
 *    at it, so no step writes to what was published.
 *  - landed of a span (spans.c) takes over at the wave's close, in whole blocks of full.
 *
 * Nothing wrong is published: what depends on a partial that was not merged comes after the failure
 * in the step's order, and from a request's failure on nothing of it is. What was published in the
 * layers before stays right, but is taken back all the same, since nobody can finish with it: all
 * there[l] become full again.
 *
 * The step thread takes span_lock when a step begins and ends and when a wave fails, never per
 * layer. That a message is not forgotten between the server's look and its sleep is the order of
 * two pairs: the server writes wanted[l] and then reads there[l]; the step thread writes there[l]
 * and then reads wanted[l]; all four sequentially consistent. Who clears wanted wakes the server
 * afterwards, which looks at all that it keeps, and so a clear that meets a newer wish loses
 * nothing. */
#include "dist/internal.h"

#include <stdlib.h>
#include <string.h>

int inf_waves_alloc(inf_dist *d) {
    size_t layers = (size_t)d->layers;
    for (int i = 0; i < INF_MAX_WAVES; i++) {
        d->waves[i].there = calloc(layers, sizeof *d->waves[i].there);
        d->waves[i].wanted = calloc(layers, sizeof *d->waves[i].wanted);
        if (d->waves[i].there == NULL || d->waves[i].wanted == NULL) {
            return INF_ENOMEM;
        }
    }
    return INF_OK;
}

void inf_waves_free(inf_dist *d) {
    for (int i = 0; i < INF_MAX_WAVES; i++) {
        free(d->waves[i].there);
        free(d->waves[i].wanted);
        free(d->waves[i].blocks);
    }
}

inf_wave *inf_wave_of(inf_dist *d, uint32_t wave) {
    bool known = wave >= 1 && wave <= INF_MAX_WAVES && d->waves[wave - 1].open;
    return known ? &d->waves[wave - 1] : NULL;
}

static bool agrees(const inf_wave *w, const int32_t *blocks, uint32_t n) {
    uint32_t both = n < w->n_blocks ? n : w->n_blocks;
    return memcmp(blocks, w->blocks, both * sizeof *blocks) == 0;
}

bool inf_wave_agree(inf_wave *w, const int32_t *blocks, uint32_t n) {
    if (!agrees(w, blocks, n)) {
        return false;
    }
    if (n > w->n_blocks) {
        memcpy(w->blocks + w->n_blocks, blocks + w->n_blocks, (n - w->n_blocks) * sizeof *blocks);
        w->n_blocks = n;
    }
    return true;
}

/* Everything that the wave had when the step began, in every layer. span_lock is held. */
static void set_all(const inf_dist *d, inf_wave *w) {
    for (int32_t l = 0; l < d->layers; l++) {
        atomic_store(&w->there[l], w->full);
        atomic_store(&w->wanted[l], 0);
    }
}

/* ---- opening and closing ---- */

/* Why no wave can be here, NULL if one can. */
static const char *cannot(const inf_dist *d) {
    if ((d->config.model_flags & INF_MODEL_NO_WEIGHTS) != 0) {
        return "this device runs no steps";
    }
    if (d->backend->host_memory == 0 || d->backend->ranks > 1) {
        return "K and V of a layer are not in this host's memory once it was asked for";
    }
    for (int32_t l = 0; l < d->layers; l++) {
        if (d->windows[l] > 0) {
            return "the model has layers with a window";
        }
    }
    return NULL;
}

int inf_dist_wave_open(inf_dist *d, uint32_t wave, uint64_t patience_ns, inf_err *err) {
    if (wave < 1 || wave > INF_MAX_WAVES || patience_ns > INT64_MAX) {
        return inf_dist_error(err, INF_EINVAL, -1,
                              "cannot open wave %u of 1 to %d, with a patience of %llu ns", wave,
                              (int)INF_MAX_WAVES, (unsigned long long)patience_ns);
    }
    const char *why = cannot(d);
    if (why != NULL) {
        return inf_dist_error(err, INF_EUNSUPPORTED, -1, "cannot open a wave: %s", why);
    }
    inf_wave *w = &d->waves[wave - 1];
    int32_t *blocks = calloc((size_t)d->num_blocks, sizeof *blocks), *unused = blocks;
    if (blocks == NULL) {
        return inf_dist_error(err, INF_ENOMEM, -1, "cannot open wave %u: no memory", wave);
    }
    pthread_mutex_lock(&d->span_lock);
    bool open = w->open;
    if (!open) {
        unused = w->blocks; /* of the number's last one */
        w->blocks = blocks;
        w->n_blocks = w->full = 0;
        w->patience_ns = patience_ns;
        w->begun = w->held = false;
        w->open = true;
        atomic_store(&w->failed, false);
        set_all(d, w);
    }
    pthread_mutex_unlock(&d->span_lock);
    free(unused);
    return open ? inf_dist_error(err, INF_EINVAL, -1, "cannot open wave %u: it is open", wave)
                : INF_OK;
}

/* The wave's spans become shared ones of what is full. span_lock is held. */
static void settle_spans(inf_dist *d, uint32_t wave, uint32_t full) {
    uint32_t blocks = full / (uint32_t)d->kv.block_size;
    for (uint32_t i = 0; i < d->max_spans; i++) {
        inf_span *s = &d->span[i];
        if (s->wave == wave) {
            s->wave = 0;
            s->landed = blocks < (uint32_t)s->n_blocks ? blocks : (uint32_t)s->n_blocks;
            memset(s->state, INF_BLOCK_LANDED, s->landed);
        }
    }
}

int inf_dist_wave_close(inf_dist *d, uint32_t wave, inf_err *err) {
    const char *why = "it is not open";
    pthread_mutex_lock(&d->span_lock);
    inf_wave *w = inf_wave_of(d, wave);
    bool over = w != NULL && !w->held;
    if (over) {
        settle_spans(d, wave, w->full);
        w->open = false;
    } else if (w != NULL) {
        why = "a step with it is under way";
    }
    pthread_mutex_unlock(&d->span_lock);
    if (!over) {
        return inf_dist_error(err, INF_EINVAL, -1, "cannot close wave %u: %s", wave, why);
    }
    inf_dist_wake(d->server.wake);
    return INF_OK;
}

/* ---- the query server ---- */

int inf_wave_reach(inf_dist *d, const inf_span *s, uint32_t tokens, uint32_t layer,
                   inf_wait *wait) {
    inf_wave *w = &d->waves[s->wave - 1];
    if (atomic_load(&w->there[layer]) >= tokens) {
        return INF_OK;
    }
    if (atomic_load(&w->failed)) {
        return INF_ESTALE;
    }
    uint64_t now = inf_now(), since = wait->since_ns != 0 ? wait->since_ns : now;
    uint64_t until = since + w->patience_ns;
    if (now >= until) {
        return INF_ESTALE;
    }
    uint32_t wanted = atomic_load(&w->wanted[layer]);
    atomic_store(&w->wanted[layer], wanted == 0 || tokens < wanted ? tokens : wanted);
    if (atomic_load(&w->there[layer]) >= tokens) { /* since the first look */
        return INF_OK;
    }
    wait->since_ns = since;
    wait->until_ns = wait->until_ns == 0 || until < wait->until_ns ? until : wait->until_ns;
    return INF_AGAIN;
}

/* ---- steps ---- */

/* Nothing more of it is published. span_lock is held. */
static void fail(inf_dist *d, inf_wave *w) {
    atomic_store(&w->failed, true);
    set_all(d, w);
    inf_dist_wake(d->server.wake);
}

/* Why the request cannot go on where its wave ends, NULL if it can. span_lock is held. */
static const char *check(inf_dist *d, const inf_step_buffers *s, uint32_t i) {
    const inf_step_seq *q = &s->seqs[i];
    const inf_wave *w = inf_wave_of(d, q->wave);
    uint32_t before = q->pos0 - q->local_pos0;
    if (w == NULL) {
        return "it is not open";
    }
    for (uint32_t k = 0; k < i; k++) {
        if (s->seqs[k].wave == q->wave) {
            return "another request of the step has it";
        }
    }
    if (w->begun && (atomic_load(&w->failed) ? before < w->full : before != w->full)) {
        return "its tokens do not follow those that are there";
    }
    return agrees(w, s->blocks + q->block_off, q->n_blocks) ? NULL : "its blocks are others";
}

/* The step is the wave's until it ends. span_lock is held. */
static void hold(inf_dist *d, const inf_step_buffers *s, uint32_t i) {
    const inf_step_seq *q = &s->seqs[i];
    inf_wave *w = inf_wave_of(d, q->wave);
    (void)inf_wave_agree(w, s->blocks + q->block_off, q->n_blocks);
    w->held = true;
    if (!w->begun) { /* what lies before the wave's first token is there as it is */
        w->begun = true;
        w->full = q->pos0 - q->local_pos0;
        set_all(d, w);
        inf_dist_wake(d->server.wake);
    }
}

/* Is any request of a wave? Most steps have none, and take no lock. */
static bool has_waves(const inf_step_buffers *s) {
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        if (s->seqs[i].wave != 0) {
            return true;
        }
    }
    return false;
}

int inf_dist_waves_begin(inf_dist *d, const inf_step_buffers *s, inf_err *err) {
    const char *why = NULL;
    uint32_t bad = 0;
    if (!has_waves(s)) {
        return INF_OK;
    }
    pthread_mutex_lock(&d->span_lock);
    for (uint32_t i = 0; why == NULL && i < s->head->n_seqs; i++) {
        why = s->seqs[i].wave != 0 ? check(d, s, i) : NULL;
        bad = i;
    }
    for (uint32_t i = 0; why == NULL && i < s->head->n_seqs; i++) {
        if (s->seqs[i].wave != 0) {
            hold(d, s, i);
        }
    }
    pthread_mutex_unlock(&d->span_lock);
    return why == NULL
               ? INF_OK
               : inf_dist_error(err, INF_EINVAL, -1, "request %u: it cannot go on with wave %u: %s",
                                bad, s->seqs[bad].wave, why);
}

/* One request's rows of the layer. True: the server waits for them. */
static bool publish(inf_wave *w, const inf_step_seq *q, int32_t layer) {
    uint32_t tokens = q->pos0 + q->n_tokens - q->local_pos0;
    atomic_store(&w->there[layer], tokens);
    uint32_t wanted = atomic_load(&w->wanted[layer]);
    if (wanted == 0 || wanted > tokens) {
        return false;
    }
    atomic_store(&w->wanted[layer], 0);
    return true;
}

void inf_dist_waves_there(inf_dist *d, const inf_step_buffers *s, int32_t layer) {
    bool awaited = false;
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *q = &s->seqs[i];
        if (q->wave == 0) {
            continue;
        }
        inf_wave *w = &d->waves[q->wave - 1];
        if (atomic_load(&w->failed)) {
            continue;
        }
        if (s->seq_out[i].status == INF_OK) {
            awaited = publish(w, q, layer) || awaited;
        } else { /* from here on its K and V are of partials that did not come */
            pthread_mutex_lock(&d->span_lock);
            fail(d, w);
            pthread_mutex_unlock(&d->span_lock);
        }
    }
    if (awaited) {
        inf_dist_wake(d->server.wake);
    }
}

void inf_dist_waves_end(inf_dist *d, const inf_step_buffers *s, int status) {
    if (!has_waves(s)) {
        return;
    }
    pthread_mutex_lock(&d->span_lock);
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *q = &s->seqs[i];
        if (q->wave == 0) {
            continue;
        }
        inf_wave *w = &d->waves[q->wave - 1];
        w->held = false;
        if (atomic_load(&w->failed)) {
            continue;
        }
        if (status == INF_OK && s->seq_out[i].status == INF_OK) {
            w->full = q->pos0 + q->n_tokens - q->local_pos0;
        } else {
            fail(d, w);
        }
    }
    pthread_mutex_unlock(&d->span_lock);
}
