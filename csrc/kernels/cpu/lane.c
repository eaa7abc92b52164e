/* Lanes of the CPU backend: opening and closing, with the memory that each kind needs. */
#include "kernels/cpu/lane.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/fail.h"

static void *copy_of(const void *src, size_t bytes) {
    void *copy = malloc(bytes);
    return copy != NULL ? memcpy(copy, src, bytes) : NULL;
}

void inf_cpu_lane_close(inf_lane *l) {
    if (l == NULL) {
        return;
    }
    void *all[] = {l->windows, l->inv_freq, l->position, l->cos,  l->sin,   l->attn,
                   l->o2,      l->lse2,     l->lse,      l->to_o, l->to_lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
    inf_cpu_experts_close(l->experts);
    free(l);
}

/* Memory that the lane's kind of work needs; 0 where one piece could not be had. */
static int take_memory(inf_lane *l, const inf_lane_config *c) {
    const inf_device_config *d = c->device;
    size_t rows = (size_t)c->max_rows, heads = rows * (size_t)d->heads;
    size_t table = (size_t)inf_ropes(d) * (size_t)inf_rotary_dim(d) / 2;
    if (c->kind == INF_LANE_COPY) {
        return 1;
    }
    l->attn = calloc((size_t)c->max_segments, sizeof *l->attn);
    if (c->kind == INF_LANE_STEP) {
        l->windows = copy_of(c->windows, (size_t)d->layers * sizeof *l->windows);
        l->inv_freq = copy_of(c->inv_freq, table * sizeof *l->inv_freq);
        l->position = calloc(rows, sizeof *l->position);
        l->cos = inf_cpu_alloc(NULL, rows * table * sizeof(float));
        l->sin = inf_cpu_alloc(NULL, rows * table * sizeof(float));
        l->lse = inf_cpu_alloc(NULL, heads * sizeof(float));
        return l->attn && l->position && l->windows && l->inv_freq && l->cos && l->sin && l->lse &&
               (d->experts == 0 || inf_cpu_experts_open(l));
    }
    l->o2 = inf_cpu_alloc(NULL, heads * (size_t)d->head_dim * sizeof(float));
    l->lse2 = inf_cpu_alloc(NULL, heads * sizeof(float));
    l->to_o = calloc((size_t)c->max_segments, sizeof *l->to_o);
    l->to_lse = calloc((size_t)c->max_segments, sizeof *l->to_lse);
    return l->attn && l->o2 && l->lse2 && l->to_o && l->to_lse;
}

int inf_cpu_lane_open(inf_backend *b, const inf_lane_config *c, inf_lane **out, inf_err *err) {
    inf_lane *l = calloc(1, sizeof *l);
    *out = NULL;
    if (l == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a lane");
    }
    const inf_device_config *d = c->device;
    l->backend = (cpu_backend *)b;
    l->ops = l->backend->ops;
    l->threads = c->threads;
    l->dims = *d;
    l->kv = c->kv;
    l->pool = c->pool;
    l->scale = c->scale;
    l->q_dim = d->heads * d->head_dim;
    l->kv_dim = d->kv_heads * d->head_dim;
    l->max_rows = c->max_rows;
    l->qkv_dim = l->q_dim + 2 * l->kv_dim;
    if (!take_memory(l, c)) {
        inf_cpu_lane_close(l);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a lane for %d rows", c->max_rows);
    }
    *out = l;
    return INF_OK;
}
