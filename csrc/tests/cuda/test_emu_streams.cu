/* The emulator's streams: what does not end by itself, streams that several threads are at, and
 * devices that are lost. On a GPU there is nothing to test. */
#include "tests/cuda/streams.h"

#ifdef INF_EMU

#include <unistd.h>

#include <atomic>
#include <thread>

enum { HANGS_S = 60, TIMES = 16 };

static void check_held() {
    std::atomic<bool> held{true};
    cudaStream_t s = new_stream(), behind = new_stream();
    cudaEvent_t event;
    uint32_t *word = pinned(2);
    word[0] = word[1] = 0;
    must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
    must(emu_hold(s, [&] { return held.load(); }), "emu_hold");
    must(cudaMemsetAsync(word, 1, 4, s), "a memset");
    must(cudaEventRecord(event, s), "a record");
    must(cudaStreamWaitEvent(behind, event, 0), "a wait");
    must(cudaMemsetAsync(word + 1, 1, 4, behind), "a memset");
    for (int i = 0; i < 8; i++) {
        CHECK(cudaStreamQuery(s) == cudaErrorNotReady && cudaEventQuery(event) == cudaErrorNotReady,
              "what is held is done");
        CHECK(cudaStreamQuery(behind) == cudaErrorNotReady, "what waits for it is done");
    }
    CHECK(word[0] == 0 && word[1] == 0, "%#x, %#x", word[0], word[1]);
    std::thread later([&] {
        (void)usleep(20000);
        held = false;
    });
    must(cudaStreamSynchronize(behind), "the stream");
    CHECK(!held && word[0] == 0x01010101 && word[1] == 0x01010101, "%#x, %#x", word[0], word[1]);
    later.join();
    must(cudaEventDestroy(event), "the event");
    must(cudaStreamDestroy(s), "the stream");
    must(cudaStreamDestroy(behind), "the stream");
    must(cudaFreeHost(word), "cudaFreeHost");
}

static void linger(void *begun) {
    *(std::atomic<bool> *)begun = true;
    (void)usleep(3000);
}

/* Streams a and b that wait for each other: one thread is at a's first work when another, which is
 * at b's wait for `first`, comes to a. By the time it may go on there, a's wait for `second` can be
 * in front, which leads back to b. b waits for `third`, too, which does not come while it is held.
 */
struct met_streams {
    cudaStream_t a = new_stream(), b = new_stream(), c = new_stream();
    cudaEvent_t first, second, third;
    std::atomic<bool> begun{false}, held{true};
    uint32_t *word = pinned(1);

    met_streams() {
        *word = 0;
        for (cudaEvent_t *e : {&first, &second, &third}) {
            must(cudaEventCreateWithFlags(e, cudaEventDisableTiming), "an event");
        }
        must(emu_hold(c, [this] { return held.load(); }), "emu_hold");
        must(cudaEventRecord(third, c), "a record");
        must(cudaLaunchHostFunc(a, linger, &begun), "a function");
        must(cudaEventRecord(first, a), "a record");
        must(cudaStreamWaitEvent(b, first, 0), "a wait");
        must(cudaEventRecord(second, b), "a record");
        must(cudaStreamWaitEvent(a, second, 0), "a wait");
        must(cudaStreamWaitEvent(b, third, 0), "a wait");
        must(cudaMemsetAsync(word, 1, 4, b), "a memset");
    }
    ~met_streams() {
        for (cudaEvent_t e : {first, second, third}) {
            must(cudaEventDestroy(e), "an event");
        }
        for (cudaStream_t s : {a, b, c}) {
            must(cudaStreamDestroy(s), "a stream");
        }
        must(cudaFreeHost(word), "cudaFreeHost");
    }
};

/* beyond: the former thread goes on to the wait that leads to b, where the other is. */
static void check_met(bool beyond) {
    met_streams m;
    std::atomic<bool> over{false};
    std::thread other([&] {
        must(beyond ? cudaStreamSynchronize(m.a) : cudaEventSynchronize(m.first), "a wait");
        over = true;
    });
    while (!m.begun) {
        (void)usleep(100);
    }
    for (int left = 4; left > 0; left -= over) {
        CHECK(cudaStreamQuery(m.b) == cudaErrorNotReady, "what is held is done");
    }
    other.join();
    CHECK(*m.word == 0, "a wait was passed over: %#x", *m.word);
    m.held = false;
    must(cudaStreamSynchronize(m.b), "the stream");
    CHECK(*m.word == 0x01010101, "%#x", *m.word);
}

static void check_lost() {
    const cudaError_t error = cudaErrorLaunchFailure;
    cudaStream_t s = new_stream();
    cudaEvent_t event;
    uint32_t *word = pinned(1);
    word[0] = 7;
    must(cudaEventCreate(&event), "an event");
    must(cudaMemsetAsync(word, 1, 4, s), "a memset");
    must(cudaEventRecord(event, s), "a record");
    emu_lose_device(0, error);
    CHECK(cudaStreamQuery(s) == error && cudaStreamSynchronize(s) == error, "the stream goes on");
    CHECK(cudaEventQuery(event) == error && cudaEventSynchronize(event) == error, "and the event");
    CHECK(cudaMemsetAsync(word, 1, 4, s) == error, "it takes more");
    emu_lose_device(0, cudaSuccess);
    (void)cudaGetLastError();
    CHECK(word[0] == 7, "what was lost is done: %#x", word[0]);
    must(cudaEventDestroy(event), "the event");
    must(cudaStreamDestroy(s), "the stream");
    must(cudaFreeHost(word), "cudaFreeHost");
}

/* An alarm ends a test that hangs. */
int main(int argc, char **argv) {
    start(argc, argv);
    (void)alarm(HANGS_S);
    check_held();
    for (int i = 0; i < TIMES; i++) {
        check_met(i % 2 != 0);
    }
    check_lost();
    return report("test_emu_streams");
}

#else

int main() {
    printf("test_emu_streams: ok (0 failures): it is about the emulator\n");
    return 0;
}

#endif
