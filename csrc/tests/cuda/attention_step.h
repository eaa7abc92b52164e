/* Random steps for the tests of attention: segments, pool, block table and plan, and the double
 * reference of a row of a piece. Before it is included, MOST_REQUESTS says how many requests a step
 * has at most.
 *
 * What no kernel may read is NaN: unused blocks, tokens that no row sees. */
#ifndef INF_ATTENTION_STEP_H
#define INF_ATTENTION_STEP_H

#include <thread>
#include <vector>

#include "kernels/cuda/plan.h"
#include "kernels/cuda/prelude.cuh"
#include "tests/cuda/guarded.h"

enum { MOST_SEGMENTS = 64 };

/* Towards zero: any number near f will do for an input. */
static uint16_t to_f16(float f) {
    double a = fabs((double)f);
    int e = 0;
    uint16_t sign = f < 0 ? 0x8000 : 0;
    if (a < ldexp(1, -14)) {
        return (uint16_t)(sign | (uint16_t)(a * ldexp(1, 24)));
    }
    double m = frexp(a, &e); /* a = m 2^e, m in [1/2, 1) */
    return (uint16_t)(sign | (uint16_t)(e + 14) << 10 | ((uint16_t)(m * 2048) & 1023));
}

/* The nearest code, by a table over f32's upper 16 bits: near enough for an input. */
static uint8_t e4m3_codes(float x) {
    static uint8_t table[1 << 16];
    static int filled = 0;
    for (uint32_t h = 0; h < 1 << 16 && !filled; h++) {
        table[h] = to_e4m3((double)from_bf16((uint16_t)h));
    }
    filled = 1;
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return table[u >> 16];
}

static void put(uint8_t *p, int32_t dtype, size_t i, float x) {
    if (dtype == INF_DTYPE_F32) {
        ((float *)p)[i] = x;
    } else if (dtype == INF_DTYPE_E4M3) {
        p[i] = e4m3_codes(x);
    } else {
        ((uint16_t *)p)[i] = dtype == INF_DTYPE_BF16 ? to_bf16(x) : to_f16(x);
    }
}

/* ---- a step ---- */

typedef struct step {
    inf_cuda_attn args; /* pointers are the host's until `run` */
    inf_cuda_plan_shape shape;
    inf_cuda_segment segments[MOST_SEGMENTS];
    int32_t n_segments, rows, n_blocks, pool_blocks;
    uint8_t *q, *pool;
    int32_t *blocks;
    inf_cuda_plan_sizes sizes;
    inf_cuda_plan_lists lists;
} step;

static uint64_t kv_at(const step *s, const inf_cuda_segment *g, uint32_t t, int32_t kv,
                      int32_t head) {
    const inf_kv_shape *k = &s->args.kv;
    uint32_t block_size = (uint32_t)k->block_size;
    int32_t block = s->blocks[g->block_off + t / block_size];
    return (uint64_t)block * k->block_bytes +
           inf_kv_offset(k, s->args.layer, kv, head, (int32_t)(t % block_size));
}

/* Requests with spans, as at a home and at a creditor: segments of one request share its rows. */
static void random_segments(step *s, int32_t most_rows, int32_t most_tokens) {
    int32_t requests = 1 + below(MOST_REQUESTS);
    s->n_segments = s->rows = s->n_blocks = 0;
    for (int32_t i = 0; i < requests; i++) {
        uint32_t rows = (uint32_t)(1 + below(below(2) ? 4 : most_rows)), pos = 0;
        int32_t first = s->n_segments, spans = below(3) == 0 ? 1 + below(2) : 0;
        for (int32_t j = 0; j <= spans; j++) {
            uint32_t n = (uint32_t)below(below(3) == 0 ? 40 : most_tokens);
            n += j == spans ? rows : 0;
            uint32_t blocks =
                (n + (uint32_t)s->args.kv.block_size - 1) / (uint32_t)s->args.kv.block_size;
            s->segments[s->n_segments++] = {(uint32_t)s->rows,    rows, 0, pos, n,
                                            (uint32_t)s->n_blocks};
            s->n_blocks += (int32_t)blocks;
            pos += n;
        }
        /* Most rows are the last tokens; some stand in the middle, before all keys or far behind.
         */
        uint32_t q_pos0 = pos - rows;
        if (below(6) == 0) {
            q_pos0 = (uint32_t)below((int32_t)pos + 1);
        } else if (below(6) == 0) {
            q_pos0 = pos + (uint32_t)below(100);
        }
        for (int32_t j = first; j < s->n_segments; j++) {
            s->segments[j].q_pos0 = q_pos0;
        }
        s->rows += (int32_t)rows + (below(4) == 0 ? 1 : 0);
    }
}

/* Every block of the table is another one of the pool, in random order. Tokens of the segment that
 * some row may see are numbers, all else is NaN. */
static void fill_pool(step *s, float size) {
    inf_kv_shape *k = &s->args.kv;
    s->pool_blocks = s->n_blocks + 3;
    s->blocks = (int32_t *)get_bytes((size_t)s->n_blocks * 4);
    int32_t *order = (int32_t *)get_bytes((size_t)s->pool_blocks * 4);
    for (int32_t i = 0; i < s->pool_blocks; i++) {
        int32_t j = below(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    memcpy(s->blocks, order, (size_t)s->n_blocks * 4);
    free(order);
    s->pool = (uint8_t *)get_bytes((size_t)s->pool_blocks * k->block_bytes);
    memset(s->pool, UNWRITTEN, (size_t)s->pool_blocks * k->block_bytes);
    for (int32_t i = 0; i < s->n_segments; i++) {
        const inf_cuda_segment *g = &s->segments[i];
        for (uint32_t t = 0; t < g->n_tokens; t++) {
            int64_t pos = (int64_t)g->kv_pos0 + t;
            if (pos > (int64_t)g->q_pos0 + g->rows - 1 ||
                (s->args.window > 0 && pos <= (int64_t)g->q_pos0 - s->args.window)) {
                continue;
            }
            for (int32_t c = 0; c < 2 * k->kv_heads; c++) {
                uint8_t *to = s->pool + kv_at(s, g, t, c % 2, c / 2);
                for (int32_t d = 0; d < k->head_dim; d++) {
                    put(to, k->dtype, (size_t)d, size * number());
                }
            }
        }
    }
}

/* Blocks that a window has passed over are given away: nobody may look them up any more. */
static void forget_passed_blocks(step *s) {
    for (int32_t i = 0; i < s->n_segments && s->args.window > 0; i++) {
        const inf_cuda_segment *g = &s->segments[i];
        int64_t first = (int64_t)g->q_pos0 - g->kv_pos0 - s->args.window + 1;
        for (uint32_t b = 0; b * (uint32_t)s->args.kv.block_size < g->n_tokens; b++) {
            if ((int64_t)(b + 1) * s->args.kv.block_size <= first) {
                s->blocks[g->block_off + b] = INT32_MIN;
            }
        }
    }
}

static void make_plan(step *s) {
    s->sizes = {1 << 14, 1 << 14, 1 << 18, s->rows};
    s->lists.decode = (inf_cuda_work *)get_bytes((size_t)s->sizes.decode * sizeof(inf_cuda_work));
    s->lists.prefill = (inf_cuda_work *)get_bytes((size_t)s->sizes.prefill * sizeof(inf_cuda_work));
    s->lists.off = (uint32_t *)get_bytes(((size_t)s->sizes.rows + 1) * 4);
    s->lists.list = (uint32_t *)get_bytes((size_t)s->sizes.parts * 4);
    int status =
        inf_cuda_plan(&s->shape, s->segments, s->n_segments, s->rows, &s->sizes, &s->lists);
    CHECK(status == 0, "plan: %d", status);
}

static void drop_plan(step *s) {
    free(s->lists.decode);
    free(s->lists.prefill);
    free(s->lists.off);
    free(s->lists.list);
}

static void drop_step(step *s) {
    free(s->q);
    free(s->pool);
    free(s->blocks);
    drop_plan(s);
}

typedef struct form {
    int32_t act, kv, out, head_dim, heads, kv_heads, block_size, window;
    float softcap;
} form;

/* With `only` the step is that one segment. */
static void make_step(step *s, const form *f, int32_t most_rows, int32_t most_tokens,
                      const inf_cuda_segment *only = NULL) {
    memset(s, 0, sizeof *s);
    inf_kv_shape *k = &s->args.kv;
    *k = {.layers = 1 + below(3),
          .kv_heads = f->kv_heads,
          .block_size = f->block_size,
          .head_dim = f->head_dim,
          .dtype = f->kv,
          .elem = (int32_t)format_size(f->kv),
          .block_bytes = 0};
    k->block_bytes = (uint64_t)k->layers * 2 * (uint64_t)k->kv_heads * (uint64_t)k->block_size *
                     (uint64_t)k->head_dim * (uint64_t)k->elem;
    s->args.act = f->act, s->args.o_dtype = f->out, s->args.heads = f->heads;
    s->args.layer = below(k->layers), s->args.window = f->window;
    s->args.scale = 1.0f / sqrtf((float)f->head_dim);
    s->args.softcap = f->softcap;
    s->shape = {.heads = f->heads,
                .kv_heads = f->kv_heads,
                .window = f->window,
                .sms = 1 + below(8),
                .decode_resident = 0,
                .prefill_resident = 0,
                .decode_chunk = below(2) ? 64 * (1 + below(4)) : 0,
                .prefill_chunk = below(2) ? 128 * (1 + below(2)) : 0};
    if (only != NULL) {
        s->segments[0] = *only;
        s->n_segments = 1, s->rows = (int32_t)only->rows;
        s->n_blocks =
            (int32_t)((only->n_tokens + (uint32_t)f->block_size - 1) / (uint32_t)f->block_size);
    } else {
        random_segments(s, most_rows, most_tokens);
    }
    /* Small scores are an average of the values, big ones a choice of few. */
    float size = below(2) ? 1.0f : 4.0f;
    fill_pool(s, size);
    size_t n = (size_t)s->rows * (size_t)f->heads * (size_t)f->head_dim;
    s->q = (uint8_t *)get_bytes(n * format_size(f->act));
    for (size_t i = 0; i < n; i++) {
        put(s->q, f->act, i, size * number());
    }
    make_plan(s);
    forget_passed_blocks(s);
}

/* ---- what a kernel wrote ---- */

typedef struct outputs {
    std::vector<uint8_t> o, lse, part_o, part_lse;
} outputs;

static int unwritten(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] != UNWRITTEN) {
            return 0;
        }
    }
    return 1;
}

/* ---- the reference ---- */

/* What one (row, head) of a piece should be. */
struct wanted {
    const inf_cuda_work *work;
    uint32_t row;
    int32_t head;
    double lse, o[256];
};

/* All numbers of a 16-bit format. */
static const float *numbers_of(int32_t dtype) {
    static float table[2][1 << 16];
    static int filled = 0;
    for (int32_t i = 0; i < 1 << 16 && !filled; i++) {
        table[0][i] = (float)number_of((uint16_t)i, INF_DTYPE_F16);
        table[1][i] = from_bf16((uint16_t)i);
    }
    filled = 1;
    return table[dtype == INF_DTYPE_BF16];
}

/* n numbers of a format from the i-th on. */
static void read_numbers(float *to, const uint8_t *from, int32_t dtype, size_t i, int32_t n) {
    if (dtype == INF_DTYPE_F32) {
        memcpy(to, from + 4 * i, (size_t)n * 4);
        return;
    }
    if (dtype == INF_DTYPE_E4M3) {
        for (int32_t d = 0; d < n; d++) {
            to[d] = (float)from_e4m3(from[i + (size_t)d]);
        }
        return;
    }
    const float *table = numbers_of(dtype);
    for (int32_t d = 0; d < n; d++) {
        to[d] = table[((const uint16_t *)from)[i + (size_t)d]];
    }
}

static void compute(const step *s, wanted *x) {
    const inf_cuda_work *w = x->work;
    const inf_cuda_segment *g = &s->segments[w->segment];
    const inf_kv_shape *k = &s->args.kv;
    int32_t dim = k->head_dim, kv_head = x->head / (s->args.heads / k->kv_heads);
    size_t row = (size_t)g->row0 + w->row0 + x->row;
    int64_t pos = (int64_t)g->q_pos0 + w->row0 + x->row;
    float q[256], kv[256];
    double m = -INFINITY, l = 0;
    std::vector<double> scores(w->tokens, -INFINITY);
    read_numbers(q, s->q, s->args.act,
                 (row * (size_t)s->args.heads + (size_t)x->head) * (size_t)dim, dim);
    for (uint32_t t = 0; t < w->tokens; t++) {
        int64_t key = (int64_t)g->kv_pos0 + w->token0 + t;
        if (key > pos || (s->args.window > 0 && key <= pos - s->args.window)) {
            continue;
        }
        read_numbers(kv, s->pool + kv_at(s, g, w->token0 + t, 0, kv_head), k->dtype, 0, dim);
        double dot = 0;
        for (int32_t d = 0; d < dim; d++) {
            dot += (double)q[d] * kv[d];
        }
        scores[t] = dot * s->args.scale;
        if (s->args.softcap > 0) {
            scores[t] = (double)s->args.softcap * tanh(scores[t] / (double)s->args.softcap);
        }
        m = scores[t] > m ? scores[t] : m;
    }
    memset(x->o, 0, sizeof x->o);
    for (uint32_t t = 0; t < w->tokens; t++) {
        if (scores[t] == -INFINITY) {
            continue;
        }
        read_numbers(kv, s->pool + kv_at(s, g, w->token0 + t, 1, kv_head), k->dtype, 0, dim);
        double p = exp(scores[t] - m);
        l += p;
        for (int32_t d = 0; d < dim; d++) {
            x->o[d] += p * kv[d];
        }
    }
    for (int32_t d = 0; d < dim && l > 0; d++) {
        x->o[d] /= l;
    }
    x->lse = l > 0 ? m + log(l) : -INFINITY;
}

/* The reference of all of these, by all of the machine's threads where there is a GPU to test. */
static void compute_all(const step *s, std::vector<wanted> &all) {
#ifdef INF_EMU
    size_t n_threads = 1;
#else
    size_t n_threads = std::thread::hardware_concurrency() + 1;
#endif
    std::vector<std::thread> threads;
    (void)numbers_of(INF_DTYPE_BF16);
    for (size_t t = 0; t < n_threads; t++) {
        threads.emplace_back([&all, s, t, n_threads] {
            for (size_t i = t; i < all.size(); i += n_threads) {
                compute(s, &all[i]);
            }
        });
    }
    for (std::thread &t : threads) {
        t.join();
    }
}

#endif
