/* The sum and the gather over CPU ranks: they lie in one memory and their lanes are done on return,
 * so one loop adds them up, always from rank 0 on; the same bits come out however many threads
 * there are. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "runtime/fail.h"

enum { CHUNK = 4096 }; /* numbers that one task adds up */

typedef struct cpu_collective {
    inf_collective base;
    inf_pool *threads;
    int32_t ranks;
    int32_t cols;            /* of a gather */
    float *y[INF_MAX_RANKS]; /* during a sum or a gather */
    uint64_t count;
    float *whole;
} cpu_collective;

static void sum_chunk(void *arg, int32_t index, int32_t thread) {
    const cpu_collective *c = arg;
    (void)thread;
    uint64_t at = (uint64_t)index * CHUNK, left = c->count - at, n = left < CHUNK ? left : CHUNK;
    float *total = c->y[0] + at;
    for (int32_t r = 1; r < c->ranks; r++) {
        const float *y = c->y[r] + at;
        for (uint64_t i = 0; i < n; i++) {
            total[i] += y[i];
        }
    }
    for (int32_t r = 1; r < c->ranks; r++) {
        memcpy(c->y[r] + at, total, n * sizeof(float));
    }
}

static void cpu_sum(inf_collective *collective, void *const *y, uint64_t count) {
    cpu_collective *c = (cpu_collective *)collective;
    for (int32_t r = 0; r < c->ranks; r++) {
        c->y[r] = y[r];
    }
    c->count = count;
    inf_pool_run(c->threads, sum_chunk, c, (int32_t)((count + CHUNK - 1) / CHUNK));
}

/* A rank's columns of a row. */
static void gather_piece(void *arg, int32_t index, int32_t thread) {
    const cpu_collective *c = arg;
    (void)thread;
    int32_t row = index / c->ranks, rank = index % c->ranks;
    inf_share share = inf_share_of(c->cols, c->ranks, rank);
    if (share.n > 0) {
        memcpy(c->whole + (int64_t)row * c->cols + share.first, c->y[rank] + (int64_t)row * share.n,
               (size_t)share.n * sizeof(float));
    }
}

static void cpu_gather(inf_collective *collective, float *const *part, float *whole, int32_t rows) {
    cpu_collective *c = (cpu_collective *)collective;
    for (int32_t r = 0; r < c->ranks; r++) {
        c->y[r] = part[r];
    }
    c->whole = whole;
    inf_pool_run(c->threads, gather_piece, c, rows * c->ranks);
}

/* Both are done on return, and no rank can fail or stay away from them: one thread asks for all. */
static inf_collective_end cpu_wait(inf_collective *collective, int patient) {
    (void)collective;
    (void)patient;
    return (inf_collective_end){-1, 0};
}

static void cpu_close(inf_collective *collective) { free(collective); }

int inf_cpu_collective_open(const inf_collective_config *config, inf_collective **out,
                            inf_err *err) {
    static const inf_collective_ops ops = {cpu_sum, cpu_gather, cpu_wait, cpu_close};
    cpu_collective *c = calloc(1, sizeof *c);
    *out = NULL;
    if (c == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the sum over ranks");
    }
    c->base.ops = &ops;
    c->threads = config->threads;
    c->ranks = config->ranks;
    c->cols = config->cols;
    *out = &c->base;
    return INF_OK;
}
