/* Attention for any format and decode attention, against a double reference of every piece of a
 * plan: random segments, windows, spans that share rows, block tables in random order. What no
 * kernel may read is NaN: unused blocks, tokens behind the end of a segment, keys before a window's
 * block. What no kernel may write stays NaN: rows without a whole piece, parts beyond the last,
 * guards. */
#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/decode_cuts.h"

#ifdef INF_EMU
enum { ROUNDS = 24, MOST_TOKENS = 400, MOST_ROWS = 40, MOST_REQUESTS = 4 };
#else
enum { ROUNDS = 25, MOST_TOKENS = 2000, MOST_ROWS = 200, MOST_REQUESTS = 6 };
#endif

#include "tests/cuda/attention_check.h"

/* A row's parts, merged in double: o [head_dim] and lse of one head. */
static double merged(const step *s, const outputs *parts, size_t row, size_t head,
                     std::vector<double> *o) {
    size_t heads = (size_t)s->args.heads, dim = (size_t)s->args.kv.head_dim;
    double most = -INFINITY, sum = 0;
    o->assign(dim, 0);
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = s->lists.off[row]; i < s->lists.off[row + 1]; i++) {
            size_t at = (size_t)s->lists.list[i] * heads + head;
            double lse = number_at(parts->part_lse, INF_DTYPE_F32, at);
            if (pass == 0) {
                most = lse > most ? lse : most;
                continue;
            }
            double weight = most == -INFINITY ? 0 : exp(lse - most);
            sum += weight;
            for (size_t d = 0; d < dim; d++) {
                (*o)[d] += weight * number_at(parts->part_o, INF_DTYPE_F32, at * dim + d);
            }
        }
    }
    for (size_t d = 0; d < dim; d++) {
        (*o)[d] = sum > 0 ? (*o)[d] / sum : 0;
    }
    return sum > 0 ? most + log(sum) : -INFINITY;
}

/* The same list again, and the last piece of a row merges: against the parts of the run before. */
static void run_merging(const step *s, const uploaded &u, int index, const outputs &parts,
                        tolerances *tol) {
    size_t heads = (size_t)s->args.heads, dim = (size_t)s->args.kv.head_dim;
    size_t rows = (size_t)s->rows, kv_heads = (size_t)s->args.kv.kv_heads;
    int32_t n = s->lists.n_decode;
    std::vector<uint32_t> zeros(rows * kv_heads, 0);
    guarded list = guard_list(s->lists.decode, n);
    guarded n_work = guard_copy(&n, 4), done = guard_copy(zeros);
    guarded off = guard_copy(s->lists.off, (rows + 1) * 4);
    guarded rows_of = guard_copy(s->lists.list, (size_t)s->lists.n_parts * 4);
    guarded o = guard(rows * heads * dim * format_size(s->args.o_dtype));
    guarded lse = guard(rows * heads * 4), part_o = guard(parts.part_o.size());
    guarded part_lse = guard(parts.part_lse.size());
    inf_cuda_attn a = s->args;
    a.q = u.q.p(), a.pool = u.pool.as<uint8_t>(), a.blocks = u.blocks.as<int32_t>();
    a.segments = u.segments.as<inf_cuda_segment>(), a.work = list.as<inf_cuda_work>();
    a.n_work = n_work.as<int32_t>(), a.o = o.p(), a.lse = lse.as<float>();
    a.part_o = part_o.as<float>(), a.part_lse = part_lse.as<float>();
    a.done = done.as<uint32_t>(), a.off = off.as<uint32_t>(), a.list = rows_of.as<uint32_t>();
    a.max_work = n + below(MORE_PIECES + 1);
    CHECK(launch_decode(&a, index, NULL) == 0, "launch");
    for (const guarded &g : {list, n_work, off, rows_of, part_o, part_lse}) {
        (void)take(g);
    }
    std::vector<uint8_t> left = take(done), got_o = take(o), got_lse = take(lse);
    CHECK(memcmp(left.data(), zeros.data(), left.size()) == 0, "counts are left");
    std::vector<uint8_t> mine(rows, 0);
    for (int32_t i = 0; i < n; i++) {
        const inf_cuda_work *w = &s->lists.decode[i];
        for (uint32_t r = 0; w->part != INF_CUDA_WHOLE && r < w->rows; r++) {
            mine[s->segments[w->segment].row0 + w->row0 + r] = 1;
        }
    }
    std::vector<double> want;
    for (size_t i = 0; i < rows * heads; i++) {
        if (!mine[i / heads]) {
            continue;
        }
        double want_lse = merged(s, &parts, i / heads, i % heads, &want), most = 1e-3, worst = 0;
        double lse_is = number_at(got_lse, INF_DTYPE_F32, i);
        double lse_off =
            want_lse == -INFINITY ? (lse_is == -INFINITY ? 0 : NAN) : fabs(lse_is - want_lse);
        for (size_t d = 0; d < dim; d++) {
            double off_by = fabs(number_at(got_o, s->args.o_dtype, i * dim + d) - want[d]);
            most = fmax(most, fabs(want[d]));
            worst = !(off_by <= worst) ? off_by : worst;
        }
        CHECK(worst <= tol->o * most && lse_off <= 1e-4,
              "row %zu head %zu merged: o off by %g of %g, lse by %g", i / heads, i % heads, worst,
              most, lse_off);
    }
}

/* ---- groups of cases ---- */

static int32_t one_of(const int32_t *list, int32_t n) { return list[below(n)]; }

static const int32_t heads_of[][2] = {{4, 1},  {8, 2}, {2, 2}, {3, 1},
                                      {16, 1}, {6, 2}, {7, 1}, {8, 1}};

static form random_form(int32_t act, int32_t kv, int32_t out, int32_t head_dim) {
    int32_t h = below(8);
    static const int32_t windows[] = {0, 0, 1, 7, 33, 100, 1000};
    return {act,
            kv,
            out,
            head_dim,
            heads_of[h][0],
            heads_of[h][1],
            0,
            one_of(windows, 7),
            below(3) == 0 ? (below(2) ? 2.0f : 50.0f) : 0.0f};
}

static int32_t rounds() { return brief() ? 1 : (int32_t)ROUNDS; }

static void test_plain(int32_t act, int32_t kv, int32_t out) {
    static const int32_t dims[] = {16, 64, 80, 128, 256, 30, 5}, blocks[] = {1, 5, 8, 16, 24, 64};
    double o = out == INF_DTYPE_F32 ? 2e-5 : out == INF_DTYPE_F16 ? 6e-4 : 5e-3;
    tolerances tol = {o, 1e-4, 0, 0};
    int before = failures;
    for (int32_t i = 0; i < rounds() / 4 + 1; i++) {
        static step s;
        form f = random_form(act, kv, out, one_of(dims, 7));
        f.block_size = one_of(blocks, 6);
        make_step(&s, &f, MOST_ROWS / 4, MOST_TOKENS / 2);
        const inf_cuda_work *work[2] = {s.lists.decode, s.lists.prefill};
        int32_t n[2] = {s.lists.n_decode, s.lists.n_prefill};
        uploaded u = upload(&s);
        for (int c = 0; c < 2; c++) {
            run(&s, u, launch_plain, 0, work[c], n[c], reference(&s, work[c], n[c]), &tol);
        }
        drop(u);
        drop_step(&s);
    }
    printf("plain, act %s, KV %s, out %s: o to %.1e, lse to %.1e%s\n", format_name(act),
           format_name(kv), format_name(out), tol.seen_o, tol.seen_lse,
           failures > before ? " FAILED" : "");
}

/* What every variant did in a group of cases. */
struct variant_log {
    inf_cuda_decode_variant about;
    tolerances tol;
    int32_t pieces, failures;
};
enum { MOST_VARIANTS = 16 };

static void run_variants(const step *s, variant_log *logs) {
    std::vector<wanted> want = reference(s, s->lists.decode, s->lists.n_decode);
    uploaded u = upload(s);
    CHECK(inf_cuda_attn_decode_takes(&s->args) == 1, "not taken");
    for (int v = DEFAULT; v < inf_cuda_decode_variants() && v + 1 < MOST_VARIANTS; v++) {
        variant_log *log = &logs[v + 1];
        snprintf(log->about.name, sizeof log->about.name, "what the launcher takes");
        log->about.resident = 1;
        if (v != DEFAULT) {
            CHECK(inf_cuda_decode_variant_of(&s->args, v, &log->about) == 0, "no variant %d", v);
        }
        log->tol.o = 1e-2, log->tol.lse = 1e-3;
        if (log->about.resident > 0) {
            int before = failures;
            outputs out =
                run(s, u, launch_decode, v, s->lists.decode, s->lists.n_decode, want, &log->tol);
            run_merging(s, u, v, out, &log->tol);
            log->pieces += s->lists.n_decode;
            log->failures += failures - before;
        }
    }
    drop(u);
}

/* The variant that the launcher takes for so many rows: one of them, and one that runs here. */
static int taken_for(step *s, int32_t rows) {
    int taken = -1;
    s->args.rows = rows;
    for (int v = 0; v < inf_cuda_decode_variants(); v++) {
        inf_cuda_decode_variant about;
        CHECK(inf_cuda_decode_variant_of(&s->args, v, &about) == 0, "no variant %d", v);
        CHECK(!about.taken || (taken < 0 && about.resident > 0), "variant %d is taken", v);
        taken = about.taken ? v : taken;
    }
    CHECK(taken >= 0, "none is taken");
    return taken;
}

static void print_variants(const char *what, const variant_log *logs) {
    for (int v = 0; v <= inf_cuda_decode_variants() && v < MOST_VARIANTS; v++) {
        const variant_log *l = &logs[v];
        printf("decode %s, %s (%d registers, %d bytes, %d per SM): %d pieces, o to %.1e, lse to "
               "%.1e%s\n",
               what, l->about.name, l->about.registers, l->about.shared, l->about.resident,
               l->pieces, l->tol.seen_o, l->tol.seen_lse,
               l->failures > 0          ? " FAILED"
               : l->about.resident == 0 ? ", cannot run here"
                                        : "");
    }
}

static void test_decode(int32_t act, int32_t kv, int32_t head_dim) {
    static const int32_t blocks[] = {8, 16, 16, 24, 32, 64, 128};
    variant_log logs[MOST_VARIANTS] = {};
    for (int32_t i = 0; i < rounds(); i++) {
        static step s;
        int32_t out = below(2) ? act : (int32_t)INF_DTYPE_F32;
        form f = random_form(act, kv, out, head_dim);
        f.block_size = one_of(blocks, 7);
        int32_t most = INF_CUDA_DECODE_ROWS / (f.heads / f.kv_heads);
        make_step(&s, &f, most + 2, MOST_TOKENS);
        inf_cuda_decode_variant bulk, last;
        int32_t last_of = inf_cuda_decode_variants() - 1;
        CHECK(inf_cuda_decode_variant_of(&s.args, 0, &bulk) == 0, "no variant");
        CHECK(inf_cuda_decode_variant_of(&s.args, last_of, &last) == 0 &&
                  (f.softcap == 0.0f || (last.resident == 0 && inf_cuda_decode_variant_launch(
                                                                   &s.args, last_of, NULL) != 0)),
              "a variant that caps no scores runs");
        s.args.boxes = below(2);
        int few = taken_for(&s, 1), many = taken_for(&s, 1 << 20);
        bool boxes = s.args.boxes != 0 && f.softcap == 0.0f && last.resident > 0;
        CHECK((few >= DECODE_BOXES) == boxes && (many >= DECODE_BOXES) == boxes,
              "%d for few rows, %d for many, boxes %d", few, many, boxes);
        CHECK((few != many) == (bulk.resident > 0), "%d for few rows, %d for many", few, many);
        s.args.rows = below(2) ? 1 : 1 << 20;
        run_variants(&s, logs);
        drop_step(&s);
    }
    char what[64];
    snprintf(what, sizeof what, "%s, KV %s, head_dim %d", format_name(act), format_name(kv),
             head_dim);
    print_variants(what, logs);
}

/* One request, its last token, long enough that every ring wraps many times: in one piece, cut by
 * the plan, and cut into more parts than a warp takes at a time. */
static void test_long(uint32_t tokens, int32_t kv) {
    static step s;
    variant_log logs[MOST_VARIANTS] = {};
    form f = {INF_DTYPE_BF16, kv, INF_DTYPE_BF16, 128, 4, 1, 16, 0, 0};
    inf_cuda_segment only = {0, 1, tokens - 1, 0, tokens, 0};
    for (int cut = 0; cut < 3; cut++) {
        make_step(&s, &f, 0, 0, &only);
        drop_plan(&s);
        s.shape.decode_chunk = cut == 0 ? 1 << 20 : cut == 1 ? 0 : 64;
        make_plan(&s);
        run_variants(&s, logs);
        drop_step(&s);
    }
    char what[64];
    snprintf(what, sizeof what, "one row of %u tokens, KV %s", tokens, format_name(kv));
    print_variants(what, logs);
}

/* Rows of which the first still see some keys in their window and the last none, and the other way
 * round, rows of which the first stand before all keys. */
static void test_edges(int32_t kv) {
    variant_log logs[MOST_VARIANTS] = {};
    for (int32_t i = 0; i < rounds(); i++) {
        static step s;
        form f = {INF_DTYPE_BF16, kv, INF_DTYPE_F32, 128, 2, 2, 16, 1 + below(100), 0};
        uint32_t rows = (uint32_t)(2 + below(15)), n = (uint32_t)(1 + below(90));
        inf_cuda_segment only = {0, rows, 0, 0, n, 0};
        only.q_pos0 = n + (uint32_t)f.window - 1 - (uint32_t)below((int32_t)(rows < n ? rows : n));
        if (i % 4 == 0) {
            only.kv_pos0 = 1000;
            only.q_pos0 = 1000 - (uint32_t)below((int32_t)rows);
        }
        make_step(&s, &f, 0, 0, &only);
        run_variants(&s, logs);
        drop_step(&s);
    }
    print_variants(kv == INF_DTYPE_E4M3 ? "rows at the edges of e4m3 keys"
                                        : "rows at the edges of keys",
                   logs);
}

static void test_refusals(void) {
    static step s;
    form f = {INF_DTYPE_BF16, INF_DTYPE_BF16, INF_DTYPE_BF16, 128, 4, 1, 16, 0, 0};
    make_step(&s, &f, 1, 50);
    inf_cuda_attn bad[11];
    for (int i = 0; i < 11; i++) {
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
    bad[9].softcap = -1.0f;
    bad[10].softcap = NAN;
    for (int i = 0; i < 11; i++) {
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
        test_plain(formats[a], INF_DTYPE_E4M3, formats[a]);
    }
    for (int a = 1; a < 3; a++) {
        for (int32_t head_dim : {128, 64}) {
            test_decode(formats[a], formats[a], head_dim);
            test_decode(formats[a], INF_DTYPE_E4M3, head_dim);
        }
    }
    for (int32_t kv : {INF_DTYPE_BF16, INF_DTYPE_E4M3}) {
        test_edges(kv);
#ifdef INF_EMU
        test_long(4321, kv);
#else
        test_long(brief() ? 4321 : 100001, kv);
#endif
    }
    return report("attention");
}
