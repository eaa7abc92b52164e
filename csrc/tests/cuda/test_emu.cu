/* Machine instructions as prelude.cuh describes them, against plain C: formats, mma, ldmatrix,
 * cp.async. On a GPU this checks the descriptions, in emulation the emulator. */
#include "kernels/cuda/e4m3.cuh"
#include "tests/cuda/words.h"
#include "tests/farther.h"

/* ---- formats ---- */

/* Two numbers in; both formats, the number back from f16's low half, and 2^x out. */
static __global__ void formats_kernel(words_args a) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (4 * i < a.n) {
        float lo = bits_to_float(a.in[2 * i]), hi = bits_to_float(a.in[2 * i + 1]);
        a.out[4 * i] = pack_bf16x2(lo, hi);
        a.out[4 * i + 1] = pack_f16x2(lo, hi);
        a.out[4 * i + 2] = __float_as_uint(f16_to_float((uint16_t)a.in[2 * i]));
        a.out[4 * i + 3] = __float_as_uint(exp2_fast(lo));
    }
}

/* Is h the nearest of its format to x, or the even one of two? Among its neighbours in order of
 * size; what lies beyond the largest number counts as the next power of two. */
static bool is_nearest(float x, uint16_t h, int32_t dtype) {
    double value = number_of(h, dtype), most = dtype == INF_DTYPE_F16 ? 0x1p16 : 0x1p128;
    uint16_t a = h & 0x7fff, infinity = dtype == INF_DTYPE_F16 ? 0x7c00 : 0x7f80;
    if (x != x) {
        return value != value;
    }
    if (value != value || (h >> 15) != (word_of(x) >> 31)) {
        return false;
    }
    double size = fabs((double)x), mine = a == infinity ? most : fabs(value);
    size = size > most ? most : size;
    double below = a == 0 ? -1 : fabs(number_of((uint16_t)(a - 1), dtype));
    double above = a == infinity       ? 4 * most
                   : a + 1 == infinity ? most
                                       : fabs(number_of((uint16_t)(a + 1), dtype));
    double off = fabs(size - mine);
    return off <= fabs(size - below) && off <= fabs(size - above) &&
           (a % 2 == 0 || (off < fabs(size - below) && off < fabs(size - above)));
}

static std::vector<uint32_t> edge_numbers() {
    std::vector<uint32_t> v = {0,          0x80000000, 0x7f800000, 0xff800000, 0x7fc00000,
                               0x7f7fffff, 0xff7fffff, 0x477fe000, 0x477fefff, 0x477ff000,
                               0x477ff001, 0x38800000, 0x387fffff, 0x33000000, 0x33000001,
                               0x32ffffff, 0x33800000, 0x33c00000, 0xb3400000, 0x7f7f8000};
    for (int i = 0; i < 4000; i++) {
        uint32_t u = (uint32_t)next_u64();
        if (i % 4 == 1) { /* within f16's range */
            u = (u & 0x80ffffff) | (uint32_t)(0x30 + below(24)) << 24;
        } else if (i % 4 == 2) { /* half way between two bf16 */
            u = (u & 0xffff0000) | 0x8000;
        } else if (i % 4 == 3) { /* half way between two f16 */
            u = (u & 0x80ffe000) | (uint32_t)(0x39 + below(14)) << 24 | 0x1000;
        }
        v.push_back(u);
    }
    return v;
}

static void check_formats() {
    std::vector<uint32_t> in = edge_numbers();
    std::vector<uint32_t> out = run(formats_kernel, 17, 128, 0, in, in.size() * 2);
    double worst = 0;
    for (size_t i = 0; i < in.size(); i++) {
        float x = float_of(in[i]);
        uint16_t b = (uint16_t)(out[i / 2 * 4] >> (16 * (i % 2)));
        uint16_t h = (uint16_t)(out[i / 2 * 4 + 1] >> (16 * (i % 2)));
        CHECK(is_nearest(x, b, INF_DTYPE_BF16), "%a to bf16 is %#x", (double)x, b);
        CHECK(is_nearest(x, h, INF_DTYPE_F16), "%a to f16 is %#x", (double)x, h);
        if (i % 2 == 0) {
            float y = float_of(out[i / 2 * 4 + 3]), f = float_of(out[i / 2 * 4 + 2]);
            double want = f16_number((uint16_t)in[i]), power = exp2((double)x);
            CHECK((double)f == want || (want != want && f != f), "f16 %#x is %a", in[i] & 0xffff,
                  (double)f);
            if (power < 0x1p-126) {
                CHECK(y == 0 || (power > 0x1.fffffp-127 && y == 0x1p-126f), "2^%a is %a", (double)x,
                      (double)y);
            } else if (power > 0x1.fffffep127) {
                CHECK(isinf(y), "2^%a is %a", (double)x, (double)y);
            } else if (x == x) {
                worst = farther(worst, (double)y / power, 1);
            }
        }
    }
    CHECK(worst < 0x1p-21, "2^x is off by %g", worst);
    printf("formats: 2^x off by at most %.2g\n", worst);
}

/* Two words in: their product as pairs of f16, the first one's bytes as four f16, and both as e4m3.
 */
static __global__ void e4m3_kernel(words_args a) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (4 * i < a.n) {
        uint32_t x = a.in[2 * i], y = a.in[2 * i + 1];
        a.out[4 * i] = mul_f16x2(x, y);
        e4m3x4_to_f16(x, a.out + 4 * i + 1);
        a.out[4 * i + 3] = pack_e4m3x2(bits_to_float(x), bits_to_float(y));
    }
}

static bool same(double got, double want) { return got == want || (got != got && want != want); }

/* All bytes at every place of a word; f32 at, beside and half way between all e4m3 numbers,
 * infinite, NaN, too large and at random. */
static std::vector<uint32_t> e4m3_words() {
    std::vector<uint32_t> v = edge_numbers();
    for (uint32_t i = 0; i < 256; i++) {
        for (int shift = 0; shift < 32; shift += 8) {
            v.push_back(((uint32_t)next_u64() & ~(0xffu << shift)) | i << shift);
        }
    }
    for (uint32_t code = 0; code < 0x7f; code++) {
        double x = from_e4m3((uint8_t)code),
               next = code < 0x7e ? from_e4m3((uint8_t)(code + 1)) : 480;
        for (double at : {x, (x + next) / 2}) {
            uint32_t u = word_of((float)at);
            for (uint32_t w : {u, u + 1, u == 0 ? 0 : u - 1}) {
                v.push_back(w);
                v.push_back(w | 0x80000000u);
            }
        }
    }
    for (int i = 0; i < 2000; i++) {
        v.push_back(((uint32_t)next_u64() & 0x807fffff) | (uint32_t)(114 + below(26)) << 23);
    }
    return v;
}

static void check_e4m3() {
    std::vector<uint32_t> in = e4m3_words();
    in.resize(in.size() / 2 * 2);
    std::vector<uint32_t> out =
        run(e4m3_kernel, (int)(in.size() / 256 + 1), 128, 0, in, in.size() * 2);
    for (size_t i = 0; i < in.size() / 2; i++) {
        const uint32_t *x = &in[2 * i], *y = &out[4 * i];
        for (int k = 0; k < 4; k++) {
            uint8_t byte = (uint8_t)(x[0] >> (8 * k));
            double got = f16_number((uint16_t)(y[1 + k / 2] >> (16 * (k % 2))));
            CHECK(same(got, from_e4m3(byte)), "e4m3 %#x is %g", byte, got);
        }
        for (int k = 0; k < 2; k++) {
            uint8_t code = (uint8_t)(y[3] >> (8 * k)), want = to_e4m3((double)float_of(x[k]));
            CHECK(code == want, "%a to e4m3 is %#x, not %#x", (double)float_of(x[k]), code, want);
            double a = f16_number((uint16_t)(x[0] >> (16 * k)));
            double b = f16_number((uint16_t)(x[1] >> (16 * k)));
            uint16_t h = (uint16_t)(y[0] >> (16 * k));
            CHECK(is_nearest((float)(a * b), h, INF_DTYPE_F16), "%a * %a is %#x", a, b, h);
        }
    }
    printf("e4m3\n");
}

/* ---- mma and ldmatrix ---- */

/* a [16, 16], b [16, 8] row-major in `in`, both in one format, d [16, 8] behind them as floats. */
template <bool F16> static __global__ void mma_kernel(words_args p) {
    const uint16_t *in = (const uint16_t *)p.in;
    int t = (int)threadIdx.x, g = t / 4, c = 2 * (t % 4);
    const uint16_t *m = in + (size_t)blockIdx.x * 640;
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; i++) {
        const uint16_t *at = m + (g + 8 * (i % 2)) * 16 + c + 8 * (i / 2);
        a[i] = (uint32_t)at[1] << 16 | at[0];
    }
    for (int i = 0; i < 2; i++) {
        const uint16_t *at = m + 256 + (c + 8 * i) * 8 + g;
        b[i] = (uint32_t)at[8] << 16 | at[0];
    }
    const float *from = (const float *)(m + 384);
    float *to = (float *)p.out + (size_t)blockIdx.x * 128;
    int at[4] = {g * 8 + c, g * 8 + c + 1, (g + 8) * 8 + c, (g + 8) * 8 + c + 1};
    float d[4];
    for (int i = 0; i < 4; i++) {
        d[i] = from[at[i]];
    }
    if (F16) {
        mma_f16(d, a, b);
    } else {
        mma_bf16(d, a, b);
    }
    for (int i = 0; i < 4; i++) {
        to[at[i]] = d[i];
    }
}

static void check_mma(int32_t dtype) {
    enum { PRODUCTS = 40 };
    std::vector<uint16_t> in;
    for (int i = 0; i < PRODUCTS; i++) {
        std::vector<uint16_t> h = halves(384, dtype);
        in.insert(in.end(), h.begin(), h.end());
        for (int j = 0; j < 128; j++) {
            uint32_t u = word_of(number());
            in.push_back((uint16_t)u);
            in.push_back((uint16_t)(u >> 16));
        }
    }
    std::vector<uint32_t> out = run(dtype == INF_DTYPE_F16 ? mma_kernel<true> : mma_kernel<false>,
                                    PRODUCTS, 32, 0, in, PRODUCTS * 128);
    double worst = 0;
    for (size_t i = 0; i < out.size(); i++) {
        const uint16_t *m = &in[i / 128 * 640];
        size_t row = i % 128 / 8, column = i % 8;
        double want =
            (double)float_of((uint32_t)m[384 + 2 * (i % 128) + 1] << 16 | m[384 + 2 * (i % 128)]);
        for (size_t k = 0; k < 16; k++) {
            want += number_of(m[row * 16 + k], dtype) * number_of(m[256 + k * 8 + column], dtype);
        }
        worst = farther(worst, (double)float_of(out[i]), want);
    }
    CHECK(worst < 2e-5, "mma of %s is off by %g", format_name(dtype), worst);
    printf("mma of %s: off by at most %.2g\n", format_name(dtype), worst);
}

/* Number (row, column) of matrix m is m * 64 + row * 8 + column, in rows 48 bytes apart. */
static __global__ void ldmatrix_kernel(words_args a) {
    INF_SHARED(shared);
    uint32_t r[4];
    int t = (int)threadIdx.x;
    for (int i = t; i < 256; i += 32) {
        *(uint16_t *)(shared + i / 8 * 48 + i % 8 * 2) = (uint16_t)i;
    }
    __syncwarp();
    ldmatrix_x4(r, shared + t * 48);
    for (int m = 0; m < 4; m++) {
        a.out[t * 8 + m] = r[m];
    }
    ldmatrix_x4_trans(r, shared + t * 48);
    for (int m = 0; m < 4; m++) {
        a.out[t * 8 + 4 + m] = r[m];
    }
}

static void check_ldmatrix() {
    std::vector<uint32_t> out = run(ldmatrix_kernel, 1, 32, 32 * 48, std::vector<uint32_t>(1), 256);
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t t = i / 8, m = i % 4, row = t / 4, c = 2 * (t % 4);
        uint32_t plain = m * 64 + row * 8 + c, trans = m * 64 + c * 8 + row;
        uint32_t want = i % 8 < 4 ? (plain + 1) << 16 | plain : (trans + 8) << 16 | trans;
        CHECK(out[i] == want, "ldmatrix%s: lane %u, matrix %u: %#x, not %#x",
              i % 8 < 4 ? "" : ".trans", t, m, out[i], want);
    }
    printf("ldmatrix\n");
}

/* ---- cp.async ---- */

enum { PIECES = 6, PIECE_WORDS = 4 * 64 };

/* Pieces of 16 bytes per thread, one group each, three under way; every third thread's are zeros.
 * In emulation, what is read before the wait goes out too. */
static __global__ void copy_kernel(words_args a) {
    INF_SHARED(shared);
    int t = (int)threadIdx.x;
    for (int i = 0; i < PIECES + 2; i++) {
        if (i < PIECES) {
            int at = i * PIECE_WORDS + 4 * t;
            cp_async_16(shared + 4 * at, a.in + at, t % 3 != 0);
        }
        cp_async_commit();
#ifdef INF_EMU
        if (i == 0) { /* a race, on a GPU */
            a.out[PIECES * PIECE_WORDS + t] = *(const volatile uint32_t *)(shared + 16 * t);
        }
#endif
        if (i >= 2) {
            cp_async_wait<2>();
            __syncthreads();
            int other = (t + 5) % 64, at = (i - 2) * PIECE_WORDS + 4 * other;
            for (int j = 0; j < 4; j++) {
                a.out[at + j] = *(const uint32_t *)(shared + 4 * (at + j));
            }
        }
    }
}

static void check_copies() {
    std::vector<uint32_t> in;
    for (int i = 0; i < PIECES * PIECE_WORDS; i++) {
        in.push_back((uint32_t)next_u64() | 1);
    }
    std::vector<uint32_t> out =
        run(copy_kernel, 1, 64, PIECES * PIECE_WORDS * 4, in, PIECES * PIECE_WORDS + 64);
    int early = 0;
    for (int i = 0; i < PIECES * PIECE_WORDS; i++) {
        uint32_t want = i / 4 % 64 % 3 != 0 ? in[(size_t)i] : 0;
        CHECK(out[(size_t)i] == want, "cp.async: word %d is %#x, not %#x", i, out[(size_t)i], want);
        early +=
            i < PIECE_WORDS && i % 4 == 0 && out[(size_t)(PIECES * PIECE_WORDS + i / 4)] == want;
    }
    CHECK(early == 0, "%d copies were there before the wait", early);
    printf("cp.async\n");
}

int main(int argc, char **argv) {
    start(argc, argv);
    check_formats();
    check_e4m3();
    check_mma(INF_DTYPE_BF16);
    check_mma(INF_DTYPE_F16);
    check_ldmatrix();
    check_copies();
    return report("test_emu");
}
