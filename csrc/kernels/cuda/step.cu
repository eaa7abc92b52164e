/* The step on a lane: its input, the operations of the table, and recordings.
 *
 * Recordings are CUDA graphs. Steps in which every request computes one token do the same launches
 * every time, only on other words in the same places; so the second step with a number of rows is
 * captured, and from the third on one launch does what hundreds did. The first runs as it is
 * called, so that matrix products are timed outside of a capture. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lane.h"

/* ---- input ---- */

/* Where each row's token stands, and where its K and V go. */
static void put_rows(inf_lane *l, const inf_step_buffers *s) {
    uint64_t bytes = (uint64_t)l->rows * sizeof(uint32_t);
    uint32_t *tokens = inbox_put(l, l->tokens, bytes);
    uint32_t *position = inbox_put(l, l->position, bytes);
    uint32_t *block = inbox_put(l, l->kv_block, bytes);
    uint32_t *index = inbox_put(l, l->kv_index, bytes);
    if (tokens == NULL || position == NULL || block == NULL || index == NULL) {
        return;
    }
    memcpy(tokens, s->tokens, bytes);
    uint32_t size = (uint32_t)l->kv.block_size;
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *seq = &s->seqs[i];
        for (uint32_t t = 0; t < seq->n_tokens; t++) {
            uint32_t row = seq->token_off + t, local = seq->pos0 + t - seq->local_pos0;
            position[row] = seq->pos0 + t;
            block[row] = (uint32_t)s->blocks[seq->block_off + local / size];
            index[row] = local % size;
        }
    }
}

/* One segment per request: its local blocks. */
static uint32_t add_segments(inf_lane *l, uint32_t first, const inf_step_buffers *s) {
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *seq = &s->seqs[i];
        l->host_segments[first + i] = {seq->token_off,
                                       seq->n_tokens,
                                       seq->pos0,
                                       seq->local_pos0,
                                       seq->pos0 + seq->n_tokens - seq->local_pos0,
                                       seq->block_off};
    }
    return first + s->head->n_seqs;
}

/* Those of halves one behind the other. */
static void put_segments(inf_lane *l, const inf_step_buffers *s, const inf_step_buffers *halves) {
    uint32_t n = 0;
    for (int32_t i = 0; i < (halves != NULL ? (int32_t)INF_HALVES : 1); i++) {
        n = add_segments(l, n, halves != NULL ? &halves[i] : s);
    }
    uint32_t *segments = inbox_put(l, l->segments, n * sizeof(inf_cuda_segment));
    uint32_t *blocks = inbox_put(l, l->blocks, s->head->n_blocks * sizeof(int32_t));
    uint32_t *pick = inbox_put(l, l->pick, s->head->n_rows * sizeof(int32_t));
    if (segments == NULL || blocks == NULL || pick == NULL) {
        return;
    }
    memcpy(segments, l->host_segments, n * sizeof(inf_cuda_segment));
    memcpy(blocks, s->blocks, s->head->n_blocks * sizeof(int32_t));
    for (uint32_t i = 0; i < s->head->n_rows; i++) {
        pick[i] = s->rows[i].token;
    }
}

/* What operations are on. */
static void step_half(inf_lane *l, int32_t half) {
    const inf_step_buffers *s = half == INF_WHOLE ? l->step : &l->halves[half];
    l->rows = (int32_t)s->head->n_tokens;
    l->row0 = half > 0 ? (int64_t)l->halves->head->n_tokens : 0;
    l->first_segment = half > 0 ? (int32_t)l->halves->head->n_seqs : 0;
    l->lists = half > 0 ? l->second : l->classes;
}

/* The first row of what operations are on, in [rows, width] that begins with the step's. */
template <typename T> static T *rows_of(const inf_lane *l, T *base, int64_t width) {
    return base + l->row0 * width;
}
static uint8_t *act_rows(const inf_lane *l, const void *base, int64_t width) {
    return base == NULL ? NULL : rows_of(l, (uint8_t *)base, width * l->act_bytes);
}

static void put_plans(inf_lane *l, class_lists *plans, const inf_cuda_segment *segments,
                      const inf_step_buffers *s) {
    int32_t n = (int32_t)s->head->n_seqs, rows = (int32_t)s->head->n_tokens;
    for (int32_t i = 0; i < l->n_classes; i++) {
        lane_plan(l, &plans[i], segments, n, rows);
        l->recordable = l->recordable && plans[i].n_prefill == 0;
    }
}

/* Where the table of a rotation begins in cos and sin. */
static int64_t table_of(const inf_lane *l, int32_t rope) {
    return (int64_t)rope * l->max_rows * (inf_rotary_dim(&l->dims) / 2);
}

static void put_rotations(inf_lane *l, int32_t rope) {
    inf_cuda_rope_table table = {};
    table.half = inf_rotary_dim(&l->dims) / 2;
    table.position = l->position;
    table.inv_freq = l->inv_freq + (int64_t)rope * table.half;
    table.cos = l->cos + table_of(l, rope);
    table.sin = l->sin + table_of(l, rope);
    table.scale = rope == 0 ? l->dims.rope_scale : 1.0f;
    table.rows = l->rows;
    table.early = l->backend->early_rows;
    lane_ok(l, inf_cuda_rope_table_launch(&table, l->stream), "the table of rotations");
}

static void step_begin(inf_lane *l, const inf_step_buffers *s, const inf_step_buffers *halves) {
    lane_enter(l);
    l->step = s;
    l->halves = halves;
    step_half(l, INF_WHOLE);
    l->n_wait = l->staged = 0;
    l->given.n = l->given.rows = l->taken_in.n = l->taken_in.rows = 0;
    l->unscaled = NULL;
    inbox_begin(l);
    put_rows(l, s);
    put_segments(l, s, halves);
    draw_begin(l, s);
    l->recordable = l->rows == (int32_t)s->head->n_seqs && l->rows <= RECORD_ROWS &&
                    l->backend->record && halves == NULL;
    put_plans(l, l->classes, l->host_segments, halves != NULL ? &halves[0] : s);
    if (halves != NULL) {
        put_plans(l, l->second, l->host_segments + halves[0].head->n_seqs, &halves[1]);
    }
    inbox_send(l);
    for (int32_t rope = 0; rope < inf_ropes(&l->dims); rope++) {
        put_rotations(l, rope);
    }
}

/* ---- recordings ---- */

static int step_record(inf_lane *l, uint32_t key) {
    lane_enter(l);
    l->capturing = NULL;
    if (!l->recordable || l->fault != 0 || key >= (uint32_t)l->keys) {
        return 0;
    }
    recording *r = &l->recordings[(int64_t)(l->rows - 1) * l->keys + key];
    if (r->exec != NULL) {
        lane_ok(l, cudaGraphLaunch(r->exec, l->stream), "a recorded step");
        return 1;
    }
    if (r->seen++ == 1 &&
        cudaStreamBeginCapture(l->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess) {
        l->capturing = r;
        l->unscaled_before = l->unscaled;
    }
    (void)cudaGetLastError(); /* without a recording it takes longer, that is all */
    return 0;
}

/* A recording that came to nothing, for want of memory say, is not tried again. What failed in it
 * fails again when it is asked for once more, if it was not for the recording. */
static int step_recorded(inf_lane *l) {
    lane_enter(l);
    recording *r = l->capturing;
    if (r == NULL) {
        return 0;
    }
    l->capturing = NULL;
    cudaGraph_t graph = NULL;
    bool ok = cudaStreamEndCapture(l->stream, &graph) == cudaSuccess && l->fault == 0 &&
              cudaGraphInstantiateWithFlags(&r->exec, graph, 0) == cudaSuccess;
    if (graph != NULL) {
        (void)cudaGraphDestroy(graph);
    }
    if (!ok) {
        (void)cudaGetLastError();
        r->exec = NULL;
        l->fault = 0;
        l->fault_at = NULL;
        l->unscaled = l->unscaled_before; /* as if nothing of it had been asked for */
        return 1;
    }
    lane_ok(l, cudaGraphLaunch(r->exec, l->stream), "a recorded step");
    return 0;
}

/* ---- operations ----
 *
 * Each makes its GPU the thread's: ranks of one instance are asked in turn by one thread. */

static void step_embed(inf_lane *l, const void *table, float *x) {
    lane_enter(l);
    int32_t hidden = l->dims.hidden;
    float scale = l->dims.embed_scale != 0 ? l->dims.embed_scale : 1.0f;
    inf_cuda_embed p = {
        rows_of(l, l->tokens, 1), table, rows_of(l, x, hidden), l->dims.dtype, l->rows, hidden,
        l->backend->early_rows,   scale};
    lane_ok(l, inf_cuda_embed_launch(&p, l->stream), "embed");
}

static inf_cuda_add_norm norm_of(const inf_lane *l, float *x, const float *weight, void *y,
                                 int32_t rows) {
    inf_cuda_add_norm p = {};
    p.x = x;
    p.weight = weight;
    p.y = y;
    p.add_dtype = p.y_dtype = l->act;
    p.rows = rows;
    p.n = l->dims.hidden;
    p.eps = l->dims.rms_eps;
    p.early = l->backend->early_rows;
    return p;
}

static void step_add_norm(inf_lane *l, float *x, void *add, const float *post, const float *weight,
                          void *y) {
    lane_enter(l);
    int32_t n = l->dims.hidden;
    inf_cuda_add_norm p = norm_of(l, rows_of(l, x, n), weight, act_rows(l, y, n), l->rows);
    p.add = act_rows(l, add, n);
    p.post = post;
    lane_ok(l, inf_cuda_add_norm_launch(&p, l->stream), "add_norm");
}

static void step_pick_norm(inf_lane *l, const float *x, uint32_t first, int32_t n,
                           const float *weight, void *y) {
    lane_enter(l);
    inf_cuda_add_norm p = norm_of(l, (float *)x, weight, y, n);
    p.pick = l->pick + first;
    lane_ok(l, inf_cuda_add_norm_launch(&p, l->stream), "pick_norm");
}

/* The product of the rows that operations are on. */
static inf_product product_of(const inf_lane *l, const inf_product *p) {
    inf_product at = *p;
    at.x = act_rows(l, p->x, p->k);
    at.y = p->y_f32 ? (void *)rows_of(l, (float *)p->y, p->n) : act_rows(l, p->y, p->n);
    return at;
}

/* Whether all tiles run at once by three blocks per SM, and by two half of a second round is empty:
 * an H200 makes the 384 of an 8B shape's q, k and v in 14.3 us instead of 18.1 when they begin
 * early, and a step with all such products by three is faster by 3 %. Those of 256 are as fast or
 * slower. */
static bool third_saves_a_round(int32_t n, int32_t sms) {
    int32_t tiles = n / 16;
    return 2 * tiles >= 5 * sms && tiles <= 3 * sms;
}

/* p of product_of, as is y. */
static inf_cuda_small small_of(const inf_lane *l, const inf_product *p, int32_t gate, void *y) {
    inf_cuda_small s = {};
    s.x = p->x;
    s.w = p->w;
    s.bias = p->bias;
    s.y = y;
    s.act = l->act;
    s.rows = p->rows;
    s.n = gate ? p->n / 2 : p->n;
    s.k = p->k;
    s.y_f32 = p->y_f32;
    s.gate = gate;
    s.activation = l->dims.activation;
    s.eps = l->dims.rms_eps;
    s.x_squares = p->x == l->unscaled ? l->squares : NULL;
    s.early = l->backend->early_small ? 1 + l->backend->prefetch : 0;
    s.three = l->backend->small3 || third_saves_a_round(s.n, l->backend->sms);
    s.through = l->backend->through;
    s.sms = l->backend->sms;
    return s;
}

/* Few rows are done by the kernel for them, more by the library. */
static bool small_product(inf_lane *l, const inf_product *p, int32_t gate, void *y) {
    inf_cuda_small s = small_of(l, p, gate, y);
    return l->backend->small && inf_cuda_small_takes(&s) && lane_small_is_faster(l, p, &s, y) &&
           lane_ok(l, inf_cuda_small_launch(&s, l->stream), "a small product");
}

static void step_product(inf_lane *l, const inf_product *p) {
    lane_enter(l);
    inf_product at = product_of(l, p);
    if (l->fault == 0 && !small_product(l, &at, 0, at.y)) {
        lane_ok(l, inf_cuda_product(l->products, &at, l->stream), "a product");
    }
    if (at.softcap > 0) {
        inf_cuda_softcap c = {(float *)at.y, (int64_t)at.rows * at.n, at.softcap,
                              l->backend->early_rows};
        lane_ok(l, inf_cuda_softcap_launch(&c, l->stream), "the cap of logits");
    }
}

/* Do the products of a layer that read a normed row all go by the kernel for few rows? */
static bool fuses(const inf_lane *l, int32_t rows) {
    const inf_device_config *d = &l->dims;
    return l->backend->small && l->backend->fuse && rows <= INF_CUDA_SMALL_ROWS &&
           l->act != INF_DTYPE_F32 && d->hidden % 64 == 0 && d->intermediate % 64 == 0 &&
           d->shared_intermediate % 64 == 0 && l->q_dim % 64 == 0 && l->qkv_dim % 16 == 0;
}

static void step_product_norm(inf_lane *l, const inf_product *p, float *x, const float *post,
                              const float *weight, void *y) {
    lane_enter(l);
    if (!fuses(l, p->rows) || post != NULL || (weight == NULL && y != NULL)) {
        l->unscaled = NULL;
        step_product(l, p);
        step_add_norm(l, x, p->y, post, weight, y);
        return;
    }
    inf_product at = product_of(l, p);
    inf_cuda_small s = small_of(l, &at, 0, act_rows(l, y, p->n));
    s.residual = rows_of(l, x, p->n);
    s.norm = weight;
    s.squares = l->squares;
    lane_ok(l, inf_cuda_small_launch(&s, l->stream), "a product and its norm");
    l->unscaled = s.y;
}

static void step_gated(inf_lane *l, const inf_product *p, void *y) {
    lane_enter(l);
    inf_product at = product_of(l, p);
    y = act_rows(l, y, p->n / 2);
    if (l->fault != 0 || small_product(l, &at, 1, y)) {
        return;
    }
    inf_cuda_small s = small_of(l, &at, 1, y);
    lane_gated_by_library(l, &at, &s, y);
}

static void step_heads(inf_lane *l, const inf_heads *h) {
    lane_enter(l);
    int32_t half = inf_rotary_dim(&l->dims) / 2;
    int64_t table = table_of(l, l->rope_of[h->layer]);
    inf_cuda_heads p = {};
    p.qkv = act_rows(l, h->qkv, l->qkv_dim);
    p.q_norm = h->q_norm;
    p.k_norm = h->k_norm;
    p.cos = rows_of(l, l->cos + table, half);
    p.sin = rows_of(l, l->sin + table, half);
    p.rotary = 2 * half;
    p.q = act_rows(l, h->q, l->q_dim);
    p.pool = l->pool;
    p.kv = l->kv;
    p.kv_block = rows_of(l, l->kv_block, 1);
    p.kv_index = rows_of(l, l->kv_index, 1);
    p.act = l->act;
    p.rows = l->rows;
    p.heads = l->dims.heads;
    p.layer = h->layer;
    p.eps = l->dims.rms_eps;
    p.early = l->backend->early_rows;
    if (l->head_scales != NULL) {
        p.scales = l->head_scales;
        inf_cuda_head_scales s = {p.qkv,         l->head_scales, p.act, p.rows, p.heads,
                                  p.kv.kv_heads, p.kv.head_dim,  p.eps, p.early};
        lane_ok(l, inf_cuda_head_scales_launch(&s, l->stream), "the norms over all heads");
    }
    lane_ok(l, inf_cuda_heads_launch(&p, l->stream), "heads");
}

static void step_attend(inf_lane *l, int32_t layer, const void *q, void *o, int32_t open) {
    lane_enter(l);
    const class_lists *c = &l->lists[l->class_of[layer]];
    q = act_rows(l, q, l->q_dim);
    o = act_rows(l, o, l->q_dim);
    bool whole = l->capturing != NULL;
    /* The same for every layer and step; settle asks for it. */
    l->partial = l->act == INF_DTYPE_F32 ? (float *)o : l->o32;
    /* Whether the step's input was there when the kernel in front began. A recording begins when
     * all before it has ended, and the input is no part of it. Elsewhere: in front of RoPE are
     * products, which wait for all before them unless they begin early; should the library's do so,
     * then in layers behind the first the input is long there. */
    bool own = l->capturing != NULL || (l->backend->early_small == 0 && layer > 0);
    attend_to to = {o, l->act, NULL, NULL, own};
    if (open) {
        to = {l->partial, INF_DTYPE_F32, l->lse, NULL, own};
    }
    lane_attend(l, c, layer, q, &to, l->rows, whole);
}

void inf_cuda_step_table(inf_backend_ops *ops) {
    ops->lane_open = inf_cuda_lane_open;
    ops->lane_close = inf_cuda_lane_close;
    ops->begin = step_begin;
    ops->half = step_half;
    ops->record = step_record;
    ops->recorded = step_recorded;
    ops->embed = step_embed;
    ops->add_norm = step_add_norm;
    ops->pick_norm = step_pick_norm;
    ops->product = step_product;
    ops->product_norm = step_product_norm;
    ops->heads = step_heads;
    ops->attend = step_attend;
    ops->gated = step_gated;
    ops->experts = inf_cuda_experts;
    ops->slot_open = inf_cuda_slot_open;
    ops->sample = inf_cuda_draw;
    ops->answer = inf_cuda_answer;
    ops->collective_open = inf_cuda_collective_open;
    inf_cuda_exchange_table(ops);
}
