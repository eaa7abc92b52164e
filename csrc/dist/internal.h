/* What the files of dist share.
 *
 * Threads: the step thread (home.c), one thread that answers queries (serve.c), one that lands
 * moved blocks (land.c), one that sends them (moves.c), and any number of callers of the door's
 * functions.
 *
 * Who may touch a link: the step thread a peer's query client while peer.in_step is set, the mover
 * thread otherwise, under dist.lock; each of the three other threads its own lane's links, which it
 * lists anew in every round. A link leaves a peer under dist.lock, and is closed by its thread, or
 * when that thread has begun another round (inf_worker.round) or cleared in_step: so no link is
 * closed while it is used.
 *
 * A peer dies as a whole: the first link that fails sets peer.dead, and every thread then closes
 * its link, so that the other end sees it at once. What is left is taken away by detach. */
#ifndef INF_DIST_INTERNAL_H
#define INF_DIST_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "dist/dist.h"
#include "dist/wire.h"

typedef struct inf_move inf_move;

/* One block move. blocks[n] is a copy of the caller's list; sent and acked count them. */
struct inf_move {
    inf_move *next;
    uint32_t handle, generation, first;
    int32_t n, sent, acked;
    uint64_t ticket;
    int32_t status; /* the first refusal */
    int32_t blocks[];
};

typedef struct inf_moves {
    inf_move *head, *tail;
} inf_moves;

typedef struct inf_peer {
    /* Guarded by dist.lock; the pointers' targets as said above. */
    inf_link *query, *move;   /* client ends */
    inf_link *squery, *smove; /* server ends */
    inf_moves posted;         /* not begun yet, in order */
    uint64_t lane;            /* in all messages to it; drawn when the client ends come */
    bool in_step;             /* the step thread may use query */

    /* The mover thread's while it has the move link on its list, else guarded by dist.lock. */
    inf_moves active;   /* sent in part or whole, in order; acknowledgements are the head's */
    uint32_t in_flight; /* messages without acknowledgement */
    uint64_t heard_ns;  /* when the last one began or an acknowledgement came */

    _Atomic int32_t dead; /* first reason for which a link of this peer failed */
    _Atomic bool leaving; /* a detach is under way */
} inf_peer;

/* A request's rows at one peer, in one step. */
typedef struct inf_group {
    uint32_t seq, span_off, n_spans; /* spans[span_off..] of the plan */
    bool sent;                       /* in the layer under way */
    uint32_t row_off;                /* in that layer's message */
    int32_t status;                  /* of the answer under way */
} inf_group;

/* One creditor of the step under way. */
typedef struct inf_target {
    uint32_t peer;
    uint64_t lane;
    inf_link *link; /* NULL once the step let go of it */
    uint32_t group_off, n_groups;
    bool pending;         /* a partial is expected */
    inf_wire_head answer; /* the head that it must have */
} inf_target;

typedef struct inf_worker {
    pthread_t thread;
    bool running;
    int wake;       /* eventfd */
    uint64_t round; /* guarded by dist.lock */
} inf_worker;

typedef struct inf_span {
    bool open;
    uint32_t owner, generation;
    int32_t n_blocks;
    uint32_t landed;
    uint32_t users;  /* threads reading or writing the blocks */
    int32_t *blocks; /* replaced when the span grows; the old list is retired, not freed */
    int32_t capacity;
} inf_span;

typedef struct inf_retired {
    struct inf_retired *next;
    int32_t *blocks;
} inf_retired;

struct inf_dist {
    inf_backend *backend;
    const inf_backend_ops *ops;
    inf_kv_shape kv;
    uint8_t *pool;
    inf_device_config config;
    int32_t *windows; /* [layers] */
    float scale;
    int32_t layers, heads, head_dim, num_blocks, threads;
    uint32_t max_tokens, max_seqs, max_groups, max_entries, max_spans;
    uint64_t query_bytes, move_bytes; /* slot sizes */

    pthread_mutex_t lock;
    pthread_cond_t changed; /* a round began, in_step was cleared */
    inf_peer peers[INF_MAX_PEERS];
    inf_worker server, lander, mover;
    _Atomic bool stopping;
    int step_wake; /* eventfd: a detach wants the step thread */

    /* The step under way; the step thread's alone. */
    uint64_t step_id;
    inf_target *targets; /* [INF_MAX_PEERS] */
    uint32_t n_targets;
    inf_group *groups;    /* [max_groups] */
    uint64_t *lengths;    /* [INF_MAX_PEERS] of the messages that wait for their queries, 0: none */
    inf_step_span *spans; /* [max_entries], by group */

    /* Hosted spans. */
    pthread_mutex_t span_lock;
    pthread_cond_t span_free;
    inf_span *span; /* [max_spans] */
    inf_retired *retired;

    /* The query server's scratch. */
    inf_pool *workers;
    bool answering_tried;
    inf_lane *answering; /* opened by the first query; NULL: it could not be */
    /* The threads' that copy blocks. */
    inf_lane *landing, *moving;
    inf_wire_group *wire_groups;  /* [max_groups]: copies, checked where nobody can change them */
    inf_wire_entry *wire_entries; /* [max_entries] */
    inf_attn *attn;               /* [max_entries] */
    int32_t *statuses;            /* [max_groups] */
    const int32_t **lists;        /* [max_entries]: block lists of the message's entries */

    /* Finished moves. */
    pthread_mutex_t done_lock;
    pthread_cond_t done_cond;
    inf_moves done;
    _Atomic uint32_t moves; /* posted and not waited for */

    _Atomic uint64_t query_messages, query_rows, query_sent_bytes;
    _Atomic uint64_t served_messages, served_rows, served_bytes;
    _Atomic uint64_t moved_blocks, moved_bytes, refused, wait_ns;
};

int inf_dist_error(inf_err *err, int code, int32_t peer, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static inline uint64_t inf_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void inf_dist_wake(int fd);
void inf_dist_unwake(int fd);

/* Declares a peer dead, unless it is, and tells every thread. A broken protocol is a refused
 * message. */
void inf_peer_fail(inf_dist *d, uint32_t peer, int32_t status);

/* Closes the worker's links of dead peers, lists those of the living and begins a new round; ids[i]
 * is links[i]'s peer. */
typedef inf_link **(*inf_link_of)(inf_peer *p);
uint32_t inf_worker_round(inf_dist *d, inf_worker *w, inf_link_of lane, inf_link **links,
                          uint32_t *ids);

/* Takes a span for reading or writing; the block list stays valid until inf_span_put. */
int inf_span_get(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                 const int32_t **blocks, int32_t *n_blocks, uint32_t *landed);
void inf_span_put(inf_dist *d, uint32_t handle);
void inf_span_land(inf_dist *d, uint32_t handle, uint32_t landed);

/* Opens one of dist's lanes. */
int inf_dist_lane(inf_dist *d, int32_t kind, inf_lane **out);

void *inf_serve_main(void *dist);
void *inf_land_main(void *dist);
void *inf_mover_main(void *dist);
void inf_moves_fail(inf_dist *d, inf_peer *p, int32_t status); /* under dist.lock */

#endif
