/* Sampling on the GPU against model/sampling.c, row for row: tokens, ranks, alternatives and counts
 * are to be equal, log probabilities near. */
#include "tests/cuda/sampling_wanted.h"

#ifdef INF_EMU
enum { ROUNDS = 100, MOST_ROWS = 6, LARGE = 20000 };
static const int32_t VOCABS[] = {1, 2, 33, 100, 509, 1000, 1024, 5000, 8192, 8193};
#else
enum { ROUNDS = 60, MOST_ROWS = 20, LARGE = 151936 };
static const int32_t VOCABS[] = {1, 33, 1000, 5000, 8192, 8193, 32000, 50257, 128256, 262208};
#endif
enum { N_VOCABS = sizeof VOCABS / sizeof *VOCABS };

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
            add_drafts(&q, vocab);
        }
        if (q.row.target < 0 && below(4) == 0) {
            add_bias(&q, vocab);
        }
        if (q.row.target < 0 && below(3) == 0) {
            add_mask(&q, vocab);
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
    std::vector<int32_t> ids, drafts;
    std::vector<uint32_t> masks;
    std::vector<inf_cuda_sample_row> rows;
    uint32_t needs = more;
    for (size_t i = first; i < first + n; i++) {
        const request &q = b.requests[i];
        rows.push_back(q.row);
        rows.back().bias_off = (uint32_t)ids.size();
        ids.insert(ids.end(), q.bias_ids.begin(), q.bias_ids.end());
        bias.insert(bias.end(), q.bias.begin(), q.bias.end());
        if (!q.mask.empty()) {
            rows.back().mask = (int32_t)(masks.size() / q.mask.size());
            masks.insert(masks.end(), q.mask.begin(), q.mask.end());
        }
        rows.back().draft_off = (uint32_t)drafts.size();
        drafts.insert(drafts.end(), q.drafts.begin(), q.drafts.end());
        logits.insert(logits.end(), q.logits.begin(), q.logits.end());
        needs |= inf_cuda_sample_needs(&q.row, b.vocab);
    }
    uint64_t bytes = inf_cuda_sample_scratch((int32_t)n, b.vocab, needs);
    guarded g_logits = guard_copy(logits, shift), g_rows = guard_copy(rows);
    guarded g_ids = guard_copy(ids), g_bias = guard_copy(bias), scratch = guard(bytes);
    guarded g_masks = guard_copy(masks), g_drafts = guard_copy(drafts);
    guarded g_out = guard(n * sizeof(inf_row_out)), g_status = guard(n * 4);
    inf_cuda_sample p = {g_logits.as<float>(),
                         g_rows.as<inf_cuda_sample_row>(),
                         g_ids.as<int32_t>(),
                         g_bias.as<float>(),
                         g_masks.as<uint32_t>(),
                         g_drafts.as<int32_t>(),
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
    for (const guarded &g : {g_logits, g_rows, g_ids, g_bias, g_masks, g_drafts, scratch}) {
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
            if (out[i].token >= 0 && !r.uncounted) {
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
