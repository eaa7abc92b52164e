/* What the files of the home's step share: home.c has its creditors, ask.c what they are asked,
 * collect.c what they answer. */
#ifndef INF_DIST_HOME_H
#define INF_DIST_HOME_H

#include "dist/internal.h"

/* Fails a request of the step, unless it has failed. */
void inf_step_fail_seq(const inf_step_buffers *s, uint32_t seq, int32_t status, uint32_t peer);
/* Fails all that the target is asked in the step, and its peer. */
void inf_target_fail(inf_dist *d, inf_target *t, int32_t status);
/* What it is asked in this step, or half. */
static inline inf_asked *inf_target_asked(const inf_dist *d, inf_target *t,
                                          const inf_step_buffers *s) {
    return &t->asked[s - d->steps];
}
/* Why the peer cannot be asked, INF_OK while it can. */
int32_t inf_peer_death(inf_peer *p);
/* Gives back the slots that the lane has read, as slots.c, 4, has it. */
void inf_step_release_held(inf_dist *d);

#endif
