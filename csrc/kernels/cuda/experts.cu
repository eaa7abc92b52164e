/* The MLP of a layer with experts on a step's lane. The shared expert goes by the products of any
 * MLP; the others by product_grouped.cu. */
#include "kernels/cuda/experts.h"
#include "kernels/cuda/lane.h"

bool experts_memory(inf_lane *l) {
    const inf_device_config *d = &l->dims;
    lane_experts *e = &l->experts;
    uint64_t rows = (uint64_t)l->max_rows, hidden = (uint64_t)d->hidden;
    uint64_t places = rows * (uint64_t)d->experts_per_token, act = (uint64_t)l->act_bytes;
    uint64_t shared = (uint64_t)d->shared_intermediate;
    if (d->experts == 0) {
        return true;
    }
    uint64_t items = (uint64_t)inf_cuda_most_items((int64_t)places, d->experts);
    bool ok = take(l, &e->logits, rows * ((uint64_t)d->experts + 1)) && take(l, &e->scale, rows) &&
              take(l, &e->weight, places) && take(l, &e->chosen, places) &&
              take(l, &e->place, places) && take(l, &e->source, places) &&
              take(l, &e->items, items) && take(l, &e->n_items, 1) &&
              take(l, &e->out, places * hidden) &&
              take(l, (uint8_t **)&e->act, places * (uint64_t)d->expert_intermediate * act);
    return ok && (shared == 0 || (take(l, (uint8_t **)&e->shared_gu, rows * 2 * shared * act) &&
                                  take(l, (uint8_t **)&e->shared_act, rows * shared * act) &&
                                  take(l, (uint8_t **)&e->shared_out, rows * hidden * act)));
}

static inf_cuda_route route_of(const inf_lane *l, const inf_experts *p, const void *x) {
    const inf_device_config *d = &l->dims;
    const lane_experts *e = &l->experts;
    inf_cuda_route r = {};
    r.x = x;
    r.router = (const float *)p->router;
    r.x_squares = x == l->unscaled ? l->squares : NULL;
    r.eps = d->rms_eps;
    r.logits = e->logits;
    r.scale = e->scale;
    r.chosen = e->chosen;
    r.weight = e->weight;
    r.place = e->place;
    r.source = e->source;
    r.items = e->items;
    r.n_items = e->n_items;
    r.act = l->act;
    r.rows = p->rows;
    r.hidden = d->hidden;
    r.experts = d->experts;
    r.shared = d->shared_intermediate > 0;
    r.top_k = d->experts_per_token;
    r.normalise = (d->model_flags & INF_MODEL_NORM_TOPK) != 0;
    return r;
}

static inf_cuda_grouped grouped_of(const inf_lane *l, const inf_experts *p) {
    const lane_experts *e = &l->experts;
    inf_cuda_grouped g = {};
    g.items = e->items;
    g.n_items = e->n_items;
    g.act = l->act;
    g.places = p->rows * l->dims.experts_per_token;
    g.experts = l->dims.experts;
    g.most = p->rows; /* a row has an expert once */
    return g;
}

/* The shared expert, by operations that begin with the step's first row. */
static void shared_expert(inf_lane *l, const inf_experts *p) {
    const inf_backend_ops *ops = l->backend->base.ops;
    const lane_experts *e = &l->experts;
    int32_t inner = l->dims.shared_intermediate, hidden = l->dims.hidden;
    inf_product gate_up = {
        p->x, p->shared_gate_up, NULL, e->shared_gu, p->rows, 2 * inner, hidden, 0, 0};
    inf_product down = {
        e->shared_act, p->shared_down, NULL, e->shared_out, p->rows, hidden, inner, 0, 0};
    ops->gated(l, &gate_up, e->shared_act);
    ops->product(l, &down);
}

void inf_cuda_experts(inf_lane *l, const inf_experts *p) {
    const inf_device_config *d = &l->dims;
    const lane_experts *e = &l->experts;
    lane_enter(l);
    uint64_t skipped = (uint64_t)l->row0 * (uint64_t)d->hidden * (uint64_t)l->act_bytes;
    const uint8_t *x = (const uint8_t *)p->x + skipped;
    inf_cuda_route route = route_of(l, p, x);
    inf_cuda_grouped up = grouped_of(l, p), down = up;
    up.x = x;
    up.w = (const void *const *)p->gate_up;
    up.y = e->act;
    up.source = e->source;
    up.scale = e->scale;
    up.n = d->expert_intermediate;
    up.k = d->hidden;
    up.gate = 1;
    down.x = e->act;
    down.w = (const void *const *)p->down;
    down.y = e->out;
    down.n = d->hidden;
    down.k = d->expert_intermediate;
    if (l->fault != 0 || !lane_ok(l, inf_cuda_route_launch(&route, l->stream), "routing") ||
        !lane_ok(l, inf_cuda_grouped_launch(&up, l->stream), "experts' gate and up") ||
        !lane_ok(l, inf_cuda_grouped_launch(&down, l->stream), "experts' outputs")) {
        return;
    }
    inf_cuda_gather_experts sum = {};
    if (route.shared) {
        shared_expert(l, p);
        sum.shared = (const uint8_t *)e->shared_out + skipped;
    }
    sum.out = e->out;
    sum.logits = e->logits;
    sum.weight = e->weight;
    sum.place = e->place;
    sum.y = (uint8_t *)p->y + skipped;
    sum.act = l->act;
    sum.rows = p->rows;
    sum.hidden = d->hidden;
    sum.experts = d->experts;
    sum.top_k = d->experts_per_token;
    lane_ok(l, inf_cuda_gather_experts_launch(&sum, l->stream), "the sum of experts");
    l->unscaled = NULL; /* y may be what it was */
}
