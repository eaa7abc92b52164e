/* A kernel that is right with both of its barriers and wrong without one: for the tests of faults
 * and of races. */
#ifndef INF_TESTS_CUDA_RING_H
#define INF_TESTS_CUDA_RING_H

#include "tests/cuda/words.h"

/* Without the barrier that MISSING names, a word may come from the round before or the one behind.
 */
enum { THREADS = 128 };
template <int MISSING> static __global__ void ring_kernel(words_args a) {
    __shared__ uint32_t ring[THREADS];
    uint32_t t = threadIdx.x, x = t;
    for (int i = 0; i < 4; i++) {
        ring[t] = x;
        if (MISSING != 1) {
            __syncthreads();
        }
        x = ring[(t + 33) % THREADS] + 1;
        if (MISSING != 2) {
            __syncthreads();
        }
    }
    a.out[blockIdx.x * THREADS + t] = x;
}

#endif
