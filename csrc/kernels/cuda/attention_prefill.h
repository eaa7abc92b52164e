/* The prefill kernels one by one, for the programs that test and time them against each other.
 * inf_cuda_attn_prefill_launch takes the last that the GPU has and that takes the shape: wgmma does
 * not take K and V in e4m3, nor a softcap. */
#ifndef INF_CUDA_ATTENTION_PREFILL_H
#define INF_CUDA_ATTENTION_PREFILL_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { INF_CUDA_PREFILL_MMA, INF_CUDA_PREFILL_WGMMA, INF_CUDA_PREFILL_VARIANTS };

typedef struct inf_cuda_prefill_variant {
    char name[48];
    int32_t shared;    /* bytes of shared memory that a thread block takes */
    int32_t registers; /* of a thread, at the start */
    int32_t local;     /* bytes of local memory of a thread: registers spilled */
    int32_t resident;  /* thread blocks that an SM holds at a time; 0: cannot run here */
} inf_cuda_prefill_variant;

/* What a variant is for the shape of p; cudaErrorInvalidValue if there is no such, or it does not
 * take the shape. */
int inf_cuda_prefill_variant_of(const inf_cuda_attn *p, int index, inf_cuda_prefill_variant *out);
int inf_cuda_prefill_variant_launch(const inf_cuda_attn *p, int index, inf_stream stream);

/* attention_prefill_sm90.cu */
int inf_cuda_prefill_wgmma_of(const inf_cuda_attn *p, inf_cuda_prefill_variant *out);
int inf_cuda_prefill_wgmma_launch(const inf_cuda_attn *p, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
