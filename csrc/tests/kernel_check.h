/* What the kernel tests share: seeded numbers, guarded buffers, comparison with a double result. */
#ifndef INF_KERNEL_CHECK_H
#define INF_KERNEL_CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/kernels.h"

enum { ISA_FIRST = 1, ISA_LAST = 4 };

static int failures;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition) && failures++ < 20) {                                                     \
            printf("%s:%d: ", __func__, __LINE__);                                                 \
            printf(__VA_ARGS__);                                                                   \
            printf("\n");                                                                          \
        }                                                                                          \
    } while (0)

static uint64_t seed_state;

static void seed(uint64_t s) { seed_state = s * 0x9e3779b97f4a7c15u + 1; }

/* The seed is argv[1] or of the clock, and printed. */
static inline void start(int argc, char **argv) {
    uint64_t s = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
    printf("seed %llu\n", (unsigned long long)s);
    seed(s);
}

static uint64_t next_u64(void) { /* splitmix64 */
    uint64_t z = (seed_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline int32_t below(int32_t n) { return (int32_t)(next_u64() % (uint64_t)n); }

/* Uniform in (-1, 1). */
static inline float number(void) { return (float)((double)(next_u64() >> 11) * 0x1p-52 - 1.0); }

static void *get_bytes(size_t n) {
    void *p = malloc(n > 0 ? n : 1);
    if (p == NULL) {
        printf("cannot allocate %zu bytes\n", n);
        exit(2);
    }
    return p;
}

static inline float *numbers(size_t n) {
    float *p = (float *)get_bytes(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = number();
    return p;
}

/* Outputs start as NaN, so that what a kernel forgets to write shows. */
static inline float *poisoned(size_t n) {
    float *p = (float *)get_bytes(n * sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = NAN;
    return p;
}

static inline float from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* A double to its nearest bf16, ties to even, by comparing the two candidates: independent of the
 * bit arithmetic under test. Finite numbers within range only. */
static inline uint16_t to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint16_t low = (uint16_t)(bits >> 16), high = (uint16_t)(low + 1);
    double under = fabs((double)f - from_bf16(low)), over = fabs((double)from_bf16(high) - f);
    if (under == over)
        return low & 1 ? high : low;
    return under < over ? low : high;
}

/* e4m3 by its definition: sign, 4 bits of exponent with bias 7, 3 of mantissa; 0x7f is NaN. */
static inline double from_e4m3(uint8_t x) {
    int exponent = x >> 3 & 15, mantissa = x & 7;
    double size = exponent == 0 ? ldexp(mantissa, -9) : ldexp(8 + mantissa, exponent - 10);
    size = (x & 0x7f) == 0x7f ? (double)NAN : size;
    return (x & 0x80) != 0 ? -size : size;
}

/* The nearest e4m3, of two the even one, by looking at all of them; beyond the largest the largest.
 */
static inline uint8_t to_e4m3(double f) {
    uint8_t best = 0;
    double size = fabs(f), off = INFINITY;
    if (f != f)
        return 0x7f;
    size = size < 448 ? size : 448;
    for (uint8_t i = 0; i < 0x7f; i++) {
        double d = fabs(from_e4m3(i) - size);
        if (d < off || (d == off && i % 2 == 0)) {
            best = i;
            off = d;
        }
    }
    return (uint8_t)(best | (signbit(f) ? 0x80 : 0));
}

static inline int32_t bytes_of(int32_t dtype) {
    return dtype == INF_DTYPE_F32 ? 4 : dtype == INF_DTYPE_E4M3 ? 1 : 2;
}

static inline int near(double got, double want, double tolerance) {
    return fabs(got - want) <= tolerance * (1.0 + fabs(want));
}

static inline int same_bits(const float *a, const float *b, size_t n) {
    return memcmp(a, b, n * sizeof *a) == 0;
}

static int report(const char *name) {
    printf("%s: %s (%d failures)\n", name, failures == 0 ? "ok" : "FAILED", failures);
    return failures == 0 ? 0 : 1;
}

#endif
