/* Tensor maps of the KV pool. The encoder is the driver's and found at run time, so that nothing is
 * linked with the driver. */
#include "kernels/cuda/pool_map.h"

#include <atomic>

/* How many eights there are is not known here and does not matter: no box is asked for beyond the
 * pool. */
static const uint64_t MOST_EIGHTS = (uint64_t)1 << 28;

#if defined(INF_EMU)

static int encode_map(const inf_cuda_attn *p, uint64_t row, uint32_t eights, tensor_map *map) {
    *map = {p->pool,
            {64, 8, row / 128, MOST_EIGHTS},
            {2, row, 128, row * 8},
            {64, 8, (uint32_t)(row / 128), eights}};
    return cudaSuccess;
}

#elif __CUDACC_VER_MAJOR__ >= 12

typedef CUresult (*encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                            const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                            const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static encoder find_encoder() {
    static std::atomic<encoder> found_before{NULL}; /* threads that race here find the same */
    encoder encode = found_before.load();
    if (encode != NULL) {
        return encode;
    }
    void *found = NULL;
    cudaDriverEntryPointQueryResult status;
#if CUDART_VERSION >= 12050
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                                         cudaEnableDefault, &status);
#else
    cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &status);
#endif
    if (error != cudaSuccess || status != cudaDriverEntryPointSuccess || found == NULL) {
        (void)cudaGetLastError();
        return NULL;
    }
    found_before.store((encoder)found);
    return (encoder)found;
}

static int encode_map(const inf_cuda_attn *p, uint64_t row, uint32_t eights, tensor_map *map) {
    encoder encode = find_encoder();
    if (encode == NULL) {
        return cudaErrorNotSupported;
    }
    cuuint64_t size[4] = {64, 8, row / 128, MOST_EIGHTS}, pitch[3] = {row, 128, row * 8};
    cuuint32_t box[4] = {64, 8, (cuuint32_t)(row / 128), eights}, step[4] = {1, 1, 1, 1};
    CUresult result = encode(map,
                             p->act == INF_DTYPE_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                             4, (void *)p->pool, size, pitch, box, step,
                             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? (int)cudaSuccess : (int)cudaErrorInvalidValue;
}

#else

static int encode_map(const inf_cuda_attn *, uint64_t, uint32_t, tensor_map *) {
    return cudaErrorNotSupported;
}

#endif

int inf_cuda_pool_map(const inf_cuda_attn *p, uint32_t eights, tensor_map *map) {
    uint64_t row = (uint64_t)p->kv.head_dim * (uint64_t)p->kv.elem; /* bytes */
    bool holds = row > 0 && row % 128 == 0 && p->kv.block_bytes % (row * 8) == 0 &&
                 p->kv.block_size % 8 == 0;
    return holds ? encode_map(p, row, eights, map) : (int)cudaErrorInvalidValue;
}
