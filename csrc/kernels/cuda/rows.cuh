/* What the kernels that walk rows share: runs of numbers in and out of any format, 16 bytes at a
 * time. */
#ifndef INF_CUDA_ROWS_CUH
#define INF_CUDA_ROWS_CUH

#include "kernels/cuda/attention.cuh"

/* Numbers that one access of the fast kernels moves: 16 bytes of a 16-bit format, twice 16 of f32.
 */
enum { VECTOR = 8 };

static __device__ __forceinline__ float low_of(uint32_t pair, bf16) {
    return bits_to_float(pair << 16);
}
static __device__ __forceinline__ float high_of(uint32_t pair, bf16) {
    return bits_to_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ float low_of(uint32_t pair, f16) {
    return f16_to_float((uint16_t)(pair & 0xffffu));
}
static __device__ __forceinline__ float high_of(uint32_t pair, f16) {
    return f16_to_float((uint16_t)(pair >> 16));
}
static __device__ __forceinline__ uint32_t pair_of(float low, float high, bf16) {
    return pack_bf16x2(low, high);
}
static __device__ __forceinline__ uint32_t pair_of(float low, float high, f16) {
    return pack_f16x2(low, high);
}

/* VECTOR numbers of T as f32. */
template <class T> static __device__ __forceinline__ void widen(float *x, const uint4 &v) {
    x[0] = low_of(v.x, T()), x[1] = high_of(v.x, T());
    x[2] = low_of(v.y, T()), x[3] = high_of(v.y, T());
    x[4] = low_of(v.z, T()), x[5] = high_of(v.z, T());
    x[6] = low_of(v.w, T()), x[7] = high_of(v.w, T());
}

/* N numbers from p on: one, or VECTOR aligned to 16 bytes. */
template <int N> static __device__ __forceinline__ void load_run(float *x, const float *p) {
    if constexpr (N == VECTOR) {
        float4 v = *(const float4 *)p, w = *(const float4 *)(p + 4);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        x[4] = w.x, x[5] = w.y, x[6] = w.z, x[7] = w.w;
    } else {
        x[0] = *p;
    }
}
template <int N, class T> static __device__ __forceinline__ void load_run(float *x, const T *p) {
    if constexpr (N == VECTOR) {
        widen<T>(x, *(const uint4 *)p);
    } else {
        x[0] = load1(p);
    }
}

/* The same of memory that others write, past the caches of an SM: a kernel that starts early may
 * find in them what an earlier one read. N may be 4 too. */
template <int N> static __device__ __forceinline__ void load_fresh(float *x, const float *p) {
    static_assert(N == 1 || N == 4 || N == VECTOR, "");
    if constexpr (N == 1) {
        x[0] = __ldcv(p);
    } else {
        for (int i = 0; i < N; i += 4) {
            float4 v = __ldcv((const float4 *)(p + i));
            x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
        }
    }
}

/* Here N may be 4 too, aligned to the size of 4. */
template <int N> static __device__ __forceinline__ void store_run(float *p, const float *x) {
    if constexpr (N == 4) {
        *(float4 *)p = make_float4(x[0], x[1], x[2], x[3]);
    } else if constexpr (N == VECTOR) {
        ((float4 *)p)[0] = make_float4(x[0], x[1], x[2], x[3]);
        ((float4 *)p)[1] = make_float4(x[4], x[5], x[6], x[7]);
    } else {
        *p = x[0];
    }
}
template <int N, class T> static __device__ __forceinline__ void store_run(T *p, const float *x) {
    if constexpr (N == 4) {
        *(uint2 *)p = make_uint2(pair_of(x[0], x[1], T()), pair_of(x[2], x[3], T()));
    } else if constexpr (N == VECTOR) {
        *(uint4 *)p = make_uint4(pair_of(x[0], x[1], T()), pair_of(x[2], x[3], T()),
                                 pair_of(x[4], x[5], T()), pair_of(x[6], x[7], T()));
    } else {
        store1(p, x[0]);
    }
}

/* The same where the format is known only when the kernel runs; every thread of it takes the same
 * way. */
template <int N>
static __device__ __forceinline__ void store_run_as(void *p, int32_t dtype, size_t at,
                                                    const float *x) {
    if (dtype == INF_DTYPE_F32) {
        store_run<N>((float *)p + at, x);
    } else if (dtype == INF_DTYPE_BF16) {
        store_run<N>((bf16 *)p + at, x);
    } else {
        store_run<N>((f16 *)p + at, x);
    }
}

/* Host: whether every pointer is aligned to 16 bytes (NULL is). */
template <class... P> static inline bool aligned_16(P... pointers) {
    return (... && (((uintptr_t)pointers % 16) == 0));
}

/* Sum over the block; every thread gets it. */
static __device__ __forceinline__ float block_sum(float x, float *sums) {
    int lane = (int)(threadIdx.x % 32), warps = (int)(blockDim.x / 32);
    x = warp_sum(x);
    if (lane == 0) {
        sums[threadIdx.x / 32] = x;
    }
    __syncthreads();
    return warp_sum(lane < warps ? sums[lane] : 0.0f);
}

static inline size_t dtype_size(int32_t dtype) { return dtype == INF_DTYPE_F32 ? 4 : 2; }

/* Host: f(T()) with the number type of dtype. */
template <class F> static inline int with_type(int32_t dtype, const F &f) {
    if (dtype == INF_DTYPE_F32) {
        return f(float());
    }
    return dtype == INF_DTYPE_BF16 ? f(bf16()) : f(f16());
}

#endif
