/* Sampling against a plain reference in double: the reference sorts everything and builds the whole
 * distribution; the frequencies of many draws must fit it, and nothing outside it may ever be
 * drawn. */
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
        CHECK(inf_sample_row(slot, logits, vocab, i, -1, 0, r->mask, &scratch, &out) == INF_OK,
              "%s", name);
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

static void test_distributions(void) {
    static float x[MAX_VOCAB];
    const int32_t text[] = {3, 3, 5, 9, 5, 5, 11, 3}, ids[] = {2, 9, 40};
    const float bias[] = {3, -2, 1.5f};
    struct {
        const char *name;
        inf_sampling s;
    } cases[] = {
        {"plain", {.temperature = 1, .top_p = 1, .repetition = 1, .seed = 1}},
        {"cold", {.temperature = 0.4f, .top_p = 1, .repetition = 1, .seed = 2}},
        {"hot", {.temperature = 2.5f, .top_p = 1, .repetition = 1, .seed = 3}},
        {"top_k", {.temperature = 1, .top_p = 1, .repetition = 1, .top_k = 7, .seed = 4}},
        {"top_p", {.temperature = 1, .top_p = 0.6f, .repetition = 1, .seed = 5}},
        {"top_p tiny", {.temperature = 1, .top_p = 0.01f, .repetition = 1, .seed = 6}},
        {"min_p", {.temperature = 0.8f, .top_p = 1, .min_p = 0.2f, .repetition = 1, .seed = 7}},
        {"k and p", {.temperature = 1, .top_p = 0.7f, .repetition = 1, .top_k = 9, .seed = 8}},
        {"all cuts",
         {.temperature = 1.3f,
          .top_p = 0.9f,
          .min_p = 0.05f,
          .repetition = 1,
          .top_k = 30,
          .seed = 9}},
        {"repetition", {.temperature = 1, .top_p = 1, .repetition = 1.7f, .seed = 10}},
        {"presence", {.temperature = 1, .top_p = 1, .repetition = 1, .presence = 1.1f, .seed = 11}},
        {"frequency",
         {.temperature = 1, .top_p = 1, .repetition = 1, .frequency = 0.7f, .seed = 12}},
        {"everything",
         {.temperature = 0.9f,
          .top_p = 0.95f,
          .min_p = 0.01f,
          .repetition = 1.2f,
          .presence = 0.4f,
          .frequency = -0.3f,
          .top_k = 25,
          .seed = 13}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        random_logits(x, 50, 6);
        request r = {cases[i].s, text, 8, 4, ids, bias, i % 2 == 0 ? 3 : 0, NULL};
        check_frequencies(cases[i].name, &r, x, 50);
    }
    random_logits(x, MAX_VOCAB, 20);
    request wide = {{.temperature = 1, .top_p = 0.8f, .repetition = 1, .seed = 21},
                    NULL,
                    0,
                    0,
                    NULL,
                    NULL,
                    0,
                    NULL};
    check_frequencies("wide top_p", &wide, x, MAX_VOCAB);
    wide.s = (inf_sampling){.temperature = 1, .top_p = 1, .repetition = 1, .top_k = 40, .seed = 22};
    check_frequencies("wide top_k", &wide, x, MAX_VOCAB);
}

/* Greedy with penalties over a running text: each token equals the reference's, which recounts. */
static void test_greedy_counts(void) {
    enum { V = 20, STEPS = 60 };
    int32_t text[4 + STEPS] = {1, 2, 3, 1};
    float x[V];
    random_logits(x, V, 4);
    request r = {
        {.temperature = 0, .top_p = 1, .repetition = 1.3f, .presence = 0.2f, .frequency = 0.15f},
        text,
        4,
        4,
        NULL,
        NULL,
        0,
        NULL};
    inf_slot *slot = open_slot(&r, V);
    int seen[V] = {0}, kinds = 0;
    for (int i = 0; i < STEPS; i++) {
        double y[V];
        inf_row_out out;
        reference_logits(&r, x, V, y);
        int best = 0;
        for (int v = 1; v < V; v++) {
            best = y[v] > y[best] ? v : best;
        }
        CHECK(inf_sample_row(slot, x, V, (uint64_t)i, -1, 0, NULL, &scratch, &out) == INF_OK,
              "step %d", i);
        CHECK(fabs(y[out.token] - y[best]) < 1e-5, "step %d: %d for %d", i, out.token, best);
        text[r.n_text++] = out.token;
        kinds += seen[out.token]++ == 0;
    }
    CHECK(kinds > 3, "the penalties changed nothing");
    inf_slot_free(slot);
}

static void test_logprobs(void) {
    static float x[MAX_VOCAB];
    static int32_t order[MAX_VOCAB];
    static double y[MAX_VOCAB];
    random_logits(x, MAX_VOCAB, 30);
    x[10] = x[20] = x[30] = 16; /* ties at the top */
    double sum = 0;
    for (int32_t i = 0; i < MAX_VOCAB; i++) {
        y[i] = (double)x[i];
        order[i] = i;
        sum += exp(y[i]);
    }
    order_by = y;
    qsort(order, MAX_VOCAB, sizeof(order[0]), descending);
    inf_slot *slot = open_slot(&(request){.s = PLAIN}, MAX_VOCAB);
    for (int32_t i = 0; i < MAX_VOCAB; i += 37) {
        inf_row_out out;
        uint32_t n_top = (uint32_t)i % (INF_MAX_TOP + 1);
        int32_t target = order[i];
        CHECK(inf_sample_row(slot, x, MAX_VOCAB, 0, target, n_top, NULL, &scratch, &out) == INF_OK,
              "row");
        CHECK(out.token == target, "%d", out.token);
        CHECK(fabs((double)out.logprob - (y[target] - log(sum))) < 1e-5, "%g", (double)out.logprob);
        int rank = 1;
        for (int32_t v = 0; v < MAX_VOCAB; v++) {
            rank += y[v] > y[target];
        }
        CHECK(out.rank == rank, "%d for %d", out.rank, rank);
        CHECK(out.n_top == n_top, "%u", out.n_top);
        for (uint32_t k = 0; k < n_top; k++) {
            CHECK(out.top_ids[k] == order[k], "top %u: %d for %d", k, out.top_ids[k], order[k]);
            CHECK(fabs((double)out.top_logprobs[k] - (y[order[k]] - log(sum))) < 1e-5, "top %u", k);
        }
    }
    inf_slot_free(slot);
    inf_row_out out;
    float few[3] = {0, 2, 1};
    slot = open_slot(&(request){.s = PLAIN}, 3);
    CHECK(inf_sample_row(slot, few, 3, 0, 0, 20, NULL, &scratch, &out) == INF_OK, "row");
    CHECK(out.n_top == 3 && out.top_ids[0] == 1 && out.top_ids[2] == 0, "%u", out.n_top);
    inf_slot_free(slot);
}

static int32_t draw(const inf_sampling *s, const float *x, int32_t vocab, uint64_t position) {
    inf_row_out out;
    inf_slot *slot = open_slot(&(request){.s = *s}, vocab);
    CHECK(inf_sample_row(slot, x, vocab, position, -1, 0, NULL, &scratch, &out) == INF_OK, "row");
    inf_slot_free(slot);
    return out.token;
}

static void test_determinism_and_ties(void) {
    float x[64];
    random_logits(x, 64, 1);
    inf_sampling s = PLAIN, other = PLAIN;
    other.seed = 8;
    int by_position = 0, by_seed = 0;
    for (uint64_t p = 0; p < 200; p++) {
        CHECK(draw(&s, x, 64, p) == draw(&s, x, 64, p), "position %d", (int)p);
        by_position += draw(&s, x, 64, p) != draw(&s, x, 64, p + 1);
        by_seed += draw(&s, x, 64, p) != draw(&other, x, 64, p);
    }
    CHECK(by_position > 150 && by_seed > 150, "%d %d", by_position, by_seed);
    for (int i = 0; i < 64; i++) {
        x[i] = i == 17 || i == 40 ? 1.0f : 0.0f;
    }
    s.temperature = 0;
    CHECK(draw(&s, x, 64, 0) == 17, "greedy takes the lowest id of a tie");
    s = PLAIN;
    s.temperature = 1e-7f;
    CHECK(draw(&s, x, 64, 3) == 17, "a tiny temperature is greedy");
    s = PLAIN;
    s.top_k = 3;
    for (uint64_t p = 0; p < 100; p++) {
        int32_t t = draw(&s, x, 64, p);
        CHECK(t == 17 || t == 40 || t == 0, "top_k keeps the lowest ids of a tie, not %d", t);
    }
    double sum = 0;
    for (uint64_t p = 0; p < 10000; p++) {
        double u = inf_sample_uniform(99, p);
        CHECK(u >= 0 && u < 1, "%g", u);
        sum += u;
    }
    CHECK(fabs(sum / 10000 - 0.5) < 0.02, "%g", sum);
}

/* Logits that no distribution has: an error, never a crash or a token. */
static void test_not_finite(void) {
    const float bad[] = {NAN, INFINITY, -INFINITY};
    inf_sampling s = PLAIN;
    for (int i = 0; i < 3; i++) {
        for (int at = 0; at < 3; at++) {
            float x[3] = {0, 1, 2};
            x[at] = bad[i];
            inf_row_out out;
            inf_slot *slot = open_slot(&(request){.s = s}, 3);
            CHECK(inf_sample_row(slot, x, 3, 0, -1, 3, NULL, &scratch, &out) == INF_EIO, "sampled");
            CHECK(out.token == -1, "%d", out.token);
            CHECK(inf_sample_row(slot, x, 3, 0, 1, 3, NULL, &scratch, &out) == INF_EIO, "target");
            inf_slot_free(slot);
        }
    }
    const int32_t id = 1;
    const float huge = 3e38f;
    float x[3] = {0, 3e38f, 2};
    inf_row_out out;
    inf_slot *slot = open_slot(&(request){.s = s, .bias_ids = &id, .bias = &huge, .n_bias = 1}, 3);
    CHECK(inf_sample_row(slot, x, 3, 0, -1, 0, NULL, &scratch, &out) == INF_EIO,
          "overflow by bias");
    inf_slot_free(slot);
}

/* Masks beside everything else; what is reported of the token is of the model's distribution. */
static void test_masks(void) {
    enum { V = 200 };
    static uint32_t every[(V + 31) / 32], one[(V + 31) / 32];
    static float x[V];
    random_logits(x, V, 8);
    for (int32_t i = 0; i < V; i += 3) {
        every[i / 32] |= 1u << (i % 32);
    }
    every[V / 32] |= UINT32_MAX << (V % 32); /* behind the vocabulary: nothing */
    one[150 / 32] = 1u << (150 % 32);
    const int32_t text[] = {3, 6, 6, 9}, ids[] = {0, 1};
    const float bias[] = {2, 100};
    request r = {.s = PLAIN, .mask = every};
    check_frequencies("a mask", &r, x, V);
    r.s.top_p = 0.8f;
    check_frequencies("a mask and top_p", &r, x, V);
    r.s.top_k = 100; /* more than there are */
    check_frequencies("a mask, top_p and top_k", &r, x, V);
    r.s.top_p = 1, r.s.top_k = 0, r.s.min_p = 0.02f, r.s.temperature = 1.5f;
    check_frequencies("a mask and min_p", &r, x, V);
    r = (request){PLAIN, text, 4, 1, ids, bias, 2, every};
    r.s.presence = 0.5f, r.s.repetition = 1.2f;
    check_frequencies("a mask, bias and penalties", &r, x, V);
    r = (request){.s = PLAIN, .mask = one};
    inf_slot *slot = open_slot(&r, V), *greedy = NULL;
    r.s.temperature = 0;
    greedy = open_slot(&r, V);
    for (int i = 0; i < 2; i++) {
        inf_row_out out, told;
        inf_slot *s = i == 0 ? slot : greedy;
        CHECK(inf_sample_row(s, x, V, 7, -1, 3, one, &scratch, &out) == INF_OK, "row");
        CHECK(inf_sample_row(s, x, V, 7, 150, 3, NULL, &scratch, &told) == INF_OK, "row");
        CHECK(out.token == 150 && memcmp(&out, &told, sizeof out) == 0, "token %d", out.token);
    }
    inf_slot_free(slot);
    inf_slot_free(greedy);
}

static void refused(inf_sampling s, const int32_t *text, int n, int prompt, int32_t id, float bias,
                    int n_bias) {
    inf_slot *slot = NULL;
    inf_err err = {0};
    int status = inf_slot_new(&s, text, n, prompt, &id, &bias, n_bias, 10, &slot, &err);
    CHECK(status == INF_EINVAL && slot == NULL && err.message[0] != 0, "status %d", status);
}

static void test_refusals(void) {
    const int32_t good[] = {1, 2}, high[] = {1, 10}, low[] = {-1, 2};
#define REFUSED(field, value)                                                                      \
    do {                                                                                           \
        inf_sampling s_ = PLAIN;                                                                   \
        s_.field = (value);                                                                        \
        refused(s_, good, 2, 1, 0, 0, 0);                                                          \
    } while (0)
    REFUSED(temperature, -0.1f);
    REFUSED(temperature, NAN);
    REFUSED(temperature, INFINITY);
    REFUSED(top_p, 0);
    REFUSED(top_p, 1.01f);
    REFUSED(top_p, NAN);
    REFUSED(min_p, -0.1f);
    REFUSED(min_p, 1);
    REFUSED(repetition, 0);
    REFUSED(repetition, INFINITY);
    REFUSED(presence, NAN);
    REFUSED(frequency, -INFINITY);
    REFUSED(top_k, -1);
    refused(PLAIN, high, 2, 1, 0, 0, 0);
    refused(PLAIN, low, 2, 1, 0, 0, 0);
    refused(PLAIN, good, 2, 3, 0, 0, 0);
    refused(PLAIN, good, -1, 0, 0, 0, 0);
    refused(PLAIN, NULL, 2, 1, 0, 0, 0);
    refused(PLAIN, good, 2, 1, 10, 0, 1);
    refused(PLAIN, good, 2, 1, -1, 0, 1);
    refused(PLAIN, good, 2, 1, 1, NAN, 1);
    refused(PLAIN, good, 2, 1, 1, 0, INF_MAX_BIAS + 1);
}

int main(void) {
    test_distributions();
    test_greedy_counts();
    test_logprobs();
    test_determinism_and_ties();
    test_not_finite();
    test_masks();
    test_refusals();
    puts("sampling: ok");
    return 0;
}
