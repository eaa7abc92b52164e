/* The speed of the kernels between products, and of sampling, at Llama-3-8B's shape in bf16: hidden
 * 4096, MLP 14336, 32 query and 8 kv heads of 128, vocabulary 128256.
 *
 * CALLS calls are captured in a graph and replayed, as the step's are, in line and with each
 * allowed to start before the one in front has ended; times are per call. With few rows that is
 * latency; with many, bytes that must be moved, per second. Buffers are the same in every call, so
 * what fits the L2 cache comes from there, as much of it does in a step. Output: a table and JSON
 * lines. */
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "bench/cuda/bench.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/sampling.h"

enum { HIDDEN = 4096, INNER = 14336, HEADS = 32, KV_HEADS = 8, DIM = 128, VOCAB = 128256 };
enum { MOST_ROWS = 8192, MOST_LOGITS = 64, CALLS = 20, REPLAYS = 5, BF16 = INF_DTYPE_BF16 };
enum { QKV = (HEADS + 2 * KV_HEADS) * DIM, BLOCK = 16 };

static cudaStream_t stream;

/* Memory of any content that is a small number in every format. */
template <class T> static T *take(size_t count) {
    T *p = NULL;
    CUDA(cudaMalloc((void **)&p, count * sizeof(T)));
    CUDA(cudaMemset(p, 0x3c, count * sizeof(T)));
    return p;
}

template <class T> static T *upload(const std::vector<T> &v) {
    T *p = take<T>(v.size());
    CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    CUDA(cudaDeviceSynchronize()); /* the timed stream does not wait for this one */
    return p;
}

/* Microseconds of one of CALLS calls in a replayed graph; the best of REPLAYS. */
template <class F> static double time_of(const F &call) {
    cudaGraphExec_t exec = recorded(stream, CALLS, [&](int) { CUDA(call()); });
    double best = 1e9;
    for (int i = 0; i <= REPLAYS; i++) { /* the first warms up */
        double s = seconds_of(stream, 1, [&] { CUDA(cudaGraphLaunch(exec, stream)); });
        best = i > 0 && s < best ? s : best;
    }
    CUDA(cudaGraphExecDestroy(exec));
    return 1e6 * best / CALLS;
}

/* P: a launcher's parameters, with `early`. bytes: that a call must move. */
template <class P>
static void measure(const char *name, int32_t rows, P p, int (*launch)(const P *, inf_stream),
                    double bytes) {
    p.early = 0;
    double in_line = time_of([&] { return launch(&p, stream); });
    p.early = 1;
    double early = time_of([&] { return launch(&p, stream); });
    double best = early < in_line ? early : in_line;
    printf("%-22s %6d %10.2f %10.2f %9.0f\n", name, rows, in_line, early, bytes / best * 1e-3);
    printf("{\"bench\":\"rows\",\"name\":\"%s\",\"rows\":%d,\"us\":%.3f,\"us_early\":%.3f,"
           "\"gbs\":%.1f}\n",
           name, rows, in_line, early, bytes / best * 1e-3);
}

static void bench_rows() {
    static const int32_t counts[] = {1, 8, 64, 1024, MOST_ROWS};
    const size_t most = MOST_ROWS;
    std::vector<int32_t> tokens(most), block(most), index(most);
    std::vector<uint32_t> position(most), off(MOST_LOGITS + 1), list;
    for (int32_t i = 0; i < MOST_ROWS; i++) {
        tokens[i] = (i * 7919) % VOCAB;
        position[i] = (uint32_t)i * 13;
        block[i] = i / BLOCK;
        index[i] = i % BLOCK;
    }
    inf_kv_shape kv = {1, KV_HEADS, BLOCK, DIM, BF16, 2, 2ull * KV_HEADS * BLOCK * DIM * 2};
    uint8_t *pool = take<uint8_t>(most / BLOCK * kv.block_bytes);
    uint16_t *table = take<uint16_t>((size_t)VOCAB * HIDDEN),
             *gu = take<uint16_t>(most * 2 * INNER);
    uint16_t *y = take<uint16_t>(most * INNER), *h = take<uint16_t>(most * HIDDEN);
    uint16_t *qkv = take<uint16_t>(most * QKV);
    float *x = take<float>(most * HIDDEN), *weight = take<float>(HIDDEN);
    float *cos = take<float>(most * DIM / 2), *sin = take<float>(most * DIM / 2);
    float *inv_freq = take<float>(DIM / 2);
    int32_t *d_tokens = upload(tokens), *d_block = upload(block), *d_index = upload(index);
    uint32_t *d_position = upload(position);
    printf("%-22s %6s %10s %10s %9s\n", "", "rows", "us", "us early", "GB/s");
    for (int32_t rows : counts) {
        double r = rows;
        inf_cuda_embed embed = {d_tokens, table, x, BF16, rows, HIDDEN, 0, 1};
        measure("embed", rows, embed, inf_cuda_embed_launch, r * HIDDEN * 6);
        inf_cuda_rope_table rope = {d_position, inv_freq, cos, sin, 1, rows, DIM / 2, 0};
        measure("rope_table", rows, rope, inf_cuda_rope_table_launch, r * DIM * 4);
        CUDA(cudaMemset(x, 0, most * HIDDEN * sizeof(float)));
        inf_cuda_add_norm norm = {x, h, weight, h, NULL, BF16, BF16, rows, HIDDEN, 1e-5f, 0, NULL};
        measure("add_norm", rows, norm, inf_cuda_add_norm_launch, r * HIDDEN * 12);
        inf_cuda_heads heads = {qkv,     weight, weight, cos,   sin, h,     pool, kv, d_block,
                                d_index, BF16,   rows,   HEADS, 0,   1e-5f, 0,    0,  NULL};
        measure("heads", rows, heads, inf_cuda_heads_launch, r * QKV * 4);
        inf_cuda_gate swiglu = {gu, y, BF16, rows, INNER, 0, NULL, 0, 0, INF_ACT_SILU};
        measure("swiglu", rows, swiglu, inf_cuda_gate_launch, r * INNER * 6);
        inf_cuda_cast cast = {x, h, INF_DTYPE_F32, BF16, (int64_t)rows * HIDDEN, 0};
        measure("cast f32 to bf16", rows, cast, inf_cuda_cast_launch, r * HIDDEN * 6);
    }
    static const struct {
        int32_t rows, parts;
    } merges[] = {{1, 2}, {1, 33}, {1, 264}, {8, 8}, {64, 4}};
    for (const auto &m : merges) {
        list.clear();
        for (int32_t r = 0; r <= m.rows; r++) {
            off[r] = (uint32_t)(r * m.parts);
        }
        for (int32_t i = 0; i < m.rows * m.parts; i++) {
            list.push_back((uint32_t)i);
        }
        uint32_t *d_off = upload(off), *d_list = upload(list);
        inf_cuda_combine c = {h,     NULL, x, (const float *)gu, d_off, d_list, BF16, m.rows,
                              HEADS, DIM,  0};
        char name[32];
        snprintf(name, sizeof name, "combine, %d parts", m.parts);
        measure(name, m.rows, c, inf_cuda_combine_launch,
                (double)m.rows * HEADS * DIM * (4 * m.parts + 2));
        CUDA(cudaFree(d_off));
        CUDA(cudaFree(d_list));
    }
    /* Another instance's partials, where they lie: in pinned host memory, behind the bus. */
    float *o2 = NULL;
    CUDA(cudaMallocHost((void **)&o2, (size_t)64 * HEADS * (DIM + 1) * sizeof(float)));
    for (int32_t rows : {1, 8, 64}) {
        std::fill(o2, o2 + (size_t)64 * HEADS * (DIM + 1), 0.5f);
        inf_cuda_merge m = {{}, x, (float *)gu, NULL, 0, rows, HEADS, DIM, 0};
        (void)inf_cuda_runs_add(&m.runs, 0, rows, o2, o2 + (size_t)64 * HEADS * DIM, HEADS);
        measure("merge of a partial", rows, m, inf_cuda_merge_launch,
                (double)rows * HEADS * DIM * 12);
    }
    CUDA(cudaFreeHost(o2));
    for (void *p : {(void *)pool, (void *)table, (void *)gu, (void *)y, (void *)h, (void *)qkv,
                    (void *)x, (void *)weight, (void *)cos, (void *)sin, (void *)inv_freq,
                    (void *)d_tokens, (void *)d_block, (void *)d_index, (void *)d_position}) {
        CUDA(cudaFree(p));
    }
}

/* Logits like a model's: a bell of some width, and a few tokens far above. */
static std::vector<float> bell_logits(size_t n) {
    std::vector<float> x(n);
    uint64_t z = 1;
    for (float &f : x) {
        float sum = 0;
        for (int i = 0; i < 4; i++) {
            z = z * 6364136223846793005u + 1442695040888963407u;
            sum += (float)(z >> 40) * 0x1p-24f - 0.5f;
        }
        f = sum * 4 + ((z >> 33) % 20000 == 0 ? 6.0f : 0.0f);
    }
    return x;
}

static void bench_sampling() {
    struct sampling_case {
        const char *name;
        inf_cuda_sample_row row;
    };
    inf_cuda_sample_row plain = {1,  1, INF_CUDA_SAMPLE_DRAW, 0, 0, 1, 0, 1, 0, 0, 0, -1, 0, 0,
                                 -1, 0};
    sampling_case cases[7] = {{"greedy", plain},           {"temperature 1", plain},
                              {"top_p 0.9", plain},        {"top_k 50, top_p 0.9", plain},
                              {"penalties, top_p", plain}, {"greedy, 5 top", plain},
                              {"T 3, top_p 0.99", plain}};
    cases[1].row.temperature = cases[2].row.temperature = cases[3].row.temperature = 1;
    cases[4].row.temperature = 1;
    cases[2].row.top_p = cases[3].row.top_p = cases[4].row.top_p = 0.9f;
    cases[3].row.top_k = 50;
    cases[4].row.frequency = 0.5f;
    cases[5].row.n_top = 5;
    cases[6].row.temperature = 3;
    cases[6].row.top_p = 0.99f;
    float *logits = upload(bell_logits((size_t)MOST_LOGITS * VOCAB));
    uint32_t *counts = take<uint32_t>((size_t)MOST_LOGITS * VOCAB);
    CUDA(cudaMemset(counts, 0, (size_t)MOST_LOGITS * VOCAB * 4));
    inf_row_out *out = take<inf_row_out>(MOST_LOGITS);
    int32_t *status = take<int32_t>(MOST_LOGITS);
    uint8_t *scratch = take<uint8_t>(inf_cuda_sample_scratch(MOST_LOGITS, VOCAB, 15));
    for (const sampling_case &c : cases) {
        for (int32_t rows : {1, 8, (int32_t)MOST_LOGITS}) {
            std::vector<inf_cuda_sample_row> row(rows, c.row);
            for (int32_t r = 0; r < rows; r++) {
                row[r].seed = (uint64_t)r;
                row[r].slot = c.row.frequency != 0 ? r : -1;
            }
            inf_cuda_sample_row *d_row = upload(row);
            inf_cuda_sample p = {};
            p.logits = logits, p.row = d_row, p.counts = counts, p.out = out, p.status = status;
            p.scratch = scratch, p.rows = rows, p.vocab = VOCAB;
            p.needs = inf_cuda_sample_needs(&row[0], VOCAB);
            measure(c.name, rows, p, inf_cuda_sample_launch, (double)rows * VOCAB * 4);
            CUDA(cudaFree(d_row));
        }
    }
}

int main() {
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut short has printed what it has */
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    bench_rows();
    bench_sampling();
    return 0;
}
