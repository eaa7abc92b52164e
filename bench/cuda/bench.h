/* What the GPU benches share: calls that must succeed, seeded numbers, and the time of work that is
 * replayed from a graph, so that the time to launch does not count. */
#ifndef INF_BENCH_CUDA_H
#define INF_BENCH_CUDA_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cuda_runtime.h>

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        int error_ = (int)(call);                                                                  \
        if (error_ != 0) {                                                                         \
            printf("%s:%d: %s: error %d, %s\n", __FILE__, __LINE__, #call, error_,                 \
                   cudaGetErrorString((cudaError_t)error_));                                       \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

static inline uint64_t next_random() { /* splitmix64 */
    static uint64_t state = 1;
    uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* n calls of f(i), captured into a graph. */
template <class F> static inline cudaGraphExec_t recorded(cudaStream_t stream, int n, const F &f) {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; i++) {
        f(i);
    }
    CUDA(cudaStreamEndCapture(stream, &graph));
    CUDA(cudaGraphInstantiateWithFlags(&exec, graph, 0));
    CUDA(cudaGraphDestroy(graph));
    return exec;
}

/* Seconds of one of `times` calls of f, by events around all. */
template <class F> static inline double seconds_of(cudaStream_t stream, int times, const F &f) {
    cudaEvent_t from, upto;
    float ms = 0;
    CUDA(cudaEventCreate(&from));
    CUDA(cudaEventCreate(&upto));
    CUDA(cudaEventRecord(from, stream));
    for (int i = 0; i < times; i++) {
        f();
    }
    CUDA(cudaEventRecord(upto, stream));
    CUDA(cudaEventSynchronize(upto));
    CUDA(cudaEventElapsedTime(&ms, from, upto));
    CUDA(cudaEventDestroy(from));
    CUDA(cudaEventDestroy(upto));
    return 1e-3 * ms / times;
}

/* The same after one call that does not count. */
template <class F>
static inline double warm_seconds_of(cudaStream_t stream, int times, const F &f) {
    f();
    return seconds_of(stream, times, f);
}

#endif
