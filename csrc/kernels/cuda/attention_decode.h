/* The decode kernel's cuts, for the program that times them against each other. */
#ifndef INF_CUDA_ATTENTION_DECODE_H
#define INF_CUDA_ATTENTION_DECODE_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct inf_cuda_decode_variant {
    char name[48];
    int32_t keys, stages, warps, bulk; /* decode.cuh */
    int32_t shared;                    /* bytes of shared memory that a thread block takes */
    int32_t registers;                 /* of a thread */
    int32_t resident;                  /* thread blocks that an SM holds at a time; 0: cannot run */
    int32_t taken; /* 1: by inf_cuda_attn_decode_launch, for this shape and number of rows */
} inf_cuda_decode_variant;

int inf_cuda_decode_variants(void);
/* What variant `index` is for the shape of p; cudaErrorInvalidValue if there is no such. */
int inf_cuda_decode_variant_of(const inf_cuda_attn *p, int index, inf_cuda_decode_variant *out);
int inf_cuda_decode_variant_launch(const inf_cuda_attn *p, int index, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
