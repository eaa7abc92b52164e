#include "model/forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/fail.h"

/* Rows of logits computed at once: memory is LOGIT_ROWS * vocab floats however many rows a step
 * asks. */
enum { LOGIT_ROWS = 32 };

struct inf_forward {
    inf_forward_config c;
    inf_device_config dims;
    int32_t q_dim, kv_dim, qkv_dim;
    float scale;
    /* scratch, all of one allocation; T = max_tokens */
    uint8_t *arena;
    float *x;           /* [T, hidden] residual stream */
    float *h;           /* [T, hidden] normed input, or a block's output before it is added to x */
    float *qkv;         /* [T, qkv_dim] */
    float *q;           /* [T, heads, head_dim] */
    float *o;           /* [T, heads, head_dim] */
    float *lse;         /* [T, heads] */
    float *gu;          /* [T, 2 * intermediate] gate | up */
    float *cos;         /* [T, head_dim / 2] */
    float *sin;         /* [T, head_dim / 2] */
    float *rows;        /* [LOGIT_ROWS, hidden] */
    float *logits;      /* [LOGIT_ROWS, vocab] */
    uint32_t *position; /* [T] of each token */
    inf_attn *attn;     /* [max_seqs] */
    inf_sample_scratch *samplers; /* [threads] */
    int32_t row_status[LOGIT_ROWS];
    const inf_step_buffers *step; /* during inf_forward_step */
    uint32_t first_row;           /* of the chunk of logits in work */
};

/* Hands out consecutive 64-byte aligned pieces; with a NULL base it only measures. */
typedef struct arena {
    uint8_t *base;
    uint64_t used;
} arena;

static void *take(arena *a, uint64_t count, uint64_t size) {
    uint64_t at = a->used;
    a->used = (at + count * size + 63) & ~(uint64_t)63;
    return a->base != NULL ? a->base + at : NULL;
}

static void lay_out(inf_forward *f, arena *a) {
    const inf_device_config *d = &f->dims;
    uint64_t tokens = (uint64_t)d->max_tokens, hidden = (uint64_t)d->hidden;
    uint64_t threads = (uint64_t)inf_pool_threads(f->c.threads), vocab = (uint64_t)d->vocab;
    f->x = take(a, tokens * hidden, sizeof(float));
    f->h = take(a, tokens * hidden, sizeof(float));
    f->qkv = take(a, tokens * (uint64_t)f->qkv_dim, sizeof(float));
    f->q = take(a, tokens * (uint64_t)f->q_dim, sizeof(float));
    f->o = take(a, tokens * (uint64_t)f->q_dim, sizeof(float));
    f->lse = take(a, tokens * (uint64_t)d->heads, sizeof(float));
    f->gu = take(a, tokens * 2 * (uint64_t)d->intermediate, sizeof(float));
    f->cos = take(a, tokens * (uint64_t)d->head_dim / 2, sizeof(float));
    f->sin = take(a, tokens * (uint64_t)d->head_dim / 2, sizeof(float));
    f->rows = take(a, LOGIT_ROWS * hidden, sizeof(float));
    f->logits = take(a, LOGIT_ROWS * vocab, sizeof(float));
    f->position = take(a, tokens, sizeof(uint32_t));
    f->attn = take(a, (uint64_t)d->max_seqs, sizeof(inf_attn));
    f->samplers = take(a, threads, sizeof(inf_sample_scratch));
    for (uint64_t i = 0; i < threads; i++) {
        float *adjusted = take(a, vocab, sizeof(float));
        inf_candidate *candidates = take(a, vocab, sizeof(inf_candidate));
        if (a->base != NULL) {
            f->samplers[i] = (inf_sample_scratch){adjusted, candidates};
        }
    }
}

float inf_attention_scale(int32_t head_dim) { return (float)(1.0 / sqrt((double)head_dim)); }

int inf_forward_open(const inf_forward_config *config, inf_forward **out, inf_err *err) {
    inf_forward *f = calloc(1, sizeof(*f));
    if (f == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the forward pass");
    }
    f->c = *config;
    f->dims = config->weights->config;
    f->q_dim = f->dims.heads * f->dims.head_dim;
    f->kv_dim = f->dims.kv_heads * f->dims.head_dim;
    f->qkv_dim = f->q_dim + 2 * f->kv_dim;
    f->scale = inf_attention_scale(f->dims.head_dim);
    arena a = {NULL, 0};
    lay_out(f, &a);
    void *memory = NULL;
    if (posix_memalign(&memory, 64, a.used) != 0) {
        free(f);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate %llu bytes of step memory",
                        (unsigned long long)a.used);
    }
    /* Zeroed now, so that a step meets no page faults. */
    memset(memory, 0, a.used);
    f->arena = memory;
    a = (arena){f->arena, 0};
    lay_out(f, &a);
    *out = f;
    return INF_OK;
}

void inf_forward_close(inf_forward *f) {
    if (f != NULL) {
        free(f->arena);
        free(f);
    }
}

/* Rows of the embedding table, widened to f32. */
static void embed_token(void *arg, int32_t index, int32_t thread) {
    inf_forward *f = arg;
    (void)thread;
    uint64_t hidden = (uint64_t)f->dims.hidden;
    const uint8_t *table = f->c.weights->embed;
    uint64_t row = (uint64_t)f->step->tokens[index] * hidden * inf_dtype_bytes(f->dims.dtype);
    inf_convert(f->x + (uint64_t)index * hidden, INF_DTYPE_F32, table + row, f->dims.dtype, hidden);
}

/* cos and sin of position * inv_freq. The product is rounded to float as in Hugging Face's and
 * vLLM's tables, which models were trained with: at positions in the hundred thousands its rounding
 * is visible. The functions of it are taken in double. */
static void rope_row(void *arg, int32_t index, int32_t thread) {
    inf_forward *f = arg;
    (void)thread;
    int32_t half = f->dims.head_dim / 2;
    float *cos_row = f->cos + (int64_t)index * half, *sin_row = f->sin + (int64_t)index * half;
    for (int32_t i = 0; i < half; i++) {
        double angle = (double)((float)f->position[index] * f->c.inv_freq[i]);
        cos_row[i] = (float)(cos(angle) * (double)f->dims.rope_scale);
        sin_row[i] = (float)(sin(angle) * (double)f->dims.rope_scale);
    }
}

/* RMS norm of each head of [tokens, heads, head_dim] with ld floats between tokens. The operation
 * takes one stride, so the shorter of the two dimensions is walked here. */
static void norm_heads(const inf_forward *f, float *x, const float *weight, int32_t tokens,
                       int32_t heads, int32_t ld) {
    const inf_ops *ops = f->c.weights->ops;
    int32_t dim = f->dims.head_dim;
    if (ld == heads * dim) {
        ops->rms_norm(f->c.threads, x, weight, x, tokens * heads, dim, dim, dim, f->dims.rms_eps);
        return;
    }
    for (int32_t t = 0; tokens <= heads && t < tokens; t++) {
        float *row = x + (int64_t)t * ld;
        ops->rms_norm(f->c.threads, row, weight, row, heads, dim, dim, dim, f->dims.rms_eps);
    }
    for (int32_t i = 0; tokens > heads && i < heads; i++) {
        float *head = x + (int64_t)i * dim;
        ops->rms_norm(f->c.threads, head, weight, head, tokens, dim, ld, ld, f->dims.rms_eps);
    }
}

static void gemm(const inf_forward *f, const float *x, const void *w, const float *bias, float *y,
                 int32_t rows, int32_t n, int32_t k, int32_t ldx, int32_t ldy) {
    inf_gemm args = {x, w, bias, y, rows, n, k, ldx, ldy};
    f->c.weights->ops->gemm(f->c.threads, f->dims.dtype, &args);
}

/* Appends K and V of every request at its local tail. */
static void append_kv(const inf_forward *f, int32_t layer) {
    const inf_step_buffers *s = f->step;
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *seq = &s->seqs[i];
        const float *k = f->qkv + (int64_t)seq->token_off * f->qkv_dim + f->q_dim;
        f->c.weights->ops->kv_append(f->c.pool, &f->c.kv, layer, s->blocks + seq->block_off,
                                     seq->pos0 - seq->local_pos0, k, k + f->kv_dim,
                                     (int32_t)seq->n_tokens, f->qkv_dim);
    }
}

/* Partials of every request over its local span, into o and lse. */
static void attend_local(inf_forward *f, int32_t layer) {
    const inf_step_buffers *s = f->step;
    for (uint32_t i = 0; i < s->head->n_seqs; i++) {
        const inf_step_seq *seq = &s->seqs[i];
        f->attn[i] = (inf_attn){
            .q = f->q + (int64_t)seq->token_off * f->q_dim,
            .rows = (int32_t)seq->n_tokens,
            .heads = f->dims.heads,
            .q_pos0 = seq->pos0,
            .pool = f->c.pool,
            .kv = &f->c.kv,
            .layer = layer,
            .blocks = s->blocks + seq->block_off,
            .kv_pos0 = seq->local_pos0,
            .n_tokens = seq->pos0 + seq->n_tokens - seq->local_pos0,
            .window = f->c.windows[layer],
            .scale = f->scale,
            .o = f->o + (int64_t)seq->token_off * f->q_dim,
            .lse = f->lse + (int64_t)seq->token_off * f->dims.heads,
        };
    }
    f->c.weights->ops->attention(f->c.threads, f->attn, (int32_t)s->head->n_seqs);
}

/* x += o_proj(attention(norm(x))). Queries for remote spans leave before the local work starts and
 * their partials are collected after it, so that the two overlap. */
static void attention_block(inf_forward *f, int32_t layer) {
    const inf_weights *w = f->c.weights;
    const inf_layer *l = &w->layers[layer];
    const inf_device_config *d = &f->dims;
    int32_t rows = (int32_t)f->step->head->n_tokens;
    w->ops->rms_norm(f->c.threads, f->x, l->attn_norm, f->h, rows, d->hidden, d->hidden, d->hidden,
                     d->rms_eps);
    gemm(f, f->h, l->qkv, l->qkv_bias, f->qkv, rows, f->qkv_dim, d->hidden, d->hidden, f->qkv_dim);
    for (int32_t r = 0; r < rows; r++) { /* attention reads q without gaps */
        memcpy(f->q + (int64_t)r * f->q_dim, f->qkv + (int64_t)r * f->qkv_dim,
               (size_t)f->q_dim * sizeof(float));
    }
    float *k = f->qkv + f->q_dim;
    if (l->q_norm != NULL) {
        norm_heads(f, f->q, l->q_norm, rows, d->heads, f->q_dim);
        norm_heads(f, k, l->k_norm, rows, d->kv_heads, f->qkv_dim);
    }
    w->ops->rope(f->c.threads, f->q, f->cos, f->sin, rows, d->heads, d->head_dim, f->q_dim);
    int32_t asked = 0;
    if (f->step->head->n_spans > 0) {
        asked = inf_dist_post(f->c.dist, f->step, layer, f->q, f->q_dim);
    }
    w->ops->rope(f->c.threads, k, f->cos, f->sin, rows, d->kv_heads, d->head_dim, f->qkv_dim);
    append_kv(f, layer);
    attend_local(f, layer);
    if (asked > 0) {
        inf_dist_collect(f->c.dist, f->step, layer, f->o, f->lse);
    }
    gemm(f, f->o, l->o, NULL, f->h, rows, d->hidden, f->q_dim, f->q_dim, d->hidden);
    w->ops->add(f->x, f->h, (int64_t)rows * d->hidden);
}

/* x += down(silu(gate(norm(x))) * up(norm(x))) */
static void mlp_block(inf_forward *f, int32_t layer) {
    const inf_weights *w = f->c.weights;
    const inf_layer *l = &w->layers[layer];
    const inf_device_config *d = &f->dims;
    int32_t rows = (int32_t)f->step->head->n_tokens, both = 2 * d->intermediate;
    w->ops->rms_norm(f->c.threads, f->x, l->mlp_norm, f->h, rows, d->hidden, d->hidden, d->hidden,
                     d->rms_eps);
    gemm(f, f->h, l->gate_up, NULL, f->gu, rows, both, d->hidden, d->hidden, both);
    w->ops->swiglu(f->c.threads, f->gu, f->gu + d->intermediate, f->gu, rows, d->intermediate,
                   both);
    gemm(f, f->gu, l->down, NULL, f->h, rows, d->hidden, d->intermediate, both, d->hidden);
    w->ops->add(f->x, f->h, (int64_t)rows * d->hidden);
}

/* Samples or scores one row of the chunk. A validated step has at most one sampled row per request,
 * so no two threads count into one slot. */
static void sample_task(void *arg, int32_t index, int32_t thread) {
    inf_forward *f = arg;
    const inf_step_buffers *s = f->step;
    uint32_t r = f->first_row + (uint32_t)index;
    const inf_step_row *row = &s->rows[r];
    const inf_step_seq *seq = &s->seqs[row->seq];
    inf_row_out *out = &s->row_out[r];
    if (s->seq_out[row->seq].status != INF_OK) {
        memset(out, 0, sizeof(*out));
        out->token = -1;
        f->row_status[index] = INF_OK;
        return;
    }
    f->row_status[index] = inf_sample_row(
        f->c.slots[seq->slot], f->logits + (int64_t)index * f->dims.vocab, f->dims.vocab,
        (uint64_t)f->position[row->token] + 1, row->target, row->n_top, &f->samplers[thread], out);
}

/* Final norm, LM head and sampling of the requested rows, a chunk at a time. */
static void finish_rows(inf_forward *f) {
    const inf_weights *w = f->c.weights;
    const inf_device_config *d = &f->dims;
    const inf_step_buffers *s = f->step;
    for (uint32_t first = 0; first < s->head->n_rows; first += LOGIT_ROWS) {
        uint32_t left = s->head->n_rows - first;
        int32_t n = left < LOGIT_ROWS ? (int32_t)left : LOGIT_ROWS;
        for (int32_t i = 0; i < n; i++) {
            memcpy(f->rows + (int64_t)i * d->hidden,
                   f->x + (int64_t)s->rows[first + (uint32_t)i].token * d->hidden,
                   (size_t)d->hidden * sizeof(float));
        }
        w->ops->rms_norm(f->c.threads, f->rows, w->final_norm, f->rows, n, d->hidden, d->hidden,
                         d->hidden, d->rms_eps);
        gemm(f, f->rows, w->lm_head, NULL, f->logits, n, d->vocab, d->hidden, d->hidden, d->vocab);
        f->first_row = first;
        inf_pool_run(f->c.threads, sample_task, f, n);
        for (int32_t i = 0; i < n; i++) {
            inf_seq_out *out = &s->seq_out[s->rows[first + (uint32_t)i].seq];
            if (f->row_status[i] != INF_OK && out->status == INF_OK) {
                out->status = f->row_status[i];
            }
        }
    }
}

void inf_forward_step(inf_forward *f, const inf_step_buffers *step) {
    f->step = step;
    for (uint32_t i = 0; i < step->head->n_seqs; i++) {
        const inf_step_seq *seq = &step->seqs[i];
        step->seq_out[i] = (inf_seq_out){INF_OK, -1};
        for (uint32_t t = 0; t < seq->n_tokens; t++) {
            f->position[seq->token_off + t] = seq->pos0 + t;
        }
    }
    inf_dist_begin(f->c.dist, step);
    inf_pool_run(f->c.threads, embed_token, f, (int32_t)step->head->n_tokens);
    inf_pool_run(f->c.threads, rope_row, f, (int32_t)step->head->n_tokens);
    for (int32_t layer = 0; layer < f->dims.layers; layer++) {
        attention_block(f, layer);
        mlp_block(f, layer);
    }
    inf_dist_end(f->c.dist);
    finish_rows(f);
    f->step = NULL;
}
