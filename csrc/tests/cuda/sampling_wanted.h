/* What the CPU (model/sampling.c) makes of a request, and whether another token is as good: where a
 * token differs, the draw must lie at the border of the two within what sums in other orders may
 * differ by. */
#ifndef INF_TESTS_SAMPLING_WANTED_H
#define INF_TESTS_SAMPLING_WANTED_H

#include "tests/cuda/sampling_requests.h"

extern "C" {
#include "model/sampling.h"
}

static const double SLACK = 1e-6; /* of a probability */

static void by_cpu(request *q, int32_t vocab) {
    const inf_cuda_sample_row &r = q->row;
    inf_sampling s = {};
    inf_err err = {};
    inf_slot *slot = NULL;
    memset(&q->want, 0, sizeof q->want);
    q->want.token = -1;
    q->status = 0;
    if (r.target == INF_CUDA_SAMPLE_SKIP) {
        return;
    }
    s.temperature = r.temperature;
    s.top_p = r.top_p;
    s.min_p = r.min_p;
    s.repetition = r.repetition;
    s.presence = r.presence;
    s.frequency = r.frequency;
    s.top_k = r.top_k;
    s.seed = r.seed;
    std::vector<float> adjusted(vocab);
    std::vector<inf_candidate> candidates(vocab);
    inf_sample_scratch scratch = {adjusted.data(), candidates.data()};
    int status =
        inf_slot_new(&s, q->text.data(), (int64_t)q->text.size(), q->n_prompt, q->bias_ids.data(),
                     q->bias.data(), (int32_t)q->bias.size(), vocab, &slot, &err);
    CHECK(status == 0, "inf_slot_new: %s", err.message);
    if (status == 0) {
        inf_sample_ask ask = {};
        ask.position = r.position;
        ask.target = r.target;
        ask.n_top = r.n_top;
        ask.drafts = q->drafts.data();
        ask.n_drafts = r.n_drafts;
        ask.mask = q->mask.empty() ? NULL : q->mask.data();
        q->status = inf_sample_row(slot, q->logits.data(), vocab, &ask, &scratch, &q->want);
        inf_slot_free(slot);
    }
}

static std::vector<uint32_t> counts_of(const request &q, int32_t vocab) {
    std::vector<uint32_t> counts(vocab, 0);
    for (size_t i = 0; i < q.text.size(); i++) {
        uint32_t &c = counts[q.text[i]];
        c = i < (size_t)q.n_prompt ? c | 0x80000000u : c + 1;
    }
    return counts;
}

/* ---- whether another token is as good ---- */

struct weighed {
    double x, w;
    int32_t id;
};

/* Those that min_p leaves, in the order of the draw; weights of the logits after bias and
 * penalties, in double. */
static std::vector<weighed> in_order(const request &q, int32_t vocab, bool descending) {
    const inf_cuda_sample_row &r = q.row;
    std::vector<uint32_t> counts = counts_of(q, vocab);
    for (int32_t id : q.drafts) {
        counts[id]++;
    }
    std::vector<weighed> all(vocab);
    double max = -INFINITY;
    for (int32_t i = 0; i < vocab; i++) {
        all[i] = {(double)q.logits[i], 0, i};
    }
    for (size_t i = 0; i < q.bias_ids.size(); i++) {
        all[q.bias_ids[i]].x += (double)q.bias[i];
    }
    for (int32_t i = 0; i < vocab; i++) {
        double &x = all[i].x, made = counts[i] & 0x7fffffffu;
        if (r.slot >= 0 && counts[i] != 0) {
            x = x > 0 ? x / (double)r.repetition : x * (double)r.repetition;
            x -= (double)r.frequency * made + (made > 0 ? (double)r.presence : 0.0);
        }
        x = allows(q, i) ? x : -INFINITY;
        max = x > max ? x : max;
    }
    size_t n = 0;
    for (const weighed &w : all) {
        double weight = exp((w.x - max) / (double)r.temperature);
        if (weight >= (double)r.min_p && allows(q, w.id)) {
            all[n++] = {w.x, weight, w.id};
        }
    }
    all.resize(n);
    if (descending) {
        std::sort(all.begin(), all.end(), [](const weighed &a, const weighed &b) {
            return a.x > b.x || (a.x == b.x && a.id < b.id);
        });
    }
    return all;
}

/* Whether a draw of u among the first n may be the token, within SLACK. */
static bool may_draw(const std::vector<weighed> &order, size_t n, double u, int32_t token) {
    double sum = 0, before = 0;
    for (size_t i = 0; i < n; i++) {
        sum += order[i].w;
    }
    for (size_t i = 0; i < n; before += order[i].w, i++) {
        if (order[i].id == token) {
            double low = before / sum - SLACK, high = (before + order[i].w) / sum + SLACK;
            return u >= low && u <= high;
        }
    }
    return false;
}

static bool as_good(const request &q, int32_t vocab, int32_t token) {
    const inf_cuda_sample_row &r = q.row;
    if (r.temperature < 1e-5f || r.top_k == 1) {
        return false;
    }
    bool cut = r.top_p < 1 || (r.top_k > 0 && r.top_k < vocab);
    double u = inf_sample_uniform(r.seed, r.position), sum = 0, mass = 0;
    std::vector<weighed> order = in_order(q, vocab, cut);
    if (!cut) {
        return may_draw(order, order.size(), u, token);
    }
    size_t keep = r.top_k > 0 ? std::min(order.size(), (size_t)r.top_k) : order.size();
    for (size_t i = 0; i < keep; i++) {
        sum += order[i].w;
    }
    bool good = false;
    for (size_t i = 0; i < keep; i++) { /* every end of the nucleus that is one within SLACK */
        double least = (double)r.top_p * sum, before = mass;
        mass += order[i].w;
        bool may_end = r.top_p < 1 ? mass >= least - SLACK * sum && before < least + SLACK * sum
                                   : i + 1 == keep;
        good = good || (may_end && may_draw(order, i + 1, u, token));
    }
    return good;
}

#endif
