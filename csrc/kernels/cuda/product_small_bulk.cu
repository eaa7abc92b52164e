/* The products of product_small_through.cu, blocks that stay, with the weights under way in shared
 * memory instead of registers: bulk copies, which a ninth warp asks for and barriers count.
 *
 * A stage of the ring is 2 KiB, two pieces for each of the eight warps, of 16 rows of weights: as
 * many copies of 2 KiB. (An SM takes 16 KiB of its share in 0.45 us, and a warp asks for 16 copies
 * in about 0.4: of 1 KiB each they would come too slowly.) The ninth warp fills the stages in turn,
 * tile after tile, and waits for nothing but room; so all of the ring is under way whatever the
 * others do. They take a stage's pieces, and the last of them to have done so gives it back. With
 * gate a stage of the gate's rows and one of up's are in turn. Which warp takes which piece, and so
 * the order of the sums, is as ever.
 *
 * Rows are 16 bytes more apart than they are long: the eight threads that are served at once read
 * 16 bytes each, every other 16 of two rows, and all of them lie in different banks.
 *
 * The eight warps meet once a tile, by a barrier of their own, for the reason that
 * product_small_through.cu gives: sums are in two buffers by turns.
 *
 * One block per SM. It has 4 stages, so that 128 KiB are under way, in all 17 MB, and it takes 164
 * KiB of an SM's 256, which leaves 92 for x in the L1 cache. A block of the kernel behind then
 * begins where this one's has ended; with early = 2 it has 3 stages, so that one fits beside it,
 * and has its ring full when this one ends. */
#include <atomic>

#include "kernels/cuda/bulk.cuh"
#include "kernels/cuda/product_small.cuh"

enum { PER_WARP = 2 }; /* pieces of a stage */

template <int HALVES, int STAGES> struct bulk_block {
    static constexpr int row = PER_WARP * WARPS * PIECE * 2, pitch = row + 16,
                         stage = OUTPUTS * pitch;
    uint8_t ring[STAGES][stage];
    uint64_t full[STAGES], empty[STAGES], summed;
    tile_sums<HALVES> sums[2];
    float scales[WARPS];
};

/* Which stage, and the parity of its phases. */
template <int STAGES> struct stage_walk {
    int slot;
    uint32_t parity;
    __device__ __forceinline__ void step() {
        slot++;
        if (slot == STAGES) {
            slot = 0, parity ^= 1;
        }
    }
};

#if INF_HAS_BULK

/* The ninth warp. That it writes only where others have read needs no fence: they have written
 * nothing there. */
template <int HALVES, int STAGES>
static __device__ __forceinline__ void fill(const inf_cuda_small &a,
                                            bulk_block<HALVES, STAGES> &b) {
    const int lane = threadIdx.x % 32, row_bytes = a.k * 2, stride = (int)gridDim.x * OUTPUTS;
    stage_walk<STAGES> at = {0, 1}; /* all are empty */
    for (int first = (int)blockIdx.x * OUTPUTS; first < a.n; first += stride) {
        const uint8_t *w = (const uint8_t *)a.w + (size_t)(first + lane) * (size_t)row_bytes;
        for (int from = 0; from < row_bytes; from += b.row) {
            const int bytes = row_bytes - from < b.row ? row_bytes - from : b.row;
            for (int h = 0; h < HALVES; h++, at.step()) {
                mbar_wait(&b.empty[at.slot], at.parity);
                if (lane == 0) {
                    mbar_expect(&b.full[at.slot], (uint32_t)(OUTPUTS * bytes));
                }
                __syncwarp();
                if (lane < OUTPUTS) {
                    bulk_copy(b.ring[at.slot] + lane * b.pitch,
                              w + (size_t)h * (size_t)a.n * (size_t)row_bytes + from,
                              (uint32_t)bytes, &b.full[at.slot]);
                }
            }
        }
    }
}

/* A thread's share of its warp's piece of a stage. */
static __device__ __forceinline__ void read_weights(weights &w, const uint8_t *row, int pitch) {
    w.low[0] = *(const uint4 *)row;
    w.low[1] = *(const uint4 *)(row + 16);
    w.high[0] = *(const uint4 *)(row + 8 * pitch);
    w.high[1] = *(const uint4 *)(row + 8 * pitch + 16);
}

/* x of the pieces of a stage that begins with piece `from`; there may be fewer. */
static __device__ __forceinline__ void load_xs(uint4 xs[PER_WARP][2], const inf_cuda_small &a,
                                               int from) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const uint16_t *x = (const uint16_t *)a.x + (size_t)g * (size_t)a.k + 16 * q;
    for (int j = 0; j < PER_WARP; j++) {
        const int piece = from + j * WARPS + warp;
        load_x(xs[j], x + (size_t)piece * PIECE, g < a.rows && piece < a.k / PIECE);
    }
}

/* The eight warps. A warp that has no piece in a row's last stage waits for it and gives it back
 * all the same, so that none is a phase ahead. */
template <typename T, int HALVES, int STAGES>
static __device__ __forceinline__ void consume(const inf_cuda_small &a,
                                               bulk_block<HALVES, STAGES> &b) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int pieces = a.k / PIECE, stride = (int)gridDim.x * OUTPUTS;
    const int place = g * b.pitch + warp * PIECE * 2 + q * 32;
    stage_walk<STAGES> at = {0, 0};
    uint32_t parity = 0;
    if (a.x_squares != NULL) {
        find_scales(a, b.scales);
    }
    uint4 xs[PER_WARP][2];
    load_xs(xs, a, 0);
    for (int first = (int)blockIdx.x * OUTPUTS; first < a.n; first += stride, parity ^= 1) {
        addend before = {0.0f, 0.0f};
        if (HALVES == 1) {
            before = load_addend<T>(a, first);
        }
        float d[HALVES][4] = {};
        for (int from = 0; from < pieces; from += PER_WARP * WARPS) {
            uint4 now[PER_WARP][2];
            for (int j = 0; j < PER_WARP; j++) {
                now[j][0] = xs[j][0], now[j][1] = xs[j][1];
            }
            load_xs(xs, a, from + PER_WARP * WARPS < pieces ? from + PER_WARP * WARPS : 0);
            for (int h = 0; h < HALVES; h++, at.step()) {
                weights w[PER_WARP];
                mbar_wait(&b.full[at.slot], at.parity);
                for (int j = 0; j < PER_WARP; j++) {
                    if (from + j * WARPS + warp < pieces) {
                        read_weights(w[j], b.ring[at.slot] + place + j * WARPS * PIECE * 2,
                                     b.pitch);
                    }
                }
                __syncwarp();
                if (lane == 0) {
                    mbar_arrive(&b.empty[at.slot]);
                }
                for (int j = 0; j < PER_WARP; j++) {
                    if (from + j * WARPS + warp < pieces) {
                        multiply<T>(d[h], w[j], now[j]);
                    }
                }
            }
        }
        put_sums<HALVES>(b.sums[parity], d);
        __syncwarp();
        if (lane == 0) {
            mbar_arrive(&b.summed);
        }
        mbar_wait(&b.summed, parity);
        write_tile<T, HALVES>(a, first, b.sums[parity], b.scales, before);
    }
}

#endif

/* T, HALVES: as small_kernel's. */
template <typename T, int HALVES, int STAGES, int RESIDENT>
__global__ void __launch_bounds__(WARPS * 32 + 32, RESIDENT) bulk_kernel(const inf_cuda_small a) {
#if INF_HAS_BULK
    INF_SHARED(shared);
    bulk_block<HALVES, STAGES> &b = *(bulk_block<HALVES, STAGES> *)shared;
    start_successor();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbar_init(&b.full[i]);
            mbar_init(&b.empty[i], WARPS);
        }
        mbar_init(&b.summed, WARPS);
        mbar_init_fence();
    }
    __syncthreads();
    if (threadIdx.x / 32 == WARPS) {
        fill(a, b); /* weights, for which nobody in front is waited for */
    } else {
        after_predecessor();
        consume<T>(a, b);
    }
#endif
}

/* ---- host ---- */

/* Whether the current device has a kernel that is not empty: asked once of each. */
template <typename K> static bool runs(K *kernel) {
#ifdef INF_EMU
    (void)kernel;
    return true;
#else
    enum { MOST = 64, NO = 1, YES = 2 };
    static std::atomic<int> known[MOST];
    int device = 0;
    if (__CUDACC_VER_MAJOR__ < 12 || cudaGetDevice(&device) != cudaSuccess || device >= MOST) {
        (void)cudaGetLastError();
        return false;
    }
    if (known[device] == 0) {
        int is = made_for_sm90(kernel);
        if (is < 0) {
            return false; /* and the next time is asked again */
        }
        known[device] = is ? YES : NO;
    }
    return known[device] == YES;
#endif
}

template <typename T, int HALVES, int STAGES, int RESIDENT>
static int launch(const inf_cuda_small &p, inf_stream stream) {
    enum { BYTES = (int)sizeof(bulk_block<HALVES, STAGES>), SM = 228 * 1024, OWN = 1024 };
    static_assert(RESIDENT * (BYTES + OWN) <= SM && BYTES <= SM - OWN, "too much shared memory");
    auto kernel = bulk_kernel<T, HALVES, STAGES, RESIDENT>;
    if (!runs(kernel)) {
        return (int)cudaErrorNotSupported;
    }
    const dim3 grid(even_blocks(p.n / OUTPUTS, sms_of(p))), block(WARPS * 32 + 32);
    if ((int)INF_ALLOW_SHARED(kernel, BYTES) != 0) { /* less shared memory than sm_90 has */
        (void)cudaGetLastError();
        return (int)cudaErrorNotSupported;
    }
    return (int)INF_LAUNCH_EARLY(p.early != 0, kernel, grid, block, BYTES, stream, p);
}

template <typename T> static int launch_cut(const inf_cuda_small &p, inf_stream stream) {
    if (p.gate) {
        return p.early > 1 ? launch<T, 2, 3, 2>(p, stream) : launch<T, 2, 4, 1>(p, stream);
    }
    return p.early > 1 ? launch<T, 1, 3, 2>(p, stream) : launch<T, 1, 4, 1>(p, stream);
}

int small_bulk_launch(const inf_cuda_small *p, inf_stream stream) {
    return p->act == INF_DTYPE_BF16 ? launch_cut<bf16>(*p, stream) : launch_cut<f16>(*p, stream);
}
