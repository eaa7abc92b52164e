/* The gather over ranks on GPUs, and the LM head that is cut over them, against one rank: by the
 * kernel, for ranks that share a GPU; by NCCL, with as many as there are GPUs, also over emulated
 * ones and a library that is none (tests/fake/nccl.c). */
#include "kernels/cuda/nccl.h"
#include "tests/cuda/ranks.h"

static size_t numbers_of(int32_t rows, int32_t cols, int32_t n, int32_t rank) {
    return (size_t)rows * (size_t)inf_share_of(cols, n, rank).n;
}

/* Number i of the whole, the round-th time. */
static float numbered(size_t i, int round) { return (float)(i + 1 + (size_t)round); }

/* Twice, with other numbers, and nothing but the streams' order between what the ranks but the
 * first do and the gathers. */
static void check_gather(int32_t n, bool apart, int32_t rows, int32_t cols, const char *how) {
    team t = open_team(n, INF_DTYPE_BF16, apart, cols);
    const inf_backend_ops *ops = t.backends[0]->ops;
    const size_t count = (size_t)rows * (size_t)cols;
    std::vector<float> in[2][INF_MAX_RANKS], out[2];
    float *part[INF_MAX_RANKS] = {};
    float *whole[2];
    for (float *&w : whole) {
        w = (float *)ops->alloc(t.backends[0], (count + 1) * 4);
    }
    for (int32_t r = 0; r < n; r++) {
        const size_t mine = numbers_of(rows, cols, n, r);
        part[r] = mine > 0 ? (float *)ops->alloc(t.backends[r], mine * 4) : NULL;
    }
    for (int i = 0; i < 2; i++) {
        for (int32_t r = 0; r < n; r++) {
            const inf_share s = inf_share_of(cols, n, r);
            for (int32_t k = 0; k < rows * s.n; k++) {
                in[i][r].push_back(numbered((size_t)(k / s.n * cols + s.first + k % s.n), i));
            }
            if (s.n > 0) {
                ops->copy_in(t.lanes[r], part[r], in[i][r].data(), in[i][r].size() * 4);
            }
            if (r > 0 && i > 0) { /* comes to this copy as early as it may */
                must(cudaSetDevice(t.lanes[r]->backend->ordinal), "the GPU");
                must(cudaStreamSynchronize(t.lanes[r]->stream), "a stream");
            }
        }
        t.sum->ops->gather(t.sum, part, whole[i], rows);
    }
    for (int i = 0; i < 2; i++) {
        out[i].resize(count + 1);
        ops->copy_out(t.lanes[0], out[i].data(), whole[i], (count + 1) * 4);
    }
    t.sum->ops->wait(t.sum, 0);
    for (int32_t r = 0; r < n; r++) {
        inf_err err = {};
        CHECK(ops->sync(t.lanes[r], &err) == INF_OK, "%s, rank %d: %s", how, r, err.message);
        ops->free(t.backends[r], part[r]);
    }
    for (int i = 0; i < 2; i++) {
        for (size_t k = 0; k < count; k++) {
            CHECK(out[i][k] == numbered(k, i), "%s, %d ranks, [%d, %d]: %g at %zu", how, n, rows,
                  cols, (double)out[i][k], k);
        }
        CHECK(out[i][count] == 0, "%s, %d ranks, [%d, %d]: behind the end", how, n, rows, cols);
    }
    ops->free(t.backends[0], whole[0]);
    ops->free(t.backends[0], whole[1]);
    close_team(&t);
}

static void check_gathers(int32_t n, bool apart, const char *how) {
    for (int32_t cols : {1, 50, 97, 1024}) {
        check_gather(n, apart, 1, cols, how);
        check_gather(n, apart, ROWS, cols, how);
    }
}

/* ---- the LM head ---- */

/* Logits [ROWS, VOCAB] through the table. own: a head; or else the embedding is it. */
static std::vector<float> run_head(inf_backend *b, const inf_device_config *c,
                                   const std::vector<uint16_t> &w, const std::vector<uint16_t> &x,
                                   bool own) {
    const inf_backend_ops *ops = b->ops;
    inf_lane_config lane_config = lane_of(c);
    inf_lane *lane = NULL;
    inf_err err = {};
    const uint64_t pool_bytes = lane_config.kv.block_bytes * BLOCKS;
    lane_config.pool = (uint8_t *)ops->alloc_pool(b, pool_bytes);
    CHECK(ops->lane_open(b, &lane_config, &lane, &err) == INF_OK, "%s", err.message);
    void *rows = ops->alloc(b, x.size() * 2), *head = NULL;
    float *logits = (float *)ops->alloc(b, ROWS * VOCAB * 4);
    if (own) {
        head = ops->matrix(b, c->dtype, w.data(), c->dtype, VOCAB, HIDDEN, INF_CUT_SHARES);
    } else {
        void *copy = malloc(w.size() * 2);
        head = ops->adopt(b, memcpy(copy, w.data(), w.size() * 2), w.size() * 2, INF_CUT_NONE);
    }
    std::vector<float> out(ROWS * VOCAB);
    ops->copy_in(lane, rows, x.data(), x.size() * 2);
    for (int32_t n : {3, (int32_t)ROWS}) { /* the latter stays */
        inf_product p = {rows, head, NULL, logits, n, VOCAB, HIDDEN, 1, 0};
        ops->product(lane, &p);
    }
    ops->copy_out(lane, out.data(), logits, out.size() * 4);
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    void *all[] = {rows, logits, head};
    for (void *p : all) {
        ops->free(b, p);
    }
    ops->lane_close(lane);
    ops->free_pool(b, lane_config.pool, pool_bytes);
    ops->close(b);
    return out;
}

static void test_head(int32_t n, bool apart) {
    const inf_device_config c = config_of(INF_DTYPE_BF16);
    const std::vector<uint16_t> w = halves((size_t)VOCAB * HIDDEN, INF_DTYPE_BF16);
    const std::vector<uint16_t> x = halves((size_t)ROWS * HIDDEN, INF_DTYPE_BF16);
    const std::vector<float> want = run_head(open_gpu(0, &c), &c, w, x, true);
    for (bool own : {true, false}) {
        inf_backend *ranks[INF_MAX_RANKS], *b = NULL;
        inf_err err = {};
        for (int32_t r = 0; r < n; r++) {
            ranks[r] = open_gpu(apart ? r : 0, &c);
        }
        CHECK(inf_backend_tp(ranks, n, &c, &b, &err) == INF_OK, "%s", err.message);
        const std::vector<float> got = run_head(b, &c, w, x, own);
        for (size_t i = 0; i < want.size(); i++) {
            CHECK(fabsf(got[i] - want[i]) <= 1e-3f * fmaxf(1, fabsf(want[i])),
                  "%d ranks, %s head [%zu]: %g, want %g", n, own ? "own" : "tied", i,
                  (double)got[i], (double)want[i]);
        }
    }
}

/* ---- ranks on GPUs of their own ---- */

static void sync_stream(void *stream) { must(cudaStreamSynchronize((cudaStream_t)stream), "it"); }

static int test_apart() {
    int count = 0;
    must(cudaGetDeviceCount(&count), "the GPUs");
    const int32_t most = count < INF_MAX_RANKS ? count : INF_MAX_RANKS;
    for (int32_t n = 2; n <= most; n += n < 4 ? 1 : 4) {
        check_gathers(n, true, "by NCCL");
        if (HEADS % n == 0) {
            test_head(n, true);
        }
    }
    return count;
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (int32_t n : {1, 2, 3, 8}) {
        check_gathers(n, false, "by the kernel");
    }
    test_head(2, false);
    test_head(4, false);
    const char *fake = getenv("FAKE_NCCL");
    if (fake != NULL) { /* over emulated GPUs */
        setenv(INF_NCCL_LIBRARY, fake, 1);
        fake_nccl f = fake_nccl_at(fake);
        *f.sync = sync_stream;
        const int sends = *f.sends;
        *f.take = 1;
        CHECK(test_apart() >= 2 && *f.sends > sends, "the GPUs are not apart");
    }
#ifndef INF_EMU
    if (fake == NULL && test_apart() >= 2) {
        printf("NCCL between GPUs: ok\n");
    }
#endif
    printf("%s\n", failures == 0 ? "gather: ok" : "gather: FAILED");
    return failures != 0;
}
