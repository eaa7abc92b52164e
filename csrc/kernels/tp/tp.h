/* The inside of the tensor-parallel backend: what memory.c, lane.c and step.c share. The essay is
 * in backend.c. */
#ifndef INF_TP_H
#define INF_TP_H

#include <pthread.h>

#include "kernels/backend.h"
#include "runtime/fail.h"

/* Device memory: a piece on each rank. The address of this record is what the model holds; nobody
 * else looks behind it. */
typedef struct tp_memory {
    void *part[INF_MAX_RANKS]; /* NULL: the rank has none; equal to part[0]: it shares that one */
    int32_t cut;               /* of a matrix */
} tp_memory;

/* The pool: block b of the model is block b of every rank's pool. Whoever copies blocks reckons
 * with addresses, so the pool has some: `base` is address space that nothing lies behind. */
typedef struct tp_pool {
    uint8_t *base; /* NULL: there is none */
    uint64_t bytes;
    void *part[INF_MAX_RANKS]; /* of bytes / n each */
} tp_pool;

typedef struct tp_backend {
    inf_backend base;
    inf_backend_ops table;
    int32_t n;
    inf_backend *rank[INF_MAX_RANKS];
    const inf_backend_ops *ops; /* of every rank */
    tp_pool pool;
    /* Held while a sum or a gather is given to the ranks, and by what allocates while steps run. A
     * GPU may wait with an allocation until it is idle, and hold up calls for the GPUs it is linked
     * to; if it had begun a sum that another has not been given yet, neither would go on. And if
     * another failed within a sum, it would not be idle until that is ended: so who allocates first
     * waits until the sums are over, and looks for such a failure meanwhile (inf_tp_hold). */
    pthread_mutex_t gate;
    inf_collective *sum; /* under the gate: of the lane of steps, NULL while there is none */
    /* Under the gate: a lane was closed that a GPU is not done with, nor will be. It stays, and so
     * does all memory: to free any would wait for that GPU for ever, to unmap it would let the GPU
     * write to what is another's by then. */
    int busy;
} tp_backend;

/* An inf_lane of this backend. */
typedef struct tp_lane {
    tp_backend *backend;
    const inf_backend_ops *ops; /* of every rank */
    int32_t n;
    inf_lane *rank[INF_MAX_RANKS];
    inf_collective *sum;      /* of a step's lane */
    inf_pool *team;           /* .. a thread per rank; NULL: the caller asks one after the other */
    float *logits;            /* .. and, in rank 0's memory, those of its share: [logit_rows, n] */
    uint64_t row0, second;    /* .. the first of the rows that operations are on, and of the second
                               * half */
    inf_device_config dims;   /* the model's */
    inf_kv_shape kv, rank_kv; /* of a block, and of a rank's part of it */
    int32_t max_rows, max_segments;
    struct tp_answer *answer; /* of an answering lane */
} tp_lane;

static inline void *tp_part(const void *memory, int32_t rank) {
    return memory != NULL ? ((const tp_memory *)memory)->part[rank] : NULL;
}

/* A rank's share of the model. */
static inline inf_device_config tp_share(const inf_device_config *config, int32_t n) {
    inf_device_config c = *config;
    c.heads /= n;
    c.kv_heads /= n;
    c.intermediate /= n;
    c.expert_intermediate /= n;
    c.shared_intermediate /= n;
    return c;
}

/* Takes the gate to allocate or free. busy: a GPU will not be idle, and that would wait for it for
 * ever. lane.c */
inf_collective_end inf_tp_hold(tp_backend *b);
void inf_tp_let_go(tp_backend *b);
/* 1: what is to be freed, unpinned or closed stays (busy, above). lane.c */
int inf_tp_busy(tp_backend *b);
/* The end of an operation that such a GPU keeps from being done. */
int inf_tp_lost(const inf_collective_end *end, const tp_backend *b, const char *what, inf_err *err);

/* Each fills in its part of the table. */
void inf_tp_memory_table(inf_backend_ops *ops, const inf_backend_ops *rank);
void inf_tp_lane_table(inf_backend_ops *ops);
void inf_tp_step_table(inf_backend_ops *ops, const inf_backend_ops *rank);

/* answer.c */
int inf_tp_answer_open(tp_lane *l, const inf_lane_config *config, inf_err *err);
void inf_tp_answer_close(tp_lane *l);
int inf_tp_answer(inf_lane *lane, const inf_attn *args, int32_t n, inf_err *err);

#endif
