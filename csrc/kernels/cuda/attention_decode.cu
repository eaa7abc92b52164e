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
 * Three ways into shared memory. cp.async takes 16 bytes per lane and works from sm_80 on; it fills
 * what is not read with zeros. Bulk copies (sm_90) take a chunk of 2 or 4 keys each, so that an
 * instruction moves up to 1 KiB and the rest of the way is the copy engine's. Both put a tile down
 * in the same layout, chunks 16 bytes apart from each other: a bulk copy cannot permute the 16-byte
 * words within a row, as the usual swizzle does, but where chunks go is free. Since the order of
 * keys within a tile is free too, ldmatrix takes its eight rows from eight chunks, and those lie in
 * different banks. What that costs: chunks do not begin on lines of 128 bytes, and on an H200 a
 * bare ring of bulk copies read 4,217 GB/s so and 4,499 onto lines. Copies by tensor map (sm_90)
 * bring eight keys each onto lines, swizzled. The last way has not been timed on a GPU yet, so it
 * is not taken unless inf_cuda_attn.boxes says so.
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
#include <atomic>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/decode_cuts.h"

static int call(const decode_call &c) {
    return c.p->kv.dtype == INF_DTYPE_E4M3 ? inf_cuda_decode_call_e4m3(c)
           : c.p->act == INF_DTYPE_BF16    ? inf_cuda_decode_call_bf16(c)
                                           : inf_cuda_decode_call_f16(c);
}

/* Whether the cut takes scores as p has them. */
static bool caps(const inf_cuda_attn *p, int cut) {
    return p->softcap == 0.0f || cut < DECODE_BOXES;
}

int inf_cuda_attn_decode_takes(const inf_cuda_attn *p) {
    bool e4m3_kv = p->kv.dtype == INF_DTYPE_E4M3 && (uintptr_t)p->q % 8 == 0;
    return attn_shape_holds(p) && (p->act == p->kv.dtype || e4m3_kv) && p->act != INF_DTYPE_F32 &&
           (p->kv.head_dim == 64 || p->kv.head_dim == 128) && p->kv.block_size % 8 == 0 &&
           p->kv.block_bytes % 16 == 0 && (uintptr_t)p->pool % 16 == 0 &&
           p->heads / p->kv.kv_heads <= INF_CUDA_DECODE_ROWS && p->scale > 0.0f;
}

int inf_cuda_decode_variants(void) { return DECODE_CUTS; }

/* What the current device is: asked once of each, of one shape for all. */
struct decode_gpu {
    bool bulk, boxes; /* run */
    int sms;
};

static decode_gpu gpu_of(const inf_cuda_attn *p) {
    enum { MOST = 64, BULK_RUNS = 1 << 30, BOXES_RUN = 1 << 29 };
    static std::atomic<int> known[MOST]; /* 0: not yet */
    int device = 0, sms = 132;
    if (cudaGetDevice(&device) != cudaSuccess || device < 0 || device >= MOST) {
        (void)cudaGetLastError();
        return {false, false, sms};
    }
    if (known[device] == 0) {
        inf_cuda_decode_variant v;
        bool bulk = call({p, DECODE_BULK, NULL, 0, &v}) == 0 && v.resident > 0;
        bool boxes = call({p, DECODE_BOXES, NULL, 0, &v}) == 0 && v.resident > 0;
#ifndef INF_EMU
        if (cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
            (void)cudaGetLastError();
        }
#endif
        known[device] = sms | (bulk ? BULK_RUNS : 0) | (boxes ? BOXES_RUN : 0);
    }
    int is = known[device];
    return {(is & BULK_RUNS) != 0, (is & BOXES_RUN) != 0, is & ~(BULK_RUNS | BOXES_RUN)};
}

static int cut_for(const inf_cuda_attn *p, const decode_gpu &gpu) {
    bool many = (int64_t)p->rows * p->kv.kv_heads >= 2 * (int64_t)gpu.sms;
    if (!gpu.bulk) {
        return DECODE_ASYNC;
    }
    if (p->boxes != 0 && gpu.boxes && caps(p, DECODE_BOXES)) {
        return many ? DECODE_BOXES_MANY : DECODE_BOXES;
    }
    return many ? DECODE_BULK_MANY : DECODE_BULK;
}

int inf_cuda_decode_variant_of(const inf_cuda_attn *p, int index, inf_cuda_decode_variant *out) {
    if (!inf_cuda_attn_decode_takes(p) || index < 0 || index >= DECODE_CUTS) {
        return cudaErrorInvalidValue;
    }
    int error = call({p, index, NULL, 0, out});
    out->taken = index == cut_for(p, gpu_of(p));
    if (!caps(p, index)) { /* described as it is without a cap */
        out->resident = 0;
    }
    return error;
}

int inf_cuda_decode_variant_launch(const inf_cuda_attn *p, int index, inf_stream stream) {
    if (!inf_cuda_attn_decode_takes(p) || index < 0 || index >= DECODE_CUTS || !caps(p, index)) {
        return cudaErrorInvalidValue;
    }
    return p->max_work == 0 ? (int)cudaSuccess : call({p, index, stream, 0, NULL});
}

int inf_cuda_attn_decode_launch(const inf_cuda_attn *p, inf_stream stream) {
    if (!inf_cuda_attn_decode_takes(p)) {
        return cudaErrorInvalidValue;
    }
    if (p->max_work == 0) {
        return (int)cudaSuccess;
    }
    decode_gpu gpu = gpu_of(p);
    return call({p, cut_for(p, gpu), stream, gpu.sms, NULL});
}
