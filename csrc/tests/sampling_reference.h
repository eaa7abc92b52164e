/* What sampling is held against: a plain reference in double, which sorts everything and builds the
 * whole distribution; the frequencies of many draws must fit it, and nothing outside it may ever be
 * drawn. */
#ifndef INF_TESTS_SAMPLING_REFERENCE_H
#define INF_TESTS_SAMPLING_REFERENCE_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/sampling.h"
#include "tests/check_says.h"

enum { MAX_VOCAB = 5000 };

static const inf_sampling PLAIN = {.temperature = 1, .top_p = 1, .repetition = 1, .seed = 7};

static uint64_t rng_state = 1;
static double next_uniform(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng_state >> 11) * 0x1p-53;
}

static float adjusted[MAX_VOCAB];
static inf_candidate candidates[MAX_VOCAB];
static const inf_sample_scratch scratch = {adjusted, candidates};

/* A row, and its token counted, as a step with one row does. */
static int sample_row(inf_slot *slot, const float *x, int32_t vocab, uint64_t position,
                      int32_t target, uint32_t n_top, const uint32_t *mask, inf_row_out *out) {
    inf_sample_ask ask = {.position = position, .target = target, .n_top = n_top, .mask = mask};
    int status = inf_sample_row(slot, x, vocab, &ask, &scratch, out);
    if (status == INF_OK && target < 0) {
        inf_slot_count(slot, out->token);
    }
    return status;
}

static void random_logits(float *x, int32_t vocab, float spread) {
    for (int32_t i = 0; i < vocab; i++) {
        x[i] = (float)(next_uniform() - 0.5) * spread;
    }
}

/* A request as the reference sees it. */
typedef struct {
    inf_sampling s;
    const int32_t *text;
    int n_text, n_prompt;
    const int32_t *bias_ids;
    const float *bias;
    int n_bias;
    const uint32_t *mask;
} request;

static inf_slot *open_slot(const request *r, int32_t vocab) {
    inf_slot *slot = NULL;
    inf_err err = {0};
    int status = inf_slot_new(&r->s, r->text, r->n_text, r->n_prompt, r->bias_ids, r->bias,
                              r->n_bias, vocab, &slot, &err);
    CHECK(status == INF_OK, "%s", err.message);
    return slot;
}

static const double *order_by;
static int descending(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (order_by[i] != order_by[j]) {
        return order_by[i] > order_by[j] ? -1 : 1;
    }
    return i < j ? -1 : i > j;
}

/* The adjusted logits: bias, then penalties. */
static void reference_logits(const request *r, const float *logits, int32_t vocab, double *x) {
    for (int32_t i = 0; i < vocab; i++) {
        x[i] = (double)logits[i];
    }
    for (int i = 0; i < r->n_bias; i++) {
        x[r->bias_ids[i]] += (double)r->bias[i];
    }
    for (int32_t v = 0; v < vocab; v++) {
        int in_text = 0, made = 0;
        for (int i = 0; i < r->n_text; i++) {
            in_text |= r->text[i] == v;
            made += i >= r->n_prompt && r->text[i] == v;
        }
        if (in_text) {
            double rep = (double)r->s.repetition;
            x[v] = x[v] > 0 ? x[v] / rep : x[v] * rep;
        }
        x[v] -= (double)r->s.presence * (made > 0) + (double)r->s.frequency * made;
        if (r->mask != NULL && (r->mask[v / 32] >> (v % 32) & 1u) == 0) {
            x[v] = -INFINITY;
        }
    }
}

/* The probability of every token, by the definitions of the header, with a full sort. */
static void reference(const request *r, const float *logits, int32_t vocab, double *p) {
    static double x[MAX_VOCAB];
    static int32_t order[MAX_VOCAB];
    reference_logits(r, logits, vocab, x);
    for (int32_t i = 0; i < vocab; i++) {
        x[i] /= (double)r->s.temperature;
        order[i] = i;
    }
    order_by = x;
    qsort(order, (size_t)vocab, sizeof(order[0]), descending);
    double max = x[order[0]], sum = 0;
    int32_t n = 0;
    while (n < vocab && isfinite(x[order[n]]) && exp(x[order[n]] - max) >= (double)r->s.min_p) {
        n++;
    }
    if (r->s.top_k > 0 && r->s.top_k < n) {
        n = r->s.top_k;
    }
    for (int32_t i = 0; i < n; i++) {
        sum += exp(x[order[i]] - max);
    }
    double mass = 0;
    int32_t kept = 0;
    while (kept < n && (kept == 0 || mass < (double)r->s.top_p * sum)) {
        mass += exp(x[order[kept++]] - max);
    }
    for (int32_t i = 0; i < vocab; i++) {
        p[i] = 0;
    }
    for (int32_t i = 0; i < kept; i++) {
        p[order[i]] = exp(x[order[i]] - max) / mass;
    }
}

/* Draws at many positions and compares the counts with the reference by Pearson's chi-square. Rare
 * tokens share a cell. df + 6 sqrt(2 df) + 20 lies beyond the 1 - 1e-6 quantile for every df. */
static void check_frequencies(const char *name, const request *r, const float *logits,
                              int32_t vocab) {
    enum { DRAWS = 20000 };
    static double p[MAX_VOCAB];
    static int counts[MAX_VOCAB];
    memset(counts, 0, sizeof(counts));
    reference(r, logits, vocab, p);
    int penalties = r->s.repetition != 1 || r->s.presence != 0 || r->s.frequency != 0;
    inf_slot *slot = open_slot(r, vocab);
    for (uint64_t i = 0; i < DRAWS; i++) {
        inf_row_out out;
        if (penalties &&
            i > 0) { /* a draw counts into the slot: start each one from the same text */
            inf_slot_free(slot);
            slot = open_slot(r, vocab);
        }
        CHECK(sample_row(slot, logits, vocab, i, -1, 0, r->mask, &out) == INF_OK, "%s", name);
        CHECK(out.token >= 0 && out.token < vocab && p[out.token] > 0, "%s drew %d", name,
              out.token);
        counts[out.token]++;
    }
    inf_slot_free(slot);
    double chi = 0, rare_p = 0;
    int cells = 0, rare_n = 0;
    for (int32_t v = 0; v < vocab; v++) {
        double expected = p[v] * DRAWS;
        if (expected < 10) {
            rare_p += expected;
            rare_n += counts[v];
            continue;
        }
        chi += (counts[v] - expected) * (counts[v] - expected) / expected;
        cells++;
    }
    if (rare_p >= 1) {
        chi += (rare_n - rare_p) * (rare_n - rare_p) / rare_p;
        cells++;
    }
    double bound = cells + 6 * sqrt(2.0 * cells) + 20;
    CHECK(chi < bound, "%s: chi-square %g over %d cells", name, chi, cells);
}

#endif
