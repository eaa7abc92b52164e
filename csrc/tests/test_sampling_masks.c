/* Sampling from the tokens that a mask allows. */
#include "tests/sampling_reference.h"

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
        CHECK(sample_row(s, x, V, 7, -1, 3, one, &out) == INF_OK, "row");
        CHECK(sample_row(s, x, V, 7, 150, 3, NULL, &told) == INF_OK, "row");
        CHECK(out.token == 150 && memcmp(&out, &told, sizeof out) == 0, "token %d", out.token);
    }
    inf_slot_free(slot);
    inf_slot_free(greedy);
}

int main(void) {
    test_masks();
    puts("sampling masks: ok");
    return 0;
}
