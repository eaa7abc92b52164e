/* Sampling on a lane: what slots hold, the step's rows, and what comes back. The kernels are
 * sampling.cu's.
 *
 * A slot's parameters stay in host memory and go with each step's input; its row of counts, which
 * penalties need, is on the device, and the kernel that draws a token counts it. Counts are made
 * when the slot is opened, on a stream of its own, since the slot is in no step then. Of rows
 * behind drafts the device does not know which become part of the text; the host does when the step
 * is over, and the next step of the slot begins by counting their tokens. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lane.h"

enum { ALL_NEEDS = 15 };

static uint64_t most_rows(const inf_lane *l) {
    return (uint64_t)(l->dims.max_rows < LOGIT_ROWS ? l->dims.max_rows : LOGIT_ROWS);
}

/* The rows of a request that are drawn have the same bias, so as many biases as slots. */
static uint64_t most_bias(const inf_lane *l) { return (uint64_t)l->dims.max_seqs * INF_MAX_BIAS; }

static uint64_t most_pairs(const inf_lane *l) {
    return (uint64_t)l->dims.max_seqs * (INF_MAX_DRAFTS + 1);
}

static uint64_t most_masks(const inf_lane *l) {
    return (uint64_t)l->dims.max_seqs * inf_mask_words(l->dims.vocab);
}

uint64_t draw_inbox_words(const inf_lane *l) {
    return l->kind != INF_LANE_STEP
               ? 0
               : (uint64_t)l->dims.max_rows * sizeof(inf_cuda_sample_row) / 4 + 2 * most_bias(l) +
                     most_masks(l) + 2 * most_pairs(l) + 6 * 32;
}

bool draw_memory(inf_lane *l) {
    uint64_t rows = most_rows(l);
    uint64_t scratch = inf_cuda_sample_scratch((int32_t)rows, l->dims.vocab, ALL_NEEDS);
    return keep(l, &l->slots, (uint64_t)l->dims.max_seqs) &&
           take(l, &l->sample_rows, (uint64_t)l->dims.max_rows) &&
           take(l, &l->bias_ids, most_bias(l)) && take(l, &l->bias, most_bias(l)) &&
           take(l, &l->masks, most_masks(l)) && take(l, &l->pairs, 2 * most_pairs(l)) &&
           take(l, (uint8_t **)&l->sample_scratch, scratch) && pin(l, &l->sampled, rows) &&
           pin(l, &l->sampled_status, rows);
}

void draw_close(inf_lane *l) {
    for (int32_t i = 0; l->slots != NULL && i < l->dims.max_seqs; i++) {
        free(l->slots[i].bias_ids);
        free(l->slots[i].bias);
    }
    if (l->counts != NULL) {
        (void)cudaFree(l->counts);
    }
}

/* ---- slots ---- */

/* The bias with each token once: entries of one token add up. */
static bool take_bias(lane_slot *s, const int32_t *ids, const float *bias, int32_t n) {
    if (n == 0) {
        return true;
    }
    s->bias_ids = (int32_t *)malloc((size_t)n * sizeof *s->bias_ids);
    s->bias = (float *)malloc((size_t)n * sizeof *s->bias);
    if (s->bias_ids == NULL || s->bias == NULL) {
        return false;
    }
    for (int32_t i = 0; i < n; i++) {
        int32_t k = 0;
        while (k < s->n_bias && s->bias_ids[k] != ids[i]) {
            k++;
        }
        if (k == s->n_bias) {
            s->bias_ids[s->n_bias] = ids[i];
            s->bias[s->n_bias++] = 0;
        }
        s->bias[k] += bias[i];
    }
    return true;
}

/* The slot's row of counts, by a copy of the text that lives until it was read. */
static cudaError_t make_counts(inf_lane *l, uint32_t slot, const int32_t *tokens, int64_t n,
                               int64_t n_prompt) {
    uint64_t rows = (uint64_t)l->dims.max_seqs * (uint64_t)l->dims.vocab * sizeof(uint32_t);
    void *text = NULL;
    cudaStream_t stream = NULL;
    cudaError_t status = cudaSuccess;
    if (l->counts == NULL) {
        status = cudaMalloc((void **)&l->counts, rows);
    }
    if (status == cudaSuccess) {
        status = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    }
    if (status == cudaSuccess && n > 0) {
        status = cudaMalloc(&text, (uint64_t)n * sizeof *tokens);
    }
    if (status == cudaSuccess && n > 0) {
        status = cudaMemcpyAsync(text, tokens, (uint64_t)n * sizeof *tokens, cudaMemcpyHostToDevice,
                                 stream);
    }
    if (status == cudaSuccess) {
        inf_cuda_counts p = {l->counts, (int32_t *)text, (int32_t)slot, l->dims.vocab, n, n_prompt};
        status = (cudaError_t)inf_cuda_counts_launch(&p, stream);
    }
    if (status == cudaSuccess) {
        status = cudaStreamSynchronize(stream);
    }
    (void)cudaFree(text);
    if (stream != NULL) {
        (void)cudaStreamDestroy(stream);
    }
    return status;
}

int inf_cuda_slot_open(inf_lane *l, uint32_t slot, const inf_sampling *sampling,
                       const int32_t *tokens, int64_t n_tokens, int64_t n_prompt,
                       const int32_t *bias_ids, const float *bias, int32_t n_bias, inf_err *err) {
    lane_slot fresh = {}, *s = &l->slots[slot];
    fresh.sampling = *sampling;
    fresh.counted = inf_sampling_counts(sampling);
    if (!take_bias(&fresh, bias_ids, bias, n_bias)) {
        free(fresh.bias_ids);
        free(fresh.bias);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the logit bias");
    }
    cudaError_t status = cudaSetDevice(l->backend->ordinal);
    if (status == cudaSuccess && fresh.counted) {
        status = make_counts(l, slot, tokens, n_tokens, n_prompt);
    }
    if (status != cudaSuccess) {
        (void)cudaGetLastError(); /* or the thread's next launch would report it */
        s->counted = 0;           /* its counts may be half of the old and half of the new */
        free(fresh.bias_ids);
        free(fresh.bias);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot open slot %u on the GPU: %s", slot,
                        cudaGetErrorString(status));
    }
    free(s->bias_ids);
    free(s->bias);
    *s = fresh;
    return INF_OK;
}

/* ---- the step ---- */

/* Whether row i is one of several that its request draws. */
static bool one_of_several(const inf_step_buffers *s, uint32_t i) {
    return inf_row_follows(s, i) || (i + 1 < s->head->n_rows && inf_row_follows(s, i + 1));
}

static inf_cuda_sample_row row_of(const inf_lane *l, const inf_step_buffers *s, uint32_t i) {
    const inf_step_row *row = &s->rows[i];
    const inf_step_seq *seq = &s->seqs[row->seq];
    const lane_slot *slot = &l->slots[seq->slot];
    const inf_sampling *p = &slot->sampling;
    inf_cuda_sample_row r = {};
    r.seed = p->seed;
    r.position = (uint64_t)seq->pos0 + (row->token - seq->token_off) + 1;
    r.target = row->target < 0 ? INF_CUDA_SAMPLE_DRAW : row->target;
    r.n_top = row->n_top;
    r.temperature = p->temperature;
    r.top_p = p->top_p;
    r.min_p = p->min_p;
    r.repetition = p->repetition;
    r.presence = p->presence;
    r.frequency = p->frequency;
    r.top_k = p->top_k;
    r.slot = slot->counted ? (int32_t)seq->slot : -1;
    r.mask = -1;
    r.n_drafts = inf_row_drafts(s, i);
    r.draft_off = row->token + 1 - r.n_drafts; /* in the step's tokens */
    r.uncounted = one_of_several(s, i);
    return r;
}

/* The masks of the step's rows follow each other on the device, in the order of the rows. */
static void put_masks(inf_lane *l, const inf_step_buffers *s, inf_cuda_sample_row *rows) {
    uint32_t n = s->head->n_rows, words = inf_mask_words(l->dims.vocab);
    int32_t masks = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (s->rows[i].mask != 0 && (s->head->flags & INF_STEP_NO_MASKS) == 0) {
            rows[i].mask = masks++;
        }
    }
    uint32_t *to = masks == 0 ? NULL : inbox_put(l, l->masks, (uint64_t)masks * words * 4);
    for (uint32_t i = 0; to != NULL && i < n; i++) {
        if (rows[i].mask >= 0) {
            memcpy(to + (uint64_t)rows[i].mask * words,
                   s->masks + (uint64_t)(s->rows[i].mask - 1) * words, (uint64_t)words * 4);
        }
    }
}

/* What the step's slots have not counted yet. A step without rows leaves it to the next one. */
static void put_pairs(inf_lane *l, const inf_step_buffers *s) {
    l->n_pairs = 0;
    for (uint32_t i = 0; s->head->n_rows > 0 && i < s->head->n_seqs; i++) {
        l->n_pairs += l->slots[s->seqs[i].slot].n_uncounted;
    }
    uint32_t *to = l->n_pairs == 0 ? NULL : inbox_put(l, l->pairs, (uint64_t)l->n_pairs * 8);
    for (uint32_t i = 0; to != NULL && i < s->head->n_seqs; i++) {
        lane_slot *slot = &l->slots[s->seqs[i].slot];
        for (int32_t k = 0; k < slot->n_uncounted; k++) {
            *to++ = s->seqs[i].slot;
            *to++ = slot->uncounted[k];
        }
        slot->n_uncounted = 0;
    }
}

void draw_begin(inf_lane *l, const inf_step_buffers *s) {
    uint32_t n = s->head->n_rows, biases = 0;
    l->sample_needs = 0;
    l->sampled_to = NULL;
    l->holds = 0;
    put_pairs(l, s);
    inf_cuda_sample_row *rows =
        (inf_cuda_sample_row *)(void *)inbox_put(l, l->sample_rows, n * sizeof *rows);
    if (rows == NULL) {
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = row_of(l, s, i);
    }
    put_masks(l, s, rows);
    for (uint32_t i = 0; i < n; i++) {
        const lane_slot *slot = &l->slots[s->seqs[s->rows[i].seq].slot];
        if (s->rows[i].target < 0) {
            rows[i].n_bias = (uint32_t)slot->n_bias;
            rows[i].bias_off = rows[i].n_drafts > 0 ? rows[i - 1].bias_off : biases;
            biases += rows[i].n_drafts > 0 ? 0 : rows[i].n_bias;
        }
        l->sample_needs |= inf_cuda_sample_needs(&rows[i], l->dims.vocab);
    }
    if (biases == 0) {
        return;
    }
    uint32_t *ids = inbox_put(l, l->bias_ids, biases * sizeof(int32_t));
    uint32_t *bias = inbox_put(l, l->bias, biases * sizeof(float));
    for (uint32_t i = 0; ids != NULL && bias != NULL && i < n; i++) {
        const lane_slot *slot = &l->slots[s->seqs[s->rows[i].seq].slot];
        if (s->rows[i].target < 0 && slot->n_bias > 0 && rows[i].n_drafts == 0) {
            uint64_t bytes = (uint64_t)slot->n_bias * 4;
            memcpy(ids + rows[i].bias_off, slot->bias_ids, bytes);
            memcpy(bias + rows[i].bias_off, slot->bias, bytes);
        }
    }
}

void inf_cuda_draw(inf_lane *l, const float *logits, uint32_t first, int32_t n, inf_row_out *out,
                   int32_t *status) {
    lane_enter(l);
    if (l->n_pairs > 0) {
        inf_cuda_counted c = {l->counts, l->pairs, l->n_pairs, l->dims.vocab};
        lane_ok(l, inf_cuda_counted_launch(&c, l->stream), "counting");
        l->n_pairs = 0;
    }
    inf_cuda_sample p = {};
    p.logits = logits;
    p.drafts = l->tokens;
    p.row = l->sample_rows + first;
    p.bias_ids = l->bias_ids;
    p.bias = l->bias;
    p.masks = l->masks;
    p.counts = l->counts;
    p.out = l->sampled;
    p.status = l->sampled_status;
    p.scratch = l->sample_scratch;
    p.rows = n;
    p.vocab = l->dims.vocab;
    p.needs = l->sample_needs;
    p.early = l->backend->early_rows;
    lane_ok(l, inf_cuda_sample_launch(&p, l->stream), "sampling");
    l->sampled_to = out;
    l->sampled_status_to = status;
    l->n_sampled = n;
    l->sampled_first = first;
}

/* Notes what the slots are to count of the rows behind drafts, and of those before them. */
static void note_uncounted(inf_lane *l) {
    const inf_step_buffers *s = l->step;
    for (uint32_t i = l->sampled_first; i < l->sampled_first + (uint32_t)l->n_sampled; i++) {
        lane_slot *slot = &l->slots[s->seqs[s->rows[i].seq].slot];
        l->holds = inf_row_holds(s, i, l->holds);
        if (l->holds && one_of_several(s, i) && slot->counted && s->row_out[i].token >= 0) {
            slot->uncounted[slot->n_uncounted++] = (uint32_t)s->row_out[i].token;
        }
    }
}

void draw_synced(inf_lane *l) {
    if (l->sampled_to != NULL) {
        memcpy(l->sampled_to, l->sampled, (size_t)l->n_sampled * sizeof *l->sampled);
        memcpy(l->sampled_status_to, l->sampled_status, (size_t)l->n_sampled * sizeof(int32_t));
        note_uncounted(l);
        l->sampled_to = NULL;
    }
}
