#include "model/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "model/draw.h"
#include "runtime/fail.h"

/* counts[id]: the top bit says that the prompt has the token, the rest how often it was generated.
 */
#define IN_PROMPT 0x80000000u

struct inf_slot {
    inf_sampling sampling;
    uint32_t *counts; /* [vocab], NULL when no penalty is on */
    int32_t n_bias;
    int32_t *bias_ids;
    float *bias;
};

static int check_sampling(const inf_sampling *s, inf_err *err) {
    if (!(isfinite(s->temperature) && s->temperature >= 0)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "temperature must be 0 or more");
    }
    if (!(s->top_p > 0 && s->top_p <= 1)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "top_p must be in (0, 1]");
    }
    if (!(s->min_p >= 0 && s->min_p < 1)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "min_p must be in [0, 1)");
    }
    if (!(isfinite(s->repetition) && s->repetition > 0)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "the repetition penalty must be above 0");
    }
    if (!isfinite(s->presence) || !isfinite(s->frequency)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "presence and frequency penalties must be finite");
    }
    if (s->top_k < 0) {
        return inf_fail(err, INF_EINVAL, -1, -1, "top_k must be 0 or more");
    }
    return INF_OK;
}

static int take_bias(inf_slot *slot, const int32_t *ids, const float *bias, int32_t n,
                     int32_t vocab, inf_err *err) {
    if (n < 0 || n > INF_MAX_BIAS || (n > 0 && (ids == NULL || bias == NULL))) {
        return inf_fail(err, INF_EINVAL, -1, -1, "logit_bias must have 0 to %d entries",
                        INF_MAX_BIAS);
    }
    if (n == 0) {
        return INF_OK;
    }
    slot->bias_ids = malloc((size_t)n * sizeof(*ids));
    slot->bias = malloc((size_t)n * sizeof(*bias));
    if (slot->bias_ids == NULL || slot->bias == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the logit bias");
    }
    for (int32_t i = 0; i < n; i++) {
        if (ids[i] < 0 || ids[i] >= vocab || !isfinite(bias[i])) {
            return inf_fail(err, INF_EINVAL, -1, -1, "logit_bias entry %d is out of range", i);
        }
        slot->bias_ids[i] = ids[i];
        slot->bias[i] = bias[i];
    }
    slot->n_bias = n;
    return INF_OK;
}

static int take_text(inf_slot *slot, const int32_t *tokens, int64_t n, int64_t n_prompt,
                     int32_t vocab, inf_err *err) {
    const inf_sampling *s = &slot->sampling;
    if (n < 0 || n_prompt < 0 || n_prompt > n || (n > 0 && tokens == NULL)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "the slot's text is out of range");
    }
    if (s->repetition != 1 || s->presence != 0 || s->frequency != 0) {
        slot->counts = calloc((size_t)vocab, sizeof(*slot->counts));
        if (slot->counts == NULL) {
            return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the penalty counts");
        }
    }
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= vocab) {
            return inf_fail(err, INF_EINVAL, -1, -1, "token %d is not in the vocabulary",
                            tokens[i]);
        }
        if (slot->counts == NULL) {
            continue;
        }
        if (i < n_prompt) {
            slot->counts[tokens[i]] |= IN_PROMPT;
        } else {
            slot->counts[tokens[i]]++;
        }
    }
    return INF_OK;
}

int inf_slot_new(const inf_sampling *sampling, const int32_t *tokens, int64_t n_tokens,
                 int64_t n_prompt, const int32_t *bias_ids, const float *bias, int32_t n_bias,
                 int32_t vocab, inf_slot **out, inf_err *err) {
    int status = check_sampling(sampling, err);
    if (status != INF_OK) {
        return status;
    }
    inf_slot *slot = calloc(1, sizeof(*slot));
    if (slot == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a sampling slot");
    }
    slot->sampling = *sampling;
    status = take_bias(slot, bias_ids, bias, n_bias, vocab, err);
    if (status == INF_OK) {
        status = take_text(slot, tokens, n_tokens, n_prompt, vocab, err);
    }
    if (status != INF_OK) {
        inf_slot_free(slot);
        return status;
    }
    *out = slot;
    return INF_OK;
}

void inf_slot_free(inf_slot *slot) {
    if (slot == NULL) {
        return;
    }
    free(slot->counts);
    free(slot->bias_ids);
    free(slot->bias);
    free(slot);
}

/* Largest value; 0 in *ok when one is NaN or infinite, that is, has all exponent bits set. */
static float checked_max(const float *x, int32_t n, int *ok) {
    float max = x[0];
    uint32_t bad = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        bad |= (bits & 0x7f800000u) == 0x7f800000u;
        max = x[i] > max ? x[i] : max;
    }
    *ok = bad == 0;
    return max;
}

/* ln sum exp(x), summed in double. */
static double log_sum_exp(const float *x, int32_t n, float max) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        sum += (double)expf(x[i] - max);
    }
    return (double)max + log(sum);
}

/* The n_top largest by insertion: almost every logit fails the first comparison. */
static void top_rows(const float *x, int32_t vocab, double lse, uint32_t n_top, inf_row_out *out) {
    inf_candidate best[INF_MAX_TOP];
    uint32_t n = 0;
    if (n_top > INF_MAX_TOP) {
        n_top = INF_MAX_TOP;
    }
    for (int32_t i = 0; n_top > 0 && i < vocab; i++) {
        if (n == n_top && x[i] <= best[n - 1].value) {
            continue;
        }
        uint32_t at = n < n_top ? n++ : n - 1;
        while (at > 0 && x[i] > best[at - 1].value) {
            best[at] = best[at - 1];
            at--;
        }
        best[at] = (inf_candidate){x[i], i};
    }
    out->n_top = n;
    for (uint32_t i = 0; i < n; i++) {
        out->top_ids[i] = best[i].id;
        out->top_logprobs[i] = (float)((double)best[i].value - lse);
    }
}

/* A logit after the penalties of a token with this count. */
static float penalised(const inf_sampling *s, float y, uint32_t count) {
    if (count == 0) {
        return y;
    }
    uint32_t made = count & ~IN_PROMPT;
    y = y > 0 ? y / s->repetition : y * s->repetition;
    return y - (s->frequency * (float)made + (made > 0 ? s->presence : 0.0f));
}

/* The tokens of the drafts into y, once each, as if the slot had counted them too. */
static void adjust_drafts(const inf_slot *slot, const float *x, const int32_t *drafts, uint32_t n,
                          float *y) {
    for (uint32_t i = 0; i < n; i++) {
        int32_t id = drafts[i];
        uint32_t first = 0, times = 0;
        while (drafts[first] != id) {
            first++;
        }
        for (uint32_t k = first; first == i && k < n; k++) {
            times += drafts[k] == id;
        }
        float biased = x[id];
        for (int32_t k = 0; k < slot->n_bias; k++) {
            biased += slot->bias_ids[k] == id ? slot->bias[k] : 0.0f;
        }
        if (first == i) {
            y[id] = penalised(&slot->sampling, biased, slot->counts[id] + times);
        }
    }
}

/* Bias and penalties into y; returns x itself where the slot has none and y is not asked for. */
static const float *adjust(const inf_slot *slot, const float *x, int32_t vocab,
                           const inf_sample_ask *ask, float *y) {
    if (slot->n_bias == 0 && slot->counts == NULL && ask->mask == NULL) {
        return x;
    }
    memcpy(y, x, (size_t)vocab * sizeof(*y));
    for (int32_t i = 0; i < slot->n_bias; i++) {
        y[slot->bias_ids[i]] += slot->bias[i];
    }
    if (slot->counts == NULL) {
        return y;
    }
    for (int32_t i = 0; i < vocab; i++) {
        y[i] = penalised(&slot->sampling, y[i], slot->counts[i]);
    }
    adjust_drafts(slot, x, ask->drafts, ask->n_drafts, y);
    return y;
}

/* What the mask does not allow becomes -inf. Returns the largest of the rest. */
static float apply_mask(const uint32_t *mask, float *y, int32_t vocab) {
    float max = -INFINITY;
    for (int32_t i = 0; i < vocab; i++) {
        if ((mask[i / 32] >> (i % 32) & 1u) == 0) {
            y[i] = -INFINITY;
        } else if (y[i] > max) {
            max = y[i];
        }
    }
    return max;
}

void inf_slot_count(inf_slot *slot, int32_t token) {
    if (slot->counts != NULL && (slot->counts[token] & ~IN_PROMPT) < ~IN_PROMPT) {
        slot->counts[token]++;
    }
}

int inf_sample_row(const inf_slot *slot, const float *logits, int32_t vocab,
                   const inf_sample_ask *ask, const inf_sample_scratch *scratch, inf_row_out *out) {
    memset(out, 0, sizeof(*out));
    out->token = -1;
    int ok = 0;
    float max = checked_max(logits, vocab, &ok);
    if (!ok) {
        return INF_ENOTFINITE;
    }
    int32_t token = ask->target;
    if (token < 0) {
        const float *x = adjust(slot, logits, vocab, ask, scratch->adjusted);
        float top = x == logits ? max : checked_max(x, vocab, &ok);
        if (!ok) {
            return INF_ENOTFINITE;
        }
        top = ask->mask == NULL ? top : apply_mask(ask->mask, scratch->adjusted, vocab);
        token = inf_draw(&slot->sampling, x, vocab, top, ask->position, scratch->candidates);
    }
    double lse = log_sum_exp(logits, vocab, max);
    int32_t greater = 0;
    for (int32_t i = 0; i < vocab; i++) {
        greater += logits[i] > logits[token];
    }
    out->token = token;
    out->logprob = (float)((double)logits[token] - lse);
    out->rank = greater + 1;
    top_rows(logits, vocab, lse, ask->n_top, out);
    return INF_OK;
}
