/* What the machine can do at most, measured. */
#ifndef BENCH_LIMITS_H
#define BENCH_LIMITS_H

#include "kernels/kernels.h"

/* Bytes per second that `threads` threads read from memory that no cache holds. */
double limit_read(inf_pool *pool, int32_t threads);

/* Floating-point operations per second of f32 multiply-adds on registers, with the vectors of an
 * instruction set as inf_ops names it. */
double limit_fma(inf_pool *pool, int32_t threads, const char *isa);

#endif
