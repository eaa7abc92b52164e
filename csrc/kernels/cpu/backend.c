/* The CPU as a backend: inf_ops over a lane's team of threads. Host memory is device memory,
 * everything is done on return, and act is f32, so that a partial that waits for merges is the
 * output itself. Lanes are in lane.c, answers to others' queries in answer.c. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/backend.h"
#include "kernels/convert.h"
#include "kernels/cpu/lane.h"

static void cpu_close(inf_backend *b) { free(b); }

static int cpu_sync(inf_lane *l, inf_err *err) {
    (void)l;
    (void)err;
    return INF_OK;
}

static void cpu_copy(inf_lane *l, void *to, const void *from, uint64_t bytes) {
    (void)l;
    memcpy(to, from, bytes);
}

static void cpu_copy_rows_out(inf_lane *l, void *host, uint64_t pitch, const void *device,
                              uint64_t width, uint64_t rows) {
    (void)l;
    for (uint64_t r = 0; r < rows; r++) {
        memcpy((uint8_t *)host + r * pitch, (const uint8_t *)device + r * width, width);
    }
}

static void cpu_copy_rows_in(inf_lane *l, void *device, const void *host, uint64_t pitch,
                             uint64_t width, uint64_t rows) {
    (void)l;
    for (uint64_t r = 0; r < rows; r++) {
        memcpy((uint8_t *)device + r * width, (const uint8_t *)host + r * pitch, width);
    }
}

/* ---- the step ---- */

/* cos and sin of position * inv_freq. The product is rounded to float as in Hugging Face's and
 * vLLM's tables, which models were trained with: at positions in the hundred thousands its rounding
 * is visible. The functions of it are taken in double. */
static void rope_row(void *arg, int32_t index, int32_t thread) {
    const inf_lane *l = arg;
    (void)thread;
    int32_t half = inf_rotary_dim(&l->dims) / 2;
    for (int32_t rope = 0; rope < inf_ropes(&l->dims); rope++) {
        int64_t at = ((int64_t)rope * l->max_rows + index) * half;
        double scale = rope == 0 ? (double)l->dims.rope_scale : 1.0;
        for (int32_t i = 0; i < half; i++) {
            double angle = (double)((float)l->position[index] * l->inv_freq[rope * half + i]);
            l->cos[at + i] = (float)(cos(angle) * scale);
            l->sin[at + i] = (float)(sin(angle) * scale);
        }
    }
}

static int32_t step_rows(const inf_lane *l) { return (int32_t)l->step->head->n_tokens; }

/* The first row of what operations are on, in [rows, width] that begins with the step's. */
static float *rows_of(const inf_lane *l, const void *base, int32_t width) {
    return (float *)base + l->row0 * width;
}

static void cpu_half(inf_lane *l, int32_t half) {
    l->step = half == INF_WHOLE ? l->whole : &l->halves[half];
    l->row0 = half > 0 ? (int64_t)l->halves->head->n_tokens : 0;
}

static void cpu_begin(inf_lane *l, const inf_step_buffers *step, const inf_step_buffers *halves) {
    l->whole = step;
    l->halves = halves;
    cpu_half(l, INF_WHOLE);
    for (uint32_t i = 0; i < step->head->n_seqs; i++) {
        const inf_step_seq *seq = &step->seqs[i];
        for (uint32_t t = 0; t < seq->n_tokens; t++) {
            l->position[seq->token_off + t] = seq->pos0 + t;
        }
    }
    inf_pool_run(l->threads, rope_row, l, step_rows(l));
}

static int cpu_record(inf_lane *l, uint32_t key) {
    (void)l;
    (void)key;
    return 0;
}

static int cpu_recorded(inf_lane *l) {
    (void)l;
    return 0;
}

/* Rows of the embedding table, widened to f32 and scaled. */
static void embed_token(void *arg, int32_t index, int32_t thread) {
    const inf_lane *l = arg;
    (void)thread;
    uint64_t hidden = (uint64_t)l->dims.hidden;
    uint64_t row = (uint64_t)l->step->tokens[index] * hidden * inf_dtype_bytes(l->dims.dtype);
    float *x = l->x + (uint64_t)index * hidden, scale = l->dims.embed_scale;
    inf_convert(x, INF_DTYPE_F32, (const uint8_t *)l->table + row, l->dims.dtype, hidden);
    for (uint64_t i = 0; scale != 0 && i < hidden; i++) {
        x[i] *= scale;
    }
}

static void cpu_embed(inf_lane *l, const void *table, float *x) {
    l->table = table;
    l->x = rows_of(l, x, l->dims.hidden);
    inf_pool_run(l->threads, embed_token, l, step_rows(l));
}

static void cpu_add_norm(inf_lane *l, float *x, void *add, const float *post, const float *weight,
                         void *y) {
    int32_t rows = step_rows(l), n = l->dims.hidden;
    float eps = l->dims.rms_eps;
    x = rows_of(l, x, n);
    if (add != NULL) {
        float *more = rows_of(l, add, n);
        if (post != NULL) {
            l->ops->rms_norm(l->threads, more, post, more, rows, n, n, n, eps);
        }
        l->ops->add(x, more, (int64_t)rows * n);
    }
    if (y != NULL && weight != NULL) {
        l->ops->rms_norm(l->threads, x, weight, rows_of(l, y, n), rows, n, n, n, eps);
    } else if (y != NULL) {
        memcpy(rows_of(l, y, n), x, (size_t)rows * (size_t)n * sizeof(float));
    }
}

static void cpu_pick_norm(inf_lane *l, const float *x, uint32_t first, int32_t n,
                          const float *weight, void *y) {
    int32_t hidden = l->dims.hidden;
    for (int32_t i = 0; i < n; i++) {
        memcpy((float *)y + (int64_t)i * hidden,
               x + (int64_t)l->step->rows[first + (uint32_t)i].token * hidden,
               (size_t)hidden * sizeof(float));
    }
    l->ops->rms_norm(l->threads, y, weight, y, n, hidden, hidden, hidden, l->dims.rms_eps);
}

static void cpu_product(inf_lane *l, const inf_product *p) {
    const float *x = rows_of(l, p->x, p->k);
    const cpu_matrix *w = p->w;
    inf_gemm args = {x,    w->packed, p->bias, rows_of(l, p->y, p->n), p->rows, p->n,
                     p->k, p->k,      p->n};
    l->ops->gemm(l->threads, w->dtype, &args);
    if (p->softcap > 0) {
        l->ops->softcap(l->threads, args.y, p->rows, p->n, p->softcap);
    }
}

static void cpu_product_norm(inf_lane *l, const inf_product *p, float *x, const float *post,
                             const float *weight, void *y) {
    cpu_product(l, p);
    cpu_add_norm(l, x, p->y, post, weight, y);
}

/* RMS norm of each head of [rows, heads, head_dim] with ld floats between rows. The operation takes
 * one stride, so the shorter of the two dimensions is walked here. */
static void norm_heads(const inf_lane *l, float *x, const float *weight, int32_t rows,
                       int32_t heads, int32_t ld) {
    int32_t dim = l->dims.head_dim;
    if (ld == heads * dim) {
        l->ops->rms_norm(l->threads, x, weight, x, rows * heads, dim, dim, dim, l->dims.rms_eps);
        return;
    }
    for (int32_t r = 0; rows <= heads && r < rows; r++) {
        float *row = x + (int64_t)r * ld;
        l->ops->rms_norm(l->threads, row, weight, row, heads, dim, dim, dim, l->dims.rms_eps);
    }
    for (int32_t i = 0; rows > heads && i < heads; i++) {
        float *head = x + (int64_t)i * dim;
        l->ops->rms_norm(l->threads, head, weight, head, rows, dim, ld, ld, l->dims.rms_eps);
    }
}

/* The norms of q and k, of each head or over all of them. */
static void norm_q_and_k(const inf_lane *l, const inf_heads *p, float *q, float *k, int32_t rows) {
    const inf_device_config *d = &l->dims;
    if ((d->model_flags & INF_MODEL_QK_NORM_ALL) == 0) {
        norm_heads(l, q, p->q_norm, rows, d->heads, l->q_dim);
        norm_heads(l, k, p->k_norm, rows, d->kv_heads, l->qkv_dim);
        return;
    }
    l->ops->rms_norm(l->threads, q, p->q_norm, q, rows, l->q_dim, l->q_dim, l->q_dim, d->rms_eps);
    l->ops->rms_norm(l->threads, k, p->k_norm, k, rows, l->kv_dim, l->qkv_dim, l->qkv_dim,
                     d->rms_eps);
}

static void cpu_heads(inf_lane *l, const inf_heads *p) {
    const inf_step_buffers *s = l->step;
    const inf_device_config *d = &l->dims;
    int32_t rows = step_rows(l);
    /* k is rotated where it lies: nobody reads the product after this. */
    float *qkv = rows_of(l, p->qkv, l->qkv_dim), *q = rows_of(l, p->q, l->q_dim);
    float *k = qkv + l->q_dim;
    int32_t rotary = inf_rotary_dim(d), rope = inf_ropes(d) > 1 && l->windows[p->layer] > 0;
    int64_t table = (int64_t)rope * l->max_rows * (rotary / 2);
    const float *cos_rows = rows_of(l, l->cos + table, rotary / 2);
    const float *sin_rows = rows_of(l, l->sin + table, rotary / 2);
    for (int32_t r = 0; r < rows; r++) { /* attention reads q without gaps */
        memcpy(q + (int64_t)r * l->q_dim, qkv + (int64_t)r * l->qkv_dim,
               (size_t)l->q_dim * sizeof(float));
    }
    if (p->q_norm != NULL) {
        norm_q_and_k(l, p, q, k, rows);
    }
    l->ops->rope(l->threads, q, cos_rows, sin_rows, rows, d->heads, d->head_dim, rotary, l->q_dim);
    l->ops->rope(l->threads, k, cos_rows, sin_rows, rows, d->kv_heads, d->head_dim, rotary,
                 l->qkv_dim);
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *seq = &s->seqs[i];
        const float *seq_k = k + (int64_t)seq->token_off * l->qkv_dim;
        l->ops->kv_append(l->pool, &l->kv, p->layer, s->blocks + seq->block_off,
                          seq->pos0 - seq->local_pos0, seq_k, seq_k + l->kv_dim,
                          (int32_t)seq->n_tokens, l->qkv_dim);
    }
}

static void cpu_attend(inf_lane *l, int32_t layer, const void *q, void *o, int32_t open) {
    const inf_step_buffers *s = l->step;
    const float *q_rows = rows_of(l, q, l->q_dim);
    (void)open;
    l->o = rows_of(l, o, l->q_dim);
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *seq = &s->seqs[i];
        l->attn[i] = (inf_attn){
            .q = q_rows + (int64_t)seq->token_off * l->q_dim,
            .rows = (int32_t)seq->n_tokens,
            .heads = l->dims.heads,
            .q_pos0 = seq->pos0,
            .pool = l->pool,
            .kv = &l->kv,
            .layer = layer,
            .blocks = s->blocks + seq->block_off,
            .kv_pos0 = seq->local_pos0,
            .n_tokens = seq->pos0 + seq->n_tokens - seq->local_pos0,
            .window = l->windows[layer],
            .scale = l->scale,
            .softcap = l->dims.attn_softcap,
            .o = l->o + (int64_t)seq->token_off * l->q_dim,
            .lse = l->lse + (int64_t)seq->token_off * l->dims.heads,
        };
    }
    l->ops->attention(l->threads, l->attn, (int32_t)s->head->n_seqs);
}

static int cpu_merge(inf_lane *l, uint32_t row0, int32_t rows, const float *o2, const float *lse2,
                     int32_t stride) {
    float *o = l->o + (size_t)row0 * (size_t)l->q_dim, *lse = l->lse + row0 * (size_t)l->dims.heads;
    int32_t heads = l->dims.heads, dim = l->dims.head_dim, at_once = stride == heads ? rows : 1;
    for (int32_t r = 0; r < rows; r += at_once) {
        size_t mine = (size_t)r * (size_t)heads, theirs = (size_t)r * (size_t)stride;
        l->ops->merge(o + mine * (size_t)dim, lse + mine, o2 + theirs * (size_t)dim, lse2 + theirs,
                      at_once, heads, dim);
    }
    return 0;
}

static void cpu_settle(inf_lane *l, void *o) {
    (void)l;
    (void)o;
}

static void cpu_gated(inf_lane *l, const inf_product *p, void *y) {
    int32_t n = p->n / 2;
    const float *gate = rows_of(l, p->y, p->n);
    cpu_product(l, p);
    l->ops->gate(l->threads, l->dims.activation, gate, gate + n, rows_of(l, y, n), p->rows, n,
                 2 * n, n);
}

static void cpu_queries(inf_lane *l, const void *q, uint32_t row0, int32_t rows, float *host,
                        int32_t stride) {
    size_t row = (size_t)l->q_dim * sizeof(float);
    cpu_copy_rows_out(l, host, (size_t)stride * (size_t)l->dims.head_dim * sizeof(float),
                      rows_of(l, q, l->q_dim) + (size_t)row0 * (size_t)l->q_dim, row, (size_t)rows);
}

static const inf_backend_ops cpu_ops = {
    .close = cpu_close,
    .alloc = inf_cpu_alloc,
    .free = inf_cpu_free,
    .alloc_pool = inf_cpu_alloc_pool,
    .free_pool = inf_cpu_free_pool,
    .matrix = inf_cpu_matrix,
    .list = inf_cpu_list,
    .adopt = inf_cpu_adopt,
    .lane_open = inf_cpu_lane_open,
    .lane_close = inf_cpu_lane_close,
    .sync = cpu_sync,
    .copy_out = cpu_copy,
    .copy_in = cpu_copy,
    .copy_rows_out = cpu_copy_rows_out,
    .copy_rows_in = cpu_copy_rows_in,
    .collective_open = inf_cpu_collective_open,
    .begin = cpu_begin,
    .half = cpu_half,
    .record = cpu_record,
    .recorded = cpu_recorded,
    .embed = cpu_embed,
    .add_norm = cpu_add_norm,
    .pick_norm = cpu_pick_norm,
    .product = cpu_product,
    .product_norm = cpu_product_norm,
    .heads = cpu_heads,
    .attend = cpu_attend,
    .merge = cpu_merge,
    .settle = cpu_settle,
    .gated = cpu_gated,
    .experts = inf_cpu_experts,
    .queries = cpu_queries,
    .answer = inf_cpu_answer,
};

inf_backend *inf_backend_cpu(int32_t isa) {
    const inf_ops *ops = inf_ops_cpu(isa);
    cpu_backend *b = ops != NULL ? calloc(1, sizeof *b) : NULL;
    if (b == NULL) {
        return NULL;
    }
    b->ops = ops;
    b->base = (inf_backend){.ops = &cpu_ops,
                            .name = ops->name,
                            .act = INF_DTYPE_F32,
                            .act_bytes = sizeof(float),
                            .logit_rows = 32,
                            .half_rows = 64,
                            .host_memory = 1,
                            .cpus = 1,
                            .ranks = 1};
    return &b->base;
}
