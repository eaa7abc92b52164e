/* What fails in one rank: nothing of what the others gave stays behind (the address sanitizer
 * looks), and who asked is told which rank it was. */
#include <stdlib.h>
#include <string.h>

#include "kernels/tp/tp.h"
#include "tests/check.h"

enum { RANKS = 3, HEADS = 6, DIM = 4, HIDDEN = 10, INNER = 12, ROWS = 5 };

static const inf_device_config config = {.layers = 1,
                                         .hidden = HIDDEN,
                                         .intermediate = INNER,
                                         .heads = HEADS,
                                         .kv_heads = HEADS,
                                         .head_dim = DIM,
                                         .vocab = 7,
                                         .rope_scale = 1,
                                         .dtype = INF_DTYPE_F32,
                                         .block_size = 2,
                                         .num_blocks = 3,
                                         .max_rows = ROWS};
static const inf_kv_shape kv = {1, HEADS, 2, DIM, INF_DTYPE_F32, 4, 2 * HEADS * 2 * DIM * 4};
static const float inv_freq[DIM / 2] = {1, 0.1f};
static const int32_t windows[1];

/* ---- ranks that fail ---- */

static const inf_backend_ops *real;
static int countdown; /* calls that give something until one does not */
static inf_lane *lanes[RANKS];
static int n_lanes, n_syncs, n_closed, n_freed;
static int broken = -1; /* the rank whose lane fails */
static int broken_too = -1;
static inf_collective_end ended = {-1, 0}; /* how they come out of a wait */

static int runs_out(void) { return countdown-- == 0; }

static void *some_alloc(inf_backend *b, uint64_t bytes) {
    return runs_out() ? NULL : real->alloc(b, bytes);
}

static void some_free(inf_backend *b, void *device) {
    n_freed++;
    real->free(b, device);
}

static void some_free_pool(inf_backend *b, void *device, uint64_t bytes) {
    n_freed++;
    real->free_pool(b, device, bytes);
}

static void some_end(inf_backend *b) {
    n_freed++;
    real->close(b);
}

static void *some_pool(inf_backend *b, uint64_t bytes) {
    return runs_out() ? NULL : real->alloc_pool(b, bytes);
}

static void *some_matrix(inf_backend *b, int32_t dtype, const void *host, int32_t src_dtype,
                         int32_t n, int32_t k, int32_t cut) {
    CHECK(cut == INF_CUT_NONE);
    return runs_out() ? NULL : real->matrix(b, dtype, host, src_dtype, n, k, cut);
}

static void *some_adopt(inf_backend *b, void *host, uint64_t bytes, int32_t cut) {
    if (runs_out()) {
        free(host);
        return NULL;
    }
    return real->adopt(b, host, bytes, cut);
}

static int some_lane(inf_backend *b, const inf_lane_config *c, inf_lane **out, inf_err *err) {
    int status = runs_out() ? inf_fail(err, INF_ENOMEM, -1, -1, "there is none")
                            : real->lane_open(b, c, out, err);
    if (status == INF_OK) {
        lanes[n_lanes++ % RANKS] = *out;
    }
    return status;
}

static void some_close(inf_lane *l) {
    n_closed++;
    real->lane_close(l);
}

/* A sum of the CPU's that ends as the test wants it. */
typedef struct some_sum {
    inf_collective base;
    inf_collective *real;
} some_sum;

static tp_backend *watched; /* NULL: none */
static int n_given;

/* Nobody may allocate meanwhile. */
static void is_given(void) {
    n_given++;
    CHECK(watched == NULL || pthread_mutex_trylock(&watched->gate) != 0);
}

static void sum_all(inf_collective *c, void *const *y, uint64_t count) {
    is_given();
    inf_collective *sum = ((some_sum *)c)->real;
    sum->ops->sum(sum, y, count);
}

static void gather_all(inf_collective *c, float *const *part, float *whole, int32_t rows) {
    is_given();
    inf_collective *sum = ((some_sum *)c)->real;
    sum->ops->gather(sum, part, whole, rows);
}

static inf_collective_end sum_wait(inf_collective *c, int patient) {
    (void)c;
    (void)patient;
    return ended;
}

static void sum_close(inf_collective *c) {
    inf_collective *sum = ((some_sum *)c)->real;
    sum->ops->close(sum);
    free(c);
}

static int some_collective(const inf_collective_config *c, inf_collective **out, inf_err *err) {
    static const inf_collective_ops ops = {sum_all, gather_all, sum_wait, sum_close};
    some_sum *s = runs_out() ? NULL : calloc(1, sizeof *s);
    if (s == NULL) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1, "no sum");
    }
    s->base.ops = &ops;
    CHECK(real->collective_open(c, &s->real, err) == INF_OK);
    *out = &s->base;
    return INF_OK;
}

static int is_broken(const inf_lane *l) {
    return (broken >= 0 && l == lanes[broken]) || (broken_too >= 0 && l == lanes[broken_too]);
}

static int some_sync(inf_lane *l, inf_err *err) {
    n_syncs++;
    return is_broken(l) ? inf_fail(err, INF_EIO, -1, 4, "it broke") : INF_OK;
}

static int some_answer(inf_lane *l, const inf_attn *args, int32_t n, inf_err *err) {
    return is_broken(l) ? inf_fail(err, INF_EIO, -1, 4, "it broke") : real->answer(l, args, n, err);
}

static inf_backend *open_ranks(void) {
    static inf_backend_ops ops;
    inf_backend *ranks[RANKS], *b = NULL;
    inf_err err;
    for (int r = 0; r < RANKS; r++) {
        ranks[r] = inf_backend_cpu(1);
        CHECK(ranks[r] != NULL);
        real = ranks[r]->ops;
    }
    ops = *real;
    ops.alloc = some_alloc;
    ops.free = some_free;
    ops.free_pool = some_free_pool;
    ops.close = some_end;
    ops.alloc_pool = some_pool;
    ops.matrix = some_matrix;
    ops.adopt = some_adopt;
    ops.lane_open = some_lane;
    ops.collective_open = some_collective;
    ops.lane_close = some_close;
    ops.sync = some_sync;
    ops.answer = some_answer;
    for (int r = 0; r < RANKS; r++) {
        ranks[r]->ops = &ops;
    }
    CHECK(inf_backend_tp(ranks, RANKS, &config, &b, &err) == INF_OK);
    CHECK(b->ranks == RANKS && !b->host_memory);
    return b;
}

static inf_lane *open_lane(inf_backend *b, int32_t kind, uint8_t *pool, inf_err *err) {
    inf_lane_config c = {.kind = kind,
                         .device = &config,
                         .kv = kv,
                         .pool = pool,
                         .windows = windows,
                         .inv_freq = inv_freq,
                         .scale = 1,
                         .max_rows = ROWS,
                         .max_segments = 2,
                         .max_blocks = 3};
    inf_lane *l = NULL;
    CHECK((b->ops->lane_open(b, &c, &l, err) == INF_OK) == (l != NULL));
    return l;
}

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
    b->ops->begin(l, &step);
    watched = (tp_backend *)b;
    n_given = 0;
    inf_product sum = {y, down, NULL, y, 2, HIDDEN, INNER / RANKS, 0};
    b->ops->product_norm(l, &sum, x, NULL, y);
    CHECK(n_given == 1);
    inf_product logits = {x, head, NULL, y, 2, config.vocab, HIDDEN, 1};
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
    inf_attn a = {q, ROWS, HEADS, 9, pool, &kv, 0, blocks, 0, 2, 0, 1, o, lse};
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
