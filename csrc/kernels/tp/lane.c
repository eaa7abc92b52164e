/* Lanes of a tensor-parallel backend: a lane of every rank, and copies between host memory and all
 * of them. */
#include <stdlib.h>

#include "kernels/tp/tp.h"

static tp_lane *of(inf_lane *lane) { return (tp_lane *)(void *)lane; }

/* ---- the gate ---- */

inf_collective_end inf_tp_hold(tp_backend *b) {
    pthread_mutex_lock(&b->gate);
    if (b->busy) {
        return (inf_collective_end){b->n, 1};
    }
    return b->sum != NULL ? b->sum->ops->wait(b->sum, 1) : (inf_collective_end){-1, 0};
}

void inf_tp_let_go(tp_backend *b) { pthread_mutex_unlock(&b->gate); }

int inf_tp_busy(tp_backend *b) {
    pthread_mutex_lock(&b->gate);
    int busy = b->busy;
    pthread_mutex_unlock(&b->gate);
    return busy;
}

int inf_tp_lost(const inf_collective_end *end, const tp_backend *b, const char *what,
                inf_err *err) {
    return end->failed < b->n
               ? inf_fail(err, INF_EIO, -1, -1, "cannot %s: rank %d failed", what, end->failed)
               : inf_fail(err, INF_EIO, -1, -1, "cannot %s: the ranks failed", what);
}

/* ---- lanes ---- */

static void tp_lane_close(inf_lane *lane) {
    tp_lane *l = of(lane);
    if (l == NULL) {
        return;
    }
    tp_backend *b = l->backend;
    inf_collective_end end = inf_tp_hold(b);
    b->busy = end.busy;
    inf_tp_answer_close(l);
    inf_pool_close(l->team);
    if (l->sum != NULL) {
        b->sum = NULL;
        l->sum->ops->close(l->sum);
    }
    for (int32_t r = 0; r < l->n && !end.busy; r++) {
        l->ops->lane_close(l->rank[r]);
    }
    if (!end.busy) {
        l->ops->free(b->rank[0], l->logits);
    }
    inf_tp_let_go(b);
    free(l);
}

static int open_ranks(tp_lane *l, const inf_lane_config *config, inf_err *err) {
    tp_backend *b = l->backend;
    inf_device_config dims = tp_share(config->device, l->n);
    inf_lane_config c = *config;
    c.device = &dims;
    c.kv = l->rank_kv;
    for (int32_t r = 0; r < l->n; r++) {
        c.pool = b->pool.part[r];
        int status = l->ops->lane_open(b->rank[r], &c, &l->rank[r], err);
        if (status != INF_OK) {
            l->rank[r] = NULL;
            return status;
        }
    }
    return INF_OK;
}

/* What ranks do together in a step. */
static int open_step(tp_lane *l, const inf_lane_config *config, inf_err *err) {
    tp_backend *b = l->backend;
    int32_t rows = l->dims.max_rows, vocab = l->dims.vocab;
    rows = rows < b->base.logit_rows ? rows : b->base.logit_rows;
    uint64_t share = (uint64_t)inf_share_of(vocab, l->n, 0).n;
    inf_collective_config c = {b->n, b->rank, l->rank, config->threads, rows, vocab};
    l->logits = b->ops->alloc(b->rank[0], (uint64_t)rows * share * sizeof(float));
    if (l->logits == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate %d rows of logits", rows);
    }
    int status = b->ops->collective_open(&c, &l->sum, err);
    b->sum = l->sum = status == INF_OK ? l->sum : NULL;
    /* CPU ranks compute by the lane's threads, all of them in turn. */
    if (status == INF_OK && !b->base.cpus && b->base.awake_ns > 0) {
        if (inf_pool_open(l->n, &l->team) != INF_OK) {
            l->team = NULL; /* it takes longer, that is all */
        }
        inf_pool_stay_awake(l->team, b->base.awake_ns);
    }
    return status;
}

static int tp_lane_open(inf_backend *backend, const inf_lane_config *c, inf_lane **out,
                        inf_err *err) {
    tp_backend *b = (tp_backend *)backend;
    *out = NULL;
    if (c->pool != b->pool.base) {
        return inf_fail(err, INF_EINVAL, -1, -1, "a lane must have the backend's pool");
    }
    tp_lane *l = calloc(1, sizeof *l);
    if (l == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a lane");
    }
    l->backend = b;
    l->ops = b->ops;
    l->n = b->n;
    l->dims = *c->device;
    l->kv = l->rank_kv = c->kv;
    l->rank_kv.kv_heads /= b->n;
    l->rank_kv.block_bytes /= (uint64_t)b->n;
    l->max_rows = c->max_rows;
    l->max_segments = c->max_segments;
    inf_collective_end end = inf_tp_hold(b);
    int status = end.failed < 0 ? open_ranks(l, c, err) : inf_tp_lost(&end, b, "open a lane", err);
    if (status == INF_OK && c->kind == INF_LANE_STEP) {
        status = open_step(l, c, err);
    }
    if (status == INF_OK && c->kind == INF_LANE_ANSWER) {
        status = inf_tp_answer_open(l, c, err);
    }
    inf_tp_let_go(b);
    if (status != INF_OK) {
        tp_lane_close((inf_lane *)(void *)l);
        return status;
    }
    *out = (inf_lane *)(void *)l;
    return INF_OK;
}

/* All ranks are waited for, whatever befell one of them. What is reported is the one that failed
 * first, since the others' failures may be its doing; where nobody knows, the first in order. */
static int tp_sync(inf_lane *lane, inf_err *err) {
    tp_lane *l = of(lane);
    int status = INF_OK;
    int32_t first =
        l->sum != NULL ? l->sum->ops->wait(l->sum, 0).failed : -1; /* reported before any other */
    for (int32_t r = 0; r < l->n; r++) {
        inf_err e = {0};
        int s = l->ops->sync(l->rank[r], &e);
        if (s != INF_OK && (status == INF_OK || r == first)) {
            status = inf_fail(err, s, e.instance, e.layer, "rank %d: %s", r, e.message);
        }
    }
    return status;
}

/* ---- copies ---- */

/* What of the pool a copy is: whole blocks. */
typedef struct pool_part {
    uint64_t first, n;   /* blocks */
    uint64_t rows;       /* (layer, k|v) of one of them */
    uint64_t row, share; /* bytes of a row, and of a rank's part of it */
} pool_part;

static int in_pool(const tp_lane *l, const void *device, uint64_t bytes, pool_part *out) {
    const tp_pool *p = &l->backend->pool;
    uint64_t at = (uint64_t)((uintptr_t)device - (uintptr_t)p->base), block = l->kv.block_bytes;
    if (p->base == NULL || at >= p->bytes) {
        return 0;
    }
    out->first = at / block;
    out->n = bytes / block;
    out->rows = (uint64_t)l->kv.layers * 2;
    out->row = block / out->rows;
    out->share = out->row / (uint64_t)l->n;
    return 1;
}

static void tp_copy_out(inf_lane *lane, void *host, const void *device, uint64_t bytes) {
    tp_lane *l = of(lane);
    pool_part p;
    if (!in_pool(l, device, bytes, &p)) { /* all ranks have the same */
        l->ops->copy_out(l->rank[0], host, tp_part(device, 0), bytes);
        return;
    }
    for (uint64_t i = 0; i < p.n; i++) {
        for (int32_t r = 0; r < l->n; r++) {
            const uint8_t *part = l->backend->pool.part[r];
            l->ops->copy_rows_out(
                l->rank[r], (uint8_t *)host + i * l->kv.block_bytes + (uint64_t)r * p.share, p.row,
                part + (p.first + i) * l->rank_kv.block_bytes, p.share, p.rows);
        }
    }
}

static void tp_copy_in(inf_lane *lane, void *device, const void *host, uint64_t bytes) {
    tp_lane *l = of(lane);
    pool_part p;
    int pool = in_pool(l, device, bytes, &p);
    for (int32_t r = 0; !pool && r < l->n; r++) {
        l->ops->copy_in(l->rank[r], tp_part(device, r), host, bytes);
    }
    for (uint64_t i = 0; pool && i < p.n; i++) {
        for (int32_t r = 0; r < l->n; r++) {
            uint8_t *part = l->backend->pool.part[r];
            l->ops->copy_rows_in(l->rank[r], part + (p.first + i) * l->rank_kv.block_bytes,
                                 (const uint8_t *)host + i * l->kv.block_bytes +
                                     (uint64_t)r * p.share,
                                 p.row, p.share, p.rows);
        }
    }
}

static void tp_copy_rows_out(inf_lane *lane, void *host, uint64_t pitch, const void *device,
                             uint64_t width, uint64_t rows) {
    tp_lane *l = of(lane);
    l->ops->copy_rows_out(l->rank[0], host, pitch, tp_part(device, 0), width, rows);
}

static void tp_copy_rows_in(inf_lane *lane, void *device, const void *host, uint64_t pitch,
                            uint64_t width, uint64_t rows) {
    tp_lane *l = of(lane);
    for (int32_t r = 0; r < l->n; r++) {
        l->ops->copy_rows_in(l->rank[r], tp_part(device, r), host, pitch, width, rows);
    }
}

void inf_tp_lane_table(inf_backend_ops *ops) {
    ops->lane_open = tp_lane_open;
    ops->lane_close = tp_lane_close;
    ops->sync = tp_sync;
    ops->copy_out = tp_copy_out;
    ops->copy_in = tp_copy_in;
    ops->copy_rows_out = tp_copy_rows_out;
    ops->copy_rows_in = tp_copy_rows_in;
    ops->answer = inf_tp_answer;
}
