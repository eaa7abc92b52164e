/* The sum over ranks on GPUs: by the kernel, for ranks that share one; by NCCL, with one rank on
 * the GPU there is, with as many as there are GPUs, and with more over emulated GPUs and a library
 * that is none (tests/fake/nccl.c). And a layer's products by ranks on one GPU, against one rank.
 */
#include "kernels/cuda/nccl.h"
#include "tests/cuda/ranks.h"
#include "tests/farther.h"

static double at(const std::vector<uint8_t> &v, size_t i, int32_t dtype) {
    return dtype == INF_DTYPE_F32 ? (double)((const float *)(const void *)v.data())[i]
                                  : number_of(((const uint16_t *)(const void *)v.data())[i], dtype);
}

static std::vector<uint8_t> some_numbers(size_t count, int32_t dtype) {
    std::vector<uint8_t> v(count * format_size(dtype));
    std::vector<uint16_t> h = halves(count, dtype == INF_DTYPE_F32 ? INF_DTYPE_BF16 : dtype);
    for (size_t i = 0; i < count; i++) {
        if (dtype == INF_DTYPE_F32) {
            ((float *)(void *)v.data())[i] = number();
        } else {
            ((uint16_t *)(void *)v.data())[i] = h[i];
        }
    }
    return v;
}

/* Twice in a row, with nothing but the streams' order between copies and sums. */
static void check_sums(team *t, int32_t dtype, size_t count, const char *how) {
    const inf_backend_ops *ops = t->backends[0]->ops;
    const size_t bytes = count * format_size(dtype);
    std::vector<std::vector<uint8_t>> in(t->n), once(t->n), twice(t->n);
    void *y[INF_MAX_RANKS];
    for (int32_t r = 0; r < t->n; r++) {
        in[r] = some_numbers(count, dtype);
        once[r].resize(bytes);
        twice[r].resize(bytes);
        y[r] = ops->alloc(t->backends[r], bytes);
        ops->copy_in(t->lanes[r], y[r], in[r].data(), bytes);
    }
    t->sum->ops->sum(t->sum, y, count);
    /* The last first: a copy to pageable memory waits for its stream, and so would hide that
     * another stream does not wait for the first one's sum. */
    for (int32_t r = t->n - 1; r >= 0; r--) {
        ops->copy_out(t->lanes[r], once[r].data(), y[r], bytes);
    }
    t->sum->ops->sum(t->sum, y, count);
    for (int32_t r = 0; r < t->n; r++) {
        ops->copy_out(t->lanes[r], twice[r].data(), y[r], bytes);
    }
    t->sum->ops->wait(t->sum, 0);
    for (int32_t r = 0; r < t->n; r++) {
        inf_err err = {};
        CHECK(ops->sync(t->lanes[r], &err) == INF_OK, "%s, rank %d: %s", how, r, err.message);
        CHECK(once[r] == once[0] && twice[r] == twice[0], "%s, %s: rank %d has other bits", how,
              format_name(dtype), r);
        ops->free(t->backends[r], y[r]);
    }
    const double part = dtype == INF_DTYPE_F32 ? 1e-6 : dtype == INF_DTYPE_F16 ? 0x1p-10 : 0x1p-7;
    for (size_t i = 0; i < count; i++) {
        double want = 0, magnitude = 0, got = at(once[0], i, dtype);
        for (int32_t r = 0; r < t->n; r++) {
            want += at(in[r], i, dtype);
            magnitude += fabs(at(in[r], i, dtype));
        }
        CHECK(fabs(got - want) <= part * magnitude, "%s, %s, %d ranks [%zu]: %g, want %g", how,
              format_name(dtype), t->n, i, got, want);
        CHECK(fabs(at(twice[0], i, dtype) - got * t->n) <= part * fabs(got * t->n),
              "%s, %s [%zu]: %g after %g", how, format_name(dtype), i, at(twice[0], i, dtype), got);
    }
}

static void test_one_gpu() {
    for (int32_t dtype : FORMATS) {
        for (int32_t n : {1, 2, 3, 8}) {
            team t = open_team(n, dtype, false);
            for (size_t count : {1, 255, 257, 5000}) {
                check_sums(&t, dtype, count, "by the kernel");
            }
            close_team(&t);
        }
    }
}

/* ---- NCCL ---- */

static bool test_one_rank() {
    const int32_t ordinal = 0;
    inf_nccl *c = NULL;
    inf_err err = {};
    if (inf_nccl_open(&ordinal, 1, &c, &err) != INF_OK) {
        printf("NCCL was not tested: %s\n", err.message);
        return false;
    }
    cudaStream_t stream = NULL;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
    std::vector<float> in(1000), out(1000);
    for (float &f : in) {
        f = number();
    }
    void *y = gpu_bytes(in.data(), in.size() * sizeof(float)), *handle = (void *)stream;
    CHECK(inf_nccl_sum(c, &y, in.size(), INF_DTYPE_F32, &handle) == 0, "%s", inf_nccl_why(c));
    must(cudaStreamSynchronize(stream), "the stream");
    CHECK(inf_nccl_failed(c) == 0, "%s", inf_nccl_why(c));
    from_gpu(out, y);
    CHECK(in == out, "the sum over one rank is another number");
    inf_nccl_close(c);
    must(cudaStreamDestroy(stream), "the stream");
    free_gpu();
    printf("NCCL with one rank: ok\n");
    return true;
}

static int test_apart() {
    int count = 0;
    must(cudaGetDeviceCount(&count), "the GPUs");
    int32_t most = count < INF_MAX_RANKS ? count : INF_MAX_RANKS;
    for (int32_t n = 2; n <= most; n += n < 4 ? 1 : 4) {
        for (int32_t dtype : FORMATS) {
            team t = open_team(n, dtype, true);
            check_sums(&t, dtype, 3001, "by NCCL");
            close_team(&t);
        }
    }
    if (count >= 2) {
        printf("NCCL with up to %d ranks: ok\n", most);
    }
    return count;
}

static void sync_stream(void *stream) { must(cudaStreamSynchronize((cudaStream_t)stream), "it"); }

/* Both lanes fail, and say why. */
static void check_failed(team *t, const char *first, const char *second) {
    const char *texts[2] = {first, second};
    t->sum->ops->wait(t->sum, 0);
    for (int32_t r = 0; r < 2; r++) {
        inf_err err = {};
        CHECK(t->backends[r]->ops->sync(t->lanes[r], &err) == INF_EIO, "rank %d goes on", r);
        CHECK(strstr(err.message, texts[r]) != NULL, "rank %d: %s", r, err.message);
    }
    close_team(t);
}

static void test_failures(const fake_nccl *f, bool gathers) {
    float *y[2];
    for (int i = 0; i < 4; i++) {
        team t = open_team(2, INF_DTYPE_F32, true);
        for (int32_t r = 0; r < 2; r++) {
            y[r] = (float *)t.backends[r]->ops->alloc(t.backends[r], VOCAB * 4);
        }
        float *whole = (float *)t.backends[0]->ops->alloc(t.backends[0], VOCAB * 4);
        *f->fail_call = i == 0 ? 2 : 0;
        *f->fail_end = i == 1 ? 6 : 0;
        if (i == 3) {
            lane_ok(t.lanes[1], cudaErrorLaunchFailure, "a kernel");
        }
        if (gathers) {
            t.sum->ops->gather(t.sum, y, whole, 1);
        } else {
            t.sum->ops->sum(t.sum, (void *const *)y, 1);
        }
        *f->fail_later = i == 2 ? 6 : 0;
        t.sum->ops->wait(t.sum, 0); /* or the gather's kernel would meet what is freed */
        t.backends[0]->ops->free(t.backends[0], whole);
        for (int32_t r = 0; r < 2; r++) {
            t.backends[r]->ops->free(t.backends[r], y[r]);
        }
        const char *sum[] = {"the sum over ranks: NCCL: cannot sum: unhandled system error",
                             "the sum over ranks: NCCL: cannot sum: remote process exited"};
        const char *gather[] = {
            "the gather over ranks: NCCL: cannot gather: unhandled system error",
            "the gather over ranks: NCCL: cannot gather: remote process exited"};
        const char *text = i > 1     ? "NCCL: a sum failed: remote process exited"
                           : gathers ? gather[i]
                                     : sum[i];
        check_failed(&t, i == 3 ? "another rank failed" : text, i == 3 ? "a kernel" : text);
        CHECK(*f->open_comms == 0 && *f->depth == 0, "%d communicators", *f->open_comms);
        *f->fail_call = *f->fail_end = *f->fail_later = 0;
    }
}

/* ---- products, cut over ranks ---- */

/* Through the table as the model goes: embed, norm, gated, product_norm. What x is then. */
static std::vector<float> run_layer(inf_backend *b, const inf_device_config *c,
                                    const std::vector<float> &embed, const std::vector<float> &up,
                                    const std::vector<float> &down) {
    const inf_backend_ops *ops = b->ops;
    inf_lane_config lane_config = lane_of(c);
    inf_lane *lane = NULL;
    inf_err err = {};
    const int32_t inner = INNER / b->ranks;
    uint64_t act = (uint64_t)b->act_bytes, pool_bytes = lane_config.kv.block_bytes * BLOCKS;
    uint8_t *pool = (uint8_t *)ops->alloc_pool(b, pool_bytes);
    lane_config.pool = pool;
    CHECK(ops->lane_open(b, &lane_config, &lane, &err) == INF_OK, "%s", err.message);
    float *x = (float *)ops->alloc(b, ROWS * HIDDEN * 4);
    void *h = ops->alloc(b, ROWS * HIDDEN * act), *gu = ops->alloc(b, ROWS * 2 * inner * act);
    void *a = ops->alloc(b, ROWS * inner * act);
    std::vector<float> ones(HIDDEN, 1.0f), out(ROWS * HIDDEN);
    float *norm = (float *)ops->alloc(b, HIDDEN * 4);
    void *table = ops->alloc(b, VOCAB * HIDDEN * act);
    void *w_up =
        ops->matrix(b, c->dtype, up.data(), INF_DTYPE_F32, 2 * INNER, HIDDEN, INF_CUT_ROWS);
    void *w_down =
        ops->matrix(b, c->dtype, down.data(), INF_DTYPE_F32, HIDDEN, INNER, INF_CUT_COLUMNS);
    std::vector<uint8_t> narrow(VOCAB * HIDDEN * act);
    for (size_t i = 0; i < embed.size(); i++) { /* small integers: the same in every format */
        if (act == 4) {
            ((float *)(void *)narrow.data())[i] = embed[i];
        } else {
            uint16_t bits = to_bf16(embed[i]);
            if (c->dtype == INF_DTYPE_F16) {
                bits = embed[i] == 0 ? 0 : (uint16_t)((embed[i] < 0 ? 0x8000 : 0) | 0x3c00);
            }
            ((uint16_t *)(void *)narrow.data())[i] = bits;
        }
    }
    ops->copy_in(lane, norm, ones.data(), HIDDEN * 4);
    ops->copy_in(lane, table, narrow.data(), narrow.size());
    int32_t tokens[ROWS], blocks[BLOCKS];
    for (int32_t i = 0; i < ROWS; i++) {
        tokens[i] = i * 7 % VOCAB;
        blocks[i % BLOCKS] = i % BLOCKS;
    }
    inf_step_head head = {};
    inf_step_seq seq = {};
    inf_step_buffers step = {};
    head.n_seqs = 1, head.n_tokens = ROWS, head.n_blocks = (ROWS + 3) / 4;
    seq.n_tokens = ROWS, seq.n_blocks = head.n_blocks;
    step.head = &head, step.seqs = &seq, step.tokens = tokens, step.blocks = blocks;
    ops->begin(lane, &step, NULL);
    ops->embed(lane, table, x);
    ops->add_norm(lane, x, NULL, NULL, norm, h);
    inf_product gate_up = {h, w_up, NULL, gu, ROWS, 2 * inner, HIDDEN, 0, 0};
    inf_product back = {a, w_down, NULL, h, ROWS, HIDDEN, inner, 0, 0};
    ops->gated(lane, &gate_up, a);
    ops->product_norm(lane, &back, x, NULL, norm, h);
    ops->copy_out(lane, out.data(), x, out.size() * sizeof(float));
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    void *all[] = {x, h, gu, a, norm, table, w_up, w_down};
    for (void *p : all) {
        ops->free(b, p);
    }
    ops->lane_close(lane);
    ops->free_pool(b, pool, pool_bytes);
    ops->close(b);
    return out;
}

static void test_layer(int32_t n, int32_t dtype) {
    inf_device_config c = config_of(dtype);
    std::vector<float> embed(VOCAB * HIDDEN), up(2 * INNER * HIDDEN), down(HIDDEN * INNER);
    for (float &f : embed) {
        f = (float)(below(3) - 1);
    }
    for (float &f : up) {
        f = number() * 0.25f;
    }
    for (float &f : down) {
        f = number() * 0.25f;
    }
    /* A cut matrix is [gate rows of rank 0 | up rows of rank 0 | gate rows of rank 1 | ...]. */
    std::vector<float> arranged(up.size());
    const size_t share = (size_t)INNER / (size_t)n * HIDDEN;
    for (size_t r = 0; r < (size_t)n; r++) {
        for (size_t half = 0; half < 2; half++) {
            memcpy(arranged.data() + (2 * r + half) * share,
                   up.data() + half * INNER * HIDDEN + r * share, share * sizeof(float));
        }
    }
    inf_backend *ranks[INF_MAX_RANKS], *b = NULL;
    inf_err err = {};
    for (int32_t r = 0; r < n; r++) {
        ranks[r] = open_gpu(0, &c);
    }
    CHECK(inf_backend_tp(ranks, n, &c, &b, &err) == INF_OK, "%s", err.message);
    std::vector<float> want = run_layer(open_gpu(0, &c), &c, embed, up, down);
    std::vector<float> got = run_layer(b, &c, embed, arranged, down);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < want.size(); i++) {
        worst = farther(worst, (double)got[i], (double)want[i]);
        largest = fmax(largest, fabs((double)want[i]));
    }
    const double allowed = dtype == INF_DTYPE_F32 ? 1e-5 : dtype == INF_DTYPE_F16 ? 4e-3 : 3e-2;
    CHECK(worst <= allowed * largest && largest > 1, "%d ranks, %s: off by %g of %g", n,
          format_name(dtype), worst, largest);
}

int main(int argc, char **argv) {
    start(argc, argv);
    test_one_gpu();
    for (int32_t dtype : FORMATS) {
        test_layer(2, dtype);
        test_layer(4, dtype);
    }
    const char *fake = getenv("FAKE_NCCL");
    if (fake != NULL) { /* over emulated GPUs */
        setenv(INF_NCCL_LIBRARY, fake, 1);
    }
#ifdef INF_EMU
    bool there = fake != NULL && test_one_rank();
#else
    bool there = test_one_rank();
#endif
    if (fake != NULL) {
        fake_nccl f = fake_nccl_at(fake);
        *f.sync = sync_stream;
        int sums = *f.sums;
        CHECK(test_apart() >= 2 && *f.sums > sums, "the GPUs are not apart");
        test_failures(&f, false);
        test_failures(&f, true);
    } else if (there) {
        (void)test_apart();
    }
    printf("%s\n", failures == 0 ? "collective: ok" : "collective: FAILED");
    return failures != 0;
}
