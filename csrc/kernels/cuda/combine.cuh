/* What the kernels that merge partials share: a warp has the dims of a (row, head). */
#ifndef INF_CUDA_COMBINE_CUH
#define INF_CUDA_COMBINE_CUH

#include "kernels/cuda/rows.cuh"

/* A lane's dims: runs of VEC numbers, 32 VEC apart. */
enum { COMBINE_DIMS = 8, COMBINE_MAX_DIM = 32 * COMBINE_DIMS };

template <int VEC> static __device__ __forceinline__ int32_t dim_at(int i) {
    return (i / VEC * 32 + (int32_t)(threadIdx.x % 32)) * VEC + i % VEC;
}

/* This lane's dims of a row of f32; 0 beyond head_dim. FRESH: as load_fresh. */
template <int VEC, bool FRESH = false>
static __device__ __forceinline__ void load_dims(float x[COMBINE_DIMS], const float *row,
                                                 int32_t head_dim) {
#pragma unroll
    for (int i = 0; i < COMBINE_DIMS; i += VEC) {
        int32_t d = dim_at<VEC>(i);
        if (d >= head_dim) {
            for (int k = i; k < i + VEC; k++) {
                x[k] = 0.0f;
            }
        } else if constexpr (FRESH) {
            load_fresh<VEC>(x + i, row + d);
        } else if constexpr (VEC == 4) {
            float4 v = *(const float4 *)(row + d);
            x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
        } else {
            x[i] = row[d];
        }
    }
}

#endif
