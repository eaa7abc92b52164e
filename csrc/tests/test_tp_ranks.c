/* What the ranks of an instance do together, on the CPU: without the sum over ranks, or the gather
 * of the logits, the forward pass is another; and a block is cut over their pools. */
#include "tests/tp_text.h"

#include "model/forward.h"

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
    inf_step_buffers step = {&head, &seq, tokens, blocks, NULL, rows, NULL, out, &seq_out};
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
                CHECK(inf_weights_load(w, role, layer, -1, INF_DTYPE_F32, m->rows[role],
                                       m->cols[role], m->tensors[l][role], bytes, &err) == INF_OK,
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

int main(void) {
    test_sum();
    test_cpu_sum();
    test_blocks();
    puts("what ranks do together: ok");
    return 0;
}
