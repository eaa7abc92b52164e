/* Decode attention's arithmetic on K and V in e4m3. All else is as with 16 bits a number
 * (attention_decode.cu): the copies, the ring, the chunks, the masks, the merge.
 *
 * Bytes and flops. A key costs 2 head_dim bytes and, for 16 rows, 64 head_dim flops: twice as many
 * keys for the same bytes, and 32 flops a byte. Tiles stay e4m3 in shared memory, with twice as
 * many keys in the same room, and become f16 in registers, each number once: one instruction for
 * two on sm_90 (e4m3.cuh), so that about seven of them per clock and SM keep up with an H100's
 * memory.
 *
 * Formats. Both products are f16 mma's with f32 sums. K and V are exact in f16. Weights, in 0 .. 1,
 * are rounded to it. q is rounded from act to f16: exact from f16, and from bf16 where a number's
 * size is between 2^-14 and 65504; smaller ones are off by 2^-25 at most, larger ones become
 * infinite.
 *
 * K. ldmatrix moves 16-bit elements: a thread gets the four numbers at 4 (t % 4) .. of 16 of its
 * key, where the right operand wants 2 (t % 4) .. and 8 + 2 (t % 4) .. Since the order of the dims
 * in a dot product is free, dims 4 c .. 4 c + 3 of each 16 stand at places 2 c, 2 c + 1, 8 + 2 c, 8
 * + 2 c + 1, in the query too: the register is then the operand, and a thread's share of q is four
 * neighbours.
 *
 * V. With .trans a 16-bit element is two dims of a key, and a thread gets those of two keys. The
 * four bytes, crossed, are a pair of keys for the even dim and one for the odd: two products, of
 * which column g is dim 2 g or 2 g + 1 of each 16. So a thread's sums o[2 j], o[2 j + 1] are dims 4
 * c .. 4 c + 3 of the j-th 16: o[2 j][0], o[2 j + 1][0], o[2 j][1], o[2 j + 1][1]. */
#ifndef INF_CUDA_DECODE_E4M3_CUH
#define INF_CUDA_DECODE_E4M3_CUH

#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/e4m3.cuh"

/* Row lane / 4 + 8 h of the left operand, from a query of act or, if it is not there, zeros. */
template <class C>
static __device__ __forceinline__ void load_query(decode_rows<C> &rows, int h, const void *q,
                                                  bool there, int32_t act, e4m3) {
    const uint2 *from = (const uint2 *)q + threadIdx.x % 4;
#pragma unroll
    for (int d = 0; d < C::dim / 16; d++) {
        uint2 four = there ? from[d * 4] : make_uint2(0, 0);
        rows.q[d][h] = pair_to_f16(four.x, act);
        rows.q[d][h + 2] = pair_to_f16(four.y, act);
    }
}

/* s[n]: q.k of the column group's keys. */
template <class C>
static __device__ __forceinline__ void scores(const decode_rows<C> &rows, const uint8_t *stage,
                                              float s[C::groups][4], e4m3) {
    static_assert(C::dim % 64 == 0, "");
    int lane = (int)(threadIdx.x % 32);
    int at = C::place(lane % 8, lane / 8);
#pragma unroll
    for (int n = 0; n < C::groups; n++) {
        s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < C::dim / 64; d++) {
#pragma unroll
        for (int n = 0; n < C::groups; n++) {
            uint32_t k[4]; /* 64 dims of the eight keys */
            ldmatrix_x4(k, stage + C::further(at, 4 * d) + n * C::group_pitch);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t b[2];
                e4m3x4_to_f16(k[i], b);
                mma_f16(s[n], rows.q[4 * d + i], b);
            }
        }
    }
}

/* o += weights V */
template <class C>
static __device__ __forceinline__ void add_values(decode_rows<C> &rows, const uint8_t *stage,
                                                  const float s[C::groups][4], e4m3) {
    int lane = (int)(threadIdx.x % 32);
    const uint8_t *v_at = stage + C::half + (lane / 8 % 2) * C::group_pitch;
    int at = C::place(lane % 8, lane / 16);
#pragma unroll
    for (int n = 0; n < C::groups; n += 2) {
        uint32_t w[4] = {pack_f16x2(s[n][0], s[n][1]), pack_f16x2(s[n][2], s[n][3]),
                         pack_f16x2(s[n + 1][0], s[n + 1][1]),
                         pack_f16x2(s[n + 1][2], s[n + 1][3])};
#pragma unroll
        for (int d = 0; d < C::dim / 8; d += 4) {
            uint32_t v[4]; /* 16 keys of 32 dims */
            ldmatrix_x4_trans(v, v_at + C::further(at, d / 2) + n * C::group_pitch);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t low[2], high[2]; /* of the even and of the odd dims; keys 0 .. 7, 8 .. */
                e4m3x4_crossed_to_f16(v[2 * i], low);
                e4m3x4_crossed_to_f16(v[2 * i + 1], high);
                uint32_t even[2] = {low[0], high[0]}, odd[2] = {low[1], high[1]};
                mma_f16(rows.o[d + 2 * i], w, even);
                mma_f16(rows.o[d + 2 * i + 1], w, odd);
            }
        }
    }
}

/* Row lane / 4 + 8 h of o, to dim numbers. */
template <class C>
static __device__ __forceinline__ void put_dims(const decode_rows<C> &rows, int h, float *to,
                                                e4m3) {
#pragma unroll
    for (int j = 0; j < C::dim / 16; j++) {
        const float *even = rows.o[2 * j] + 2 * h, *odd = rows.o[2 * j + 1] + 2 * h;
        *(float4 *)(to + j * 16 + 4 * (threadIdx.x % 4)) =
            make_float4(even[0], odd[0], even[1], odd[1]);
    }
}

#endif
