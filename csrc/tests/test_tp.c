/* Tensor parallelism: instances of 1, 2 and 4 ranks compute what the plain forward pass does, with
 * one kv head per rank and with several, in every format; without the sum over ranks, or the gather
 * of the logits, they do not.
 * Blocks have one layout outside of the ranks, so instances that are cut differently attend over
 * each other's KV. With INFINITE_TEST_GPU the ranks are GPUs. */
#define _GNU_SOURCE
#include "tests/tiny_model.h"

#include "dist/dist.h"
#include "model/forward.h"
#include "tests/link_ends.h"

enum { TEXT = 45, BLOCKS = 12, CHUNKS = 7, LENT = 16 }; /* LENT: tokens */
static const uint32_t chunks[CHUNKS] = {1, 7, 4, 13, 2, 5, 13};

static int on_gpu(void) { return getenv("INFINITE_TEST_GPU") != NULL; }

static void text_of(int32_t *tokens, uint64_t seed) {
    for (int i = 0; i < TEXT; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        tokens[i] = (int32_t)(seed >> 33) % TINY_VOCAB;
    }
}

static uint32_t block = 4; /* tokens of a block, in all models that follow */

/* The step that computes tokens done..done + n of the text and scores each; its KV before local0
 * lies in the span. */
static void fill_step(const inf_step_buffers *b, const int32_t *tokens, uint32_t done, uint32_t n,
                      const inf_step_span *span) {
    uint32_t local0 = span != NULL ? span->n_tokens : 0,
             blocks = (done + n - local0 + block - 1) / block;
    *b->head = (inf_step_head){.step_id = done + 1,
                               .peer_timeout_ns = UINT64_C(60000000000),
                               .n_seqs = 1,
                               .n_tokens = n,
                               .n_blocks = blocks,
                               .n_spans = span != NULL,
                               .n_rows = n};
    b->seqs[0] = (inf_step_seq){.n_tokens = n,
                                .pos0 = done,
                                .local_pos0 = local0,
                                .n_blocks = blocks,
                                .n_spans = span != NULL};
    if (span != NULL) {
        b->spans[0] = *span;
    }
    for (uint32_t i = 0; i < blocks; i++) {
        b->blocks[i] = (int32_t)((local0 / block + i) * 5 % 64);
    }
    for (uint32_t t = 0; t < n; t++) {
        b->tokens[t] = tokens[done + t];
        b->rows[t] =
            (inf_step_row){t, 0, done + t + 1 < TEXT ? tokens[done + t + 1] : 0, INF_MAX_TOP};
    }
}

/* Largest distance of n rows' log probabilities from the reference's. */
static double distance(const inf_row_out *rows, uint32_t n, double reference[][TINY_VOCAB]) {
    double worst = 0;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t k = 0; k < rows[t].n_top; k++) {
            double d = (double)rows[t].top_logprobs[k] - reference[t][rows[t].top_ids[k]];
            worst = isnan(d) ? INFINITY : fmax(worst, fabs(d));
        }
    }
    return worst;
}

/* One step on a device, and how far its rows are from the reference. */
static double advance(inf_device *d, const int32_t *tokens, uint32_t done, uint32_t n,
                      const inf_step_span *span, uint32_t flags, double want[][TINY_VOCAB]) {
    inf_step_buffers b;
    inf_err err = {0};
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK, "%s", err.message);
    fill_step(&b, tokens, done, n, span);
    b.head->flags = flags;
    CHECK(inf_device_submit(d, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(d, -1, &err) == INF_OK, "%s", err.message);
    CHECK(b.seq_out[0].status == INF_OK, "%d", b.seq_out[0].status);
    return distance(b.row_out, n, want + done);
}

/* ---- whole steps ---- */

static void test_steps(uint32_t flags, int32_t dtype, int32_t heads, int32_t kv_heads, int32_t n,
                       double tolerance) {
    static double want[TEXT][TINY_VOCAB];
    int32_t tokens[TEXT];
    tiny_model m = tiny_new_of(flags, dtype, heads, kv_heads);
    m.config.tensor_parallel = n;
    inf_device *d = tiny_open(&m);
    text_of(tokens, flags + 7);
    tiny_reference(&m, tokens, TEXT, want);
    tiny_slot(d, 0);
    double worst = 0;
    for (uint32_t i = 0, done = 0; i < CHUNKS; done += chunks[i++]) {
        worst = fmax(worst, advance(d, tokens, done, chunks[i], NULL, 0, want));
    }
    for (uint32_t done = 30; done < TEXT; done++) { /* again, token by token */
        worst = fmax(worst, advance(d, tokens, done, 1, NULL, 0, want));
    }
    CHECK(worst < tolerance, "%d ranks, %d heads on %d, flags %u, dtype %d: off by %g", n, heads,
          kv_heads, flags, dtype, worst);
    inf_device_close(d);
    tiny_free(&m);
}

/* ---- what ranks do together ---- */

/* The CPU's, of which something is left out; one at a time. */
enum { NOTHING, THE_SUM, THE_GATHER };
static int left_out;
static inf_collective *whole_one;
static int (*open_whole)(const inf_collective_config *config, inf_collective **out, inf_err *err);

static void some_sum(inf_collective *c, void *const *y, uint64_t count) {
    (void)c;
    if (left_out != THE_SUM) {
        whole_one->ops->sum(whole_one, y, count);
    }
}

static void some_gather(inf_collective *c, float *const *part, float *whole, int32_t rows) {
    (void)c;
    if (left_out != THE_GATHER) {
        whole_one->ops->gather(whole_one, part, whole, rows);
    }
}

static inf_collective_end some_wait(inf_collective *c, int patient) {
    (void)c;
    return whole_one->ops->wait(whole_one, patient);
}

static void some_close(inf_collective *c) {
    (void)c;
    whole_one->ops->close(whole_one);
}

static int open_some(const inf_collective_config *config, inf_collective **out, inf_err *err) {
    static const inf_collective_ops ops = {some_sum, some_gather, some_wait, some_close};
    static inf_collective some = {&ops};
    *out = &some;
    return open_whole(config, &whole_one, err);
}

/* Two CPU ranks that leave something out. */
static inf_backend *two_ranks(const inf_device_config *config, int without) {
    static inf_backend_ops ops;
    inf_backend *ranks[2], *b = NULL;
    inf_err err = {0};
    for (int r = 0; r < 2; r++) {
        ranks[r] = inf_backend_cpu(0);
        CHECK(ranks[r] != NULL, "no backend");
        ops = *ranks[r]->ops;
    }
    left_out = without;
    open_whole = ops.collective_open;
    ops.collective_open = open_some;
    ranks[0]->ops = ranks[1]->ops = &ops;
    CHECK(inf_backend_tp(ranks, 2, config, &b, &err) == INF_OK, "%s", err.message);
    return b;
}

static inf_kv_shape shape_of(const inf_device_config *c) {
    inf_kv_shape kv = {c->layers,
                       c->kv_heads,
                       c->block_size,
                       c->head_dim,
                       c->dtype,
                       (int32_t)inf_dtype_bytes(c->dtype),
                       0};
    kv.block_bytes = inf_device_block_bytes(c);
    return kv;
}

/* The whole text in one step, over a backend. */
static double forward_distance(const tiny_model *m, inf_backend *b) {
    static double want[TEXT][TINY_VOCAB];
    static int32_t tokens[TEXT], blocks[64];
    static inf_row_out out[TEXT];
    const inf_device_config *c = &m->config;
    inf_step_head head;
    inf_step_seq seq;
    inf_seq_out seq_out;
    inf_step_row rows[TEXT];
    inf_step_buffers step = {&head, &seq, tokens, blocks, NULL, rows, out, &seq_out};
    int32_t text[TEXT];
    inf_slot *slot = NULL;
    inf_sampling sampling = {.top_p = 1, .repetition = 1};
    inf_weights *w = NULL;
    inf_forward *f = NULL;
    inf_err err = {0};
    CHECK(inf_weights_open(c, b, &w, &err) == INF_OK, "%s", err.message);
    for (int32_t role = 1; role < TINY_ROLES; role++) {
        for (int32_t l = 0; l < (role < INF_ROLE_ATTN_NORM ? 1 : c->layers); l++) {
            if (m->tensors[l][role] != NULL) {
                uint64_t bytes = (uint64_t)(m->rows[role] * m->cols[role]) * sizeof(float);
                int32_t layer = role < INF_ROLE_ATTN_NORM ? -1 : l;
                CHECK(inf_weights_load(w, role, layer, INF_DTYPE_F32, m->rows[role], m->cols[role],
                                       m->tensors[l][role], bytes, &err) == INF_OK,
                      "%s", err.message);
            }
        }
    }
    CHECK(inf_weights_complete(w, &err) == INF_OK, "%s", err.message);
    CHECK(inf_slot_new(&sampling, NULL, 0, 0, NULL, NULL, 0, c->vocab, &slot, &err) == INF_OK, "%s",
          err.message);
    inf_kv_shape kv = shape_of(c);
    uint64_t bytes = kv.block_bytes * (uint64_t)c->num_blocks;
    uint8_t *pool = b->ops->alloc_pool(b, bytes);
    inf_forward_config fc = {w, b, NULL, NULL, kv, pool, m->inv_freq, m->windows, &slot};
    CHECK(inf_forward_open(&fc, &f, &err) == INF_OK, "%s", err.message);
    text_of(text, 3);
    tiny_reference(m, text, TEXT, want);
    fill_step(&step, text, 0, TEXT, NULL);
    CHECK(inf_forward_step(f, &step, &err) == INF_OK, "%s", err.message);
    inf_forward_close(f);
    b->ops->free_pool(b, pool, bytes);
    inf_slot_free(slot);
    inf_weights_close(w);
    b->ops->close(b);
    return distance(out, TEXT, want);
}

static void test_sum(void) {
    tiny_model m = tiny_new(INF_MODEL_QKV_BIAS, INF_DTYPE_F32);
    double with = forward_distance(&m, two_ranks(&m.config, NOTHING));
    double no_sum = forward_distance(&m, two_ranks(&m.config, THE_SUM));
    double no_gather = forward_distance(&m, two_ranks(&m.config, THE_GATHER));
    /* By a thread per rank, as GPUs are asked; these ranks share none. */
    inf_backend *apart = two_ranks(&m.config, NOTHING);
    apart->cpus = 0;
    apart->awake_ns = 100000;
    double by_team = forward_distance(&m, apart);
    CHECK(with < 1e-4, "off by %g", with);
    CHECK(by_team == with, "by a team it is off by %g instead of %g", by_team, with);
    CHECK(no_sum > 0.1, "without the sum it is off by %g only", no_sum);
    CHECK(no_gather > 0.1, "without the gather it is off by %g only", no_gather);
    tiny_free(&m);
}

/* Every rank ends with the same bits, those of the sum from the first rank on. */
static void test_cpu_sum(void) {
    enum { RANKS = 3, COUNT = 10001 };
    static float y[RANKS][COUNT], want[COUNT];
    inf_backend *b = inf_backend_cpu(0);
    inf_backend *backends[RANKS] = {b, b, b};
    inf_lane *lanes[RANKS] = {NULL};
    void *parts[RANKS] = {y[0], y[1], y[2]};
    inf_pool *threads = NULL;
    inf_collective *c = NULL;
    inf_err err = {0};
    for (int i = 0; i < COUNT; i++) {
        for (int r = 0; r < RANKS; r++) {
            y[r][i] = (float)((i * 7919 + r * 104729) % 1000) * (r == 1 ? 1e-4f : 1e3f);
        }
        want[i] = (y[0][i] + y[1][i]) + y[2][i];
    }
    CHECK(inf_pool_open(3, &threads) == INF_OK, "no threads");
    inf_collective_config config = {RANKS, backends, lanes, threads, 0, 0};
    CHECK(b->ops->collective_open(&config, &c, &err) == INF_OK, "%s", err.message);
    c->ops->sum(c, parts, COUNT);
    c->ops->wait(c, 0);
    for (int r = 0; r < RANKS; r++) {
        CHECK(memcmp(y[r], want, sizeof want) == 0, "rank %d", r);
    }
    c->ops->close(c);
    inf_pool_close(threads);
    b->ops->close(b);
}

/* ---- blocks ---- */

/* A block that comes in leaves as it came, and lies in each rank's pool as that rank's heads. */
static void test_blocks(void) {
    tiny_model m = tiny_new_of(0, INF_DTYPE_BF16, 8, 4);
    inf_kv_shape kv = shape_of(&m.config);
    inf_backend *b = two_ranks(&m.config, NOTHING);
    uint64_t bytes = kv.block_bytes * 8;
    uint8_t *pool = b->ops->alloc_pool(b, bytes);
    uint8_t *in = malloc(kv.block_bytes * 2), *back = malloc(kv.block_bytes * 2);
    inf_lane_config c = {.kind = INF_LANE_COPY, .device = &m.config, .kv = kv, .pool = pool};
    inf_lane *lane = NULL;
    inf_err err = {0};
    CHECK(pool != NULL && in != NULL && back != NULL, "no memory");
    CHECK(b->ops->alloc_pool(b, bytes) == NULL, "a second pool");
    CHECK(b->ops->lane_open(b, &c, &lane, &err) == INF_OK, "%s", err.message);
    for (uint64_t i = 0; i < kv.block_bytes * 2; i++) {
        in[i] = (uint8_t)(i * 2654435761u >> 13);
    }
    for (int32_t at = 0; at < 8; at += 3) {
        uint64_t n = at == 6 ? 1 : 2; /* one block, and two that lie side by side */
        uint8_t *device = pool + (uint64_t)at * kv.block_bytes;
        b->ops->copy_in(lane, device, in, n * kv.block_bytes);
        b->ops->copy_out(lane, back, device, n * kv.block_bytes);
        CHECK(b->ops->sync(lane, &err) == INF_OK, "%s", err.message);
        CHECK(memcmp(in, back, n * kv.block_bytes) == 0, "block %d", at);
    }
    b->ops->lane_close(lane);
    c.pool = NULL;
    CHECK(b->ops->lane_open(b, &c, &lane, &err) == INF_EINVAL && lane == NULL, "a lane without it");
    b->ops->free_pool(b, pool, bytes);
    b->ops->close(b);
    free(in);
    free(back);
    tiny_free(&m);
}

/* ---- DistAttention between instances that are cut differently ---- */

/* debtor knows creditor as peer 1, creditor knows debtor as peer 2. */
static void join(uint32_t via, const tiny_model *m, inf_device *debtor, inf_device *creditor) {
    uint64_t bytes[2] = {inf_device_query_slot_bytes(&m->config),
                         inf_device_move_slot_bytes(&m->config)};
    inf_link *client[2], *server[2];
    inf_err err = {0};
    for (int i = 0; i < 2; i++) {
        link_ends e = make_ends(via, 2, bytes[i]);
        open_ends(&e, &client[i], &server[i]);
    }
    CHECK(inf_device_peer_serve(creditor, 2, server[0], server[1], &err) == INF_OK, "%s",
          err.message);
    CHECK(inf_device_peer_attach(debtor, 1, client[0], client[1], &err) == INF_OK, "%s",
          err.message);
}

static void test_lent(uint32_t via, int32_t dtype, int32_t home_ranks, int32_t host_ranks,
                      double tolerance) {
    static double want[TEXT][TINY_VOCAB];
    int32_t tokens[TEXT], mine[LENT], theirs[LENT], lent = LENT / (int32_t)block;
    inf_err err = {0};
    /* Blocks of 8 tokens and heads of 64 are what GPUs' kernels for decode take. */
    tiny_model m = block == 8 ? tiny_new_with(INF_MODEL_QK_NORM, dtype, 2, 1, 64, 8)
                              : tiny_new_of(INF_MODEL_QK_NORM, dtype, 8, 4);
    m.config.tensor_parallel = home_ranks;
    inf_device *home = tiny_open(&m);
    m.config.tensor_parallel = host_ranks;
    inf_device *host = tiny_open(&m);
    join(via, &m, home, host);
    text_of(tokens, 11);
    tiny_reference(&m, tokens, TEXT, want);
    tiny_slot(home, 0);
    double worst = advance(home, tokens, 0, 20, NULL, 0, want);
    for (int32_t i = 0; i < lent; i++) {
        mine[i] = i * 5 % 64;
        theirs[i] = 40 - 3 * i;
    }
    CHECK(inf_device_span_set(host, 2, 5, 3, theirs, lent, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_move_post(home, 1, 5, 3, 0, mine, lent, 77, &err) == INF_OK, "%s",
          err.message);
    inf_move_done done;
    CHECK(inf_device_move_wait(home, INT64_C(60000000000), &done, &err) == INF_OK, "%s",
          err.message);
    CHECK(done.ticket == 77 && done.status == INF_OK, "%d", done.status);
    inf_step_span span = {.peer = 1, .handle = 5, .generation = 3, .n_tokens = LENT};
    worst = fmax(worst, advance(home, tokens, 20, 13, &span, 0, want));
    double empty = advance(home, tokens, 33, 1, &span, INF_STEP_EMPTY_REMOTE, want);
    for (uint32_t t = 33; t < TEXT; t++) {
        if (t > 37) {                   /* what it did last is not always what it replays next */
            uint32_t n = t % 2 ? 1 : 3; /* recorded, or not */
            worst = fmax(worst, advance(home, tokens, t - n, n, NULL, 0, want));
        }
        double once = advance(home, tokens, t, 1, &span, 0, want);
        double again = advance(home, tokens, t, 1, &span, 0, want);
        CHECK(once == again, "off by %g, and then by %g", once, again);
        worst = fmax(worst, once);
    }
    CHECK(worst < tolerance, "home of %d ranks, host of %d, dtype %d: off by %g", home_ranks,
          host_ranks, dtype, worst);
    CHECK(empty > tolerance, "without the partials it is off by %g only", empty);
    inf_device_stats s;
    CHECK(inf_device_stats_read(host, &s) == INF_OK && s.served_rows > 0 && s.refused_messages == 0,
          "%llu refused", (unsigned long long)s.refused_messages);
    inf_device_close(home);
    inf_device_close(host);
    tiny_free(&m);
}

/* ---- what cannot be ---- */

static void refused(tiny_model *m, int32_t ranks, int status, const char *text) {
    inf_device *d = NULL;
    inf_err err = {0};
    m->config.tensor_parallel = ranks;
    CHECK(inf_device_open(&m->config, m->inv_freq, m->windows, &d, &err) == status && d == NULL,
          "%d ranks: %s", ranks, err.message);
    CHECK(strstr(err.message, text) != NULL, "%s", err.message);
}

static void test_refusals(void) {
    tiny_model m = tiny_new(0, INF_DTYPE_F32);
    refused(&m, 4, INF_EUNSUPPORTED, "cannot cut 2 kv heads over 4 ranks");
    refused(&m, 3, INF_EINVAL, "cannot cut 4 heads and an intermediate size of 80 over 3 ranks");
    refused(&m, -1, INF_EINVAL, "tensor_parallel must be");
    refused(&m, 9, INF_EINVAL, "tensor_parallel must be");
    m.config.intermediate = 81;
    refused(&m, 2, INF_EINVAL, "an intermediate size of 81");
    tiny_free(&m);
}

int main(int argc, char **argv) {
    const struct {
        int32_t dtype;
        double tolerance;
    } formats[] = {{INF_DTYPE_F32, 1e-4}, {INF_DTYPE_BF16, 0.2}, {INF_DTYPE_F16, 0.03}};
    /* lent: only homes that record, for a run in which recordings come to nothing. */
    for (int f = 0; f < (on_gpu() ? 3 : 2); f++) {
        for (block = 4; block <= 8; block *= 2) {
            test_lent(INF_PROVIDER_SHM, formats[f].dtype, 1, 1, 2 * formats[f].tolerance);
        }
        block = 4;
    }
    if (argc > 1 && strcmp(argv[1], "lent") == 0) {
        puts("tensor parallelism, lent: ok");
        return 0;
    }
    const uint32_t flags[] = {0, INF_MODEL_QKV_BIAS | INF_MODEL_TIED, INF_MODEL_QK_NORM};
    for (int f = 0; f < (on_gpu() ? 3 : 2); f++) {
        for (int i = 0; i < 3; i++) {
            test_steps(flags[i], formats[f].dtype, 4, 2, 2, formats[f].tolerance);
            for (int32_t n = 1; n <= 4; n *= 2) {
                test_steps(flags[i], formats[f].dtype, 8, 4, n, formats[f].tolerance);
            }
        }
        test_steps(0, formats[f].dtype, 4, 4, 4, formats[f].tolerance); /* no groups */
        test_lent(INF_PROVIDER_SHM, formats[f].dtype, 2, 4, 2 * formats[f].tolerance);
    }
    const int32_t ranks[][2] = {{1, 2}, {2, 1}, {2, 2}, {4, 2}};
    for (int i = 0; i < 4; i++) {
        test_lent(i % 2 ? INF_PROVIDER_TCP : INF_PROVIDER_SHM, INF_DTYPE_F32, ranks[i][0],
                  ranks[i][1], 1e-4);
    }
    test_refusals();
    if (!on_gpu()) {
        test_sum();
        test_cpu_sum();
        test_blocks();
    }
    puts("tensor parallelism: ok");
    return 0;
}
