/* What fails in one rank: nothing of what the others gave stays behind (the address sanitizer
 * looks), and who asked is told which rank it was. */
#include "tests/faulty_ranks.h"

/* ---- memory that runs out ---- */

/* 1: everything was there. */
static int take_all(inf_backend *b) {
    enum { MATRICES = 4, LANES = 3 };
    const inf_backend_ops *ops = b->ops;
    static float host[HIDDEN * INNER];
    const int32_t cuts[MATRICES] = {INF_CUT_NONE, INF_CUT_ROWS, INF_CUT_COLUMNS, INF_CUT_SHARES};
    void *got[MATRICES + 3] = {NULL};
    inf_lane *lane[LANES] = {NULL};
    inf_err err;
    uint64_t pool_bytes = kv.block_bytes * 3;
    int ok = 1, n = 0;
    for (int i = 0; i < MATRICES && ok; i++) {
        int32_t rows = cuts[i] == INF_CUT_ROWS ? INNER : HIDDEN;
        got[n] = ops->matrix(b, INF_DTYPE_F32, host, INF_DTYPE_F32, rows, HIDDEN + INNER - rows,
                             cuts[i]);
        ok = got[n++] != NULL;
    }
    for (int i = 0; i < 2 && ok; i++) {
        float *vector = malloc(INNER * sizeof *vector);
        CHECK(vector != NULL);
        memset(vector, 0, INNER * sizeof *vector);
        got[n] = ops->adopt(b, vector, INNER * sizeof *vector, i ? INF_CUT_ROWS : INF_CUT_NONE);
        ok = got[n++] != NULL;
    }
    if (ok) {
        ok = (got[n++] = ops->alloc(b, 100)) != NULL;
    }
    uint8_t *pool = ok ? ops->alloc_pool(b, pool_bytes) : NULL;
    ok = ok && pool != NULL;
    for (int i = 0; i < LANES && ok; i++) {
        ok = (lane[i] = open_lane(b, INF_LANE_STEP + i, pool, &err)) != NULL;
    }
    for (int i = 0; i < LANES; i++) {
        ops->lane_close(lane[i]);
    }
    for (int i = 0; i < n; i++) {
        ops->free(b, got[i]);
    }
    ops->free_pool(b, pool, pool_bytes);
    return ok;
}

static void test_memory(void) {
    int k = 0, ok = 0;
    for (; !ok; k++) {
        inf_backend *b = open_ranks();
        countdown = k;
        ok = take_all(b);
        CHECK(ok == (countdown >= 0));
        if (!ok) { /* and the backend is as it was */
            countdown = 1000;
            CHECK(take_all(b));
        }
        b->ops->close(b);
    }
    CHECK(k > 8 * RANKS);
    countdown = 1000;
}

/* ---- lanes that fail ---- */

static void test_sync(void) {
    inf_backend *b = open_ranks();
    uint8_t *pool = b->ops->alloc_pool(b, kv.block_bytes * 3);
    inf_err err;
    inf_lane *l = open_lane(b, INF_LANE_STEP, pool, &err);
    CHECK(pool != NULL && l != NULL);
    for (broken = -1; broken < RANKS; broken++) {
        char want[32];
        n_syncs = 0;
        int status = b->ops->sync(l, &err);
        CHECK(n_syncs == RANKS); /* those behind a broken one are waited for */
        CHECK(status == (broken < 0 ? INF_OK : INF_EIO));
        snprintf(want, sizeof want, "rank %d: it broke", broken);
        CHECK(broken < 0 || (err.layer == 4 && strcmp(err.message, want) == 0));
    }
    broken = -1;
    b->ops->lane_close(l);
    b->ops->free_pool(b, pool, kv.block_bytes * 3);
    b->ops->close(b);
}

/* Of several that failed, the one that did so first. */
static void test_first(void) {
    inf_backend *b = open_ranks();
    uint8_t *pool = b->ops->alloc_pool(b, kv.block_bytes * 3);
    inf_err err;
    n_lanes = 0;
    inf_lane *l = open_lane(b, INF_LANE_STEP, pool, &err);
    CHECK(pool != NULL && l != NULL);
    broken = 0;
    broken_too = RANKS - 1;
    for (int32_t first = -1; first <= RANKS; first++) {
        ended.failed = first;
        n_syncs = 0;
        CHECK(b->ops->sync(l, &err) == INF_EIO && n_syncs == RANKS);
        CHECK(strcmp(err.message, first == RANKS - 1 ? "rank 2: it broke" : "rank 0: it broke") ==
              0);
    }
    broken = broken_too = ended.failed = -1;
    b->ops->lane_close(l);
    b->ops->free_pool(b, pool, kv.block_bytes * 3);
    b->ops->close(b);
}

/* While a GPU does not come to an end nothing is asked of it that would wait for that, and what it
 * may write to stays when the instance is closed. */
static void test_busy(void) {
    inf_backend *b = open_ranks();
    uint8_t *pool = b->ops->alloc_pool(b, kv.block_bytes * 3);
    void *memory = b->ops->alloc(b, 100);
    inf_err err;
    n_lanes = 0;
    inf_lane *l = open_lane(b, INF_LANE_STEP, pool, &err);
    CHECK(pool != NULL && memory != NULL && l != NULL);
    ended = (inf_collective_end){1, 1};
    n_freed = 0;
    CHECK(open_lane(b, INF_LANE_COPY, pool, &err) == NULL);
    CHECK(strcmp(err.message, "cannot open a lane: rank 1 failed") == 0 && n_lanes == RANKS);
    ended.failed = RANKS;
    CHECK(open_lane(b, INF_LANE_COPY, pool, &err) == NULL);
    CHECK(strcmp(err.message, "cannot open a lane: the ranks failed") == 0);
    n_closed = 0;
    float *logits = ((tp_lane *)(void *)l)->logits;
    b->ops->lane_close(l);
    ended = (inf_collective_end){-1, 0}; /* there is no sum any more that would say otherwise */
    CHECK(open_lane(b, INF_LANE_COPY, pool, &err) == NULL);
    CHECK(strcmp(err.message, "cannot open a lane: the ranks failed") == 0);
    b->ops->free(b, memory);
    b->ops->free_pool(b, pool, kv.block_bytes * 3);
    b->ops->close(b);
    CHECK(n_closed == 0 && n_freed == 0);
    ((tp_backend *)b)->busy = 0; /* now the test takes back what was left */
    real->free(b, logits);
    for (int r = 0; r < RANKS; r++) {
        real->lane_close(lanes[r]);
    }
    b->ops->free(b, memory);
    b->ops->free_pool(b, pool, kv.block_bytes * 3);
    b->ops->close(b);
    CHECK(n_freed == 3 * RANKS);
}

/* What the ranks do together is given to all of them under the gate. */
static void test_gate(void) {
    static float host[HIDDEN * INNER];
    inf_backend *b = open_ranks();
    uint8_t *pool = b->ops->alloc_pool(b, kv.block_bytes * 3);
    inf_err err;
    inf_lane *l = open_lane(b, INF_LANE_STEP, pool, &err);
    CHECK(pool != NULL && l != NULL);
    float *x = b->ops->alloc(b, sizeof host), *y = b->ops->alloc(b, sizeof host);
    void *down =
        b->ops->matrix(b, INF_DTYPE_F32, host, INF_DTYPE_F32, HIDDEN, INNER, INF_CUT_COLUMNS);
    void *head =
        b->ops->matrix(b, INF_DTYPE_F32, host, INF_DTYPE_F32, config.vocab, HIDDEN, INF_CUT_SHARES);
    inf_step_head step_head = {.n_tokens = 2};
    inf_step_buffers step = {.head = &step_head};
    b->ops->begin(l, &step, NULL);
    watched = (tp_backend *)b;
    n_given = 0;
    inf_product sum = {y, down, NULL, y, 2, HIDDEN, INNER / RANKS, 0, 0};
    b->ops->product_norm(l, &sum, x, NULL, NULL, NULL);
    CHECK(n_given == 1);
    inf_product logits = {x, head, NULL, y, 2, config.vocab, HIDDEN, 1, 0};
    b->ops->product(l, &logits);
    CHECK(n_given == 2);
    watched = NULL;
    void *all[] = {x, y, down, head};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        b->ops->free(b, all[i]);
    }
    b->ops->lane_close(l);
    b->ops->free_pool(b, pool, kv.block_bytes * 3);
    b->ops->close(b);
}

static void test_answer(void) {
    inf_backend *b = open_ranks();
    uint8_t *pool = b->ops->alloc_pool(b, kv.block_bytes * 3);
    inf_err err;
    inf_lane *l = open_lane(b, INF_LANE_ANSWER, pool, &err);
    CHECK(pool != NULL && l != NULL);
    static float q[(ROWS + 1) * HEADS * DIM], o[(ROWS + 1) * HEADS * DIM], lse[(ROWS + 1) * HEADS];
    const int32_t blocks[1] = {2};
    inf_attn a = {q, ROWS, HEADS, 9, pool, &kv, 0, blocks, 0, 2, 0, 1, 0, o, lse};
    CHECK(b->ops->answer(l, &a, 1, &err) == INF_OK);
    for (int i = 0; i < ROWS * HEADS; i++) { /* two keys that are zero: ln 2 */
        CHECK(lse[i] > 0.693f && lse[i] < 0.694f);
    }
    CHECK(b->ops->answer(l, &a, 0, &err) == INF_OK);
    broken = 1;
    CHECK(b->ops->answer(l, &a, 1, &err) == INF_EIO &&
          strcmp(err.message, "rank 1: it broke") == 0);
    broken = -1;
    a.rows = ROWS + 1;
    CHECK(b->ops->answer(l, &a, 1, &err) == INF_EINVAL);
    b->ops->lane_close(l);
    b->ops->free_pool(b, pool, kv.block_bytes * 3);
    b->ops->close(b);
}

/* ---- ranks that do not go together ---- */

static void test_refusals(void) {
    for (int32_t n = 0; n <= INF_MAX_RANKS + 1; n++) {
        inf_backend *ranks[INF_MAX_RANKS + 1], *b = NULL;
        inf_err err;
        for (int32_t r = 0; r < n; r++) {
            ranks[r] = inf_backend_cpu(1);
        }
        int fits = n == 2 || n == 3 || n == 6;
        CHECK(inf_backend_tp(ranks, n, &config, &b, &err) == (fits ? INF_OK : INF_EINVAL));
        CHECK((b != NULL) == fits);
        if (b != NULL) { /* no backend of backends of backends */
            inf_backend *nested[2] = {b, inf_backend_cpu(1)}, *none = NULL;
            CHECK(inf_backend_tp(nested, 2, &config, &none, &err) == INF_EUNSUPPORTED);
            CHECK(none == NULL);
        }
    }
}

int main(void) {
    countdown = 1000;
    test_memory();
    test_sync();
    test_first();
    test_busy();
    test_gate();
    test_answer();
    test_refusals();
    puts("faults of ranks: ok");
    return 0;
}
