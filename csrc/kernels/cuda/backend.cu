/* The CUDA backend: devices and memory. */
#include <stdlib.h>
#include <string.h>

#include "kernels/convert.h"
#include "kernels/cuda/lane.h"

/* Bulk copies, for which the emulation needs no GPU of their kind. */
#ifdef INF_EMU
enum { ALWAYS_BULK = 1 };
#else
enum { ALWAYS_BULK = 0 };
#endif

static bool enter(inf_backend *b) {
    return cudaSetDevice(((cuda_backend *)b)->ordinal) == cudaSuccess;
}

static void backend_close(inf_backend *b) {
    pinned_close((cuda_backend *)b);
    free(b);
}

static void *backend_alloc(inf_backend *b, uint64_t bytes) {
    void *memory = NULL;
    bytes = bytes > 0 ? bytes : 1;
    if (!enter(b) || cudaMalloc(&memory, bytes) != cudaSuccess) {
        (void)cudaGetLastError(); /* out of memory is an answer, not a fault that stays */
        return NULL;
    }
    /* Of the default stream alone: others may be capturing. */
    if (cudaMemset(memory, 0, bytes) != cudaSuccess || cudaStreamSynchronize(NULL) != cudaSuccess) {
        (void)cudaGetLastError();
        (void)cudaFree(memory);
        return NULL;
    }
    return memory;
}

static void backend_free(inf_backend *b, void *device) {
    if (device != NULL && enter(b)) {
        (void)cudaFree(device);
    }
}

/* Whole pages of any host: a dma-buf has no others. */
static void *backend_alloc_pool(inf_backend *b, uint64_t bytes) {
    const uint64_t page = 65536;
    void *pool = backend_alloc(b, (bytes + page - 1) / page * page);
    if (pool != NULL && !shared_begin(pool, bytes)) {
        backend_free(b, pool);
        pool = NULL;
    }
    return pool;
}

static void backend_free_pool(inf_backend *b, void *device, uint64_t bytes) {
    (void)bytes;
    if (shared_end(device)) {
        backend_free(b, device);
    }
}

/* Device memory with a copy of host memory; NULL: none. */
static void *upload(inf_backend *b, const void *host, uint64_t bytes) {
    void *memory = NULL;
    if (!enter(b) || cudaMalloc(&memory, bytes > 0 ? bytes : 1) != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    /* From pageable memory the copy may return before the last of it is there, and lanes' streams
     * do not wait for the stream that it is in. */
    if (cudaMemcpy(memory, host, bytes, cudaMemcpyHostToDevice) != cudaSuccess ||
        cudaStreamSynchronize(NULL) != cudaSuccess) {
        (void)cudaGetLastError();
        (void)cudaFree(memory);
        return NULL;
    }
    return memory;
}

static void *backend_matrix(inf_backend *b, int32_t dtype, const void *host, int32_t src_dtype,
                            int32_t n, int32_t k, int32_t cut) {
    (void)cut; /* one rank */
    uint64_t count = (uint64_t)n * (uint64_t)k, bytes = count * inf_dtype_bytes(dtype);
    if (dtype == src_dtype) {
        return upload(b, host, bytes);
    }
    void *converted = malloc(bytes);
    if (converted == NULL) {
        return NULL;
    }
    inf_convert(converted, dtype, host, src_dtype, count);
    void *memory = upload(b, converted, bytes);
    free(converted);
    return memory;
}

static void *backend_list(inf_backend *b, void *const *matrices, int32_t n) {
    return upload(b, matrices, (uint64_t)n * sizeof *matrices);
}

static void *backend_adopt(inf_backend *b, void *host, uint64_t bytes, int32_t cut) {
    (void)cut;
    void *memory = upload(b, host, bytes);
    free(host);
    return memory;
}

/* Says no with the reason, when the driver or the device will not do. */
static int check_device(int32_t ordinal, cudaDeviceProp *props, inf_err *err) {
    int count = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1, "cannot use a GPU: %s",
                        cudaGetErrorString(status));
    }
    if (ordinal < 0 || ordinal >= count) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "there is no CUDA device %d: this process sees %d", ordinal, count);
    }
    status = cudaSetDevice(ordinal);
    status = status != cudaSuccess ? status : cudaGetDeviceProperties(props, ordinal);
    if (status != cudaSuccess) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1, "cannot use CUDA device %d: %s", ordinal,
                        cudaGetErrorString(status));
    }
    if (props->major < 8) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "CUDA device %d (%s) has compute capability %d.%d; 8.0 is needed", ordinal,
                        props->name, props->major, props->minor);
    }
    return INF_OK;
}

static inf_backend_ops make_table(void) {
    inf_backend_ops ops = {};
    ops.alloc = backend_alloc;
    ops.alloc_pool = backend_alloc_pool;
    ops.free = backend_free;
    ops.free_pool = backend_free_pool;
    ops.matrix = backend_matrix;
    ops.adopt = backend_adopt;
    ops.list = backend_list;
    ops.host_pin = inf_cuda_host_pin;
    ops.host_unpin = inf_cuda_host_unpin;
    ops.nic_export = inf_cuda_nic_export;
    ops.nic_peermem = inf_cuda_nic_peermem;
    ops.nic_flush = inf_cuda_nic_flush;
    ops.pool_export = inf_cuda_pool_export;
    ops.pool_open = inf_cuda_pool_open;
    ops.pool_close = inf_cuda_pool_close;
    inf_cuda_step_table(&ops);
    ops.close = backend_close;
    return ops;
}

extern "C" __attribute__((visibility("default"))) int
inf_cuda_backend_open_12(int32_t ordinal, const inf_device_config *config, uint64_t config_bytes,
                         uint64_t ops_bytes, inf_backend **out, inf_err *err) {
    static const inf_backend_ops ops = make_table(); /* once, whoever comes first */
    cudaDeviceProp props;
    *out = NULL;
    if (config_bytes != sizeof *config || ops_bytes != sizeof ops) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "libinfinite_cuda.so is of another version of Infinite");
    }
    int status = check_device(ordinal, &props, err);
    if (status != INF_OK) {
        return status;
    }
    cuda_backend *b = (cuda_backend *)calloc(1, sizeof *b);
    if (b == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the CUDA backend");
    }
    b->base.ops = &ops;
    b->base.name = "cuda";
    b->base.act = config->dtype;
    b->base.act_bytes = config->dtype == INF_DTYPE_F32 ? 4 : 2;
    b->base.plain_matrix = 1;
    b->base.ranks = 1;
    b->base.logit_rows = LOGIT_ROWS;
    b->base.half_rows = HALF_ROWS;
    b->ordinal = ordinal;
    b->sms = props.multiProcessorCount;
    /* INFINITE_CUDA_WITHOUT names parts to do without, for those who look for a fault or measure;
     * INFINITE_CUDA_WITH such as are not taken by themselves, since no measurement has shown that a
     * step is faster with them. */
    const char *without = getenv("INFINITE_CUDA_WITHOUT"), *with = getenv("INFINITE_CUDA_WITH");
    without = without != NULL ? without : "";
    with = with != NULL ? with : "";
    bool early = props.major >= 9 && lane_code_waits();
    b->record = strstr(without, "graphs") == NULL;
    b->small = strstr(without, "small") == NULL;
    b->small3 = strstr(with, "small3") != NULL;
    b->stay = (ALWAYS_BULK || early) && strstr(without, "stay") == NULL;
    b->through = strstr(with, "bulk_small") != NULL ? 2 : strstr(with, "through") != NULL;
    b->only_through = b->through != 0;
    b->through = b->only_through ? b->through : b->stay ? 2 : 0;
    b->direct = strstr(without, "direct") == NULL;
    pinned_open(b);
    b->fuse = strstr(without, "fuse") == NULL;
    /* Blocks of one tile that begin early are slower, those that stay are faster. */
    b->early_small = early && (b->stay && b->through != 1 ? strstr(without, "early_weights") == NULL
                                                          : strstr(with, "early_small") != NULL);
    b->early_rows = early && strstr(without, "early_rows") == NULL;
    b->early_decode = early && strstr(without, "early_decode") == NULL;
    b->prefetch = strstr(with, "prefetch") != NULL;
    b->boxes = early && strstr(with, "boxes") != NULL;
    b->wgmma = early && strstr(without, "wgmma") == NULL;
    *out = &b->base;
    return INF_OK;
}
