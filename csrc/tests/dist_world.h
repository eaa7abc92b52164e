/* Instances of DistAttention in one process, each with its own pool, joined by real links: requests
 * whose KV is lent to peers by real moves, steps over them, and attention over the whole in double.
 */
#ifndef INF_TESTS_DIST_WORLD_H
#define INF_TESTS_DIST_WORLD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "dist/dist.h"
#include "dist/wire.h"
#include "link_ends.h"

#ifndef W_BLOCK_TOKENS
#define W_BLOCK_TOKENS 4 /* a test may have larger blocks */
#endif

enum {
    W_LAYERS = 3,
    W_HEADS = 4,
    W_KV_HEADS = 2,
    W_DIM = 16,
    W_BLOCK = W_BLOCK_TOKENS,
    W_ROW = W_HEADS * W_DIM,
    W_TOKENS = 112,
    W_SPANS = 16,
    W_HANDLES = 16,
    W_MAX_REQS = 4,
    W_SLOTS = 2,
};

#define W_SCALE   0.25f
#define W_LONG_NS INT64_C(60000000000) /* no test depends on how fast a machine is */

static const int32_t W_WINDOWS[W_LAYERS] = {0, 40, 9};

typedef struct {
    inf_dist *d;
    uint8_t *pool;
    inf_device_config config;
    inf_kv_shape kv;
    const inf_ops *ops;
    inf_backend *backend;
    int32_t next_block;
    uint32_t next_handle;
} inst;

static inline uint64_t w_next(uint64_t *rng) {
    *rng ^= *rng << 13;
    *rng ^= *rng >> 7;
    *rng ^= *rng << 17;
    return *rng * 0x2545f4914f6cdd1du;
}

static inline float w_float(uint64_t *rng) { return (float)(w_next(rng) >> 40) * 0x1p-23f - 1; }

/* max_step_spans: 0 for an instance that only hosts. */
/* The CPU's backend, but that partials are merged into the test's own memory: the lane is a step's.
 */
typedef struct {
    float *o, *lse;
} w_lane;

static inline int w_merge(inf_lane *lane, uint32_t row0, int32_t rows, const float *o2,
                          const float *lse2, int32_t stride) {
    CHECK(stride == W_HEADS);
    const w_lane *l = (const w_lane *)(const void *)lane;
    inf_ops_cpu(0)->merge(l->o + (size_t)row0 * W_ROW, l->lse + (size_t)row0 * W_HEADS, o2, lse2,
                          rows, W_HEADS, W_DIM);
    return 0;
}

static inline void w_queries(inf_lane *lane, const void *q, uint32_t row0, int32_t rows,
                             float *host, int32_t stride) {
    CHECK(stride == W_HEADS);
    (void)lane;
    memcpy(host, (const float *)q + (size_t)row0 * W_ROW, (size_t)rows * W_ROW * sizeof(float));
}

static inline inf_backend *w_backend(void) {
    static inf_backend_ops ops;
    inf_backend *b = inf_backend_cpu(0);
    CHECK(b != NULL);
    if (ops.close == NULL) {
        ops = *b->ops;
        ops.merge = w_merge;
        ops.queries = w_queries;
    }
    b->ops = &ops;
    return b;
}

/* awake_ns of backends that are opened. */
static int64_t w_awake_ns;

static inline inst w_open_with(int32_t num_blocks, int32_t max_step_spans) {
    inst w = {0};
    w.config = (inf_device_config){.layers = W_LAYERS,
                                   .heads = W_HEADS,
                                   .kv_heads = W_KV_HEADS,
                                   .head_dim = W_DIM,
                                   .dtype = INF_DTYPE_F32,
                                   .block_size = W_BLOCK,
                                   .num_blocks = num_blocks,
                                   .max_tokens = W_TOKENS,
                                   .max_seqs = W_MAX_REQS,
                                   .max_step_spans = max_step_spans,
                                   .max_spans = W_HANDLES,
                                   .threads = 2};
    w.kv = (inf_kv_shape){W_LAYERS,
                          W_KV_HEADS,
                          W_BLOCK,
                          W_DIM,
                          INF_DTYPE_F32,
                          sizeof(float),
                          (uint64_t)W_LAYERS * 2 * W_KV_HEADS * W_BLOCK * W_DIM * sizeof(float)};
    w.backend = w_backend();
    w.backend->awake_ns = w_awake_ns;
    w.ops = inf_ops_cpu(0);
    w.pool = malloc((size_t)num_blocks * w.kv.block_bytes);
    CHECK(w.ops != NULL && w.pool != NULL);
    memset(w.pool, 0xa5, (size_t)num_blocks * w.kv.block_bytes);
    inf_dist_config c = {w.backend, &w.config, w.kv, w.pool, W_WINDOWS, W_SCALE};
    inf_err err;
    CHECK(inf_dist_open(&c, &w.d, &err) == INF_OK);
    return w;
}

static inline inst w_open(int32_t num_blocks) { return w_open_with(num_blocks, W_SPANS); }

static inline void w_close(inst *w) {
    inf_dist_close(w->d);
    w->backend->ops->close(w->backend);
    free(w->pool);
    *w = (inst){0};
}

/* Orders the caller's look at the pool with what landed there: a race detector does not see that a
 * message over shared memory orders anything. */
static inline void w_sync(inst *w) {
    CHECK(inf_dist_span_close(w->d, W_HANDLES - 1, 0, NULL) == INF_ESTALE);
}

static inline uint8_t *w_block(const inst *w, int32_t block) {
    return w->pool + (uint64_t)block * w->kv.block_bytes;
}

/* ---- links ---- */

/* memory, unless NULL: one more descriptor of a shm link's memory, the caller's to close. */
static inline void w_link(uint32_t provider, uint64_t slot_bytes, inf_link **client,
                          inf_link **server, int *memory) {
    link_ends e = make_ends(provider, W_SLOTS, slot_bytes);
    if (memory != NULL && e.mem >= 0) {
        *memory = dup(e.mem);
    }
    open_ends(&e, client, server);
}

/* The two lanes; index 0 is the query lane. */
static inline void w_lanes(uint32_t provider, const inst *w, inf_link *client[2],
                           inf_link *server[2]) {
    w_link(provider, inf_dist_query_slot_bytes(&w->config), &client[0], &server[0], NULL);
    w_link(provider, inf_dist_move_slot_bytes(&w->config), &client[1], &server[1], NULL);
}

/* debtor knows creditor as peer `to`, creditor knows debtor as peer `from`. */
static inline void w_join(uint32_t provider, inst *debtor, uint32_t to, inst *creditor,
                          uint32_t from) {
    inf_link *c[2], *s[2];
    inf_err err;
    w_lanes(provider, debtor, c, s);
    CHECK(inf_dist_peer_serve(creditor->d, from, s[0], s[1], &err) == INF_OK);
    CHECK(inf_dist_peer_attach(debtor->d, to, c[0], c[1], &err) == INF_OK);
}

static inline void w_expect_status(inst *w, uint32_t peer, int status) {
    inf_err err;
    int is = INF_OK;
    for (int i = 0; i < 60000 && (is = inf_dist_peer_status(w->d, peer, &err)) == INF_OK; i++) {
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    CHECK(is == status && err.instance == (int32_t)peer);
}

static inline inf_move_done w_move_wait(inst *w) {
    inf_move_done done;
    inf_err err;
    CHECK(inf_dist_move_wait(w->d, W_LONG_NS, &done, &err) == INF_OK);
    return done;
}

/* ---- requests ---- */

enum { W_MAX_POS = 160 };

typedef struct {
    uint32_t pos0, rows, local_pos0, n_spans;
    inf_step_span spans[W_SPANS];
    int32_t blocks[W_MAX_POS / W_BLOCK];
    float k[W_LAYERS][W_MAX_POS][W_KV_HEADS][W_DIM];
    float v[W_LAYERS][W_MAX_POS][W_KV_HEADS][W_DIM];
} req;

/* A request of pos0 tokens so far, of which the next step computes rows more; all KV is local. */
static inline req *w_req(inst *home, uint32_t pos0, uint32_t rows, uint64_t *rng) {
    req *r = calloc(1, sizeof *r);
    CHECK(r != NULL && pos0 + rows <= W_MAX_POS);
    r->pos0 = pos0;
    r->rows = rows;
    for (uint32_t p = 0; p < pos0 + rows; p++) {
        if (p % W_BLOCK == 0) {
            r->blocks[p / W_BLOCK] = home->next_block++;
            CHECK(home->next_block <= home->config.num_blocks);
        }
        uint8_t *b = w_block(home, r->blocks[p / W_BLOCK]);
        for (int32_t l = 0; l < W_LAYERS; l++) {
            for (int32_t h = 0; h < W_KV_HEADS; h++) {
                for (int d = 0; d < W_DIM; d++) {
                    r->k[l][p][h][d] = 2 * w_float(rng);
                    r->v[l][p][h][d] = w_float(rng);
                }
                int32_t t = (int32_t)(p % W_BLOCK);
                memcpy(b + inf_kv_offset(&home->kv, l, 0, h, t), r->k[l][p][h], W_DIM * 4);
                memcpy(b + inf_kv_offset(&home->kv, l, 1, h, t), r->v[l][p][h], W_DIM * 4);
            }
        }
    }
    return r;
}

/* Moves the request's oldest n local blocks to creditor, which home knows as `to`. What is left of
 * them at home becomes NaN, so that nobody can have read it there. */
static inline void w_lend(inst *home, req *r, inst *creditor, uint32_t to, uint32_t from,
                          int32_t n) {
    static const uint32_t generation = 3;
    int32_t theirs[W_MAX_POS], *mine = &r->blocks[r->local_pos0 / W_BLOCK];
    uint32_t handle = creditor->next_handle++;
    inf_err err;
    for (int32_t i = 0; i < n; i++) {
        theirs[i] = creditor->config.num_blocks - ++creditor->next_block;
    }
    CHECK(inf_dist_span_set(creditor->d, from, handle, generation, theirs, n, &err) == INF_OK);
    CHECK(inf_dist_move_post(home->d, to, handle, generation, 0, mine, n, handle + 100, &err) ==
          INF_OK);
    inf_move_done done = w_move_wait(home);
    CHECK(done.ticket == handle + 100 && done.status == INF_OK);
    w_sync(creditor);
    for (int32_t i = 0; i < n; i++) {
        CHECK(memcmp(w_block(home, mine[i]), w_block(creditor, theirs[i]),
                     creditor->kv.block_bytes) == 0);
        memset(w_block(home, mine[i]), 0xff, home->kv.block_bytes);
    }
    uint32_t tokens = (uint32_t)n * W_BLOCK;
    CHECK(r->n_spans < W_SPANS && r->local_pos0 + tokens <= r->pos0);
    r->spans[r->n_spans++] = (inf_step_span){.peer = to,
                                             .handle = handle,
                                             .generation = generation,
                                             .pos0 = r->local_pos0,
                                             .n_tokens = tokens};
    r->local_pos0 += tokens;
}

/* ---- steps ---- */

typedef struct {
    inf_step_buffers b;
    inf_step_head head;
    inf_step_seq seqs[W_MAX_REQS];
    inf_step_span spans[W_SPANS];
    inf_seq_out seq_out[W_MAX_REQS];
    float q[W_TOKENS * W_ROW], o[W_TOKENS * W_ROW], lse[W_TOKENS * W_HEADS];
    float local[W_TOKENS * W_ROW]; /* o before the partials came */
    w_lane lane;
} step;

static inline inf_lane *w_step_lane(step *s) {
    s->lane = (w_lane){s->o, s->lse};
    return (inf_lane *)(void *)&s->lane;
}

static inline void w_begin(inst *home, step *s, req *const *reqs, uint32_t n, uint64_t id) {
    s->head = (inf_step_head){.step_id = id, .peer_timeout_ns = (uint64_t)W_LONG_NS, .n_seqs = n};
    for (uint32_t i = 0; i < n; i++) {
        const req *r = reqs[i];
        s->seqs[i] = (inf_step_seq){.slot = i,
                                    .token_off = s->head.n_tokens,
                                    .n_tokens = r->rows,
                                    .pos0 = r->pos0,
                                    .local_pos0 = r->local_pos0,
                                    .span_off = s->head.n_spans,
                                    .n_spans = r->n_spans};
        CHECK(s->head.n_spans + r->n_spans <= W_SPANS && s->head.n_tokens + r->rows <= W_TOKENS);
        memcpy(&s->spans[s->head.n_spans], r->spans, r->n_spans * sizeof *r->spans);
        s->head.n_tokens += r->rows;
        s->head.n_spans += r->n_spans;
        s->seq_out[i] = (inf_seq_out){INF_OK, -1};
    }
    s->b = (inf_step_buffers){
        .head = &s->head, .seqs = s->seqs, .spans = s->spans, .seq_out = s->seq_out};
    inf_dist_end(home->d); /* of a step that a test left in the middle */
    inf_dist_begin(home->d, &s->b, NULL);
}

static inline int32_t w_post(inst *home, step *s, int32_t layer, uint64_t *rng) {
    for (uint32_t i = 0; i < s->head.n_tokens * W_ROW; i++) {
        s->q[i] = 2 * w_float(rng);
    }
    inf_dist_ask(home->d, &s->b, layer, w_step_lane(s), s->q);
    return inf_dist_post(home->d, &s->b, w_step_lane(s));
}

static inline void w_attend(inst *home, step *s, req *const *reqs, int32_t layer) {
    for (uint32_t i = 0; i < s->head.n_seqs; i++) {
        const req *r = reqs[i];
        uint32_t off = s->seqs[i].token_off;
        inf_attn a = {.q = s->q + (size_t)off * W_ROW,
                      .rows = (int32_t)r->rows,
                      .heads = W_HEADS,
                      .q_pos0 = r->pos0,
                      .pool = home->pool,
                      .kv = &home->kv,
                      .layer = layer,
                      .blocks = &r->blocks[r->local_pos0 / W_BLOCK],
                      .kv_pos0 = r->local_pos0,
                      .n_tokens = r->pos0 + r->rows - r->local_pos0,
                      .window = W_WINDOWS[layer],
                      .scale = W_SCALE,
                      .o = s->o + (size_t)off * W_ROW,
                      .lse = s->lse + (size_t)off * W_HEADS};
        home->ops->attention(NULL, &a, 1);
    }
    memcpy(s->local, s->o, s->head.n_tokens * W_ROW * sizeof(float));
}

/* One layer; returns the number of creditors asked. */
static inline int32_t w_layer(inst *home, step *s, req *const *reqs, int32_t layer, uint64_t *rng) {
    int32_t asked = w_post(home, s, layer, rng);
    w_attend(home, s, reqs, layer);
    if (asked > 0) {
        inf_dist_collect(home->d, &s->b, w_step_lane(s));
    }
    return asked;
}

/* Largest difference of the request's rows from attention over all of its KV. */
static inline double w_error(const step *s, const req *r, uint32_t seq, int32_t layer) {
    double worst = 0;
    for (uint32_t row = 0; row < r->rows; row++) {
        for (int h = 0; h < W_HEADS; h++) {
            size_t at = (size_t)(s->seqs[seq].token_off + row) * W_HEADS + (size_t)h;
            uint32_t pos = r->pos0 + row, from = 0;
            if (W_WINDOWS[layer] > 0 && pos + 1 > (uint32_t)W_WINDOWS[layer]) {
                from = pos + 1 - (uint32_t)W_WINDOWS[layer];
            }
            double o[W_DIM] = {0}, sum = 0;
            int g = h / (W_HEADS / W_KV_HEADS);
            for (uint32_t p = from; p <= pos; p++) {
                double dot = 0;
                for (int d = 0; d < W_DIM; d++) {
                    dot += (double)s->q[at * W_DIM + (size_t)d] * r->k[layer][p][g][d];
                }
                double e = exp(dot * W_SCALE);
                sum += e;
                for (int d = 0; d < W_DIM; d++) {
                    o[d] += e * r->v[layer][p][g][d];
                }
            }
            for (int d = -1; d < W_DIM; d++) {
                double diff =
                    d < 0 ? log(sum) - s->lse[at] : o[d] / sum - s->o[at * W_DIM + (size_t)d];
                worst = isnan(diff) ? INFINITY : fmax(worst, fabs(diff));
            }
        }
    }
    return worst;
}

#endif
