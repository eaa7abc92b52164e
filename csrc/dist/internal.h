/* What the files of dist share.
 *
 *   dist.c    opening and closing
 *   peers.c   peers that come, go and die
 *   home.c    the step: queries out, partials in
 *   serve.c   answers to others' queries
 *   query.c   what a query says, and what is said to it
 *   slots.c   slots of query links as memory of the device
 *   spans.c   what is hosted, and how much of it is there
 *   rails.c   move lanes: their coming and going, registered memory
 *   moves.c   moves as their callers know them; the thread that sends them
 *   send.c    pieces of moves over one rail
 *   land.c    pieces that arrive
 *   direct.c  pools of one host's GPUs, copied into by their peers
 *   device_memory.c  a GPU's pool as memory that NICs write to
 *
 * Threads: the step thread (home.c), one thread that answers queries (serve.c), one that lands
 * moved blocks (land.c), one that sends them (moves.c), and any number of callers of the door's
 * functions.
 *
 * Who may touch a link: the step thread a peer's query client while peer.in_step is set, the mover
 * thread otherwise, under dist.lock; each of the three other threads its own lane's links, which it
 * lists anew in every round. A link leaves a peer under dist.lock, and is closed by its thread, or
 * when that thread has begun another round (inf_worker.round) or cleared in_step: so no link is
 * closed while it is used. The close itself, and whatever else may wait for the device, is done
 * without the lock: steps take it.
 *
 * A peer dies as a whole: the first link that fails sets peer.dead, and every thread then closes
 * its link, so that the other end sees it at once. What is left is taken away by detach. Only the
 * rails beyond the first die alone: what was under way there goes over the others. */
#ifndef INF_DIST_INTERNAL_H
#define INF_DIST_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <time.h>

#include "dist/dist.h"
#include "dist/wire.h"
#include "infinite/verbs.h"

enum { INF_MAX_REGIONS = 16, INF_SERVE_MESSAGES = 64 };

typedef struct inf_move inf_move;
typedef struct inf_query inf_query;

/* Blocks [first, first + n) of a move. */
typedef struct inf_stretch {
    int32_t first, n;
} inf_stretch;

/* Blocks of a move. AGAIN: of a piece that was begun and whose end is not known; its first block is
 * AGAIN_FIRST. The receiver has all of such a piece or nothing of it, so it is never joined with
 * others. */
enum { INF_MOVE_WAITS, INF_MOVE_AGAIN, INF_MOVE_AGAIN_FIRST, INF_MOVE_BEGUN, INF_MOVE_ACKED };

/* One block move. */
struct inf_move {
    inf_move *next;
    uint32_t handle, generation, first;
    int32_t n;
    int32_t begun;  /* no block before this one waits */
    int32_t acked;  /* blocks that have landed, in any order */
    int32_t pieces; /* under way */
    uint64_t ticket;
    int32_t status;   /* the first refusal: nothing more is begun */
    uint8_t *state;   /* [n] INF_MOVE_*, behind blocks */
    int32_t blocks[]; /* [n], a copy of the caller's list */
};

typedef struct inf_moves {
    inf_move *head, *tail;
} inf_moves;

/* A piece of a move, at the sender. */
enum { INF_PIECE_FREE, INF_PIECE_ASKED, INF_PIECE_PUTTING, INF_PIECE_SENT };

typedef struct inf_piece {
    int32_t state;
    inf_move *move;
    inf_stretch part;
    uint64_t order; /* of its message that is not answered (ASKED, SENT) */
    uint64_t put;   /* bytes of it that were put */
    uint64_t asked_ns;
    uint32_t n_grants;
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
} inf_piece;

/* A piece at the receiver: its blocks are claimed in the span from the ask to the acknowledgement.
 */
enum {
    INF_LANDING_FREE,
    INF_LANDING_CLAIMING, /* a dead rail has the blocks still */
    INF_LANDING_GRANTING,
    INF_LANDING_GRANTED,
    INF_LANDING_REVOKING, /* the sender has said that it is done */
    INF_LANDING_UNDOING,  /* not every grant could be had */
};

typedef struct inf_landing {
    int32_t state;
    inf_wire_move ask;
    int32_t outcome;       /* of a piece that the sender says has landed */
    const int32_t *blocks; /* the span's list */
    uint32_t done;         /* blocks granted */
    uint64_t revoked;      /* grants, a bit each */
    uint32_t n_grants;
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
    uint64_t granted_ns;
} inf_landing;

/* Blocks of a lane that is over, which its sender may write for some more time. */
typedef struct inf_late inf_late;
struct inf_late {
    inf_late *next;
    inf_wire_move ask;
    uint64_t until_ns;
};

/* A move lane. Its thread's, the mover's or the lander's, but for dead. */
typedef struct inf_rail {
    inf_link *link;
    uint32_t peer, number;
    uint64_t lane;      /* in every message; at the receiver as the last one had it */
    bool out;           /* this end sends */
    inf_region *region; /* of the pool, that puts use; NULL: there are none */
    _Atomic bool puts;  /* there is one, and as far as is known the peer has one too */
    /* Of lanes whose puts are copies: direct.c. in: the pool is offered. out: the peer's pool. */
    bool offered, wants; /* wants: it is not opened so far, and may be */
    uint8_t *far;        /* NULL: it is not opened */
    uint64_t far_bytes;
    inf_pool_key far_key;
    _Atomic int32_t dead; /* of rails beyond the first; the first one's death is the peer's */

    inf_piece pieces[INF_WIRE_PIECES]; /* out */
    uint64_t order;                    /* messages sent */
    uint64_t heard_ns;                 /* when one began to be waited for, or an answer came */
    uint64_t limit;                    /* of bytes put in flight, as the link was told */

    inf_landing landings[INF_WIRE_PIECES]; /* in */
    inf_landing *busy; /* is being granted, revoked or undone: nothing is polled before it is */
    const void *msg;   /* polled, and not dealt with: a dead rail has its blocks still */
    uint64_t len;
} inf_rail;

typedef struct inf_peer {
    /* Guarded by dist.lock; the pointers' targets as said above. */
    inf_link *query;              /* client end */
    inf_link *squery;             /* server end */
    inf_rail *out[INF_MAX_RAILS]; /* client ends of move lanes; without [0] there are no others */
    inf_rail *in[INF_MAX_RAILS];  /* server ends, likewise */
    inf_moves posted;             /* not begun yet, in order */
    uint64_t lane;                /* in all messages of our lanes; drawn when they come */
    bool in_step;                 /* the step thread may use query */

    /* The mover thread's while it has rails of the peer on its list, else guarded by dist.lock. */
    inf_moves active; /* begun, in order */

    _Atomic bool dying;   /* somebody is about to set dead */
    _Atomic int32_t dead; /* first reason for which a link of this peer failed */
    char why[240];        /* in words: written before dead is, and not after */
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
    bool held;            /* a partial's slot is read by the lane: slots.c, 4 */
    inf_wire_head answer; /* the head that it must have */
} inf_target;

typedef struct inf_worker {
    pthread_t thread;
    bool running;
    int wake;       /* eventfd */
    uint64_t round; /* guarded by dist.lock */
    uint32_t nears; /* as of dist.nears when the thread was pinned last; its own */
} inf_worker;

enum { INF_BLOCK_EMPTY, INF_BLOCK_CLAIMED, INF_BLOCK_LANDED };

typedef struct inf_span {
    bool open;
    uint32_t owner, generation;
    int32_t n_blocks;
    uint32_t landed; /* from the beginning, without a gap */
    uint32_t users;  /* threads reading the blocks, and pieces of moves that claim some */
    int32_t *blocks; /* replaced when the span grows; the old list is retired, not freed */
    uint8_t *state;  /* [n_blocks] INF_BLOCK_* */
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
    uint32_t extra_rails[2]; /* beyond the first ones, in and out; guarded by lock */
    _Atomic bool stopping;
    int step_wake; /* eventfd: a detach wants the step thread */

    /* The pool, registered with each device that a move lane is on. The lock is held while memory
     * is registered, so no worker and no step takes it. */
    pthread_mutex_t region_lock;
    struct {
        inf_verbs_device *device;
        inf_region *region;
    } regions[INF_MAX_REGIONS];
    inf_memory_ops memory;       /* of a device's pool; arg NULL: not made */
    pthread_mutex_t memory_lock; /* of its lane */
    inf_lane *memory_lane;
    pthread_mutex_t note_lock;    /* guards what follows */
    char no_puts[240];            /* why the last region could not be had */
    uint64_t near[INF_CPU_WORDS]; /* CPUs beside the devices in use */
    _Atomic uint32_t nears;       /* how often it has changed */

    /* Others wait for queries or partials that share the wire with puts. */
    _Atomic bool stepping;
    _Atomic uint64_t answered_ns; /* when a query was answered last */

    /* The step under way; the step thread's alone. */
    uint64_t step_id;
    inf_lane *step_lane; /* of the layer under way */
    inf_target *targets; /* [INF_MAX_PEERS] */
    uint32_t n_targets;
    inf_group *groups;    /* [max_groups] */
    uint64_t *lengths;    /* [INF_MAX_PEERS] of the messages that wait for their queries, 0: none */
    inf_step_span *spans; /* [max_entries], by group */

    /* Hosted spans. */
    pthread_mutex_t span_lock;
    inf_late *late; /* guarded by span_lock: land.c */
    pthread_cond_t span_free;
    inf_span *span; /* [max_spans] */
    inf_retired *retired;

    /* The query server's scratch. */
    inf_pool *workers;
    bool answering_tried;
    inf_lane *answering; /* opened by the first query; NULL: it could not be */
    /* The threads' that copy blocks. */
    inf_lane *landing, *moving;
    inf_query *queries; /* [INF_SERVE_MESSAGES]: the batch that is gathered; query.h */
    uint32_t n_queries, batch_groups, batch_entries, batch_rows;
    inf_wire_group *wire_groups;  /* [max_groups]: copies, checked where nobody can change them */
    inf_wire_entry *wire_entries; /* [max_entries] */
    inf_attn *attn;               /* [max_entries] */
    int32_t *statuses;            /* [max_groups] */
    const int32_t **lists;        /* [max_entries]: block lists of the entries */

    /* Finished moves. */
    pthread_mutex_t done_lock;
    pthread_cond_t done_cond;
    inf_moves done;
    _Atomic uint32_t moves; /* posted and not waited for */

    _Atomic uint64_t query_messages, query_rows, query_sent_bytes;
    _Atomic uint64_t served_messages, served_rows, served_bytes, served_batches;
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
 * message. If the link (NULL: none) is dead, its reason is the peer's. */
void inf_peer_fail(inf_dist *d, uint32_t peer, int32_t status, const inf_link *link);

/* Closes the query server's links of dead peers, lists those of the living and begins a new round;
 * ids[i] is links[i]'s peer. */
uint32_t inf_server_round(inf_dist *d, inf_link **links, uint32_t *ids);

/* --- rails.c --- */

/* A link of a move lane that no peer has so far, able to put where that can be. */
typedef struct inf_move_link {
    inf_link *link;
    inf_region *region;
    bool offered;
} inf_move_link;

/* Asks NICs and the device, and may take long: dist.lock is not held. The link is still the
 * caller's, and nothing is to be undone but its close. */
inf_move_link inf_rail_prepare(inf_dist *d, bool out, inf_link *link);
/* Takes the link, unless it fails. The caller holds dist.lock. */
int inf_rail_add(inf_dist *d, uint32_t peer, uint32_t number, bool out, const inf_move_link *m);
/* What inf_server_round does, for the lander's and the mover's rails. */
uint32_t inf_rails_round(inf_dist *d, inf_worker *w, bool out, inf_rail **rails, inf_link **links);
/* The rail is over: at once, with the peer, if it is the first or the peer broke the protocol. */
void inf_rail_fail(inf_dist *d, inf_rail *r, int32_t status);
/* Takes a peer's rails from it, [2 * INF_MAX_RAILS] with NULLs. The caller holds dist.lock. */
void inf_rails_take(inf_dist *d, inf_peer *p, inf_rail **rails);
/* Closes a rail that nobody uses, and gives up what was under way on it. */
void inf_rail_close(inf_dist *d, inf_rail *r);
void inf_regions_close(inf_dist *d);
/* Notes that links are on this one's device. */
void inf_near_add(inf_dist *d, const inf_link *link);
/* Keeps a worker's thread beside the devices that it talks to. */
void inf_near_follow(inf_dist *d, inf_worker *w);

/* Notes why blocks travel in messages. */
#define INF_POOL_IS_CUT "the pool is cut over the ranks of a tensor-parallel instance"
void inf_rails_note(inf_dist *d, const char *why);

/* --- device_memory.c --- */

/* What registering the pool asks for; NULL: no NIC can reach it. region_lock is held. */
const inf_memory_ops *inf_device_memory(inf_dist *d);

/* --- direct.c --- */

/* in: offers the pool to the peer; false where that cannot be. */
bool inf_direct_offer(inf_dist *d, inf_link *link);
/* out: may the peer's pool come to be opened? */
bool inf_direct_wants(inf_dist *d, const inf_link *link);
/* Opens it, if the peer has offered it by now; the rail can put then. */
void inf_direct_open(inf_dist *d, inf_rail *r);
void inf_direct_close(inf_dist *d, inf_rail *r);
/* Puts by copies; they are complete on return. */
int inf_direct_copy(inf_dist *d, const inf_rail *r, const inf_put *puts, uint32_t n,
                    uint64_t asked_ns);

/* --- slots.c --- */

/* May take a while; never fails, but then does nothing. */
void inf_slots_pin(inf_dist *d, inf_link *link);
/* Unpins and closes a query link: nobody has it any more, and dist.lock is not held, since the
 * device is waited for. Safe on NULL. */
void inf_query_link_close(inf_dist *d, inf_link *link);

/* --- send.c, land.c: one look at a rail; a status < 0 ends it --- */
int inf_send_run(inf_dist *d, inf_rail *r);
void inf_send_give_up(inf_rail *r); /* its pieces wait for another rail */
int inf_land_run(inf_dist *d, inf_rail *r);
/* Frees what is claimed for senders that were late, and cannot be any more; all: what is claimed at
 * all. */
void inf_land_settle_late(inf_dist *d, bool all);
void inf_land_give_up(inf_dist *d, inf_rail *r); /* its claims end */

/* --- spans.c --- */

/* Takes a span for reading; the block list stays valid until inf_span_put. */
int inf_span_get(inf_dist *d, uint32_t owner, uint32_t handle, uint32_t generation,
                 const int32_t **blocks, int32_t *n_blocks, uint32_t *landed);
void inf_span_put(inf_dist *d, uint32_t handle);

/* Takes m's blocks of a span for writing; the list stays valid until inf_span_settle. INF_AGAIN:
 * another piece has some. INF_EFULL: all of them have landed, by a rail that died before it could
 * say so; nothing is claimed. INF_ESTALE: the span is over, or the blocks are not its, or some have
 * landed. */
int inf_span_claim(inf_dist *d, uint32_t owner, const inf_wire_move *m, const int32_t **blocks,
                   uint32_t *landed);
/* Ends the claim: the blocks are there, or (status < 0) empty again. INF_ESTALE if the span is over
 * meanwhile. */
int inf_span_settle(inf_dist *d, const inf_wire_move *m, int status, uint32_t *landed);

/* Opens one of dist's lanes. */
int inf_dist_lane(inf_dist *d, int32_t kind, inf_lane **out);

void *inf_serve_main(void *dist);
void *inf_land_main(void *dist);
void *inf_mover_main(void *dist);
void inf_moves_fail(inf_dist *d, inf_peer *p, int32_t status); /* under dist.lock */

#endif
