/* Prefill attention for Hopper. Maths, packed heads and masks as in attention_prefill.cu; here the
 * products are wgmma's, which read their operands from shared memory by themselves, and the keys
 * come by TMA, so that threads are left with the softmax (as in FlashAttention-3, Shah et al.
 * 2024).
 *
 * The cut. A thread block has two consumer warpgroups with 64 of a tile's 128 packed rows each, and
 * four producer warps: one for K, which also deals out the tiles of rows, one for V, two for q.
 * There is one block per SM, and it takes tiles (piece, kv head, 128 packed rows) until none are
 * left; the producers are ahead of the consumers, so a tile's q and first keys are there when the
 * tile before is finished. Tiles go from big to small; every other round of the blocks is dealt in
 * reverse.
 *
 * Key tiles have 128 keys. K and V of a tile have two places each in shared memory, and each place
 * has a barrier that says it is full (the bytes have landed) and one that says it is empty (all
 * eight consumer warps have done with it). A consumer asks for the scores of the next tile before
 * it asks for weights times V of this one, and computes the next weights while the latter product
 * runs. The two warpgroups do not wait for each other; when they took turns to ask for products
 * (FlashAttention-3's ping-pong), an H200 was 1 to 10 % slower.
 *
 * Flops and bytes. A block's tile of keys is 512 head_dim bytes from L2 for 128 * 128 * 4 head_dim
 * flops: 128 flops a byte. The heads of a piece, which read the same keys, are neighbours in the
 * order of tiles and so run at about the same time: what one reads from memory the others find in
 * L2.
 *
 * The way of the keys. 16 tokens surely lie in one block, contiguous; one copy brings them as atoms
 * of the layout that wgmma reads (hopper.cuh). For that the pool is, to the tensor map, numbers in
 * four dimensions: 64 dims, 8 tokens, halves of head_dim, eights of tokens. A box of two eights
 * becomes, for each eight, an atom per half; so in shared memory eights of keys are C::eight bytes
 * apart and the halves of head_dim 1024. K is read K-major (a row is a key, that is one of N): its
 * stride offset is C::eight. V is read MN-major (a row is a key, that is one of K), so it needs no
 * transposing: its stride offset is C::eight too, and its leading offset the 1024 bytes between
 * halves.
 *
 * Boxes without a visible key are not asked for, and what lies in their place is never seen: their
 * scores are masked whatever they are, but rows of V that nobody sees must be zeros, since 0 times
 * what lies there need not be 0. In tiles that have such rows V's warp waits for V itself, writes
 * the zeros, and only then says that V is there.
 *
 * Registers. 64 rows of o and of scores are 64 registers each per consumer thread (head_dim 128),
 * the weights 32: the producers give registers away and the consumers take them. */
#include <stdio.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/pool_map.h"
#include "kernels/cuda/prefill_consume.cuh"

/* Registers of a thread. A block has what it was launched with, 65536 over its threads, rounded
 * down: who asks for more than others have given away waits for ever. */
enum { LAUNCH_REGISTERS = 65536 / 384 / 8 * 8, PRODUCER_REGISTERS = 56, CONSUMER_REGISTERS = 224 };
static_assert(PRODUCER_REGISTERS + 2 * CONSUMER_REGISTERS <= 3 * LAUNCH_REGISTERS, "");

template <class C>
static __global__ void __launch_bounds__(C::threads, 1)
    attn_wgmma_kernel(const __grid_constant__ mapped_attn a) {
#if INF_HAS_WGMMA
    INF_SHARED(shared);
    wgmma_state &state = *(wgmma_state *)(shared + C::at_state);
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            mbar_init(&state.full_k[i], 1), mbar_init(&state.full_v[i], 1);
            mbar_init(&state.empty_k[i], 8), mbar_init(&state.empty_v[i], 8); /* consumer warps */
            mbar_init(&state.full_x[i], 1);
            mbar_init(&state.empty_x[i], 9); /* consumers and V's warp */
            mbar_init(&state.full_q[i], 2);  /* q's warps */
        }
        mbar_init(&state.landed, 1);
        mbar_init_fence();
        prefetch_map(&a.map);
    }
    __syncthreads();
    after_predecessor();
    start_successor();
    if (threadIdx.x < 128) {
        give_registers<PRODUCER_REGISTERS>();
        produce<C>(a, shared, state);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        consume<C>(a.p, shared, state);
    }
#endif
}

/* ---- host ---- */

static int wgmma_takes(const inf_cuda_attn *p) { return p->kv.block_size % 16 == 0; }

template <class C> static int launch_wgmma(const inf_cuda_attn *p, inf_stream stream) {
    mapped_attn args;
    int32_t sms = 132;
#ifndef INF_EMU
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
        (void)cudaGetLastError();
    }
#else
    sms = 3;
#endif
    args.p = *p;
    int error = inf_cuda_pool_map(p, 2, &args.map);
    error = error != 0 ? error : (int)INF_ALLOW_SHARED(attn_wgmma_kernel<C>, C::shared);
    int64_t most = (int64_t)p->max_work * p->heads;
    dim3 grid((unsigned)(most < sms ? most : sms));
    return error != 0 ? error
                      : (int)INF_LAUNCH_EARLY(p->early != 0, attn_wgmma_kernel<C>, grid,
                                              dim3(C::threads), C::shared, stream, args);
}

template <class C>
static int describe_wgmma(const inf_cuda_attn *p, inf_cuda_prefill_variant *out) {
    snprintf(out->name, sizeof out->name, "wgmma, 128 rows x %d keys", C::keys);
    out->shared = C::shared, out->registers = out->local = 0, out->resident = wgmma_takes(p);
#ifndef INF_EMU
    cudaFuncAttributes a;
    tensor_map map;
    int device = 0, major = 0, error = (int)cudaGetDevice(&device);
    error = error != 0
                ? error
                : (int)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    error = error != 0 ? error : (int)cudaFuncGetAttributes(&a, attn_wgmma_kernel<C>);
    error = error != 0 ? error : (int)INF_ALLOW_SHARED(attn_wgmma_kernel<C>, C::shared);
    error = error != 0 ? error : inf_cuda_pool_map(p, 2, &map);
    if (error != 0) {
        (void)cudaGetLastError();
        out->resident = 0;
        return 0;
    }
    out->registers = a.numRegs, out->local = (int32_t)a.localSizeBytes;
    /* Code for sm_90 and not sm_90a has an empty body, and so hardly any registers. */
    if (major != 9 || a.numRegs < 100) {
        out->resident = 0;
    }
#endif
    return 0;
}

template <class T>
static int call_wgmma(const inf_cuda_attn *p, inf_stream stream, inf_cuda_prefill_variant *out) {
    typedef wgmma_cut<T, 128> wide;
    typedef wgmma_cut<T, 64> narrow;
    if (p->kv.head_dim == 128) {
        return out != NULL ? describe_wgmma<wide>(p, out) : launch_wgmma<wide>(p, stream);
    }
    return out != NULL ? describe_wgmma<narrow>(p, out) : launch_wgmma<narrow>(p, stream);
}

int inf_cuda_prefill_wgmma_of(const inf_cuda_attn *p, inf_cuda_prefill_variant *out) {
    return p->act == INF_DTYPE_BF16 ? call_wgmma<bf16>(p, NULL, out)
                                    : call_wgmma<f16>(p, NULL, out);
}

int inf_cuda_prefill_wgmma_launch(const inf_cuda_attn *p, inf_stream stream) {
    if (!wgmma_takes(p)) {
        return cudaErrorInvalidValue;
    }
    return p->act == INF_DTYPE_BF16 ? call_wgmma<bf16>(p, stream, NULL)
                                    : call_wgmma<f16>(p, stream, NULL);
}
