/* The kernels of collective.cu.
 *
 *   sum      bytes 2 n count size, of which n count size are read
 *   gather   bytes 2 rows cols 4; the products that made these numbers read cols hidden weights */
#include "kernels/cuda/ranks.h"

#include "kernels/cuda/prelude.cuh"

/* A number per thread, from rank 0 on in f32; rounded once, so every rank gets the same bits. */
template <typename T> __global__ void sum_kernel(const __grid_constant__ inf_cuda_sum a) {
    uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.count; i += step) {
        float total = load1((const T *)a.y[0] + i);
        for (int32_t r = 1; r < a.ranks; r++) {
            total += load1((const T *)a.y[r] + i);
        }
        for (int32_t r = 0; r < a.ranks; r++) {
            store1((T *)a.y[r] + i, total);
        }
    }
}

int inf_cuda_sum_launch(const inf_cuda_sum *p, inf_stream stream) {
    uint64_t blocks = (p->count + 255) / 256;
    dim3 grid((uint32_t)(blocks < 1024 ? blocks : 1024)), block(256);
    return p->act == INF_DTYPE_F32   ? INF_LAUNCH(sum_kernel<float>, grid, block, 0, stream, *p)
           : p->act == INF_DTYPE_F16 ? INF_LAUNCH(sum_kernel<f16>, grid, block, 0, stream, *p)
                                     : INF_LAUNCH(sum_kernel<bf16>, grid, block, 0, stream, *p);
}

/* A number per thread, a row per y of the grid. */
__global__ void gather_kernel(const __grid_constant__ inf_cuda_gather a) {
    const int32_t row = (int32_t)blockIdx.y, step = (int32_t)(gridDim.x * blockDim.x);
    float *whole = a.whole + (size_t)row * (size_t)a.cols;
    for (int32_t i = (int32_t)(blockIdx.x * blockDim.x + threadIdx.x); i < a.cols; i += step) {
        const int32_t rank = i / a.share, first = rank * a.share;
        const int32_t n = a.cols - first < a.share ? a.cols - first : a.share;
        whole[i] = a.part[rank][(size_t)row * (size_t)n + (size_t)(i - first)];
    }
}

int inf_cuda_gather_launch(const inf_cuda_gather *p, inf_stream stream) {
    uint32_t blocks = ((uint32_t)p->cols + 255) / 256;
    dim3 grid(blocks < 1024 ? blocks : 1024, (uint32_t)p->rows);
    return INF_LAUNCH(gather_kernel, grid, dim3(256), 0, stream, *p);
}
