/* The cases of bench_decode: a batch of one-token rows, where its blocks lie in the pool, and its
 * plan. */
#ifndef INF_BENCH_CUDA_DECODE_CASE_H
#define INF_BENCH_CUDA_DECODE_CASE_H

#include <algorithm>
#include <stdio.h>
#include <vector>

#include "bench/cuda/bench.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/plan.h"

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, BLOCK = 16, LAYERS = 32, MOST_CALLS = 32 };
enum { TOKEN_BYTES = 2 * KV_HEADS * DIM * 2 }; /* of a layer; half in e4m3 */
enum { MOST_BATCH = 64, MOST_PARTS = 1 << 15, MOST_WORK = 1 << 14 };

struct bench_case {
    char name[64];
    std::vector<uint32_t> contexts;
    double kv_bytes;    /* that one call reads */
    size_t most_layers; /* in the pool */
    bool sweep;         /* over forced chunks too */
    int32_t kv;         /* format */
    bool ordered;       /* the block table ascends */
    int block;          /* tokens of one */
    bool compact;       /* no gaps between blocks: the fewest pages */
};

struct device_state {
    int sms;
    uint8_t *pool;
    size_t pool_bytes;
    size_t copies, copy_bytes; /* of all that a call reads, which calls take in turn; 1: one */
    void *q, *o;
    float *lse, *part_o, *part_lse;
    int32_t *blocks;
    inf_cuda_segment *segments;
    inf_cuda_work *work;
    int32_t *n_work;
    uint32_t *off, *list, *done;
};

static bench_case uniform_case(int batch, uint32_t context) {
    bench_case c;
    snprintf(c.name, sizeof c.name, "%d x %uK", batch, context >> 10);
    c.contexts.assign((size_t)batch, context);
    c.most_layers = LAYERS, c.sweep = c.ordered = false, c.kv = INF_DTYPE_BF16, c.block = BLOCK;
    c.compact = false;
    return c;
}

static uint64_t blocks_of(const bench_case &c) {
    uint64_t n = 0, size = (uint64_t)c.block;
    for (uint32_t t : c.contexts) {
        n += (t + size - 1) / size;
    }
    return n;
}

/* Bytes of a number of K or V, and of a block's part of a layer. */
static int32_t elem_of(const bench_case &c) { return c.kv == INF_DTYPE_E4M3 ? 1 : 2; }
static uint64_t layer_bytes_of(const bench_case &c) {
    return TOKEN_BYTES / 2 * (uint64_t)c.block * (uint64_t)elem_of(c);
}

/* Uploads segments and a block table, random unless it is to be in order; returns the arguments but
 * for the plan's. */
static inf_cuda_attn set_case(const device_state &d, bench_case &c) {
    uint64_t needed = blocks_of(c), layer = layer_bytes_of(c);
    size_t layers = std::min<size_t>(c.most_layers, d.pool_bytes / (needed * layer));
    std::vector<int32_t> order(c.compact ? needed : d.pool_bytes / (layers * layer));
    for (size_t i = 0; i < order.size(); i++) {
        size_t j = c.ordered ? i : next_random() % (i + 1);
        order[i] = order[j];
        order[j] = (int32_t)i;
    }
    CUDA(cudaMemcpy(d.blocks, order.data(), needed * 4, cudaMemcpyHostToDevice));
    std::vector<inf_cuda_segment> segments;
    uint32_t block_off = 0, size = (uint32_t)c.block;
    c.kv_bytes = 0;
    for (uint32_t t : c.contexts) {
        segments.push_back({(uint32_t)segments.size(), 1, t - 1, 0, t, block_off});
        block_off += (t + size - 1) / size;
        c.kv_bytes += (double)t * KV_HEADS * DIM * 2 * elem_of(c);
    }
    CUDA(cudaMemcpy(d.segments, segments.data(), segments.size() * sizeof segments[0],
                    cudaMemcpyHostToDevice));
    inf_cuda_attn a = {};
    a.q = d.q, a.pool = d.pool, a.blocks = d.blocks, a.segments = d.segments;
    a.kv = {(int32_t)layers, KV_HEADS, c.block, DIM, c.kv, elem_of(c), layers * layer};
    a.work = d.work, a.n_work = d.n_work, a.o = d.o, a.lse = d.lse;
    a.part_o = d.part_o, a.part_lse = d.part_lse, a.off = d.off, a.list = d.list;
    a.act = INF_DTYPE_BF16, a.o_dtype = INF_DTYPE_BF16, a.heads = HEADS;
    a.scale = 0.08838834764831845f;
    a.rows = (int32_t)c.contexts.size();
    return a;
}

struct planned {
    int32_t pieces, parts;
    uint32_t biggest;
};

/* Plans with `resident` blocks per SM, and chunk tokens per piece unless 0; uploads. */
static planned set_plan(const device_state &d, const bench_case &c, int resident, int chunk) {
    static inf_cuda_work decode[MOST_WORK], prefill[MOST_WORK];
    static uint32_t off[MOST_BATCH + 1], list[MOST_PARTS];
    inf_cuda_plan_shape shape = {};
    shape.heads = HEADS, shape.kv_heads = KV_HEADS, shape.sms = d.sms;
    shape.decode_resident = resident, shape.decode_chunk = chunk;
    inf_cuda_plan_sizes sizes = {MOST_WORK, MOST_WORK, MOST_PARTS, MOST_BATCH};
    inf_cuda_plan_lists lists = {decode, prefill, off, list, 0, 0, 0};
    std::vector<inf_cuda_segment> segments;
    for (uint32_t t : c.contexts) {
        segments.push_back({(uint32_t)segments.size(), 1, t - 1, 0, t, 0});
    }
    int32_t n = (int32_t)segments.size();
    if (inf_cuda_plan(&shape, segments.data(), n, n, &sizes, &lists) != 0) {
        return {0, 0, 0};
    }
    CUDA(cudaMemcpy(d.work, decode, (size_t)lists.n_decode * sizeof decode[0],
                    cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(d.n_work, &lists.n_decode, 4, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(d.off, off, ((size_t)n + 1) * 4, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(d.list, list, (size_t)lists.n_parts * 4, cudaMemcpyHostToDevice));
    return {lists.n_decode, (int32_t)lists.n_parts, decode[0].tokens};
}

#endif
