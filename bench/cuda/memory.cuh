/* What the GPU's memory can do, measured beside what is compared with it; and numbers to fill it.
 */
#ifndef INF_BENCH_CUDA_MEMORY_CUH
#define INF_BENCH_CUDA_MEMORY_CUH

#include <algorithm>

#include "bench/cuda/bench.h"

/* Numbers in (-2, 2): some bits of a word are any, some are set. */
enum : uint32_t { ANY_BF16 = 0x80ff80ffu, SET_BF16 = 0x3f003f00u, ANY_E4M3 = 0xbfbfbfbfu };
static __global__ void fill_kernel(uint4 *p, size_t n, uint32_t any, uint32_t set) {
    size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x[4];
        for (int k = 0; k < 4; k++) {
            uint32_t h = (uint32_t)(i * 4 + (size_t)k) * 2654435761u;
            h = (h ^ h >> 15) * 2246822519u;
            h ^= h >> 13;
            x[k] = (h & any) | set;
        }
        p[i] = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

/* The grid reads `rounds` times LOADS words a thread, neighbours next to each other; STREAM: as
 * what is not read again. */
template <int LOADS, bool STREAM>
static __global__ void read_kernel(const uint4 *p, size_t rounds, uint32_t *out) {
    uint32_t sum = 0;
    size_t step = (size_t)gridDim.x * blockDim.x;
    const uint4 *at = p + blockIdx.x * (size_t)blockDim.x + threadIdx.x;
    for (size_t r = 0; r < rounds; r++, at += LOADS * step) {
        uint4 x[LOADS];
#pragma unroll
        for (int k = 0; k < LOADS; k++) {
            x[k] = STREAM ? __ldcs(at + k * step) : at[k * step];
        }
#pragma unroll
        for (int k = 0; k < LOADS; k++) {
            sum ^= x[k].x ^ x[k].y ^ x[k].z ^ x[k].w;
        }
    }
    if (sum == 0x12345678u) { /* so that the loads are not left out */
        *out = sum;
    }
}

struct bandwidth {
    double bytes_per_s;
    size_t bytes; /* of a pass */
    int loads, stream, threads;
};

/* Keeps the faster; 2,048 threads on each SM, as many as there can be. */
template <int LOADS, bool STREAM>
static inline void measure_read(cudaStream_t stream, uint8_t *pool, size_t bytes, int sms,
                                bandwidth *best) {
    for (int threads : {256, 512, 1024}) {
        int grid = sms * 2048 / threads;
        size_t round = (size_t)grid * (size_t)threads * LOADS * 16, rounds = bytes / round;
        double s = warm_seconds_of(stream, 10, [&] {
            read_kernel<LOADS, STREAM>
                <<<grid, threads, 0, stream>>>((const uint4 *)pool, rounds, (uint32_t *)pool);
        });
        CUDA(cudaGetLastError());
        double speed = (double)(rounds * round) / s;
        printf("memory, read, %d loads%s, %4d threads: %.0f GB/s\n", LOADS,
               STREAM ? ", streamed" : "", threads, 1e-9 * speed);
        if (speed > best->bytes_per_s) {
            *best = {speed, rounds * round, LOADS, STREAM, threads};
        }
    }
}

/* Bytes read plus bytes written in a second, the best of several sizes. Two JSON lines: of copies,
 * and of a kernel that only reads, up to 8 GiB at a time. */
static inline double measure_memory(cudaStream_t stream, uint8_t *pool, size_t bytes, int sms,
                                    FILE *json) {
    double copy = 0;
    for (size_t size = (size_t)256 << 20; size <= (size_t)4 << 30 && 2 * size <= bytes; size *= 2) {
        double s = warm_seconds_of(stream, 10, [&] {
            CUDA(cudaMemcpyAsync(pool + bytes / 2, pool, size, cudaMemcpyDeviceToDevice, stream));
        });
        copy = std::max(copy, 2.0 * (double)size / s);
        printf("memory, copy, %5zu MiB: %.0f GB/s\n", size >> 20, 2e-9 * (double)size / s);
    }
    size_t most = std::min(bytes, (size_t)8 << 30);
    bandwidth read = {};
    measure_read<4, false>(stream, pool, most, sms, &read);
    measure_read<4, true>(stream, pool, most, sms, &read);
    measure_read<8, false>(stream, pool, most, sms, &read);
    measure_read<8, true>(stream, pool, most, sms, &read);
    fflush(stdout);
    fprintf(json, "{\"bench\":\"memory\",\"copy_gbs\":%.1f}\n", 1e-9 * copy);
    fprintf(json,
            "{\"bench\":\"memory_read\",\"read_gbs\":%.1f,\"bytes\":%zu,\"loads\":%d,"
            "\"streamed\":%d,\"threads\":%d}\n",
            1e-9 * read.bytes_per_s, read.bytes, read.loads, read.stream, read.threads);
    return copy;
}

#endif
