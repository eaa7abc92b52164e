/* Attention as tasks for a team of threads; what a task computes is in simd_attention.h.
 *
 * A task is a tile of queries and one KV head. Where there are few of these, as in decode of a
 * request or two over few KV heads, threads would idle, and long contexts are just that case. So a
 * span's keys are cut into chunks, always at the same places, and each chunk's partial is computed
 * by itself; partials are added up in ascending order. Whether a task computes all chunks
 * of its tile or each chunk is a task, whose partials lie in the team's scratch until a second run
 * adds them up, is the same arithmetic: neither the number of threads nor what else is computed
 * changes a bit of a result. */
#include "kernels/cpu/simd_attention.h"

typedef struct attn_job {
    const inf_attn *args;
    float *partials; /* NULL: a task computes all chunks of its tile */
} attn_job;

static int32_t attn_tiles(const inf_attn *a) {
    return ceil_div(attn_queries(a), TILE_Q) * a->kv->kv_heads;
}

static int32_t attn_chunks(const inf_attn *a) {
    return max_i32(ceil_div((int32_t)a->n_tokens, CHUNK), 1);
}

/* Floats of a chunk's partial of a tile: o, m and l of each query. */
static size_t attn_partial(const inf_attn *a) {
    size_t stride = (size_t)ceil_div(a->kv->head_dim, W) * W;
    return (size_t)min_i32(attn_queries(a), TILE_Q) * (stride + 2);
}

/* A task's tile. */
typedef struct attn_place {
    const inf_attn *a;
    int32_t kv_head, first, chunk; /* first query */
    float *partial;                /* of chunk 0; NULL: there are none */
} attn_place;

/* by_chunk: a tile has a task per chunk. */
static attn_place attn_find(const attn_job *job, int32_t index, int by_chunk) {
    attn_place p = {.a = job->args};
    for (size_t before = 0;; p.a++) { /* floats of partials */
        int32_t chunks = attn_chunks(p.a), tiles = attn_tiles(p.a);
        int32_t each = by_chunk ? chunks : 1, tile = index / each;
        size_t size = (size_t)chunks * attn_partial(p.a);
        if (tile < tiles) {
            p.kv_head = tile % p.a->kv->kv_heads;
            p.first = tile / p.a->kv->kv_heads * TILE_Q;
            p.chunk = index % each;
            p.partial = job->partials != NULL ? job->partials + before + (size_t)tile * size : NULL;
            return p;
        }
        index -= tiles * each;
        before += (size_t)tiles * size;
    }
}

static void attn_write(const inf_attn *a, int32_t kv_head, int32_t query, const float *sum, float m,
                       float l) {
    size_t at = attn_at(a, kv_head, query);
    int32_t dim = a->kv->head_dim;
    float *o = a->o + at * (size_t)dim, inverse = 1.0f / l;
    a->lse[at] = l == 0 ? -INFINITY : m + logf(l);
    for (int32_t d = 0; d < dim; d++) /* what has seen no key has no sum either */
        o[d] = l == 0 ? 0.0f : sum[d] * inverse;
}

static void attn_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    attn_place p = attn_find(arg, index, 0);
    attn_tile t;
    attn_begin(&t, p.a, p.kv_head, p.first);
    attn_walk(&t, p.a, p.kv_head, 0, (int32_t)p.a->n_tokens);
    if (t.folded > 0)
        attn_fold_chunk(&t);
    for (int32_t i = 0; i < t.queries; i++) {
        int whole = t.folded == 0;
        attn_write(p.a, p.kv_head, p.first + i, (whole ? t.o : t.sum.o) + i * t.stride,
                   whole ? t.m[i] : t.sum.m[i], whole ? t.l[i] : t.sum.l[i]);
    }
}

/* One chunk of a tile, into its partial. */
static void attn_chunk_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    attn_place p = attn_find(arg, index, 1);
    attn_tile t;
    attn_begin(&t, p.a, p.kv_head, p.first);
    int32_t from = p.chunk * CHUNK;
    attn_walk(&t, p.a, p.kv_head, from, min_i32(from + CHUNK, (int32_t)p.a->n_tokens));
    float *to = p.partial + (size_t)p.chunk * attn_partial(p.a);
    for (int32_t i = 0; i < t.queries; i++, to += t.stride + 2) {
        to[0] = t.m[i];
        to[1] = t.l[i];
        memcpy(to + 2, t.o + i * t.stride, (size_t)t.stride * sizeof *to);
    }
}

/* Adds up a tile's partials. */
static void attn_fold_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    attn_place p = attn_find(arg, index, 0);
    int32_t chunks = attn_chunks(p.a), n = min_i32(TILE_Q, attn_queries(p.a) - p.first);
    int32_t stride = ceil_div(p.a->kv->head_dim, W) * W;
    for (int32_t i = 0; i < n; i++) {
        float *sum = p.partial + (size_t)i * (size_t)(stride + 2);
        for (int32_t c = 1; c < chunks; c++) {
            const float *more = sum + (size_t)c * attn_partial(p.a);
            attn_fold(sum + 2, &sum[0], &sum[1], more + 2, more[0], more[1], stride);
        }
        attn_write(p.a, p.kv_head, p.first + i, sum + 2, sum[0], sum[1]);
    }
}

static void simd_attention(inf_pool *pool, const inf_attn *args, int32_t n_args) {
    enum { PER_THREAD = 4 }; /* tiles, so that threads end at about the same time */
    attn_job job = {.args = args};
    int32_t tiles = 0;
    int64_t tasks = 0;
    size_t floats = 0;
    for (int32_t i = 0; i < n_args; i++) {
        int64_t of_args = (int64_t)attn_tiles(&args[i]) * attn_chunks(&args[i]);
        tiles += attn_tiles(&args[i]);
        tasks += of_args;
        floats += (size_t)of_args * attn_partial(&args[i]);
    }
    uint64_t room;
    float *scratch = inf_pool_scratch(pool, &room);
    if (tasks == tiles || tiles >= PER_THREAD * inf_pool_threads(pool) ||
        floats * sizeof(float) > room) {
        inf_pool_run(pool, attn_task, &job, tiles);
        return;
    }
    job.partials = scratch;
    inf_pool_run(pool, attn_chunk_task, &job, (int32_t)tasks);
    inf_pool_run(pool, attn_fold_task, &job, tiles);
}
