/* What the files of the verbs provider share.
 *
 *   lib.c       libibverbs, loaded at run time
 *   discover.c  ports, GIDs, limits
 *   device.c    contexts and protection domains, counted; the thread that takes async events
 *   endpoint.c  queue pair, ring memory, window: made and freed
 *   connect.c   what the peer told; RTR, RTS
 *   queue.c     posting and completing work requests; no queue can overrun
 *   arrive.c    checks of what arrives
 *   ring.c      the link: messages, credits, sleep, death
 *   watch.c     signs of life from a link on which nothing moves
 *   put.c       writes past the ring, into memory that the peer granted
 *   region.c    registering memory, host's or GPU's
 *   near.c      the CPUs beside a device
 *
 * Who polls: the thread that waits for a message polls its own links' completion queues, near the
 * device (near.c), and sleeps on their events when nothing comes. An instance has a few such
 * threads, however many peers: the step's, one for all debtors' queries, one that sends blocks and
 * one that lands them. A poller thread per device, which hands messages on, costs a wake-up in
 * every message, on both sides: between Soft-RoCE devices a round trip of 64 bytes took 1.06 to
 * 1.49 times as long through one (median of ten runs 1.32), of 16 KiB 0.97 to 1.28 (1.14).
 *
 * An endpoint is one thread's; only `event` is written by another, the device's async thread, which
 * also sets the queue pair to ERR. It finds endpoints in the context's list, under the context's
 * lock.
 */
#ifndef INF_VERBS_IMPL_H
#define INF_VERBS_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "infinite/verbs.h"
#include "transport/link_impl.h"
#include "transport/verbs/lib.h"
#include "transport/verbs/wire.h"

enum {
    INF_VERBS_INLINE = 256, /* bytes that travel in the work request, if the device can */
    INF_VERBS_SGES = 16,    /* pieces that one put gathers */
    INF_VERBS_PUTS = 64,    /* work requests for puts in flight */
    INF_VERBS_BINDS = 64,   /* likewise for binding and invalidating windows */
    INF_VERBS_GRANTS = 1024,
};

/* A device of this process. */
typedef struct inf_verbs_context inf_verbs_context;

struct inf_verbs_context {
    inf_verbs_context *next;
    char name[INF_VERBS_NAME];
    const inf_verbs_lib *lib;
    struct ibv_context *ibv;
    struct ibv_device_attr attr;
    uint32_t devices; /* that use it */
    pthread_t thread;
    int stop_fd;
    pthread_mutex_t lock; /* guards what follows */
    inf_verbs_endpoint *endpoints;
    bool fatal; /* the device is gone; who opens it again gets a new context */
};

struct inf_verbs_device {
    inf_verbs_device *next;
    inf_verbs_context *context;
    char domain[INF_VERBS_NAME];
    struct ibv_pd *pd;
    uint32_t users;
};

struct inf_region {
    inf_verbs_device *device;
    inf_memory memory;
    uint32_t way; /* INF_WAY_* */
    char why[200];
    struct ibv_mr *mr; /* NULL: bounce */
    uint64_t iova;     /* where the device finds the region's first byte */
    _Atomic uint32_t links;
};

/* A memory window for grants. An id is its index and, in the upper half, its generation. */
typedef struct inf_verbs_window {
    struct ibv_mw *mw;
    uint32_t key;
    uint16_t generation;
    uint8_t state;     /* WINDOW_* in put.c */
    uint64_t ended_at; /* the send queue's count once its invalidation is complete */
} inf_verbs_window;

/* Puts and grants of an endpoint. */
typedef struct inf_verbs_puts {
    inf_region *region;
    bool pinned; /* the rings, for a region of way bounce */
    uint64_t limit;
    inf_verbs_window *windows; /* [INF_VERBS_GRANTS], once there is a region */
    uint32_t n_windows;        /* made so far */
    bool wants;                /* a grant, a revocation or a put has to wait */
    uint64_t wanted_at;        /* the send queue's count then: any progress is worth a try */
} inf_verbs_puts;

/* Work requests by what they are for: each kind has its share of the send queue. */
enum {
    INF_WR_MESSAGE,
    INF_WR_CREDIT,
    INF_WR_PUT,
    INF_WR_BIND,
    INF_WR_OTHER, /* a sign of life, the last word */
    INF_WR_KINDS,
};

/* How much was posted, or is complete, since the beginning. */
typedef struct inf_verbs_tally {
    uint64_t wrs[INF_WR_KINDS];
    uint64_t messages;
    uint64_t put_bytes;
} inf_verbs_tally;

/* The two queues of a queue pair, counted in work requests since the beginning. */
typedef struct inf_verbs_queues {
    uint32_t send_depth, recv_depth;
    uint64_t send_posted, send_done; /* done: known to be, by a later completion */
    uint64_t recv_posted, recv_done;
    uint32_t signal_every, unsignaled; /* work requests since the last signaled one */
    uint32_t signaled;                 /* in flight */
    uint64_t since_ms;                 /* when the first of these, after none, was posted */
    uint32_t budget[INF_WR_KINDS];
    inf_verbs_tally posted, done;
    inf_verbs_tally *notes; /* [send_depth]: posted, as of that work request */
} inf_verbs_queues;

typedef enum {
    INF_ENDPOINT_INIT,
    INF_ENDPOINT_RTR,
    INF_ENDPOINT_RTS,
    INF_ENDPOINT_ERR
} inf_endpoint_state;

struct inf_verbs_endpoint {
    inf_verbs_endpoint *prev, *next; /* in the context's list */
    uint64_t cookie;                 /* no two endpoints of a process have the same */
    inf_verbs_device *device;
    const inf_verbs_lib *lib;
    inf_verbs_config config;
    inf_endpoint_state state;
    inf_err err;       /* code 0 while it lives */
    _Atomic int event; /* 0, else 1 + the async event that killed it */

    struct ibv_pd *pd;
    bool own_pd; /* without windows: the ring's key is good for this queue pair alone */
    struct ibv_comp_channel *channel;
    struct ibv_cq *send_cq, *recv_cq;
    struct ibv_qp *qp;
    uint32_t max_inline, max_sge;
    inf_verbs_queues q;

    uint32_t gid_index, link_layer, subnet_grh;
    inf_verbs_info local, remote;

    uint32_t tx_slots; /* staging slots, more than the peer's ring has: see ring.c */
    uint64_t stride;   /* from slot to slot, in both */
    uint8_t *tx, *rx;
    uint64_t tx_bytes, rx_bytes;
    struct ibv_mr *tx_mr, *rx_mr;
    struct ibv_mw *window; /* over rx; NULL: its memory region itself is writable */
    uint32_t long_wrs;     /* work requests of the largest message */
    struct ibv_send_wr *wrs;
    struct ibv_sge *sges; /* [long_wrs] */
    inf_verbs_puts puts;
};

/* --- device.c --- */
void inf_verbs_device_hold(inf_verbs_device *device);
void inf_verbs_list_endpoint(inf_verbs_endpoint *ep);
void inf_verbs_unlist_endpoint(inf_verbs_endpoint *ep);

/* --- discover.c --- */
int inf_verbs_query_port(const inf_verbs_lib *lib, struct ibv_context *ibv, uint32_t port,
                         struct ibv_port_attr *out);
/* All GIDs of a port, in a list for the caller to free; n is their number, NULL if there are none.
 */
inf_verbs_gid *inf_verbs_list_gids(const inf_verbs_lib *lib, struct ibv_context *ibv, uint32_t port,
                                   uint32_t *n);
uint32_t inf_verbs_mtu_bytes(enum ibv_mtu mtu);
/* A registration failed: why, with the remedy if it was the limit on locked memory. */
int inf_verbs_registration_error(inf_err *err, int32_t peer, uint64_t bytes, int reason);

/* --- near.c --- */
/* The CPUs of the NUMA node that <device_path>/device/numa_node names, by
 * <nodes_path>/node<N>/cpulist; INF_EUNSUPPORTED if there is no such file, no node, or a list that
 * cannot be read. */
int inf_verbs_near(const char *device_path, const char *nodes_path, uint64_t cpus[INF_CPU_WORDS]);

/* --- connect.c --- */
/* How long the device tries before it gives a peer up. */
uint64_t inf_verbs_retry_ms(const inf_verbs_endpoint *ep);

/* --- put.c --- */
extern const inf_put_ops INF_VERBS_PUT_OPS;
/* Can what found no room go on? */
bool inf_verbs_puts_ready(inf_verbs_endpoint *ep);
/* Before the queue pair is destroyed. */
void inf_verbs_puts_free(inf_verbs_endpoint *ep);

/* --- queue.c --- */
/* Kills the endpoint: records the reason, unless one is recorded already, sets the queue pair to
 * ERR and returns the recorded code. */
int inf_verbs_fail(inf_verbs_endpoint *ep, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Looks for an async event. */
int inf_verbs_check_event(inf_verbs_endpoint *ep);
/* Can n more work requests of that kind be posted? */
bool inf_verbs_has_budget(const inf_verbs_endpoint *ep, int kind, uint32_t n);
/* Posts the list of n work requests, of one kind; the last is signaled if signal is set or it is
 * time. They complete a message if `messages` is 1. */
int inf_verbs_post(inf_verbs_endpoint *ep, struct ibv_send_wr *first, uint32_t n, int kind,
                   uint64_t messages, uint64_t put_bytes, bool signal);
/* Fills the receive queue. Comes before whatever lets the peer send more. */
int inf_verbs_fill_recv(inf_verbs_endpoint *ep);
/* Takes all completions of the send queue. */
int inf_verbs_poll_send(inf_verbs_endpoint *ep);
/* Takes up to max completions of the receive queue; their number, or a status < 0. */
int inf_verbs_poll_recv(inf_verbs_endpoint *ep, struct ibv_wc *wc, int max);
/* Waits until all that was posted is complete. */
int inf_verbs_flush(inf_verbs_endpoint *ep, int64_t limit_ns);
/* Sets the queue pair to ERR and takes completions until none is outstanding. */
void inf_verbs_drain(inf_verbs_endpoint *ep);

#endif
