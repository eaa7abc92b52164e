/* Memory on the GPU between guard zones, for tests of CUDA files, and what is near enough in each
 * format. All bytes are 0xff at first, NaN in every format: what a kernel does not write stays that
 * way, and what it reads without right spoils its result. */
#ifndef INF_GUARDED_H
#define INF_GUARDED_H

#include "tests/cuda/cuda_check.h"

enum { GUARD_BYTES = 1024, UNWRITTEN = 0xff };
static const int32_t FORMATS[3] = {INF_DTYPE_F32, INF_DTYPE_F16, INF_DTYPE_BF16};

/* Under a sanitizer everything takes many times as long; the environment says so. */
static bool brief() { return getenv("SANITIZER") != NULL; }

/* For launchers' `early`: now and then, where the GPU knows it. */
static int32_t some_early() {
    int major = 0;
    must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "an attribute");
    return major >= 9 ? below(2) : 0;
}

static const char *format_name(int32_t dtype) {
    return dtype == INF_DTYPE_F32    ? "f32"
           : dtype == INF_DTYPE_F16  ? "f16"
           : dtype == INF_DTYPE_E4M3 ? "e4m3"
                                     : "bf16";
}

static size_t format_size(int32_t dtype) { return (size_t)bytes_of(dtype); }

struct guarded {
    uint8_t *base;
    size_t shift, bytes;
    void *p() const { return base + GUARD_BYTES + shift; }
    template <class T> T *as() const { return (T *)p(); }
};

/* shift: bytes off the 16-byte boundary. */
static guarded guard(size_t bytes, size_t shift = 0) {
    guarded g = {NULL, shift, bytes};
    must(cudaMalloc((void **)&g.base, bytes + shift + 2 * GUARD_BYTES), "cudaMalloc");
    must(cudaMemset(g.base, UNWRITTEN, bytes + shift + 2 * GUARD_BYTES), "cudaMemset");
    return g;
}

static guarded guard_copy(const void *from, size_t bytes, size_t shift = 0) {
    guarded g = guard(bytes, shift);
    if (bytes > 0) {
        must(cudaMemcpy(g.p(), from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    return g;
}

template <class T> static guarded guard_copy(const std::vector<T> &v, size_t shift = 0) {
    return guard_copy(v.data(), v.size() * sizeof(T), shift);
}

/* Waits, checks the guards, takes the content and gives the memory back. */
static std::vector<uint8_t> take(const guarded &g) {
    std::vector<uint8_t> all(g.bytes + g.shift + 2 * GUARD_BYTES);
    must(cudaDeviceSynchronize(), "the kernel");
    must(cudaMemcpy(all.data(), g.base, all.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
    must(cudaFree(g.base), "cudaFree");
    size_t touched = 0, first = GUARD_BYTES + g.shift;
    for (size_t i = 0; i < all.size(); i++) {
        touched += (i < first || i >= first + g.bytes) && all[i] != UNWRITTEN;
    }
    CHECK(touched == 0, "%zu bytes of guards were written", touched);
    return std::vector<uint8_t>(all.begin() + (long)first, all.begin() + (long)(first + g.bytes));
}

/* Number i of a buffer in a format. */
static double number_at(const uint8_t *bytes, int32_t dtype, size_t i) {
    if (dtype == INF_DTYPE_F32) {
        float f;
        memcpy(&f, bytes + 4 * i, sizeof f);
        return (double)f;
    }
    if (dtype == INF_DTYPE_E4M3) {
        return from_e4m3(bytes[i]);
    }
    uint16_t h;
    memcpy(&h, bytes + 2 * i, sizeof h);
    return number_of(h, dtype);
}

static double number_at(const std::vector<uint8_t> &bytes, int32_t dtype, size_t i) {
    return number_at(bytes.data(), dtype, i);
}

/* n random numbers in (-1, 1) of a format. */
static std::vector<uint8_t> random_numbers(size_t n, int32_t dtype) {
    std::vector<uint8_t> bytes(n * format_size(dtype));
    if (dtype == INF_DTYPE_F32) {
        for (size_t i = 0; i < n; i++) {
            float f = number();
            memcpy(&bytes[4 * i], &f, sizeof f);
        }
    } else if (n > 0) {
        std::vector<uint16_t> h = halves(n, dtype);
        memcpy(bytes.data(), h.data(), bytes.size());
    }
    return bytes;
}

/* Whether got is want, computed in f32 with an error of up to `slack` of its size plus `floor`, and
 * rounded once to the format. */
static bool rounded_once(double got, double want, int32_t dtype, double slack, double floor) {
    double half = dtype == INF_DTYPE_F32    ? 0x1p-24
                  : dtype == INF_DTYPE_F16  ? 0x1p-11
                  : dtype == INF_DTYPE_E4M3 ? 0x1p-4
                                            : 0x1p-8;
    double least = dtype == INF_DTYPE_F16    ? 0x1p-25
                   : dtype == INF_DTYPE_E4M3 ? 0x1p-10
                                             : 0.0; /* half of its smallest number */
    return fabs(got - want) <= fabs(want) * (half + slack) * 1.01 + floor + least;
}

#endif
