/* The LM head cut over the ranks of an instance: 2, 3 and 4 ranks choose the tokens of one and have
 * its probabilities, also where the vocabulary is no multiple of the ranks, or too small for all of
 * them, and where the embedding is the head. With INFINITE_TEST_GPU the ranks are GPUs. */
#include "tests/tiny_model.h"

#include "kernels/backend.h"

enum { TEXT = 24, PROMPT = 9 };

static int on_gpu(void) { return getenv("INFINITE_TEST_GPU") != NULL; }

/* ---- shares ---- */

/* They follow each other, begin at whole units, and none is larger than one before it. */
static void test_shares(void) {
    for (int32_t ranks = 1; ranks <= INF_MAX_RANKS; ranks++) {
        for (int32_t n = 0; n < 400; n++) {
            int32_t at = 0, last = n;
            for (int32_t r = 0; r < ranks; r++) {
                inf_share s = inf_share_of(n, ranks, r);
                CHECK(s.first == at && s.n >= 0 && s.n <= last, "rank %d of %d, %d rows: %d at %d",
                      r, ranks, n, s.n, s.first);
                CHECK(s.n == 0 || s.first % INF_SHARE_UNIT == 0, "rank %d of %d, %d rows: at %d", r,
                      ranks, n, s.first);
                at += last = s.n;
            }
            CHECK(at == n, "%d of %d rows over %d ranks", at, n, ranks);
        }
    }
    const inf_share large = inf_share_of((1 << 24) - 1, 8, 7);
    CHECK(large.first == 7 << 21 && large.n == (1 << 21) - 1, "%d at %d", large.n, large.first);
}

/* ---- the gather, on the CPU ---- */

static void check_gather(int32_t ranks, int32_t cols, int32_t rows) {
    enum { MOST = 7 * 100, GUARD = 3 };
    static float part[INF_MAX_RANKS][MOST], whole[MOST + GUARD];
    inf_backend *b = inf_backend_cpu(0), *backends[INF_MAX_RANKS];
    inf_lane *lanes[INF_MAX_RANKS] = {NULL};
    float *parts[INF_MAX_RANKS];
    inf_pool *threads = NULL;
    inf_collective *c = NULL;
    inf_err err = {0};
    for (int32_t r = 0; r < ranks; r++) {
        inf_share s = inf_share_of(cols, ranks, r);
        for (int32_t i = 0; i < rows * s.n; i++) {
            part[r][i] = (float)(i / s.n * cols + s.first + i % s.n);
        }
        backends[r] = b;
        parts[r] = s.n > 0 ? part[r] : NULL;
    }
    for (int32_t i = 0; i < rows * cols + GUARD; i++) {
        whole[i] = -1;
    }
    CHECK(inf_pool_open(3, &threads) == INF_OK, "no threads");
    inf_collective_config config = {ranks, backends, lanes, threads, rows, cols};
    CHECK(b->ops->collective_open(&config, &c, &err) == INF_OK, "%s", err.message);
    c->ops->gather(c, parts, whole, rows);
    for (int32_t i = 0; i < rows * cols + GUARD; i++) {
        float want = i < rows * cols ? (float)i : -1;
        CHECK(whole[i] == want, "%d ranks, [%d, %d]: %g at %d", ranks, rows, cols, (double)whole[i],
              i);
    }
    c->ops->close(c);
    inf_pool_close(threads);
    b->ops->close(b);
}

static void test_gather(void) {
    const int32_t ranks[] = {2, 3, 8}, cols[] = {1, 16, 33, 64, 100}, rows[] = {1, 7};
    for (int i = 0; i < 3 * 5 * 2; i++) {
        check_gather(ranks[i % 3], cols[i / 3 % 5], rows[i / 15]);
    }
}

/* ---- whole models ---- */

/* So many tokens are enough; and an intermediate size that is a multiple of 2, 3 and 4. */
static tiny_model model_of(uint32_t flags, int32_t dtype, int32_t ranks, int32_t vocab) {
    tiny_model m = ranks == 3 ? tiny_new_of(flags, dtype, 6, 3) : tiny_new_of(flags, dtype, 8, 4);
    const int32_t inner = 72;
    m.config.vocab = vocab;
    m.config.intermediate = inner;
    m.rows[INF_ROLE_EMBED] = m.rows[INF_ROLE_LM_HEAD] = vocab;
    m.rows[INF_ROLE_GATE] = m.rows[INF_ROLE_UP] = m.cols[INF_ROLE_DOWN] = inner;
    return m;
}

/* n tokens of the text from done on. The rows' tokens are known but the last's, which is chosen. */
static const inf_row_out *advance(inf_device *d, const int32_t *tokens, uint32_t done, uint32_t n) {
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    uint32_t blocks = (done + n + 3) / 4;
    *b.head = (inf_step_head){.step_id = done + 1,
                              .peer_timeout_ns = UINT64_C(60000000000),
                              .n_seqs = 1,
                              .n_tokens = n,
                              .n_blocks = blocks,
                              .n_rows = n};
    b.seqs[0] = (inf_step_seq){.n_tokens = n, .pos0 = done, .n_blocks = blocks};
    for (uint32_t i = 0; i < blocks; i++) {
        b.blocks[i] = (int32_t)i;
    }
    for (uint32_t t = 0; t < n; t++) {
        b.tokens[t] = tokens[done + t];
        b.rows[t] = (inf_step_row){t, 0, t + 1 < n ? tokens[done + t + 1] : -1, INF_MAX_TOP, 0};
    }
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
    CHECK(b.seq_out[0].status == INF_OK, "%d", b.seq_out[0].status);
    return b.row_out;
}

typedef struct answer {
    int32_t tokens[TEXT];
    inf_row_out rows[TEXT];
} answer;

/* A prompt, and what the model makes of it. */
static answer answer_of(tiny_model *m, int32_t ranks) {
    answer a;
    m->config.tensor_parallel = ranks;
    inf_device *d = tiny_open(m);
    tiny_slot(d, 0);
    for (int32_t i = 0; i < PROMPT; i++) {
        a.tokens[i] = (i * 37 + 5) % m->config.vocab;
    }
    for (uint32_t done = 0, n = PROMPT; done < TEXT; done += n, n = 1) {
        memcpy(a.rows + done, advance(d, a.tokens, done, n), n * sizeof *a.rows);
        if (done + n < TEXT) {
            a.tokens[done + n] = a.rows[done + n - 1].token;
        }
    }
    inf_device_close(d);
    return a;
}

static void test_model(uint32_t flags, int32_t dtype, int32_t ranks, int32_t vocab,
                       double tolerance) {
    static double want[TEXT][TINY_VOCAB];
    tiny_model m = model_of(flags, dtype, ranks, vocab);
    answer one = answer_of(&m, 1), cut = answer_of(&m, ranks);
    tiny_reference(&m, cut.tokens, TEXT, want);
    for (int t = 0; t < TEXT; t++) {
        const inf_row_out *row = &cut.rows[t];
        for (uint32_t k = 0; k < row->n_top; k++) {
            double off = fabs((double)row->top_logprobs[k] - want[t][row->top_ids[k]]);
            CHECK(off < tolerance, "%d ranks, flags %u, dtype %d, vocabulary of %d: off by %g",
                  ranks, flags, dtype, vocab, off);
        }
        /* In 16 bits the sums over ranks are rounded otherwise. */
        CHECK(dtype != INF_DTYPE_F32 || (cut.tokens[t] == one.tokens[t] &&
                                         memcmp(row->top_ids, one.rows[t].top_ids,
                                                row->n_top * sizeof *row->top_ids) == 0),
              "%d ranks, flags %u, vocabulary of %d: token %d is %d, of one rank %d", ranks, flags,
              vocab, t, cut.tokens[t], one.tokens[t]);
        CHECK(row->n_top == INF_MAX_TOP, "%u", row->n_top);
    }
    tiny_free(&m);
}

int main(void) {
    const int32_t vocabs[] = {64, 50, 23}; /* of 3 and 4 ranks the last have a part, or nothing */
    const uint32_t flags[] = {0, INF_MODEL_TIED};
    test_shares();
    if (!on_gpu()) {
        test_gather();
    }
    for (int i = 0; i < 3 * 2; i++) {
        for (int32_t ranks = 2; ranks <= 4; ranks++) {
            test_model(flags[i / 3], INF_DTYPE_F32, ranks, vocabs[i % 3], 1e-4);
            test_model(flags[i / 3], INF_DTYPE_BF16, ranks, vocabs[i % 3], 0.2);
        }
    }
    puts("the head of ranks: ok");
    return 0;
}
