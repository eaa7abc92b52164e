/* heads.cu and combine.cu against double: every format, head_dims of the fast kernels and others,
 * buffers on and off the 16-byte boundary. Every byte of the pool that is not a token's stays as it
 * was. */
#include "kernels/cuda/launch.h"
#include "tests/cuda/guarded.h"
#include "tests/cuda/some_runs.h"

#ifdef INF_EMU
enum { ROUNDS = 2, SOME_ROWS = 6, BIG_ROWS = 20 };
#else
enum { ROUNDS = 8, SOME_ROWS = 70, BIG_ROWS = 2000 };
#endif

/* ---- heads ---- */

struct heads_case {
    int32_t act, kv, rows, heads, kv_heads, head_dim;
    bool norm, shift;
    int32_t rotary; /* 0: all of a head */
    bool all;       /* the norms are over all heads */
};

static size_t half_of(const heads_case &c) {
    return (size_t)(c.rotary > 0 ? c.rotary : c.head_dim) / 2;
}

struct heads_data {
    inf_kv_shape kv;
    int32_t blocks, layer;
    std::vector<uint8_t> qkv, q_norm, k_norm, cos, sin;
    std::vector<int32_t> block, index;
};

static heads_data make_heads(const heads_case &c) {
    heads_data d;
    d.kv = {3, c.kv_heads, 1 + below(16), c.head_dim, c.kv, (int32_t)format_size(c.kv), 0};
    d.kv.block_bytes =
        (uint64_t)d.kv.layers * 2 * c.kv_heads * d.kv.block_size * c.head_dim * d.kv.elem;
    d.layer = below(3);
    d.blocks = c.rows / d.kv.block_size + 3;
    size_t half = half_of(c), all = (size_t)c.heads + 2 * c.kv_heads;
    d.qkv = random_numbers((size_t)c.rows * all * c.head_dim, c.act);
    d.q_norm = random_numbers((size_t)c.head_dim * (c.all ? c.heads : 1), INF_DTYPE_F32);
    d.k_norm = random_numbers((size_t)c.head_dim * (c.all ? c.kv_heads : 1), INF_DTYPE_F32);
    d.cos = random_numbers((size_t)c.rows * half, INF_DTYPE_F32);
    d.sin = random_numbers((size_t)c.rows * half, INF_DTYPE_F32);
    /* Tokens in some order of blocks, each place once. */
    std::vector<int32_t> place((size_t)d.blocks * d.kv.block_size);
    for (size_t i = 0; i < place.size(); i++) {
        place[i] = (int32_t)i;
        std::swap(place[i], place[(size_t)below((int32_t)i + 1)]);
    }
    for (int32_t r = 0; r < c.rows; r++) {
        d.block.push_back(place[r] / d.kv.block_size);
        d.index.push_back(place[r] % d.kv.block_size);
    }
    return d;
}

/* What head h of row r becomes. */
static std::vector<double> turned_head(const heads_case &c, const heads_data &d, int32_t r,
                                       int32_t h) {
    size_t dim = (size_t)c.head_dim, half = half_of(c), n = dim, skipped = 0;
    size_t at = ((size_t)r * (c.heads + 2 * c.kv_heads) + h) * dim;
    std::vector<double> x(dim);
    double squares = 0;
    for (size_t i = 0; i < dim; i++) {
        x[i] = number_at(d.qkv, c.act, at + i);
        squares += x[i] * x[i];
    }
    if (h >= c.heads + c.kv_heads) {
        return x;
    }
    const std::vector<uint8_t> &norm = h < c.heads ? d.q_norm : d.k_norm;
    if (c.all) { /* all of q, or of k */
        size_t of = h < c.heads ? 0 : (size_t)c.heads, row = (size_t)r * (c.heads + 2 * c.kv_heads);
        n = (size_t)(h < c.heads ? c.heads : c.kv_heads) * dim;
        skipped = ((size_t)h - of) * dim;
        squares = 0;
        for (size_t i = 0; i < n; i++) {
            double v = number_at(d.qkv, c.act, (row + of) * dim + i);
            squares += v * v;
        }
    }
    for (size_t i = 0; i < dim && c.norm; i++) {
        x[i] *= number_at(norm, INF_DTYPE_F32, skipped + i) / sqrt(squares / (double)n + 1e-6);
    }
    for (size_t i = 0; i < half; i++) {
        double co = number_at(d.cos, INF_DTYPE_F32, (size_t)r * half + i);
        double si = number_at(d.sin, INF_DTYPE_F32, (size_t)r * half + i);
        double a = x[i], b = x[i + half];
        x[i] = a * co - b * si;
        x[i + half] = b * co + a * si;
    }
    return x;
}

static void compare_heads(const heads_case &c, const heads_data &d, const std::vector<uint8_t> &q,
                          std::vector<uint8_t> pool) {
    size_t wrong = 0, dim = (size_t)c.head_dim;
    for (int32_t r = 0; r < c.rows; r++) {
        for (int32_t h = 0; h < c.heads + 2 * c.kv_heads; h++) {
            std::vector<double> want = turned_head(c, d, r, h);
            int32_t kv_head = (h - c.heads) % c.kv_heads, kv = (h - c.heads) / c.kv_heads;
            size_t at = ((size_t)r * c.heads + h) * dim * format_size(c.act);
            if (h >= c.heads) {
                at = d.block[r] * d.kv.block_bytes +
                     inf_kv_offset(&d.kv, d.layer, kv, kv_head, d.index[r]);
            }
            const uint8_t *got = (h < c.heads ? q.data() : pool.data()) + at;
            int32_t dtype = h < c.heads ? c.act : c.kv;
            for (size_t i = 0; i < dim; i++) {
                wrong += !rounded_once(number_at(got, dtype, i), want[i], dtype, 1e-6, 1e-6);
            }
            if (h >= c.heads) { /* what is left must be untouched */
                memset(pool.data() + at, UNWRITTEN, dim * d.kv.elem);
            }
        }
    }
    size_t touched = 0;
    for (uint8_t b : pool) {
        touched += b != UNWRITTEN;
    }
    CHECK(wrong + touched == 0,
          "act %s, kv %s, %d rows, %d + 2 * %d heads of %d, norm %d, shift %d: %zu numbers are "
          "wrong, %zu bytes of other tokens were written",
          format_name(c.act), format_name(c.kv), c.rows, c.heads, c.kv_heads, c.head_dim, c.norm,
          c.shift, wrong, touched);
}

static void check_heads(const heads_case &c) {
    heads_data d = make_heads(c);
    size_t off = c.shift ? format_size(c.act) : 0;
    guarded qkv = guard_copy(d.qkv, off), cos = guard_copy(d.cos), sin = guard_copy(d.sin);
    guarded q_norm = guard_copy(d.q_norm), k_norm = guard_copy(d.k_norm);
    guarded block = guard_copy(d.block), index = guard_copy(d.index);
    guarded q = guard((size_t)c.rows * c.heads * c.head_dim * format_size(c.act));
    guarded pool = guard((size_t)d.blocks * d.kv.block_bytes);
    guarded scales = guard((size_t)c.rows * 2 * 4);
    inf_cuda_heads p = {qkv.p(),
                        c.norm ? q_norm.as<float>() : NULL,
                        c.norm ? k_norm.as<float>() : NULL,
                        cos.as<float>(),
                        sin.as<float>(),
                        q.p(),
                        pool.as<uint8_t>(),
                        d.kv,
                        block.as<int32_t>(),
                        index.as<int32_t>(),
                        c.act,
                        c.rows,
                        c.heads,
                        d.layer,
                        1e-6f,
                        some_early(),
                        c.rotary,
                        c.all ? scales.as<float>() : NULL};
    inf_cuda_head_scales of_all = {qkv.p(),    scales.as<float>(), c.act, c.rows,      c.heads,
                                   c.kv_heads, c.head_dim,         1e-6f, some_early()};
    CHECK(!c.all || inf_cuda_head_scales_launch(&of_all, NULL) == 0, "launch");
    CHECK(inf_cuda_heads_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> got_q = take(q), got_pool = take(pool);
    compare_heads(c, d, got_q, got_pool);
    for (const guarded &g : {qkv, cos, sin, q_norm, k_norm, block, index, scales}) {
        take(g);
    }
}

static void test_heads() {
    static const int32_t dims[] = {128, 64, 256, 80, 96, 16, 32, 6, 2, 512};
    for (int32_t dim : dims) {
        for (int32_t act : FORMATS) {
            int32_t kv = below(2) ? act : FORMATS[below(3)], kv_heads = 1 + below(4);
            kv = below(3) == 0 ? (int32_t)INF_DTYPE_E4M3 : kv;
            int32_t heads = kv_heads * (1 + below(5)), rows = below(2) ? 1 : 1 + below(SOME_ROWS);
            bool off = below(4) == 0;
            int32_t part = 2 * (1 + below(dim / 2)); /* even, up to dim */
            part = dim % 64 == 0 && below(2) ? dim / 4 * (1 + below(4)) : part;
            check_heads({act, kv, rows, heads, kv_heads, dim, true, off, 0, false});
            check_heads({act, kv, rows, heads, kv_heads, dim, false, off, 0, false});
            check_heads({act, kv, rows, heads, kv_heads, dim, true, off, part, false});
            check_heads({act, kv, rows, heads, kv_heads, dim, false, off, part, false});
            check_heads({act, kv, rows, heads, kv_heads, dim, true, off, part, true});
        }
    }
    check_heads({INF_DTYPE_BF16, INF_DTYPE_BF16, BIG_ROWS, 32, 8, 128, true, false, 0, false});
    check_heads({INF_DTYPE_BF16, INF_DTYPE_E4M3, BIG_ROWS, 32, 8, 128, true, false, 96, true});
    check_heads({INF_DTYPE_F32, INF_DTYPE_E4M3, SOME_ROWS, 5, 5, 6, true, true, 0, false});
    printf("heads\n");
}

/* ---- merging ---- */

/* The merge of partials as the header says it; o of the result, lse returned. A partial is {lse, o
 * ...}. */
static double merge_parts(const std::vector<const double *> &parts, size_t dim, double *o) {
    double m = -INFINITY, sum = 0;
    for (const double *p : parts) {
        m = p[0] > m ? p[0] : m;
    }
    for (size_t i = 0; i < dim; i++) {
        o[i] = 0;
    }
    for (const double *p : parts) {
        double w = p[0] == -INFINITY ? 0 : exp(p[0] - m);
        sum += w;
        for (size_t i = 0; i < dim; i++) {
            o[i] += w * p[1 + i];
        }
    }
    for (size_t i = 0; i < dim && sum > 0; i++) {
        o[i] /= sum;
    }
    return sum > 0 ? m + log(sum) : -INFINITY;
}

/* Partials of n (row, head): o and lse as the kernels have them, and the same together in double.
 * One in `empties` is empty. */
struct partials {
    std::vector<float> o, lse;
    std::vector<double> both; /* [n, 1 + dim] */
};

static partials some_partials(size_t n, size_t dim, int32_t empties) {
    partials p;
    for (size_t i = 0; i < n; i++) {
        bool empty = below(empties) == 0;
        float spread = below(3) == 0 ? 100.0f : 3.0f;
        p.lse.push_back(empty ? -INFINITY : number() * spread);
        p.both.push_back((double)p.lse[i]);
        for (size_t d = 0; d < dim; d++) {
            p.o.push_back(empty ? 0.0f : number());
            p.both.push_back((double)p.o.back());
        }
    }
    return p;
}

static bool lse_near(double got, double want) {
    return want == -INFINITY ? got == -INFINITY : fabs(got - want) <= 2e-6 * (1 + fabs(want));
}

static void check_combine(int32_t o_dtype, int32_t rows, int32_t heads, int32_t head_dim,
                          int32_t most, bool with_lse) {
    std::vector<uint32_t> off(1, 0), list;
    for (int32_t r = 0; r < rows; r++) {
        int32_t n = below(4) == 0 ? 0 : 1 + below(most);
        for (int32_t i = 0; i < n; i++) { /* parts in any order */
            list.push_back((uint32_t)list.size());
            std::swap(list.back(), list[(size_t)below((int32_t)list.size())]);
        }
        off.push_back((uint32_t)list.size());
    }
    size_t dim = (size_t)head_dim, items = (size_t)rows * heads;
    partials p = some_partials(list.size() * heads, dim, 5);
    guarded part_o = guard_copy(p.o), part_lse = guard_copy(p.lse);
    guarded g_off = guard_copy(off), g_list = guard_copy(list);
    guarded o = guard(items * dim * format_size(o_dtype), below(3) ? 0 : format_size(o_dtype));
    guarded lse = guard(items * 4);
    inf_cuda_combine a = {o.p(),
                          with_lse ? lse.as<float>() : NULL,
                          part_o.as<float>(),
                          part_lse.as<float>(),
                          g_off.as<uint32_t>(),
                          g_list.as<uint32_t>(),
                          o_dtype,
                          rows,
                          heads,
                          head_dim,
                          some_early()};
    CHECK(inf_cuda_combine_launch(&a, NULL) == 0, "launch");
    std::vector<uint8_t> got_o = take(o), got_lse = take(lse);
    size_t wrong = 0, wrong_lse = 0;
    std::vector<double> want(dim);
    for (size_t at = 0; at < items; at++) {
        size_t r = at / heads, h = at % heads;
        std::vector<const double *> parts;
        for (uint32_t i = off[r]; i < off[r + 1]; i++) {
            parts.push_back(&p.both[((size_t)list[i] * heads + h) * (1 + dim)]);
        }
        double want_lse = merge_parts(parts, dim, want.data());
        double have_lse = number_at(got_lse, INF_DTYPE_F32, at);
        bool kept = parts.empty();
        wrong_lse += kept || !with_lse ? !isnan(have_lse) : !lse_near(have_lse, want_lse);
        for (size_t i = 0; i < dim; i++) {
            double have = number_at(got_o, o_dtype, at * dim + i);
            wrong += kept ? !isnan(have) : !rounded_once(have, want[i], o_dtype, 1e-6, 2e-6);
        }
    }
    CHECK(wrong + wrong_lse == 0,
          "o %s, %d rows, %d heads of %d, up to %d parts: %zu of o, %zu of "
          "lse are wrong",
          format_name(o_dtype), rows, heads, head_dim, most, wrong, wrong_lse);
    for (const guarded &g : {part_o, part_lse, g_off, g_list}) {
        take(g);
    }
}

static void test_combine() {
    static const int32_t dims[] = {128, 64, 256, 80, 10, 1, 33};
    for (int32_t dim : dims) {
        for (int32_t o : FORMATS) {
            check_combine(o, 1, 1 + below(9), dim, 300, true);
            check_combine(o, 1 + below(SOME_ROWS), 1 + below(9), dim, 40, below(2) == 0);
        }
    }
    check_combine(INF_DTYPE_BF16, BIG_ROWS, 32, 128, 3, true); /* enough for a warp each */
    check_combine(INF_DTYPE_F32, BIG_ROWS, 32, 66, 3, true);
    printf("combine\n");
}

/* copies: partials of each of the rows. out_dtype 0: merged in place. */
static void check_merge(int32_t rows, int32_t heads, int32_t head_dim, bool listed, int32_t copies,
                        int32_t out_dtype) {
    int32_t all = listed ? rows + 5 : rows + (out_dtype != 0);
    size_t dim = (size_t)head_dim, n = (size_t)rows * heads, out_size = format_size(out_dtype);
    partials p = some_partials((size_t)all * heads, dim, 4);
    partials more = some_partials(n * (size_t)copies, dim, 4);
    std::vector<uint32_t> row = some_rows(rows, all, listed), rows_of_all;
    for (int32_t i = 0; i < copies; i++) {
        rows_of_all.insert(rows_of_all.end(), row.begin(), row.end());
    }
    /* o of an empty partial is not to be read, if others come to it */
    for (size_t i = 0; out_dtype == 0 && i < p.lse.size(); i++) {
        for (size_t d = 0; d < dim && p.lse[i] == -INFINITY; d++) {
            p.o[i * dim + d] = NAN;
        }
    }
    size_t off = below(3) ? 0 : 4;
    const place_of_heads place = some_place((size_t)heads);
    const size_t first = place.first * dim, pitch = place.stride * dim, far = rows_of_all.size();
    std::vector<float> far_o(far * pitch, NAN), far_lse(far * place.stride, NAN);
    for (size_t i = 0; i < far; i++) {
        memcpy(&far_o[i * pitch + first], &more.o[i * heads * dim], heads * dim * 4);
        memcpy(&far_lse[i * place.stride + place.first], &more.lse[i * heads], (size_t)heads * 4);
    }
    guarded o = guard_copy(p.o, off), lse = guard_copy(p.lse);
    guarded o2 = guard_copy(far_o), lse2 = guard_copy(far_lse);
    guarded out = guard((size_t)all * heads * dim * out_size, below(3) ? 0 : out_size);
    inf_cuda_merge a = {};
    a.o = o.as<float>();
    a.lse = lse.as<float>();
    a.out = out_dtype != 0 ? out.p() : NULL;
    a.out_dtype = out_dtype;
    a.rows = all;
    a.heads = heads;
    a.head_dim = head_dim;
    a.early = some_early();
    launch_runs(a, inf_cuda_merge_launch, rows_of_all, o2.as<float>() + first,
                lse2.as<float>() + place.first, place.stride, dim);
    std::vector<uint8_t> got_o = take(o), got_lse = take(lse), got = take(out);
    size_t wrong = 0, other = 0;
    std::vector<double> want(dim);
    std::vector<int32_t> from((size_t)all, -1);
    for (int32_t i = 0; i < rows; i++) {
        from[row[(size_t)i]] = i;
    }
    const std::vector<uint8_t> &result = out_dtype != 0 ? got : got_o;
    for (size_t at = 0; at < (size_t)all * heads; at++) {
        std::vector<const double *> parts = {&p.both[at * (1 + dim)]};
        int32_t i = from[at / heads];
        for (int32_t c = 0; c < copies && i >= 0; c++) {
            size_t part = ((size_t)(c * rows + i)) * heads + at % heads;
            parts.push_back(&more.both[part * (1 + dim)]);
        }
        bool stays = out_dtype != 0 || i < 0;
        other += stays && (memcmp(&got_lse[at * 4], &p.lse[at], 4) != 0 ||
                           memcmp(&got_o[at * dim * 4], &p.o[at * dim], dim * 4) != 0);
        if (out_dtype == 0 && i < 0) {
            continue;
        }
        double want_lse = merge_parts(parts, dim, want.data());
        wrong += !stays && !lse_near(number_at(got_lse, INF_DTYPE_F32, at), want_lse);
        for (size_t d = 0; d < dim && want_lse != -INFINITY; d++) {
            int32_t dtype = out_dtype != 0 ? out_dtype : (int32_t)INF_DTYPE_F32;
            wrong += !rounded_once(number_at(result, dtype, at * dim + d), want[d], dtype,
                                   copies * 1e-6, copies * 2e-6);
        }
    }
    CHECK(wrong + other == 0,
          "%d rows, %d heads of %d, listed %d, %d partials more, out %s: %zu numbers are wrong, "
          "%zu that are to stay changed",
          rows, heads, head_dim, listed, copies, out_dtype ? format_name(out_dtype) : "in place",
          wrong, other);
    for (const guarded &g : {o2, lse2}) {
        take(g);
    }
}

static void test_merge() {
    static const int32_t dims[] = {128, 64, 256, 80, 10, 1, 33};
    for (int32_t dim : dims) {
        check_merge(1, 1 + below(9), dim, false, 1, 0);
        check_merge(1 + below(SOME_ROWS), 1 + below(9), dim, true, 1, 0);
        check_merge(1 + below(SOME_ROWS), 1 + below(9), dim, true, 3, 0);
        for (int32_t out : FORMATS) {
            check_merge(1 + below(SOME_ROWS), 1 + below(9), dim, false, below(4), out);
        }
    }
    printf("merge\n");
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (int32_t i = 0; i < (brief() ? 1 : ROUNDS); i++) {
        test_heads();
        test_combine();
        test_merge();
    }
    return report("test_heads");
}
