/* Attention for any format and decode attention, against a double reference of every piece of a
 * plan: random segments, windows, spans that share rows, block tables in random order. What no
 * kernel may read is NaN: unused blocks, tokens behind the end of a segment, keys before a window's
 * block. What no kernel may write stays NaN: rows without a whole piece, parts beyond the last,
 * guards. */
#include <time.h>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/plan.h"
#include "kernels/cuda/prelude.cuh"
#include "tests/kernel_check.h"

#ifdef INF_EMU
enum { ROUNDS = 8, MOST_TOKENS = 400, MOST_ROWS = 40, MOST_REQUESTS = 4 };
#else
enum { ROUNDS = 200, MOST_TOKENS = 6000, MOST_ROWS = 300, MOST_REQUESTS = 12 };
#endif
enum { GUARD = 4096, MOST_SEGMENTS = 64, NAN_BYTE = 0xff };

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        int error_ = (int)(call);                                                                  \
        if (error_ != 0) {                                                                         \
            printf("%s:%d: %s: error %d\n", __FILE__, __LINE__, #call, error_);                    \
            exit(2);                                                                               \
        }                                                                                          \
    } while (0)

/* ---- device memory with guards, all 0xff at first: NaN in every format ---- */

typedef struct buffer {
    uint8_t *base;
    size_t bytes;
} buffer;

static buffer give(size_t bytes) {
    buffer b = {NULL, bytes};
    CUDA(cudaMalloc((void **)&b.base, bytes + 2 * GUARD));
    CUDA(cudaMemset(b.base, NAN_BYTE, bytes + 2 * GUARD));
    return b;
}

template <class T> static T *at(buffer b) { return (T *)(b.base + GUARD); }

static buffer give_copy(const void *from, size_t bytes) {
    buffer b = give(bytes);
    CUDA(cudaMemcpy(at<void>(b), from, bytes, cudaMemcpyHostToDevice));
    return b;
}

/* Content to the host, guards checked, memory returned. */
static uint8_t *take(buffer b) {
    uint8_t *all = (uint8_t *)get_bytes(b.bytes + 2 * GUARD);
    CUDA(cudaMemcpy(all, b.base, b.bytes + 2 * GUARD, cudaMemcpyDeviceToHost));
    CUDA(cudaFree(b.base));
    size_t touched = 0;
    for (size_t i = 0; i < GUARD; i++) {
        touched += all[i] != NAN_BYTE;
        touched += all[GUARD + b.bytes + i] != NAN_BYTE;
    }
    CHECK(touched == 0, "%zu bytes of guards were written", touched);
    memmove(all, all + GUARD, b.bytes);
    return all;
}

/* ---- numbers of the three formats ---- */

static int32_t size_of(int32_t dtype) { return dtype == INF_DTYPE_F32 ? 4 : 2; }

static float from_f16(uint16_t h) {
    int32_t e = h >> 10 & 31;
    double m = h & 1023, x = e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
    x = e == 31 ? (m != 0 ? NAN : INFINITY) : x;
    return (float)(h >> 15 ? -x : x);
}

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

static void put(uint8_t *p, int32_t dtype, size_t i, float x) {
    if (dtype == INF_DTYPE_F32) {
        ((float *)p)[i] = x;
    } else {
        ((uint16_t *)p)[i] = dtype == INF_DTYPE_BF16 ? to_bf16(x) : to_f16(x);
    }
}

static float get(const uint8_t *p, int32_t dtype, size_t i) {
    if (dtype == INF_DTYPE_F32) {
        return ((const float *)p)[i];
    }
    uint16_t h = ((const uint16_t *)p)[i];
    return dtype == INF_DTYPE_BF16 ? from_bf16(h) : from_f16(h);
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
    memset(s->pool, NAN_BYTE, (size_t)s->pool_blocks * k->block_bytes);
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

static void drop_step(step *s) {
    free(s->q);
    free(s->pool);
    free(s->blocks);
    free(s->lists.decode);
    free(s->lists.prefill);
    free(s->lists.off);
    free(s->lists.list);
}

typedef struct form {
    int32_t act, kv, out, head_dim, heads, kv_heads, block_size, window;
} form;

static void make_step(step *s, const form *f, int32_t most_rows, int32_t most_tokens) {
    memset(s, 0, sizeof *s);
    inf_kv_shape *k = &s->args.kv;
    *k = {.layers = 1 + below(3),
          .kv_heads = f->kv_heads,
          .block_size = f->block_size,
          .head_dim = f->head_dim,
          .dtype = f->kv,
          .elem = size_of(f->kv),
          .block_bytes = 0};
    k->block_bytes = (uint64_t)k->layers * 2 * (uint64_t)k->kv_heads * (uint64_t)k->block_size *
                     (uint64_t)k->head_dim * (uint64_t)k->elem;
    s->args.act = f->act, s->args.o_dtype = f->out, s->args.heads = f->heads;
    s->args.layer = below(k->layers), s->args.window = f->window;
    s->args.scale = 1.0f / sqrtf((float)f->head_dim);
    s->shape = {.heads = f->heads,
                .kv_heads = f->kv_heads,
                .window = f->window,
                .sms = 1 + below(8),
                .decode_resident = 0,
                .prefill_resident = 0,
                .prefill_blocks = 0,
                .decode_chunk = below(2) ? 64 * (1 + below(4)) : 0,
                .prefill_chunk = below(2) ? 128 * (1 + below(2)) : 0};
    random_segments(s, most_rows, most_tokens);
    /* Small scores are an average of the values, big ones a choice of few. */
    float size = below(2) ? 1.0f : 4.0f;
    fill_pool(s, size);
    size_t n = (size_t)s->rows * (size_t)f->heads * (size_t)f->head_dim;
    s->q = (uint8_t *)get_bytes(n * (size_t)size_of(f->act));
    for (size_t i = 0; i < n; i++) {
        put(s->q, f->act, i, size * number());
    }
    make_plan(s);
    forget_passed_blocks(s);
}

/* ---- the reference: one (row, head) of a piece ---- */

static double reference(const step *s, const inf_cuda_work *w, uint32_t row, int32_t head,
                        double *o) {
    const inf_cuda_segment *g = &s->segments[w->segment];
    const inf_kv_shape *k = &s->args.kv;
    int32_t dim = k->head_dim, kv_head = head / (s->args.heads / k->kv_heads);
    static double scores[1 << 17];
    size_t q =
        ((size_t)(g->row0 + w->row0 + row) * (size_t)s->args.heads + (size_t)head) * (size_t)dim;
    int64_t pos = (int64_t)g->q_pos0 + w->row0 + row;
    double m = -INFINITY, l = 0;
    for (uint32_t t = 0; t < w->tokens; t++) {
        int64_t key = (int64_t)g->kv_pos0 + w->token0 + t;
        scores[t] = -INFINITY;
        if (key > pos || (s->args.window > 0 && key <= pos - s->args.window)) {
            continue;
        }
        const uint8_t *from = s->pool + kv_at(s, g, w->token0 + t, 0, kv_head);
        double dot = 0;
        for (int32_t d = 0; d < dim; d++) {
            dot += (double)get(s->q, s->args.act, q + (size_t)d) * get(from, k->dtype, (size_t)d);
        }
        scores[t] = dot * s->args.scale;
        m = scores[t] > m ? scores[t] : m;
    }
    for (int32_t d = 0; d < dim; d++) {
        o[d] = 0;
    }
    for (uint32_t t = 0; t < w->tokens; t++) {
        if (scores[t] == -INFINITY) {
            continue;
        }
        const uint8_t *from = s->pool + kv_at(s, g, w->token0 + t, 1, kv_head);
        double p = exp(scores[t] - m);
        l += p;
        for (int32_t d = 0; d < dim; d++) {
            o[d] += p * get(from, k->dtype, (size_t)d);
        }
    }
    for (int32_t d = 0; d < dim && l > 0; d++) {
        o[d] /= l;
    }
    return l > 0 ? m + log(l) : -INFINITY;
}

/* ---- runs and comparison ---- */

typedef struct outputs {
    uint8_t *o, *lse, *part_o, *part_lse;
} outputs;

typedef struct tolerances {
    double o, lse, seen_o,
        seen_lse; /* of the largest |o| of the row; absolute; most that was seen */
} tolerances;

static int is_nan_bytes(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] != NAN_BYTE) {
            return 0;
        }
    }
    return 1;
}

static void check_row(const step *s, const outputs *out, const inf_cuda_work *w, uint32_t row,
                      int32_t head, tolerances *tol) {
    int32_t dim = s->args.kv.head_dim;
    double want[256], most = 0, worst = 0;
    double want_lse = reference(s, w, row, head, want);
    int whole = w->part == INF_CUDA_WHOLE;
    size_t r = whole ? s->segments[w->segment].row0 + w->row0 + row : w->part + row;
    size_t i = r * (size_t)s->args.heads + (size_t)head;
    const uint8_t *o = whole ? out->o : out->part_o;
    int32_t dtype = whole ? s->args.o_dtype : (int32_t)INF_DTYPE_F32;
    float lse = ((const float *)(whole ? out->lse : out->part_lse))[i];
    for (int32_t d = 0; d < dim; d++) {
        most = fabs(want[d]) > most ? fabs(want[d]) : most;
    }
    for (int32_t d = 0; d < dim; d++) {
        double got = get(o, dtype, i * (size_t)dim + (size_t)d);
        double off = fabs(got - want[d]);
        worst = !(off <= worst) ? off : worst; /* NaN stays */
    }
    double relative = most > 0 ? worst / most : worst;
    double lse_off = want_lse == -INFINITY ? (lse == -INFINITY ? 0 : NAN) : fabs(lse - want_lse);
    tol->seen_o = relative > tol->seen_o ? relative : tol->seen_o;
    tol->seen_lse = lse_off > tol->seen_lse ? lse_off : tol->seen_lse;
    CHECK(relative <= tol->o,
          "o off by %g of %g: segment %u row %u head %d, tokens %u + %u, part %u", worst, most,
          w->segment, w->row0 + row, head, w->token0, w->tokens, w->part);
    CHECK(lse_off <= tol->lse,
          "lse %g, want %g: segment %u row %u head %d, tokens %u + %u, part %u", lse, want_lse,
          w->segment, w->row0 + row, head, w->token0, w->tokens, w->part);
}

/* Pieces of both lists; `which` says which list the kernel was given. */
static void check_outputs(const step *s, const outputs *out, const int which[2], tolerances *tol) {
    const inf_cuda_work *work[2] = {s->lists.decode, s->lists.prefill};
    int32_t n[2] = {s->lists.n_decode, s->lists.n_prefill};
    size_t row_bytes = (size_t)s->args.heads * (size_t)s->args.kv.head_dim;
    uint8_t *whole = (uint8_t *)get_bytes((size_t)s->rows);
    memset(whole, 0, (size_t)s->rows);
    for (int c = 0; c < 2; c++) {
        for (int32_t i = 0; i < n[c] && which[c]; i++) {
            const inf_cuda_work *w = &work[c][i];
            for (uint32_t r = 0; r < w->rows; r++) {
                if (w->part == INF_CUDA_WHOLE) {
                    whole[s->segments[w->segment].row0 + w->row0 + r] = 1;
                }
                for (int32_t h = 0; h < s->args.heads; h++) {
                    check_row(s, out, w, r, h, tol);
                }
            }
        }
    }
    row_bytes *= (size_t)size_of(s->args.o_dtype);
    for (int32_t r = 0; r < s->rows; r++) {
        CHECK(whole[r] || is_nan_bytes(out->o + (size_t)r * row_bytes, row_bytes),
              "row %d has no whole piece and was written", r);
    }
    free(whole);
}

typedef int (*launcher)(const inf_cuda_attn *p, int index, inf_stream stream);

static int launch_plain(const inf_cuda_attn *p, int index, inf_stream stream) {
    (void)index;
    return inf_cuda_attn_plain_launch(p, stream);
}

/* Runs the lists through a kernel on fresh outputs and checks all of it. */
static void run(const step *s, launcher launch, int index, const int which[2], tolerances *tol) {
    const inf_kv_shape *k = &s->args.kv;
    size_t heads = (size_t)s->args.heads, dim = (size_t)k->head_dim, rows = (size_t)s->rows;
    buffer q = give_copy(s->q, rows * heads * dim * (size_t)size_of(s->args.act));
    buffer pool = give_copy(s->pool, (size_t)s->pool_blocks * k->block_bytes);
    buffer blocks = give_copy(s->blocks, (size_t)s->n_blocks * 4);
    buffer segments = give_copy(s->segments, (size_t)s->n_segments * sizeof s->segments[0]);
    buffer o = give(rows * heads * dim * (size_t)size_of(s->args.o_dtype));
    buffer lse = give(rows * heads * 4);
    buffer part_o = give(s->lists.n_parts * heads * dim * 4);
    buffer part_lse = give(s->lists.n_parts * heads * 4);
    const inf_cuda_work *work[2] = {s->lists.decode, s->lists.prefill};
    int32_t n[2] = {s->lists.n_decode, s->lists.n_prefill};
    for (int c = 0; c < 2; c++) {
        if (!which[c]) {
            continue;
        }
        buffer list = give_copy(work[c], (size_t)n[c] * sizeof *work[c]);
        buffer n_work = give_copy(&n[c], 4);
        inf_cuda_attn a = s->args;
        a.q = at<void>(q), a.pool = at<uint8_t>(pool), a.blocks = at<int32_t>(blocks);
        a.segments = at<inf_cuda_segment>(segments), a.work = at<inf_cuda_work>(list);
        a.n_work = at<int32_t>(n_work), a.o = at<void>(o), a.lse = at<float>(lse);
        a.part_o = at<float>(part_o), a.part_lse = at<float>(part_lse);
        /* fewer blocks than pieces: each takes several; more: some have none */
        a.max_work = below(2) ? 1 + below(n[c] + 1) : n[c] + below(3);
        int error = launch(&a, index, NULL);
        CHECK(error == 0, "launch: error %d", error);
        CUDA(cudaDeviceSynchronize());
        free(take(list));
        free(take(n_work));
    }
    free(take(q));
    free(take(pool));
    free(take(blocks));
    free(take(segments));
    outputs out = {take(o), take(lse), take(part_o), take(part_lse)};
    check_outputs(s, &out, which, tol);
    free(out.o);
    free(out.lse);
    free(out.part_o);
    free(out.part_lse);
}

/* ---- groups of cases ---- */

static const char *name_of(int32_t dtype) {
    return dtype == INF_DTYPE_F32 ? "f32" : dtype == INF_DTYPE_BF16 ? "bf16" : "f16";
}

static int32_t one_of(const int32_t *list, int32_t n) { return list[below(n)]; }

static const int32_t heads_of[][2] = {{4, 1}, {8, 2}, {2, 2}, {3, 1}, {16, 1}, {6, 2}, {7, 1}};

static form random_form(int32_t act, int32_t kv, int32_t out, int32_t head_dim) {
    int32_t h = below(7);
    static const int32_t windows[] = {0, 0, 1, 7, 33, 100, 1000};
    return {act, kv, out, head_dim, heads_of[h][0], heads_of[h][1], 0, one_of(windows, 7)};
}

static void test_plain(int32_t act, int32_t kv, int32_t out) {
    static const int32_t dims[] = {16, 64, 80, 128, 256, 30, 5}, blocks[] = {1, 5, 8, 16, 24, 64};
    static const int both[2] = {1, 1};
    double o = out == INF_DTYPE_F32 ? 2e-5 : out == INF_DTYPE_F16 ? 6e-4 : 5e-3;
    tolerances tol = {o, 1e-4, 0, 0};
    int before = failures;
    for (int32_t i = 0; i < ROUNDS / 5; i++) {
        static step s;
        form f = random_form(act, kv, out, one_of(dims, 7));
        f.block_size = one_of(blocks, 6);
        make_step(&s, &f, MOST_ROWS / 4, MOST_TOKENS / 2);
        run(&s, launch_plain, 0, both, &tol);
        drop_step(&s);
    }
    printf("plain, act %s, KV %s, out %s: o to %.1e, lse to %.1e%s\n", name_of(act), name_of(kv),
           name_of(out), tol.seen_o, tol.seen_lse, failures > before ? " FAILED" : "");
}

static void test_decode(int32_t act, int32_t head_dim, int variant) {
    static const int32_t blocks[] = {8, 16, 16, 24, 32, 64, 128};
    static const int decode_only[2] = {1, 0};
    tolerances tol = {1e-2, 1e-3, 0, 0};
    int before = failures;
    inf_cuda_decode_variant v = {};
    int32_t pieces = 0;
    for (int32_t i = 0; i < ROUNDS; i++) {
        static step s;
        int32_t out = below(2) ? act : (int32_t)INF_DTYPE_F32;
        form f = random_form(act, act, out, head_dim);
        f.block_size = one_of(blocks, 7);
        int32_t most = INF_CUDA_DECODE_ROWS / (f.heads / f.kv_heads);
        make_step(&s, &f, most + 2, MOST_TOKENS);
        CHECK(inf_cuda_attn_decode_takes(&s.args) == 1, "not taken");
        CHECK(inf_cuda_decode_variant_of(&s.args, variant, &v) == 0, "no variant %d", variant);
        if (v.resident > 0) {
            run(&s, inf_cuda_decode_variant_launch, variant, decode_only, &tol);
            pieces += s.lists.n_decode;
        }
        drop_step(&s);
    }
    printf("decode %s, head_dim %d, %s (%d registers, %d bytes, %d per SM): %d pieces, o to %.1e, "
           "lse to %.1e%s\n",
           name_of(act), head_dim, v.name, v.registers, v.shared, v.resident, pieces, tol.seen_o,
           tol.seen_lse,
           failures > before ? " FAILED"
           : v.resident == 0 ? ", cannot run here"
                             : "");
}

/* One request, its last token, long enough that every ring wraps many times. */
static void test_long(int variant) {
    static step s;
    static const int decode_only[2] = {1, 0};
#ifdef INF_EMU
    const uint32_t tokens = 3001;
#else
    const uint32_t tokens = 100001;
#endif
    tolerances tol = {1e-2, 1e-3, 0, 0};
    form f = {INF_DTYPE_BF16, INF_DTYPE_BF16, INF_DTYPE_BF16, 128, 4, 1, 16, 0};
    make_step(&s, &f, 1, 1);
    drop_step(&s);
    s.segments[0] = {0, 1, tokens - 1, 0, tokens, 0};
    s.n_segments = 1, s.rows = 1;
    s.n_blocks = (int32_t)((tokens + 15) / 16);
    fill_pool(&s, 1.0f);
    s.q = (uint8_t *)get_bytes(4 * 128 * 2);
    for (size_t i = 0; i < 4 * 128; i++) {
        put(s.q, INF_DTYPE_BF16, i, 3.0f * number());
    }
    s.shape.decode_chunk = variant % 2 == 0 ? 1 << 20 : 0; /* in one piece, or cut */
    make_plan(&s);
    inf_cuda_decode_variant v = {};
    CHECK(inf_cuda_decode_variant_of(&s.args, variant, &v) == 0, "no variant");
    if (v.resident > 0) {
        run(&s, inf_cuda_decode_variant_launch, variant, decode_only, &tol);
    }
    printf("decode, one row of %u tokens in %d pieces, %s: o to %.1e, lse to %.1e\n", tokens,
           s.lists.n_decode, v.name, tol.seen_o, tol.seen_lse);
    drop_step(&s);
}

static void test_refusals(void) {
    static step s;
    form f = {INF_DTYPE_BF16, INF_DTYPE_BF16, INF_DTYPE_BF16, 128, 4, 1, 16, 0};
    make_step(&s, &f, 1, 50);
    inf_cuda_attn bad[9];
    for (int i = 0; i < 9; i++) {
        bad[i] = s.args;
    }
    bad[0].act = INF_DTYPE_F16;
    bad[1].kv.head_dim = 96;
    bad[2].kv.block_size = 12;
    bad[3].heads = 17;
    bad[4].layer = bad[4].kv.layers;
    bad[5].kv.kv_heads = 3;
    bad[6].o_dtype = 7;
    bad[7].window = -1;
    bad[8].kv.elem = 4;
    for (int i = 0; i < 9; i++) {
        CHECK(!inf_cuda_attn_decode_takes(&bad[i]), "shape %d taken", i);
        CHECK(inf_cuda_attn_decode_launch(&bad[i], NULL) != 0, "shape %d launched", i);
        CHECK(i < 4 || inf_cuda_attn_plain_launch(&bad[i], NULL) != 0, "shape %d launched", i);
    }
    bad[0] = s.args;
    bad[0].kv.head_dim = 257;
    CHECK(inf_cuda_attn_plain_launch(&bad[0], NULL) != 0, "head_dim 257 launched");
    CHECK(inf_cuda_decode_variant_launch(&s.args, inf_cuda_decode_variants(), NULL) != 0,
          "a variant too many");
    drop_step(&s);
}

int main(int argc, char **argv) {
    uint64_t number_of_seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)number_of_seed);
    seed(number_of_seed);
    static const int32_t formats[] = {INF_DTYPE_F32, INF_DTYPE_BF16, INF_DTYPE_F16};
    test_refusals();
    for (int a = 0; a < 3; a++) {
        test_plain(formats[a], INF_DTYPE_F32, INF_DTYPE_F32);
        test_plain(formats[a], INF_DTYPE_BF16, formats[a]);
        test_plain(formats[a], INF_DTYPE_F16, formats[a]);
    }
    for (int v = 0; v < inf_cuda_decode_variants(); v++) {
        for (int a = 1; a < 3; a++) {
            test_decode(formats[a], 128, v);
            test_decode(formats[a], 64, v);
        }
        test_long(v);
    }
    return report("attention");
}
