/* Whole steps of a Llama-shaped model with random weights, by the device's public functions: decode
 * steps at several batches and contexts, prefill chunks, and decode steps of two instances in one
 * process that hold a context's KV together. Prints a JSON line per measurement; the floor of each
 * is bytes over the bandwidth that gpu.sh measures beside it.
 *
 *   bench_step GPU SHAPE [fp8] [part ...]     GPU as in inf_device_config (0: the CPU); fp8: KV in
 *                                             8 bits
 *   SHAPE: 8b (Llama-3-8B), 13b (Llama-2-13B), 13b4 (4 layers of it), 1b (Llama-3.2-1B), tiny
 *   parts: decode prefill pair            default: decode prefill pair
 *          pair_prefill                   prefill steps, for which INFINITE_HALF_ROWS counts
 *          gaps                           alone: bench_gaps.h
 *
 * BLOCKS and CREDITOR_BLOCKS: the pools, in blocks of 16 tokens; BLOCK_SIZE: tokens of the blocks
 * that they are made of. move_ms of a pair is what it took to move half
 * of the KV to the creditor, which is what each step would cost that fetched KV instead of sending
 * queries. */
#define _GNU_SOURCE
#include <string.h>

#include "bench/cuda/bench_gaps.h"
#include "bench/cuda/step_model.h"
#include "bench/link_pair.h"

static int is_tiny(const shape *s) { return s->hidden < 1024; }

static void bench_decode(inf_device *d, const shape *s) {
    static const uint32_t cases[][2] = {{1, 1024},  {1, 8192},  {1, 131072}, {8, 1024},
                                        {8, 16384}, {64, 1024}, {64, 2048}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t batch = (int32_t)cases[i][0];
        uint32_t context = cases[i][1];
        if (!fits(d, batch, context)) {
            continue;
        }
        set_step(d, batch, context, 1, 0);
        timing t = time_steps(d, 21);
        uint64_t kv = (uint64_t)batch * context * d->kv.block_bytes / block_size;
        printf(
            "{\"bench\":\"step_decode\",\"shape\":\"%s\",\"batch\":%d,\"context\":%u,\"ms\":%.4f,"
            "\"least_ms\":%.4f,\"weight_bytes\":%llu,\"kv_bytes\":%llu}\n",
            s->name, batch, context, t.median * 1e3, t.least * 1e3,
            (unsigned long long)weight_bytes(s), (unsigned long long)kv);
    }
}

static void bench_prefill(inf_device *d, const shape *s) {
    static const uint32_t cases[][2] = {{512, 0}, {2048, 0}, {8192, 0}, {512, 131072 - 512}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t n = cases[i][0], context = cases[i][1];
        if ((uint64_t)(context + n + block_size) / block_size > (uint64_t)d->config.num_blocks) {
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
    }
}

/* ---- two instances ---- */

static void join_pair(inf_device *home, inf_device *creditor) {
    inf_link *c[2], *v[2];
    CHECK(link_pair(inf_device_query_slot_bytes(&home->config), &c[0], &v[0]));
    CHECK(link_pair(inf_device_move_slot_bytes(&home->config), &c[1], &v[1]));
    CHECK(inf_device_peer_serve(creditor, 0, v[0], v[1], &err) == INF_OK);
    CHECK(inf_device_peer_attach(home, 0, c[0], c[1], &err) == INF_OK);
}

static uint32_t generation; /* of the spans that the creditor has now */

/* The creditor's blocks count as landed by a move of each: so many blocks of the home for each
 * request. Returns its seconds. */
static double lend(inf_device *home, inf_device *creditor, const shape *s, int32_t batch,
                   uint32_t blocks) {
    double move_s = 0;
    int32_t *list = malloc((size_t)blocks * sizeof *list);
    generation++;
    for (int32_t r = 0; r < batch; r++) {
        for (uint32_t k = 0; k < blocks; k++) {
            list[k] = (int32_t)((uint32_t)r * blocks + k);
        }
        CHECK(inf_device_span_set(creditor, 0, (uint32_t)r, generation, list, (int32_t)blocks,
                                  &err) == INF_OK);
        double begun = now();
        CHECK(inf_device_move_post(home, 0, (uint32_t)r, generation, 0, list, (int32_t)blocks, 1,
                                   &err) == INF_OK);
        inf_move_done done;
        while (inf_device_move_wait(home, 1000000000, &done, &err) == INF_AGAIN) {
        }
        CHECK(done.status == INF_OK);
        double took = now() - begun;
        move_s += took;
        if (r == 0) {
            printf("{\"bench\":\"move\",\"shape\":\"%s\",\"bytes\":%llu,\"gb_per_s\":%.2f}\n",
                   s->name, (unsigned long long)(blocks * home->kv.block_bytes),
                   (double)(blocks * home->kv.block_bytes) / took * 1e-9);
        }
    }
    free(list);
    return move_s;
}

static void take_back(inf_device *creditor, int32_t batch) {
    for (int32_t r = 0; r < batch; r++) {
        CHECK(inf_device_span_close(creditor, (uint32_t)r, generation, &err) == INF_OK);
    }
}

/* With `remote` tokens of each request where lend() brought them. */
static timing time_spread(inf_device *home, int32_t batch, uint32_t context, uint32_t n,
                          uint32_t remote, int steps) {
    inf_step_buffers b;
    set_step(home, batch, context, n, remote);
    CHECK(inf_device_buffers(home, &b, &err) == INF_OK);
    for (int32_t r = 0; r < batch; r++) {
        b.spans[r].generation = generation;
    }
    return time_steps(home, steps);
}

/* Half of each request's KV is moved to the creditor, and then stays there for all steps. */
static void bench_pair(inf_device *home, inf_device *creditor, const shape *s) {
    static const uint32_t cases[][2] = {
        {1, 8192}, {8, 8192}, {1, 32768}, {1, 131072}, {1, 1048576}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int32_t batch = (int32_t)cases[i][0];
        uint32_t context = cases[i][1], remote = context / 2, blocks = remote / block_size;
        uint64_t need = (uint64_t)batch * (blocks + 2);
        if (need > (uint64_t)home->config.num_blocks ||
            need > (uint64_t)creditor->config.num_blocks) {
            continue;
        }
        double move_s = lend(home, creditor, s, batch, blocks);
        timing local = {0, 0};
        if (fits(home, batch, context)) {
            set_step(home, batch, context, 1, 0);
            local = time_steps(home, 11);
        }
        timing spread = time_spread(home, batch, context, 1, remote, 11);
        printf(
            "{\"bench\":\"step_pair\",\"shape\":\"%s\",\"kv\":\"%s\",\"batch\":%d,\"context\":%u,"
            "\"home_blocks\":%d,\"move_ms\":%.3f,\"local_ms\":%.4f,\"spread_ms\":%.4f}\n",
            s->name, home->kv.elem == 1 ? "fp8" : "bf16", batch, context, home->config.num_blocks,
            move_s * 1e3, local.median * 1e3, spread.median * 1e3);
        take_back(creditor, batch);
    }
}

/* The last n rows of a prompt, half of what is in front of them with the creditor. half_rows: of
 * twice as many rows on, a spread step is computed in halves; 0: none is. */
static void bench_pair_prefill(inf_device *home, inf_device *creditor, const shape *s) {
    static const uint32_t usual[][2] = {{512, 32768}, {2048, 32768}, {2048, 131072}};
    static const uint32_t small[][2] = {{64, 1024}};
    int tiny = is_tiny(s);
    const uint32_t(*cases)[2] = tiny ? small : usual;
    size_t n_cases = tiny ? sizeof small / sizeof *small : sizeof usual / sizeof *usual;
    for (size_t i = 0; i < n_cases; i++) {
        uint32_t n = cases[i][0], context = cases[i][1], remote = context / 2;
        uint32_t blocks = remote / block_size;
        uint64_t kept = (context - remote + n) / block_size + 1;
        uint64_t whole = (context + n) / block_size + 1;
        if (kept > (uint64_t)home->config.num_blocks ||
            blocks > (uint32_t)creditor->config.num_blocks) {
            continue;
        }
        lend(home, creditor, s, 1, blocks);
        timing local = {0, 0};
        if (whole <= (uint64_t)home->config.num_blocks) {
            set_step(home, 1, context, n, 0);
            local = time_steps(home, 5);
        }
        timing spread = time_spread(home, 1, context, n, remote, 5);
        printf("{\"bench\":\"step_pair_prefill\",\"shape\":\"%s\",\"kv\":\"%s\",\"tokens\":%u,"
               "\"context\":%u,\"half_rows\":%d,\"local_ms\":%.3f,\"spread_ms\":%.3f}\n",
               s->name, home->kv.elem == 1 ? "fp8" : "bf16", n, context, home->backend->half_rows,
               local.median * 1e3, spread.median * 1e3);
        take_back(creditor, 1);
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

static int32_t env_or(const char *name, int32_t otherwise) {
    const char *value = getenv(name);
    return value != NULL ? atoi(value) : otherwise;
}

/* A pool's blocks, given in such of 16 tokens. */
static int32_t pool_blocks(const char *name, int32_t otherwise) {
    return (int32_t)((int64_t)env_or(name, otherwise) * 16 / block_size);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* a run that is cut short has printed what it has */
    const shape *s = argc > 2 ? shape_of(argv[2]) : NULL;
    if (s == NULL) {
        fprintf(stderr, "use: bench_step GPU 8b|13b|13b4|1b|tiny [fp8] [decode] [prefill] [pair] "
                        "[pair_prefill], or gaps\n");
        return 2;
    }
    int32_t gpu = atoi(argv[1]);
    make_noise(s);
    int fp8 = argc > 3 && strcmp(argv[3], "fp8") == 0;
    argc -= fp8;
    argv += fp8;
    int gaps = argc > 3 && strcmp(argv[3], "gaps") == 0;
    int pair = !gaps && wants(argc, argv, "pair");
    int pair_prefill = argc > 3 && wants(argc, argv, "pair_prefill");
    int two = pair || pair_prefill;
    int32_t kv = fp8 ? INF_DTYPE_E4M3 : 0;
    block_size = (uint32_t)env_or("BLOCK_SIZE", 16);
    int32_t usual = env_or("BLOCKS", is_tiny(s) ? 600 : two ? 8500 : 17000);
    int32_t blocks = pool_blocks("BLOCKS", usual);
    if (gaps) {
        bench_gaps(s, gpu, kv, blocks);
        return 0;
    }
    inf_device *home = open_device(s, gpu, kv, blocks);
    open_slots(home);
    if (wants(argc, argv, "decode")) {
        bench_decode(home, s);
    }
    if (wants(argc, argv, "prefill")) {
        bench_prefill(home, s);
    }
    inf_device *creditor = NULL;
    if (two) {
        creditor = open_device(s, gpu, kv, pool_blocks("CREDITOR_BLOCKS", usual));
        join_pair(home, creditor);
    }
    if (pair) {
        bench_pair(home, creditor, s);
    }
    if (pair_prefill) {
        bench_pair_prefill(home, creditor, s);
    }
    inf_device_close(home);
    if (two) {
        inf_device_close(creditor);
    }
    return 0;
}
