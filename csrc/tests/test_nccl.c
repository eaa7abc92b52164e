/* The seam to NCCL, over a library that is none: what is asked of it, and what its failures become.
 * The GPU's memory is the host's here. */
#include "tests/fake/fake_nccl.h"

#include "kernels/cuda/nccl.c"
#include "tests/check_says.h"

enum { COUNT = 1003 };
static const int32_t ordinals[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};

static inf_nccl *open_ranks(int32_t n) {
    inf_nccl *c = NULL;
    inf_err err = {0};
    CHECK(inf_nccl_open(ordinals, n, &c, &err) == INF_OK, "%s", err.message);
    return c;
}

static void test_floats(int32_t n) {
    static float y[INF_MAX_RANKS][COUNT], want[COUNT];
    void *parts[INF_MAX_RANKS], *streams[INF_MAX_RANKS] = {NULL};
    inf_nccl *c = open_ranks(n);
    memset(want, 0, sizeof want);
    for (int32_t r = 0; r < n; r++) {
        parts[r] = y[r];
        for (int i = 0; i < COUNT; i++) {
            y[r][i] = (float)(i * 31 % 97 + r * r);
            want[i] += y[r][i];
        }
    }
    CHECK(inf_nccl_sum(c, parts, COUNT, INF_DTYPE_F32, streams) == 0, "%s", inf_nccl_why(c));
    for (int32_t r = 0; r < n; r++) {
        CHECK(memcmp(y[r], want, sizeof want) == 0, "rank %d of %d", r, n);
    }
    CHECK(inf_nccl_failed(c) == 0 && inf_nccl_why(c)[0] == 0, "%s", inf_nccl_why(c));
    inf_nccl_close(c);
}

/* The 16-bit formats are not taken for one another: 1.5 + 2 = 3.5 in each. */
static void test_halves(void) {
    const uint16_t one[] = {0x3e00, 0x3fc0}, two[] = {0x4000, 0x4000}, sum[] = {0x4300, 0x4060};
    const int32_t formats[] = {INF_DTYPE_F16, INF_DTYPE_BF16};
    void *streams[2] = {NULL, NULL};
    inf_nccl *c = open_ranks(2);
    for (int i = 0; i < 2; i++) {
        uint16_t a[3] = {one[i], one[i], 7}, b[3] = {two[i], two[i], 9};
        void *parts[2] = {a, b};
        CHECK(inf_nccl_sum(c, parts, 2, formats[i], streams) == 0, "%s", inf_nccl_why(c));
        CHECK(a[0] == sum[i] && a[1] == sum[i] && b[0] == sum[i] && b[1] == sum[i], "%x %x", a[0],
              b[0]);
        CHECK(a[2] == 7 && b[2] == 9, "behind the end");
    }
    inf_nccl_close(c);
}

/* What the ranks but the first send, at most count numbers each, or none; with what lies behind it.
 */
static void test_gather(const fake_nccl *f, int32_t n, int32_t silent) {
    static float from[INF_MAX_RANKS][COUNT], to[INF_MAX_RANKS][COUNT + 1];
    inf_nccl_piece pieces[INF_MAX_RANKS];
    void *streams[INF_MAX_RANKS] = {NULL};
    int sends = *f->sends, sums = *f->sums, want = 0;
    inf_nccl *c = open_ranks(n);
    for (int32_t r = 0; r < n; r++) {
        uint64_t count = r == silent ? 0 : (uint64_t)(COUNT - 5 * r);
        pieces[r] = (inf_nccl_piece){from[r], to[r], count};
        want += r > 0 && count > 0;
        for (int i = 0; i < COUNT; i++) {
            from[r][i] = (float)(i * 31 % 97 + r);
            to[r][i] = to[r][COUNT] = -1;
        }
    }
    CHECK(inf_nccl_gather(c, pieces, streams) == 0, "%s", inf_nccl_why(c));
    CHECK(*f->sends == sends + want && *f->sums == sums, "%d sent", *f->sends - sends);
    for (int32_t r = 0; r < n; r++) {
        for (int i = 0; i <= COUNT; i++) {
            float it = r > 0 && (uint64_t)i < pieces[r].count ? from[r][i] : -1;
            CHECK(to[r][i] == it, "rank %d of %d, [%d]: %g", r, n, i, (double)to[r][i]);
        }
    }
    inf_nccl_close(c);
}

/* After a failure communicators can be aborted, once, and the reason stays. */
static void test_failure(const fake_nccl *f, int gathers, int *where, int result,
                         const char *text) {
    float y[2] = {1, 2}, to;
    void *parts[2] = {&y[0], &y[1]}, *streams[2] = {NULL, NULL};
    const inf_nccl_piece pieces[2] = {{&y[0], &y[0], 1}, {&y[1], &to, 1}};
    int aborts = *f->aborts;
    inf_nccl *c = open_ranks(2);
    *where = result;
    CHECK((gathers ? inf_nccl_gather(c, pieces, streams)
                   : inf_nccl_sum(c, parts, 1, INF_DTYPE_F32, streams)) == result,
          "no failure");
    *where = 0;
    CHECK(strstr(inf_nccl_why(c), text) != NULL, "%s", inf_nccl_why(c));
    CHECK(inf_nccl_sum(c, parts, 1, INF_DTYPE_F32, streams) == result, "it came back");
    CHECK(inf_nccl_gather(c, pieces, streams) == result, "it came back");
    inf_nccl_abort(c);
    CHECK(*f->aborts == aborts + 2 && *f->open_comms == 0 && *f->depth == 0,
          "%d aborted, %d open, depth %d", *f->aborts - aborts, *f->open_comms, *f->depth);
    CHECK(inf_nccl_sum(c, parts, 1, INF_DTYPE_F32, streams) == result, "it came back");
    CHECK(inf_nccl_failed(c) == result, "it is forgotten");
    inf_nccl_abort(c);
    inf_nccl_close(c);
    CHECK(*f->aborts == aborts + 2, "aborted twice");
}

static void test_later_failure(const fake_nccl *f) {
    float y[2] = {1, 2};
    void *parts[2] = {&y[0], &y[1]}, *streams[2] = {NULL, NULL};
    inf_nccl *c = open_ranks(2);
    CHECK(inf_nccl_sum(c, parts, 1, INF_DTYPE_F32, streams) == 0, "%s", inf_nccl_why(c));
    *f->fail_later = NCCL_IN_PROGRESS; /* no failure */
    CHECK(inf_nccl_failed(c) == 0, "%s", inf_nccl_why(c));
    *f->fail_later = 6;
    CHECK(inf_nccl_failed(c) == 6, "no failure");
    *f->fail_later = 0;
    CHECK(strcmp(inf_nccl_why(c), "NCCL: a sum failed: remote process exited or there was a "
                                  "network error") == 0,
          "%s", inf_nccl_why(c));
    inf_nccl_abort(c);
    CHECK(*f->open_comms == 0, "%d", *f->open_comms);
    inf_nccl_close(c);
    c = open_ranks(1); /* an abort without a failure ends it too */
    inf_nccl_abort(c);
    CHECK(inf_nccl_sum(c, parts, 1, INF_DTYPE_F32, streams) != 0, "it goes on");
    inf_nccl_close(c);
}

static void refused(const int32_t *devices, int32_t n, int status, const char *text) {
    inf_nccl *c = NULL;
    inf_err err = {0};
    CHECK(inf_nccl_open(devices, n, &c, &err) == status && c == NULL, "%s", err.message);
    CHECK(strstr(err.message, text) != NULL, "%s", err.message);
}

static void test_refusals(const fake_nccl *f) {
    const int32_t twice[] = {3, 3};
    refused(ordinals, 0, INF_EINVAL, "cannot sum over 0 GPUs");
    refused(ordinals, 9, INF_EINVAL, "cannot sum over 9 GPUs");
    refused(twice, 2, INF_EUNSUPPORTED,
            "cannot sum over 2 ranks by NCCL: two are on CUDA device 3");
    *f->fail_init = 2;
    refused(ordinals, 2, INF_EUNSUPPORTED,
            "cannot sum over 2 GPUs: NCCL: cannot connect the GPUs: unhandled system error");
    *f->fail_init = 0;
    setenv(INF_NCCL_LIBRARY, "/nowhere/libnccl.so.2", 1);
    refused(ordinals, 2, INF_EUNSUPPORTED,
            "cannot sum over 2 GPUs without NCCL: cannot load it: "
            "/nowhere/libnccl.so.2");
    setenv(INF_NCCL_LIBRARY, "libm.so.6", 1);
    refused(ordinals, 2, INF_EUNSUPPORTED, "it lacks ncclCommInitAll");
    CHECK(*f->open_comms == 0, "%d", *f->open_comms);
}

int main(void) {
    fake_nccl f = fake_nccl_at(FAKE_NCCL);
    setenv(INF_NCCL_LIBRARY, FAKE_NCCL, 1);
    for (int32_t n = 1; n <= INF_MAX_RANKS; n++) {
        test_floats(n);
    }
    test_halves();
    CHECK(*f.open_comms == 0 && *f.sums == INF_MAX_RANKS + 2, "%d open", *f.open_comms);
    for (int32_t n = 1; n <= INF_MAX_RANKS; n++) {
        for (int32_t silent = 0; silent <= n; silent++) {
            test_gather(&f, n, silent);
        }
    }
    test_failure(&f, 0, f.fail_call, 2, "NCCL: cannot sum: unhandled system error");
    test_failure(&f, 1, f.fail_call, 2, "NCCL: cannot gather: unhandled system error");
    test_failure(&f, 0, f.fail_end, 6, "remote process exited");
    test_failure(&f, 1, f.fail_end, 6, "NCCL: cannot gather: remote process exited");
    test_later_failure(&f);
    test_refusals(&f);
    puts("nccl: ok");
    return 0;
}
