#include "model/forward_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/fail.h"

float inf_attention_scale(const inf_device_config *c) {
    return c->attn_scale > 0 ? c->attn_scale : (float)(1.0 / sqrt((double)c->head_dim));
}

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

/* The requests of halves, and scratch of the threads that sample, zeroed so that a step meets no
 * page faults. */
static int take_host_memory(inf_forward *f) {
    f->halves.seqs = calloc((size_t)f->dims.max_seqs + 1, sizeof *f->halves.seqs);
    if (f->halves.seqs == NULL) {
        return INF_ENOMEM;
    }
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
                            .scale = inf_attention_scale(&f->dims),
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
    free(f->halves.seqs);
    free(f);
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
        inf_product p = {f->rows,  w->lm_head, NULL, f->logits,       n,
                         d->vocab, d->hidden,  1,    d->logit_softcap};
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

static int cut_in_halves(inf_forward *f) {
    const inf_step_head *head = f->step->head;
    uint32_t rows = (uint32_t)f->c.backend->half_rows;
    return head->n_spans > 0 && rows > 0 && head->n_tokens >= 2 * rows &&
           inf_halves_cut(&f->halves, f->step);
}

int inf_forward_step(inf_forward *f, const inf_step_buffers *step, inf_err *err) {
    f->step = step;
    f->waves = 0;
    for (uint32_t i = 0; i < step->head->n_seqs; i++) {
        step->seq_out[i] = (inf_seq_out){INF_OK, -1};
        f->waves |= step->seqs[i].wave != 0;
    }
    int spread = step->head->n_spans > 0, halved = cut_in_halves(f);
    const inf_step_buffers *halves = halved ? f->halves.step : NULL;
    f->ops->begin(f->lane, step, halves);
    if (spread) {
        inf_dist_begin(f->c.dist, step, halves);
    }
    inf_forward_layers(f, halved);
    int status = finish_rows(f, err);
    if (spread) {
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
