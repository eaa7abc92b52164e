/* Decode attention's speed on this GPU, one layer of Llama-3-8B's shape: 32 query heads, 8 kv
 * heads, head_dim 128, bf16, blocks of 16 tokens, block tables in random order; then some with
 * tables in order, and some with K and V in e4m3, whose bytes are one a number.
 *
 * The pool is laid out as a model's is, all layers of a block together, and successive calls take
 * successive layers: so the cache holds nothing of what a call reads, and pages are touched as in a
 * real step. Calls are captured in a graph, as the step's are, and timed by events around replays.
 * They begin when the one in front has ended; "early" is what the launcher takes where they may
 * begin beside it, as in a step, which gains less there, where RoPE is in front.
 *
 * The time is of decode with its merge, what a layer costs; the share is of the copy bandwidth
 * (memory.cuh). Output: a table, and JSON lines, into the file of argv[1] when there is one. */
#include <algorithm>
#include <stdio.h>
#include <string.h>

#include "bench/cuda/decode_case.h"
#include "bench/cuda/memory.cuh"
#include "kernels/cuda/attention_decode.h"

static cudaStream_t stream;
static double copy_bandwidth;
static FILE *json;

/* Who merges parts: nobody, the last piece of each row, or a kernel of its own. */
enum merging { NOBODY, LAST_PIECE, COMBINE };

/* Seconds of one call in a replayed graph of some, so many that the graph takes milliseconds. */
static double time_calls(const device_state &d, inf_cuda_attn a, int variant, int32_t parts,
                         int32_t rows, double bytes, merging how) {
    int calls = (int)std::min<double>(MOST_CALLS, std::max(2.0, 0.004 * 2.5e12 / bytes));
    cudaGraphExec_t exec = recorded(stream, calls, [&](int i) {
        a.layer = i % a.kv.layers;
        a.pool = d.pool + (size_t)i % d.copies * d.copy_bytes;
        a.done = how == LAST_PIECE ? d.done : NULL;
        CUDA(inf_cuda_decode_variant_launch(&a, variant, stream));
        if (how == COMBINE && parts > 0) {
            inf_cuda_combine c = {};
            c.o = d.o, c.lse = d.lse, c.part_o = d.part_o, c.part_lse = d.part_lse;
            c.off = d.off, c.list = d.list;
            c.o_dtype = a.o_dtype, c.rows = rows, c.heads = HEADS, c.head_dim = DIM;
            c.early = a.early != 0;
            CUDA(inf_cuda_combine_launch(&c, stream));
        }
    });
    double once = warm_seconds_of(stream, 1, [&] { CUDA(cudaGraphLaunch(exec, stream)); });
    int times = (int)std::min(20.0, std::max(2.0, 0.012 / once));
    double s = warm_seconds_of(stream, times, [&] { CUDA(cudaGraphLaunch(exec, stream)); });
    CUDA(cudaGraphExecDestroy(exec));
    return s / calls;
}

struct timing {
    double both, alone, apart; /* with the last piece merging; no merge; with a kernel for it */
    planned plan;
};

/* grid: at most so many pieces at a time, 0 for all: the hardware deals them out. */
static timing time_case(const device_state &d, const bench_case &c, inf_cuda_attn a, int variant,
                        int resident, int chunk, int grid) {
    timing t = {};
    t.plan = set_plan(d, c, resident, chunk);
    if (t.plan.pieces == 0) {
        return t;
    }
    a.max_work = grid > 0 ? grid : t.plan.pieces;
    int32_t rows = (int32_t)c.contexts.size();
    t.both = time_calls(d, a, variant, t.plan.parts, rows, c.kv_bytes, LAST_PIECE);
    t.alone = t.apart = t.both;
    if (t.plan.parts > 0 && chunk == 0 && grid == 0) {
        t.alone = time_calls(d, a, variant, t.plan.parts, rows, c.kv_bytes, NOBODY);
        t.apart = time_calls(d, a, variant, t.plan.parts, rows, c.kv_bytes, COMBINE);
    }
    return t;
}

static void print_timing(const char *what, const bench_case &c, const inf_cuda_attn &a,
                         const inf_cuda_decode_variant &v, int chunk, int grid, const timing &t) {
    double speed = c.kv_bytes / t.both;
    fflush(stdout);
    printf("%-7s %-14s of %d %s%-32s %4d pieces to %7u: %9.2f us (unmerged %9.2f, combine %9.2f), "
           "%5.0f GB/s, %5.1f %% of copy\n",
           what, c.name, c.block, c.ordered ? "ordered, " : "", v.name, t.plan.pieces,
           t.plan.biggest, 1e6 * t.both, 1e6 * t.alone, 1e6 * t.apart, 1e-9 * speed,
           100 * speed / copy_bandwidth);
    fprintf(json,
            "{\"bench\":\"decode\",\"what\":\"%s\",\"case\":\"%s\",\"order\":\"%s\","
            "\"block\":%d,\"kv_bytes_per_number\":%d,\"layers\":%d,\"variant\":\"%s\","
            "\"taken\":%d,\"chunk\":%d,\"grid\":%d,\"pieces\":%d,\"biggest\":%u,\"us\":%.3f,"
            "\"unmerged_us\":%.3f,"
            "\"combine_us\":%.3f,\"gbs\":%.1f,\"share_of_copy\":%.4f}\n",
            what, c.name, c.ordered ? "ordered" : "scattered", c.block, a.kv.elem, a.kv.layers,
            v.name, v.taken, chunk, grid, t.plan.pieces, t.plan.biggest, 1e6 * t.both,
            1e6 * t.alone, 1e6 * t.apart, 1e-9 * speed, speed / copy_bandwidth);
}

struct fastest {
    inf_cuda_decode_variant about;
    int index; /* -1: none runs */
    double time;
};

/* Every variant with the plan's own cut. */
static fastest run_variants(const device_state &d, const bench_case &c, const inf_cuda_attn &a) {
    fastest best = {{}, -1, 1e9};
    for (int v = 0; v < inf_cuda_decode_variants(); v++) {
        inf_cuda_decode_variant about;
        CUDA(inf_cuda_decode_variant_of(&a, v, &about));
        if (about.resident == 0) {
            continue;
        }
        timing t = time_case(d, c, a, v, about.resident, 0, 0);
        print_timing("variant", c, a, about, 0, 0, t);
        if (t.both < best.time) {
            best = {about, v, t.both};
        }
    }
    return best;
}

static void run_early(const device_state &d, const bench_case &c, inf_cuda_attn a) {
    a.early = 2;
    for (int v = 0; v < inf_cuda_decode_variants(); v++) {
        inf_cuda_decode_variant about;
        CUDA(inf_cuda_decode_variant_of(&a, v, &about));
        if (about.taken) {
            timing t = time_case(d, c, a, v, about.resident, 0, 0);
            print_timing("early", c, a, about, 0, 0, t);
        }
    }
}

static bool in_pool(const device_state &d, const bench_case &c) {
    bool fits = blocks_of(c) * layer_bytes_of(c) <= d.pool_bytes;
    if (!fits) {
        printf("case    %-14s does not fit\n", c.name);
    }
    return fits;
}

/* The variants, then what is launched, started early, and the best one with grids of whole waves,
 * as recorded launches have, and with forced chunks. */
static void run_case(const device_state &d, bench_case c) {
    if (!in_pool(d, c)) {
        return;
    }
    inf_cuda_attn a = set_case(d, c);
    fastest found = run_variants(d, c, a);
    const inf_cuda_decode_variant &best = found.about;
    int best_index = found.index;
    if (best_index < 0) {
        return;
    }
    run_early(d, c, a);
    int slots = (d.sms * best.resident + KV_HEADS - 1) / KV_HEADS;
    for (int waves : {1, 2, 4, 10}) {
        timing t = time_case(d, c, a, best_index, best.resident, 0, waves * slots);
        print_timing("grid", c, a, best, 0, waves * slots, t);
    }
    if (!c.sweep) {
        return;
    }
    uint32_t longest = *std::max_element(c.contexts.begin(), c.contexts.end());
    for (uint32_t pieces = 1; pieces <= 512; pieces *= 4) {
        uint32_t chunk = (longest / pieces + 63) / 64 * 64;
        timing t = time_case(d, c, a, best_index, best.resident, (int)chunk, 0);
        if (t.plan.pieces > 0 && chunk >= 64) {
            print_timing("chunk", c, a, best, (int)chunk, 0, t);
        }
        if (chunk <= 64) {
            break;
        }
    }
}

/* What a launch costs that has nothing or little to do: the floor under short contexts, and what a
 * graph pays whose grid is made for more pieces than there are. */
static void measure_floor(const device_state &d) {
    bench_case c = uniform_case(1, 1024);
    inf_cuda_attn a = set_case(d, c);
    for (int v = 0; v < inf_cuda_decode_variants(); v++) {
        inf_cuda_decode_variant about;
        CUDA(inf_cuda_decode_variant_of(&a, v, &about));
        if (about.resident == 0) {
            continue;
        }
        static const int grids[] = {1, 16, 64, 256, 1024};
        printf("floor   %-32s", about.name);
        for (int g : grids) {
            set_plan(d, c, about.resident, 1024);
            a.max_work = g;
            double one = time_calls(d, a, v, 0, 1, 4e6, NOBODY);
            int32_t none = 0;
            CUDA(cudaMemcpy(d.n_work, &none, 4, cudaMemcpyHostToDevice));
            double empty = time_calls(d, a, v, 0, 1, 4e6, NOBODY);
            printf("  grid %d: %.2f us, empty %.2f", g, 1e6 * one, 1e6 * empty);
        }
        printf("\n");
    }
}

static void fill_pool(const device_state &d, uint32_t any, uint32_t set) {
    fill_kernel<<<d.sms * 8, 256, 0, stream>>>((uint4 *)d.pool, d.pool_bytes / 16, any, set);
}

/* The same batches of the same tokens as some of the others, in half the bytes. */
static void run_e4m3(const device_state &d) {
    static const struct {
        int batch;
        uint32_t context;
    } cases[] = {{1, 1 << 13},  {1, 1 << 17},  {8, 1 << 15},
                 {64, 1 << 10}, {64, 1 << 13}, {8, 1 << 20}};
    fill_pool(d, ANY_E4M3, 0);
    for (const auto &each : cases) {
        bench_case c = uniform_case(each.batch, each.context);
        strcat(c.name, " e4m3");
        c.kv = INF_DTYPE_E4M3;
        run_case(d, c);
    }
}

/* The same with every block behind the last one: what reading here and there costs. */
static void run_ordered(const device_state &d, bench_case c) {
    c.ordered = true;
    if (in_pool(d, c)) {
        inf_cuda_attn a = set_case(d, c);
        run_variants(d, c, a);
    }
}

/* What the layout does. A layer's part of a block lies together, 4 KiB per token, and the next
 * block elsewhere: at 16 tokens each 64 KiB are on a page of their own (of 2 MiB). With one layer
 * in the pool and no gaps, as if each layer had a pool, pages are shared; in order, all is one
 * stretch; and with one block per request each head's keys follow each other, as those of a tensor
 * of PyTorch do. */
static void run_layouts(device_state d) {
    static const struct {
        int block; /* 0: a request's context */
        bool one_layer, ordered;
        const char *name;
    } layouts[] = {{16, false, false, "16"},
                   {32, false, false, "32"},
                   {64, false, false, "64"},
                   {128, false, false, "128"},
                   {256, false, false, "256"},
                   {16, true, false, "16, a layer's together"},
                   {64, true, false, "64, a layer's together"},
                   {16, true, true, "16, a layer's in order"},
                   {0, true, true, "all of a request, in order"}};
    static const struct {
        int batch;
        uint32_t context;
    } cases[] = {{1, 1 << 17}, {8, 1 << 15}, {64, 1 << 13}};
    for (const auto &each : cases) {
        for (const auto &l : layouts) {
            bench_case c = uniform_case(each.batch, each.context);
            size_t n = strlen(c.name);
            snprintf(c.name + n, sizeof c.name - n, ", blocks of %s", l.name);
            c.block = l.block > 0 ? l.block : (int)c.contexts[0];
            c.compact = l.one_layer, c.ordered = l.ordered;
            c.most_layers = l.one_layer ? 1 : LAYERS;
            if (in_pool(d, c)) {
                inf_cuda_attn a = set_case(d, c);
                d.copy_bytes = blocks_of(c) * layer_bytes_of(c);
                d.copies = l.one_layer ? d.pool_bytes / d.copy_bytes : 1;
                run_variants(d, c, a);
            }
        }
    }
}

static device_state open_device() {
    device_state d = {};
    d.copies = 1;
    size_t unused, total;
    CUDA(cudaDeviceGetAttribute(&d.sms, cudaDevAttrMultiProcessorCount, 0));
    CUDA(cudaStreamCreate(&stream));
    CUDA(cudaMemGetInfo(&unused, &total));
    d.pool_bytes = (unused - ((size_t)3 << 30)) / (BLOCK * TOKEN_BYTES) * (BLOCK * TOKEN_BYTES);
    CUDA(cudaMalloc((void **)&d.pool, d.pool_bytes));
    CUDA(cudaMalloc(&d.q, MOST_BATCH * HEADS * DIM * 2));
    CUDA(cudaMalloc(&d.o, MOST_BATCH * HEADS * DIM * 2));
    CUDA(cudaMalloc((void **)&d.lse, MOST_BATCH * HEADS * 4));
    CUDA(cudaMalloc((void **)&d.part_o, (size_t)MOST_PARTS * HEADS * DIM * 4));
    CUDA(cudaMalloc((void **)&d.part_lse, (size_t)MOST_PARTS * HEADS * 4));
    CUDA(cudaMalloc((void **)&d.blocks, d.pool_bytes / (BLOCK * TOKEN_BYTES / 2) * 4));
    CUDA(cudaMalloc((void **)&d.segments, MOST_BATCH * sizeof(inf_cuda_segment)));
    CUDA(cudaMalloc((void **)&d.work, MOST_WORK * sizeof(inf_cuda_work)));
    CUDA(cudaMalloc((void **)&d.n_work, 4));
    CUDA(cudaMalloc((void **)&d.off, (MOST_BATCH + 1) * 4));
    CUDA(cudaMalloc((void **)&d.list, MOST_PARTS * 4));
    CUDA(cudaMalloc((void **)&d.done, MOST_BATCH * KV_HEADS * 4));
    CUDA(cudaMemset(d.done, 0, MOST_BATCH * KV_HEADS * 4));
    fill_pool(d, ANY_BF16, SET_BF16);
    fill_kernel<<<d.sms, 256, 0, stream>>>((uint4 *)d.q, MOST_BATCH * HEADS * DIM * 2 / 16,
                                           ANY_BF16, SET_BF16);
    CUDA(cudaStreamSynchronize(stream));
    cudaDeviceProp about;
    CUDA(cudaGetDeviceProperties(&about, 0));
    printf("%s, %d SMs, pool of %.1f GiB\n", about.name, d.sms,
           (double)d.pool_bytes / (double)(1 << 30));
    return d;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut short has printed what it has */
    json = argc > 1 ? fopen(argv[1], "w") : stdout;
    if (json == NULL) {
        printf("cannot write %s\n", argv[1]);
        return 2;
    }
    device_state d = open_device();
    copy_bandwidth = measure_memory(stream, d.pool, d.pool_bytes, d.sms, json);
    measure_floor(d);
    static const int batches[] = {1, 8, 64};
    static const uint32_t contexts[] = {1 << 10, 1 << 13, 1 << 15, 1 << 17, 1 << 20};
    for (int batch : batches) {
        for (uint32_t context : contexts) {
            bench_case c = uniform_case(batch, context);
            uint32_t tokens = context * (uint32_t)batch;
            c.sweep = tokens >= 1 << 12 && tokens <= 1 << 19;
            run_case(d, c);
            if (tokens >= 1 << 17 && tokens <= 1 << 19) {
                run_ordered(d, c);
            }
        }
    }
    bench_case mixed = uniform_case(32, 1024); /* very different lengths */
    snprintf(mixed.name, sizeof mixed.name, "32 mixed");
    for (size_t i = 0; i < mixed.contexts.size(); i++) {
        mixed.contexts[i] = i == 5 ? 1u << 18 : 700u + (uint32_t)(next_random() % 15000);
    }
    mixed.sweep = true;
    run_case(d, mixed);
    bench_case dense = uniform_case(8, 1 << 15); /* the same reads from fewer pages */
    snprintf(dense.name, sizeof dense.name, "8 x 32K dense");
    dense.most_layers = 2;
    run_case(d, dense);
    run_e4m3(d);
    fill_pool(d, ANY_BF16, SET_BF16);
    run_layouts(d);
    return json != stdout && fclose(json) != 0 ? 2 : 0;
}
