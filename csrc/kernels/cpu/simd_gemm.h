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
 * / K_BLOCK) ulps at worst, instead of k.
 *
 * Where there are dot products of bf16 (BF16_DOT), and the weights are bf16, x is rounded to bf16
 * too, as a GPU does for its tensor cores, and an instruction multiplies two inputs. Weights lie in
 * pairs (pair_panel_bytes). A strip of rows is rounded anew for each group of panels, 3 % of the
 * work. The order of sums is that of pairs, and likewise no other for other rows, tiles or threads.
 */
#include "kernels/cpu/simd_math.h"
#include "kernels/cpu/simd_quant.h"

enum { GROUP = 4, ROW_BLOCK = 96, K_BLOCK = 512, GEMM_SUMS = W == 16 ? 24 : 12 };
#ifndef BF16_DOT
#define BF16_DOT 0
#endif
enum { STRIP_ROWS = 6 }; /* at most */

typedef struct gemm_job {
    const inf_gemm *args; /* those behind each other share the tasks */
    int32_t dtype;
} gemm_job;

/* What a tile works on: row and panel already applied, k cut to [k0, k0 + length). */
typedef struct gemm_part {
    const float *x;    /* at k0 */
    const bf16 *pairs; /* x of a strip, rounded: [rows, K_BLOCK], zero beyond length */
    const uint8_t *w;  /* first panel, at k0 */
    const float *bias;
    float *y;
    size_t ldx, ldy, panel;  /* numbers between rows of x, rows of y; bytes between panels of w */
    int32_t length, outputs; /* outputs that exist from here on */
    int32_t first;           /* k0 is 0: y is set, else added to */
} gemm_part;

/* Vector v of the panels' row of input i. */
INLINE vec gemm_load(const int format, const gemm_part *t, const int32_t v, size_t i) {
    return load_as(format, t->w + t->panel * (size_t)(v / PANEL_VECS),
                   i * PANEL + (size_t)(v % PANEL_VECS) * W);
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

/* One input: its weights times x of each row, added to the sums. */
INLINE void gemm_input(const int32_t rows, const int32_t vecs, const gemm_part *t, size_t i,
                       const vec *w, vec (*sum)[8]) {
    UNROLL_FOR (r, rows) {
        vec each = v_set(t->x[(size_t)r * t->ldx + i]);
        UNROLL_FOR (v, vecs)
            sum[r][v] = v_fma(each, w[v], sum[r][v]);
    }
}

#if BF16_DOT
INLINE void gemm_inputs_pairs(const int32_t rows, const int32_t vecs, const gemm_part *t,
                              vec (*sum)[8]) {
    const int32_t pairs = ceil_div(t->length, 2);
    for (int32_t i = 0; i < pairs; i++) {
        int32_t pair[STRIP_ROWS];
        UNROLL_FOR (r, rows)
            memcpy(&pair[r], t->pairs + (size_t)r * K_BLOCK + 2 * (size_t)i, sizeof pair[r]);
        UNROLL_FOR (v, vecs) {
            const bf16 *w = (const bf16 *)(const void *)(t->w + t->panel * (size_t)v);
            UNROLL_FOR (r, rows)
                sum[r][v] = v_dot(sum[r][v], pair[r], w + (size_t)i * 2 * PANEL);
        }
    }
}

/* x of some rows at k0, rounded. */
static void gemm_round(const gemm_part *t, int32_t rows, bf16 *to) {
    for (int32_t r = 0; r < rows; r++, to += K_BLOCK) {
        const float *x = t->x + (size_t)r * t->ldx;
        int32_t i = 0;
        for (; i + W <= t->length; i += W)
            v_store_rounded(to + i, v_load(x + i));
        if (i < t->length) /* and zeros: K_BLOCK is a multiple of W */
            v_store_rounded(to + i, v_load_n(x + i, t->length - i));
    }
}
#endif

INLINE void gemm_tile(const int format, const int32_t rows, const int32_t panels,
                      const gemm_part *t) {
    const int32_t vecs = panels * PANEL_VECS;
    vec sum[6][8];
    UNROLL_FOR (r, rows)
        UNROLL_FOR (v, vecs)
            sum[r][v] = v_zero();
    const int dots = BF16_DOT && format == IN_BF16;
#if BF16_DOT
    if (dots)
        gemm_inputs_pairs(rows, vecs, t, sum);
#endif
    for (int32_t i = 0; !dots && i < t->length; i++) {
        vec w[8];
        UNROLL_FOR (v, vecs)
            w[v] = gemm_load(format, t, v, (size_t)i);
        gemm_input(rows, vecs, t, (size_t)i, w, sum);
    }
    UNROLL_FOR (r, rows)
        UNROLL_FOR (v, vecs)
            gemm_finish(t, r, v * W, sum[r][v]);
}

/* Panels per tile such that the sums fit the registers: 1, 2 or 4. */
#define PANELS_OF(rows)                                                                            \
    (GEMM_SUMS / ((rows)*PANEL_VECS) >= 4 ? 4 : GEMM_SUMS / ((rows)*PANEL_VECS) >= 2 ? 2 : 1)

/* A tile function for a number of rows, over as many panels as exist. */
#define GEMM_STRIP(rows, format, suffix)                                                           \
    static void gemm_strip_##rows##suffix(const gemm_part *part, int32_t panels) {                 \
        gemm_part t = *part;                                                                       \
        for (int32_t p = 0, step; p < panels; p += step) {                                         \
            step = panels - p >= PANELS_OF(rows) ? PANELS_OF(rows) : 1;                            \
            if (step == PANELS_OF(rows))                                                           \
                gemm_tile(format, rows, PANELS_OF(rows), &t);                                      \
            else                                                                                   \
                gemm_tile(format, rows, 1, &t);                                                    \
            t.w += t.panel * (size_t)step;                                                         \
            t.y += step * PANEL;                                                                   \
            t.bias = t.bias == NULL ? NULL : t.bias + step * PANEL;                                \
            t.outputs -= step * PANEL;                                                             \
        }                                                                                          \
    }
#define GEMM_STRIPS(format, suffix)                                                                \
    GEMM_STRIP(1, format, suffix)                                                                  \
    GEMM_STRIP(2, format, suffix)                                                                  \
    GEMM_STRIP(3, format, suffix)                                                                  \
    GEMM_STRIP(4, format, suffix)                                                                  \
    GEMM_STRIP(5, format, suffix)                                                                  \
    GEMM_STRIP(6, format, suffix)
GEMM_STRIPS(IN_F32, _f32)
GEMM_STRIPS(IN_BF16, _bf16)

typedef void (*gemm_strip)(const gemm_part *part, int32_t panels);

static gemm_strip gemm_strip_of(int32_t dtype, int32_t rows) {
    static const gemm_strip strips[2][6] = {
        {gemm_strip_1_f32, gemm_strip_2_f32, gemm_strip_3_f32, gemm_strip_4_f32, gemm_strip_5_f32,
         gemm_strip_6_f32},
        {gemm_strip_1_bf16, gemm_strip_2_bf16, gemm_strip_3_bf16, gemm_strip_4_bf16,
         gemm_strip_5_bf16, gemm_strip_6_bf16},
    };
    return strips[dtype == INF_DTYPE_F32 ? 0 : 1][rows - 1];
}

/* Bytes of a panel from its beginning to input i, a multiple of K_BLOCK or k. */
static size_t gemm_panel_bytes(int32_t dtype, int32_t i) {
    return BF16_DOT && dtype == INF_DTYPE_BF16 ? pair_panel_bytes(i) : panel_bytes(dtype, i);
}

static uint64_t gemm_packed_bytes(int32_t dtype, int32_t n, int32_t k) {
    uint64_t bytes = inf_cpu_packed_bytes(dtype, n, k);
    return bytes > 0 ? (uint64_t)ceil_div(n, PANEL) * gemm_panel_bytes(dtype, k) : 0;
}

static void gemm_pack(int32_t dtype, const void *src, int32_t src_dtype, int32_t n, int32_t k,
                      void *dst) {
    if (BF16_DOT && dtype == INF_DTYPE_BF16)
        inf_cpu_pack_pairs(src, src_dtype, n, k, dst);
    else
        inf_cpu_pack(dtype, src, src_dtype, n, k, dst);
}

/* Panels of a task. Rounded rows serve twice as many panels, whose pieces are as large as in f32;
 * few rows leave more tasks to threads. */
static int32_t gemm_group(const inf_gemm *a, int32_t dtype) {
    int dots = BF16_DOT && dtype == INF_DTYPE_BF16 && a->rows > 2 * STRIP_ROWS;
    return dots ? 2 * GROUP : GROUP;
}

/* Groups of panels times blocks of rows. */
static int32_t gemm_tasks(const inf_gemm *a, int32_t dtype) {
    return a->rows <= 0 || a->n <= 0
               ? 0
               : ceil_div(a->n, gemm_group(a, dtype) * PANEL) * ceil_div(a->rows, ROW_BLOCK);
}

/* One index: one group of panels of one product, for one block of rows. */
static void gemm_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const gemm_job *job = arg;
    const inf_gemm *a = job->args;
    for (int32_t tasks; index >= (tasks = gemm_tasks(a, job->dtype)); a++)
        index -= tasks;
    int32_t group = gemm_group(a, job->dtype), groups = ceil_div(a->n, group * PANEL);
    int32_t column = index % groups * group * PANEL, row0 = index / groups * ROW_BLOCK;
    int32_t end = min_i32(row0 + ROW_BLOCK, a->rows);
    int32_t panels = min_i32(group, ceil_div(a->n - column, PANEL));
    gemm_part t = {.ldx = (size_t)a->ldx, .ldy = (size_t)a->ldy};
#if BF16_DOT
    _Alignas(64) bf16 pairs[STRIP_ROWS * K_BLOCK];
    t.pairs = pairs;
#endif
    t.panel = gemm_panel_bytes(job->dtype, a->k);
    t.bias = a->bias == NULL ? NULL : a->bias + column;
    t.outputs = a->n - column;
    int32_t k0 = 0;
    do {
        t.first = k0 == 0;
        t.length = min_i32(K_BLOCK, a->k - k0);
        t.w = (const uint8_t *)a->w + t.panel * (size_t)(column / PANEL) +
              gemm_panel_bytes(job->dtype, k0);
        for (int32_t row = row0, rows; row < end; row += rows) {
            /* Equal tiles rather than full ones and a rest: 7 rows are 4 + 3. */
            rows = ceil_div(end - row, ceil_div(end - row, GEMM_ROWS));
            t.x = a->x + (size_t)row * t.ldx + k0;
#if BF16_DOT
            if (job->dtype == INF_DTYPE_BF16)
                gemm_round(&t, rows, pairs);
#endif
            t.y = a->y + (size_t)row * t.ldy + column;
            gemm_strip_of(job->dtype, rows)(&t, panels);
        }
        k0 += K_BLOCK;
    } while (k0 < a->k);
}

static void simd_gemms(inf_pool *pool, int32_t dtype, const inf_gemm *args, int32_t n_args) {
    gemm_job job = {.args = args, .dtype = dtype};
    int32_t tasks = 0;
    if (is_quantised(dtype)) {
        quant_gemms(pool, dtype, args, n_args);
        return;
    }
    for (int32_t i = 0; i < n_args; i++)
        tasks += gemm_tasks(&args[i], dtype);
    if (tasks > 0)
        inf_pool_run(pool, gemm_task, &job, tasks);
}

static void simd_gemm(inf_pool *pool, int32_t dtype, const inf_gemm *args) {
    simd_gemms(pool, dtype, args, 1);
}
