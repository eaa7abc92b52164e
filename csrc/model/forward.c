#include "model/forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/fail.h"

/* Rows of logits computed at once: memory is so many times vocab floats however many rows a step
 * asks. */
enum { MOST_LOGIT_ROWS = 128 };

struct inf_forward {
    inf_forward_config c;
    const inf_backend_ops *ops;
    inf_lane *lane;
    inf_device_config dims;
    int32_t q_dim, qkv_dim, inner; /* a rank's share of heads and intermediate */
    /* device memory, of each rank; T = max_tokens */
    float *x;      /* [T, hidden] residual stream */
    void *h;       /* [T, hidden] normed input, or a block's output before it is added to x */
    void *qkv;     /* [T, qkv_dim] */
    void *q;       /* [T, q_dim]: the rank's heads */
    void *o;       /* [T, q_dim] */
    void *gu;      /* [T, 2 * inner] gate | up */
    void *act;     /* [T, inner] */
    void *rows;    /* [logit_rows, hidden] */
    float *logits; /* [logit_rows, vocab] */
    uint32_t logit_rows;
    /* host memory, where sampling is done on the CPU */
    float *host_logits;           /* [logit_rows, vocab]; may be logits */
    inf_sample_scratch *samplers; /* [threads] */
    int32_t row_status[MOST_LOGIT_ROWS];
    int holds;                    /* the last row that was sampled is of its request's text */
    const inf_step_buffers *step; /* during inf_forward_step */
    uint32_t first_row;           /* of the chunk of logits in work */
};

float inf_attention_scale(int32_t head_dim) { return (float)(1.0 / sqrt((double)head_dim)); }

static int take_device_memory(inf_forward *f) {
    const inf_device_config *d = &f->dims;
    uint64_t tokens = (uint64_t)d->max_tokens, hidden = (uint64_t)d->hidden;
    uint64_t act = (uint64_t)f->c.backend->act_bytes, inner = (uint64_t)f->inner;
    struct {
        void **at;
        uint64_t bytes;
    } parts[] = {{(void **)&f->x, tokens * hidden * sizeof(float)},
                 {&f->h, tokens * hidden * act},
                 {&f->qkv, tokens * (uint64_t)f->qkv_dim * act},
                 {&f->q, tokens * (uint64_t)f->q_dim * act},
                 {&f->o, tokens * (uint64_t)f->q_dim * act},
                 {&f->gu, tokens * 2 * inner * act},
                 {&f->act, tokens * inner * act},
                 {&f->rows, f->logit_rows * hidden * act},
                 {(void **)&f->logits, f->logit_rows * (uint64_t)d->vocab * sizeof(float)}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].at = f->ops->alloc(f->c.backend, parts[i].bytes);
        if (*parts[i].at == NULL) {
            return INF_ENOMEM;
        }
    }
    return INF_OK;
}

/* Scratch of the threads that sample, zeroed so that a step meets no page faults. */
static int take_host_memory(inf_forward *f) {
    if (f->ops->sample != NULL) {
        return INF_OK;
    }
    size_t threads = (size_t)inf_pool_threads(f->c.threads), vocab = (size_t)f->dims.vocab;
    f->samplers = calloc(threads, sizeof *f->samplers);
    f->host_logits =
        f->c.backend->host_memory ? f->logits : calloc(f->logit_rows * vocab, sizeof(float));
    if (f->samplers == NULL || f->host_logits == NULL) {
        return INF_ENOMEM;
    }
    for (size_t i = 0; i < threads; i++) {
        inf_sample_scratch *s = &f->samplers[i];
        s->adjusted = malloc(vocab * sizeof(float));
        s->candidates = malloc(vocab * sizeof(inf_candidate));
        if (s->adjusted == NULL || s->candidates == NULL) {
            return INF_ENOMEM;
        }
        memset(s->adjusted, 0, vocab * sizeof(float));
        memset(s->candidates, 0, vocab * sizeof(inf_candidate));
    }
    return INF_OK;
}

int inf_forward_open(const inf_forward_config *config, inf_forward **out, inf_err *err) {
    inf_forward *f = calloc(1, sizeof(*f));
    if (f == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the forward pass");
    }
    f->c = *config;
    f->ops = config->backend->ops;
    f->dims = config->weights->config;
    int32_t ranks = config->backend->ranks;
    f->q_dim = f->dims.heads / ranks * f->dims.head_dim;
    f->qkv_dim = f->q_dim + 2 * (f->dims.kv_heads / ranks) * f->dims.head_dim;
    f->inner = f->dims.intermediate / ranks;
    int32_t most[] = {config->backend->logit_rows, f->dims.max_rows};
    f->logit_rows = MOST_LOGIT_ROWS;
    for (size_t i = 0; i < sizeof most / sizeof *most; i++) {
        f->logit_rows = (uint32_t)most[i] < f->logit_rows ? (uint32_t)most[i] : f->logit_rows;
    }
    int status = take_device_memory(f);
    status = status != INF_OK ? status : take_host_memory(f);
    if (status != INF_OK) {
        inf_forward_close(f);
        return inf_fail(err, status, -1, -1, "cannot allocate the memory of a step of %d tokens",
                        f->dims.max_tokens);
    }
    inf_lane_config lane = {.kind = INF_LANE_STEP,
                            .device = &f->dims,
                            .kv = config->kv,
                            .pool = config->pool,
                            .windows = config->windows,
                            .inv_freq = config->inv_freq,
                            .scale = inf_attention_scale(f->dims.head_dim),
                            .threads = config->threads,
                            .max_rows = f->dims.max_tokens,
                            .max_segments = f->dims.max_seqs,
                            .max_blocks = f->dims.max_step_blocks};
    status = f->ops->lane_open(config->backend, &lane, &f->lane, err);
    if (status != INF_OK) {
        f->lane = NULL;
        inf_forward_close(f);
        return status;
    }
    *out = f;
    return INF_OK;
}

void inf_forward_close(inf_forward *f) {
    if (f == NULL) {
        return;
    }
    f->ops->lane_close(f->lane);
    if (f->host_logits != f->logits) {
        free(f->host_logits);
    }
    void *device[] = {f->x, f->h, f->qkv, f->q, f->o, f->gu, f->act, f->rows, f->logits};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++) {
        f->ops->free(f->c.backend, device[i]);
    }
    for (int32_t i = 0; f->samplers != NULL && i < inf_pool_threads(f->c.threads); i++) {
        free(f->samplers[i].adjusted);
        free(f->samplers[i].candidates);
    }
    free(f->samplers);
    free(f);
}

/* From the normed input to the layer's rotated queries, its K and V in the pool. */
static void project(inf_forward *f, int32_t layer) {
    const inf_layer *l = &f->c.weights->layers[layer];
    inf_product qkv = {
        f->h,           l->qkv, l->qkv_bias, f->qkv, (int32_t)f->step->head->n_tokens, f->qkv_dim,
        f->dims.hidden, 0};
    f->ops->product(f->lane, &qkv);
    inf_heads heads = {f->qkv, l->q_norm, l->k_norm, f->q, layer};
    f->ops->heads(f->lane, &heads);
}

/* From attention's output to the MLP's input: x += o_proj(o), and its norm. */
static void finish_attention(inf_forward *f, int32_t layer) {
    const inf_layer *l = &f->c.weights->layers[layer];
    inf_product o = {f->o,           l->o,     NULL, f->h, (int32_t)f->step->head->n_tokens,
                     f->dims.hidden, f->q_dim, 0};
    f->ops->product_norm(f->lane, &o, f->x, l->mlp_norm, f->h);
}

/* x += down(silu(gate(h)) * up(h)), and on to the next layer's queries, if there is one. */
static void finish_layer(inf_forward *f, int32_t layer) {
    const inf_weights *w = f->c.weights;
    const inf_layer *l = &w->layers[layer];
    const inf_device_config *d = &f->dims;
    int32_t rows = (int32_t)f->step->head->n_tokens, more = layer + 1 < d->layers;
    inf_product gate_up = {f->h, l->gate_up, NULL, f->gu, rows, 2 * f->inner, d->hidden, 0};
    inf_product down = {f->act, l->down, NULL, f->h, rows, d->hidden, f->inner, 0};
    const float *next = more ? w->layers[layer + 1].attn_norm : NULL;
    f->ops->gated(f->lane, &gate_up, f->act);
    f->ops->product_norm(f->lane, &down, f->x, next, f->h);
    if (more) {
        project(f, layer + 1);
    }
}

static void start_layers(inf_forward *f) {
    const inf_weights *w = f->c.weights;
    f->ops->embed(f->lane, w->embed, f->x);
    f->ops->add_norm(f->lane, f->x, NULL, w->layers[0].attn_norm, f->h);
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
 * runs, and a single operation starts sooner than a recording, which is launched behind it. */
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
        if (!f->ops->record(f->lane, 2 + 2 * (uint32_t)layer)) {
            do {
                f->ops->attend(f->lane, layer, f->q, f->o, 1);
            } while (f->ops->recorded(f->lane));
        }
        asked = ahead ? inf_dist_post(f->c.dist, f->step, f->lane) : asked;
        if (asked > 0) {
            inf_dist_collect(f->c.dist, f->step, layer, f->lane);
        }
        f->ops->settle(f->lane, f->o);
        finish_attention(f, layer);
        if (!f->ops->record(f->lane, 3 + 2 * (uint32_t)layer)) {
            do {
                finish_layer(f, layer);
            } while (f->ops->recorded(f->lane));
        }
    }
}

/* Samples or scores one row of the chunk. Nothing is counted before all of the step's rows are
 * sampled: threads read the slots meanwhile. */
static void sample_task(void *arg, int32_t index, int32_t thread) {
    inf_forward *f = arg;
    const inf_step_buffers *s = f->step;
    uint32_t r = f->first_row + (uint32_t)index;
    const inf_step_row *row = &s->rows[r];
    const inf_step_seq *seq = &s->seqs[row->seq];
    inf_row_out *out = &s->row_out[r];
    f->row_status[index] = INF_OK;
    if (s->seq_out[row->seq].status != INF_OK) {
        return;
    }
    inf_sample_ask ask = {
        .position = (uint64_t)seq->pos0 + (row->token - seq->token_off) + 1,
        .target = row->target,
        .n_top = row->n_top,
        .n_drafts = inf_row_drafts(s, r),
    };
    ask.drafts = s->tokens + row->token + 1 - ask.n_drafts;
    if (row->mask != 0 && (s->head->flags & INF_STEP_NO_MASKS) == 0) {
        ask.mask = s->masks + (uint64_t)(row->mask - 1) * inf_mask_words(f->dims.vocab);
    }
    f->row_status[index] =
        inf_sample_row(f->c.slots[seq->slot], f->host_logits + (int64_t)index * f->dims.vocab,
                       f->dims.vocab, &ask, &f->samplers[thread], out);
}

/* Counts what has become part of the requests' texts. */
static void count_tokens(inf_forward *f) {
    const inf_step_buffers *s = f->step;
    int holds = 0;
    for (uint32_t r = 0; r < s->head->n_rows; r++) {
        const inf_step_row *row = &s->rows[r];
        holds = inf_row_holds(s, r, holds);
        if (holds && s->seq_out[row->seq].status == INF_OK) {
            inf_slot_count(f->c.slots[s->seqs[row->seq].slot], s->row_out[r].token);
        }
    }
}

/* Samples the chunk's n rows: on the device, or on the CPU from its logits. */
static int sample_chunk(inf_forward *f, uint32_t first, int32_t n, inf_err *err) {
    const inf_step_buffers *s = f->step;
    if (f->ops->sample != NULL) {
        f->ops->sample(f->lane, f->logits, first, n, s->row_out + first, f->row_status);
    } else if (f->host_logits != f->logits) {
        f->ops->copy_out(f->lane, f->host_logits, f->logits,
                         (uint64_t)n * (uint64_t)f->dims.vocab * sizeof(float));
    }
    int status = f->ops->sync(f->lane, err);
    if (status != INF_OK) {
        return status;
    }
    if (f->ops->sample == NULL) {
        f->first_row = first;
        inf_pool_run(f->c.threads, sample_task, f, n);
    }
    for (int32_t i = 0; i < n; i++) {
        uint32_t r = first + (uint32_t)i;
        inf_seq_out *out = &s->seq_out[s->rows[r].seq];
        f->holds = inf_row_holds(s, r, f->holds);
        if (out->status != INF_OK) { /* its queries were not answered: the row is void */
            memset(&s->row_out[r], 0, sizeof *s->row_out);
            s->row_out[r].token = -1;
        } else if (s->rows[r].target >= 0 || f->holds) { /* behind a wrong draft it is nobody's */
            out->status = f->row_status[i];
        }
    }
    return INF_OK;
}

/* Final norm, LM head and sampling of the requested rows, a chunk at a time. */
static int finish_rows(inf_forward *f, inf_err *err) {
    const inf_weights *w = f->c.weights;
    const inf_device_config *d = &f->dims;
    uint32_t rows = f->step->head->n_rows;
    f->holds = 0;
    for (uint32_t first = 0; first < rows; first += f->logit_rows) {
        uint32_t left = rows - first;
        int32_t n = (int32_t)(left < f->logit_rows ? left : f->logit_rows);
        f->ops->pick_norm(f->lane, f->x, first, n, w->final_norm, f->rows);
        inf_product p = {f->rows, w->lm_head, NULL, f->logits, n, d->vocab, d->hidden, 1};
        f->ops->product(f->lane, &p);
        int status = sample_chunk(f, first, n, err);
        if (status != INF_OK) {
            return status;
        }
    }
    if (f->ops->sample == NULL) {
        count_tokens(f);
    }
    return f->ops->sync(f->lane, err);
}

int inf_forward_step(inf_forward *f, const inf_step_buffers *step, inf_err *err) {
    f->step = step;
    for (uint32_t i = 0; i < step->head->n_seqs; i++) {
        step->seq_out[i] = (inf_seq_out){INF_OK, -1};
    }
    f->ops->begin(f->lane, step);
    if (step->head->n_spans > 0) {
        inf_dist_begin(f->c.dist, step);
        shared_layers(f);
    } else {
        local_layers(f);
    }
    int status = finish_rows(f, err);
    if (step->head->n_spans > 0) {
        inf_dist_end(f->c.dist);
    }
    f->step = NULL;
    return status;
}

int inf_forward_slot_open(inf_forward *f, uint32_t slot, const inf_sampling *sampling,
                          const int32_t *tokens, int64_t n_tokens, int64_t n_prompt,
                          const int32_t *bias_ids, const float *bias, int32_t n_bias,
                          inf_err *err) {
    return f->ops->slot_open == NULL ? INF_OK
                                     : f->ops->slot_open(f->lane, slot, sampling, tokens, n_tokens,
                                                         n_prompt, bias_ids, bias, n_bias, err);
}
