/* What share of the machine's limits the CPU kernels reach, measured in one run.
 *
 * A limit and the kernels held against it alternate, so that both see the same machine: the
 * bandwidth is that of reading memory that no cache holds, with the same threads; the arithmetic
 * that of multiply-adds on registers. A kernel that reads its operands once can reach the first,
 * one that uses each operand many times the second. Shapes are those of an 8B model: hidden 4096,
 * 32 heads, 8 KV heads of 128.
 *
 *     .build/cpu/bench_kernels [threads] [products | bits]
 *
 * bits: gemm alone, with weights in bf16, 8 and 4 bits. Of those the arithmetic is integer, and its
 * share is of f32's.
 * products: gemm with weights in bf16 alone, by the table that rounds its inputs to bf16 as well
 * (--isa avx512_bf16), beside the one that does not; its limit is that of dot products on
 * registers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bench/limits.h"
#include "kernels/backend.h"
#include "runtime/pages.h"

enum { HIDDEN = 4096, HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, BLOCK = 16, ROUNDS = 7 };

typedef struct bench {
    const inf_ops *ops;
    inf_pool *pool;
    int32_t threads, dtype, elem;
    double bytes_per_second, flops_per_second; /* limits, the best of all rounds */
} bench;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Memory with small numbers of the type in it: neither zeros nor denormals. */
static void *numbers(const bench *b, size_t n, int32_t elem) {
    uint8_t *p = inf_pages_alloc(n * (size_t)elem);
    if (p == NULL) {
        fprintf(stderr, "cannot allocate %zu numbers\n", n);
        exit(1);
    }
    uint32_t x = 12345;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        float f = (float)(x >> 8) * 0x1p-24f - 0.5f;
        uint32_t bits;
        memcpy(&bits, &f, 4);
        if (elem == 4) {
            ((uint32_t *)(void *)p)[i] = bits;
        } else {
            ((uint16_t *)(void *)p)[i] = (uint16_t)(bits >> 16);
        }
    }
    (void)b;
    return p;
}

typedef void (*body)(void *arg);

/* Seconds of one call: the best of ROUNDS, each long enough to time. The limits are measured in
 * between. */
static double best(bench *b, body f, void *arg) {
    f(arg);
    double t0 = now();
    f(arg);
    int calls = 1 + (int)(0.05 / (now() - t0 + 1e-9));
    double least = 1e9;
    for (int r = 0; r < ROUNDS; r++) {
        t0 = now();
        for (int i = 0; i < calls; i++) {
            f(arg);
        }
        double t = (now() - t0) / calls;
        least = t < least ? t : least;
        double rate = limit_read(b->pool, b->threads);
        b->bytes_per_second = rate > b->bytes_per_second ? rate : b->bytes_per_second;
        rate = limit_fma(b->pool, b->threads, b->ops->name);
        b->flops_per_second = rate > b->flops_per_second ? rate : b->flops_per_second;
    }
    return least;
}

static void row(const bench *b, const char *kernel, const char *shape, double seconds, double bytes,
                double flops, int by_memory) {
    printf("%-19s %-5s %-38s %10.3f ms %8.2f GB/s %8.1f GFLOP/s  %3.0f %% of %s\n", kernel,
           b->dtype == INF_DTYPE_F32 ? "f32" : "bf16", shape, seconds * 1e3, bytes / seconds * 1e-9,
           flops / seconds * 1e-9,
           100 * (by_memory ? bytes / seconds / b->bytes_per_second
                            : flops / seconds / b->flops_per_second),
           by_memory ? "bandwidth" : "arithmetic");
    fflush(stdout);
}

typedef struct gemm_case {
    bench *b;
    int32_t dtype;
    inf_gemm args;
} gemm_case;

static void run_gemm(void *arg) {
    gemm_case *c = arg;
    c->b->ops->gemm(c->b->pool, c->dtype, &c->args);
}

static void bench_gemm(bench *b, int32_t dtype, int32_t rows) {
    const int32_t n = 14336, k = HIDDEN; /* the gate of an 8B model's MLP */
    void *w = numbers(b, (size_t)n * k, b->elem);
    uint64_t weights = b->ops->packed_bytes(dtype, n, k);
    void *packed = inf_pages_alloc(weights);
    b->ops->pack(dtype, w, b->dtype, n, k, packed);
    free(w);
    float *x = numbers(b, (size_t)rows * k, 4), *y = numbers(b, (size_t)rows * n, 4);
    gemm_case c = {b, dtype, {x, packed, NULL, y, rows, n, k, k, n}};
    double t = best(b, run_gemm, &c);
    double bytes = (double)weights + 4.0 * rows * ((double)n + k);
    char shape[64];
    snprintf(shape, sizeof shape, "[%d, %d] x [%d, %d]", rows, k, n, k);
    const char *kernel = dtype == INF_DTYPE_I8       ? "gemm, int8"
                         : dtype == INF_DTYPE_I4_32  ? "gemm, int4 by 32"
                         : dtype == INF_DTYPE_I4_128 ? "gemm, int4 by 128"
                                                     : "gemm";
    row(b, kernel, shape, t, bytes, 2.0 * rows * n * k, rows < 8);
    free(x);
    free(y);
    free(packed);
}

typedef struct experts_case {
    inf_backend *backend;
    inf_lane *lane;
    inf_experts args;
    const void *lists[2][8]; /* [gate_up or down]: of the groups that take turns */
    int32_t group, groups;
} experts_case;

static void run_experts(void *arg) {
    experts_case *c = arg;
    c->args.gate_up = c->lists[0][c->group];
    c->args.down = c->lists[1][c->group];
    c->group = (c->group + 1) % c->groups;
    c->backend->ops->experts(c->lane, &c->args);
}

/* A layer of experts of Qwen3-30B-A3B's shape, with 64 of its 128 experts. One row reads 8 of them,
 * at the most 75 MB, which a cache may hold; so calls of one row take turns over 8 groups of 8. */
static void bench_experts(bench *b, int32_t rows) {
    enum { ALL = 64, TOP_K = 8, INNER = 768, WIDE = 2048 };
    experts_case c = {.backend = inf_backend_cpu(0), .groups = rows == 1 ? ALL / TOP_K : 1};
    const int32_t each = ALL / c.groups, window = 0;
    const float freq = 1;
    inf_device_config d = {.layers = 1,
                           .hidden = WIDE,
                           .heads = 1,
                           .kv_heads = 1,
                           .head_dim = 2,
                           .dtype = b->dtype,
                           .experts = each,
                           .experts_per_token = TOP_K,
                           .expert_intermediate = INNER};
    inf_lane_config config = {.kind = INF_LANE_STEP,
                              .device = &d,
                              .windows = &window,
                              .inv_freq = &freq,
                              .threads = b->pool,
                              .max_rows = rows,
                              .max_segments = 1};
    inf_err err;
    if (c.backend->ops->lane_open(c.backend, &config, &c.lane, &err) != INF_OK) {
        fprintf(stderr, "cannot open a lane: %s\n", err.message);
        exit(1);
    }
    void *matrices[2][ALL], *w = numbers(b, (size_t)ALL * WIDE, 4);
    c.args.router =
        c.backend->ops->matrix(c.backend, INF_DTYPE_F32, w, INF_DTYPE_F32, each, WIDE, 0);
    free(w);
    w = numbers(b, (size_t)2 * INNER * WIDE, b->elem);
    for (int32_t i = 0; i < ALL; i++) {
        matrices[0][i] =
            c.backend->ops->matrix(c.backend, b->dtype, w, b->dtype, 2 * INNER, WIDE, 0);
        matrices[1][i] = c.backend->ops->matrix(c.backend, b->dtype, w, b->dtype, WIDE, INNER, 0);
    }
    free(w);
    for (int32_t g = 0; g < c.groups; g++) {
        for (int32_t i = 0; i < 2; i++) {
            c.lists[i][g] =
                c.backend->ops->list(c.backend, matrices[i] + (ptrdiff_t)g * each, each);
        }
    }
    c.args.x = numbers(b, (size_t)rows * WIDE, 4);
    c.args.y = numbers(b, (size_t)rows * WIDE, 4);
    c.args.rows = rows;
    double t = best(b, run_experts, &c), numbers_of_one = 3.0 * WIDE * INNER;
    double read = rows == 1 ? TOP_K : ALL; /* experts, of many rows all */
    char shape[64];
    snprintf(shape, sizeof shape, "%d x 8 of %d, [%d, %d, %d]", rows, ALL, WIDE, INNER, WIDE);
    row(b, "experts", shape, t, read * numbers_of_one * b->elem,
        2.0 * rows * TOP_K * numbers_of_one, rows == 1);
    for (int32_t i = 0; i < ALL; i++) {
        free(matrices[0][i]);
        free(matrices[1][i]);
    }
    for (int32_t g = 0; g < c.groups; g++) {
        free((void *)c.lists[0][g]);
        free((void *)c.lists[1][g]);
    }
    free((void *)c.args.router);
    free((void *)c.args.x);
    free(c.args.y);
    c.backend->ops->lane_close(c.lane);
    c.backend->ops->close(c.backend);
}

typedef struct attn_case {
    bench *b;
    inf_attn args[64];
    int32_t n;
} attn_case;

static void run_attn(void *arg) {
    attn_case *c = arg;
    c->b->ops->attention(c->b->pool, c->args, c->n);
}

/* `batch` requests of `rows` queries at the end of `context` tokens each; one layer. */
static void bench_attention(bench *b, int32_t batch, int32_t rows, int32_t context, int32_t heads,
                            int32_t kv_heads) {
    inf_kv_shape kv = {1, kv_heads, BLOCK, HEAD_DIM, b->dtype, b->elem, 0};
    kv.block_bytes = (uint64_t)2 * (uint64_t)kv_heads * BLOCK * HEAD_DIM * (uint64_t)b->elem;
    int32_t blocks = context / BLOCK, all = blocks * batch;
    size_t row_size = (size_t)heads * HEAD_DIM;
    uint8_t *pool = numbers(b, (size_t)all * kv.block_bytes / (size_t)b->elem, b->elem);
    int32_t *table = malloc((size_t)all * sizeof *table);
    for (int32_t i = 0; i < all; i++) {
        table[i] =
            (int32_t)((int64_t)i * 7919 % all); /* blocks lie scattered, as in a pool in use */
    }
    float *q = numbers(b, (size_t)batch * (size_t)rows * row_size, 4);
    float *o = numbers(b, (size_t)batch * (size_t)rows * row_size, 4);
    float *lse = numbers(b, (size_t)batch * (size_t)rows * (size_t)heads, 4);
    attn_case c = {.b = b, .n = batch};
    for (int32_t i = 0; i < batch; i++) {
        size_t at = (size_t)i * (size_t)rows;
        c.args[i] = (inf_attn){q + at * row_size,
                               rows,
                               heads,
                               (uint32_t)(context - rows),
                               pool,
                               &kv,
                               0,
                               table + (size_t)i * (size_t)blocks,
                               0,
                               (uint32_t)context,
                               0,
                               0.088f,
                               o + at * row_size,
                               lse + at * (size_t)heads};
    }
    double t = best(b, run_attn, &c);
    double bytes = (double)all * (double)kv.block_bytes + 8.0 * batch * rows * (double)row_size;
    double keys = (double)context - (rows - 1) / 2.0;
    char shape[64];
    snprintf(shape, sizeof shape, "%d requests, %d rows, %d keys%s", batch, rows, context,
             kv_heads == 1 ? ", MQA" : "");
    row(b, rows == 1 ? "attention, decode" : "attention, prefill", shape, t, bytes,
        4.0 * batch * rows * keys * (double)row_size, rows == 1);
    free(pool);
    free(table);
    free(q);
    free(o);
    free(lse);
}

typedef struct merge_case {
    bench *b;
    float *o, *lse, *o2, *lse2;
    int32_t rows;
} merge_case;

static void run_merge(void *arg) {
    merge_case *c = arg;
    c->b->ops->merge(c->o, c->lse, c->o2, c->lse2, c->rows, HEADS, HEAD_DIM);
}

/* Rows that no cache holds; merge runs on one thread, the limit is that of all. */
static void bench_merge(bench *b) {
    const int32_t rows = 4096;
    size_t n = (size_t)rows * HEADS;
    merge_case c = {b,
                    numbers(b, n * HEAD_DIM, 4),
                    numbers(b, n, 4),
                    numbers(b, n * HEAD_DIM, 4),
                    numbers(b, n, 4),
                    rows};
    double t = best(b, run_merge, &c);
    row(b, "merge", "[4096, 32, 128], one thread", t, (3.0 * HEAD_DIM + 3) * 4 * (double)n,
        3.0 * HEAD_DIM * (double)n, 1);
    free(c.o);
    free(c.lse);
    free(c.o2);
    free(c.lse2);
}

/* The two tables in turn, so that both see the same machine. */
static void bench_products(bench *b) {
    b->dtype = INF_DTYPE_BF16;
    b->elem = 2;
    if (inf_ops_cpu(4) == NULL) {
        printf("this CPU has no products of bf16\n");
        return;
    }
    const int32_t rows[] = {1, 8, 64, 512};
    for (int32_t k = 0; k < 4; k++) {
        for (int32_t isa = 3; isa <= 4; isa++) {
            b->ops = inf_ops_cpu(isa);
            b->flops_per_second = 0;
            printf("%-12s ", b->ops->name);
            bench_gemm(b, b->dtype, rows[k]);
        }
    }
}

/* Weights in fewer and fewer bits, in turn. */
static void bench_bits(bench *b) {
    b->dtype = INF_DTYPE_BF16;
    b->elem = 2;
    const int32_t rows[] = {1, 8, 256};
    const int32_t types[] = {INF_DTYPE_BF16, INF_DTYPE_I8, INF_DTYPE_I4_32, INF_DTYPE_I4_128};
    for (int32_t k = 0; k < 3; k++) {
        for (int32_t i = 0; i < 4; i++) {
            bench_gemm(b, types[i], rows[k]);
        }
    }
}

int main(int argc, char **argv) {
    bench b = {.ops = inf_ops_cpu(0), .threads = argc > 1 ? atoi(argv[1]) : 1};
    if (b.threads < 1 || inf_pool_open(b.threads, &b.pool) != INF_OK) {
        fprintf(stderr, "cannot open a pool of %d threads\n", b.threads);
        return 1;
    }
    if (argc > 2 && strcmp(argv[2], "products") == 0) {
        bench_products(&b);
        inf_pool_close(b.pool);
        return 0;
    }
    printf("instruction set %s, %d threads\n", b.ops->name, b.threads);
    if (argc > 2 && strcmp(argv[2], "bits") == 0) {
        bench_bits(&b);
        inf_pool_close(b.pool);
        return 0;
    }
    for (int i = 0; i < 2; i++) {
        b.dtype = i == 0 ? INF_DTYPE_F32 : INF_DTYPE_BF16;
        b.elem = i == 0 ? 4 : 2;
        const int32_t rows[] = {1, 8, 256};
        for (int32_t k = 0; k < 3; k++) {
            bench_gemm(&b, b.dtype, rows[k]);
            bench_gemm(&b, INF_DTYPE_I8, rows[k]);
            bench_gemm(&b, INF_DTYPE_I4_32, rows[k]);
        }
        bench_experts(&b, 1);
        bench_experts(&b, 256);
        bench_attention(&b, 1, 1, 32768, HEADS, KV_HEADS);
        bench_attention(&b, 16, 1, 4096, HEADS, KV_HEADS);
        bench_attention(&b, 1, 1, 131072, 7, 1); /* one KV head for all threads */
        bench_attention(&b, 1, 256, 4096, HEADS, KV_HEADS);
    }
    bench_merge(&b);
    printf("limits: reading %.1f GB/s, multiply-adds %.0f GFLOP/s (f32)\n",
           b.bytes_per_second * 1e-9, b.flops_per_second * 1e-9);
    inf_pool_close(b.pool);
    return 0;
}
