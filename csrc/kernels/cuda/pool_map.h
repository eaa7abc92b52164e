/* The KV pool as tensor maps see it, for the kernels whose keys come by boxes.cuh. */
#ifndef INF_CUDA_POOL_MAP_H
#define INF_CUDA_POOL_MAP_H

#include "kernels/cuda/boxes.cuh"
#include "kernels/cuda/launch.h"

/* p's pool as 16-bit numbers (pairs of them, where they are e4m3) in four dimensions: 64 numbers,
 * 8 tokens, halves (of 128 bytes) of a key, eights of tokens, counted from the pool's first byte.
 * A box of so many eights becomes, for each, an atom per half. Errors: cudaErrorNotSupported where
 * toolkit or driver have no maps, cudaErrorInvalidValue for a pool that is no such thing. */
int inf_cuda_pool_map(const inf_cuda_attn *p, uint32_t eights, tensor_map *map);

/* What a kernel is given whose keys come so. */
struct mapped_attn {
    tensor_map map;
    inf_cuda_attn p;
};

#endif
