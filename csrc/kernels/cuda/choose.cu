/* Products of few rows can go by product_small.cu or by the library, and which is faster depends on
 * the GPU: of Llama-3-8B's shapes and one row, gate and up take 79 us by the former and 83 by the
 * latter on an H100, but 60 and 56 on an H200, the LM head 337 and 350, but 277 and 243. So the
 * first product of a kind and a number of rows times both, as product.cu does with the library's
 * algorithms. It is of a step that is not captured yet, and what it computes twice it computes from
 * the same input. */
#include <atomic>

#include "kernels/cuda/lane.h"

enum { NOT_KNOWN, BY_SMALL, BY_LIBRARY };
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

static int choose(float by_small, float by_library) {
#ifdef INF_EMU /* both are taken, by turns */
    static std::atomic<int> turn;
    by_library = ++turn % 2 != 0 ? by_library : -1;
    by_small = by_library > 0 ? -1 : by_small;
#endif
    return by_library > 0 && (by_small < 0 || by_library < by_small) ? BY_LIBRARY : BY_SMALL;
}

template <class S, class L> static int faster(inf_lane *l, const S &small, const L &library) {
    cudaEvent_t event[2] = {};
    int choice = BY_SMALL;
    if (cudaEventCreate(&event[0]) == cudaSuccess && cudaEventCreate(&event[1]) == cudaSuccess) {
        float by_small = time_of(l, event, small);
        choice = choose(by_small, time_of(l, event, library));
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

bool lane_small_is_faster(inf_lane *l, const inf_product *p, const inf_cuda_small *s, void *y) {
    /* The kinds whose output the library can be followed by a scale of, or that need none. What is
     * not scaled yet can be beyond f16, and is not to be rounded to it. */
    bool head = p->y_f32 && s->x_squares == NULL;
    bool beyond = s->gate && s->x_squares != NULL && l->act == INF_DTYPE_F16;
    if ((!s->gate && !head) || beyond) {
        return true;
    }
    uint8_t *choice = &l->choices[s->gate ? 0 : 1][p->rows];
    if (*choice == NOT_KNOWN) {
        if (l->capturing != NULL) {
            return true;
        }
        auto small = [&] { return inf_cuda_small_launch(s, l->stream); };
        auto library = [&] {
            return s->gate ? gated(l, p, s, y) : inf_cuda_product(l->products, p, l->stream);
        };
        *choice = (uint8_t)faster(l, small, library);
    }
    return *choice == BY_SMALL;
}
