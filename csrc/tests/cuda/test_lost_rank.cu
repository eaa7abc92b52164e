/* What a rank that is lost does to the others, over emulated GPUs and a NCCL that is none: a sum,
 * or a gather of logits, is held until it is aborted, as the kernel of a GPU is whose neighbour
 * never comes. Nobody waits for ever, whichever way they wait, and the rank that is reported is the
 * one that was lost. An alarm ends a test that hangs. */
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

/* A GPU that nothing ends. */
static std::atomic<bool> stuck;

static void hold_stuck(void *stream) {
    must(emu_hold((cudaStream_t)stream, [] { return stuck.load(); }), "emu_hold");
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
    t->ops->begin(t->lane, &step);
}

static void give(instance *t) {
    inf_product down = {t->a, t->w_down, NULL, t->h, FEW, HIDDEN, PART, 0};
    inf_product head = {t->a, t->head, NULL, t->logits, FEW, VOCAB, PART, 1};
    if (gathers) {
        t->ops->product(t->lane, &head);
    } else {
        t->ops->product_norm(t->lane, &down, t->x, t->norm, t->h);
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

/* The step ends, with that as its cause, while a GPU is stuck. The instance can be closed, and the
 * GPU is left what it may write to. What was left goes when it has come to its end after all. */
static void end_stuck(instance *t, const char *cause) {
    tp_backend *b = (tp_backend *)(void *)t->b;
    const tp_lane parts = *(tp_lane *)(void *)t->lane;
    inf_err err = {};
    CHECK(t->ops->sync(t->lane, &err) == INF_EIO, "the step goes on");
    CHECK(strncmp(err.message, cause, strlen(cause)) == 0, "%s", err.message);
    t->ops->lane_close(t->lane);
    close_memory(t);
    soon(t);
    *nccl.hold = NULL;
    stuck = false;
    for (int32_t r = 0; r < N; r++) {
        must(cudaSetDevice(parts.rank[r]->backend->ordinal), "the GPU");
        must(cudaStreamSynchronize(parts.rank[r]->stream), "the stream");
    }
    parts.sum->ops->close(parts.sum);
    for (int32_t r = 0; r < N; r++) {
        parts.ops->lane_close(parts.rank[r]);
    }
    parts.ops->free(b->rank[0], parts.logits);
    b->busy = 0;
    close_memory(t);
}

static const char late_cause[] = "rank 0: the GPU failed in the sum over ranks: cannot end it: no "
                                 "rank went on within ";
static const char first_cause[] = "rank 1: the GPU failed in a step: ";

/* ---- who allocates ---- */

static int open_slot(instance *t, float presence, inf_err *err) {
    static const int32_t text[3] = {1, 2, 3};
    inf_sampling s = {};
    s.top_p = s.repetition = 1;
    s.presence = presence;
    return t->ops->slot_open(t->lane, 0, &s, text, 3, 2, NULL, NULL, 0, err);
}

static void test_slot() {
    instance t = open_instance("a slot with counts", "20000", HELD);
    inf_err err = {};
    emu_lose_device(1, cudaErrorLaunchFailure);
    CHECK(open_slot(&t, 0, &err) == INF_OK, "without counts: %s", err.message);
    CHECK(aborts() == aborts_before, "a slot without counts waits for nothing");
    CHECK(open_slot(&t, 0.5f, &err) == INF_EIO, "it was opened");
    CHECK(strcmp(err.message, "cannot open a slot: rank 1 failed") == 0, "%s", err.message);
    soon(&t);
    end_step(&t, first_cause);
}

/* The step's thread comes to its next sum while another holds the gate. */
static void test_gate() {
    instance t = open_instance("the gate", "20000", HELD);
    std::atomic<bool> stop{false};
    emu_lose_device(1, cudaErrorLaunchFailure);
    std::thread slots([&] {
        inf_err err = {};
        while (!stop) {
            CHECK(open_slot(&t, 0.5f, &err) == INF_EIO, "it was opened");
        }
    });
    for (int i = 0; i < 20; i++) {
        give(&t);
    }
    stop = true;
    slots.join();
    soon(&t);
    end_step(&t, "rank 1: the GPU failed in ");
}

static void test_pages() {
    void *pages = NULL;
    CHECK(posix_memalign(&pages, 4096, 8192) == 0, "no memory");
    instance t = open_instance("pinned pages", "20000", HELD);
    emu_lose_device(1, cudaErrorLaunchFailure);
    CHECK(t.ops->host_pin(t.b, pages, 4096) != INF_OK, "they are pinned");
    soon(&t);
    end_step(&t, first_cause);
    t = open_instance("pages to unpin", "20000", NOT_HELD);
    inf_err err = {};
    CHECK(t.ops->sync(t.lane, &err) == INF_OK, "%s", err.message);
    CHECK(t.ops->host_pin(t.b, pages, 4096) == INF_OK, "they are not pinned");
    inf_lane *copies = open_lane(&t, INF_LANE_COPY, &err);
    *nccl.hold = hold_sum;
    give(&t);
    t.began = now_ms();
    emu_lose_device(1, cudaErrorLaunchFailure);
    t.ops->host_unpin(t.b, pages);
    t.ops->lane_close(copies);
    CHECK(open_lane(&t, INF_LANE_COPY, &err) == NULL, "a lane was opened");
    soon(&t);
    end_step(&t, first_cause);
    free(pages);
}

/* Without a failure all of them wait for the sums, and then have what they asked for. They do not
 * take the core meanwhile. */
static void test_healthy() {
    instance t = open_instance("nothing is lost", "20000", HELD);
    inf_err err = {};
    std::thread later([] {
        (void)usleep(400000);
        aborts_before = -1; /* lets them go */
    });
    int64_t worked = clock_ms(CLOCK_THREAD_CPUTIME_ID);
    CHECK(open_slot(&t, 0.5f, &err) == INF_OK, "%s", err.message);
    worked = clock_ms(CLOCK_THREAD_CPUTIME_ID) - worked;
    CHECK(now_ms() - t.began >= 390, "it did not wait");
    CHECK(worked < 100, "%lld ms of work", (long long)worked);
    later.join();
    CHECK(t.ops->sync(t.lane, &err) == INF_OK, "%s", err.message);
    t.ops->lane_close(t.lane);
    close_memory(&t);
}

/* ---- who times a product ---- */

static void test_timing() {
    instance t = open_instance("a product that is timed", "20000", HELD);
    emu_lose_device(1, cudaErrorLaunchFailure);
    inf_product up = {t.h, t.w_up, NULL, t.gu, FEW, 2 * PART, K, 0};
    t.ops->gated(t.lane, &up, t.a);
    soon(&t);
    end_step(&t, "rank 1: the GPU failed in ");
}

/* ---- who waits for room in the middle of a step ---- */

static void test_merge() {
    instance t = open_instance("partials that wait for room", "20000", HELD);
    const float o2[FEW * HEADS * DIM] = {}, lse2[FEW * HEADS] = {}; /* not pinned */
    uint64_t bytes = FEW * HEADS / N * DIM * 2;
    void *q = t.ops->alloc(t.b, bytes), *o = t.ops->alloc(t.b, bytes);
    t.ops->attend(t.lane, 0, q, o, 1);
    for (int32_t rows = 0; rows <= t.lane_config.max_rows; rows += FEW) {
        if (rows == t.lane_config.max_rows) { /* rank 0 waits before rank 1 is asked for anything */
            emu_lose_device(1, cudaErrorLaunchFailure);
        }
        CHECK(t.ops->merge(t.lane, 0, FEW, o2, lse2, HEADS) == 0, "they are held");
    }
    soon(&t);
    t.ops->free(t.b, q); /* all has come to its end */
    t.ops->free(t.b, o);
    end_step(&t, "rank 1: the GPU failed in ");
}

/* ---- deadlines ---- */

static void test_deadline(bool times) {
    instance t = open_instance("a rank that says nothing", "1000", HELD);
    if (times) {
        inf_product up = {t.h, t.w_up, NULL, t.gu, FEW, 2 * PART, K, 0};
        t.ops->gated(t.lane, &up, t.a);
    }
    end_step(&t, late_cause);
}

static int wait_in_call() {
    while (aborts() == aborts_before) {
        (void)usleep(1000);
    }
    return 6;
}

/* NCCL does not return from the call for a sum, as where it connects the GPUs in the first one. */
static void test_in_call() {
    instance t = open_instance("a call for a sum that blocks", "1000", NOT_HELD);
    *nccl.block = wait_in_call;
    std::thread slots([&] {
        inf_err err = {};
        int status = open_slot(&t, 0.5f, &err);
        CHECK(status == INF_OK || status == INF_EIO, "%s", err.message);
    });
    give(&t);
    slots.join();
    soon(&t);
    *nccl.block = NULL;
    end_step(&t, late_cause);
}

/* The thread of the step is not there to look: it is in a call of the driver's. */
static void test_blocked() {
    instance t = open_instance("a step that waits in the driver", "1000", HELD);
    static float out[FEW * HIDDEN]; /* pageable */
    t.ops->copy_out(t.lane, out, t.x, sizeof out);
    end_step(&t, "rank 0: the GPU failed in the sum over ranks: cannot end it");
}

/* By the kernel there is nothing that ends it: the step does. */
static void test_kernel() {
    instance t = open_instance("a GPU that says nothing", "2000", ONE_GPU);
    void *pages = NULL;
    inf_err err = {};
    CHECK(posix_memalign(&pages, 4096, 4096) == 0, "no memory");
    CHECK(t.ops->sync(t.lane, &err) == INF_OK, "%s", err.message);
    CHECK(t.ops->host_pin(t.b, pages, 4096) == INF_OK, "they are not pinned");
    must(cudaSetDevice(0), "the GPU");
    stuck = true;
    hold_stuck(((tp_lane *)(void *)t.lane)->rank[1]->stream);
    begin_step(&t);
    give(&t);
    t.began = now_ms();
    CHECK(t.ops->sync(t.lane, &err) == INF_EIO, "the step goes on");
    CHECK(strstr(err.message, "no rank went on within 2000 ms") != NULL, "%s", err.message);
    soon(&t);
    CHECK(open_slot(&t, 0.5f, &err) == INF_EIO, "a slot was opened");
    CHECK(strcmp(err.message, "cannot open a slot: the ranks failed") == 0, "%s", err.message);
    end_stuck(&t, late_cause);
    free(pages);
}

/* ---- the cause, where a wait in the middle of a step is given up ---- */

static instance open_stuck(const char *name) {
    instance t = open_instance(name, "2000", NOT_HELD);
    stuck = true;
    *nccl.hold = hold_stuck;
    give(&t);
    return t;
}

static void test_cause_ahead() {
    instance t = open_stuck("sums ahead of a GPU that says nothing");
    for (int i = 0; i < 100; i++) {
        give(&t);
    }
    end_stuck(&t, late_cause);
}

static void test_cause_merge() {
    instance t = open_stuck("partials ahead of a GPU that says nothing");
    const float o2[FEW * HEADS * DIM] = {}, lse2[FEW * HEADS] = {}; /* not pinned */
    t.ops->attend(t.lane, 0, t.h, t.gu, 1);
    for (int32_t rows = 0; rows <= t.lane_config.max_rows; rows += FEW) {
        CHECK(t.ops->merge(t.lane, 0, FEW, o2, lse2, HEADS) == 0, "they are held");
    }
    end_stuck(&t, late_cause);
}

/* NCCL says it by itself, while all wait. */
static void test_asked() {
    instance t = open_instance("a failure that NCCL tells of", "20000", HELD);
    *nccl.fail_later = 6;
    end_step(&t, "rank 0: the GPU failed in the sum over ranks: NCCL: a sum failed: remote");
    *nccl.fail_later = 0;
    CHECK(now_ms() - t.began < SOON_MS, "late");
}

/* A stream has no room for all sums of a long step while the first is held; one that is full would
 * keep the caller within NCCL. */
static void test_ahead() {
    enum { SUMS = 200, MOST = 64 };
    instance t = open_instance("sums ahead", "20000", HELD);
    std::atomic<int> given{1};
    std::thread step([&] {
        for (; given < SUMS; given++) {
            give(&t);
        }
    });
    for (int64_t began = now_ms(); given <= MOST / 4 && now_ms() - began < SOON_MS;) {
        (void)usleep(1000);
    }
    (void)usleep(300000);
    CHECK(given > MOST / 4 && given <= MOST, "%d sums are ahead", given.load());
    emu_lose_device(1, cudaErrorLaunchFailure);
    step.join();
    soon(&t);
    end_step(&t, "rank 1: the GPU failed in ");
}

/* ---- the first cause ---- */

static void test_first() {
    instance t = open_instance("the first cause", "20000", HELD);
    emu_lose_device(1, cudaErrorLaunchFailure);
    give(&t); /* rank 1 cannot be asked for its product, rank 0 not for the sum */
    emu_lose_device(0, cudaErrorIllegalAddress);
    end_step(&t, gathers ? "rank 1: the GPU failed in a product: "
                         : "rank 1: the GPU failed in a small product: ");
}

int main(int argc, char **argv) {
    start(argc, argv);
    const char *fake = getenv("FAKE_NCCL");
    if (fake == NULL) {
        printf("FAKE_NCCL must name a library\n");
        return 2;
    }
    nccl = fake_nccl_at(fake);
    for (bool what : {false, true}) {
        gathers = what;
        test_slot();
        test_gate();
        test_pages();
        test_healthy();
        test_timing();
        test_merge();
        test_deadline(false);
        test_deadline(true);
        test_in_call();
        test_blocked();
        test_kernel();
        test_cause_ahead();
        test_cause_merge();
        test_asked();
        test_ahead();
        test_first();
    }
    return report("test_lost_rank");
}

#else

int main() {
    printf("GPUs are not lost for a test\n");
    return 0;
}

#endif
