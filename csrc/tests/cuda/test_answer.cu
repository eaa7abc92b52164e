/* Answers on the GPU: the messages of several debtors, in different layers, in one call, in memory
 * that is pinned and in memory that is not, against the CPU's; and what a step exchanges. By one
 * backend, and by one that is made of two, of which each has its heads of every row. */
#include "guarded.h"

#include <pthread.h>
#include <sys/mman.h>

#include "kernels/convert.h"
#include "kernels/cuda/lane.h"
#include "kernels/tp/tp.h"
#include "tests/farther.h"

extern "C" int inf_cuda_backend_open_7(int32_t ordinal, const inf_device_config *config,
                                       uint64_t config_bytes, uint64_t ops_bytes, inf_backend **out,
                                       inf_err *err);

enum { LAYERS = 4, HEADS = 4, KV_HEADS = 2, DIM = 64, BLOCK = 16, BLOCKS = 48, ROWS = 80 };
enum {
    ROW = HEADS * DIM,
    ANSWER_ROWS = 24,
    IN_PLACE = 40,
    SEGMENTS = 96,
    SLOT = 1 << 20,
    SLOTS = 3
};

static const int32_t WINDOWS[LAYERS] = {0, 0, 100, 0};
static inf_err err;

struct rig {
    inf_device_config config;
    inf_kv_shape kv;
    inf_backend *gpu, *cpu;
    std::vector<uint8_t> cpu_pool;
    uint8_t *pool;
    int32_t ranks;  /* of gpu */
    uint8_t *slots; /* [2 * SLOTS] of SLOT bytes: whole pages, as a link's are */
};

static inf_backend *open_gpu(const inf_device_config *c, int32_t ranks) {
    inf_backend *part[INF_MAX_RANKS] = {}, *b = NULL;
    for (int32_t i = 0; i < ranks; i++) {
        CHECK(inf_cuda_backend_open_7(0, c, sizeof *c, sizeof(inf_backend_ops), &part[i], &err) ==
                  INF_OK,
              "%s", err.message);
    }
    if (ranks == 1) {
        return part[0];
    }
    CHECK(inf_backend_tp(part, ranks, c, &b, &err) == INF_OK, "%s", err.message);
    return b;
}

/* The lane of a rank, and its part of device memory. */
static inf_lane *lane_of(const rig *r, inf_lane *lane, int32_t rank) {
    return r->ranks == 1 ? lane : ((tp_lane *)(void *)lane)->rank[rank];
}

static float *part_of(const rig *r, void *memory, int32_t rank) {
    return (float *)(r->ranks == 1 ? memory : tp_part(memory, rank));
}

static inf_lane *open_lane(rig *r, inf_backend *b, int32_t kind);

/* Numbers, or codes of small ones. */
static void fill_pool(rig *r) {
    r->cpu_pool.resize(r->kv.block_bytes * BLOCKS);
    for (size_t i = 0; i < r->cpu_pool.size(); i += (size_t)r->kv.elem) {
        float x = number();
        r->cpu_pool[i] = (uint8_t)(below(0x39) | below(2) << 7);
        if (r->kv.elem > 1) {
            inf_convert(&r->cpu_pool[i], r->kv.dtype, &x, INF_DTYPE_F32, 1);
        }
    }
    r->pool = (uint8_t *)r->gpu->ops->alloc_pool(r->gpu, r->cpu_pool.size());
    CHECK(r->pool != NULL, "no pool");
    inf_lane *lane = open_lane(r, r->gpu, INF_LANE_COPY);
    r->gpu->ops->copy_in(lane, r->pool, r->cpu_pool.data(), r->cpu_pool.size());
    CHECK(r->gpu->ops->sync(lane, &err) == INF_OK, "%s", err.message);
    r->gpu->ops->lane_close(lane);
}

static rig open_rig(int32_t ranks, int32_t kv_dtype, int32_t act) {
    rig r = {};
    r.ranks = ranks;
    r.config.layers = LAYERS;
    r.config.hidden = ROW;
    r.config.intermediate = 64;
    r.config.vocab = 64;
    r.config.heads = HEADS;
    r.config.kv_heads = KV_HEADS;
    r.config.head_dim = DIM;
    r.config.dtype = act;
    r.config.block_size = BLOCK;
    r.config.num_blocks = BLOCKS;
    r.config.max_tokens = r.config.max_rows = ROWS;
    r.config.max_seqs = 8;
    r.config.max_step_blocks = BLOCKS;
    r.config.max_step_spans = SEGMENTS;
    r.config.rope_scale = 1;
    uint64_t elem = format_size(kv_dtype), layer = 2 * KV_HEADS * BLOCK * DIM * elem;
    r.kv = {LAYERS, KV_HEADS, BLOCK, DIM, kv_dtype, (int32_t)elem, LAYERS * layer};
    r.gpu = open_gpu(&r.config, ranks);
    r.cpu = inf_backend_cpu(0);
    fill_pool(&r);
    r.slots = (uint8_t *)mmap(NULL, 2 * SLOTS * SLOT, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(r.slots != MAP_FAILED, "map");
    return r;
}

static inf_lane *open_lane(rig *r, inf_backend *b, int32_t kind) {
    static float inv_freq[DIM / 2];
    inf_lane_config c = {};
    inf_lane *lane = NULL;
    c.kind = kind;
    c.device = &r->config;
    c.kv = r->kv;
    c.pool = b == r->gpu ? r->pool : r->cpu_pool.data();
    c.windows = WINDOWS;
    c.inv_freq = inv_freq;
    c.scale = 0.125f;
    c.max_rows = kind == INF_LANE_ANSWER ? (int32_t)ANSWER_ROWS : (int32_t)ROWS;
    c.max_segments = SEGMENTS;
    c.max_blocks = BLOCKS * 2;
    CHECK(b->ops->lane_open(b, &c, &lane, &err) == INF_OK, "%s", err.message);
    return lane;
}

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

/* What is pinned, and what is not: addresses at and over the ends. */
static void test_pins(rig *r) {
    cuda_backend *b = (cuda_backend *)r->gpu;
    const inf_backend_ops *ops = r->gpu->ops;
    uint8_t *at = r->slots;
    CHECK(pinned_find(b, at, 1) == NULL, "nothing is pinned");
    CHECK(ops->host_pin(r->gpu, at + SLOT, SLOT) == INF_OK, "pin");
    CHECK(ops->host_pin(r->gpu, at + SLOT, SLOT) != INF_OK, "pinned twice");
    CHECK(ops->host_pin(r->gpu, NULL, SLOT) != INF_OK, "nothing");
    CHECK(ops->host_pin(r->gpu, at + 3 * SLOT, SLOT) == INF_OK, "pin");
    CHECK(pinned_find(b, at + SLOT, SLOT) != NULL, "all of it");
    CHECK(pinned_find(b, at + SLOT, SLOT + 1) == NULL, "beyond its end");
    CHECK(pinned_find(b, at + SLOT - 1, 2) == NULL, "before its beginning");
    CHECK(pinned_find(b, at + 2 * SLOT - 1, 1) != NULL, "its last byte");
    CHECK(pinned_find(b, at + 2 * SLOT, 1) == NULL, "after its end");
    CHECK(pinned_find(b, at + 2 * SLOT - 1, UINT64_MAX) == NULL, "a length that wraps");
    CHECK(pinned_find(b, at + 3 * SLOT + 5, 9) != NULL, "the second one");
    ops->host_unpin(r->gpu, at); /* not pinned: nothing happens */
    ops->host_unpin(r->gpu, at + SLOT);
    CHECK(pinned_find(b, at + SLOT, 1) == NULL, "unpinned");
    CHECK(cudaHostUnregister(at + SLOT) != cudaSuccess, "unpinned in the driver too");
    (void)cudaGetLastError();
    CHECK(pinned_find(b, at + 3 * SLOT, 1) != NULL, "the other one is left");
    ops->host_unpin(r->gpu, at + 3 * SLOT);
}

/* Ranks share a registration: all of them have the pages, or none that had not before. */
static void test_pins_of_ranks(rig *r) {
    tp_backend *b = (tp_backend *)r->gpu;
    const inf_backend_ops *ops = r->gpu->ops;
    uint8_t *at = r->slots;
    CHECK(ops->host_pin(r->gpu, at, SLOT) == INF_OK, "pin");
    for (int32_t i = 0; i < r->ranks; i++) {
        CHECK(pinned_find((cuda_backend *)b->rank[i], at, SLOT) != NULL, "rank %d", i);
    }
    CHECK(ops->host_pin(r->gpu, at, SLOT) != INF_OK, "pinned twice");
    CHECK(pinned_find((cuda_backend *)b->rank[0], at, SLOT) != NULL, "it stays pinned");
    ops->host_unpin(r->gpu, at);
    CHECK(cudaHostUnregister(at) != cudaSuccess, "unpinned in the driver too");
    (void)cudaGetLastError();
    CHECK(b->ops->host_pin(b->rank[1], at, SLOT) == INF_OK, "pin");
    CHECK(ops->host_pin(r->gpu, at, SLOT) != INF_OK, "not by all ranks");
    CHECK(b->ops->host_pin(b->rank[0], at, 2 * SLOT) != INF_OK, "more than is registered");
    CHECK(pinned_find((cuda_backend *)b->rank[0], at, 1) == NULL, "the first rank let go");
    CHECK(pinned_find((cuda_backend *)b->rank[1], at, SLOT) != NULL, "the second one has its own");
    b->ops->host_unpin(b->rank[1], at);
    CHECK(cudaHostUnregister(at) != cudaSuccess, "unpinned in the driver too");
    (void)cudaGetLastError();
}

/* Rows of all heads to and from the ranks' parts of device memory. */
static void put_rows(const rig *r, void *device, const std::vector<float> &all) {
    size_t n = ROW / (size_t)r->ranks;
    for (int32_t k = 0; k < r->ranks; k++) {
        must(cudaMemcpy2D(part_of(r, device, k), n * 4, &all[(size_t)k * n], ROW * 4, n * 4, ROWS,
                          cudaMemcpyHostToDevice),
             "rows");
    }
}

static std::vector<float> get_rows(const rig *r, void *device) {
    std::vector<float> all((size_t)ROWS * ROW);
    size_t n = ROW / (size_t)r->ranks;
    for (int32_t k = 0; k < r->ranks; k++) {
        must(cudaMemcpy2D(&all[(size_t)k * n], ROW * 4, part_of(r, device, k), n * 4, n * 4, ROWS,
                          cudaMemcpyDeviceToHost),
             "rows");
    }
    return all;
}

/* Queries out of a step's lane and partials into it, in place: 1 means that merge reads later. */
static void test_exchange(rig *r) {
    inf_lane *lane = open_lane(r, r->gpu, INF_LANE_STEP);
    const inf_backend_ops *ops = r->gpu->ops;
    std::vector<float> q((size_t)ROWS * ROW);
    for (float &x : q) {
        x = number();
    }
    float *device = (float *)ops->alloc(r->gpu, q.size() * sizeof(float));
    put_rows(r, device, q);
    float *host = (float *)(r->slots + 64), *far = (float *)(r->slots + 3 * SLOT);
    CHECK(ops->host_pin(r->gpu, r->slots, SLOT) == INF_OK, "pin");
    memset(r->slots, 0, 4 * SLOT);
    for (uint32_t i = 0; i < ROWS; i++) { /* in turn to pinned and to other memory */
        ops->queries(lane, device, i, 1, (i % 2 ? far : host) + (ROWS - 1 - i) * ROW, HEADS);
    }
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    for (uint32_t i = 0; i < ROWS; i++) {
        float *at = (i % 2 ? far : host) + (ROWS - 1 - i) * ROW;
        CHECK(memcmp(at, &q[i * ROW], ROW * sizeof(float)) == 0, "row %u", i);
    }
    for (int32_t k = 0; k < r->ranks; k++) {
        const inf_lane *l = lane_of(r, lane, k);
        CHECK(l->direct_rows == ROWS / 2 && l->staged_rows == ROWS / 2, "half of them in place");
    }

    /* A partial of lse -inf in the lane takes what is merged as it is. */
    std::vector<float> none((size_t)ROWS * HEADS, -INFINITY);
    for (int32_t k = 0; k < r->ranks; k++) {
        inf_lane *l = lane_of(r, lane, k);
        must(cudaMemcpy(l->lse, none.data(), none.size() * sizeof(float) / (size_t)r->ranks,
                        cudaMemcpyHostToDevice),
             "lse");
        l->partial = part_of(r, device, k);
        l->rows = ROWS;
    }
    for (int i = 0; i < ROWS * ROW; i++) {
        host[i] = far[i] = number();
    }
    float *lse = host + ROWS * ROW, *far_lse = far + ROWS * ROW;
    memset(lse, 0, ROWS * HEADS * sizeof(float));
    memset(far_lse, 0, ROWS * HEADS * sizeof(float));
    for (uint32_t i = 0; i < IN_PLACE; i++) { /* more runs than a launch takes */
        CHECK(ops->merge(lane, i, 1, host + i * ROW, lse + i * HEADS, HEADS) == 1, "read in place");
    }
    CHECK(ops->merge(lane, IN_PLACE, ROWS - IN_PLACE, far + IN_PLACE * ROW,
                     far_lse + IN_PLACE * HEADS, HEADS) == 0,
          "staged");
    std::vector<float> host_was(host, host + ROWS * ROW);
    std::vector<float> far_was(far, far + ROWS * ROW);
    memset(far, 0xff, ROWS * ROW * sizeof(float)); /* it is the caller's again */
    /* A sync in the middle of a layer's merges loses none. */
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    memset(host, 0xff, ROWS * ROW * sizeof(float));
    CHECK(ops->sync(lane, &err) == INF_OK, "%s", err.message);
    std::vector<float> got = get_rows(r, device);
    size_t wrong = 0;
    for (int i = 0; i < ROWS * ROW; i++) {
        const std::vector<float> &want = i < IN_PLACE * ROW ? host_was : far_was;
        wrong += memcmp(&got[(size_t)i], &want[(size_t)i], sizeof want[0]) != 0;
    }
    CHECK(wrong == 0, "%zu numbers are wrong", wrong);
    ops->host_unpin(r->gpu, r->slots);
    ops->lane_close(lane);
    ops->free(r->gpu, device);
}

int main(int argc, char **argv) {
    start(argc, argv);
    static const int32_t rigs[][3] = {
        /* ranks, format of KV (the CPU has none in f16), act */
        {1, INF_DTYPE_F32, INF_DTYPE_F32},   {1, INF_DTYPE_E4M3, INF_DTYPE_F32},
        {2, INF_DTYPE_F32, INF_DTYPE_F32},   {2, INF_DTYPE_E4M3, INF_DTYPE_F32},
        {1, INF_DTYPE_BF16, INF_DTYPE_BF16}, {1, INF_DTYPE_E4M3, INF_DTYPE_F16},
        {1, INF_DTYPE_E4M3, INF_DTYPE_BF16}, {2, INF_DTYPE_BF16, INF_DTYPE_BF16}};
    for (const int32_t *c = rigs[0]; c < rigs[sizeof rigs / sizeof *rigs]; c += 3) {
        rig r = open_rig(c[0], c[1], c[2]);
        r.ranks == 1 ? test_pins(&r) : test_pins_of_ranks(&r);
        test_answers(&r);
        test_known(&r);
        if (r.config.dtype == INF_DTYPE_F32) {
            if (r.ranks == 1) {
                test_faults(&r);
            }
            test_exchange(&r);
        }
        r.gpu->ops->free_pool(r.gpu, r.pool, r.cpu_pool.size());
        r.gpu->ops->close(r.gpu);
        r.cpu->ops->close(r.cpu);
        munmap(r.slots, 2 * SLOTS * SLOT);
    }
    return report("test_answer");
}
