/* Captures and graphs. A graph is the work in the order in which it was captured, which is one of
 * those that its events allow. */
#include <stdlib.h>

#include <atomic>

#include "kernels/cuda/emu/stream_inside.h"

struct CUgraph_st {
    std::vector<emu_work> work;
};
struct CUgraphExec_st {
    std::shared_ptr<std::vector<emu_work>> work;
};

static thread_local char this_thread; /* whose address tells threads apart */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    emu_stream s = emu_find_stream(stream);
    if (s == NULL) {
        return emu_fail(cudaErrorInvalidResourceHandle);
    }
    if (s == emu_find_stream(NULL)) {
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
        emu_captures.push_back(s->capture);
    }
    emu_global_captures += mode == cudaStreamCaptureModeGlobal;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *out) {
    emu_stream s = emu_find_stream(stream);
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
    for (const emu_stream &other : c->joined) {
        other->capture = NULL;
    }
    c->joined.clear();
    s->capture = NULL;
    for (size_t i = 0; i < emu_captures.size(); i++) {
        if (emu_captures[i] == c) {
            emu_captures.erase(emu_captures.begin() + (ptrdiff_t)i);
            break;
        }
    }
    emu_global_captures -= c->mode == cudaStreamCaptureModeGlobal;
    if (c->spoilt) {
        return emu_fail(cudaErrorStreamCaptureInvalidated);
    }
    *out = new CUgraph_st{c->work};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status) {
    emu_stream s = emu_find_stream(stream);
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
    const char *most = getenv("INF_EMU_GRAPHS");
    static std::atomic<int> made;
    if (most != NULL && made++ >= atoi(most)) {
        return emu_fail(cudaErrorMemoryAllocation);
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
