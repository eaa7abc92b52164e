#include "bench/cuda/step_model.h"

#include <math.h>
#include <string.h>
#include <time.h>

inf_err err;
uint32_t block_size = 16;

static const shape shapes[] = {{"8b", 32, 4096, 14336, 32, 8, 128, 128256},
                               {"13b", 40, 5120, 13824, 40, 40, 128, 32000},
                               {"1b", 16, 2048, 8192, 32, 8, 64, 128256},
                               {"13b4", 4, 5120, 13824, 40, 40, 128, 32000}, /* 4 layers of it */
                               {"tiny", 2, 256, 512, 4, 2, 64, 512}};

const shape *shape_of(const char *name) {
    const shape *found = NULL;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        found = strcmp(shapes[i].name, name) == 0 ? &shapes[i] : found;
    }
    return found;
}

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t rng = 1;

static uint64_t next(void) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng;
}

/* bf16 numbers in +-scale, with all mantissas. */
static void fill(uint16_t *p, size_t n, float scale) {
    for (size_t i = 0; i < n; i++) {
        float f = ((float)(next() >> 40) * 0x1p-23f - 1.0f) * scale;
        uint32_t bits;
        memcpy(&bits, &f, sizeof bits);
        p[i] = (uint16_t)(bits >> 16);
    }
}

/* Numbers in +-1/64, so that products neither grow nor vanish: every tensor is a stretch of them.
 */
static const size_t NOISE = (size_t)1 << 25;
static uint16_t *noise, *ones;
static size_t noise_size;

void make_noise(const shape *s) {
    size_t table = (size_t)s->vocab * (size_t)s->hidden;
    size_t inner = (size_t)s->inner * (size_t)s->hidden;
    noise_size = (table > inner ? table : inner) + NOISE;
    noise = malloc(noise_size * 2);
    ones = malloc((size_t)1 << 18);
    fill(noise, NOISE, 0x1p-6f);
    for (size_t at = NOISE; at < noise_size; at += NOISE) {
        size_t n = noise_size - at < NOISE ? noise_size - at : NOISE;
        memcpy(noise + at, noise, n * 2);
    }
    for (size_t i = 0; i < (size_t)1 << 17; i++) {
        ones[i] = 0x3f80;
    }
}

static void load(inf_device *d, int32_t role, int32_t layer, int64_t rows, int64_t cols) {
    size_t n = (size_t)(rows * cols);
    const uint16_t *data = rows == 1 ? ones : noise + next() % (noise_size - n);
    CHECK(inf_device_load(d, role, layer, INF_DTYPE_BF16, rows, cols, data, n * 2, &err) == INF_OK);
}

uint64_t weight_bytes(const shape *s) {
    uint64_t q = (uint64_t)s->heads * s->dim, kv = (uint64_t)s->kv_heads * s->dim;
    uint64_t layer = (2 * q + 2 * kv) * s->hidden + 3ull * s->hidden * s->inner;
    return 2 * (s->layers * layer + (uint64_t)s->vocab * s->hidden);
}

static void fill_pool(inf_device *d) {
    inf_lane *lane = NULL;
    inf_lane_config c = {.kind = INF_LANE_COPY, .device = &d->config, .kv = d->kv, .pool = d->pool};
    const inf_backend_ops *ops = d->backend->ops;
    CHECK(ops->lane_open(d->backend, &c, &lane, &err) == INF_OK);
    uint64_t piece = NOISE * 2;
    uint8_t *bytes = malloc(piece);
    memcpy(bytes, noise, piece);
    for (uint64_t i = 0; d->kv.elem == 1 && i < piece; i++) {
        bytes[i] &= 0xbf; /* e4m3 below 2, and no NaN */
    }
    for (uint64_t at = 0; at < d->pool_bytes; at += piece) {
        uint64_t n = d->pool_bytes - at < piece ? d->pool_bytes - at : piece;
        if (at > 0 && ops->copy != NULL) {
            ops->copy(lane, d->pool + at, d->pool, n);
        } else {
            ops->copy_in(lane, d->pool + at, bytes, n);
        }
    }
    CHECK(ops->sync(lane, &err) == INF_OK);
    free(bytes);
    ops->lane_close(lane);
}

inf_device *open_device(const shape *s, int32_t gpu, int32_t kv_dtype, int32_t num_blocks) {
    inf_device_config c = {.layers = s->layers,
                           .hidden = s->hidden,
                           .intermediate = s->inner,
                           .heads = s->heads,
                           .kv_heads = s->kv_heads,
                           .head_dim = s->dim,
                           .vocab = s->vocab,
                           .rms_eps = 1e-5f,
                           .rope_scale = 1,
                           .dtype = INF_DTYPE_BF16,
                           .kv_dtype = kv_dtype,
                           .block_size = (int32_t)block_size,
                           .num_blocks = num_blocks,
                           .max_tokens = MAX_TOKENS,
                           .max_seqs = MAX_SEQS,
                           .max_rows = 64,
                           .max_step_blocks = num_blocks,
                           .max_step_spans = 256,
                           .max_spans = 256,
                           .threads = gpu > 0 ? 16 : 2,
                           .gpu = gpu};
    float inv_freq[128];
    int32_t *windows = calloc((size_t)s->layers, sizeof *windows);
    for (int32_t i = 0; i < s->dim / 2; i++) {
        inv_freq[i] = (float)pow(500000.0, -2.0 * i / s->dim);
    }
    inf_device *d = NULL;
    CHECK(inf_device_open(&c, inv_freq, windows, &d, &err) == INF_OK);
    int64_t q = (int64_t)s->heads * s->dim, kv = (int64_t)s->kv_heads * s->dim, h = s->hidden;
    load(d, INF_ROLE_EMBED, -1, s->vocab, h);
    load(d, INF_ROLE_LM_HEAD, -1, s->vocab, h);
    load(d, INF_ROLE_FINAL_NORM, -1, 1, h);
    for (int32_t l = 0; l < s->layers; l++) {
        load(d, INF_ROLE_ATTN_NORM, l, 1, h);
        load(d, INF_ROLE_Q, l, q, h);
        load(d, INF_ROLE_K, l, kv, h);
        load(d, INF_ROLE_V, l, kv, h);
        load(d, INF_ROLE_O, l, h, q);
        load(d, INF_ROLE_MLP_NORM, l, 1, h);
        load(d, INF_ROLE_GATE, l, s->inner, h);
        load(d, INF_ROLE_UP, l, s->inner, h);
        load(d, INF_ROLE_DOWN, l, h, s->inner);
    }
    CHECK(inf_device_ready(d, &err) == INF_OK);
    free(windows);
    fill_pool(d);
    return d;
}

/* ---- steps ---- */

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double run_step(inf_device *d) {
    double begun = now();
    CHECK(inf_device_submit(d, &err) == INF_OK);
    CHECK(inf_device_wait(d, -1, &err) == INF_OK);
    double took = now() - begun;
    inf_step_buffers b;
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK);
    for (uint32_t i = 0; i < b.head->n_seqs; i++) {
        if (b.seq_out[i].status != INF_OK) {
            fprintf(stderr, "request %u: status %d\n", i, b.seq_out[i].status);
            exit(1);
        }
    }
    return took;
}

void set_step(inf_device *d, int32_t batch, uint32_t context, uint32_t n, uint32_t remote) {
    inf_step_buffers b;
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK);
    *b.head = (inf_step_head){.step_id = next(), .peer_timeout_ns = 20000000000u};
    uint32_t block = 0, stride = 7919 % (uint32_t)d->config.num_blocks;
    while (stride % 2 == 0 || (uint32_t)d->config.num_blocks % stride == 0) {
        stride++;
    }
    for (int32_t i = 0; i < batch; i++) {
        uint32_t local = context + n - remote, blocks = (local + block_size - 1) / block_size;
        b.seqs[i] = (inf_step_seq){.slot = (uint32_t)i,
                                   .token_off = b.head->n_tokens,
                                   .n_tokens = n,
                                   .pos0 = context,
                                   .local_pos0 = remote,
                                   .block_off = b.head->n_blocks,
                                   .n_blocks = blocks,
                                   .span_off = b.head->n_spans,
                                   .n_spans = remote > 0};
        if (remote > 0) {
            b.spans[b.head->n_spans++] = (inf_step_span){0, (uint32_t)i, 1, 0, remote, 0};
        }
        for (uint32_t k = 0; k < blocks; k++, block++) {
            /* far from in order, each block once when the pool's size is not a multiple of the
             * stride */
            b.blocks[b.head->n_blocks++] =
                (int32_t)(((uint64_t)block * stride) % (uint64_t)d->config.num_blocks);
        }
        for (uint32_t t = 0; t < n; t++) {
            b.tokens[b.head->n_tokens++] = (int32_t)(next() % (uint64_t)d->config.vocab);
        }
        b.rows[b.head->n_rows++] = (inf_step_row){b.head->n_tokens - 1, (uint32_t)i, -1, 0, 0};
    }
    b.head->n_seqs = (uint32_t)batch;
}

int fits(const inf_device *d, int32_t batch, uint32_t context) {
    uint64_t each = (context + block_size) / block_size; /* with a new token */
    return (uint64_t)batch * each <= (uint64_t)d->config.num_blocks;
}

void open_slots(inf_device *d) {
    inf_sampling greedy = {.temperature = 0, .top_p = 1, .repetition = 1};
    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        CHECK(inf_device_slot_open(d, i, &greedy, NULL, 0, 0, NULL, NULL, 0, &err) == INF_OK);
    }
}

double median_of(double *t, int n) {
    qsort(t, (size_t)n, sizeof *t, compare);
    return t[n / 2];
}

timing time_steps(inf_device *d, int steps) {
    double t[64];
    for (int i = 0; i < 4; i++) { /* timed products, then the recording, then a replay */
        run_step(d);
    }
    for (int i = 0; i < steps; i++) {
        t[i] = run_step(d);
    }
    double median = median_of(t, steps);
    return (timing){median, t[0]};
}
