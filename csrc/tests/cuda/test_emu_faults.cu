/* What the emulator must notice: each wrong kernel runs in a child process, which has to end with a
 * message that names the fault, or has to give another result in one of many orders of threads. On
 * a GPU there is nothing to test. */
#include "kernels/cuda/bulk.cuh"
#include "tests/cuda/ring.h"

#ifdef INF_EMU

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- faults that end the process ---- */

static __global__ void missing_barrier_kernel(words_args a) {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        a.out[threadIdx.x] = __shfl_sync(0xffffffffu, a.in[0], 0); /* lanes 8 .. 31 of warp 1 */
    }
}
static __global__ void two_barriers_kernel(words_args a) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        a.out[threadIdx.x] = 1;
        __syncthreads();
    }
}
static __global__ void odd_exchange_kernel(words_args a) {
    a.out[threadIdx.x] =
        threadIdx.x % 2 != 0 ? __shfl_sync(0xffffffffu, a.in[0], 0) : __ballot_sync(0xffffffffu, 1);
}
static __global__ void foreign_mask_kernel(words_args a) {
    a.out[threadIdx.x] = __ballot_sync(0x0000ffffu, 1);
}
static __global__ void named_barrier_kernel(words_args a) {
    if (threadIdx.x < 32) {
        bar_sync(3, 64); /* nobody else comes */
    }
    a.out[threadIdx.x] = 1;
}
static __global__ void misaligned_copy_kernel(words_args a) {
    INF_SHARED(shared);
    cp_async_16(shared + 8, a.in, true);
}
static __global__ void misaligned_matrix_kernel(words_args a) {
    INF_SHARED(shared);
    ldmatrix_x4(a.out, shared + threadIdx.x * 24);
}
static __global__ void few_lanes_kernel(words_args a) {
    float d[4] = {};
    uint32_t b[2] = {};
    if (threadIdx.x != 5) {
        mma_bf16(d, a.out, b);
    }
}
static __global__ void beyond_shared_kernel(words_args a) {
    INF_SHARED(shared);
    ((uint32_t *)shared)[1024 / 4 + threadIdx.x / 32] = a.in[0];
}
static __global__ void short_copy_kernel(words_args a) {
    INF_SHARED(shared);
    uint64_t *full = (uint64_t *)(shared + 512);
    if (threadIdx.x == 0) {
        mbar_init(full);
        mbar_init_fence();
        mbar_expect(full, 256);
        bulk_copy(shared, a.in, 128, full); /* and not the other half */
    }
    __syncthreads();
    mbar_wait(full, 0);
}
static __global__ void trap_kernel(words_args) { __trap(); }

/* Runs in a child; gives what it says, and its status. */
static int say_and_end(void (*kernel)(words_args), char *said, size_t bytes) {
    int ends[2];
    size_t n = 0;
    fflush(stdout);
    if (pipe(ends) != 0) {
        return 0;
    }
    pid_t child = fork();
    if (child == 0) {
        (void)dup2(ends[1], 2);
        (void)close(ends[0]);
        signal(SIGABRT, SIG_DFL);
        (void)run(kernel, 3, 64, 1024, std::vector<uint32_t>(64), 64);
        _exit(0);
    }
    (void)close(ends[1]);
    for (ssize_t got; (got = read(ends[0], said + n, bytes - 1 - n)) > 0; n += (size_t)got) {
    }
    said[n] = 0;
    (void)close(ends[0]);
    int status = 0;
    return waitpid(child, &status, 0) == child ? status : 0;
}

static void check_faults() {
    static const struct {
        void (*kernel)(words_args);
        const char *says;
    } cases[] = {
        {missing_barrier_kernel, "all threads wait"},
        {missing_barrier_kernel, "threads 0 .. 39: wait in __syncthreads"},
        {two_barriers_kernel, "while others wait in __syncthreads"},
        {odd_exchange_kernel, "wait in __"},
        {foreign_mask_kernel, "lacks the lane that calls"},
        {named_barrier_kernel, "threads 0 .. 31: wait in bar_sync"},
        {misaligned_copy_kernel, "not 16-byte aligned"},
        {misaligned_matrix_kernel, "not 16-byte aligned"},
        {few_lanes_kernel, "mma"},
        {beyond_shared_kernel, "1024"},
        {short_copy_kernel, "threads 0 .. 63: wait in mbar_wait (0x200)"},
        {short_copy_kernel, "barrier 0x200, phase 0: 0 of 1 arrivals and 128 bytes are missing"},
        {trap_kernel, "__trap"},
    };
    static char said[1 << 16];
    int i = 0;
    for (const auto &c : cases) {
        int status = say_and_end(c.kernel, said, sizeof said);
        CHECK(status != 0, "case %d goes unnoticed", i);
        CHECK(strstr(said, c.says) != NULL || strstr(said, "AddressSanitizer") != NULL,
              "case %d does not say \"%s\" but: %s", i, c.says, said);
        CHECK(strstr(said, "kernel") != NULL, "case %d does not say where: %s", i, said);
        i++;
    }
    printf("%d faults\n", i);
}

/* ---- faults that only some orders of threads show ---- */

/* The same within a warp. */
template <bool WITH> static __global__ void warp_ring_kernel(words_args a) {
    __shared__ uint32_t ring[THREADS];
    uint32_t t = threadIdx.x, x = t;
    for (int i = 0; i < 4; i++) {
        ring[t] = x;
        if (WITH) {
            __syncwarp();
        }
        x = ring[t / 32 * 32 + (t + 1) % 32] + 1;
        if (WITH) {
            __syncwarp();
        }
    }
    a.out[blockIdx.x * THREADS + t] = x;
}

/* Each thread of the first warp waits for its own copy, nobody for the others'. */
static __global__ void forgotten_copy_kernel(words_args a) {
    INF_SHARED(shared);
    uint32_t t = threadIdx.x;
    if (t < 32) {
        cp_async_16(shared + 16 * t, a.in + 4 * t, true);
        cp_async_commit();
        cp_async_wait<0>();
    }
    a.out[blockIdx.x * THREADS + t] = *(const volatile uint32_t *)(shared + 4 * t);
}

/* How many blocks got what is not wanted. */
static int wrong_blocks(void (*kernel)(words_args), int shift) {
    enum { BLOCKS = 64 };
    std::vector<uint32_t> in(THREADS);
    for (uint32_t i = 0; i < THREADS; i++) {
        in[i] = i;
    }
    std::vector<uint32_t> out = run(kernel, BLOCKS, THREADS, 1024, in, BLOCKS * THREADS);
    int wrong = 0;
    for (int b = 0; b < BLOCKS; b++) {
        int differ = 0;
        for (uint32_t t = 0; t < THREADS; t++) {
            uint32_t want = shift == 33  ? (t + 4 * 33) % THREADS + 4
                            : shift == 1 ? t / 32 * 32 + (t + 4) % 32 + 4
                                         : t;
            differ += out[(size_t)b * THREADS + t] != want;
        }
        wrong += differ != 0;
    }
    return wrong;
}

static void check_orders() {
    int right[] = {wrong_blocks(ring_kernel<0>, 33), wrong_blocks(warp_ring_kernel<true>, 1)};
    int wrong[] = {wrong_blocks(ring_kernel<1>, 33), wrong_blocks(ring_kernel<2>, 33),
                   wrong_blocks(warp_ring_kernel<false>, 1),
                   wrong_blocks(forgotten_copy_kernel, 0)};
    for (int i = 0; i < 2; i++) {
        CHECK(right[i] == 0, "right kernel %d: %d blocks are wrong", i, right[i]);
    }
    for (int i = 0; i < 4; i++) {
        CHECK(wrong[i] > 0, "wrong kernel %d goes unnoticed", i);
        printf("wrong kernel %d: seen in %d of 64 blocks\n", i, wrong[i]);
    }
}

/* ---- host code that does not wait ---- */

static void check_early_read() {
    uint32_t *in = NULL, *out = NULL;
    cudaStream_t stream = NULL;
    must(cudaHostAlloc(&in, THREADS * 4, cudaHostAllocMapped), "pinned memory");
    must(cudaHostAlloc(&out, THREADS * 4, cudaHostAllocMapped), "pinned memory");
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    memset(out, 0xff, THREADS * 4);
    words_args a = {in, out, THREADS};
    must((cudaError_t)INF_LAUNCH(ring_kernel<0>, dim3(1), dim3(THREADS), 0, stream, a), "launch");
    must(cudaDeviceSynchronize(), "wait");
    uint32_t done = out[0];
    memset(out, 0xff, THREADS * 4);
    must((cudaError_t)INF_LAUNCH(ring_kernel<0>, dim3(1), dim3(THREADS), 0, stream, a), "launch");
    CHECK((getenv("INF_EMU_EAGER") != NULL || out[0] == 0xffffffff) && done == 4 * 33 % THREADS + 4,
          "%#x and %#x", out[0], done);
    must(cudaStreamDestroy(stream), "a stream");
    CHECK(out[0] == done, "%#x after the stream's end", out[0]);
    must(cudaFreeHost(in), "pinned memory");
    must(cudaFreeHost(out), "pinned memory");
    char *heap = (char *)malloc(100);
    void *device = NULL;
    must(cudaMalloc(&device, 100), "memory");
    CHECK(cudaMemcpy(device, heap, 101, cudaMemcpyHostToDevice) == cudaErrorInvalidValue, "size");
    CHECK(cudaMemcpy(heap, heap, 50, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue, "direction");
    CHECK(cudaFree((char *)device + 1) == cudaErrorInvalidValue, "free");
    (void)cudaGetLastError();
    must(cudaFree(device), "memory");
    free(heap);
}

int main(int argc, char **argv) {
    start(argc, argv);
    (void)float_of;
    (void)word_of;
#ifndef INF_EMU_RACES /* which would tell of the wrong kernels */
    check_orders();
#else
    (void)check_orders;
#endif
    check_early_read();
    check_faults();
    return report("test_emu_faults");
}

#else

int main() {
    printf("test_emu_faults: ok (0 failures): it is about the emulator\n");
    return 0;
}

#endif
