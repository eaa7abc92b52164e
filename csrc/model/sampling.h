/* From a row of logits to a token.
 *
 * The order is vLLM's: log probabilities come from the raw logits; then logit bias, repetition
 * penalty (prompt and output), presence and frequency penalties (output), mask, temperature, min_p,
 * top_k, top_p, draw.
 *
 *   bias         x_i += b_i
 *   repetition   x_i = x_i > 0 ? x_i / r : x_i * r       for every token of the text so far
 *   presence     x_i -= a  where i was generated         frequency  x_i -= f * times generated
 *   mask         drops the tokens that it does not allow, as if x_i were -inf
 *   temperature  x_i /= T; T < 1e-5 is greedy: the largest x_i, ties to the lowest id
 *   min_p        drops i with p_i < min_p * max_j p_j
 *   top_k        keeps the k largest, ties to the lower ids
 *   top_p        keeps the shortest run of the largest whose renormalised sum reaches top_p */
#ifndef INF_MODEL_SAMPLING_H
#define INF_MODEL_SAMPLING_H

#include "infinite/device.h"

typedef struct inf_slot inf_slot; /* one request's parameters and the tokens it has used */

/* INF_EINVAL when a parameter, token or bias is out of range. */
int inf_slot_new(const inf_sampling *sampling, const int32_t *tokens, int64_t n_tokens,
                 int64_t n_prompt, const int32_t *bias_ids, const float *bias, int32_t n_bias,
                 int32_t vocab, inf_slot **out, inf_err *err);
void inf_slot_free(inf_slot *slot);

typedef struct inf_candidate {
    float value;
    int32_t id;
} inf_candidate;

/* Memory of one thread that samples: [vocab] each. */
typedef struct inf_sample_scratch {
    float *adjusted;
    inf_candidate *candidates;
} inf_sample_scratch;

/* What is asked of a row of logits. */
typedef struct inf_sample_ask {
    uint64_t position;     /* of the sampled token, one past the row's own */
    int32_t target;        /* < 0: sample; else the token to report */
    uint32_t n_top;        /* 0..INF_MAX_TOP */
    const uint32_t *mask;  /* NULL, or allows a token at least */
    const int32_t *drafts; /* [n_drafts]: what follows the slot's text in front of this row's token:
                              penalties count it as generated */
    uint32_t n_drafts;
} inf_sample_ask;

/* Fills out for one row. rank counts strictly larger logits, plus one. INF_ENOTFINITE when a
 * logit is NaN or infinite before or after the penalties: no token can be chosen, and out says
 * token -1. */
int inf_sample_row(const inf_slot *slot, const float *logits, int32_t vocab,
                   const inf_sample_ask *ask, const inf_sample_scratch *scratch, inf_row_out *out);

/* Counts a token that has become part of the text. */
void inf_slot_count(inf_slot *slot, int32_t token);

/* Uniform in [0, 1), a function of its arguments alone. */
double inf_sample_uniform(uint64_t seed, uint64_t position);

#endif
