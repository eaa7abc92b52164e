/* What the tests of the runtime's interface share. */
#ifndef INF_STREAMS_H
#define INF_STREAMS_H

#include "tests/cuda/cuda_check.h"

static uint32_t *pinned(size_t n) {
    void *p = NULL;
    must(cudaHostAlloc(&p, n * 4, cudaHostAllocMapped | cudaHostAllocPortable), "cudaHostAlloc");
    return (uint32_t *)p;
}

static cudaStream_t new_stream() {
    cudaStream_t s = NULL;
    must(cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking, 0), "a stream");
    return s;
}

#endif
