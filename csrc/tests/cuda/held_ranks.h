/* An instance of two ranks over emulated GPUs and a NCCL that is none, for tests of what the others
 * do when one of them does not go on: a sum, or a gather of logits, is held until it is aborted, as
 * the kernel of a GPU is whose neighbour never comes. An alarm ends a test that hangs. */
#ifndef INF_TESTS_HELD_RANKS_H
#define INF_TESTS_HELD_RANKS_H

#include "kernels/cuda/nccl.h"
#include "kernels/cuda/team.h"
#include "kernels/tp/tp.h"
#include "tests/cuda/ranks.h"

#ifdef INF_EMU

#include <unistd.h>

#include <atomic>
#include <thread>

enum { N = 2, FEW = 4, K = 64, PART = INNER / N, SOON_MS = 15000, HANGS_S = 60 };

static fake_nccl nccl;
static std::atomic<int> aborts_before;
static bool gathers; /* what is given is no sum */

static int aborts() { return __atomic_load_n(nccl.aborts, __ATOMIC_SEQ_CST); }

static void hold_sum(void *stream) {
    must(emu_hold((cudaStream_t)stream, [] { return aborts() == aborts_before; }), "emu_hold");
}

static int64_t clock_ms(clockid_t clock) {
    struct timespec t;
    (void)clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int64_t now_ms() { return clock_ms(CLOCK_MONOTONIC); }

/* ---- an instance of two ranks, in a step ---- */

struct instance {
    inf_device_config config;
    inf_lane_config lane_config;
    inf_backend *b;
    const inf_backend_ops *ops;
    inf_lane *lane;
    uint8_t *pool;
    float *x, *norm, *logits;
    void *h, *gu, *a, *w_up, *w_down, *head;
    int64_t began;
};

static inf_lane *open_lane(instance *t, int32_t kind, inf_err *err) {
    inf_lane_config c = t->lane_config;
    inf_lane *lane = NULL;
    c.kind = kind;
    c.device = &t->config;
    CHECK((t->ops->lane_open(t->b, &c, &lane, err) == INF_OK) == (lane != NULL), "a lane or not");
    return lane;
}

static void begin_step(instance *t) {
    static int32_t tokens[FEW], blocks[1];
    static inf_step_head head;
    static inf_step_seq seq;
    static inf_step_buffers step;
    head.n_seqs = 1, head.n_tokens = FEW, head.n_blocks = 1;
    seq.n_tokens = FEW, seq.n_blocks = 1;
    step.head = &head, step.seqs = &seq, step.tokens = tokens, step.blocks = blocks;
    t->ops->begin(t->lane, &step, NULL);
}

static void give(instance *t) {
    inf_product down = {t->a, t->w_down, NULL, t->h, FEW, HIDDEN, PART, 0, 0};
    inf_product head = {t->a, t->head, NULL, t->logits, FEW, VOCAB, PART, 1, 0};
    if (gathers) {
        t->ops->product(t->lane, &head);
    } else {
        t->ops->product_norm(t->lane, &down, t->x, NULL, t->norm, t->h);
    }
}

/* Ranks on GPUs of their own have what is given by NCCL; what an instance is given in its first
 * step, and later, is held. */
enum rig { HELD, NOT_HELD, ONE_GPU };
static instance open_instance(const char *name, const char *deadline_ms, rig how) {
    const bool apart = how != ONE_GPU;
    instance t = {};
    inf_backend *ranks[N];
    inf_err err = {};
    printf("%s%s\n", gathers ? "gather: " : "", name);
    (void)fflush(stdout);
    alarm(HANGS_S);
    setenv(INF_TEAM_DEADLINE, deadline_ms, 1);
    if (apart) {
        setenv(INF_NCCL_LIBRARY, getenv("FAKE_NCCL"), 1);
    } else {
        unsetenv(INF_NCCL_LIBRARY);
    }
    t.config = config_of(INF_DTYPE_BF16);
    for (int32_t r = 0; r < N; r++) {
        ranks[r] = open_gpu(apart ? r : 0, &t.config);
    }
    CHECK(inf_backend_tp(ranks, N, &t.config, &t.b, &err) == INF_OK, "%s", err.message);
    t.ops = t.b->ops;
    t.lane_config = lane_of(&t.config);
    t.lane_config.pool = t.pool = (uint8_t *)t.ops->alloc_pool(t.b, t.lane_config.kv.block_bytes);
    t.lane = open_lane(&t, INF_LANE_STEP, &err);
    CHECK(t.lane != NULL, "%s", err.message);
    t.x = (float *)t.ops->alloc(t.b, FEW * HIDDEN * 4);
    t.norm = (float *)t.ops->alloc(t.b, HIDDEN * 4);
    t.h = t.ops->alloc(t.b, FEW * HIDDEN * 2);
    t.gu = t.ops->alloc(t.b, FEW * 2 * PART * 2);
    t.a = t.ops->alloc(t.b, FEW * PART * 2);
    t.w_up = t.ops->alloc(t.b, 2 * PART * K * 2);
    t.w_down = t.ops->alloc(t.b, HIDDEN * PART * 2);
    t.head = t.ops->alloc(t.b, VOCAB * PART * 2);
    t.logits = (float *)t.ops->alloc(t.b, FEW * VOCAB * 4);
    CHECK(t.ops->sync(t.lane, &err) == INF_OK, "%s", err.message);
    aborts_before = aborts();
    *nccl.hold = how == HELD ? hold_sum : NULL;
    begin_step(&t);
    give(&t);
    t.began = now_ms();
    return t;
}

static void soon(const instance *t) {
    CHECK(now_ms() - t->began < SOON_MS, "after %lld ms", (long long)(now_ms() - t->began));
}

static void close_memory(instance *t) {
    void *all[] = {t->x, t->norm, t->logits, t->h, t->gu, t->a, t->w_up, t->w_down, t->head};
    for (void *p : all) {
        t->ops->free(t->b, p);
    }
    t->ops->free_pool(t->b, t->pool, t->lane_config.kv.block_bytes);
    t->ops->close(t->b);
    alarm(0);
}

/* The step ends, with that as its cause; and the instance can be closed. */
static void end_step(instance *t, const char *cause) {
    inf_err err = {};
    CHECK(t->ops->sync(t->lane, &err) == INF_EIO, "the step goes on");
    CHECK(strncmp(err.message, cause, strlen(cause)) == 0, "%s", err.message);
    t->ops->lane_close(t->lane);
    CHECK(aborts() == aborts_before + N && *nccl.open_comms == 0, "%d", *nccl.open_comms);
    for (int32_t r = 0; r < N; r++) {
        emu_lose_device(r, cudaSuccess);
    }
    (void)cudaGetLastError();
    close_memory(t);
}

static int open_slot(instance *t, float presence, inf_err *err) {
    static const int32_t text[3] = {1, 2, 3};
    inf_sampling s = {};
    s.top_p = s.repetition = 1;
    s.presence = presence;
    return t->ops->slot_open(t->lane, 0, &s, text, 3, 2, NULL, NULL, 0, err);
}

/* Runs the tests for sums, and for gathers. */
static int run_tests(int argc, char **argv, const char *name, void (*tests)()) {
    start(argc, argv);
    const char *fake = getenv("FAKE_NCCL");
    if (fake == NULL) {
        printf("FAKE_NCCL must name a library\n");
        return 2;
    }
    /* Who waits emulates what was given, too: the work of the product that takes least of it. */
    setenv("INFINITE_CUDA_WITHOUT", "stay", 1);
    nccl = fake_nccl_at(fake);
    for (bool what : {false, true}) {
        gathers = what;
        tests();
    }
    return report(name);
}

#endif
#endif
