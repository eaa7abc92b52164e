/* Prefill attention, every variant that runs here, against a double reference: the pieces of plans
 * over random segments (ragged rows, spans that share rows, windows, groups, block tables in random
 * order), and pieces cut by hand. What no kernel may read is NaN: unused blocks, tokens that no row
 * sees. What no kernel may write stays NaN: rows without a whole piece, guards. */
#include "kernels/cuda/attention_prefill.h"

#ifdef INF_EMU
enum { ROUNDS = 12, MOST_TOKENS = 300, MOST_ROWS = 120, MOST_REQUESTS = 3, CHECKED = 1 << 20 };
#else
enum { ROUNDS = 40, MOST_TOKENS = 3000, MOST_ROWS = 400, MOST_REQUESTS = 8, CHECKED = 64 };
#endif

#include "tests/cuda/attention_rows.h"

static const int32_t BOTH_FORMATS[2] = {INF_DTYPE_BF16, INF_DTYPE_F16};

/* A piece's list with a reference of some of its rows. */
typedef struct pieces {
    std::vector<inf_cuda_work> work;
    uint32_t parts;
    std::vector<wanted> want;
} pieces;

static void pick_rows(const step *s, pieces *p) {
    size_t total = 0;
    for (const inf_cuda_work &w : p->work) {
        total += w.rows * (size_t)s->args.heads;
    }
    int32_t every = (int32_t)(total / CHECKED) + 1;
    for (const inf_cuda_work &w : p->work) {
        for (uint32_t r = 0; r < w.rows; r++) {
            for (int32_t h = 0; h < s->args.heads; h++) {
                if (below(every) == 0) {
                    p->want.push_back({&w, r, h, 0, {}});
                }
            }
        }
    }
    compute_all(s, p->want);
}

/* All rows are written whole and finite, and the picked ones compared. */
static void check_outputs(const step *s, const outputs *out, const pieces &p, tolerances *tol) {
    size_t dim = (size_t)s->args.kv.head_dim, heads = (size_t)s->args.heads;
    std::vector<uint8_t> whole((size_t)s->rows, 0);
    int32_t bad = 0;
    for (const inf_cuda_work &w : p.work) {
        for (uint32_t r = 0; r < w.rows; r++) {
            int is_whole = w.part == INF_CUDA_WHOLE;
            size_t at = is_whole ? s->segments[w.segment].row0 + w.row0 + r : w.part + r;
            if (is_whole) {
                whole[at] = 1;
            }
            for (size_t i = at * heads * dim; i < (at + 1) * heads * dim; i++) {
                double x = is_whole ? number_at(out->o, s->args.o_dtype, i)
                                    : number_at(out->part_o, INF_DTYPE_F32, i);
                bad += !isfinite(x);
            }
        }
    }
    CHECK(bad == 0, "%d numbers are not finite", bad);
    for (const wanted &x : p.want) {
        check_row(s, out, x, tol);
    }
    check_unwritten(s, out, whole);
}

/* Variant DEFAULT is the launcher that chooses one. */
enum { DEFAULT = -1 };

static int launch(const inf_cuda_attn *a, int variant) {
    return variant == DEFAULT ? inf_cuda_attn_prefill_launch(a, NULL)
                              : inf_cuda_prefill_variant_launch(a, variant, NULL);
}

/* Runs pieces through a kernel on fresh outputs and checks all of it. */
static void run(const step *s, int variant, const pieces &p, tolerances *tol) {
    const inf_kv_shape *k = &s->args.kv;
    size_t heads = (size_t)s->args.heads, dim = (size_t)k->head_dim, rows = (size_t)s->rows;
    guarded q = guard_copy(s->q, rows * heads * dim * format_size(s->args.act));
    guarded pool = guard_copy(s->pool, (size_t)s->pool_blocks * k->block_bytes);
    guarded blocks = guard_copy(s->blocks, (size_t)s->n_blocks * 4);
    guarded segments = guard_copy(s->segments, (size_t)s->n_segments * sizeof s->segments[0]);
    guarded o = guard(rows * heads * dim * format_size(s->args.o_dtype));
    guarded lse = guard(rows * heads * 4);
    guarded part_o = guard(p.parts * heads * dim * 4);
    guarded part_lse = guard(p.parts * heads * 4);
    guarded list = guard_copy(p.work);
    int32_t n = (int32_t)p.work.size();
    guarded n_work = guard_copy(&n, 4);
    inf_cuda_attn a = s->args;
    a.q = q.as<void>(), a.pool = pool.as<uint8_t>(), a.blocks = blocks.as<int32_t>();
    a.segments = segments.as<inf_cuda_segment>(), a.work = list.as<inf_cuda_work>();
    a.n_work = n_work.as<int32_t>(), a.o = o.as<void>(), a.lse = lse.as<float>();
    a.part_o = part_o.as<float>(), a.part_lse = part_lse.as<float>();
    /* fewer than pieces: each block takes several; more: some have none */
    a.max_work = below(2) ? 1 + below(n + 1) : n + below(3);
    a.wgmma = k->dtype == INF_DTYPE_E4M3; /* asked for, and not taken */
    a.early = below(2);
    int error = launch(&a, variant);
    CHECK(error == 0, "launch: error %d", error);
    for (const guarded &g : {list, n_work, q, pool, blocks, segments}) {
        (void)take(g);
    }
    outputs out = {take(o), take(lse), take(part_o), take(part_lse)};
    check_outputs(s, &out, p, tol);
    tol->pieces += n;
}

/* Pieces of both of the plan's lists: those of decode are small pieces here. */
static pieces planned(const step *s) {
    pieces p;
    p.work.assign(s->lists.prefill, s->lists.prefill + s->lists.n_prefill);
    p.work.insert(p.work.end(), s->lists.decode, s->lists.decode + s->lists.n_decode);
    p.parts = s->lists.n_parts;
    pick_rows(s, &p);
    return p;
}

/* Any rows of a segment against any of its keys, from a multiple of 16. Rows that see none, and
 * pieces without keys, are among them. */
static pieces by_hand(const step *s) {
    pieces p;
    p.parts = 0;
    for (uint32_t i = 0; i < (uint32_t)s->n_segments; i++) {
        const inf_cuda_segment *g = &s->segments[i];
        uint32_t row0 = (uint32_t)below((int32_t)g->rows), most = g->rows - row0; /* at most 128 */
        most = most > 128 ? 128 : most;
        uint32_t rows = 1 + (uint32_t)below((int32_t)most);
        int64_t first = (int64_t)g->q_pos0 + row0 - g->kv_pos0 - s->args.window + 1;
        first = s->args.window > 0 && first > 0 ? first / 16 : 0;
        uint32_t units = g->n_tokens / 16, token0 = (uint32_t)first;
        token0 += units > token0 ? (uint32_t)below((int32_t)(units - token0)) : 0;
        token0 = token0 > units ? 0 : token0 * 16;
        uint32_t left = g->n_tokens - token0,
                 tokens = left > 0 ? (uint32_t)below((int32_t)left + 1) : 0;
        p.work.push_back({i, row0, rows, token0, tokens, p.parts});
        p.parts += rows;
    }
    pick_rows(s, &p);
    return p;
}

static const int32_t heads_of[][2] = {{4, 1}, {8, 2}, {2, 2}, {3, 1},
                                      {8, 1}, {6, 2}, {7, 1}, {1, 1}};

static int only; /* the variant under test */

/* What it is; whether it runs here for this shape. */
static bool about(const step *s, inf_cuda_prefill_variant *v) {
    memset(v, 0, sizeof *v);
    if (only == DEFAULT) {
        snprintf(v->name, sizeof v->name, "what the launcher takes");
        v->resident = 1;
    } else {
        CHECK(inf_cuda_prefill_variant_of(&s->args, only, v) == 0, "no variant %d", only);
    }
    return v->resident > 0;
}

static void print_way(const inf_cuda_prefill_variant &v, const tolerances &tol) {
    printf("  %-24s (%d registers, %d bytes, %d spilled, %d per SM): %d pieces, %d rows compared, "
           "o to %.1e, "
           "lse to %.1e%s\n",
           v.name, v.registers, v.shared, v.local, v.resident, tol.pieces, tol.rows, tol.seen_o,
           tol.seen_lse, tol.seen_o <= tol.o && tol.seen_lse <= tol.lse ? "" : " FAILED");
    fflush(stdout);
}

static void test_random(int32_t act, int32_t kv, int32_t head_dim) {
    static const int32_t windows[] = {0, 0, 0, 1, 7, 33, 100, 1000};
    static const int32_t blocks[] = {16, 32, 16, 64, 16, 8, 24};
    tolerances tol = {act == INF_DTYPE_BF16 ? 1e-2 : 2e-3, 1e-3, 0, 0, 0, 0};
    inf_cuda_prefill_variant v = {};
    for (int32_t i = 0; i < (brief() ? 2 : ROUNDS); i++) {
        static step s;
        int32_t h = below(8), out = below(2) ? act : (int32_t)INF_DTYPE_F32;
        form f = {act,
                  kv,
                  out,
                  head_dim,
                  heads_of[h][0],
                  heads_of[h][1],
                  blocks[below(7)],
                  windows[below(8)],
                  only != INF_CUDA_PREFILL_WGMMA && below(3) == 0 ? 3.0f : 0.0f};
#ifdef INF_EMU
        int32_t most_rows = i == 0 ? 300 / f.heads : MOST_ROWS / f.heads + 1;
#else
        int32_t most_rows = MOST_ROWS;
#endif
        make_step(&s, &f, most_rows, MOST_TOKENS);
        CHECK(inf_cuda_attn_prefill_takes(&s.args) == 1, "not taken");
        if (about(&s, &v)) {
            run(&s, only, planned(&s), &tol);
            run(&s, only, by_hand(&s), &tol);
        }
        drop_step(&s);
    }
    printf("%s, KV %s, head_dim %d, random segments\n", format_name(act), format_name(kv),
           head_dim);
    print_way(v, tol);
}

/* One prompt, its keys partly in front, in full pieces. */
static void test_prompt(uint32_t rows, uint32_t before_it, int32_t head_dim, int32_t heads,
                        int32_t kv_heads, int32_t kv) {
    static step s;
    form f = {INF_DTYPE_BF16, kv, INF_DTYPE_BF16, head_dim, heads, kv_heads, 16, 0, 0};
    make_step(&s, &f, 1, 1);
    drop_step(&s);
    uint32_t tokens = before_it + rows;
    s.segments[0] = {0, rows, before_it, 0, tokens, 0};
    s.n_segments = 1, s.rows = (int32_t)rows;
    s.n_blocks = (int32_t)((tokens + 15) / 16);
    fill_pool(&s, 1.0f);
    size_t n = (size_t)rows * (size_t)heads * (size_t)head_dim;
    s.q = (uint8_t *)get_bytes(n * 2);
    for (size_t i = 0; i < n; i++) {
        put(s.q, INF_DTYPE_BF16, i, 3.0f * number());
    }
    s.shape.decode_chunk = 0, s.shape.prefill_chunk = 1 << 20;
    make_plan(&s);
    pieces plan = planned(&s);
    printf("prompt of %u rows behind %u, head_dim %d, heads %d / %d, KV %s\n", rows, before_it,
           head_dim, heads, kv_heads, format_name(kv));
    inf_cuda_prefill_variant v;
    tolerances tol = {1e-2, 1e-3, 0, 0, 0, 0};
    if (about(&s, &v)) {
        run(&s, only, plan, &tol);
    }
    print_way(v, tol);
    drop_step(&s);
}

static void test_prompts(int32_t kv) {
#ifdef INF_EMU
    test_prompt(70, 50, 128, 4, 1, kv);
    test_prompt(200, 100, 64, 1, 1, kv);
#else
    if (!brief()) {
        test_prompt(1024, 0, 128, 32, 8, kv);
        test_prompt(2000, 3001, 128, 8, 1, kv);
        test_prompt(512, 20000, 128, 4, 4, kv);
        test_prompt(1000, 1000, 64, 8, 2, kv);
    }
#endif
}

static void test_refusals(void) {
    static step s;
    form f = {INF_DTYPE_BF16, INF_DTYPE_BF16, INF_DTYPE_BF16, 128, 4, 1, 16, 0, 0};
    make_step(&s, &f, 1, 50);
    inf_cuda_attn bad[9];
    for (int i = 0; i < 9; i++) {
        bad[i] = s.args;
    }
    bad[0].act = INF_DTYPE_F16;
    bad[1].kv.head_dim = 96;
    bad[2].kv.block_size = 12;
    bad[3].scale = 0.0f;
    bad[4].layer = bad[4].kv.layers;
    bad[5].kv.kv_heads = 3;
    bad[6].o_dtype = 7;
    bad[7].window = -1;
    bad[8].kv.block_bytes += 16;
    for (int i = 0; i < 9; i++) {
        CHECK(!inf_cuda_attn_prefill_takes(&bad[i]), "shape %d taken", i);
        CHECK(inf_cuda_attn_prefill_launch(&bad[i], NULL) != 0, "shape %d launched", i);
    }
    CHECK(inf_cuda_prefill_variant_launch(&s.args, INF_CUDA_PREFILL_VARIANTS, NULL) != 0,
          "one too many");
    drop_step(&s);
    f.kv = INF_DTYPE_E4M3;
    make_step(&s, &f, 1, 50);
    inf_cuda_prefill_variant v;
    CHECK(inf_cuda_attn_prefill_takes(&s.args) &&
              inf_cuda_prefill_variant_of(&s.args, INF_CUDA_PREFILL_WGMMA, &v) != 0,
          "wgmma on e4m3");
    drop_step(&s);
    f.kv = INF_DTYPE_BF16;
    f.softcap = 30;
    make_step(&s, &f, 1, 50);
    CHECK(inf_cuda_attn_prefill_takes(&s.args) &&
              inf_cuda_prefill_variant_of(&s.args, INF_CUDA_PREFILL_WGMMA, &v) != 0,
          "wgmma with a softcap");
    drop_step(&s);
}

int main(int argc, char **argv) {
    start(argc, argv);
    fflush(stdout); /* the seed is known even if a kernel does not end */
    test_refusals();
    /* One after another, so that the others are heard of when one does not end. */
    int first = argc > 2 ? atoi(argv[2]) : DEFAULT,
        last = argc > 2 ? first : INF_CUDA_PREFILL_VARIANTS - 1;
    for (only = first; only <= last; only++) {
        for (int32_t act : BOTH_FORMATS) {
            test_random(act, act, 128);
            test_random(act, act, 64);
        }
        test_prompts(INF_DTYPE_BF16);
        if (only != INF_CUDA_PREFILL_WGMMA) {
            for (int32_t act : BOTH_FORMATS) {
                test_random(act, INF_DTYPE_E4M3, 128);
                test_random(act, INF_DTYPE_E4M3, 64);
            }
            test_prompts(INF_DTYPE_E4M3);
        }
    }
    return report("prefill");
}
