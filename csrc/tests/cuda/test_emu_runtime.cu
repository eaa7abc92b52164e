/* The runtime's interface as lanes use it: streams, events, pinned memory, captures and their
 * replay, what launches are refused. On a GPU this checks what is taken for granted, in emulation
 * the emulator. */
#include "tests/cuda/streams.h"
#include "tests/cuda/words.h"

enum { N = 3000 };

/* out[i] = 3 in[i] + 1 */
static __global__ void step_kernel(words_args a) {
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < a.n) {
        a.out[i] = 3 * a.in[i] + 1;
    }
}

static cudaError_t launch_step(const void *in, void *out, cudaStream_t stream) {
    words_args a = {(const uint32_t *)in, (uint32_t *)out, N};
    return (cudaError_t)INF_LAUNCH(step_kernel, dim3((N + 127) / 128), dim3(128), 0, stream, a);
}

static std::vector<uint32_t> words() {
    std::vector<uint32_t> v;
    for (int i = 0; i < N; i++) {
        v.push_back((uint32_t)next_u64());
    }
    return v;
}

static uint32_t stepped(uint32_t x, int times) {
    for (int i = 0; i < times; i++) {
        x = 3 * x + 1;
    }
    return x;
}

static void check_words(const char *what, const uint32_t *got, const std::vector<uint32_t> &in,
                        int times) {
    int wrong = 0;
    for (size_t i = 0; i < N; i++) {
        wrong += got[i] != stepped(in[i], times);
    }
    CHECK(wrong == 0, "%s: %d of %d words are wrong", what, wrong, (int)N);
}

/* Memory whose filling, which is the legacy stream's, is over. */
static guarded room() {
    guarded g = guard(N * 4);
    must(cudaDeviceSynchronize(), "wait");
    return g;
}

/* ---- order ---- */

/* Two streams, one waiting for the other's event; host memory on both ends. */
static void check_streams() {
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t there = NULL, begin = NULL, end = NULL;
    must(cudaEventCreateWithFlags(&there, cudaEventDisableTiming), "an event");
    must(cudaEventCreate(&begin), "an event");
    must(cudaEventCreate(&end), "an event");
    guarded a = room(), b = room();
    uint32_t *from = pinned(N), *to = pinned(N);
    std::vector<uint32_t> in = words();
    memcpy(from, in.data(), N * 4);
    must(cudaEventRecord(begin, first), "record");
    must(cudaMemcpyAsync(a.p(), from, N * 4, cudaMemcpyHostToDevice, first), "copy");
    must(launch_step(a.p(), b.p(), first), "launch");
    must(cudaEventRecord(there, first), "record");
    must(cudaStreamWaitEvent(second, there, 0), "wait");
    must(launch_step(b.p(), a.p(), second), "launch");
    must(cudaMemcpyAsync(to, a.p(), N * 4, cudaMemcpyDeviceToHost, second), "copy");
    must(cudaEventRecord(end, second), "record");
    cudaError_t status;
    while ((status = cudaEventQuery(end)) == cudaErrorNotReady) {
    }
    must(status, "query");
    check_words("two streams", to, in, 2);
    float ms = -1;
    must(cudaEventElapsedTime(&ms, begin, end), "elapsed time");
    CHECK(ms >= 0 && ms < 60e3f, "%f ms", (double)ms);
    /* A kernel that reads and writes pinned memory. */
    void *seen = NULL;
    must(cudaHostGetDevicePointer(&seen, to, 0), "a device pointer");
    must(launch_step(from, seen, second), "launch");
    must(cudaStreamSynchronize(second), "wait");
    must(cudaStreamQuery(second), "query");
    check_words("pinned memory", to, in, 1);
    /* Pageable memory is the caller's again on return. */
    std::vector<uint32_t> mine = in, back(N);
    must(cudaMemcpyAsync(a.p(), mine.data(), N * 4, cudaMemcpyHostToDevice, first), "copy");
    mine.assign(N, 0);
    must(launch_step(a.p(), b.p(), first), "launch");
    must(cudaMemcpyAsync(back.data(), b.p(), N * 4, cudaMemcpyDeviceToHost, first), "copy");
    must(cudaStreamSynchronize(first), "wait");
    check_words("pageable memory", back.data(), in, 1);
    (void)take(a);
    (void)take(b);
    must(cudaFreeHost(from), "free");
    must(cudaFreeHost(to), "free");
    must(cudaEventDestroy(there), "an event");
    must(cudaEventDestroy(begin), "an event");
    must(cudaEventDestroy(end), "an event");
    must(cudaStreamDestroy(first), "a stream");
    must(cudaStreamDestroy(second), "a stream");
    printf("streams\n");
}

static void check_rows() {
    cudaStream_t stream = new_stream();
    std::vector<uint32_t> in = words(), out(N, 7);
    guarded a = room();
    /* 20 rows of 30 words out of rows of 50, to rows of 40. */
    must(cudaMemsetAsync(a.p(), 0, N * 4, stream), "set");
    must(cudaMemcpy2DAsync(a.p(), 160, in.data(), 200, 120, 20, cudaMemcpyHostToDevice, stream),
         "rows");
    must(cudaStreamSynchronize(stream), "wait");
    must(cudaMemcpy(out.data(), a.p(), N * 4, cudaMemcpyDeviceToHost), "copy");
    for (size_t i = 0; i < N; i++) {
        uint32_t want = i / 40 < 20 && i % 40 < 30 ? in[i / 40 * 50 + i % 40] : 0;
        CHECK(out[i] == want, "rows: word %zu is %#x, not %#x", i, out[i], want);
    }
    (void)take(a);
    must(cudaStreamDestroy(stream), "a stream");
    printf("rows\n");
}

/* ---- captures ---- */

static void add_one(void *count) { ++*(int *)count; }

static void check_graph() {
    cudaStream_t stream = new_stream(), other = new_stream();
    cudaEvent_t fork = NULL, join = NULL;
    must(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming), "an event");
    must(cudaEventCreateWithFlags(&join, cudaEventDisableTiming), "an event");
    guarded a = room(), b = room(), c = room();
    uint32_t *from = pinned(N), *to = pinned(2 * N);
    int calls = 0;
    memset(from, 0, N * 4);
    memset(to, 0xff, 2 * N * 4);
    cudaStreamCaptureStatus state;
    must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    must(cudaStreamIsCapturing(stream, &state), "capture");
    CHECK(state == cudaStreamCaptureStatusActive, "state %d", (int)state);
    must(cudaMemcpyAsync(a.p(), from, N * 4, cudaMemcpyHostToDevice, stream), "copy");
    must(cudaEventRecord(fork, stream), "record");
    must(cudaStreamWaitEvent(other, fork, 0), "wait");
    must(launch_step(a.p(), b.p(), stream), "launch");
    must(launch_step(a.p(), c.p(), other), "launch");
    must(cudaEventRecord(join, other), "record");
    must(cudaStreamWaitEvent(stream, join, 0), "wait");
    must(launch_step(b.p(), a.p(), stream), "launch");
    must(cudaMemcpyAsync(to, a.p(), N * 4, cudaMemcpyDeviceToHost, stream), "copy");
    must(cudaMemcpyAsync(to + N, c.p(), N * 4, cudaMemcpyDeviceToHost, stream), "copy");
    must(cudaMemsetAsync(a.p(), 0, N * 4, stream), "set");
    must(cudaLaunchHostFunc(stream, add_one, &calls), "call");
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    must(cudaStreamEndCapture(stream, &graph), "capture");
    must(cudaGraphInstantiateWithFlags(&exec, graph, 0), "graph");
    must(cudaGraphDestroy(graph), "graph");
    must(cudaStreamSynchronize(stream), "wait");
    CHECK(to[0] == 0xffffffff && calls == 0, "what is captured was done");
    for (int i = 0; i < 3; i++) {
        std::vector<uint32_t> in = words();
        memcpy(from, in.data(), N * 4);
        must(cudaGraphLaunch(exec, stream), "replay");
        must(cudaStreamSynchronize(stream), "wait");
        check_words("replay", to, in, 2);
        check_words("replay of the fork", to + N, in, 1);
        CHECK(calls == i + 1, "%d calls", calls);
    }
    must(cudaGraphExecDestroy(exec), "graph");
    (void)take(a);
    (void)take(b);
    (void)take(c);
    must(cudaFreeHost(from), "free");
    must(cudaFreeHost(to), "free");
    must(cudaEventDestroy(fork), "an event");
    must(cudaEventDestroy(join), "an event");
    must(cudaStreamDestroy(stream), "a stream");
    must(cudaStreamDestroy(other), "a stream");
    printf("graphs\n");
}

/* A call that waits spoils a capture. */
static void check_spoilt() {
    for (int i = 0; i < 3; i++) {
        cudaStream_t stream = new_stream();
        cudaGraph_t graph = NULL;
        void *p = NULL;
        must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
        cudaError_t status = i == 0   ? cudaStreamSynchronize(stream)
                             : i == 1 ? cudaMalloc(&p, 100)
                                      : cudaStreamQuery(stream);
        CHECK(status == cudaErrorStreamCaptureUnsupported, "call %d: %s", i,
              cudaGetErrorName(status));
        status = cudaStreamEndCapture(stream, &graph);
        CHECK(status == cudaErrorStreamCaptureInvalidated && graph == NULL, "call %d: %s", i,
              cudaGetErrorName(status));
        (void)cudaGetLastError();
        must(cudaStreamSynchronize(stream), "wait");
        must(cudaStreamDestroy(stream), "a stream");
    }
    printf("spoilt captures\n");
}

/* ---- refusals ---- */

static __global__ void shared_kernel(words_args a) {
    INF_SHARED(shared);
    uint32_t *last = (uint32_t *)(shared + a.n - 4);
    if (threadIdx.x == 0) {
        *last = a.in[0] + 1;
    }
    __syncthreads();
    a.out[threadIdx.x] = *last;
}

static void check_refusals() {
    std::vector<uint32_t> in(1, 41);
    guarded from = guard_copy(in), to = guard(64 * 4);
    words_args a = {from.as<uint32_t>(), to.as<uint32_t>(), 60 << 10};
    cudaError_t status =
        (cudaError_t)INF_LAUNCH(shared_kernel, dim3(1), dim3(64), 60 << 10, NULL, a);
    CHECK(status == cudaErrorInvalidValue, "60 KiB: %s", cudaGetErrorName(status));
    CHECK(cudaGetLastError() == cudaErrorInvalidValue, "the error is not remembered");
    CHECK(cudaGetLastError() == cudaSuccess, "the error is remembered for ever");
    status = (cudaError_t)INF_ALLOW_SHARED(shared_kernel, (227 << 10) + 1);
    CHECK(status == cudaErrorInvalidValue, "beyond 227 KiB: %s", cudaGetErrorName(status));
    (void)cudaGetLastError();
    must((cudaError_t)INF_ALLOW_SHARED(shared_kernel, 60 << 10), "60 KiB");
    must((cudaError_t)INF_LAUNCH(shared_kernel, dim3(1), dim3(64), 60 << 10, NULL, a), "60 KiB");
    std::vector<uint8_t> bytes = take(to);
    for (int i = 0; i < 64; i++) {
        CHECK(bytes[(size_t)(4 * i)] == 42, "word %d: %d", i, bytes[(size_t)(4 * i)]);
    }
    dim3 grids[] = {dim3(1), dim3(0), dim3(1, 65536)}, blocks[] = {dim3(1025), dim3(1), dim3(1)};
    for (int i = 0; i < 3; i++) {
        status = (cudaError_t)INF_LAUNCH(shared_kernel, grids[i], blocks[i], 0, NULL, a);
        CHECK(status == cudaErrorInvalidConfiguration || status == cudaErrorInvalidValue,
              "configuration %d: %s", i, cudaGetErrorName(status));
        (void)cudaGetLastError();
    }
    (void)take(from);
    void *p = NULL;
    status = cudaMalloc(&p, (size_t)1 << 46);
    CHECK(status == cudaErrorMemoryAllocation && p == NULL, "64 TiB: %s", cudaGetErrorName(status));
    (void)cudaGetLastError();
    CHECK(cudaSetDevice(4711) == cudaErrorInvalidDevice, "device 4711");
    (void)cudaGetLastError();
    printf("refusals\n");
}

int main(int argc, char **argv) {
    start(argc, argv);
    (void)float_of;
    (void)word_of;
    check_streams();
    check_rows();
    check_graph();
    check_spoilt();
    check_refusals();
    return report("test_emu_runtime");
}
