/* The operations that pass once over rows: norm, rotation, activation, addition, merge and append.
 * They do a few flops per number, so bytes decide: rms_norm, gate and add read what they name and
 * write y, rope and merge read and write in place, append writes K and V in the cache's type. Work
 * is cut into tasks of whole rows of about TASK_NUMBERS, below which a second thread costs more
 * than it gives. */
#include "kernels/cpu/simd_math.h"

enum { TASK_NUMBERS = 16384 };

/* Loads or stores a vector, or its first n numbers at the end of a row. */
INLINE vec load_upto(const float *p, int32_t n) { return n >= W ? v_load(p) : v_load_n(p, n); }
INLINE void store_upto(float *p, vec x, int32_t n) {
    if (n >= W)
        v_store(p, x);
    else
        v_store_n(p, x, n);
}

typedef struct rows_job {
    const float *x, *w; /* rms_norm: weight; rope: cos; gate: gate and up */
    const float *sin;
    float *y;
    int32_t rows, n, heads, head_dim, ldx, ldy, per_task;
    float eps, cap;
} rows_job;

static void rows_run(inf_pool *pool, inf_task task, rows_job *job, int32_t row_numbers) {
    if (job->rows <= 0 || row_numbers <= 0)
        return;
    job->per_task = max_i32(1, TASK_NUMBERS / row_numbers);
    inf_pool_run(pool, task, job, ceil_div(job->rows, job->per_task));
}

static int32_t rows_end(const rows_job *job, int32_t index) {
    return min_i32(job->rows, (index + 1) * job->per_task);
}

static void rms_norm_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const rows_job *job = arg;
    int32_t n = job->n, end = rows_end(job, index);
    for (int32_t r = index * job->per_task; r < end; r++) {
        const float *x = job->x + (size_t)r * job->ldx;
        float *y = job->y + (size_t)r * job->ldy;
        vec sum[4] = {v_zero(), v_zero(), v_zero(), v_zero()};
        int32_t i = 0;
        for (; i + 4 * W <= n; i += 4 * W)
            UNROLL_FOR (j, 4) {
                vec each = v_load(x + i + j * W);
                sum[j] = v_fma(each, each, sum[j]);
            }
        for (; i < n; i += W) {
            vec each = load_upto(x + i, n - i);
            sum[0] = v_fma(each, each, sum[0]);
        }
        float total = v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
        vec inverse = v_set(1.0f / sqrtf(total / (float)n + job->eps));
        for (i = 0; i < n; i += W) {
            vec each = v_mul(load_upto(x + i, n - i), inverse);
            store_upto(y + i, v_mul(each, load_upto(job->w + i, n - i)), n - i);
        }
    }
}

static void simd_rms_norm(inf_pool *pool, const float *x, const float *weight, float *y,
                          int32_t rows, int32_t n, int32_t ldx, int32_t ldy, float eps) {
    rows_job job = {
        .x = x, .w = weight, .y = y, .rows = rows, .n = n, .ldx = ldx, .ldy = ldy, .eps = eps};
    rows_run(pool, rms_norm_task, &job, n);
}

static void rope_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const rows_job *job = arg;
    int32_t half = job->n, end = rows_end(job, index);
    for (int32_t r = index * job->per_task; r < end; r++) {
        const float *cos = job->w + (size_t)r * half, *sin = job->sin + (size_t)r * half;
        for (int32_t h = 0; h < job->heads; h++) {
            float *a = job->y + (size_t)r * job->ldy + (size_t)h * job->head_dim, *b = a + half;
            for (int32_t i = 0; i < half; i += W) {
                int32_t n = half - i;
                vec c = load_upto(cos + i, n), s = load_upto(sin + i, n);
                vec first = load_upto(a + i, n), second = load_upto(b + i, n);
                store_upto(a + i, v_fnma(second, s, v_mul(first, c)), n);
                store_upto(b + i, v_fma(first, s, v_mul(second, c)), n);
            }
        }
    }
}

static void simd_rope(inf_pool *pool, float *x, const float *cos, const float *sin, int32_t rows,
                      int32_t heads, int32_t head_dim, int32_t rotary, int32_t ldx) {
    rows_job job = {.y = x,
                    .w = cos,
                    .sin = sin,
                    .rows = rows,
                    .heads = heads,
                    .head_dim = head_dim,
                    .n = rotary / 2,
                    .ldy = ldx};
    rows_run(pool, rope_task, &job, heads * rotary);
}

/* x / (1 + e^-x), or with gelu e^-u, u = x (GELU_1 + GELU_3 x^2). */
INLINE void gate_rows(const int gelu, const rows_job *job, int32_t index) {
    vec one = v_set(1.0f);
    int32_t end = rows_end(job, index);
    for (int32_t r = index * job->per_task; r < end; r++) {
        size_t at = (size_t)r * job->ldx;
        for (int32_t i = 0; i < job->n; i += W) {
            int32_t n = job->n - i;
            vec gate = load_upto(job->x + at + i, n), up = load_upto(job->w + at + i, n);
            vec u = gate;
            if (gelu)
                u = v_mul(gate, v_fma(v_mul(gate, gate), v_set(GELU_3), v_set(GELU_1)));
            vec y = v_div(gate, v_add(one, v_exp(v_sub(v_zero(), u))));
            store_upto(job->y + (size_t)r * job->ldy + i, v_mul(y, up), n);
        }
    }
}

static void silu_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    gate_rows(0, arg, index);
}

static void gelu_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    gate_rows(1, arg, index);
}

static void simd_gate(inf_pool *pool, int32_t activation, const float *gate, const float *up,
                      float *y, int32_t rows, int32_t n, int32_t ldx, int32_t ldy) {
    rows_job job = {.x = gate, .w = up, .y = y, .rows = rows, .n = n, .ldx = ldx, .ldy = ldy};
    rows_run(pool, activation == INF_ACT_GELU_TANH ? gelu_task : silu_task, &job, n);
}

static void softcap_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const rows_job *job = arg;
    vec cap = v_set(job->cap), inverse = v_set(1.0f / job->cap);
    int32_t end = rows_end(job, index);
    for (int32_t r = index * job->per_task; r < end; r++) {
        float *x = job->y + (size_t)r * job->n;
        for (int32_t i = 0; i < job->n; i += W) {
            int32_t n = job->n - i;
            vec z = v_tanh(v_mul(load_upto(x + i, n), inverse));
            store_upto(x + i, v_mul(cap, z), n);
        }
    }
}

static void simd_softcap(inf_pool *pool, float *x, int32_t rows, int32_t n, float cap) {
    rows_job job = {.y = x, .rows = rows, .n = n, .cap = cap};
    rows_run(pool, softcap_task, &job, n);
}

static void simd_add(float *y, const float *x, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W)
        v_store(y + i, v_add(v_load(y + i), v_load(x + i)));
    for (; i < n; i++)
        y[i] += x[i];
}

static void simd_merge(float *o, float *lse, const float *o2, const float *lse2, int32_t rows,
                       int32_t heads, int32_t head_dim) {
    size_t n = (size_t)rows * heads;
    for (size_t i = 0; i < n; i++, o += head_dim, o2 += head_dim) {
        if (lse2[i] == -INFINITY)
            continue;
        if (lse[i] == -INFINITY) {
            memcpy(o, o2, (size_t)head_dim * sizeof *o);
            lse[i] = lse2[i];
            continue;
        }
        float m = lse[i] > lse2[i] ? lse[i] : lse2[i];
        float e1 = expf(lse[i] - m), e2 = expf(lse2[i] - m), sum = e1 + e2;
        vec w1 = v_set(e1 / sum), w2 = v_set(e2 / sum);
        for (int32_t d = 0; d < head_dim; d += W) {
            vec a = load_upto(o + d, head_dim - d), b = load_upto(o2 + d, head_dim - d);
            store_upto(o + d, v_fma(b, w2, v_mul(a, w1)), head_dim - d);
        }
        lse[i] = m + logf(sum);
    }
}

static void store_kv(uint8_t *dst, const float *src, int32_t n, int32_t dtype) {
    if (dtype == INF_DTYPE_F32) {
        memcpy(dst, src, (size_t)n * sizeof *src);
        return;
    }
    if (dtype == INF_DTYPE_E4M3) { /* a few numbers of a step, beside all that attention reads */
        for (int32_t j = 0; j < n; j++)
            dst[j] = e4m3_from_f32(src[j]);
        return;
    }
    bf16 *to = (bf16 *)(void *)dst;
    int32_t i = 0;
    for (; i + W <= n; i += W)
        v_store_bf16(to + i, v_load(src + i));
    for (; i < n; i++)
        to[i] = bf16_from_f32(src[i]);
}

static void simd_kv_append(uint8_t *pool, const inf_kv_shape *kv, int32_t layer,
                           const int32_t *blocks, uint32_t t0, const float *k, const float *v,
                           int32_t rows, int32_t ld) {
    for (int32_t r = 0; r < rows; r++) {
        uint32_t token = t0 + (uint32_t)r;
        int32_t in_block = (int32_t)(token % (uint32_t)kv->block_size);
        uint8_t *block =
            pool + (uint64_t)blocks[token / (uint32_t)kv->block_size] * kv->block_bytes;
        for (int32_t h = 0; h < kv->kv_heads; h++) {
            size_t at = (size_t)r * ld + (size_t)h * kv->head_dim;
            store_kv(block + inf_kv_offset(kv, layer, 0, h, in_block), k + at, kv->head_dim,
                     kv->dtype);
            store_kv(block + inf_kv_offset(kv, layer, 1, h, in_block), v + at, kv->head_dim,
                     kv->dtype);
        }
    }
}
