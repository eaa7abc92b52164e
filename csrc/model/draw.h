/* From adjusted logits to a token: temperature, min_p, top_k, top_p (model/sampling.h). */
#ifndef INF_MODEL_DRAW_H
#define INF_MODEL_DRAW_H

#include "model/sampling.h"

/* x: [vocab], of which max is the largest; -inf is what a mask dropped. heap: [vocab]. position is
 * that of the token. */
int32_t inf_draw(const inf_sampling *s, const float *x, int32_t vocab, float max, uint64_t position,
                 inf_candidate *heap);

#endif
