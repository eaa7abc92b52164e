/* Sampling on the GPU against model/sampling.c, row for row: tokens, ranks, alternatives and counts
 * are to be equal, log probabilities near. Where a token differs, the draw must lie at the border
 * of the two within what sums in other orders may differ by. Logits of many kinds: ties, flat rows
 * and rows with a flat part that no list holds, huge numbers, and what is no number. */
#include "kernels/cuda/sampling.h"
#include "tests/cuda/guarded.h"

#include <algorithm>

extern "C" {
#include "model/sampling.h"
}

#ifdef INF_EMU
enum { ROUNDS = 100, MOST_ROWS = 6, LARGE = 20000 };
static const int32_t VOCABS[] = {1, 2, 33, 100, 509, 1000, 1024, 5000, 8192, 8193};
#else
enum { ROUNDS = 60, MOST_ROWS = 20, LARGE = 151936 };
static const int32_t VOCABS[] = {1, 33, 1000, 5000, 8192, 8193, 32000, 50257, 128256, 262208};
#endif
enum { N_VOCABS = sizeof VOCABS / sizeof *VOCABS, MOST_BIAS = 40, MOST_TEXT = 300 };
static const double SLACK = 1e-6; /* of a probability */

template <class T, int N> static T one_of(const T (&list)[N]) { return list[below(N)]; }

/* A row and what the CPU makes of it. */
struct request {
    inf_cuda_sample_row row;
    std::vector<float> logits;
    std::vector<int32_t> text, bias_ids;
    std::vector<float> bias;
    int32_t n_prompt;
    inf_row_out want;
    int status;
};

/* ---- random rows ---- */

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

/* ---- the CPU ---- */

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
        q->status = inf_sample_row(slot, q->logits.data(), vocab, r.position, r.target, r.n_top,
                                   &scratch, &q->want);
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
        max = x > max ? x : max;
    }
    size_t n = 0;
    for (const weighed &w : all) {
        double weight = exp((w.x - max) / (double)r.temperature);
        if (weight >= (double)r.min_p) {
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

/* ---- comparison ---- */

static int32_t rows_seen, others;

/* Also where both are beyond f32. */
static bool close_to(double a, double b, double tolerance) {
    return a == b || fabs(a - b) <= tolerance;
}

static void compare(const request &q, int32_t vocab, const inf_row_out &got, int status,
                    const char *what) {
    const inf_row_out &want = q.want;
    const inf_cuda_sample_row &r = q.row;
    rows_seen++;
#define CASE                                                                                       \
    what, vocab, r.target, (double)r.temperature, (double)r.top_p, (double)r.min_p, r.top_k,       \
        r.slot, r.n_bias, r.n_top
#define NAMED                                                                                      \
    "%s, vocab %d, target %d, temperature %g, top_p %g, min_p %g, top_k %d, slot %d, %u biased, "  \
    "%u top: "
    CHECK(status == q.status, NAMED "status %d, not %d", CASE, status, q.status);
    if (status != q.status) {
        return;
    }
    if (got.token != want.token) {
        bool good = got.token >= 0 && got.token < vocab && q.status == 0 && r.target < 0 &&
                    as_good(q, vocab, got.token);
        CHECK(good, NAMED "token %d, not %d", CASE, got.token, want.token);
        others += good;
        if (!good) {
            return;
        }
    }
    double logprob = (double)want.logprob, lowest = 0;
    int32_t rank = want.rank;
    if (got.token >= 0) {
        float x = q.logits[got.token];
        rank = 1;
        for (int32_t i = 0; i < vocab; i++) {
            rank += q.logits[i] > x;
        }
        logprob += want.token >= 0 ? (double)x - (double)q.logits[want.token] : 0;
        lowest = fabs(logprob) * 1e-6; /* f32 numbers */
    }
    CHECK(got.rank == rank, NAMED "rank %d, not %d", CASE, got.rank, rank);
    CHECK(close_to((double)got.logprob, logprob, 1e-4 + lowest), NAMED "log probability %g, not %g",
          CASE, (double)got.logprob, logprob);
    CHECK(got.n_top == want.n_top, NAMED "%u alternatives", CASE, got.n_top);
    for (uint32_t i = 0; i < INF_MAX_TOP && got.n_top == want.n_top; i++) {
        double have = (double)got.top_logprobs[i], is = (double)want.top_logprobs[i];
        CHECK(got.top_ids[i] == want.top_ids[i], NAMED "alternative %u is %d, not %d", CASE, i,
              got.top_ids[i], want.top_ids[i]);
        CHECK(close_to(have, is, 1e-4 + fabs(is) * 1e-6), NAMED "alternative %u has %g, not %g",
              CASE, i, have, is);
    }
}

/* ---- a launch ---- */

struct batch {
    std::vector<request> requests;
    int32_t vocab, slots;
    guarded counts;
};

/* Slots in an order of their own; other slots are between them. */
static batch make_batch(int32_t vocab, int32_t rows) {
    batch b;
    b.vocab = vocab;
    b.slots = 2 * rows;
    std::vector<int32_t> slot(b.slots);
    for (int32_t i = 0; i < b.slots; i++) {
        slot[i] = i;
        std::swap(slot[i], slot[below(i + 1)]);
    }
    for (int32_t i = 0; i < rows; i++) {
        request q = {};
        q.row = some_row(vocab);
        q.logits = some_logits(vocab);
        if (q.row.target < 0 && below(3) == 0) {
            add_penalties(&q, vocab, slot[i]);
        }
        if (q.row.target < 0 && below(4) == 0) {
            add_bias(&q, vocab);
        }
        by_cpu(&q, vocab);
        b.requests.push_back(q);
    }
    return b;
}

static void open_slots(batch *b) {
    b->counts = guard((size_t)b->slots * b->vocab * 4);
    for (const request &q : b->requests) {
        if (q.row.slot < 0) {
            continue;
        }
        guarded text = guard_copy(q.text);
        inf_cuda_counts p = {b->counts.as<uint32_t>(), text.as<int32_t>(), q.row.slot, b->vocab,
                             (int64_t)q.text.size(),   q.n_prompt};
        CHECK(inf_cuda_counts_launch(&p, NULL) == 0, "counts");
        take(text);
    }
}

/* Rows first .. first + n - 1 of the batch. */
static void launch(const batch &b, size_t first, size_t n, uint32_t more, size_t shift,
                   std::vector<inf_row_out> *out, std::vector<int32_t> *status) {
    std::vector<float> logits, bias;
    std::vector<int32_t> ids;
    std::vector<inf_cuda_sample_row> rows;
    uint32_t needs = more;
    for (size_t i = first; i < first + n; i++) {
        const request &q = b.requests[i];
        rows.push_back(q.row);
        rows.back().bias_off = (uint32_t)ids.size();
        ids.insert(ids.end(), q.bias_ids.begin(), q.bias_ids.end());
        bias.insert(bias.end(), q.bias.begin(), q.bias.end());
        logits.insert(logits.end(), q.logits.begin(), q.logits.end());
        needs |= inf_cuda_sample_needs(&q.row, b.vocab);
    }
    uint64_t bytes = inf_cuda_sample_scratch((int32_t)n, b.vocab, needs);
    guarded g_logits = guard_copy(logits, shift), g_rows = guard_copy(rows);
    guarded g_ids = guard_copy(ids), g_bias = guard_copy(bias), scratch = guard(bytes);
    guarded g_out = guard(n * sizeof(inf_row_out)), g_status = guard(n * 4);
    inf_cuda_sample p = {g_logits.as<float>(),
                         g_rows.as<inf_cuda_sample_row>(),
                         g_ids.as<int32_t>(),
                         g_bias.as<float>(),
                         b.counts.as<uint32_t>(),
                         g_out.as<inf_row_out>(),
                         g_status.as<int32_t>(),
                         scratch.p(),
                         (int32_t)n,
                         b.vocab,
                         needs,
                         some_early()};
    CHECK(inf_cuda_sample_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> raw_out = take(g_out), raw_status = take(g_status);
    out->resize(n);
    status->resize(n);
    memcpy(out->data(), raw_out.data(), raw_out.size());
    memcpy(status->data(), raw_status.data(), raw_status.size());
    for (const guarded &g : {g_logits, g_rows, g_ids, g_bias, scratch}) {
        take(g);
    }
}

/* Slots hold the text and the drawn token; what no row has stays as it was. */
static void compare_counts(const batch &b, const std::vector<inf_row_out> &out) {
    std::vector<uint8_t> raw = take(b.counts);
    std::vector<uint32_t> want((size_t)b.slots * b.vocab, 0xffffffffu);
    for (size_t i = 0; i < b.requests.size(); i++) {
        const inf_cuda_sample_row &r = b.requests[i].row;
        if (r.slot >= 0) {
            std::vector<uint32_t> c = counts_of(b.requests[i], b.vocab);
            if (out[i].token >= 0) {
                c[out[i].token]++;
            }
            std::copy(c.begin(), c.end(), want.begin() + (long)r.slot * b.vocab);
        }
    }
    size_t wrong = 0;
    for (size_t i = 0; i < want.size(); i++) {
        wrong += memcmp(&raw[i * 4], &want[i], 4) != 0;
    }
    CHECK(wrong == 0, "vocab %d, %zu rows: %zu counts are wrong", b.vocab, out.size(), wrong);
}

static void check_batch(int32_t vocab, int32_t rows) {
    batch b = make_batch(vocab, rows);
    std::vector<inf_row_out> out, alone;
    std::vector<int32_t> status, status_alone;
    size_t shift = below(4) == 0 ? 4 : 0; /* the order of some sums depends on it */
    open_slots(&b);
    launch(b, 0, b.requests.size(), below(3) == 0 ? 15 : 0, shift, &out, &status);
    for (size_t i = 0; i < out.size(); i++) {
        compare(b.requests[i], vocab, out[i], status[i], "in a batch");
    }
    compare_counts(b, out);
    /* A row alone is as it was in the batch, to the bit. */
    size_t one = (size_t)below(rows);
    open_slots(&b);
    launch(b, one, 1, 0, shift, &alone, &status_alone);
    CHECK(memcmp(&alone[0], &out[one], sizeof alone[0]) == 0 && status_alone[0] == status[one],
          "vocab %d, %d rows: row %zu alone differs: token %d, %d in the batch", vocab, rows, one,
          alone[0].token, out[one].token);
    take(b.counts);
}

int main(int argc, char **argv) {
    start(argc, argv);
    int32_t rounds = brief() ? 12 : ROUNDS;
    for (int32_t i = 0; i < rounds; i++) {
        check_batch(VOCABS[i % N_VOCABS], 1 + below(MOST_ROWS));
    }
    check_batch(LARGE, 2);
    printf("%d rows, of which %d drew the other token at a border\n", rows_seen, others);
    CHECK(others <= 1 + rows_seen / 100, "too many rows drew at a border");
    return report("test_sampling");
}
