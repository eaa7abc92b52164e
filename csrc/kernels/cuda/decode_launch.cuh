/* Decode attention's kernels, and how they are launched: what the cuts of one number format need
 * (decode_cuts.h). attention_decode.cu says how it all fits together. */
#ifndef INF_CUDA_DECODE_LAUNCH_CUH
#define INF_CUDA_DECODE_LAUNCH_CUH

#include <stdio.h>

#include "kernels/cuda/decode_cuts.h"
#include "kernels/cuda/decode_merge.cuh"
#include "kernels/cuda/pool_map.h"

template <class C>
static __device__ __forceinline__ void decode_pieces(const inf_cuda_attn &p, const tensor_map *map,
                                                     uint8_t *rings) {
    int warp = (int)(threadIdx.x / 32);
    decode_ring ring;
    ring.stages = rings + warp * C::ring;
    ring.bars = (uint64_t *)(rings + C::warps * C::ring) + warp * C::stages;
    ring.slot = 0, ring.parity = 0;
#if INF_HAS_BULK
    if (C::bulk) {
        if (threadIdx.x % 32 == 0) {
            for (int i = 0; i < C::stages; i++) {
                mbar_init(ring.bars + i);
            }
            mbar_init_fence();
        }
        __syncwarp(); /* the barriers are this warp's alone */
    }
#endif
    bool waited = p.early < 2;
    if (waited) {
        after_predecessor();
    }
    start_successor();
    /* Pieces go from big to small: every other round of the grid is dealt in reverse, so that who
     * had the biggest of one round has the smallest of the next. The first is read beside the
     * number of pieces, which may say that it is none. */
    int32_t n = (int32_t)gridDim.y, y = (int32_t)blockIdx.y;
    inf_cuda_work work = p.work[y];
    int32_t n_work = *p.n_work;
    for (int32_t round = 0; round * n < n_work; round++) {
        int32_t index = round * n + (round % 2 == 0 ? y : n - 1 - y);
        if (index >= n_work) {
            break; /* the last round */
        }
        if (round > 0) {
            work = p.work[index];
        }
        decode_piece x = piece_of(p, work);
        decode_rows<C> rows;
        part_list parts;
        attend_piece(p, map, x, ring, rows, waited, parts);
        put_results(rows, x.n_rows, (float *)ring.stages);
        __syncthreads();
        write_piece<C>(p, x, (const float *)rings);
        merge_if_last<C>(p, x, parts);
#if INF_HAS_BULK
        if (C::bulk) {
            bulk_fence();
        }
#endif
        __syncthreads();
    }
    if (!waited) { /* it had no piece; that this kernel has ended says that those in front have */
        after_predecessor();
    }
}

/* Where the code has no bulk copies the body is empty and never launched, see describe_cut(). */
template <class C>
static __global__ void __launch_bounds__(C::warps * 32, C::resident)
    attn_decode_kernel(inf_cuda_attn p) {
#if !INF_HAS_BULK
    if (C::bulk) {
        return;
    }
#endif
    INF_SHARED(shared);
    decode_pieces<C>(p, NULL, shared);
}

template <class C>
static __global__ void __launch_bounds__(C::warps * 32, C::resident)
    attn_decode_boxes_kernel(const __grid_constant__ mapped_attn a) {
#if INF_HAS_BULK
    INF_SHARED(shared);
    if (threadIdx.x % 32 == 0) {
        prefetch_map(&a.map);
    }
    decode_pieces<C>(a.p, &a.map, shared);
#endif
}

/* ---- host ---- */

/* A recorded launch is made for more pieces than most steps have, and a thread block that finds
 * nothing to do is not free: so there are at most as many as run in some waves on so many SMs (0:
 * no bound), and these take all pieces. Who is dealt a piece whenever it has done with another is
 * better off where pieces differ, as those of many rows can: on an H200 the 279 of 32 mixed
 * contexts took 570 us by two waves, 551 by four, 522 by ten. 1,200 blocks without work took 0.5 us
 * beside 8 x 1K keys, and no time that shows beside 64 x 1K. */
template <class C> static int launch_cut(const inf_cuda_attn *p, int sms, inf_stream stream) {
    int32_t waves = p->rows > 8 ? 10 : 2, blocks = waves * sms * C::resident;
    int32_t most = sms > 0 ? (blocks + p->kv.kv_heads - 1) / p->kv.kv_heads : 65535;
    dim3 grid((unsigned)p->kv.kv_heads, (unsigned)(p->max_work < most ? p->max_work : most));
    dim3 block(C::warps * 32);
    int error;
    if constexpr (C::boxes) {
        mapped_attn args;
        args.p = *p;
        error = inf_cuda_pool_map(p, 1, &args.map);
        error = error != 0 ? error : (int)INF_ALLOW_SHARED(attn_decode_boxes_kernel<C>, C::shared);
        error = error != 0 ? error
                           : (int)INF_LAUNCH_EARLY(p->early != 0, attn_decode_boxes_kernel<C>, grid,
                                                   block, C::shared, stream, args);
    } else {
        error = (int)INF_ALLOW_SHARED(attn_decode_kernel<C>, C::shared);
        error = error != 0 ? error
                           : (int)INF_LAUNCH_EARLY(p->early != 0, attn_decode_kernel<C>, grid,
                                                   block, C::shared, stream, *p);
    }
    return error;
}

#ifndef INF_EMU
/* Registers and thread blocks per SM on the current device; a kernel for bulk copies whose code was
 * made for an older GPU is empty and counts as one that cannot run. */
template <class C, class K> static int ask_runtime(K *kernel, inf_cuda_decode_variant *out) {
    cudaFuncAttributes a;
    int error = (int)cudaFuncGetAttributes(&a, kernel);
    if (error == 0) {
        error = (int)INF_ALLOW_SHARED(kernel, C::shared);
    }
    if (error == 0) {
        error = (int)cudaOccupancyMaxActiveBlocksPerMultiprocessor(&out->resident, kernel,
                                                                   C::warps * 32, C::shared);
    }
    if (error == 0) {
        out->registers = a.numRegs;
        if (C::bulk && (a.ptxVersion < 90 || __CUDACC_VER_MAJOR__ < 12)) {
            out->resident = 0;
        }
    }
    return error;
}
#endif

template <class C> static int describe_cut(const inf_cuda_attn *p, inf_cuda_decode_variant *out) {
    (void)p;
    snprintf(out->name, sizeof out->name, "%s, %d keys x %d stages x %d warps",
             C::boxes  ? "boxes"
             : C::bulk ? "bulk"
                       : "async",
             C::keys, C::stages, C::warps);
    out->keys = C::keys, out->stages = C::stages, out->warps = C::warps, out->bulk = C::bulk;
    out->shared = C::shared, out->registers = 0, out->resident = 1;
    int error = 0;
    if constexpr (C::boxes) {
        tensor_map map;
        error = inf_cuda_pool_map(p, 1, &map);
#ifndef INF_EMU
        error = error != 0 ? error : ask_runtime<C>(attn_decode_boxes_kernel<C>, out);
#endif
    } else {
#ifndef INF_EMU
        error = ask_runtime<C>(attn_decode_kernel<C>, out);
#endif
    }
    if (error != 0) {
        (void)cudaGetLastError();
        out->resident = 0;
    }
    return 0;
}

template <class C> static int call_cut(const decode_call &c) {
    return c.out != NULL ? describe_cut<C>(c.p, c.out) : launch_cut<C>(c.p, c.sms, c.stream);
}

/* Tiles of as many bytes whatever the format and head_dim, up to 64 keys: KEYS is for 16 bits and
 * 128. Rows of 64 bytes come by bulk copies where others come by boxes. */
template <class T, int KEYS, decode_way WAY, bool CAP> static int call_shape(const decode_call &c) {
    constexpr int wide = KEYS * 2 / (int)sizeof(T) < 64 ? KEYS * 2 / (int)sizeof(T) : 64;
    constexpr int narrow = 2 * wide < 64 ? 2 * wide : 64;
    constexpr decode_way narrow_way = WAY == BY_BOXES && sizeof(T) == 1 ? BY_BULK : WAY;
    return c.p->kv.head_dim == 128 ? call_cut<decode_cut<T, 128, wide, 3, 4, WAY, CAP>>(c)
                                   : call_cut<decode_cut<T, 64, narrow, 3, 4, narrow_way, CAP>>(c);
}

template <class T> static int call_number(const decode_call &c) {
    bool cap = c.p->softcap != 0.0f;
    switch (c.cut) {
    case DECODE_BULK:
        return cap ? call_shape<T, 32, BY_BULK, true>(c) : call_shape<T, 32, BY_BULK, false>(c);
    case DECODE_ASYNC:
        return cap ? call_shape<T, 16, BY_ASYNC, true>(c) : call_shape<T, 16, BY_ASYNC, false>(c);
    case DECODE_BULK_MANY:
        return cap ? call_shape<T, 16, BY_BULK, true>(c) : call_shape<T, 16, BY_BULK, false>(c);
    case DECODE_BOXES:
        return call_shape<T, 32, BY_BOXES, false>(c);
    case DECODE_BOXES_MANY:
        return call_shape<T, 16, BY_BOXES, false>(c);
    default:
        return cudaErrorInvalidValue;
    }
}

#endif
