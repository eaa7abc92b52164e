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
#include <unistd.h>

#include "kernels/cuda/lane.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/team.h"

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
    inf_team *team;
    inf_nccl *nccl; /* NULL: by the kernel */
    /* What each stream has come to: at the sum, for the kernel; within the last AHEAD / 2 sums of
     * NCCL. */
    cudaEvent_t reached[INF_MAX_RANKS];
    uint64_t given; /* sums, to NCCL */
};

/* Sums that the host is ahead of the GPUs, at most. A stream takes about a thousand launches, and
 * then keeps the caller until one is done: inside NCCL, where what is under way is ended late.
 * Between two sums are half a layer's launches. */
enum { AHEAD = 64 };

static const char at_sum[] = "the sum over ranks";

/* ---- the ranks' failures ----
 *
 * Any thread may find one: the step's, and those that wait for the ranks before they allocate. So
 * what is found is noted with the team, and each lane takes note of it in the thread that uses the
 * lane (collective_tell). */

static cuda_collective *of(inf_collective *collective) { return (cuda_collective *)collective; }

/* One rank cannot go on, so none can: the team's thread ends what the others wait for. */
static void end_sums(void *arg) {
    cuda_collective *c = (cuda_collective *)arg;
    if (c->nccl != NULL) {
        inf_nccl_abort(c->nccl);
    }
}

void collective_lose(inf_lane *l, int32_t status, const char *at) {
    inf_team_lose(of(l->sum)->team, l->rank, status, at, NULL);
}

static void nccl_failed(cuda_collective *c, int result) {
    inf_team_lose(c->team, -1, -result, at_sum, inf_nccl_why(c->nccl));
}

bool collective_tell(inf_lane *l) {
    const inf_team_loss *loss = l->sum != NULL ? inf_team_lost(of(l->sum)->team) : NULL;
    if (loss != NULL && l->fault == 0) {
        bool own = loss->rank == l->rank;
        l->fault = loss->status;
        l->fault_at = own ? loss->at : at_sum;
        l->fault_text = own ? NULL : loss->rank >= 0 ? "another rank failed" : loss->why;
    }
    return loss != NULL;
}

/* Whether the rank has nothing under way; a fault is such an end. */
static bool is_done(cuda_collective *c, int32_t rank) {
    inf_lane *l = c->lanes[rank];
    cudaError_t status = cudaSetDevice(l->backend->ordinal);
    status = status != cudaSuccess ? status : cudaStreamQuery(l->stream);
    if (status == cudaSuccess) {
        return true;
    }
    (void)cudaGetLastError(); /* or a launch would report it */
    if (status != cudaErrorNotReady) {
        inf_team_lose(c->team, rank, status, "a step", NULL);
    }
    return status != cudaErrorNotReady;
}

static bool all_done(cuda_collective *c) {
    bool done = true;
    for (int32_t r = 0; r < c->ranks; r++) {
        done = is_done(c, r) && done;
    }
    return done;
}

static void ask_nccl(cuda_collective *c) {
    if (c->nccl != NULL && inf_team_enter(c->team)) {
        int result = inf_nccl_failed(c->nccl);
        inf_team_leave(c->team);
        if (result != 0) {
            nccl_failed(c, result);
        }
    }
}

/* One round; 1: it is no use to wait any longer. */
static bool look(cuda_collective *c) {
    (void)all_done(c);
    ask_nccl(c);
    return inf_team_given_up(c->team) != 0;
}

static cudaError_t ask(inf_lane *l, cudaEvent_t event) {
    cudaError_t status = event != NULL ? cudaEventQuery(event) : cudaStreamQuery(l->stream);
    if (status == cudaErrorNotReady) {
        (void)cudaGetLastError(); /* or a launch would report it */
    }
    return status;
}

cudaError_t collective_await(inf_lane *l, cudaEvent_t event) {
    cuda_collective *c = of(l->sum);
    cudaError_t status = ask(l, event);
    if (status != cudaErrorNotReady) {
        return status;
    }
    (void)inf_team_wait(c->team);
    for (bool go_on = true; status == cudaErrorNotReady && go_on;) {
        go_on = !look(c);
        lane_enter(l); /* looking goes round all GPUs */
        status = ask(l, event);
    }
    inf_team_waited(c->team, 0);
    return status;
}

/* ---- the sum ---- */

static int launch_sum(const sum_args &a, int32_t dtype, cudaStream_t stream) {
    uint64_t blocks = (a.count + 255) / 256;
    dim3 grid((uint32_t)(blocks < 1024 ? blocks : 1024)), block(256);
    return dtype == INF_DTYPE_F32   ? INF_LAUNCH(sum_kernel<float>, grid, block, 0, stream, a)
           : dtype == INF_DTYPE_F16 ? INF_LAUNCH(sum_kernel<f16>, grid, block, 0, stream, a)
                                    : INF_LAUNCH(sum_kernel<bf16>, grid, block, 0, stream, a);
}

static void sum_in_memory(cuda_collective *c, void *const *y, uint64_t count) {
    inf_lane *first = c->lanes[0];
    sum_args a = {};
    a.count = count;
    a.ranks = c->ranks;
    for (int32_t r = 0; r < c->ranks; r++) {
        inf_lane *l = c->lanes[r];
        a.y[r] = y[r];
        if (r > 0) {
            lane_enter(l);
            lane_ok(l, cudaEventRecord(c->reached[r], l->stream), at_sum);
            lane_ok(first, cudaStreamWaitEvent(first->stream, c->reached[r], 0), at_sum);
        }
    }
    lane_enter(first);
    lane_ok(first, launch_sum(a, first->act, first->stream), at_sum);
    lane_ok(first, cudaEventRecord(c->reached[0], first->stream), at_sum);
    for (int32_t r = 1; r < c->ranks; r++) {
        lane_ok(c->lanes[r], cudaStreamWaitEvent(c->lanes[r]->stream, c->reached[0], 0), at_sum);
    }
}

/* Every so many sums: waits until the GPUs have come to where they were last time. */
static void hold_back(cuda_collective *c) {
    if (c->given++ % (AHEAD / 2) != 0) {
        return;
    }
    for (int32_t r = 0; r < c->ranks; r++) {
        inf_lane *l = c->lanes[r];
        lane_enter(l);
        lane_settle(l, c->reached[r], at_sum);
        lane_ok(l, cudaEventRecord(c->reached[r], l->stream), at_sum);
    }
}

static void sum_by_nccl(cuda_collective *c, void *const *y, uint64_t count) {
    hold_back(c);
    void *streams[INF_MAX_RANKS];
    for (int32_t r = 0; r < c->ranks; r++) {
        streams[r] = (void *)c->lanes[r]->stream;
    }
    if (inf_team_enter(c->team)) {
        int result = inf_nccl_sum(c->nccl, y, count, c->lanes[0]->act, streams);
        inf_team_leave(c->team);
        if (result != 0) {
            nccl_failed(c, result);
        }
    }
}

static void collective_sum(inf_collective *collective, void *const *y, uint64_t count) {
    cuda_collective *c = of(collective);
    bool lost = false;
    for (int32_t r = 0; r < c->ranks; r++) {
        lost = collective_tell(c->lanes[r]);
    }
    if (count == 0 || lost) {
        return;
    }
    inf_team_begin(c->team);
    if (c->nccl == NULL) {
        sum_in_memory(c, y, count);
    } else {
        sum_by_nccl(c, y, count);
    }
}

/* With the kernel a stream waits only for events, which come whatever fails. With NCCL a GPU whose
 * neighbour has failed waits in a kernel, and only an abort ends that. After a loss the others have
 * some time to come to an end, since they may be writing to host memory. The step waits thus
 * itself, and spins; others would take the driver's locks from it, and the core. */
static inf_collective_end collective_wait(inf_collective *collective, int patient) {
    enum { ASK = 256, NAP_US = 50 }; /* rounds between questions to NCCL */
    cuda_collective *c = of(collective);
    uint64_t begun = inf_team_wait(c->team);
    bool done = false;
    for (uint32_t round = 1; !done; round++) {
        done = all_done(c);
        if (done || round % ASK == 0) {
            ask_nccl(c);
            if (!done && inf_team_given_up(c->team)) {
                break;
            }
        }
        if (!done && patient && round > ASK) {
            (void)usleep(NAP_US);
        }
    }
    inf_team_waited(c->team, begun);
    const inf_team_loss *loss = inf_team_lost(c->team);
    return {loss == NULL ? -1 : loss->rank >= 0 ? loss->rank : c->ranks, !done};
}

/* What cannot be ended stays: the GPU, or NCCL, may still use it. */
static void collective_close(inf_collective *collective) {
    cuda_collective *c = of(collective);
    if (c == NULL || collective_wait(collective, 1).busy || !inf_team_close(c->team)) {
        return;
    }
    for (int32_t r = 0; r < c->ranks; r++) {
        if (c->reached[r] != NULL) {
            (void)cudaSetDevice(c->lanes[r]->backend->ordinal);
            (void)cudaEventDestroy(c->reached[r]);
        }
        c->lanes[r]->fault_text = NULL;
        c->lanes[r]->sum = NULL;
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
    int status = inf_team_open(end_sums, c, (int32_t)cudaErrorNotReady, &c->team, err);
    if (status != INF_OK) {
        free(c);
        return status;
    }
    for (int32_t r = 0; r < c->ranks; r++) {
        c->lanes[r] = config->lanes[r];
        c->lanes[r]->sum = &c->base;
        c->lanes[r]->rank = r;
        ordinals[r] = c->lanes[r]->backend->ordinal;
    }
    if (!one_memory(c)) {
        status = inf_nccl_open(ordinals, c->ranks, &c->nccl, err);
    }
    for (int32_t r = 0; r < c->ranks && status == INF_OK; r++) {
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
