/* The functions of door 1 that belong to other instances: each needs a ready device, the rest is
 * dist's. */
#include "runtime/fail.h"
#include "runtime/runtime.h"

static int check_ready(const inf_device *d, inf_err *err) {
    if (d == NULL || !d->ready) {
        return inf_fail(err, INF_EINVAL, -1, -1, "the device is not ready");
    }
    return INF_OK;
}

static int check_blocks(const inf_device *d, const int32_t *blocks, int32_t n, inf_err *err) {
    if (n < 0 || n > d->config.num_blocks || (n > 0 && blocks == NULL)) {
        return inf_fail(err, INF_EINVAL, -1, -1, "a list of %d blocks is not allowed", n);
    }
    for (int32_t i = 0; i < n; i++) {
        if (blocks[i] < 0 || blocks[i] >= d->config.num_blocks) {
            return inf_fail(err, INF_EINVAL, -1, -1, "no block %d in the pool", blocks[i]);
        }
    }
    return INF_OK;
}

static int check_peer(uint32_t peer, inf_err *err) {
    return peer < INF_MAX_PEERS ? INF_OK : inf_fail(err, INF_EINVAL, -1, -1, "no peer %u", peer);
}

static int check_span(const inf_device *d, uint32_t owner, uint32_t handle, const int32_t *blocks,
                      int32_t n_blocks, inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(owner, err);
    status = status != INF_OK ? status : check_blocks(d, blocks, n_blocks, err);
    if (status == INF_OK && handle >= (uint32_t)d->config.max_spans) {
        status = inf_fail(err, INF_EINVAL, -1, -1, "no span handle %u", handle);
    }
    return status;
}

int inf_device_span_set(inf_device *d, uint32_t owner, uint32_t handle, uint32_t generation,
                        const int32_t *blocks, int32_t n_blocks, inf_err *err) {
    int status = check_span(d, owner, handle, blocks, n_blocks, err);
    return status != INF_OK
               ? status
               : inf_dist_span_set(d->dist, owner, handle, generation, blocks, n_blocks, err);
}

int inf_device_span_share(inf_device *d, uint32_t owner, uint32_t handle, uint32_t generation,
                          const int32_t *blocks, int32_t n_blocks, inf_err *err) {
    int status = check_span(d, owner, handle, blocks, n_blocks, err);
    return status != INF_OK
               ? status
               : inf_dist_span_share(d->dist, owner, handle, generation, blocks, n_blocks, err);
}

int inf_device_wave_open(inf_device *d, uint32_t wave, uint64_t patience_ns, inf_err *err) {
    int status = check_ready(d, err);
    return status != INF_OK ? status : inf_dist_wave_open(d->dist, wave, patience_ns, err);
}

int inf_device_span_wave(inf_device *d, uint32_t owner, uint32_t handle, uint32_t generation,
                         const int32_t *blocks, int32_t n_blocks, uint32_t wave, inf_err *err) {
    int status = check_span(d, owner, handle, blocks, n_blocks, err);
    return status != INF_OK ? status
                            : inf_dist_span_wave(d->dist, owner, handle, generation, blocks,
                                                 n_blocks, wave, err);
}

int inf_device_wave_close(inf_device *d, uint32_t wave, inf_err *err) {
    int status = check_ready(d, err);
    return status != INF_OK ? status : inf_dist_wave_close(d->dist, wave, err);
}

int inf_device_span_close(inf_device *d, uint32_t handle, uint32_t generation, inf_err *err) {
    int status = check_ready(d, err);
    return status != INF_OK ? status : inf_dist_span_close(d->dist, handle, generation, err);
}

int inf_device_move_post(inf_device *d, uint32_t peer, uint32_t handle, uint32_t generation,
                         uint32_t first, const int32_t *blocks, int32_t n, uint64_t ticket,
                         inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(peer, err);
    status = status != INF_OK ? status : check_blocks(d, blocks, n, err);
    return status != INF_OK ? status
                            : inf_dist_move_post(d->dist, peer, handle, generation, first, blocks,
                                                 n, ticket, err);
}

int inf_device_move_wait(inf_device *d, int64_t timeout_ns, inf_move_done *out, inf_err *err) {
    int status = check_ready(d, err);
    if (status == INF_OK && out == NULL) {
        status = inf_fail(err, INF_EINVAL, -1, -1, "the move's result has nowhere to go");
    }
    return status != INF_OK ? status : inf_dist_move_wait(d->dist, timeout_ns, out, err);
}

int inf_device_peer_attach(inf_device *d, uint32_t peer, inf_link *query, inf_link *move,
                           inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(peer, err);
    if (status == INF_OK && query != NULL && inf_link_slots(query) < INF_QUERY_SLOTS) {
        status = inf_fail(err, INF_EINVAL, (int)peer, -1, "a query link has %d slots or more",
                          (int)INF_QUERY_SLOTS);
    }
    if (status != INF_OK) { /* the links are ours, also when the call fails */
        inf_link_close(query);
        inf_link_close(move);
        return status;
    }
    return inf_dist_peer_attach(d->dist, peer, query, move, err);
}

int inf_device_peer_serve(inf_device *d, uint32_t peer, inf_link *query, inf_link *move,
                          inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(peer, err);
    if (status != INF_OK) {
        inf_link_close(query);
        inf_link_close(move);
        return status;
    }
    return inf_dist_peer_serve(d->dist, peer, query, move, err);
}

int inf_device_share_pool(inf_device *d, const char *rdma_device, const char *domain,
                          inf_err *err) {
    int status = check_ready(d, err);
    return status != INF_OK ? status : inf_dist_share_pool(d->dist, rdma_device, domain, err);
}

int inf_device_peer_rail(inf_device *d, uint32_t peer, uint32_t rail, uint32_t server,
                         inf_link *move, inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(peer, err);
    if (status != INF_OK) {
        inf_link_close(move);
        return status;
    }
    return inf_dist_peer_rail(d->dist, peer, rail, server != 0, move, err);
}

int inf_device_peer_rails(inf_device *d, uint32_t peer, inf_peer_rails *out, inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(peer, err);
    if (status == INF_OK && out == NULL) {
        status = inf_fail(err, INF_EINVAL, -1, -1, "the rails have nowhere to go");
    }
    return status != INF_OK ? status : inf_dist_peer_rails(d->dist, peer, out, err);
}

int inf_device_peer_detach(inf_device *d, uint32_t peer, inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(peer, err);
    return status != INF_OK ? status : inf_dist_peer_detach(d->dist, peer, err);
}

int inf_device_peer_status(inf_device *d, uint32_t peer, inf_err *err) {
    int status = check_ready(d, err);
    status = status != INF_OK ? status : check_peer(peer, err);
    return status != INF_OK ? status : inf_dist_peer_status(d->dist, peer, err);
}

int inf_device_fault(inf_device *d, inf_err *err) {
    int status = check_ready(d, err);
    return status != INF_OK ? status : inf_dist_fault(d->dist, err);
}

uint64_t inf_device_query_slot_bytes(const inf_device_config *config) {
    return inf_dist_query_slot_bytes(config);
}

uint64_t inf_device_move_slot_bytes(const inf_device_config *config) {
    return inf_dist_move_slot_bytes(config);
}

int inf_device_stats_read(inf_device *d, inf_device_stats *out) {
    if (d == NULL || !d->ready || out == NULL) {
        return INF_EINVAL;
    }
    *out = (inf_device_stats){0};
    inf_dist_stats(d->dist, out);
    out->steps = atomic_load(&d->steps);
    out->tokens = atomic_load(&d->tokens);
    out->step_ns = atomic_load(&d->step_ns);
    return INF_OK;
}
