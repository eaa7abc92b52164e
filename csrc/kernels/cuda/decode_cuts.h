/* Decode attention's cuts: which there are, and the calls to those of one number format, each of
 * which is a file of its own, so that they compile beside each other. */
#ifndef INF_CUDA_DECODE_CUTS_H
#define INF_CUDA_DECODE_CUTS_H

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/prelude.cuh"

/* By bulk copies, cp.async, tensor maps; _MANY for many rows: half as many keys in a tile, so that
 * an SM holds two thread blocks. One block per SM has most under way while it reads, and nothing
 * while it begins and ends a piece; that counts where there are many pieces, and two blocks fill
 * each other's gaps. On an H200, 64 x 1K keys: 73 us by two, 76 by one, in bf16; 44 and 62 in e4m3.
 * 1 x 128K: 143 and 139. Bulk copies of 64 keys by two warps, deeper rings and cache hints were no
 * faster there, nor cp.async by eight warps. Those with boxes take no capped scores. */
enum { DECODE_BULK, DECODE_ASYNC, DECODE_BULK_MANY, DECODE_BOXES, DECODE_BOXES_MANY, DECODE_CUTS };

/* Describes a cut or launches it. */
struct decode_call {
    const inf_cuda_attn *p;
    int cut;
    inf_stream stream;
    int sms;                      /* of a launch that is bounded, else 0 */
    inf_cuda_decode_variant *out; /* NULL: launch */
};

int inf_cuda_decode_call_bf16(const decode_call &c);
int inf_cuda_decode_call_f16(const decode_call &c);
int inf_cuda_decode_call_e4m3(const decode_call &c);

#endif
