/* The step of a tensor-parallel backend: each operation on all ranks, by the ranks' own threads
 * where they have some (tp_lane.team), or by the caller in turn. */
#include "kernels/convert.h"
#include "kernels/tp/tp.h"

static tp_lane *of(inf_lane *lane) { return (tp_lane *)(void *)lane; }

/* An operation on rank r; what lies behind arg is the operation's. */
typedef void (*tp_op)(tp_lane *l, int32_t r, void *arg);

typedef struct tp_call {
    tp_lane *lane;
    tp_op op;
    void *arg;
} tp_call;

static void call_rank(void *call, int32_t r, int32_t thread) {
    (void)thread;
    tp_call *c = call;
    c->op(c->lane, r, c->arg);
}

/* On all ranks; it is asked for on all of them on return. */
static void on_each(tp_lane *l, tp_op op, void *arg) {
    tp_call c = {l, op, arg};
    inf_pool_run(l->team, call_rank, &c, l->n);
}

typedef struct begin_args {
    const inf_step_buffers *step, *halves;
} begin_args;

static void begin_rank(tp_lane *l, int32_t r, void *arg) {
    const begin_args *a = arg;
    l->ops->begin(l->rank[r], a->step, a->halves);
}

static void tp_begin(inf_lane *lane, const inf_step_buffers *step, const inf_step_buffers *halves) {
    begin_args a = {step, halves};
    tp_lane *l = of(lane);
    l->row0 = 0;
    l->second = halves != NULL ? halves->head->n_tokens : 0;
    on_each(l, begin_rank, &a);
}

static void half_rank(tp_lane *l, int32_t r, void *arg) {
    l->ops->half(l->rank[r], *(const int32_t *)arg);
}

static void tp_half(inf_lane *lane, int32_t half) {
    tp_lane *l = of(lane);
    l->row0 = half > 0 ? l->second : 0;
    on_each(l, half_rank, &half);
}

/* Steps of several ranks are not recorded: backend.c. */
static int tp_record(inf_lane *lane, uint32_t key) {
    (void)lane;
    (void)key;
    return 0;
}

static int tp_recorded(inf_lane *lane) {
    (void)lane;
    return 0;
}

typedef struct embed_args {
    const void *table;
    float *x;
} embed_args;

static void embed_rank(tp_lane *l, int32_t r, void *arg) {
    const embed_args *a = arg;
    l->ops->embed(l->rank[r], tp_part(a->table, r), tp_part(a->x, r));
}

static void tp_embed(inf_lane *lane, const void *table, float *x) {
    embed_args a = {table, x};
    on_each(of(lane), embed_rank, &a);
}

typedef struct norm_args {
    const float *x;
    void *add;
    const float *post, *weight;
    void *y;
    uint32_t first; /* of pick_norm, and n */
    int32_t n;
} norm_args;

static void add_norm_rank(tp_lane *l, int32_t r, void *arg) {
    const norm_args *a = arg;
    l->ops->add_norm(l->rank[r], tp_part(a->x, r), tp_part(a->add, r), tp_part(a->post, r),
                     tp_part(a->weight, r), tp_part(a->y, r));
}

static void tp_add_norm(inf_lane *lane, float *x, void *add, const float *post, const float *weight,
                        void *y) {
    norm_args a = {x, add, post, weight, y, 0, 0};
    on_each(of(lane), add_norm_rank, &a);
}

static void pick_norm_rank(tp_lane *l, int32_t r, void *arg) {
    const norm_args *a = arg;
    l->ops->pick_norm(l->rank[r], tp_part(a->x, r), a->first, a->n, tp_part(a->weight, r),
                      tp_part(a->y, r));
}

static void tp_pick_norm(inf_lane *lane, const float *x, uint32_t first, int32_t n,
                         const float *weight, void *y) {
    norm_args a = {x, NULL, NULL, weight, y, first, n};
    on_each(of(lane), pick_norm_rank, &a);
}

static inf_product product_of(const inf_product *p, int32_t rank) {
    inf_product mine = *p;
    mine.x = tp_part(p->x, rank);
    mine.w = tp_part(p->w, rank);
    mine.bias = tp_part(p->bias, rank);
    mine.y = tp_part(p->y, rank);
    return mine;
}

/* Where a rank's share of the head begins: an embedding that serves as the head is row-major, and
 * whole on every rank. */
static const void *head_of(const tp_lane *l, const inf_product *p, int32_t rank, int32_t first) {
    const uint8_t *w = tp_part(p->w, rank);
    if (((const tp_memory *)p->w)->cut == INF_CUT_SHARES) {
        return w;
    }
    return w + (uint64_t)first * (uint64_t)p->k * inf_dtype_bytes(l->dims.dtype);
}

typedef struct product_args {
    const inf_product *p;
    void *y;                    /* of gated */
    void *parts[INF_MAX_RANKS]; /* of what is summed or gathered */
} product_args;

static void logits_rank(tp_lane *l, int32_t r, void *arg) {
    product_args *a = arg;
    inf_share share = inf_share_of(a->p->n, l->n, r);
    inf_product mine = product_of(a->p, r);
    a->parts[r] = r == 0 ? l->logits : mine.y;
    mine.w = head_of(l, a->p, r, share.first);
    mine.y = a->parts[r];
    mine.n = share.n;
    if (share.n > 0) {
        l->ops->product(l->rank[r], &mine);
    }
}

/* Each rank's share of the logits, and all of them in rank 0's memory. The others have room for
 * their share where rank 0 has the whole. */
static void tp_logits(tp_lane *l, const inf_product *p) {
    product_args a = {.p = p};
    float *parts[INF_MAX_RANKS];
    on_each(l, logits_rank, &a);
    for (int32_t r = 0; r < l->n; r++) {
        parts[r] = a.parts[r];
    }
    pthread_mutex_lock(&l->backend->gate);
    l->sum->ops->gather(l->sum, parts, tp_part(p->y, 0), p->rows);
    pthread_mutex_unlock(&l->backend->gate);
}

static void product_rank(tp_lane *l, int32_t r, void *arg) {
    const product_args *a = arg;
    inf_product mine = product_of(a->p, r);
    l->ops->product(l->rank[r], &mine);
}

static void tp_product(inf_lane *lane, const inf_product *p) {
    if (p->y_f32) {
        tp_logits(of(lane), p);
        return;
    }
    product_args a = {.p = p};
    on_each(of(lane), product_rank, &a);
}

static void summand_rank(tp_lane *l, int32_t r, void *arg) {
    product_args *a = arg;
    inf_product mine = product_of(a->p, r);
    mine.bias = r == 0 ? mine.bias : NULL; /* once in the sum */
    a->parts[r] = (uint8_t *)mine.y +      /* what the sum is of: the rows that the product made */
                  l->row0 * (uint64_t)mine.n * (uint64_t)l->backend->base.act_bytes;
    l->ops->product(l->rank[r], &mine);
}

static void tp_product_norm(inf_lane *lane, const inf_product *p, float *x, const float *post,
                            const float *weight, void *y) {
    tp_lane *l = of(lane);
    product_args a = {.p = p};
    on_each(l, summand_rank, &a);
    pthread_mutex_lock(&l->backend->gate);
    l->sum->ops->sum(l->sum, a.parts, (uint64_t)p->rows * (uint64_t)p->n);
    pthread_mutex_unlock(&l->backend->gate);
    tp_add_norm(lane, x, p->y, post, weight, y);
}

static void gated_rank(tp_lane *l, int32_t r, void *arg) {
    const product_args *a = arg;
    inf_product mine = product_of(a->p, r);
    l->ops->gated(l->rank[r], &mine, tp_part(a->y, r));
}

static void tp_gated(inf_lane *lane, const inf_product *p, void *y) {
    product_args a = {.p = p, .y = y};
    on_each(of(lane), gated_rank, &a);
}

typedef struct experts_args {
    const inf_experts *p;
    void *parts[INF_MAX_RANKS];
} experts_args;

static void experts_rank(tp_lane *l, int32_t r, void *arg) {
    experts_args *a = arg;
    const inf_experts *p = a->p;
    inf_experts mine = {.x = tp_part(p->x, r),
                        .router = tp_part(p->router, r),
                        .gate_up = tp_part(p->gate_up, r),
                        .down = tp_part(p->down, r),
                        .shared_gate_up = tp_part(p->shared_gate_up, r),
                        .shared_down = tp_part(p->shared_down, r),
                        .y = tp_part(p->y, r),
                        .rows = p->rows};
    a->parts[r] = (uint8_t *)mine.y +
                  l->row0 * (uint64_t)l->dims.hidden * (uint64_t)l->backend->base.act_bytes;
    l->ops->experts(l->rank[r], &mine);
}

static void tp_experts(inf_lane *lane, const inf_experts *p) {
    tp_lane *l = of(lane);
    experts_args a = {.p = p};
    on_each(l, experts_rank, &a);
    pthread_mutex_lock(&l->backend->gate);
    l->sum->ops->sum(l->sum, a.parts, (uint64_t)p->rows * (uint64_t)l->dims.hidden);
    pthread_mutex_unlock(&l->backend->gate);
}

static void heads_rank(tp_lane *l, int32_t r, void *arg) {
    const inf_heads *p = arg;
    inf_heads mine = {tp_part(p->qkv, r), tp_part(p->q_norm, r), tp_part(p->k_norm, r),
                      tp_part(p->q, r), p->layer};
    l->ops->heads(l->rank[r], &mine);
}

static void tp_heads(inf_lane *lane, const inf_heads *p) {
    inf_heads all = *p;
    on_each(of(lane), heads_rank, &all);
}

typedef struct attend_args {
    int32_t layer, open;
    const void *q;
    void *o;
} attend_args;

static void attend_rank(tp_lane *l, int32_t r, void *arg) {
    const attend_args *a = arg;
    l->ops->attend(l->rank[r], a->layer, tp_part(a->q, r), tp_part(a->o, r), a->open);
}

static void tp_attend(inf_lane *lane, int32_t layer, const void *q, void *o, int32_t open) {
    attend_args a = {layer, open, q, o};
    on_each(of(lane), attend_rank, &a);
}

/* ---- exchange: host memory has all heads, a rank its columns ---- */

/* Noted, and not launched so far, by each rank: the caller does that. The host memory is held if a
 * rank holds it. */
static int tp_merge(inf_lane *lane, uint32_t row0, int32_t rows, const float *o2, const float *lse2,
                    int32_t stride) {
    tp_lane *l = of(lane);
    int32_t heads = l->dims.heads / l->n, held = 0;
    for (int32_t r = 0; r < l->n; r++) {
        held |= l->ops->merge(l->rank[r], row0, rows, o2 + r * heads * l->dims.head_dim,
                              lse2 + r * heads, stride);
    }
    return held;
}

static void settle_rank(tp_lane *l, int32_t r, void *o) {
    l->ops->settle(l->rank[r], tp_part(o, r));
}

static void tp_settle(inf_lane *lane, void *o) { on_each(of(lane), settle_rank, o); }

static void tp_queries(inf_lane *lane, const void *q, uint32_t row0, int32_t rows, float *host,
                       int32_t stride) {
    tp_lane *l = of(lane);
    int32_t heads = l->dims.heads / l->n;
    for (int32_t r = 0; r < l->n; r++) {
        l->ops->queries(l->rank[r], tp_part(q, r), row0, rows, host + r * heads * l->dims.head_dim,
                        stride);
    }
}

/* ---- sampling: the first rank's, which has the logits ---- */

/* Only counts are allocated for. */
static int tp_slot_open(inf_lane *lane, uint32_t slot, const inf_sampling *sampling,
                        const int32_t *tokens, int64_t n_tokens, int64_t n_prompt,
                        const int32_t *bias_ids, const float *bias, int32_t n_bias, inf_err *err) {
    tp_lane *l = of(lane);
    int counts = inf_sampling_counts(sampling);
    inf_collective_end end = counts ? inf_tp_hold(l->backend) : (inf_collective_end){-1, 0};
    int status = end.failed < 0 ? l->ops->slot_open(l->rank[0], slot, sampling, tokens, n_tokens,
                                                    n_prompt, bias_ids, bias, n_bias, err)
                                : inf_tp_lost(&end, l->backend, "open a slot", err);
    if (counts) {
        inf_tp_let_go(l->backend);
    }
    return status;
}

static void tp_sample(inf_lane *lane, const float *logits, uint32_t first, int32_t n,
                      inf_row_out *out, int32_t *status) {
    tp_lane *l = of(lane);
    l->ops->sample(l->rank[0], tp_part(logits, 0), first, n, out, status);
}

void inf_tp_step_table(inf_backend_ops *ops, const inf_backend_ops *rank) {
    ops->begin = tp_begin;
    ops->half = tp_half;
    ops->record = tp_record;
    ops->recorded = tp_recorded;
    ops->embed = tp_embed;
    ops->add_norm = tp_add_norm;
    ops->pick_norm = tp_pick_norm;
    ops->product = tp_product;
    ops->product_norm = tp_product_norm;
    ops->gated = tp_gated;
    ops->experts = tp_experts;
    ops->heads = tp_heads;
    ops->attend = tp_attend;
    ops->merge = tp_merge;
    ops->settle = tp_settle;
    ops->queries = tp_queries;
    if (rank->sample != NULL) {
        ops->slot_open = tp_slot_open;
        ops->sample = tp_sample;
    }
}
