/* Partial attention and its merge, in every table that this CPU has, against a naive double
 * computation; and the property on which everything rests: spans cut anywhere and merged equal the
 * whole. */
#include "kernel_check.h"

#define EACH(i, array)                                                                             \
    size_t i = 0;                                                                                  \
    i < sizeof(array) / sizeof(*(array));                                                          \
    i++

typedef struct shape {
    int32_t rows, heads, kv_heads, dim, block_size, dtype, tokens, window;
    int32_t q_ahead; /* q_pos0 = kv_pos0 + tokens + q_ahead - rows: 0 means the rows end the span */
} shape;

/* One request with a paged cache. Every number of the pool that holds no key of the span is NaN, so
 * a kernel that lets an unseen number through shows. */
typedef struct request {
    shape s;
    inf_kv_shape kv;
    inf_attn args;
    float *q, *o, *lse;
    uint8_t *pool;
    int32_t *blocks;
    double *k, *v; /* [tokens, kv_heads, dim], as stored */
} request;

enum { LAYERS = 2, LAYER = 1 };

static double put(uint8_t *to, int32_t dtype, float f) {
    uint16_t half = to_bf16(f);
    if (dtype == INF_DTYPE_E4M3) {
        *to = to_e4m3((double)f);
        return from_e4m3(*to);
    }
    memcpy(to, dtype == INF_DTYPE_F32 ? (void *)&f : (void *)&half, dtype == INF_DTYPE_F32 ? 4 : 2);
    return dtype == INF_DTYPE_F32 ? f : from_bf16(half);
}

static void fill_cache(request *r) {
    const shape *s = &r->s;
    for (int32_t t = 0; t < s->tokens; t++)
        for (int32_t h = 0; h < s->kv_heads; h++)
            for (int32_t d = 0; d < s->dim; d++) {
                size_t at = ((size_t)t * s->kv_heads + h) * s->dim + d;
                uint8_t *block =
                    r->pool + (uint64_t)r->blocks[t / s->block_size] * r->kv.block_bytes;
                size_t in_token = (size_t)d * r->kv.elem;
                uint8_t *k =
                    block + inf_kv_offset(&r->kv, LAYER, 0, h, t % s->block_size) + in_token;
                uint8_t *v =
                    block + inf_kv_offset(&r->kv, LAYER, 1, h, t % s->block_size) + in_token;
                r->k[at] = put(k, s->dtype, 3 * number());
                r->v[at] = put(v, s->dtype, number());
            }
}

static request make_request(shape s) {
    request r = {.s = s};
    r.kv = (inf_kv_shape){.layers = LAYERS,
                          .kv_heads = s.kv_heads,
                          .block_size = s.block_size,
                          .head_dim = s.dim,
                          .dtype = s.dtype,
                          .elem = bytes_of(s.dtype)};
    r.kv.block_bytes = inf_kv_offset(&r.kv, LAYERS, 0, 0, 0);
    int32_t used = (s.tokens + s.block_size - 1) / s.block_size, all = used + 3;
    r.pool = get_bytes((size_t)all * r.kv.block_bytes);
    memset(r.pool, 0xff, (size_t)all * r.kv.block_bytes); /* NaN in all types */
    r.blocks = get_bytes((size_t)all * sizeof *r.blocks);
    for (int32_t i = 0; i < all; i++)
        r.blocks[i] = i;
    for (int32_t i = all - 1; i > 0; i--) { /* shuffled */
        int32_t j = below(i + 1), b = r.blocks[i];
        r.blocks[i] = r.blocks[j];
        r.blocks[j] = b;
    }
    size_t keys = (size_t)s.tokens * s.kv_heads * s.dim, queries = (size_t)s.rows * s.heads;
    r.k = get_bytes(keys * sizeof *r.k);
    r.v = get_bytes(keys * sizeof *r.v);
    fill_cache(&r);
    r.q = numbers(queries * s.dim);
    r.o = poisoned(queries * s.dim + 1);
    r.lse = poisoned(queries + 1);
    uint32_t kv_pos0 = (uint32_t)(1000 + below(50));
    r.args = (inf_attn){.q = r.q,
                        .rows = s.rows,
                        .heads = s.heads,
                        .q_pos0 = (uint32_t)((int32_t)kv_pos0 + s.tokens + s.q_ahead - s.rows),
                        .pool = r.pool,
                        .layer = LAYER,
                        .blocks = r.blocks,
                        .kv_pos0 = kv_pos0,
                        .n_tokens = (uint32_t)s.tokens,
                        .window = s.window,
                        .scale = 1.0f / sqrtf((float)s.dim),
                        .o = r.o,
                        .lse = r.lse};
    return r;
}

/* args.kv points into the request, which moves when it is returned. */
static const inf_attn *args_of(request *r) {
    r->args.kv = &r->kv;
    return &r->args;
}

static void free_request(request *r) {
    free(r->q);
    free(r->o);
    free(r->lse);
    free(r->pool);
    free(r->blocks);
    free(r->k);
    free(r->v);
}

/* Two passes in double over the definition in kernels.h; o[dim], returns lse. */
static double naive(const request *r, int32_t row, int32_t head, double *o) {
    const shape *s = &r->s;
    int64_t q_pos = (int64_t)r->args.q_pos0 + row;
    int32_t kv_head = head / (s->heads / s->kv_heads);
    const float *q = r->q + ((size_t)row * s->heads + head) * s->dim;
    double m = -INFINITY, l = 0;
    for (int32_t d = 0; d < s->dim; d++)
        o[d] = 0;
    for (int32_t pass = 0; pass < 2; pass++)
        for (int32_t t = 0; t < s->tokens; t++) {
            int64_t p = (int64_t)r->args.kv_pos0 + t;
            if (p > q_pos || (s->window > 0 && p <= q_pos - s->window))
                continue;
            const double *k = r->k + ((size_t)t * s->kv_heads + kv_head) * s->dim;
            const double *v = r->v + ((size_t)t * s->kv_heads + kv_head) * s->dim;
            double score = 0;
            for (int32_t d = 0; d < s->dim; d++)
                score += r->args.scale * q[d] * k[d];
            if (pass == 0) {
                m = score > m ? score : m;
                continue;
            }
            l += exp(score - m);
            for (int32_t d = 0; d < s->dim; d++)
                o[d] += exp(score - m) * v[d];
        }
    for (int32_t d = 0; d < s->dim && l > 0; d++)
        o[d] /= l;
    return l > 0 ? m + log(l) : -INFINITY;
}

static void check_request(const inf_ops *ops, const request *r) {
    const shape *s = &r->s;
    double o[256];
    for (int32_t row = 0; row < s->rows; row++)
        for (int32_t h = 0; h < s->heads; h++) {
            size_t at = (size_t)row * s->heads + h;
            double lse = naive(r, row, h, o), worst = 0;
            for (int32_t d = 0; d < s->dim; d++) {
                double error = fabs(r->o[at * s->dim + d] - o[d]);
                worst = error <= worst ? worst : error; /* a NaN becomes the worst */
            }
            int lse_good = isinf(lse) ? r->lse[at] == -INFINITY : near(r->lse[at], lse, 3e-6);
            CHECK(worst <= 5e-6 && lse_good,
                  "%s: rows %d heads %d/%d dim %d block %d dtype %d tokens %d window %d ahead %d, "
                  "row %d "
                  "head %d: o off by %g, lse %g, want %g",
                  ops->name, s->rows, s->heads, s->kv_heads, s->dim, s->block_size, s->dtype,
                  s->tokens, s->window, s->q_ahead, row, h, worst, r->lse[at], lse);
        }
    size_t queries = (size_t)s->rows * s->heads;
    CHECK(isnan(r->lse[queries]) && isnan(r->o[queries * s->dim]), "%s: wrote beyond", ops->name);
}

static shape random_shape(void) {
    static const int32_t rows[] = {1, 1, 1, 2, 3, 7, 17, 33},
                         dims[] = {16, 24, 64, 80, 128, 8, 5, 256};
    static const int32_t heads[][2] = {{1, 1}, {4, 4}, {4, 1}, {6, 2}, {8, 2}, {5, 1}, {40, 1}};
    static const int32_t blocks[] = {1, 8, 16, 32, 5}, windows[] = {0, 0, 1, 7, 64, 100};
    static const int32_t aheads[] = {0, 0, 0, 40, -9, -500};
    static const int32_t dtypes[] = {INF_DTYPE_F32, INF_DTYPE_BF16, INF_DTYPE_E4M3};
    const int32_t *h = heads[below(7)];
    return (shape){.rows = rows[below(8)],
                   .heads = h[0],
                   .kv_heads = h[1],
                   .dim = dims[below(8)],
                   .block_size = blocks[below(5)],
                   .dtype = dtypes[below(3)],
                   .tokens = below(4) ? 1 + below(200) : below(4),
                   .window = windows[below(6)],
                   .q_ahead = aheads[below(6)]};
}

/* Batches of requests in one call, on no pool and on three threads: right, and equal to the bit. */
static void test_batches(const inf_ops *ops, inf_pool *pool) {
    enum { REQUESTS = 5 };
    for (int32_t round = 0; round < 60; round++) {
        request r[REQUESTS];
        inf_attn args[REQUESTS], again[REQUESTS];
        for (int32_t i = 0; i < REQUESTS; i++) {
            r[i] = make_request(random_shape());
            args[i] = *args_of(&r[i]);
            again[i] = args[i];
            again[i].o = poisoned((size_t)args[i].rows * args[i].heads * r[i].s.dim);
            again[i].lse = poisoned((size_t)args[i].rows * args[i].heads);
        }
        ops->attention(NULL, args, REQUESTS);
        ops->attention(pool, again, REQUESTS);
        for (int32_t i = 0; i < REQUESTS; i++) {
            size_t queries = (size_t)args[i].rows * args[i].heads;
            check_request(ops, &r[i]);
            CHECK(same_bits(args[i].o, again[i].o, queries * r[i].s.dim) &&
                      same_bits(args[i].lse, again[i].lse, queries),
                  "%s: threads change the result", ops->name);
            free(again[i].o);
            free(again[i].lse);
            free_request(&r[i]);
        }
    }
}

/* What a function finds in variables that it does not set: NaN. */
static __attribute__((noinline)) void spoil_stack(void) {
    volatile uint8_t all[192 * 1024];
    for (size_t i = 0; i < sizeof all; i++)
        all[i] = 0xff;
}

/* Long spans over few KV heads, so that the threads cut them: right, and the same bits as in one
 * task and row by row. */
static void test_cut(const inf_ops *ops, inf_pool *pool) {
    static const int32_t tokens[] = {1024, 1025, 2100, 5000, 40000}, aheads[] = {0, 0, -700, -1500};
    static const int32_t dtypes[] = {INF_DTYPE_F32, INF_DTYPE_BF16, INF_DTYPE_E4M3};
    uint64_t bytes;
    uint8_t *scratch = inf_pool_scratch(pool, &bytes);
    int32_t cut = 0;
    for (int32_t round = 0; round < 10; round++) {
        shape s = {.rows = 1 + below(3),
                   .heads = below(2) ? 4 : 6,
                   .kv_heads = 1 + below(2),
                   .dim = below(2) ? 16 : 24,
                   .block_size = 16,
                   .dtype = dtypes[below(3)],
                   .tokens = tokens[round % 5],
                   .window = below(3) ? 0 : 1 + below(3000),
                   .q_ahead = aheads[below(4)]};
        if (round % 5 == 0) { /* the last of many rows have passed what the first ones see */
            s.rows = 32, s.tokens = 1040, s.window = 60, s.q_ahead = 72, s.heads = s.kv_heads;
        }
        request r = make_request(s);
        size_t row = (size_t)r.s.heads * r.s.dim, queries = (size_t)r.s.rows * r.s.heads;
        float *o = poisoned(queries * r.s.dim), *lse = poisoned(queries);
        inf_attn args = *args_of(&r), one = args;
        spoil_stack();
        ops->attention(NULL, &args, 1);
        check_request(ops, &r);
        if (scratch != NULL)
            memset(scratch, 0xff, 64);
        args.o = o, args.lse = lse;
        ops->attention(pool, &args, 1);
        cut += scratch != NULL && (scratch[0] != 0xff || scratch[4] != 0xff);
        CHECK(same_bits(o, r.o, queries * r.s.dim) && same_bits(lse, r.lse, queries),
              "%s: threads change the result of %d tokens", ops->name, r.s.tokens);
        one.rows = 1;
        for (int32_t i = 0; i < r.s.rows; i++, one.q += row, one.q_pos0++) {
            one.o = o + i * row, one.lse = lse + i * r.s.heads;
            /* In a step of its own there would be no keys behind it. */
            int64_t seen = (int64_t)one.q_pos0 + 1 - one.kv_pos0;
            one.n_tokens = (uint32_t)(seen < 0 ? 0 : seen < r.s.tokens ? seen : r.s.tokens);
            ops->attention(pool, &one, 1);
        }
        CHECK(same_bits(o, r.o, queries * r.s.dim) && same_bits(lse, r.lse, queries),
              "%s: rows differ alone, of %d tokens", ops->name, r.s.tokens);
        free(o);
        free(lse);
        free_request(&r);
    }
    CHECK(cut > 0 || strcmp(ops->name, "c") == 0, "%s: nothing was cut", ops->name);
}

/* A row alone has bit by bit the result that it has in a chunk. */
static void test_rows_alone(const inf_ops *ops) {
    for (int32_t round = 0; round < 30; round++) {
        request r = make_request(random_shape());
        inf_attn one = *args_of(&r);
        ops->attention(NULL, &one, 1);
        size_t row_numbers = (size_t)r.s.heads * r.s.dim;
        float *o = poisoned(row_numbers), *lse = poisoned((size_t)r.s.heads);
        one.rows = 1;
        one.o = o;
        one.lse = lse;
        for (int32_t row = 0; row < r.s.rows; row++, one.q += row_numbers, one.q_pos0++) {
            ops->attention(NULL, &one, 1);
            CHECK(same_bits(o, r.o + row * row_numbers, row_numbers) &&
                      same_bits(lse, r.lse + (size_t)row * r.s.heads, (size_t)r.s.heads),
                  "%s: row %d of %d differs alone", ops->name, row, r.s.rows);
        }
        free(o);
        free(lse);
        free_request(&r);
    }
}

/* Large scores: the running maximum must keep exp in range however it moves. */
static void test_large_scores(const inf_ops *ops) {
    for (int32_t round = 0; round < 20; round++) {
        request r = make_request((shape){.rows = 2,
                                         .heads = 4,
                                         .kv_heads = 2,
                                         .dim = 64,
                                         .block_size = 16,
                                         .dtype = INF_DTYPE_F32,
                                         .tokens = 150});
        r.args.scale = 20.0f;
        ops->attention(NULL, args_of(&r), 1);
        double o[256];
        for (int32_t row = 0; row < 2; row++)
            for (int32_t h = 0; h < 4; h++) {
                double lse = naive(&r, row, h, o);
                CHECK(near(r.lse[row * 4 + h], lse, 1e-5), "%s: lse %g, want %g", ops->name,
                      r.lse[row * 4 + h], lse);
                for (int32_t d = 0; d < 64; d++) /* a score of 1e3 has an error of 1e-4 */
                    CHECK(fabs(r.o[(row * 4 + h) * 64 + d] - o[d]) < 2e-3, "%s: o", ops->name);
            }
        free_request(&r);
    }
}

/* ---- merge ---- */

/* Attends over `pieces` spans cut at block boundaries and merges them in a random order, leaving
 * out the piece `dropped` (-1: none). */
static void attend_pieces(const inf_ops *ops, request *r, int32_t pieces, int32_t dropped, float *o,
                          float *lse) {
    int32_t cuts[9], order[8], blocks = (r->s.tokens + r->s.block_size - 1) / r->s.block_size;
    size_t queries = (size_t)r->s.rows * r->s.heads;
    float *part_o = poisoned(queries * r->s.dim), *part_lse = poisoned(queries);
    for (int32_t i = 0; i < pieces; i++) {
        order[i] = i;
        cuts[i] = i == 0 ? 0 : cuts[i - 1] + below(blocks - cuts[i - 1] + 1);
    }
    cuts[pieces] = blocks;
    for (int32_t i = pieces - 1; i > 0; i--) {
        int32_t j = below(i + 1), swap = order[i];
        order[i] = order[j];
        order[j] = swap;
    }
    for (size_t i = 0; i < queries; i++)
        lse[i] = -INFINITY;
    memset(o, 0, queries * r->s.dim * sizeof *o);
    for (int32_t i = 0; i < pieces; i++) {
        int32_t first = cuts[order[i]] * r->s.block_size,
                end = cuts[order[i] + 1] * r->s.block_size;
        end = end < r->s.tokens ? end : r->s.tokens;
        if (order[i] == dropped)
            continue;
        inf_attn args = *args_of(r);
        args.blocks += cuts[order[i]];
        args.kv_pos0 += (uint32_t)first;
        args.n_tokens = end > first ? (uint32_t)(end - first) : 0;
        args.o = part_o;
        args.lse = part_lse;
        ops->attention(NULL, &args, 1);
        ops->merge(o, lse, part_o, part_lse, r->s.rows, r->s.heads, r->s.dim);
    }
    free(part_o);
    free(part_lse);
}

static double furthest(const float *a, const float *b, size_t n) {
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = a[i] == b[i] ? 0 : fabs((double)a[i] - b[i]);
        worst = d <= worst ? worst : d;
    }
    return worst;
}

static void test_pieces(const inf_ops *ops) {
    for (int32_t round = 0; round < 150; round++) {
        request r = make_request(random_shape());
        size_t queries = (size_t)r.s.rows * r.s.heads;
        float *o = poisoned(queries * r.s.dim), *lse = poisoned(queries);
        ops->attention(NULL, args_of(&r), 1);
        attend_pieces(ops, &r, 2 + round % 7, -1, o, lse);
        double o_off = furthest(o, r.o, queries * r.s.dim), lse_off = furthest(lse, r.lse, queries);
        CHECK(o_off <= 1e-5 && lse_off <= 1e-5, "%s: pieces: o off by %g, lse by %g", ops->name,
              o_off, lse_off);
        free(o);
        free(lse);
        free_request(&r);
    }
}

/* The negative control: without one piece that is seen the result is another. */
static void test_dropped_piece(const inf_ops *ops) {
    for (int32_t round = 0; round < 20; round++) {
        request r = make_request((shape){.rows = 3,
                                         .heads = 4,
                                         .kv_heads = 2,
                                         .dim = 64,
                                         .block_size = 1,
                                         .dtype = INF_DTYPE_BF16,
                                         .tokens = 2});
        r.args.q_pos0 += 100; /* every row sees both keys */
        float o[3 * 4 * 64], lse[3 * 4];
        ops->attention(NULL, args_of(&r), 1);
        /* Five pieces of two keys: some are empty, so drop each in turn from the same cuts. */
        int32_t changed = 0;
        uint64_t cuts_seed = seed_state;
        for (int32_t dropped = 0; dropped < 5; dropped++) {
            seed_state = cuts_seed;
            attend_pieces(ops, &r, 5, dropped, o, lse);
            changed += furthest(lse, r.lse, 12) > 1e-3 && furthest(o, r.o, 12 * 64) > 1e-3;
        }
        CHECK(changed == 1 || changed == 2, "%s: %d of 5 pieces matter", ops->name, changed);
        free_request(&r);
    }
}

static void test_merge_empty(const inf_ops *ops) {
    static const int32_t dims[] = {5, 16, 24, 80, 128};
    for (EACH(i, dims)) {
        int32_t dim = dims[i];
        size_t n = 3 * (size_t)dim;
        float *x = numbers(n), *zero = get_bytes(n * sizeof *zero), *o = get_bytes(n * sizeof *o);
        memset(zero, 0, n * sizeof *zero);
        for (int32_t left = 0; left < 2; left++)
            for (int32_t right = 0; right < 2; right++) {
                float lse[3] = {-INFINITY, -INFINITY, -INFINITY}, lse2[3];
                for (int32_t j = 0; j < 3; j++) {
                    lse[j] = left ? (float)j - 200.0f : -INFINITY;
                    lse2[j] = right ? 300.0f - (float)j : -INFINITY;
                }
                memcpy(o, left ? x : zero, n * sizeof *o);
                ops->merge(o, lse, right ? x : zero, lse2, 1, 3, dim);
                CHECK(furthest(o, left || right ? x : zero, n) <= 1e-6, "%s: o, %d %d", ops->name,
                      left, right);
                for (int32_t j = 0; j < 3; j++) {
                    float want = right ? 300.0f - (float)j : left ? (float)j - 200.0f : -INFINITY;
                    CHECK(lse[j] == want, "%s: lse %g, want %g", ops->name, lse[j], want);
                }
            }
        free(x);
        free(zero);
        free(o);
    }
}

int main(void) {
    inf_pool *pool = NULL;
    if (inf_pool_open(3, &pool) != 0)
        return 2;
    for (int32_t isa = ISA_FIRST; isa <= ISA_LAST; isa++) {
        const inf_ops *ops = inf_ops_cpu(isa);
        if (ops == NULL) {
            printf("isa %d: not on this CPU\n", isa);
            continue;
        }
        seed((uint64_t)isa);
        test_batches(ops, pool);
        test_cut(ops, pool);
        test_rows_alone(ops);
        test_large_scores(ops);
        test_pieces(ops);
        test_dropped_piece(ops);
        test_merge_empty(ops);
        printf("%s: done\n", ops->name);
    }
    inf_pool_close(pool);
    return report("attention");
}
