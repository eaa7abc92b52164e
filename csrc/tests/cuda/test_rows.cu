/* rows.cu against double: every format, rows whose length the fast kernels take and others, buffers
 * on and off the 16-byte boundary. */
#include "kernels/cuda/launch.h"
#include "tests/cuda/guarded.h"

#ifdef INF_EMU
enum { ROUNDS = 2, SOME_ROWS = 5, BIG_ROWS = 9 };
#else
enum { ROUNDS = 6, SOME_ROWS = 40, BIG_ROWS = 3000 };
#endif

/* One in three is off the boundary by one number of the format. */
static size_t some_shift(int32_t dtype) { return below(3) == 0 ? format_size(dtype) : 0; }

static void check_embed(int32_t dtype, int32_t rows, int32_t hidden) {
    const int32_t vocab = 50;
    std::vector<uint8_t> table = random_numbers((size_t)vocab * hidden, dtype);
    std::vector<int32_t> tokens(rows);
    for (int32_t &t : tokens) {
        t = below(vocab);
    }
    guarded in = guard_copy(table, some_shift(dtype)), ids = guard_copy(tokens);
    guarded x = guard((size_t)rows * hidden * 4, some_shift(INF_DTYPE_F32));
    const float scale = below(2) ? 1.0f : 5.5f;
    inf_cuda_embed p = {ids.as<int32_t>(), in.p(), x.as<float>(), dtype, rows, hidden,
                        some_early(),      scale};
    CHECK(inf_cuda_embed_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> got = take(x);
    size_t wrong = 0;
    for (size_t i = 0; i < (size_t)rows * hidden; i++) {
        size_t from = (size_t)tokens[i / hidden] * hidden + i % hidden;
        wrong += number_at(got, INF_DTYPE_F32, i) !=
                 (double)((float)number_at(table, dtype, from) * scale);
    }
    CHECK(wrong == 0, "%s, %d rows of %d: %zu numbers differ", format_name(dtype), rows, hidden,
          wrong);
    take(in);
    take(ids);
}

static void test_embed() {
    static const int32_t hiddens[] = {8, 4096, 1000, 1032, 37, 1};
    for (int32_t dtype : FORMATS) {
        for (int32_t hidden : hiddens) {
            check_embed(dtype, 1, hidden);
            check_embed(dtype, 1 + below(SOME_ROWS), hidden);
        }
        check_embed(dtype, BIG_ROWS, 264);
    }
    printf("embed\n");
}

static void check_rope_table(int32_t rows, int32_t half, double theta, uint32_t most) {
    std::vector<uint32_t> position(rows);
    std::vector<float> inv_freq(half);
    for (uint32_t &at : position) {
        at = (uint32_t)(next_u64() % most);
    }
    position[0] = most - 1;
    position[rows - 1] = 0;
    for (int32_t i = 0; i < half; i++) {
        inv_freq[i] = (float)pow(theta, -(double)i / half);
    }
    float scale = below(2) ? 1.0f : 1.3f;
    size_t n = (size_t)rows * half;
    guarded at = guard_copy(position), freq = guard_copy(inv_freq);
    guarded c = guard(n * 4), s = guard(n * 4);
    inf_cuda_rope_table p = {
        at.as<uint32_t>(), freq.as<float>(), c.as<float>(), s.as<float>(), scale, rows, half,
        some_early()};
    CHECK(inf_cuda_rope_table_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> got_c = take(c), got_s = take(s);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double angle = (double)((float)position[i / half] * inv_freq[i % half]);
        double dc = fabs(number_at(got_c, INF_DTYPE_F32, i) - cos(angle) * (double)scale);
        double ds = fabs(number_at(got_s, INF_DTYPE_F32, i) - sin(angle) * (double)scale);
        worst = !(dc <= worst) ? dc : worst;
        worst = !(ds <= worst) ? ds : worst;
    }
    CHECK(worst <= 1e-7 * (double)scale, "%d rows of %d, positions below %u: off by %g", rows, half,
          most, worst);
    take(at);
    take(freq);
}

static void test_rope_table() {
    static const uint32_t most[] = {1, 4096, 1000000, 131072, 4294967295u};
    static const int32_t halves_[] = {64, 32, 48, 1, 128, 200};
    for (uint32_t m : most) {
        for (int32_t half : halves_) {
            check_rope_table(1 + below(SOME_ROWS), half, below(2) ? 1e4 : 1e6, m);
        }
    }
    check_rope_table(BIG_ROWS, 64, 5e5, 200000);
    printf("rope_table\n");
}

/* add: its format, or 0 for none. */
struct norm_case {
    int32_t add, y, rows, n;
    bool weight, in_place, pick, shift;
    bool post, gives; /* add is normed; y is wanted, also where it has no weight */
};

/* What is added of a row. */
static std::vector<double> addends(const norm_case &c, const std::vector<uint8_t> &add,
                                   const std::vector<uint8_t> &post, size_t row) {
    size_t n = (size_t)c.n;
    std::vector<double> out(n, 0.0);
    double squares = 0;
    for (size_t i = 0; i < n && c.add != 0; i++) {
        out[i] = number_at(add, c.add, row * n + i);
        squares += out[i] * out[i];
    }
    double factor = 1.0 / sqrt(squares / (double)n + 1e-5);
    for (size_t i = 0; i < n && c.post; i++) {
        out[i] *= factor * number_at(post, INF_DTYPE_F32, i);
    }
    return out;
}

static void check_add_norm(const norm_case &c) {
    int32_t x_rows = c.pick ? c.rows + 3 : c.rows;
    size_t n = (size_t)c.n, count = (size_t)c.rows * n;
    bool gives = c.weight || c.gives;
    std::vector<uint8_t> x = random_numbers((size_t)x_rows * n, INF_DTYPE_F32), weight, add;
    std::vector<uint8_t> post = random_numbers(n, INF_DTYPE_F32);
    weight = random_numbers(n, INF_DTYPE_F32);
    add = c.add ? random_numbers(count, c.add) : add;
    std::vector<int32_t> pick(c.rows);
    for (int32_t &r : pick) {
        r = below(x_rows);
    }
    size_t shift = c.shift ? 4 : 0;
    guarded gx = guard_copy(x, shift), gw = guard_copy(weight), ga = guard_copy(add);
    guarded gpost = guard_copy(post);
    guarded gp = guard_copy(pick), gy = guard(count * format_size(c.y));
    inf_cuda_add_norm p = {gx.as<float>(),
                           c.add ? ga.p() : NULL,
                           c.weight ? gw.as<float>() : NULL,
                           !gives       ? NULL
                           : c.in_place ? ga.p()
                                        : gy.p(),
                           c.pick ? gp.as<int32_t>() : NULL,
                           c.add,
                           c.y,
                           c.rows,
                           c.n,
                           1e-5f,
                           some_early(),
                           c.post ? gpost.as<float>() : NULL};
    CHECK(inf_cuda_add_norm_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> got_x = take(gx), got_a = take(ga), got_y = take(gy);
    const std::vector<uint8_t> &y = c.in_place ? got_a : got_y;
    size_t wrong_x = 0, wrong_y = 0, changed = 0;
    std::vector<double> sum(n);
    for (int32_t r = 0; r < c.rows; r++) {
        size_t from = c.pick ? (size_t)pick[r] * n : (size_t)r * n, to = (size_t)r * n;
        double squares = 0;
        std::vector<double> more = addends(c, add, post, (size_t)r);
        for (size_t i = 0; i < n; i++) {
            float v = (float)number_at(x, INF_DTYPE_F32, from + i);
            double is = number_at(got_x, INF_DTYPE_F32, from + i), exact = (double)v + more[i];
            v += (float)more[i];
            wrong_x += c.post ? !(fabs(is - exact) <= 1e-6 * (1 + fabs(more[i]))) : is != (double)v;
            sum[i] = c.post ? is : (double)v;
            squares += sum[i] * sum[i];
        }
        double inverse = 1.0 / sqrt(squares / (double)n + 1e-5);
        for (size_t i = 0; i < n && gives; i++) {
            double want = sum[i];
            want *= c.weight ? inverse * number_at(weight, INF_DTYPE_F32, i) : 1.0;
            wrong_y += !rounded_once(number_at(y, c.y, to + i), want, c.y, 1e-6, 0);
        }
    }
    for (size_t i = 0; i < got_y.size(); i++) {
        changed += (c.in_place || !gives) && got_y[i] != UNWRITTEN;
    }
    CHECK(wrong_x + wrong_y + changed == 0,
          "add %s, y %s, %d rows of %d, weight %d, in place %d, pick %d, shift %d, post %d: %zu of "
          "x, %zu "
          "of y are wrong, %zu were not to be written",
          c.add ? format_name(c.add) : "none", format_name(c.y), c.rows, c.n, c.weight, c.in_place,
          c.pick, c.shift, c.post, wrong_x, wrong_y, changed);
    take(gpost);
    take(gw);
    take(gp);
}

static void test_add_norm() {
    static const int32_t lengths[] = {8, 256, 1024, 3584, 4096, 8192, 8200, 16384, 16392, 100, 1};
    static const int32_t adds[] = {0, INF_DTYPE_F32, INF_DTYPE_F16, INF_DTYPE_BF16};
    for (int32_t n : lengths) {
        for (int32_t add : adds) {
            for (int32_t y : FORMATS) {
                int32_t rows = below(2) ? 1 : 1 + below(SOME_ROWS);
                bool in_place = add == y && below(2) == 0;
                check_add_norm({add, y, rows, n, true, in_place, add == 0 && below(2) == 0,
                                below(4) == 0, false, true});
                check_add_norm({add, y, rows, n, below(2) == 0, in_place, false, below(4) == 0,
                                add != 0, true});
            }
            check_add_norm(
                {add, INF_DTYPE_BF16, 2, n, false, false, false, below(2) == 0, false, false});
        }
    }
    check_add_norm(
        {INF_DTYPE_BF16, INF_DTYPE_BF16, BIG_ROWS, 512, true, true, false, false, false, true});
    check_add_norm(
        {INF_DTYPE_BF16, INF_DTYPE_BF16, BIG_ROWS, 512, true, true, false, false, true, true});
    inf_cuda_add_norm bad = {
        (float *)16,    (void *)32, (float *)48, (void *)32, NULL, INF_DTYPE_F32,
        INF_DTYPE_BF16, 1,          8,           1e-5f,      0,    NULL};
    CHECK(inf_cuda_add_norm_launch(&bad, NULL) != 0, "in place across formats was taken");
    bad.y = (void *)64;
    bad.pick = (int32_t *)80;
    CHECK(inf_cuda_add_norm_launch(&bad, NULL) != 0, "add with pick was taken");
    bad.add = NULL;
    bad.pick = NULL;
    bad.post = (float *)80;
    CHECK(inf_cuda_add_norm_launch(&bad, NULL) != 0, "a norm of nothing was taken");
    printf("add_norm\n");
}

/* squares: of the norm that gate and up were not scaled by; 0: they were. */
static void check_gate(int32_t act, int32_t rows, int32_t n, int32_t squares) {
    const int32_t activation = below(2) ? (int32_t)INF_ACT_SILU : (int32_t)INF_ACT_GELU_TANH;
    std::vector<uint8_t> gu = random_numbers((size_t)rows * 2 * n, act);
    if (act == INF_DTYPE_F32) { /* wider: 1 + e^-gate over its whole range */
        for (size_t i = 0; i < (size_t)rows * 2 * n; i++) {
            float f = number() * (below(4) == 0 ? 120.0f : 8.0f);
            memcpy(&gu[4 * i], &f, sizeof f);
        }
    }
    guarded in = guard_copy(gu, some_shift(act));
    guarded y = guard((size_t)rows * n * format_size(act), some_shift(act));
    std::vector<float> sums((size_t)rows * (size_t)squares);
    std::vector<double> scale((size_t)rows, 1.0);
    for (float &f : sums) {
        float x = number();
        f = 16 * (0.5f + x * x);
    }
    for (int32_t r = 0; r < rows && squares > 0; r++) {
        double sum = 0;
        for (int32_t i = 0; i < squares; i++) {
            sum += (double)sums[(size_t)(r * squares + i)];
        }
        scale[(size_t)r] = 1 / sqrt(sum / (16 * squares) + 1e-5);
    }
    std::vector<uint8_t> bytes(sums.size() * 4);
    if (squares > 0) {
        memcpy(bytes.data(), sums.data(), bytes.size());
    }
    guarded of = guard_copy(bytes, 0);
    inf_cuda_gate p = {in.p(),
                       y.p(),
                       act,
                       rows,
                       n,
                       some_early(),
                       squares > 0 ? (const float *)of.p() : NULL,
                       squares,
                       1e-5f,
                       activation};
    CHECK(inf_cuda_gate_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> got = take(y);
    size_t wrong = 0;
    for (size_t i = 0; i < (size_t)rows * n; i++) {
        size_t at = i / n * 2 * n + i % n;
        double s = scale[i / (size_t)n];
        double gate = s * number_at(gu, act, at), up = s * number_at(gu, act, at + n);
        double gelu = 2 * sqrt(2 / 3.14159265358979323846) * (gate + 0.044715 * gate * gate * gate);
        double u = activation == INF_ACT_GELU_TANH ? gelu : gate;
        double want = gate / (1.0 + exp(-u)) * up;
        /* above e^88 the f32 exponential overflows and the result is 0; a large exponent's rounding
         * shows */
        double off = (squares > 0 ? 2e-5 : 2e-6) * (1 + (u < 0 && u != gate ? -u / 4 : 0));
        wrong += !rounded_once(number_at(got, act, i), want, act, off, 1e-34);
    }
    CHECK(wrong == 0, "%s, %d rows of %d, activation %d: %zu numbers are wrong", format_name(act),
          rows, n, activation, wrong);
    take(in);
    take(of);
}

static void check_softcap(size_t n, float cap) {
    std::vector<float> x(n);
    for (float &f : x) {
        f = number() * cap * (below(3) == 0 ? 20.0f : below(2) ? 1.0f : 1e-3f);
    }
    guarded g = guard_copy(x);
    inf_cuda_softcap p = {g.as<float>(), (int64_t)n, cap, some_early()};
    CHECK(inf_cuda_softcap_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> got = take(g);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        double want = (double)cap * tanh((double)x[i] / (double)cap);
        wrong += !(fabs(number_at(got, INF_DTYPE_F32, i) - want) <= 1e-6 * fabs(want) + 1e-30);
    }
    CHECK(wrong == 0, "cap %g of %zu: %zu numbers are wrong", (double)cap, n, wrong);
}

static void test_softcap() {
    for (size_t n : {(size_t)1, (size_t)127, (size_t)128, (size_t)20011}) {
        check_softcap(n, 30.0f);
        check_softcap(n, 0.5f);
    }
    inf_cuda_softcap bad = {(float *)16, 8, 0.0f, 0};
    CHECK(inf_cuda_softcap_launch(&bad, NULL) != 0, "a cap of 0 was taken");
    bad.cap = NAN;
    CHECK(inf_cuda_softcap_launch(&bad, NULL) != 0, "no cap was taken");
    printf("softcap\n");
}

static void test_gate() {
    static const int32_t lengths[] = {8, 14336, 1000, 2056, 77, 1};
    for (int32_t act : FORMATS) {
        for (int32_t n : lengths) {
            check_gate(act, 1, n, 0);
            check_gate(act, 1 + below(SOME_ROWS), n, 0);
            check_gate(act, 1 + below(8), n, 1 + below(300));
        }
        check_gate(act, BIG_ROWS, 136, 0);
    }
    printf("gate\n");
}

/* Whether h is the number of a 16-bit format nearest to f, ties to even. */
static bool is_nearest(uint16_t h, float f, int32_t dtype) {
    double got = number_of(h, dtype), want = (double)f;
    if (isnan(f)) {
        return isnan(got);
    }
    if (isinf(f)) {
        return got == want;
    }
    uint16_t top = dtype == INF_DTYPE_F16 ? 0x7bff : 0x7f7f; /* the largest finite number */
    double most = number_of(top, dtype), next = number_of((uint16_t)(top - 1), dtype);
    if (fabs(want) >= most + (most - next) / 2) {
        return isinf(got) && (got > 0) == (want > 0);
    }
    if (isinf(got) || isnan(got) || (signbit(f) != 0) != (h >> 15 != 0)) {
        return false;
    }
    double error = fabs(got - want);
    for (int step = -1; step <= 1; step += 2) {
        uint16_t size = h & 0x7fff;
        if ((size == 0 && step < 0) || (size == top && step > 0)) {
            continue;
        }
        double other = fabs(number_of((uint16_t)(h + step), dtype) - want);
        if (other < error || (other == error && (h & 1) != 0)) {
            return false;
        }
    }
    return true;
}

/* Any bits, with every exponent; and halves between 16-bit numbers. */
static float any_float() {
    uint32_t bits = (uint32_t)next_u64();
    int32_t kind = below(4);
    bits = kind == 0 ? (bits & 0xffff0000u) | 0x8000u : bits;
    bits = kind == 1 ? (bits & 0x807fffffu) | (uint32_t)(100 + below(45)) << 23 : bits;
    bits = kind == 2 ? (bits & 0x807fe000u) | 0x1000u | (uint32_t)(100 + below(45)) << 23 : bits;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void check_cast(int32_t from, int32_t to, size_t n) {
    std::vector<uint8_t> src(n * format_size(from));
    for (size_t i = 0; i < n; i++) {
        float f = any_float();
        uint16_t h = (uint16_t)next_u64();
        memcpy(&src[i * format_size(from)], from == INF_DTYPE_F32 ? (void *)&f : (void *)&h,
               format_size(from));
    }
    guarded in = guard_copy(src, some_shift(from));
    guarded out = guard(n * format_size(to), some_shift(to));
    inf_cuda_cast p = {in.p(), out.p(), from, to, (int64_t)n, some_early()};
    CHECK(inf_cuda_cast_launch(&p, NULL) == 0, "launch");
    std::vector<uint8_t> got = take(out);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        double want = number_at(src, from, i), have = number_at(got, to, i);
        uint16_t h;
        memcpy(&h, &got[i * format_size(to)], sizeof h);
        bool same = isnan(want) ? isnan(have) : have == want && signbit(have) == signbit(want);
        wrong += to == INF_DTYPE_F32 ? !same : !is_nearest(h, (float)want, to);
    }
    CHECK(wrong == 0, "%s to %s, %zu: %zu numbers are wrong", format_name(from), format_name(to), n,
          wrong);
    take(in);
}

static void test_cast() {
    for (int32_t from : FORMATS) {
        for (int32_t to : FORMATS) {
            for (size_t n : {(size_t)1, (size_t)7, (size_t)8, (size_t)1024, (size_t)20011}) {
                check_cast(from, to, n);
            }
        }
    }
    printf("cast\n");
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (int32_t i = 0; i < (brief() ? 1 : ROUNDS); i++) {
        test_embed();
        test_rope_table();
        test_add_norm();
        test_gate();
        test_softcap();
        test_cast();
    }
    return report("test_rows");
}
