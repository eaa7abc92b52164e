/* The sum over the ranks of a tensor-parallel instance whose ranks are GPUs.
 *
 * Ranks on GPUs of their own sum by NCCL (nccl.h), each on its lane's stream. It refuses two ranks
 * on one GPU, and there it is not needed: their memory is one. One kernel, on the first rank's
 * stream, reads all ranks' numbers and writes the sum to all of them, while events make it wait for
 * the other streams and them for it. It is there for tests and for trying things out: ranks that
 * share a GPU are slower than one.
 *
 *   bytes   2 n count size, of which n count size are read
 *
 * The emulated GPUs have one memory too, so they sum by the kernel unless a library is named. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lane.h"
#include "kernels/cuda/nccl.h"

struct sum_args {
    void *y[INF_MAX_RANKS];
    uint64_t count;
    int32_t ranks;
};

/* A number per thread, from rank 0 on in f32; rounded once, so every rank gets the same bits. */
template <typename T> __global__ void sum_kernel(const __grid_constant__ sum_args a) {
    uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < a.count; i += step) {
        float total = load1((const T *)a.y[0] + i);
        for (int32_t r = 1; r < a.ranks; r++) {
            total += load1((const T *)a.y[r] + i);
        }
        for (int32_t r = 0; r < a.ranks; r++) {
            store1((T *)a.y[r] + i, total);
        }
    }
}

struct cuda_collective {
    inf_collective base;
    int32_t ranks;
    inf_lane *lanes[INF_MAX_RANKS];
    inf_nccl *nccl;                     /* NULL: by the kernel */
    cudaEvent_t reached[INF_MAX_RANKS]; /* the kernel: what each stream has come to */
};

/* One rank cannot go on, so none can: the others' streams must not wait for it. */
static bool any_fault(cuda_collective *c) {
    inf_lane *first = NULL;
    for (int32_t r = 0; r < c->ranks && first == NULL; r++) {
        first = c->lanes[r]->fault != 0 ? c->lanes[r] : NULL;
    }
    if (first == NULL) {
        return false;
    }
    if (c->nccl != NULL) {
        inf_nccl_abort(c->nccl);
    }
    for (int32_t r = 0; r < c->ranks; r++) {
        if (c->lanes[r]->fault == 0) {
            c->lanes[r]->fault_text = "another rank failed";
            lane_ok(c->lanes[r], first->fault, "the sum over ranks");
        }
    }
    return true;
}

static void nccl_failed(cuda_collective *c, int result) {
    for (int32_t r = 0; r < c->ranks; r++) {
        if (c->lanes[r]->fault == 0) {
            c->lanes[r]->fault_text = inf_nccl_why(c->nccl);
            lane_ok(c->lanes[r], -result, "the sum over ranks");
        }
    }
}

static int launch_sum(const sum_args &a, int32_t dtype, cudaStream_t stream) {
    uint64_t blocks = (a.count + 255) / 256;
    dim3 grid((uint32_t)(blocks < 1024 ? blocks : 1024)), block(256);
    return dtype == INF_DTYPE_F32   ? INF_LAUNCH(sum_kernel<float>, grid, block, 0, stream, a)
           : dtype == INF_DTYPE_F16 ? INF_LAUNCH(sum_kernel<f16>, grid, block, 0, stream, a)
                                    : INF_LAUNCH(sum_kernel<bf16>, grid, block, 0, stream, a);
}

static void sum_in_memory(cuda_collective *c, void *const *y, uint64_t count) {
    static const char at[] = "the sum over ranks";
    inf_lane *first = c->lanes[0];
    sum_args a = {};
    a.count = count;
    a.ranks = c->ranks;
    for (int32_t r = 0; r < c->ranks; r++) {
        inf_lane *l = c->lanes[r];
        a.y[r] = y[r];
        if (r > 0) {
            lane_enter(l);
            lane_ok(l, cudaEventRecord(c->reached[r], l->stream), at);
            lane_ok(first, cudaStreamWaitEvent(first->stream, c->reached[r], 0), at);
        }
    }
    lane_enter(first);
    lane_ok(first, launch_sum(a, first->act, first->stream), at);
    lane_ok(first, cudaEventRecord(c->reached[0], first->stream), at);
    for (int32_t r = 1; r < c->ranks; r++) {
        lane_ok(c->lanes[r], cudaStreamWaitEvent(c->lanes[r]->stream, c->reached[0], 0), at);
    }
}

static void collective_sum(inf_collective *collective, void *const *y, uint64_t count) {
    cuda_collective *c = (cuda_collective *)collective;
    if (count == 0 || any_fault(c)) {
        return;
    }
    if (c->nccl == NULL) {
        sum_in_memory(c, y, count);
        return;
    }
    void *streams[INF_MAX_RANKS];
    for (int32_t r = 0; r < c->ranks; r++) {
        streams[r] = (void *)c->lanes[r]->stream;
    }
    int result = inf_nccl_sum(c->nccl, y, count, c->lanes[0]->act, streams);
    if (result != 0) {
        nccl_failed(c, result);
    }
}

/* 1: the lane has nothing under way, or a fault. */
static bool is_done(inf_lane *l) {
    lane_enter(l);
    cudaError_t status = cudaStreamQuery(l->stream);
    if (status == cudaErrorNotReady) {
        (void)cudaGetLastError(); /* or a launch would report it */
        return false;
    }
    lane_ok(l, status, "a step");
    return true;
}

/* With the kernel a stream waits only for events, which come whatever fails. With NCCL a GPU whose
 * neighbour has failed waits in a kernel, and only an abort ends that. */
static void collective_wait(inf_collective *collective) {
    enum { ASK = 256 }; /* rounds between questions to NCCL */
    cuda_collective *c = (cuda_collective *)collective;
    if (c->nccl == NULL) {
        return;
    }
    bool busy = true;
    for (uint32_t round = 1; busy && !any_fault(c); round++) {
        busy = false;
        for (int32_t r = 0; r < c->ranks; r++) {
            busy = !is_done(c->lanes[r]) || busy;
        }
        int result = !busy || round % ASK == 0 ? inf_nccl_failed(c->nccl) : 0;
        if (result != 0) {
            inf_nccl_abort(c->nccl);
            nccl_failed(c, result);
        }
    }
}

static void collective_close(inf_collective *collective) {
    cuda_collective *c = (cuda_collective *)collective;
    if (c == NULL) {
        return;
    }
    for (int32_t r = 0; r < c->ranks; r++) { /* what is under way uses it */
        lane_enter(c->lanes[r]);
        (void)cudaStreamSynchronize(c->lanes[r]->stream);
        if (c->reached[r] != NULL) {
            (void)cudaEventDestroy(c->reached[r]);
        }
        c->lanes[r]->fault_text = NULL;
    }
    inf_nccl_close(c->nccl);
    free(c);
}

/* All ranks' memory is one. */
static bool one_memory(const cuda_collective *c) {
    bool one = true;
    for (int32_t r = 1; r < c->ranks; r++) {
        one = one && c->lanes[r]->backend->ordinal == c->lanes[0]->backend->ordinal;
    }
#ifdef INF_EMU
    one = getenv(INF_NCCL_LIBRARY) == NULL;
#endif
    return one;
}

int inf_cuda_collective_open(const inf_collective_config *config, inf_collective **out,
                             inf_err *err) {
    static const inf_collective_ops ops = {collective_sum, collective_wait, collective_close};
    int32_t ordinals[INF_MAX_RANKS];
    *out = NULL;
    cuda_collective *c = (cuda_collective *)calloc(1, sizeof *c);
    if (c == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the sum over ranks");
    }
    c->base.ops = &ops;
    c->ranks = config->ranks;
    for (int32_t r = 0; r < c->ranks; r++) {
        c->lanes[r] = config->lanes[r];
        ordinals[r] = c->lanes[r]->backend->ordinal;
    }
    int status = INF_OK;
    if (!one_memory(c)) {
        status = inf_nccl_open(ordinals, c->ranks, &c->nccl, err);
    }
    for (int32_t r = 0; r < c->ranks && c->nccl == NULL && status == INF_OK; r++) {
        cudaError_t made = cudaSetDevice(ordinals[r]);
        if (made == cudaSuccess) {
            made = cudaEventCreateWithFlags(&c->reached[r], cudaEventDisableTiming);
        }
        if (made != cudaSuccess) {
            status = inf_fail(err, INF_ENOMEM, -1, -1, "cannot make an event on CUDA device %d: %s",
                              ordinals[r], cudaGetErrorString(made));
        }
    }
    if (status != INF_OK) {
        collective_close(&c->base);
        return status;
    }
    *out = &c->base;
    return INF_OK;
}
