/* The cut of a step's attention into pieces for the GPU, checked against the invariants in plan.h:
 * every (row, visible key) of a plan is counted. It needs no GPU: the plan is plain C and is
 * compiled into these tests. */
#ifndef INF_TESTS_PLAN_CHECK_H
#define INF_TESTS_PLAN_CHECK_H

#include "infinite/status.h"
#include "tests/kernel_check.h"

#include "kernels/cuda/plan.c"

enum { MOST_SEGMENTS = 128, GUARD = 64 };

typedef struct step {
    inf_cuda_plan_shape shape;
    inf_cuda_segment segments[MOST_SEGMENTS];
    int32_t n, rows;
    inf_cuda_plan_limits limits; /* exactly what the step has */
} step;

/* Lists with guards behind them. */
typedef struct planned {
    inf_cuda_plan_sizes sizes;
    inf_cuda_plan_lists lists;
} planned;

static void *guarded(size_t bytes) {
    uint8_t *p = get_bytes(bytes + GUARD);
    memset(p, 0xa5, bytes + GUARD);
    return p;
}

static int guard_holds(const void *p, size_t bytes) {
    for (size_t i = 0; i < GUARD; i++)
        if (((const uint8_t *)p)[bytes + i] != 0xa5)
            return 0;
    return 1;
}

static void give_lists(planned *p) {
    p->lists.decode = guarded((size_t)p->sizes.decode * sizeof *p->lists.decode);
    p->lists.prefill = guarded((size_t)p->sizes.prefill * sizeof *p->lists.prefill);
    p->lists.off = guarded(((size_t)p->sizes.rows + 1) * sizeof *p->lists.off);
    p->lists.list = guarded((size_t)p->sizes.parts * sizeof *p->lists.list);
}

static void drop_lists(planned *p) {
    int holds =
        guard_holds(p->lists.decode, (size_t)p->sizes.decode * sizeof *p->lists.decode) &&
        guard_holds(p->lists.prefill, (size_t)p->sizes.prefill * sizeof *p->lists.prefill) &&
        guard_holds(p->lists.off, ((size_t)p->sizes.rows + 1) * sizeof *p->lists.off) &&
        guard_holds(p->lists.list, (size_t)p->sizes.parts * sizeof *p->lists.list);
    CHECK(holds, "wrote beyond a list");
    free(p->lists.decode);
    free(p->lists.prefill);
    free(p->lists.off);
    free(p->lists.list);
}

static void fill_limits(step *s) {
    static int32_t named[1 << 16];
    memset(named, 0, sizeof named);
    s->limits = (inf_cuda_plan_limits){.segments = s->n, .rows = s->rows};
    for (int32_t i = 0; i < s->n; i++)
        for (uint32_t r = 0; r < s->segments[i].rows; r++)
            named[s->segments[i].row0 + r]++;
    for (int32_t i = 0; i < s->n; i++) {
        int shared = 0;
        for (uint32_t r = 0; r < s->segments[i].rows; r++)
            shared |= named[s->segments[i].row0 + r] > 1;
        s->limits.segment_rows += (int32_t)s->segments[i].rows;
        s->limits.shared_rows += shared ? (int32_t)s->segments[i].rows : 0;
    }
}

static void visible_range(const step *s, const inf_cuda_segment *g, uint32_t row, int64_t *lo,
                          int64_t *hi) {
    int64_t at = (int64_t)g->q_pos0 + row;
    *lo = s->shape.window > 0 ? at - s->shape.window + 1 - g->kv_pos0 : 0;
    *hi = at + 1 - g->kv_pos0;
    if (*lo < 0)
        *lo = 0;
    if (*hi > (int64_t)g->n_tokens)
        *hi = g->n_tokens;
    if (*hi < *lo)
        *hi = *lo = 0;
}

/* Pieces of one segment that hold row `row`: their common part with the row's visible keys must be
 * those keys, without overlap. Since pieces are intervals it is enough that the lengths add up and
 * that no two overlap. */
static void check_row(const step *s, const inf_cuda_work *const *work, const int32_t *n,
                      int32_t segment, uint32_t row) {
    const inf_cuda_segment *g = &s->segments[segment];
    int64_t lo, hi, covered = 0, least = INT64_MAX, most = 0, all = 0;
    int32_t found = 0;
    visible_range(s, g, row, &lo, &hi);
    for (int c = 0; c < CLASSES; c++)
        for (int32_t i = 0; i < n[c]; i++) {
            const inf_cuda_work *w = &work[c][i];
            if (w->segment != (uint32_t)segment || row < w->row0 || row >= w->row0 + w->rows)
                continue;
            int64_t from = w->token0, upto = from + w->tokens;
            found++;
            all += w->tokens;
            if (w->tokens > 0) {
                least = from < least ? from : least;
                most = upto > most ? upto : most;
            }
            from = from > lo ? from : lo;
            upto = upto < hi ? upto : hi;
            covered += upto > from ? upto - from : 0;
        }
    CHECK(found > 0, "segment %d row %u: no piece", segment, row);
    CHECK(covered == hi - lo, "segment %d row %u: %lld of %lld keys", segment, row,
          (long long)covered, (long long)(hi - lo));
    CHECK(all == 0 || all == most - least, "segment %d row %u: pieces overlap", segment, row);
}

static void check_piece(const step *s, const inf_cuda_work *w, int class) {
    CHECK(w->segment < (uint32_t)s->n, "segment %u", w->segment);
    if (w->segment >= (uint32_t)s->n)
        return;
    const inf_cuda_segment *g = &s->segments[w->segment];
    uint32_t group = (uint32_t)(s->shape.heads / s->shape.kv_heads);
    CHECK(w->rows > 0 && (uint64_t)w->row0 + w->rows <= g->rows, "rows %u + %u of %u", w->row0,
          w->rows, g->rows);
    CHECK(class == DECODE ? w->rows * group <= INF_CUDA_DECODE_ROWS
                          : w->rows <= INF_CUDA_PREFILL_ROWS,
          "%u rows in class %d", w->rows, class);
    CHECK(w->token0 % 16 == 0 && (uint64_t)w->token0 + w->tokens <= g->n_tokens,
          "tokens %u + %u of %u", w->token0, w->tokens, g->n_tokens);
    int64_t lo = INT64_MAX, hi = 0;
    for (uint32_t r = w->row0; r < w->row0 + w->rows; r++) {
        int64_t from, upto;
        visible_range(s, g, r, &from, &upto);
        lo = from < upto && from < lo ? from : lo;
        hi = upto > hi ? upto : hi;
    }
    if (w->tokens > 0)
        CHECK((int64_t)w->token0 > lo - 16 && (int64_t)w->token0 + w->tokens <= hi,
              "tokens %u + %u, seen are %lld .. %lld", w->token0, w->tokens, (long long)lo,
              (long long)hi);
}

/* Every part row once, and listed at the row that it belongs to. */
static void check_parts(const step *s, const planned *p, const inf_cuda_work *const *work,
                        const int32_t *n) {
    uint32_t parts = p->lists.n_parts;
    int32_t *row_of = get_bytes(((size_t)parts + 1) * sizeof *row_of);
    int32_t *pieces = get_bytes(((size_t)s->rows + 1) * sizeof *pieces);
    int32_t *wholes = get_bytes(((size_t)s->rows + 1) * sizeof *wholes);
    memset(row_of, 0xff, ((size_t)parts + 1) * sizeof *row_of);
    memset(pieces, 0, ((size_t)s->rows + 1) * sizeof *pieces);
    memset(wholes, 0, ((size_t)s->rows + 1) * sizeof *wholes);
    for (int c = 0; c < CLASSES; c++)
        for (int32_t i = 0; i < n[c]; i++)
            for (uint32_t r = 0; r < work[c][i].rows; r++) {
                const inf_cuda_work *w = &work[c][i];
                uint32_t row = s->segments[w->segment].row0 + w->row0 + r;
                pieces[row]++;
                wholes[row] += w->part == INF_CUDA_WHOLE;
                if (w->part == INF_CUDA_WHOLE)
                    continue;
                CHECK(w->part + r < parts && row_of[w->part + r] < 0, "part %u", w->part + r);
                if (w->part + r < parts)
                    row_of[w->part + r] = (int32_t)row;
            }
    for (uint32_t i = 0; i < parts; i++)
        CHECK(row_of[i] >= 0, "part %u belongs to no piece", i);
    CHECK(p->lists.off[0] == 0 && p->lists.off[s->rows] == parts, "off ends at %u, %u parts",
          p->lists.off[s->rows], parts);
    for (int32_t r = 0; r < s->rows; r++) {
        uint32_t from = p->lists.off[r], upto = p->lists.off[r + 1];
        CHECK(wholes[r] == 0 || pieces[r] == 1, "row %d: whole and %d pieces", r, pieces[r]);
        CHECK(upto >= from && (int32_t)(upto - from) == pieces[r] - wholes[r],
              "row %d: %u entries, %d pieces", r, upto - from, pieces[r]);
        for (uint32_t i = from; i < upto && i < parts; i++) {
            uint32_t part = p->lists.list[i];
            CHECK(part < parts && row_of[part] == r, "row %d lists part %u", r, part);
            if (part < parts)
                row_of[part] = -2; /* once only */
        }
    }
    free(row_of);
    free(pieces);
    free(wholes);
}

static void check_plan(const step *s, const planned *p) {
    const inf_cuda_work *work[CLASSES] = {p->lists.decode, p->lists.prefill};
    int32_t n[CLASSES] = {p->lists.n_decode, p->lists.n_prefill};
    for (int c = 0; c < CLASSES; c++) {
        uint32_t before = UINT32_MAX, biggest = n[c] > 0 ? work[c][0].tokens : 0;
        for (int32_t i = 0; i < n[c]; i++) {
            check_piece(s, &work[c][i], c);
            /* in order but for what a bucket and the last unit make */
            CHECK((uint64_t)work[c][i].tokens <= (uint64_t)before + biggest / 16 + 256,
                  "piece %d of %u tokens after %u", i, work[c][i].tokens, before);
            before = work[c][i].tokens;
        }
    }
    for (int32_t g = 0; g < s->n; g++)
        for (uint32_t r = 0;
             r<s->segments[g].rows; r += s->segments[g].rows> 64 ? 1 + (uint32_t)below(16) : 1)
            check_row(s, work, n, g, r);
    check_parts(s, p, work, n);
}

#endif
