/* Lanes: their memory and the inbox.
 *
 * A step's input is a few arrays of words. They are written into pinned memory, and one kernel
 * copies them to fixed places on the device, reading over the bus: one launch where copies would be
 * a dozen. */
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/lane.h"

bool lane_ok(inf_lane *l, int status, const char *at) {
    if (status != 0 && l->fault == 0) {
        l->fault = status;
        l->fault_at = at;
        if (l->sum != NULL) { /* no rank is recorded, so this is one that stays */
            collective_lose(l, status, at);
        }
    }
    return l->fault == 0;
}

void lane_enter(inf_lane *l) { lane_ok(l, cudaSetDevice(l->backend->ordinal), "cudaSetDevice"); }

cudaError_t lane_await(inf_lane *l, cudaEvent_t event) {
    return l->sum != NULL  ? collective_await(l, event)
           : event != NULL ? cudaEventSynchronize(event)
                           : cudaStreamSynchronize(l->stream);
}

void lane_settle(inf_lane *l, cudaEvent_t event, const char *at) {
    cudaError_t status = lane_await(l, event);
    (void)collective_tell(l); /* before what follows from it */
    lane_ok(l, status, at);
}

int lane_sync(inf_lane *l, inf_err *err) {
    lane_settle(l, NULL, "cudaStreamSynchronize");
    return lane_status(l, err);
}

int lane_status(const inf_lane *l, inf_err *err) {
    if (l->fault == 0) {
        return INF_OK;
    }
    const char *text = l->fault_text;
    if (text == NULL) {
        text = l->fault > 0 ? cudaGetErrorString((cudaError_t)l->fault) : "cuBLAS";
    }
    return inf_fail(err, INF_EIO, -1, -1, "the GPU failed in %s: %s (%d)", l->fault_at, text,
                    l->fault > 0 ? l->fault : -l->fault);
}

void lane_copy(inf_lane *l, void *to, const void *from, uint64_t bytes, cudaMemcpyKind kind) {
    lane_ok(l, cudaMemcpyAsync(to, from, bytes, kind, l->stream), "a copy");
}

/* ---- the inbox ---- */

struct inbox_args {
    const uint32_t *inbox;
    inbox_section sections[MAX_SECTIONS];
};

/* Block (x, y): a share of section y's words. */
__global__ void inbox_kernel(const __grid_constant__ inbox_args a) {
    const inbox_section s = a.sections[blockIdx.y];
    start_successor();
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < s.words;
         i += gridDim.x * blockDim.x) {
        s.to[i] = a.inbox[s.from + i];
    }
}

bool lane_code_waits() { return made_for_sm90(inbox_kernel) > 0; }

void inbox_begin(inf_lane *l) {
    l->inbox_used = 0;
    l->n_sections = 0;
}

uint32_t *inbox_put(inf_lane *l, void *to, uint64_t bytes) {
    uint64_t words = (bytes + 3) / 4;
    if (l->n_sections == MAX_SECTIONS || words > l->inbox_words - l->inbox_used) {
        lane_ok(l, (int)cudaErrorInvalidValue, "the inbox");
        return NULL;
    }
    uint32_t from = (uint32_t)l->inbox_used;
    l->inbox_used += (words + 31) & ~(uint64_t)31;
    if (l->inbox_used > l->inbox_words) {
        l->inbox_used = l->inbox_words;
    }
    if (words > 0) {
        l->sections[l->n_sections++] = {(uint32_t *)to, from, (uint32_t)words};
    }
    return l->inbox + from;
}

void inbox_send(inf_lane *l) {
    if (l->n_sections == 0 || l->fault != 0) {
        return;
    }
    inbox_args a;
    uint32_t most = 1;
    a.inbox = l->inbox;
    memcpy(a.sections, l->sections, sizeof l->sections);
    for (int32_t i = 0; i < l->n_sections; i++) {
        most = l->sections[i].words > most ? l->sections[i].words : most;
    }
    uint32_t blocks = (most + 1023) / 1024;
    dim3 grid(blocks < 32 ? blocks : 32, (uint32_t)l->n_sections);
    lane_ok(l, INF_LAUNCH(inbox_kernel, grid, dim3(256), 0, l->stream, a), "the inbox");
}

/* ---- opening and closing ---- */

bool lane_take(inf_lane *l, void **out, uint64_t bytes) {
    void *memory = NULL;
    bytes = bytes > 0 ? bytes : 1;
    if (l->n_taken == 128 || cudaMalloc(&memory, bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    l->taken[l->n_taken++] = *out = memory;
    /* On the lane's own stream: the streams do not wait for the default one. */
    return cudaMemsetAsync(memory, 0, bytes, l->stream) == cudaSuccess;
}

bool lane_pin(inf_lane *l, void **out, uint64_t bytes) {
    void *memory = NULL;
    if (l->n_pinned == 16 ||
        cudaHostAlloc(&memory, bytes > 0 ? bytes : 1,
                      cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    l->pinned[l->n_pinned++] = *out = memory;
    return true;
}

bool lane_keep(inf_lane *l, void **out, uint64_t bytes) {
    void *memory = l->n_kept < 32 ? calloc(1, bytes > 0 ? bytes : 1) : NULL;
    if (memory != NULL) {
        l->kept[l->n_kept++] = *out = memory;
    }
    return memory != NULL;
}

/* Sorts the layers into classes by their windows. */
static int classify(inf_lane *l, const int32_t *windows, inf_err *err) {
    if (!keep(l, &l->class_of, (uint64_t)l->dims.layers) ||
        !keep(l, &l->rope_of, (uint64_t)l->dims.layers)) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a lane");
    }
    for (int32_t i = 0; i < l->dims.layers; i++) {
        int32_t c = 0;
        l->rope_of[i] = inf_ropes(&l->dims) > 1 && windows[i] > 0;
        while (c < l->n_classes && l->classes[c].window != windows[i]) {
            c++;
        }
        if (c == MAX_CLASSES) {
            return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                            "on a GPU a model has at most %d different windows", (int)MAX_CLASSES);
        }
        if (c == l->n_classes) {
            l->classes[l->n_classes++].window = windows[i];
        }
        l->class_of[i] = c;
    }
    return INF_OK;
}

/* A step's rows are each in one segment. In an answer every span is a segment, and those of a
 * request name the same rows: its batches are bounded so that no more than this many rows are named
 * twice. */
static bool size_plans(inf_lane *l) {
    inf_cuda_plan_limits limits = {l->max_segments, l->max_rows, l->max_rows, 0};
    if (l->kind == INF_LANE_ANSWER) {
        limits.segment_rows = limits.shared_rows = l->max_rows;
    }
    l->shape.heads = l->dims.heads;
    l->shape.kv_heads = l->dims.kv_heads;
    l->shape.sms = l->backend->sms;
    for (int32_t i = 0; i < l->n_classes; i++) {
        inf_cuda_plan_sizes sizes;
        l->shape.window = l->classes[i].window;
        if (inf_cuda_plan_capacity(&l->shape, &limits, &sizes) != INF_OK) {
            return false;
        }
        l->sizes.decode = sizes.decode > l->sizes.decode ? sizes.decode : l->sizes.decode;
        l->sizes.prefill = sizes.prefill > l->sizes.prefill ? sizes.prefill : l->sizes.prefill;
        l->sizes.parts = sizes.parts > l->sizes.parts ? sizes.parts : l->sizes.parts;
        l->sizes.rows = sizes.rows > l->sizes.rows ? sizes.rows : l->sizes.rows;
    }
    return true;
}

static bool take_lists(inf_lane *l, class_lists *c) {
    return take(l, &c->decode, (uint64_t)l->sizes.decode) &&
           take(l, &c->prefill, (uint64_t)l->sizes.prefill) &&
           take(l, &c->off, (uint64_t)l->sizes.rows + 1) &&
           take(l, &c->list, (uint64_t)l->sizes.parts) && take(l, &c->counts, 2);
}

static bool take_plans(inf_lane *l) {
    uint64_t decode = (uint64_t)l->sizes.decode, prefill = (uint64_t)l->sizes.prefill;
    uint64_t off = (uint64_t)l->sizes.rows + 1, parts = (uint64_t)l->sizes.parts;
    uint64_t heads = (uint64_t)l->dims.heads;
    int32_t classes = l->kind == INF_LANE_ANSWER ? 1 : l->n_classes;
    bool halves = l->kind == INF_LANE_STEP && l->backend->base.half_rows > 0;
    uint64_t plans = (uint64_t)classes * (halves ? INF_HALVES : 1);
    uint64_t max_segments = (uint64_t)l->max_segments + halves; /* one request may be in both */
    for (int32_t i = 0; i < l->n_classes; i++) {
        class_lists *c = &l->classes[i];
        if (i >= classes) { /* an answer is of one layer, so its classes share memory */
            int32_t window = c->window;
            *c = l->classes[0];
            c->window = window;
        } else if (!take_lists(l, c)) {
            return false;
        }
        if (halves) {
            l->second[i].window = c->window;
            if (!take_lists(l, &l->second[i])) {
                return false;
            }
        }
    }
    uint64_t words = (decode + prefill) * sizeof(inf_cuda_work) / 4 + off + parts + 2 + 5 * 32;
    uint64_t rows = 5 * (uint64_t)l->max_rows + (uint64_t)l->dims.max_rows;
    uint64_t segments = max_segments * sizeof(inf_cuda_segment) / 4;
    l->inbox_words =
        rows + segments + (uint64_t)l->max_blocks + plans * words + 8 * 32 + draw_inbox_words(l);
    return l->inbox_words <= UINT32_MAX && pin(l, &l->inbox, l->inbox_words) &&
           keep(l, &l->plan_decode, decode) && keep(l, &l->plan_prefill, prefill) &&
           keep(l, &l->plan_off, off) && keep(l, &l->plan_list, parts) &&
           keep(l, &l->host_segments, max_segments) && take(l, &l->segments, max_segments) &&
           take(l, &l->blocks, (uint64_t)l->max_blocks) &&
           take(l, &l->part_o, parts * (uint64_t)l->q_dim) &&
           take(l, &l->part_lse, parts * heads) &&
           take(l, &l->done, (uint64_t)l->max_rows * (uint64_t)l->dims.kv_heads);
}

static bool take_memory(inf_lane *l, const inf_lane_config *c) {
    uint64_t rows = (uint64_t)l->max_rows, heads = (uint64_t)l->dims.heads;
    uint64_t q = rows * (uint64_t)l->q_dim;
    uint64_t table = (uint64_t)inf_ropes(&l->dims) * (uint64_t)inf_rotary_dim(&l->dims) / 2;
    bool all_heads = (l->dims.model_flags & INF_MODEL_QK_NORM_ALL) != 0;
    if (l->kind == INF_LANE_COPY) {
        return true;
    }
    if (!size_plans(l) || !take_plans(l) || !take(l, &l->o32, q) ||
        !take(l, &l->lse, rows * heads) || !pin(l, &l->staging, q) ||
        !pin(l, &l->staging_lse, rows * heads)) {
        return false;
    }
    if (l->kind == INF_LANE_ANSWER) {
        return take(l, &l->o2, q) && take(l, &l->lse2, rows * heads) && take(l, &l->places, rows) &&
               keep(l, &l->known.segments, (uint64_t)l->max_segments) &&
               keep(l, &l->known.blocks, (uint64_t)l->max_blocks) &&
               take(l, (uint8_t **)&l->q, q * (uint64_t)l->act_bytes);
    }
    l->keys = 2 + l->dims.layers;
    l->max_wait = l->dims.max_step_spans > 0 ? l->dims.max_step_spans : 1;
    uint64_t recordings = (uint64_t)RECORD_ROWS * (uint64_t)l->keys;
    if (!take(l, &l->tokens, rows) || !take(l, &l->position, rows) ||
        !take(l, &l->kv_block, rows) || !take(l, &l->kv_index, rows) ||
        !take(l, &l->pick, (uint64_t)l->dims.max_rows) || !take(l, &l->inv_freq, table) ||
        !take(l, &l->cos, rows * table) || !take(l, &l->sin, rows * table) ||
        (all_heads && !take(l, &l->head_scales, 2 * rows)) ||
        !keep(l, &l->wait, (uint64_t)l->max_wait) || !keep(l, &l->recordings, recordings) ||
        !take(l, &l->squares,
              (uint64_t)INF_CUDA_SMALL_ROWS * (uint64_t)(l->dims.hidden / 16 + 1)) ||
        !draw_memory(l) || !experts_memory(l) ||
        cudaEventCreateWithFlags(&l->gone, cudaEventDisableTiming) != cudaSuccess) {
        return false;
    }
    return cudaMemcpyAsync(l->inv_freq, c->inv_freq, table * sizeof(float), cudaMemcpyHostToDevice,
                           l->stream) == cudaSuccess &&
           cudaStreamSynchronize(l->stream) == cudaSuccess;
}

void inf_cuda_lane_close(inf_lane *l) {
    if (l == NULL) {
        return;
    }
    (void)cudaSetDevice(l->backend->ordinal);
    if (l->stream != NULL) {
        (void)cudaStreamSynchronize(l->stream);
    }
    for (int32_t i = 0; l->recordings != NULL && i < RECORD_ROWS * l->keys; i++) {
        if (l->recordings[i].exec != NULL) {
            (void)cudaGraphExecDestroy(l->recordings[i].exec);
        }
    }
    inf_cuda_products_close(l->products);
    draw_close(l);
    for (int32_t i = 0; i < l->n_taken; i++) {
        (void)cudaFree(l->taken[i]);
    }
    for (int32_t i = 0; i < l->n_pinned; i++) {
        (void)cudaFreeHost(l->pinned[i]);
    }
    for (int32_t i = 0; i < l->n_kept; i++) {
        free(l->kept[i]);
    }
    if (l->gone != NULL) {
        (void)cudaEventDestroy(l->gone);
    }
    if (l->stream != NULL) {
        (void)cudaStreamDestroy(l->stream);
    }
    free(l);
    (void)cudaGetLastError(); /* what failed on it is no fault of the thread's next lane */
}

/* Why there is no lane. What has befallen the GPU itself comes back from every call. */
static int no_lane(const inf_lane_config *c, inf_err *err) {
    size_t available = 0, total = 0;
    (void)cudaGetLastError(); /* or the thread's next launch would report it */
    cudaError_t fault = cudaMemGetInfo(&available, &total);
    (void)cudaGetLastError();
    if (fault != cudaSuccess && fault != cudaErrorMemoryAllocation) {
        return inf_fail(err, INF_EIO, -1, -1, "cannot open a lane, the GPU failed: %s (%d)",
                        cudaGetErrorString(fault), (int)fault);
    }
    return inf_fail(err, INF_ENOMEM, -1, -1,
                    "cannot allocate a lane of %d rows and %d blocks on the GPU", c->max_rows,
                    c->max_blocks);
}

static int await_event(void *lane, void *event) {
    return lane_await((inf_lane *)lane, (cudaEvent_t)event);
}

int inf_cuda_lane_open(inf_backend *b, const inf_lane_config *c, inf_lane **out, inf_err *err) {
    cuda_backend *backend = (cuda_backend *)b;
    const inf_device_config *d = c->device;
    *out = NULL;
    if (c->kind == INF_LANE_STEP && d->vocab > INF_CUDA_SAMPLE_MAX_VOCAB) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "on a GPU a vocabulary has at most %d tokens; the model's has %d",
                        (int)INF_CUDA_SAMPLE_MAX_VOCAB, d->vocab);
    }
    inf_lane *l = (inf_lane *)calloc(1, sizeof *l);
    if (l == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate a lane");
    }
    l->backend = backend;
    l->kind = c->kind;
    l->dims = *d;
    l->kv = c->kv;
    l->pool = c->pool;
    l->scale = c->scale;
    l->q_dim = d->heads * d->head_dim;
    l->qkv_dim = l->q_dim + 2 * d->kv_heads * d->head_dim;
    l->act = b->act;
    l->act_bytes = b->act_bytes;
    l->max_rows = c->max_rows;
    l->max_segments = c->max_segments;
    l->max_blocks = c->max_blocks;
    if (c->kind == INF_LANE_ANSWER && !answer_pool(l)) {
        free(l);
        return inf_fail(err, INF_EINVAL, -1, -1, "cannot number the layers of %d blocks",
                        d->num_blocks);
    }
    int low = 0, high = 0;
    if (cudaSetDevice(backend->ordinal) == cudaSuccess) { /* or another GPU would get a context */
        (void)cudaDeviceGetStreamPriorityRange(&low, &high);
    }
    /* Others' steps wait for answers, and this instance's step for others' answers. */
    int priority = c->kind == INF_LANE_ANSWER ? high : low;
    int status = c->kind == INF_LANE_COPY ? INF_OK : classify(l, c->windows, err);
    if (status != INF_OK) {
        /* closed below */
    } else if (cudaSetDevice(backend->ordinal) != cudaSuccess ||
               cudaStreamCreateWithPriority(&l->stream, cudaStreamNonBlocking, priority) !=
                   cudaSuccess ||
               !take_memory(l, c)) {
        status = no_lane(c, err);
    } else if (c->kind == INF_LANE_STEP) {
        inf_cuda_waiter waiter = {await_event, l};
        status = inf_cuda_products_open(l->act, &waiter, &l->products, err);
    }
    if (status != INF_OK) {
        inf_cuda_lane_close(l);
        return status;
    }
    *out = l;
    return INF_OK;
}
