/* A step as two steps, the halves of its rows: while one of them waits for others' partials the
 * other is computed, and the creditors compute for the one meanwhile (model/layers.c). */
#ifndef INF_MODEL_HALVES_H
#define INF_MODEL_HALVES_H

#include "infinite/device.h"
#include "kernels/backend.h"

typedef struct inf_halves {
    inf_step_buffers step[INF_HALVES];
    inf_step_head head[INF_HALVES];
    inf_step_seq *seqs; /* [max_seqs + 1], of the first half and then of the second */
} inf_halves;

/* Cuts a step, whose lists and outputs the halves share but for what depends on their rows: the
 * second one's tokens, and both ones' requests, which are in their order; one that goes over the
 * cut is in both. Rows of logits are the whole step's: a half has none. 0: it has 16 rows at most,
 * and is not cut. */
int inf_halves_cut(inf_halves *h, const inf_step_buffers *step);

#endif
