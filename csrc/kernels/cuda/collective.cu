/* The sum over the ranks of a tensor-parallel instance whose ranks are GPUs, and the gather of what
 * each has in the first one's memory.
 *
 * Ranks on GPUs of their own sum by NCCL (nccl.h), each on its lane's stream. It refuses two ranks
 * on one GPU, and there it is not needed: their memory is one. One kernel, on the first rank's
 * stream, reads all ranks' numbers and writes the sum to all of them, while events make it wait for
 * the other streams and them for it. It is there for tests and for trying things out: ranks that
 * share a GPU are slower than one.
 *
 * A gather is one kernel on the first rank's stream too. By NCCL it reads what the others sent, a
 * message of all rows each, since many small ones are slow. They come to a room of their own, as
 * columns of several ranks are not one stretch of memory. Whatever is said of sums below holds for
 * gathers: who waits for them, how far ahead they are given, and what their failure ends.
 *
 * The emulated GPUs have one memory too, so they sum by the kernel unless a library is named. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cuda/lane.h"
#include "kernels/cuda/nccl.h"
#include "kernels/cuda/ranks.h"
#include "kernels/cuda/team.h"

struct cuda_collective {
    inf_collective base;
    int32_t ranks;
    inf_lane *lanes[INF_MAX_RANKS];
    inf_team *team;
    inf_nccl *nccl; /* NULL: by the kernels */
    int32_t cols;   /* of a gather */
    float *room;    /* in rank 0's memory, for the others' columns: [max_rows, cols less its own];
                     * NULL: by the kernels */
    /* What each stream has come to: at the sum, for the kernel; within the last AHEAD / 2 sums of
     * NCCL. */
    cudaEvent_t reached[INF_MAX_RANKS];
    uint64_t given; /* sums and gathers, to NCCL */
};

/* Sums that the host is ahead of the GPUs, at most. A stream takes about a thousand launches, and
 * then keeps the caller until one is done: inside NCCL, where what is under way is ended late.
 * Between two sums are half a layer's launches. */
enum { AHEAD = 64 };

static const char at_sum[] = "the sum over ranks", at_gather[] = "the gather over ranks";

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

static void nccl_failed(cuda_collective *c, int result, const char *at) {
    inf_team_lose(c->team, -1, -result, at, inf_nccl_why(c->nccl));
}

bool collective_tell(inf_lane *l) {
    const inf_team_loss *loss = l->sum != NULL ? inf_team_lost(of(l->sum)->team) : NULL;
    if (loss != NULL && l->fault == 0) {
        bool own = loss->rank == l->rank;
        l->fault = loss->status;
        l->fault_at = own || loss->rank < 0 ? loss->at : at_sum;
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
            nccl_failed(c, result, at_sum);
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

/* In one memory: the first rank's stream waits for the others, and its GPU is the thread's. */
static inf_lane *meet(cuda_collective *c, const char *at) {
    inf_lane *first = c->lanes[0];
    for (int32_t r = 1; r < c->ranks; r++) {
        inf_lane *l = c->lanes[r];
        lane_enter(l);
        lane_ok(l, cudaEventRecord(c->reached[r], l->stream), at);
        lane_ok(first, cudaStreamWaitEvent(first->stream, c->reached[r], 0), at);
    }
    lane_enter(first);
    return first;
}

/* .. and they for it. */
static void go_on(cuda_collective *c, const char *at) {
    inf_lane *first = c->lanes[0];
    lane_ok(first, cudaEventRecord(c->reached[0], first->stream), at);
    for (int32_t r = 1; r < c->ranks; r++) {
        lane_ok(c->lanes[r], cudaStreamWaitEvent(c->lanes[r]->stream, c->reached[0], 0), at);
    }
}

static void sum_in_memory(cuda_collective *c, void *const *y, uint64_t count) {
    inf_lane *first = meet(c, at_sum);
    inf_cuda_sum p = {};
    memcpy(p.y, y, (size_t)c->ranks * sizeof *y);
    p.count = count;
    p.act = first->act;
    p.ranks = c->ranks;
    lane_ok(first, inf_cuda_sum_launch(&p, first->stream), at_sum);
    go_on(c, at_sum);
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
    void *streams[INF_MAX_RANKS];
    for (int32_t r = 0; r < c->ranks; r++) {
        streams[r] = (void *)c->lanes[r]->stream;
    }
    hold_back(c);
    if (inf_team_enter(c->team)) {
        int result = inf_nccl_sum(c->nccl, y, count, c->lanes[0]->act, streams);
        inf_team_leave(c->team);
        if (result != 0) {
            nccl_failed(c, result, at_sum);
        }
    }
}

/* Whether there is something to be done, and no rank was lost. */
static bool begin(cuda_collective *c, bool any) {
    bool lost = false;
    for (int32_t r = 0; r < c->ranks; r++) {
        lost = collective_tell(c->lanes[r]);
    }
    if (any && !lost) {
        inf_team_begin(c->team);
    }
    return any && !lost;
}

static void collective_sum(inf_collective *collective, void *const *y, uint64_t count) {
    cuda_collective *c = of(collective);
    if (!begin(c, count > 0)) {
        return;
    }
    if (c->nccl == NULL) {
        sum_in_memory(c, y, count);
    } else {
        sum_by_nccl(c, y, count);
    }
}

/* ---- the gather ---- */

static void gather_in_memory(cuda_collective *c, const inf_cuda_gather *p) {
    inf_lane *first = meet(c, at_gather);
    lane_ok(first, inf_cuda_gather_launch(p, first->stream), at_gather);
    go_on(c, at_gather);
}

/* The others' columns come to the room, one rank's behind the other's. */
static void gather_by_nccl(cuda_collective *c, inf_cuda_gather *p) {
    inf_nccl_piece pieces[INF_MAX_RANKS] = {};
    void *streams[INF_MAX_RANKS];
    float *to = c->room;
    for (int32_t r = 0; r < c->ranks; r++) {
        streams[r] = (void *)c->lanes[r]->stream;
        if (r > 0) {
            pieces[r].from = p->part[r];
            pieces[r].to = to;
            pieces[r].count = (uint64_t)p->rows * (uint64_t)inf_share_of(c->cols, c->ranks, r).n;
            p->part[r] = to;
            to += pieces[r].count;
        }
    }
    hold_back(c);
    if (!inf_team_enter(c->team)) {
        return;
    }
    int result = inf_nccl_gather(c->nccl, pieces, streams);
    inf_team_leave(c->team);
    if (result != 0) {
        nccl_failed(c, result, at_gather);
        return;
    }
    lane_enter(c->lanes[0]);
    lane_ok(c->lanes[0], inf_cuda_gather_launch(p, c->lanes[0]->stream), at_gather);
}

static void collective_gather(inf_collective *collective, float *const *part, float *whole,
                              int32_t rows) {
    cuda_collective *c = of(collective);
    inf_cuda_gather p = {};
    memcpy(p.part, part, (size_t)c->ranks * sizeof *part);
    p.whole = whole;
    p.rows = rows;
    p.cols = c->cols;
    p.share = inf_share_of(c->cols, c->ranks, 0).n;
    if (!begin(c, rows > 0 && c->cols > 0)) {
        return;
    }
    if (c->nccl == NULL) {
        gather_in_memory(c, &p);
    } else {
        gather_by_nccl(c, &p);
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
    inf_backend *first = &c->lanes[0]->backend->base;
    first->ops->free(first, c->room);
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

static int take_room(cuda_collective *c, int32_t max_rows, inf_err *err) {
    inf_backend *first = &c->lanes[0]->backend->base;
    uint64_t others = (uint64_t)(c->cols - inf_share_of(c->cols, c->ranks, 0).n);
    c->room = (float *)first->ops->alloc(first, (uint64_t)max_rows * others * sizeof(float));
    return c->room != NULL ? INF_OK
                           : inf_fail(err, INF_ENOMEM, -1, -1,
                                      "cannot allocate the logits of %d ranks", c->ranks);
}

int inf_cuda_collective_open(const inf_collective_config *config, inf_collective **out,
                             inf_err *err) {
    static const inf_collective_ops ops = {collective_sum, collective_gather, collective_wait,
                                           collective_close};
    int32_t ordinals[INF_MAX_RANKS];
    *out = NULL;
    cuda_collective *c = (cuda_collective *)calloc(1, sizeof *c);
    if (c == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the sum over ranks");
    }
    c->base.ops = &ops;
    c->ranks = config->ranks;
    c->cols = config->cols;
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
        status = status == INF_OK ? take_room(c, config->max_rows, err) : status;
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
