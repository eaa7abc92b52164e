/* The order of the layers, over what a device does for them (kernels/backend.h): all KV here, some
 * of it with others, and the latter in halves. */
#include "model/forward_impl.h"

/* From the normed input to the layer's rotated queries, its K and V in the pool, where those of a
 * wave are others' to read. */
static void project(inf_forward *f, int32_t layer) {
    const inf_layer *l = &f->c.weights->layers[layer];
    inf_product qkv = {f->h,       l->qkv,         l->qkv_bias, f->qkv, f->n_rows,
                       f->qkv_dim, f->dims.hidden, 0,           0};
    f->ops->product(f->lane, &qkv);
    inf_heads heads = {f->qkv, l->q_norm, l->k_norm, f->q, layer};
    f->ops->heads(f->lane, &heads);
    if (f->waves) {
        inf_dist_waves_there(f->c.dist, f->part, layer);
    }
}

/* From attention's output to the MLP's input: x += o_proj(o), perhaps normed, and the norm of x.
 */
static void finish_attention(inf_forward *f, int32_t layer) {
    const inf_layer *l = &f->c.weights->layers[layer];
    inf_product o = {f->o, l->o, NULL, f->h, f->n_rows, f->dims.hidden, f->q_dim, 0, 0};
    f->ops->product_norm(f->lane, &o, f->x, l->attn_post_norm, l->mlp_norm, f->h);
}

/* The same of a layer with experts: x += what they give, and the next norm. */
static void run_experts(inf_forward *f, const inf_layer *l, const float *next, void *h) {
    const inf_expert_weights *e = l->experts;
    inf_experts p = {f->h,           e->router, e->gate_up_list, e->down_list, e->shared_gate_up,
                     e->shared_down, f->h,      f->n_rows};
    f->ops->experts(f->lane, &p);
    f->ops->add_norm(f->lane, f->x, f->h, l->mlp_post_norm, next, h);
}

/* x += down(activation(gate(h)) * up(h)), perhaps normed, and on to the next layer's queries, if
 * there is one. */
static void finish_layer(inf_forward *f, int32_t layer) {
    const inf_weights *w = f->c.weights;
    const inf_layer *l = &w->layers[layer];
    const inf_device_config *d = &f->dims;
    int32_t rows = f->n_rows, more = layer + 1 < d->layers;
    const float *next = more ? w->layers[layer + 1].attn_norm : NULL;
    void *h = more ? f->h : NULL;
    if (l->experts != NULL) {
        run_experts(f, l, next, h);
    } else {
        inf_product gate_up = {f->h, l->gate_up, NULL, f->gu, rows, 2 * f->inner, d->hidden, 0, 0};
        inf_product down = {f->act, l->down, NULL, f->h, rows, d->hidden, f->inner, 0, 0};
        f->ops->gated(f->lane, &gate_up, f->act);
        f->ops->product_norm(f->lane, &down, f->x, l->mlp_post_norm, next, h);
    }
    if (more) {
        project(f, layer + 1);
    }
}

static void start_layers(inf_forward *f) {
    const inf_weights *w = f->c.weights;
    f->ops->embed(f->lane, w->embed, f->x);
    f->ops->add_norm(f->lane, f->x, NULL, NULL, w->layers[0].attn_norm, f->h);
    project(f, 0);
}

/* All KV is here: one recording for the whole step. */
static void local_layers(inf_forward *f) {
    if (f->ops->record(f->lane, 0)) {
        return;
    }
    do {
        start_layers(f);
        for (int32_t layer = 0; layer < f->dims.layers; layer++) {
            f->ops->attend(f->lane, layer, f->q, f->o, 0);
            finish_attention(f, layer);
            finish_layer(f, layer);
        }
    } while (f->ops->recorded(f->lane));
}

/* Some KV is with others. Queries for remote spans leave before the local partials are computed,
 * and the remote ones are collected after them, so that the two overlap: a device that goes on by
 * itself is asked for the local ones while the queries are on their way to the messages. What lies
 * between two exchanges is one recording, but for its beginning: when partials have arrived nothing
 * runs, and a single operation starts sooner than a recording, which is launched behind it. Nor are
 * the local partials recorded, which are one operation: next to a recording it could not begin
 * before all in front of it has ended, nor the merge behind it. */
static void shared_layers(inf_forward *f) {
    if (!f->ops->record(f->lane, 1)) {
        do {
            start_layers(f);
        } while (f->ops->recorded(f->lane));
    }
    int ahead = f->ops->leave != NULL;
    for (int32_t layer = 0; layer < f->dims.layers; layer++) {
        inf_dist_ask(f->c.dist, f->step, layer, f->lane, f->q);
        int32_t asked = ahead ? 0 : inf_dist_post(f->c.dist, f->step, f->lane);
        f->ops->attend(f->lane, layer, f->q, f->o, 1);
        asked = ahead ? inf_dist_post(f->c.dist, f->step, f->lane) : asked;
        if (asked > 0) {
            inf_dist_collect(f->c.dist, f->step, f->lane);
        }
        f->ops->settle(f->lane, f->o);
        finish_attention(f, layer);
        if (!f->ops->record(f->lane, 2 + (uint32_t)layer)) {
            do {
                finish_layer(f, layer);
            } while (f->ops->recorded(f->lane));
        }
    }
}

/* ---- halves ----
 *
 * While the partials of one half's layer are on their way, the other half is computed:
 *
 *   home       A0 B0 | A: attend 0 .. project 1 | B: attend 0 .. project 1 | A: attend 1 ..
 *   creditors     A0 | B0                       | A1                       | B1
 *
 * A half's queries of the next layer leave at the end of its turn, so that creditors have the other
 * half's turn to answer. The first half's rows of a request come before the second's, and K and V
 * of both are there when the second attends: each turn appends those of the layer after. */

static void enter(inf_forward *f, int32_t half) {
    f->ops->half(f->lane, half);
    f->part = half == INF_WHOLE ? f->step : &f->halves.step[half];
    f->n_rows = (int32_t)f->part->head->n_tokens;
}

static void post(inf_forward *f) {
    if (f->unposted != INF_WHOLE) {
        f->asked[f->unposted] = inf_dist_post(f->c.dist, &f->halves.step[f->unposted], f->lane);
        f->unposted = INF_WHOLE;
    }
}

/* A device that goes on by itself is given the other half's work before its queries are waited for.
 */
static void ask(inf_forward *f, int32_t half, int32_t layer) {
    inf_dist_ask(f->c.dist, &f->halves.step[half], layer, f->lane, f->q);
    f->unposted = half;
    if (f->ops->leave == NULL) {
        post(f);
    }
}

static void turn(inf_forward *f, int32_t half, int32_t layer) {
    enter(f, half);
    f->ops->attend(f->lane, layer, f->q, f->o, 1);
    post(f);
    if (f->asked[half] > 0) {
        inf_dist_collect(f->c.dist, &f->halves.step[half], f->lane);
    }
    f->ops->settle(f->lane, f->o);
    finish_attention(f, layer);
    finish_layer(f, layer);
    if (layer + 1 < f->dims.layers) {
        ask(f, half, layer + 1);
    }
}

static void halved_layers(inf_forward *f) {
    f->unposted = INF_WHOLE;
    for (int32_t half = 0; half < INF_HALVES; half++) {
        enter(f, half);
        start_layers(f);
        post(f);
        ask(f, half, 0);
    }
    for (int32_t layer = 0; layer < f->dims.layers; layer++) {
        for (int32_t half = 0; half < INF_HALVES; half++) {
            turn(f, half, layer);
        }
    }
    enter(f, INF_WHOLE);
}

void inf_forward_layers(inf_forward *f, int halved) {
    f->part = f->step;
    f->n_rows = (int32_t)f->step->head->n_tokens;
    if (halved) {
        halved_layers(f);
    } else if (f->step->head->n_spans > 0) {
        shared_layers(f);
    } else {
        local_layers(f);
    }
}
