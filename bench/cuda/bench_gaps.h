/* Where a decode step's time goes on the GPU: its kernels by name, and the gaps between them. */
#ifndef INF_BENCH_CUDA_BENCH_GAPS_H
#define INF_BENCH_CUDA_BENCH_GAPS_H

#include "bench/cuda/step_model.h"

/* Steps of batches at 1K tokens, traced (tracer.h). JSON lines per batch: "gaps", and
 * "gaps_kernel" for each of the names with most time; medians of some steps, or sums over them per
 * step. A traced step takes longer than others, so there are two times of steps that are not: ms,
 * before CUPTI is loaded, of another instance, and in "gaps_off" off_ms, of the very recordings
 * that were traced. Without CUPTI, or when it fails, "gaps" is ms and the error. */
void bench_gaps(const shape *s, int32_t gpu, int32_t kv_dtype, int32_t num_blocks);

#endif
