/* What the tests of instructions and threads share: a kernel over words, run and read back. */
#ifndef INF_WORDS_H
#define INF_WORDS_H

#include "kernels/cuda/prelude.cuh"
#include "tests/cuda/guarded.h"

/* Runs a kernel that takes `in` and gives `n` words. */
struct words_args {
    const uint32_t *in;
    uint32_t *out;
    int32_t n;
};

template <typename In>
static std::vector<uint32_t> run(void (*kernel)(words_args), dim3 grid, int threads, size_t shared,
                                 const std::vector<In> &in, size_t n) {
    guarded from = guard_copy(in), to = guard(n * 4);
    words_args a = {from.as<uint32_t>(), to.as<uint32_t>(), (int32_t)n};
    must((cudaError_t)INF_LAUNCH(kernel, grid, dim3((unsigned)threads), shared, NULL, a), "launch");
    std::vector<uint8_t> bytes = take(to);
    std::vector<uint32_t> words(n);
    memcpy(words.data(), bytes.data(), n * 4);
    (void)take(from);
    return words;
}

static float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static uint32_t word_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

#endif
