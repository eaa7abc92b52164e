/* Streams; events are in event.cc.
 *
 * A stream is a queue of work, done by whoever first waits for it. `lock` guards the queue; the
 * stream is busy while an OS thread is at its first piece of work, so that all of it is done in
 * order. Waiting for an event does the work in front of it in the stream that recorded it; such
 * waits follow the order in which calls were made, so they cannot form a ring.
 *
 * Who finds a stream busy is told that it is not done, and waits for it holding no other: two
 * threads, each at a stream that waits for the other's, would come to a standstill. A stream is
 * busy for the thread itself, too. When it comes to the stream that an event was recorded in,
 * another thread may have brought that past the event, to what waits for the very stream that this
 * one is at, whose first piece of work is not to be done a second time.
 *
 * What is held (emu_hold) keeps its stream from going on, as a kernel does that waits for another
 * device: who asks after the stream is told that it is not done, and who waits for it waits.
 *
 * The legacy stream (NULL) and the blocking ones wait for each other: before one is put something
 * into, the others are finished. */
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "kernels/cuda/emu/stream_inside.h"

thread_local std::vector<std::shared_ptr<emu_capture>> emu_captures;
std::atomic<int> emu_global_captures{0};
thread_local const void *emu_step_stream;
thread_local uint64_t emu_step;

namespace {

struct stream_list {
    std::mutex lock;
    std::vector<emu_stream> all; /* the legacy stream first */

    stream_list() { all.push_back(std::make_shared<CUstream_st>()); }
};

stream_list *streams() {
    static stream_list *s = new stream_list;
    return s;
}

bool is_eager() {
    static const bool eager = [] {
        const char *s = getenv("INF_EMU_EAGER");
        return s != NULL && s[0] == '1';
    }();
    return eager;
}

/* Begins with the first piece of work. A device that is lost does none: what is in its streams is
 * dropped. */
emu_progress take(CUstream_st *s, std::function<bool()> *ready) {
    std::lock_guard<std::mutex> guard(s->lock);
    if (s->busy) {
        return EMU_NOT_YET;
    }
    if (emu_lost_device(s->device) != cudaSuccess) {
        s->queue.clear();
    }
    if (s->queue.empty()) {
        return EMU_NOTHING_LEFT;
    }
    *ready = s->queue.front().ready;
    s->busy = true;
    return EMU_ONE_DONE;
}

emu_item take_out(CUstream_st *s) {
    std::lock_guard<std::mutex> guard(s->lock);
    emu_item item = std::move(s->queue.front());
    s->queue.pop_front();
    return item;
}

void run(CUstream_st *s, const emu_item &item) {
    if (item.work) {
        emu_step_stream = s;
        emu_step += item.afresh ? 2 : 1; /* it does not follow upon what was over */
        item.work();
    }
}

} // namespace

emu_progress emu_do_one(CUstream_st *s) {
    std::function<bool()> ready;
    emu_progress p = take(s, &ready);
    if (p != EMU_ONE_DONE) {
        return p;
    }
    if (ready && !ready()) {
        p = EMU_NOT_YET;
    } else {
        run(s, take_out(s));
    }
    std::lock_guard<std::mutex> guard(s->lock);
    s->busy = false;
    return p;
}

namespace {

/* Others may ask after the stream while this thread waits for what is not ready. */
void finish(CUstream_st *s) {
    for (emu_progress p = emu_do_one(s); p != EMU_NOTHING_LEFT; p = emu_do_one(s)) {
        if (p == EMU_NOT_YET) {
            (void)usleep(1000);
        }
    }
}

/* The caller is told that what was asked for before is done. */
void told_of(CUstream_st *s) {
    std::lock_guard<std::mutex> guard(s->lock);
    s->over = s->queue.empty() && !s->busy;
}

std::vector<emu_stream> all_streams() {
    stream_list *s = streams();
    std::lock_guard<std::mutex> guard(s->lock);
    return s->all;
}

} // namespace

cudaError_t emu_put(const emu_stream &s, emu_work work, std::function<bool()> ready) {
    if (s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    if (emu_lost_device(s->device) != cudaSuccess) {
        return emu_fail(emu_lost_device(s->device));
    }
    if (s->capture != NULL) {
        if (s->capture->spoilt) {
            return emu_fail(cudaErrorStreamCaptureInvalidated);
        }
        s->capture->work.push_back(std::move(work));
        return cudaSuccess;
    }
    emu_stream legacy = emu_find_stream(NULL);
    if (s == legacy) {
        for (const emu_stream &other : all_streams()) {
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
        s->queue.push_back({std::move(work), std::move(ready), s->over});
        s->over = false;
    }
    if (is_eager()) {
        finish(s.get());
    }
    return cudaSuccess;
}

emu_stream emu_find_stream(cudaStream_t stream) {
    stream_list *s = streams();
    std::lock_guard<std::mutex> guard(s->lock);
    if (stream == NULL) {
        return s->all[0];
    }
    for (const emu_stream &r : s->all) {
        if (r.get() == stream) {
            return r;
        }
    }
    return NULL;
}

bool emu_is_forbidden() {
    for (const std::shared_ptr<emu_capture> &c : emu_captures) {
        c->spoilt = true;
    }
    return !emu_captures.empty() || emu_global_captures > 0;
}

void emu_finish_all(bool also_non_blocking) {
    for (const emu_stream &s : all_streams()) {
        if (s->blocking || also_non_blocking) {
            finish(s.get());
        }
    }
}

/* A kernel goes to the thread's device, so its stream must be of that. */
cudaError_t emu_check_stream(cudaStream_t stream) {
    emu_stream s = emu_find_stream(stream);
    return s == NULL || (stream != NULL && s->device != emu_device())
               ? emu_fail(cudaErrorInvalidResourceHandle)
               : cudaSuccess;
}

cudaError_t emu_enqueue(cudaStream_t stream, emu_work work) {
    if (emu_broken() != cudaSuccess) {
        return emu_broken();
    }
    return emu_put(emu_find_stream(stream), std::move(work));
}

cudaError_t emu_hold(cudaStream_t stream, std::function<bool()> held) {
    return emu_put(emu_find_stream(stream), nullptr, [held] { return !held(); });
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int) {
    if (emu_broken() != cudaSuccess) {
        return emu_broken();
    }
    emu_stream s = std::make_shared<CUstream_st>();
    s->blocking = (flags & cudaStreamNonBlocking) == 0;
    s->device = emu_device();
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
    emu_stream s = emu_find_stream(stream);
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

/* A captured stream cannot be waited for, nor one of a device that is lost. */
static cudaError_t check_waitable(const emu_stream &s) {
    if (s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    if (emu_lost_device(s->device) != cudaSuccess) {
        return emu_fail(emu_lost_device(s->device));
    }
    if (s->capture != NULL) {
        s->capture->spoilt = true;
        return emu_fail(cudaErrorStreamCaptureUnsupported);
    }
    return emu_broken();
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    emu_stream s = emu_find_stream(stream);
    cudaError_t status = check_waitable(s);
    if (status == cudaSuccess) {
        finish(s.get());
        told_of(s.get());
        status = check_waitable(s);
    }
    return status;
}

/* Every question lets one piece of work be done. */
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    emu_stream s = emu_find_stream(stream);
    cudaError_t status = check_waitable(s);
    if (status != cudaSuccess) {
        return status;
    }
    if (emu_do_one(s.get()) != EMU_NOTHING_LEFT) {
        return cudaErrorNotReady;
    }
    told_of(s.get());
    return check_waitable(s); /* it may have been lost since */
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
