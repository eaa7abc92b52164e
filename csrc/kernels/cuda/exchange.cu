/* What a lane exchanges with the host: rows of queries for other instances, their partials, and
 * copies.
 *
 * Rows of queries and partials go straight to and from the messages where those are pinned
 * (dist/slots.c has the rules), by one launch for up to INF_CUDA_RUNS requests; other memory by way
 * of the lane's staging. Rows of a message have all heads of the model, a lane may have some of
 * them: rows are `stride` heads apart there, and have no gaps in staging. */
#include <string.h>

#include "kernels/cuda/lane.h"

/* Rows of n floats between host buffers, whose rows lie so many floats apart. */
static void copy_rows(float *to, uint64_t to_pitch, const float *from, uint64_t from_pitch,
                      uint64_t n, int32_t rows) {
    if (to_pitch == n && from_pitch == n) {
        memcpy(to, from, (uint64_t)rows * n * sizeof(float));
        return;
    }
    for (uint64_t r = 0; r < (uint64_t)rows; r++) {
        memcpy(to + r * to_pitch, from + r * from_pitch, n * sizeof(float));
    }
}

/* ---- queries ---- */

static void give_queries(inf_lane *l) {
    lane_enter(l);
    inf_cuda_give p = {
        l->given, l->asked, NULL, l->act, l->dims.heads, l->dims.head_dim, l->backend->early_rows};
    lane_ok(l, inf_cuda_give_launch(&p, l->stream), "queries");
    l->given.n = l->given.rows = 0;
}

/* Rows for staging are noted, and leave together with the next sync: one launch writes them,
 * widened, over the bus, at their own index, however many messages name them. */
static void step_queries(inf_lane *l, const void *q, uint32_t row0, int32_t rows, float *host,
                         int32_t stride) {
    float *at = host;
    l->asked = (const uint8_t *)q + l->row0 * l->q_dim * l->act_bytes;
    if (lane_direct(l, rows, stride, &at, NULL)) {
        add_run(&l->given, row0, rows, at, NULL, stride, [&] { give_queries(l); });
        return;
    }
    if (l->n_wait == l->max_wait) {
        lane_ok(l, (int)cudaErrorInvalidValue, "queries");
        return;
    }
    l->wait[l->n_wait++] = {row0, rows, stride, host};
}

static void stage_queries(inf_lane *l) {
    uint32_t first = UINT32_MAX, end = 0;
    for (int32_t i = 0; i < l->n_wait; i++) {
        uint32_t last = l->wait[i].row0 + (uint32_t)l->wait[i].rows;
        first = l->wait[i].row0 < first ? l->wait[i].row0 : first;
        end = last > end ? last : end;
    }
    uint64_t at = (uint64_t)first * (uint64_t)l->q_dim;
    inf_cuda_cast p = {(const uint8_t *)l->asked + at * (uint64_t)l->act_bytes,
                       l->staging + at,
                       l->act,
                       INF_DTYPE_F32,
                       (int64_t)(end - first) * l->q_dim,
                       l->backend->early_rows};
    lane_ok(l, inf_cuda_cast_launch(&p, l->stream), "queries");
}

/* ---- partials ---- */

/* Merges the partials that wait for it. out NULL: into the lane's own; else what comes of all rows
 * goes there, as act. */
static void merge_waiting(inf_lane *l, void *out) {
    if (l->fault != 0 || (l->taken_in.n == 0 && out == NULL)) {
        return;
    }
    inf_cuda_merge p = {l->taken_in,   l->partial,       l->lse,
                        out,           l->act,           l->rows,
                        l->dims.heads, l->dims.head_dim, l->backend->early_rows};
    lane_ok(l, inf_cuda_merge_launch(&p, l->stream), "merge");
    l->taken_in.n = l->taken_in.rows = 0;
}

static int step_merge(inf_lane *l, uint32_t row0, int32_t rows, const float *o2, const float *lse2,
                      int32_t stride) {
    uint64_t heads = (uint64_t)l->dims.heads, row = (uint64_t)l->q_dim;
    uint64_t lse_pitch = (uint64_t)stride, pitch = lse_pitch * (uint64_t)l->dims.head_dim;
    float *at = (float *)o2, *lse = (float *)lse2;
    auto flush = [&] {
        lane_enter(l);
        merge_waiting(l, NULL);
    };
    if (lane_direct(l, rows, stride, &at, &lse)) {
        add_run(&l->taken_in, row0, rows, at, lse, stride, flush);
        return 1;
    }
    for (int32_t done = 0; done < rows;) {
        if (l->staged == l->max_rows) {
            flush();
            lane_settle(l, NULL, "merge");
            l->staged = 0;
        }
        int32_t room = l->max_rows - l->staged, left = rows - done, n = room < left ? room : left;
        float *o_to = l->staging + (uint64_t)l->staged * row;
        float *lse_to = l->staging_lse + (uint64_t)l->staged * heads;
        copy_rows(o_to, row, o2 + (uint64_t)done * pitch, pitch, row, n);
        copy_rows(lse_to, heads, lse2 + (uint64_t)done * lse_pitch, lse_pitch, heads, n);
        add_run(&l->taken_in, row0 + (uint32_t)done, n, o_to, lse_to, l->dims.heads, flush);
        l->staged += n;
        done += n;
    }
    return 0;
}

static void step_settle(inf_lane *l, void *o) {
    lane_enter(l);
    o = (uint8_t *)o + l->row0 * l->q_dim * l->act_bytes;
    merge_waiting(l, o == l->partial ? NULL : o);
}

/* ---- the end of what was asked ---- */

/* Queries on their way to where they were asked for, or to staging. */
static void send_queries(inf_lane *l) {
    if (l->given.n > 0) {
        give_queries(l);
    }
    if (l->n_wait > 0) {
        stage_queries(l);
    }
}

/* What is in staging, to where it was asked for. Staging is free then. */
static void unstage_queries(inf_lane *l, bool ok) {
    for (int32_t i = 0; i < l->n_wait && ok; i++) {
        const pending_rows *w = &l->wait[i];
        uint64_t pitch = (uint64_t)w->stride * (uint64_t)l->dims.head_dim;
        copy_rows(w->host, pitch, l->staging + (uint64_t)w->row0 * (uint64_t)l->q_dim,
                  (uint64_t)l->q_dim, (uint64_t)l->q_dim, w->rows);
    }
    l->n_wait = l->staged = 0;
}

static int step_sync(inf_lane *l, inf_err *err) {
    lane_enter(l);
    /* All that was asked is done, also in the middle of a layer's merges. */
    merge_waiting(l, NULL);
    send_queries(l);
    int status = lane_sync(l, err);
    unstage_queries(l, status == INF_OK);
    if (status == INF_OK) {
        draw_synced(l);
    }
    return status;
}

static void step_leave(inf_lane *l) {
    lane_enter(l);
    merge_waiting(l, NULL);
    send_queries(l);
    lane_ok(l, cudaEventRecord(l->gone, l->stream), "queries");
}

static int step_left(inf_lane *l, inf_err *err) {
    lane_enter(l);
    if (l->fault == 0) {
        lane_settle(l, l->gone, "queries");
    }
    unstage_queries(l, l->fault == 0);
    return lane_status(l, err);
}

/* ---- copies, on any lane ---- */

static void copy_out(inf_lane *l, void *host, const void *device, uint64_t bytes) {
    lane_enter(l);
    lane_copy(l, host, device, bytes, cudaMemcpyDeviceToHost);
}

static void copy_in(inf_lane *l, void *device, const void *host, uint64_t bytes) {
    lane_enter(l);
    lane_copy(l, device, host, bytes, cudaMemcpyHostToDevice);
}

static void copy_rows_out(inf_lane *l, void *host, uint64_t pitch, const void *device,
                          uint64_t width, uint64_t rows) {
    lane_enter(l);
    lane_ok(l,
            cudaMemcpy2DAsync(host, pitch, device, width, width, rows, cudaMemcpyDeviceToHost,
                              l->stream),
            "a copy");
}

static void copy_rows_in(inf_lane *l, void *device, const void *host, uint64_t pitch,
                         uint64_t width, uint64_t rows) {
    lane_enter(l);
    lane_ok(l,
            cudaMemcpy2DAsync(device, width, host, pitch, width, rows, cudaMemcpyHostToDevice,
                              l->stream),
            "a copy");
}

static void copy(inf_lane *l, void *to, const void *from, uint64_t bytes) {
    lane_enter(l);
    lane_copy(l, to, from, bytes, cudaMemcpyDeviceToDevice);
}

void inf_cuda_exchange_table(inf_backend_ops *ops) {
    ops->sync = step_sync;
    ops->copy_out = copy_out;
    ops->copy_in = copy_in;
    ops->copy_rows_out = copy_rows_out;
    ops->copy_rows_in = copy_rows_in;
    ops->copy = copy;
    ops->queries = step_queries;
    ops->leave = step_leave;
    ops->left = step_left;
    ops->merge = step_merge;
    ops->settle = step_settle;
}
