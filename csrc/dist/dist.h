/* DistAttention: the only place that sees both kernels and transport.
 *
 * Home side, called by the step thread: begin, then per layer ask and post (queries leave, one
 * message per creditor), local partials meanwhile, collect (remote partials arrive and are merged),
 * then end. Of a step in halves each half has messages of its own, and those of one may be under
 * way while the other asks, or collects. Creditor side: progress threads answer queries over hosted
 * spans and land moved blocks. Nothing is allocated between open and close except where peers and
 * spans come and go. */
#ifndef INF_DIST_H
#define INF_DIST_H

#include <stdbool.h>

#include "infinite/device.h"
#include "kernels/backend.h"

typedef struct inf_dist inf_dist;

typedef struct inf_dist_config {
    inf_backend *backend;
    const inf_device_config *device; /* read during open only */
    inf_kv_shape kv;
    uint8_t *pool;          /* [num_blocks] blocks, the backend's memory */
    const int32_t *windows; /* [layers], copied */
    float scale;            /* of q.k */
} inf_dist_config;

int inf_dist_open(const inf_dist_config *config, inf_dist **out, inf_err *err);
void inf_dist_close(inf_dist *dist);

/* Plans the remote part of a step: which rows of which requests go to which peer. seq_out[i].status
 * is set where a request names a peer that is not attached or is dead; such a request is skipped
 * from then on. Input was validated by the caller against the device's limits. halves: NULL, or
 * [INF_HALVES] as inf_backend_ops.begin has it; then step is one of those in what follows. All stay
 * as they are until end. */
void inf_dist_begin(inf_dist *dist, const inf_step_buffers *step, const inf_step_buffers *halves);

/* Writes the messages that ask for layer's partials, but for the queries: q [tokens, heads,
 * head_dim] in the step's lane, from which they are on their way. Its post comes before another
 * ask. */
void inf_dist_ask(inf_dist *dist, const inf_step_buffers *step, int32_t layer, inf_lane *lane,
                  const void *q);

/* Sends these messages once the queries are in them. Returns the number of creditors asked.
 * Failures go to seq_out. */
int32_t inf_dist_post(inf_dist *dist, const inf_step_buffers *step, inf_lane *lane);

/* Waits for the partials asked for last, at most peer_timeout_ns, and merges them into the lane's
 * open partials. A peer that fails or is late is dead from then on; its requests' seq_out say so.
 */
void inf_dist_collect(inf_dist *dist, const inf_step_buffers *step, inf_lane *lane);

/* Lets go of the peers' links, which the lane's work may read until it was synced: called after a
 * sync it does not wait. A detach waits for it, or for the next post or collect, so whoever
 * has begun a step comes to its end without waiting for a detach. */
void inf_dist_end(inf_dist *dist);

/* Waves (waves.c). begin checks that a step's waves are open and that it goes on where they end,
 * and holds them until end; INF_EINVAL, and it holds none. there: K and V of the layer are appended
 * for the rows of a step, or half, and can be read by any thread; the step thread's, in the order
 * of the layers. end: how the step came out. A step without waves need not call there. */
int inf_dist_waves_begin(inf_dist *dist, const inf_step_buffers *step, inf_err *err);
void inf_dist_waves_there(inf_dist *dist, const inf_step_buffers *step, int32_t layer);
void inf_dist_waves_end(inf_dist *dist, const inf_step_buffers *step, int status);

/* The functions of door 1 with the same names and meanings. */
int inf_dist_span_set(inf_dist *, uint32_t owner, uint32_t handle, uint32_t generation,
                      const int32_t *blocks, int32_t n_blocks, inf_err *);
int inf_dist_span_share(inf_dist *, uint32_t owner, uint32_t handle, uint32_t generation,
                        const int32_t *blocks, int32_t n_blocks, inf_err *);
int inf_dist_wave_open(inf_dist *, uint32_t wave, uint64_t patience_ns, inf_err *);
int inf_dist_span_wave(inf_dist *, uint32_t owner, uint32_t handle, uint32_t generation,
                       const int32_t *blocks, int32_t n_blocks, uint32_t wave, inf_err *);
int inf_dist_wave_close(inf_dist *, uint32_t wave, inf_err *);
int inf_dist_span_close(inf_dist *, uint32_t handle, uint32_t generation, inf_err *);
int inf_dist_move_post(inf_dist *, uint32_t peer, uint32_t handle, uint32_t generation,
                       uint32_t first, const int32_t *blocks, int32_t n, uint64_t ticket,
                       inf_err *);
int inf_dist_move_wait(inf_dist *, int64_t timeout_ns, inf_move_done *out, inf_err *);
int inf_dist_peer_attach(inf_dist *, uint32_t peer, inf_link *query, inf_link *move, inf_err *);
int inf_dist_peer_serve(inf_dist *, uint32_t peer, inf_link *query, inf_link *move, inf_err *);
int inf_dist_share_pool(inf_dist *, const char *rdma_device, const char *domain, inf_err *);
int inf_dist_peer_rail(inf_dist *, uint32_t peer, uint32_t rail, bool server, inf_link *move,
                       inf_err *);
int inf_dist_peer_rails(inf_dist *, uint32_t peer, inf_peer_rails *out, inf_err *);
int inf_dist_peer_detach(inf_dist *, uint32_t peer, inf_err *);
int inf_dist_peer_status(inf_dist *, uint32_t peer, inf_err *);
void inf_dist_stats(inf_dist *, inf_device_stats *inout);

/* INF_EIO, and what the device said, once work for others has shown that the device is over: no
 * lane can be had of it any more, and none of this instance's steps will succeed. */
int inf_dist_fault(inf_dist *, inf_err *err);

uint64_t inf_dist_query_slot_bytes(const inf_device_config *);
uint64_t inf_dist_move_slot_bytes(const inf_device_config *);

#endif
