/* Prefill attention's speed on this GPU, one layer of Llama-3-8B's shape: 32 query heads, 8 kv
 * heads, head_dim 128, bf16, blocks of 16 tokens, block tables in random order. Every variant on
 * prompts of several lengths, and on a chunk at the end of a long context.
 *
 * Flops are those of visible (row, key) pairs: 4 head_dim per pair and query head. "whole" is
 * pieces of 128 rows with all of their keys, "plan" the pieces of plan.c with the merge of their
 * partials, as a step runs them. Calls are recorded in a graph, as those of peers.py are; the two
 * cuts are replayed by turns, since a GPU's clock is not the same after a second, and the time is
 * the median. Output: a table, and JSON lines, into the file of argv[1] when there is one. */
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "bench/cuda/bench.h"
#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/plan.h"

enum { HEADS = 32, KV_HEADS = 8, DIM = 128, BLOCK = 16, LAYERS = 2 };
enum { WHOLE, PLAN, CUTS };
enum { CALLS = 16, REPLAYS = 9 }; /* as in peers.py; fewer calls where they are long */
enum { MOST_TOKENS = 1 << 17, MOST_ROWS = 1 << 15, MOST_PARTS = 1 << 15, MOST_WORK = 1 << 14 };

static cudaStream_t stream;
static FILE *json;
static int sms;

/* bf16 numbers in (-1, 1). */
static __global__ void fill_kernel(uint16_t *p, size_t n, uint32_t salt) {
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t h = ((uint32_t)i + salt) * 2654435761u;
        h = (h ^ h >> 15) * 2246822519u;
        h = (h ^ h >> 13) * 3266489917u;
        h ^= h >> 16;
        float x = (float)(int32_t)h * 4.6566e-10f;
        p[i] = (uint16_t)(__float_as_uint(x) >> 16);
    }
}

/* A cut and its pieces, on the device. */
struct cut {
    int32_t pieces;
    uint32_t parts;
    int32_t *n_work;
    inf_cuda_work *work;
    uint32_t *off, *list;
};

struct buffers {
    uint8_t *pool;
    void *q, *o;
    float *lse, *part_o, *part_lse;
    int32_t *blocks;
    inf_cuda_segment *segment;
    cut cuts[CUTS];
};

static buffers make_buffers() {
    buffers b;
    size_t block_bytes = (size_t)LAYERS * 2 * KV_HEADS * BLOCK * DIM * 2;
    size_t pool = MOST_TOKENS / BLOCK * block_bytes, q = (size_t)MOST_ROWS * HEADS * DIM * 2;
    CUDA(cudaMalloc((void **)&b.pool, pool));
    CUDA(cudaMalloc(&b.q, q));
    CUDA(cudaMalloc(&b.o, q));
    CUDA(cudaMalloc((void **)&b.lse, (size_t)MOST_ROWS * HEADS * 4));
    CUDA(cudaMalloc((void **)&b.part_o, (size_t)MOST_PARTS * HEADS * DIM * 4));
    CUDA(cudaMalloc((void **)&b.part_lse, (size_t)MOST_PARTS * HEADS * 4));
    CUDA(cudaMalloc((void **)&b.blocks, MOST_TOKENS / BLOCK * 4));
    CUDA(cudaMalloc((void **)&b.segment, sizeof(inf_cuda_segment)));
    for (cut &c : b.cuts) {
        CUDA(cudaMalloc((void **)&c.n_work, 4));
        CUDA(cudaMalloc((void **)&c.work, MOST_WORK * sizeof(inf_cuda_work)));
        CUDA(cudaMalloc((void **)&c.off, (MOST_ROWS + 1) * 4));
        CUDA(cudaMalloc((void **)&c.list, (size_t)MOST_PARTS * 4));
    }
    fill_kernel<<<sms * 8, 256, 0, stream>>>((uint16_t *)b.pool, pool / 2, 12345);
    fill_kernel<<<sms * 8, 256, 0, stream>>>((uint16_t *)b.q, q / 2, 777);
    std::vector<int32_t> order(MOST_TOKENS / BLOCK);
    for (size_t i = 0; i < order.size(); i++) {
        size_t j = next_random() % (i + 1);
        order[i] = order[j];
        order[j] = (int32_t)i;
    }
    CUDA(cudaMemcpy(b.blocks, order.data(), order.size() * 4, cudaMemcpyHostToDevice));
    CUDA(cudaStreamSynchronize(stream));
    return b;
}

/* Pieces to the device: the plan's, or whole ones, the longest first. */
static void set_work(cut *c, const inf_cuda_segment &s, bool plan, int resident) {
    static inf_cuda_work decode[MOST_WORK], prefill[MOST_WORK];
    static uint32_t off[MOST_ROWS + 1], list[MOST_PARTS];
    c->pieces = 0, c->parts = 0;
    if (plan) {
        inf_cuda_plan_shape shape = {};
        shape.heads = HEADS, shape.kv_heads = KV_HEADS, shape.sms = sms;
        shape.prefill_resident = resident;
        inf_cuda_plan_sizes sizes = {MOST_WORK, MOST_WORK, MOST_PARTS, MOST_ROWS};
        inf_cuda_plan_lists lists = {decode, prefill, off, list, 0, 0, 0};
        CUDA(inf_cuda_plan(&shape, &s, 1, (int32_t)s.rows, &sizes, &lists));
        c->pieces = lists.n_prefill, c->parts = lists.n_parts;
        CUDA(cudaMemcpy(c->off, off, (s.rows + 1) * 4, cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(c->list, list, c->parts * 4, cudaMemcpyHostToDevice));
    } else {
        for (uint32_t row = s.rows / 128 * 128; row > 0; row -= 128) {
            prefill[c->pieces++] = {0, row - 128, 128, 0, s.q_pos0 + row, INF_CUDA_WHOLE};
        }
    }
    CUDA(cudaMemcpy(c->work, prefill, (size_t)c->pieces * sizeof prefill[0],
                    cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(c->n_work, &c->pieces, 4, cudaMemcpyHostToDevice));
}

static inf_cuda_attn attention_of(const buffers &b) {
    inf_cuda_attn a = {};
    a.q = b.q, a.pool = b.pool, a.blocks = b.blocks, a.segments = b.segment;
    a.kv = {LAYERS,
            KV_HEADS,
            BLOCK,
            DIM,
            INF_DTYPE_BF16,
            2,
            (uint64_t)LAYERS * 2 * KV_HEADS * BLOCK * DIM * 2};
    a.o = b.o, a.part_o = b.part_o, a.part_lse = b.part_lse;
    a.act = a.o_dtype = INF_DTYPE_BF16, a.heads = HEADS, a.layer = 1,
    a.scale = 0.08838834764831845f;
    a.early = 1; /* as in a step */
    return a;
}

static void attend(inf_cuda_attn a, const cut &c, int32_t rows, int variant) {
    a.work = c.work, a.n_work = c.n_work, a.max_work = c.pieces;
    CUDA(inf_cuda_prefill_variant_launch(&a, variant, stream));
    if (c.parts > 0) {
        inf_cuda_combine m = {};
        m.o = a.o, m.part_o = a.part_o, m.part_lse = a.part_lse, m.off = c.off, m.list = c.list;
        m.o_dtype = a.o_dtype, m.rows = rows, m.heads = HEADS, m.head_dim = DIM;
        CUDA(inf_cuda_combine_launch(&m, stream));
    }
}

static void print_time(uint32_t rows, uint32_t before, const char *variant, const char *name,
                       const cut &c, double t) {
    double pairs = (double)rows * before + 0.5 * rows * (rows + 1.0),
           flops = 4.0 * DIM * HEADS * pairs;
    printf("%6u rows behind %6u, %-24s %-5s %4d pieces, %5u parts: %9.1f us, %6.1f TFLOP/s\n", rows,
           before, variant, name, c.pieces, c.parts, 1e6 * t, 1e-12 * flops / t);
    fprintf(json,
            "{\"bench\":\"prefill\",\"rows\":%u,\"before\":%u,\"variant\":\"%s\",\"cut\":\"%s\","
            "\"pieces\":%d,"
            "\"parts\":%u,\"us\":%.2f,\"tflops\":%.1f}\n",
            rows, before, variant, name, c.pieces, c.parts, 1e6 * t, 1e-12 * flops / t);
    fflush(stdout);
}

static void run_case(buffers &b, uint32_t rows, uint32_t before, int variant) {
    inf_cuda_segment s = {0, rows, before, 0, before + rows, 0};
    inf_cuda_attn a = attention_of(b);
    inf_cuda_prefill_variant v;
    CUDA(inf_cuda_prefill_variant_of(&a, variant, &v));
    if (v.resident == 0) {
        return;
    }
    CUDA(cudaMemcpy(b.segment, &s, sizeof s, cudaMemcpyHostToDevice));
    cudaGraphExec_t exec[CUTS];
    std::vector<double> times[CUTS];
    int calls = CALLS;
    for (int i = 0; i < CUTS; i++) {
        set_work(&b.cuts[i], s, i == PLAN, v.resident);
        auto call = [&](int) { attend(a, b.cuts[i], (int32_t)rows, variant); };
        if (i == 0) {
            double once = warm_seconds_of(stream, 1, [&] { call(0); });
            calls = std::max(2, (int)std::min((double)CALLS, 0.05 / once));
        }
        exec[i] = recorded(stream, calls, call);
        CUDA(cudaGraphLaunch(exec[i], stream)); /* does not count */
    }
    for (int replay = 0; replay < REPLAYS; replay++) {
        for (int i = 0; i < CUTS; i++) {
            auto launch = [&] { CUDA(cudaGraphLaunch(exec[i], stream)); };
            times[i].push_back(seconds_of(stream, 1, launch) / calls);
        }
    }
    for (int i = 0; i < CUTS; i++) {
        std::sort(times[i].begin(), times[i].end());
        print_time(rows, before, v.name, i == PLAN ? "plan" : "whole", b.cuts[i],
                   times[i][REPLAYS / 2]);
        CUDA(cudaGraphExecDestroy(exec[i]));
    }
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut short has printed what it has */
    json = argc > 1 ? fopen(argv[1], "w") : stdout;
    if (json == NULL) {
        printf("cannot write %s\n", argv[1]);
        return 2;
    }
    CUDA(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA(cudaStreamCreate(&stream));
    buffers b = make_buffers();
    static const uint32_t prompts[] = {1024, 4096, 16384, 32768};
    for (int variant = 0; variant < INF_CUDA_PREFILL_VARIANTS; variant++) {
        for (uint32_t rows : prompts) {
            run_case(b, rows, 0, variant);
        }
        run_case(b, 512, MOST_TOKENS - 512, variant);
    }
    return json != stdout && fclose(json) != 0 ? 2 : 0;
}
