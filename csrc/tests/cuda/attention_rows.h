/* The comparison of attention's rows with the reference. */
#ifndef INF_ATTENTION_ROWS_H
#define INF_ATTENTION_ROWS_H

#include "tests/cuda/attention_step.h"

/* What is allowed, of the largest |o| of the row; absolute; and the most that was seen. */
typedef struct tolerances {
    double o, lse, seen_o, seen_lse;
    int32_t pieces, rows;
} tolerances;

static void check_row(const step *s, const outputs *out, const wanted &want, tolerances *tol) {
    const inf_cuda_work *w = want.work;
    int32_t dim = s->args.kv.head_dim, worst_at = 0, whole = w->part == INF_CUDA_WHOLE;
    double most = 0, worst = 0;
    size_t r = whole ? s->segments[w->segment].row0 + w->row0 + want.row : w->part + want.row;
    size_t i = r * (size_t)s->args.heads + (size_t)want.head;
    const std::vector<uint8_t> &o = whole ? out->o : out->part_o;
    int32_t dtype = whole ? s->args.o_dtype : (int32_t)INF_DTYPE_F32;
    double lse = number_at(whole ? out->lse : out->part_lse, INF_DTYPE_F32, i);
    for (int32_t d = 0; d < dim; d++) {
        most = fabs(want.o[d]) > most ? fabs(want.o[d]) : most;
        double off = fabs(number_at(o, dtype, i * (size_t)dim + (size_t)d) - want.o[d]);
        if (!(off <= worst)) { /* NaN stays */
            worst = off, worst_at = d;
        }
    }
    double relative = most > 0 ? worst / most : worst;
    double lse_off = want.lse == -INFINITY ? (lse == -INFINITY ? 0 : NAN) : fabs(lse - want.lse);
    tol->seen_o = !(relative <= tol->seen_o) ? relative : tol->seen_o;
    tol->seen_lse = !(lse_off <= tol->seen_lse) ? lse_off : tol->seen_lse;
    tol->rows++;
    const inf_cuda_segment *g = &s->segments[w->segment];
    CHECK(
        relative <= tol->o && lse_off <= tol->lse,
        "o[%d] off by %g of %g, lse %g, want %g: row %u of %u + %u, head %d of %d over %d, tokens "
        "%u + %u, part %d, segment %u, q %u kv %u n %u, block_size %d, window %d",
        worst_at, worst, most, lse, want.lse, want.row, w->row0, w->rows, want.head, s->args.heads,
        s->args.kv.kv_heads, w->token0, w->tokens, (int)w->part, w->segment, g->q_pos0, g->kv_pos0,
        g->n_tokens, s->args.kv.block_size, s->args.window);
}

/* Rows without a whole piece stay as they were. */
static void check_unwritten(const step *s, const outputs *out, const std::vector<uint8_t> &whole) {
    size_t row_bytes = (size_t)s->args.heads * (size_t)s->args.kv.head_dim;
    row_bytes *= format_size(s->args.o_dtype);
    for (int32_t r = 0; r < s->rows; r++) {
        CHECK(whole[(size_t)r] || unwritten(&out->o[(size_t)r * row_bytes], row_bytes),
              "row %d has no whole piece and was written", r);
    }
}

#endif
