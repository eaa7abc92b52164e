/* What matrices of few bits, and inputs for them, are rounded to, by their definition (device.h,
 * kernels/cpu/quant.h) and apart from the code under test. Behind a CHECK that says more. */
#ifndef INF_FEW_BITS_H
#define INF_FEW_BITS_H

#include <math.h>
#include <stdint.h>

#include "infinite/device.h"

/* Weights in I8 are one of 255 even steps to the largest of their group: the nearest, and near a
 * tie the one that f32 arithmetic finds. */
static inline void narrow_8(double *w, int32_t n) {
    float most = 0;
    for (int32_t i = 0; i < n; i++)
        most = fmaxf(most, fabsf((float)w[i]));
    for (int32_t i = 0; i < n && most > 0; i++) {
        double step = (double)(most / 127), q = (double)rintf((float)w[i] * (127 / most));
        CHECK(fabs(w[i] - q * step) <= step * 0.50001, "%g is no step of %g", q, step);
        w[i] = q * step;
    }
}

/* A positive float to the nearest binary16 by looking at the two around it. */
static inline double to_f16(double f) {
    int exponent = 0;
    (void)frexp(f, &exponent);
    double step = ldexp(1, (exponent < -13 ? -13 : exponent) - 11);
    return step * rint(f / step);
}

/* Weights in I4 are one of 16 even steps from the least of their group, or 0, to the largest. Their
 * scale and zero are rounded to f16, so that one at the end may be off by more than half a step. */
static inline void narrow_4(double *w, int32_t n) {
    float low = 0, high = 0;
    for (int32_t i = 0; i < n; i++)
        low = fminf(low, (float)w[i]), high = fmaxf(high, (float)w[i]);
    float scale = (float)to_f16((double)((high - low) / 15)), inverse = scale > 0 ? 1 / scale : 0;
    float zero = (float)to_f16((double)fminf(-low * inverse, 15));
    for (int32_t i = 0; i < n && scale > 0; i++) {
        double q = (double)rintf((float)w[i] * inverse + zero);
        q = q < 0 ? 0 : q > 15 ? 15 : q;
        double got = (double)scale * (q - (double)zero);
        CHECK(fabs(w[i] - got) <= (double)scale * 0.51, "%g for %g, steps of %g", got, w[i],
              (double)scale);
        w[i] = got;
    }
}

static inline int32_t group_of(int32_t dtype) {
    return dtype == INF_DTYPE_I4_32 ? 32 : dtype == INF_DTYPE_I4_64 ? 64 : 128;
}

static inline void narrow_weights(double *w, int32_t n, int32_t k, int32_t dtype) {
    for (int32_t j = 0; j < n; j++)
        for (int32_t first = 0; first < k; first += group_of(dtype)) {
            int32_t inputs = k - first < group_of(dtype) ? k - first : group_of(dtype);
            (dtype == INF_DTYPE_I8 ? narrow_8 : narrow_4)(w + (size_t)j * k + first, inputs);
        }
}

static inline int is_of_few_bits(int32_t dtype) {
    return dtype == INF_DTYPE_I8 || dtype == INF_DTYPE_I4_32 || dtype == INF_DTYPE_I4_64 ||
           dtype == INF_DTYPE_I4_128;
}

/* Inputs for weights in few bits are one of 65535 even steps to the largest of 128 of their row. */
static inline double step_of(const float *x, int32_t k, int32_t i) {
    float most = 0;
    for (int32_t j = i / 128 * 128; j < k && j < i / 128 * 128 + 128; j++)
        most = fmaxf(most, fabsf(x[j]));
    double step = (double)(most / 32767), q = (double)rintf(x[i] * (32767 / most));
    CHECK(fabs((double)x[i] - q * step) <= step * 0.51, "%g is no step of %g", q, step);
    return q * step;
}

#endif
