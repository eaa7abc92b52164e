/* Products of a few rows, see product_small.cu. */
#ifndef INF_CUDA_PRODUCT_SMALL_H
#define INF_CUDA_PRODUCT_SMALL_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { INF_CUDA_SMALL_ROWS = 8, INF_CUDA_SMALL_WAYS = 3 /* values of `through` */ };

typedef struct inf_cuda_small {
    const void *x;    /* [rows, k] of act */
    const void *w;    /* [n, k] of act; gate: [2 n, k], gate rows first */
    const void *bias; /* [n] of act, or NULL */
    void *y;          /* [rows, n] of act, or f32 */
    /* Residual, unless NULL: residual [rows, n] += product, and y = residual * norm [n], not scaled
     * yet (y NULL: nothing); squares [rows, n / 16] gets sums of squares of the residual. Neither
     * gate, bias nor y_f32 then. */
    float *residual;
    const float *norm;
    float *squares;
    /* Of x, when it came that way: its k / 16 sums per row, so that products are scaled by
     * 1 / sqrt(mean + eps) at the end; NULL: x is what it should be. */
    const float *x_squares;
    float eps;
    int32_t act, rows, n, k;
    int32_t y_f32;
    int32_t gate;  /* 1: y = activation(gate) * up; neither bias nor y_f32 then */
    int32_t early; /* 1: may start before the kernel in front has ended; sm_90. 2: and prefetches */
    int32_t three; /* 1: three blocks per SM, where gate and through are 0 */
    /* 1: blocks that stay and make tile after tile; 2: such whose weights come by bulk copies, or
     * as 1 where the GPU has none; with early = 2 these prefetch nothing, and two blocks fit an SM.
     */
    int32_t through;
    int32_t sms;        /* that blocks which stay are for; 0: those of the device */
    int32_t activation; /* INF_ACT_* */
} inf_cuda_small;

/* bf16 and f16, at most INF_CUDA_SMALL_ROWS rows, n a multiple of 16, k of 64. */
int inf_cuda_small_takes(const inf_cuda_small *p);
int inf_cuda_small_launch(const inf_cuda_small *p, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
