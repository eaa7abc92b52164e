/* Prefill attention's arithmetic on K and V in e4m3, for the kernel of attention_prefill.cu.
 * Formats, the order of the dims of a dot product and where o's dims stand are those of
 * decode_e4m3.cuh, which says why: both products are f16 mma's, K and V are exact in f16, weights
 * and q are rounded to it.
 *
 * K and V come to shared memory as they are, half the bytes. A warp turns what it reads into f16 in
 * registers, as each of the four warps does with the same keys: one conversion of four numbers for
 * each two mma's, which sm_90 does beside them. q is turned into f16 once, on its way to shared
 * memory, where every 16 dims 4 c .. 4 c + 3 stand at places 2 c, 2 c + 1, 8 + 2 c, 8 + 2 c + 1: so
 * of the eight pairs the even ones make the first 16-byte word and the odd ones the second.
 *
 * A row of 64 numbers is half of what the banks hold, so that there rows go in twos (word_at). */
#ifndef INF_CUDA_PREFILL_E4M3_CUH
#define INF_CUDA_PREFILL_E4M3_CUH

#include "kernels/cuda/e4m3.cuh"
#include "kernels/cuda/prefill.cuh"
#include "kernels/cuda/rows.cuh"

static __device__ __forceinline__ uint32_t pack2(float lo, float hi, e4m3) {
    return pack_f16x2(lo, hi);
}

/* Rows that are not there become zeros. */
template <class C>
static __device__ __forceinline__ void e4m3_copy_queries(const inf_cuda_attn &p,
                                                         const prefill_tile &x, uint8_t *to) {
    constexpr int sixteens = C::dim / 16;
    int at = (int)threadIdx.x % sixteens;
#pragma unroll 4
    for (int row = (int)threadIdx.x / sixteens; row < PREFILL_M; row += C::threads / sixteens) {
        uint4 a = make_uint4(0, 0, 0, 0), b = a;
        if (row < x.n_rows) {
            const uint8_t *q = (const uint8_t *)p.q + prefill_query(p, x, row) * C::q_row;
            a = ((const uint4 *)q)[2 * at], b = ((const uint4 *)q)[2 * at + 1];
        }
        *(uint4 *)(to + word_at<C::q_row>(row, 2 * at)) =
            make_uint4(pair_to_f16(a.x, p.act), pair_to_f16(a.z, p.act), pair_to_f16(b.x, p.act),
                       pair_to_f16(b.z, p.act));
        *(uint4 *)(to + word_at<C::q_row>(row, 2 * at + 1)) =
            make_uint4(pair_to_f16(a.y, p.act), pair_to_f16(a.w, p.act), pair_to_f16(b.y, p.act),
                       pair_to_f16(b.w, p.act));
    }
}

/* s = q.k of the warp's rows and the tile's keys. */
template <class C>
static __device__ __forceinline__ void e4m3_scores(const uint8_t *q, const uint8_t *k,
                                                   float s[2][C::groups][4]) {
    int lane = (int)(threadIdx.x % 32), warp = (int)(threadIdx.x / 32);
    q += (warp * 32 + lane % 16) * C::q_row;
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[0][n][i] = s[1][n][i] = 0.0f;
        }
    }
#pragma unroll
    for (int d = 0; d < C::dim / 16; d++) {
        uint32_t a[2][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            ldmatrix_x4(a[r], q + r * 16 * C::q_row + (((2 * d + lane / 16) ^ (lane % 8)) << 4));
        }
        const uint8_t *word = k + word_at<C::row>(lane, d);
#pragma unroll
        for (int n = 0; n < C::groups; n += 4) {
            uint32_t four[4]; /* 16 dims of 32 keys */
            ldmatrix_x4(four, word + n * 8 * C::row);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t b[2];
                e4m3x4_to_f16(four[i], b);
                mma_f16(s[0][n + i], a[0], b);
                mma_f16(s[1][n + i], a[1], b);
            }
        }
    }
}

/* o += weights V */
template <class C, class Rows>
static __device__ __forceinline__ void e4m3_add_values(Rows &rows, const uint8_t *v,
                                                       const uint32_t w[2][C::groups / 2][4]) {
    int lane = (int)(threadIdx.x % 32);
#pragma unroll
    for (int d = 0; d < C::dim / 8; d += 4) {
        const uint8_t *word = v + word_at<C::row>(lane % 16, d / 2 + lane / 16);
#pragma unroll
        for (int n = 0; n < C::groups / 2; n++) {
            uint32_t four[4]; /* 16 keys of 32 dims */
            ldmatrix_x4_trans(four, word + n * 16 * C::row);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t low[2], high[2]; /* of the even and of the odd dims; keys 0 .. 7, 8 .. */
                e4m3x4_crossed_to_f16(four[2 * i], low);
                e4m3x4_crossed_to_f16(four[2 * i + 1], high);
                uint32_t even[2] = {low[0], high[0]}, odd[2] = {low[1], high[1]};
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    mma_f16(rows.o[r][d + 2 * i], w[r][n], even);
                    mma_f16(rows.o[r][d + 2 * i + 1], w[r][n], odd);
                }
            }
        }
    }
}

/* As prefill.cuh's. */
template <int N>
static __device__ __forceinline__ void e4m3_write_row(const float o[N][4], int at, float m, float l,
                                                      float scale, const out_place &out) {
    int lane = (int)(threadIdx.x % 32);
    float inverse = l != 0.0f ? 1.0f / l : 0.0f;
    size_t base = out.at * (size_t)(N * 8) + (size_t)(4 * (lane % 4));
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
        float x[4] = {o[2 * j][at] * inverse, o[2 * j + 1][at] * inverse,
                      o[2 * j][at + 1] * inverse, o[2 * j + 1][at + 1] * inverse};
        store_run_as<4>(out.o, out.dtype, base + (size_t)(j * 16), x);
    }
    if (lane % 4 == 0 && out.lse != NULL) {
        out.lse[out.at] = lse_of(m, l, scale);
    }
}

#endif
