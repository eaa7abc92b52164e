#include "bench/limits.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/pages.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { CHAINS = 12, STEPS = 200000 };

#define READ_BYTES ((size_t)256 << 20)

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

typedef struct job {
    const uint8_t *memory;
    size_t bytes; /* of one index */
    double sum[64];
} job;

static void read_plain(const uint8_t *p, size_t n, double *out) {
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i < n; i += 32) {
        uint64_t x[4];
        memcpy(x, p + i, 32);
        a += x[0];
        b += x[1];
        c += x[2];
        d += x[3];
    }
    *out += (double)(a + b + c + d);
}

#if defined(__x86_64__)
/* Four streams of vectors, so that loads and not additions decide. */
__attribute__((target("avx2"))) static void read_avx2(const uint8_t *p, size_t n, double *out) {
    __m256i sum[4] = {{0}, {0}, {0}, {0}};
    for (size_t i = 0; i < n; i += 128) {
        for (int j = 0; j < 4; j++) {
            const void *at = p + i + (size_t)j * 32;
            sum[j] = _mm256_add_epi64(sum[j], _mm256_load_si256(at));
        }
    }
    long long all[4];
    _mm256_storeu_si256((__m256i *)(void *)all, _mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]),
                                                                 _mm256_add_epi64(sum[2], sum[3])));
    *out += (double)(all[0] + all[1] + all[2] + all[3]);
}

__attribute__((target("avx2,fma"))) static float fma_avx2(void) {
    __m256 x[CHAINS], a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.001f);
    for (int j = 0; j < CHAINS; j++) {
        x[j] = _mm256_set1_ps((float)j);
    }
    for (int i = 0; i < STEPS; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) {
            x[j] = _mm256_fmadd_ps(x[j], a, b);
        }
    }
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) {
        sum += _mm256_cvtss_f32(x[j]);
    }
    return sum;
}

__attribute__((target("avx512f"))) static float fma_avx512(void) {
    __m512 x[CHAINS], a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.001f);
    for (int j = 0; j < CHAINS; j++) {
        x[j] = _mm512_set1_ps((float)j);
    }
    for (int i = 0; i < STEPS; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) {
            x[j] = _mm512_fmadd_ps(x[j], a, b);
        }
    }
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) {
        sum += _mm512_cvtss_f32(x[j]);
    }
    return sum;
}

__attribute__((target("avx512f,avx512bf16"))) static float dot_avx512(void) {
    __m512 x[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f003f00),
             b = (__m512bh)_mm512_set1_epi32(0x3c003c00);
    for (int j = 0; j < CHAINS; j++) {
        x[j] = _mm512_set1_ps((float)j);
    }
    for (int i = 0; i < STEPS; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) {
            x[j] = _mm512_dpbf16_ps(x[j], a, b);
        }
    }
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) {
        sum += _mm512_cvtss_f32(x[j]);
    }
    return sum;
}
#endif

static float fma_plain(void) {
    float x[CHAINS];
    for (int j = 0; j < CHAINS; j++) {
        x[j] = (float)j;
    }
    for (int i = 0; i < STEPS; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) {
            x[j] = x[j] * 0.999f + 0.001f;
        }
    }
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) {
        sum += x[j];
    }
    return sum;
}

static void read_task(void *arg, int32_t index, int32_t thread) {
    job *j = arg;
    const uint8_t *from = j->memory + (size_t)index * j->bytes;
    (void)thread;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        read_avx2(from, j->bytes, &j->sum[index]);
        return;
    }
#endif
    read_plain(from, j->bytes, &j->sum[index]);
}

double limit_read(inf_pool *pool, int32_t threads) {
    static uint8_t *memory;
    if (memory == NULL) {
        memory = inf_pages_alloc(READ_BYTES);
        if (memory == NULL) {
            return 0;
        }
        memset(memory, 1, READ_BYTES);
    }
    int32_t n = threads < 64 ? threads : 64;
    job j = {.memory = memory, .bytes = READ_BYTES / (size_t)n / 4096 * 4096};
    double t0 = now();
    inf_pool_run(pool, read_task, &j, n);
    return (double)j.bytes * n / (now() - t0);
}

typedef struct fma_job {
    int32_t width;
    float sum[64];
} fma_job;

static void fma_task(void *arg, int32_t index, int32_t thread) {
    fma_job *j = arg;
    (void)thread;
#if defined(__x86_64__)
    if (j->width == 32) {
        j->sum[index] = dot_avx512();
        return;
    }
    if (j->width == 16) {
        j->sum[index] = fma_avx512();
        return;
    }
    if (j->width == 8) {
        j->sum[index] = fma_avx2();
        return;
    }
#endif
    j->sum[index] = fma_plain();
}

double limit_fma(inf_pool *pool, int32_t threads, const char *isa) {
    fma_job j = {.width = strcmp(isa, "avx512_bf16") == 0 ? 32
                          : strcmp(isa, "avx512") == 0    ? 16
                          : strcmp(isa, "avx2") == 0      ? 8
                                                          : 1};
    int32_t n = threads < 64 ? threads : 64;
    double t0 = now();
    inf_pool_run(pool, fma_task, &j, n);
    return 2.0 * CHAINS * STEPS * j.width * n / (now() - t0);
}
