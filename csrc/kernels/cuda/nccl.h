/* NCCL, loaded at run time: sums and gathers over the GPUs of one process. Plain C, no CUDA header:
 * streams are the runtime's, as pointers.
 *
 * One thread calls at a time, for all GPUs as one group; only an abort may come beside a call that
 * blocks. The first failure stays, and every later call fails for the same reason. Who is told of
 * it aborts, so that no GPU waits for another for ever. */
#ifndef INF_CUDA_NCCL_H
#define INF_CUDA_NCCL_H

#include <stdint.h>

#include "infinite/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Names the library, else libnccl.so.2 is looked for where the linker looks. */
#define INF_NCCL_LIBRARY "INFINITE_NCCL_LIBRARY"

typedef struct inf_nccl inf_nccl;

/* A communicator per device, in their order. INF_EUNSUPPORTED and why, if there is no NCCL or it
 * cannot sum over these. It has no deadline: there is no communicator yet that could be aborted.
 * That is at the start of an instance, which nobody waits for but who starts it. */
int inf_nccl_open(const int32_t *ordinals, int32_t n, inf_nccl **out, inf_err *err);

/* Enqueues on every stream: y[r][i] = sum over ranks of y[rank][i], count numbers of an
 * INF_DTYPE_*. 0, or the ncclResult_t of the first failure. */
int inf_nccl_sum(inf_nccl *nccl, void *const *y, uint64_t count, int32_t dtype,
                 void *const *streams);

/* What a rank sends to rank 0: count numbers of f32, none if that is 0. */
typedef struct inf_nccl_piece {
    const float *from; /* in the rank's memory */
    float *to;         /* in rank 0's */
    uint64_t count;
} inf_nccl_piece;

/* Enqueues on every stream: the pieces of ranks 1 and on, which are [n]. As inf_nccl_sum. */
int inf_nccl_gather(inf_nccl *nccl, const inf_nccl_piece *pieces, void *const *streams);

/* What befell a communicator since: 0, or a ncclResult_t. */
int inf_nccl_failed(inf_nccl *nccl);

/* Ends what is under way, a call of another thread's too; from then on everything fails. */
void inf_nccl_abort(inf_nccl *nccl);

/* Why it failed; "" while it has not. Lives as long as nccl does. */
const char *inf_nccl_why(const inf_nccl *nccl);

void inf_nccl_close(inf_nccl *nccl); /* safe on NULL */

#ifdef __cplusplus
}
#endif
#endif
