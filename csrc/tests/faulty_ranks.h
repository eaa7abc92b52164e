/* An instance of ranks that fail when a test says so: calls that give something run out, lanes
 * break, and sums end as the test wants it. */
#ifndef INF_TESTS_FAULTY_RANKS_H
#define INF_TESTS_FAULTY_RANKS_H

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

#endif
