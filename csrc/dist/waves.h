/* Waves: what of a hosted span the steps here have filled so far, layer by layer (waves.c). */
#ifndef INF_DIST_WAVES_H
#define INF_DIST_WAVES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct inf_dist inf_dist;
typedef struct inf_span inf_span;

typedef struct inf_wave {
    /* Guarded by span_lock. */
    bool open;
    bool held;  /* by a step that was submitted */
    bool begun; /* a step was */
    uint64_t patience_ns;
    uint32_t full;   /* tokens that were there in all layers before the step that holds it */
    int32_t *blocks; /* [num_blocks]: the longest list that was named so far */
    uint32_t n_blocks;

    /* Written under span_lock, but read by the step thread without. */
    _Atomic bool failed;

    _Atomic uint32_t *there;  /* [layers] tokens; grows, but for failures */
    _Atomic uint32_t *wanted; /* [layers] the least for which a kept message waits, 0: none does */
} inf_wave;

/* Since when a message waits, and until when at most; both 0: it does not. */
typedef struct inf_wait {
    uint64_t since_ns, until_ns;
} inf_wait;

int inf_waves_alloc(inf_dist *d); /* INF_OK or INF_ENOMEM */
void inf_waves_free(inf_dist *d);

/* What follows is called with span_lock held. */

/* The open wave of that number, or NULL. */
inf_wave *inf_wave_of(inf_dist *d, uint32_t wave);
/* Whether a list may be one of the wave's; it is one from then on. */
bool inf_wave_agree(inf_wave *w, const int32_t *blocks, uint32_t n);
/* Are so many tokens of the span's wave there? INF_OK. INF_AGAIN: not so far; the server is woken
 * when they are, or will not be, and the wait says until when. INF_ESTALE: nobody is to wait. */
int inf_wave_reach(inf_dist *d, const inf_span *s, uint32_t tokens, uint32_t layer, inf_wait *wait);

#endif
