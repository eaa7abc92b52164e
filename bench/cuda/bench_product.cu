/* Products of a decode step at Llama-3-8B's shapes: the kernel for few rows and the library, as
 * shares of the copy bandwidth. The weights of successive calls are different memory, so the cache
 * holds nothing; calls are captured in a graph, 8 to a replay. With arguments the kernel for few
 * rows alone, as they say: EARLY (1, or 2 to prefetch, too) and THREE blocks per SM (1). Output: a
 * table, and JSON lines. */
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "bench/cuda/bench.h"
#include "kernels/cuda/product.h"
#include "kernels/cuda/product_small.h"

struct product_shape {
    const char *name;
    int32_t n, k, gate, f32;
};

static const product_shape shapes[] = {{"qkv", 6144, 4096, 0, 0},
                                       {"o", 4096, 4096, 0, 0},
                                       {"gate_up", 14336, 4096, 1, 0},
                                       {"down", 4096, 14336, 0, 0},
                                       {"head", 128256, 4096, 0, 1}};
enum { CALLS = 8, REPLAYS = 11 };

static void *noise(size_t bytes) {
    std::vector<uint16_t> host(1 << 22);
    uint64_t s = 88172645463325252u;
    for (uint16_t &h : host) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        h = (uint16_t)((s & 0x807f) | (0x3c00 + (s >> 20 & 0x180)));
    }
    uint8_t *p = NULL;
    CUDA(cudaMalloc((void **)&p, bytes));
    for (size_t at = 0; at < bytes; at += host.size() * 2) {
        CUDA(cudaMemcpy(p + at, host.data(), std::min(bytes - at, host.size() * 2),
                        cudaMemcpyHostToDevice));
    }
    return p;
}

static inf_cuda_products *library;
static int32_t early, three; /* of the kernel for few rows */

static int run(const product_shape &s, int32_t rows, bool small, const uint8_t *w, size_t call,
               const void *x, void *y, cudaStream_t stream) {
    size_t outs = (size_t)s.n * (s.gate ? 2 : 1), bytes = outs * (size_t)s.k * 2;
    const void *weights = w + (call * bytes) % (((size_t)2 << 30) - bytes) / 256 * 256;
    if (small) {
        inf_cuda_small p = {};
        p.x = x, p.w = weights, p.y = y, p.act = INF_DTYPE_BF16, p.rows = rows, p.n = s.n,
        p.k = s.k;
        p.y_f32 = s.f32, p.gate = s.gate, p.early = early, p.three = three;
        return inf_cuda_small_launch(&p, stream);
    }
    inf_product p = {x, weights, NULL, y, rows, (int32_t)outs, s.k, s.f32, 0};
    return inf_cuda_product(library, &p, stream);
}

static double time_one(const product_shape &s, int32_t rows, bool small, const uint8_t *w,
                       const void *x, void *y, cudaStream_t stream) {
    CUDA(run(s, rows, small, w, 0, x, y, stream));
    CUDA(cudaStreamSynchronize(stream));
    cudaGraphExec_t exec = recorded(
        stream, CALLS, [&](int i) { CUDA(run(s, rows, small, w, (size_t)i, x, y, stream)); });
    std::vector<double> times;
    for (int i = 0; i < REPLAYS; i++) {
        times.push_back(seconds_of(stream, 1, [&] { CUDA(cudaGraphLaunch(exec, stream)); }) /
                        CALLS);
    }
    std::sort(times.begin(), times.end());
    CUDA(cudaGraphExecDestroy(exec));
    return times[REPLAYS / 2];
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut short has printed what it has */
    early = argc > 1 ? atoi(argv[1]) : 0;
    three = argc > 2 ? atoi(argv[2]) : 0;
    char small_name[32];
    snprintf(small_name, sizeof small_name, "small%s%s%s", early > 0 ? " early" : "",
             early > 1 ? " prefetch" : "", three ? " three" : "");
    cudaStream_t stream;
    inf_err err;
    CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    const uint8_t *w = (const uint8_t *)noise((size_t)2 << 30);
    void *x = noise((size_t)128 * 14336 * 2), *y = noise((size_t)128 * 128256 * 4);
    if (inf_cuda_products_open(INF_DTYPE_BF16, NULL, &library, &err) != INF_OK) {
        printf("%s\n", err.message);
        return 2;
    }
    static const int32_t rows_of[] = {1, 4, 8, 16, 64};
    for (const product_shape &s : shapes) {
        for (int32_t rows : rows_of) {
            if (three && s.gate) {
                continue; /* is as without it */
            }
            double bytes = (double)s.n * (s.gate ? 2 : 1) * s.k * 2;
            for (int small = rows <= INF_CUDA_SMALL_ROWS ? 1 : 0; small >= (argc > 1); small--) {
                const char *by = small ? small_name : "library";
                double t = time_one(s, rows, small != 0, w, x, y, stream);
                printf("%-8s rows %2d %-20s %8.2f us %7.0f GB/s\n", s.name, rows, by, t * 1e6,
                       bytes / t * 1e-9);
                printf(
                    "{\"bench\":\"product\",\"shape\":\"%s\",\"rows\":%d,\"by\":\"%s\",\"us\":%.2f,"
                    "\"gb_per_s\":%.1f}\n",
                    s.name, rows, by, t * 1e6, bytes / t * 1e-9);
            }
        }
    }
    return 0;
}
