/* Products of few rows can go by the kernels of product_small.h or by the library, and which is
 * fastest depends on the GPU: of Llama-3-8B's shapes and one row, gate and up take 79 us by
 * product_small.cu and 83 by the library on an H100, but 60 and 56 on an H200, the LM head 337 and
 * 350, but 277 and 243. So the first product of a kind and a number of rows times all ways, as
 * product.cu does with the library's algorithms. It is of a step that is not captured yet, and what
 * it computes again and again it computes from the same input.
 *
 * The kinds are gate and up, and the LM head, whose weights in models that take their time are more
 * than a cache holds: a call that is repeated reads them as a step's only call does. */
#include <algorithm>
#include <atomic>

#include "kernels/cuda/lane.h"

/* WAYS + 1 numbers: the three by inf_cuda_small's `through`, and the library. */
enum { NOT_KNOWN, BY_SMALL, BY_LIBRARY = BY_SMALL + INF_CUDA_SMALL_WAYS, WAYS = BY_LIBRARY };
#ifdef INF_EMU
enum { TIMED = 1 }; /* time says nothing there */
#else
enum { TIMED = 5 };
#endif

/* Milliseconds of TIMED calls after one to warm up; negative: it failed, which is an answer and no
 * fault of the lane. */
template <class F> static float time_of(inf_lane *l, const cudaEvent_t event[2], const F &call) {
    float ms = -1;
    bool ok = call() == 0 && cudaEventRecord(event[0], l->stream) == cudaSuccess;
    for (int i = 0; ok && i < TIMED; i++) {
        ok = call() == 0;
    }
    ok = ok && cudaEventRecord(event[1], l->stream) == cudaSuccess &&
         lane_await(l, event[1]) == cudaSuccess &&
         cudaEventElapsedTime(&ms, event[0], event[1]) == cudaSuccess;
    (void)cudaGetLastError();
    return ok ? ms : -1;
}

/* The least of the times that are none of a failure; BY_SMALL if all are. */
static int choose(const float ms[WAYS + 1]) {
#ifdef INF_EMU /* all that can be are taken, by turns */
    static std::atomic<int> turn;
    for (int i = 0; i < WAYS; i++) {
        int way = BY_SMALL + ++turn % WAYS;
        if (ms[way] >= 0) {
            return way;
        }
    }
    return BY_SMALL;
#else
    int best = BY_SMALL;
    for (int way = BY_SMALL; way <= BY_LIBRARY; way++) {
        if (ms[way] >= 0 && (ms[best] < 0 || ms[way] < ms[best])) {
            best = way;
        }
    }
    return best;
#endif
}

/* from, upto: of the ways by product_small.h that are tried. */
template <class S, class L>
static int fastest(inf_lane *l, int from, int upto, const S &small, const L &library) {
    cudaEvent_t event[2] = {};
    int choice = BY_SMALL + from;
    if (cudaEventCreate(&event[0]) == cudaSuccess && cudaEventCreate(&event[1]) == cudaSuccess) {
        float ms[WAYS + 1];
        std::fill(ms, ms + WAYS + 1, -1.0f);
        for (int i = from; i <= upto; i++) {
            ms[BY_SMALL + i] = time_of(l, event, [&] { return small(i); });
        }
        ms[BY_LIBRARY] = time_of(l, event, library);
        choice = choose(ms);
    }
    for (cudaEvent_t e : event) {
        if (e != NULL) {
            (void)cudaEventDestroy(e);
        }
    }
    (void)cudaGetLastError();
    return choice;
}

/* gate | up by the library, then activation(gate) * up, with the scale that x lacks; 0 or a status.
 */
static int gated(const inf_lane *l, const inf_product *p, const inf_cuda_small *s, void *y) {
    inf_cuda_gate w = {};
    w.gu = p->y;
    w.y = y;
    w.act = l->act;
    w.rows = p->rows;
    w.n = s->n;
    w.x_squares = s->x_squares;
    w.squares = p->k / 16;
    w.eps = s->eps;
    w.activation = s->activation;
    w.early = l->backend->early_rows;
    int status = inf_cuda_product(l->products, p, l->stream);
    return status != 0 ? status : inf_cuda_gate_launch(&w, l->stream);
}

bool lane_gated_by_library(inf_lane *l, const inf_product *p, const inf_cuda_small *s, void *y) {
    return lane_ok(l, gated(l, p, s, y), "gate and up");
}

bool lane_small_is_faster(inf_lane *l, const inf_product *p, inf_cuda_small *s, void *y) {
    /* The kinds whose output the library can be followed by a scale of, or that need none. What is
     * not scaled yet can be beyond f16, and is not to be rounded to it. */
    bool head = p->y_f32 && s->x_squares == NULL;
    bool beyond = s->gate && s->x_squares != NULL && l->act == INF_DTYPE_F16;
    if ((!s->gate && !head) || (beyond && !l->backend->stay)) {
        return true;
    }
    uint8_t *choice = &l->choices[s->gate ? 0 : 1][p->rows];
    if (*choice == NOT_KNOWN) {
        if (l->capturing != NULL) {
            return true;
        }
        auto small = [&](int through) {
            inf_cuda_small by = *s;
            by.through = through;
            return inf_cuda_small_launch(&by, l->stream);
        };
        auto library = [&] {
            return beyond    ? (int)cudaErrorNotSupported
                   : s->gate ? gated(l, p, s, y)
                             : inf_cuda_product(l->products, p, l->stream);
        };
        const int only = s->through, upto = l->backend->stay ? INF_CUDA_SMALL_WAYS - 1 : 0;
        *choice = (uint8_t)(l->backend->only_through ? fastest(l, only, only, small, library)
                                                     : fastest(l, 0, upto, small, library));
    }
    if (*choice == BY_LIBRARY) {
        return false;
    }
    s->through = *choice - BY_SMALL;
    return true;
}
