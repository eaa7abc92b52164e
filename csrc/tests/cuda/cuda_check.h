/* What the tests of CUDA files share: numbers in 16-bit formats, memory on the GPU. C++, over
 * kernel_check.h.
 */
#ifndef INF_CUDA_CHECK_H
#define INF_CUDA_CHECK_H

#include <cuda_runtime.h>

#include <vector>

#include "tests/kernel_check.h"

static double f16_number(uint16_t h) {
    int exponent = (h >> 10) & 31, mantissa = h & 1023;
    double m = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    m = exponent == 31 ? (mantissa != 0 ? (double)NAN : (double)INFINITY) : m;
    return (h & 0x8000) != 0 ? -m : m;
}

static double number_of(uint16_t bits, int32_t dtype) {
    return dtype == INF_DTYPE_F16 ? f16_number(bits) : (double)from_bf16(bits);
}

/* Uniform in (-1, 1), with random low bits in either format. */
static std::vector<uint16_t> halves(size_t n, int32_t dtype) {
    std::vector<uint16_t> v(n);
    for (size_t i = 0; i < n; i++) {
        if (dtype == INF_DTYPE_F16) {
            int exponent = 10 + below(5); /* 2^-5 .. below 1 */
            v[i] = (uint16_t)((next_u64() & 0x83ff) | (unsigned)exponent << 10);
        } else {
            v[i] = to_bf16(number());
        }
    }
    return v;
}

static std::vector<void *> gpu_memory;

static void must(cudaError_t status, const char *what) {
    if (status != cudaSuccess) {
        printf("%s: %s\n", what, cudaGetErrorString(status));
        exit(2);
    }
}

static void *gpu_bytes(const void *host, size_t bytes) {
    void *p = NULL;
    must(cudaMalloc(&p, bytes > 0 ? bytes : 1), "cudaMalloc");
    must(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    gpu_memory.push_back(p);
    return p;
}

template <typename T> static T *on_gpu(const std::vector<T> &v) {
    return (T *)gpu_bytes(v.data(), v.size() * sizeof(T));
}

/* Waits for what was launched, and reads. */
template <typename T> static void from_gpu(std::vector<T> &v, const void *p) {
    must(cudaDeviceSynchronize(), "the kernel");
    must(cudaMemcpy(v.data(), p, v.size() * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
}

static void free_gpu() {
    for (void *p : gpu_memory) {
        must(cudaFree(p), "cudaFree");
    }
    gpu_memory.clear();
}

#endif
