/* Ranks that say nothing, or whose GPU is stuck: after a deadline the step ends all the same, and
 * says why; and the instance can be closed while a GPU still runs. test_lost_rank has ranks that
 * fail. */
#include "tests/cuda/held_ranks.h"

#ifdef INF_EMU

static const char late_cause[] = "rank 0: the GPU failed in the sum over ranks: cannot end it: no "
                                 "rank went on within ";

/* A GPU that nothing ends. */
static std::atomic<bool> stuck;

static void hold_stuck(void *stream) {
    must(emu_hold((cudaStream_t)stream, [] { return stuck.load(); }), "emu_hold");
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

/* ---- deadlines ---- */

static void test_deadline(bool times) {
    instance t = open_instance("a rank that says nothing", "1000", HELD);
    if (times) {
        inf_product up = {t.h, t.w_up, NULL, t.gu, FEW, 2 * PART, K, 0, 0};
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

static void run_all() {
    test_deadline(false);
    test_deadline(true);
    test_in_call();
    test_blocked();
    test_kernel();
    test_cause_ahead();
    test_cause_merge();
}

int main(int argc, char **argv) { return run_tests(argc, argv, "test_silent_rank", run_all); }

#else

int main() {
    printf("GPUs are not lost for a test\n");
    return 0;
}

#endif
