/* What a lane exchanges with the host: rows of queries for other instances, their partials, and
 * copies. */
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

/* Rows are noted, and leave together with the next sync: one launch writes them, widened, into
 * pinned memory over the bus, at their own index, however many messages name them. */
static void step_queries(inf_lane *l, const void *q, uint32_t row0, int32_t rows, float *host,
                         int32_t stride) {
    if (l->n_wait == l->max_wait) {
        lane_ok(l, (int)cudaErrorInvalidValue, "queries");
        return;
    }
    l->asked = q;
    l->wait[l->n_wait++] = {row0, rows, stride, host};
}

static int step_sync(inf_lane *l, inf_err *err) {
    lane_enter(l);
    if (l->n_wait > 0) {
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
    int status = lane_sync(l, err);
    for (int32_t i = 0; i < l->n_wait && status == INF_OK; i++) {
        const pending_rows *w = &l->wait[i];
        uint64_t pitch = (uint64_t)w->stride * (uint64_t)l->dims.head_dim;
        copy_rows(w->host, pitch, l->staging + (uint64_t)w->row0 * (uint64_t)l->q_dim,
                  (uint64_t)l->q_dim, (uint64_t)l->q_dim, w->rows);
    }
    if (status == INF_OK) {
        draw_synced(l);
    }
    l->n_wait = 0;
    l->staged = l->merged = 0;
    return status;
}

/* Merges what is staged and not merged yet. */
static void merge_staged(inf_lane *l) {
    lane_enter(l);
    int32_t n = l->staged - l->merged;
    if (n == 0) {
        return;
    }
    uint64_t heads = (uint64_t)l->dims.heads;
    inf_cuda_merge p = {l->partial,
                        l->lse,
                        l->staging + (uint64_t)l->merged * (uint64_t)l->q_dim,
                        l->staging_lse + (uint64_t)l->merged * heads,
                        l->staging_row + l->merged,
                        n,
                        l->dims.heads,
                        l->dims.head_dim,
                        l->backend->early_rows};
    lane_ok(l, inf_cuda_merge_launch(&p, l->stream), "merge");
    l->merged = l->staged;
    l->round++;
}

/* Partials wait in pinned memory for one launch that merges all, unless one more is for the same
 * rows. */
static void step_merge(inf_lane *l, uint32_t row0, int32_t rows, const float *o2, const float *lse2,
                       int32_t stride) {
    uint64_t heads = (uint64_t)l->dims.heads, row = (uint64_t)l->q_dim;
    uint64_t lse_pitch = (uint64_t)stride, pitch = lse_pitch * (uint64_t)l->dims.head_dim;
    for (int32_t r = 0; r < rows; r++) {
        if (l->row_mark[row0 + (uint32_t)r] == l->round + 1) {
            merge_staged(l);
            break;
        }
    }
    for (int32_t done = 0; done < rows;) {
        if (l->staged == l->max_rows) {
            merge_staged(l);
            lane_ok(l, cudaStreamSynchronize(l->stream), "merge");
            l->staged = l->merged = 0;
        }
        int32_t room = l->max_rows - l->staged, left = rows - done;
        int32_t n = room < left ? room : left;
        copy_rows(l->staging + (uint64_t)l->staged * row, row, o2 + (uint64_t)done * pitch, pitch,
                  row, n);
        copy_rows(l->staging_lse + (uint64_t)l->staged * heads, heads,
                  lse2 + (uint64_t)done * lse_pitch, lse_pitch, heads, n);
        for (int32_t r = 0; r < n; r++) {
            uint32_t at = row0 + (uint32_t)(done + r);
            l->staging_row[l->staged + r] = at;
            l->row_mark[at] = l->round + 1;
        }
        l->staged += n;
        done += n;
    }
}

static void step_settle(inf_lane *l, void *o) {
    lane_enter(l);
    if (l->act != INF_DTYPE_F32) {
        inf_cuda_cast p = {
            l->o32, o, INF_DTYPE_F32, l->act, (int64_t)l->rows * l->q_dim, l->backend->early_rows};
        lane_ok(l, inf_cuda_cast_launch(&p, l->stream), "settle");
    }
}

static void step_merged(inf_lane *l) {
    if (l->fault == 0) {
        merge_staged(l);
    }
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

void inf_cuda_exchange_table(inf_backend_ops *ops) {
    ops->sync = step_sync;
    ops->copy_out = copy_out;
    ops->copy_in = copy_in;
    ops->copy_rows_out = copy_rows_out;
    ops->copy_rows_in = copy_rows_in;
    ops->queries = step_queries;
    ops->merge = step_merge;
    ops->merged = step_merged;
    ops->settle = step_settle;
}
