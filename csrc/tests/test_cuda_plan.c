/* The cut of a step's attention into pieces for the GPU, against the invariants in plan.h: random
 * steps are planned and every (row, visible key) is counted. It needs no GPU: the plan is plain C
 * and is compiled into this test. */
#include <time.h>

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

/* Up to 2^(0..bits): small and big numbers alike often. */
static uint32_t any_size(int32_t bits) { return (uint32_t)below(1 << below(bits + 1)); }

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

/* Requests one after another; each has its own segment, whose keys end with its own rows, and maybe
 * spans before it. Now and then rows that nobody names lie in between. */
static void random_step(step *s, int32_t max_requests, int32_t row_bits, int32_t token_bits) {
    static const int32_t heads[][2] = {{32, 8}, {8, 8}, {16, 1}, {40, 8}, {28, 4}, {64, 2}, {1, 1}};
    memset(s, 0, sizeof *s);
    int32_t h = below(7);
    s->shape = (inf_cuda_plan_shape){.heads = heads[h][0],
                                     .kv_heads = heads[h][1],
                                     .window = below(3) == 0 ? 1 + (int32_t)any_size(12) : 0,
                                     .sms = 1 + below(200),
                                     .decode_resident = below(3),
                                     .prefill_resident = below(3)};
    int32_t requests = 1 + below(max_requests);
    for (int32_t i = 0; i < requests && s->n + 4 < MOST_SEGMENTS; i++) {
        uint32_t rows = below(2) ? 1 : 1 + any_size(row_bits), pos = 0;
        s->rows += below(4) == 0 ? below(3) : 0;
        for (int32_t spans = below(3) == 0 ? below(4) : 0; spans > 0; spans--) {
            uint32_t n = any_size(token_bits);
            s->segments[s->n++] = (inf_cuda_segment){(uint32_t)s->rows, rows, 0, pos, n, 0};
            pos += n;
        }
        uint32_t own = any_size(token_bits);
        inf_cuda_segment *last = &s->segments[s->n++];
        *last = (inf_cuda_segment){(uint32_t)s->rows, rows, 0, pos, own + rows, 0};
        for (inf_cuda_segment *t = s->segments; t <= last; t++)
            if (t->row0 == (uint32_t)s->rows)
                t->q_pos0 = pos + own;
        if (below(8) == 0) /* a span alone, part of it or all after the rows */
            last->q_pos0 = last->q_pos0 > 100 ? last->q_pos0 - 100 : 0;
        s->rows += (int32_t)rows;
    }
    fill_limits(s);
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

/* Within the capacity of exactly this step's limits it must work; with one entry less than it needs
 * it must say so and write no further. */
static void test_random(int32_t rounds, int32_t max_requests, int32_t row_bits,
                        int32_t token_bits) {
    static step s;
    for (int32_t i = 0; i < rounds; i++) {
        random_step(&s, max_requests, row_bits, token_bits);
        planned p;
        CHECK(inf_cuda_plan_capacity(&s.shape, &s.limits, &p.sizes) == INF_OK, "no capacity");
        give_lists(&p);
        int status = inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &p.sizes, &p.lists);
        CHECK(status == INF_OK, "status %d", status);
        if (status == INF_OK)
            check_plan(&s, &p);
        drop_lists(&p);
        planned q = {
            .sizes = {p.lists.n_decode, p.lists.n_prefill, (int32_t)p.lists.n_parts, s.rows}};
        give_lists(&q);
        CHECK(inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &q.sizes, &q.lists) == INF_OK,
              "exact sizes are not enough");
        drop_lists(&q);
        int32_t *size[] = {&q.sizes.decode, &q.sizes.prefill, &q.sizes.parts, &q.sizes.rows};
        int32_t which = below(4);
        if (*size[which] == 0)
            continue;
        (*size[which])--;
        give_lists(&q);
        CHECK(inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &q.sizes, &q.lists) == INF_EFULL,
              "size %d too small and not said", which);
        drop_lists(&q);
    }
    printf("random steps of %d requests, 2^%d rows, 2^%d tokens: %d\n", max_requests, row_bits,
           token_bits, rounds);
}

static void test_forced(int32_t rounds) {
    static step s;
    for (int32_t i = 0; i < rounds; i++) {
        random_step(&s, 6, 8, 12);
        s.shape.decode_chunk = 64 * (1 + below(8));
        s.shape.prefill_chunk = 128 * (1 + below(8));
        planned p = {.sizes = {1 << 14, 1 << 14, 1 << 21, s.rows}};
        give_lists(&p);
        int status = inf_cuda_plan(&s.shape, s.segments, s.n, s.rows, &p.sizes, &p.lists);
        CHECK(status == INF_OK, "status %d", status);
        if (status == INF_OK)
            check_plan(&s, &p);
        for (int32_t k = 0; k < p.lists.n_decode && status == INF_OK; k++)
            CHECK(p.lists.decode[k].tokens <= (uint32_t)s.shape.decode_chunk, "%u tokens",
                  p.lists.decode[k].tokens);
        drop_lists(&p);
    }
    printf("forced chunks: %d\n", rounds);
}

/* What a plan is worth: load of the busiest slot over the mean, blocks being started in the list's
 * order where one ends. */
static double imbalance(const step *s, const inf_cuda_work *work, int32_t n, int class,
                        int32_t slots) {
    double *busy = get_bytes((size_t)slots * sizeof *busy), all = 0, most = 0;
    memset(busy, 0, (size_t)slots * sizeof *busy);
    for (int32_t i = 0; i < n; i++) {
        int32_t rows = (int32_t)work[i].rows * (s->shape.heads / s->shape.kv_heads);
        int32_t blocks = class == DECODE ? 1 : (rows + 127) / 128;
        for (int32_t b = 0; b < blocks * s->shape.kv_heads; b++) {
            int32_t least = 0;
            for (int32_t k = 1; k < slots; k++)
                least = busy[k] < busy[least] ? k : least;
            busy[least] += work[i].tokens;
            all += work[i].tokens;
            most = busy[least] > most ? busy[least] : most;
        }
    }
    free(busy);
    return all > 0 ? most / (all / slots) : 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* pieces: of decode, 0 for any. */
static void test_shape(const char *name, const step *s, double limit, int32_t pieces) {
    planned p;
    CHECK(inf_cuda_plan_capacity(&s->shape, &s->limits, &p.sizes) == INF_OK, "no capacity");
    give_lists(&p);
    double best = 1e9;
    for (int32_t i = 0; i < 50; i++) {
        double start = now();
        CHECK(inf_cuda_plan(&s->shape, s->segments, s->n, s->rows, &p.sizes, &p.lists) == INF_OK,
              "no plan");
        double took = now() - start;
        best = took < best ? took : best;
    }
    double decode =
        imbalance(s, p.lists.decode, p.lists.n_decode, DECODE, 132); /* one block per SM */
    double prefill = imbalance(s, p.lists.prefill, p.lists.n_prefill, PREFILL, 132 * 2);
    printf("%-28s decode %4d pieces up to %6u tokens, busiest slot %.2f of mean; prefill %4d up to "
           "%6u, %.2f; parts %5u; %.1f us\n",
           name, p.lists.n_decode, p.lists.n_decode > 0 ? p.lists.decode[0].tokens : 0, decode,
           p.lists.n_prefill, p.lists.n_prefill > 0 ? p.lists.prefill[0].tokens : 0, prefill,
           p.lists.n_parts, 1e6 * best);
    CHECK(pieces == 0 || p.lists.n_decode == pieces, "%s: %d pieces", name, p.lists.n_decode);
    CHECK(p.lists.n_decode == 0 || decode < limit, "%s: busiest slot %.2f of mean", name, decode);
    CHECK(p.lists.n_prefill == 0 || prefill < limit, "%s: busiest slot %.2f of mean", name,
          prefill);
    check_plan(s, &p);
    drop_lists(&p);
}

static void add_request(step *s, uint32_t rows, uint32_t context) {
    s->segments[s->n++] =
        (inf_cuda_segment){(uint32_t)s->rows, rows, context - rows, 0, context, 0};
    s->rows += (int32_t)rows;
}

static void test_shapes(void) {
    static const uint32_t contexts[] = {1 << 10, 1 << 13, 1 << 15, 1 << 17, 1 << 20};
    static const int32_t batches[] = {1, 5, 8, 34, 64};
    /* Which cut was the fastest on an H200. */
    static const int32_t pieces[5][5] = {
        {16, 16, 16, 16, 16}, {0}, {8, 16, 16, 16, 16}, {0}, {64, 64, 64, 64, 64}};
    static step s;
    char name[64];
    for (size_t b = 0; b < 5; b++)
        for (size_t c = 0; c < 5; c++) {
            memset(&s, 0, sizeof s);
            s.shape = (inf_cuda_plan_shape){.heads = 32, .kv_heads = 8, .sms = 132};
            for (int32_t i = 0; i < batches[b]; i++)
                add_request(&s, 1, contexts[c]);
            fill_limits(&s);
            snprintf(name, sizeof name, "decode %d x %u", batches[b], contexts[c]);
            /* Some thousand tokens cannot occupy the GPU evenly, or not worth a merge. */
            test_shape(name, &s, batches[b] * contexts[c] <= 34 << 10 ? 100.0 : 1.3, pieces[b][c]);
        }
    memset(&s, 0, sizeof s);
    s.shape = (inf_cuda_plan_shape){.heads = 32, .kv_heads = 8, .sms = 132};
    for (int32_t i = 0; i < 64; i++)
        add_request(&s, 1, i == 9 ? 1u << 20 : 1024u << below(6));
    fill_limits(&s);
    test_shape("decode, 63 short and 1M", &s, 1.15, 0);
    static const uint32_t prefills[][2] = {{128, 128},     {512, 512},     {512, 1 << 20},
                                           {128, 1 << 17}, {640, 1 << 15}, {2048, 2048},
                                           {8192, 8192},   {8, 1 << 15},   {40, 1 << 17}};
    for (size_t i = 0; i < 9; i++) {
        memset(&s, 0, sizeof s);
        s.shape = (inf_cuda_plan_shape){.heads = 32, .kv_heads = 8, .sms = 132};
        add_request(&s, prefills[i][0], prefills[i][1]);
        fill_limits(&s);
        snprintf(name, sizeof name, "prefill %u of %u", prefills[i][0], prefills[i][1]);
        test_shape(name, &s, prefills[i][1] < 4096 ? 100.0 : 1.25, 0);
    }
}

static void test_refusals(void) {
    inf_cuda_plan_shape good = {.heads = 8, .kv_heads = 2, .sms = 4}, bad[6];
    inf_cuda_plan_limits limits = {4, 8, 8, 8};
    planned p;
    CHECK(inf_cuda_plan_capacity(&good, &limits, &p.sizes) == INF_OK, "refused");
    give_lists(&p);
    for (int32_t i = 0; i < 6; i++)
        bad[i] = good;
    bad[0].heads = 0;
    bad[1].kv_heads = 3;
    bad[2].window = -1;
    bad[3].sms = 0;
    bad[4].decode_chunk = 65;
    bad[5].prefill_chunk = 64;
    inf_cuda_segment s = {2, 3, 0, 0, 16, 0};
    for (int32_t i = 0; i < 6; i++)
        CHECK(inf_cuda_plan(&bad[i], &s, 1, 8, &p.sizes, &p.lists) == INF_EINVAL, "shape %d", i);
    CHECK(inf_cuda_plan(&good, &s, 1, 4, &p.sizes, &p.lists) == INF_EINVAL, "rows beyond");
    s.row0 = UINT32_MAX;
    CHECK(inf_cuda_plan(&good, &s, 1, 8, &p.sizes, &p.lists) == INF_EINVAL, "rows wrap");
    CHECK(inf_cuda_plan(&good, &s, 1, 9, &p.sizes, &p.lists) == INF_EFULL, "more rows than off");
    CHECK(inf_cuda_plan(&good, &s, 0, 8, &p.sizes, &p.lists) == INF_OK, "no segment");
    CHECK(p.lists.n_decode == 0 && p.lists.n_prefill == 0 && p.lists.n_parts == 0, "pieces");
    drop_lists(&p);
}

int main(int argc, char **argv) {
    uint64_t s = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)s);
    seed(s);
    (void)same_bits, (void)near, (void)to_bf16, (void)poisoned, (void)numbers; /* not needed here */
    test_refusals();
    test_random(2000, 8, 9, 10);
    test_random(1000, 30, 4, 16);
    test_random(300, 4, 13, 20);
    test_random(100, 30, 7, 28);
    test_forced(500);
    test_shapes();
    return report("cuda_plan");
}
