/* Prefill attention for Hopper: not there yet; the launcher takes the kernel of
 * attention_prefill.cu. */
#include <stdio.h>

#include "kernels/cuda/attention_prefill.h"
#include "kernels/cuda/prelude.cuh"

int inf_cuda_prefill_wgmma_of(const inf_cuda_attn *p, inf_cuda_prefill_variant *out) {
    (void)p;
    snprintf(out->name, sizeof out->name, "wgmma");
    out->shared = out->registers = out->local = out->resident = 0;
    return 0;
}

int inf_cuda_prefill_wgmma_launch(const inf_cuda_attn *p, inf_stream stream) {
    (void)p, (void)stream;
    return cudaErrorNotSupported;
}
