/* Partial attention, in every table that this CPU has, against a naive double computation. */
#include "attention_request.h"

static inf_pool *pool;

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
            if (s->softcap > 0)
                score = s->softcap * tanh(score / s->softcap);
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
                  "%s: rows %d heads %d/%d dim %d block %d dtype %d tokens %d window %d ahead %d "
                  "cap %g, "
                  "row %d "
                  "head %d: o off by %g, lse %g, want %g",
                  ops->name, s->rows, s->heads, s->kv_heads, s->dim, s->block_size, s->dtype,
                  s->tokens, s->window, s->q_ahead, s->softcap, row, h, worst, r->lse[at], lse);
        }
    size_t queries = (size_t)s->rows * s->heads;
    CHECK(isnan(r->lse[queries]) && isnan(r->o[queries * s->dim]), "%s: wrote beyond", ops->name);
}

/* Batches of requests in one call, on no pool and on three threads: right, and equal to the bit. */
static void test_batches(const inf_ops *ops) {
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
static void test_cut(const inf_ops *ops) {
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
                   .q_ahead = aheads[below(4)],
                   .softcap = below(3) ? 0 : 2};
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

static void test_table(const inf_ops *ops) {
    test_batches(ops);
    test_cut(ops);
    test_rows_alone(ops);
    test_large_scores(ops);
}

int main(void) {
    if (inf_pool_open(3, &pool) != 0)
        return 2;
    int status = each_table("attention", test_table);
    inf_pool_close(pool);
    return status;
}
