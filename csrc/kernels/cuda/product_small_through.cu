/* The products of product_small.cu by blocks that stay: a block makes tile after tile of 16 outputs
 * and never stops reading.
 *
 * A block of one tile is short: of k = 4096 numbers a warp reads 8 pieces, half of which are its
 * first loads, asked for at once; then nothing is under way for it until its last sums are added,
 * its outputs written, and the next block begun. Where the grid is many blocks of that kind the
 * memory idles for as much of their time.
 *
 * Here tiles and pieces are one walk. A warp has DEPTH cells in registers; a round multiplies all
 * of them and then asks for those of the round behind, and behind a tile's last round comes the
 * first round of the block's next tile. So that a cell's registers are known when this is compiled,
 * a tile takes whole rounds: cells beyond the last piece stay empty. (k = 4096 and 14336 fill
 * theirs.) While a tile's sums are added and its outputs written, the next tile's first loads are
 * under way.
 *
 * Waits. A thread waits for loads by six counters, each until all loads that were given to it have
 * come, and nvcc gives all of a ring's loads the same one. A ring that refills a cell as soon as it
 * is multiplied therefore waits, before it multiplies the next, for that refill too, and has two
 * cells' time under way where it seems to have four. (small_kernel is so.) Here a round waits once,
 * at its beginning, for what was asked for a round ago, and no other wait is for that counter: x is
 * loaded unconditionally, so that it is given others; what a tile is added to is parked in shared
 * memory, behind a round's wait and ahead of its loads, since the wait for it would otherwise come
 * at the tile's end; and the sums are read four at a time, which leaves their loads enough other
 * counters. Whoever changes this looks at the machine code: `nvdisasm -hex`, bits 116 to 121 of an
 * instruction are the counters that it waits for, 110 to 112 the one that it is given.
 *
 * One barrier a tile. All put their sums of tile t into buffer t % 2, meet, and read it. Buffer t %
 * 2 is written again for tile t + 2, by a thread that has met all others for tile t + 1; each of
 * these has come there behind its reads of tile t. So no write passes a read.
 *
 * What an output is added to is read when its tile begins; x, which all tiles share, a piece ahead
 * as ever, the first piece of the next tile behind the last of this.
 *
 * The grid. All blocks run at once and share the bandwidth by what they have under way, which is
 * the same for all; so they end together where they have the same number of tiles, however many
 * SMs have two of them. 384 tiles for 264 blocks would be two rounds, the second half empty; 192
 * blocks make two even ones. 64 KiB under way in each of these are 12 MiB, beyond what 5 TB/s in
 * 1 us need. */
#include "kernels/cuda/product_small.cuh"

/* T, HALVES, DEPTH, RESIDENT: as small_kernel's. */
template <typename T, int HALVES, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(WARPS * 32, RESIDENT) through_kernel(const inf_cuda_small a) {
    __shared__ tile_sums<HALVES> sums[2];
    __shared__ float scales[WARPS];
    __shared__ addend parked[WARPS * 32]; /* each thread's own */
    constexpr int ROUND = DEPTH * WARPS;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int pieces = a.k / PIECE, cells = (pieces + ROUND - 1) / ROUND * ROUND;
    const int own = warp < pieces ? warp : 0; /* its first piece, if it has one */
    const int stride = (int)gridDim.x * OUTPUTS;
    const size_t k = (size_t)a.k, half = (size_t)a.n * k;
    int first = (int)blockIdx.x * OUTPUTS, parity = 0;
    const uint16_t *w = (const uint16_t *)a.w + (size_t)(first + g) * k + 16 * q;
    const uint16_t *x = (const uint16_t *)a.x + (size_t)g * k + 16 * q;
    weights ring[DEPTH][HALVES];
    start_successor();
#pragma unroll
    for (int s = 0; s < DEPTH; s++) {
        for (int h = 0; h < HALVES; h++) {
            if (warp + s * WARPS < pieces) {
                load_weights(ring[s][h], w + h * half + (size_t)(warp + s * WARPS) * PIECE, k);
            }
        }
    }
    if (a.early > 1 && ROUND < pieces) {
        prefetch_rows<HALVES>(a, first, ROUND * PIECE * 2 / 128);
    }
    after_predecessor();
    if (a.x_squares != NULL) {
        find_scales(a, scales);
    }
    uint4 xs[2];
    load_x(xs, x + (size_t)own * PIECE, g < a.rows);
    for (; first < a.n; first += stride, parity ^= 1) {
        addend before = {0.0f, 0.0f};
        if (HALVES == 1) {
            before = load_addend<T>(a, first);
        }
        float d[HALVES][4] = {};
        int base = warp;
        do { /* at least once, which the compiler is not to doubt */
            /* The round behind: its first piece of this warp, and where pieces end. */
            int next = base + ROUND, end = pieces;
            if (next >= cells) {
                next = warp;
                end = first + stride < a.n ? pieces : 0;
                w += (size_t)stride * k;
            }
#pragma unroll
            for (int s = 0; s < DEPTH; s++) {
                const int piece = base + s * WARPS;
                const int behind = piece + WARPS < pieces ? piece + WARPS : own;
                uint4 now[2] = {xs[0], xs[1]};
                load_x(xs, x + (size_t)behind * PIECE, g < a.rows);
                for (int h = 0; piece < pieces && h < HALVES; h++) {
                    multiply<T>(d[h], ring[s][h], now);
                }
            }
            if (HALVES == 1 && base == warp) {
                parked[threadIdx.x] = before;
            }
#pragma unroll
            for (int s = 0; s < DEPTH; s++, next += WARPS) {
                for (int h = 0; next < end && h < HALVES; h++) {
                    load_weights(ring[s][h], w + h * half + (size_t)next * PIECE, k);
                }
            }
            base += ROUND;
        } while (base < cells);
        put_sums<HALVES>(sums[parity], d);
        __syncthreads();
        write_tile<T, HALVES>(a, first, sums[parity], scales, parked[threadIdx.x]);
    }
}

template <typename T, int HALVES, int DEPTH>
static int launch(const inf_cuda_small &p, inf_stream stream) {
    enum { RESIDENT = 2 };
    const dim3 grid(even_blocks(p.n / OUTPUTS, RESIDENT * sms_of(p))), block(WARPS * 32);
    return (int)INF_LAUNCH_EARLY(p.early != 0, (through_kernel<T, HALVES, DEPTH, RESIDENT>), grid,
                                 block, 0, stream, p);
}

int small_through_launch(const inf_cuda_small *p, inf_stream stream) {
    if (p->act == INF_DTYPE_BF16) {
        return p->gate ? launch<bf16, 2, 2>(*p, stream) : launch<bf16, 1, 4>(*p, stream);
    }
    return p->gate ? launch<f16, 2, 2>(*p, stream) : launch<f16, 1, 4>(*p, stream);
}
