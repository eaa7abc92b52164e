/* Matrix products of a few rows: y[rows, n] = x[rows, k] w[n, k]^T, rows <= 8.
 *
 *   flops  2 rows n k, bytes 2 n k: with 8 rows 8 flops a byte. Only the weights' bytes matter:
 * each is read once, in whole 128-byte lines, with as many reads under way as there are registers
 * for.
 *
 * The tensor cores multiply m16n8k16: the weights of 16 outputs are A, the rows of x are B's 8
 * columns. Which k is where in A and B does not matter as long as it is the same in both, so a
 * thread takes 16 consecutive numbers of k where the instruction has four pairs, and both operands
 * come from global memory in 16-byte loads that are fragments as they are; no shared memory and no
 * shuffles. Per 64 numbers of k, thread (g, q) = (lane / 4, lane % 4) loads k = 16 q .. 16 q + 15
 * of weight rows g and g + 8, and of x row g.
 *
 * A block makes 16 outputs; its 8 warps take the 64-wide pieces of k in turn, so that the block
 * reads 1 KiB of each weight row at a time, and add their sums through shared memory at the end.
 *
 * With `early` a weight row is read before the kernel in front has ended (programmatic dependent
 * launch), since only x depends on that one; with 2 a block also asks for more lines of its rows to
 * come as far as the L2 cache, a bounded number, since all resident blocks' lines must stay there.
 *
 * Norms. What follows the products that end a half of a layer is x += product and an RMS norm of x,
 * which needs all of a row. Here the block that makes 16 outputs adds them to x, multiplies by the
 * norm's weight, and leaves the sum of squares of its 16; the product behind it multiplies that and
 * scales its sums by 1 / sqrt(mean of squares + eps) in the end: a row's scale is the same for all
 * of its numbers, so W (s v) = s (W v). So there is no kernel between the two.
 *
 * With `gate` the weights are [2 n, k], gate rows first, and y = activation(gate) * up (Shazeer
 * 2020): a block then makes 16 of each and the 2 n wide intermediate never goes to memory.
 *
 * With `three` a thread has three pieces under way instead of four and takes fewer registers, so
 * that three blocks fit an SM instead of two: no fewer bytes are under way, and the 384 blocks of
 * 6,144 outputs are one wave on 132 SMs. The order of the sums is the same, as it is with
 * `through`: product_small_through.cu and product_small_bulk.cu, blocks that stay for many tiles.
 */
#include "kernels/cuda/product_small.cuh"

/* T: of x, w and, unless y_f32, y. HALVES: 1, or 2 for gate and up. DEPTH: pieces whose weights are
 * under way per warp. RESIDENT: blocks per SM that registers are for. */
template <typename T, int HALVES, int DEPTH, int RESIDENT>
__global__ void __launch_bounds__(WARPS * 32, RESIDENT) small_kernel(const inf_cuda_small a) {
    __shared__ tile_sums<HALVES> sums;
    __shared__ float scales[WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    const int first = blockIdx.x * OUTPUTS, pieces = a.k / PIECE;
    const size_t k = (size_t)a.k;
    const uint16_t *w = (const uint16_t *)a.w + (size_t)(first + g) * k + 16 * q;
    const uint16_t *x = (const uint16_t *)a.x + (size_t)g * k + 16 * q;
    const size_t half = (size_t)a.n * k;
    weights ring[DEPTH][HALVES];
    float d[HALVES][4] = {};
    start_successor();
    int next = warp;
#pragma unroll
    for (int s = 0; s < DEPTH; s++, next += WARPS) {
        for (int h = 0; h < HALVES; h++) {
            if (next < pieces) {
                load_weights(ring[s][h], w + h * half + (size_t)next * PIECE, k);
            }
        }
    }
    if (a.early > 1 && DEPTH * WARPS < pieces) {
        prefetch_rows<HALVES>(a, first, DEPTH * WARPS * PIECE * 2 / 128);
    }
    after_predecessor();
    addend before = {0.0f, 0.0f};
    if (HALVES == 1) {
        before = load_addend<T>(a, first);
    }
    if (a.x_squares != NULL) {
        find_scales(a, scales);
    }
    uint4 xs[2];
    load_x(xs, x + (size_t)warp * PIECE, g < a.rows && warp < pieces);
    for (int base = warp; base < pieces; base += DEPTH * WARPS) {
#pragma unroll
        for (int s = 0; s < DEPTH; s++, next += WARPS) {
            const int piece = base + s * WARPS;
            if (piece < pieces) {
                uint4 now[2] = {xs[0], xs[1]};
                load_x(xs, x + (size_t)(piece + WARPS) * PIECE,
                       g < a.rows && piece + WARPS < pieces);
                for (int h = 0; h < HALVES; h++) {
                    multiply<T>(d[h], ring[s][h], now);
                    if (next < pieces) {
                        load_weights(ring[s][h], w + h * half + (size_t)next * PIECE, k);
                    }
                }
            }
        }
    }
    put_sums<HALVES>(sums, d);
    __syncthreads();
    write_tile<T, HALVES>(a, first, sums, scales, before);
}

int inf_cuda_small_takes(const inf_cuda_small *p) {
    return (p->act == INF_DTYPE_BF16 || p->act == INF_DTYPE_F16) && p->rows >= 1 &&
           p->rows <= MAX_ROWS && p->n > 0 && p->n % OUTPUTS == 0 && p->k % PIECE == 0 &&
           p->k > 0 && ((uintptr_t)p->w % 16) == 0 && ((uintptr_t)p->x % 16) == 0;
}

template <typename T> static int launch(const inf_cuda_small &p, inf_stream stream) {
    const dim3 grid((unsigned)(p.n / OUTPUTS)), block(WARPS * 32);
    auto small_product = p.gate    ? small_kernel<T, 2, 2, 2>
                         : p.three ? small_kernel<T, 1, 3, 3>
                                   : small_kernel<T, 1, 4, 2>;
    return (int)INF_LAUNCH_EARLY(p.early != 0, small_product, grid, block, 0, stream, p);
}

int inf_cuda_small_launch(const inf_cuda_small *p, inf_stream stream) {
    bool plain = p->bias == NULL && !p->y_f32;
    if (!inf_cuda_small_takes(p) || (p->gate && !plain) ||
        (p->residual != NULL && (!plain || p->gate || (p->y != NULL && p->norm == NULL)))) {
        return (int)cudaErrorInvalidValue;
    }
    if (p->through > 1) {
        int status = small_bulk_launch(p, stream);
        if (status != (int)cudaErrorNotSupported) {
            return status;
        }
    }
    if (p->through) {
        return small_through_launch(p, stream);
    }
    return p->act == INF_DTYPE_BF16 ? launch<bf16>(*p, stream) : launch<f16>(*p, stream);
}
