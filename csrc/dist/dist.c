/* Opening and closing. */
#include "dist/query.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int inf_dist_error(inf_err *err, int code, int32_t peer, const char *format, ...) {
    if (err != NULL) {
        memset(err, 0, sizeof *err);
        err->code = code;
        err->instance = peer;
        err->layer = -1;
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
    }
    return code;
}

int inf_dist_take(inf_link *link, const void **msg, uint64_t *len, void **answer) {
    int status = inf_link_poll(link, msg, len);
    if (status != INF_OK) {
        return status;
    }
    /* Behind the poll: who asks has taken all answers but those that its messages of each half wait
     * for, so there is room now, at the latest when they are known to have arrived. */
    status = inf_link_prepare(link, answer);
    if (status == INF_AGAIN && inf_link_full(link)) {
        return INF_EPROTO;
    }
    if (status == INF_AGAIN) {
        inf_link_keep(link, *msg, *len);
    }
    return status;
}

void inf_dist_wake(int fd) {
    uint64_t one = 1;
    /* A full counter wakes as well, so a failed write loses nothing. */
    ssize_t n = write(fd, &one, sizeof one);
    (void)n;
}

void inf_dist_unwake(int fd) {
    uint64_t count;
    ssize_t n = read(fd, &count, sizeof count);
    (void)n;
}

uint64_t inf_dist_query_slot_bytes(const inf_device_config *c) {
    /* A device without remote spans of its own still answers messages of one group. */
    uint64_t groups = c->max_step_spans > 0 ? (uint64_t)c->max_step_spans : 1;
    uint64_t rows = (uint64_t)c->max_tokens;
    uint64_t numbers = rows * (uint64_t)c->heads * ((uint64_t)c->head_dim + 1);
    return inf_pad64(inf_wire_query_head((uint32_t)groups, (uint32_t)groups) + numbers * 4);
}

uint64_t inf_dist_move_slot_bytes(const inf_device_config *c) {
    uint64_t block = inf_device_block_bytes(c), n = block == 0 ? 1 : (1u << 20) / block;
    /* Whatever the size of the pool: the other end's may have another one. */
    n = n < 1 ? 1 : n;
    uint64_t bytes = inf_wire_move_head() + n * block,
             grants = inf_wire_grant_bytes(INF_WIRE_PIECE_BLOCKS);
    return inf_pad64(bytes > grants ? bytes : grants);
}

static int alloc(inf_dist *d) {
    d->targets = calloc(INF_MAX_PEERS, sizeof *d->targets);
    d->groups = calloc(INF_HALVES * (size_t)d->max_groups, sizeof *d->groups);
    d->lengths = calloc(INF_MAX_PEERS, sizeof *d->lengths);
    d->inboxes = calloc(INF_MAX_PEERS, sizeof *d->inboxes);
    d->spans = calloc(INF_HALVES * (size_t)d->max_entries, sizeof *d->spans);
    d->span = calloc(d->max_spans, sizeof *d->span);
    d->queries = calloc(INF_SERVE_MESSAGES, sizeof *d->queries);
    d->wire_groups = calloc(d->max_groups, sizeof *d->wire_groups);
    d->wire_entries = calloc(d->max_entries, sizeof *d->wire_entries);
    d->attn = calloc(d->max_entries, sizeof *d->attn);
    d->statuses = calloc(d->max_groups, sizeof *d->statuses);
    d->lists = calloc(d->max_entries, sizeof *d->lists);
    d->step_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->server.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->lander.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    d->mover.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (inf_waves_alloc(d) != INF_OK) {
        return INF_ENOMEM;
    }
    bool ok = d->inboxes && d->windows && d->targets && d->groups && d->spans && d->span &&
              d->queries && d->wire_groups && d->wire_entries && d->attn && d->statuses &&
              d->lists && d->lengths;
    return !ok ? INF_ENOMEM
           : d->step_wake < 0 || d->server.wake < 0 || d->lander.wake < 0 || d->mover.wake < 0
               ? INF_EIO
               : INF_OK;
}

static int start(inf_dist *d) {
    struct {
        inf_worker *w;
        void *(*main)(void *);
    } workers[] = {
        {&d->server, inf_serve_main}, {&d->lander, inf_land_main}, {&d->mover, inf_mover_main}};
    for (int i = 0; i < 3; i++) {
        if (pthread_create(&workers[i].w->thread, NULL, workers[i].main, d) != 0) {
            return INF_EIO;
        }
        workers[i].w->running = true;
    }
    return INF_OK;
}

int inf_dist_open(const inf_dist_config *c, inf_dist **out, inf_err *err) {
    const inf_device_config *dev = c->device;
    *out = NULL;
    inf_dist *d = calloc(1, sizeof *d);
    if (d == NULL) {
        return inf_dist_error(err, INF_ENOMEM, -1, "no memory for the links between instances");
    }
    d->step_wake = d->server.wake = d->lander.wake = d->mover.wake = -1;
    d->landing.kind = d->moving.kind = d->memory_lane.kind = INF_LANE_COPY;
    d->answering.kind = INF_LANE_ANSWER;
    d->backend = c->backend;
    d->ops = c->backend->ops;
    d->config = *dev;
    d->kv = c->kv;
    d->pool = c->pool;
    d->scale = c->scale;
    d->layers = dev->layers;
    d->heads = dev->heads;
    d->head_dim = dev->head_dim;
    d->num_blocks = dev->num_blocks;
    d->threads = dev->threads;
    d->awake_ns = c->backend->awake_ns;
    d->max_tokens = (uint32_t)dev->max_tokens;
    d->max_seqs = (uint32_t)dev->max_seqs;
    d->max_groups = d->max_entries = (uint32_t)(dev->max_step_spans > 0 ? dev->max_step_spans : 1);
    d->max_spans = (uint32_t)dev->max_spans;
    d->query_bytes = inf_dist_query_slot_bytes(dev);
    d->move_bytes = inf_dist_move_slot_bytes(dev);
    d->windows = malloc((size_t)d->layers * sizeof *d->windows);
    if (d->windows != NULL) {
        memcpy(d->windows, c->windows, (size_t)d->layers * sizeof *d->windows);
    }
    pthread_condattr_t mono;
    pthread_condattr_init(&mono);
    pthread_condattr_setclock(&mono, CLOCK_MONOTONIC);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->changed, &mono);
    pthread_mutex_init(&d->span_lock, NULL);
    pthread_cond_init(&d->span_free, &mono);
    pthread_mutex_init(&d->region_lock, NULL);
    pthread_mutex_init(&d->note_lock, NULL);
    pthread_mutex_init(&d->memory_lock, NULL);
    pthread_mutex_init(&d->done_lock, NULL);
    pthread_cond_init(&d->done_cond, &mono);
    pthread_condattr_destroy(&mono);
    int status = alloc(d);
    status = status != INF_OK ? status : inf_lane_take(d, &d->landing);
    status = status != INF_OK ? status : inf_lane_take(d, &d->moving);
    status = status != INF_OK ? status : start(d);
    if (status != INF_OK) {
        inf_dist_close(d);
        return inf_dist_error(err, status, -1, "cannot start the threads that talk to instances");
    }
    *out = d;
    return INF_OK;
}

static void close_fd(int fd) {
    if (fd >= 0) {
        close(fd);
    }
}

void inf_dist_close(inf_dist *d) {
    if (d == NULL) {
        return;
    }
    atomic_store(&d->stopping, true);
    inf_worker *workers[] = {&d->server, &d->lander, &d->mover};
    for (int i = 0; i < 3; i++) {
        if (workers[i]->running) {
            inf_dist_wake(workers[i]->wake);
            pthread_join(workers[i]->thread, NULL);
        }
    }
    for (int i = 0; i < 3; i++) { /* each of the threads wakes the others when a peer dies */
        close_fd(workers[i]->wake);
    }
    close_fd(d->step_wake);
    for (uint32_t i = 0; i < INF_MAX_PEERS; i++) {
        inf_peer *p = &d->peers[i];
        inf_rail *rails[2 * INF_MAX_RAILS];
        inf_rails_take(d, p, rails);
        for (int k = 0; k < 2 * INF_MAX_RAILS; k++) {
            inf_rail_close(d, rails[k]);
        }
        inf_moves_fail(d, p, INF_EPEER);
        inf_query_link_close(d, p->query);
        inf_query_link_close(d, p->squery);
    }
    inf_regions_close(d);
    inf_land_settle_late(d, true);
    for (inf_move *m = d->done.head, *next; m != NULL; m = next) {
        next = m->next;
        free(m);
    }
    for (uint32_t i = 0; d->span != NULL && i < d->max_spans; i++) {
        free(d->span[i].blocks);
        free(d->span[i].state);
    }
    while (d->retired != NULL) {
        inf_retired *r = d->retired;
        d->retired = r->next;
        free(r->blocks);
        free(r);
    }
    if (d->ops != NULL) {
        d->ops->lane_close(d->answering.lane);
        d->ops->lane_close(d->landing.lane);
        d->ops->lane_close(d->moving.lane);
        d->ops->lane_close(d->memory_lane.lane);
    }
    inf_pool_close(d->workers);
    inf_waves_free(d);
    pthread_mutex_destroy(&d->lock);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->span_lock);
    pthread_cond_destroy(&d->span_free);
    pthread_mutex_destroy(&d->region_lock);
    pthread_mutex_destroy(&d->note_lock);
    pthread_mutex_destroy(&d->memory_lock);
    pthread_mutex_destroy(&d->done_lock);
    pthread_cond_destroy(&d->done_cond);
    free(d->windows);
    free(d->targets);
    free(d->groups);
    free(d->spans);
    free(d->span);
    free(d->queries);
    free(d->wire_groups);
    free(d->wire_entries);
    free(d->attn);
    free(d->statuses);
    free(d->lists);
    free(d->lengths);
    free(d->inboxes);
    free(d);
}

void inf_dist_stats(inf_dist *d, inf_device_stats *s) {
    s->query_messages = atomic_load(&d->query_messages);
    s->query_rows = atomic_load(&d->query_rows);
    s->query_bytes = atomic_load(&d->query_sent_bytes);
    s->served_messages = atomic_load(&d->served_messages);
    s->served_rows = atomic_load(&d->served_rows);
    s->served_bytes = atomic_load(&d->served_bytes);
    s->served_batches = atomic_load(&d->served_batches);
    s->moved_blocks = atomic_load(&d->moved_blocks);
    s->moved_bytes = atomic_load(&d->moved_bytes);
    s->refused_messages = atomic_load(&d->refused);
    s->remote_wait_ns = atomic_load(&d->wait_ns);
    s->halved_steps = atomic_load(&d->halved_steps);
    s->kept_messages = atomic_load(&d->kept);
}
