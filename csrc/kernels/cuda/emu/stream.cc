/* Streams, events, captures and graphs.
 *
 * A stream is a queue of work, done by whoever first waits for it. Two locks: `lock` guards the
 * queue, `turn` is held while work is done, so that a stream's work is done in order by one OS
 * thread at a time. Waiting for an event does the work in front of it in the stream that recorded
 * it; such waits follow the order in which calls were made, so they cannot form a ring.
 *
 * The legacy stream (NULL) and the blocking ones wait for each other: before one is put something
 * into, the others are finished. */
#include <stdlib.h>
#include <time.h>

#include <atomic>
#include <deque>
#include <mutex>

#include "kernels/cuda/emu/state.h"

/* A place in a stream that is waited for. */
struct emu_mark {
    std::atomic<bool> done{false};
    double seconds = 0;
    std::shared_ptr<struct CUstream_st> stream;
    std::shared_ptr<struct emu_capture> capture; /* recorded while captured: no place in time */
};

struct emu_capture {
    std::vector<emu_work> work;
    cudaStreamCaptureMode mode;
    bool spoilt = false;
    const void *thread;
    std::vector<std::shared_ptr<struct CUstream_st>> joined; /* by an event */
};

struct CUstream_st {
    std::mutex lock;
    std::recursive_mutex turn;
    std::deque<emu_work> queue;
    std::shared_ptr<emu_capture> capture;
    bool origin = false; /* of the capture */
    bool blocking = true;
};

struct CUevent_st {
    std::mutex lock;
    std::shared_ptr<emu_mark> mark; /* of the last record */
    bool timing = true;
};

struct CUgraph_st {
    std::vector<emu_work> work;
};
struct CUgraphExec_st {
    std::shared_ptr<std::vector<emu_work>> work;
};

namespace {

typedef std::shared_ptr<CUstream_st> stream_ref;

struct stream_list {
    std::mutex lock;
    std::vector<stream_ref> all; /* the legacy stream first */
    std::atomic<int> global_captures{0};

    stream_list() { all.push_back(std::make_shared<CUstream_st>()); }
};

stream_list *streams() {
    static stream_list *s = new stream_list;
    return s;
}

thread_local std::vector<std::shared_ptr<emu_capture>> captures; /* not relaxed, of this thread */
thread_local char this_thread;

bool is_eager() {
    static const bool eager = [] {
        const char *s = getenv("INF_EMU_EAGER");
        return s != NULL && s[0] == '1';
    }();
    return eager;
}

double now() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* NULL: there is no such stream. */
stream_ref find(cudaStream_t stream) {
    stream_list *s = streams();
    std::lock_guard<std::mutex> guard(s->lock);
    if (stream == NULL) {
        return s->all[0];
    }
    for (const stream_ref &r : s->all) {
        if (r.get() == stream) {
            return r;
        }
    }
    return NULL;
}

bool is_legacy(const stream_ref &s) { return s == find(NULL); }

/* Does one piece of work; false: there is none. */
bool do_one(CUstream_st *s) {
    std::lock_guard<std::recursive_mutex> turn(s->turn);
    emu_work work;
    {
        std::lock_guard<std::mutex> guard(s->lock);
        if (s->queue.empty()) {
            return false;
        }
        work = std::move(s->queue.front());
        s->queue.pop_front();
    }
    emu_step_stream = s;
    emu_step++;
    work();
    return true;
}

void finish(CUstream_st *s) {
    std::lock_guard<std::recursive_mutex> turn(s->turn);
    while (do_one(s)) {
    }
}

void finish_mark(const std::shared_ptr<emu_mark> &mark) {
    if (mark->stream == NULL || mark->done) {
        return;
    }
    std::lock_guard<std::recursive_mutex> turn(mark->stream->turn);
    while (!mark->done && do_one(mark->stream.get())) {
    }
}

std::vector<stream_ref> all_streams() {
    stream_list *s = streams();
    std::lock_guard<std::mutex> guard(s->lock);
    return s->all;
}

cudaError_t enqueue(const stream_ref &s, emu_work work) {
    if (s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    if (s->capture != NULL) {
        if (s->capture->spoilt) {
            return emu_fail(cudaErrorStreamCaptureInvalidated);
        }
        s->capture->work.push_back(std::move(work));
        return cudaSuccess;
    }
    stream_ref legacy = find(NULL);
    if (s == legacy) {
        for (const stream_ref &other : all_streams()) {
            if (other->blocking && other->capture != NULL) {
                other->capture->spoilt = true;
                return emu_fail(cudaErrorStreamCaptureImplicit);
            }
        }
        emu_finish_all(false);
    } else if (s->blocking) {
        finish(legacy.get());
    }
    {
        std::lock_guard<std::mutex> guard(s->lock);
        s->queue.push_back(std::move(work));
    }
    if (is_eager()) {
        finish(s.get());
    }
    return cudaSuccess;
}

} // namespace

thread_local const void *emu_step_stream;
thread_local uint64_t emu_step;

bool emu_is_forbidden() {
    for (const std::shared_ptr<emu_capture> &c : captures) {
        c->spoilt = true;
    }
    return !captures.empty() || streams()->global_captures > 0;
}

void emu_finish_all(bool also_non_blocking) {
    for (const stream_ref &s : all_streams()) {
        if (s->blocking || also_non_blocking) {
            finish(s.get());
        }
    }
}

cudaError_t emu_enqueue(cudaStream_t stream, emu_work work) {
    return enqueue(find(stream), std::move(work));
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) {
    stream_ref s = std::make_shared<CUstream_st>();
    s->blocking = (flags & cudaStreamNonBlocking) == 0;
    std::lock_guard<std::mutex> guard(streams()->lock);
    streams()->all.push_back(s);
    *out = s.get();
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
    return cudaStreamCreateWithPriority(out, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithPriority(out, 0, 0); }

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    stream_ref s = find(stream);
    if (s == NULL || stream == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    finish(s.get());
    stream_list *list = streams();
    std::lock_guard<std::mutex> guard(list->lock);
    for (size_t i = 1; i < list->all.size(); i++) {
        if (list->all[i] == s) {
            list->all.erase(list->all.begin() + (ptrdiff_t)i);
            break;
        }
    }
    return cudaSuccess;
}

/* A captured stream cannot be waited for. */
static cudaError_t check_waitable(const stream_ref &s) {
    if (s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    if (s->capture != NULL) {
        s->capture->spoilt = true;
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    stream_ref s = find(stream);
    cudaError_t status = check_waitable(s);
    if (status == cudaSuccess) {
        finish(s.get());
    }
    return status;
}

/* Every question lets one piece of work be done. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    stream_ref s = find(stream);
    cudaError_t status = check_waitable(s);
    if (status != cudaSuccess) {
        return status;
    }
    return do_one(s.get()) ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
    if (emu_is_forbidden()) {
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    emu_finish_all(true);
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *arg) {
    return emu_enqueue(stream, [=] { function(arg); });
}

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    *out = new CUevent_st;
    (*out)->timing = (flags & cudaEventDisableTiming) == 0;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, 0); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    if (event == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    delete event;
    return cudaSuccess;
}

static std::shared_ptr<emu_mark> mark_of(cudaEvent_t event) {
    std::lock_guard<std::mutex> guard(event->lock);
    return event->mark;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    stream_ref s = find(stream);
    if (event == NULL || s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    std::shared_ptr<emu_mark> mark = std::make_shared<emu_mark>();
    mark->capture = s->capture;
    mark->stream = s->capture != NULL ? NULL : s;
    {
        std::lock_guard<std::mutex> guard(event->lock);
        event->mark = mark;
    }
    if (mark->capture != NULL) {
        return cudaSuccess; /* it only orders captured work, which is in order already */
    }
    return enqueue(s, [mark] {
        mark->seconds = now();
        mark->done = true;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    stream_ref s = find(stream);
    if (event == NULL || s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    std::shared_ptr<emu_mark> mark = mark_of(event);
    if (mark == NULL) {
        return cudaSuccess; /* never recorded */
    }
    if (mark->capture != NULL) {
        if (s->capture == NULL) {
            s->capture = mark->capture;
            s->origin = false;
            mark->capture->joined.push_back(s);
        }
        return s->capture == mark->capture ? cudaSuccess
                                           : emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    if (s->capture != NULL) {
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    return enqueue(s, [mark] { finish_mark(mark); });
}

static cudaError_t check_event(cudaEvent_t event, std::shared_ptr<emu_mark> *mark) {
    if (event == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    *mark = mark_of(event);
    if (*mark != NULL && (*mark)->capture != NULL) {
        (*mark)->capture->spoilt = true;
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    std::shared_ptr<emu_mark> mark;
    cudaError_t status = check_event(event, &mark);
    if (status == cudaSuccess && mark != NULL) {
        finish_mark(mark);
    }
    return status;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    std::shared_ptr<emu_mark> mark;
    cudaError_t status = emu_is_forbidden() ? emu_fail(cudaErrorStreamCaptureUnsupported)
                                            : check_event(event, &mark);
    if (status != cudaSuccess || mark == NULL || mark->done) {
        return status;
    }
    do_one(mark->stream.get());
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    if (begin == NULL || end == NULL || !begin->timing || !end->timing) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    std::shared_ptr<emu_mark> a = mark_of(begin), b = mark_of(end);
    if (a == NULL || b == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    if (!a->done || !b->done) {
        return cudaErrorNotReady;
    }
    *ms = (float)(1e3 * (b->seconds - a->seconds));
    return cudaSuccess;
}

/* ---- captures and graphs ---- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    stream_ref s = find(stream);
    if (s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    if (is_legacy(s)) {
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    if (s->capture != NULL) {
        return emu_fail(cudaErrorInvalidValue);
    }
    s->capture = std::make_shared<emu_capture>();
    s->capture->mode = mode;
    s->capture->thread = &this_thread;
    s->origin = true;
    if (mode != cudaStreamCaptureModeRelaxed) {
        captures.push_back(s->capture);
    }
    streams()->global_captures += mode == cudaStreamCaptureModeGlobal;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
    stream_ref s = find(stream);
    *out = NULL;
    if (s == NULL || s->capture == NULL) {
        return emu_fail(cudaErrorInvalidValue);
    }
    std::shared_ptr<emu_capture> c = s->capture;
    if (!s->origin) {
        return emu_fail(cudaErrorStreamCaptureUnmatched);
    }
    if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != &this_thread) {
        return emu_fail(cudaErrorStreamCaptureWrongThread);
    }
    for (const stream_ref &other : c->joined) {
        other->capture = NULL;
    }
    c->joined.clear();
    s->capture = NULL;
    for (size_t i = 0; i < captures.size(); i++) {
        if (captures[i] == c) {
            captures.erase(captures.begin() + (ptrdiff_t)i);
            break;
        }
    }
    streams()->global_captures -= c->mode == cudaStreamCaptureModeGlobal;
    if (c->spoilt) {
        return emu_fail(cudaErrorStreamCaptureInvalidated);
    }
    *out = new CUgraph_st{c->work};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    stream_ref s = find(stream);
    if (s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    *status = s->capture == NULL   ? cudaStreamCaptureStatusNone
              : s->capture->spoilt ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    if (graph == NULL) {
        return emu_fail(cudaErrorInvalidValue);
    }
    *exec = new CUgraphExec_st{std::make_shared<std::vector<emu_work>>(graph->work)};
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *exec, cudaGraph_t graph,
                                          unsigned long long flags) {
    return cudaGraphInstantiate(exec, graph, flags);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    if (exec == NULL) {
        return emu_fail(cudaErrorInvalidValue);
    }
    std::shared_ptr<std::vector<emu_work>> work = exec->work;
    return emu_enqueue(stream, [work] {
        for (const emu_work &w : *work) {
            emu_step++;
            w();
        }
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return exec != NULL ? cudaSuccess : emu_fail(cudaErrorInvalidValue);
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return graph != NULL ? cudaSuccess : emu_fail(cudaErrorInvalidValue);
}
