/* The race detector (emu/race.h): wrong kernels in child processes must be told of, right ones not.
 * Without it, there is nothing to test. */
#include "tests/cuda/ring.h"

#if defined(INF_EMU) && defined(INF_EMU_RACES)

#include "kernels/cuda/bulk.cuh"

#include <sys/wait.h>
#include <unistd.h>

/* Lanes exchange by memory; a shuffle does not order that. */
template <bool SHUFFLE> static __global__ void lanes_kernel(words_args a) {
    INF_SHARED(shared);
    uint16_t *ring = (uint16_t *)shared;
    uint32_t t = threadIdx.x;
    ring[t] = (uint16_t)t;
    uint32_t x = __shfl_xor_sync(0xffffffffu, t, 1);
    if (!SHUFFLE) {
        __syncwarp();
    }
    a.out[t] = x + ring[t ^ 1];
}

/* Half of the threads write, the others read: after a barrier of both, or one that the readers
 * arrive at and do not wait for. */
template <bool WAIT> static __global__ void halves_kernel(words_args a) {
    __shared__ uint32_t words[64];
    uint32_t t = threadIdx.x;
    if (t < 64) {
        words[t] = a.in[t];
        bar_sync(1, THREADS);
    } else {
        if (WAIT) {
            bar_sync(1, THREADS);
        } else {
            bar_arrive(1, THREADS);
        }
        a.out[t] = words[t - 64];
    }
}

/* The last block adds up what the others wrote. */
template <bool FENCE> static __global__ void last_block_kernel(words_args a) {
    __shared__ uint32_t last;
    uint32_t t = threadIdx.x;
    a.out[64 + blockIdx.x * THREADS + t] = t;
    if (FENCE) {
        __threadfence();
    }
    __syncthreads();
    if (t == 0) {
        last = atomicAdd(&a.out[2048], 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last != 0) {
        if (FENCE) {
            __threadfence();
        }
        uint32_t sum = 0;
        for (uint32_t b = 0; b < gridDim.x; b++) {
            sum += a.out[64 + b * THREADS + t];
        }
        a.out[64 + gridDim.x * THREADS + t] = sum;
    }
}

/* Blocks that write the same halves of words, or others. */
template <bool SAME> static __global__ void blocks_kernel(words_args a) {
    ((uint16_t *)a.out)[SAME ? threadIdx.x : blockIdx.x * THREADS + threadIdx.x] = 1;
}

/* Copies one after another to the same place, when all have read what was there, or perhaps not. */
template <bool TOLD> static __global__ void copies_kernel(words_args a) {
    INF_SHARED(shared);
    uint64_t *full = (uint64_t *)(shared + 512); /* a barrier per copy */
    uint32_t t = threadIdx.x, sum = 0;
    if (t == 0) {
        for (int i = 0; i < 3; i++) {
            mbar_init(full + i);
        }
    }
    __syncthreads();
    for (uint32_t i = 0; i < 3; i++) {
        if (t == 0) {
            mbar_expect(full + i, 512);
            bulk_copy(shared, a.in + i * 128, 512, full + i);
        }
        mbar_wait(full + i, 0);
        sum += ((const uint32_t *)shared)[(t + 1) % THREADS];
        if (TOLD) {
            __syncthreads();
        }
    }
    a.out[t] = sum;
}

/* Copies by cp.async, read after the wait and a barrier, or after the wait alone. */
template <bool BARRIER> static __global__ void async_kernel(words_args a) {
    INF_SHARED(shared);
    uint32_t t = threadIdx.x;
    cp_async_16(shared + 16 * t, a.in + 4 * t, true);
    cp_async_commit();
    cp_async_wait<0>();
    if (BARRIER) {
        __syncthreads();
    }
    a.out[t] = *(const uint32_t *)(shared + 16 * ((t + 1) % THREADS));
}

/* Starts early, and reads what the kernel in front wrote. */
template <bool WAIT> static __global__ void early_kernel(words_args a) {
    uint32_t x = a.in[threadIdx.x]; /* nobody writes that */
    if (WAIT) {
        after_predecessor();
    }
    a.out[THREADS + threadIdx.x] = a.out[threadIdx.x] + x;
    after_predecessor();
}

typedef void (*words_kernel)(words_args);

static const struct {
    const char *name;
    words_kernel right, wrong;
    int blocks;
} cases[] = {
    {"a barrier before reading", ring_kernel<0>, ring_kernel<1>, 1},
    {"a barrier before writing", ring_kernel<0>, ring_kernel<2>, 1},
    {"lanes", lanes_kernel<false>, lanes_kernel<true>, 1},
    {"halves", halves_kernel<true>, halves_kernel<false>, 1},
    {"the last block", last_block_kernel<true>, last_block_kernel<false>, 5},
    {"blocks", blocks_kernel<false>, blocks_kernel<true>, 3},
    {"copies", copies_kernel<true>, copies_kernel<false>, 1},
    {"cp.async", async_kernel<true>, async_kernel<false>, 1},
    {"an early start", early_kernel<true>, early_kernel<false>, 1},
};

/* Where the kernel in front is: in front, and has ended; in front of a recording that the kernel is
 * the first of; in the recording. */
enum front { IN_FRONT, ENDED, OUTSIDE, INSIDE };

/* Behind a kernel that writes out's first words. */
static void run_behind(words_kernel kernel, int blocks, front where) {
    std::vector<uint32_t> zeros(4096);
    bool early = kernel == early_kernel<true> || kernel == early_kernel<false>;
    guarded in = guard_copy(zeros), out = guard_copy(zeros);
    words_args a = {in.as<uint32_t>(), out.as<uint32_t>(), 4096};
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(cudaStreamCreate(&stream), "cudaStreamCreate");
    for (int first = 1; first >= 0; first--) {
        if (where == (first ? INSIDE : OUTSIDE)) {
            must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
        }
        if (first) {
            must((cudaError_t)INF_LAUNCH(ring_kernel<0>, dim3(1), dim3(THREADS), 0, stream, a),
                 "launch");
        } else {
            must((cudaError_t)INF_LAUNCH_EARLY(early, kernel, dim3((unsigned)blocks), dim3(THREADS),
                                               4096, stream, a),
                 "launch");
        }
        if (first && where == ENDED) {
            must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
        }
    }
    if (where == INSIDE || where == OUTSIDE) {
        must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
        must(cudaGraphInstantiateWithFlags(&exec, graph, 0), "cudaGraphInstantiate");
        must(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
    }
    must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    (void)take(in);
    (void)take(out);
}

static char said[1 << 16];

/* In a child; whether it told of a race, and failed. */
static bool is_told(words_kernel kernel, int blocks, front where = IN_FRONT) {
    int ends[2];
    size_t n = 0;
    fflush(stdout);
    if (pipe(ends) != 0) {
        return false;
    }
    pid_t child = fork();
    if (child == 0) {
        (void)dup2(ends[1], 2);
        (void)close(ends[0]);
        run_behind(kernel, blocks, where);
        exit(0);
    }
    (void)close(ends[1]);
    for (ssize_t got; (got = read(ends[0], said + n, sizeof said - 1 - n)) > 0; n += (size_t)got) {
    }
    said[n] = 0;
    (void)close(ends[0]);
    int status = 0;
    bool failed = waitpid(child, &status, 0) == child && status != 0;
    bool told = strstr(said, "emu: a race on") != NULL;
    CHECK(failed == told, "status %#x, but it said: %s", (unsigned)status, said);
    return told;
}

int main(int argc, char **argv) {
    start(argc, argv);
    (void)float_of;
    (void)word_of;
    for (const auto &c : cases) {
        CHECK(!is_told(c.right, c.blocks), "%s: a race where none is: %s", c.name, said);
        CHECK(is_told(c.wrong, c.blocks), "%s: not told", c.name);
    }
    CHECK(!is_told(early_kernel<false>, 1, ENDED), "a race with what had ended: %s", said);
    CHECK(!is_told(early_kernel<false>, 1, OUTSIDE),
          "a race with what had ended when the recording "
          "began: %s",
          said);
    CHECK(is_told(early_kernel<false>, 1, INSIDE), "not told in a recording");
    return report("test_emu_races");
}

#else

int main() {
    printf("test_emu_races: ok (0 failures): it is about the race detector\n");
    return 0;
}

#endif
