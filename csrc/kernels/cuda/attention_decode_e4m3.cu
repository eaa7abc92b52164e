/* Decode attention on K and V in e4m3 (attention_decode.cu). */
#include "kernels/cuda/decode_launch.cuh"

int inf_cuda_decode_call_e4m3(const decode_call &c) { return call_number<e4m3>(c); }
