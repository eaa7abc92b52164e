/* Sampling against the plain reference, and what it reports and refuses. */
#include "tests/sampling_reference.h"

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
        CHECK(sample_row(slot, x, V, (uint64_t)i, -1, 0, NULL, &out) == INF_OK, "step %d", i);
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
        CHECK(sample_row(slot, x, MAX_VOCAB, 0, target, n_top, NULL, &out) == INF_OK, "row");
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
    CHECK(sample_row(slot, few, 3, 0, 0, 20, NULL, &out) == INF_OK, "row");
    CHECK(out.n_top == 3 && out.top_ids[0] == 1 && out.top_ids[2] == 0, "%u", out.n_top);
    inf_slot_free(slot);
}

static int32_t draw(const inf_sampling *s, const float *x, int32_t vocab, uint64_t position) {
    inf_row_out out;
    inf_slot *slot = open_slot(&(request){.s = *s}, vocab);
    CHECK(sample_row(slot, x, vocab, position, -1, 0, NULL, &out) == INF_OK, "row");
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
            CHECK(sample_row(slot, x, 3, 0, -1, 3, NULL, &out) == INF_ENOTFINITE, "sampled");
            CHECK(out.token == -1, "%d", out.token);
            CHECK(sample_row(slot, x, 3, 0, 1, 3, NULL, &out) == INF_ENOTFINITE, "target");
            inf_slot_free(slot);
        }
    }
    const int32_t id = 1;
    const float huge = 3e38f;
    float x[3] = {0, 3e38f, 2};
    inf_row_out out;
    inf_slot *slot = open_slot(&(request){.s = s, .bias_ids = &id, .bias = &huge, .n_bias = 1}, 3);
    CHECK(sample_row(slot, x, 3, 0, -1, 0, NULL, &out) == INF_ENOTFINITE, "overflow by bias");
    inf_slot_free(slot);
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
    test_refusals();
    puts("sampling: ok");
    return 0;
}
