/* Routing and the products of chosen experts against double, at ragged sizes, and a row alone
 * against the same row among others. */
#include <cuda_runtime.h>

#include "kernels/cuda/experts.h"
#include "tests/cuda/cuda_check.h"
#include "tests/cuda/guarded.h"

struct sizes {
    int32_t rows, hidden, inner, experts, top_k, shared;
};

/* Random numbers of a format, as bytes, and what they are. */
struct numbers_in {
    std::vector<uint8_t> bytes;
    std::vector<double> value;
};

static numbers_in some(size_t n, int32_t dtype, double wide) {
    numbers_in v = {std::vector<uint8_t>(n * format_size(dtype)), std::vector<double>(n)};
    for (size_t i = 0; i < n; i++) {
        float f = (float)(wide * (double)number());
        uint16_t half = to_bf16(f);
        if (dtype == INF_DTYPE_F16) { /* which has more digits than bf16, and here the range */
            f = (float)from_bf16(half);
            int exponent;
            double m = frexp(fabs((double)f), &exponent);
            half = m == 0 || exponent < -12
                       ? 0
                       : (uint16_t)((f < 0 ? 0x8000 : 0) | (exponent + 14) << 10 |
                                    (int)lround((2 * m - 1) * 1024));
        }
        memcpy(v.bytes.data() + i * format_size(dtype),
               dtype == INF_DTYPE_F32 ? (void *)&f : (void *)&half, format_size(dtype));
        v.value[i] = number_at(v.bytes.data(), dtype, i);
    }
    return v;
}

/* ---- routing ---- */

struct routed {
    std::vector<int32_t> chosen, place, source;
    std::vector<float> weight, scale;
    std::vector<inf_cuda_item> items;
};

template <class T> static std::vector<T> as(const std::vector<uint8_t> &bytes) {
    std::vector<T> v(bytes.size() / sizeof(T));
    memcpy((void *)v.data(), bytes.data(), v.size() * sizeof(T));
    return v;
}

static routed route(const sizes &s, const numbers_in &x, const std::vector<float> &router,
                    const std::vector<float> &squares, int32_t act, int normalise) {
    const size_t rows = (size_t)s.rows, places = rows * (size_t)s.top_k;
    const size_t all = (size_t)(s.experts + s.shared);
    guarded gx = guard_copy(x.bytes), gr = guard_copy(router), gs = guard_copy(squares);
    guarded logits = guard(rows * all * 4), scale = guard(rows * 4), chosen = guard(places * 4);
    guarded weight = guard(places * 4), place = guard(places * 4), source = guard(places * 4);
    guarded items =
        guard((size_t)inf_cuda_most_items((int64_t)places, s.experts) * sizeof(inf_cuda_item));
    guarded n_items = guard(4);
    inf_cuda_route p = {};
    p.x = gx.p(), p.router = gr.as<float>(), p.x_squares = squares.empty() ? NULL : gs.as<float>();
    p.eps = 1e-5f, p.logits = logits.as<float>(), p.scale = scale.as<float>();
    p.chosen = chosen.as<int32_t>(), p.weight = weight.as<float>(), p.place = place.as<int32_t>();
    p.source = source.as<int32_t>(), p.items = items.as<inf_cuda_item>();
    p.n_items = n_items.as<int32_t>(), p.act = act, p.rows = s.rows, p.hidden = s.hidden;
    p.experts = s.experts, p.shared = s.shared, p.top_k = s.top_k, p.normalise = normalise;
    CHECK(inf_cuda_route_launch(&p, NULL) == 0, "route");
    std::vector<float> got = as<float>(take(logits));
    routed r;
    r.scale = as<float>(take(scale)), r.chosen = as<int32_t>(take(chosen));
    r.weight = as<float>(take(weight)), r.place = as<int32_t>(take(place));
    r.source = as<int32_t>(take(source)), r.items = as<inf_cuda_item>(take(items));
    int32_t count = as<int32_t>(take(n_items))[0];
    CHECK(count >= 0 && (size_t)count <= r.items.size(), "%d items", count);
    r.items.resize((size_t)count);
    for (size_t i = 0; i < rows; i++) { /* each logit; choices are by these */
        double squared = 0;
        for (int32_t c = 0; !squares.empty() && c < s.hidden / 16; c++) {
            squared += (double)squares[i * (size_t)(s.hidden / 16) + (size_t)c];
        }
        double factor = squares.empty() ? 1 : 1 / sqrt(squared / s.hidden + 1e-5);
        CHECK(near(r.scale[i], factor, 1e-6), "scale %g, not %g", r.scale[i], factor);
        for (size_t e = 0; e < all; e++) {
            double want = 0;
            for (size_t c = 0; c < (size_t)s.hidden; c++) {
                want += x.value[i * (size_t)s.hidden + c] *
                        (double)router[e * (size_t)s.hidden + c] * factor;
            }
            CHECK(near(got[i * all + e], want, 1e-5), "logit %g, not %g", got[i * all + e], want);
        }
        double sum = 0, kept = 0;
        std::vector<bool> taken((size_t)s.experts);
        for (size_t e = 0; e < (size_t)s.experts; e++) {
            sum += exp((double)got[i * all + e]);
        }
        for (size_t k = 0; k < (size_t)s.top_k; k++) {
            int32_t best = -1;
            for (int32_t e = 0; e < s.experts; e++) {
                bool more = best < 0 || got[i * all + (size_t)e] > got[i * all + (size_t)best];
                best = !taken[(size_t)e] && more ? e : best;
            }
            int32_t mine = r.chosen[i * (size_t)s.top_k + k];
            CHECK(mine == best, "row %zu, %zu-th of %d: %d, not %d", i, k, s.experts, mine, best);
            taken[(size_t)best] = true;
            kept += exp((double)got[i * all + (size_t)best]);
        }
        for (size_t k = 0; k < (size_t)s.top_k; k++) {
            size_t at = i * (size_t)s.top_k + k;
            double want = exp((double)got[i * all + (size_t)r.chosen[at]]);
            want /= normalise ? kept : sum;
            CHECK(near(r.weight[at], want, 2e-6), "weight %g, not %g", r.weight[at], want);
        }
    }
    for (guarded *g : {&gx, &gr, &gs}) {
        (void)take(*g);
    }
    return r;
}

/* Places are those of a stable sort by expert, and items cover them in order. */
static void check_groups(const sizes &s, const routed &r) {
    int32_t next = 0;
    size_t item = 0;
    for (int32_t e = 0; e < s.experts; e++) {
        int32_t first = next;
        for (size_t i = 0; i < r.chosen.size(); i++) {
            if (r.chosen[i] == e) {
                CHECK(r.place[i] == next, "place %d, not %d", r.place[i], next);
                CHECK(r.source[(size_t)next] == (int32_t)i / s.top_k, "source");
                next++;
            }
        }
        for (; first < next; item++) {
            int32_t left = next - first, n = left < INF_CUDA_ITEM_ROWS ? left : INF_CUDA_ITEM_ROWS;
            CHECK(item < r.items.size() && r.items[item].expert == e &&
                      r.items[item].first == first && r.items[item].count == n,
                  "item %zu of expert %d", item, e);
            first += n;
        }
    }
    CHECK(item == r.items.size(), "%zu items, not %zu", r.items.size(), item);
}

/* ---- products ---- */

/* w_e [n, k] of every expert, its places of rows of x; y as the kernel leaves it. */
static std::vector<uint8_t> grouped(const sizes &s, const routed &r, const numbers_in &x,
                                    const std::vector<numbers_in> &w, int32_t n, int32_t k,
                                    int32_t act, int gate, int by_row, int32_t most) {
    const size_t places = r.chosen.size();
    std::vector<guarded> matrices;
    std::vector<const void *> list;
    for (const numbers_in &m : w) {
        matrices.push_back(guard_copy(m.bytes));
        list.push_back(matrices.back().p());
    }
    guarded gl = guard_copy(list), gx = guard_copy(x.bytes), source = guard_copy(r.source);
    guarded scale = guard_copy(r.scale), items = guard_copy(r.items);
    std::vector<int32_t> count(1, (int32_t)r.items.size());
    guarded n_items = guard_copy(count);
    guarded y = guard(places * (size_t)n * (gate ? format_size(act) : 4));
    inf_cuda_grouped p = {};
    p.x = gx.p(), p.w = gl.as<const void *>(), p.y = y.p(), p.items = items.as<inf_cuda_item>();
    p.source = by_row ? source.as<int32_t>() : NULL, p.scale = by_row ? scale.as<float>() : NULL;
    p.n_items = n_items.as<int32_t>(), p.act = act, p.places = (int32_t)places;
    p.experts = s.experts, p.n = n, p.k = k, p.gate = gate, p.most = most;
    CHECK(inf_cuda_grouped_launch(&p, NULL) == 0, "grouped");
    std::vector<uint8_t> out = take(y);
    for (guarded *g : {&gl, &gx, &source, &scale, &items, &n_items}) {
        (void)take(*g);
    }
    for (guarded &g : matrices) {
        (void)take(g);
    }
    for (size_t i = 0; i < places; i++) {
        size_t place = (size_t)r.place[i], row = by_row ? i / (size_t)s.top_k : place;
        const numbers_in &m = w[(size_t)r.chosen[i]];
        for (size_t o = 0; o < (size_t)n; o++) {
            double sum[2] = {}, size = 0;
            for (size_t h = 0; h < (gate ? 2 : 1); h++) {
                for (size_t c = 0; c < (size_t)k; c++) {
                    double term =
                        x.value[row * (size_t)k + c] * m.value[(h * (size_t)n + o) * (size_t)k + c];
                    sum[h] += term * (by_row ? (double)r.scale[row] : 1);
                    size += fabs(term) * (by_row ? (double)r.scale[row] : 1);
                }
            }
            double want = gate ? sum[0] / (1 + exp(-sum[0])) * sum[1] : sum[0];
            double got = number_at(out.data(), gate ? act : INF_DTYPE_F32, place * (size_t)n + o);
            double rounding = !gate || act == INF_DTYPE_F32 ? 0 : 0.004;
            double allowed = 1e-5 * size * (1 + fabs(sum[1])) + rounding * fabs(want) + 1e-6;
            CHECK(fabs(got - want) <= allowed, "act %d n %d k %d place %zu [%zu]: %g, want %g", act,
                  n, k, place, o, got, want);
        }
    }
    return out;
}

/* The weighted sum, in double. */
static void check_gather(const sizes &s, const routed &r, int32_t act) {
    const size_t places = r.chosen.size(), hidden = (size_t)s.hidden;
    numbers_in out = some(places * hidden, INF_DTYPE_F32, 1);
    numbers_in shared = some((size_t)s.rows * hidden, act, 1);
    numbers_in logits = some((size_t)s.rows * (size_t)(s.experts + 1), INF_DTYPE_F32, 4);
    guarded go = guard_copy(out.bytes), gs = guard_copy(shared.bytes),
            gl = guard_copy(logits.bytes);
    guarded gw = guard_copy(r.weight), gp = guard_copy(r.place);
    guarded y = guard((size_t)s.rows * hidden * format_size(act));
    inf_cuda_gather_experts p = {};
    p.out = go.as<float>(), p.shared = s.shared ? gs.p() : NULL, p.logits = gl.as<float>();
    p.weight = gw.as<float>(), p.place = gp.as<int32_t>(), p.y = y.p(), p.act = act;
    p.rows = s.rows, p.hidden = s.hidden, p.experts = s.experts, p.top_k = s.top_k;
    CHECK(inf_cuda_gather_experts_launch(&p, NULL) == 0, "gather");
    std::vector<uint8_t> got = take(y);
    for (size_t i = 0; i < (size_t)s.rows * hidden; i++) {
        size_t row = i / hidden;
        double want = 0, rounding = act == INF_DTYPE_F32 ? 1e-6 : 0.004;
        for (size_t k = row * (size_t)s.top_k; k < (row + 1) * (size_t)s.top_k; k++) {
            want += (double)r.weight[k] * out.value[(size_t)r.place[k] * hidden + i % hidden];
        }
        double logit = logits.value[(row + 1) * (size_t)(s.experts + 1) - 1];
        want += s.shared ? shared.value[i] / (1 + exp(-logit)) : 0;
        CHECK(near(number_at(got.data(), act, i), want, rounding), "gather [%zu]: %g, want %g", i,
              number_at(got.data(), act, i), want);
    }
    for (guarded *g : {&go, &gs, &gl, &gw, &gp}) {
        (void)take(*g);
    }
}

/* A row's places by themselves: the same bits, whichever kernel few and many rows take. */
static void check_alone(const sizes &s, const routed &r, const numbers_in &x,
                        const std::vector<numbers_in> &w, int32_t act,
                        const std::vector<uint8_t> &all) {
    size_t row = (size_t)s.rows - 1, k = (size_t)s.top_k, width = format_size(act);
    routed one = {};
    one.scale.push_back(r.scale[row]);
    for (size_t i = 0; i < k; i++) {
        one.chosen.push_back(r.chosen[row * k + i]);
        one.place.push_back((int32_t)i);
        one.source.push_back(0);
        one.items.push_back({one.chosen[i], (int32_t)i, 1});
    }
    size_t from = row * (size_t)s.hidden;
    numbers_in its = {std::vector<uint8_t>(x.bytes.begin() + (long)(from * width), x.bytes.end()),
                      std::vector<double>(x.value.begin() + (long)from, x.value.end())};
    sizes t = s;
    t.rows = 1;
    std::vector<uint8_t> y = grouped(t, one, its, w, s.inner, s.hidden, act, 1, 1, 1);
    size_t bytes = (size_t)s.inner * width;
    for (size_t i = 0; i < k; i++) {
        size_t place = (size_t)r.place[row * k + i];
        CHECK(memcmp(y.data() + i * bytes, all.data() + place * bytes, bytes) == 0,
              "act %d: place %zu differs alone", act, place);
    }
}

static void check(const sizes &s, int32_t act, int normalise, int unscaled) {
    numbers_in x = some((size_t)s.rows * (size_t)s.hidden, act, 1);
    std::vector<float> router((size_t)(s.experts + s.shared) * (size_t)s.hidden), squares;
    for (float &f : router) {
        f = number() * 0.4f;
    }
    if (unscaled) {
        squares.resize((size_t)s.rows * (size_t)(s.hidden / 16));
        for (float &f : squares) {
            f = 1 + 7 * fabsf(number());
        }
    }
    routed r = route(s, x, router, squares, act, normalise);
    check_groups(s, r);
    std::vector<numbers_in> gate_up, down;
    for (int32_t e = 0; e < s.experts; e++) {
        gate_up.push_back(some((size_t)(2 * s.inner) * (size_t)s.hidden, act, 0.3));
        down.push_back(some((size_t)s.hidden * (size_t)s.inner, act, 0.3));
    }
    std::vector<uint8_t> y = grouped(s, r, x, gate_up, s.inner, s.hidden, act, 1, 1, s.rows);
    check_alone(s, r, x, gate_up, act, y);
    numbers_in act_in = some(r.chosen.size() * (size_t)s.inner, act, 1);
    (void)grouped(s, r, act_in, down, s.hidden, s.inner, act, 0, 0, s.rows);
    check_gather(s, r, act);
}

static void check_refusals() {
    inf_cuda_route r = {};
    r.act = INF_DTYPE_BF16, r.rows = 1, r.hidden = 64, r.experts = 4, r.top_k = 5;
    CHECK(inf_cuda_route_launch(&r, NULL) != 0, "more experts of a row than there are");
    r.top_k = 1, r.experts = INF_MAX_EXPERTS + 1;
    CHECK(inf_cuda_route_launch(&r, NULL) != 0, "too many experts");
    r.experts = 4, r.act = INF_DTYPE_E4M3;
    CHECK(inf_cuda_route_launch(&r, NULL) != 0, "a format");
    inf_cuda_grouped g = {};
    g.act = INF_DTYPE_I8, g.places = g.experts = g.n = g.k = 1;
    CHECK(inf_cuda_grouped_launch(&g, NULL) != 0, "a format");
    g.act = INF_DTYPE_F32, g.places = 0;
    CHECK(inf_cuda_grouped_launch(&g, NULL) == 0, "no places");
}

int main(int argc, char **argv) {
    start(argc, argv);
    const int32_t formats[] = {INF_DTYPE_F32, INF_DTYPE_F16, INF_DTYPE_BF16};
    for (int32_t act : formats) {
        check({1, 64, 16, 4, 2, 0}, act, 0, 0);
        check({5, 128, 80, 7, 3, 1}, act, 1, 1);   /* few rows, not scaled yet */
        check({8, 64, 64, 3, 3, 1}, act, 0, 1);    /* every row has every expert */
        check({41, 64, 64, 3, 2, 0}, act, 1, 0);   /* more of an expert than one item holds */
        check({19, 50, 24, 5, 2, 1}, act, 0, 0);   /* sizes that tensor cores do not take */
        check({3, 704, 16, 70, 33, 0}, act, 1, 0); /* many experts, and more pieces than warps */
    }
    check_refusals();
    return report("experts");
}
