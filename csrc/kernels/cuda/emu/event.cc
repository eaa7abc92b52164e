/* Events: places in streams. Waiting for one does the work in front of it (stream.cc). */
#include <time.h>
#include <unistd.h>

#include "kernels/cuda/emu/stream_inside.h"

/* A place in a stream that is waited for. */
struct emu_mark {
    std::atomic<bool> done{false};
    double seconds = 0;
    emu_stream stream;
    std::shared_ptr<emu_capture> capture; /* recorded while captured: no place in time */
};

struct CUevent_st {
    std::mutex lock;
    std::shared_ptr<emu_mark> mark; /* of the last record */
    bool timing = true;
    int device = 0;
};

namespace {

double now() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* What there is to do in front of the mark. */
emu_progress approach(const std::shared_ptr<emu_mark> &mark) {
    while (mark->stream != NULL && !mark->done) {
        emu_progress p = emu_do_one(mark->stream.get());
        if (p != EMU_ONE_DONE && !mark->done) {
            return p;
        }
    }
    return EMU_NOTHING_LEFT;
}

void finish_mark(const std::shared_ptr<emu_mark> &mark) {
    while (approach(mark) == EMU_NOT_YET) {
        (void)usleep(1000);
    }
}

} // namespace

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    *out = new CUevent_st;
    (*out)->timing = (flags & cudaEventDisableTiming) == 0;
    (*out)->device = emu_device();
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
    emu_stream s = emu_find_stream(stream);
    if (event == NULL || s == NULL || (stream != NULL && event->device != s->device)) {
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
    return emu_put(s, [mark] {
        mark->seconds = now();
        mark->done = true;
    });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    emu_stream s = emu_find_stream(stream);
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
    return emu_put(s, nullptr, [mark] { return approach(mark) != EMU_NOT_YET; });
}

static cudaError_t check_event(cudaEvent_t event, std::shared_ptr<emu_mark> *mark) {
    if (event == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    *mark = mark_of(event);
    if (emu_lost_device(event->device) != cudaSuccess) {
        return emu_fail(emu_lost_device(event->device));
    }
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
        status = check_event(event, &mark);
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
    emu_do_one(mark->stream.get());
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
