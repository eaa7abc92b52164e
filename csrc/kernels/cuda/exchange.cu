/* What a step exchanges with other instances: queries out, partials in.
 *
 * Rows go straight to and from the messages where those are pinned (dist/slots.c has the rules), by
 * one launch for up to INF_CUDA_RUNS requests; other memory by way of the lane's staging. */
#include <string.h>

#include "kernels/cuda/lane.h"

static void give_queries(inf_lane *l) {
    inf_cuda_give p = {
        l->given, l->asked, NULL, l->act, l->dims.heads, l->dims.head_dim, l->backend->early_rows};
    lane_ok(l, inf_cuda_give_launch(&p, l->stream), "queries");
    l->given.n = l->given.rows = 0;
}

/* Rows for staging are noted, and leave together with the next sync: one launch writes them,
 * widened, over the bus, at their own index, however many messages name them. */
void exchange_queries(inf_lane *l, const void *q, uint32_t row0, int32_t rows, float *host) {
    l->asked = q;
    if (lane_direct(l, rows, &host, NULL)) {
        if (!inf_cuda_runs_add(&l->given, row0, rows, host, NULL)) {
            give_queries(l);
            (void)inf_cuda_runs_add(&l->given, row0, rows, host, NULL);
        }
        return;
    }
    if (l->n_wait == l->max_wait) {
        lane_ok(l, (int)cudaErrorInvalidValue, "queries");
        return;
    }
    l->wait[l->n_wait++] = {row0, rows, host};
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

/* Merges the partials that wait for it. */
static void merge_waiting(inf_lane *l) {
    if (l->taken_in.n == 0) {
        return;
    }
    inf_cuda_merge p = {l->taken_in,   l->partial,       l->lse,
                        l->dims.heads, l->dims.head_dim, l->backend->early_rows};
    lane_ok(l, inf_cuda_merge_launch(&p, l->stream), "merge");
    l->taken_in.n = l->taken_in.rows = 0;
    l->round++;
}

void exchange_merged(inf_lane *l) {
    if (l->fault == 0) {
        merge_waiting(l);
    }
}

int exchange_sync(inf_lane *l, inf_err *err) {
    lane_enter(l);
    /* All that was asked is done, also in the middle of a layer's merges. */
    exchange_merged(l);
    if (l->given.n > 0) {
        give_queries(l);
    }
    if (l->n_wait > 0) {
        stage_queries(l);
    }
    int status = lane_sync(l, err);
    for (int32_t i = 0; i < l->n_wait && status == INF_OK; i++) {
        const pending_rows *w = &l->wait[i];
        memcpy(w->host, l->staging + (uint64_t)w->row0 * (uint64_t)l->q_dim,
               (uint64_t)w->rows * (uint64_t)l->q_dim * sizeof(float));
    }
    if (status == INF_OK) {
        draw_synced(l);
    }
    l->n_wait = l->staged = 0;
    return status;
}

/* One run for the launch that merges all, unless the rows have a partial that waits for it. */
static void add_partial(inf_lane *l, uint32_t row0, int32_t rows, float *o2, float *lse2) {
    bool twice = l->taken_in.n == INF_CUDA_RUNS;
    for (int32_t r = 0; r < rows && !twice; r++) {
        twice = l->row_mark[row0 + (uint32_t)r] == l->round + 1;
    }
    if (twice) {
        merge_waiting(l);
    }
    (void)inf_cuda_runs_add(&l->taken_in, row0, rows, o2, lse2);
    for (int32_t r = 0; r < rows; r++) {
        l->row_mark[row0 + (uint32_t)r] = l->round + 1;
    }
}

int exchange_merge(inf_lane *l, uint32_t row0, int32_t rows, const float *o2, const float *lse2) {
    uint64_t heads = (uint64_t)l->dims.heads, row = (uint64_t)l->q_dim;
    float *at = (float *)o2, *lse = (float *)lse2;
    if (lane_direct(l, rows, &at, &lse)) {
        add_partial(l, row0, rows, at, lse);
        return 1;
    }
    for (int32_t done = 0; done < rows;) {
        if (l->staged == l->max_rows) {
            merge_waiting(l);
            lane_ok(l, cudaStreamSynchronize(l->stream), "merge");
            l->staged = 0;
        }
        int32_t room = l->max_rows - l->staged, left = rows - done, n = room < left ? room : left;
        float *o_to = l->staging + (uint64_t)l->staged * row;
        float *lse_to = l->staging_lse + (uint64_t)l->staged * heads;
        memcpy(o_to, o2 + (uint64_t)done * row, (uint64_t)n * row * sizeof(float));
        memcpy(lse_to, lse2 + (uint64_t)done * heads, (uint64_t)n * heads * sizeof(float));
        add_partial(l, row0 + (uint32_t)done, n, o_to, lse_to);
        l->staged += n;
        done += n;
    }
    return 0;
}
