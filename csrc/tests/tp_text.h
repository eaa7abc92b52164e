/* A text of one request, for tests of tensor parallelism: the steps that compute it, and how far
 * what comes of them is from the reference. */
#ifndef INF_TESTS_TP_TEXT_H
#define INF_TESTS_TP_TEXT_H

#include "tests/tiny_model.h"

enum { TEXT = 45 };

static void text_of(int32_t *tokens, uint64_t seed) {
    for (int i = 0; i < TEXT; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        tokens[i] = (int32_t)(seed >> 33) % TINY_VOCAB;
    }
}

static uint32_t block = 4; /* tokens of a block, in all models that follow */

/* The step that computes tokens done..done + n of the text and scores each; its KV before local0
 * lies in the span. */
static void fill_step(const inf_step_buffers *b, const int32_t *tokens, uint32_t done, uint32_t n,
                      const inf_step_span *span) {
    uint32_t local0 = span != NULL ? span->n_tokens : 0,
             blocks = (done + n - local0 + block - 1) / block;
    *b->head = (inf_step_head){.step_id = done + 1,
                               .peer_timeout_ns = UINT64_C(60000000000),
                               .n_seqs = 1,
                               .n_tokens = n,
                               .n_blocks = blocks,
                               .n_spans = span != NULL,
                               .n_rows = n};
    b->seqs[0] = (inf_step_seq){.n_tokens = n,
                                .pos0 = done,
                                .local_pos0 = local0,
                                .n_blocks = blocks,
                                .n_spans = span != NULL};
    if (span != NULL) {
        b->spans[0] = *span;
    }
    for (uint32_t i = 0; i < blocks; i++) {
        b->blocks[i] = (int32_t)((local0 / block + i) * 5 % 64);
    }
    for (uint32_t t = 0; t < n; t++) {
        b->tokens[t] = tokens[done + t];
        b->rows[t] =
            (inf_step_row){t, 0, done + t + 1 < TEXT ? tokens[done + t + 1] : 0, INF_MAX_TOP, 0};
    }
}

/* Largest distance of n rows' log probabilities from the reference's. */
static double distance(const inf_row_out *rows, uint32_t n, double reference[][TINY_VOCAB]) {
    double worst = 0;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t k = 0; k < rows[t].n_top; k++) {
            double d = (double)rows[t].top_logprobs[k] - reference[t][rows[t].top_ids[k]];
            worst = isnan(d) ? INFINITY : fmax(worst, fabs(d));
        }
    }
    return worst;
}

#endif
