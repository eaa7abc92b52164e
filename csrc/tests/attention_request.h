/* Requests with a paged cache, for tests of partial attention and of its merge. */
#ifndef INF_TESTS_ATTENTION_REQUEST_H
#define INF_TESTS_ATTENTION_REQUEST_H

#include "kernel_check.h"

typedef struct shape {
    int32_t rows, heads, kv_heads, dim, block_size, dtype, tokens, window;
    int32_t q_ahead; /* q_pos0 = kv_pos0 + tokens + q_ahead - rows: 0 means the rows end the span */
    float softcap;
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
                        .softcap = s.softcap,
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

static shape random_shape(void) {
    static const int32_t rows[] = {1, 1, 1, 2, 3, 7, 17, 33},
                         dims[] = {16, 24, 64, 80, 128, 8, 5, 256};
    static const int32_t heads[][2] = {{1, 1}, {4, 4}, {4, 1}, {6, 2}, {8, 2}, {5, 1}, {40, 1}};
    static const int32_t blocks[] = {1, 8, 16, 32, 5}, windows[] = {0, 0, 1, 7, 64, 100};
    static const int32_t aheads[] = {0, 0, 0, 40, -9, -500};
    static const int32_t dtypes[] = {INF_DTYPE_F32, INF_DTYPE_BF16, INF_DTYPE_E4M3};
    static const float caps[] = {0, 0, 0, 1, 50}; /* scores have some 1.5 */
    const int32_t *h = heads[below(7)];
    return (shape){.rows = rows[below(8)],
                   .heads = h[0],
                   .kv_heads = h[1],
                   .dim = dims[below(8)],
                   .block_size = blocks[below(5)],
                   .dtype = dtypes[below(3)],
                   .tokens = below(4) ? 1 + below(200) : below(4),
                   .window = windows[below(6)],
                   .q_ahead = aheads[below(6)],
                   .softcap = caps[below(5)]};
}

/* Runs tests of every table that this CPU has. */
static int each_table(const char *name, void (*test)(const inf_ops *ops)) {
    for (int32_t isa = ISA_FIRST; isa <= ISA_LAST; isa++) {
        const inf_ops *ops = inf_ops_cpu(isa);
        if (ops == NULL) {
            printf("isa %d: not on this CPU\n", isa);
            continue;
        }
        seed((uint64_t)isa);
        test(ops);
        printf("%s: done\n", ops->name);
    }
    return report(name);
}

#endif
