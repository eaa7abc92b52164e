/* A GPU with a pool and pinned slots beside the CPU with the same pool: one backend, or one that is
 * made of two, of which each has its heads of every row. */
#ifndef INF_ANSWER_RIG_H
#define INF_ANSWER_RIG_H

#include <sys/mman.h>

#include "kernels/convert.h"
#include "kernels/cuda/lane.h"
#include "kernels/tp/tp.h"
#include "tests/cuda/guarded.h"

extern "C" int inf_cuda_backend_open_12(int32_t ordinal, const inf_device_config *config,
                                        uint64_t config_bytes, uint64_t ops_bytes,
                                        inf_backend **out, inf_err *err);

enum { LAYERS = 4, HEADS = 4, KV_HEADS = 2, DIM = 64, BLOCK = 16, BLOCKS = 48, ROWS = 80 };
enum {
    ROW = HEADS * DIM,
    ANSWER_ROWS = 24,
    IN_PLACE = 40,
    SEGMENTS = 96,
    SLOT = 1 << 20,
    SLOTS = 3
};

static const int32_t WINDOWS[LAYERS] = {0, 0, 100, 0};
static inf_err err;

struct rig {
    inf_device_config config;
    inf_kv_shape kv;
    inf_backend *gpu, *cpu;
    std::vector<uint8_t> cpu_pool;
    uint8_t *pool;
    int32_t ranks;  /* of gpu */
    uint8_t *slots; /* [2 * SLOTS] of SLOT bytes: whole pages, as a link's are */
};

static inf_backend *open_gpu(const inf_device_config *c, int32_t ranks) {
    inf_backend *part[INF_MAX_RANKS] = {}, *b = NULL;
    for (int32_t i = 0; i < ranks; i++) {
        CHECK(inf_cuda_backend_open_12(0, c, sizeof *c, sizeof(inf_backend_ops), &part[i], &err) ==
                  INF_OK,
              "%s", err.message);
    }
    if (ranks == 1) {
        return part[0];
    }
    CHECK(inf_backend_tp(part, ranks, c, &b, &err) == INF_OK, "%s", err.message);
    return b;
}

/* The lane of a rank, and its part of device memory. */
static inf_lane *lane_of(const rig *r, inf_lane *lane, int32_t rank) {
    return r->ranks == 1 ? lane : ((tp_lane *)(void *)lane)->rank[rank];
}

static inf_lane *open_lane(rig *r, inf_backend *b, int32_t kind);

/* Numbers, or codes of small ones. */
static void fill_pool(rig *r) {
    r->cpu_pool.resize(r->kv.block_bytes * BLOCKS);
    for (size_t i = 0; i < r->cpu_pool.size(); i += (size_t)r->kv.elem) {
        float x = number();
        r->cpu_pool[i] = (uint8_t)(below(0x39) | below(2) << 7);
        if (r->kv.elem > 1) {
            inf_convert(&r->cpu_pool[i], r->kv.dtype, &x, INF_DTYPE_F32, 1);
        }
    }
    r->pool = (uint8_t *)r->gpu->ops->alloc_pool(r->gpu, r->cpu_pool.size());
    CHECK(r->pool != NULL, "no pool");
    inf_lane *lane = open_lane(r, r->gpu, INF_LANE_COPY);
    r->gpu->ops->copy_in(lane, r->pool, r->cpu_pool.data(), r->cpu_pool.size());
    CHECK(r->gpu->ops->sync(lane, &err) == INF_OK, "%s", err.message);
    r->gpu->ops->lane_close(lane);
}

static rig open_rig(int32_t ranks, int32_t kv_dtype, int32_t act) {
    rig r = {};
    r.ranks = ranks;
    r.config.layers = LAYERS;
    r.config.hidden = ROW;
    r.config.intermediate = 64;
    r.config.vocab = 64;
    r.config.heads = HEADS;
    r.config.kv_heads = KV_HEADS;
    r.config.head_dim = DIM;
    r.config.dtype = act;
    r.config.block_size = BLOCK;
    r.config.num_blocks = BLOCKS;
    r.config.max_tokens = r.config.max_rows = ROWS;
    r.config.max_seqs = 8;
    r.config.max_step_blocks = BLOCKS;
    r.config.max_step_spans = SEGMENTS;
    r.config.rope_scale = 1;
    uint64_t elem = format_size(kv_dtype), layer = 2 * KV_HEADS * BLOCK * DIM * elem;
    r.kv = {LAYERS, KV_HEADS, BLOCK, DIM, kv_dtype, (int32_t)elem, LAYERS * layer};
    r.gpu = open_gpu(&r.config, ranks);
    r.cpu = inf_backend_cpu(0);
    fill_pool(&r);
    r.slots = (uint8_t *)mmap(NULL, 2 * SLOTS * SLOT, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(r.slots != MAP_FAILED, "map");
    return r;
}

static inf_lane *open_lane(rig *r, inf_backend *b, int32_t kind) {
    static float inv_freq[DIM / 2];
    inf_lane_config c = {};
    inf_lane *lane = NULL;
    c.kind = kind;
    c.device = &r->config;
    c.kv = r->kv;
    c.pool = b == r->gpu ? r->pool : r->cpu_pool.data();
    c.windows = WINDOWS;
    c.inv_freq = inv_freq;
    c.scale = 0.125f;
    c.max_rows = kind == INF_LANE_ANSWER ? (int32_t)ANSWER_ROWS : (int32_t)ROWS;
    c.max_segments = SEGMENTS;
    c.max_blocks = BLOCKS * 2;
    CHECK(b->ops->lane_open(b, &c, &lane, &err) == INF_OK, "%s", err.message);
    return lane;
}

/* Ranks, format of KV (the CPU has none in f16), act. */
static const int32_t RIGS[][3] = {
    {1, INF_DTYPE_F32, INF_DTYPE_F32},   {1, INF_DTYPE_E4M3, INF_DTYPE_F32},
    {2, INF_DTYPE_F32, INF_DTYPE_F32},   {2, INF_DTYPE_E4M3, INF_DTYPE_F32},
    {1, INF_DTYPE_BF16, INF_DTYPE_BF16}, {1, INF_DTYPE_E4M3, INF_DTYPE_F16},
    {1, INF_DTYPE_E4M3, INF_DTYPE_BF16}, {2, INF_DTYPE_BF16, INF_DTYPE_BF16}};

static void close_rig(rig *r) {
    r->gpu->ops->free_pool(r->gpu, r->pool, r->cpu_pool.size());
    r->gpu->ops->close(r->gpu);
    r->cpu->ops->close(r->cpu);
    munmap(r->slots, 2 * SLOTS * SLOT);
}

#endif
