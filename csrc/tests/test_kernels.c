/* Every operation but attention, in every table that this CPU has, against a naive double
 * computation. */
#include "kernel_check.h"

#include "few_bits.h"

static const int32_t some_rows[] = {1, 2, 3, 4, 5, 6, 7, 17, 33, 101};
static const int32_t some_widths[] = {1, 7, 8, 15, 16, 24, 33, 64, 80, 129, 530, 1031};

#define EACH(i, array)                                                                             \
    size_t i = 0;                                                                                  \
    i < sizeof(array) / sizeof(*(array));                                                          \
    i++

/* ---- gemm ---- */

typedef struct gemm_case {
    int32_t rows, n, k, dtype, src_dtype, ldx, ldy;
    float *x, *bias, *y;
    uint8_t *src, *packed;
    double *want; /* [rows, n] */
} gemm_case;

/* src_dtype F16 uses small integers over 8, which binary16 holds exactly. */
static double make_weight(gemm_case *c, size_t i) {
    if (c->src_dtype == INF_DTYPE_F32) {
        float f = number();
        memcpy(c->src + i * 4, &f, 4);
        return c->dtype == INF_DTYPE_BF16 ? from_bf16(to_bf16(f)) : f;
    }
    if (c->src_dtype == INF_DTYPE_BF16) {
        uint16_t h = to_bf16(number());
        memcpy(c->src + i * 2, &h, 2);
        return from_bf16(h);
    }
    int32_t eighths = 8 + below(8); /* 1 <= eighths / 8 < 2: exponent 15, mantissa in eighths */
    uint16_t h = (uint16_t)(15 << 10 | (eighths - 8) << 7);
    if (below(2)) {
        h |= 0x8000;
        eighths = -eighths;
    }
    memcpy(c->src + i * 2, &h, 2);
    return eighths / 8.0;
}

/* What a table makes of input i of a row before it multiplies: the one with bf16 products rounds
 * it, for weights in bf16. */
static double input_of(const inf_ops *ops, int32_t dtype, const float *row, int32_t k, int32_t i) {
    float x = row[i];
    if (is_of_few_bits(dtype))
        return step_of(row, k, i);
    if (strcmp(ops->name, "avx512_bf16") != 0 || dtype != INF_DTYPE_BF16)
        return (double)x;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static gemm_case make_gemm(const inf_ops *ops, int32_t rows, int32_t n, int32_t k, int32_t dtype,
                           int32_t src_dtype, int with_bias) {
    gemm_case c = {.rows = rows, .n = n, .k = k, .dtype = dtype, .src_dtype = src_dtype};
    c.ldx = k + 3;
    c.ldy = n + 5;
    c.x = numbers((size_t)rows * c.ldx);
    c.bias = with_bias ? numbers((size_t)n) : NULL;
    c.y = poisoned((size_t)rows * c.ldy);
    size_t weights = (size_t)n * k;
    c.src = get_bytes(weights * 4);
    double *w = get_bytes(weights * sizeof *w);
    for (size_t i = 0; i < weights; i++)
        w[i] = make_weight(&c, i);
    if (is_of_few_bits(dtype))
        narrow_weights(w, n, k, dtype);
    c.packed = get_bytes(ops->packed_bytes(dtype, n, k));
    ops->pack(dtype, c.src, src_dtype, n, k, c.packed);
    c.want = get_bytes((size_t)rows * n * sizeof *c.want);
    double *x = get_bytes((size_t)k * sizeof *x);
    for (int32_t r = 0; r < rows; r++) {
        for (int32_t i = 0; i < k; i++)
            x[i] = input_of(ops, dtype, c.x + (size_t)r * c.ldx, k, i);
        for (int32_t j = 0; j < n; j++) {
            double sum = with_bias ? c.bias[j] : 0;
            for (int32_t i = 0; i < k; i++)
                sum += x[i] * w[(size_t)j * k + i];
            c.want[(size_t)r * n + j] = sum;
        }
    }
    free(x);
    free(w);
    return c;
}

static void free_gemm(gemm_case *c) {
    free(c->x);
    free(c->bias);
    free(c->y);
    free(c->src);
    free(c->packed);
    free(c->want);
}

static inf_gemm gemm_args(const gemm_case *c) {
    return (inf_gemm){.x = c->x,
                      .w = c->packed,
                      .bias = c->bias,
                      .y = c->y,
                      .rows = c->rows,
                      .n = c->n,
                      .k = c->k,
                      .ldx = c->ldx,
                      .ldy = c->ldy};
}

static void check_gemm(const inf_ops *ops, inf_pool *pool, const gemm_case *c) {
    inf_gemm args = gemm_args(c);
    ops->gemm(pool, c->dtype, &args);
    for (int32_t r = 0; r < c->rows; r++)
        for (int32_t j = 0; j < c->ldy; j++) {
            float got = c->y[(size_t)r * c->ldy + j];
            if (j >= c->n)
                CHECK(isnan(got), "%s: wrote beyond n at [%d, %d]", ops->name, r, j);
            else
                CHECK(near(got, c->want[(size_t)r * c->n + j], 1e-6 * sqrt(c->k) + 1e-6),
                      "%s: rows %d n %d k %d dtype %d [%d, %d]: %g, want %g", ops->name, c->rows,
                      c->n, c->k, c->dtype, r, j, got, c->want[(size_t)r * c->n + j]);
        }
}

/* A row alone has bit by bit the result that it has in the batch, on any number of threads. */
static void check_gemm_rows_alone(const inf_ops *ops, inf_pool *pool, const gemm_case *c) {
    float *alone = poisoned((size_t)c->n);
    for (int32_t r = 0; r < c->rows; r += 1 + c->rows / 5) {
        inf_gemm args = gemm_args(c);
        args.rows = 1;
        args.x += (size_t)r * c->ldx;
        args.y = alone;
        ops->gemm(pool, c->dtype, &args);
        CHECK(same_bits(alone, c->y + (size_t)r * c->ldy, (size_t)c->n),
              "%s: rows %d n %d k %d: row %d differs alone", ops->name, c->rows, c->n, c->k, r);
    }
    free(alone);
}

/* Several at once have the bits that each has alone, also those of no rows, which are none. */
static void test_gemms(const inf_ops *ops, inf_pool *pool) {
    enum { MOST = 9 };
    static const int32_t types[] = {INF_DTYPE_F32, INF_DTYPE_BF16, INF_DTYPE_I8, INF_DTYPE_I4_64};
    for (int32_t count = 1; count <= MOST; count += 4)
        for (EACH(type, types)) {
            gemm_case c[MOST];
            inf_gemm args[MOST];
            float *alone[MOST];
            for (int32_t i = 0; i < count; i++) {
                int32_t rows = i % 3 == 1 ? 0 : some_rows[(i * 5 + 3) % 10];
                c[i] = make_gemm(ops, rows > 0 ? rows : 1, some_widths[(i * 7 + count) % 12],
                                 some_widths[(i * 5 + 2) % 12], types[type], INF_DTYPE_F32, i % 2);
                args[i] = gemm_args(&c[i]);
                args[i].rows = rows;
                args[i].y = alone[i] = poisoned((size_t)c[i].rows * c[i].ldy);
                if (rows > 0)
                    ops->gemm(NULL, types[type], &args[i]);
                args[i].y = c[i].y;
            }
            ops->gemms(count % 2 ? pool : NULL, types[type], args, count);
            for (int32_t i = 0; i < count; i++) {
                CHECK(same_bits(alone[i], c[i].y, (size_t)c[i].rows * c[i].ldy),
                      "%s: product %d of %d, dtype %d", ops->name, i, count, types[type]);
                free(alone[i]);
                free_gemm(&c[i]);
            }
        }
}

static void test_gemm(const inf_ops *ops, inf_pool *pool) {
    static const int32_t types[][2] = {
        {INF_DTYPE_F32, INF_DTYPE_F32},   {INF_DTYPE_BF16, INF_DTYPE_BF16},
        {INF_DTYPE_BF16, INF_DTYPE_F32},  {INF_DTYPE_F32, INF_DTYPE_BF16},
        {INF_DTYPE_F32, INF_DTYPE_F16},   {INF_DTYPE_BF16, INF_DTYPE_F16},
        {INF_DTYPE_I8, INF_DTYPE_F32},    {INF_DTYPE_I8, INF_DTYPE_BF16},
        {INF_DTYPE_I8, INF_DTYPE_F16},    {INF_DTYPE_I4_32, INF_DTYPE_F32},
        {INF_DTYPE_I4_64, INF_DTYPE_F16}, {INF_DTYPE_I4_128, INF_DTYPE_BF16}};
    for (EACH(r, some_rows))
        for (EACH(w, some_widths)) {
            size_t type = (r + w) % (sizeof types / sizeof *types);
            int32_t n = some_widths[w], k = some_widths[(w * 5 + r) % 12];
            gemm_case c = make_gemm(ops, some_rows[r], n, k, types[type][0], types[type][1],
                                    (r + w) % 2 == 0);
            check_gemm(ops, w % 2 ? pool : NULL, &c);
            check_gemm_rows_alone(ops, w % 2 ? NULL : pool, &c);
            free_gemm(&c);
        }
    CHECK(ops->packed_bytes(INF_DTYPE_F16, 4, 4) == 0, "%s: f16 is no packed type", ops->name);
}

/* ---- rows ---- */

static void test_rms_norm(const inf_ops *ops, inf_pool *pool) {
    for (EACH(r, some_rows))
        for (EACH(w, some_widths)) {
            int32_t rows = some_rows[r], n = some_widths[w], ldx = n + 2, ldy = n + 1;
            float *x = numbers((size_t)rows * ldx), *weight = numbers((size_t)n);
            float *y = poisoned((size_t)rows * ldy);
            ops->rms_norm(pool, x, weight, y, rows, n, ldx, ldy, 1e-5f);
            for (int32_t i = 0; i < rows; i++) {
                double sum = 0;
                for (int32_t j = 0; j < n; j++)
                    sum += (double)x[i * ldx + j] * x[i * ldx + j];
                double inverse = 1 / sqrt(sum / n + 1e-5f);
                for (int32_t j = 0; j < n; j++)
                    CHECK(near(y[i * ldy + j], x[i * ldx + j] * inverse * weight[j], 2e-6),
                          "%s: rows %d n %d [%d, %d]", ops->name, rows, n, i, j);
                CHECK(isnan(y[i * ldy + n]), "%s: wrote beyond n", ops->name);
            }
            ops->rms_norm(NULL, x, weight, x, rows, n, ldx, ldx, 1e-5f); /* in place */
            for (int32_t i = 0; i < rows; i++)
                CHECK(same_bits(x + i * ldx, y + i * ldy, (size_t)n), "%s: in place", ops->name);
            free(x);
            free(weight);
            free(y);
        }
}

static void test_rope(const inf_ops *ops, inf_pool *pool) {
    static const int32_t dims[] = {2, 16, 24, 64, 80, 128, 130};
    for (EACH(d, dims))
        for (EACH(r, some_rows)) {
            int32_t dim = dims[d], heads = 3, rows = some_rows[r];
            int32_t half = r % 2 ? dim / 2 : (dim + 2) / 4; /* all of a head, or the first part */
            int32_t ld = heads * dim + 4;
            float *x = numbers((size_t)rows * ld), *old = get_bytes((size_t)rows * ld * sizeof *x);
            float *cosines = numbers((size_t)rows * half), *sines = numbers((size_t)rows * half);
            memcpy(old, x, (size_t)rows * ld * sizeof *x);
            ops->rope(pool, x, cosines, sines, rows, heads, dim, 2 * half, ld);
            for (int32_t i = 0; i < rows; i++)
                for (int32_t j = 0; j < ld; j++) {
                    int32_t in_head = j % dim, pair = in_head % half;
                    double c = cosines[i * half + pair], s = sines[i * half + pair],
                           want = old[i * ld + j];
                    if (j < heads * dim && in_head < half)
                        want = want * c - old[i * ld + j + half] * s;
                    else if (j < heads * dim && in_head < 2 * half)
                        want = want * c + old[i * ld + j - half] * s;
                    CHECK(near(x[i * ld + j], want, 3e-7), "%s: dim %d [%d, %d]", ops->name, dim, i,
                          j);
                }
            free(x);
            free(old);
            free(cosines);
            free(sines);
        }
}

static double activated(int32_t activation, double x) {
    double u = sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    return activation == INF_ACT_GELU_TANH ? x / (1 + exp(-2 * u)) : x / (1 + exp(-x));
}

/* With up = 1 this measures exp over its whole range, as well as infinities. */
static void test_gate(const inf_ops *ops, inf_pool *pool, int32_t activation) {
    for (EACH(r, some_rows))
        for (EACH(w, some_widths)) {
            int32_t rows = some_rows[r], n = some_widths[w], ld = 2 * n + 1, ldy = n + 1;
            float *gate = numbers((size_t)rows * ld), *y = poisoned((size_t)rows * ldy);
            for (int32_t i = 0; i < rows * ld; i++)
                gate[i] *= i % 3 ? 5.0f : 100.0f;
            ops->gate(pool, activation, gate, gate + n, y, rows, n, ld, ldy);
            for (int32_t i = 0; i < rows; i++)
                for (int32_t j = 0; j < ldy; j++) {
                    double g = gate[i * ld + j],
                           want = activated(activation, g) * gate[i * ld + (j + n) % ld];
                    /* The exponent of gelu's tail is large, and so is its rounding. */
                    double most = activation == INF_ACT_SILU
                                      ? 4e-7
                                      : 4e-7 + 3e-7 * (fabs(g) + 0.07 * fabs(g * g * g));
                    if (j >= n)
                        CHECK(isnan(y[i * ldy + j]), "%s: wrote beyond n", ops->name);
                    else
                        CHECK(fabs(y[i * ldy + j] - want) <= most * fabs(want) + 1e-34,
                              "%s: activation %d of %g: %g, want %g", ops->name, activation, g,
                              y[i * ldy + j], want);
                }
            free(gate);
            free(y);
        }
    float gate[4] = {-200.0f, 200.0f, 0.0f, NAN}, up[4] = {1, 1, 1, 1}, y[4];
    ops->gate(NULL, activation, gate, up, y, 1, 4, 4, 4);
    CHECK(y[0] == 0 && y[1] == 200 && y[2] == 0 && isnan(y[3]), "%s: extremes %g %g %g %g",
          ops->name, y[0], y[1], y[2], y[3]);
}

/* Small numbers as exactly as large ones; what is far beyond the cap, infinities and NaN. */
static void test_softcap(const inf_ops *ops, inf_pool *pool) {
    static const float caps[] = {30, 50, 1, 0.01f, 1e4f};
    for (EACH(c, caps))
        for (EACH(w, some_widths)) {
            int32_t rows = some_rows[w % 10], n = some_widths[w];
            size_t all = (size_t)rows * n;
            float *x = numbers(all + 1), *old = get_bytes((all + 1) * sizeof *old);
            for (size_t i = 0; i < all; i++)
                x[i] *= caps[c] * (i % 3 == 0 ? 1e-3f : i % 3 == 1 ? 1.0f : 30.0f);
            memcpy(old, x, (all + 1) * sizeof *old);
            ops->softcap(pool, x, rows, n, caps[c]);
            for (size_t i = 0; i < all; i++)
                CHECK(near(x[i], caps[c] * tanh(old[i] / (double)caps[c]), 4e-7),
                      "%s: cap %g of %g: %g", ops->name, caps[c], old[i], x[i]);
            CHECK(x[all] == old[all], "%s: wrote beyond n", ops->name);
            free(x);
            free(old);
        }
    float x[4] = {INFINITY, -INFINITY, NAN, 0};
    ops->softcap(NULL, x, 1, 4, 30);
    CHECK(x[0] == 30 && x[1] == -30 && isnan(x[2]) && x[3] == 0, "%s: extremes %g %g %g %g",
          ops->name, x[0], x[1], x[2], x[3]);
}

static void test_add(const inf_ops *ops) {
    for (EACH(w, some_widths)) {
        int32_t n = some_widths[w];
        float *x = numbers((size_t)n + 1), *y = numbers((size_t)n + 1);
        float *old = get_bytes(((size_t)n + 1) * sizeof *old);
        memcpy(old, y, ((size_t)n + 1) * sizeof *old);
        ops->add(y, x, n);
        for (int32_t i = 0; i <= n; i++)
            CHECK(y[i] == (i < n ? old[i] + x[i] : old[i]), "%s: n %d [%d]", ops->name, n, i);
        free(x);
        free(y);
        free(old);
    }
}

/* ---- the cache ---- */

static void check_append(const inf_ops *ops, int32_t dtype, int32_t block_size, int32_t dim,
                         int32_t rows) {
    enum { LAYERS = 2, HEADS = 3, LAYER = 1 };
    inf_kv_shape kv = {.layers = LAYERS,
                       .kv_heads = HEADS,
                       .block_size = block_size,
                       .head_dim = dim,
                       .dtype = dtype,
                       .elem = bytes_of(dtype)};
    kv.block_bytes = inf_kv_offset(&kv, LAYERS, 0, 0, 0);
    uint32_t t0 = (uint32_t)below(2 * block_size);
    int32_t blocks = ((int32_t)t0 + rows + block_size - 1) / block_size, ld = HEADS * dim + 7;
    int32_t *list = get_bytes((size_t)blocks * sizeof *list);
    for (int32_t i = 0; i < blocks; i++)
        list[i] = blocks - i; /* backwards, block 0 unused */
    size_t bytes = (size_t)(blocks + 1) * kv.block_bytes;
    uint8_t *pool = get_bytes(bytes), *want = get_bytes(bytes);
    memset(pool, 0xff, bytes);
    memset(want, 0xff, bytes);
    float *in[2] = {numbers((size_t)rows * ld), numbers((size_t)rows * ld)};
    for (int32_t r = 0; r < rows; r++)
        for (int32_t j = 0; j < 2 * HEADS * dim; j++) {
            int32_t which = j / (HEADS * dim), h = j / dim % HEADS, d = j % dim;
            int32_t token = (int32_t)t0 + r;
            uint8_t *to = want + (uint64_t)list[token / block_size] * kv.block_bytes +
                          inf_kv_offset(&kv, LAYER, which, h, token % block_size) + d * kv.elem;
            float f = in[which][(size_t)r * ld + h * dim + d];
            uint16_t half = to_bf16(f);
            uint8_t byte = to_e4m3((double)f);
            memcpy(to,
                   dtype == INF_DTYPE_F32    ? (void *)&f
                   : dtype == INF_DTYPE_BF16 ? (void *)&half
                                             : (void *)&byte,
                   (size_t)kv.elem);
        }
    ops->kv_append(pool, &kv, LAYER, list, t0, in[0], in[1], rows, ld);
    CHECK(memcmp(pool, want, bytes) == 0, "%s: dtype %d block %d dim %d rows %d", ops->name, dtype,
          block_size, dim, rows);
    free(list);
    free(pool);
    free(want);
    free(in[0]);
    free(in[1]);
}

static void test_append(const inf_ops *ops) {
    static const int32_t dims[] = {5, 16, 24, 64, 80, 128}, sizes[] = {1, 8, 16, 32};
    for (EACH(d, dims))
        for (EACH(s, sizes))
            for (EACH(r, some_rows)) {
                check_append(ops, INF_DTYPE_F32, sizes[s], dims[d], some_rows[r]);
                check_append(ops, INF_DTYPE_BF16, sizes[s], dims[d], some_rows[r]);
                check_append(ops, INF_DTYPE_E4M3, sizes[s], dims[d], some_rows[r]);
            }
}

int main(void) {
    inf_pool *pool = NULL;
    if (inf_pool_open(3, &pool) != 0)
        return 2;
    for (int32_t isa = ISA_FIRST; isa <= ISA_LAST; isa++) {
        const inf_ops *ops = inf_ops_cpu(isa);
        CHECK(isa != ISA_FIRST || ops != NULL, "no plain C table");
        if (ops == NULL) {
            printf("isa %d: not on this CPU\n", isa);
            continue;
        }
        seed((uint64_t)isa);
        test_gemm(ops, pool);
        test_gemms(ops, pool);
        test_rms_norm(ops, pool);
        test_rope(ops, pool);
        test_gate(ops, pool, INF_ACT_SILU);
        test_gate(ops, pool, INF_ACT_GELU_TANH);
        test_softcap(ops, pool);
        test_add(ops);
        test_append(ops);
        printf("%s: done\n", ops->name);
    }
    CHECK(inf_ops_cpu(0) != NULL, "no best table");
    CHECK(inf_ops_cpu(-1) == NULL && inf_ops_cpu(9) == NULL, "a table for an unknown isa");
    inf_pool_close(pool);
    return report("kernels");
}
