/* What a rank that is lost does to the others. Nobody waits for ever, whichever way they wait, and
 * the rank that is reported is the one that was lost. test_silent_rank has ranks that say nothing.
 */
#include "tests/cuda/held_ranks.h"

#ifdef INF_EMU

static const char first_cause[] = "rank 1: the GPU failed in a step: ";

/* ---- who allocates ---- */

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
    /* A look at an emulated stream can take half as long as the nap between two looks. */
    int64_t waited = now_ms() - t.began;
    CHECK(waited >= 390, "it did not wait");
    CHECK(worked < waited / 2, "%lld ms of work in %lld", (long long)worked, (long long)waited);
    later.join();
    CHECK(t.ops->sync(t.lane, &err) == INF_OK, "%s", err.message);
    t.ops->lane_close(t.lane);
    close_memory(&t);
}

/* ---- who times a product ---- */

static void test_timing() {
    instance t = open_instance("a product that is timed", "20000", HELD);
    emu_lose_device(1, cudaErrorLaunchFailure);
    inf_product up = {t.h, t.w_up, NULL, t.gu, FEW, 2 * PART, K, 0, 0};
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

static void run_all() {
    test_slot();
    test_gate();
    test_pages();
    test_healthy();
    test_timing();
    test_merge();
    test_asked();
    test_ahead();
    test_first();
}

int main(int argc, char **argv) { return run_tests(argc, argv, "test_lost_rank", run_all); }

#else

int main() {
    printf("GPUs are not lost for a test\n");
    return 0;
}

#endif
