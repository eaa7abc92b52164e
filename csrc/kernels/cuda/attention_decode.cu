/* Decode attention: few query rows against many keys, on the tensor cores, at the speed at which
 * memory can be read.
 *
 * Maths as in attention_plain.cu. Here the query heads that share a kv head, times the piece's
 * rows, are the M = 16 rows of mma m16n8k16: row i is query head i % group of row i / group. Scores
 * are taken times log2 e, so that weights are powers of two; weights are rounded to the KV's format
 * for the product with V, sums and maxima are f32.
 *
 * Bytes and flops. A key costs 4 head_dim bytes (K and V, 2 bytes a number) and 4 head_dim flops
 * for each of at most 16 rows: 16 flops a byte at most, where an H100 has some 300 tensor flops per
 * byte that its memory delivers. So reading is all that matters: every byte is read once, and
 * enough reads are under way at all times. By Little's law that is bandwidth times latency, some 25
 * KiB per SM at 3.3 TB/s, 132 SMs and 1 us of latency under load; more than twice that leaves room
 * for the times in which a block starts or ends.
 *
 * The cut. A thread block computes one piece for one kv head. Its warps take the piece's key tiles
 * in turn, each with a softmax of its own and a ring of tiles of its own in shared memory, so no
 * warp waits for another until the piece ends; then their results are merged through shared memory
 * by the rule for partials, o = sum o_w e^(m_w - m) / sum l_w e^(m_w - m). While a warp computes a
 * tile, its other stages are on their way; they are asked for tile by tile, the block table being
 * read a batch of tiles ahead (decode.cuh). The kv heads of a piece are neighbours in the grid:
 * they read neighbouring kilobytes of the same blocks at about the same time.
 *
 * Two ways into shared memory. cp.async takes 16 bytes per lane and works from sm_80 on; it fills
 * what is not read with zeros. Bulk copies (sm_90) take a chunk of 2 or 4 keys each, so that an
 * instruction moves up to 1 KiB and the rest of the way is the copy engine's. Both put a tile down
 * in the same layout, chunks 16 bytes apart from each other: a bulk copy cannot permute the 16-byte
 * words within a row, as the usual swizzle does, but where chunks go is free. Since the order of
 * keys within a tile is free too, ldmatrix takes its eight rows from eight chunks, and those lie in
 * different banks.
 *
 * The beginning. What a launch takes before its first key is on its way shows where contexts are
 * short: the number of pieces, the piece, its segment, the block table, each read after the other.
 * In a step all that was there before the kernel in front began (RoPE, which writes q and the rows'
 * own keys), and so were all keys but those; so with early = 2 a warp asks for its first tiles
 * before it waits for that kernel, unless own keys are in them.
 *
 * Masks. Keys that a row does not see (causal rule within the piece's rows, window, end of the
 * span) get the weight 0, but only in tiles that need it: the last one, and the first of a window.
 */
#include <stdio.h>

#include <atomic>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/decode_merge.cuh"

template <class C>
static __global__ void __launch_bounds__(C::warps * 32, C::resident)
    attn_decode_kernel(inf_cuda_attn p) {
#if !INF_HAS_BULK
    if (C::bulk) {
        return; /* never launched, see gpu_of() */
    }
#endif
    INF_SHARED(shared);
    uint8_t *rings = shared;
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
        attend_piece(p, x, ring, rows, waited, parts);
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
    int error = (int)INF_ALLOW_SHARED(attn_decode_kernel<C>, C::shared);
    return error != 0 ? error
                      : (int)INF_LAUNCH_EARLY(p->early != 0, attn_decode_kernel<C>, grid,
                                              dim3(C::warps * 32), C::shared, stream, *p);
}

/* Registers and thread blocks per SM on the current device; a kernel for bulk copies whose code was
 * made for an older GPU is empty and counts as one that cannot run. */
template <class C> static int describe_cut(inf_cuda_decode_variant *out) {
    char pad[16] = "";
    if (C::pad != 16) {
        snprintf(pad, sizeof pad, " by %d", C::pad);
    }
    snprintf(out->name, sizeof out->name, "%s%s%s, %d keys x %d stages x %d warps",
             C::bulk ? "bulk" : "async",
             !C::hint  ? ""
             : C::bulk ? " once"
                       : " of 256",
             pad, C::keys, C::stages, C::warps);
    out->keys = C::keys, out->stages = C::stages, out->warps = C::warps, out->bulk = C::bulk;
    out->shared = C::shared, out->registers = 0, out->resident = 1;
#ifndef INF_EMU
    cudaFuncAttributes a;
    int error = (int)cudaFuncGetAttributes(&a, attn_decode_kernel<C>);
    if (error == 0) {
        error = (int)INF_ALLOW_SHARED(attn_decode_kernel<C>, C::shared);
    }
    if (error == 0) {
        error = (int)cudaOccupancyMaxActiveBlocksPerMultiprocessor(
            &out->resident, attn_decode_kernel<C>, C::warps * 32, C::shared);
    }
    if (error != 0) {
        (void)cudaGetLastError();
        out->resident = 0;
        return 0;
    }
    out->registers = a.numRegs;
    if (C::bulk && (a.ptxVersion < 90 || __CUDACC_VER_MAJOR__ < 12)) {
        out->resident = 0;
    }
#endif
    return 0;
}

/* One of the two, for cut C. */
struct decode_call {
    const inf_cuda_attn *p;
    inf_stream stream;
    int sms;                      /* of a launch that is bounded, else 0 */
    inf_cuda_decode_variant *out; /* NULL: launch */
};

template <class C> static int call_cut(const decode_call &c) {
    return c.out != NULL ? describe_cut<C>(c.out) : launch_cut<C>(c.p, c.sms, c.stream);
}

/* Tiles of as many bytes whatever the format and head_dim, up to 64 keys: KEYS is for 16 bits and
 * 128. */
template <int KEYS, int STAGES, int WARPS, bool BULK, bool HINT, bool CAP = false, int PAD = 16>
static int call_shape(const decode_call &c) {
    constexpr int twice = 2 * KEYS < 64 ? 2 * KEYS : 64, four = 4 * KEYS < 64 ? 4 * KEYS : 64;
    bool wide = c.p->kv.head_dim == 128;
    if (c.p->kv.dtype == INF_DTYPE_E4M3) {
        return wide ? call_cut<decode_cut<e4m3, 128, twice, STAGES, WARPS, BULK, HINT, CAP, PAD>>(c)
                    : call_cut<decode_cut<e4m3, 64, four, STAGES, WARPS, BULK, HINT, CAP, PAD>>(c);
    }
    if (c.p->act == INF_DTYPE_BF16) {
        return wide ? call_cut<decode_cut<bf16, 128, KEYS, STAGES, WARPS, BULK, HINT, CAP, PAD>>(c)
                    : call_cut<decode_cut<bf16, 64, twice, STAGES, WARPS, BULK, HINT, CAP, PAD>>(c);
    }
    return wide ? call_cut<decode_cut<f16, 128, KEYS, STAGES, WARPS, BULK, HINT, CAP, PAD>>(c)
                : call_cut<decode_cut<f16, 64, twice, STAGES, WARPS, BULK, HINT, CAP, PAD>>(c);
}

static int (*const variants[])(const decode_call &) = {
    call_shape<32, 3, 4, true, false>,
    call_shape<16, 3, 4, false, false>,
    call_shape<32, 3, 4, true, true>,
    call_shape<64, 3, 2, true, false>,
    call_shape<16, 3, 4, true, false>,
    call_shape<32, 3, 2, true, false>,
    call_shape<16, 3, 8, false, false>,
    call_shape<16, 3, 8, false, true>,
    call_shape<32, 3, 4, true, false, false, 32>,
    call_shape<32, 3, 4, true, false, false, 64>,
    call_shape<32, 3, 4, true, false, false, 128>,
    call_shape<16, 3, 4, true, false, false, 32>,
    call_shape<16, 3, 4, true, false, false, 64>,
};
/* One thread block per SM has most under way while it reads, and nothing while it begins and ends a
 * piece; that counts where there are many pieces, and two blocks fill each other's gaps. On an
 * H200, 64 x 1K keys: 73 us by two, 76 by one, in bf16; 44 and 62 in e4m3. 1 x 128K: 143 and 139.
 */
enum { BULK = 0, ASYNC = 1, BULK_MANY = 4 };

/* The call of a variant: of those whose scores are capped there are the ones that are taken alone.
 * NULL: there is no such. */
static int (*call_of(const inf_cuda_attn *p, int index))(const decode_call &) {
    if (p->softcap == 0.0f) {
        return variants[index];
    }
    return index == BULK        ? call_shape<32, 3, 4, true, false, true>
           : index == ASYNC     ? call_shape<16, 3, 4, false, false, true>
           : index == BULK_MANY ? call_shape<16, 3, 4, true, false, true>
                                : NULL;
}

int inf_cuda_attn_decode_takes(const inf_cuda_attn *p) {
    bool e4m3_kv = p->kv.dtype == INF_DTYPE_E4M3 && (uintptr_t)p->q % 8 == 0;
    return attn_shape_holds(p) && (p->act == p->kv.dtype || e4m3_kv) && p->act != INF_DTYPE_F32 &&
           (p->kv.head_dim == 64 || p->kv.head_dim == 128) && p->kv.block_size % 8 == 0 &&
           p->kv.block_bytes % 16 == 0 && (uintptr_t)p->pool % 16 == 0 &&
           p->heads / p->kv.kv_heads <= INF_CUDA_DECODE_ROWS && p->scale > 0.0f;
}

int inf_cuda_decode_variants(void) { return (int)(sizeof variants / sizeof variants[0]); }

/* What the current device is: asked once of each, of one shape for all. */
struct decode_gpu {
    bool bulk; /* runs */
    int sms;
};

static decode_gpu gpu_of(const inf_cuda_attn *p) {
    enum { MOST = 64, BULK_RUNS = 1 << 30 };
    static std::atomic<int> known[MOST]; /* 0: not yet */
    int device = 0, sms = 132;
    if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= MOST) {
        (void)cudaGetLastError();
        return {false, sms};
    }
    if (known[device] == 0) {
        inf_cuda_decode_variant v;
        bool runs = variants[BULK]({p, NULL, 0, &v}) == 0 && v.resident > 0;
#ifndef INF_EMU
        if (cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
            (void)cudaGetLastError();
        }
#endif
        known[device] = sms | (runs ? BULK_RUNS : 0);
    }
    int is = known[device];
    return {(is & BULK_RUNS) != 0, is & ~BULK_RUNS};
}

static int variant_for(const inf_cuda_attn *p, const decode_gpu &gpu) {
    bool many = (int64_t)p->rows * p->kv.kv_heads >= 2 * (int64_t)gpu.sms;
    return !gpu.bulk ? ASYNC : many ? BULK_MANY : BULK;
}

int inf_cuda_decode_variant_of(const inf_cuda_attn *p, int index, inf_cuda_decode_variant *out) {
    if (!inf_cuda_attn_decode_takes(p) || index < 0 || index >= inf_cuda_decode_variants()) {
        return cudaErrorInvalidValue;
    }
    out->taken = index == variant_for(p, gpu_of(p));
    auto call = call_of(p, index);
    if (call == NULL) { /* described as it is without a cap, and cannot run */
        int status = variants[index]({p, NULL, 0, out});
        out->resident = 0;
        return status;
    }
    return call({p, NULL, 0, out});
}

int inf_cuda_decode_variant_launch(const inf_cuda_attn *p, int index, inf_stream stream) {
    if (!inf_cuda_attn_decode_takes(p) || index < 0 || index >= inf_cuda_decode_variants()) {
        return cudaErrorInvalidValue;
    }
    auto call = call_of(p, index);
    if (call == NULL) {
        return cudaErrorInvalidValue;
    }
    return p->max_work == 0 ? (int)cudaSuccess : call({p, stream, 0, NULL});
}

int inf_cuda_attn_decode_launch(const inf_cuda_attn *p, inf_stream stream) {
    if (!inf_cuda_attn_decode_takes(p)) {
        return cudaErrorInvalidValue;
    }
    if (p->max_work == 0) {
        return (int)cudaSuccess;
    }
    decode_gpu gpu = gpu_of(p);
    return call_of(p, variant_for(p, gpu))({p, stream, gpu.sms, NULL});
}
