/* gemm: y[rows, n] = x[rows, k] * w[n, k]^T + bias, w in panels of 16 outputs (cpu.h).
 *
 * Arithmetic: 2 rows n k flops. Bytes: the weights once, n k * elem, which is all that matters for
 * one row (decode is bound by memory: 2 flops per weight); for many rows (prefill) each weight
 * loaded into a register serves up to 6 rows and each x serves 16 to 64 outputs, and the loop is
 * bound by arithmetic.
 *
 * A tile is `rows` x `panels` sums held in registers; per step of k it loads one row of each panel,
 * broadcasts one x per row and does rows * panels * 16 multiply-adds. A task is GROUP panels times
 * ROW_BLOCK rows, cut along k into pieces of K_BLOCK so that the piece of weights (K_BLOCK * 64 *
 * elem = 128 KiB for f32) stays in the second-level cache while all row tiles pass over it.
 *
 * Order of sums: within a piece k ascends in one chain per output; the pieces' sums are added to y
 * in ascending order. Nothing of this depends on rows, tiles or threads, hence a row of a batch has
 * bit by bit the result that it has alone. Cutting also keeps the rounding error near (K_BLOCK + k
 * / K_BLOCK) ulps at worst, instead of k. */
#include "kernels/cpu/simd_math.h"

enum { GROUP = 4, ROW_BLOCK = 96, K_BLOCK = 512, GEMM_SUMS = W == 16 ? 24 : 12 };

typedef struct gemm_job {
    const inf_gemm *a;
    int32_t is_bf16;
    int32_t groups; /* of GROUP panels, the last perhaps smaller */
} gemm_job;

/* What a tile works on: row and panel already applied, k cut to [k0, k0 + length). */
typedef struct gemm_part {
    const float *x; /* at k0 */
    const void *w;  /* first panel, at k0 */
    const float *bias;
    float *y;
    size_t ldx, ldy, panel;  /* numbers between rows of x, rows of y, panels of w */
    int32_t length, outputs; /* outputs that exist from here on */
    int32_t first;           /* k0 is 0: y is set, else added to */
} gemm_part;

INLINE vec gemm_load(const int is_bf16, const gemm_part *t, const int32_t v, size_t i) {
    return load_as(is_bf16, t->w,
                   t->panel * (size_t)(v / PANEL_VECS) + i * PANEL + (size_t)(v % PANEL_VECS) * W);
}

INLINE void gemm_finish(const gemm_part *t, int32_t row, int32_t column, vec sum) {
    float *y = t->y + (size_t)row * t->ldy + column;
    int32_t n = t->outputs - column;
    if (n >= W) {
        if (!t->first)
            sum = v_add(v_load(y), sum);
        else if (t->bias != NULL)
            sum = v_add(sum, v_load(t->bias + column));
        v_store(y, sum);
    } else if (n > 0) {
        if (!t->first)
            sum = v_add(v_load_n(y, n), sum);
        else if (t->bias != NULL)
            sum = v_add(sum, v_load_n(t->bias + column, n));
        v_store_n(y, sum, n);
    }
}

INLINE void gemm_tile(const int is_bf16, const int32_t rows, const int32_t panels,
                      const gemm_part *t) {
    const int32_t vecs = panels * PANEL_VECS;
    vec sum[6][8];
    UNROLL_FOR (r, rows)
        UNROLL_FOR (v, vecs)
            sum[r][v] = v_zero();
    const float *x = t->x;
    for (int32_t i = 0; i < t->length; i++) {
        vec w[8];
        UNROLL_FOR (v, vecs)
            w[v] = gemm_load(is_bf16, t, v, (size_t)i);
        UNROLL_FOR (r, rows) {
            vec each = v_set(x[(size_t)r * t->ldx + (size_t)i]);
            UNROLL_FOR (v, vecs)
                sum[r][v] = v_fma(each, w[v], sum[r][v]);
        }
    }
    UNROLL_FOR (r, rows)
        UNROLL_FOR (v, vecs)
            gemm_finish(t, r, v * W, sum[r][v]);
}

/* Panels per tile such that the sums fit the registers: 1, 2 or 4. */
#define PANELS_OF(rows)                                                                            \
    (GEMM_SUMS / ((rows)*PANEL_VECS) >= 4 ? 4 : GEMM_SUMS / ((rows)*PANEL_VECS) >= 2 ? 2 : 1)

/* A tile function for a number of rows, over as many panels as exist. */
#define GEMM_STRIP(rows, is_bf16, suffix)                                                          \
    static void gemm_strip_##rows##suffix(const gemm_part *part, int32_t panels) {                 \
        gemm_part t = *part;                                                                       \
        for (int32_t p = 0, step; p < panels; p += step) {                                         \
            step = panels - p >= PANELS_OF(rows) ? PANELS_OF(rows) : 1;                            \
            if (step == PANELS_OF(rows))                                                           \
                gemm_tile(is_bf16, rows, PANELS_OF(rows), &t);                                     \
            else                                                                                   \
                gemm_tile(is_bf16, rows, 1, &t);                                                   \
            t.w = (const uint8_t *)t.w + t.panel * (size_t)step * (is_bf16 ? 2 : 4);               \
            t.y += step * PANEL;                                                                   \
            t.bias = t.bias == NULL ? NULL : t.bias + step * PANEL;                                \
            t.outputs -= step * PANEL;                                                             \
        }                                                                                          \
    }
#define GEMM_STRIPS(is_bf16, suffix)                                                               \
    GEMM_STRIP(1, is_bf16, suffix)                                                                 \
    GEMM_STRIP(2, is_bf16, suffix)                                                                 \
    GEMM_STRIP(3, is_bf16, suffix)                                                                 \
    GEMM_STRIP(4, is_bf16, suffix)                                                                 \
    GEMM_STRIP(5, is_bf16, suffix)                                                                 \
    GEMM_STRIP(6, is_bf16, suffix)
GEMM_STRIPS(0, _f32)
GEMM_STRIPS(1, _bf16)

typedef void (*gemm_strip)(const gemm_part *part, int32_t panels);

static gemm_strip gemm_strip_of(int32_t is_bf16, int32_t rows) {
    static const gemm_strip strips[2][6] = {
        {gemm_strip_1_f32, gemm_strip_2_f32, gemm_strip_3_f32, gemm_strip_4_f32, gemm_strip_5_f32,
         gemm_strip_6_f32},
        {gemm_strip_1_bf16, gemm_strip_2_bf16, gemm_strip_3_bf16, gemm_strip_4_bf16,
         gemm_strip_5_bf16, gemm_strip_6_bf16},
    };
    return strips[is_bf16][rows - 1];
}

/* One index: one group of panels for one block of rows. */
static void gemm_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const gemm_job *job = arg;
    const inf_gemm *a = job->a;
    int32_t column = index % job->groups * GROUP * PANEL, row0 = index / job->groups * ROW_BLOCK;
    int32_t end = min_i32(row0 + ROW_BLOCK, a->rows);
    int32_t panels = min_i32(GROUP, ceil_div(a->n - column, PANEL));
    size_t elem = job->is_bf16 ? 2 : 4;
    gemm_part t = {.ldx = (size_t)a->ldx, .ldy = (size_t)a->ldy, .panel = (size_t)a->k * PANEL};
    t.bias = a->bias == NULL ? NULL : a->bias + column;
    t.outputs = a->n - column;
    int32_t k0 = 0;
    do {
        t.first = k0 == 0;
        t.length = min_i32(K_BLOCK, a->k - k0);
        t.w = (const uint8_t *)a->w + ((size_t)column * a->k + (size_t)k0 * PANEL) * elem;
        for (int32_t row = row0, rows; row < end; row += rows) {
            /* Equal tiles rather than full ones and a rest: 7 rows are 4 + 3. */
            rows = ceil_div(end - row, ceil_div(end - row, GEMM_ROWS));
            t.x = a->x + (size_t)row * t.ldx + k0;
            t.y = a->y + (size_t)row * t.ldy + column;
            gemm_strip_of(job->is_bf16, rows)(&t, panels);
        }
        k0 += K_BLOCK;
    } while (k0 < a->k);
}

static void simd_gemm(inf_pool *pool, int32_t dtype, const inf_gemm *args) {
    if (args->rows <= 0 || args->n <= 0)
        return;
    gemm_job job = {.a = args, .is_bf16 = dtype == INF_DTYPE_BF16};
    job.groups = ceil_div(args->n, GROUP * PANEL);
    inf_pool_run(pool, gemm_task, &job, job.groups * ceil_div(args->rows, ROW_BLOCK));
}
