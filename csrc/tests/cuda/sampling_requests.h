/* Rows to sample from, of many kinds: ties, flat rows and rows with a flat part that no list holds,
 * huge numbers, and what is no number. */
#ifndef INF_TESTS_SAMPLING_REQUESTS_H
#define INF_TESTS_SAMPLING_REQUESTS_H

#include "kernels/cuda/sampling.h"
#include "tests/cuda/guarded.h"

#include <algorithm>

enum { MOST_BIAS = 40, MOST_TEXT = 300 };

template <class T, int N> static T one_of(const T (&list)[N]) { return list[below(N)]; }

/* A row and what the CPU makes of it. */
struct request {
    inf_cuda_sample_row row;
    std::vector<float> logits;
    std::vector<int32_t> text, drafts, bias_ids;
    std::vector<float> bias;
    std::vector<uint32_t> mask; /* none: all tokens are allowed */
    int32_t n_prompt;
    inf_row_out want;
    int status;
};

enum logit_kind { SMOOTH, COARSE, FEW, EQUAL, OUTLIER, FLAT, HUGE_NUMBERS, PEAKED, LOGIT_KINDS };

static std::vector<float> some_logits(int32_t vocab) {
    std::vector<float> x(vocab);
    int32_t kind = below(2) > 0 ? SMOOTH : below(LOGIT_KINDS);
    static const float spreads[] = {0.3f, 1.5f, 3.0f, 6.0f, 12.0f};
    float spread = one_of(spreads), shift = number() * 20;
    for (int32_t i = 0; i < vocab; i++) {
        float bell = number() + number() + number(), u = number();
        x[i] = bell * spread + shift;
        x[i] = kind == COARSE ? from_bf16(to_bf16(x[i])) : x[i];
        x[i] = kind == FEW ? (float)below(3) : x[i];
        x[i] = kind == EQUAL ? shift : x[i];
        x[i] = kind == OUTLIER ? shift + 0.01f * u + (i == vocab / 3 ? 9.0f : 0.0f) : x[i];
        x[i] = kind == FLAT ? shift + 0.001f * u : x[i];
        x[i] = kind == HUGE_NUMBERS ? u * (below(2) ? 3e38f : 1e20f) : x[i];
        x[i] = kind == PEAKED ? bell * 3 - (float)(i % 97) * (float)(i % 97) : x[i];
    }
    if (below(5) == 0) { /* signs of zero */
        for (int32_t i = 0; i < 3; i++) {
            x[below(vocab)] = below(2) ? 0.0f : -0.0f;
        }
    }
    if (below(25) == 0) {
        static const float bad[] = {NAN, INFINITY, -INFINITY};
        x[below(vocab)] = one_of(bad);
    }
    return x;
}

static inf_cuda_sample_row some_row(int32_t vocab) {
    static const float temperatures[] = {0, 1e-6f, 0.1f, 0.5f, 0.7f, 1, 1, 1, 1.3f, 3, 50};
    static const float top_ps[] = {1, 1, 1, 0.95f, 0.9f, 0.5f, 0.1f, 0.999f, 1e-6f, 0.9999999f};
    static const float min_ps[] = {0, 0, 0, 0.05f, 0.5f, 1e-8f, 0.999f};
    const int32_t top_ks[] = {0, 0, 0, 1, 2, 20, 50, 1000, vocab - 1, vocab, vocab + 5};
    inf_cuda_sample_row r = {};
    r.seed = next_u64();
    r.position = next_u64() % 100000;
    r.target = below(6) == 0 ? below(vocab) : INF_CUDA_SAMPLE_DRAW;
    r.target = below(30) == 0 ? INF_CUDA_SAMPLE_SKIP : r.target;
    r.n_top = below(3) == 0 ? (uint32_t)below(INF_MAX_TOP + 1) : 0;
    r.temperature = one_of(temperatures);
    r.top_p = one_of(top_ps);
    r.min_p = one_of(min_ps);
    r.top_k = std::max(one_of(top_ks), 0);
    r.repetition = 1;
    r.slot = -1;
    r.mask = -1;
    return r;
}

static void add_penalties(request *q, int32_t vocab, int32_t slot) {
    static const float repetitions[] = {1, 1.1f, 0.8f, 2, 1e30f};
    q->row.repetition = one_of(repetitions);
    q->row.presence = below(2) ? number() * 2 : 0;
    q->row.frequency = below(2) ? number() : 0;
    if (q->row.repetition == 1 && q->row.presence == 0 && q->row.frequency == 0) {
        q->row.frequency = 0.5f;
    }
    q->row.slot = slot;
    for (int32_t i = below(MOST_TEXT); i > 0; i--) { /* some tokens often */
        q->text.push_back(below(std::min(vocab, 1 + below(vocab))));
    }
    q->n_prompt = below((int32_t)q->text.size() + 1);
}

/* Tokens of the text among them, some more than once. */
static void add_drafts(request *q, int32_t vocab) {
    for (int32_t i = below(2) ? below(INF_MAX_DRAFTS + 1) : 0; i > 0; i--) {
        bool known = below(3) == 0 && !q->text.empty();
        q->drafts.push_back(known ? q->text[below((int32_t)q->text.size())]
                                  : below(std::min(vocab, 1 + below(vocab))));
    }
    q->row.n_drafts = (uint32_t)q->drafts.size();
    q->row.uncounted = q->row.n_drafts > 0 || below(3) == 0;
}

static void add_bias(request *q, int32_t vocab) {
    for (int32_t i = 1 + below(MOST_BIAS); i > 0; i--) {
        int32_t id = below(vocab);
        if (std::find(q->bias_ids.begin(), q->bias_ids.end(), id) == q->bias_ids.end()) {
            q->bias_ids.push_back(id);
            q->bias.push_back(number() * (below(3) == 0 ? 100.0f : 2.0f));
        }
    }
    q->row.n_bias = (uint32_t)q->bias_ids.size();
}

static bool allows(const request &q, int32_t id) {
    return q.mask.empty() || (q.mask[id / 32] >> (id % 32) & 1u) != 0;
}

/* Of one token, of a few, of every other, or of all; bits behind the vocabulary say nothing. */
static void add_mask(request *q, int32_t vocab) {
    int32_t kind = below(4);
    q->mask.assign(inf_mask_words(vocab), kind == 3 ? 0xffffffffu : 0);
    for (uint32_t &word : q->mask) {
        word = kind == 2 ? (uint32_t)next_u64() : word;
    }
    for (int32_t i = kind == 1 ? 20 : 1; i > 0; i--) {
        int32_t id = below(vocab);
        q->mask[id / 32] |= 1u << (id % 32);
    }
    if (vocab % 32 != 0) {
        q->mask.back() |= (uint32_t)next_u64() << (vocab % 32);
    }
    q->row.mask = 0;
}

#endif
