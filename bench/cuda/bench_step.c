/* Whole steps of a Llama-shaped model with random weights, by the device's public functions: decode
 * steps at several batches and contexts, prefill chunks, and decode steps of two instances in one
 * process that hold a context's KV together. Prints a JSON line per measurement; the floor of each
 * is bytes over the bandwidth that run.sh measures beside it.
 *
 *   bench_step GPU SHAPE [fp8] [part ...]     GPU as in inf_device_config (0: the CPU); fp8: KV in
 * 8 bits SHAPE: 8b (Llama-3-8B), 13b (Llama-2-13B), 13b4 (4 layers of it), 1b (Llama-3.2-1B), tiny
 *   parts: decode prefill pair            default: decode prefill pair
 *
 * BLOCKS and CREDITOR_BLOCKS: blocks of the pools. move_ms of a pair is what it took to move half
 * of the KV to the creditor, which is what each step would cost that fetched KV instead of sending
 * queries.
 *
 * The pool is filled with random numbers from inside, so that contexts need no prefill. */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "runtime/runtime.h"

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #cond, err.message);            \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static inf_err err;

typedef struct shape {
    const char *name;
    int32_t layers, hidden, inner, heads, kv_heads, dim, vocab;
} shape;

static const shape shapes[] = {{"8b", 32, 4096, 14336, 32, 8, 128, 128256},
                               {"13b", 40, 5120, 13824, 40, 40, 128, 32000},
                               {"1b", 16, 2048, 8192, 32, 8, 64, 128256},
                               {"13b4", 4, 5120, 13824, 40, 40, 128, 32000}, /* 4 layers of it */
                               {"tiny", 2, 256, 512, 4, 2, 64, 512}};

enum { BLOCK = 16, MAX_SEQS = 64, MAX_TOKENS = 8192 };

static double now(void) {
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

static void make_noise(size_t largest) {
    noise_size = largest + NOISE;
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

static uint64_t weight_bytes(const shape *s) {
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

static inf_device *open_device(const shape *s, int32_t gpu, int32_t kv_dtype, int32_t num_blocks) {
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
                           .block_size = BLOCK,
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

static double run_step(inf_device *d) {
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

/* A step of `batch` requests, each with `context` tokens of KV and n new ones. remote tokens of
 * each lie with peer 0 as span handle = index. */
static void set_step(inf_device *d, int32_t batch, uint32_t context, uint32_t n, uint32_t remote) {
    inf_step_buffers b;
    CHECK(inf_device_buffers(d, &b, &err) == INF_OK);
    *b.head = (inf_step_head){.step_id = next(), .peer_timeout_ns = 20000000000u};
    uint32_t block = 0, stride = 7919 % (uint32_t)d->config.num_blocks;
    while (stride % 2 == 0 || (uint32_t)d->config.num_blocks % stride == 0) {
        stride++;
    }
    for (int32_t i = 0; i < batch; i++) {
        uint32_t local = context + n - remote, blocks = (local + BLOCK - 1) / BLOCK;
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
        b.rows[b.head->n_rows++] = (inf_step_row){b.head->n_tokens - 1, (uint32_t)i, -1, 0};
    }
    b.head->n_seqs = (uint32_t)batch;
}

static void open_slots(inf_device *d) {
    inf_sampling greedy = {.temperature = 0, .top_p = 1, .repetition = 1};
    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        CHECK(inf_device_slot_open(d, i, &greedy, NULL, 0, 0, NULL, NULL, 0, &err) == INF_OK);
    }
}

typedef struct timing {
    double median, least;
} timing;

static timing time_steps(inf_device *d, int steps) {
    double t[64];
    for (int i = 0; i < 4; i++) { /* timed products, then the recording, then a replay */
        run_step(d);
    }
    for (int i = 0; i < steps; i++) {
        t[i] = run_step(d);
    }
    qsort(t, (size_t)steps, sizeof *t, compare);
    return (timing){t[steps / 2], t[0]};
}

static void bench_decode(inf_device *d, const shape *s) {
    static const uint32_t cases[][2] = {{1, 1024},  {1, 8192},  {1, 131072}, {8, 1024},
                                        {8, 16384}, {64, 1024}, {64, 2048}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t batch = (int32_t)cases[i][0];
        uint32_t context = cases[i][1];
        if ((uint64_t)batch * (context + 17) / BLOCK > (uint64_t)d->config.num_blocks) {
            continue;
        }
        set_step(d, batch, context, 1, 0);
        timing t = time_steps(d, 21);
        uint64_t kv = (uint64_t)batch * context * d->kv.block_bytes / BLOCK;
        printf(
            "{\"bench\":\"step_decode\",\"shape\":\"%s\",\"batch\":%d,\"context\":%u,\"ms\":%.4f,"
            "\"least_ms\":%.4f,\"weight_bytes\":%llu,\"kv_bytes\":%llu}\n",
            s->name, batch, context, t.median * 1e3, t.least * 1e3,
            (unsigned long long)weight_bytes(s), (unsigned long long)kv);
        fflush(stdout);
    }
}

static void bench_prefill(inf_device *d, const shape *s) {
    static const uint32_t cases[][2] = {{512, 0}, {2048, 0}, {8192, 0}, {512, 131072 - 512}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t n = cases[i][0], context = cases[i][1];
        if ((uint64_t)(context + n + 16) / BLOCK > (uint64_t)d->config.num_blocks) {
            continue;
        }
        set_step(d, 1, context, n, 0);
        timing t = time_steps(d, 3);
        double linear = (double)weight_bytes(s) / 2 * 2 * n;
        double keys = (double)n * context + (double)n * (n + 1) / 2;
        double attention = 4.0 * s->heads * s->dim * s->layers * keys;
        printf(
            "{\"bench\":\"step_prefill\",\"shape\":\"%s\",\"tokens\":%u,\"context\":%u,\"ms\":%.3f,"
            "\"tflops\":%.1f}\n",
            s->name, n, context, t.median * 1e3, (linear + attention) / t.median * 1e-12);
        fflush(stdout);
    }
}

/* ---- two instances ---- */

static void link_pair(uint64_t slot_bytes, inf_link **client, inf_link **server) {
    int s[2], mem = memfd_create("link", MFD_CLOEXEC), ev[2] = {eventfd(0, 0), eventfd(0, 0)};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    CHECK(mem >= 0 && ftruncate(mem, (off_t)inf_link_shm_bytes(2, slot_bytes)) == 0);
    inf_link_config c = {
        INF_LINK_CLIENT, INF_PROVIDER_SHM, 2, 0, slot_bytes, s[0], mem, ev[0], ev[1]};
    inf_link_config v = {INF_LINK_SERVER, INF_PROVIDER_SHM, 2,         0, slot_bytes, s[1],
                         dup(mem),        dup(ev[1]),       dup(ev[0])};
    CHECK(inf_link_open(&c, client, &err) == INF_OK);
    CHECK(inf_link_open(&v, server, &err) == INF_OK);
}

/* Half of each request's KV is moved to the creditor, and then stays there for all steps. */
static void bench_pair(inf_device *home, inf_device *creditor, const shape *s) {
    static const uint32_t cases[][2] = {
        {1, 8192}, {8, 8192}, {1, 32768}, {1, 131072}, {1, 1048576}};
    inf_link *c[2], *v[2];
    link_pair(inf_device_query_slot_bytes(&home->config), &c[0], &v[0]);
    link_pair(inf_device_move_slot_bytes(&home->config), &c[1], &v[1]);
    CHECK(inf_device_peer_serve(creditor, 0, v[0], v[1], &err) == INF_OK);
    CHECK(inf_device_peer_attach(home, 0, c[0], c[1], &err) == INF_OK);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t batch = (int32_t)cases[i][0];
        uint32_t context = cases[i][1], remote = context / 2, blocks = remote / BLOCK;
        uint64_t need = (uint64_t)batch * (blocks + 2);
        if (need > (uint64_t)home->config.num_blocks ||
            need > (uint64_t)creditor->config.num_blocks) {
            continue;
        }
        double move_s = 0;
        /* The creditor's blocks count as landed by a move of each: move blocks of the home there.
         */
        int32_t *list = malloc((size_t)blocks * sizeof *list);
        for (int32_t r = 0; r < batch; r++) {
            for (uint32_t k = 0; k < blocks; k++) {
                list[k] = (int32_t)((uint32_t)r * blocks + k);
            }
            uint32_t generation = (uint32_t)i + 1;
            CHECK(inf_device_span_set(creditor, 0, (uint32_t)r, generation, list, (int32_t)blocks,
                                      &err) == INF_OK);
            double begun = now();
            CHECK(inf_device_move_post(home, 0, (uint32_t)r, generation, 0, list, (int32_t)blocks,
                                       1, &err) == INF_OK);
            inf_move_done done;
            while (inf_device_move_wait(home, 1000000000, &done, &err) == INF_AGAIN) {
            }
            CHECK(done.status == INF_OK);
            move_s += now() - begun;
            if (r == 0) {
                printf("{\"bench\":\"move\",\"shape\":\"%s\",\"bytes\":%llu,\"gb_per_s\":%.2f}\n",
                       s->name, (unsigned long long)(blocks * home->kv.block_bytes),
                       (double)(blocks * home->kv.block_bytes) / (now() - begun) * 1e-9);
            }
        }
        timing local = {0, 0};
        if ((uint64_t)batch * (context + 17) / BLOCK <= (uint64_t)home->config.num_blocks) {
            set_step(home, batch, context, 1, 0);
            local = time_steps(home, 11);
        }
        set_step(home, batch, context, 1, remote);
        inf_step_buffers b;
        CHECK(inf_device_buffers(home, &b, &err) == INF_OK);
        for (int32_t r = 0; r < batch; r++) {
            b.spans[r].generation = (uint32_t)i + 1;
        }
        timing spread = time_steps(home, 11);
        printf(
            "{\"bench\":\"step_pair\",\"shape\":\"%s\",\"kv\":\"%s\",\"batch\":%d,\"context\":%u,"
            "\"home_blocks\":%d,\"move_ms\":%.3f,\"local_ms\":%.4f,\"spread_ms\":%.4f}\n",
            s->name, home->kv.elem == 1 ? "fp8" : "bf16", batch, context, home->config.num_blocks,
            move_s * 1e3, local.median * 1e3, spread.median * 1e3);
        fflush(stdout);
        for (int32_t r = 0; r < batch; r++) {
            CHECK(inf_device_span_close(creditor, (uint32_t)r, (uint32_t)i + 1, &err) == INF_OK);
        }
        free(list);
    }
}

static int wants(int argc, char **argv, const char *part) {
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], part) == 0) {
            return 1;
        }
    }
    return argc <= 3;
}

int main(int argc, char **argv) {
    const shape *s = NULL;
    for (size_t i = 0; argc > 2 && i < sizeof shapes / sizeof *shapes; i++) {
        s = strcmp(shapes[i].name, argv[2]) == 0 ? &shapes[i] : s;
    }
    if (s == NULL) {
        fprintf(stderr,
                "use: bench_step GPU 8b|13b|13b4|1b|tiny [fp8] [decode] [prefill] [pair]\n");
        return 2;
    }
    int32_t gpu = atoi(argv[1]), tiny = s->hidden < 1024;
    size_t table = (size_t)s->vocab * (size_t)s->hidden,
           inner = (size_t)s->inner * (size_t)s->hidden;
    make_noise(table > inner ? table : inner);
    int fp8 = argc > 3 && strcmp(argv[3], "fp8") == 0;
    argc -= fp8;
    argv += fp8;
    int pair = wants(argc, argv, "pair");
    int32_t kv = fp8 ? INF_DTYPE_E4M3 : 0;
    const char *named = getenv("BLOCKS");
    int32_t blocks = named != NULL ? atoi(named) : tiny ? 600 : pair ? 8500 : 17000;
    const char *lent = getenv("CREDITOR_BLOCKS");
    inf_device *home = open_device(s, gpu, kv, blocks);
    open_slots(home);
    if (wants(argc, argv, "decode")) {
        bench_decode(home, s);
    }
    if (wants(argc, argv, "prefill")) {
        bench_prefill(home, s);
    }
    if (pair) {
        inf_device *creditor = open_device(s, gpu, kv, lent != NULL ? atoi(lent) : blocks);
        bench_pair(home, creditor, s);
        inf_device_close(home);
        inf_device_close(creditor);
        return 0;
    }
    inf_device_close(home);
    return 0;
}
