/* Attention for any format and decode attention, against a double reference of every piece of a
 * plan: random segments, windows, spans that share rows, block tables in random order. What no
 * kernel may read is NaN: unused blocks, tokens behind the end of a segment, keys before a window's
 * block. What no kernel may write stays NaN: rows without a whole piece, parts beyond the last,
 * guards. */
#include "kernels/cuda/attention_decode.h"

#ifdef INF_EMU
enum { ROUNDS = 8, MOST_TOKENS = 400, MOST_ROWS = 40, MOST_REQUESTS = 4 };
#else
enum { ROUNDS = 200, MOST_TOKENS = 6000, MOST_ROWS = 300, MOST_REQUESTS = 12 };
#endif

#include "tests/cuda/attention_step.h"

/* ---- runs and comparison ---- */

typedef struct outputs {
    std::vector<uint8_t> o, lse, part_o, part_lse;
} outputs;

typedef struct tolerances {
    double o, lse, seen_o,
        seen_lse; /* of the largest |o| of the row; absolute; most that was seen */
} tolerances;

static int is_nan_bytes(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] != UNWRITTEN) {
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
    const std::vector<uint8_t> &o = whole ? out->o : out->part_o;
    int32_t dtype = whole ? s->args.o_dtype : (int32_t)INF_DTYPE_F32;
    double lse = number_at(whole ? out->lse : out->part_lse, INF_DTYPE_F32, i);
    for (int32_t d = 0; d < dim; d++) {
        most = fabs(want[d]) > most ? fabs(want[d]) : most;
    }
    for (int32_t d = 0; d < dim; d++) {
        double got = number_at(o, dtype, i * (size_t)dim + (size_t)d);
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
    row_bytes *= format_size(s->args.o_dtype);
    for (int32_t r = 0; r < s->rows; r++) {
        CHECK(whole[r] || is_nan_bytes(&out->o[(size_t)r * row_bytes], row_bytes),
              "row %d has no whole piece and was written", r);
    }
    free(whole);
}

typedef int (*launcher)(const inf_cuda_attn *p, int index, inf_stream stream);

/* Variant DEFAULT is the launcher that chooses one. */
enum { DEFAULT = -1 };
static int launch_decode(const inf_cuda_attn *p, int index, inf_stream stream) {
    return index == DEFAULT ? inf_cuda_attn_decode_launch(p, stream)
                            : inf_cuda_decode_variant_launch(p, index, stream);
}

static int launch_plain(const inf_cuda_attn *p, int index, inf_stream stream) {
    (void)index;
    return inf_cuda_attn_plain_launch(p, stream);
}

/* Runs the lists through a kernel on fresh outputs and checks all of it. */
static void run(const step *s, launcher launch, int index, const int which[2], tolerances *tol) {
    const inf_kv_shape *k = &s->args.kv;
    size_t heads = (size_t)s->args.heads, dim = (size_t)k->head_dim, rows = (size_t)s->rows;
    guarded q = guard_copy(s->q, rows * heads * dim * format_size(s->args.act));
    guarded pool = guard_copy(s->pool, (size_t)s->pool_blocks * k->block_bytes);
    guarded blocks = guard_copy(s->blocks, (size_t)s->n_blocks * 4);
    guarded segments = guard_copy(s->segments, (size_t)s->n_segments * sizeof s->segments[0]);
    guarded o = guard(rows * heads * dim * format_size(s->args.o_dtype));
    guarded lse = guard(rows * heads * 4);
    guarded part_o = guard(s->lists.n_parts * heads * dim * 4);
    guarded part_lse = guard(s->lists.n_parts * heads * 4);
    const inf_cuda_work *work[2] = {s->lists.decode, s->lists.prefill};
    int32_t n[2] = {s->lists.n_decode, s->lists.n_prefill};
    for (int c = 0; c < 2; c++) {
        if (!which[c]) {
            continue;
        }
        guarded list = guard_copy(work[c], (size_t)n[c] * sizeof *work[c]);
        guarded n_work = guard_copy(&n[c], 4);
        inf_cuda_attn a = s->args;
        a.q = q.as<void>(), a.pool = pool.as<uint8_t>(), a.blocks = blocks.as<int32_t>();
        a.segments = segments.as<inf_cuda_segment>(), a.work = list.as<inf_cuda_work>();
        a.n_work = n_work.as<int32_t>(), a.o = o.as<void>(), a.lse = lse.as<float>();
        a.part_o = part_o.as<float>(), a.part_lse = part_lse.as<float>();
        /* fewer blocks than pieces: each takes several; more: some have none */
        a.max_work = below(2) ? 1 + below(n[c] + 1) : n[c] + below(3);
        int error = launch(&a, index, NULL);
        CHECK(error == 0, "launch: error %d", error);
        (void)take(list);
        (void)take(n_work);
    }
    (void)take(q);
    (void)take(pool);
    (void)take(blocks);
    (void)take(segments);
    outputs out = {take(o), take(lse), take(part_o), take(part_lse)};
    check_outputs(s, &out, which, tol);
}

/* ---- groups of cases ---- */

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
    printf("plain, act %s, KV %s, out %s: o to %.1e, lse to %.1e%s\n", format_name(act),
           format_name(kv), format_name(out), tol.seen_o, tol.seen_lse,
           failures > before ? " FAILED" : "");
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
        if (variant == DEFAULT) {
            snprintf(v.name, sizeof v.name, "what the launcher takes");
            v.resident = 1;
        } else {
            CHECK(inf_cuda_decode_variant_of(&s.args, variant, &v) == 0, "no variant %d", variant);
        }
        if (v.resident > 0) {
            run(&s, launch_decode, variant, decode_only, &tol);
            pieces += s.lists.n_decode;
        }
        drop_step(&s);
    }
    printf("decode %s, head_dim %d, %s (%d registers, %d bytes, %d per SM): %d pieces, o to %.1e, "
           "lse to %.1e%s\n",
           format_name(act), head_dim, v.name, v.registers, v.shared, v.resident, pieces,
           tol.seen_o, tol.seen_lse,
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
        run(&s, launch_decode, variant, decode_only, &tol);
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
    start(argc, argv);
    static const int32_t formats[] = {INF_DTYPE_F32, INF_DTYPE_BF16, INF_DTYPE_F16};
    test_refusals();
    for (int a = 0; a < 3; a++) {
        test_plain(formats[a], INF_DTYPE_F32, INF_DTYPE_F32);
        test_plain(formats[a], INF_DTYPE_BF16, formats[a]);
        test_plain(formats[a], INF_DTYPE_F16, formats[a]);
    }
    for (int v = DEFAULT; v < inf_cuda_decode_variants(); v++) {
        for (int a = 1; a < 3; a++) {
            test_decode(formats[a], 128, v);
            test_decode(formats[a], 64, v);
        }
        if (v >= 0) {
            test_long(v);
        }
    }
    return report("attention");
}
