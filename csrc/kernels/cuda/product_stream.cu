/* Matrix products of a few rows on Hopper: what product_small.cu does, as a stream of weights that
 * does not stop between kernels.
 *
 * A step of one request is some 130 products whose weights are each read once, so its time is that
 * of reading them, and of the pauses: a kernel's last blocks end while the memory has less and less
 * to do, the next kernel is launched, and its first reads take their latency. At 4 TB/s a pause of
 * 5 us is 20 MB. Here there is none as long as products follow upon each other:
 *
 *  - One block per SM takes the tiles of 16 outputs blockIdx.x, + gridDim.x, ... Its last warp, the
 *    producer, does nothing but ask for weights: stages of 16 rows x 512 numbers of k, a bulk copy
 *    of 1 KiB for each row, STAGES of them under way (96 KiB per SM).
 *  - Weights depend on no kernel. So a block starts while the kernel in front still runs
 *    (programmatic dependent launch), fills its ring, and only its consumers wait for the end of
 *    that one, since x and the residual are its work. A block's shared memory and registers are
 *    less than half of an SM's: two kernels are there at a time, one computing, one with its ring
 *    full, and no third one, whose blocks would come to lie where there is room instead of one per
 *    SM.
 *
 * The eight consumer warps take a stage's 64-wide pieces of k, one each, with fragments as in
 * product_small.cu, and add their sums through shared memory when a tile ends. Rows in a stage are
 * 16 bytes more apart than they are long: the 16-byte words that a quarter of a warp reads at a
 * time lie in different banks.
 *
 * With `gate` a tile is 8 rows of gate and the same 8 of up: a thread's sums of row g are of gate,
 * those of row g + 8 of up. */
#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/product_small.cuh"

enum { STAGES = 6, CHUNK = WARPS * PIECE, THREADS = (WARPS + 1) * 32 };
enum { PITCH = CHUNK * 2 + 16, STAGE = OUTPUTS * PITCH, SUMS = OUTPUTS * MAX_ROWS };
enum { BAR_CONSUMERS = 1 };

struct stream_shared {
    uint8_t ring[STAGES][STAGE];
    float sums[2][WARPS][SUMS]; /* of a tile and the next: [row, output] per warp */
    float scales[WARPS];
    uint64_t full[STAGES], empty[STAGES];
};
static_assert(2 * (sizeof(stream_shared) + 1024) <= 227 * 1024, "two kernels per SM");

#if INF_HAS_BULK

/* A place in the ring, and the parity of its barriers' phase. */
struct stream_place {
    int slot;
    uint32_t parity;
    __device__ __forceinline__ void next() {
        if (++slot == STAGES) {
            slot = 0, parity ^= 1;
        }
    }
};

template <bool GATE>
static __device__ __forceinline__ void produce(const inf_cuda_small &a, stream_shared &s, int tiles,
                                               int chunks) {
    const int lane = (int)(threadIdx.x % 32);
    stream_place at = {0, 0};
    for (int t = (int)blockIdx.x; t < tiles; t += (int)gridDim.x) {
        int row = GATE ? t * 8 + lane % 8 + (lane < 8 ? 0 : a.n) : t * OUTPUTS + lane;
        const uint8_t *from = (const uint8_t *)a.w + (size_t)row * (size_t)a.k * 2;
        for (int c = 0; c < chunks; c++, at.next()) {
            const int left = a.k - c * CHUNK;
            const uint32_t bytes = 2 * (uint32_t)(left < CHUNK ? left : CHUNK);
            mbar_wait(&s.empty[at.slot], at.parity ^ 1);
            if (lane == 0) {
                mbar_expect(&s.full[at.slot], OUTPUTS * bytes);
            }
            __syncwarp();
            if (lane < OUTPUTS) {
                bulk_copy(s.ring[at.slot] + lane * PITCH, from + (size_t)c * CHUNK * 2, bytes,
                          &s.full[at.slot]);
            }
        }
    }
}

/* This warp's piece of a stage. */
static __device__ __forceinline__ void read_piece(weights &w, const uint8_t *stage, int warp) {
    const int lane = (int)(threadIdx.x % 32);
    const uint8_t *low = stage + lane / 4 * PITCH + warp * PIECE * 2 + lane % 4 * 32;
    const uint8_t *high = low + 8 * PITCH;
    w.low[0] = *(const uint4 *)low, w.low[1] = *(const uint4 *)(low + 16);
    w.high[0] = *(const uint4 *)high, w.high[1] = *(const uint4 *)(high + 16);
}

/* Sums of a tile: d of row g (outputs g and g + 8), columns 2 q and 2 q + 1. */
template <typename T>
static __device__ __forceinline__ void sum_tile(const inf_cuda_small &a, stream_shared &s,
                                                stream_place &at, int chunks, float *sums) {
    const int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    const int g = lane / 4, q = lane % 4, pieces = a.k / PIECE;
    const bool there = g < a.rows;
    const uint16_t *x = (const uint16_t *)a.x + (there ? (size_t)g * (size_t)a.k : 0) + 16 * q;
    float d[4] = {};
    uint4 xs[2];
    load_x(xs, x + (size_t)warp * PIECE, there && warp < pieces);
    for (int c = 0; c < chunks; c++, at.next()) {
        const int piece = c * WARPS + warp, next = piece + WARPS;
        const uint4 now[2] = {xs[0], xs[1]};
        load_x(xs, x + (size_t)next * PIECE, there && next < pieces);
        mbar_wait(&s.full[at.slot], at.parity);
        if (piece < pieces) {
            weights w;
            read_piece(w, s.ring[at.slot], warp);
            multiply<T>(d, w, now);
        }
        __syncwarp();
        if (lane == 0) {
            mbar_arrive(&s.empty[at.slot]);
        }
    }
    sums += warp * SUMS;
    sums[(2 * q) * OUTPUTS + g] = d[0];
    sums[(2 * q + 1) * OUTPUTS + g] = d[1];
    sums[(2 * q) * OUTPUTS + g + 8] = d[2];
    sums[(2 * q + 1) * OUTPUTS + g + 8] = d[3];
}

/* The warps' sums added, by the first threads. */
template <typename T, bool GATE>
static __device__ __forceinline__ void finish_tile(const inf_cuda_small &a, const stream_shared &s,
                                                   int t, const float *sums) {
    constexpr int outputs = GATE ? 8 : OUTPUTS;
    const int i = (int)threadIdx.x, row = i / outputs, output = i % outputs;
    const bool valid = i < outputs * a.rows;
    float sum[GATE ? 2 : 1] = {};
    for (int w = 0; valid && w < WARPS; w++) {
        sum[0] += sums[w * SUMS + row * OUTPUTS + output];
        if (GATE) {
            sum[GATE ? 1 : 0] += sums[w * SUMS + row * OUTPUTS + output + 8];
        }
    }
    const float scale = a.x_squares != NULL && valid ? s.scales[row] : 1.0f;
    for (float &x : sum) {
        x *= scale;
    }
    finish<T, GATE ? 2 : 1>(a, i, row, t * outputs + output, sum, valid);
}

/* Buffers of sums alternate: who writes one has passed the barrier of the tile in between, and so
 * has everybody who read it. */
template <typename T, bool GATE>
static __device__ __forceinline__ void consume(const inf_cuda_small &a, stream_shared &s, int tiles,
                                               int chunks) {
    after_predecessor();
    if (a.x_squares != NULL) {
        find_scales(a, s.scales);
        bar_sync(BAR_CONSUMERS, WARPS * 32);
    }
    stream_place at = {0, 0};
    int buffer = 0;
    for (int t = (int)blockIdx.x; t < tiles; t += (int)gridDim.x, buffer ^= 1) {
        float *sums = &s.sums[buffer][0][0];
        sum_tile<T>(a, s, at, chunks, sums);
        bar_sync(BAR_CONSUMERS, WARPS * 32);
        finish_tile<T, GATE>(a, s, t, sums);
    }
}

#endif

template <typename T, bool GATE>
__global__ void __launch_bounds__(THREADS, 2) stream_kernel(const inf_cuda_small a) {
#if INF_HAS_BULK
    INF_SHARED(shared);
    stream_shared &s = *(stream_shared *)shared;
    start_successor();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&s.full[i]);
            mbar_init(&s.empty[i], WARPS);
        }
        mbar_init_fence();
    }
    __syncthreads();
    const int tiles = a.n / (GATE ? 8 : OUTPUTS), chunks = (a.k + CHUNK - 1) / CHUNK;
    if (threadIdx.x / 32 == WARPS) {
        produce<GATE>(a, s, tiles, chunks);
    } else {
        consume<T, GATE>(a, s, tiles, chunks);
    }
#endif
}

/* ---- host ---- */

/* With bound, tells whether there is code for this GPU; otherwise launches. */
template <typename T, bool GATE>
static int call_stream(const inf_cuda_small *p, int32_t sms, inf_stream stream, int *runs) {
    int error = (int)INF_ALLOW_SHARED((stream_kernel<T, GATE>), sizeof(stream_shared));
    if (runs != NULL) {
        *runs = error == 0;
#ifndef INF_EMU
        cudaFuncAttributes about;
        *runs = error == 0 &&
                cudaFuncGetAttributes(&about, stream_kernel<T, GATE>) == cudaSuccess &&
                about.ptxVersion >= 90 && __CUDACC_VER_MAJOR__ >= 12;
        (void)cudaGetLastError();
#endif
        return 0;
    }
    const int32_t tiles = p->n / (GATE ? 8 : OUTPUTS);
    const dim3 grid((unsigned)(tiles < sms ? tiles : sms));
    return error != 0 ? error
                      : (int)INF_LAUNCH_EARLY(p->early != 0, (stream_kernel<T, GATE>), grid,
                                              dim3(THREADS), sizeof(stream_shared), stream, *p);
}

int inf_cuda_stream_runs(void) {
    int runs = 0;
    return call_stream<bf16, false>(NULL, 1, NULL, &runs) == 0 && runs;
}

int inf_cuda_stream_launch(const inf_cuda_small *p, int32_t sms, inf_stream stream) {
    if (!inf_cuda_small_valid(p) || sms < 1) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->act == INF_DTYPE_BF16) {
        return p->gate ? call_stream<bf16, true>(p, sms, stream, NULL)
                       : call_stream<bf16, false>(p, sms, stream, NULL);
    }
    return p->gate ? call_stream<f16, true>(p, sms, stream, NULL)
                   : call_stream<f16, false>(p, sms, stream, NULL);
}
