/* Number formats of weights, activations and KV, as INF_DTYPE_*. */
#ifndef INF_CONVERT_H
#define INF_CONVERT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of one number, 0 for an unknown dtype. */
uint64_t inf_dtype_bytes(int32_t dtype);

/* Inputs that share a scale, of the dtypes of matrices alone; 0 for all others. */
int32_t inf_dtype_group(int32_t dtype);

/* Bytes of a row of k numbers as tensors come, I4_.. too; 0 where there is no such row. */
uint64_t inf_row_bytes(int32_t dtype, int64_t k);

/* dst[n] = src[n] in another dtype, rounded to nearest even. What is beyond a format's largest
 * number becomes infinity, and in E4M3, which has none, the largest number. src need not be
 * aligned. */
void inf_convert(void *dst, int32_t dst_dtype, const void *src, int32_t src_dtype, uint64_t n);

#ifdef __cplusplus
}
#endif
#endif
