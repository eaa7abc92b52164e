/* Products of a few rows against double, at ragged sizes; on a GPU the library's products too. */
#include <cuda_runtime.h>

#include "kernels/cuda/product.h"
#include "kernels/cuda/product_small.cuh"
#include "tests/cuda/cuda_check.h"

struct sizes {
    int32_t rows, n, k;
};

/* y by the kernel under test, and the largest error against double, relative to the sum of
 * magnitudes. */
struct outcome {
    double worst;
    int32_t unwritten, beyond;
};

enum { PLAIN, GATED, F32_OUT, WITH_BIAS, KINDS };

static double value(const std::vector<uint16_t> &v, size_t at, int32_t dtype) {
    return number_of(v[at], dtype);
}

static double dot(const std::vector<uint16_t> &x, const std::vector<uint16_t> &w, size_t row,
                  size_t out, int32_t k, int32_t dtype, double *magnitude) {
    double sum = 0;
    for (int32_t i = 0; i < k; i++) {
        double term = value(x, row * (size_t)k + (size_t)i, dtype) *
                      value(w, out * (size_t)k + (size_t)i, dtype);
        sum += term;
        *magnitude += fabs(term);
    }
    return sum;
}

typedef int (*launcher)(const inf_cuda_small *p);

static int by_small(const inf_cuda_small *p) { return inf_cuda_small_launch(p, NULL); }

static int by_three(const inf_cuda_small *p) {
    inf_cuda_small q = *p;
    q.three = 1;
    return inf_cuda_small_launch(&q, NULL);
}

static inf_cuda_products *library;

static int by_library(const inf_cuda_small *p) {
    inf_product q = {p->x, p->w, p->bias, p->y, p->rows, p->n, p->k, p->y_f32, 0};
    return inf_cuda_product(library, &q, NULL);
}

static inf_cuda_small small(const void *x, const void *w, void *y, int32_t dtype, const sizes &s) {
    inf_cuda_small p = {};
    p.x = x, p.w = w, p.y = y, p.act = dtype, p.rows = s.rows, p.n = s.n, p.k = s.k;
    return p;
}

static void check(launcher launch, const sizes &s, int32_t dtype, int kind) {
    const bool gate = kind == GATED, f32 = kind == F32_OUT, biased = kind == WITH_BIAS;
    const size_t outs = (size_t)s.n * (gate ? 2 : 1), guard = 64;
    std::vector<uint16_t> x = halves((size_t)s.rows * (size_t)s.k, dtype);
    std::vector<uint16_t> w = halves(outs * (size_t)s.k, dtype), bias = halves((size_t)s.n, dtype);
    const size_t count = (size_t)s.rows * (size_t)s.n, elem = f32 ? 4 : 2;
    std::vector<uint8_t> y((count + guard) * elem, 0xff); /* NaN in every format */
    inf_cuda_small p = small(on_gpu(x), on_gpu(w), on_gpu(y), dtype, s);
    p.bias = biased ? on_gpu(bias) : NULL;
    p.y_f32 = f32;
    p.gate = gate;
    int status = launch(&p);
    CHECK(status == 0, "rows %d n %d k %d kind %d: status %d", s.rows, s.n, s.k, kind, status);
    from_gpu(y, p.y);
    for (size_t i = 0; i < count; i++) {
        size_t row = i / (size_t)s.n, out = i % (size_t)s.n;
        double magnitude = 0, want = dot(x, w, row, out, s.k, dtype, &magnitude);
        if (gate) {
            double up = dot(x, w, row, out + (size_t)s.n, s.k, dtype, &magnitude);
            want = want / (1 + exp(-want)) * up;
        }
        want += biased ? value(bias, out, dtype) : 0;
        double got = f32 ? (double)((float *)(void *)y.data())[i]
                         : number_of(((uint16_t *)(void *)y.data())[i], dtype);
        double allowed = 1e-5 * magnitude + (f32 ? 0 : 0.008 * fabs(want)) + 1e-6;
        CHECK(fabs(got - want) <= allowed, "rows %d n %d k %d kind %d [%zu, %zu]: %g, want %g",
              s.rows, s.n, s.k, kind, row, out, got, want);
    }
    for (size_t i = count * elem; i < y.size(); i++) {
        CHECK(y[i] == 0xff, "rows %d n %d k %d kind %d: wrote beyond", s.rows, s.n, s.k, kind);
    }
    free_gpu();
}

/* A product that ends in x += .. and a norm, and the product behind it: n of the first is k of the
 * second. */
static void check_norm(launcher launch, int32_t rows, int32_t n, int32_t k, int32_t n2,
                       int32_t dtype, int gate) {
    const float eps = 1e-5f;
    sizes first = {rows, n, k}, second = {rows, n2, n};
    std::vector<uint16_t> x = halves((size_t)rows * (size_t)k, dtype);
    std::vector<uint16_t> w = halves((size_t)n * (size_t)k, dtype);
    std::vector<uint16_t> w2 = halves((size_t)n2 * (gate ? 2 : 1) * (size_t)n, dtype);
    std::vector<uint16_t> y((size_t)rows * (size_t)n, 0xffff),
        y2((size_t)rows * (size_t)n2, 0xffff);
    std::vector<float> residual(y.size()), norm((size_t)n);
    std::vector<float> squares((size_t)rows * (size_t)(n / 16), NAN);
    for (float &r : residual) {
        r = 3 * number();
    }
    for (float &m : norm) {
        m = 1 + 0.5f * number();
    }
    inf_cuda_small p = small(on_gpu(x), on_gpu(w), on_gpu(y), dtype, first);
    p.residual = on_gpu(residual);
    p.norm = on_gpu(norm);
    p.squares = on_gpu(squares);
    inf_cuda_small q = small(p.y, on_gpu(w2), on_gpu(y2), dtype, second);
    q.x_squares = p.squares;
    q.eps = eps;
    q.gate = gate;
    CHECK(launch(&p) == 0 && launch(&q) == 0, "launch");
    std::vector<float> got(residual.size());
    from_gpu(got, p.residual);
    from_gpu(y, p.y);
    from_gpu(y2, q.y);
    for (size_t r = 0; r < (size_t)rows; r++) {
        double sum = 0;
        for (size_t o = 0; o < (size_t)n; o++) {
            double magnitude = 0, want = (double)residual[r * (size_t)n + o];
            want += dot(x, w, r, o, k, dtype, &magnitude);
            CHECK(fabs((double)got[r * (size_t)n + o] - want) <= 1e-5 * magnitude + 1e-5,
                  "residual %g, want %g", (double)got[r * (size_t)n + o], want);
            double h = number_of(y[r * (size_t)n + o], dtype);
            CHECK(fabs(h - want * (double)norm[o]) <= 0.008 * fabs(want) + 1e-4, "normed %g", h);
            sum += want * want;
        }
        double scale = 1 / sqrt(sum / n + (double)eps);
        for (size_t o = 0; o < (size_t)n2; o++) {
            double magnitude = 0, want = dot(y, w2, r, o, n, dtype, &magnitude) * scale;
            magnitude *= scale;
            if (gate) {
                double up = dot(y, w2, r, o + (size_t)n2, n, dtype, &magnitude) * scale;
                want = want / (1 + exp(-want)) * up;
            }
            double is = number_of(y2[r * (size_t)n2 + o], dtype);
            CHECK(fabs(is - want) <= 0.008 * fabs(want) + 2e-5 * magnitude * (1 + magnitude) + 1e-6,
                  "rows %d n %d k %d gate %d: %g, want %g", rows, n, k, gate, is, want);
        }
    }
    free_gpu();
}

/* ---- blocks that stay: bit for bit what the others write ---- */

enum { NORMED = KINDS, ADDED, ALL_KINDS }; /* residual with y, and without */

/* How a product is launched. */
struct way {
    int32_t through, early, sms;
};

/* A product and what it is of, uploaded; its outputs are made anew each time. */
struct problem {
    inf_cuda_small p;
    std::vector<uint16_t> w;
    std::vector<float> residual;
    size_t y_bytes, squares;
};

static std::vector<float> floats(size_t n, float about, float spread) {
    std::vector<float> v(n);
    for (float &f : v) {
        f = about + spread * number();
    }
    return v;
}

static problem make(const sizes &s, int32_t dtype, int kind, bool scaled) {
    problem o = {};
    const size_t rows = (size_t)s.rows, n = (size_t)s.n, k = (size_t)s.k;
    o.w = halves(n * k * (kind == GATED ? 2 : 1), dtype);
    o.p = small(on_gpu(halves(rows * k, dtype)), on_gpu(o.w), NULL, dtype, s);
    o.p.gate = kind == GATED;
    o.p.y_f32 = kind == F32_OUT;
    o.p.bias = kind == WITH_BIAS ? on_gpu(halves(n, dtype)) : NULL;
    o.p.x_squares = scaled ? on_gpu(floats(rows * k / 16, 9, 4)) : NULL;
    o.p.eps = 1e-5f;
    o.y_bytes = kind == ADDED ? 0 : rows * n * (kind == F32_OUT ? 4 : 2);
    if (kind == NORMED || kind == ADDED) {
        o.residual = floats(rows * n, 0, 3);
        o.squares = rows * n / 16;
        o.p.norm = on_gpu(floats(n, 1, 0.5f));
    }
    return o;
}

/* y, the residual and the squares, with guards behind them, as bytes. */
static std::vector<uint8_t> outputs(const problem &o, const way &by) {
    const size_t guard = 64;
    std::vector<uint8_t> y(o.y_bytes + guard, 0xff);
    std::vector<float> residual = o.residual, squares(o.squares + 16, -1.0f);
    residual.resize(residual.size() + 16, -1.0f);
    inf_cuda_small p = o.p;
    p.y = o.y_bytes > 0 ? on_gpu(y) : NULL;
    p.residual = o.residual.empty() ? NULL : on_gpu(residual);
    p.squares = o.squares > 0 ? on_gpu(squares) : NULL;
    p.through = by.through, p.early = by.early, p.sms = by.sms;
    int status = inf_cuda_small_launch(&p, NULL);
    CHECK(status == 0, "through %d: status %d", by.through, status);
    if (p.y != NULL) {
        from_gpu(y, p.y);
    }
    if (p.residual != NULL) {
        from_gpu(residual, p.residual);
        from_gpu(squares, p.squares);
    }
    for (const std::vector<float> *v : {&residual, &squares}) {
        y.insert(y.end(), (const uint8_t *)v->data(), (const uint8_t *)(v->data() + v->size()));
    }
    return y;
}

/* Every other way, by turns: each is held to the plain kernel at each shape. */
static void check_same(const sizes &s, int32_t dtype, int kind, int turn, bool early) {
    const bool scaled = turn % 2 == 0;
    problem o = make(s, dtype, kind, scaled);
    std::vector<uint8_t> want = outputs(o, {0, 0, 0});
    static const way ways[] = {{1, 0, 1}, {1, 0, 0}, {1, 1, 1}, {1, 2, 1}, {1, 2, 2},
                               {2, 0, 1}, {2, 0, 0}, {2, 1, 1}, {2, 2, 2}};
    for (const way &by : ways) {
        if ((&by - ways + turn) % 2 == 0 && (by.early == 0 || early)) {
            CHECK(outputs(o, by) == want,
                  "rows %d n %d k %d kind %d scaled %d: through %d early %d sms %d differs", s.rows,
                  s.n, s.k, kind, scaled, by.through, by.early, by.sms);
        }
    }
    /* The last piece of the last tile shows; a single weight can be less than a rounding. */
    for (size_t i = o.w.size() - 64; i < o.w.size(); i++) {
        o.w[i] = (uint16_t)(o.w[i] ^ 0x8000);
    }
    o.p.w = on_gpu(o.w);
    CHECK(outputs(o, {1, 0, 1}) != want && outputs(o, {2, 0, 1}) != want,
          "rows %d n %d k %d kind %d: the last weights do not matter", s.rows, s.n, s.k, kind);
    free_gpu();
}

/* A product that writes what the one behind it, which begins early, reads. */
static std::vector<uint16_t> chained(const problem &first, const problem &second, const way &by) {
    inf_cuda_small p = first.p, q = second.p;
    std::vector<uint16_t> y(first.y_bytes / 2, 0xffff), z(second.y_bytes / 2, 0xffff);
    p.residual = on_gpu(first.residual);
    p.squares = on_gpu(std::vector<float>(first.squares, NAN));
    p.y = on_gpu(y), q.x = p.y, q.x_squares = p.squares, q.y = on_gpu(z);
    for (inf_cuda_small *each : {&p, &q}) {
        each->through = by.through, each->early = by.early, each->sms = by.sms;
        CHECK(inf_cuda_small_launch(each, NULL) == 0, "launch");
    }
    from_gpu(z, q.y);
    return z;
}

static void check_through(void) {
    static const sizes some[] = {{1, 112, 64},  {8, 48, 576},  {5, 80, 2112}, {3, 176, 512},
                                 {2, 48, 4160}, {4, 16, 1024}, {7, 16, 6208}};
    cudaDeviceProp props;
    must(cudaGetDeviceProperties(&props, 0), "cudaGetDeviceProperties");
    const bool early = props.major >= 9;
    int turn = 0;
    for (const sizes &s : some) { /* the kinds are even in number: a turn more */
        turn++;
        for (int kind = PLAIN; kind < ALL_KINDS; kind++, turn++) {
            check_same(s, turn % 3 == 0 ? INF_DTYPE_F16 : INF_DTYPE_BF16, kind, turn, early);
        }
    }
    problem first = make({4, 128, 704}, INF_DTYPE_BF16, NORMED, false);
    for (int kind : {PLAIN, GATED}) {
        problem second = make({4, 176, 128}, INF_DTYPE_BF16, kind, false);
        std::vector<uint16_t> want = chained(first, second, {0, 0, 0});
        for (int32_t through : {1, 2}) {
            for (int32_t by = 0; by <= (early ? 2 : 0); by++) {
                CHECK(chained(first, second, {through, by, 1}) == want,
                      "through %d early %d behind another: differs", through, by);
            }
        }
    }
    free_gpu();
    CHECK(even_blocks(384, 264) == 192 && even_blocks(256, 264) == 256 &&
              even_blocks(8016, 264) == 259 && even_blocks(1, 264) == 1,
          "blocks of even rounds");
}

int main(int argc, char **argv) {
    start(argc, argv);
    static const sizes some[] = {{1, 16, 64},  {2, 32, 128},  {3, 48, 576}, {5, 16, 2112},
                                 {7, 80, 512}, {8, 64, 1024}, {4, 16, 4160}};
    for (const sizes &s : some) {
        for (int kind = PLAIN; kind < KINDS; kind++) {
            for (int32_t dtype : {INF_DTYPE_BF16, INF_DTYPE_F16}) {
                check(by_small, s, dtype, kind);
                check(by_three, s, dtype, kind);
            }
        }
    }
    inf_cuda_small p = small(NULL, NULL, NULL, INF_DTYPE_BF16, {1, 16, 64});
    CHECK(inf_cuda_small_takes(&p) == 1, "a good shape");
    for (int32_t rows : {1, 3, 8}) {
        for (int32_t dtype : {INF_DTYPE_BF16, INF_DTYPE_F16}) {
            for (launcher launch : {by_small, by_three}) {
                check_norm(launch, rows, 128, 192, 48, dtype, 0);
                check_norm(launch, rows, 576, 64, 32, dtype, 1);
            }
        }
    }
    check_through();
    p.rows = 9;
    CHECK(inf_cuda_small_takes(&p) == 0 && inf_cuda_small_launch(&p, NULL) != 0, "9 rows");
    p.rows = 8;
    p.k = 96;
    CHECK(inf_cuda_small_takes(&p) == 0 && inf_cuda_small_launch(&p, NULL) != 0, "k of 96");
    for (int32_t dtype : {INF_DTYPE_BF16, INF_DTYPE_F16}) {
        inf_err err;
        if (inf_cuda_products_open(dtype, NULL, &library, &err) != INF_OK) {
            CHECK(0, "%s", err.message);
            continue;
        }
        static const sizes more[] = {{1, 16, 64}, {9, 48, 96}, {33, 128, 160}, {70, 64, 64}};
        for (const sizes &s : more) {
            check(by_library, s, dtype, PLAIN);
            check(by_library, s, dtype, F32_OUT);
            check(by_library, s, dtype, WITH_BIAS);
        }
        inf_cuda_products_close(library);
    }
    return report("test_product");
}
