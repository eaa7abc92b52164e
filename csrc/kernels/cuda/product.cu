/* Matrix products by cuBLASLt.
 *
 * All matrices are row-major, cuBLASLt's are column-major: row-major [r, c] is column-major [c, r].
 * So y^T [n, rows] = op(w) x^T with w as a [k, n] matrix, transposed, and x^T as a [k, rows] one.
 * The bias runs along n, the rows of y^T, as the library's epilogue wants it.
 *
 *   flops   2 rows n k
 *   bytes   (n k + rows k + rows n) * size: with few rows it is the weights that cost, once each
 *
 * For few rows the library's first choice is not always its fastest, and a decode step does the
 * same few shapes for ever: the first product of such a shape times the candidates. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/prelude.cuh"
#include "kernels/cuda/product.h"
#include "runtime/fail.h"

#ifndef INF_EMU

#include <dlfcn.h>

#include "kernels/cuda/lt.h"

enum {
    SLOTS = 4096,    /* of the table of plans, a power of two */
    TUNED_ROWS = 64, /* products of at most so many rows are timed */
    CANDIDATES = 8,
    TIMED = 5,
};
static const size_t WORKSPACE = (size_t)32 << 20;

/* How one shape is done. */
typedef struct plan {
    int32_t rows, n, k;
    uint32_t flags; /* USED, Y_F32, BIAS */
    void *desc, *x_layout, *w_layout, *y_layout;
    lt_algo algo;
} plan;
enum { USED = 1, Y_F32 = 2, BIAS = 4 };

struct inf_cuda_products {
    lt_api lt;
    void *handle;
    void *workspace;
    cudaEvent_t begin, end;
    inf_cuda_waiter waiter; /* wait NULL: CUDA's */
    int32_t act;
    plan plans[SLOTS];
    plan spare; /* for a shape that the table has no room for */
};

static int data_type(int32_t dtype) {
    return dtype == INF_DTYPE_F32 ? LT_R_32F : dtype == INF_DTYPE_F16 ? LT_R_16F : LT_R_16BF;
}

static void *load_library() {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12",
                                        "libcublasLt.so.11", "libcublasLt.so"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        void *handle = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (handle != NULL) {
            return handle;
        }
    }
    return NULL;
}

static int load_api(lt_api *lt) {
    void *handle = load_library();
    struct {
        void *at;
        const char *name;
    } symbols[] = {{&lt->create, "cublasLtCreate"},
                   {&lt->destroy, "cublasLtDestroy"},
                   {&lt->desc_create, "cublasLtMatmulDescCreate"},
                   {&lt->desc_destroy, "cublasLtMatmulDescDestroy"},
                   {&lt->desc_set, "cublasLtMatmulDescSetAttribute"},
                   {&lt->layout_create, "cublasLtMatrixLayoutCreate"},
                   {&lt->layout_destroy, "cublasLtMatrixLayoutDestroy"},
                   {&lt->pref_create, "cublasLtMatmulPreferenceCreate"},
                   {&lt->pref_destroy, "cublasLtMatmulPreferenceDestroy"},
                   {&lt->pref_set, "cublasLtMatmulPreferenceSetAttribute"},
                   {&lt->heuristic, "cublasLtMatmulAlgoGetHeuristic"},
                   {&lt->matmul, "cublasLtMatmul"}};
    for (size_t i = 0; handle != NULL && i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(handle, symbols[i].name);
        if (symbol == NULL) {
            return 0;
        }
        memcpy(symbols[i].at, &symbol, sizeof symbol);
    }
    return handle != NULL;
}

int inf_cuda_products_open(int32_t act, const inf_cuda_waiter *waiter, inf_cuda_products **out,
                           inf_err *err) {
    *out = NULL;
    inf_cuda_products *s = (inf_cuda_products *)calloc(1, sizeof *s);
    if (s == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the matrix products");
    }
    s->act = act;
    s->waiter = waiter != NULL ? *waiter : s->waiter;
    if (!load_api(&s->lt)) {
        const char *why = dlerror();
        int status = inf_fail(err, INF_EUNSUPPORTED, -1, -1, "cannot load cuBLASLt: %s",
                              why != NULL ? why : "it lacks functions");
        free(s);
        return status;
    }
    if (s->lt.create(&s->handle) != 0 || cudaMalloc(&s->workspace, WORKSPACE) != cudaSuccess ||
        cudaEventCreate(&s->begin) != cudaSuccess || cudaEventCreate(&s->end) != cudaSuccess) {
        (void)cudaGetLastError();
        inf_cuda_products_close(s);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot start cuBLASLt");
    }
    *out = s;
    return INF_OK;
}

static void drop_plan(inf_cuda_products *s, plan *p) {
    void *layouts[] = {p->x_layout, p->w_layout, p->y_layout};
    for (int i = 0; i < 3; i++) {
        if (layouts[i] != NULL) {
            s->lt.layout_destroy(layouts[i]);
        }
    }
    if (p->desc != NULL) {
        s->lt.desc_destroy(p->desc);
    }
    memset(p, 0, sizeof *p);
}

void inf_cuda_products_close(inf_cuda_products *s) {
    if (s == NULL) {
        return;
    }
    for (int i = 0; i < SLOTS; i++) {
        drop_plan(s, &s->plans[i]);
    }
    drop_plan(s, &s->spare);
    if (s->begin != NULL) {
        cudaEventDestroy(s->begin);
    }
    if (s->end != NULL) {
        cudaEventDestroy(s->end);
    }
    cudaFree(s->workspace);
    if (s->handle != NULL) {
        s->lt.destroy(s->handle);
    }
    free(s);
}

static int run(inf_cuda_products *s, plan *pl, const lt_algo *algo, const inf_product *p,
               inf_stream stream) {
    const float one = 1, zero = 0;
    if (p->bias != NULL) {
        int status = s->lt.desc_set(pl->desc, LT_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
        if (status != 0) {
            return -status;
        }
    }
    return -s->lt.matmul(s->handle, pl->desc, &one, p->w, pl->w_layout, p->x, pl->x_layout, &zero,
                         p->y, pl->y_layout, p->y, pl->y_layout, algo, s->workspace, WORKSPACE,
                         stream);
}

/* Descriptions of the operands, and the library's candidates; 0 or a status. */
static int describe(inf_cuda_products *s, plan *pl, const inf_product *p, lt_heuristic *found,
                    int *n) {
    int type = data_type(s->act), transposed = LT_OP_T, y_type = p->y_f32 ? LT_R_32F : type;
    uint32_t epilogue = p->bias != NULL ? LT_EPILOGUE_BIAS : LT_EPILOGUE_DEFAULT;
    uint64_t rows = (uint64_t)p->rows, outs = (uint64_t)p->n, k = (uint64_t)p->k;
    void *pref = NULL;
    int status = s->lt.desc_create(&pl->desc, LT_COMPUTE_32F, LT_R_32F);
    if (status == 0) {
        status = s->lt.desc_set(pl->desc, LT_DESC_TRANSA, &transposed, sizeof transposed);
    }
    if (status == 0) {
        status = s->lt.desc_set(pl->desc, LT_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    }
    if (status == 0 && p->bias != NULL) {
        status = s->lt.desc_set(pl->desc, LT_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
    }
    if (status == 0) {
        status = s->lt.layout_create(&pl->w_layout, type, k, outs, (int64_t)k);
    }
    if (status == 0) {
        status = s->lt.layout_create(&pl->x_layout, type, k, rows, (int64_t)k);
    }
    if (status == 0) {
        status = s->lt.layout_create(&pl->y_layout, y_type, outs, rows, (int64_t)outs);
    }
    if (status == 0) {
        status = s->lt.pref_create(&pref);
    }
    if (status == 0) {
        status = s->lt.pref_set(pref, LT_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE, sizeof WORKSPACE);
        if (status == 0) {
            status = s->lt.heuristic(s->handle, pl->desc, pl->w_layout, pl->x_layout, pl->y_layout,
                                     pl->y_layout, pref, CANDIDATES, found, n);
        }
        s->lt.pref_destroy(pref);
    }
    return status != 0 ? status : *n > 0 ? 0 : 15; /* CUBLAS_STATUS_NOT_SUPPORTED */
}

static int await_end(inf_cuda_products *s) {
    return s->waiter.wait != NULL ? s->waiter.wait(s->waiter.arg, s->end)
                                  : cudaEventSynchronize(s->end);
}

/* The fastest candidate, by the time of TIMED runs after one to warm up. */
static int fastest(inf_cuda_products *s, plan *pl, const inf_product *p, const lt_heuristic *found,
                   int n, inf_stream stream) {
    float best = 0;
    int choice = 0;
    for (int i = 0; i < n; i++) {
        if (found[i].status != 0 || run(s, pl, &found[i].algo, p, stream) != 0) {
            continue;
        }
        float ms = 0;
        if (cudaEventRecord(s->begin, (cudaStream_t)stream) != cudaSuccess) {
            return 0;
        }
        for (int t = 0; t < TIMED; t++) {
            (void)run(s, pl, &found[i].algo, p, stream);
        }
        if (cudaEventRecord(s->end, (cudaStream_t)stream) != cudaSuccess || await_end(s) != 0 ||
            cudaEventElapsedTime(&ms, s->begin, s->end) != cudaSuccess) {
            return 0;
        }
        if (best == 0 || ms < best) {
            best = ms;
            choice = i;
        }
    }
    return choice;
}

static uint32_t flags_of(const inf_product *p) {
    return USED | (p->y_f32 ? (uint32_t)Y_F32 : 0u) | (p->bias != NULL ? (uint32_t)BIAS : 0u);
}

static plan *find(inf_cuda_products *s, const inf_product *p) {
    uint32_t flags = flags_of(p);
    uint64_t h = ((uint64_t)p->rows * 0x9e3779b97f4a7c15u) ^ ((uint64_t)p->n << 20) ^
                 (uint64_t)p->k ^ ((uint64_t)flags << 60);
    h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9u;
    for (uint64_t i = 0; i < 64; i++) {
        plan *pl = &s->plans[((h >> 20) + i) % SLOTS];
        if (pl->flags == 0 ||
            (pl->flags == flags && pl->rows == p->rows && pl->n == p->n && pl->k == p->k)) {
            return pl;
        }
    }
    drop_plan(s, &s->spare);
    return &s->spare;
}

int inf_cuda_product(inf_cuda_products *s, const inf_product *p, inf_stream stream) {
    if (p->rows < 1 || p->n < 1 || p->k < 1) {
        return p->rows == 0 ? 0 : (int)cudaErrorInvalidValue;
    }
    plan *pl = find(s, p);
    if (pl->flags == 0) {
        lt_heuristic found[CANDIDATES];
        int n = 0;
        int status = describe(s, pl, p, found, &n);
        if (status != 0) {
            drop_plan(s, pl);
            return -status;
        }
        cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
        (void)cudaStreamIsCapturing((cudaStream_t)stream, &capture);
        int tune = p->rows <= TUNED_ROWS && n > 1 && capture == cudaStreamCaptureStatusNone;
        pl->algo = found[tune ? fastest(s, pl, p, found, n, stream) : 0].algo;
        pl->rows = p->rows;
        pl->n = p->n;
        pl->k = p->k;
        pl->flags = flags_of(p);
    }
    return run(s, pl, &pl->algo, p, stream);
}

#else /* INF_EMU: what the library computes, plainly */

struct inf_cuda_products {
    int32_t act;
};

int inf_cuda_products_open(int32_t act, const inf_cuda_waiter *, inf_cuda_products **out,
                           inf_err *err) {
    *out = (inf_cuda_products *)calloc(1, sizeof **out);
    if (*out == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the matrix products");
    }
    (*out)->act = act;
    return INF_OK;
}

void inf_cuda_products_close(inf_cuda_products *s) { free(s); }

typedef struct product_args {
    inf_product p;
    int32_t act;
} product_args;

template <typename T, typename Y> static void plain(const inf_product &p) {
    const T *x = (const T *)p.x, *w = (const T *)p.w, *bias = (const T *)p.bias;
    for (int32_t r = 0; r < p.rows; r++) {
        for (int32_t j = 0; j < p.n; j++) {
            float sum = 0;
            for (int32_t i = 0; i < p.k; i++) {
                sum += load1(x + (size_t)r * p.k + i) * load1(w + (size_t)j * p.k + i);
            }
            store1((Y *)p.y + (size_t)r * p.n + j, sum + (bias != NULL ? load1(bias + j) : 0.0f));
        }
    }
}

__global__ void plain_product(product_args a) {
    switch (a.act) {
    case INF_DTYPE_F32:
        return plain<float, float>(a.p);
    case INF_DTYPE_F16:
        return a.p.y_f32 ? plain<f16, float>(a.p) : plain<f16, f16>(a.p);
    default:
        return a.p.y_f32 ? plain<bf16, float>(a.p) : plain<bf16, bf16>(a.p);
    }
}

int inf_cuda_product(inf_cuda_products *s, const inf_product *p, inf_stream stream) {
    product_args args = {*p, s->act};
    return INF_LAUNCH(plain_product, dim3(1), dim3(1), 0, stream, args);
}

#endif
