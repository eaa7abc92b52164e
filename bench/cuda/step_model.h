/* What the step benches share: a Llama-shaped model with random weights on a device of its own,
 * whose pool is filled with random numbers from inside, so that contexts need no prefill, and steps
 * of it. */
#ifndef INF_BENCH_CUDA_STEP_MODEL_H
#define INF_BENCH_CUDA_STEP_MODEL_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/runtime.h"

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #cond, err.message);            \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

extern inf_err err;

typedef struct shape {
    const char *name;
    int32_t layers, hidden, inner, heads, kv_heads, dim, vocab;
} shape;

enum { MAX_SEQS = 64, MAX_TOKENS = 8192 };

extern uint32_t block_size; /* tokens of a block: 16 at first */

/* NULL: there is none of that name. */
const shape *shape_of(const char *name);

double now(void); /* in seconds */

uint64_t weight_bytes(const shape *s);

/* Numbers for the weights of such a model; before the first is opened. */
void make_noise(const shape *s);

inf_device *open_device(const shape *s, int32_t gpu, int32_t kv_dtype, int32_t num_blocks);

/* Of greedy requests, all there can be. */
void open_slots(inf_device *d);

/* A step of `batch` requests, each with `context` tokens of KV and n new ones. remote tokens of
 * each lie with peer 0 as span handle = index. */
void set_step(inf_device *d, int32_t batch, uint32_t context, uint32_t n, uint32_t remote);

/* Does the pool hold a decode step of so many? */
int fits(const inf_device *d, int32_t batch, uint32_t context);

double run_step(inf_device *d); /* its seconds */

typedef struct timing {
    double median, least;
} timing;

double median_of(double *t, int n); /* sorts them */

/* Of so many steps, at most 64, after some that do not count. */
timing time_steps(inf_device *d, int steps);

#endif
