/* Inputs that are refused: every field of a good step is mutated, the step is refused without harm,
 * and the good step still gives what it gave before. Then the life of a device, misused in every
 * order, and its end when work for others has shown it. */
#include "tests/tiny_model.h"

#include "dist/internal.h"
#include "runtime/runtime.h"

static tiny_model model;
static inf_device *device;
static inf_step_buffers buf;

/* Two requests, both local. */
static void fill(void) {
    *buf.head =
        (inf_step_head){.step_id = 1, .n_seqs = 2, .n_tokens = 5, .n_blocks = 4, .n_rows = 3};
    buf.seqs[0] = (inf_step_seq){.slot = 0, .n_tokens = 3, .pos0 = 4, .n_blocks = 2};
    buf.seqs[1] =
        (inf_step_seq){.slot = 2, .token_off = 3, .n_tokens = 2, .block_off = 2, .n_blocks = 2};
    const int32_t tokens[] = {1, 2, 3, 4, 5}, blocks[] = {7, 8, 9, 10};
    memcpy(buf.tokens, tokens, sizeof(tokens));
    memcpy(buf.blocks, blocks, sizeof(blocks));
    buf.rows[0] = (inf_step_row){1, 0, 7, 3, 0};
    buf.rows[1] = (inf_step_row){2, 0, -1, 3, 0};
    buf.rows[2] = (inf_step_row){4, 1, -1, INF_MAX_TOP, 0};
}

/* The first request samples behind its second token and its third. */
static void fill_drafts(void) {
    fill();
    buf.rows[0].target = -1;
}

static void fill_far(void) {
    fill();
    buf.rows[0].token = 0;
}

static void fill_turned(void) {
    fill();
    buf.rows[0].token = 2;
    buf.rows[1].token = 1;
}

/* Five rows to sample, four of which have masks. */
static void fill_many(void) {
    fill();
    buf.head->n_rows = 5;
    for (uint32_t i = 0; i < 5; i++) {
        buf.rows[i] = (inf_step_row){i, i < 3 ? 0 : 1, -1, 0, i < 4 ? 1 : 0};
    }
    buf.masks[0] = 1;
}

/* Adds spans to the first request: positions [0, 12) on peers 3 and 5, local from 12. */
static void fill_spans(void) {
    fill();
    buf.head->n_spans = 2;
    buf.head->peer_timeout_ns = 1000000;
    buf.seqs[0].n_spans = 2;
    buf.seqs[0].pos0 = 14;
    buf.seqs[0].local_pos0 = 12;
    buf.seqs[1].span_off = 2;
    buf.spans[0] =
        (inf_step_span){.peer = 3, .handle = 1, .generation = 1, .pos0 = 0, .n_tokens = 8};
    buf.spans[1] =
        (inf_step_span){.peer = 5, .handle = 2, .generation = 1, .pos0 = 8, .n_tokens = 4};
}

static void refused(const char *what) {
    inf_err err = {0};
    int status = inf_device_submit(device, &err);
    CHECK(status == INF_EINVAL && err.code == INF_EINVAL && err.message[0] != 0, "%s: status %d",
          what, status);
    CHECK(inf_device_wait(device, 0, &err) == INF_EINVAL, "%s left a step in flight", what);
}

#define REFUSE(filler, field, value)                                                               \
    do {                                                                                           \
        filler();                                                                                  \
        (field) = (value);                                                                         \
        refused(#field " = " #value);                                                              \
    } while (0)

static void run(void) {
    inf_err err = {0};
    CHECK(inf_device_submit(device, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(device, -1, &err) == INF_OK, "%s", err.message);
}

static void test_heads_and_rows(void) {
    REFUSE(fill, buf.head->n_seqs, 0);
    REFUSE(fill, buf.head->n_seqs, 1);
    REFUSE(fill, buf.head->n_seqs, 3);
    REFUSE(fill, buf.head->n_seqs, 5);
    REFUSE(fill, buf.head->n_seqs, UINT32_MAX);
    REFUSE(fill, buf.head->n_tokens, 0);
    REFUSE(fill, buf.head->n_tokens, 4);
    REFUSE(fill, buf.head->n_tokens, 6);
    REFUSE(fill, buf.head->n_tokens, 65);
    REFUSE(fill, buf.head->n_tokens, UINT32_MAX);
    REFUSE(fill, buf.head->n_blocks, 3);
    REFUSE(fill, buf.head->n_blocks, 5);
    REFUSE(fill, buf.head->n_blocks, 65);
    REFUSE(fill, buf.head->n_spans, 1);
    REFUSE(fill, buf.head->n_spans, 9);
    REFUSE(fill, buf.head->n_rows, 65);
    REFUSE(fill, buf.head->flags, 4);
    REFUSE(fill_spans, buf.head->peer_timeout_ns, 0);
    REFUSE(fill_spans, buf.head->peer_timeout_ns, UINT64_MAX);
    REFUSE(fill, buf.tokens[0], -1);
    REFUSE(fill, buf.tokens[4], TINY_VOCAB);
    REFUSE(fill, buf.rows[0].token, 3);
    REFUSE(fill, buf.rows[0].token, UINT32_MAX);
    REFUSE(fill, buf.rows[2].token, 2);
    REFUSE(fill, buf.rows[2].token, 5);
    REFUSE(fill, buf.rows[0].seq, 1);
    REFUSE(fill, buf.rows[0].seq, 2);
    REFUSE(fill, buf.rows[0].target, TINY_VOCAB);
    REFUSE(fill_far, buf.rows[0].target, -1); /* rows to sample that do not follow each other */
    REFUSE(fill_turned, buf.rows[0].target, -1);
    REFUSE(fill_many, buf.rows[4].mask, 1); /* rows with masks: one more than max_seqs */
    REFUSE(fill, buf.rows[0].n_top, INF_MAX_TOP + 1);
    buf.masks[0] = buf.masks[3 * 2 + 1] = 1; /* max_seqs are four, and a mask is two words */
    REFUSE(fill, buf.rows[0].mask, 1);       /* nothing is sampled there */
    REFUSE(fill, buf.rows[1].mask, 2);       /* no token is allowed */
    REFUSE(fill, buf.rows[1].mask, 5);
    REFUSE(fill, buf.rows[1].mask, UINT32_MAX);
    fill();
    buf.rows[1].mask = 4; /* token 32 */
    buf.rows[2].mask = 1;
    run();
    CHECK(buf.row_out[1].token == 32 && buf.row_out[2].token == 0, "%d, %d", buf.row_out[1].token,
          buf.row_out[2].token);
    fill_drafts();
    run();
    CHECK(buf.row_out[0].rank == 1 && buf.row_out[1].rank == 1, "%d, %d", buf.row_out[0].rank,
          buf.row_out[1].rank);
    fill_many();
    run();
    CHECK(buf.row_out[3].token == 0 && buf.row_out[4].rank == 1, "%d", buf.row_out[3].token);
}

static void test_requests(void) {
    REFUSE(fill, buf.seqs[0].slot, 1); /* not open */
    REFUSE(fill, buf.seqs[0].slot, 2); /* the other's */
    REFUSE(fill, buf.seqs[0].slot, 4);
    REFUSE(fill, buf.seqs[0].slot, UINT32_MAX);
    REFUSE(fill, buf.seqs[0].token_off, 1);
    REFUSE(fill, buf.seqs[1].token_off, 2);
    REFUSE(fill, buf.seqs[1].token_off, UINT32_MAX);
    REFUSE(fill, buf.seqs[0].n_tokens, 0);
    REFUSE(fill, buf.seqs[0].n_tokens, 2);
    REFUSE(fill, buf.seqs[1].n_tokens, 3);
    REFUSE(fill, buf.seqs[1].n_tokens, UINT32_MAX);
    REFUSE(fill, buf.seqs[0].pos0, 6); /* 9 tokens in two blocks of 4 */
    REFUSE(fill, buf.seqs[0].pos0, INT32_MAX);
    REFUSE(fill, buf.seqs[0].pos0, UINT32_MAX);
    REFUSE(fill, buf.seqs[0].local_pos0, 4); /* no spans before it */
    REFUSE(fill, buf.seqs[0].local_pos0, 1);
    REFUSE(fill, buf.seqs[0].local_pos0, 8);
    REFUSE(fill, buf.seqs[0].block_off, 1);
    REFUSE(fill, buf.seqs[1].block_off, UINT32_MAX);
    REFUSE(fill, buf.seqs[0].n_blocks, 1);
    REFUSE(fill, buf.seqs[1].n_blocks, 3);
    REFUSE(fill, buf.seqs[1].n_blocks, UINT32_MAX);
    REFUSE(fill, buf.seqs[0].span_off, 1);
    REFUSE(fill, buf.seqs[0].n_spans, 1);
    REFUSE(fill, buf.seqs[0].n_spans, UINT32_MAX);
    REFUSE(fill, buf.blocks[0], -1);
    REFUSE(fill, buf.blocks[3], 64);
    REFUSE(fill, buf.blocks[3], INT32_MAX);
    REFUSE(fill, buf.blocks[1], 7); /* twice in one request */
    REFUSE(fill, buf.blocks[2], 8); /* written by both */
    REFUSE(fill, buf.blocks[2], 7); /* read by one, written by the other */
    REFUSE(fill, buf.blocks[3], 8);
}

static void test_spans(void) {
    REFUSE(fill_spans, buf.spans[0].peer, INF_MAX_PEERS);
    REFUSE(fill_spans, buf.spans[1].peer, UINT32_MAX);
    REFUSE(fill_spans, buf.spans[0].pos0, 4);
    REFUSE(fill_spans, buf.spans[1].pos0, 4);
    REFUSE(fill_spans, buf.spans[1].pos0, 12);
    REFUSE(fill_spans, buf.spans[0].n_tokens, 0);
    REFUSE(fill_spans, buf.spans[0].n_tokens, 7);
    REFUSE(fill_spans, buf.spans[0].n_tokens, 4);
    REFUSE(fill_spans, buf.spans[0].n_tokens, 12);
    REFUSE(fill_spans, buf.spans[1].n_tokens, 8);
    REFUSE(fill_spans, buf.spans[1].n_tokens, UINT32_MAX - 3);
    REFUSE(fill_spans, buf.seqs[0].local_pos0, 8);
    REFUSE(fill_spans, buf.seqs[0].local_pos0, 13);
    REFUSE(fill_spans, buf.seqs[0].local_pos0, 16);
    REFUSE(fill_spans, buf.seqs[0].pos0, 11);
    REFUSE(fill_spans, buf.seqs[0].n_spans, 1);
    REFUSE(fill_spans, buf.seqs[1].span_off, 1);
    REFUSE(fill_spans, buf.head->n_spans, 1);
}

static void test_mutations(void) {
    inf_err err = {0};
    device = tiny_open(&model);
    CHECK(inf_device_buffers(device, &buf, &err) == INF_OK, "%s", err.message);
    tiny_slot(device, 0);
    tiny_slot(device, 2);
    fill(); /* first the tokens before position 4 */
    *buf.head = (inf_step_head){.n_seqs = 1, .n_tokens = 4, .n_blocks = 2};
    buf.seqs[0] = (inf_step_seq){.n_tokens = 4, .n_blocks = 2};
    run();
    fill();
    run();
    inf_row_out before[3];
    memcpy(before, buf.row_out, sizeof(before));
    test_heads_and_rows();
    test_requests();
    test_spans();
    fill();
    run();
    CHECK(memcmp(before, buf.row_out, sizeof(before)) == 0, "the good step changed");
    fill_spans(); /* valid in form, but nobody is attached: that request alone fails */
    run();
    CHECK(buf.seq_out[0].status == INF_EPEER && buf.row_out[0].token == -1, "%d",
          buf.seq_out[0].status);
    CHECK(buf.seq_out[1].status == INF_OK && buf.row_out[2].token == before[2].token,
          "the other request");
    CHECK(inf_device_slot_open(device, 4, &(inf_sampling){.top_p = 1, .repetition = 1}, NULL, 0, 0,
                               NULL, NULL, 0, &err) == INF_EINVAL,
          "slot 4 of 4");
    inf_device_close(device);
}

static void bad_config(size_t offset, int32_t value) {
    inf_device_config c = model.config;
    memcpy((char *)&c + offset, &value, sizeof(value));
    inf_device *d = NULL;
    inf_err err = {0};
    int status = inf_device_open(&c, model.inv_freq, model.windows, &d, &err);
    CHECK(status == INF_EINVAL && d == NULL, "offset %zu = %d: %d", offset, value, status);
}

static void test_configs(void) {
    const size_t positive[] = {
        offsetof(inf_device_config, layers),       offsetof(inf_device_config, hidden),
        offsetof(inf_device_config, intermediate), offsetof(inf_device_config, heads),
        offsetof(inf_device_config, kv_heads),     offsetof(inf_device_config, head_dim),
        offsetof(inf_device_config, vocab),        offsetof(inf_device_config, dtype),
        offsetof(inf_device_config, block_size),   offsetof(inf_device_config, num_blocks),
        offsetof(inf_device_config, max_tokens),   offsetof(inf_device_config, max_seqs),
        offsetof(inf_device_config, max_rows),     offsetof(inf_device_config, max_step_blocks),
        offsetof(inf_device_config, threads)};
    for (size_t i = 0; i < sizeof(positive) / sizeof(positive[0]); i++) {
        bad_config(positive[i], 0);
        bad_config(positive[i], -1);
        bad_config(positive[i], INT32_MAX);
    }
    bad_config(offsetof(inf_device_config, max_step_spans), -1);
    bad_config(offsetof(inf_device_config, max_spans), -1);
    bad_config(offsetof(inf_device_config, kv_heads), 3);
    bad_config(offsetof(inf_device_config, head_dim), 15);
    bad_config(offsetof(inf_device_config, dtype), INF_DTYPE_F16);
    bad_config(offsetof(inf_device_config, dtype), INF_DTYPE_E4M3);
    bad_config(offsetof(inf_device_config, kv_dtype), INF_DTYPE_BF16);
    bad_config(offsetof(inf_device_config, kv_dtype), INF_DTYPE_E4M3 + 1);
    bad_config(offsetof(inf_device_config, kv_dtype), -1);
    bad_config(offsetof(inf_device_config, model_flags), 2 * INF_MODEL_QK_NORM_ALL);
    bad_config(offsetof(inf_device_config, model_flags), INF_MODEL_QK_NORM_ALL); /* of no norm */
    bad_config(offsetof(inf_device_config, model_flags), INF_MODEL_NO_PRE_NORMS);
    bad_config(offsetof(inf_device_config, model_flags), INF_MODEL_NORM_TOPK); /* of no experts */
    bad_config(offsetof(inf_device_config, experts), 4);                       /* of no size */
    bad_config(offsetof(inf_device_config, experts), -1);
    bad_config(offsetof(inf_device_config, experts_per_token), 1);
    bad_config(offsetof(inf_device_config, expert_intermediate), 8);
    bad_config(offsetof(inf_device_config, shared_intermediate), 8);
    bad_config(offsetof(inf_device_config, isa), 5);
    bad_config(offsetof(inf_device_config, rms_eps), 0x7fc00000);
    bad_config(offsetof(inf_device_config, rope_scale), 0);
    bad_config(offsetof(inf_device_config, activation), -1);
    bad_config(offsetof(inf_device_config, activation), INF_ACT_GELU_TANH + 1);
    bad_config(offsetof(inf_device_config, rotary_dim), -2);
    bad_config(offsetof(inf_device_config, rotary_dim), 3);
    bad_config(offsetof(inf_device_config, rotary_dim), 18); /* head_dim is 16 */
    bad_config(offsetof(inf_device_config, ropes), -1);
    bad_config(offsetof(inf_device_config, ropes), 3);
    const size_t factors[] = {
        offsetof(inf_device_config, attn_scale), offsetof(inf_device_config, attn_softcap),
        offsetof(inf_device_config, logit_softcap), offsetof(inf_device_config, embed_scale)};
    const uint32_t wrong[] = {0x7fc00000u, 0x7f800000u, 0xff800000u, 0xbf800000u,
                              1}; /* NaN, infinities, -1, and next to nothing */
    for (size_t i = 0; i < sizeof(factors) / sizeof(factors[0]); i++) {
        for (size_t k = 0; k < sizeof(wrong) / sizeof(wrong[0]); k++) {
            bad_config(factors[i], (int32_t)wrong[k]);
        }
    }
}

/* A family's tensors are the ones that its flags name, each once, and no others. */
static void test_families(void) {
    const struct {
        uint32_t flags;
        int32_t no, yes; /* roles */
    } cases[] = {{0, INF_ROLE_ATTN_POST_NORM, INF_ROLE_ATTN_NORM},
                 {TINY_GEMMA_2, INF_ROLE_Q_NORM, INF_ROLE_MLP_POST_NORM},
                 {TINY_OLMO_2, INF_ROLE_MLP_NORM, INF_ROLE_K_NORM}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        tiny_model m = tiny_new(cases[i].flags, INF_DTYPE_F32);
        inf_device *d = NULL;
        inf_err err = {0};
        float row[128] = {0};
        CHECK(inf_device_open(&m.config, m.inv_freq, m.windows, &d, &err) == INF_OK, "%s",
              err.message);
        CHECK(inf_device_load(d, cases[i].no, 0, INF_DTYPE_F32, 1, m.config.hidden, row,
                              (uint64_t)m.config.hidden * 4, &err) == INF_EINVAL,
              "role %d was taken", cases[i].no);
        int64_t cols = m.cols[cases[i].yes];
        CHECK(inf_device_load(d, cases[i].yes, 0, INF_DTYPE_F32, 1, cols - 1, row,
                              (uint64_t)(cols - 1) * 4, &err) == INF_EINVAL,
              "a short tensor of role %d was taken", cases[i].yes);
        for (int twice = 0; twice < 2; twice++) {
            int status = tiny_load(&m, d, 0, cases[i].yes, &err);
            CHECK(status == (twice ? INF_EINVAL : INF_OK), "role %d: %s", cases[i].yes,
                  err.message);
        }
        CHECK(inf_device_ready(d, &err) == INF_EINVAL, "ready without the rest");
        inf_device_close(d);
        tiny_free(&m);
    }
    tiny_model m = tiny_new(TINY_OLMO_2, INF_DTYPE_F32);
    m.config.tensor_parallel = 2;
    inf_device *d = NULL;
    inf_err err = {0};
    CHECK(inf_device_open(&m.config, m.inv_freq, m.windows, &d, &err) == INF_EUNSUPPORTED,
          "a norm over all heads on two ranks");
    tiny_free(&m);
}

/* With experts, what is out of range, and tensors that cannot be. */
static void test_experts(void) {
    tiny_model dense = model, m = tiny_new(TINY_EXPERTS | TINY_SHARED, INF_DTYPE_F32);
    inf_device *d = NULL;
    inf_err err = {0};
    model = m;
    bad_config(offsetof(inf_device_config, experts), INF_MAX_EXPERTS + 1);
    bad_config(offsetof(inf_device_config, experts), m.config.experts_per_token - 1);
    bad_config(offsetof(inf_device_config, experts_per_token), 0);
    bad_config(offsetof(inf_device_config, experts_per_token), INF_MAX_EXPERTS_PER_TOKEN + 1);
    bad_config(offsetof(inf_device_config, expert_intermediate), 0);
    bad_config(offsetof(inf_device_config, expert_intermediate), INT32_MAX);
    bad_config(offsetof(inf_device_config, shared_intermediate), -1);
    bad_config(offsetof(inf_device_config, shared_intermediate), INT32_MAX);
    model = dense;
    CHECK(inf_device_open(&m.config, m.inv_freq, m.windows, &d, &err) == INF_OK, "open");
    const float *t = m.tensors[0][INF_ROLE_EXPERT_DOWN];
    int64_t rows = m.rows[INF_ROLE_EXPERT_DOWN], cols = m.cols[INF_ROLE_EXPERT_DOWN];
    uint64_t bytes = (uint64_t)(rows * cols) * sizeof(float);
    const struct {
        int32_t role, layer, expert, expected;
        const char *says;
    } cases[] = {
        {INF_ROLE_EXPERT_DOWN, 0, -1, INF_EINVAL, "role 27 cannot be of expert -1"},
        {INF_ROLE_EXPERT_DOWN, 0, 6, INF_EINVAL, "role 27 cannot be of expert 6"},
        {INF_ROLE_EXPERT_DOWN, 2, 0, INF_EINVAL, "role 27 cannot be in layer 2"},
        {INF_ROLE_DOWN, 0, 0, INF_EINVAL, "role 23 cannot be of expert 0"},
        {INF_ROLE_EXPERT_UP, 0, 0, INF_EINVAL, "role 26 must be [40, 48]"},
        {INF_ROLE_EXPERT_DOWN, 0, 5, INF_OK, ""},
        {INF_ROLE_EXPERT_DOWN, 0, 5, INF_EINVAL, "role 27 was loaded before"},
        {INF_ROLE_EXPERT_DOWN, 0, 4, INF_OK, ""},
        {INF_ROLE_DOWN, 0, -1, INF_EINVAL, "cannot have both an MLP and experts"},
        {INF_ROLE_SHARED_ROUTER + 1, 0, -1, INF_EINVAL, "no tensor of role 32"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        err.message[0] = 0;
        int status = inf_device_load_expert(d, cases[i].role, cases[i].layer, cases[i].expert,
                                            INF_DTYPE_F32, rows, cols, t, bytes, &err);
        CHECK(status == cases[i].expected && strstr(err.message, cases[i].says) != NULL,
              "case %zu: %d, %s", i, status, err.message);
    }
    CHECK(tiny_load(&m, d, 1, INF_ROLE_DOWN, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_load_expert(d, INF_ROLE_EXPERT_DOWN, 1, 0, INF_DTYPE_F32, rows, cols, t, bytes,
                                 &err) == INF_EINVAL,
          "experts beside an MLP");
    CHECK(inf_device_ready(d, &err) == INF_EINVAL, "ready without most");
    inf_device_close(d); /* experts of which some tensors came */
    for (int32_t role = INF_ROLE_ROUTER; role <= INF_ROLE_SHARED_ROUTER; role++) {
        float *kept = m.tensors[0][role];
        CHECK(inf_device_open(&m.config, m.inv_freq, m.windows, &d, &err) == INF_OK, "open");
        for (int32_t r = 1; r < TINY_ROLES; r++) {
            for (int32_t l = 0; l < TINY_LAYERS; l++) {
                if (m.tensors[l][r] != NULL && m.tensors[l][r] != kept) {
                    CHECK(tiny_load(&m, d, l, r, &err) == INF_OK, "%s", err.message);
                }
            }
        }
        CHECK(inf_device_ready(d, &err) == INF_EINVAL && strstr(err.message, "in layer 0") != NULL,
              "ready without role %d", role);
        inf_device_close(d);
    }
    tiny_free(&m);
}

static void test_life(void) {
    inf_device *d = NULL;
    inf_err err = {0};
    CHECK(inf_device_open(&model.config, model.inv_freq, model.windows, &d, &err) == INF_OK,
          "open");
    CHECK(inf_device_ready(d, &err) == INF_EINVAL, "ready without tensors");
    CHECK(inf_device_submit(d, &err) == INF_EINVAL, "submit before ready");
    CHECK(inf_device_wait(d, 0, &err) == INF_EINVAL, "wait before ready");
    CHECK(inf_device_buffers(d, &buf, &err) == INF_EINVAL, "buffers before ready");
    CHECK(inf_device_peer_detach(d, 1, &err) == INF_EINVAL, "peers before ready");
    const float *q = model.tensors[0][INF_ROLE_Q];
    int64_t rows = model.rows[INF_ROLE_Q], cols = model.cols[INF_ROLE_Q];
    uint64_t bytes = (uint64_t)(rows * cols) * sizeof(float);
    CHECK(inf_device_load(d, INF_ROLE_Q, -1, INF_DTYPE_F32, rows, cols, q, bytes, &err) ==
              INF_EINVAL,
          "layer");
    CHECK(inf_device_load(d, INF_ROLE_Q, 2, INF_DTYPE_F32, rows, cols, q, bytes, &err) ==
              INF_EINVAL,
          "layer");
    CHECK(inf_device_load(d, INF_ROLE_Q, 0, 9, rows, cols, q, bytes, &err) == INF_EINVAL, "dtype");
    CHECK(inf_device_load(d, INF_ROLE_Q, 0, INF_DTYPE_F32, cols, rows, q, bytes, &err) ==
              INF_EINVAL,
          "shape");
    CHECK(inf_device_load(d, INF_ROLE_Q, 0, INF_DTYPE_F32, rows, cols, q, bytes - 1, &err) ==
              INF_EINVAL,
          "bytes");
    CHECK(inf_device_load(d, INF_ROLE_Q, 0, INF_DTYPE_F32, rows, cols, NULL, bytes, &err) ==
              INF_EINVAL,
          "data");
    CHECK(inf_device_load(d, 99, 0, INF_DTYPE_F32, rows, cols, q, bytes, &err) == INF_EINVAL,
          "role");
    CHECK(inf_device_load(d, INF_ROLE_Q_BIAS, 0, INF_DTYPE_F32, 1, rows, q, (uint64_t)rows * 4,
                          &err) == INF_EINVAL,
          "a bias that the model lacks");
    CHECK(tiny_load(&model, d, 0, INF_ROLE_Q, &err) == INF_OK, "%s", err.message);
    CHECK(tiny_load(&model, d, 0, INF_ROLE_Q, &err) == INF_EINVAL, "twice");
    CHECK(inf_device_ready(d, &err) == INF_EINVAL, "ready with one tensor");
    inf_device_close(d); /* a stage of Q without K and V is open */
    d = tiny_open(&model);
    CHECK(tiny_load(&model, d, 0, INF_ROLE_Q, &err) == INF_EINVAL, "load after ready");
    CHECK(inf_device_ready(d, &err) == INF_EINVAL, "ready twice");
    CHECK(inf_device_wait(d, 0, &err) == INF_EINVAL, "nothing in flight");
    CHECK(inf_device_peer_status(d, INF_MAX_PEERS, &err) == INF_EINVAL, "peer 256");
    const int32_t far = 64;
    CHECK(inf_device_span_set(d, 1, 0, 1, &far, 1, &err) == INF_EINVAL, "block 64 of 64");
    CHECK(inf_device_span_set(d, 1, 8, 1, &far, 0, &err) == INF_EINVAL, "handle 8 of 8");
    CHECK(inf_device_span_share(d, 1, 0, 1, &far, 1, &err) == INF_EINVAL, "block 64 of 64");
    CHECK(inf_device_span_share(d, INF_MAX_PEERS, 0, 1, &far, 0, &err) == INF_EINVAL, "peer 256");
    CHECK(inf_device_move_post(d, 1, 0, 1, 0, &far, 1, 1, &err) == INF_EINVAL, "block 64 of 64");
    inf_device_close(d);
    inf_device_close(NULL);
    CHECK(inf_device_block_bytes(&model.config) == 2 * 2 * 2 * 4 * 16 * 4, "block bytes");
}

/* A step that is in itself right ends with what the thread that answers others was told by the
 * device, and so does everything that follows. */
static void test_over(void) {
    inf_err err = {0};
    device = tiny_open(&model);
    CHECK(inf_device_buffers(device, &buf, &err) == INF_OK, "buffers");
    tiny_slot(device, 0);
    tiny_slot(device, 2);
    fill();
    CHECK(inf_device_submit(device, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(device, -1, &err) == INF_OK, "%s", err.message);
    struct inf_dist *d = device->dist;
    d->fault = (inf_err){.code = INF_EIO, .instance = -1, .layer = -1, .message = "no lane"};
    atomic_store(&d->over, true);
    CHECK(inf_device_submit(device, &err) == INF_OK, "%s", err.message);
    CHECK(inf_device_wait(device, -1, &err) == INF_EIO && strcmp(err.message, "no lane") == 0,
          "a step of a device that is over");
    CHECK(inf_device_submit(device, &err) == INF_EIO, "the next step");
    inf_device_close(device);
}

int main(void) {
    model = tiny_new(0, INF_DTYPE_F32);
    test_configs();
    test_families();
    test_experts();
    test_life();
    test_mutations();
    test_over();
    tiny_free(&model);
    puts("validate: ok");
    return 0;
}
