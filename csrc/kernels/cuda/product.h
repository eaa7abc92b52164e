/* Matrix products of a lane: y[rows, n] = x[rows, k] w[n, k]^T (+ bias). */
#ifndef INF_CUDA_PRODUCT_H
#define INF_CUDA_PRODUCT_H

#include "kernels/backend.h"
#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct inf_cuda_products inf_cuda_products;

/* Waits for a cudaEvent_t; 0 or a cudaError_t. */
typedef struct inf_cuda_waiter {
    int (*wait)(void *arg, void *event);
    void *arg;
} inf_cuda_waiter;

/* INF_EUNSUPPORTED and why when cuBLASLt cannot be loaded; INF_ENOMEM. act is the format of x, w
 * and bias, and of y unless it is to be f32. By waiter, which may be NULL, it waits for what it
 * times. */
int inf_cuda_products_open(int32_t act, const inf_cuda_waiter *waiter, inf_cuda_products **out,
                           inf_err *err);
void inf_cuda_products_close(inf_cuda_products *products);

/* Enqueues; 0, a cudaError_t, or -(cublasStatus_t). The first product of a shape with few rows
 * times the algorithms that there are for it, unless the stream is being captured. */
int inf_cuda_product(inf_cuda_products *products, const inf_product *p, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
