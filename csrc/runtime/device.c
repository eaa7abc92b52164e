/* Opening, loading, starting and closing a device, and its sampling slots. */
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/fail.h"
#include "runtime/runtime.h"

static void *copy_of(const void *src, size_t bytes) {
    void *copy = malloc(bytes);
    if (copy != NULL) {
        memcpy(copy, src, bytes);
    }
    return copy;
}

/* The mutex and the condition variable, which counts on the monotonic clock. */
static int open_locks(inf_device *d) {
    pthread_condattr_t attr;
    if (pthread_condattr_init(&attr) != 0) {
        return INF_ENOMEM;
    }
    int error = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    error = error != 0 ? error : pthread_cond_init(&d->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    if (error != 0) {
        return INF_ENOMEM;
    }
    if (pthread_mutex_init(&d->mutex, NULL) != 0) {
        (void)pthread_cond_destroy(&d->changed);
        return INF_ENOMEM;
    }
    return INF_OK;
}

/* The backend of one rank. */
static int open_rank(const inf_device_config *config, int32_t rank, inf_backend **out,
                     inf_err *err) {
    if (config->gpu > 0) {
        /* For tests of several ranks on machines with one GPU. */
        const char *with = getenv("INFINITE_CUDA_WITH");
        int one_gpu = with != NULL && strstr(with, "one_gpu") != NULL;
        return inf_backend_cuda(config->gpu - 1 + (one_gpu ? 0 : rank), config, out, err);
    }
    *out = inf_backend_cpu(config->isa);
    return *out != NULL ? INF_OK
                        : inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                                   "this CPU or build lacks instruction set %d", config->isa);
}

static int open_backend(const inf_device_config *config, inf_backend **out, inf_err *err) {
    inf_backend *ranks[INF_MAX_RANKS];
    if (config->tensor_parallel <= 1) {
        return open_rank(config, 0, out, err);
    }
    *out = NULL;
    for (int32_t r = 0; r < config->tensor_parallel; r++) {
        int status = open_rank(config, r, &ranks[r], err);
        if (status != INF_OK) {
            while (r-- > 0) {
                ranks[r]->ops->close(ranks[r]);
            }
            return status;
        }
    }
    return inf_backend_tp(ranks, config->tensor_parallel, config, out, err);
}

int inf_device_open(const inf_device_config *config, const float *inv_freq, const int32_t *windows,
                    inf_device **out, inf_err *err) {
    if (config == NULL || inv_freq == NULL || windows == NULL || out == NULL) {
        return inf_fail(err, INF_EINVAL, -1, -1, "an argument of open is missing");
    }
    *out = NULL;
    int status = inf_check_config(config, err);
    if (status != INF_OK) {
        return status;
    }
    for (int32_t i = 0; i < config->layers; i++) {
        if (windows[i] < 0) {
            return inf_fail(err, INF_EINVAL, -1, i, "the window of layer %d is negative", i);
        }
    }
    inf_backend *backend = NULL;
    status = open_backend(config, &backend, err);
    if (status != INF_OK) {
        return status;
    }
    inf_device *d = calloc(1, sizeof(*d));
    if (d == NULL || open_locks(d) != INF_OK) {
        free(d);
        backend->ops->close(backend);
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the device");
    }
    d->config = *config;
    d->backend = backend;
    d->inv_freq = copy_of(inv_freq, (size_t)inf_ropes(config) * (size_t)inf_rotary_dim(config) / 2 *
                                        sizeof(float));
    d->windows = copy_of(windows, (size_t)config->layers * sizeof(int32_t));
    if (d->inv_freq == NULL || d->windows == NULL) {
        status = inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the device");
    } else {
        status = inf_weights_open(config, backend, &d->weights, err);
    }
    if (status != INF_OK) {
        inf_device_close(d);
        return status;
    }
    *out = d;
    return INF_OK;
}

static bool has_weights(const inf_device *d) {
    return (d->config.model_flags & INF_MODEL_NO_WEIGHTS) == 0;
}

int inf_device_load(inf_device *d, int32_t role, int32_t layer, int32_t dtype, int64_t rows,
                    int64_t cols, const void *data, uint64_t bytes, inf_err *err) {
    return inf_device_load_expert(d, role, layer, -1, dtype, rows, cols, data, bytes, err);
}

int inf_device_load_expert(inf_device *d, int32_t role, int32_t layer, int32_t expert,
                           int32_t dtype, int64_t rows, int64_t cols, const void *data,
                           uint64_t bytes, inf_err *err) {
    if (d == NULL) {
        return inf_fail(err, INF_EINVAL, -1, -1, "there is no device");
    }
    pthread_mutex_lock(&d->mutex);
    int status =
        d->ready || !has_weights(d)
            ? inf_fail(err, INF_EINVAL, -1, layer, "the device is loaded already, or has none")
            : inf_weights_load(d->weights, role, layer, expert, dtype, rows, cols, data, bytes,
                               err);
    pthread_mutex_unlock(&d->mutex);
    return status;
}

static int32_t kv_dtype(const inf_device_config *c) {
    return c->kv_dtype != 0 ? c->kv_dtype : c->dtype;
}

uint64_t inf_device_block_bytes(const inf_device_config *c) {
    if (c == NULL || c->layers <= 0 || c->kv_heads <= 0 || c->block_size <= 0 || c->head_dim <= 0) {
        return 0;
    }
    return (uint64_t)c->layers * 2 * (uint64_t)c->kv_heads * (uint64_t)c->block_size *
           (uint64_t)c->head_dim * inf_dtype_bytes(kv_dtype(c));
}

static int open_pool(inf_device *d, inf_err *err) {
    const inf_device_config *c = &d->config;
    uint64_t block = inf_device_block_bytes(c);
    d->kv = (inf_kv_shape){
        .layers = c->layers,
        .kv_heads = c->kv_heads,
        .block_size = c->block_size,
        .head_dim = c->head_dim,
        .dtype = kv_dtype(c),
        .elem = (int32_t)inf_dtype_bytes(kv_dtype(c)),
        .block_bytes = block,
    };
    if (block > (uint64_t)PTRDIFF_MAX / (uint64_t)c->num_blocks) {
        return inf_fail(err, INF_EINVAL, -1, -1, "%d blocks of %llu bytes exceed the address space",
                        c->num_blocks, (unsigned long long)block);
    }
    d->pool_bytes = block * (uint64_t)c->num_blocks;
    d->pool = d->backend->ops->alloc_pool(d->backend, d->pool_bytes);
    return d->pool != NULL ? INF_OK
                           : inf_fail(err, INF_ENOMEM, -1, -1,
                                      "the device has no room for %llu bytes of KV blocks",
                                      (unsigned long long)d->pool_bytes);
}

/* One allocation for the step buffers and the marks that validate them. */
static int open_step(inf_device *d, inf_err *err) {
    const inf_device_config *c = &d->config;
    uint64_t counts[] = {1,
                         (uint64_t)c->max_seqs,
                         (uint64_t)c->max_tokens,
                         (uint64_t)c->max_step_blocks,
                         (uint64_t)c->max_step_spans,
                         (uint64_t)c->max_rows,
                         (uint64_t)c->max_rows,
                         (uint64_t)c->max_seqs,
                         (uint64_t)c->num_blocks,
                         (uint64_t)c->max_seqs,
                         (uint64_t)c->max_seqs,
                         (uint64_t)c->max_seqs * inf_mask_words(c->vocab)};
    uint64_t sizes[] = {sizeof(inf_step_head), sizeof(inf_step_seq),  sizeof(int32_t),
                        sizeof(int32_t),       sizeof(inf_step_span), sizeof(inf_step_row),
                        sizeof(inf_row_out),   sizeof(inf_seq_out),   sizeof(uint32_t),
                        sizeof(uint8_t),       sizeof(inf_slot *),    sizeof(uint32_t)};
    enum { PARTS = sizeof(counts) / sizeof(counts[0]) };
    uint64_t at[PARTS], total = 0;
    for (int i = 0; i < PARTS; i++) {
        at[i] = total;
        total = (total + counts[i] * sizes[i] + 63) & ~(uint64_t)63;
    }
    if (posix_memalign(&d->step_memory, 64, total) != 0) {
        d->step_memory = NULL;
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate %llu bytes of step buffers",
                        (unsigned long long)total);
    }
    uint8_t *base = memset(d->step_memory, 0, total);
    d->step = (inf_step_buffers){
        .head = (inf_step_head *)(void *)(base + at[0]),
        .seqs = (inf_step_seq *)(void *)(base + at[1]),
        .tokens = (int32_t *)(void *)(base + at[2]),
        .blocks = (int32_t *)(void *)(base + at[3]),
        .spans = (inf_step_span *)(void *)(base + at[4]),
        .rows = (inf_step_row *)(void *)(base + at[5]),
        .row_out = (inf_row_out *)(void *)(base + at[6]),
        .seq_out = (inf_seq_out *)(void *)(base + at[7]),
        .masks = (uint32_t *)(void *)(base + at[11]),
    };
    d->block_marks = (uint32_t *)(void *)(base + at[8]);
    d->slot_marks = base + at[9];
    d->slots = (inf_slot **)(void *)(base + at[10]);
    return INF_OK;
}

/* Threads stay awake where the device is none of the CPUs, and the instance's share of these is
 * there and enough for those that do: the step's and the one that answers queries, or those of
 * their ranks, and who waits for the step. INFINITE_AWAKE_US: for that time, wherever it may be; 0
 * for none. */
static int64_t awake_ns(const inf_device *d) {
    enum { US = 1000, MOST_US = 1000000 };
    int32_t cpus = 2 + 2 * d->backend->ranks;
    const char *named = getenv("INFINITE_AWAKE_US");
    long us = named != NULL ? strtol(named, NULL, 10) : US;
    us = us < 0 ? 0 : us > MOST_US ? MOST_US : us;
    bool spare = !d->backend->cpus && d->config.threads >= cpus &&
                 d->config.threads <= sysconf(_SC_NPROCESSORS_ONLN);
    return named != NULL || spare ? (int64_t)us * 1000 : 0;
}

/* INFINITE_HALF_ROWS: instead of the backend's own; 0: no step is computed in halves. */
static int32_t half_rows(const inf_device *d) {
    const char *named = getenv("INFINITE_HALF_ROWS");
    long rows = named != NULL ? strtol(named, NULL, 10) : d->backend->half_rows;
    return rows < 0 ? 0 : rows > INT32_MAX / 2 ? INT32_MAX / 2 : (int32_t)rows;
}

static int open_parts(inf_device *d, inf_err *err) {
    d->backend->awake_ns = awake_ns(d);
    d->backend->half_rows = half_rows(d);
    int status = open_pool(d, err);
    if (status == INF_OK && has_weights(d)) {
        status = open_step(d, err);
    }
    if (status == INF_OK && has_weights(d) &&
        inf_pool_open(d->config.threads, &d->threads) != INF_OK) {
        d->threads = NULL;
        status = inf_fail(err, INF_ENOMEM, -1, -1, "cannot start %d threads", d->config.threads);
    }
    if (status != INF_OK) {
        return status;
    }
    float scale = inf_attention_scale(&d->config);
    inf_dist_config dist = {d->backend, &d->config, d->kv, d->pool, d->windows, scale};
    status = inf_dist_open(&dist, &d->dist, err);
    if (status != INF_OK) {
        d->dist = NULL;
        return status;
    }
    if (!has_weights(d)) {
        return INF_OK;
    }
    inf_forward_config forward = {d->weights, d->backend,  d->threads, d->dist, d->kv,
                                  d->pool,    d->inv_freq, d->windows, d->slots};
    status = inf_forward_open(&forward, &d->forward, err);
    return status != INF_OK ? status : inf_step_thread_start(d, err);
}

/* Undoes open_parts, whatever part of it was done. */
static void close_parts(inf_device *d) {
    inf_step_thread_stop(d);
    inf_dist_close(d->dist); /* its threads use the pool of blocks */
    d->dist = NULL;
    inf_forward_close(d->forward);
    d->forward = NULL;
    if (d->threads != NULL) {
        inf_pool_close(d->threads);
        d->threads = NULL;
    }
    for (int32_t i = 0; d->slots != NULL && i < d->config.max_seqs; i++) {
        inf_slot_free(d->slots[i]);
    }
    d->slots = NULL;
    free(d->step_memory);
    d->step_memory = NULL;
    d->backend->ops->free_pool(d->backend, d->pool, d->pool_bytes);
    d->pool = NULL;
}

int inf_device_ready(inf_device *d, inf_err *err) {
    if (d == NULL || d->ready) {
        return inf_fail(err, INF_EINVAL, -1, -1, "there is no device, or it is ready already");
    }
    int status = has_weights(d) ? inf_weights_complete(d->weights, err) : INF_OK;
    if (status == INF_OK) {
        status = open_parts(d, err);
        if (status != INF_OK) {
            close_parts(d);
        }
    }
    d->ready = status == INF_OK;
    return status;
}

void inf_device_close(inf_device *d) {
    if (d == NULL) {
        return;
    }
    close_parts(d);
    inf_weights_close(d->weights);
    d->backend->ops->close(d->backend);
    free(d->inv_freq);
    free(d->windows);
    (void)pthread_mutex_destroy(&d->mutex);
    (void)pthread_cond_destroy(&d->changed);
    free(d);
}

const char *inf_device_isa(const inf_device *d) { return d->backend->name; }

int inf_device_buffers(inf_device *d, inf_step_buffers *out, inf_err *err) {
    if (d == NULL || !d->ready || !has_weights(d) || out == NULL) {
        return inf_fail(err, INF_EINVAL, -1, -1, "the device is not ready, or runs no steps");
    }
    *out = d->step;
    return INF_OK;
}

int inf_device_slot_open(inf_device *d, uint32_t slot, const inf_sampling *sampling,
                         const int32_t *tokens, int64_t n_tokens, int64_t n_prompt,
                         const int32_t *bias_ids, const float *bias, int32_t n_bias, inf_err *err) {
    if (d == NULL || !d->ready || !has_weights(d) || slot >= (uint32_t)d->config.max_seqs ||
        sampling == NULL) {
        return inf_fail(err, INF_EINVAL, -1, -1, "there is no slot %u", slot);
    }
    inf_slot *fresh = NULL;
    int status = inf_slot_new(sampling, tokens, n_tokens, n_prompt, bias_ids, bias, n_bias,
                              d->config.vocab, &fresh, err);
    if (status != INF_OK) {
        return status;
    }
    pthread_mutex_lock(&d->mutex);
    inf_slot *old = fresh; /* freed below: the new one, if the slot cannot be replaced now */
    if (d->slot_marks[slot] == 0) {
        status = inf_forward_slot_open(d->forward, slot, sampling, tokens, n_tokens, n_prompt,
                                       bias_ids, bias, n_bias, err);
        if (status == INF_OK) {
            old = d->slots[slot];
            d->slots[slot] = fresh;
        }
    } else {
        status = inf_fail(err, INF_EINVAL, -1, -1, "slot %u is in the step in flight", slot);
    }
    pthread_mutex_unlock(&d->mutex);
    inf_slot_free(old);
    return status;
}
