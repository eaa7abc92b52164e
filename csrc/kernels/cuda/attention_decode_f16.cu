/* Decode attention on K and V in f16 (attention_decode.cu). */
#include "kernels/cuda/decode_launch.cuh"

int inf_cuda_decode_call_f16(const decode_call &c) { return call_number<f16>(c); }
