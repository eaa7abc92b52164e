/* The reference: every operation in plain C, for any CPU, and what the vector tables are tested
 * against.
 *
 *   gemm        y[r, j] = sum_i x[r, i] w[j, i] + bias[j]     2 rows n k flops; reads n k weights
 *   rms_norm    y = x / sqrt(mean(x^2) + eps) * weight        (Zhang and Sennrich 2019)
 *   rope        (a, b) -> (a cos - b sin, b cos + a sin), a = x[i], b = x[i + rotary / 2]
 *   attention   one pass over the visible keys per (row, head) with the running maximum m, the sum
 *               l of exp(s - m) and o, both rescaled by exp(m - m') when the maximum rises to m'
 *               (Milakov and Gimelshein 2018; Dao et al. 2022); lse = m + ln l
 *   merge       o = (o1 e^{lse1 - m} + o2 e^{lse2 - m}) / (e^{lse1 - m} + e^{lse2 - m}),
 *               m = max(lse1, lse2)
 *   gate        y = gate / (1 + exp(-gate)) * up (Shazeer 2020), or gelu(gate) * up
 *   softcap     x = cap tanh(x / cap)                         (Gemma 2, arXiv 2408.00118)
 *
 * Clarity goes before speed here, but the loops are laid out so that a compiler can vectorise the
 * sums that matter: 16 outputs at a time in gemm, 8 strided partial sums in dot products. */
#include "kernels/convert.h"
#include "kernels/cpu/quant.h"

typedef struct gemm_job {
    const inf_gemm *args;
    int32_t dtype;
} gemm_job;

static void gemm_panel_f32(const float *restrict w, const float *restrict x, int32_t k,
                           float *sum) {
    for (int32_t i = 0; i < k; i++)
        for (int32_t j = 0; j < PANEL; j++)
            sum[j] += x[i] * w[(size_t)i * PANEL + j];
}

static void gemm_panel_bf16(const bf16 *restrict w, const float *restrict x, int32_t k,
                            float *sum) {
    for (int32_t i = 0; i < k; i++)
        for (int32_t j = 0; j < PANEL; j++)
            sum[j] += x[i] * bf16_to_f32(w[(size_t)i * PANEL + j]);
}

/* q of input i of a block and output j. */
static int32_t quant_number(int32_t dtype, const uint8_t *block, int32_t i, int32_t j) {
    int32_t pair = i / 2, odd = i % 2;
    if (dtype == INF_DTYPE_I8)
        return (int8_t)block[(pair * PANEL + j) * 2 + odd];
    return block[j * 4 + odd * 2 + pair / 2] >> pair % 2 * 4 & 15;
}

static void quant_head(int32_t dtype, const uint8_t *head, float *scale, float *zero) {
    if (dtype == INF_DTYPE_I8) {
        memcpy(scale, head, PANEL * sizeof *scale);
        memset(zero, 0, PANEL * sizeof *zero);
        return;
    }
    inf_convert(scale, INF_DTYPE_F32, head, INF_DTYPE_F16, PANEL);
    inf_convert(zero, INF_DTYPE_F32, head + PANEL * 2, INF_DTYPE_F16, PANEL);
}

/* The sums of one group of weights with rounded inputs, scaled (quant.h). */
static void gemm_group(int32_t dtype, const uint8_t *w, const int16_t *x, float x_scale,
                       int32_t inputs, float *y) {
    float scale[PANEL], zero[PANEL];
    int32_t sum[PANEL] = {0}, all = 0;
    quant_head(dtype, w, scale, zero);
    for (int32_t i = 0; i < inputs; i++) {
        const uint8_t *block = w + HEAD_BYTES + i / BLOCK_INPUTS * block_bytes(dtype);
        all += x[i];
        for (int32_t j = 0; j < PANEL; j++)
            sum[j] += x[i] * quant_number(dtype, block, i % BLOCK_INPUTS, j);
    }
    for (int32_t j = 0; j < PANEL; j++)
        y[j] += ((float)sum[j] - zero[j] * (float)all) * (scale[j] * x_scale);
}

static void gemm_panel_quant(int32_t dtype, const uint8_t *w, const float *x, int32_t k, float *y) {
    int32_t each = inf_dtype_group(dtype);
    for (int32_t first = 0; first < k; first += X_GROUP) {
        int16_t q[X_GROUP];
        int32_t n = min_i32(X_GROUP, k - first);
        float x_scale = inf_quant_inputs(x + first, n, q);
        for (int32_t i = 0; i < n; i += each)
            gemm_group(dtype, w + quant_panel_bytes(dtype, first + i), q + i, x_scale,
                       min_i32(each, n - i), y);
    }
}

/* One index: one panel of outputs of one product, for every row. */
static void gemm_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const gemm_job *job = arg;
    const inf_gemm *a = job->args;
    for (; index >= ceil_div(a->n, PANEL); a++)
        index -= ceil_div(a->n, PANEL);
    int32_t first = index * PANEL, outputs = min_i32(PANEL, a->n - first);
    const void *w = (const uint8_t *)a->w + (size_t)index * panel_bytes(job->dtype, a->k);
    for (int32_t r = 0; r < a->rows; r++) {
        const float *x = a->x + (size_t)r * a->ldx;
        float sum[PANEL] = {0};
        if (job->dtype == INF_DTYPE_F32)
            gemm_panel_f32(w, x, a->k, sum);
        else if (job->dtype == INF_DTYPE_BF16)
            gemm_panel_bf16(w, x, a->k, sum);
        else
            gemm_panel_quant(job->dtype, w, x, a->k, sum);
        float *y = a->y + (size_t)r * a->ldy + first;
        for (int32_t j = 0; j < outputs; j++)
            y[j] = sum[j] + (a->bias != NULL ? a->bias[first + j] : 0.0f);
    }
}

static void ref_gemms(inf_pool *pool, int32_t dtype, const inf_gemm *args, int32_t n_args) {
    gemm_job job = {.args = args, .dtype = dtype};
    int32_t tasks = 0;
    for (int32_t i = 0; i < n_args; i++)
        tasks += ceil_div(args[i].n, PANEL);
    inf_pool_run(pool, gemm_task, &job, tasks);
}

static void ref_gemm(inf_pool *pool, int32_t dtype, const inf_gemm *args) {
    ref_gemms(pool, dtype, args, 1);
}

static float dot(const float *a, const float *b, int32_t n) {
    float part[8] = {0};
    int32_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int32_t j = 0; j < 8; j++)
            part[j] += a[i + j] * b[i + j];
    float sum = 0;
    for (; i < n; i++)
        sum += a[i] * b[i];
    for (int32_t j = 0; j < 8; j++)
        sum += part[j];
    return sum;
}

static void ref_rms_norm(inf_pool *pool, const float *x, const float *weight, float *y,
                         int32_t rows, int32_t n, int32_t ldx, int32_t ldy, float eps) {
    (void)pool;
    for (int32_t r = 0; r < rows; r++) {
        const float *from = x + (size_t)r * ldx;
        float *to = y + (size_t)r * ldy;
        float inverse = 1.0f / sqrtf(dot(from, from, n) / (float)n + eps);
        for (int32_t i = 0; i < n; i++)
            to[i] = from[i] * inverse * weight[i];
    }
}

static void ref_rope(inf_pool *pool, float *x, const float *cos, const float *sin, int32_t rows,
                     int32_t heads, int32_t head_dim, int32_t rotary, int32_t ldx) {
    (void)pool;
    int32_t half = rotary / 2;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t h = 0; h < heads; h++) {
            float *a = x + (size_t)r * ldx + (size_t)h * head_dim, *b = a + half;
            const float *c = cos + (size_t)r * half, *s = sin + (size_t)r * half;
            for (int32_t i = 0; i < half; i++) {
                float first = a[i] * c[i] - b[i] * s[i];
                b[i] = b[i] * c[i] + a[i] * s[i];
                a[i] = first;
            }
        }
}

static void store_kv(uint8_t *dst, const float *src, int32_t n, int32_t dtype) {
    if (dtype == INF_DTYPE_F32) {
        memcpy(dst, src, (size_t)n * sizeof *src);
        return;
    }
    if (dtype == INF_DTYPE_E4M3) {
        for (int32_t i = 0; i < n; i++)
            dst[i] = e4m3_from_f32(src[i]);
        return;
    }
    for (int32_t i = 0; i < n; i++)
        ((bf16 *)dst)[i] = bf16_from_f32(src[i]);
}

static void load_kv(float *dst, const uint8_t *src, int32_t n, int32_t dtype) {
    if (dtype == INF_DTYPE_F32) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    }
    if (dtype == INF_DTYPE_E4M3) {
        for (int32_t i = 0; i < n; i++)
            dst[i] = e4m3_to_f32(src[i]);
        return;
    }
    for (int32_t i = 0; i < n; i++)
        dst[i] = bf16_to_f32(((const bf16 *)src)[i]);
}

static void ref_kv_append(uint8_t *pool, const inf_kv_shape *kv, int32_t layer,
                          const int32_t *blocks, uint32_t t0, const float *k, const float *v,
                          int32_t rows, int32_t ld) {
    for (int32_t r = 0; r < rows; r++) {
        uint32_t token = t0 + (uint32_t)r, in_block = token % (uint32_t)kv->block_size;
        uint8_t *block =
            pool + (uint64_t)blocks[token / (uint32_t)kv->block_size] * kv->block_bytes;
        for (int32_t h = 0; h < kv->kv_heads; h++) {
            size_t at = (size_t)r * ld + (size_t)h * kv->head_dim;
            store_kv(block + inf_kv_offset(kv, layer, 0, h, (int32_t)in_block), k + at,
                     kv->head_dim, kv->dtype);
            store_kv(block + inf_kv_offset(kv, layer, 1, h, (int32_t)in_block), v + at,
                     kv->head_dim, kv->dtype);
        }
    }
}

static void attend(const inf_attn *a, int32_t row, int32_t head) {
    int32_t dim = a->kv->head_dim, kv_head = head / (a->heads / a->kv->kv_heads), lo, hi;
    size_t at = (size_t)row * a->heads + head;
    const float *q = a->q + at * dim;
    float *o = a->o + at * dim;
    float key[MAX_HEAD_DIM], value[MAX_HEAD_DIM], m = -INFINITY, l = 0;
    memset(o, 0, (size_t)dim * sizeof *o);
    attn_visible(a, row, &lo, &hi);
    for (int32_t t = lo; t < hi; t++) {
        load_kv(key, attn_token(a, 0, kv_head, t), dim, a->kv->dtype);
        load_kv(value, attn_token(a, 1, kv_head, t), dim, a->kv->dtype);
        float s = a->scale * dot(q, key, dim);
        if (a->softcap > 0)
            s = a->softcap * tanhf(s / a->softcap);
        if (s > m) {
            float shrink = expf(m - s);
            l *= shrink;
            for (int32_t i = 0; i < dim; i++)
                o[i] *= shrink;
            m = s;
        }
        float p = m == -INFINITY ? 0.0f : expf(s - m);
        l += p;
        for (int32_t i = 0; i < dim; i++)
            o[i] += p * value[i];
    }
    a->lse[at] = l == 0 ? -INFINITY : m + logf(l);
    for (int32_t i = 0; i < dim && l != 0; i++)
        o[i] /= l;
}

typedef struct attn_job {
    const inf_attn *args;
    int32_t n_args;
} attn_job;

/* One index: all rows of one request for one KV head's group of query heads. */
static void attn_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const attn_job *job = arg;
    const inf_attn *a = job->args;
    while (index >= a->kv->kv_heads) {
        index -= a->kv->kv_heads;
        a++;
    }
    int32_t group = a->heads / a->kv->kv_heads;
    for (int32_t row = 0; row < a->rows; row++)
        for (int32_t g = 0; g < group; g++)
            attend(a, row, index * group + g);
}

static void ref_attention(inf_pool *pool, const inf_attn *args, int32_t n_args) {
    attn_job job = {.args = args, .n_args = n_args};
    int32_t tasks = 0;
    for (int32_t i = 0; i < n_args; i++)
        tasks += args[i].kv->kv_heads;
    inf_pool_run(pool, attn_task, &job, tasks);
}

static void ref_merge(float *o, float *lse, const float *o2, const float *lse2, int32_t rows,
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
        for (int32_t d = 0; d < head_dim; d++)
            o[d] = (o[d] * e1 + o2[d] * e2) / sum;
        lse[i] = m + logf(sum);
    }
}

static void ref_gate(inf_pool *pool, int32_t activation, const float *gate, const float *up,
                     float *y, int32_t rows, int32_t n, int32_t ldx, int32_t ldy) {
    (void)pool;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < n; i++) {
            size_t at = (size_t)r * ldx + i;
            float x = gate[at];
            if (activation == INF_ACT_GELU_TANH) /* 1 + tanh u = 2 / (1 + e^-2u) */
                x = x * (GELU_1 + GELU_3 * x * x);
            y[(size_t)r * ldy + i] = gate[at] / (1.0f + expf(-x)) * up[at];
        }
}

static void ref_softcap(inf_pool *pool, float *x, int32_t rows, int32_t n, float cap) {
    (void)pool;
    for (size_t i = 0; i < (size_t)rows * n; i++)
        x[i] = cap * tanhf(x[i] / cap);
}

static void ref_add(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] += x[i];
}

const inf_ops *inf_ops_c(void) {
    static const inf_ops ops = {
        .name = "c",
        .packed_bytes = inf_cpu_packed_bytes,
        .pack = inf_cpu_pack,
        .gemm = ref_gemm,
        .gemms = ref_gemms,
        .rms_norm = ref_rms_norm,
        .rope = ref_rope,
        .kv_append = ref_kv_append,
        .attention = ref_attention,
        .merge = ref_merge,
        .gate = ref_gate,
        .softcap = ref_softcap,
        .add = ref_add,
    };
    return &ops;
}
