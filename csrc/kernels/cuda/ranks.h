/* What ranks whose memory is one do in it, see ranks.cu. */
#ifndef INF_CUDA_RANKS_H
#define INF_CUDA_RANKS_H

#include "kernels/backend.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct inf_cuda_sum {
    void *y[INF_MAX_RANKS]; /* [count] of act each */
    uint64_t count;
    int32_t act, ranks;
} inf_cuda_sum;

typedef struct inf_cuda_gather {
    const float *part[INF_MAX_RANKS]; /* [rows, share]; of the last ranks fewer columns, or none */
    float *whole;                     /* [rows, cols] */
    int32_t rows, cols, share;
} inf_cuda_gather;

/* Each enqueues; 0 or a cudaError_t. */
int inf_cuda_sum_launch(const inf_cuda_sum *p, inf_stream stream);
int inf_cuda_gather_launch(const inf_cuda_gather *p, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
