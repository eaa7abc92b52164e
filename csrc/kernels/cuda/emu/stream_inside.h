/* What stream.cc, event.cc and graph.cc share. */
#ifndef INF_EMU_STREAM_INSIDE_H
#define INF_EMU_STREAM_INSIDE_H

#include <atomic>
#include <deque>
#include <mutex>

#include "kernels/cuda/emu/state.h"

typedef std::shared_ptr<struct CUstream_st> emu_stream;

struct emu_capture {
    std::vector<emu_work> work;
    cudaStreamCaptureMode mode;
    bool spoilt = false;
    const void *thread;             /* that began it */
    std::vector<emu_stream> joined; /* by an event */
};

/* Work of a stream. ready says whether it may be done yet; empty: it may. */
struct emu_item {
    emu_work work;
    std::function<bool()> ready;
    bool afresh = false; /* what was asked for before was known to be over */
};

struct CUstream_st {
    std::mutex lock;
    std::deque<emu_item> queue;
    bool busy = false; /* under the lock: a thread is at the first item */
    bool over = false; /* somebody was told that all is done, and nothing was asked for since */
    std::shared_ptr<emu_capture> capture;
    bool origin = false; /* of the capture */
    bool blocking = true;
    int device = 0; /* that was the thread's when it was made */
};

/* NULL: there is no such stream. */
emu_stream emu_find_stream(cudaStream_t stream);

/* Does the stream's first piece of work, if it may be done and nobody is at it. */
enum emu_progress { EMU_NOTHING_LEFT, EMU_ONE_DONE, EMU_NOT_YET };
emu_progress emu_do_one(CUstream_st *s);

/* Puts work into the stream, or into what it is captured to. */
cudaError_t emu_put(const emu_stream &s, emu_work work, std::function<bool()> ready = nullptr);

/* Captures that the calling thread began and that forbid it to wait, and how many forbid all. */
extern thread_local std::vector<std::shared_ptr<emu_capture>> emu_captures;
extern std::atomic<int> emu_global_captures;

#endif
