/* What the files of dist share.
 *
 *   dist.c    opening and closing
 *   peers.c   peers that come, go and die
 *   home.c    the step: its creditors, from its begin to its end
 *   ask.c     a layer of it: queries out
 *   collect.c a layer of it: partials in
 *   serve.c   answers to others' queries
 *   query.c   what a query says, and what is said to it
 *   slots.c   slots of query links as memory of the device
 *   lanes.c   the threads' lanes of the device, and what is to be done when one fails
 *   spans.c   what is hosted, and how much of it is there
 *   waves.c   what of it the steps here fill meanwhile
 *   rails.c   move lanes: their coming and going, registered memory
 *   moves.c   moves as their callers know them; the thread that sends them
 *   send.c    pieces of moves over one rail
 *   puts.c    puts of them, where the peer has granted its blocks
 *   land.c    pieces that arrive
 *   grants.c  what may be put here, and for how long
 *   late.c    blocks that a sender which is gone may still write
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

#include "dist/dist.h"
#include "dist/rail.h"
#include "dist/waves.h"
#include "infinite/verbs.h"
#include "runtime/clock.h"

enum { INF_MAX_REGIONS = 16, INF_SERVE_MESSAGES = 64 };

typedef struct inf_query inf_query;

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

/* What a step, or one of its halves, asks of a creditor. */
typedef struct inf_asked {
    uint32_t group_off, n_groups;
    bool pending;         /* a partial is expected */
    uint64_t posted_ns;   /* since then */
    inf_wire_head answer; /* the head that it must have */
} inf_asked;

/* One creditor of the step under way. Messages of the halves and their answers come in the order in
 * which they were asked. */
typedef struct inf_target {
    uint32_t peer;
    uint64_t lane;
    inf_link *link; /* NULL once the step let go of it */
    bool held;      /* a partial's slot is read by the lane: slots.c, 4 */
    inf_asked asked[INF_HALVES];
} inf_target;

/* Messages of a debtor that were polled and are not in a batch; the server's alone. */
typedef struct inf_inbox {
    inf_link *link; /* NULL: there are none */
    struct {
        const void *msg;
        uint64_t bytes, kept_ns;
    } at[INF_HALVES]; /* the oldest first: a debtor has one of each half on its way */
    uint32_t n;
    /* Of the oldest: since when it is kept, and when it is looked at again at the latest; both 0:
     * it was not looked at. */
    inf_wait wait;
} inf_inbox;

typedef struct inf_worker {
    pthread_t thread;
    bool running;
    int wake;       /* eventfd */
    uint64_t round; /* guarded by dist.lock */
    uint32_t nears; /* as of dist.nears when the thread was pinned last; its own */
} inf_worker;

/* A lane of one thread, which alone looks at it. */
typedef struct inf_own_lane {
    inf_lane *lane; /* NULL: it is not open */
    int32_t kind;
    uint32_t faults;   /* without anything done between them */
    uint64_t since_ns; /* when the first of these was */
    uint64_t again_ns; /* nothing is asked of it before; 0: there was no fault */
} inf_own_lane;

/* OURS: steps here fill it, and no move may. */
enum { INF_BLOCK_EMPTY, INF_BLOCK_CLAIMED, INF_BLOCK_LANDED, INF_BLOCK_OURS };

struct inf_span {
    bool open;
    uint32_t wave; /* 0: none, or none any more; else that says what of it is there */
    uint32_t owner, generation;
    int32_t n_blocks;
    uint32_t landed; /* from the beginning, without a gap */
    uint32_t users;  /* threads reading the blocks, and pieces of moves that claim some */
    int32_t *blocks; /* replaced when the span grows; the old list is retired, not freed */
    uint8_t *state;  /* [n_blocks] INF_BLOCK_* */
    int32_t capacity;
};

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
    int64_t awake_ns; /* as in inf_backend */
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
    inf_own_lane memory_lane;
    _Atomic bool over;            /* the device has failed for good */
    pthread_mutex_t note_lock;    /* guards what follows */
    inf_err fault;                /* what a lane said last; its code is set with over */
    char no_puts[240];            /* why the last region could not be had */
    uint64_t near[INF_CPU_WORDS]; /* CPUs beside the devices in use */
    _Atomic uint32_t nears;       /* how often it has changed */

    /* Others wait for queries or partials that share the wire with puts. */
    _Atomic bool stepping;
    _Atomic uint64_t answered_ns; /* when a query was answered last */

    /* The step under way; the step thread's alone. */
    uint64_t step_id;
    const inf_step_buffers *steps; /* [n_steps]: it, or its halves */
    uint32_t n_steps;
    inf_lane *step_lane; /* of the layer under way */
    inf_target *targets; /* [INF_MAX_PEERS] */
    uint32_t n_targets;
    inf_group *groups;    /* [INF_HALVES * max_groups] */
    bool asking;          /* some message waits for its queries */
    uint64_t *lengths;    /* [INF_MAX_PEERS] of the messages that wait for their queries, 0: none */
    inf_step_span *spans; /* [INF_HALVES * max_entries], by group */

    /* Hosted spans. */
    pthread_mutex_t span_lock;
    inf_late *late; /* guarded by span_lock: late.c */
    pthread_cond_t span_free;
    inf_span *span; /* [max_spans] */
    inf_retired *retired;
    inf_wave waves[INF_MAX_WAVES]; /* of the numbers from 1 on */

    /* The query server's scratch. */
    inf_pool *workers;
    bool answering_tried;
    inf_own_lane answering; /* opened by the first query */
    /* The threads' that copy blocks. */
    inf_own_lane landing, moving;
    inf_query *queries; /* [INF_SERVE_MESSAGES]: the batch that is gathered; query.h */
    uint32_t n_queries, batch_groups, batch_entries, batch_rows;
    inf_inbox *inboxes;           /* [INF_MAX_PEERS] */
    uint32_t n_inboxes;           /* that are not empty */
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
    _Atomic uint64_t moved_blocks, moved_bytes, refused, wait_ns, halved_steps, kept;
};

int inf_dist_error(inf_err *err, int code, int32_t peer, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

void inf_dist_wake(int fd);
/* The next message of a peer that asks, and a slot for its answer. INF_AGAIN: there is none, or, if
 * msg is set, it is kept by the link until there is room. */
int inf_dist_take(inf_link *link, const void **msg, uint64_t *len, void **answer);
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
/* Puts by copies; they are complete on return. INF_ETIMEOUT: too late, and nothing was copied.
 * INF_EIO: they failed, and the peer's pool is closed. Either way nothing is copied any more, and
 * the link is none the worse. INF_AGAIN: the lane rests. */
int inf_direct_copy(inf_dist *d, inf_rail *r, const inf_put *puts, uint32_t n, uint64_t asked_ns);

/* --- slots.c --- */

/* May take a while; never fails, but then does nothing. */
void inf_slots_pin(inf_dist *d, inf_link *link);
/* Unpins and closes a query link: nobody has it any more, and dist.lock is not held, since the
 * device is waited for. Safe on NULL. */
void inf_query_link_close(inf_dist *d, inf_link *link);

/* --- send.c, land.c, grants.c: one look at a rail; a status < 0 ends it --- */
int inf_send_run(inf_dist *d, inf_rail *r);
void inf_send_give_up(inf_rail *r); /* its pieces wait for another rail */
int inf_land_run(inf_dist *d, inf_rail *r);

/* A sender that was granted blocks and says nothing more for so long has failed. */
#define INF_GRANTED_NS UINT64_C(5000000000)

/* Keeps the claim of a piece for that long, and then ends it. */
void inf_land_settle_later(inf_dist *d, const inf_wire_move *ask);
/* Frees what is claimed for senders that were late, and cannot be any more; all: what is claimed at
 * all. */
void inf_land_settle_late(inf_dist *d, bool all);
void inf_land_give_up(inf_dist *d, inf_rail *r); /* its claims end */

/* --- spans.c --- */

/* Takes a span for reading what the entry names in the layer; the block list stays valid until
 * inf_span_put. INF_ESTALE: it is over, or has less. INF_AGAIN: it is of a wave that may get there,
 * and the wait says until when. */
int inf_span_get(inf_dist *d, uint32_t owner, const inf_wire_entry *e, uint32_t layer,
                 const int32_t **blocks, inf_wait *wait);
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

/* --- lanes.c --- */

/* Opens the lane, if it is not and its time has come. INF_ENOMEM: there may be one later. INF_EIO:
 * the device is over (inf_dist_fault), or there was none for so long that it is as good as that. */
int inf_lane_take(inf_dist *d, inf_own_lane *l);
/* What the lane was asked failed, for a reason of its own: closes it and opens another, which may
 * not succeed. */
void inf_lane_failed(inf_dist *d, inf_own_lane *l, const inf_err *err);
static inline void inf_lane_worked(inf_own_lane *l) {
    if (l->faults > 0) {
        l->faults = 0;
        l->again_ns = 0;
    }
}
/* What a lane that is not there is to those who wait for it: INF_ENOMEM, it may be later; INF_EIO,
 * it has been so for so long that nobody is to wait. */
int inf_lane_none(const inf_own_lane *l);
/* Syncs, and says what is to be said of the lane. INF_OK or INF_EIO. */
int inf_lane_sync(inf_dist *d, inf_own_lane *l);
/* For how long nothing is to be asked of the lane. */
uint64_t inf_lane_rests(const inf_own_lane *l);
/* Waits for links, awake for spin_ns (link.h); while the lane rests, for the time to pass. */
void inf_lane_wait(const inf_own_lane *l, inf_link *const *links, uint32_t n, int wake,
                   int64_t timeout_ns, int64_t spin_ns);
/* What a lane said last of a fault, "" if none did. */
void inf_lane_said(inf_dist *d, char *out, uint64_t bytes);

void *inf_serve_main(void *dist);
void *inf_land_main(void *dist);
void *inf_mover_main(void *dist);
void inf_moves_fail(inf_dist *d, inf_peer *p, int32_t status); /* under dist.lock */

#endif
