/* gemm with matrices of few bits (quant.h): integer products of pairs of inputs, 2 W of them an
 * instruction.
 *
 * A task is a group of panels times ROW_BLOCK rows. Of a strip of up to STRIP_ROWS rows a piece of
 * k is rounded at a time, for all panels of the task: 1 / 32 of the work or less, but where threads
 * are many and rows few. Few rows take k in pieces as long as their rounded inputs fit the
 * first-level cache, so that a panel is read forwards; many rows in pieces of which the weights
 * stay in the second-level cache while all strips pass over them.
 *
 * A tile is `rows` x `panels` integer sums in registers, and as many in f32 which a group's sums
 * are added to. Bytes: of a decode step the weights, 1.03 each in I8, 0.53 to 0.63 in I4. For every
 * load of 2 W weights come one multiplication and one addition a row (one instruction with VNNI),
 * and to make pairs of 16 bits of the weights one instruction in I8 and two in I4. */
#include "kernels/cpu/quant.h"
#include "kernels/cpu/simd_math.h"

enum {
    QUANT_ROWS = 6, /* of a strip, at most */
    QUANT_BLOCK = 96,
    QUANT_PIECE = 4 * X_GROUP,
    QUANT_INPUTS = 16384, /* rounded at a time */
    QUANT_LEAST = 4,      /* panels of a task */
    QUANT_MANY = 16,      /* where strips are many, and where there is one */
    QUANT_MOST = 64,
    QUANT_PART = 32, /* the least group */
};

typedef struct quant_job {
    const inf_gemm *args;
    int32_t dtype, threads, panels; /* of all products */
} quant_job;

/* Rounded inputs of a strip. */
typedef struct quant_x {
    _Alignas(64) int16_t q[QUANT_INPUTS + QUANT_ROWS * X_GROUP]; /* [rows, piece] */
    float scale[QUANT_INPUTS / X_GROUP + QUANT_ROWS];            /* [rows, piece / X_GROUP] */
    float sum[QUANT_INPUTS / QUANT_PART + QUANT_ROWS * 4];       /* [rows, piece / group] */
    int32_t piece; /* inputs of a row, a multiple of X_GROUP */
} quant_x;

typedef struct quant_part {
    const quant_x *x;
    const uint8_t *w; /* first panel, at the piece */
    const float *bias;
    float *y;
    size_t ldy, panel;
    int32_t group, length, outputs, first;
} quant_part;

/* Inputs of one X_GROUP, as inf_quant_inputs does; beyond n zeros up to a multiple of W. */
static float quant_inputs(const float *x, int32_t n, int16_t *q) {
    ivec size = i_zero();
    for (int32_t i = 0; i < n; i += W)
        size = i_max_size(size, n - i >= W ? v_load(x + i) : v_load_n(x + i, n - i));
    int32_t bits = i_top(size);
    float most;
    memcpy(&most, &bits, sizeof most);
    int finite = bits < 0x7f800000;
    float inverse = finite && most >= SMALLEST_X ? MOST_X / most : 0;
    for (int32_t i = 0; i < n; i += W) {
        vec each = n - i >= W ? v_load(x + i) : v_load_n(x + i, n - i);
        i_store_16(q + i, inverse > 0 ? v_mul(each, v_set(inverse)) : v_zero());
    }
    return finite ? most / MOST_X : NAN;
}

/* Sum of n numbers, n a multiple of 2 W: exact, and a float. */
static float quant_sum(const int16_t *q, int32_t n) {
    ivec sum = i_zero();
    for (int32_t i = 0; i < n; i += 2 * W)
        sum = i_dot(sum, i_load(q + i), i_pair(0x00010001));
    return (float)i_sum(sum);
}

/* Rows of x at a piece of k, rounded; the sums where w has zeros. */
static void quant_strip(quant_x *to, const float *x, size_t ldx, int32_t rows, int32_t length,
                        int32_t sums_of) {
    int32_t groups = to->piece / X_GROUP;
    for (int32_t r = 0; r < rows; r++, x += ldx) {
        int16_t *q = to->q + (size_t)r * to->piece;
        for (int32_t g = 0; g * X_GROUP < length; g++) {
            int32_t n = min_i32(X_GROUP, length - g * X_GROUP);
            if (n < X_GROUP)
                memset(q + g * X_GROUP, 0, X_GROUP * sizeof *q);
            to->scale[r * groups + g] = quant_inputs(x + g * X_GROUP, n, q + g * X_GROUP);
        }
        int32_t parts = sums_of > 0 ? to->piece / sums_of : 0;
        for (int32_t p = 0; p < parts && p * sums_of < length; p++)
            to->sum[r * parts + p] = quant_sum(q + p * sums_of, sums_of);
    }
}

/* Vector v of the panels at byte `at` of a panel. */
INLINE const uint8_t *quant_at(const quant_part *t, const int32_t v, size_t at, size_t vec_bytes) {
    return t->w + t->panel * (size_t)(v / PANEL_VECS) + at + (size_t)(v % PANEL_VECS) * vec_bytes;
}

/* One block of a group, at byte `at` of a panel and inputs q: its products, added to the sums. */
INLINE void quant_block(const int bits, const int32_t rows, const int32_t vecs, const quant_part *t,
                        size_t at, const int16_t *q, ivec (*sum)[8]) {
    UNROLL_FOR (s, BLOCK_INPUTS / 2) {
        ivec w[8];
        UNROLL_FOR (v, vecs)
            w[v] = bits == 8 ? i_load_8(quant_at(t, v, at + (size_t)s * 2 * PANEL, 2 * W))
                             : i_nibbles(quant_at(t, v, at, 4 * W), s);
        UNROLL_FOR (r, rows) {
            int32_t pair;
            memcpy(&pair, q + (size_t)r * t->x->piece + 2 * (size_t)s, sizeof pair);
            ivec x = i_pair(pair);
            UNROLL_FOR (v, vecs)
                sum[r][v] = i_dot(sum[r][v], w[v], x);
        }
    }
}

/* A group's sums, scaled, to the results: its head at byte `at` of a panel, its inputs from i. */
INLINE void quant_scale(const int bits, const int32_t rows, const int32_t vecs, const quant_part *t,
                        size_t at, int32_t i, ivec (*sum)[8], vec (*y)[8]) {
    int32_t groups = t->x->piece / X_GROUP, parts = t->x->piece / t->group;
    UNROLL_FOR (v, vecs) {
        vec scale, zero = v_zero();
        if (bits == 8) {
            scale = v_load((const float *)(const void *)quant_at(t, v, at, 4 * W));
        } else {
            scale = v_load_f16(quant_at(t, v, at, 2 * W));
            zero = v_load_f16(quant_at(t, v, at + 2 * PANEL, 2 * W));
        }
        UNROLL_FOR (r, rows) {
            vec each = v_from_i(sum[r][v]);
            if (bits == 4)
                each = v_fnma(zero, v_set(t->x->sum[r * parts + i / t->group]), each);
            vec scales = v_mul(scale, v_set(t->x->scale[r * groups + i / X_GROUP]));
            y[r][v] = v_fma(each, scales, y[r][v]);
        }
    }
}

INLINE vec quant_begin(const quant_part *t, int32_t row, int32_t column) {
    const float *from = t->first ? t->bias : t->y + (size_t)row * t->ldy;
    int32_t n = t->outputs - column;
    if (from == NULL || n <= 0)
        return v_zero();
    return n >= W ? v_load(from + column) : v_load_n(from + column, n);
}

INLINE void quant_end(const quant_part *t, int32_t row, int32_t column, vec y) {
    float *to = t->y + (size_t)row * t->ldy + column;
    int32_t n = t->outputs - column;
    if (n >= W)
        v_store(to, y);
    else if (n > 0)
        v_store_n(to, y, n);
}

INLINE void quant_tile(const int bits, const int32_t rows, const int32_t panels,
                       const quant_part *t) {
    const int32_t vecs = panels * PANEL_VECS;
    const size_t block = bits == 8 ? BLOCK_INPUTS * PANEL : BLOCK_INPUTS * PANEL / 2;
    vec y[6][8];
    UNROLL_FOR (r, rows)
        UNROLL_FOR (v, vecs)
            y[r][v] = quant_begin(t, r, v * W);
    size_t at = 0;
    for (int32_t i = 0; i < t->length; i += t->group) {
        ivec sum[6][8];
        int32_t end = min_i32(i + t->group, t->length);
        size_t head = at;
        at += HEAD_BYTES;
        UNROLL_FOR (r, rows)
            UNROLL_FOR (v, vecs)
                sum[r][v] = i_zero();
        for (int32_t j = i; j < end; j += BLOCK_INPUTS, at += block)
            quant_block(bits, rows, vecs, t, at, t->x->q + j, sum);
        quant_scale(bits, rows, vecs, t, head, i, sum, y);
    }
    UNROLL_FOR (r, rows)
        UNROLL_FOR (v, vecs)
            quant_end(t, r, v * W, y[r][v]);
}

/* A tile function for a number of rows, over as many panels as exist. */
#define QUANT_STRIP(rows, bits)                                                                    \
    static void quant_strip_##rows##_##bits(const quant_part *part, int32_t panels) {              \
        quant_part t = *part;                                                                      \
        for (int32_t p = 0, step; p < panels; p += step) {                                         \
            step = panels - p >= QUANT_PANELS(rows) ? QUANT_PANELS(rows) : 1;                      \
            if (step == QUANT_PANELS(rows))                                                        \
                quant_tile(bits, rows, QUANT_PANELS(rows), &t);                                    \
            else                                                                                   \
                quant_tile(bits, rows, 1, &t);                                                     \
            t.w += t.panel * (size_t)step;                                                         \
            t.y += step * PANEL;                                                                   \
            t.bias = t.bias == NULL ? NULL : t.bias + step * PANEL;                                \
            t.outputs -= step * PANEL;                                                             \
        }                                                                                          \
    }
#define QUANT_STRIPS(rows) QUANT_STRIP(rows, 8) QUANT_STRIP(rows, 4)
QUANT_STRIPS(1)
QUANT_STRIPS(2)
QUANT_STRIPS(3)
QUANT_STRIPS(4)
QUANT_STRIPS(5)
QUANT_STRIPS(6)

typedef void (*quant_strip_of)(const quant_part *part, int32_t panels);

static const quant_strip_of quant_strips[2][QUANT_ROWS] = {
    {quant_strip_1_8, quant_strip_2_8, quant_strip_3_8, quant_strip_4_8, quant_strip_5_8,
     quant_strip_6_8},
    {quant_strip_1_4, quant_strip_2_4, quant_strip_3_4, quant_strip_4_4, quant_strip_5_4,
     quant_strip_6_4},
};

/* Panels of a task: few enough that threads share the work evenly. */
static int32_t quant_group(const quant_job *job, const inf_gemm *a) {
    int32_t even = job->panels / (4 * job->threads);
    return max_i32(QUANT_LEAST, min_i32(even, a->rows > QUANT_ROWS ? QUANT_MANY : QUANT_MOST));
}

static int32_t quant_tasks(const quant_job *job, const inf_gemm *a) {
    return a->rows <= 0 || a->n <= 0 ? 0
                                     : ceil_div(ceil_div(a->n, PANEL), quant_group(job, a)) *
                                           ceil_div(a->rows, QUANT_BLOCK);
}

/* One index: one group of panels of one product, for one block of rows. */
static void quant_task(void *arg, int32_t index, int32_t thread) {
    (void)thread;
    const quant_job *job = arg;
    const inf_gemm *a = job->args;
    for (int32_t tasks; index >= (tasks = quant_tasks(job, a)); a++)
        index -= tasks;
    int32_t all = ceil_div(a->n, PANEL), group = quant_group(job, a), groups = ceil_div(all, group);
    int32_t panel = index % groups * group, row0 = index / groups * QUANT_BLOCK;
    int32_t end = min_i32(row0 + QUANT_BLOCK, a->rows), column = panel * PANEL;
    quant_x x;
    quant_part t = {.x = &x,
                    .bias = a->bias == NULL ? NULL : a->bias + column,
                    .ldy = (size_t)a->ldy,
                    .panel = quant_panel_bytes(job->dtype, a->k),
                    .group = inf_dtype_group(job->dtype),
                    .outputs = a->n - column};
    x.piece =
        end - row0 > QUANT_ROWS ? QUANT_PIECE : QUANT_INPUTS / (end - row0) / X_GROUP * X_GROUP;
    int32_t k0 = 0;
    do {
        t.first = k0 == 0;
        t.length = min_i32(x.piece, a->k - k0);
        t.w = (const uint8_t *)a->w + t.panel * (size_t)panel + quant_panel_bytes(job->dtype, k0);
        for (int32_t row = row0, rows; row < end; row += rows) {
            /* Equal tiles rather than full ones and a rest: 7 rows are 4 + 3. */
            rows = ceil_div(end - row, ceil_div(end - row, QUANT_ROWS));
            quant_strip(&x, a->x + (size_t)row * (size_t)a->ldx + k0, (size_t)a->ldx, rows,
                        t.length, is_i4(job->dtype) ? t.group : 0);
            t.y = a->y + (size_t)row * t.ldy + column;
            quant_strips[is_i4(job->dtype)][rows - 1](&t, min_i32(group, all - panel));
        }
        k0 += x.piece;
    } while (k0 < a->k);
}

static void quant_gemms(inf_pool *pool, int32_t dtype, const inf_gemm *args, int32_t n_args) {
    quant_job job = {.args = args, .dtype = dtype, .threads = inf_pool_threads(pool)};
    int32_t tasks = 0;
    for (int32_t i = 0; i < n_args; i++)
        job.panels += ceil_div(args[i].n, PANEL) * ceil_div(max_i32(args[i].rows, 0), QUANT_BLOCK);
    for (int32_t i = 0; i < n_args; i++)
        tasks += quant_tasks(&job, &args[i]);
    if (tasks > 0)
        inf_pool_run(pool, quant_task, &job, tasks);
}
