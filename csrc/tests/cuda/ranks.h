/* Ranks for tests: a small model's backends and lanes on GPUs. */
#ifndef INF_TESTS_RANKS_H
#define INF_TESTS_RANKS_H

#include "kernels/cuda/lane.h"
#include "tests/cuda/guarded.h"
#include "tests/fake/fake_nccl.h"

extern "C" int inf_cuda_backend_open_12(int32_t ordinal, const inf_device_config *config,
                                        uint64_t config_bytes, uint64_t ops_bytes,
                                        inf_backend **out, inf_err *err);

enum { HIDDEN = 96, INNER = 128, HEADS = 4, DIM = 16, ROWS = 21, VOCAB = 50, BLOCKS = 8 };

static inf_device_config config_of(int32_t dtype) {
    inf_device_config c = {};
    c.layers = 1, c.hidden = HIDDEN, c.intermediate = INNER, c.heads = c.kv_heads = HEADS;
    c.head_dim = DIM, c.vocab = VOCAB, c.rms_eps = 1e-5f, c.rope_scale = 1, c.dtype = dtype;
    c.block_size = 4, c.num_blocks = c.max_step_blocks = BLOCKS, c.max_tokens = 32;
    c.max_seqs = 2, c.max_rows = 32, c.max_spans = 1, c.threads = 1, c.gpu = 1;
    return c;
}

static inf_backend *open_gpu(int32_t ordinal, const inf_device_config *c) {
    inf_backend *b = NULL;
    inf_err err = {};
    int status = inf_cuda_backend_open_12(ordinal, c, sizeof *c, sizeof(inf_backend_ops), &b, &err);
    if (status != INF_OK) {
        printf("cannot open a backend: %s\n", err.message);
        exit(2);
    }
    return b;
}

static inf_lane_config lane_of(const inf_device_config *c) {
    static const int32_t windows[1] = {0};
    static const float inv_freq[DIM / 2] = {1, 0.5f, 0.25f, 0.1f, 0.05f, 0.01f, 0.001f, 0.0001f};
    inf_lane_config l = {};
    l.kind = INF_LANE_STEP, l.device = c, l.windows = windows, l.inv_freq = inv_freq, l.scale = 1;
    l.kv.layers = 1, l.kv.kv_heads = HEADS, l.kv.block_size = 4, l.kv.head_dim = DIM;
    l.kv.dtype = c->dtype, l.kv.elem = (int32_t)format_size(c->dtype);
    l.kv.block_bytes = (uint64_t)2 * HEADS * 4 * DIM * format_size(c->dtype);
    l.max_rows = 32, l.max_segments = 2, l.max_blocks = BLOCKS;
    return l;
}

/* Ranks with a lane each, and their sum. */
struct team {
    int32_t n;
    inf_backend *backends[INF_MAX_RANKS];
    inf_lane *lanes[INF_MAX_RANKS];
    inf_collective *sum;
};

/* apart: a GPU for each. Gathers are of ROWS rows at most. */
static team open_team(int32_t n, int32_t dtype, bool apart, int32_t cols = VOCAB) {
    team t = {};
    inf_device_config c = config_of(dtype);
    inf_lane_config lane = lane_of(&c);
    inf_err err = {};
    t.n = n;
    for (int32_t r = 0; r < n; r++) {
        t.backends[r] = open_gpu(apart ? r : 0, &c);
        if (t.backends[r]->ops->lane_open(t.backends[r], &lane, &t.lanes[r], &err) != INF_OK) {
            printf("cannot open a lane: %s\n", err.message);
            exit(2);
        }
    }
    inf_collective_config config = {n, t.backends, t.lanes, NULL, ROWS, cols};
    int status = t.backends[0]->ops->collective_open(&config, &t.sum, &err);
    if (status != INF_OK) {
        printf("cannot open a sum: %s\n", err.message);
        exit(2);
    }
    return t;
}

static void close_team(team *t) {
    t->sum->ops->close(t->sum);
    for (int32_t r = 0; r < t->n; r++) {
        t->backends[r]->ops->lane_close(t->lanes[r]);
        t->backends[r]->ops->close(t->backends[r]);
    }
}

#endif
