/* Products of matrices of few bits where they are at their limits; those of any shape are in
 * test_kernels.c. */
#include "kernel_check.h"

#include "few_bits.h"

static const int32_t types[] = {INF_DTYPE_I8, INF_DTYPE_I4_32, INF_DTYPE_I4_64, INF_DTYPE_I4_128};
enum { TYPES = 4 };

static void product(const inf_ops *ops, int32_t dtype, const void *w, int32_t src_dtype, int32_t n,
                    int32_t k, const float *x, int32_t rows, float *y) {
    void *packed = get_bytes(ops->packed_bytes(dtype, n, k));
    ops->pack(dtype, w, src_dtype, n, k, packed);
    inf_gemm args = {x, packed, NULL, y, rows, n, k, k, n};
    ops->gemm(NULL, dtype, &args);
    free(packed);
}

/* Groups of zeros, and of weights next to none, give nothing; what is no number shows in its output
 * alone. */
static void test_odd_groups(const inf_ops *ops, int32_t dtype) {
    enum { ZEROS, TINY, NONE, INFINITE, PLAIN, OUTPUTS, INPUTS = 128 + 3 };
    static const float tiny[] = {1e-45f, 1e-40f, 3e-37f, -3.7e-37f, 0};
    float w[OUTPUTS][INPUTS], x[INPUTS], y[OUTPUTS];
    for (int32_t i = 0; i < INPUTS; i++) {
        x[i] = 1;
        w[ZEROS][i] = 0;
        w[TINY][i] = tiny[i % 5];
        w[NONE][i] = i == 3 ? NAN : 1;
        w[INFINITE][i] = i == 128 + 1 ? -INFINITY : 1;
        w[PLAIN][i] = i % 2 ? 1 : -0.5f;
    }
    product(ops, dtype, w, INF_DTYPE_F32, OUTPUTS, INPUTS, x, 1, y);
    CHECK(y[ZEROS] == 0 && fabsf(y[TINY]) < 1e-30f, "%s: %g and %g of nothing", ops->name, y[ZEROS],
          y[TINY]);
    CHECK(isnan(y[NONE]) && isnan(y[INFINITE]), "%s: %g and %g of no numbers", ops->name, y[NONE],
          y[INFINITE]);
    CHECK(fabsf(y[PLAIN] - 32) < 0.5f, "%s: %g", ops->name, y[PLAIN]);
}

/* Inputs that are no numbers show in their row alone; none, and next to none, give nothing. */
static void test_odd_inputs(const inf_ops *ops, int32_t dtype) {
    enum { ROWS = 5, INPUTS = 300, OUTPUTS = 20 };
    float w[OUTPUTS][INPUTS], x[ROWS][INPUTS], y[ROWS][OUTPUTS];
    for (int32_t i = 0; i < INPUTS; i++) {
        for (int32_t j = 0; j < OUTPUTS; j++)
            w[j][i] = number();
        for (int32_t r = 0; r < ROWS; r++)
            x[r][i] = number();
        x[1][i] = 0;
        x[3][i] = i % 2 ? 1e-40f : -3e-37f;
    }
    x[0][INPUTS - 1] = -INFINITY;
    x[2][130] = NAN;
    product(ops, dtype, w, INF_DTYPE_F32, OUTPUTS, INPUTS, x[0], ROWS, y[0]);
    for (int32_t j = 0; j < OUTPUTS; j++) {
        CHECK(isnan(y[0][j]) && isnan(y[2][j]), "%s: %g and %g of no numbers", ops->name, y[0][j],
              y[2][j]);
        CHECK(y[1][j] == 0 && fabsf(y[3][j]) < 1e-30f, "%s: %g and %g of nothing", ops->name,
              y[1][j], y[3][j]);
        CHECK(isfinite(y[4][j]), "%s: %g of numbers", ops->name, y[4][j]);
    }
}

/* The largest sums that a group can have are exact, in each sign. */
static void test_largest(const inf_ops *ops, int32_t dtype) {
    enum { INPUTS = 256, OUTPUTS = 17 };
    float w[OUTPUTS][INPUTS], x[INPUTS], y[OUTPUTS];
    for (int32_t i = 0; i < INPUTS; i++) {
        x[i] = 32767;
        for (int32_t j = 0; j < OUTPUTS; j++) /* 0 is a weight of each group in I4 */
            w[j][i] = (dtype == INF_DTYPE_I8 ? 127.0f : 15.0f) * (j % 2 ? -1.0f : 1.0f);
    }
    product(ops, dtype, w, INF_DTYPE_F32, OUTPUTS, INPUTS, x, 1, y);
    for (int32_t j = 0; j < OUTPUTS; j++) {
        double want = 256.0 * 32767 * (double)w[j][0];
        CHECK(fabs(y[j] - want) <= 1e-7 * fabs(want), "%s: dtype %d: %g, want %g", ops->name, dtype,
              y[j], want);
    }
}

/* More inputs than are rounded at a time, of one row and of several: the same bits. */
static void test_long(const inf_ops *ops, int32_t dtype) {
    enum { INPUTS = 16384 + 8 * 128 + 24, OUTPUTS = 33, ROWS = 7 };
    float *w = numbers((size_t)OUTPUTS * INPUTS), *x = numbers((size_t)ROWS * INPUTS);
    float all[ROWS][OUTPUTS], alone[OUTPUTS];
    product(ops, dtype, w, INF_DTYPE_F32, OUTPUTS, INPUTS, x, ROWS, all[0]);
    for (int32_t r = 0; r < ROWS; r++) {
        product(ops, dtype, w, INF_DTYPE_F32, OUTPUTS, INPUTS, x + (size_t)r * INPUTS, 1, alone);
        CHECK(same_bits(alone, all[r], OUTPUTS), "%s: dtype %d: row %d differs alone", ops->name,
              dtype, r);
    }
    double sum = 0;
    for (int32_t i = 0; i < INPUTS; i++)
        sum += (double)w[i] * x[i];
    CHECK(fabs(sum - all[0][0]) < (dtype == INF_DTYPE_I8 ? 1 : 10), "%s: %g, exactly %g", ops->name,
          all[0][0], sum);
    free(w);
    free(x);
}

/* Rows of I4 as files bring them: the bits that came. */
static void test_rows_of_4(const inf_ops *ops, int32_t dtype) {
    enum { INPUTS = 384, OUTPUTS = 21, MOST = OUTPUTS * INPUTS / 32 * 20 };
    static const uint16_t halves[] = {0x3c00, 0xb800, 0x2e66, 0x4200}; /* 1, -0.5, 0.1, 3 */
    static const double as[] = {1, -0.5, 0.0999755859375, 3};
    int32_t group = group_of(dtype), groups = INPUTS / group;
    uint8_t rows[MOST], *to = rows;
    float x[INPUTS], y[OUTPUTS];
    double want[OUTPUTS] = {0};
    for (int32_t i = 0; i < INPUTS; i++)
        x[i] = (float)(below(65535) - 32767);
    for (int32_t g = 0; g < INPUTS / 128; g++)
        x[g * 128] = 32767; /* so that inputs are what they are rounded to */
    for (int32_t j = 0; j < OUTPUTS; j++)
        for (int32_t g = 0; g < groups; g++) {
            int32_t scale = below(4), zero = below(4);
            memcpy(to, &halves[scale], 2);
            memcpy(to + 2, &halves[zero], 2);
            to += 4;
            for (int32_t i = 0; i < group; i++) {
                int32_t q = below(16);
                to[i / 2] = (uint8_t)(i % 2 ? to[i / 2] | q << 4 : q);
                want[j] += as[scale] * (q - as[zero]) * (double)x[g * group + i];
            }
            to += group / 2;
        }
    product(ops, dtype, rows, dtype, OUTPUTS, INPUTS, x, 1, y);
    for (int32_t j = 0; j < OUTPUTS; j++)
        CHECK(fabs(y[j] - want[j]) < 1e-6 * 32767 * 3 * 15 * 20, "%s: dtype %d: %g, want %g",
              ops->name, dtype, y[j], want[j]);
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (int32_t isa = ISA_FIRST; isa <= ISA_LAST; isa++) {
        const inf_ops *ops = inf_ops_cpu(isa);
        if (ops == NULL) {
            printf("isa %d: not on this CPU\n", isa);
            continue;
        }
        for (int32_t i = 0; i < TYPES; i++) {
            test_odd_groups(ops, types[i]);
            test_odd_inputs(ops, types[i]);
            test_largest(ops, types[i]);
            test_long(ops, types[i]);
            if (types[i] != INF_DTYPE_I8)
                test_rows_of_4(ops, types[i]);
        }
    }
    return report("quant");
}
