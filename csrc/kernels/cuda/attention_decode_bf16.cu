/* Decode attention on K and V in bf16 (attention_decode.cu). */
#include "kernels/cuda/decode_launch.cuh"

int inf_cuda_decode_call_bf16(const decode_call &c) { return call_number<bf16>(c); }
