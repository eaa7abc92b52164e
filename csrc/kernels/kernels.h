/* The table of operations that a device fills in. The order of the layers is written once, in
 * model/, over this table; kernels/cpu fills it for four instruction sets, kernels/cuda will fill
 * it too.
 *
 * Shapes are row-major. Activations are f32; weights are f32, bf16 or of few bits, KV f32, bf16 or
 * e4m3 (dtype); sums are f32. K and V are rounded to the nearest, ties to even. In e4m3 they have
 * the scale 1: what is beyond +-448 becomes +-448, infinities too.
 */
#ifndef INF_KERNELS_H
#define INF_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "infinite/device.h"

/* Geometry of the KV pool: block b, layer l, K or V (kv = 0, 1), head h, token t starts at byte
 *   b * block_bytes + ((((l * 2 + kv) * kv_heads + h) * block_size + t) * head_dim) * elem. */
typedef struct inf_kv_shape {
    int32_t layers, kv_heads, block_size, head_dim;
    int32_t dtype; /* INF_DTYPE_F32, _BF16, _E4M3 or, on a GPU, _F16 */
    int32_t elem;  /* bytes of one number */
    uint64_t block_bytes;
} inf_kv_shape;

static inline uint64_t inf_kv_offset(const inf_kv_shape *s, int32_t layer, int32_t kv, int32_t head,
                                     int32_t token) {
    return ((((uint64_t)layer * 2 + (uint64_t)kv) * (uint64_t)s->kv_heads + (uint64_t)head) *
                (uint64_t)s->block_size +
            (uint64_t)token) *
           (uint64_t)s->head_dim * (uint64_t)s->elem;
}

/* Partial attention of `rows` consecutive queries of one request over one span (design, section 2):
 *   s_j = scale * q.k_j, with softcap > 0 softcap * tanh(scale * q.k_j / softcap);  lse = m + ln
 * sum_j exp(s_j - m);  o = (sum_j exp(s_j - m) v_j) / l The empty span yields o = 0 and lse = -inf.
 * Query row r stands at position q_pos0 + r and sees the keys at positions p with p <= q_pos0 + r
 * and, when window > 0, p > q_pos0 + r - window. */
typedef struct inf_attn {
    const float *q; /* [rows, heads, head_dim] */
    int32_t rows, heads;
    uint32_t q_pos0;
    const uint8_t *pool;
    const inf_kv_shape *kv;
    int32_t layer;
    const int32_t *blocks; /* [ceil(n_tokens / block_size)] */
    uint32_t kv_pos0;      /* position of the first token of blocks[0] */
    uint32_t n_tokens;     /* keys in the span */
    int32_t window;        /* 0: none */
    float scale, softcap;
    float *o;   /* [rows, heads, head_dim] */
    float *lse; /* [rows, heads], base e */
} inf_attn;

/* y[rows, n] = x[rows, k] * w[n, k]^T (+ bias[n] when not NULL), w packed by inf_ops.pack. */
typedef struct inf_gemm {
    const float *x;
    const void *w;
    const float *bias;
    float *y;
    int32_t rows, n, k;
    int32_t ldx, ldy; /* floats between rows */
} inf_gemm;

/* A piece of work that can be cut: `task` runs for every index in [0, n), on any thread. */
typedef void (*inf_task)(void *arg, int32_t index, int32_t thread);

typedef struct inf_pool inf_pool; /* thread pool, runtime/pool.h */
int inf_pool_open(int32_t threads, inf_pool **out);
void inf_pool_run(inf_pool *pool, inf_task task, void *arg, int32_t n);
void inf_pool_stay_awake(inf_pool *pool, int64_t ns);
int32_t inf_pool_threads(const inf_pool *pool);
void *inf_pool_scratch(inf_pool *pool, uint64_t *bytes);
void inf_pool_close(inf_pool *pool);

typedef struct inf_ops {
    const char *name; /* "avx512_bf16", "avx512", "avx2", "c" */

    /* Bytes that a packed [n, k] matrix of dtype takes, and the packing of row-major src_dtype
     * data. */
    uint64_t (*packed_bytes)(int32_t dtype, int32_t n, int32_t k);
    void (*pack)(int32_t dtype, const void *src, int32_t src_dtype, int32_t n, int32_t k,
                 void *dst);
    void (*gemm)(inf_pool *pool, int32_t dtype, const inf_gemm *args);
    /* Several at once, which do not touch each other's y: threads share the work of all, so that
     * many small ones keep a team busy. Each has the bits that gemm gives it. */
    void (*gemms)(inf_pool *pool, int32_t dtype, const inf_gemm *args, int32_t n_args);

    /* y = x / sqrt(mean(x^2) + eps) * weight; x may be y. */
    void (*rms_norm)(inf_pool *pool, const float *x, const float *weight, float *y, int32_t rows,
                     int32_t n, int32_t ldx, int32_t ldy, float eps);

    /* Rotates pairs (i, i + rotary/2) of a head's first `rotary` numbers in place; cos, sin: [rows,
     * rotary/2]. */
    void (*rope)(inf_pool *pool, float *x, const float *cos, const float *sin, int32_t rows,
                 int32_t heads, int32_t head_dim, int32_t rotary, int32_t ldx);

    /* Appends K and V [rows, kv_heads, head_dim] at local token index t0 of a block list, in the
     * format of kv. */
    void (*kv_append)(uint8_t *pool, const inf_kv_shape *kv, int32_t layer, const int32_t *blocks,
                      uint32_t t0, const float *k, const float *v, int32_t rows, int32_t ld);

    /* Every (row tile, kv head) is one index of the pool's work; scratch is on the stack. */
    void (*attention)(inf_pool *pool, const inf_attn *args, int32_t n_args);

    /* Merges a partial into an accumulated one, both normalised: rows * heads of [head_dim]. */
    void (*merge)(float *o, float *lse, const float *o2, const float *lse2, int32_t rows,
                  int32_t heads, int32_t head_dim);

    /* y = activation(gate) * up, of an INF_ACT_* */
    void (*gate)(inf_pool *pool, int32_t activation, const float *gate, const float *up, float *y,
                 int32_t rows, int32_t n, int32_t ldx, int32_t ldy);

    /* x = cap * tanh(x / cap), [rows, n] */
    void (*softcap)(inf_pool *pool, float *x, int32_t rows, int32_t n, float cap);

    /* y += x, n numbers */
    void (*add)(float *y, const float *x, int64_t n);
} inf_ops;

/* isa as in inf_device_config; NULL when the CPU or the build lacks it. */
const inf_ops *inf_ops_cpu(int32_t isa);

#endif
