/* Products of a decode step at Llama-3-8B's shapes: the kernel for few rows and the library, as
 * shares of the copy bandwidth. The weights of successive calls are different memory, so the cache
 * holds nothing; calls are captured in a graph, 8 to a replay. Without arguments the kernels for
 * few rows are timed as they are, and those whose blocks stay (through, bulk) also beginning early.
 * With arguments the kernel for few rows alone, as they say: EARLY (1, or 2 to prefetch, too),
 * THREE blocks per SM (1) and THROUGH (1, or 2 for bulk copies). Output: a table, and JSON lines.
 */
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

/* The library, or a kernel for few rows: what of inf_cuda_small is set. */
struct way {
    bool small;
    int32_t early, three, through;
};

static const way by_library = {false, 0, 0, 0};
static const way usual[] = {{true, 0, 0, 0}, {true, 0, 0, 1}, {true, 0, 0, 2},
                            {true, 1, 0, 0}, {true, 1, 0, 1}, {true, 1, 0, 2}};

static void name_of(const way &by, char name[40]) {
    static const char *const through[] = {"", " through", " bulk"};
    snprintf(name, 40, "%s%s%s%s%s", by.small ? "small" : "library", through[by.through],
             by.early > 0 ? " early" : "", by.early > 1 ? " prefetch" : "",
             by.three ? " three" : "");
}

static int run(const product_shape &s, int32_t rows, const way &by, const uint8_t *w, size_t call,
               const void *x, void *y, cudaStream_t stream) {
    size_t outs = (size_t)s.n * (s.gate ? 2 : 1), bytes = outs * (size_t)s.k * 2;
    const void *weights = w + (call * bytes) % (((size_t)2 << 30) - bytes) / 256 * 256;
    if (by.small) {
        inf_cuda_small p = {};
        p.x = x, p.w = weights, p.y = y, p.act = INF_DTYPE_BF16, p.rows = rows, p.n = s.n,
        p.k = s.k;
        p.y_f32 = s.f32, p.gate = s.gate, p.early = by.early, p.three = by.three;
        p.through = by.through;
        return inf_cuda_small_launch(&p, stream);
    }
    inf_product p = {x, weights, NULL, y, rows, (int32_t)outs, s.k, s.f32, 0};
    return inf_cuda_product(library, &p, stream);
}

static double time_one(const product_shape &s, int32_t rows, const way &by, const uint8_t *w,
                       const void *x, void *y, cudaStream_t stream) {
    CUDA(run(s, rows, by, w, 0, x, y, stream));
    CUDA(cudaStreamSynchronize(stream));
    cudaGraphExec_t exec =
        recorded(stream, CALLS, [&](int i) { CUDA(run(s, rows, by, w, (size_t)i, x, y, stream)); });
    std::vector<double> times;
    for (int i = 0; i < REPLAYS; i++) {
        times.push_back(seconds_of(stream, 1, [&] { CUDA(cudaGraphLaunch(exec, stream)); }) /
                        CALLS);
    }
    std::sort(times.begin(), times.end());
    CUDA(cudaGraphExecDestroy(exec));
    return times[REPLAYS / 2];
}

static void report(const product_shape &s, int32_t rows, const way &by, double seconds) {
    double bytes = (double)s.n * (s.gate ? 2 : 1) * s.k * 2;
    char name[40];
    name_of(by, name);
    printf("%-8s rows %2d %-20s %8.2f us %7.0f GB/s\n", s.name, rows, name, seconds * 1e6,
           bytes / seconds * 1e-9);
    printf("{\"bench\":\"product\",\"shape\":\"%s\",\"rows\":%d,\"by\":\"%s\",\"us\":%.2f,"
           "\"gb_per_s\":%.1f}\n",
           s.name, rows, name, seconds * 1e6, bytes / seconds * 1e-9);
}

static int number(int argc, char **argv, int i) { return argc > i ? atoi(argv[i]) : 0; }

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut short has printed what it has */
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
    std::vector<way> ways(usual, usual + sizeof usual / sizeof usual[0]);
    ways.push_back(by_library);
    if (argc > 1) {
        int through = number(argc, argv, 3);
        ways = {{true, number(argc, argv, 1), number(argc, argv, 2),
                 through < 0 || through > 2 ? 0 : through}};
    }
    cudaDeviceProp props;
    CUDA(cudaGetDeviceProperties(&props, 0));
    for (const product_shape &s : shapes) {
        for (int32_t rows : rows_of) {
            for (const way &by : ways) {
                if (by.small && (rows > INF_CUDA_SMALL_ROWS || (by.three && s.gate))) {
                    continue; /* three: is as without it */
                }
                if (by.early && props.major < 9) {
                    continue;
                }
                report(s, rows, by, time_one(s, rows, by, w, x, y, stream));
            }
        }
    }
    return 0;
}
