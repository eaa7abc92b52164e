/* Partial attention over a span of a paged KV cache (design, section 2; formulas in kernels.h).
 *
 * Arithmetic: 4 rows heads head_dim flops per visible key. Bytes: the span's K and V once per tile
 * of queries, 2 n_tokens head_dim * elem per KV head. The query heads of a group (GQA) share a KV
 * head, so a tile takes queries [row][head of the group], flattened, TILE_Q at a time: one row of 8
 * heads reads the cache once, not 8 times, and a prefill chunk reads it rows * group / TILE_Q
 * times.
 *
 * A task is one such tile and one KV head (simd_attention_cut.h). It walks over the span in tiles
 * of TILE_T keys:
 *   1. scores  s = (scale q) . k, perhaps capped     4 queries x 4 keys at a time (2 x 4 with 16
 * registers): the vectors run along head_dim, K is read as it lies, 16 sums per 8 loads
 *   2. softmax m' = max(m, max s), p = exp(s - m'), l = l exp(m - m') + sum p
 *   3. values  o = o exp(m - m') + p v, vectors along head_dim
 * and ends with o / l and lse = m + ln l. Keys lie in blocks; a tile holds one pointer per key, so
 * any block size works and nothing is copied. Keys in f32 are read from the tile's quarters in turn
 * (0, 16, 32, 48, 1, 17, ..), which lie in different blocks where these are of 16: hardware that
 * reads ahead does so along each of the four. On an AMD EPYC decode is a third faster so than from
 * one block after the other; in bf16, where arithmetic counts more, only 4 %, and prefill 5 %
 * slower. Scratch (q, o, s) is on the stack, about 110 KiB.
 *
 * The result of a query does not depend on the tile it shares: key tiles start at multiples of
 * TILE_T from the span's beginning, each score and each o sums in one fixed order, and a key that a
 * query does not see contributes exp(-inf) = 0 exactly. So neither the number of rows nor that of
 * threads changes a bit. */
#include "kernels/cpu/simd_math.h"

enum { TILE_Q = 32, TILE_T = 64, QUARTER = TILE_T / 4 };
/* Keys after which partials begin anew, counted from the span's first. */
enum { CHUNK = 1024 };

/* Partials of a tile's queries, o not divided: of chunks of keys that were computed each by itself.
 */
typedef struct attn_sum {
    _Alignas(64) float o[TILE_Q * MAX_HEAD_DIM]; /* [query, dim] */
    float m[TILE_Q], l[TILE_Q];
} attn_sum;

typedef struct attn_tile {
    _Alignas(64) float q[TILE_Q * MAX_HEAD_DIM]; /* [query, dim], scaled */
    _Alignas(64) float o[TILE_Q * MAX_HEAD_DIM]; /* [query, dim] */
    _Alignas(64) float s[TILE_Q * TILE_T];       /* [query, key]: scores, then p */
    float m[TILE_Q], l[TILE_Q], shrink[TILE_Q];
    int32_t lo[TILE_Q], hi[TILE_Q]; /* keys seen by a query */
    const uint8_t *keys[2][TILE_T]; /* K of this tile of keys and of the next, in turn */
    const uint8_t **k, **next;      /* those two */
    size_t to_v;                    /* bytes from a token's K to its V */
    int32_t queries, dim, full;     /* full: dim rounded down to vectors */
    int32_t stride;                 /* of q and o: dim rounded up to vectors */
    int32_t begin, end;             /* keys of this tile that some query sees */
    int32_t row_bytes;              /* of a token's K in one head */
    int32_t folded;                 /* chunks that are in `sum` */
    attn_sum sum;
} attn_tile;

static int32_t attn_queries(const inf_attn *a) { return a->rows * (a->heads / a->kv->kv_heads); }

/* Number of the flattened query's vector in q, o and lse. */
static size_t attn_at(const inf_attn *a, int32_t kv_head, int32_t query) {
    int32_t group = a->heads / a->kv->kv_heads;
    return (size_t)(query / group) * a->heads + (size_t)kv_head * group + (size_t)(query % group);
}

/* Nothing was seen so far. */
static void attn_clear(attn_tile *t) {
    memset(t->o, 0, (size_t)(t->queries * t->stride) * sizeof *t->o);
    for (int32_t i = 0; i < t->queries; i++) {
        t->m[i] = -INFINITY;
        t->l[i] = 0;
    }
}

static void attn_begin(attn_tile *t, const inf_attn *a, int32_t kv_head, int32_t first) {
    int32_t group = a->heads / a->kv->kv_heads;
    t->queries = min_i32(TILE_Q, attn_queries(a) - first);
    t->dim = a->kv->head_dim;
    t->full = t->dim / W * W;
    t->stride = ceil_div(t->dim, W) * W;
    t->row_bytes = t->dim * a->kv->elem;
    t->to_v = (size_t)a->kv->kv_heads * (size_t)a->kv->block_size * (size_t)t->row_bytes;
    t->k = t->keys[0];
    t->next = t->keys[1];
    for (int32_t i = 0; i < t->queries; i++) {
        const float *q = a->q + attn_at(a, kv_head, first + i) * t->dim;
        float *to = t->q + i * t->stride;
        for (int32_t d = 0; d < t->stride; d++)
            to[d] = d < t->dim ? q[d] * a->scale : 0.0f;
        attn_visible(a, (first + i) / group, &t->lo[i], &t->hi[i]);
    }
    t->folded = 0;
    memset(t->sum.l, 0, sizeof t->sum.l);
    attn_clear(t);
}

/* Whether keys are read from the quarters of a tile in turn. */
INLINE int in_turn(const int format) { return format == IN_F32; }

/* s of `queries` x 4 keys: key, key + apart, .. */
INLINE void attn_dot(const int format, const int32_t queries, const attn_tile *t, int32_t query,
                     int32_t key, const int32_t apart, float *s) {
    const float *q = t->q + query * t->stride;
    vec sum[ATTN_Q][4];
    UNROLL_FOR (i, queries)
        UNROLL_FOR (j, 4)
            sum[i][j] = v_zero();
    for (int32_t d = 0; d < t->full; d += W) {
        vec k[4];
        UNROLL_FOR (j, 4)
            k[j] = load_as(format, t->k[key + j * apart], (size_t)d);
        UNROLL_FOR (i, queries) {
            vec each = v_load(q + i * t->stride + d);
            UNROLL_FOR (j, 4)
                sum[i][j] = v_fma(each, k[j], sum[i][j]);
        }
    }
    if (t->full < t->dim) {
        UNROLL_FOR (j, 4) {
            vec k = load_as_n(format, t->k[key + j * apart], (size_t)t->full, t->dim - t->full);
            UNROLL_FOR (i, queries)
                sum[i][j] = v_fma(v_load(q + i * t->stride + t->full), k, sum[i][j]);
        }
    }
    UNROLL_FOR (i, queries) {
        float four[4], *to = apart == 1 ? s + i * TILE_T : four;
        v_sum4(to, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
        for (int32_t j = 0; j < 4 && apart > 1; j++)
            s[i * TILE_T + j * apart] = four[j];
    }
}

/* Blocks lie anywhere, so the hardware does not foresee the next one: rows are asked for while the
 * ones before them are computed on, V of this tile during its scores and K of the next during its
 * values. */
INLINE void attn_prefetch(const uint8_t *row, int32_t bytes) {
    for (int32_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(row + at, 0, 2);
}

/* Scores of all queries for four keys. */
INLINE void attn_four(const int format, attn_tile *t, int32_t key, const int32_t apart) {
    for (int32_t j = 0; j < 4; j++)
        attn_prefetch(t->k[key + j * apart] + t->to_v, t->row_bytes);
    for (int32_t i = 0; i < t->queries;) {
        float *s = t->s + i * TILE_T + key;
        if (ATTN_Q == 4 && t->queries - i >= 4) {
            attn_dot(format, ATTN_Q, t, i, key, apart, s);
            i += 4;
        } else if (t->queries - i >= 2) {
            attn_dot(format, 2, t, i, key, apart, s);
            i += 2;
        } else {
            attn_dot(format, 1, t, i, key, apart, s);
            i++;
        }
    }
}

/* A score does not depend on which four keys are computed together, so a tile with few keys
 * computes no more than it must. */
INLINE void attn_scores(const int format, attn_tile *t) {
    if (in_turn(format) && t->end - t->begin > 3 * QUARTER) {
        for (int32_t key = 0; key < QUARTER; key++)
            attn_four(format, t, key, QUARTER);
        return;
    }
    for (int32_t key = t->begin / 4 * 4; key < t->end; key += 4)
        attn_four(format, t, key, 1);
}

/* Scores s to cap tanh(s / cap), over the vectors that hold [begin, end). */
static void attn_softcap(attn_tile *t, float softcap) {
    int32_t from = t->begin / W * W, to = ceil_div(t->end, W) * W;
    vec cap = v_set(softcap), inverse = v_set(1.0f / softcap);
    for (int32_t i = 0; i < t->queries; i++) {
        float *s = t->s + i * TILE_T;
        for (int32_t j = from; j < to; j += W)
            v_store(s + j, v_mul(cap, v_tanh(v_mul(v_load(s + j), inverse))));
    }
}

/* Scores of the tile's keys from t0 to p, over the vectors that hold [begin, end). */
static void attn_softmax(attn_tile *t, int32_t t0) {
    int32_t from = t->begin / W * W, to = ceil_div(t->end, W) * W;
    for (int32_t i = 0; i < t->queries; i++) {
        float *s = t->s + i * TILE_T;
        int32_t lo = min_i32(max_i32(t->lo[i] - t0, from), to);
        int32_t hi = max_i32(min_i32(t->hi[i] - t0, to), lo);
        for (int32_t j = from; j < lo; j++)
            s[j] = -INFINITY;
        for (int32_t j = hi; j < to; j++)
            s[j] = -INFINITY;
        vec top = v_set(-INFINITY);
        for (int32_t j = from; j < to; j += W)
            top = v_max(top, v_load(s + j));
        float tile_top = v_top(top), old = t->m[i], m = old > tile_top ? old : tile_top;
        /* Nothing seen so far: any finite reference gives p = 0. */
        vec reference = v_set(m == -INFINITY ? 0.0f : m), sum = v_zero();
        for (int32_t j = from; j < to; j += W) {
            vec p = v_exp(v_sub(v_load(s + j), reference));
            v_store(s + j, p);
            sum = v_add(sum, p);
        }
        t->shrink[i] = old == m ? 1.0f : expf(old - m);
        t->l[i] = t->l[i] * t->shrink[i] + v_sum(sum);
        t->m[i] = m;
    }
}

/* o of `queries` x `vecs` vectors at d; n: numbers of the vector, W unless it is the tail (vecs 1).
 */
INLINE void attn_add(const int format, const int32_t queries, const int32_t vecs, attn_tile *t,
                     int32_t query, int32_t d, int32_t n) {
    vec sum[ATTN_Q][ATTN_V];
    float *o = t->o + query * t->stride + d;
    const float *p = t->s + query * TILE_T;
    UNROLL_FOR (i, queries) {
        vec shrink = v_set(t->shrink[query + i]);
        UNROLL_FOR (v, vecs)
            sum[i][v] = v_mul(v_load(o + i * t->stride + v * W), shrink);
    }
    const int turn = in_turn(format);
    for (int32_t at = turn ? 0 : t->begin, stop = turn ? TILE_T : t->end; at < stop; at++) {
        int32_t j = turn ? at % 4 * QUARTER + at / 4 : at;
        if (turn && (j < t->begin || j >= t->end))
            continue;
        const uint8_t *row = t->k[j] + t->to_v;
        if (query == 0 && d == 0)
            attn_prefetch(t->next[j], t->row_bytes);
        vec value[ATTN_V];
        UNROLL_FOR (v, vecs)
            value[v] = vecs == 1 && n < W ? load_as_n(format, row, (size_t)d, n)
                                          : load_as(format, row, (size_t)d + (size_t)v * W);
        UNROLL_FOR (i, queries) {
            vec each = v_set(p[i * TILE_T + j]);
            UNROLL_FOR (v, vecs)
                sum[i][v] = v_fma(each, value[v], sum[i][v]);
        }
    }
    UNROLL_FOR (i, queries)
        UNROLL_FOR (v, vecs)
            v_store(o + i * t->stride + v * W, sum[i][v]);
}

INLINE void attn_values_of(const int format, const int32_t queries, attn_tile *t, int32_t query) {
    int32_t d = 0;
    for (; d + ATTN_V * W <= t->dim; d += ATTN_V * W)
        attn_add(format, queries, ATTN_V, t, query, d, W);
    for (; d < t->dim; d += W)
        attn_add(format, queries, 1, t, query, d, min_i32(W, t->dim - d));
}

/* Each o is scaled even where none of its keys is in the tile: then by 1. */
INLINE void attn_values(const int format, attn_tile *t) {
    for (int32_t i = 0; i < t->queries;)
        if (ATTN_Q == 4 && t->queries - i >= 4) {
            attn_values_of(format, ATTN_Q, t, i);
            i += 4;
        } else if (t->queries - i >= 2) {
            attn_values_of(format, 2, t, i);
            i += 2;
        } else {
            attn_values_of(format, 1, t, i);
            i++;
        }
}

/* The keys of the tile from t0 that some query sees; rows ascend, so the first query sees the
 * lowest key and the last one the highest. */
static void attn_range(const attn_tile *t, int32_t t0, int32_t *begin, int32_t *end) {
    *begin = min_i32(max_i32(t->lo[0] - t0, 0), TILE_T);
    *end = max_i32(min_i32(t->hi[t->queries - 1] - t0, TILE_T), *begin);
}

/* Where K of the tile's keys stands; those that no query sees stand for the nearest key that one
 * does, so that only such keys are read. */
static void attn_locate(const attn_tile *t, const inf_attn *a, int32_t kv_head, int32_t t0,
                        const uint8_t **k) {
    int32_t begin, end, size = a->kv->block_size;
    attn_range(t, t0, &begin, &end);
    if (begin == end)
        return;
    int32_t in_block = (t0 + begin) % size;
    const uint8_t *row = attn_token(a, 0, kv_head, t0 + begin);
    for (int32_t j = begin; j < end; j++) {
        if (in_block == size) {
            in_block = 0;
            row = attn_token(a, 0, kv_head, t0 + j);
        }
        k[j] = row;
        row += t->row_bytes;
        in_block++;
    }
    for (int32_t j = 0; j < begin; j++)
        k[j] = k[begin];
    for (int32_t j = end; j < TILE_T; j++)
        k[j] = k[end - 1];
}

/* Adds one partial to another, in this order; one that has seen no key changes nothing. Not
 * inlined, so that a compiler that contracts its sums does so alike for all. */
static __attribute__((noinline)) void attn_fold(float *o, float *m, float *l, const float *o2,
                                                float m2, float l2, int32_t n) {
    if (l2 == 0)
        return;
    if (*l == 0) {
        memcpy(o, o2, (size_t)n * sizeof *o);
        *m = m2;
        *l = l2;
        return;
    }
    float top = *m > m2 ? *m : m2, w = expf(*m - top), w2 = expf(m2 - top);
    for (int32_t d = 0; d < n; d++)
        o[d] = o[d] * w + o2[d] * w2;
    *m = top;
    *l = *l * w + l2 * w2;
}

/* The chunk so far goes to the sum, and the next one begins. */
static void attn_fold_chunk(attn_tile *t) {
    for (int32_t i = 0; i < t->queries; i++) {
        attn_fold(t->sum.o + i * t->stride, &t->sum.m[i], &t->sum.l[i], t->o + i * t->stride,
                  t->m[i], t->l[i], t->stride);
    }
    t->folded++;
    attn_clear(t);
}

/* Keys [from, upto) of the span: multiples of a chunk, or its end. */
static void attn_walk(attn_tile *t, const inf_attn *a, int32_t kv_head, int32_t from,
                      int32_t upto) {
    if (t->queries <= 0 || t->lo[0] >= t->hi[t->queries - 1])
        return;
    int32_t stop = min_i32(t->hi[t->queries - 1], upto);
    int32_t first = max_i32(t->lo[0], from) / TILE_T * TILE_T;
    if (first >= stop)
        return;
    attn_locate(t, a, kv_head, first, t->k);
    for (int32_t t0 = first; t0 < stop; t0 += TILE_T) {
        if (t0 + TILE_T < stop)
            attn_locate(t, a, kv_head, t0 + TILE_T, t->next);
        else
            t->next = t->k;
        if (t0 > first && t0 % CHUNK == 0)
            attn_fold_chunk(t);
        attn_range(t, t0, &t->begin, &t->end);
        if (a->kv->dtype == INF_DTYPE_BF16)
            attn_scores(IN_BF16, t);
        else if (a->kv->dtype == INF_DTYPE_E4M3)
            attn_scores(IN_E4M3, t);
        else
            attn_scores(IN_F32, t);
        if (a->softcap > 0)
            attn_softcap(t, a->softcap);
        attn_softmax(t, t0);
        if (a->kv->dtype == INF_DTYPE_BF16)
            attn_values(IN_BF16, t);
        else if (a->kv->dtype == INF_DTYPE_E4M3)
            attn_values(IN_E4M3, t);
        else
            attn_values(IN_F32, t);
        const uint8_t **k = t->k;
        t->k = t->next;
        t->next = k;
    }
}
