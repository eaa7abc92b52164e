/* From rows of logits to tokens on the GPU; sampling.cu says how. The semantics are those of
 * model/sampling.h, and so are the tokens, up to the rounding of sums of probabilities. */
#ifndef INF_CUDA_SAMPLING_H
#define INF_CUDA_SAMPLING_H

#include "kernels/cuda/launch.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Values of inf_cuda_sample_row.target other than a token. */
enum {
    INF_CUDA_SAMPLE_DRAW = -1, /* by the parameters */
    INF_CUDA_SAMPLE_SKIP = -2, /* nothing: out says token -1 */
};
enum { INF_CUDA_SAMPLE_MAX_VOCAB = 524288 };

/* One row. bias_ids[bias_off ..] has n_bias entries for it, each token at most once. */
typedef struct inf_cuda_sample_row {
    uint64_t seed, position; /* of inf_sample_uniform */
    int32_t target;          /* >= 0: the token to report */
    uint32_t n_top;          /* 0..INF_MAX_TOP */
    float temperature, top_p, min_p, repetition, presence, frequency;
    int32_t top_k;
    int32_t slot; /* its row of counts; -1 when no penalty is on */
    uint32_t bias_off, n_bias;
    int32_t mask;                 /* which of the masks it has; -1: none */
    uint32_t draft_off, n_drafts; /* of drafts: penalties take them for generated, too */
    int32_t uncounted;            /* 1: the drawn token is not counted */
} inf_cuda_sample_row;

/* What rows need beyond their largest logit, or'ed over the rows of a launch. */
enum {
    INF_CUDA_SAMPLE_WEIGHS = 1,  /* draws by weight */
    INF_CUDA_SAMPLE_CUTS = 2,    /* .. from less than the vocabulary: top_k, top_p */
    INF_CUDA_SAMPLE_TOPS = 4,    /* reports alternatives */
    INF_CUDA_SAMPLE_ADJUSTS = 8, /* has a bias, penalties or a mask */
};

/* Host. */
static inline uint32_t inf_cuda_sample_needs(const inf_cuda_sample_row *row, int32_t vocab) {
    uint32_t tops = row->n_top > 0 ? INF_CUDA_SAMPLE_TOPS : 0;
    if (row->target != INF_CUDA_SAMPLE_DRAW) {
        return row->target >= 0 ? tops : 0;
    }
    uint32_t needs =
        row->n_bias > 0 || row->slot >= 0 || row->mask >= 0 ? INF_CUDA_SAMPLE_ADJUSTS : 0;
    if (!(row->temperature < 1e-5f) && row->top_k != 1) {
        needs |= INF_CUDA_SAMPLE_WEIGHS;
        needs |=
            row->top_p < 1 || (row->top_k > 0 && row->top_k < vocab) ? INF_CUDA_SAMPLE_CUTS : 0;
    }
    return needs | tops;
}

typedef struct inf_cuda_sample {
    const float *logits; /* [rows, vocab] */
    const inf_cuda_sample_row *row;
    const int32_t *bias_ids; /* NULL when no row has any */
    const float *bias;
    const uint32_t *masks; /* [*, inf_mask_words(vocab)]; NULL when no row has any */
    const int32_t *drafts; /* NULL when no row has any */
    uint32_t *counts; /* [*, vocab], as inf_cuda_counts_launch makes them; NULL: no row has any */
    inf_row_out *out; /* [rows]; out and status are only written: they may be pinned host memory */
    int32_t *status;  /* [rows]: 0, or INF_ENOTFINITE */
    void *scratch;    /* inf_cuda_sample_scratch(rows, vocab, needs) bytes, 256-byte aligned */
    int32_t rows, vocab;
    uint32_t needs; /* at least what the rows need; more costs launches that do nothing */
    int32_t early;  /* 1: kernels may start before the one in front has ended; sm_90 */
} inf_cuda_sample;

uint64_t inf_cuda_sample_scratch(int32_t rows, int32_t vocab, uint32_t needs);

/* A drawn token is counted in its row's slot; rows of a launch that have the same do not count. */
int inf_cuda_sample_launch(const inf_cuda_sample *p, inf_stream stream);

/* counts[slot] := the tokens of a text, the first n_prompt of which are the prompt: the top bit of
 * counts[slot][token] says that the prompt has the token, the rest how often it was generated. */
typedef struct inf_cuda_counts {
    uint32_t *counts;
    const int32_t *tokens; /* [n_tokens] */
    int32_t slot, vocab;
    int64_t n_tokens, n_prompt;
} inf_cuda_counts;
int inf_cuda_counts_launch(const inf_cuda_counts *p, inf_stream stream);

/* Counts tokens that were generated: for each pair, pairs[2i + 1] in the slot pairs[2i]. */
typedef struct inf_cuda_counted {
    uint32_t *counts;
    const uint32_t *pairs; /* [n, 2] */
    int32_t n, vocab;
} inf_cuda_counted;
int inf_cuda_counted_launch(const inf_cuda_counted *p, inf_stream stream);

#ifdef __cplusplus
}
#endif
#endif
