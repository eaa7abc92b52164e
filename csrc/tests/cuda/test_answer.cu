/* Answers on the GPU: the messages of several debtors, in different layers, in one call, in memory
 * that is pinned and in memory that is not, against the CPU's. By one backend, and by one that is
 * made of two, of which each has its heads of every row. */
#include "answer_rig.h"

#include "tests/farther.h"

/* Random messages, one per slot: q in slot i, o and lse in slot SLOTS + i. */
struct messages {
    std::vector<inf_attn> args;
    std::vector<std::vector<int32_t>> lists;
    int32_t rows;
    std::vector<float> want_o, want_lse; /* by row of all, in order */
};

/* As the GPU takes it, so that both have the same. */
static float rounded(float x, int32_t act) {
    uint32_t bits = 0;
    inf_convert(&bits, act, &x, INF_DTYPE_F32, 1);
    inf_convert(&x, INF_DTYPE_F32, &bits, act, 1);
    return x;
}

static size_t o_shift; /* floats that o is off 16 bytes */

static void fill(rig *r, messages *m, bool many) {
    m->args.clear();
    m->lists.clear();
    m->lists.reserve(SEGMENTS);
    m->rows = 0;
    static const int32_t order[SLOTS] = {0, 3,
                                         2}; /* layers: of two windows, those of one together */
    for (int s = 0; s < SLOTS; s++) {
        float *q = (float *)(r->slots + s * SLOT + 64),
              *o = (float *)(r->slots + (SLOTS + s) * SLOT) + o_shift;
        float *lse = o + 64 * ROW;
        int32_t groups = many ? 5 : 1 + below(3), at = 0;
        for (int32_t g = 0; g < groups; g++) {
            int32_t rows = 1 + below(3), spans = 1 + below(3);
            for (int32_t i = 0; i < rows * ROW; i++) {
                q[at * ROW + i] = rounded(number(), r->config.dtype);
            }
            uint32_t pos = 0;
            for (int32_t k = 0; k < spans; k++) {
                uint32_t blocks = 1 + (uint32_t)below(5);
                m->lists.emplace_back();
                for (uint32_t i = 0; i < blocks; i++) {
                    m->lists.back().push_back(below(BLOCKS));
                }
                inf_attn a = {};
                a.q = q + at * ROW;
                a.rows = rows;
                a.heads = HEADS;
                a.q_pos0 = 400;
                a.pool = r->pool;
                a.kv = &r->kv;
                a.layer = order[s];
                a.blocks = m->lists.back().data();
                a.kv_pos0 = pos;
                a.n_tokens = blocks * BLOCK;
                a.window = WINDOWS[order[s]];
                a.scale = 0.125f;
                a.o = o + at * ROW;
                a.lse = lse + at * HEADS;
                m->args.push_back(a);
                pos += a.n_tokens + (uint32_t)below(60);
            }
            at += rows;
            m->rows += rows;
        }
    }
}

/* The CPU's answer, and then the GPU's: the same but for rounding. */
static void compare(rig *r, messages *m, inf_lane *cpu, inf_lane *gpu, const char *what) {
    std::vector<inf_attn> args = m->args;
    std::vector<float> o((size_t)m->rows * ROW), lse((size_t)m->rows * HEADS);
    int32_t row = 0;
    for (size_t i = 0; i < args.size(); i++) {
        bool same = i > 0 && m->args[i].o == m->args[i - 1].o;
        row += i > 0 && !same ? args[i - 1].rows : 0;
        args[i].pool = r->cpu_pool.data();
        args[i].o = &o[(size_t)row * ROW];
        args[i].lse = &lse[(size_t)row * HEADS];
    }
    CHECK(r->cpu->ops->answer(cpu, args.data(), (int32_t)args.size(), &err) == INF_OK, "cpu");
    for (const inf_attn &a : m->args) {
        memset(a.o, 0xa5, (size_t)a.rows * ROW * sizeof(float));
        memset(a.lse, 0xa5, (size_t)a.rows * HEADS * sizeof(float));
    }
    CHECK(r->gpu->ops->answer(gpu, m->args.data(), (int32_t)args.size(), &err) == INF_OK, "%s: %s",
          what, err.message);
    double worst = 0;
    for (size_t i = 0; i < args.size(); i++) {
        for (int32_t k = 0; k < args[i].rows * ROW; k++) {
            worst = farther(worst, args[i].o[k], m->args[i].o[k]);
        }
        for (int32_t k = 0; k < args[i].rows * HEADS; k++) {
            worst = farther(worst, args[i].lse[k], m->args[i].lse[k]);
        }
    }
    /* In 16 bits the weights of the keys are rounded to 8 bits of mantissa, or 11. */
    double most = r->config.dtype == INF_DTYPE_F32 ? 1e-4 : 1e-2;
    CHECK(worst < most, "%s: differs by %g", what, worst);
}

/* One launch for layers of one window: the GPU is asked once, and says how many rows it found in
 * place. pinned: how many of the slots the GPU may reach. */
static void test_answers(rig *r) {
    inf_lane *cpu = open_lane(r, r->cpu, INF_LANE_ANSWER);
    inf_lane *gpu = open_lane(r, r->gpu, INF_LANE_ANSWER);
    messages m;
    for (int pinned = 0; pinned <= 2; pinned++) {
        /* 1: the first message's queries and answers; 2: everything */
        uint64_t each = pinned == 1 ? SLOT : SLOTS * SLOT;
        for (int way = 0; way < 2 && pinned > 0; way++) {
            CHECK(r->gpu->ops->host_pin(r->gpu, r->slots + way * SLOTS * SLOT, each) == INF_OK,
                  "pin");
        }
        for (int i = 0; i < 6; i++) {
            o_shift = i == 4 && pinned == 2; /* once */
            fill(r, &m, i == 5);             /* the last has more rows than a batch takes */
            inf_lane *first = lane_of(r, gpu, 0);
            uint64_t direct = first->direct_rows, staged = first->staged_rows;
            char what[80];
            snprintf(what, sizeof what, "answers, %d ranks, act %d, KV %d, %d, %d", r->ranks,
                     r->config.dtype, r->kv.dtype, pinned, i);
            compare(r, &m, cpu, gpu, what);
            direct = first->direct_rows - direct;
            staged = first->staged_rows - staged;
            if (r->ranks > 1) { /* they get copies of their heads */
                continue;
            }
            CHECK(pinned != 0 || direct == 0, "nothing is pinned");
            CHECK(pinned != 1 || (direct > 0 && staged > 0), "one message of three is pinned");
            CHECK(pinned != 2 || (staged == 0) == (o_shift == 0), "everything is pinned");
        }
        for (int way = 0; way < 2 && pinned > 0; way++) {
            r->gpu->ops->host_unpin(r->gpu, r->slots + way * SLOTS * SLOT);
        }
    }
    o_shift = 0;
    CHECK(r->config.dtype == INF_DTYPE_F32 || lane_of(r, gpu, 0)->placed > 0, "nothing is placed");
    r->gpu->ops->lane_close(gpu);
    r->cpu->ops->lane_close(cpu);
}

/* A step's next layers are answered without telling the GPU of spans and plan again, and nothing
 * else is: another block, position or window. */
static void test_known(rig *r) {
    inf_lane *cpu = open_lane(r, r->cpu, INF_LANE_ANSWER);
    inf_lane *gpu = open_lane(r, r->gpu, INF_LANE_ANSWER), *rank = lane_of(r, gpu, 0);
    messages m;
    auto ask = [&](int32_t layer, uint64_t plans, const char *what) {
        uint64_t before = rank->plans, placed = rank->placed, rows = 0;
        for (inf_attn &a : m.args) {
            a.layer = layer;
            a.window = WINDOWS[layer];
            rows += &a == &m.args[0] || a.o != (&a)[-1].o ? (uint64_t)a.rows : 0;
        }
        compare(r, &m, cpu, gpu, what);
        CHECK(rank->plans - before == plans, "%s: %llu plans", what,
              (unsigned long long)(rank->plans - before));
        /* In 16 bits attention itself writes all rows where they are to go. */
        CHECK(r->config.dtype == INF_DTYPE_F32 || rank->placed - placed == rows, "%s: not placed",
              what);
    };
    for (uint64_t rows = ROWS, blocks = 0; rows > ANSWER_ROWS || blocks > 2 * BLOCKS;) {
        fill(r, &m, false); /* until it is one batch */
        rows = blocks = 0;
        for (const inf_attn &a : m.args) {
            rows += (uint64_t)a.rows;
            blocks += a.n_tokens / BLOCK;
        }
    }
    ask(0, 1, "a step's first layer");
    ask(1, 0, "its second");
    ask(3, 0, "its last");
    int32_t *block = &m.lists.back().back();
    *block = (*block + 1) % BLOCKS;
    ask(0, 1, "another block");
    ask(1, 0, "the same blocks");
    for (inf_attn &a : m.args) {
        a.q_pos0++;
    }
    ask(1, 1, "the next token");
    ask(2, 1, "another window");
    ask(0, 1, "and the one before");
    m.args.pop_back();
    ask(0, 1, "a span less");
    r->gpu->ops->lane_close(gpu);
    r->cpu->ops->lane_close(cpu);
}

static int try_lane(rig *r, int32_t kind) {
    inf_lane_config c = {};
    inf_lane *lane = NULL;
    c.kind = kind;
    c.device = &r->config;
    c.kv = r->kv;
    c.pool = r->pool;
    c.windows = WINDOWS;
    c.max_rows = ANSWER_ROWS;
    c.max_segments = SEGMENTS;
    c.max_blocks = BLOCKS * 2;
    int status = r->gpu->ops->lane_open(r->gpu, &c, &lane, &err);
    CHECK(lane == NULL || status == INF_OK, "a lane that is none");
    r->gpu->ops->lane_close(lane);
    return status;
}

/* A fault stays with its lane; another lane of the same thread knows nothing of it, unless the GPU
 * itself has failed: then there is none, and that is why. */
static void test_faults(rig *r) {
    const inf_backend_ops *ops = r->gpu->ops;
    inf_lane *cpu = open_lane(r, r->cpu, INF_LANE_ANSWER), *gpu = NULL;
    messages m;
    for (int i = 0; i < 2; i++) {
        gpu = open_lane(r, r->gpu, INF_LANE_ANSWER);
        fill(r, &m, false);
        compare(r, &m, cpu, gpu, "a good lane");
        lane_ok(gpu, cudaSetDevice(9999), "the test"); /* the thread has an error of it, too */
        CHECK(ops->sync(gpu, &err) == INF_EIO, "the lane");
        CHECK(ops->answer(gpu, m.args.data(), (int32_t)m.args.size(), &err) == INF_EIO, "it stays");
        ops->lane_close(gpu);
    }
    gpu = open_lane(r, r->gpu, INF_LANE_ANSWER);
    compare(r, &m, cpu, gpu, "another lane");
    m.args[0].rows = ANSWER_ROWS + 1;
    CHECK(ops->answer(gpu, m.args.data(), 1, &err) == INF_EINVAL, "more than it holds");
    fill(r, &m, false);
    compare(r, &m, cpu, gpu, "as good as before");
#if defined(INF_EMU)
    emu_break(cudaErrorIllegalAddress);
    CHECK(ops->answer(gpu, m.args.data(), 1, &err) == INF_EIO, "the GPU");
    for (int32_t kind : {INF_LANE_ANSWER, INF_LANE_COPY}) {
        CHECK(try_lane(r, kind) == INF_EIO && strstr(err.message, "illegal memory access") != NULL,
              "no lane: %s", err.message);
    }
    emu_break(cudaSuccess);
#endif
    CHECK(try_lane(r, INF_LANE_ANSWER) == INF_OK, "%s", err.message);
    ops->lane_close(gpu);
    r->cpu->ops->lane_close(cpu);
}

int main(int argc, char **argv) {
    start(argc, argv);
    for (const auto &c : RIGS) {
        rig r = open_rig(c[0], c[1], c[2]);
        test_answers(&r);
        test_known(&r);
        if (r.config.dtype == INF_DTYPE_F32 && r.ranks == 1) {
            test_faults(&r);
        }
        close_rig(&r);
    }
    return report("test_answer");
}
